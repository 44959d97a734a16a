"""Run every benchmark of speed and memory, one after the other, and draw the page of them.

    python benchmarks/all.py                      about an hour on 2 cores
    python benchmarks/all.py --quick              a smoke run, under 3 minutes
    python benchmarks/all.py --only ranking,filters

Each writes its rows to `runs/bench/NAME.json`. What they have in common (a version over a million
ads) is trained once, in `runs/bench/work`. After a whole run the page is `docs/speed.md`; after a
quick one it is `runs/bench-quick/speed.md`.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from page import write_page

SCRIPTS = {  # and whether it takes --work
    "end_to_end": True,
    "ranking": True,
    "retrieval": True,
    "filters": False,
    "growth": True,
    "preparation": True,
    "training": True,
}
_HERE = Path(__file__).parent


def main() -> None:
    """Run them, report which failed, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("--only", default=",".join(SCRIPTS), help="names with commas between")
    parser.add_argument("--out", type=Path, help="folder for the rows")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in SCRIPTS]:
        parser.error(f"no benchmark called {', '.join(unknown)}; there are {', '.join(SCRIPTS)}")
    out = arguments.out or Path("runs/bench-quick" if arguments.quick else "runs/bench")
    failed = [name for name in names if not run(name, out, quick=arguments.quick)]
    page = out / "speed.md" if arguments.quick else _HERE.parent / "docs" / "speed.md"
    write_page(out, page)
    print(f"page: {page}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str, out: Path, *, quick: bool) -> bool:
    """Run one; whether it succeeded."""
    command = [sys.executable, str(_HERE / f"{name}.py"), "--json", str(out / f"{name}.json")]
    if SCRIPTS[name]:
        command += ["--work", str(out / "work")]
    if quick:
        command.append("--quick")
    out.mkdir(parents=True, exist_ok=True)
    print(f"\n== {name}: {' '.join(command[1:])}", flush=True)
    begun = time.monotonic()
    # Idle threads that spin disturb what is timed; training, where none is idle, they serve.
    quiet = {} if name == "training" else {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, check=False, env=quiet | os.environ)
    print(f"== {name}: {time.monotonic() - begun:.0f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
