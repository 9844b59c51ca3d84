"""Prometheus metrics of the server and of each model."""

import threading
import time

import jax
import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_COMPILED = "/jax/core/compile/backend_compile_duration"
_scoring = threading.local()  # .compilations: the counter of the model that this thread serves, after its warm-up


def _on_event(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == _COMPILED and (counter := getattr(_scoring, "compilations", None)) is not None:
        counter.inc()


jax.monitoring.register_event_duration_secs_listener(_on_event)


class Metrics:
    """The server's metrics in their own Prometheus registry; all have the label `model`."""

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
        self.compilations = make(Counter, "compilations_after_warm_up", "Programs compiled while serving; expected: 0.")
        self.left_out = make(Counter, "left_out", "Conversations of which the chat template left out content.")
        self.refused = make(Counter, "refused", "Requests not answered with rewards, by error.", "reason")
        self.waiting_sequences = make(Gauge, "queue_sequences", "Sequences in the queue.")
        self.waiting_tokens = make(Gauge, "queue_tokens", "Tokens in the queue.")
        self.device_bytes = make(Gauge, "device_bytes", "Bytes of weights and optimizer state in device memory.")
        self.host_bytes = make(Gauge, "host_bytes", "Bytes of them in host memory, with --offload.")
        self.latency = make(Histogram, "request_seconds", "Seconds from request to response.", buckets=_SECONDS)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)


class ModelMetrics:
    """The metrics of one model."""

    def __init__(self, metrics: Metrics, model: str):
        self.model, self._refused = model, metrics.refused
        self.requests: Counter = metrics.requests.labels(model)
        self.sequences: Counter = metrics.sequences.labels(model)
        self.tokens: Counter = metrics.tokens.labels(model)
        self.unique_tokens: Counter = metrics.unique_tokens.labels(model)
        self.batches: Counter = metrics.batches.labels(model)
        self.compilations: Counter = metrics.compilations.labels(model)
        self.left_out: Counter = metrics.left_out.labels(model)
        self.waiting_sequences: Gauge = metrics.waiting_sequences.labels(model)
        self.waiting_tokens: Gauge = metrics.waiting_tokens.labels(model)
        self.device_bytes: Gauge = metrics.device_bytes.labels(model)
        self.host_bytes: Gauge = metrics.host_bytes.labels(model)
        self.latency: Histogram = metrics.latency.labels(model)

    def count_request(self, began: float, error: BaseException | None) -> None:
        """Counts a request that began at this time of `time.monotonic`: answered, or refused with an error."""
        if error is not None:
            self._refused.labels(self.model, getattr(error, "metric_label", type(error).__name__)).inc()
            return
        self.requests.inc()
        self.latency.observe(time.monotonic() - began)

    def count_compilations(self) -> None:
        """Counts compilations in the calling thread from now on."""
        _scoring.compilations = self.compilations
