"""A real API server that knows InferenceServices, a namespace per test, and operators."""

import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from operators import FAST, Api, Process, install_service_monitors, remove_service_monitors
from services import CHECKOUT


@pytest.fixture(scope="module")
def control_plane(apiserver: ControlPlane) -> ControlPlane:
    apiserver.kubectl("apply", "-f", str(CHECKOUT / "crds"))
    apiserver.kubectl("wait", "--for=condition=Established", "crd/inferenceservices.millrace.dev", "--timeout=20s")
    return apiserver


@pytest.fixture
def api(control_plane: ControlPlane) -> Iterator[Api]:
    namespace = f"operator-{uuid.uuid4().hex[:8]}"
    control_plane.kubectl("create", "namespace", namespace)
    result = Api(control_plane, namespace)
    yield result
    result.clear()
    result.client.close()
    control_plane.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


@pytest.fixture
def service_monitors(control_plane: ControlPlane) -> Iterator[None]:
    """The cluster knows ServiceMonitors."""
    install_service_monitors(control_plane)
    yield
    remove_service_monitors(control_plane)


@pytest.fixture(scope="module")
def shared_operator(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One for all tests of a file. It serves every namespace, and without a full list it has only its watches."""
    environment = {**FAST, "KUBECONFIG": str(control_plane.kubeconfig), "MILLRACE_RESYNC_SECONDS": "600"}
    process = Process(environment, tmp_path_factory.mktemp("operator") / "operator.log")
    process.wait_until_it_leads()
    yield process
    assert process.stop() == 0
    assert "Traceback" not in process.log.read_text()


@pytest.fixture
def start(api: Api, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts operators that serve the test's namespace only, and ends what the test left running."""
    started: list[Process] = []

    def start_one(**environment: str) -> Process:
        own = {
            "KUBECONFIG": str(api.control_plane.kubeconfig),
            "MILLRACE_NAMESPACES": api.namespace,
            "MILLRACE_LEASE_NAMESPACE": api.namespace,
        }
        started.append(Process({**FAST, **own, **environment}, tmp_path / f"operator-{len(started)}.log"))
        return started[-1]

    yield start_one
    for each in started:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGCONT)
            each.process.kill()
            each.process.wait()


@pytest.fixture
def operator(start: Callable[..., Process]) -> Process:
    """One of the test's own."""
    process = start()
    process.wait_until_it_leads()
    return process
