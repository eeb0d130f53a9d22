"""A leader that was frozen between its decision and its write: what it sends then meets what the next leader has written."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest

from millrace_operator.api import parse
from millrace_operator.cluster import Cluster, Observed
from millrace_operator.connection import Conflict, Connection, configuration
from millrace_operator.desired import children
from millrace_operator.lease import NotLeader
from millrace_operator.manifest import Manifest
from millrace_operator.names import HASH_ANNOTATION
from millrace_operator.workqueue import TokenBucket
from operators import DEADLINE, Api, cpu_service
from services import PLATFORM

pytestmark = pytest.mark.apiserver


@pytest.fixture
async def connection(api: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connection]:
    monkeypatch.setenv("KUBECONFIG", str(api.control_plane.kubeconfig))
    connection = Connection(await configuration())
    yield connection
    await connection.close()


def guarded(connection: Connection, guard: Callable[[], None]) -> Cluster:
    return Cluster(connection, guard=guard, bucket=TokenBucket(per_second=100, burst=100), read_timeout=20, write_timeout=20)


@pytest.fixture
def cluster(connection: Connection) -> Cluster:
    """As if its guard had been asked long ago."""
    return guarded(connection, lambda: None)


async def look(cluster: Cluster, api: Api) -> Observed:
    await cluster.refresh([api.namespace])
    seen = await cluster.observe((api.namespace, "chat"))
    assert seen is not None
    return seen


def wish(seen: Observed, **spec: object) -> tuple[Manifest, ...]:
    """Without the child whose kind this cluster does not have."""
    unmonitored = {"monitoring": {"enabled": False}}
    return children(parse({**seen.manifest, "spec": {**seen.manifest["spec"], **unmonitored, **spec}}), platform=PLATFORM)


async def until_applied(cluster: Cluster, api: Api, kind: str, name: str, **spec: object) -> None:
    """The Deployment's controller writes too, and whoever meets it looks again."""
    async with asyncio.timeout(DEADLINE):
        while True:
            seen = await look(cluster, api)
            (child,) = [each for each in wish(seen, **spec) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
            with suppress(Conflict):
                await cluster.apply(child, seen.child(kind, name))
                return


async def test_every_late_write_is_refused(api: Api, cluster: Cluster) -> None:
    await asyncio.to_thread(api.create, cpu_service())
    first = await look(cluster, api)
    for child in wish(first):
        await cluster.apply(child, None)
    frozen = await look(cluster, api)
    edited = (("Deployment", "chat"), ("Service", "chat"))
    for name in edited:
        await until_applied(cluster, api, *name, image="next-leader:1", service={"annotations": {"a": "b"}})
    await cluster.write_status(frozen.manifest, {"observedGeneration": 1})
    for child in wish(frozen, image="frozen:1", service={"annotations": {"a": "c"}}):
        if (child["kind"], child["metadata"]["name"]) in edited:
            with pytest.raises(Conflict):
                await cluster.apply(child, frozen.child(child["kind"], "chat"))
            with pytest.raises(Conflict):
                await cluster.prune(frozen.child(child["kind"], "chat") or {})
    with pytest.raises(Conflict):
        await cluster.scale(frozen.child("Deployment", "chat") or {}, 7)
    with pytest.raises(Conflict):
        await cluster.write_status(frozen.manifest, {"observedGeneration": 0})
    assert await asyncio.to_thread(api.image) == "next-leader:1"


async def test_a_late_write_makes_no_child_anew(api: Api, cluster: Cluster) -> None:
    await asyncio.to_thread(api.create, cpu_service())
    for child in wish(await look(cluster, api)):
        await cluster.apply(child, None)
    frozen = await look(cluster, api)
    await asyncio.to_thread(api.delete, api.path("services", "chat"))
    for child in wish(frozen, service={"annotations": {"a": "b"}}):
        if (child["kind"], child["metadata"]["name"]) == ("Service", "chat"):
            with pytest.raises(Conflict):
                await cluster.apply(child, frozen.child("Service", "chat"))
    assert not await asyncio.to_thread(api.has, "services", "chat")


async def test_a_late_first_write_does_not_touch_what_the_next_leader_has_made(api: Api, cluster: Cluster, connection: Connection) -> None:
    """It was sent in time, arrives too late and is refused; a second try does not pass the guard."""
    await asyncio.to_thread(api.create, cpu_service())
    seen = await look(cluster, api)
    for child in wish(seen):
        await cluster.apply(child, None)
    before = await look(cluster, api)

    def only_once() -> None:
        if len(asked) == 2:  # a write asks before and after it waits for its turn
            raise NotLeader("another one leads by now")
        asked.append(None)

    for child in wish(seen):
        asked: list[None] = []
        late = {**child, "metadata": {**child["metadata"], "annotations": {"late": "yes"}}}
        with pytest.raises(NotLeader):
            await guarded(connection, only_once).apply(late, None)
    after = await look(cluster, api)
    # Kubernetes' controllers annotate as well.
    assert [each["metadata"]["annotations"][HASH_ANNOTATION] for each in after.children] == [
        each["metadata"]["annotations"][HASH_ANNOTATION] for each in before.children
    ]
    assert not [each for each in after.children if "late" in each["metadata"]["annotations"]]
