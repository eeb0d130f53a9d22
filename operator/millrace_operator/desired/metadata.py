"""The metadata of every child: its labels, and the owner reference by which the garbage collector deletes it."""

from millrace_operator.api import InferenceService
from millrace_operator.manifest import Manifest
from millrace_operator.names import API_VERSION, KIND, child_labels


def metadata(service: InferenceService, name: str) -> Manifest:
    return {
        "name": name,
        "namespace": service.namespace,
        "labels": child_labels(service.name),
        # No blockOwnerDeletion: it would need the right to update finalizers and make foreground deletion wait for us.
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": service.name,
                "uid": service.uid,
                "controller": True,
            }
        ],
    }
