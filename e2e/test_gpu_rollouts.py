"""GPUs are scarce: a rollout needs no spare one unless it is asked to, and a pod that waits for one says so."""

from collections.abc import Callable
from typing import Any

import pytest

import gpus
from cluster.provider import Provider
from demo_service import Service
from kube import Kube, condition, wait_for
from nodes import node_names
from traffic import Traffic

TOLD_SECONDS = 30


@pytest.fixture(scope="module")
def gpu(provider: Provider) -> dict[str, Any]:
    """The fields of a service whose one replica takes a GPU."""
    return {"device": "cuda", "image": provider.load(gpus.server_image()), "autoscaling": {"mode": "None"}, "replicas": 1}


def reason(service: Service, kind: str) -> tuple[str, str]:
    told = condition(service.manifest(), kind)
    return told.get("status", ""), told.get("reason", "")


def events(service: Service) -> list[str]:
    """The reasons of the Events about the service."""
    items = service.kube.get("events.events.k8s.io", "-n", service.namespace)["items"]
    return [each["reason"] for each in items if each["regarding"]["kind"] == "InferenceService"]


def test_without_a_gpu_it_is_told_and_with_one_a_rollout_is_done_in_its_place(
    serve: Callable[..., Service], kube: Kube, gpu: dict[str, Any]
) -> None:
    service = serve(**gpu)
    wait_for("it is told", lambda: reason(service, "Ready") == ("False", "InsufficientGPU"), seconds=TOLD_SECONDS, tell=service.describe)
    assert reason(service, "Reconciling") == ("True", "InsufficientGPU")
    assert "Free or add an accelerator" in condition(service.manifest(), "Ready")["message"]
    with gpus.gpus_of(kube, node_names(kube)[0]) as advertise:
        advertise(1)
        service.wait_ready()
        [before] = kube.pods(service.namespace, service.name)
        assert before["spec"]["containers"][0]["resources"]["limits"][gpus.RESOURCE] == "1"
        service.edit(batching={"maxSize": 3})
        service.wait_ready()
        [after] = kube.pods(service.namespace, service.name)
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert events(service).count("InsufficientGPU") == 1, (
        "told when none was there, and not of the one that its predecessor had yet to free"
    )


def test_a_surge_waits_for_a_spare_gpu_which_is_told_and_with_one_no_request_fails(
    serve: Callable[..., Service], kube: Kube, gpu: dict[str, Any]
) -> None:
    with gpus.gpus_of(kube, node_names(kube)[0]) as advertise:
        advertise(1)
        service = serve(**gpu, rollout={"maxSurge": 1}).wait_ready()
        [before] = kube.pods(service.namespace, service.name)
        with Traffic(service.url, clients=2) as traffic:
            service.edit(batching={"maxSize": 3})
            told = ("True", "InsufficientGPU")
            wait_for("it is told", lambda: reason(service, "Reconciling") == told, seconds=TOLD_SECONDS, tell=service.describe)
            assert before["metadata"]["uid"] in {pod["metadata"]["uid"] for pod in kube.pods(service.namespace, service.name)}
            advertise(2)
            service.wait_ready()
            wait_for("the old one is gone", lambda: len(kube.pods(service.namespace, service.name)) == 1, seconds=90, tell=service.describe)
        assert traffic.answered > 0
        assert traffic.answered == traffic.outcomes.total(), traffic.outcomes
