"""Parts that the fast tests share: a real API server without nodes."""

from collections.abc import Iterator

import pytest
from cluster.control_plane import ControlPlane


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ControlPlane]:
    """A real API server with garbage collection and RBAC, but no nodes; shared by the whole session, so use namespaces of your own."""
    with ControlPlane() as control_plane:
        yield control_plane
