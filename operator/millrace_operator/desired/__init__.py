"""The whole wish for one InferenceService: every child, every time, in the order they are applied.

Pure: facts in, manifests out. A child is one file with one function; add it to `children` and its kind to `CHILD_KINDS`.
"""

from dataclasses import dataclass

from millrace_operator.api import InferenceService
from millrace_operator.desired.client_service import client_service
from millrace_operator.desired.deployment import deployment
from millrace_operator.desired.disruption_budget import disruption_budget
from millrace_operator.desired.metrics_service import metrics_service
from millrace_operator.desired.network_policy import network_policies
from millrace_operator.desired.origin import origin
from millrace_operator.desired.platform import Platform
from millrace_operator.desired.redis import redis_children, redis_secret, runs_redis
from millrace_operator.desired.service_monitor import service_monitor
from millrace_operator.manifest import Manifest

__all__ = ["CHILD_KINDS", "ChildKind", "Platform", "children", "origin", "redis_secret", "runs_redis"]


@dataclass(frozen=True)
class ChildKind:
    """A kind of child, as the API server and RBAC name it."""

    api_version: str
    kind: str
    plural: str
    optional: bool = False
    """Of another project: its definition may be missing, and come and go."""


CHILD_KINDS = (
    ChildKind("v1", "Service", "services"),
    ChildKind("apps/v1", "Deployment", "deployments"),
    ChildKind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    ChildKind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ChildKind("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors", optional=True),
)
"""What the operator watches, applies and prunes."""


def children(service: InferenceService, *, platform: Platform) -> tuple[Manifest, ...]:
    """Services first: a pod is reachable as soon as it is ready. The server's Deployment comes last."""
    return (
        client_service(service),
        metrics_service(service),
        *network_policies(service, platform=platform),
        disruption_budget(service),
        *redis_children(service, platform=platform),
        *([service_monitor(service)] if service.spec.monitoring.enabled else []),
        deployment(service, platform=platform),
    )
