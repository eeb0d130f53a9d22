"""What Prometheus reads from the operator. Names and meanings only; whoever knows a value sets it.

Labels are bounded: outcomes, kinds, verbs and errors are few, and a service's series go with the service.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from millrace_operator.load_monitor import LoadFigures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class ServiceFigures:
    """One InferenceService as its last pass left it: counts of replicas, and why it is ready or not."""

    ready: int
    desired: int
    serves: bool
    reason: str


class ServiceGauges(Collector):
    """The series of every service, by (namespace, name). Only the leader knows any."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str], ServiceFigures] = {}

    def tell(self, key: tuple[str, str], figures: ServiceFigures) -> None:
        self._figures[key] = figures

    def forget(self, key: tuple[str, str]) -> None:
        self._figures.pop(key, None)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ("namespace", "name")
        ready = GaugeMetricFamily("millrace_service_ready_replicas", "Replicas that serve.", labels=labels)
        desired = GaugeMetricFamily("millrace_service_desired_replicas", "Replicas that are wanted.", labels=labels)
        serves = GaugeMetricFamily("millrace_service_ready", "1 while the condition Ready is True.", labels=(*labels, "reason"))
        for key, figures in self._figures.items():
            ready.add_metric(key, figures.ready)
            desired.add_metric(key, figures.desired)
            serves.add_metric((*key, figures.reason), figures.serves)
        yield from (ready, desired, serves)


class LoadGauges(Collector):
    """The series of the services that the operator scales, asked for at each scrape."""

    def __init__(self, figures: Callable[[], Iterable[tuple[tuple[str, str], LoadFigures]]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        labels = ("namespace", "name")
        load = GaugeMetricFamily("millrace_service_load", "Requests in the system, by the last reading.", labels=labels)
        age = GaugeMetricFamily("millrace_service_load_age_seconds", "Seconds since the last reading.", labels=labels)
        decision = GaugeMetricFamily("millrace_service_scaling", "1 for the cause of the last decision.", labels=(*labels, "cause"))
        idle = CounterMetricFamily("millrace_service_idle_gpu_seconds", "GPU seconds of replicas without a request.", labels=labels)
        for key, figures in self._figures():
            if figures.load is not None and figures.age is not None:
                load.add_metric(key, figures.load)
                age.add_metric(key, figures.age)
            decision.add_metric((*key, figures.cause), 1)
            idle.add_metric(key, figures.idle_gpu_seconds)
        yield from (load, age, decision, idle)


class Metrics:
    """One registry per process, so that a second operator in one test process does not clash."""

    def __init__(
        self, *, leads: Callable[[], bool], outdated: Callable[[], bool], depth: Callable[[], int], waited: Callable[[], float]
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.service = ServiceGauges()
        self._registry.register(self.service)
        self.passes = Counter("millrace_passes", "Reconcile passes by outcome.", ["outcome"], registry=self._registry)
        self.pass_seconds = Histogram(
            "millrace_pass_seconds",
            "Seconds of a reconcile pass.",
            registry=self._registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )
        self.loop_lag = Histogram(
            "millrace_loop_lag_seconds",
            "Seconds by which the event loop was late, looked at ten times a second.",
            registry=self._registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 5),
        )
        self._writes = Counter("millrace_writes", "Writes that the API server accepted.", ["kind", "verb"], registry=self._registry)
        self.errors = Counter("millrace_errors", "Passes that failed, by why.", ["reason"], registry=self._registry)
        self.services = Gauge("millrace_services", "InferenceServices at the last full list.", registry=self._registry)
        self.full_list = Gauge("millrace_last_full_list_timestamp_seconds", "Unix time of the last full list.", registry=self._registry)
        self._gauge("millrace_leader", "1 while this process may write.", leads)
        self._gauge("millrace_outdated", "1 while a newer operator has led, so that this one does not.", outdated)
        self._gauge("millrace_queue_depth", "Keys that wait for a pass.", depth)
        self._gauge("millrace_queue_waited_seconds", "Seconds that the oldest due key has waited.", waited)

    def follow(self, figures: Callable[[], Iterable[tuple[tuple[str, str], LoadFigures]]]) -> None:
        """Of the services that are scaled by their load."""
        self._registry.register(LoadGauges(figures))

    def wrote(self, kind: str, verb: str) -> None:
        """`verb` is one of apply, scale, status, delete, create and patch; the last is of Events, of pods that
        should go first, and of ports that somebody renumbered."""
        self._writes.labels(kind, verb).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        Gauge(name, meaning, registry=self._registry).set_function(read)
