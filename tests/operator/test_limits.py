"""The manifests that keep a namespace, and the operator itself, within bounds do so on a real API server."""

import json
import time

import pytest
import yaml

from millrace_operator.manifest import Manifest
from operators import Api, cpu_service, eventually
from services import CHECKOUT

pytestmark = pytest.mark.apiserver

ACCOUNT = "system:serviceaccount:millrace-system:millrace-operator"
SERVICES = "count/inferenceservices.millrace.dev"
FLOW_SCHEMAS = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"


def shipped(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((CHECKOUT / "manifests/limits" / name).read_text()))


def test_a_quota_bounds_the_services_of_a_namespace(api: Api) -> None:
    (quota,) = shipped("quota.yaml")
    path = f"/api/v1/namespaces/{api.namespace}/resourcequotas"

    def is_counted() -> bool:
        """Kubernetes looks for new kinds twice a minute, and then counts them for the quotas that come."""
        api.client.delete(f"{path}/millrace")
        assert api.client.post(path, json=quota).status_code == 201
        time.sleep(1)
        return SERVICES in api.client.get(f"{path}/millrace").json()["status"].get("used", {})

    eventually(is_counted, "services are counted", seconds=90)
    for number in range(int(quota["spec"]["hard"][SERVICES])):
        api.create(cpu_service(f"chat-{number}"))
    refused = api.client.post(api.root, json=cpu_service("one-more"))
    assert refused.status_code == 403
    assert "exceeded quota: millrace" in refused.json()["message"]


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/apis/millrace.dev/v1alpha1/inferenceservices", "millrace-operator"),
        ("/apis/coordination.k8s.io/v1/namespaces/millrace-system/leases/millrace-operator", "millrace-operator-lease"),
    ],
    ids=["all", "lease"],
)
def test_what_the_operator_asks_waits_in_queues_of_its_own(api: Api, path: str, schema: str) -> None:
    for each in shipped("flow-control.yaml"):
        api.control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(each))
    uid = api.client.get(f"{FLOW_SCHEMAS}/{schema}").json()["metadata"]["uid"]

    def chosen(user: str) -> str | None:
        told: str | None = api.client.get(path, headers={"Impersonate-User": user}).headers.get("X-Kubernetes-PF-FlowSchema-UID")
        return told

    eventually(lambda: chosen(ACCOUNT) == uid, "its requests are told from others'")
    assert chosen("system:serviceaccount:default:other") != uid
