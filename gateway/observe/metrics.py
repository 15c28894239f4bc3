"""Every metric, on one page. Labels are the code's and the catalog's own names: never tenant text, prompts or keys."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """The counters of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter("gateway_requests", "Answered requests.", ("route", "method", "status"), registry=registry)
        self.request_seconds = Histogram(
            "gateway_request_seconds",
            "From the first byte in to the last byte out.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests_in_flight = Gauge("gateway_requests_in_flight", "Requests being served.", registry=registry)
        self.attempts = Counter(
            "gateway_attempts", "Offers tried, by what came of it.", ("model", "provider", "outcome"), registry=registry
        )
        self.attempt_seconds = Histogram(
            "gateway_attempt_seconds",
            "One offer tried, from submit to stored pictures.",
            ("model", "provider"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.breaker_state = Gauge(
            "gateway_breaker_state",
            "Whether an offer rests: 0 closed, 1 half-open, 2 open.",
            ("provider", "endpoint"),
            registry=registry,
        )
        self.decisions = Counter("gateway_decisions", "How parameters reached offers.", ("provider", "mode"), registry=registry)
        self.conversion_seconds = Histogram(
            "gateway_conversion_seconds",
            "One picture prepared or finished in the pool, waiting included.",
            ("step",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_depth = Gauge("gateway_queue_depth", "Work that waits.", ("queue",), registry=registry)
        self.jobs_in_flight = Gauge("gateway_jobs_in_flight", "Jobs that run, waited for or not.", registry=registry)
        self.images = Counter("gateway_images_delivered", "Pictures delivered.", ("model", "provider", "format"), registry=registry)
        self.cost_usd = Counter("gateway_cost_usd", "What providers charge, where known.", ("model", "provider"), registry=registry)
        self.cost_unknown = Counter(
            "gateway_cost_unknown", "Attempts whose cost nobody can say.", ("model", "provider"), registry=registry
        )
        self.backend_up = Gauge("gateway_backend_up", "Whether a local backend takes work.", ("backend",), registry=registry)
        self.backend_restarts = Counter("gateway_backend_restarts", "Restarts of the bundled backend.", registry=registry)
