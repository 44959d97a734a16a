"""What README.md and docs/ say is so: the tree, the code, the commands, the settings, the links."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from adrec import cli
from adrec.config import RunConfig, load_config, load_settings, parse_overrides
from adrec.schema import parse_schema
from adrec.serving.config import ServerConfig

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "adrec"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SETTING = re.compile(r"`(?:--set )?([a-z_]+(?:\.[a-z_]+)+)(?:=\S+)?`")
_ENDINGS = ("json", "html", "py", "md", "yaml")
_TREE_LINE = re.compile(r"^( *)(\S+)(?: +(\S.*))?$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """Its name in the list of tests."""
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class Entry:
    """A line of the README's tree."""

    path: str
    comment: str


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[1], found[2])


BLOCKS = tuple(block for page in PAGES for block in _blocks(page))


def _of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def _commands() -> list[tuple[str, list[str]]]:
    """Each line of a bash block that runs adrec: where it stands, and its arguments."""
    found = []
    for block in _of("bash"):
        lines = block.text.replace("\\\n", " ").splitlines()
        for line in lines:
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "adrec":
                found.append((f"{block}: {' '.join(words)}", words[1:]))
    return found


COMMANDS = _commands()


def _tree() -> list[Entry]:
    """The README's tree, each path from the repository's root."""
    trees = [b for b in BLOCKS if b.page.name == "README.md" and b.text.startswith("src/adrec/\n")]
    assert len(trees) == 1
    found: list[Entry] = []
    parents: list[str] = []
    for line in trees[0].text.splitlines():
        match = _TREE_LINE.match(line)
        assert match, line
        depth, odd = divmod(len(match[1]), 2)
        assert not odd, line
        assert depth <= len(parents), line
        path = "".join(parents[:depth]) + match[2]
        parents = [*parents[:depth], match[2]]
        found.append(Entry(path, match[3] or ""))
    return found


TREE = _tree()


def _listed_as(module: Path) -> str | None:
    """The line that stands for a module: its own, else that of the innermost folder that has one.

    An `__init__.py` belongs to its folder; so does any file of a folder that is listed without its
    files.
    """
    listed = [entry.path for entry in TREE]
    path = module.relative_to(ROOT)
    if path.as_posix() in listed:
        return path.as_posix()
    folder = next(f"{p.as_posix()}/" for p in path.parents if f"{p.as_posix()}/" in listed)
    has_files = any(other != folder and other.startswith(folder) for other in listed)
    return folder if path.name == "__init__.py" or not has_files else None


MODULES = sorted(SOURCE.rglob("*.py"))


def _imported(module: Path) -> Iterator[Path]:
    """The modules of adrec that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            head, *parts = name.split(".")
            if head != "adrec":
                continue
            for count in range(len(parts), 0, -1):  # `import adrec` alone is of no module
                stem = SOURCE.joinpath(*parts[:count])
                files = (stem.with_suffix(".py"), stem / "__init__.py")
                file = next((file for file in files if file.is_file()), None)
                if file is not None:
                    yield file
                    break


class TestTree:
    @pytest.mark.parametrize("entry", TREE, ids=lambda entry: entry.path)
    def test_what_is_listed_is_there(self, entry: Entry) -> None:
        path = ROOT / entry.path
        assert path.is_dir() if entry.path.endswith("/") else path.is_file()

    @pytest.mark.parametrize("entry", TREE[1:], ids=lambda entry: entry.path)
    def test_each_line_says_what_it_is(self, entry: Entry) -> None:
        assert entry.comment

    def test_nothing_is_listed_twice(self) -> None:
        paths = [entry.path for entry in TREE]
        assert len(set(paths)) == len(paths)

    @pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
    def test_each_module_is_listed(self, module: Path) -> None:
        assert _listed_as(module)

    @pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
    def test_nothing_is_imported_from_below(self, module: Path) -> None:
        place = {entry.path: i for i, entry in enumerate(TREE)}
        mine = _listed_as(module)
        for other in _imported(module):
            theirs = _listed_as(other)
            assert mine
            assert theirs
            # A folder's __init__.py speaks for its files, which stand below it.
            if module.name == "__init__.py" and theirs.startswith(mine):
                continue
            assert place[theirs] <= place[mine], f"{mine} imports {theirs}"


class TestExamples:
    @pytest.mark.usefixtures("on_one_thread")
    @pytest.mark.parametrize("block", _of("python"), ids=str)
    def test_python_runs(self, block: Block, tiny_run: Path) -> None:
        code = block.text.replace("runs/demo", tiny_run.as_posix())
        exec(compile(code, str(block), "exec"), {"__name__": "example"})

    @pytest.mark.parametrize("arguments", [c[1] for c in COMMANDS], ids=[c[0] for c in COMMANDS])
    def test_commands_parse(self, arguments: list[str]) -> None:
        group = typer.main.get_command(cli.app)
        assert isinstance(group, typer.core.TyperGroup)
        name, *rest = arguments
        command = group.commands[name]
        given = command.make_context(name, rest).params  # raises for an option that is not there
        load_config(None, parse_overrides(given.get("settings") or []))

    @pytest.mark.parametrize("block", _of("yaml"), ids=str)
    def test_yaml_is_a_schema_or_settings(self, block: Block, tmp_path: Path) -> None:
        content = yaml.safe_load(block.text)
        if "tasks" in content:
            parse_schema(block.text, source=str(block))
        else:
            path = tmp_path / "settings.yaml"
            path.write_text(block.text, encoding="utf-8")
            of_a_server = content.keys() <= ServerConfig.model_fields.keys()
            load_settings(ServerConfig if of_a_server else RunConfig, path, {})

    def test_there_is_something_to_test(self) -> None:
        """Else a change of the pages' style would leave the tests above without a case."""
        assert len(_of("python")) >= 4
        assert len(_of("yaml")) >= 3
        assert {arguments[0] for _, arguments in COMMANDS} >= {
            "validate", "train", "evaluate", "recommend", "synth",
        }  # fmt: skip


class TestSettings:
    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_settings_in_the_text_exist(self, page: Path) -> None:
        """`training.ranker.epochs` and the like, in backticks."""
        settings = load_config(None, {}).model_dump()
        for key in _SETTING.findall(page.read_text(encoding="utf-8")):
            group, *rest = key.split(".")
            if isinstance(settings.get(group), dict) and rest[-1] not in _ENDINGS:
                load_config(None, {key: _value(settings, key)})  # raises where there is none


def _value(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


class TestLinks:
    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_links_lead_somewhere(self, page: Path) -> None:
        links = _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
        files = [link.partition("#")[0] for link in links if "://" not in link]
        missing = [name for name in files if name and not (page.parent / name).exists()]
        assert not missing
