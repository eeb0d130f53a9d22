"""SIGTERM in the middle of many clients' requests, plain and streamed: whoever was let in gets a whole answer."""

import asyncio
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

import fake_model
from running_server import RunningServer

CLIENTS = 12
ANSWERS_BEFORE = 24
TOKENS = 40


async def ask(client: httpx.AsyncClient, number: int) -> str:
    """How it ended: "whole", "draining" or "full"; anything else fails."""
    body = {"model": "tiny", "prompt": f"question {number}", "max_tokens": TOKENS, "temperature": 1, "stream": number % 2 == 0}
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        text = (await answer.aread()).decode()
    if answer.status_code == 503:
        code: str = json.loads(text)["error"]["code"]
        assert code in ("draining", "queue_full")
        return code
    assert answer.status_code == 200, text
    if number % 2:
        assert json.loads(text)["usage"]["completion_tokens"] == TOKENS
        return "whole"
    *events, last, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert all("error" not in json.loads(event.removeprefix("data: ")) for event in events)
    return "whole"


async def test_a_drain_under_load_breaks_no_answer(tmp_path: Path) -> None:
    model = fake_model.build(tmp_path / "model", eos_token_id=None)
    settings = {"MAX_BATCH_SIZE": "2", "MAX_QUEUE_SIZE": "100", "DRAIN_SECONDS": "60"}
    ended: Counter[str] = Counter()
    after: Counter[str] = Counter()
    with RunningServer(tmp_path / "server", model=model, settings=settings) as server, ThreadPoolExecutor(1) as pool:
        server.wait_ready()
        exit_code: list[asyncio.Future[int]] = []

        async def keep_asking(first: int) -> None:
            limits = httpx.Limits(max_connections=1)
            url = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=url, limits=limits, trust_env=False, timeout=120) as client:
                for number in range(first, 1_000_000, CLIENTS + 1):
                    came_late = bool(exit_code)
                    try:
                        how = await ask(client, number)
                    except httpx.ConnectError:
                        how = "gone"
                    (after if came_late else ended)[how] += 1
                    if how in ("gone", "draining"):
                        return
                    if not exit_code and ended["whole"] >= ANSWERS_BEFORE:
                        exit_code.append(asyncio.get_running_loop().run_in_executor(pool, server.terminate))

        await asyncio.gather(*(keep_asking(first) for first in range(CLIENTS)))
        assert await exit_code[0] == 0
    assert ended["whole"] >= ANSWERS_BEFORE + CLIENTS - 1, "those that ran or waited when the signal came"
    assert after["gone"] + after["draining"] > 0
