"""How the operator's parts hold together when one of them ends or the API server is against them, with an API server that is played."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_api import Answer, FakeApi, Lease
from millrace_operator.desired import CHILD_KINDS
from millrace_operator.lease import Leadership
from millrace_operator.manifest import Manifest
from millrace_operator.names import PAUSED_ANNOTATION
from millrace_operator.process import run
from millrace_operator.settings import OperatorSettings
from millrace_operator.workqueue import WorkQueue
from operators import FAST, Process, cpu_service, eventually
from services import stored

Start = Callable[[FakeApi], Process]
LIST = "/inferenceservices"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start_one(api: FakeApi, **environment: str) -> Process:
        started.append(Process({**FAST, "KUBECONFIG": str(api.kubeconfig(tmp_path)), **environment}, tmp_path / "operator.log"))
        return started[-1]

    yield start_one
    for each in started:
        each.process.kill()
        each.process.wait()


def only(lease: Lease) -> Answer:
    return lambda method, path, body: lease.answer(method, body) if "/leases" in path else (503, {})


async def run_against(api: FakeApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code. Nothing can be listed, so that no watch begins."""
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(folder)))
    ours = asyncio.all_tasks()
    async with asyncio.timeout(10):
        code = await run(OperatorSettings.from_environment(FAST))
    for left in (tasks := asyncio.all_tasks() - ours):
        left.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return code


@pytest.mark.parametrize(("owner", "part"), [(Leadership, "keep"), (WorkQueue, "run")])
@pytest.mark.parametrize("error", [ValueError("a defect"), None], ids=["breaks", "returns"])
async def test_a_part_that_ends_by_itself_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, part: str, error: Exception | None
) -> None:
    async def ends(*_: object) -> None:
        if error:
            raise error

    monkeypatch.setattr(owner, part, ends)
    lease = Lease()
    with FakeApi(only(lease)) as api:
        assert await run_against(api, tmp_path, monkeypatch) == 1
    assert lease.stored is not None
    assert lease.stored["spec"]["holderIdentity"] == "", "the Lease is released"


def cluster_of(services: Callable[[], list[Manifest]], *, child: tuple[int, Manifest]) -> Answer:
    """`child` answers every creation of a child; there are none yet."""
    lease = Lease()

    def answer(method: str, path: str, body: Manifest) -> tuple[int, Manifest | bytes]:
        if "/leases" in path:
            return lease.answer(method, body)
        if path.endswith(LIST):
            return 200, {"metadata": {}, "items": services()}
        if path.endswith((f"{LIST}/chat", "/pods", *(f"/{kind.plural}" for kind in CHILD_KINDS))):
            nothing = {"metadata": {"resourceVersion": "1"}, "items": []}
            found = next(iter(services()), None) if path.endswith("/chat") else nothing
            return (200, found) if found else (404, {})
        if path.endswith(f"{LIST}/chat/status"):
            return 200, body
        if path.endswith(("/chat", "/chat-metrics")):
            return child if method == "PATCH" else (404, {})
        return 503, {}  # to kopf's questions, so that no watch begins

    return answer


def test_a_service_that_vanished_from_the_list_gets_a_pass_for_it_may_have_been_made_again(start: Start) -> None:
    chat = stored(cpu_service())
    chat["metadata"]["annotations"] = {PAUSED_ANNOTATION: "true"}  # nothing to write, and so nothing to try again
    asked: list[None] = []

    def listed_and_read() -> list[Manifest]:
        asked.append(None)
        return [chat] if len(asked) <= 2 else []

    with FakeApi(cluster_of(listed_and_read, child=(403, {}))) as api:
        start(api)
        eventually(lambda: api.count("GET", f"{LIST}/chat") >= 2, "a pass also after the list without it")


@pytest.mark.parametrize(("code", "reason"), [(409, "Conflict"), (404, "NotFound")], ids=["modified", "gone"])
def test_a_conflict_without_end_is_tried_later_and_later(start: Callable[..., Process], code: int, reason: str) -> None:
    child = (code, {"reason": reason, "message": "not as it was seen"})
    with FakeApi(cluster_of(lambda: [stored(cpu_service())], child=child)) as api:
        never_again = {"MILLRACE_FIRST_RETRY_SECONDS": "86400", "MILLRACE_LAST_RETRY_SECONDS": "86400", "MILLRACE_RESYNC_SECONDS": "0.1"}
        operator = start(api, **never_again)
        eventually(lambda: api.count("PATCH", "/chat") == 1, "the first pass")
        seen = api.count("GET", LIST)
        eventually(lambda: api.count("GET", LIST) >= seen + 10, "ten more lists, each of which asks for a pass")
        assert operator.metric('millrace_passes_total{outcome="conflict"}') == 1
        assert api.count("PATCH", "/chat") == 1
        assert not operator.said("retried"), "a conflict is no news"


def test_a_loop_whose_passes_never_end_fails_livez_and_a_refused_pass_does_not(start: Callable[..., Process]) -> None:
    hangs = threading.Event()
    usual = cluster_of(lambda: [stored(cpu_service())], child=(403, {}))

    def answer(method: str, path: str, body: Manifest) -> tuple[int, Manifest | bytes]:
        if path.endswith(f"{LIST}/chat"):
            while hangs.is_set():
                time.sleep(0.02)
        return usual(method, path, body)

    with FakeApi(answer) as api:
        operator = start(api, MILLRACE_STALL_SECONDS="1.5", MILLRACE_PASS_SECONDS="0.3", MILLRACE_LAST_RETRY_SECONDS="1")
        eventually(lambda: api.count("PATCH", "/chat") >= 3, "passes that are refused")
        assert operator.get("/livez").status_code == 200
        hangs.set()
        eventually(lambda: operator.get("/livez").status_code == 503, "the loop is seen to be stuck")
        assert "no pass has come to an end" in operator.get("/livez").text
        hangs.clear()
        eventually(lambda: operator.get("/livez").status_code == 200, "it works again")
