"""Replicas follow the queue: up within seconds of a load step, down again after the window, and the status says why."""

import time
from collections.abc import Callable

from demo_service import PATIENT, READY_SECONDS, Service
from kube import Kube, Manifest, wait_for
from traffic import Traffic

DECISION_SECONDS = 15
UP_INTERVAL = 15
"""Between two steps up."""


def test_a_load_step_adds_a_replica_that_serves_and_is_taken_away_again(kube: Kube, serve: Callable[..., Service]) -> None:
    service = serve(
        autoscaling={"minReplicas": 1, "maxReplicas": 2, "targetPerReplica": 2}, batching={"maxSize": 4}, **PATIENT
    ).wait_ready()
    with Traffic(service.url, clients=6, max_tokens=100) as traffic:
        started = time.monotonic()
        wait_for("two replicas are wanted", lambda: service.replicas() == 2, seconds=DECISION_SECONDS, tell=service.describe)
        print(f"load step to decision: {time.monotonic() - started:.1f} s")
        words = wait_for("the status explains it", lambda: _told(service, desired=2), seconds=10, tell=service.describe)
        assert words["target"] == 2
        assert words["load"] > 2
        two_ready = "two replicas are ready"
        wait_for(two_ready, lambda: service.manifest()["status"].get("readyReplicas") == 2, seconds=READY_SECONDS, tell=service.describe)
        print(f"load step to second replica: {time.monotonic() - started:.1f} s")
    wait_for("one replica is left", lambda: service.replicas() == 1, seconds=90, tell=service.describe)
    wait_for("the status says so", lambda: _told(service, desired=1), seconds=10, tell=service.describe)
    assert traffic.answered > 0
    assert traffic.answered == traffic.outcomes.total(), traffic.outcomes


def test_a_count_written_by_hand_gives_way_to_the_load_and_an_event_tells_it(kube: Kube, serve: Callable[..., Service]) -> None:
    service = serve(
        autoscaling={"minReplicas": 1, "maxReplicas": 2, "targetPerReplica": 2}, batching={"maxSize": 4}, **PATIENT
    ).wait_ready()
    with Traffic(service.url, clients=6, max_tokens=100) as traffic:
        wait_for("two replicas are wanted", lambda: service.replicas() == 2, seconds=DECISION_SECONDS, tell=service.describe)
        kube.kubectl("scale", f"deployment/{service.name}", "-n", service.namespace, "--replicas=1")
        wait_for("two are wanted again", lambda: service.replicas() == 2, seconds=UP_INTERVAL + DECISION_SECONDS, tell=service.describe)
        wait_for("both steps are told", lambda: _steps_up(service) == 2, seconds=10, tell=service.describe)
    assert traffic.answered > 0
    assert traffic.answered == traffic.outcomes.total(), traffic.outcomes


def _steps_up(service: Service) -> int:
    """From one replica to two; equal Events are one with a count."""
    found = service.kube.get("events.events.k8s.io", "-n", service.namespace, "--field-selector=reason=ScaledUp")["items"]
    steps = [each for each in found if each["note"].startswith("from 1 to 2 replicas: ")]
    return sum((each.get("series") or {}).get("count", 1) for each in steps)


def _told(service: Service, *, desired: int) -> Manifest | None:
    words: Manifest = service.manifest()["status"].get("autoscaling", {})
    return words if words.get("desired") == desired and words.get("reason") else None
