"""Of two autoscalers of one Deployment ours stands down, says so, and comes back when it is alone again."""

import pytest

from millrace_operator.manifest import Manifest
from operators import Api, Process, cpu_service, eventually

pytestmark = pytest.mark.apiserver

BOUNDS = {"minReplicas": 2, "maxReplicas": 4}


def rival(target: str = "chat", kind: str = "Deployment") -> Manifest:
    reference = {"apiVersion": "apps/v1", "kind": kind, "name": target}
    metric = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "theirs"},
        "spec": {"scaleTargetRef": reference, "minReplicas": 1, "maxReplicas": 9, "metrics": [metric]},
    }


def add(api: Api, wanted: Manifest) -> None:
    path = api.path("horizontalpodautoscalers", "").rstrip("/")
    assert api.client.post(path, json=wanted).status_code == 201


def events(api: Api) -> dict[str, str]:
    """Reason → note."""
    found = api.client.get(f"/apis/events.k8s.io/v1/namespaces/{api.namespace}/events").json()["items"]
    return {each["reason"]: each["note"] for each in found}


def scale(api: Api, replicas: int) -> None:
    api.patch(f"{api.path('deployments', 'chat')}/scale", {"spec": {"replicas": replicas}})


def test_a_deployment_with_another_autoscaler_is_left_to_it_until_that_is_gone(api: Api, operator: Process) -> None:
    api.create(cpu_service(autoscaling=BOUNDS))
    eventually(lambda: api.is_replicas(2), "ours keeps the bounds")
    add(api, rival())
    eventually(lambda: api.condition("ScalingActive") == ("False", "ConflictingAutoscaler"), "the conflict is told")
    assert "HorizontalPodAutoscaler 'theirs' scales the Deployment as well" in api.message("ScalingActive")
    assert "spec.autoscaling.mode" in api.message("ScalingActive")
    assert "ConflictingAutoscaler" in events(api)
    scale(api, 9)
    passes = operator.passes()
    operator.wait_for_passes(int(passes) + 3)
    assert api.is_replicas(9), "beyond our maximum, which is theirs to decide"
    api.delete(api.path("horizontalpodautoscalers", "theirs"))
    eventually(lambda: api.is_replicas(4), "ours keeps the bounds again")
    eventually(lambda: api.condition("ScalingActive")[1] != "ConflictingAutoscaler", "nothing is told any more")
    told = "from 9 to 4 replicas: 9 replicas are outside of 2 to 4"
    eventually(lambda: told in events(api).get("ScaledDown", ""), "and an Event tells it")


@pytest.mark.parametrize("other", [rival(target="another"), rival(kind="StatefulSet")])
def test_an_autoscaler_of_something_else_is_no_rival(api: Api, operator: Process, other: Manifest) -> None:
    add(api, other)
    api.create(cpu_service(autoscaling=BOUNDS))
    eventually(lambda: api.is_replicas(2), "the lower bound is kept")
    scale(api, 9)
    eventually(lambda: api.is_replicas(4), "the upper one as well")
