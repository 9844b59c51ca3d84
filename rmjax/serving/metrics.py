"""What the server counts, for Prometheus."""

import contextlib
import threading
import time
from collections.abc import Iterator

import jax
import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_COMPILED = "/jax/core/compile/backend_compile_duration"
_scoring = threading.local()  # .compilations: the counter of the warm engine whose thread this is


def _on_event(event: str, _: float, **__: object) -> None:
    if event == _COMPILED and (counter := getattr(_scoring, "compilations", None)) is not None:
        counter.inc()


jax.monitoring.register_event_duration_secs_listener(_on_event)


class Metrics:
    """The server's metrics in a registry of their own; all but `http` carry the label `model`."""

    def __init__(self):
        self.registry = prometheus_client.CollectorRegistry()
        make = lambda kind, name, text, *labels, **options: kind(
            f"rmjax_{name}", text, ("model", *labels), registry=self.registry, **options
        )
        self.requests = make(Counter, "requests", "Requests answered with rewards.")
        self.sequences = make(Counter, "sequences", "Sequences scored.")
        self.tokens = make(Counter, "tokens", "Tokens of the sequences scored.")
        self.unique_tokens = make(Counter, "unique_tokens", "Tokens computed: prompts shared in a batch count once.")
        self.batches = make(Counter, "batches", "Batches scored.")
        self.compilations = make(Counter, "compilations_after_warm_up", "Programs compiled while serving; 0 is right.")
        self.refused = make(Counter, "refused", "Requests not answered with rewards, by error.", "reason")
        self.waiting_sequences = make(Gauge, "queue_sequences", "Sequences that wait.")
        self.waiting_tokens = make(Gauge, "queue_tokens", "Tokens that wait.")
        self.device_bytes = make(Gauge, "device_bytes", "Bytes of weights and optimizer state on the devices.")
        self.host_bytes = make(Gauge, "host_bytes", "Bytes of them in host memory, with --offload.")
        self.latency = make(Histogram, "request_seconds", "From the request's arrival to its answer.", buckets=_SECONDS)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)


class ModelMetrics:
    """The metrics of one model."""

    def __init__(self, metrics: Metrics, model: str):
        for name in (
            "requests",
            "sequences",
            "tokens",
            "unique_tokens",
            "batches",
            "compilations",
            "waiting_sequences",
            "waiting_tokens",
            "device_bytes",
            "host_bytes",
            "latency",
        ):
            setattr(self, name, getattr(metrics, name).labels(model))
        self._refused, self.model = metrics.refused, model

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Counts what is done in it as one request: answered, or refused with the exception it ends in."""
        began = time.monotonic()
        try:
            yield
        except BaseException as error:  # a cancellation too
            self._refused.labels(self.model, type(error).__name__).inc()
            raise
        self.requests.inc()
        self.latency.observe(time.monotonic() - began)

    def count_compilations(self) -> None:
        """Counts what is compiled in the calling thread from now on."""
        _scoring.compilations = self.compilations
