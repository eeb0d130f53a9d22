"""One of ten tenants asks for far more than its share."""

import asyncio
import time
from pathlib import Path

import httpx

import fake_model
from millrace_server.keys.entries import make
from running_server import RunningServer

OTHERS = 9
ASKED_BY_OTHERS = 2
ASKED_BY_GREEDY = 60
MOST_TURNS = 6
"""Of the greedy one before everybody else is served: one in each round, and some for answers that overtake each other on their way."""


async def test_a_greedy_tenant_waits_while_the_others_are_served(tmp_path: Path) -> None:
    model = fake_model.build(tmp_path / "model", max_position_embeddings=32_768, eos_token_id=None)
    pairs = {name: make(name) for name in ("greedy", *(f"other-{number}" for number in range(OTHERS)))}
    file = tmp_path / "keys"
    file.write_text("\n".join(line for _, line in pairs.values()))
    settings = {"API_KEYS_FILE": str(file), "MAX_BATCH_SIZE": "1", "MAX_QUEUE_SIZE": "200", "REQUEST_TIMEOUT": "600"}
    served: list[str] = []
    with RunningServer(tmp_path / "server", model=model, settings=settings) as server:
        server.wait_ready()
        limits = httpx.Limits(max_connections=200)
        url = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=url, limits=limits, trust_env=False, timeout=300) as client:

            async def ask(tenant: str, number: int, tokens: int = 8) -> None:
                body = {"prompt": f"{tenant} {number}", "max_tokens": tokens, "temperature": 0, "use_cache": False}
                answer = await client.post("/api/v1/infer", json=body, headers={"authorization": f"Bearer {pairs[tenant][0]}"})
                assert answer.status_code == 200, answer.text
                served.append(tenant)

            async def load(*, running: int, queued: int) -> None:
                deadline = time.monotonic() + 60
                while not {"running": running, "queued": queued}.items() <= server.load().items():
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.02)

            holder = asyncio.create_task(ask("greedy", 0, tokens=30_000))
            await load(running=1, queued=0)
            asked = [asyncio.create_task(ask("greedy", number)) for number in range(1, ASKED_BY_GREEDY + 1)]
            await load(running=1, queued=ASKED_BY_GREEDY)
            asked += [asyncio.create_task(ask(name, number)) for name in pairs if name != "greedy" for number in range(ASKED_BY_OTHERS)]
            await load(running=1, queued=ASKED_BY_GREEDY + OTHERS * ASKED_BY_OTHERS)
            holder.cancel()
            await asyncio.gather(*asked)
    last_other = max(place for place, tenant in enumerate(served) if tenant != "greedy")
    assert served[:last_other].count("greedy") <= MOST_TURNS
