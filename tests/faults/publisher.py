"""A process that publishes copies of a version, one after the other, until it is killed.

python publisher.py RUN
"""

import shutil
import sys
from pathlib import Path

from adrec.bundle import Bundle, find_version, publish


def main() -> None:
    """Publish the current version again and again; the fifth last is removed."""
    run = Path(sys.argv[1])
    while True:
        version = find_version(run)
        manifest = Bundle.open(version).manifest
        names = list(manifest.files)

        def write(folder: Path, names: list[str] = names, version: Path = version) -> None:
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(version / name, folder / name)

        publish(run, manifest.model_copy(update={"files": {}}), write)
        print("published", flush=True)
        for old in sorted((run / "versions").glob("2*"))[:-5]:
            shutil.rmtree(old)


if __name__ == "__main__":
    main()
