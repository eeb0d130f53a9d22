"""ServiceMonitors, with the definition that the Prometheus operator brings: absent, appearing, going away."""

import time
from collections.abc import Callable, Iterator

import pytest

from cluster.control_plane import ControlPlane
from millrace_operator.manifest import Manifest
from operators import Api, Process, cpu_service, eventually, install_service_monitors, remove_service_monitors

pytestmark = pytest.mark.apiserver


@pytest.fixture
def undefined(control_plane: ControlPlane) -> Iterator[None]:
    remove_service_monitors(control_plane)
    yield
    remove_service_monitors(control_plane)


@pytest.fixture
def patient(start: Callable[..., Process]) -> Process:
    """An operator that makes no full list for as long as a test lasts."""
    process = start(MILLRACE_RESYNC_SECONDS="600")
    process.wait_until_it_leads()
    return process


def monitor(api: Api) -> Manifest | None:
    return api.get("servicemonitors", "chat")


def is_monitored(api: Api) -> bool:
    return monitor(api) is not None and api.condition("MonitoringReady") == ("True", "ServiceMonitorApplied")


def nothing_else_moves(api: Api) -> bool:
    """What Kubernetes' controllers still had to say of the other children is said: no event of theirs will call for a pass."""
    budget = api.get("poddisruptionbudgets", "chat") or {}
    is_counted = budget.get("status", {}).get("expectedPods") == 1
    return is_counted and api.service()["status"]["replicas"] == 1 and api.condition("ScalingActive") == ("False", "NoReadyReplicas")


def test_a_definition_may_come_and_go_and_come_again_and_nothing_fails(
    api: Api, undefined: None, patient: Process, control_plane: ControlPlane
) -> None:
    api.create(cpu_service())
    eventually(lambda: api.is_complete() and api.condition("MonitoringReady") == ("False", "CRDNotInstalled"), "its absence is told")
    assert api.condition("Stalled") == ("False", "Progressing")
    assert api.condition("Ready") == ("False", "Starting")
    for _ in range(2):
        install_service_monitors(control_plane)
        eventually(lambda: is_monitored(api), "the ServiceMonitor is made")
        assert api.condition("Stalled") == ("False", "Progressing")
        remove_service_monitors(control_plane)
        eventually(lambda: api.condition("MonitoringReady") == ("False", "CRDNotInstalled"), "the definition has gone")
        assert patient.process.poll() is None


def test_a_service_made_since_the_last_list_learns_that_the_definition_has_come(
    api: Api, undefined: None, patient: Process, control_plane: ControlPlane
) -> None:
    time.sleep(5)  # kopf's watches have begun: no list that they cause finds the service
    api.create(cpu_service())
    eventually(lambda: api.is_complete() and nothing_else_moves(api), "no event will call for a pass")
    install_service_monitors(control_plane)
    eventually(lambda: is_monitored(api), "the ServiceMonitor is made")


def test_a_missing_definition_costs_no_retry(api: Api, undefined: None, operator: Process) -> None:
    api.create(cpu_service())
    eventually(lambda: api.is_complete() and api.condition("MonitoringReady") == ("False", "CRDNotInstalled"), "its absence is told")
    operator.wait_for_lists(2)
    assert not operator.said("retried")


def test_the_service_monitor_is_as_the_service_says(api: Api, service_monitors: None, patient: Process) -> None:
    api.create(cpu_service(monitoring={"labels": {"release": "prometheus"}}))
    eventually(lambda: is_monitored(api), "the ServiceMonitor is made")
    live = monitor(api)
    assert live is not None
    assert live["metadata"]["labels"]["release"] == "prometheus"
    api.edit({"spec": {"monitoring": {"enabled": False}}})
    eventually(lambda: monitor(api) is None, "it goes when nobody wants it")
    eventually(lambda: api.condition("MonitoringReady") == ("", ""), "nothing is said of what nobody wants")


def test_a_service_monitor_that_is_deleted_or_edited_is_repaired(api: Api, service_monitors: None, patient: Process) -> None:
    api.create(cpu_service())
    eventually(lambda: is_monitored(api) and nothing_else_moves(api), "everything is made and told")
    eventually(lambda: patient.metric("millrace_queue_depth") == 0, "the queue is empty")
    api.delete(api.path("servicemonitors", "chat"))
    eventually(lambda: monitor(api) is not None, "it is back")
    api.patch(api.path("servicemonitors", "chat"), {"spec": {"selector": {"matchLabels": {"app": "evil"}}}})

    def is_ours() -> bool:
        live = monitor(api)
        return live is not None and "app" not in live["spec"]["selector"]["matchLabels"]

    eventually(is_ours, "the selector is ours again")


def test_a_foreign_service_monitor_is_never_adopted_and_stalls_nothing(api: Api, service_monitors: None, patient: Process) -> None:
    spec = {"selector": {"matchLabels": {"app": "theirs"}}, "endpoints": [{"port": "theirs"}]}
    foreign = {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {"name": "chat"}, "spec": spec}
    assert api.client.post(api.path("servicemonitors", ""), json=foreign).status_code == 201
    api.create(cpu_service())
    eventually(lambda: api.condition("MonitoringReady") == ("False", "NameConflict"), "the conflict is told")
    assert api.condition("Stalled") == ("False", "Progressing")
    assert api.condition("Ready") == ("False", "Starting")
    live = monitor(api)
    assert live is not None
    assert live["spec"] == spec
    api.delete(api.path("servicemonitors", "chat"))
    eventually(lambda: is_monitored(api), "it heals without an edit")
