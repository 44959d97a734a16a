"""Admin: what changes what is served, as an application for a port of its own."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query
from starlette.concurrency import run_in_threadpool

from adrec.errors import BundleError
from adrec.serving.access import needing
from adrec.serving.application import begin_app
from adrec.serving.metrics import Metrics
from adrec.serving.service import Service
from adrec.serving.wire import PathId


def create_admin_app(
    service: Service, metrics: Metrics, *, drain: Callable[[], None] | None = None
) -> FastAPI:
    """The application that changes what is served; for a port of its own.

    Args:
        service: that is changed.
        metrics: of the requests' application.
        drain: has all servers of the port drain; None: this one is alone.
    """
    config = service.config
    app = begin_app(
        "adrec admin",
        config,
        metrics,
        token=config.admin_token,
        refusals=(401, 403, 409, 413, 429, 503),
        dependencies=needing(config.admin_token),
    )

    async def change(work: Callable[[], Any]) -> dict[str, Any]:
        try:
            await run_in_threadpool(work)
        except BundleError:
            metrics.swaps.labels("refused").inc()
            raise
        metrics.swaps.labels("done").inc()
        return await run_in_threadpool(service.about)

    @app.post("/admin/swap")
    async def swap(
        version: Annotated[str | None, Query(description="None: the one published last.")] = None,
    ) -> dict[str, Any]:
        """Have another version answer. One that is damaged is refused, and the old one goes on."""
        return await change(lambda: service.versions.swap(version))

    @app.post("/admin/rollback")
    async def rollback() -> dict[str, Any]:
        """Have the version answer that did before."""
        return await change(service.versions.rollback)

    @app.post("/admin/drain", status_code=204)
    async def drain_all() -> None:
        """Be ready no more, so that whoever routes sends no more requests. Those that come are
        answered until the server is stopped."""
        (drain or service.drain)()

    @app.post("/admin/prune")
    async def prune() -> dict[str, int]:
        """Delete slates and events that are older than the settings allow."""
        return {"slates": await run_in_threadpool(service.prune)}

    @app.post("/admin/check")
    async def check() -> dict[str, Any]:
        """Compare what the models were told, of a sample of answers, with what the log says."""
        skew = await run_in_threadpool(service.measure_skew)
        metrics.note_skew(compared=skew.checked, different=skew.different)
        return asdict(skew)

    @app.delete("/admin/users/{user_id:path}")
    async def erase(user_id: PathId) -> dict[str, int]:
        """Erase a user from the state and from the log."""
        return {"slates": await run_in_threadpool(service.erase_user, user_id)}

    return app
