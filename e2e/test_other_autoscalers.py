"""A real HorizontalPodAutoscaler on the real metrics-server, and in the long run the real KEDA, scales what is left to it; and handing over
moves nothing.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import pytest

import hpa
import keda
from cluster.provider import Provider
from demo_service import PATIENT, Service
from kube import Kube, Manifest, condition, wait_for
from traffic import Traffic

MOST = 2
STABLE_SECONDS = 45
UP_SECONDS = 300
"""metrics-server looks every 15 s and needs two looks, the controller looks every 15 s as well, and then comes the cold start."""
DOWN_SECONDS = 300
TOLD_SECONDS = 60
PATCHED_SCALE = re.compile(r'^apiserver_request_total\{.*resource="deployments".*subresource="scale".*verb="PATCH"')
RESOURCES = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
"""An idle replica takes a few hundredths of a core, a busy one more than it asked for, also where others use the cores."""


class Other(Protocol):
    """A module of this folder."""

    def running(self, kube: Kube, provider: Provider) -> AbstractContextManager[None]: ...

    def autoscaler(self, service: Service, *, most: int, stable_seconds: int) -> list[Manifest]: ...

    def decides(self, service: Service) -> bool: ...


OTHERS: dict[str, Other] = {"hpa": hpa, "keda": keda}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """KEDA is half an hour's build on a fresh machine."""
    names = ["hpa", "keda"] if metafunc.config.getoption("--long") else ["hpa"]
    metafunc.parametrize("other", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def other(request: pytest.FixtureRequest, kube: Kube, provider: Provider) -> Iterator[Other]:
    chosen = OTHERS[request.param]
    with chosen.running(kube, provider):
        yield chosen


def deployment(service: Service) -> Manifest:
    return service.kube.get("deployment", service.name, "-n", service.namespace, "--show-managed-fields")


def generation(service: Service) -> int:
    """Of the Deployment; every other count of replicas is one more."""
    return int(deployment(service)["metadata"]["generation"])


def applies_a_count(service: Service) -> bool:
    entries = deployment(service)["metadata"]["managedFields"]
    return any("f:replicas" in each["fieldsV1"].get("f:spec", {}) for each in entries if each["operation"] == "Apply")


def patched_scales(kube: Kube) -> float:
    """Writes of a count as the operator makes them, as the API server counts them; the controller of an autoscaler sends PUT."""
    counts = [line for line in kube.kubectl("get", "--raw", "/metrics").splitlines() if PATCHED_SCALE.match(line)]
    return sum(float(line.rpartition(" ")[2]) for line in counts)


def all_serve(service: Service, replicas: int) -> bool:
    return bool(service.replicas() == replicas and service.manifest()["status"].get("readyReplicas") == replicas)


def test_it_scales_a_service_that_leaves_its_count_to_others_and_the_operator_never_writes_it(
    kube: Kube, serve: Callable[..., Service], other: Other
) -> None:
    patched = patched_scales(kube)
    service = serve(autoscaling={"mode": "None"}, resources=RESOURCES, **PATIENT).wait_ready()
    kube.apply(*other.autoscaler(service, most=MOST, stable_seconds=STABLE_SECONDS))

    def told() -> str:
        return kube.kubectl("describe", "hpa", "-n", service.namespace) + service.describe()

    with Traffic(service.url, clients=6, max_tokens=100) as traffic:
        wait_for("both replicas serve", lambda: all_serve(service, MOST), seconds=UP_SECONDS, tell=told)
    service.edit(service={"type": "NodePort", "annotations": {"millrace.test/edit": "1"}})
    service.wait_ready()
    assert service.replicas() == MOST, "a pass that writes something else leaves the count alone"
    wait_for("one replica is left", lambda: service.replicas() == 1, seconds=DOWN_SECONDS, tell=told)
    assert (applies_a_count(service), patched_scales(kube)) == (False, patched)
    assert traffic.answered > 0
    assert traffic.answered == traffic.outcomes.total(), traffic.outcomes


def test_the_count_stays_when_ours_hands_over_to_it_and_takes_over_again_under_load(
    kube: Kube, serve: Callable[..., Service], other: Other
) -> None:
    service = serve(
        autoscaling={"maxReplicas": MOST, "targetPerReplica": 2}, batching={"maxSize": 4}, resources=RESOURCES, **PATIENT
    ).wait_ready()
    beside = other.autoscaler(service, most=MOST, stable_seconds=STABLE_SECONDS)

    def scaling() -> str:
        return str(condition(service.manifest(), "ScalingActive").get("reason", ""))

    def is_observed() -> bool:
        manifest = service.manifest()
        return bool(manifest["status"]["observedGeneration"] == manifest["metadata"]["generation"])

    with Traffic(service.url, clients=6, max_tokens=100) as traffic:
        wait_for("both replicas serve", lambda: all_serve(service, MOST), seconds=UP_SECONDS, tell=service.describe)
        before = generation(service)
        service.edit(autoscaling={"mode": "None"})
        wait_for("the operator lets go", is_observed, seconds=TOLD_SECONDS, tell=service.describe)
        assert scaling() == ""
        kube.apply(*beside)
        wait_for("the other one scales", lambda: other.decides(service), seconds=UP_SECONDS, tell=service.describe)
        service.edit(autoscaling={"mode": "Embedded"})
        wait_for("of two ours stands down", lambda: scaling() == "ConflictingAutoscaler", seconds=TOLD_SECONDS, tell=service.describe)
        kube.delete(*beside)
        wait_for("alone it scales again", lambda: scaling() == "FollowingLoad", seconds=TOLD_SECONDS, tell=service.describe)
        assert (service.replicas(), generation(service)) == (MOST, before), "no step passed through another count"
    assert traffic.answered > 0
    assert traffic.answered == traffic.outcomes.total(), traffic.outcomes
