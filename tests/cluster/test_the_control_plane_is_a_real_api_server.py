"""The floor of the fast tests: what a fake API server would get wrong works here."""

import subprocess
import uuid

import pytest

from cluster.control_plane import ControlPlane
from cluster.process import wait_until

pytestmark = pytest.mark.apiserver


@pytest.fixture
def namespace(apiserver: ControlPlane) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    apiserver.kubectl("create", "namespace", name)
    return name


def test_an_unknown_field_is_refused_by_strict_validation(apiserver: ControlPlane, namespace: str) -> None:
    misspelt = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndatta: {a: b}\n"
    with pytest.raises(subprocess.CalledProcessError) as failure:
        apiserver.kubectl("apply", "--server-side", "--validate=strict", "-n", namespace, "-f", "-", stdin=misspelt)
    assert "datta" in failure.value.stderr


def test_the_garbage_collector_deletes_what_a_deleted_owner_leaves(apiserver: ControlPlane, namespace: str) -> None:
    apiserver.kubectl("create", "configmap", "owner", "-n", namespace)
    uid = apiserver.kubectl("get", "configmap", "owner", "-n", namespace, "-o=jsonpath={.metadata.uid}")
    owned = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: owned\n"
        f"  ownerReferences: [{{apiVersion: v1, kind: ConfigMap, name: owner, uid: {uid}}}]\n"
    )
    apiserver.kubectl("apply", "-n", namespace, "-f", "-", stdin=owned)
    apiserver.kubectl("delete", "configmap", "owner", "-n", namespace)
    wait_until(
        lambda: "owned" not in apiserver.kubectl("get", "configmaps", "-n", namespace, "-o=name"),
        "the owned object is collected",
        seconds=30,
    )


def test_a_user_without_a_role_may_do_nothing(apiserver: ControlPlane) -> None:
    nobody = apiserver.kubeconfig_for("nobody")
    with pytest.raises(subprocess.CalledProcessError) as failure:
        apiserver.kubectl(f"--kubeconfig={nobody}", "get", "namespaces")
    assert "forbidden" in failure.value.stderr
