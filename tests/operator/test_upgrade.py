"""An operator of an earlier commit makes the children; this one takes over, and goes again. With the same server image no pod is touched.

`tests/golden` says the same of single manifests; here it is the real operator of that time, which needs the repository's history.
"""

import ast
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
import yaml

from cluster.control_plane import ControlPlane
from millrace_operator.api import effective, parse
from millrace_operator.desired.pod import server_settings
from millrace_operator.manifest import Manifest
from millrace_operator.names import LEASE, RELEASE_ANNOTATION
from millrace_operator.release import RELEASE
from millrace_operator.source import parse_source
from operators import Api, Process, eventually
from services import CHECKOUT, stored

pytestmark = pytest.mark.apiserver

PREDECESSOR = "26bfe3491631416e1e8cae3854a311b1e0a4d88b"
"""A change of the pod template since then rolls every user's pods: it belongs in the CHANGELOG, and only then a later commit here."""
PATIENT = {"MILLRACE_LEASE_SECONDS": "12", "MILLRACE_LEASE_RENEW_SECONDS": "10"}
OK_PASSES = 'millrace_passes_total{outcome="ok"}'
PARTS = ("crds", "operator", "server/millrace_server/__init__.py", "server/millrace_server/settings.py", "manifests/examples")


@pytest.fixture(scope="module")
def predecessor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkout, as far as the operator needs it."""
    command = ["git", "-C", str(CHECKOUT), "archive", "--format=tar", PREDECESSOR, *PARTS]
    archive = subprocess.run(command, capture_output=True, check=False)
    assert archive.returncode == 0, f"this test needs the whole history, as `git fetch --unshallow` brings it: {archive.stderr.decode()}"
    folder = tmp_path_factory.mktemp("predecessor")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.fixture
def its_definition(control_plane: ControlPlane, predecessor: Path) -> Iterator[None]:
    """The cluster knows InferenceServices as they were."""
    control_plane.kubectl("apply", "-f", str(predecessor / "crds"))
    yield
    upgrade_definition(control_plane)


def upgrade_definition(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "-f", str(CHECKOUT / "crds"))


def its_examples(predecessor: Path) -> list[Manifest]:
    files = sorted((predecessor / "manifests/examples").glob("*.yaml"))
    everything = [each for file in files for each in yaml.safe_load_all(file.read_text())]
    return [each for each in everything if each["kind"] == "InferenceService"]


def templates(api: Api, names: list[str]) -> dict[str, Manifest]:
    found = {name: api.get("deployments", name) for name in names}
    return {name: deployment["spec"]["template"] for name, deployment in found.items() if deployment}


def pods(api: Api) -> dict[str, str]:
    """Name → UID."""
    items = api.client.get(f"/api/v1/namespaces/{api.namespace}/pods").json()["items"]
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in items if "deletionTimestamp" not in pod["metadata"]}


def test_an_upgrade_and_the_way_back_leave_every_pod_in_place(
    api: Api, control_plane: ControlPlane, predecessor: Path, its_definition: None, start: Callable[..., Process]
) -> None:
    of_old = {"PYTHONPATH": f"{predecessor / 'operator'}:{predecessor / 'server'}"}
    first = start(**of_old, **PATIENT)
    first.wait_until_it_leads()
    services = its_examples(predecessor)
    names = [service["metadata"]["name"] for service in services]
    for service in services:
        api.create({**service, "metadata": {"name": service["metadata"]["name"]}})
    eventually(lambda: len(templates(api, names)) == len(names), "every service has its Deployment")
    eventually(lambda: len(pods(api)) >= len(names) and OK_PASSES in first.get("/metrics").text, "and its replicas")
    first.wait_for_passes(2 * len(names))
    templates_before, pods_before = templates(api, names), pods(api)
    first.stop()
    upgrade_definition(control_plane)
    for environment in ({}, of_old):
        operator = start(**environment, **PATIENT)
        operator.wait_until_it_leads()
        eventually(lambda operator=operator: OK_PASSES in operator.get("/metrics").text, "the first pass")  # type: ignore[misc]
        operator.wait_for_passes(3 * len(names))
        assert bool(environment) or all(api.has("poddisruptionbudgets", name) for name in names), "this one makes more"
        assert templates(api, names) == templates_before
        assert pods(api) == pods_before
        assert operator.stop() == 0
        assert not operator.said("Traceback")


def test_an_operator_older_than_the_last_leader_waits_until_somebody_goes_back_on_purpose(
    api: Api, operator: Process, start: Callable[..., Process]
) -> None:
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{api.namespace}/leases/{LEASE}"
    assert operator.metric("millrace_outdated") == 0
    assert operator.stop() == 0
    assert api.client.get(lease).json()["metadata"]["annotations"][RELEASE_ANNOTATION] == RELEASE, "a Lease that is let go still says it"
    api.patch(lease, {"metadata": {"annotations": {RELEASE_ANNOTATION: f"1{RELEASE}"}}})
    older = start(**PATIENT)
    eventually(lambda: older.said(f"version 1{RELEASE} has led"), "it tells why it does not lead")
    assert older.get("/readyz").status_code == 503, "so a rollout of it stops, and the newer ones stay"
    assert older.get("/livez").status_code == 200
    assert (older.metric("millrace_outdated"), older.metric("millrace_leader")) == (1, 0)
    assert api.client.get(lease).json()["spec"]["holderIdentity"] == ""
    api.delete(lease)
    older.wait_until_it_leads()
    eventually(lambda: older.get("/readyz").status_code == 200, "it is ready")


def test_the_server_of_that_time_understands_what_this_operator_tells_it(predecessor: Path) -> None:
    """Names are append-only: what an example that it knows is told, in a pod of today, it reads as the same settings."""
    folders = f"{predecessor / 'operator'}:{predecessor / 'server'}"
    for wanted in its_examples(predecessor):
        service = parse(stored(wanted))
        settings = server_settings(service.spec, parse_source(effective(service).source))
        script = (
            "from millrace_server.settings import ServerSettings as S; import os; print(S.from_environment(os.environ).to_environment())"
        )
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": folders, **settings.to_environment()}
        understood = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert understood.returncode == 0, understood.stderr
        assert ast.literal_eval(understood.stdout) == settings.to_environment()
