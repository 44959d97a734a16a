"""Metrics of a server, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """All that is counted, in a registry of its own."""

    def __init__(self, *, waiting: Callable[[], float], unwritten: Callable[[], float]) -> None:
        """Begin.

        Args:
            waiting: requests that wait to be answered.
            unwritten: appends that are not in the event log yet.
        """
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "adrec_http_requests", "HTTP requests.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "adrec_http_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stages = Histogram(
            "adrec_stage_seconds",
            "Seconds of each stage, of a batch.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.answers = Counter(
            "adrec_answers", "Requests answered.", ("version",), registry=self.registry
        )
        self.refused = Counter(
            "adrec_refused", "Requests refused for lack of time.", registry=self.registry
        )
        self.events = Counter(
            "adrec_events", "Events taken.", ("kind", "result"), registry=self.registry
        )
        self.bids = Counter(
            "adrec_bids",
            "OpenRTB bids, and what came of them.",
            ("result",),
            registry=self.registry,
        )
        self.swaps = Counter(
            "adrec_swaps",
            "Changes of the version that answers.",
            ("result",),
            registry=self.registry,
        )
        self.compared = Gauge(
            "adrec_skew_compared",
            "Answers whose features were compared with the log's, at the last check.",
            registry=self.registry,
        )
        self.skewed = Gauge(
            "adrec_skew_different",
            "Answers whose features differ from the log's, at the last check.",
            registry=self.registry,
        )
        Gauge("adrec_waiting", "Requests that wait.", registry=self.registry).set_function(waiting)
        Gauge(
            "adrec_unwritten", "Appends that are not in the event log yet.", registry=self.registry
        ).set_function(unwritten)

    def page(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
