"""Who may talk to the pods of a service, and to whom they may talk. It is in force where the cluster's network enforces such policies.

Policies of one pod add up: whoever wants to let in a further scraper writes one more, and edits nothing here.
"""

from millrace_operator import names
from millrace_operator.api import InferenceService, effective
from millrace_operator.desired.metadata import metadata
from millrace_operator.desired.platform import Platform
from millrace_operator.desired.redis import redis_metadata, runs_redis
from millrace_operator.manifest import Manifest
from millrace_operator.source import HubSource, parse_source
from millrace_server.settings import DEFAULT_PORT, DEFAULT_PROMETHEUS_PORT

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""Kubernetes itself puts it on every namespace."""
PROMETHEUS_LABELS = {"app.kubernetes.io/name": "prometheus"}
"""As the Prometheus operator and the charts label its pods, in whatever namespace."""
HTTPS_PORT = 443


def network_policies(service: InferenceService, *, platform: Platform) -> tuple[Manifest, ...]:
    return (_server(service, platform=platform), *([_redis(service)] if runs_redis(service) else []))


def _server(service: InferenceService, *, platform: Platform) -> Manifest:
    operator = {
        "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: platform.operator_namespace}},
        "podSelector": {"matchLabels": names.OPERATOR_LABELS},
    }
    prometheus = {"namespaceSelector": {}, "podSelector": {"matchLabels": PROMETHEUS_LABELS}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(service, service.name),
        "spec": {
            "podSelector": {"matchLabels": names.selector_labels(service.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"ports": [_tcp(DEFAULT_PORT)]},
                {"from": [operator, prometheus], "ports": [_tcp(DEFAULT_PROMETHEUS_PORT)]},
            ],
            "egress": _egress(service),
        },
    }


def _egress(service: InferenceService) -> list[Manifest]:
    # To anywhere: a cluster's DNS may be a Service, an address of the node or a server outside.
    allowed: list[Manifest] = [{"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}]
    if runs_redis(service):
        pods = {"podSelector": {"matchLabels": names.redis_selector_labels(service.name)}}
        allowed.append({"to": [pods], "ports": [_tcp(names.REDIS_PORT)]})
    elif service.spec.cache.type == "redis":
        # Host and port are in a Secret, which the operator does not read.
        allowed.append({"ports": [{"protocol": "TCP"}]})
    if isinstance(parse_source(effective(service).source), HubSource):
        allowed.append({"ports": [_tcp(HTTPS_PORT)]})
    return allowed


def _redis(service: InferenceService) -> Manifest:
    servers = {"podSelector": {"matchLabels": names.selector_labels(service.name)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": redis_metadata(service, names.redis(service.name)),
        "spec": {
            "podSelector": {"matchLabels": names.redis_selector_labels(service.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [servers], "ports": [_tcp(names.REDIS_PORT)]}],
        },
    }


def _tcp(port: int) -> Manifest:
    return {"protocol": "TCP", "port": port}
