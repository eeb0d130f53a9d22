"""Kubernetes says Ready before its nodes' proxies pass connections on; whoever waits for a service waits for both."""

import json
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from cluster.control_plane import ControlPlane
from cluster.provider import CHECKOUT
from demo_service import Service, demo_service
from kube import Kube, Late

pytestmark = pytest.mark.apiserver


@pytest.fixture
def service(apiserver: ControlPlane) -> Service:
    """Ready by its status, with a NodePort at which nobody listens."""
    kube = Kube(apiserver.kubeconfig)
    kube.kubectl("apply", "--server-side", "-f", str(CHECKOUT / "crds" / "inferenceservices.millrace.dev.yaml"))
    kube.kubectl("wait", "--for=condition=Established", "crd/inferenceservices.millrace.dev", "--timeout=30s")
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    kube.kubectl("create", "namespace", namespace)
    kube.apply(demo_service("chat", namespace=namespace, model_image="registry.example.com/model:1"))
    kube.kubectl("create", "service", "nodeport", "chat", "--tcp=80", "-n", namespace)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [
        {"type": kind, "status": status, "reason": "Test", "message": "", "lastTransitionTime": now}
        for kind, status in (("Ready", "True"), ("Reconciling", "False"))
    ]
    status = {"status": {"observedGeneration": 1, "conditions": conditions}}
    kube.kubectl("patch", "infsvc", "chat", "-n", namespace, "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}")
    return Service(kube, namespace, "chat", "127.0.0.1")


@pytest.fixture
def listener(service: Service) -> Iterator[socket.socket]:
    """At the NodePort, and deaf until `listen()`."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", int(service.url.rpartition(":")[2])))
        yield bound


def test_a_ready_service_is_waited_for_until_the_node_accepts_a_connection(service: Service, listener: socket.socket) -> None:
    ready = threading.Event()

    def show(news: str) -> None:
        assert news.startswith("Ready=True")
        ready.set()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.wait_ready, show=show)
        assert ready.wait(30)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)
        listener.listen()
        assert waiting.result(timeout=30) is service


def test_a_service_that_stays_unreachable_is_named_with_its_address_and_its_state(service: Service, listener: socket.socket) -> None:
    with pytest.raises(Late, match=r"not within 0 s: the node's proxy passes on 127\.0\.0\.1:\d+ of .*/chat, which is Ready") as late:
        service.wait_reachable(seconds=0)
    assert "refused" in str(late.value)
    assert "observedGeneration: 1" in str(late.value)
