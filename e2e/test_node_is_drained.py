"""`kubectl drain`: it ends, and takes the replicas of a service one at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

from cluster.provider import Provider
from demo_service import Service
from kube import Kube
from nodes import another_node, cordoned, node_address, node_names, node_of, wait_until_well
from traffic import Traffic

DRAIN_SECONDS = 240
LOOK_SECONDS = 0.2


def test_a_drain_takes_a_pair_one_at_a_time_and_is_not_held_up_by_a_single_replica(
    serve: Callable[..., Service], kube: Kube, provider: Provider
) -> None:
    drained = node_names(kube)[0]
    other = another_node(kube, drained)
    with cordoned(kube, other):
        single = serve("single", autoscaling={"maxReplicas": 1}).wait_ready()
        pair = serve("pair", autoscaling={"mode": "None"}, replicas=2).wait_ready()
    single, pair = (replace(service, node=node_address(kube, other)) for service in (single, pair))
    before = uids(kube, single) | uids(kube, pair)
    assert len(before) == 3
    serving = []
    with cordoned(kube, drained), ThreadPoolExecutor(1) as aside, Traffic(pair.url, clients=2) as traffic:
        drain = aside.submit(drain_node, kube, drained)
        while not wait([drain], timeout=LOOK_SECONDS).done:
            serving.append(ready_endpoints(kube, pair))
        drain.result()
        for service in (single, pair):
            service.wait_ready()
            assert {node_of(pod) for pod in kube.pods(service.namespace, service.name)} == {other}
    assert not before & (uids(kube, single) | uids(kube, pair))
    assert min(serving) == 1, "one at a time is taken, and never both"
    assert traffic.answered > 0
    assert traffic.answered == traffic.outcomes.total(), traffic.outcomes
    wait_until_well(kube, provider)


def drain_node(kube: Kube, name: str) -> None:
    """As an administrator does before maintenance. Raises Refused when it does not end."""
    kube.kubectl("drain", name, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={DRAIN_SECONDS}s")


def uids(kube: Kube, service: Service) -> set[str]:
    return {pod["metadata"]["uid"] for pod in kube.pods(service.namespace, service.name)}


def ready_endpoints(kube: Kube, service: Service) -> int:
    slices = kube.get("endpointslices", "-n", service.namespace, "-l", f"kubernetes.io/service-name={service.name}")["items"]
    return sum(endpoint["conditions"].get("ready", False) for each in slices for endpoint in each["endpoints"] or ())
