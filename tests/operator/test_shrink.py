"""Kubernetes' own controllers take the replicas that were marked to go first."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from millrace_operator.cluster import Cluster
from millrace_operator.connection import Conflict, Connection, configuration
from millrace_operator.manifest import Manifest
from millrace_operator.victims import DELETION_COST, marks
from millrace_operator.workqueue import TokenBucket
from operators import Api, Process, cpu_service, eventually

pytestmark = pytest.mark.apiserver

READY_SINCE = "2026-01-01T11:00:00Z"


@pytest.fixture
async def cluster(api: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("KUBECONFIG", str(api.control_plane.kubeconfig))
    connection = Connection(await configuration())
    bucket = TokenBucket(per_second=100, burst=100)
    yield Cluster(connection, guard=lambda: None, bucket=bucket, read_timeout=20, write_timeout=20)
    await connection.close()


@pytest.fixture
def node(api: Api) -> Iterator[str]:
    """Where pods run, as far as the controllers can tell."""
    name = api.namespace
    assert api.client.post("/api/v1/nodes", json={"metadata": {"name": name}}).status_code == 201
    yield name
    api.delete(f"/api/v1/nodes/{name}")


def pods(api: Api) -> list[Manifest]:
    items: list[Manifest] = api.client.get(f"/api/v1/namespaces/{api.namespace}/pods").json()["items"]
    return items


def leaving(api: Api) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods(api) if "deletionTimestamp" in pod["metadata"]}


def serve(api: Api, pod: Manifest, node: str, address: str) -> None:
    """As a scheduler and a kubelet would."""
    path = f"/api/v1/namespaces/{api.namespace}/pods/{pod['metadata']['name']}"
    bound = api.client.post(
        f"{path}/binding", json={"metadata": {"name": pod["metadata"]["name"]}, "target": {"kind": "Node", "name": node}}
    )
    assert bound.status_code == 201, bound.text
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": READY_SINCE}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [ready]}
    api.patch(f"{path}/status", {"status": status})


async def test_a_shrink_takes_the_marked_replicas(api: Api, shared_operator: Process, cluster: Cluster, node: str) -> None:
    def prepare() -> dict[str, str]:
        api.create(cpu_service(autoscaling={"mode": "None"}, replicas=4))
        eventually(lambda: len(pods(api)) == 4, "four pods")
        addresses = {pod["metadata"]["name"]: f"10.0.0.{number}" for number, pod in enumerate(pods(api))}
        for pod in pods(api):
            serve(api, pod, node, addresses[pod["metadata"]["name"]])
        return addresses

    addresses = await asyncio.to_thread(prepare)
    first, second, *others = sorted(addresses)
    loads = {address: 0 if name in (first, second) else 3 for name, address in addresses.items()}
    await cluster.refresh([api.namespace])
    seen = await cluster.observe((api.namespace, "chat"))
    assert seen is not None
    for pod, cost in marks(seen.pods, loads, leaving=2):
        await cluster.mark(pod, DELETION_COST, cost)

    def shrink() -> None:
        api.edit({"spec": {"replicas": 2}})
        eventually(lambda: len(leaving(api)) == 2, "two go")
        assert leaving(api) == {first, second}

    await asyncio.to_thread(shrink)
    await cluster.mark(next(pod for pod in seen.pods if pod["metadata"]["name"] == others[0]), DELETION_COST, None)
    gone = {"metadata": {"name": "gone", "namespace": api.namespace, "uid": "of-one-that-never-was"}}
    with pytest.raises(Conflict):
        await cluster.mark(gone, DELETION_COST, None)
