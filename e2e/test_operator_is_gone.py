"""Traffic does not depend on the operator: not while it is gone, not when it comes back."""

import time
from contextlib import suppress

import pytest

from demo_service import Service
from installation import NAMESPACE, REPLICAS, Installation, leader
from kube import Kube, Refused, wait_for
from traffic import Traffic

ABSENT_SECONDS = 60


def uids(kube: Kube, service: Service) -> set[str]:
    return {pod["metadata"]["uid"] for pod in kube.pods(service.namespace, service.name)}


def test_no_request_fails_while_the_operator_is_gone_for_a_minute(kube: Kube, installation: Installation, chat: Service) -> None:
    before = uids(kube, chat)
    with Traffic(chat.url, clients=3) as traffic:
        installation.scale_operator(0)
        try:
            before_absence = traffic.answered
            time.sleep(ABSENT_SECONDS)
            answered_in_absence = traffic.answered - before_absence
        finally:
            installation.scale_operator(REPLICAS)
        wait_for("a pass of the new operator", lambda: _passes(kube) > 0, seconds=60)
    assert answered_in_absence > 0
    assert traffic.answered == traffic.outcomes.total(), traffic.outcomes
    assert uids(kube, chat) == before


@pytest.mark.parametrize("how", ["--wait", "--grace-period=0"])
def test_a_restarted_operator_leaves_every_pod_in_place(how: str, kube: Kube, installation: Installation, chat: Service) -> None:
    chat.wait_idle()
    before, version = uids(kube, chat), chat.manifest()["metadata"]["resourceVersion"]
    led = leader(kube)
    assert led is not None
    force = ["--force"] if how == "--grace-period=0" else []
    kube.kubectl("delete", "pod", led, "-n", NAMESPACE, how, *force)
    wait_for("another operator leads", lambda: leader(kube) not in (None, led), seconds=60)
    wait_for("a pass of the new operator", lambda: _passes(kube) > 0, seconds=60)
    assert uids(kube, chat) == before
    assert chat.manifest()["metadata"]["resourceVersion"] == version, "nothing changed, so nothing is written"


def _passes(kube: Kube) -> float:
    """Passes that the present leader has ended well, from its own metrics."""
    pod = leader(kube)
    if pod is None:
        return 0
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8081/metrics').read().decode())"
    text = ""
    with suppress(Refused):  # it may lead before it answers
        text = kube.kubectl("exec", pod, "-n", NAMESPACE, "--", "python", "-c", ask)
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("millrace_passes_total") and "ok" in line)
