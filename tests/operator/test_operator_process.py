"""The operator as a process: idle, paused, restarted, beside another one, frozen, killed. Each test has its own, and its own Lease."""

import json
import signal
import time
from collections.abc import Callable

import pytest

from millrace_operator.manifest import Manifest
from millrace_operator.names import LEASE, PAUSED_ANNOTATION
from operators import DEADLINE, Api, Process, cpu_service, eventually, writes
from services import example

pytestmark = pytest.mark.apiserver


@pytest.mark.parametrize("spec", [{"autoscaling": {"minReplicas": 2}}, example("team")["spec"]])
def test_twice_is_once(api: Api, service_monitors: None, operator: Process, spec: Manifest) -> None:
    api.create({**cpu_service(), "spec": {"model": {"name": "owner/model"}, "device": "cpu", **spec}})
    eventually(api.is_complete, "children and status exist")
    eventually(lambda: api.condition("MonitoringReady")[0] == "True", "the ServiceMonitor exists")
    eventually(lambda: api.condition("ScalingActive") == ("False", "NoReadyReplicas"), "scaling has looked")
    eventually(lambda: api.service()["status"].get("replicas") == 2, "the status tells the replicas")
    operator.wait_for_lists(2)
    before, passes = writes(api.control_plane), operator.metric('millrace_passes_total{outcome="ok"}')
    operator.wait_for_lists(10)
    assert operator.metric('millrace_passes_total{outcome="ok"}') >= passes + 10, "the service was looked at"
    assert writes(api.control_plane) == before


def test_a_restarted_operator_changes_nothing(api: Api, operator: Process, start: Callable[..., Process]) -> None:
    api.create(cpu_service(autoscaling={"minReplicas": 2}))
    eventually(lambda: api.is_complete() and api.service()["status"].get("replicas") == 2, "everything is told")
    eventually(lambda: api.condition("ScalingActive")[0] == "False", "scaling has looked")
    operator.wait_for_lists(2)
    before = writes(api.control_plane)
    assert operator.stop() == 0
    second = start()
    second.wait_until_it_leads()
    eventually(lambda: second.said("leading as") and second.metric("millrace_last_full_list_timestamp_seconds") > 0, "the first list")
    second.wait_for_lists(4)
    assert writes(api.control_plane) == before


def test_a_paused_service_is_not_touched(api: Api, operator: Process) -> None:
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    api.edit({"metadata": {"annotations": {PAUSED_ANNOTATION: "true"}}})
    eventually(lambda: api.condition("Reconciling") == ("False", "Paused"), "it says so")
    before = writes(api.control_plane)
    api.delete(api.path("services", "chat-metrics"))
    operator.wait_for_lists(4)
    assert writes(api.control_plane) == before
    assert not api.has("services", "chat-metrics")
    api.edit({"metadata": {"annotations": {PAUSED_ANNOTATION: None}}})
    eventually(lambda: api.has("services", "chat-metrics"), "it goes on")


def test_of_two_operators_one_works_and_the_other_takes_over_at_once(api: Api, operator: Process, start: Callable[..., Process]) -> None:
    second = start()
    eventually(lambda: second.said("probes and metrics"), "the second is up")
    assert second.get("/readyz").status_code == 200
    assert (operator.metric("millrace_leader"), second.metric("millrace_leader")) == (1, 0)
    api.create(cpu_service("one"))
    eventually(lambda: api.is_complete("one"), "the leader works")
    assert second.metric("millrace_services") == 0
    began = time.monotonic()
    assert operator.stop() == 0
    stopped = time.monotonic() - began
    assert stopped < 5
    second.wait_until_it_leads()
    print(f"stopped after {stopped:.2f} s, followed after {time.monotonic() - began:.2f} s")  # noqa: T201 - a figure to report
    api.create(cpu_service("two"))
    eventually(lambda: api.is_complete("two"), "the new leader works")


def test_a_frozen_leader_is_followed_and_ends_when_it_wakes(api: Api, operator: Process, start: Callable[..., Process]) -> None:
    second = start()
    eventually(lambda: second.said("probes and metrics"), "the second is up")
    operator.process.send_signal(signal.SIGSTOP)
    second.wait_until_it_leads()
    operator.process.send_signal(signal.SIGCONT)
    assert operator.process.wait(timeout=DEADLINE) == 1
    assert operator.said("leadership lost")


def test_a_lease_that_is_deleted_is_made_again_and_one_given_to_somebody_else_ends_the_leader(api: Api, operator: Process) -> None:
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{api.namespace}/leases/{LEASE}"
    api.delete(lease)
    eventually(lambda: api.client.get(lease).status_code == 200, "it is made again")
    assert operator.process.poll() is None
    api.patch(lease, {"spec": {"holderIdentity": "somebody-else"}})
    assert operator.process.wait(timeout=DEADLINE) == 1
    assert operator.said("the Lease is now held by 'somebody-else'")


def test_a_killed_leader_is_followed(operator: Process, start: Callable[..., Process]) -> None:
    second = start()
    eventually(lambda: second.said("probes and metrics"), "the second is up")
    operator.stop(signal.SIGKILL)
    second.wait_until_it_leads()


def test_the_operator_is_small_and_alive(operator: Process) -> None:
    assert operator.get("/livez").text == "ok"
    eventually(lambda: operator.metric("millrace_last_full_list_timestamp_seconds") > 0, "the first list")
    megabytes = operator.metric("process_resident_memory_bytes") / 2**20
    print(f"resident memory {megabytes:.0f} MiB")  # noqa: T201 - a figure to report
    assert megabytes <= 90


def test_a_stored_object_that_today_s_schema_refuses_is_told_once(api: Api, operator: Process) -> None:
    crd = "crd/inferenceservices.millrace.dev"
    field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/batching/properties/maxSize/maximum"
    original = api.control_plane.kubectl("get", crd, "-o=jsonpath={" + field.replace("/", ".").replace(".0.", "[0].") + "}")

    def limit(value: str) -> None:
        api.control_plane.kubectl("patch", crd, "--type=json", "-p", json.dumps([{"op": "replace", "path": field, "value": int(value)}]))

    def stored() -> bool:
        answer = api.client.post(api.root, json=cpu_service(batching={"maxSize": 99_999}))
        return answer.status_code == 201

    try:
        limit("100000")
        eventually(stored, "the looser schema accepts it")
    finally:
        limit(original)
    eventually(lambda: api.condition("Stalled") == ("True", "InvalidSpec"), "it is told")
    (message,) = [each["message"] for each in api.service()["status"]["conditions"] if each["type"] == "Stalled"]
    assert "spec.batching.maxSize" in message
    before = writes(api.control_plane)
    operator.wait_for_lists(3)
    assert writes(api.control_plane) == before
    assert not operator.said("retried")
    api.edit({"spec": {"image": "other:1"}})  # what an edit leaves alone is not judged again
    eventually(lambda: api.service()["status"]["observedGeneration"] == 2, "the edit is seen")
    assert api.condition("Stalled") == ("True", "InvalidSpec")
    api.edit({"spec": {"batching": {"maxSize": 32}}})
    eventually(lambda: api.condition("Stalled")[0] == "False" and api.image() == "other:1", "the correction heals it")


def test_the_operator_s_metrics_tell_its_work_and_every_service_until_it_goes(api: Api, operator: Process) -> None:
    api.create(cpu_service(autoscaling={"minReplicas": 2}))
    eventually(lambda: api.is_complete() and api.is_replicas(2), "children exist and are scaled")
    labels = f'{{name="chat",namespace="{api.namespace}"}}'
    eventually(lambda: operator.metric(f"millrace_service_desired_replicas{labels}") == 2, "the wanted replicas")
    assert operator.metric(f"millrace_service_ready_replicas{labels}") == 0
    assert operator.metric(f'millrace_service_ready{labels[:-1]},reason="Starting"}}') == 0
    assert operator.metric('millrace_writes_total{kind="Deployment",verb="apply"}') == 1
    assert operator.metric('millrace_writes_total{kind="Deployment",verb="scale"}') == 1
    assert operator.metric('millrace_writes_total{kind="Service",verb="apply"}') == 2
    assert operator.metric('millrace_writes_total{kind="InferenceService",verb="status"}') >= 1
    assert abs(time.time() - operator.metric("millrace_last_full_list_timestamp_seconds")) < DEADLINE  # noqa: TID251 - a date
    api.delete(f"{api.root}/chat")
    eventually(lambda: 'name="chat"' not in operator.get("/metrics").text, "its series are gone")


def test_why_passes_fail_is_counted(api: Api, operator: Process) -> None:
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat"}, "spec": {"ports": [{"port": 1}]}}
    assert api.client.post(api.path("services", ""), json=foreign).status_code == 201
    api.create(cpu_service())
    eventually(lambda: 'millrace_errors_total{reason="NameConflict"}' in operator.get("/metrics").text, "the reason is counted")


def test_a_crowd_of_services_that_come_and_go_at_once_is_written_no_faster_than_the_bucket_allows(
    api: Api, start: Callable[..., Process]
) -> None:
    per_second, burst, crowd = 40, 40, [f"chat-{number}" for number in range(40)]
    operator = start(MILLRACE_WRITES_PER_SECOND=str(per_second), MILLRACE_WRITE_BURST=str(burst))
    operator.wait_until_it_leads()
    began = time.monotonic()
    for name in crowd:
        api.create(cpu_service(name))
    eventually(lambda: all(api.is_complete(name) for name in crowd), "all have their children", seconds=120)
    written = operator.total("millrace_writes_total")
    assert written <= burst + per_second * (time.monotonic() - began)
    api.delete(api.root)
    eventually(lambda: "millrace_service_ready{" not in operator.get("/metrics").text, "nothing is told of them any more", seconds=60)
    eventually(lambda: operator.metric("millrace_queue_depth") == 0, "the queue is empty")
    assert not operator.said("Traceback")
    assert not operator.said("TooManyRequests")
