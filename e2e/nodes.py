"""The cluster's nodes in the e2e tests: where they are, one that hangs or takes no pods, and everything well again afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.provider import Provider
from demo_service import Service
from installation import NAMESPACE, OPERATOR
from kube import Kube, Manifest, condition, wait_for

APART = [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}]
"""Replicas on different nodes while there are such."""
WELL_SECONDS = 240


def node_names(kube: Kube) -> list[str]:
    """Those that run pods."""
    return [node["metadata"]["name"] for node in kube.get("nodes")["items"] if not _is_for_the_control_plane_alone(node)]


def node_address(kube: Kube, name: str) -> str:
    """Where this machine reaches it."""
    addresses = kube.get("node", name)["status"]["addresses"]
    return str(next(each["address"] for each in addresses if each["type"] == "InternalIP"))


def another_node(kube: Kube, name: str) -> str:
    return next(each for each in node_names(kube) if each != name)


def node_of(pod: Manifest) -> str:
    """The node that a pod runs on."""
    return str(pod["spec"]["nodeName"])


@contextmanager
def frozen(kube: Kube, provider: Provider, name: str) -> Iterator[None]:
    """The node hangs, pods and all, until the block ends; then waits until everything is well again."""
    provider.freeze_node(name)
    try:
        yield
    finally:
        provider.thaw_node(name)
        wait_until_well(kube, provider)


@contextmanager
def cordoned(kube: Kube, name: str) -> Iterator[None]:
    """The node takes no further pods until the block ends."""
    kube.kubectl("cordon", name)
    try:
        yield
    finally:
        kube.kubectl("uncordon", name)


def wait_until_well(kube: Kube, provider: Provider) -> None:
    """Every node is Ready, nothing is left of what had to go, and the operator and every service of the cluster serve as before."""

    def ill() -> list[str]:
        nodes = [node for node in kube.get("nodes")["items"] if condition(node, "Ready").get("status") != "True"]
        services = [each for each in kube.get("infsvc", "-A")["items"] if condition(each, "Ready").get("status") != "True"]
        leaving = [pod for pod in kube.get("pods", "-A")["items"] if "deletionTimestamp" in pod["metadata"]]
        return [f"{each['kind']} {each['metadata']['name']}" for each in (*nodes, *services, *leaving)]

    wait_for("everything is well again", lambda: not ill(), seconds=WELL_SECONDS, tell=ill)
    kube.kubectl("rollout", "status", f"deployment/{OPERATOR}", "-n", NAMESPACE, "--timeout=2m")
    for each in kube.get("infsvc", "-A")["items"]:
        if each["spec"]["service"]["type"] == "NodePort":
            Service(kube, each["metadata"]["namespace"], each["metadata"]["name"], provider.node_address()).wait_reachable()


def _is_for_the_control_plane_alone(node: Manifest) -> bool:
    return any(taint["key"] == "node-role.kubernetes.io/control-plane" for taint in node["spec"].get("taints", ()))
