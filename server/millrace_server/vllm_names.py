"""The engine's figures under vLLM's names, types and units, so that its dashboards, autoscaler recipes and routers read this server too.

https://docs.vllm.ai/en/latest/usage/metrics.html
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from millrace_server.engine.messages import Ready, Step

FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
BETWEEN_TOKENS_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
REQUEST_BUCKETS = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
REASONS = ("stop", "length", "abort", "error")
"""How an answer ended. `abort`: its client left, or its deadline passed."""
NOTHING = Step(outputs=[], running=0, waiting=0, slots=0)
"""What an engine has counted when it starts."""


class VLLMNames:
    def __init__(self, registry: CollectorRegistry, *, model_name: str) -> None:
        self._last = NOTHING
        labels = ["model_name"]

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"vllm:{name}", meaning, labels, registry=registry).labels(model_name)

        def counter(name: str, meaning: str) -> Counter:
            return Counter(f"vllm:{name}", meaning, labels, registry=registry).labels(model_name)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", meaning, labels, registry=registry, buckets=buckets).labels(model_name)

        self.running = gauge("num_requests_running", "Requests that hold a slot.")
        self.waiting = gauge("num_requests_waiting", "Requests that wait for a slot.")
        self._memory = gauge("kv_cache_usage_perc", "Share of the KV cache that running requests take, 0 to 1.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of the prompts that ran.")
        self.generated_tokens = counter("generation_tokens", "Tokens that the model generated.")
        self._preemptions = counter("num_preemptions", "Requests that had to wait again, because the KV cache was full.")
        self._queries = counter("prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache.")
        self._hits = counter("prefix_cache_hits", "Tokens of prompts that were found there.")
        self.first_token = histogram("time_to_first_token_seconds", "From a request's arrival to its first token.", FIRST_TOKEN_BUCKETS)
        self.between_tokens = histogram("inter_token_latency_seconds", "Between two tokens of an answer.", BETWEEN_TOKENS_BUCKETS)
        self.whole_request = histogram("e2e_request_latency_seconds", "From a request's arrival to its last token.", REQUEST_BUCKETS)
        ended = Counter("vllm:request_success", "Answers by how they ended.", [*labels, "finished_reason"], registry=registry)
        self._ended = {reason: ended.labels(model_name, reason) for reason in REASONS}
        cache = ["block_size", "num_gpu_blocks", "enable_prefix_caching"]
        self._cache = Gauge("vllm:cache_config_info", "The KV cache; always 1.", [*labels, *cache], registry=registry)
        self._model_name = model_name

    def ended(self, reason: str) -> None:
        self._ended[reason].inc()

    def loaded(self, ready: Ready) -> None:
        """An engine serves; its counts begin anew."""
        self._last = NOTHING
        self._cache.clear()
        blocks = ready.kv_tokens // ready.block_tokens if ready.block_tokens else 0
        self._cache.labels(self._model_name, str(ready.block_tokens), str(blocks), str(ready.block_tokens > 0)).set(1)

    def stepped(self, step: Step) -> None:
        """Counts in a step are those since the engine's start."""
        self._memory.set(step.kv_usage)
        self._preemptions.inc(step.preemptions - self._last.preemptions)
        self._queries.inc(step.prefix_queries - self._last.prefix_queries)
        self._hits.inc(step.prefix_hits - self._last.prefix_hits)
        self._last = step
