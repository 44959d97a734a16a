"""Servers as processes of their own, as users start them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

_STARTED = re.compile(r"version (\S+) answers at (\S+)")
_ADMIN = re.compile(r"^admin: (\S+)/docs", re.MULTILINE)
_START_S = 120.0


class Process:
    """`adrec serve`, its addresses, and what it printed."""

    def __init__(self, run: Path, *arguments: object, env: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "adrec.cli", "serve", str(run)]
        command += ["--port", "0", "--admin-port", "0", *map(str, arguments)]
        environment = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | (env or {})
        self.process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._listening.wait(_START_S)
        text = "\n".join(self.lines)
        started, admin = _STARTED.search(text), _ADMIN.search(text)
        if started is None or admin is None:
            self.close()
            raise AssertionError("no server:\n" + "\n".join(self.lines))
        self.version, self.url = started.groups()
        self.admin = admin.group(1)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def close(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if _ADMIN.search(line):
                self._listening.set()
        self._listening.set()


@contextlib.contextmanager
def serving(
    run: Path, *arguments: object, env: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """A server, killed at the end unless it has stopped."""
    server = Process(run, *arguments, env=env)
    try:
        yield server
    finally:
        server.close()
