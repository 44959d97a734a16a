"""Does a run that is killed end with the weights of one that was not?

    python benchmarks/kill_and_resume.py [--kills 3] [--json FILE]

Trains the tiny synthetic world twice with `adrec train`: once undisturbed, and once killed with
SIGKILL at random instants and started again until it is through. Prints the SHA-256 of the final
weights of both.
"""

import argparse
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
    "--two-tower-epochs=2",
    "--ranker-epochs=2",
    "--batch-size=128",
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
        begun = time.monotonic()
        subprocess.run([*train, str(runs["undisturbed"])], check=True)
        whole_s = time.monotonic() - begun
        kills = 0
        for _ in range(arguments.kills):
            process = subprocess.Popen([*train, str(runs["killed"])])
            try:
                process.wait(timeout=whole_s * rng.uniform(0.3, 0.8))
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                print(f"killed, {kills} of {arguments.kills}", flush=True)
        subprocess.run([*train, str(runs["killed"])], check=True)
        digests = {name: {m: digest(run, m) for m in _MODELS} for name, run in runs.items()}
    for model in _MODELS:
        for name, of in digests.items():
            print(f"{model:<24}{name:<14}{of[model]}")
    equal = digests["undisturbed"] == digests["killed"]
    print("equal" if equal else "DIFFERENT", f"after {kills} kills")
    rows = [
        {"case": model, "metric": "equal weights", "value": float(equal), "unit": "share"}
        for model in _MODELS
    ]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))
    sys.exit(0 if equal else 1)


def digest(run: Path, model: str) -> str:
    """SHA-256 of a published model's weights."""
    version = (run / "current").read_text().strip()
    return hashlib.sha256((run / "versions" / version / model).read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
