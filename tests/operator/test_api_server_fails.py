"""An API server that answers, but not as it should: busy, full, with failures in its watches, or with a definition that is gone."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cluster.control_plane import ControlPlane
from operators import DEADLINE, Api, Process, cpu_service, eventually
from proxy import Fault, Proxy, failure, watch_error
from services import CHECKOUT

pytestmark = pytest.mark.apiserver

Start = Callable[..., Process]
PATIENT = {"MILLRACE_LEASE_SECONDS": "60", "MILLRACE_LEASE_RENEW_SECONDS": "50", "MILLRACE_RESYNC_SECONDS": "600"}
"""Who keeps the Lease for long, and has nothing but its watches to learn what happens."""


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[Proxy]:
    with Proxy(control_plane) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy, start: Start, tmp_path: Path) -> Callable[..., Process]:
    """Starts an operator behind the proxy."""

    def start_one(**environment: str) -> Process:
        operator = start(KUBECONFIG=str(proxy.kubeconfig(tmp_path)), **{**PATIENT, **environment})
        operator.wait_until_it_leads()
        return operator

    return start_one


def test_an_api_server_that_is_unavailable_is_asked_less_and_less(api: Api, proxy: Proxy, through: Start) -> None:
    operator = through(MILLRACE_RESYNC_SECONDS="0.3", MILLRACE_FIRST_RETRY_SECONDS="0.3")
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    asked: Counter[str] = Counter()

    def unavailable(method: str, path: str) -> Fault | None:
        place = urlsplit(path).path.rpartition("/")[2]
        asked["/leases/" if "/leases" in path else place] += 1
        return None if "/leases" in path else failure(503, "ServiceUnavailable")

    proxy.fault = unavailable
    proxy.cut_watches()
    eventually(lambda: asked["/leases/"] >= 40, "some 12 seconds have passed", seconds=120)
    lists = {place: count for place, count in asked.items() if place in ("inferenceservices", "deployments", "pods", "services")}
    assert lists
    assert all(count <= 15 for count in lists.values()), f"by a fixed pace it would be some 40: {lists}"
    api.delete(api.path("services", "chat"))
    proxy.fault = lambda method, path: None
    eventually(lambda: api.has("services", "chat"), "it goes on where it was", seconds=60)
    assert operator.process.poll() is None
    assert not operator.failures()


def test_who_is_told_to_wait_waits_whatever_happens_meanwhile(api: Api, proxy: Proxy, through: Start) -> None:
    through()
    refused: list[float] = []
    tried: list[float] = []

    def busy(method: str, path: str) -> Fault | None:
        if method != "PATCH" or "/deployments/" not in path:
            return None
        if refused:
            tried.append(time.monotonic())
            return None
        refused.append(time.monotonic())
        return failure(429, "TooManyRequests", Retry_After="4")

    proxy.fault = busy
    api.create(cpu_service())
    eventually(lambda: refused, "the Deployment is refused")
    api.edit({"spec": {"image": "other:1"}})
    eventually(lambda: api.has("deployments", "chat") and api.image() == "other:1", "it is made")
    assert tried[0] - refused[0] >= 4


def test_watches_that_are_cut_again_and_again_miss_nothing_and_make_no_storm(api: Api, proxy: Proxy, through: Start) -> None:
    operator = through()
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    eventually(lambda: proxy.watches >= 6, "every kind is watched")
    cuts, begun = 10, proxy.watches
    for _ in range(cuts):
        proxy.cut_watches()
        api.delete(api.path("services", "chat"))
        eventually(lambda: api.has("services", "chat"), "what happens in the gap is noticed")
    assert proxy.watches - begun <= 2 * 6 * cuts
    assert operator.process.poll() is None


def test_a_watch_that_fails_is_begun_anew_by_this_process_or_the_next(api: Api, proxy: Proxy, through: Start) -> None:
    operator = through(MILLRACE_LEASE_SECONDS="4", MILLRACE_LEASE_RENEW_SECONDS="2.5")
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    failed: list[str] = []

    def once(method: str, path: str) -> Fault | None:
        if "watch=true" not in path or "/services" not in path or failed:
            return None
        failed.append(path)
        return watch_error(500, "InternalError")

    proxy.fault = once
    proxy.cut_watches()
    eventually(lambda: failed, "a watch fails")
    api.delete(api.path("services", "chat"))
    api.edit({"spec": {"image": "other:1"}})

    def is_mended() -> bool:
        return api.has("services", "chat") and api.image() == "other:1"

    eventually(lambda: is_mended() or operator.process.poll() is not None, "it goes on, or ends for a new one")
    if operator.process.poll() is not None:
        through(MILLRACE_LEASE_SECONDS="4", MILLRACE_LEASE_RENEW_SECONDS="2.5")
    eventually(is_mended, "nothing is missed")


def test_an_answer_that_is_older_than_what_was_seen_rolls_nothing_back(api: Api, proxy: Proxy, through: Start) -> None:
    through()
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    old = Fault(200, api.client.get(f"{api.root}/chat").content)
    api.edit({"spec": {"image": "other:1"}})
    eventually(lambda: api.image() == "other:1" and api.is_complete(), "the edit is applied")
    before = (api.get("deployments", "chat") or {})["metadata"]["generation"]
    told: list[str] = []

    def late(method: str, path: str) -> Fault | None:
        if (method, path) != ("GET", f"{api.root}/chat") or len(told) == 3:
            return None
        told.append(path)
        return old

    proxy.fault = late
    api.delete(api.path("services", "chat"))
    eventually(lambda: len(told) == 3 and api.has("services", "chat"), "it asks until the answer is a new one")
    assert (api.get("deployments", "chat") or {})["metadata"]["generation"] == before


def test_a_store_that_is_full_is_read_and_written_again_when_there_is_room(api: Api, proxy: Proxy, through: Start) -> None:
    operator = through()
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    attempts: list[str] = []

    def full(method: str, path: str) -> Fault | None:
        if method == "GET" or "/leases" in path:
            return None
        attempts.append(path)
        return failure(500, "InternalError", "etcdserver: mvcc: database space exceeded")

    proxy.fault = full
    api.edit({"spec": {"image": "other:1"}})
    eventually(lambda: len(attempts) >= 3, "it tries")
    assert operator.get("/livez").status_code == 200
    proxy.fault = lambda method, path: None
    eventually(lambda: api.image() == "other:1" and api.service()["status"]["observedGeneration"] == 2, "it is written")
    assert not operator.failures()


def test_a_definition_that_is_deleted_ends_the_process_and_the_next_one_waits_for_it(
    api: Api, control_plane: ControlPlane, operator: Process, start: Start
) -> None:
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    try:
        control_plane.kubectl("delete", "crd", "inferenceservices.millrace.dev", "--timeout=60s")
        assert operator.process.wait(timeout=DEADLINE) == 1
        second = start()
        second.wait_until_it_leads()
        eventually(lambda: second.said("no full list"), "it says what is missing")
        assert second.get("/livez").status_code == 200
    finally:
        control_plane.kubectl("apply", "-f", str(CHECKOUT / "crds"))
        control_plane.kubectl("wait", "--for=condition=Established", "crd/inferenceservices.millrace.dev", "--timeout=60s")
    eventually(lambda: not api.has("deployments", "chat"), "the children are collected", seconds=120)
    eventually(lambda: api.client.post(api.root, json=cpu_service("anew")).status_code == 201, "services can be made")
    eventually(lambda: api.is_complete("anew"), "the same process serves them", seconds=60)


def test_a_thousand_edits_are_a_few_passes_and_the_last_one_holds(api: Api, start: Start) -> None:
    operator = start(MILLRACE_COALESCE_SECONDS="0.15", **PATIENT)
    operator.wait_until_it_leads()
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    before, began = operator.passes(), time.monotonic()
    for number in range(1000):
        api.edit({"spec": {"image": f"image:{number}"}})
    eventually(lambda: api.image() == "image:999", "the last edit")
    elapsed = time.monotonic() - began
    assert operator.passes() - before <= elapsed / 0.15 + 5
