"""A page in Chromium, told what to do through its DevTools protocol."""

import contextlib
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_PATIENCE_S = 60.0


class Page:
    """A page that somebody looks at."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._calls = connection, 0

    def evaluate(self, script: str) -> Any:
        """What an expression of JavaScript comes to."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self) -> str:
        """What is to be read on it."""
        return re.sub(r"\s+", " ", self.evaluate("document.body.innerText"))

    def until(self, script: str) -> None:
        """Wait until an expression holds."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.evaluate(script):
            assert time.monotonic() < deadline, f"{script} does not hold: {self.text()}"
            time.sleep(0.1)

    def type(self, place: str, text: str) -> None:
        """Type into the field that a selector finds, and press Enter."""
        self.evaluate(f"document.querySelector({json.dumps(place)}).select()")
        self.call("Input.insertText", text=text)
        key = {"key": "Enter", "windowsVirtualKeyCode": 13}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": params}
        self._connection.send(json.dumps(message))
        while True:
            found = json.loads(self._connection.recv(timeout=_PATIENCE_S))
            if found.get("id") == self._calls:
                assert "result" in found, found
                result: dict[str, Any] = found["result"]
                return result


@contextlib.contextmanager
def looking_at(url: str, chromium: str, folder: Path) -> Iterator[Page]:
    """The page at a URL, in a browser of its own that keeps its files in a folder."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--window-size=1240,1360", "--remote-debugging-port=0", f"--user-data-dir={folder}", url,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            with connect(_address(folder), max_size=None, proxy=None) as connection:
                page = Page(connection)
                page.until("location.href !== 'about:blank' && document.readyState === 'complete'")
                yield page
        finally:
            browser.kill()


def _address(folder: Path) -> str:
    """Of the page, once there is one."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, IndexError):
            port = (folder / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
            address: str = pages[0]["webSocketDebuggerUrl"]
            return address
        time.sleep(0.1)
    raise AssertionError("no browser")
