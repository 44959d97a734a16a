"""The loop: what was served trains the next version."""

import shutil

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from adrec import pipeline
from adrec.bundle import Bundle, find_version
from adrec.config import for_log, load_config
from adrec.data.checks import check_tables
from adrec.data.event_log import EventLog
from adrec.data.layouts import open_layout
from adrec.data.log_export import export_log
from adrec.errors import DataError
from adrec.progress import Progress
from serving.events import event

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@pytest.fixture
def known(tiny_run):
    return pipeline.open_log(load_config(find_version(tiny_run) / "config.json", {}).data)


@pytest.fixture
def export(known, server, tmp_path):
    def run(out=tmp_path / "next", *, at_ms=None, only_new=False, of=known):
        log = EventLog.in_file(server.log_file)
        now_ms = server.clock.now_ms + 2 * DAY_MS if at_ms is None else at_ms
        try:
            return export_log(log, of, out, now_ms=now_ms, progress=Progress(), only_new=only_new)
        finally:
            log.close()

    return run


def served(server, user="17", **asked):
    """An answer whose first ad was shown and clicked, and whose second was only shown."""
    answer = server.recommend(user=user, k=3, **asked)
    server.report(event(answer), event(answer, "click"), event(answer, ad=1))
    return answer


def test_rows_are_what_was_shown_and_what_came_of_it(server, export, known, tmp_path):
    context = {f.name: "x" for f in known.schema.request_fields if f.kind == "categorical"}
    answer = served(server, context=context)
    server.report(event(answer, "revenue", value=2.5), event(answer, "revenue", value=0.5))
    server.recommend(user="17")  # of which nothing is heard: it may not have been shown
    done = export(only_new=True)
    assert (done.impressions, len(done.days), done.unsettled) == (2, 1, 0)
    rows = pl.read_parquet(tmp_path / "next" / "impressions" / f"{done.days[0]}.parquet")
    first, second = rows.to_dicts()
    assert [first["ad_id"], second["ad_id"]] == [ad["ad_id"] for ad in answer["ads"][:2]]
    assert (first["click"], first["revenue"], second["click"]) == (1.0, 3.0, 0.0)
    assert (first["position"], second["position"], first["propensity"]) == (1, 2, 1.0)
    assert {row["request_id"] for row in (first, second)} == {answer["request_id"]}
    assert {first[name] for name in context} == set(context.values())
    assert check_tables(open_layout("generic", tmp_path / "next")) == []


def test_an_impression_waits_until_its_outcomes_are_settled(server, export, known):
    longest_ms = max(task.delay_ms for task in known.schema.tasks)
    served(server)
    first = export(at_ms=server.clock.now_ms + longest_ms)
    assert (first.impressions, first.unsettled) == (0, 2)
    assert export(at_ms=server.clock.now_ms + longest_ms + 1).impressions == 2


@pytest.mark.usefixtures("on_one_thread")
def test_what_was_served_trains_the_next_version(serve, export, run_copy, known, tmp_path):
    """A new user and a new ad of serving are known to the version that is trained next, which then
    answers in the place of the old one; the export after that goes on where this one ended."""
    server = serve(run_copy)
    ad = server.http.get("/v1/ads?limit=1").json()["ads"][0]
    fresh = {"ad_id": "fresh", "bid_micros": 900_000_000, **ad["fields"]}
    assert server.http.put("/v1/ads", json={"ads": [fresh]}).status_code == 204
    for _ in range(30):
        server.clock.now_ms += 3_600_000
        served(server, user="new here")
    server.clock.now_ms += DAY_MS
    done = export()
    assert done.impressions == 60
    assert len(done.days) >= 2
    folder = tmp_path / "next"
    tables = open_layout("generic", folder)
    assert check_tables(tables) == []
    assert tables.rows() == known.rows() + 60

    config = for_log(load_config(find_version(run_copy) / "config.json", {}), folder)
    old = server.service.versions.current
    pipeline.run(config, run_copy, progress=Progress())
    new = server.admin.post("/admin/swap").json()["version"]
    assert new != old.version.name
    state = Bundle.open(run_copy).state()
    assert state.users.row("new here")
    assert state.catalogue.directory.row("fresh")
    # What the new version learned from is not told to it a second time.
    at_ms = server.clock.now_ms
    told = server.service.versions.current.recommender.histories("new here", at_ms)
    assert told == old.recommender.histories("new here", at_ms)
    assert any(told.values())

    answer = served(server, user="new here")
    assert answer["version"] == new
    again = export(of=tables)
    assert (again.impressions, len(again.days)) == (2, 1)
    assert check_tables(tables) == []
    assert open_layout("generic", folder).rows() == known.rows() + 62


def test_a_folder_with_another_log_is_left_alone(export, tiny_world, tmp_path):
    shutil.copytree(tiny_world, tmp_path / "mine")
    with pytest.raises(DataError, match=r"impressions\.parquet: would stand beside"):
        export(tmp_path / "mine")


def test_a_profile_that_came_with_a_request_joins_the_users(server, export, known, tmp_path):
    fields = {f.name: "from a request" for f in known.schema.user_fields if f.kind == "categorical"}
    served(server, user="new here", profile=fields)
    export()
    users = pl.read_parquet(tmp_path / "next" / "users.parquet")
    (row,) = users.filter(pl.col("user_id") == "new here").to_dicts()
    assert {row[name] for name in fields} == {"from a request"}
    assert users.height == known.user_frame().height + 1


def test_users_that_were_erased_are_left_out(server, export, known, tmp_path):
    served(server, user="17")
    assert server.admin.delete("/admin/users/17").json() == {"slates": 1}
    served(server, user="18")
    export()
    tables = open_layout("generic", tmp_path / "next")
    there = set(tables.impressions.frame().select("user_id").collect()["user_id"])
    before = set(known.impressions.frame().select("user_id").collect()["user_id"])
    assert "17" in before
    assert there == before - {"17"}
    assert "17" not in set(tables.user_frame()["user_id"])
    assert check_tables(tables) == []


def test_what_is_pruned_between_two_exports_stays_in_the_folder(server, export, known, tmp_path):
    """Each impression stands there once, whether the log still has it or not, in order of time."""
    fields = {f.name: "from a request" for f in known.schema.user_fields if f.kind == "categorical"}
    folder = tmp_path / "next"
    noon_ms = (server.clock.now_ms // DAY_MS + 1) * DAY_MS + DAY_MS // 2
    answers = []
    for hour in range(6):
        server.clock.now_ms = noon_ms + hour * HOUR_MS
        profile = fields if hour in (1, 2) else None
        user = "17" if hour == 2 else f"new {hour}"
        answers.append(served(server, user=user, profile=profile))
    export()
    (day,) = (path for path in (folder / "impressions").iterdir() if path.stem[0] != "0")
    first, users = pl.read_parquet(day), pl.read_parquet(folder / "users.parquet")
    assert first.height == 12

    log = EventLog.in_file(server.log_file)
    assert log.prune(noon_ms + 3 * HOUR_MS) == 3
    log.close()
    server.report(event(answers[4], "click", ad=1))
    elsewhere = event(answers[0]) | {"request_id": "mine", "event_id": "mine", "user": "new 1"}
    server.report(elsewhere | {"at_ms": noon_ms + HOUR_MS // 2})
    for _ in range(2):
        assert export().impressions == 7
        second = pl.read_parquet(day)
        assert second["timestamp_ms"].is_sorted()
        assert second.filter(pl.col("request_id") == "mine").height == 1
        rest = second.filter(pl.col("request_id") != "mine")
        assert rest.drop("click").equals(first.drop("click"))
        assert rest["click"].sum() == first["click"].sum() + 1
        assert_frame_equal(pl.read_parquet(folder / "users.parquet"), users, check_row_order=False)
        assert check_tables(open_layout("generic", folder)) == []

    server.admin.delete("/admin/users/new 1")
    export()
    assert "new 1" not in set(pl.read_parquet(day)["user_id"])
    assert "new 1" not in set(pl.read_parquet(folder / "users.parquet")["user_id"])


def test_users_that_are_erased_after_an_export_are_left_out_of_the_next(
    server, export, known, tmp_path
):
    """Of every file, the days' that are over and the trained log's alike; what such a user does
    later is a new user's."""

    def of_17():
        frame = open_layout("generic", tmp_path / "next").impressions.frame()
        return frame.filter(pl.col("user_id") == "17").collect().height

    trained = known.impressions.frame().filter(pl.col("user_id") == "17").collect().height
    served(server, user="17")
    server.clock.now_ms += 2 * DAY_MS
    served(server, user="18")
    export()
    rows = open_layout("generic", tmp_path / "next").rows()
    assert of_17() == trained + 2
    server.admin.delete("/admin/users/17")
    export()
    assert of_17() == 0
    assert open_layout("generic", tmp_path / "next").rows() == rows - trained - 2
    server.clock.now_ms += 1
    served(server, user="17")
    export()
    assert of_17() == 2
    assert check_tables(open_layout("generic", tmp_path / "next")) == []
