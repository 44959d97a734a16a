"""A clock that servers go by, in whichever process."""


class Clock:
    """A time that tests move; it begins a minute after the log's end."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms
