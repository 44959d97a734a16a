"""A version is published whole or not at all, and nothing damaged is ever opened."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adrec import bundle as bundle_module
from adrec.bundle import FORMAT, Bundle, Manifest, find_version, publish
from adrec.errors import BundleError
from adrec.models.ranker import RankerConfig
from adrec.models.two_tower import TwoTowerConfig
from adrec.recommender import Recommender


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run's versions, to be damaged."""
    shutil.copytree(tiny_run / "versions", tmp_path / "run" / "versions")
    shutil.copy(tiny_run / "current", tmp_path / "run" / "current")
    return tmp_path / "run"


def manifest() -> Manifest:
    return Manifest(
        created_at="2026-01-12T10:15:00+00:00",
        log_end_ms=1,
        tower="t",
        two_tower=TwoTowerConfig(),
        ranker=RankerConfig(),
        serving=bundle_module.ServingConfig(),
    )


def write_text(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "file.txt").write_text(text)

    return write


def failing(folder: Path) -> None:
    write_text("half")(folder)
    raise RuntimeError("the disk is full")


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "versions").iterdir())


class TestPublish:
    def test_others_can_read_what_the_umask_lets_them(self, tmp_path: Path) -> None:
        """A server in a container runs as another user; some libraries write for their own only."""

        def write(folder: Path) -> None:
            (folder / "weights").touch(mode=0o600)

        version = publish(tmp_path, manifest(), write)
        plain = tmp_path / "plain"
        plain.touch()
        assert (version / "weights").stat().st_mode == plain.stat().st_mode

    def test_a_version_is_complete_and_current(self, tmp_path: Path) -> None:
        version = publish(tmp_path, manifest(), write_text("one"))
        made = Manifest.model_validate_json((version / "manifest.json").read_text())
        assert find_version(tmp_path) == version
        assert made.version == version.name
        assert list(made.files) == ["inner/file.txt"]
        assert made.files["inner/file.txt"].bytes == 3
        # printf one | sha256sum
        assert made.files["inner/file.txt"].sha256 == (
            "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
        )

    def test_a_newer_version_takes_over_and_the_older_stays(self, tmp_path: Path) -> None:
        one = publish(tmp_path, manifest(), write_text("one"))
        two = publish(tmp_path, manifest(), write_text("two"))
        assert find_version(tmp_path) == two
        assert names(tmp_path) == sorted([one.name, two.name])

    def test_the_same_content_twice_in_one_second(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Stopped(bundle_module.datetime):
            @classmethod
            def now(cls, tz: object = None) -> bundle_module.datetime:  # type: ignore[override]
                del tz
                return bundle_module.datetime(2026, 1, 12, 10, 15)

        monkeypatch.setattr(bundle_module, "datetime", Stopped)
        one = publish(tmp_path, manifest(), write_text("one"))
        again = publish(tmp_path, manifest(), write_text("one"))
        assert one == again == find_version(tmp_path)
        assert names(tmp_path) == [one.name]

    def test_a_failing_write_changes_nothing(self, tmp_path: Path) -> None:
        one = publish(tmp_path, manifest(), write_text("one"))
        with pytest.raises(RuntimeError, match="disk is full"):
            publish(tmp_path, manifest(), failing)
        assert find_version(tmp_path) == one
        assert [name for name in names(tmp_path) if not name.startswith(".")] == [one.name]

    def test_a_failing_first_write_leaves_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="disk is full"):
            publish(tmp_path, manifest(), failing)
        assert not (tmp_path / "current").exists()
        with pytest.raises(BundleError, match="holds no model"):
            Bundle.open(tmp_path)

    @pytest.mark.parametrize("step", ["sha256", "sync", "rename", "make_current", "replace"])
    def test_a_kill_at_any_step_leaves_the_last_good_version(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        one = publish(tmp_path, manifest(), write_text("one"))

        def killed(*_: object) -> None:
            raise SystemExit(137)

        place = Path if step in ("rename", "replace") else bundle_module
        with monkeypatch.context() as patch:
            patch.setattr(place, step, killed)
            with pytest.raises(SystemExit):
                publish(tmp_path, manifest(), write_text("two"))
        assert find_version(tmp_path) == one
        two = publish(tmp_path, manifest(), write_text("two"))  # the next attempt succeeds
        assert find_version(tmp_path) == two

    def test_what_a_kill_left_is_removed(self, tmp_path: Path) -> None:
        stale = tmp_path / "versions" / ".unfinished-20260101-000000"
        (stale / "inner").mkdir(parents=True)
        (stale / "inner" / "half").write_text("half")
        version = publish(tmp_path, manifest(), write_text("one"))
        assert names(tmp_path) == [version.name]

    def test_every_file_is_flushed_before_the_version_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flushed: list[str] = []
        sync = bundle_module.sync

        def note(path: Path) -> None:
            flushed.append("folder" if path.name.startswith(".unfinished") else path.name)
            sync(path)

        monkeypatch.setattr(bundle_module, "sync", note)
        publish(tmp_path, manifest(), write_text("one"))
        place = flushed.index("versions")
        assert set(flushed[:place]) == {"inner", "file.txt", "manifest.json", "folder"}
        assert flushed[place + 1 :] == [".current.unfinished", tmp_path.name]


class TestOpen:
    def test_through_current_and_directly(self, tiny_run: Path) -> None:
        through = Bundle.open(tiny_run)
        directly = Bundle.open(find_version(tiny_run))
        assert through.manifest == directly.manifest
        assert through.path == directly.path == tiny_run / "versions" / through.manifest.version

    def test_an_older_version_can_be_opened(self, run: Path) -> None:
        old = find_version(run)
        publish(run, manifest(), write_text("newer"))
        assert Bundle.open(old).manifest.version == old.name

    def test_the_manifest_names_every_file(self, tiny_run: Path) -> None:
        version = find_version(tiny_run)
        there = {
            str(p.relative_to(version))
            for p in version.rglob("*")
            if p.is_file() and p.name != "manifest.json"
        }
        assert there == set(Bundle.open(version).manifest.files)

    def test_one_flipped_byte_in_any_file(self, run: Path) -> None:
        version = find_version(run)
        files = [p for p in sorted(version.rglob("*")) if p.is_file()]
        assert len(files) > 20
        for path in files:
            whole = path.read_bytes()
            place = 0 if path.name == "manifest.json" else len(whole) // 2
            damaged = bytearray(whole)
            damaged[place] ^= 0x80
            path.write_bytes(damaged)
            with pytest.raises(BundleError) as caught:
                Bundle.open(run)
            named = version if path.name == "manifest.json" else path
            assert str(named) in str(caught.value)
            path.write_bytes(whole)
        assert Bundle.open(run).manifest.version == version.name

    def test_any_missing_file(self, run: Path) -> None:
        version = find_version(run)
        for path in [p for p in sorted(version.rglob("*")) if p.is_file()]:
            aside = path.rename(run / "aside")
            with pytest.raises(BundleError) as caught:
                Bundle.open(version)
            if path.name == "manifest.json":
                assert "holds no model" in str(caught.value)
            else:
                assert f"{path} is missing" in str(caught.value)
            aside.rename(path)

    def test_a_cut_off_file(self, run: Path) -> None:
        path = find_version(run) / "ranker.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BundleError, match=r"ranker\.safetensors differs"):
            Bundle.open(run)

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
    def test_an_unreadable_manifest(self, run: Path, text: bytes) -> None:
        (find_version(run) / "manifest.json").write_bytes(text)
        with pytest.raises(BundleError, match="no readable manifest"):
            Bundle.open(run)

    def test_another_format(self, run: Path) -> None:
        path = find_version(run) / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
        with pytest.raises(BundleError, match=f"format 1, this adrec reads {FORMAT}"):
            Bundle.open(run)

    def test_current_names_nothing(self, run: Path) -> None:
        (run / "current").write_text("20260101-000000-00000000\n")
        with pytest.raises(BundleError, match="20260101-000000-00000000: no readable manifest"):
            Bundle.open(run)

    def test_not_a_folder_of_versions(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="holds no model; make one with `adrec train --out"):
            Recommender.load(tmp_path)


class TestParts:
    def test_an_index_of_another_tower_is_refused(self, run: Path) -> None:
        path = find_version(run) / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tower": "another"}))
        opened = Bundle.open(run)
        with pytest.raises(BundleError, match="queries come from tower 'another'"):
            opened.index()

    def test_no_file_is_a_pickle(self, tiny_run: Path) -> None:
        """Every file is of a format that holds data only; known by its first bytes."""
        seen = set()
        for path in find_version(tiny_run).rglob("*"):
            if not path.is_file():
                continue
            start = path.read_bytes()[:16]
            seen.add(path.suffix)
            match path.suffix:
                case ".safetensors":  # length of the header, then the header, in JSON
                    assert start[8:9] == b"{", path
                case ".parquet":
                    assert start.startswith(b"PAR1"), path
                case ".json":
                    json.loads(path.read_text())
                case ".jsonl":
                    assert all(json.loads(line) for line in path.read_text().splitlines()), path
                case ".faiss":
                    assert start.startswith(b"Ix"), path
                case ".png":
                    assert start.startswith(b"\x89PNG\r\n\x1a\n"), path
                case ".yaml":
                    assert start.startswith(b"name: "), path
                case other:
                    pytest.fail(f"{path}: what is a {other}?")
        assert seen == {
            ".safetensors", ".parquet", ".json", ".jsonl", ".faiss", ".png", ".yaml"
        }  # fmt: skip
