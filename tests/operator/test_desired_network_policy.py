"""Who may talk to whom: the policies, read as a network that enforces them reads them."""

from typing import Any

import pytest

from millrace_operator.desired import children
from millrace_operator.manifest import Manifest
from millrace_operator.names import OPERATOR_LABELS, redis_selector_labels, selector_labels
from services import PLATFORM, service

REDIS = {"type": "redis"}
HERE = {"kubernetes.io/metadata.name": "default"}
THERE = {"kubernetes.io/metadata.name": "somewhere"}
OPERATORS = {"kubernetes.io/metadata.name": "millrace-system"}
SERVER, CACHE = selector_labels("chat"), redis_selector_labels("chat")
OUTSIDE = None
"""No pod of this cluster."""


def policies(**spec: Any) -> list[Manifest]:  # noqa: ANN401 - fields of a spec
    everything = children(service(**spec), platform=PLATFORM)
    return [child["spec"] for child in everything if child["kind"] == "NetworkPolicy"]


def may(spec: Manifest, pod: Manifest, way: str, port: int, *, peer: tuple[Manifest, Manifest] | None, protocol: str = "TCP") -> bool:
    """Whether `pod` may be reached (`way` is ingress) or may reach (egress) `peer`, the labels of a namespace and of a pod in it."""
    binding = [each for each in policies(**spec) if each["podSelector"]["matchLabels"].items() <= pod.items()]
    assert binding, "no policy binds this pod"
    rules = [rule for policy in binding for rule in policy.get(way, ())]
    return any(_ports(rule, port, protocol) and _peers(rule, way, peer) for rule in rules)


def _ports(rule: Manifest, port: int, protocol: str) -> bool:
    return any(each["protocol"] == protocol and each.get("port", port) == port for each in rule["ports"])


def _peers(rule: Manifest, way: str, peer: tuple[Manifest, Manifest] | None) -> bool:
    allowed = rule.get("from" if way == "ingress" else "to")
    if allowed is None or peer is None:
        return allowed is None
    namespace, labels = peer
    for each in allowed:
        wanted = each["namespaceSelector"].get("matchLabels", {}) if "namespaceSelector" in each else HERE
        if wanted.items() <= namespace.items() and each["podSelector"]["matchLabels"].items() <= labels.items():
            return True
    return False


PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
CLIENT = {"app": "client"}


@pytest.mark.parametrize("peer", [OUTSIDE, (HERE, CLIENT), (THERE, CLIENT), (HERE, CACHE)])
def test_anybody_reaches_the_clients_port_and_nobody_else_s(peer: tuple[Manifest, Manifest] | None) -> None:
    assert may({"cache": REDIS}, SERVER, "ingress", 8000, peer=peer)
    assert not may({"cache": REDIS}, SERVER, "ingress", 9090, peer=peer)
    assert not may({"cache": REDIS}, SERVER, "ingress", 6379, peer=peer)


@pytest.mark.parametrize(
    ("peer", "is_let_in"),
    [
        ((OPERATORS, OPERATOR_LABELS), True),
        ((THERE, OPERATOR_LABELS), False),
        ((OPERATORS, CLIENT), False),
        ((THERE, PROMETHEUS), True),
        ((HERE, PROMETHEUS), True),
    ],
)
def test_the_internal_port_is_for_the_operator_and_prometheus(peer: tuple[Manifest, Manifest], is_let_in: bool) -> None:
    assert may({}, SERVER, "ingress", 9090, peer=peer) is is_let_in


@pytest.mark.parametrize(
    ("peer", "is_let_in"),
    [
        ((HERE, SERVER), True),
        ((HERE, selector_labels("other")), False),
        ((THERE, SERVER), False),
        ((HERE, CLIENT), False),
        (OUTSIDE, False),
    ],
)
def test_redis_is_for_the_servers_of_its_own_service(peer: tuple[Manifest, Manifest] | None, is_let_in: bool) -> None:
    assert may({"cache": REDIS}, CACHE, "ingress", 6379, peer=peer) is is_let_in


def test_redis_itself_reaches_nobody() -> None:
    assert not may({"cache": REDIS}, CACHE, "egress", 53, peer=OUTSIDE, protocol="UDP")
    assert not may({"cache": REDIS}, CACHE, "egress", 443, peer=OUTSIDE)


@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
def test_a_server_may_ask_for_names(protocol: str) -> None:
    assert may({}, SERVER, "egress", 53, peer=OUTSIDE, protocol=protocol)


@pytest.mark.parametrize(
    ("source", "reaches_the_hub"), [("hf://owner/model", True), (None, True), ("oci://image:v1#/model", False), ("pvc://claim", False)]
)
def test_only_a_model_of_the_hub_opens_the_way_to_it(source: str | None, reaches_the_hub: bool) -> None:
    model = {"source": source} if source else {}
    assert may({"model": model}, SERVER, "egress", 443, peer=OUTSIDE) is reaches_the_hub
    assert not may({"model": model}, SERVER, "egress", 80, peer=OUTSIDE)


@pytest.mark.parametrize(
    ("cache", "peer", "port", "is_let_out"),
    [
        (REDIS, (HERE, CACHE), 6379, True),
        (REDIS, (HERE, redis_selector_labels("other")), 6379, False),
        (REDIS, OUTSIDE, 6380, False),
        ({"type": "redis", "urlSecret": "theirs"}, OUTSIDE, 6380, True),
        ({"type": "memory"}, (HERE, CACHE), 6379, False),
    ],
)
def test_a_server_reaches_its_own_redis(cache: Manifest, peer: tuple[Manifest, Manifest] | None, port: int, is_let_out: bool) -> None:
    assert may({"cache": cache, "model": {"source": "pvc://claim"}}, SERVER, "egress", port, peer=peer) is is_let_out
