"""Layouts: a small hand-written folder of each public data set, read as its module says."""

import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest

from adrec.data.checks import check_tables, require_valid
from adrec.data.criteo import (
    AD_FIELDS,
    AdKeyReport,
    ad_key_report,
    criteo_schema,
    open_criteo,
)
from adrec.data.kuairand import open_kuairand
from adrec.data.layouts import (
    Layout,
    detect_layout,
    open_layout,
    synthetic_schema,
)
from adrec.data.movielens import open_movielens
from adrec.data.open_bandit import Campaign, LoggingPolicy, open_open_bandit
from adrec.data.synthetic import PRESETS, generate, write_world
from adrec.errors import ConfigError, DataError

REAL = Path(os.environ.get("ADREC_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def real(name: str) -> Path:
    """The folder of a real data set, or a skip that says why."""
    if not (REAL / name).is_dir():
        pytest.skip(f"no real {name} data: set ADREC_DATA to the folder that holds {name}/")
    return REAL / name


# --- KuaiRand -------------------------------------------------------------------------------------

MIDNIGHT_MS = 1_650_816_000_000  # 2022-04-24 16:00 UTC: Monday 2022-04-25, 00:00, in UTC+8


def write_kuairand(directory: Path, **changes: dict[str, list[Any]]) -> Path:
    tables: dict[str, dict[str, list[Any]]] = {
        "impressions": {
            "user_id": [1, 1, 3],
            "video_id": [10, 11, 10],
            "time_ms": [MIDNIGHT_MS - 1, MIDNIGHT_MS, MIDNIGHT_MS + 3_600_000],
            "tab": [1, 0, 1],
            "is_click": [1, 0, 1],
            "long_view": [1, 0, 0],
            "is_like": [0, 0, 1],
            "play_time_ms": [5000, 0, 700],
        },
        "users": {
            "user_id": [1, 2],
            "user_active_degree": ["full_active", "UNKNOWN"],
            "is_lowactive_period": [0, 0],
            "is_live_streamer": [-124, 1],
            "is_video_author": [1, 0],
            "follow_user_num": [5, 7],
            "follow_user_num_range": ["(0,10]", "(0,10]"],
            "fans_user_num": [0, 3],
            "friend_user_num": [0, 3],
            "register_days": [100, 200],
            **{f"onehot_feat{i}": [1.0, None] for i in range(18)},
        },
        "videos": {
            "video_id": [10, 11],
            "author_id": [100, 101],
            "video_type": ["NORMAL", "AD"],
            "upload_dt": ["2020-01-01", "2022-04-10"],
            "upload_type": ["Web", "Kmovie"],
            "video_duration": [9000.0, None],
            "server_width": [720.0, 720.0],
            "server_height": [1440.0, 0.0],
            "music_id": [9155697141, 0],
            "music_type": [9.0, None],
            "tag": ["20,43", None],
        },
        "histories": {
            "user_id": [1, 2],
            "last_time_ms": [MIDNIGHT_MS - 2, MIDNIGHT_MS + 5],
            "watch_seq": [[11, 10], [10]],
            "like_seq": [[], [11]],
            "long_watch_seq": [[10], []],
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        content = columns | changes.get(name, {})
        pl.DataFrame(content).write_parquet(directory / f"{name}.parquet")
    return directory


def test_kuairand_maps_videos_to_ads_and_outcomes_to_tasks(tmp_path: Path) -> None:
    tables = open_kuairand(write_kuairand(tmp_path))
    require_valid(tables)
    shown = tables.impressions.frame().collect()
    assert shown["ad_id"].to_list() == ["10", "11", "10"]
    assert shown["click"].to_list() == [1.0, 0.0, 1.0]
    assert shown["long_view"].to_list() == [1.0, 0.0, 0.0]
    assert shown["play_time"].to_list() == [5000.0, 0.0, 700.0]
    assert [t.weight for t in tables.schema.tasks] == [1.0, 0.5, 0.3]


def test_kuairand_hours_are_those_of_utc_plus_8(tmp_path: Path) -> None:
    tables = open_kuairand(write_kuairand(tmp_path))
    times = tables.impressions.frame().collect()["timestamp_ms"].to_list()
    hour, weekday = tables.schema.clocks
    assert [hour.at(time_ms) for time_ms in times] == [23, 0, 1]
    assert [weekday.at(time_ms) for time_ms in times] == [6, 0, 0]  # Sunday, then Monday


def test_kuairand_videos(tmp_path: Path) -> None:
    ads = open_kuairand(write_kuairand(tmp_path)).ad_frame()
    assert ads["music_type"].to_list() == ["9", None]
    assert ads["music_id"].to_list() == ["9155697141", "0"]
    assert ads["tag"].to_list() == ["20", None]
    assert ads["aspect_ratio"].to_list() == [0.5, None]
    assert ads["upload_day"].to_list() == [0.0, 830.0]  # 2020: 366, 2021: 365, to 10 April: 99


def test_kuairand_outcomes_are_never_features(tmp_path: Path) -> None:
    schema = open_kuairand(write_kuairand(tmp_path)).schema
    outcomes = {"is_click", "long_view", "is_like", "is_follow", "is_comment", "play_time_ms"}
    assert outcomes.isdisjoint(f.source for f in schema.fields)


def test_kuairand_histories_join_the_users(tmp_path: Path) -> None:
    users = open_kuairand(write_kuairand(tmp_path)).user_frame()
    assert users is not None
    assert users["user_id"].to_list() == ["1", "2"]
    assert users["watch_seq"].to_list() == [["11", "10"], ["10"]]
    assert users["like_seq"].to_list() == [[], ["11"]]
    assert users["onehot_feat4"].to_list() == ["1", None]
    assert users["follow_user_num"].to_list() == [5.0, 7.0]


def test_kuairand_history_that_reaches_into_the_log_is_dropped(tmp_path: Path) -> None:
    leaking = {"last_time_ms": [MIDNIGHT_MS - 1, MIDNIGHT_MS + 5]}
    users = open_kuairand(write_kuairand(tmp_path, histories=leaking)).user_frame()
    assert users is not None
    # User 1's history ends with its first logged impression; user 2 has none in the log.
    assert users["watch_seq"].to_list() == [None, ["10"]]


def test_kuairand_names_what_is_missing(tmp_path: Path) -> None:
    write_kuairand(tmp_path)
    (tmp_path / "histories.parquet").unlink()
    with pytest.raises(DataError, match="table 'histories' is missing"):
        open_kuairand(tmp_path)
    write_kuairand(tmp_path)
    videos = pl.read_parquet(tmp_path / "videos.parquet").drop("tag", "author_id")
    videos.write_parquet(tmp_path / "videos.parquet")
    with pytest.raises(DataError, match=r"videos\.parquet, column 'tag': the column is missing"):
        open_kuairand(tmp_path)


def test_kuairand_real_data() -> None:
    tables = open_kuairand(real("kuairand"))
    require_valid(tables)
    assert tables.rows() == 194_077
    log = tables.ordered().collect()
    rates = log.select(pl.col("click", "long_view").mean()).row(0)
    assert rates == pytest.approx((0.449, 0.316), abs=0.0005)
    users = tables.user_frame()
    assert users is not None
    assert users.height == 27_285
    # 27,285 users less 26,469 with a history, and 3 whose history reaches into the log.
    assert users["watch_seq"].null_count() == 27_285 - 26_469 + 3
    # Oldest first: where all 50 items are there, the last long view is among the last watched.
    full = users.filter(
        (pl.col("watch_seq").list.len() == 50) & (pl.col("long_watch_seq").list.len() > 0)
    )
    last = pl.col("long_watch_seq").list.last()
    first = pl.col("long_watch_seq").list.first()
    newest = full.select(pl.col("watch_seq").list.tail(15).list.contains(last).mean()).item()
    oldest = full.select(pl.col("watch_seq").list.head(15).list.contains(first).mean()).item()
    assert newest > 0.9 > oldest


# --- Criteo ---------------------------------------------------------------------------------------


def criteo_line(label: str, **cells: str) -> str:
    names = [*(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    assert set(cells) <= set(names)
    return "\t".join([label, *(cells.get(name, "") for name in names)]) + "\n"


def write_criteo(directory: Path, name: str = "train.txt") -> Path:
    text = (
        criteo_line("1", I1="3", I2="-2", C1="68fd1e64", C7="aa", C8="bb")
        + criteo_line("0", C7="aa", C8="bb", C26='say "x')
        + criteo_line("0", C7="aa", C8="cc")
        + criteo_line("1", C7="aab", C8="b")
    )
    directory.mkdir(exist_ok=True)
    content = text.encode()
    (directory / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return directory


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
    assert ad_key_report(tables) == AdKeyReport(impressions=4, ads=3, singletons=2)
    assert ad_key_report(tables).singleton_share == pytest.approx(2 / 3)


def test_criteo_a_narrower_key_makes_fewer_ads(tmp_path: Path) -> None:
    tables = open_criteo(write_criteo(tmp_path), ad_key=("C7",))
    assert ad_key_report(tables) == AdKeyReport(impressions=4, ads=2, singletons=1)
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


# --- MovieLens ------------------------------------------------------------------------------------


def write_latest(directory: Path) -> None:
    (directory / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,1,4.0,200\n1,2,3.5,100\n2,1,5.0,300\n"
    )
    (directory / "movies.csv").write_text(
        "movieId,title,genres\n"
        '1,"American President, The (1995)",Comedy|Drama\n'
        "2,Nameless,(no genres listed)\n"
    )


def write_1m(directory: Path) -> None:
    (directory / "ratings.dat").write_text("1::1::4::200\n1::2::3::100\n2::1::5::300\n")
    (directory / "movies.dat").write_bytes(
        b"1::American President, The (1995)::Comedy|Drama\n2::Am\xe9lie\x85::(no genres listed)\n"
    )
    (directory / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")


def write_100k(directory: Path) -> None:
    (directory / "u.data").write_text("1\t1\t4\t200\n1\t2\t3\t100\n2\t1\t5\t300\n")
    flags = {"comedy drama": "|".join("1" if i in (5, 8) else "0" for i in range(19))}
    flags["none"] = "|".join("0" * 19)
    (directory / "u.item").write_bytes(
        f"1|American President, The (1995)|01-Jan-1995||http://x|{flags['comedy drama']}\n"
        f"2|Amélie|||http://x|{flags['none']}\n".encode("latin-1")
    )
    (directory / "u.user").write_text("1|1|F|10|48067\n2|56|M|16|70072\n")


@pytest.mark.parametrize("write", [write_latest, write_1m, write_100k])
def test_movielens_of_every_generation(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    tables = open_movielens(tmp_path)
    require_valid(tables)
    log = tables.ordered().collect()
    assert log["timestamp_ms"].to_list() == [100_000, 200_000, 300_000]
    assert log["user_id"].to_list() == ["1", "1", "2"]
    assert log["ad_id"].to_list() == ["2", "1", "1"]
    assert log["click"].to_list() == [0.0, 1.0, 1.0]
    assert log["rating"].to_list() == [3.0 if write is not write_latest else 3.5, 4.0, 5.0]
    ads = tables.ad_frame()
    assert ads["genre"].to_list() == ["Comedy", None]
    assert ads["genres"].to_list() == ["Comedy|Drama", None]
    assert ads["year"].to_list() == [1995.0, None]
    users = tables.user_frame()
    if write is write_latest:
        assert users is None
    else:
        assert users is not None
        assert users.select("user_id", "gender", "age", "occupation").rows() == [
            ("1", "F", "1", "10"),
            ("2", "M", "56", "16"),
        ]
    history = tables.schema.sequences[0]
    assert (history.column, history.grows_with) == (None, "click")


def test_movielens_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no ratings.*ratings\.csv, ratings\.dat"):
        open_movielens(tmp_path)
    write_1m(tmp_path)
    (tmp_path / "ratings.dat").write_text("1::1::4::200\n1::2::3\n")
    with pytest.raises(DataError, match=r"ratings\.dat, row 2: has 3 cells, not 4"):
        open_movielens(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,4.0\n")
    with pytest.raises(DataError, match=r"movies\.csv: cannot be read"):
        open_movielens(tmp_path)
    write_latest(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,4.0\n")
    with pytest.raises(DataError, match="column 'timestamp': the column is missing"):
        open_movielens(tmp_path)


# --- Open Bandit ----------------------------------------------------------------------------------


def write_open_bandit(directory: Path, n_items: int = 11) -> Path:
    rows = {
        "timestamp": ["2019-11-24 00:00:17.004101+00:00", "2019-11-24 00:00:19+00:00"],
        "item_id": [3, 0],
        "position": [1, 3],
        "click": [0, 1],
        "propensity_score": [0.25, 0.5],
        **{f"user_feature_{i}": ["81ce", "03a5"] for i in range(4)},
        **{f"user-item_affinity_{i}": [float(i), 0.0] for i in reversed(range(n_items))},
    }
    items = {
        "item_id": [0, 3],
        "item_feature_0": [-0.5, 1.0],
        **{f"item_feature_{i}": ["a", "b"] for i in range(1, 4)},
    }
    pl.DataFrame(rows).write_parquet(directory / "random_all.parquet")
    pl.DataFrame(rows).write_csv(directory / "bts_men.csv")
    for campaign in ("all", "men"):
        pl.DataFrame(items).write_parquet(directory / f"items_{campaign}.parquet")
    return directory


@pytest.mark.parametrize(("policy", "campaign"), [("random", "all"), ("bts", "men")])
def test_open_bandit(tmp_path: Path, policy: LoggingPolicy, campaign: Campaign) -> None:
    tables = open_open_bandit(write_open_bandit(tmp_path), policy=policy, campaign=campaign)
    require_valid(tables)
    shown = tables.impressions.frame().collect()
    assert shown["timestamp_ms"].to_list() == [1_574_553_617_004, 1_574_553_619_000]
    assert shown["ad_id"].to_list() == ["3", "0"]
    assert shown["position"].to_list() == [1, 3]
    assert shown["propensity"].to_list() == [0.25, 0.5]
    # By number, whatever the order in the file: 10 stands behind 9, not behind 1.
    assert shown["affinity"].to_list() == [[float(i) for i in range(11)], [0.0] * 11]
    assert tables.ad_frame().columns == ["ad_id", *(f"item_feature_{i}" for i in range(4))]
    assert tables.schema.user_id is None
    assert [f.role for f in tables.schema.request_fields] == ["user"] * 5


def test_open_bandit_names_what_is_missing(tmp_path: Path) -> None:
    write_open_bandit(tmp_path)
    with pytest.raises(DataError, match="table 'bts_women' is missing"):
        open_open_bandit(tmp_path, policy="bts", campaign="women")
    file = tmp_path / "random_all.parquet"
    pl.read_parquet(file).select(pl.exclude("^user-item.*$")).write_parquet(file)
    with pytest.raises(DataError, match="there is no column of affinities"):
        open_open_bandit(tmp_path, policy="random", campaign="all")


def test_open_bandit_real_data() -> None:
    directory = real("open_bandit")
    for policy in ("bts", "random"):
        for campaign, n_items in (("all", 80), ("men", 34), ("women", 46)):
            tables = open_open_bandit(
                directory, policy=cast(LoggingPolicy, policy), campaign=cast(Campaign, campaign)
            )
            require_valid(tables)
            assert tables.rows() == 10_000
            assert tables.ad_frame().height == n_items
            if policy == "random":
                shown = tables.impressions.frame().collect()
                assert shown["propensity"].unique().to_list() == pytest.approx([1 / n_items])


# --- all of them ----------------------------------------------------------------------------------


def write_synthetic(directory: Path) -> Path:
    world = generate(PRESETS["tiny"], seed=1)
    write_world(world, directory, layout="generic", schema_yaml=synthetic_schema().dump())
    return directory


def write_generic(directory: Path) -> Path:
    (directory / "schema.yaml").write_text("name: mine\ntasks: [{name: click}]\n")
    (directory / "impressions.csv").write_text("ad_id,timestamp_ms,click\na,1,0\n")
    return directory


def write_movielens(directory: Path) -> Path:
    write_latest(directory)
    return directory


WRITERS: dict[Layout, Callable[[Path], Path]] = {
    "generic": write_generic,
    "synthetic": write_synthetic,
    "criteo": write_criteo,
    "kuairand": write_kuairand,
    "movielens": write_movielens,
    "open_bandit": write_open_bandit,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_each_layout_is_recognised_and_opened(tmp_path: Path, layout: Layout) -> None:
    directory = WRITERS[layout](tmp_path)
    assert detect_layout(directory) == layout
    tables = open_layout(layout, directory)
    require_valid(tables)
    assert tables.schema.name == ("mine" if layout == "generic" else layout)
    assert sum(chunk.height for chunk in tables.chunks(7)) == tables.rows() > 0
    assert tables.ad_frame().height > 0


def test_the_synthetic_schema_reads_the_synthetic_world(tmp_path: Path) -> None:
    tables = open_layout("synthetic", write_synthetic(tmp_path))
    schema = tables.schema
    assert schema == synthetic_schema()
    assert [(t.name, t.weight, t.delay_ms) for t in schema.tasks] == [
        ("click", 1.0, 60_000), ("engagement", 0.5, 120_000), ("revenue", 0.3, 60_000),
    ]  # fmt: skip
    money_and_dates = {"bid_micros", "daily_budget_micros", "start_ms", "end_ms"}
    assert money_and_dates.isdisjoint(f.source for f in schema.fields)
    log = tables.impressions.frame().collect()
    slates = log.group_by("request_id").agg(pl.col("position").sort())
    assert set(map(tuple, slates["position"].to_list())) == {(1, 2, 3, 4)}


def test_a_world_written_as_criteo_is_read_as_criteo(tmp_path: Path) -> None:
    world = generate(PRESETS["tiny"], seed=1)
    write_world(world, tmp_path, layout="criteo")
    tables = open_criteo(tmp_path, ad_key=("C7",))
    require_valid(tables)
    assert tables.rows() == world.impressions.height
    assert ad_key_report(tables).ads == world.impressions["ad_id"].n_unique()


def test_a_generic_folder_needs_a_schema(tmp_path: Path) -> None:
    schema = synthetic_schema()
    write_synthetic(tmp_path)
    (tmp_path / "schema.yaml").unlink()
    assert open_layout("generic", tmp_path, schema).schema is schema
    with pytest.raises(ConfigError, match=r"Give a schema, or put it there as schema\.yaml"):
        open_layout("generic", tmp_path)
    with pytest.raises(ConfigError, match="the layout criteo brings its own schema"):
        open_layout("criteo", tmp_path, schema)


def test_an_unknown_folder_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.docx").touch()
    with pytest.raises(DataError) as caught:
        detect_layout(tmp_path)
    for clue in ("notes.docx", "schema.yaml", "train.txt", "histories", "ratings.csv", "bts_all"):
        assert clue in str(caught.value)
    with pytest.raises(DataError, match="is no folder"):
        detect_layout(tmp_path / "nowhere")
