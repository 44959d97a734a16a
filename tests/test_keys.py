"""A step's result is taken again only if it is of the same settings and files."""

from pathlib import Path

import pytest

from adrec.errors import ConfigError
from adrec.keys import alone, files_of, has_key, key_of, write_key


def test_a_key_is_of_just_its_settings(tmp_path: Path) -> None:
    assert not has_key(tmp_path, key_of(1, "a"))
    write_key(tmp_path, key_of(1, "a"))
    assert has_key(tmp_path, key_of(1, "a"))
    assert not has_key(tmp_path, key_of(2, "a"))


def test_a_key_is_never_there_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a kill while it is written once more would cost all that it stands for."""
    write_key(tmp_path, "old")

    def dies(self: Path, text: str) -> int:
        with self.open("w") as file:
            file.write(text[:3])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", dies)
    with pytest.raises(OSError, match="no space"):
        write_key(tmp_path, "old")
    assert has_key(tmp_path, "old")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("impressions.csv", True),
        ("impressions/2026-01-01.parquet", True),
        ("schema.yaml", True),
        ("random/all/all.csv", True),
        ("runs/tune/trials.csv", False),
        ("notes.md", False),
        ("train.yaml", False),
        (".hidden", False),
    ],
)
def test_what_is_no_table_decides_nothing(tmp_path: Path, name: str, counts: bool) -> None:
    (tmp_path / "ads.parquet").touch()
    before = files_of(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert (files_of(tmp_path) != before) == counts


def test_a_single_file_is_a_log(tmp_path: Path) -> None:
    path = tmp_path / "day.anything"
    path.write_text("a")
    ((_, size, _),) = files_of(path)
    assert size == 1
    assert files_of(tmp_path / "none") == files_of(None) == []


def test_two_processes_do_not_do_the_same_work(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with (
        alone(folder, "prepare"),
        alone(folder, "train"),
        pytest.raises(ConfigError, match=r"run: another process is at work.*\(prepare\); wait"),
        alone(folder, "prepare"),
    ):
        pass
    with alone(folder, "prepare"):
        pass
