"""What the drain of a node may take: one replica at a time, and one that does not serve at any time."""

from collections.abc import Callable

import pytest

from demo_service import Service
from kube import Kube, Refused, wait_for


def evict(kube: Kube, namespace: str, pod: str) -> None:
    """As `kubectl drain` does. Raises Refused when the budget has no room."""
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    body = f'{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{pod}"}}}}'
    kube.kubectl("create", "--raw", path, "-f", "-", stdin=body)


def test_of_two_replicas_only_one_can_be_evicted_until_it_is_replaced(serve: Callable[..., Service], kube: Kube) -> None:
    service = serve(autoscaling={"mode": "None"}, replicas=2).wait_ready()

    def both_are_counted() -> bool:
        return bool(kube.get("pdb", service.name, "-n", service.namespace).get("status", {}).get("disruptionsAllowed") == 1)

    wait_for("the budget knows both", both_are_counted, seconds=30, tell=service.describe)
    first, second = (pod["metadata"]["name"] for pod in kube.pods(service.namespace, service.name))
    evict(kube, service.namespace, first)
    with pytest.raises(Refused, match="disruption budget"):
        evict(kube, service.namespace, second)
    service.wait_ready()
    wait_for("the budget has room again", both_are_counted, seconds=60, tell=service.describe)


def test_a_single_replica_and_one_that_never_serves_do_not_hold_up_a_drain(serve: Callable[..., Service], kube: Kube) -> None:
    serving = serve("serving", autoscaling={"maxReplicas": 1}).wait_ready()
    [pod] = kube.pods(serving.namespace, serving.name)
    evict(kube, serving.namespace, pod["metadata"]["name"])
    broken = serve("broken", autoscaling={"mode": "None"}, replicas=2, apiKeysSecret="never-made")
    wait_for("both pods are there", lambda: len(kube.pods(broken.namespace, broken.name)) == 2, seconds=60, tell=broken.describe)
    for each in kube.pods(broken.namespace, broken.name):
        evict(kube, broken.namespace, each["metadata"]["name"])
