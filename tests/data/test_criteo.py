"""Criteo, read as its module says."""

import re
from pathlib import Path
from typing import Any

import pytest

from adrec.data.checks import check_tables, require_valid
from adrec.data.criteo import AD_FIELDS, criteo_schema, open_criteo
from adrec.data.synthetic import PRESETS, generate, write_world
from adrec.errors import ConfigError, DataError
from data.folders import criteo_line, write_criteo


@pytest.mark.parametrize("name", ["train.txt", "train.tsv", "train.txt.gz", "train.tsv.gz"])
def test_criteo_rows_are_time_and_empty_is_missing(tmp_path: Path, name: str) -> None:
    tables = open_criteo(write_criteo(tmp_path, name))
    require_valid(tables)
    shown = tables.impressions.frame().collect()
    assert shown["timestamp_ms"].to_list() == [0, 1, 2, 3]
    assert shown["click"].to_list() == [1.0, 0.0, 0.0, 1.0]
    assert shown["I1"].to_list() == [3.0, None, None, None]
    assert shown["I2"].to_list() == [-2.0, None, None, None]
    assert shown["C1"].to_list() == ["68fd1e64", None, None, None]
    assert shown["C26"].to_list() == [None, 'say "x', None, None]


def test_criteo_fields_belong_to_the_user_or_the_ad(tmp_path: Path) -> None:
    schema = open_criteo(write_criteo(tmp_path)).schema
    assert schema.user_id is None
    assert [f.name for f in schema.ad_fields] == list(AD_FIELDS)
    assert [f.name for f in schema.fields if f.role == "user"] == [
        *(f"I{i}" for i in range(1, 14)),
        *(f"C{i}" for i in range(1, 7)),
    ]
    schema = criteo_schema(user_fields=("C1",), ad_fields=("I1", "C2"), counter_fields=())
    roles = {f.name: (f.role, f.kind) for f in schema.fields}
    assert roles["C1"] == ("user", "categorical")
    assert roles["I1"] == ("ad", "numeric")
    assert roles["C3"] == ("context", "categorical")


def test_criteo_ads_are_distinct_combinations_with_lasting_ids(tmp_path: Path) -> None:
    directory = write_criteo(tmp_path)
    tables = open_criteo(directory, ad_fields=("C7", "C8"))
    ads = tables.ad_frame()
    assert ads.select("C7", "C8").rows() == [("aa", "bb"), ("aa", "cc"), ("aab", "b")]
    # XXH3 (64 bits) of "aa\tbb", "aa\tcc" and "aab\tb", as `xxhsum -H3` prints it: never to change.
    assert ads["ad_id"].to_list() == [
        "21ca5b3a22d6da38",
        "afb8422169ceada2",
        "e452405ad7b28abf",
    ]


def test_criteo_a_narrower_key_makes_fewer_ads(tmp_path: Path) -> None:
    tables = open_criteo(write_criteo(tmp_path), ad_key=("C7",))
    assert tables.ad_frame()["C8"].to_list() == ["bb", "b"]  # of each ad's first impression


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ad_key": ()}, "ad_key ()"),
        ({"ad_key": ("C1",)}, "ad_key ('C1',)"),
        ({"ad_key": ("C7", "C7")}, "none twice"),
        ({"ad_fields": ()}, "ad_fields are empty"),
        ({"user_fields": ("C7",)}, "both: C7"),
        ({"ad_fields": ("C27",)}, "unknown: C27"),
        ({"counter_fields": ("I1",)}, "choose from C1-C26"),
    ],
)
def test_criteo_refuses_fields_that_do_not_fit(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_criteo(write_criteo(tmp_path), **arguments)


def test_criteo_names_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no log.*train\.txt, train\.tsv"):
        open_criteo(tmp_path)
    write_criteo(tmp_path, "train.txt")
    write_criteo(tmp_path, "train.tsv")
    with pytest.raises(DataError, match=r"there are train\.txt, train\.tsv"):
        open_criteo(tmp_path)
    file = tmp_path / "other.txt"
    file.write_text(criteo_line("1").removesuffix("\t\n") + "\n")  # 39 cells, as without a label
    with pytest.raises(DataError, match=r"other\.txt, row 1: has 39 cells"):
        open_criteo(file)
    file.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        open_criteo(file)


def test_criteo_bad_lines_and_labels_are_named(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text(criteo_line("1") + criteo_line("2") + criteo_line("0", I3="x"))
    found = [(p.column, p.row, p.problem) for p in check_tables(open_criteo(tmp_path))]
    assert found == [
        ("label", 2, "a label is neither 0 nor 1"),
        ("I3", 3, "not a finite number"),
    ]
    file.write_text(criteo_line("1") + "0\t1\n" + criteo_line("0"))
    first = check_tables(open_criteo(tmp_path))[0]
    assert (first.row, first.problem) == (2, "has 2 cells where the first line has 40")
    file.write_text(criteo_line("1") + criteo_line("1").strip("\n") + "\tmore\n")
    with pytest.raises(DataError, match="row 2: has 41 cells where the first line has 40"):
        require_valid(open_criteo(tmp_path))


def test_a_world_written_as_criteo_is_read_as_criteo(tmp_path: Path) -> None:
    world = generate(PRESETS["tiny"], seed=1)
    write_world(world, tmp_path, layout="criteo")
    tables = open_criteo(tmp_path, ad_key=("C7",))
    require_valid(tables)
    assert tables.rows() == world.impressions.height
    assert tables.ad_frame().height == world.impressions["ad_id"].n_unique()
