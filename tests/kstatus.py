"""How kstatus reads a custom resource, as Flux, kpt and Config Sync do.

The rules are those of sigs.k8s.io/cli-utils/pkg/kstatus/status, in its order: `checkGenericProperties` (deletion, generation, then the
conditions Reconciling and Stalled, in the order in which they stand), and `checkReadyCondition` for kinds that it does not know. Its
README is https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md.
"""

from millrace_operator.manifest import Manifest


def kstatus(manifest: Manifest) -> str:
    """InProgress, Failed, Current or Terminating."""
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata.get("generation"):
        return "InProgress"
    conditions = status.get("conditions") or []
    for condition in conditions:
        if condition["type"] == "Reconciling" and condition["status"] == "True":
            return "InProgress"
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return "Failed"
    for condition in conditions:
        if condition["type"] == "Ready":
            return "Current" if condition["status"] == "True" else "InProgress"
    return "Current"
