"""The provider `local` is no imitation: what users of Kubernetes rely on works, beside another cluster on the same machine."""

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from cluster.local import own_images
from cluster.local.provider import Local, why_not
from cluster.process import wait_until

NAMESPACE = "whole"
NODE_PORT = 31080
NODES = 2
REPLICAS = 2
SECURE = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Two nodes with a replica of a web server on each, behind a NodePort, in a namespace under Pod Security `restricted`."""
    assert why_not() is None, why_not()
    local = Local(tmp_path_factory.mktemp("cluster"), nodes=NODES)
    try:
        local.up()
        image = local.load_scratch(own_images.busybox())
        for manifest in (_namespace(), _deployment(image), _service()):
            _apply(local, manifest)
        local.kubectl("rollout", "status", "deployment/web", f"-n={NAMESPACE}", "--timeout=60s")
        # Before the first test that asks it: kube-proxy lags a new endpoint by about a second.
        nodes = range(1, NODES + 1)
        wait_until(lambda: all(_name_of_a_replica(local, node) for node in nodes), "the nodes' proxies pass requests on", seconds=30)
        yield local
    finally:
        local.down()


@pytest.fixture
def run(cluster: Local) -> Iterator[Callable[..., str]]:
    """Run a pod to its end and return its name."""
    started: list[str] = []

    def ran(name: str, command: str, *, node: str | None = None, **container: Any) -> str:  # noqa: ANN401 - any part of a container
        image = cluster.load_scratch(own_images.busybox())
        where = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
        spec = {"restartPolicy": "Never", "containers": [_container(image, command) | container], **where}
        _apply(cluster, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
        started.append(name)

        def has_ended() -> bool:
            return cluster.kubectl("get", "pod", name, f"-n={NAMESPACE}", "-o=jsonpath={.status.phase}") in ("Succeeded", "Failed")

        wait_until(has_ended, f"{name} has ended", seconds=60)
        return name

    yield ran
    for name in started:
        cluster.kubectl("delete", "pod", name, f"-n={NAMESPACE}", "--wait=false")


def test_the_replicas_are_spread_over_the_nodes(cluster: Local) -> None:
    nodes = "-o=jsonpath={.items[*].spec.nodeName}"
    assert sorted(cluster.kubectl("get", "pods", f"-n={NAMESPACE}", "-l=app=web", nodes).split()) == ["node-1", "node-2"]


@pytest.mark.parametrize("node", [1, 2])
def test_the_node_port_of_each_node_answers_the_host_from_the_replicas_of_both(cluster: Local, node: int) -> None:
    answers: set[str | None] = set()

    def asked_all() -> bool:
        answers.add(_name_of_a_replica(cluster, node))
        return len(answers - {None}) == REPLICAS

    wait_until(asked_all, "both replicas have answered", seconds=30)
    assert all(answer.startswith("web-") for answer in answers if answer)


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_every_dns_server_answers_the_pods_of_each_node(cluster: Local, run: Callable[..., str], node: str) -> None:
    servers = cluster.kubectl("get", "pods", "-n=kube-system", "-l=k8s-app=kube-dns", "-o=jsonpath={.items[*].status.podIP}").split()
    assert len(servers) == NODES
    asked = " && ".join(f"nslookup -type=a web.{NAMESPACE}.svc.cluster.local {server}:1053" for server in servers)
    pod = run(f"asks-on-{node}", f"{asked} && echo found by all", node=node)
    assert "found by all" in cluster.kubectl("logs", pod, f"-n={NAMESPACE}")


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_a_pod_finds_a_service_by_its_name(cluster: Local, run: Callable[..., str], node: str) -> None:
    address = cluster.kubectl("get", "service", "web", f"-n={NAMESPACE}", "-o=jsonpath={.spec.clusterIP}")
    find = f"nslookup -type=a web.{NAMESPACE}.svc.cluster.local | sed -n 's/^Address: //p'"
    pod = run(f"finds-on-{node}", f'found=$({find}); echo "$found"; wget -q -O - "http://$found/name"', node=node)
    found, answer = cluster.kubectl("logs", pod, f"-n={NAMESPACE}").split()
    assert found == address
    assert answer.startswith("web-")


def test_exec_runs_in_the_container(cluster: Local) -> None:
    assert "uid=65534" in cluster.kubectl("exec", "deployment/web", f"-n={NAMESPACE}", "--", "id")


def test_a_pod_has_no_way_out_of_the_machine(cluster: Local, run: Callable[..., str]) -> None:
    pod = run("lost", "wget -T 3 -q -O - http://192.0.2.1/ || echo refused; nslookup example.com || echo unknown")
    assert cluster.kubectl("logs", pod, f"-n={NAMESPACE}").count("refused") == 1
    assert "NXDOMAIN" in cluster.kubectl("logs", pod, f"-n={NAMESPACE}")


def test_a_container_that_takes_more_memory_than_its_limit_is_killed(cluster: Local, run: Callable[..., str]) -> None:
    greedy = "x=0123456789abcdef; while true; do x=$x$x; done"
    pod = run("greedy", greedy, resources={"limits": {"memory": "32Mi"}})
    reason = "-o=jsonpath={.status.containerStatuses[0].state.terminated.reason}"
    assert cluster.kubectl("get", "pod", pod, f"-n={NAMESPACE}", reason) == "OOMKilled"


def test_a_failing_readiness_probe_takes_a_pod_out_of_the_service(cluster: Local) -> None:
    ready = "-o=jsonpath={.items[*].endpoints[*].conditions.ready}"

    def endpoints_ready() -> list[str]:
        return cluster.kubectl("get", "endpointslices", "-l=kubernetes.io/service-name=web", f"-n={NAMESPACE}", ready).split()

    pod = cluster.kubectl("get", "pods", f"-n={NAMESPACE}", "-l=app=web", "-o=jsonpath={.items[0].metadata.name}")
    cluster.kubectl("exec", pod, f"-n={NAMESPACE}", "--", "touch", "/tmp/unready")
    wait_until(lambda: endpoints_ready().count("true") == REPLICAS - 1, "one endpoint is not ready", seconds=30)
    cluster.kubectl("delete", "pod", pod, f"-n={NAMESPACE}", "--now")
    wait_until(lambda: endpoints_ready() == ["true"] * REPLICAS, "its successor is ready", seconds=60)


def test_the_kubelet_reports_what_pods_use(cluster: Local) -> None:
    metrics = cluster.kubectl("get", "--raw", "/api/v1/nodes/node-1/proxy/metrics/resource")
    assert f'container_memory_working_set_bytes{{container="web",namespace="{NAMESPACE}"' in metrics


def test_pod_security_refuses_a_privileged_pod(cluster: Local) -> None:
    container = {"name": "main", "image": "none", "securityContext": {"privileged": True}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bad", "namespace": NAMESPACE},
        "spec": {"containers": [container]},
    }
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        _apply(cluster, pod)
    assert 'violates PodSecurity "restricted' in refusal.value.stderr


def test_up_again_finds_the_same_cluster(cluster: Local) -> None:
    before = cluster.kubectl("get", "namespace", NAMESPACE, "-o=jsonpath={.metadata.uid}")
    cluster.up()
    assert cluster.kubectl("get", "namespace", NAMESPACE, "-o=jsonpath={.metadata.uid}") == before


def _name_of_a_replica(cluster: Local, node: int) -> str | None:
    """Whoever answers at the node's NodePort; None when nobody does."""
    try:
        return httpx.get(f"http://{cluster.node_address(node)}:{NODE_PORT}/name", timeout=5).raise_for_status().text
    except httpx.TransportError:
        return None


def _apply(cluster: Local, manifest: dict[str, Any]) -> None:
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))


def _namespace() -> dict[str, Any]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def _container(image: str, command: str) -> dict[str, Any]:
    return {"name": "main", "image": image, "command": ["sh", "-c", command], "securityContext": SECURE}


def _deployment(image: str) -> dict[str, Any]:
    labels = {"app": "web"}
    command = "cd /tmp && hostname=$(cat /etc/hostname) && echo $hostname > name && exec httpd -f -p 8080 -h /tmp"
    web = _container(image, command) | {
        "name": "web",
        "readinessProbe": {"exec": {"command": ["sh", "-c", "! cat /tmp/unready"]}, "periodSeconds": 1, "failureThreshold": 1},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    apart = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    spec = {
        "containers": [web],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "terminationGracePeriodSeconds": 1,
        "topologySpreadConstraints": [{**apart, "labelSelector": {"matchLabels": labels}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def _service() -> dict[str, Any]:
    port = {"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [port]},
    }
