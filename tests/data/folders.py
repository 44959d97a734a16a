"""A small hand-written folder of each public data set, and the way to the real ones."""

import gzip
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

REAL = Path(os.environ.get("ADREC_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
MIDNIGHT_MS = 1_650_816_000_000  # 2022-04-24 16:00 UTC: Monday 2022-04-25, 00:00, in UTC+8


def real(name: str) -> Path:
    """The folder of a real data set, or a skip that says why."""
    if not (REAL / name).is_dir():
        pytest.skip(f"no real {name} data: set ADREC_DATA to the folder that holds {name}/")
    return REAL / name


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
