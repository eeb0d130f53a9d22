"""What a user and kstatus read at every stage of a service's life."""

import inspect
import re
from dataclasses import replace
from typing import Any

import pytest

import argo
from kstatus import kstatus
from millrace_operator import act, rollout
from millrace_operator.api import AutoscalingStatus, InferenceServiceStatus, parse
from millrace_operator.autoscale import Decision
from millrace_operator.manifest import Manifest
from millrace_operator.names import GROUP, KIND, PAUSED_ANNOTATION
from millrace_operator.rollout import _NEVER_STARTS, Trouble, read_rollout
from millrace_operator.status import NEXT_STEP, Facts, as_manifest, autoscaling_status, report, report_invalid, report_paused
from services import CHECKOUT, manifest, stored

NOON, LATER = "2026-01-01T12:00:00Z", "2026-01-01T13:00:00Z"


def deployment(*, wanted: int = 1, total: int = 1, updated: int = 1, ready: int = 0, seen: bool = True, **status: Any) -> Manifest:  # noqa: ANN401
    return {
        "metadata": {"generation": 2},
        "spec": {"replicas": wanted},
        "status": {
            "observedGeneration": 2 if seen else 1,
            "replicas": total,
            "updatedReplicas": updated,
            "readyReplicas": ready,
            **status,
        },
    }


def pod(*, ready: bool = False, name: str = "chat-1", phase: str = "Pending", **status: Any) -> Manifest:  # noqa: ANN401
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}, *status.pop("conditions", [])]
    return {"metadata": {"name": name}, "status": {"phase": phase, "podIP": "10.0.0.1", "conditions": conditions, **status}}


def silent(*, since: str, containers: list[Manifest]) -> Manifest:
    """A pod that runs and is not ready, since then."""
    result = pod(phase="Running", containerStatuses=containers)
    result["status"]["conditions"][0]["lastTransitionTime"] = since
    return result


def container(*, restarts: int = 0, last: Manifest | None = None, **state: Manifest) -> list[Manifest]:
    return [
        {"name": "server", "image": "server:1", "restartCount": restarts, "state": state, "lastState": {"terminated": last} if last else {}}
    ]


def facts(deploy: Manifest | None, *pods: Manifest, problems: tuple[Trouble, ...] = (), **spec: Any) -> Facts:  # noqa: ANN401
    service = parse(stored(manifest(**spec)))
    return Facts(service=service, rollout=read_rollout(deploy, pods) if deploy else None, problems=problems)


def conditions(facts: Facts) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status, each.reason) for each in report(facts, now=NOON).conditions}


def told_to_all(facts: Facts) -> Manifest:
    """The resource as GitOps tools read it."""
    return stored({**manifest(), "status": as_manifest(report(facts, now=NOON))})


NO_DEFINITION = Trouble(cause="CRDNotInstalled", sentence="this cluster does not know the kind ServiceMonitor", needs_a_human=False)
MONITOR_CONFLICT = Trouble(cause="NameConflict", sentence="ServiceMonitor 'chat' is not ours", needs_a_human=True)
ARGO = {"Current": "Healthy", "Failed": "Degraded", "InProgress": "Progressing"}
OLD_SERVES = deployment(total=2, updated=1, ready=1)
HINT = '{"stage": "load", "cause": "ModelNotFound", "hint": "Correct spec.model.name."}'
CONFLICT = Trouble(cause="NameConflict", sentence="Service 'chat' is not ours", needs_a_human=True)
QUOTA = Trouble(cause="QuotaExceeded", sentence="no room", needs_a_human=False)
CONTAINERS_READY = {"type": "ContainersReady", "status": "True"}
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}


@pytest.mark.parametrize(
    ("seen", "expected", "ready", "cause"),
    [
        pytest.param(facts(None), "InProgress", "False", "Starting", id="nothing exists yet"),
        pytest.param(facts(deployment(seen=False, ready=1)), "InProgress", "False", "RollingOut", id="an edit is not seen yet"),
        pytest.param(facts(deployment(), pod()), "InProgress", "False", "Starting", id="the first replica starts"),
        pytest.param(facts(deployment(ready=1), pod(ready=True)), "Current", "True", "Serving", id="it serves"),
        pytest.param(facts(OLD_SERVES), "InProgress", "False", "RollingOut", id="only an old revision serves"),
        pytest.param(facts(deployment(total=2, updated=1, ready=2)), "InProgress", "True", "Serving", id="old and new serve"),
        pytest.param(
            facts(deployment(wanted=3, total=3, updated=3, ready=1)), "Current", "True", "Serving", id="scaled beyond the minimum"
        ),
        pytest.param(
            facts(deployment(wanted=3, total=3, updated=3, ready=1), autoscaling={"mode": "None"}, replicas=3),
            "InProgress",
            "True",
            "Serving",
            id="fewer than fixed",
        ),
        pytest.param(
            facts(deployment(wanted=0, total=0, updated=0), autoscaling={"mode": "None"}, replicas=0),
            "InProgress",
            "False",
            "NoReplicas",
            id="none wanted",
        ),
        pytest.param(facts(deployment(ready=1), problems=(CONFLICT,)), "Failed", "False", "NameConflict", id="a foreign object"),
        pytest.param(facts(None, problems=(QUOTA,)), "InProgress", "False", "QuotaExceeded", id="quota on children"),
        pytest.param(
            facts(deployment(conditions=[{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods=1"}])),
            "InProgress",
            "False",
            "QuotaExceeded",
            id="quota on pods",
        ),
        pytest.param(
            facts(deployment(), pod(conditions=[{**UNSCHEDULABLE, "message": "Insufficient nvidia.com/gpu"}])),
            "InProgress",
            "False",
            "InsufficientGPU",
            id="no GPU is free",
        ),
        pytest.param(
            facts(deployment(), pod(containerStatuses=container(waiting={"reason": "ErrImagePull", "message": "x"}))),
            "Failed",
            "False",
            "ImagePullBackOff",
            id="the image cannot be pulled",
        ),
        pytest.param(
            facts(
                deployment(), pod(initContainerStatuses=container(waiting={"reason": "CreateContainerConfigError", "message": "secret"}))
            ),
            "Failed",
            "False",
            "CreateContainerConfigError",
            id="a Secret is missing",
        ),
        pytest.param(
            facts(deployment(), pod(containerStatuses=container(restarts=1, running={}, last={"exitCode": 1, "message": HINT}))),
            "InProgress",
            "False",
            "ModelNotFound",
            id="the model failed once",
        ),
        pytest.param(
            facts(deployment(), pod(containerStatuses=container(restarts=3, running={}, last={"exitCode": 1, "message": HINT}))),
            "Failed",
            "False",
            "ModelNotFound",
            id="the model fails again and again",
        ),
        pytest.param(
            facts(
                deployment(),
                pod(containerStatuses=container(restarts=3, last={"exitCode": 137, "reason": "OOMKilled"}, waiting={"reason": "x"})),
            ),
            "Failed",
            "False",
            "OutOfMemory",
            id="out of memory",
        ),
    ],
)
def test_every_stage_reads_right(seen: Facts, expected: str, ready: str, cause: str) -> None:
    assert kstatus(told_to_all(seen)) == expected
    assert argo.health(told_to_all(seen))[0] == ("Suspended" if cause == "NoReplicas" else ARGO[expected])
    assert conditions(seen)["Ready"] == (ready, cause)
    answers = conditions(seen)
    assert not (answers["Reconciling"][0] == "True" and answers["Stalled"][0] == "True"), "a contradiction"


def cut_off(**ready: str) -> Manifest:
    """As the controller of nodes leaves a pod whose node falls silent, unless `ready` says otherwise."""
    result = silent(since="2026-01-01T12:05:00Z", containers=container(running={"startedAt": NOON}))
    result["spec"] = {"nodeName": "node-2"}
    result["status"]["conditions"].append(CONTAINERS_READY)
    result["status"]["conditions"][0] |= ready
    return result


def waits(message: str) -> Manifest:
    return pod(conditions=[{**UNSCHEDULABLE, "message": message}])


@pytest.mark.parametrize(
    ("ill", "cause"),
    [
        (waits("0/1 nodes are available: 1 Insufficient amd.com/gpu."), "InsufficientGPU"),
        (waits("0/1 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}."), "Unschedulable"),
        (waits("0/2 nodes are available: 2 Insufficient memory."), "Unschedulable"),
        (waits('persistentvolumeclaim "models" not found'), "VolumeClaimMissing"),
        (waits('0/2 nodes are available: persistentvolumeclaim "models" not found. not found'), "VolumeClaimMissing"),
        (waits("0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"), "VolumeClaimPending"),
        (pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."), "Evicted"),
        (pod(phase="Failed", reason="OutOfnvidia.com/gpu", message="Pod was rejected"), "PodFailed"),
        (pod(phase="Failed"), "PodFailed"),
        (pod(containerStatuses=container(waiting={"reason": "RunContainerError", "message": "no runtime"})), "RunContainerError"),
        (pod(containerStatuses=container(last={"exitCode": 1}, waiting={"reason": "CrashLoopBackOff"})), "ContainerFailed"),
        (pod(containerStatuses=container(last={"exitCode": 137, "reason": "OOMKilled"}, running={})), "OutOfMemory"),
        (silent(since="2026-01-01T12:05:00Z", containers=container(running={"startedAt": NOON})), "NotResponding"),
        (
            silent(since="2026-01-01T12:05:00Z", containers=container(last={"exitCode": 137}, running={"startedAt": NOON})),
            "NotResponding",
        ),
    ],
)
def test_a_cause_that_kubernetes_hides_in_a_pod_is_told_with_the_pod_and_the_next_step(ill: Manifest, cause: str) -> None:
    ready = next(each for each in report(facts(deployment(), ill), now=NOON).conditions if each.type == "Ready")
    assert (ready.status, ready.reason) == ("False", cause)
    assert "chat-1" in ready.message
    assert ready.message.endswith(NEXT_STEP[cause])


def test_what_the_scheduler_adds_about_itself_is_left_out() -> None:
    """The last words of its plugin for preemption, Kubernetes 1.34."""
    told = report(facts(deployment(), waits('0/2 nodes are available: persistentvolumeclaim "models" not found. not found')), now=NOON)
    nodes = 'pod chat-1: 0/2 nodes are available: persistentvolumeclaim "models" not found.'
    assert told.conditions[0].message == f"{nodes} {NEXT_STEP['VolumeClaimMissing']}"


def test_a_lost_node_is_told_by_its_name_and_while_others_serve() -> None:
    told = report(facts(deployment(), cut_off()), now=NOON).conditions[0]
    assert (told.status, told.reason) == ("False", "NodeLost")
    assert told.message == f"pod chat-1: its node node-2 no longer answers. {NEXT_STEP['NodeLost']}"
    two = deployment(wanted=2, total=2, updated=2, ready=1)
    beside = facts(two, pod(ready=True), cut_off(), autoscaling={"mode": "None"}, replicas=2)
    assert (conditions(beside)["Ready"], conditions(beside)["Reconciling"]) == (("True", "Serving"), ("True", "NodeLost"))
    assert kstatus(told_to_all(beside)) == "InProgress"


def test_a_pod_that_waits_for_the_place_of_one_that_leaves_has_no_trouble_unless_its_node_is_lost() -> None:
    waiting = waits("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    leaving = pod(name="chat-0", ready=True, conditions=[CONTAINERS_READY])
    leaving["metadata"]["deletionTimestamp"] = NOON
    assert conditions(facts(deployment(), leaving, waiting))["Ready"] == ("False", "Starting")
    unreachable = cut_off()
    unreachable["metadata"] = leaving["metadata"]
    assert conditions(facts(deployment(), unreachable, waiting))["Ready"] == ("False", "InsufficientGPU")
    no_claim = waits('persistentvolumeclaim "models" not found')
    assert conditions(facts(deployment(), leaving, no_claim))["Ready"] == ("False", "VolumeClaimMissing")


def test_a_pod_that_waits_for_a_readiness_gate_has_lost_no_node() -> None:
    gated = cut_off(reason="ReadinessGatesNotReady")
    assert conditions(facts(deployment(), gated))["Ready"][1] != "NodeLost"


def test_a_pod_that_was_never_ready_since_its_start_is_starting() -> None:
    young = silent(since="2026-01-01T11:59:00Z", containers=container(running={"startedAt": NOON}))
    assert conditions(facts(deployment(), young))["Ready"] == ("False", "Starting")


def test_a_pod_that_is_over_gives_way_to_one_that_has_something_to_tell() -> None:
    evicted = pod(name="chat-1", phase="Failed", reason="Evicted")
    crashes = pod(name="chat-2", containerStatuses=container(last={"exitCode": 1}, waiting={"reason": "CrashLoopBackOff"}))
    assert conditions(facts(deployment(), evicted, crashes))["Ready"] == ("False", "ContainerFailed")


def test_every_cause_in_the_source_has_a_next_step() -> None:
    """A container's own causes say theirs themselves."""
    named = set(_NEVER_STARTS.values())
    for module in (rollout, act):
        words = re.findall(r'"([A-Z]\w+)" if|else "([A-Z]\w+)"|cause="([A-Z]\w+)"', inspect.getsource(module))
        named |= {word for found in words for word in found if word}
    assert {"QuotaExceeded", "OutOfMemory", "PodFailed", "InsufficientGPU", "VolumeClaimMissing"} <= named
    assert named <= set(NEXT_STEP)


def test_the_cause_from_inside_the_container_is_lifted_with_its_next_step() -> None:
    status = report(
        facts(deployment(), pod(containerStatuses=container(terminated={"exitCode": 1, "message": HINT}))),
        now=NOON,
    )
    loaded = next(each for each in status.conditions if each.type == "ModelLoaded")
    assert (loaded.status, loaded.reason) == ("False", "ModelNotFound")
    assert loaded.message == "container server of pod chat-1: load failed: ModelNotFound. Correct spec.model.name."


@pytest.mark.parametrize("message", ["", "Traceback", "[]", '{"cause": 3}', '{"cause": "rm -rf /"}', '{"cause": "' + "A" * 2000 + '"}'])
def test_a_termination_message_of_another_shape_breaks_nothing(message: str) -> None:
    seen = facts(deployment(), pod(containerStatuses=container(terminated={"exitCode": 1, "message": message})))
    assert conditions(seen)["Ready"] == ("False", "ContainerFailed")
    report(seen, now=NOON)


def test_a_hostile_last_word_reaches_no_terminal_and_stops_no_status() -> None:
    for message in ("[" * 1024, '{"cause": "Bad", "hint": "\\u001b[31mred\\nline\\ud800"}'):
        ended = container(restarts=1, waiting={"reason": "CrashLoopBackOff"}, last={"exitCode": 1, "message": message})
        told = report(facts(deployment(), pod(containerStatuses=ended)), now=NOON).conditions[0].message
        assert told.isprintable()


def test_an_old_failure_of_a_replica_that_serves_is_no_news() -> None:
    healed = pod(ready=True, containerStatuses=container(restarts=9, running={}, last={"exitCode": 1, "message": HINT}))
    assert kstatus(told_to_all(facts(deployment(ready=1), healed))) == "Current"


def test_a_failure_of_the_template_that_an_edit_replaces_is_no_news() -> None:
    crashed = container(restarts=5, waiting={"reason": "CrashLoopBackOff"}, last={"exitCode": 1, "message": "wrong image"})
    old, new = pod(name="chat-1", containerStatuses=crashed), pod(name="chat-2")
    old["metadata"] |= {"labels": {"pod-template-hash": "old"}, "creationTimestamp": "2026-01-01T11:00:00Z"}
    new["metadata"] |= {"labels": {"pod-template-hash": "new"}, "creationTimestamp": "2026-01-01T11:30:00Z"}
    rolling = deployment(total=2, updated=1)
    assert kstatus(told_to_all(facts(rolling, old, new))) == "InProgress"
    assert kstatus(told_to_all(facts(deployment(), old))) == "Failed"


def test_a_pod_on_its_way_out_is_not_asked_for_its_load() -> None:
    leaving = pod(ready=True)
    leaving["metadata"]["deletionTimestamp"] = NOON
    rollout = read_rollout(deployment(ready=1), [leaving, pod(ready=True)])
    assert len(rollout.pods) == 1
    assert rollout.addresses == ("10.0.0.1",)


HANGS = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


@pytest.mark.parametrize(
    ("deploy", "progresses"),
    [
        (deployment(total=3, updated=1), True),
        (deployment(total=3, updated=1, conditions=[HANGS]), False),
        (deployment(total=3, updated=1, seen=False, conditions=[HANGS]), True),
        (deployment(total=3, updated=3), False),
    ],
    ids=["on its way", "hangs", "edited since it hung", "done"],
)
def test_a_rollout_that_hangs_is_not_on_its_way(deploy: Manifest, progresses: bool) -> None:
    assert read_rollout(deploy, []).progresses is progresses


def test_replicas_that_cannot_start_are_counted_without_those_that_are_over_or_of_a_lost_node() -> None:
    crashed = pod(containerStatuses=container(waiting={"reason": "ImagePullBackOff"}))
    evicted = pod(phase="Failed", reason="Evicted")
    assert read_rollout(deployment(total=3), [crashed, evicted, cut_off(), pod(), pod(ready=True)]).failing == 1


def test_a_transition_time_moves_only_when_the_answer_flips() -> None:
    first = report(facts(deployment()), now=NOON)
    again = stored({**manifest(), "status": as_manifest(first)})
    later = report(Facts(service=parse(again), rollout=read_rollout(deployment(ready=1), [])), now=LATER)
    moved = {each.type: each.last_transition_time for each in later.conditions}
    assert moved == {"Ready": LATER, "Reconciling": LATER, "Stalled": NOON, "ModelLoaded": LATER, "MonitoringReady": NOON}


SERVES = (deployment(ready=1), pod(ready=True))


def after(
    *seen: Manifest, then: tuple[Manifest, ...], generation: int = 1, problems: tuple[Trouble, ...] = ()
) -> dict[str, tuple[str, str]]:
    """The conditions of a service that `seen` was told of at generation 1, when it then is as in `then`."""
    told = as_manifest(report(facts(*seen), now=NOON))
    wanted = stored({**manifest(), "status": told})
    wanted["metadata"]["generation"] = generation
    return conditions(Facts(service=parse(wanted), rollout=read_rollout(then[0], then[1:]), problems=problems))


@pytest.mark.parametrize(
    ("unseen", "ready", "reconciling"),
    [
        pytest.param(
            after(*SERVES, then=(deployment(wanted=3, ready=1, seen=False), pod(ready=True))),
            ("True", "Serving"),
            ("False", "Complete"),
            id="a step of scaling",
        ),
        pytest.param(
            after(*SERVES, then=(deployment(ready=1, seen=False), pod(ready=True)), generation=2),
            ("False", "RollingOut"),
            ("True", "RollingOut"),
            id="an edit",
        ),
        pytest.param(
            after(deployment(ready=1, seen=False), pod(ready=True), then=(deployment(ready=1, seen=False), pod(ready=True))),
            ("False", "RollingOut"),
            ("True", "RollingOut"),
            id="an edit that was told",
        ),
        pytest.param(
            after(*SERVES, then=(deployment(wanted=3, ready=1, seen=False), pod())),
            ("False", "RollingOut"),
            ("True", "RollingOut"),
            id="a step when nothing serves any more",
        ),
        pytest.param(
            after(*SERVES, then=(deployment(wanted=3, ready=1, seen=False), pod(ready=True)), problems=(CONFLICT,)),
            ("False", "NameConflict"),
            ("False", "NameConflict"),
            id="a step beside a problem",
        ),
    ],
)
def test_what_the_deployment_s_controller_has_not_seen_yet(
    unseen: dict[str, tuple[str, str]], ready: tuple[str, str], reconciling: tuple[str, str]
) -> None:
    assert (unseen["Ready"], unseen["Reconciling"]) == (ready, reconciling)


def test_a_step_of_scaling_changes_no_condition() -> None:
    before = facts(*SERVES)
    assert after(*SERVES, then=(deployment(wanted=3, ready=1, seen=False), pod(ready=True))) == conditions(before)


def test_an_unchanged_service_has_an_unchanged_status() -> None:
    seen = facts(deployment(ready=1), pod(ready=True))
    first = as_manifest(report(seen, now=NOON))
    service = parse(stored({**manifest(), "status": first}))
    assert as_manifest(report(Facts(service=service, rollout=seen.rollout), now=LATER)) == first


def test_a_paused_service_says_so_and_keeps_what_it_said() -> None:
    serving = as_manifest(report(facts(deployment(ready=1)), now=NOON))
    service = parse(stored({**manifest(), "status": serving}))
    paused = report_paused(service, now=LATER)
    read = {each.type: (each.status, each.reason) for each in paused.conditions}
    assert read["Ready"] == ("True", "Serving")
    assert read["Reconciling"] == ("False", "Paused")
    again = parse(stored({**manifest(), "status": as_manifest(paused)}))
    assert report_paused(again, now="2027-01-01T00:00:00Z") == paused


def test_an_object_that_cannot_be_understood_is_stalled_and_names_the_field() -> None:
    status = report_invalid(stored(manifest()), problem="spec.model.name: too long", now=NOON)
    stalled = next(each for each in status.conditions if each.type == "Stalled")
    assert (stalled.status, stalled.reason) == ("True", "InvalidSpec")
    assert "spec.model.name" in stalled.message
    assert status.observed_generation == 1


HELD = Decision(desired=2, cause="LoadOnTarget", sentence="fine", load=20, target=10, fresh=2)


def told(decision: Decision, *, before: AutoscalingStatus | None, may_update_load: bool = False) -> AutoscalingStatus | None:
    return autoscaling_status(before, decision, measured_for="model", hint=None, may_update_load=may_update_load)


def test_the_seconds_per_request_are_told_in_two_digits_and_what_they_were_measured_for() -> None:
    measured = told(replace(HELD, seconds_per_request=2.469), before=None)
    assert measured is not None
    assert (measured.seconds_per_request, measured.measured_for) == (2.5, "model")
    little = replace(HELD, seconds_per_request=2.6)
    much = replace(HELD, seconds_per_request=3.9)
    assert told(little, before=measured, may_update_load=True) == measured
    assert told(much, before=measured, may_update_load=False) == measured
    assert told(much, before=measured, may_update_load=True) != measured


def test_a_load_is_told_with_a_decision_or_when_it_changed_much_and_enough_time_passed() -> None:
    first = told(HELD, before=None)
    assert first is not None
    little = Decision(desired=2, cause="LoadOnTarget", sentence="fine", load=22, target=10, fresh=2)
    much = Decision(desired=2, cause="LoadOnTarget", sentence="fine", load=26, target=10, fresh=2)
    grown = Decision(desired=3, cause="LoadAboveTarget", sentence="more", load=22, target=10, fresh=2)
    assert told(little, before=first, may_update_load=True) is first
    assert told(much, before=first) is first
    assert told(much, before=first, may_update_load=True) != first
    assert told(grown, before=first) != first


def test_an_uncertain_decision_is_not_told() -> None:
    assert told(Decision(desired=2, cause="MetricsUnavailable", sentence="", target=10, certain=False), before=None) is None


def test_the_whole_status_fits_the_model_it_is_read_with() -> None:
    written = as_manifest(report(facts(deployment(ready=1)), now=NOON))
    assert as_manifest(InferenceServiceStatus.model_validate(written)) == written


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (None, ("True", "ServiceMonitorApplied")),
        (NO_DEFINITION, ("False", "CRDNotInstalled")),
        (MONITOR_CONFLICT, ("False", "NameConflict")),
    ],
)
def test_monitoring_is_told_and_lowers_nothing_else(trouble: Trouble | None, expected: tuple[str, str]) -> None:
    serving = replace(facts(deployment(ready=1), pod(ready=True)), monitoring=trouble)
    assert conditions(serving)["MonitoringReady"] == expected
    assert kstatus(told_to_all(serving)) == "Current"


def test_a_service_without_monitoring_says_nothing_of_it() -> None:
    assert "MonitoringReady" not in conditions(facts(deployment(), monitoring={"enabled": False}))
    assert "MonitoringReady" not in conditions(replace(facts(deployment(), monitoring={"enabled": False}), monitoring=NO_DEFINITION))


@pytest.mark.parametrize(("labels", "warns"), [({}, True), ({"release": "prometheus"}, False)])
def test_a_service_monitor_that_nothing_distinguishes_may_be_ignored_and_that_is_told(labels: Manifest, warns: bool) -> None:
    (told,) = [
        each for each in report(facts(deployment(), monitoring={"labels": labels}), now=NOON).conditions if each.type == "MonitoringReady"
    ]
    assert ("spec.monitoring.labels" in told.message) is warns


def paused() -> Manifest:
    seen = stored({**manifest(), "status": as_manifest(report(facts(*SERVES), now=NOON))})
    seen["metadata"]["annotations"] = {PAUSED_ANNOTATION: "true"}
    return {**seen, "status": as_manifest(report_paused(parse(seen), now=NOON))}


def edited(read: Manifest) -> Manifest:
    return {**read, "metadata": {**read["metadata"], "generation": 2}}


@pytest.mark.parametrize(
    ("read", "by_kstatus", "by_argo"),
    [
        pytest.param(stored({**manifest(), "status": {"observedGeneration": -1}}), "InProgress", "Progressing", id="created a moment ago"),
        pytest.param(edited(told_to_all(facts(*SERVES))), "InProgress", "Progressing", id="edited a moment ago"),
        pytest.param(paused(), "Current", "Suspended", id="paused"),
        pytest.param(edited(paused()), "InProgress", "Suspended", id="edited while paused"),
        pytest.param(
            stored({**manifest(), "status": as_manifest(report_invalid(stored(manifest()), problem="spec.x: no", now=NOON))}),
            "Failed",
            "Degraded",
            id="stored under older rules",
        ),
    ],
)
def test_what_no_pass_has_changed_reads_right(read: Manifest, by_kstatus: str, by_argo: str) -> None:
    assert (kstatus(read), argo.health(read)[0]) == (by_kstatus, by_argo)


def test_argo_cd_shows_why_a_human_must_act() -> None:
    status, message = argo.health(told_to_all(facts(deployment(ready=1), problems=(CONFLICT,))))
    assert status == "Degraded"
    assert message == "Service 'chat' is not ours. Then this service is completed by itself."


def test_the_sketch_of_gitops_names_the_kind_as_argo_cd_does() -> None:
    sketch = (CHECKOUT / "gitops/argocd/README.md").read_text()
    assert f"resource.customizations.health.{GROUP}_{KIND}" in sketch
    assert PAUSED_ANNOTATION in argo.HEALTH


def test_an_edit_of_the_count_alone_leaves_what_serves_ready() -> None:
    """Until the Deployment's controller has seen it; the counts of before still hold, for the template is the same."""
    template = {"spec": {"containers": [{"name": "server", "image": "server:1"}]}}
    before = deployment(wanted=1, ready=1)
    before["spec"]["template"] = template
    after = deployment(wanted=4, ready=1, seen=False)
    after["metadata"]["generation"], after["spec"]["template"], after["status"] = 3, template, before["status"]
    scaled = replace(facts(None, autoscaling={"mode": "None"}, replicas=4), rollout=read_rollout(after, [pod(ready=True)], before=before))
    assert conditions(scaled)["Ready"] == ("True", "Serving")
    assert conditions(scaled)["Reconciling"] == ("True", "Starting")
    after["spec"]["template"] = {**template, "metadata": {"labels": {"a": "b"}}}
    edited = replace(scaled, rollout=read_rollout(after, [pod(ready=True)], before=before))
    assert conditions(edited)["Ready"] == ("False", "RollingOut")


def test_a_step_of_scaling_that_is_forbidden_is_told_and_what_serves_is_ready() -> None:
    forbidden = Trouble(cause="Forbidden", sentence="cannot patch deployments/scale", needs_a_human=False, bars_serving=False)
    words = AutoscalingStatus(desired=2, reason="Minimum: 2 replicas at least")
    seen = replace(facts(deployment(ready=1), pod(ready=True), autoscaling={"minReplicas": 2}), autoscaling=words, unscaled=forbidden)
    assert conditions(seen)["ScalingActive"] == ("False", "Forbidden")
    assert conditions(seen)["Reconciling"] == ("True", "Forbidden")
    assert conditions(seen)["Ready"] == ("True", "Serving")
