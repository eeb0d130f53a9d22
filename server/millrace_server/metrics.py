"""What the server counts, once, in the names that Prometheus scrapes and in the shapes that people read as JSON.

Its own registry; every label has a bounded set of values (routes, status codes, finish reasons), never a client's text.
"""

from collections.abc import Callable

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from millrace_server.engine.messages import Ready
from millrace_server.errors import BadHead, HeadTooLarge, Refused, SlowRequest, TooManyConnections
from millrace_server.keys import Usage
from millrace_server.protocol import (
    HealthMetrics,
    Latency,
    RequestCounts,
    RequestReport,
    SystemReport,
    Throughput,
)
from millrace_server.vllm_names import VLLMNames
from millrace_server.windows import DurationWindow, RateWindow

RATE_SECONDS = 60
LATENCY_SECONDS = 300
LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 30, 60, 120)


class Metrics:
    def __init__(self, *, model_name: str, inference_endpoints: frozenset[str], now: float) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._inference_endpoints = inference_endpoints
        self._rate = RateWindow(seconds=RATE_SECONDS, now=now)
        self._latency = DurationWindow(seconds=LATENCY_SECONDS)
        self._tokens = 0
        self._succeeded = self._errors = self._refused = self._client_errors = 0
        self._process = psutil.Process()
        psutil.cpu_percent()

        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.internal_registry = CollectorRegistry()
        """All of the other one, and what no client may read of the others: who they are, and how much they use."""
        self.internal_registry.register(self.registry)
        self.usage = Usage(self.internal_registry)
        self._requests = Counter("llm_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry)
        self._refused_connections = Counter(
            "llm_connections_refused",
            "Connections that ended before a request of theirs reached a route.",
            ["code"],
            registry=self.registry,
        )
        for reason in (BadHead, HeadTooLarge, SlowRequest, TooManyConnections):
            self._refused_connections.labels(reason.code)
        self._seconds = Histogram(
            "llm_request_latency_seconds",
            "Seconds from a successful inference request's arrival to its answer.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._queue_size = Gauge("llm_queue_size", "Requests that wait for a slot.", registry=self.registry)
        self._generated = Counter("llm_tokens_generated", "Tokens that the model generated.", registry=self.registry)
        self._engine_starts = Counter("llm_engine_starts", "Engines that came to serve; the first one counts.", registry=self.registry)

        self.vllm = VLLMNames(self.registry, model_name=model_name)

    def engine_ready(self, ready: Ready) -> None:
        self._engine_starts.inc()
        self.vllm.loaded(ready)

    def read_gauges_from(self, *, queued: Callable[[], int], running: Callable[[], int]) -> None:
        """The gauges ask at each scrape: no copy of a number that has its home elsewhere."""
        self._queue_size.set_function(queued)
        self.vllm.waiting.set_function(queued)
        self.vllm.running.set_function(running)

    def answered(self, endpoint: str, status: int, seconds: float, *, now: float) -> None:
        """One HTTP request is over. Only inference counts in the JSON reports; a look at /health is no work."""
        self._requests.labels(endpoint, str(status)).inc()
        if endpoint not in self._inference_endpoints:
            return
        self._rate.add(now=now)
        if status < 400:
            self._succeeded += 1
            self._seconds.observe(seconds)
            self._latency.add(seconds, now=now)
        elif status == Refused.status:
            self._refused += 1
        elif status < 500:
            self._client_errors += 1
        else:
            self._errors += 1

    def connection_refused(self, code: str) -> None:
        """One of the codes of ERRORS.md."""
        self._refused_connections.labels(code).inc()

    def prompt_ran(self, tokens: int, *, tenant: str) -> None:
        self.usage.prompt_ran(tenant, tokens)
        self.vllm.prompt_tokens.inc(tokens)

    def generated(self, tokens: int, *, tenant: str) -> None:
        self.usage.generated(tenant, tokens)
        self._tokens += tokens
        self._generated.inc(tokens)
        self.vllm.generated_tokens.inc(tokens)

    def prometheus(self, accept: str, *, is_internal: bool) -> tuple[bytes, str]:
        """The exposition and its content type, in the best format that `accept` allows."""
        encode, content_type = choose_encoder(accept)
        return encode(self.internal_registry if is_internal else self.registry), content_type

    def health(self, *, now: float) -> HealthMetrics:
        requests = self.requests()
        return HealthMetrics(
            requests=RequestCounts(total=requests.total, errors=requests.errors, success_rate=1 - requests.error_rate),
            throughput=self.throughput(now=now),
            latency=self.latency(now=now),
        )

    def requests(self) -> RequestReport:
        total = self._succeeded + self._errors + self._refused + self._client_errors
        return RequestReport(
            total=total,
            succeeded=self._succeeded,
            errors=self._errors,
            refused=self._refused,
            client_errors=self._client_errors,
            error_rate=self._errors / total if total else 0.0,
        )

    def throughput(self, *, now: float) -> Throughput:
        return Throughput(qps=self._rate.per_second(now=now), tokens_generated=self._tokens)

    def latency(self, *, now: float) -> Latency:
        (p50, p95, p99), mean = self._latency.percentiles(0.50, 0.95, 0.99, now=now)
        return Latency(p50=p50, p95=p95, p99=p99, mean=mean)

    def system(self) -> SystemReport:
        memory = psutil.virtual_memory()
        processes = [self._process, *self._process.children()]
        return SystemReport(
            cpu_percent=psutil.cpu_percent(),
            memory_percent=memory.percent,
            memory_used_bytes=memory.used,
            memory_total_bytes=memory.total,
            process_memory_bytes=sum(_resident_bytes(process) for process in processes),
        )


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
