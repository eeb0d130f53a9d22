"""The Deployment of the server. It carries a replica count only where the user fixed one; else whoever scales owns that field."""

from millrace_operator.api import InferenceService, InferenceServiceSpec
from millrace_operator.desired.metadata import metadata
from millrace_operator.desired.platform import Platform
from millrace_operator.desired.pod import pod_template
from millrace_operator.manifest import Manifest
from millrace_operator.names import selector_labels

PROGRESS_DEADLINE_SECONDS = 3600
"""A 140 GB model takes 20 minutes over 1 Gbit/s; a load that progresses is never called stuck."""
REVISION_HISTORY_LIMIT = 3


def deployment(service: InferenceService, *, platform: Platform) -> Manifest:
    spec = service.spec
    fixed = spec.autoscaling.mode == "None" and spec.replicas is not None
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(service, service.name),
        "spec": {
            **({"replicas": spec.replicas} if fixed else {}),
            "selector": {"matchLabels": selector_labels(service.name)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": _rolling_update(spec)},
            "progressDeadlineSeconds": PROGRESS_DEADLINE_SECONDS,
            "revisionHistoryLimit": REVISION_HISTORY_LIMIT,
            "template": pod_template(service, platform=platform),
        },
    }


def _rolling_update(spec: InferenceServiceSpec) -> Manifest:
    """Either spare pods or missing ones, never both: so a bad revision stops while the other replicas serve on."""
    surge = spec.rollout.max_surge
    if surge is None:
        # A surge pod would wait for ever for an accelerator that the old one holds.
        surge = 0 if spec.device == "cuda" else 1
    return {"maxSurge": surge, "maxUnavailable": 0 if surge else 1}
