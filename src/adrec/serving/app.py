"""HTTP: the application that answers requests.

Handlers translate: what is done stands in `service.py`, what becomes of errors in `statuses.py`.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from adrec.data.log_entries import Event
from adrec.errors import EventLogError, OverloadError
from adrec.errors import RequestError as AskedWrongError
from adrec.serving.access import needing
from adrec.serving.application import REFUSED, begin_app
from adrec.serving.docs import only
from adrec.serving.metrics import Metrics
from adrec.serving.notices import billed
from adrec.serving.openrtb import BidRequest, BidResponse
from adrec.serving.outcomes import Outcomes
from adrec.serving.service import Service
from adrec.serving.wire import (
    AdInfo,
    AdsIn,
    AdsOut,
    Answered,
    BatchIn,
    BatchOut,
    EventsIn,
    EventsOut,
    PathId,
    QueryId,
    RecommendIn,
    RecommendOut,
    Rejected,
    StatusIn,
    UserOut,
)

T = TypeVar("T")
_CONSOLE = (files("adrec.serving") / "console.html").read_text(encoding="utf-8")
_SCRIPT = _CONSOLE.partition("<script>")[2].partition("</script>")[0]
_CONSOLE_HEADERS = {
    "content-security-policy": f"default-src 'none'; script-src {only(_SCRIPT)}; "
    "style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-store",
}


def create_app(service: Service) -> FastAPI:
    """The application that answers requests."""
    metrics = Metrics(
        waiting=lambda: float(service.batcher.waiting),
        unwritten=lambda: float(service.journal.waiting),
    )
    config = service.config
    app = begin_app(
        "adrec",
        config,
        metrics,
        token=config.events_token,
        refusals=(403, 413, 422, 429),
        summary="Recommended ads, and what came of them.",
    )
    app.state.service, app.state.metrics = service, metrics
    service.on_events = partial(_note_outcomes, metrics)
    events_only = needing(config.events_token)

    @app.post(
        "/v1/recommend",
        response_model=RecommendOut | BatchOut,
        tags=["ads"],
    )
    async def recommend(asked: RecommendIn | BatchIn) -> Response:
        """The best ads for one request, or for each of several."""
        if isinstance(asked, RecommendIn):
            return _json((await _answer(service, metrics, asked)).as_json())
        _at_most(len(asked.requests), config.limits.requests, "requests")
        found = await asyncio.gather(
            *(_answer_or_why(service, metrics, one) for one in asked.requests)
        )
        return _json(
            {
                "answers": [
                    {"detail": one} if isinstance(one, str) else one.as_json() for one in found
                ]
            }
        )

    @app.post(
        "/v1/events",
        response_model=EventsOut,
        responses={401: REFUSED, 503: REFUSED},
        dependencies=events_only,
        tags=["events"],
    )
    async def events(reported: EventsIn) -> EventsOut:
        """Report what came of ads. Those accepted are on disk; the next request knows of them."""
        _at_most(len(reported.events), config.limits.events, "events")
        taken = await service.intake.take(reported.events)
        added = await _until_written(taken.written, config.events_timeout_s)
        for event in added:
            metrics.events.labels(event.kind, "accepted").inc()
        rejected = [Rejected(event_id=key, reason=reason) for key, reason in taken.rejected]
        if rejected:
            metrics.events.labels("", "rejected").inc(len(rejected))
        there = len(reported.events) - len(rejected) - len(added)
        return EventsOut(accepted=len(added), duplicates=there, rejected=rejected)

    @app.post(
        "/openrtb2/bid",
        response_model=BidResponse,
        response_model_exclude_none=True,
        responses={204: {"description": "No bid."}, 400: REFUSED},
        tags=["openrtb"],
    )
    async def bid(asked: BidRequest) -> Response:
        """Bids on the impressions of an OpenRTB 2.6 bid request; none is 204, also for lack of
        time."""
        lots = service.lots(asked)
        answers = await asyncio.gather(
            *(_answer_or_why(service, metrics, lot.asked, about=True) for lot in lots)
        )
        there = [one if isinstance(one, Answered) else None for one in answers]
        found = service.bids(asked, lots, there)
        headers = {"x-openrtb-version": "2.6"}
        if found is None:
            metrics.bids.labels("none").inc()
            return Response(status_code=204, headers=headers)
        metrics.bids.labels("made").inc(len(found.seatbid[0].bid))
        return JSONResponse(found.model_dump(exclude_none=True), headers=headers)

    @app.get("/openrtb2/win", status_code=204, tags=["openrtb"])
    async def win(
        request: QueryId,
        ad: QueryId,
        price: Annotated[str, Query(max_length=64)] = "",
        currency: Annotated[str, Query(max_length=64)] = "",
        code: Annotated[str, Query(max_length=64)] = "",
    ) -> None:
        """Notice of an exchange: a bid has won. It is counted."""
        _require_ours(service, request, ad, code)
        metrics.bids.labels("won").inc()

    @app.get("/openrtb2/billing", status_code=204, responses={503: REFUSED}, tags=["openrtb"])
    async def billing(
        request: QueryId,
        ad: QueryId,
        price: Annotated[str, Query(max_length=64)] = "",
        currency: Annotated[str, Query(max_length=64)] = "",
        code: Annotated[str, Query(max_length=64)] = "",
    ) -> None:
        """Notice of an exchange: the ad was shown and is billed. It becomes an impression."""
        _require_ours(service, request, ad, code)
        taken = await service.intake.take([billed(request, ad)])
        if taken.rejected:
            raise HTTPException(422, taken.rejected[0][1])
        if await _until_written(taken.written, config.events_timeout_s):
            metrics.bids.labels("billed").inc()
            metrics.events.labels("impression", "accepted").inc()

    @app.get("/v1/ads", tags=["catalogue"])
    async def list_ads(
        search: Annotated[str, Query(max_length=512, description="Part of an id.")] = "",
        limit: Annotated[int, Query(ge=1)] = 20,
    ) -> AdsOut:
        """Ads of the catalogue; one such request at a time, others are refused meanwhile."""
        _at_most(limit, config.limits.ads, "ads")
        total, ads = await run_in_threadpool(service.find_ads, search, limit)
        return AdsOut(total=total, ads=ads)

    @app.put(
        "/v1/ads",
        status_code=204,
        responses={401: REFUSED, 503: REFUSED},
        dependencies=events_only,
        tags=["catalogue"],
    )
    async def put_ads(put: AdsIn) -> None:
        """Add ads, or put them in the place of those whose id is known, with all their fields; the
        next request knows of them."""
        _at_most(len(put.ads), config.limits.ads, "ads")
        await run_in_threadpool(service.put_ads, put.ads)

    @app.get("/v1/ads/{ad_id:path}", responses={404: REFUSED}, tags=["catalogue"])
    async def get_ad(ad_id: PathId) -> AdInfo:
        """One ad."""
        found = await run_in_threadpool(service.ad, ad_id)
        if found is None:
            raise HTTPException(404, f"there is no ad '{ad_id}'")
        return found

    @app.put(
        "/v1/ads/{ad_id:path}/status",
        status_code=204,
        responses={401: REFUSED, 404: REFUSED, 503: REFUSED},
        dependencies=events_only,
        tags=["catalogue"],
    )
    async def set_status(ad_id: PathId, wanted: StatusIn) -> None:
        """Pause an ad, or show it again."""
        await _change(service, ad_id, wanted.status)

    @app.delete(
        "/v1/ads/{ad_id:path}",
        status_code=204,
        responses={401: REFUSED, 404: REFUSED, 503: REFUSED},
        dependencies=events_only,
        tags=["catalogue"],
    )
    async def delete_ad(ad_id: PathId) -> None:
        """Take an ad away."""
        await _change(service, ad_id, "removed")

    @app.get(
        "/v1/users/{user_id:path}",
        responses={401: REFUSED},
        dependencies=events_only,
        tags=["users"],
    )
    async def get_user(user_id: PathId) -> UserOut:
        """What is known of a user now."""
        return await run_in_threadpool(service.user, user_id)

    @app.get("/v2/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """Whether the process runs."""
        return {"status": "live"}

    @app.get("/v2/health/ready", responses={503: REFUSED}, tags=["health"])
    async def ready() -> dict[str, str]:
        """Whether requests are answered and events can be written."""
        await run_in_threadpool(_or_503, service.check_answers)
        await run_in_threadpool(service.check_log)
        return {"status": "ready"}

    @app.get("/v2/models/adrec", tags=["health"])
    async def model() -> dict[str, Any]:
        """The version that answers, and those that could."""
        return await run_in_threadpool(service.about)

    @app.get("/v2/models/adrec/ready", responses={503: REFUSED}, tags=["health"])
    async def model_ready() -> dict[str, str]:
        """Whether requests are answered, also while events cannot be written."""
        await run_in_threadpool(_or_503, service.check_answers)
        return {"status": "ready", "version": service.current.name}

    @app.get("/metrics", include_in_schema=False)
    async def metrics_page() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/console", include_in_schema=False)
    async def console() -> Response:
        return Response(_CONSOLE, media_type="text/html", headers=_CONSOLE_HEADERS)

    @app.get("/console/figures", include_in_schema=False)
    async def figures() -> Response:
        return _json({"model": await run_in_threadpool(service.about), "totals": metrics.totals()})

    return app


async def _until_done(future: "Future[T]") -> T:
    return await asyncio.wrap_future(future)


async def _until_written(written: "Future[list[Event]]", timeout_s: float) -> list[Event]:
    try:
        return await asyncio.wait_for(_until_done(written), timeout_s)
    except TimeoutError as error:
        raise EventLogError(
            f"the events are not written after {timeout_s:g} s; send them again"
        ) from error


async def _answer(
    service: Service, metrics: Metrics, asked: RecommendIn, *, about: bool = False
) -> Answered:
    """The answer, or the error that it ends with; both are counted."""
    try:
        answered = await _until_done(service.recommend(asked, about=about))
    except OverloadError:
        metrics.refused.inc()
        raise
    metrics.answers.labels(answered.slate.version).inc()
    metrics.degraded.inc(answered.degraded)
    for stage, ms in answered.slate.stage_ms.items():
        metrics.stages.labels(stage).observe(ms / 1000.0)
    return answered


async def _answer_or_why(
    service: Service, metrics: Metrics, asked: RecommendIn, *, about: bool = False
) -> Answered | str:
    try:
        return await _answer(service, metrics, asked, about=about)
    except (AskedWrongError, OverloadError) as error:
        return str(error)


async def _change(
    service: Service, ad_id: str, status: Literal["active", "paused", "removed"]
) -> None:
    found = await run_in_threadpool(service.ad, ad_id)
    if found is None or found.status == "removed":
        raise HTTPException(404, f"there is no ad '{ad_id}'")
    await run_in_threadpool(service.set_status, ad_id, status)


def _require_ours(service: Service, request_id: str, ad_id: str, code: str) -> None:
    if not service.notices.is_ours(request_id, ad_id, code):
        raise HTTPException(403, "this is no notice of a bid of ours")


def _or_503(check: Callable[[], None]) -> None:
    try:
        check()
    except OverloadError as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error


def _note_outcomes(metrics: Metrics, outcomes: Outcomes) -> None:
    metrics.impressions.inc(outcomes.impressions)
    metrics.clicks.inc(outcomes.clicks)
    metrics.expected.inc(outcomes.expected)


def _at_most(count: int, most: int, what: str) -> None:
    if count > most:
        raise HTTPException(422, f"{count} {what}; send or ask for at most {most}")


def _json(content: Any) -> Response:
    return Response(json.dumps(content, separators=(",", ":")), media_type="application/json")
