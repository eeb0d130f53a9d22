"""Parts that the front's tests share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from running_server import RunningServer
from server.front.guarded import ALICE_LINE, BOB_LINE, SECRETS, Guarded


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Guarded]:
    """Shared by the session: leave it idle and its keys as they were, and count differences."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys"
    file.write_text(f"{ALICE_LINE}\n{BOB_LINE}\n")
    settings = {**SECRETS, "API_KEYS_FILE": str(file), "HEAD_TIMEOUT": "1", "MAX_BODY_BYTES": "20000", "BATCH_TIMEOUT_MS": "7"}
    with RunningServer(folder / "server", model=tiny_model, settings=settings) as server:
        yield Guarded(server.wait_ready(), file)


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    """The official one, on the session's server."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(server: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
