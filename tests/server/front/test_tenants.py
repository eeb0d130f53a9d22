"""What a key's owner has of its own: answers, turns, usage, log lines; and what the processes behind the front are not told."""

import os
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry

import fake_model
from millrace_server.app import client_app
from millrace_server.engine.stream import QuarantinedRequest
from millrace_server.keys import KeyRing, Usage
from millrace_server.keys.usage import MOST_TENANTS
from millrace_server.text import Text
from server.front.guarded import ALICE, ALICE_LINE, BOB, BOB_LINE, CANARY, SECRETS, Guarded
from server.front.scripted import inference


def test_tenants_share_no_answers(guarded: Guarded) -> None:
    def ask(key: str) -> bool:
        cached: bool = guarded.infer("what is cached for whom", key, max_tokens=3, temperature=0).json()["cached"]
        return cached

    assert [ask(key) for key in (ALICE, BOB, ALICE, BOB)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("/api/v1/infer", {"prompt": "a"}),
        ("/v1/completions", {"model": "tiny", "prompt": "a"}),
        ("/v1/completions", {"model": "tiny", "prompt": "a", "stream": True}),
    ],
)
async def test_the_scheduler_is_told_whose_request_it_is(tmp_path: Path, path: str, question: dict[str, object]) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{ALICE_LINE}\n{BOB_LINE}\n")
    server, engine = inference()
    engine.surprise = QuarantinedRequest("as far as it needs to go")
    server.text = Text(fake_model.tokenizer())
    app = client_app(server, drain_began=lambda: None, keys=KeyRing(file))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for key in (ALICE, BOB):
            await client.post(path, json={"max_tokens": 2, **question}, headers={"authorization": f"Bearer {key}"})
    assert [request.tenant for request in engine.submitted] == ["alice", "bob"]


def test_what_each_tenant_used_is_counted_where_no_client_looks(guarded: Guarded) -> None:
    def use(tenant: str) -> list[float]:
        names = ("llm_tenant_requests_total", "llm_tenant_prompt_tokens_total", "llm_tenant_generated_tokens_total")
        return [guarded.used(name, tenant=tenant) for name in names]

    before = {tenant: use(tenant) for tenant in ("alice", "bob")}
    assert guarded.infer("four", BOB, max_tokens=5, use_cache=False, temperature=0).json()["tokens_generated"] == 5
    prompts = {"model": "tiny", "prompt": ["ab", "cde"], "n": 2, "max_tokens": 3, "ignore_eos": True}
    assert guarded.request("POST", "/v1/completions", BOB, json=prompts).status_code == 200
    assert guarded.infer("", BOB).status_code == 400
    grown = {tenant: [now - then for now, then in zip(use(tenant), before[tenant], strict=True)] for tenant in before}
    assert grown == {"alice": [0, 0, 0], "bob": [3, 4 + 2 + 3, 5 + 2 * 2 * 3]}
    seen = guarded.get("/metrics", headers={"accept": "text/plain"}).text
    assert "llm_requests_total" in seen
    for hidden in ("alice", "bob", "llm_tenant", "llm_auth"):
        assert hidden not in seen
        assert hidden not in guarded.get("/metrics").text


def test_however_many_tenants_come_the_series_are_bounded() -> None:
    registry = CollectorRegistry()
    usage = Usage(registry)
    for number in range(3 * MOST_TENANTS):
        usage.asked(f"tenant-{number}")
        usage.generated(f"tenant-{number}", 2)
    usage.generated("", 7)
    samples = [sample for family in registry.collect() for sample in family.samples if sample.name == "llm_tenant_generated_tokens_total"]
    assert len(samples) == MOST_TENANTS + 1
    assert sum(sample.value for sample in samples) == 2 * 3 * MOST_TENANTS, "nothing is lost, and nobody in particular is nobody"
    assert registry.get_sample_value("llm_tenant_requests_total", {"tenant": "other"}) == 2 * MOST_TENANTS


def test_a_client_that_leaves_before_the_end_has_used_its_prompt(guarded: Guarded) -> None:
    def prompt_tokens() -> float:
        return guarded.used("llm_tenant_prompt_tokens_total", tenant="bob")

    before = prompt_tokens()
    question = {"model": "tiny", "prompt": "ninechars", "max_tokens": 400, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {BOB}"}
    with guarded.server.client() as client, client.stream("POST", "/v1/completions", json=question, headers=headers) as stream:
        assert next(stream.iter_lines())
    guarded.server.wait_for(lambda: guarded.server.load()["running"] == 0)
    assert prompt_tokens() - before == len("ninechars")


def test_the_log_says_who_asked_and_never_what_nor_with_which_key(guarded: Guarded) -> None:
    wrong = "mr-wrong-key-of-somebody"
    identity = {"x-request-id": "look-me-up"}
    answer = guarded.request("POST", "/api/v1/infer", ALICE, json={"prompt": CANARY, "max_tokens": 2}, headers=identity)
    assert answer.status_code == 200
    assert guarded.request("POST", f"/{CANARY}%1b%5b2J?{CANARY}", wrong, json={"prompt": CANARY}).status_code == 401

    def logged(**fields: object) -> list[dict[str, Any]]:
        return [line for line in guarded.server.log_lines() if line["message"] == "request" and fields.items() <= line.items()]

    (line,) = guarded.server.wait_for(lambda: logged(request_id="look-me-up"))
    assert set(line) == {"time", "level", "logger", "message", "method", "endpoint", "status", "seconds", "request_id", "tenant"}
    assert (line["tenant"], line["endpoint"], line["status"], line["method"]) == ("alice", "/api/v1/infer", 200, "POST")
    assert line["seconds"] > 0
    assert guarded.server.wait_for(lambda: logged(status=401))[-1]["tenant"] == ""
    log = guarded.server.log()
    for secret in (CANARY, ALICE, BOB, wrong, ALICE_LINE.split(":")[1], BOB_LINE.split(":")[1]):
        assert secret not in log


def test_neither_the_engine_nor_the_template_is_told_a_secret(guarded: Guarded) -> None:
    children = psutil.Process(guarded.server.process.pid).children(recursive=True)
    told = {child.cmdline()[2]: Path(f"/proc/{child.pid}/environ").read_bytes() for child in children}
    assert sorted(told) == ["millrace_server.chat.process", "millrace_server.engine.process"]
    for environment in told.values():
        names = {variable.partition(b"=")[0].decode() for variable in environment.split(b"\0")}
        assert names.isdisjoint({*SECRETS, "CACHE_TYPE", "API_KEYS_FILE", "PORT", "TERMINATION_LOG"})
        assert CANARY.encode() not in environment
        assert str(guarded.file).encode() not in environment
    engine = dict(variable.split(b"=", 1) for variable in told["millrace_server.engine.process"].split(b"\0") if variable)
    assert (engine[b"MODEL_NAME"], engine[b"BATCH_TIMEOUT_MS"], engine[b"OMP_NUM_THREADS"]) == (b"tiny", b"7", b"1")
    assert engine[b"PATH"] == os.environ["PATH"].encode()
