"""PostgreSQL and Redis as real servers on free loopback ports, stopped at the end.

Where they are not installed the tests that need them are left out, and say so; under CI=true that
is a failure.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

_START_S = 30.0
_USER = "postgres"  # PostgreSQL refuses to run as root


def need(program: str, package: str) -> str:
    """Path of a program; without it the test is left out, or fails where nothing may be."""
    found = shutil.which(program) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))), None
    )
    if found is None:
        message = f"{program} is not installed (Debian: apt-get install {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


class Redis:
    """A Redis server that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._program, self._folder = need("redis-server", "redis-server"), folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start it, once more at the same port if it was killed."""
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _wait_for(self.port)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def stall(self) -> None:
        """Let it hold its connections and answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it for good."""
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        self.kill()


class Postgres:
    """A PostgreSQL server with one database."""

    def __init__(self) -> None:
        self._control, create = need("pg_ctl", "postgresql"), need("initdb", "postgresql")
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's only root may enter
        self.port = free_port()
        if os.geteuid() == 0:
            shutil.chown(self._folder, _USER)
        data = str(self._folder / "data")
        self._run(create, "--pgdata", data, "--auth", "trust", "--username", _USER, "-N")
        self.start()
        self.url = f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, once more at the same port if it was stopped."""
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder}"
        log = str(self._folder / "log")
        data = str(self._folder / "data")
        self._run(self._control, "start", "-w", "-D", data, "-l", log, "-o", settings)

    def stop(self, how: str = "immediate") -> None:
        """Stop it: `immediate` is like a crash."""
        self._run(self._control, "stop", "-w", "-D", str(self._folder / "data"), "-m", how)

    def stall(self) -> None:
        """Have it, and all that serves its clients, stand still."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        main = int((self._folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(main, number)  # the first to stop, so that it starts no others
        for pid in Path(f"/proc/{main}/task/{main}/children").read_text().split():
            os.kill(int(pid), number)

    def close(self) -> None:
        """End it for good."""
        with contextlib.suppress(AssertionError):  # it was stopped
            self.stop()
        shutil.rmtree(self._folder)

    def _run(self, *command: str) -> None:
        as_user = ["runuser", "-u", _USER, "--"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*as_user, *command], check=False, capture_output=True, text=True, cwd="/"
        )
        if done.returncode:
            raise AssertionError(f"{command[0]}: {done.stdout}{done.stderr}")


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return
