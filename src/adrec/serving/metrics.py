"""Metrics of a server, for Prometheus. Those of several workers are added up, by the library."""

import os
from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder through which workers share theirs."""

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """All that is counted, in a registry of its own."""

    def __init__(self, *, waiting: Callable[[], float], unwritten: Callable[[], float]) -> None:
        """Begin.

        Args:
            waiting: requests that wait to be answered.
            unwritten: appends that are not in the event log yet.
        """
        self._registry = CollectorRegistry()
        self._asked = waiting, unwritten

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"adrec_{name}", about, labels, registry=self._registry)

        def seconds(name: str, about: str, *labels: str) -> Histogram:
            return Histogram(
                f"adrec_{name}", about, labels, buckets=_SECONDS, registry=self._registry
            )

        self.requests = counter("http_requests", "HTTP requests.", "route", "status")
        self.seconds = seconds(
            "http_seconds", "From the first byte of a request to the last of its answer.", "route"
        )
        self.stages = seconds("stage_seconds", "Seconds of each stage, of a batch.", "stage")
        self.answers = counter("answers", "Requests answered.", "version")
        self.degraded = counter("degraded", "Answers that may lack what other servers know.")
        self.refused = counter("refused", "Requests for ads refused for lack of time.")
        self.events = counter("events", "Events taken.", "kind", "result")
        self.impressions = counter("impressions", "Ads of answers that were shown.")
        self.clicks = counter("clicks", "Of those, how many were clicked: met the first task.")
        self.expected = counter("expected_clicks", "How many clicks the models expected of those.")
        self.bids = counter("bids", "OpenRTB bids, and what came of them.", "result")
        self.swaps = counter("swaps", "Changes of the version that answers.", "result")
        self._waiting = self._gauge("waiting", "Requests that wait.", added_up=True)
        self._unwritten = self._gauge(
            "unwritten", "Appends that are not in the event log yet.", added_up=True
        )
        self._skew: tuple[Gauge, Gauge] | None = None

    def note_skew(self, *, compared: int, different: int) -> None:
        """Tell of a check for skew; until the first one the page says nothing of it."""
        if self._skew is None:
            self._skew = (
                self._gauge(
                    "skew_compared",
                    "Answers whose features were compared with the log's, at the last check.",
                    added_up=False,
                ),
                self._gauge(
                    "skew_different",
                    "Answers whose features differ from the log's, at the last check.",
                    added_up=False,
                ),
            )
        for gauge, value in zip(self._skew, (compared, different), strict=True):
            gauge.set(value)

    def page(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._all())

    def totals(self) -> dict[str, float]:
        """Every sample by its name with labels, as on the page."""
        return {
            _name(sample.name, sample.labels.items()): sample.value
            for family in self._all().collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    def _gauge(self, name: str, about: str, *, added_up: bool) -> Gauge:
        return Gauge(
            f"adrec_{name}",
            about,
            multiprocess_mode="livesum" if added_up else "mostrecent",
            registry=self._registry,
        )

    def refresh(self) -> None:
        """Tell how much waits now: to whichever worker the page is asked for."""
        for gauge, ask in zip((self._waiting, self._unwritten), self._asked, strict=True):
            gauge.set(ask())

    def _all(self) -> CollectorRegistry:
        self.refresh()
        if FOLDER not in os.environ:
            return self._registry
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return together


def _name(name: str, labels: Iterable[tuple[str, str]]) -> str:
    inside = ",".join(f"{key}={value}" for key, value in labels)
    return f"{name}{{{inside}}}" if inside else name
