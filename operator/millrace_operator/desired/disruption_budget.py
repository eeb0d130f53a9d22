"""How many replicas may be taken away on purpose at the same time, as by the drain of a node: one."""

from millrace_operator.api import InferenceService
from millrace_operator.desired.metadata import metadata
from millrace_operator.manifest import Manifest
from millrace_operator.names import selector_labels


def disruption_budget(service: InferenceService) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(service, service.name),
        "spec": {
            # Not minAvailable, by which a service of one replica would hold up the drain of its node for ever.
            "maxUnavailable": 1,
            # A replica that does not serve is no reason to keep a node: it may never do.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector_labels(service.name)},
        },
    }
