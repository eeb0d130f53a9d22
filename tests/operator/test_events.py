"""What is told as an Event, and that it is told once: against a real API server."""

from collections.abc import Callable

import pytest

from millrace_operator.api import InferenceServiceStatus
from millrace_operator.events import news
from millrace_operator.manifest import Manifest
from operators import Api, Process, cpu_service, eventually

NOON = "2026-01-01T12:00:00Z"


def status(**conditions: tuple[str, str]) -> InferenceServiceStatus:
    return InferenceServiceStatus.model_validate(
        {
            "conditions": [
                {"type": name, "status": told, "reason": reason, "message": "", "observedGeneration": 1, "lastTransitionTime": NOON}
                for name, (told, reason) in conditions.items()
            ]
        }
    )


STARTING = status(Ready=("False", "Starting"), Reconciling=("True", "Starting"), Stalled=("False", "Progressing"))
FAILED_ONCE = status(Reconciling=("True", "ModelNotFound"), Stalled=("False", "Progressing"), ModelLoaded=("False", "ModelNotFound"))
FAILS = status(Reconciling=("False", "ModelNotFound"), Stalled=("True", "ModelNotFound"), ModelLoaded=("False", "ModelNotFound"))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param(InferenceServiceStatus(), STARTING, [], id="a start is no event"),
        pytest.param(STARTING, FAILED_ONCE, ["ModelNotFound"], id="a cause, though two conditions name it"),
        pytest.param(FAILED_ONCE, FAILS, [], id="the same cause, for good"),
        pytest.param(FAILS, FAILS, [], id="nothing new"),
        pytest.param(FAILS, STARTING, [], id="it heals"),
        pytest.param(STARTING, status(Reconciling=("True", "QuotaExceeded")), ["QuotaExceeded"], id="what only time heals"),
        pytest.param(STARTING, status(Reconciling=("False", "Paused")), [], id="a pause is asked for"),
    ],
)
def test_a_cause_is_told_when_it_appears(before: InferenceServiceStatus, after: InferenceServiceStatus, told: list[str]) -> None:
    assert [event.reason for event in news(before, after)] == told


def events(api: Api, reason: str) -> list[Manifest]:
    answer = api.client.get(f"/apis/events.k8s.io/v1/namespaces/{api.namespace}/events")
    return [event for event in answer.json()["items"] if event["regarding"]["kind"] == "InferenceService" and event["reason"] == reason]


def live(api: Api, kind: str, name: str) -> Manifest:
    found = api.get(kind, name)
    assert found is not None
    return found


@pytest.mark.apiserver
def test_a_name_conflict_makes_one_event_however_often_it_is_looked_at(api: Api, operator: Process, start: Callable[..., Process]) -> None:
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat"}, "spec": {"ports": [{"port": 1}]}}
    assert api.client.post(api.path("services", ""), json=foreign).status_code == 201
    uid = api.create(cpu_service())["metadata"]["uid"]
    eventually(lambda: events(api, "NameConflict"), "the event")
    (event,) = events(api, "NameConflict")
    assert (event["type"], event["regarding"]["uid"], event["note"]) == ("Warning", uid, api.message("Stalled"))
    failed = 'millrace_errors_total{reason="NameConflict"}'
    count = operator.metric(failed)
    eventually(lambda: operator.metric(failed) >= count + 2, "more passes")
    assert operator.stop() == 0
    second = start()
    second.wait_until_it_leads()
    eventually(lambda: failed in second.get("/metrics").text, "a pass of another operator")
    assert events(api, "NameConflict") == [event]


@pytest.mark.apiserver
def test_a_repair_is_told_with_the_writer_s_name_and_counted_when_it_happens_again(api: Api, operator: Process) -> None:
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")

    def rewrite() -> None:
        api.patch(api.path("services", "chat"), {"spec": {"type": "NodePort"}}, manager="meddler")
        eventually(lambda: live(api, "services", "chat")["spec"]["type"] == "ClusterIP", "it is put back")

    rewrite()
    eventually(lambda: events(api, "DriftCorrected"), "the event")
    (event,) = events(api, "DriftCorrected")
    assert "Service 'chat'" in event["note"]
    assert ".spec.type, changed by 'meddler'" in event["note"]
    assert event.get("series") is None
    rewrite()
    rewrite()
    eventually(lambda: (events(api, "DriftCorrected")[0].get("series") or {}).get("count") == 3, "it is counted")
    assert len(events(api, "DriftCorrected")) == 1


@pytest.mark.apiserver
def test_an_undone_rollout_is_repaired_with_a_word_and_a_restart_is_left_alone(api: Api, operator: Process) -> None:
    kubectl = api.control_plane.kubectl
    api.create(cpu_service(image="first:1"))
    eventually(lambda: api.is_complete() and api.image() == "first:1", "the first image")
    api.edit({"spec": {"image": "second:2"}})

    def revision() -> str:
        return str((live(api, "deployments", "chat")["metadata"].get("annotations") or {}).get("deployment.kubernetes.io/revision"))

    eventually(lambda: api.image() == "second:2" and revision() == "2", "the second image, and its ReplicaSet")
    kubectl("rollout", "restart", "deployment/chat", "-n", api.namespace)
    eventually(lambda: revision() == "3", "a restart")
    operator.wait_for_lists(2)
    annotations = live(api, "deployments", "chat")["spec"]["template"]["metadata"]["annotations"]
    assert "kubectl.kubernetes.io/restartedAt" in annotations
    assert [event["note"] for event in events(api, "DriftCorrected")] == []
    kubectl("rollout", "undo", "deployment/chat", "-n", api.namespace, "--to-revision=1")
    eventually(lambda: events(api, "DriftCorrected"), "the event")
    assert api.image() == "second:2"
    assert "rollout undo" in events(api, "DriftCorrected")[0]["note"]


@pytest.mark.apiserver
def test_a_fight_over_a_field_is_told_and_no_longer_fought_until_the_other_one_stops(api: Api, start: Callable[..., Process]) -> None:
    operator = start(MILLRACE_FIGHT_WINDOW_SECONDS="6", MILLRACE_LAST_RETRY_SECONDS="4")
    operator.wait_until_it_leads()
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")

    def loses() -> bool:
        """It writes whenever it sees that its value is gone, as a controller does."""
        if live(api, "services", "chat")["spec"]["type"] != "NodePort":
            api.patch(api.path("services", "chat"), {"spec": {"type": "NodePort"}}, manager="meddler")
        return api.condition("Stalled") == ("True", "FieldConflict")

    eventually(loses, "the fight is told")
    assert "'meddler'" in api.message("Stalled")
    (event,) = events(api, "FieldConflict")
    assert "'meddler'" in event["note"]
    applied = operator.metric('millrace_writes_total{kind="Service",verb="apply"}')
    operator.wait_for_lists(3)
    assert operator.metric('millrace_writes_total{kind="Service",verb="apply"}') <= applied + 1
    eventually(lambda: live(api, "services", "chat")["spec"]["type"] == "ClusterIP", "put back after a pause")
    eventually(lambda: api.condition("Stalled")[0] == "False", "nobody fights any more")
