"""Does a run that is killed end with the weights of one that was not?

    python benchmarks/kill_and_resume.py [--kills 3] [--json FILE]

Trains the tiny synthetic world twice with `adrec train`: once undisturbed, and once killed with
SIGKILL and started again until it is through. A run is killed at a random instant after it has
written a checkpoint of its own, so that each has trained a little further than the one before.
Prints the SHA-256 of the final weights of both.
"""

import argparse
import contextlib
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SETTINGS = [
    "--two-tower-epochs=8",
    "--ranker-epochs=8",
    "--batch-size=128",
    "--set=training.two_tower.patience=8",
    "--set=training.ranker.patience=8",
    "--set=training.two_tower.checkpoint_every_s=0.2",
    "--set=training.ranker.checkpoint_every_s=0.2",
]
_MODELS = ("two_tower.safetensors", "ranker.safetensors")


def main() -> None:
    """Run both trainings and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the instants of the kills")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        adrec = [sys.executable, "-m", "adrec.cli"]
        subprocess.run([*adrec, "synth", "--preset", "tiny", "-o", str(world)], check=True)
        runs = {name: Path(folder) / name for name in ("undisturbed", "killed")}
        train = [*adrec, "train", "--data", str(world), *_SETTINGS, "--out"]
        subprocess.run([*train, str(runs["undisturbed"])], check=True)
        kills = 0
        while kills < arguments.kills and killed(train, runs["killed"], rng):
            kills += 1
            print(f"killed, {kills} of {arguments.kills}", flush=True)
        subprocess.run([*train, str(runs["killed"])], check=True)
        digests = {name: {m: digest(run, m) for m in _MODELS} for name, run in runs.items()}
    for model in _MODELS:
        for name, of in digests.items():
            print(f"{model:<24}{name:<14}{of[model]}")
    equal = digests["undisturbed"] == digests["killed"]
    print("equal" if equal else "DIFFERENT", f"after {kills} kills")
    rows: list[dict[str, str | float]] = [
        {"case": "all", "metric": "kills", "value": kills, "unit": "kills"}
    ]
    rows += [
        {"case": model, "metric": "equal weights", "value": float(equal), "unit": "share"}
        for model in _MODELS
    ]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))
    sys.exit(0 if equal and kills else 1)


def killed(train: list[str], run: Path, rng: random.Random) -> bool:
    """Start a training and kill it within a second of its first checkpoint; False: it was over."""
    started = time.time()
    process = subprocess.Popen([*train, str(run)])
    while process.poll() is None:
        if last_checkpoint(run) > started:
            time.sleep(rng.uniform(0.0, 1.0))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return True
        time.sleep(0.02)
    return False


def last_checkpoint(run: Path) -> float:
    """When a stage last wrote a checkpoint, in seconds since 1970; 0 if none has."""
    with contextlib.suppress(FileNotFoundError):  # it is just being replaced
        return max((p.stat().st_mtime for p in run.glob("training/*/last")), default=0.0)
    return 0.0


def digest(run: Path, model: str) -> str:
    """SHA-256 of a published model's weights."""
    version = (run / "current").read_text().strip()
    return hashlib.sha256((run / "versions" / version / model).read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
