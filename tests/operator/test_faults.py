"""What breaks between the operator and a real API server: killed at any write, an outage, watches that are deaf or miss what happens."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from millrace_operator.names import LEASE
from operators import Api, Process, cpu_service, eventually, writes
from proxy import Proxy

pytestmark = pytest.mark.apiserver

Start = Callable[..., Process]
CHILDREN = (
    ("services", "chat"),
    ("services", "chat-metrics"),
    ("services", "chat-redis"),
    ("networkpolicies", "chat"),
    ("networkpolicies", "chat-redis"),
    ("poddisruptionbudgets", "chat"),
    ("deployments", "chat-redis"),
    ("deployments", "chat"),
)


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[Proxy]:
    with Proxy(control_plane) as proxy:
        yield proxy


def uids(api: Api) -> dict[tuple[str, str], str]:
    return {child: found["metadata"]["uid"] for child in CHILDREN if (found := api.get(*child))}


def is_whole(api: Api) -> bool:
    return len(uids(api)) == len(CHILDREN) and api.is_complete() and api.condition("Ready") == ("False", "Starting")


def test_an_operator_that_is_killed_at_any_write_of_a_first_pass_leaves_work_that_the_next_one_ends(
    api: Api, proxy: Proxy, start: Start, tmp_path: Path
) -> None:
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{api.namespace}/leases/{LEASE}"
    number, made = 0, uids(api)
    api.create(cpu_service(cache={"type": "redis"}, monitoring={"enabled": False}))
    while True:
        number += 1
        doomed = start(KUBECONFIG=str(proxy.kubeconfig(tmp_path)))
        proxy.after_write = lambda _, doomed=doomed: doomed.process.kill()  # type: ignore[misc]
        eventually(lambda doomed=doomed: doomed.process.poll() is not None or is_whole(api), f"it dies at write {number}")  # type: ignore[misc]
        if doomed.process.poll() is None:
            break
        before, made = made, uids(api)
        assert before.items() <= made.items(), "nothing is made twice"
        api.client.delete(lease)  # else each of them would wait until the dead one's has ended
    assert number > len(CHILDREN)
    doomed.stop()
    last = start()
    last.wait_until_it_leads()
    last.wait_for_lists(2)
    settled = writes(api.control_plane)
    last.wait_for_lists(2)
    assert writes(api.control_plane) == settled
    assert uids(api) == made
    assert len(api.client.get(api.path("secrets", "")).json()["items"]) == 1


def test_a_service_that_is_deleted_at_any_write_of_its_first_pass_is_outlived_by_no_child(
    api: Api, proxy: Proxy, start: Start, tmp_path: Path
) -> None:
    operator = start(KUBECONFIG=str(proxy.kubeconfig(tmp_path)))
    operator.wait_until_it_leads()
    deleted: set[str] = set()

    def is_deleted_at(number: int) -> bool:
        """False when a first pass ends with fewer writes."""
        name = f"chat-{number:02}"

        def delete(_: int) -> None:
            if name not in deleted and sum(name in path for _, path in proxy.writes) >= number:
                deleted.add(name)
                api.delete(f"{api.root}/{name}")

        def is_over() -> bool:
            answer = api.client.get(f"{api.root}/{name}")
            return name in deleted or (answer.is_success and answer.json()["status"]["observedGeneration"] == 1)

        proxy.after_write = delete
        api.create(cpu_service(name, cache={"type": "redis"}, monitoring={"enabled": False}))
        eventually(is_over, f"it goes at write {number}")
        return name in deleted

    writes_of_a_pass = next(number for number in itertools.count() if not is_deleted_at(number + 1))
    assert writes_of_a_pass > len(CHILDREN)
    api.client.delete(f"{api.root}/chat-{writes_of_a_pass + 1:02}")

    def left() -> list[str]:
        kinds = sorted({kind for kind, _ in CHILDREN} | {"secrets"})
        return [each["metadata"]["name"] for kind in kinds for each in api.client.get(api.path(kind, "")).json()["items"]]

    # Kubernetes' collector looks for new definitions, such as ours, every 30 s, and is patient with what it does not know yet.
    eventually(lambda: left() == [], lambda: f"left are {left()}", seconds=120)
    operator.wait_for_lists(2)
    assert left() == [], "nothing is made again"
    assert 'name="chat-' not in operator.get("/metrics").text
    assert operator.failures() == []


def test_an_outage_ends_the_leader_and_the_next_one_waits_for_its_end_and_does_what_was_left(
    api: Api, proxy: Proxy, start: Start, tmp_path: Path
) -> None:
    through = {"KUBECONFIG": str(proxy.kubeconfig(tmp_path))}
    operator = start(**through)
    operator.wait_until_it_leads()
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    proxy.go_down()
    eventually(lambda: operator.process.poll() == 1, "who cannot renew ends")
    second = start(**through)
    eventually(lambda: second.said("probes and metrics"), "the second is up")
    api.delete(api.path("services", "chat"))
    api.edit({"spec": {"image": "other:1"}})
    assert second.process.poll() is None
    proxy.come_back()
    eventually(lambda: api.has("services", "chat") and api.image() == "other:1", "what happened meanwhile is answered")
    assert second.process.poll() is None


LONG_LEASE = {"MILLRACE_LEASE_SECONDS": "60", "MILLRACE_LEASE_RENEW_SECONDS": "50", "MILLRACE_RESYNC_SECONDS": "600"}
"""Who lives through the fault, and has nothing but its watches to learn of it."""


def test_what_was_deleted_in_a_gap_of_the_watches_is_noticed(api: Api, proxy: Proxy, start: Start, tmp_path: Path) -> None:
    operator = start(KUBECONFIG=str(proxy.kubeconfig(tmp_path)), **LONG_LEASE)
    operator.wait_until_it_leads()
    for name in ("chat", "gone"):
        api.create(cpu_service(name))
        eventually(lambda name=name: api.is_complete(name), "children exist")  # type: ignore[misc]
    eventually(lambda: 'name="gone"' in operator.get("/metrics").text, "both are told")
    proxy.go_down()
    api.delete(api.path("services", "chat"))
    api.delete(f"{api.root}/gone")
    proxy.forget_what_happened()
    proxy.come_back()
    eventually(lambda: api.has("services", "chat"), "the child that is missing is made again")
    eventually(lambda: 'name="gone"' not in operator.get("/metrics").text, "nothing is told any more of what has gone")


def test_a_watch_that_went_deaf_is_noticed_by_its_silence(api: Api, proxy: Proxy, start: Start, tmp_path: Path) -> None:
    operator = start(KUBECONFIG=str(proxy.kubeconfig(tmp_path)), **LONG_LEASE, MILLRACE_WATCH_SILENCE_SECONDS="4")
    operator.wait_until_it_leads()
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    proxy.is_mute.set()
    begun = proxy.watches
    api.delete(api.path("services", "chat"))
    eventually(lambda: proxy.watches > begun, "a watch is begun anew")
    proxy.is_mute.clear()
    eventually(lambda: api.has("services", "chat"), "what it did not say is noticed")
