"""A whole Kubernetes with Millrace installed, shared by the session; every test works in a namespace of its own.

Nothing is skipped where no cluster can be had: the tests fail with the reason, and `make test E2E=0` leaves them out on purpose.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.provider import Provider, choose
from demo_service import PATIENT, Service, demo_service
from installation import Installation, References
from kube import Kube, fresh_namespace


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="real lengths of time, as `make e2e-long` runs them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes a quarter of an hour's build on a fresh machine is left to the long run."""
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="only in `make e2e-long`"))


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether durations have their real length."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def provider() -> Provider:
    """The cluster's provider; the cluster is up and stays up, for the next run."""
    chosen = choose()
    chosen.up()
    return chosen


@pytest.fixture(scope="session")
def kube(provider: Provider) -> Kube:
    return Kube(provider.up())


@pytest.fixture(scope="session")
def references(provider: Provider) -> References:
    return References.built(provider)


@pytest.fixture(scope="session")
def installation(kube: Kube, references: References) -> Installation:
    """Installed by the chart."""
    installed = Installation(kube, references)
    installed.by_chart()
    return installed


@pytest.fixture
def namespace(kube: Kube) -> Iterator[str]:
    with fresh_namespace(kube) as name:
        yield name


@pytest.fixture
def serve(kube: Kube, provider: Provider, installation: Installation, references: References, namespace: str) -> Callable[..., Service]:
    """Apply an InferenceService of the demo model in the test's namespace; further fields go into its spec."""

    def applied(name: str = "chat", **spec: Any) -> Service:  # noqa: ANN401 - any part of the spec
        kube.apply(demo_service(name, namespace=namespace, model_image=references.model, **spec))
        return Service(kube, namespace, name, provider.node_address())

    return applied


@pytest.fixture(scope="session")
def chat(kube: Kube, provider: Provider, installation: Installation, references: References) -> Iterator[Service]:
    """One service of one replica, ready, for the tests that only ask it and leave it as it is."""
    with fresh_namespace(kube) as name:
        kube.apply(demo_service("chat", namespace=name, model_image=references.model, autoscaling={"maxReplicas": 1}, **PATIENT))
        yield Service(kube, name, "chat", provider.node_address()).wait_ready()
