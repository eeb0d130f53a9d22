"""What others do in the cluster does not reach the operator: the API server filters, and sends no event."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from millrace_operator.names import child_labels
from operators import Api, Process, cpu_service, eventually
from proxy import Proxy

pytestmark = pytest.mark.apiserver

Start = Callable[..., Process]


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[Proxy]:
    with Proxy(control_plane) as proxy:
        yield proxy


@pytest.fixture
def elsewhere(control_plane: ControlPlane, api: Api) -> Iterator[Api]:
    """Another namespace."""
    namespace = f"{api.namespace}-elsewhere"
    control_plane.kubectl("create", "namespace", namespace)
    result = Api(control_plane, namespace)
    yield result
    result.client.close()
    control_plane.kubectl("delete", "namespace", namespace, "--wait=false")


def change_a_pod(api: Api, name: str, labels: dict[str, str]) -> None:
    """Makes it, and changes it."""
    spec = {"containers": [{"name": "x", "image": "x"}]}
    pods = f"/api/v1/namespaces/{api.namespace}/pods"
    made = api.client.post(pods, json={"metadata": {"name": name, "labels": labels}, "spec": spec})
    assert made.status_code == 201, made.text
    api.patch(f"{pods}/{name}", {"metadata": {"annotations": {"note": "changed"}}})


def hears(proxy: Proxy, word: str) -> bool:
    return word.encode() in b"".join(proxy.told)


def test_a_foreign_pod_s_change_makes_no_event(api: Api, proxy: Proxy, start: Start, tmp_path: Path) -> None:
    start(KUBECONFIG=str(proxy.kubeconfig(tmp_path)), MILLRACE_NAMESPACES="").wait_until_it_leads()
    eventually(lambda: proxy.watches >= 6, "every kind is watched")
    api.create(cpu_service())
    change_a_pod(api, "foreign-pod", {"app": "theirs", "app.kubernetes.io/instance": "chat"})
    change_a_pod(api, "marker-pod", child_labels("chat"))
    eventually(lambda: hears(proxy, "marker-pod"), "one with our labels is told, after all that happened before it")
    assert not hears(proxy, "foreign-pod")


def test_another_namespace_s_services_make_no_event_and_no_pass(
    api: Api, elsewhere: Api, proxy: Proxy, start: Start, tmp_path: Path
) -> None:
    operator = start(KUBECONFIG=str(proxy.kubeconfig(tmp_path)))
    operator.wait_until_it_leads()
    eventually(lambda: proxy.watches >= 6, "every kind is watched")
    api.create(cpu_service())
    elsewhere.create(cpu_service("foreign-service"))
    change_a_pod(elsewhere, "foreign-pod", child_labels("chat"))
    api.create(cpu_service("marker"))
    change_a_pod(api, "marker-pod", child_labels("chat"))
    eventually(lambda: api.is_complete("marker") and hears(proxy, "marker-pod"), "what happened here is told")
    assert not hears(proxy, "foreign-")
    eventually(lambda: operator.metric("millrace_services") == 2, "both passes have ended, and no other has been")
    assert "status" not in elsewhere.service("foreign-service") or "conditions" not in elsewhere.service("foreign-service")["status"]
