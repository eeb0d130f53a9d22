"""With nothing to do the operator writes nothing but its Lease. Counted by the API server."""

import re
import time
from collections import Counter
from collections.abc import Callable

from demo_service import Service
from kube import Kube, wait_for

IDLE_SECONDS = 60
LONG_IDLE_SECONDS = 300
OTHERS = {"leases", "nodes", "events", "tokenreviews", "subjectaccessreviews", "serviceaccounts", "selfsubjectreviews"}
"""Written by the kubelet, by whoever checks a token, and by us for the Lease. Of the others the operator may write Events alone: only with
a child that it has repaired or with a status, and those are counted."""

WRITES = re.compile(
    r'^apiserver_request_total\{.*,resource="(?P<resource>[^"]*)".*verb="(?:POST|PUT|PATCH|APPLY|DELETE)".*\} (?P<count>\S+)'
)


def writes(kube: Kube) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in kube.kubectl("get", "--raw", "/metrics").splitlines():
        match = WRITES.match(line)
        if match and match["resource"] not in OTHERS:
            found[match["resource"]] += int(float(match["count"]))
    return found


def test_an_idle_operator_writes_nothing_but_its_lease(kube: Kube, chat: Service, *, long: bool) -> None:
    wait_for("what earlier tests deleted is gone", lambda: not _terminating(kube), seconds=120, tell=lambda: _terminating(kube))
    chat.wait_idle()
    time.sleep(10)  # the Deployment controller's and the kubelet's last words on the new pod
    before = writes(kube)
    assert before["deployments"] > 0, "the counter must see what is written"
    time.sleep(LONG_IDLE_SECONDS if long else IDLE_SECONDS)
    assert writes(kube) - before == Counter()


def test_children_exist_within_two_seconds(kube: Kube, serve: Callable[..., Service]) -> None:
    started = time.monotonic()
    service = serve("quick")
    while not kube.exists("deployment/quick", "-n", service.namespace):
        assert time.monotonic() - started < 10, service.describe()
    print(f"applied to Deployment: {time.monotonic() - started:.2f} s, with two runs of kubectl")
    applied = service.manifest()["metadata"]["creationTimestamp"]
    created = kube.get("deployment", "quick", "-n", service.namespace)["metadata"]["creationTimestamp"]
    assert _seconds(created) - _seconds(applied) <= 2
    for child in ("service/quick", "service/quick-metrics"):
        assert _seconds(kube.get(child, "-n", service.namespace)["metadata"]["creationTimestamp"]) - _seconds(applied) <= 2


def _terminating(kube: Kube) -> list[str]:
    found = [*kube.get("namespaces")["items"], *kube.get("pods", "-A")["items"]]
    return [each["metadata"]["name"] for each in found if "deletionTimestamp" in each["metadata"]]


def _seconds(stamp: str) -> float:
    return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))
