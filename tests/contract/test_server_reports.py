"""/health, /metrics, Prometheus, probes and /internal/load: every field, its type and its meaning, on a real server."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from running_server import RunningServer

NUMBER = (int, float)

HEALTH = {
    "status": str,
    "model_loaded": bool,
    "queue_size": int,
    "metrics": {
        "requests": {"total": int, "errors": int, "success_rate": NUMBER},
        "throughput": {"qps": NUMBER, "tokens_generated": int},
        "latency": {"p50": NUMBER, "p95": NUMBER, "p99": NUMBER, "mean": NUMBER},
    },
}

METRICS = {
    "requests": {"total": int, "succeeded": int, "errors": int, "refused": int, "client_errors": int, "error_rate": NUMBER},
    "throughput": {"qps": NUMBER, "tokens_generated": int},
    "latency": {"p50": NUMBER, "p95": NUMBER, "p99": NUMBER, "mean": NUMBER},
    "system": {
        "cpu_percent": NUMBER,
        "memory_percent": NUMBER,
        "memory_used_bytes": int,
        "memory_total_bytes": int,
        "process_memory_bytes": int,
    },
    "cache": {
        "type": str,
        "state": str,
        "hits": int,
        "misses": int,
        "hit_rate": NUMBER,
        "corrupt": int,
        "errors": int,
        "bypassed": int,
        "dropped_writes": int,
        "lookup": {"p50": NUMBER, "p95": NUMBER, "p99": NUMBER, "mean": NUMBER},
        "entries": int,
        "bytes": int,
        "max_bytes": int,
        "evictions": int,
    },
    "queue": {"size": int, "running": int, "slots": int, "limit": int},
}

LOAD = {
    "boot_id": str,
    "uptime_seconds": NUMBER,
    "draining": bool,
    "ready": bool,
    "slots": int,
    "capacity": int,
    "queued": int,
    "running": int,
    "arrivals": int,
    "completed": int,
    "running_seconds": NUMBER,
}

INFER = {"text": str, "request_id": str, "latency_ms": NUMBER, "tokens_generated": int, "cached": bool}

PROMETHEUS = {
    "llm_requests": ("counter", {"endpoint", "status"}),
    "llm_connections_refused": ("counter", {"code"}),
    "llm_request_latency_seconds": ("histogram", set()),
    "llm_queue_size": ("gauge", set()),
    "llm_tokens_generated": ("counter", set()),
    "llm_engine_starts": ("counter", set()),
    "vllm:num_requests_running": ("gauge", {"model_name"}),
    "vllm:num_requests_waiting": ("gauge", {"model_name"}),
    "vllm:kv_cache_usage_perc": ("gauge", {"model_name"}),
    "vllm:prompt_tokens": ("counter", {"model_name"}),
    "vllm:generation_tokens": ("counter", {"model_name"}),
    "vllm:request_success": ("counter", {"model_name", "finished_reason"}),
    "vllm:num_preemptions": ("counter", {"model_name"}),
    "vllm:prefix_cache_queries": ("counter", {"model_name"}),
    "vllm:prefix_cache_hits": ("counter", {"model_name"}),
    "vllm:time_to_first_token_seconds": ("histogram", {"model_name"}),
    "vllm:inter_token_latency_seconds": ("histogram", {"model_name"}),
    "vllm:e2e_request_latency_seconds": ("histogram", {"model_name"}),
    "vllm:cache_config_info": ("gauge", {"model_name", "block_size", "num_gpu_blocks", "enable_prefix_caching"}),
}


def assert_shape(value: object, shape: Any, path: str = "$") -> None:  # noqa: ANN401 - nested like JSON
    """The same fields, no more and no less, each of its type; a bool is no number."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), path
        assert set(value) == set(shape), path
        for name, part in shape.items():
            assert_shape(value[name], part, f"{path}.{name}")
    else:
        assert isinstance(value, shape), f"{path} is {value!r}"
        assert shape is bool or not isinstance(value, bool), path


def prometheus(server: RunningServer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = server.internal().get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_infer_answers_in_its_shape(server: RunningServer) -> None:
    assert_shape(server.requests().infer("shape", max_tokens=2).json(), INFER)


def test_health(server: RunningServer) -> None:
    server.requests().infer("a", max_tokens=3)
    response = server.requests().get("/health")
    assert response.status_code == 200
    health = response.json()
    assert_shape(health, HEALTH)
    assert (health["status"], health["model_loaded"], health["queue_size"]) == ("healthy", True, 0)
    latency = health["metrics"]["latency"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] < 60


def test_health_counts_requests_and_tokens(server: RunningServer) -> None:
    before = server.requests().get("/health").json()["metrics"]
    generated = server.requests().infer("b", max_tokens=4, use_cache=False).json()["tokens_generated"]
    server.requests().infer("b", max_tokens=0)
    server.requests().get("/health")
    after = server.requests().get("/health").json()["metrics"]
    assert after["requests"]["total"] - before["requests"]["total"] == 2, "a look at /health is no request"
    assert after["requests"]["errors"] == before["requests"]["errors"] == 0, "a client's mistake is no error of the server"
    assert after["requests"]["success_rate"] == 1
    assert after["throughput"]["tokens_generated"] - before["throughput"]["tokens_generated"] == generated
    assert after["throughput"]["qps"] > 0


def test_metrics_as_json(server: RunningServer) -> None:
    before = server.requests().get("/metrics").json()
    assert_shape(before, METRICS)
    for _ in range(2):
        server.requests().infer("metrics as json", max_tokens=3, temperature=0)
    server.requests().infer("c", temperature=9)
    after = server.requests().get("/metrics").json()
    grown = {
        name: after["requests"][name] - before["requests"][name] for name in ("total", "succeeded", "client_errors", "errors", "refused")
    }
    assert grown == {"total": 3, "succeeded": 2, "client_errors": 1, "errors": 0, "refused": 0}
    assert after["cache"]["hits"] - before["cache"]["hits"] == 1
    assert after["cache"]["entries"] - before["cache"]["entries"] == 1
    assert after["queue"] == {"size": 0, "running": 0, "slots": 8, "limit": 100}
    assert after["system"]["process_memory_bytes"] > 100_000_000, "the engine process is counted in"


def test_metrics_as_prometheus_text_when_asked(server: RunningServer) -> None:
    for accept in ("text/plain;version=0.0.4", "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"):
        response = server.requests().get("/metrics", headers={"accept": accept})
        assert response.headers["content-type"].startswith(accept.split(";")[0])
        assert "llm_queue_size 0.0" in response.text
    assert server.requests().get("/metrics", headers={"accept": "*/*"}).headers["content-type"] == "application/json"


def test_prometheus_names_types_and_labels(server: RunningServer) -> None:
    server.requests().infer("d", max_tokens=2)
    families = {family.name: family for family in text_string_to_metric_families(server.internal().get("/metrics").text)}
    for name, (kind, labels) in PROMETHEUS.items():
        family = families[name]
        assert family.type == kind, name
        assert {label for sample in family.samples for label in sample.labels} - {"le"} == labels, name


def test_prometheus_counts_by_route_and_status(server: RunningServer) -> None:
    before = prometheus(server)
    generated = server.requests().infer("e", max_tokens=4, use_cache=False).json()["tokens_generated"]
    server.requests().infer("e", max_tokens=0)
    server.requests().get("/attacker/chosen/path")
    after = prometheus(server)

    def grown(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    assert grown("llm_requests_total", endpoint="/api/v1/infer", status="200") == 1
    assert grown("llm_requests_total", endpoint="/api/v1/infer", status="400") == 1
    assert grown("llm_requests_total", endpoint="other", status="404") == 1
    assert grown("llm_request_latency_seconds_count") == 1
    assert grown("llm_tokens_generated_total") == generated
    assert grown("vllm:prompt_tokens_total", model_name="tiny") == 1
    assert not any("attacker" in str(labels) for _, labels in after)


def test_requests_tokens_and_memory_are_told_in_vllm_s_names(server: RunningServer) -> None:
    before = prometheus(server)
    prompt = "a beginning that fills several blocks of the prefix cache, so that it may be found again: " * 2
    for _ in range(2):
        assert server.requests().infer(prompt, max_tokens=5, temperature=0, use_cache=False).json()["tokens_generated"] == 5
    late = {"model": "tiny", "prompt": "g", "max_tokens": 400, "ignore_eos": True, "temperature": 1}
    assert server.requests().request("POST", "/v1/completions", json=late, headers={"x-request-timeout": "0.05"}).status_code == 504

    def grown(name: str, **labels: str) -> float:
        key = (f"vllm:{name}", frozenset({"model_name": "tiny", **labels}.items()))
        return after.get(key, 0) - before.get(key, 0)

    deadline = time.monotonic() + 20
    while True:
        after = prometheus(server)
        if grown("request_success_total", finished_reason="abort") == 1 or time.monotonic() > deadline:
            break
    assert grown("request_success_total", finished_reason="abort") == 1
    assert grown("request_success_total", finished_reason="length") == 2
    assert grown("e2e_request_latency_seconds_count") == 2
    assert grown("time_to_first_token_seconds_count") >= 2
    assert grown("inter_token_latency_seconds_count") >= 2 * 4
    assert 0 < grown("time_to_first_token_seconds_sum") <= grown("e2e_request_latency_seconds_sum") + 20
    assert grown("prefix_cache_queries_total") >= 2 * len(prompt)
    assert grown("prefix_cache_hits_total") == len(prompt) // 32 * 32
    [blocks] = [labels for name, labels in after if name == "vllm:cache_config_info"]
    assert int(dict(blocks)["block_size"]) == 32
    assert int(dict(blocks)["num_gpu_blocks"]) > 0
    deadline = time.monotonic() + 20
    while prometheus(server)["vllm:kv_cache_usage_perc", frozenset({("model_name", "tiny")})] and time.monotonic() < deadline:
        pass
    assert prometheus(server)["vllm:kv_cache_usage_perc", frozenset({("model_name", "tiny")})] == 0


def test_internal_load(server: RunningServer) -> None:
    before = server.load()
    assert_shape(before, LOAD)
    server.requests().infer("f", max_tokens=40, use_cache=False)
    after = server.load()
    assert after["boot_id"] == before["boot_id"]
    assert after["arrivals"] - before["arrivals"] == 1
    assert after["completed"] - before["completed"] == 1
    assert 0 < after["running_seconds"] - before["running_seconds"] < after["uptime_seconds"] - before["uptime_seconds"]
    assert (after["slots"], after["capacity"], after["queued"], after["running"]) == (8, 100, 0, 0)
    assert (after["draining"], after["ready"]) == (False, True)


def test_probes(server: RunningServer) -> None:
    for path in ("/livez", "/readyz"):
        response = server.internal().get(path)
        assert (response.status_code, response.text) == (200, "ok")


def test_fifty_scrapers_harm_nobody(server: RunningServer) -> None:
    def scrape(_: int) -> int:
        return server.internal().get("/metrics").status_code

    with ThreadPoolExecutor(50) as pool:
        scraped = pool.map(scrape, range(300))
        assert [server.requests().infer("a", max_tokens=1).status_code for _ in range(20)] == [200] * 20
        assert set(scraped) == {200}
