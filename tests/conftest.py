"""Parts that the fast tests share: a real API server without nodes, a real server with a tiny model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cluster.control_plane import ControlPlane
from gpu_marker import pytest_collection_modifyitems, pytest_terminal_summary  # noqa: F401 - pytest finds them here
from running_server import RunningServer

# How long an example takes depends on who else computes on this machine, and says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ControlPlane]:
    """A real API server with garbage collection and RBAC, but no nodes; shared by the whole session, so use namespaces of your own."""
    with ControlPlane() as control_plane:
        yield control_plane


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama of fake_model.py, saved once."""
    import fake_model  # torch takes seconds to import: only for those who ask

    return fake_model.build(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[RunningServer]:
    """A server with the tiny model and short time limits, shared by the session: leave it idle, and count differences."""
    settings = {
        "MAX_BATCH_SIZE": "8",
        "HEAD_TIMEOUT": "1",
        "BODY_TIMEOUT": "1",
        "MAX_BODY_BYTES": "20000",
        "CONNECTION_SECONDS": "1",
    }
    with RunningServer(tmp_path_factory.mktemp("server"), model=tiny_model, settings=settings) as running:
        yield running.wait_ready()
