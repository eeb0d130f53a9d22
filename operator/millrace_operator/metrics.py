"""What Prometheus reads from the operator. Names and meanings only; whoever knows a value sets it."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry per process, so that a second operator in one test process does not clash."""

    def __init__(self, *, leads: Callable[[], bool], depth: Callable[[], int], waited: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.passes = Counter("millrace_passes", "Reconcile passes by outcome.", ["outcome"], registry=self._registry)
        self.pass_seconds = Histogram(
            "millrace_pass_seconds",
            "Seconds of a reconcile pass.",
            registry=self._registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )
        self.services = Gauge("millrace_services", "InferenceServices at the last full list.", registry=self._registry)
        self.full_list = Gauge("millrace_last_full_list_seconds", "Monotonic seconds of the last full list.", registry=self._registry)
        self._gauge("millrace_leader", "1 while this process may write.", leads)
        self._gauge("millrace_queue_depth", "Keys that wait for a pass.", depth)
        self._gauge("millrace_queue_waited_seconds", "Seconds that the oldest due key has waited.", waited)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        Gauge(name, meaning, registry=self._registry).set_function(read)
