"""Streams that are open when replicas go, by a shrink or by a rollout, end as they would have; new ones find another replica."""

from collections.abc import Callable

from demo_service import PATIENT, Service
from kube import Kube, Manifest, wait_for
from traffic import Traffic

HTTP_PORT = 8000
TOKENS = 200
"""Whoever asks for so many again and again has a stream open nearly all the time."""
GONE_SECONDS = 180
PINNED, SPREAD = 4, 2


def names(kube: Kube, service: Service) -> set[str]:
    """Of all pods, those on their way out among them."""
    return {pod["metadata"]["name"] for pod in kube.all_pods(service.namespace, service.name)}


def youngest(pods: list[Manifest]) -> str:
    """Which Kubernetes by itself would rather take."""
    ready: dict[str, str] = {
        pod["metadata"]["name"]: each["lastTransitionTime"]
        for pod in pods
        for each in pod["status"]["conditions"]
        if each["type"] == "Ready"
    }
    return max(ready, key=lambda name: ready[name])


def all_whole(traffic: Traffic) -> None:
    shown = {outcome[:200]: count for outcome, count in traffic.outcomes.items()}
    assert traffic.answered == traffic.outcomes.total() > 0, shown
    assert len(traffic.outcomes) == 1, f"one prompt, one answer: {shown}"


def test_a_shrink_takes_the_least_busy_replica_and_every_stream_ends_whole(kube: Kube, serve: Callable[..., Service]) -> None:
    service = serve(autoscaling={"minReplicas": 2, "maxReplicas": 2}, **PATIENT).wait_ready()
    busy = youngest(kube.pods(service.namespace, service.name))
    with (
        kube.forwarded(service.namespace, busy, HTTP_PORT) as url,
        Traffic(url, clients=PINNED, max_tokens=TOKENS, stream=True) as pinned,
        Traffic(service.url, clients=SPREAD, max_tokens=TOKENS, stream=True) as spread,
    ):

        def load_is_known() -> bool:
            return int(service.manifest()["status"].get("autoscaling", {}).get("load", 0)) > SPREAD

        wait_for("the operator knows the load", load_is_known, seconds=60, tell=service.describe)
        service.edit(autoscaling={"minReplicas": 1, "maxReplicas": 1})
        wait_for("the other one is gone", lambda: len(names(kube, service)) == 1, seconds=GONE_SECONDS, tell=service.describe)
        assert names(kube, service) == {busy}, "the least busy one goes"
    all_whole(pinned)
    all_whole(spread)


def test_a_rollout_of_two_replicas_ends_every_stream_whole(kube: Kube, serve: Callable[..., Service]) -> None:
    service = serve(autoscaling={"mode": "None"}, replicas=2, **PATIENT).wait_ready()
    before = names(kube, service)
    with Traffic(service.url, clients=PINNED, max_tokens=TOKENS, stream=True) as traffic:
        service.edit(batching={"maxSize": 6})
        service.wait_ready()
        wait_for("the old replicas are gone", lambda: not before & names(kube, service), seconds=GONE_SECONDS, tell=service.describe)
    assert len(names(kube, service)) == 2
    all_whole(traffic)
