"""Replicas follow the queue: up within seconds of a load step, down again after the window, and the status says why."""

import time
from collections.abc import Callable

from demo_service import READY_SECONDS, Service
from kube import Kube, Manifest, wait_for
from traffic import Traffic

DECISION_SECONDS = 15


def test_a_load_step_adds_a_replica_that_serves_and_is_taken_away_again(kube: Kube, serve: Callable[..., Service]) -> None:
    service = serve(autoscaling={"minReplicas": 1, "maxReplicas": 2, "targetPerReplica": 2}, batching={"maxSize": 4}).wait_ready()
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


def _told(service: Service, *, desired: int) -> Manifest | None:
    words: Manifest = service.manifest()["status"].get("autoscaling", {})
    return words if words.get("desired") == desired and words.get("reason") else None
