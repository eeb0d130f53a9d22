"""Which replicas go when a service shrinks: the least busy ones, so that few streams have to end before a replica can. Pure.

Kubernetes takes replicas that are not ready first, then those with the lowest deletion cost. Only those that are to go are marked, and a
mark that an earlier shrink left is taken away.
"""

from collections.abc import Iterator, Mapping, Sequence

from millrace_operator.manifest import Manifest

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
FIRST = "-1"
"""Below the 0 of a pod without a mark."""


def marks(pods: Sequence[Manifest], loads: Mapping[str, int], *, leaving: int) -> Iterator[tuple[Manifest, str | None]]:
    """Pods whose deletion cost must change before `leaving` of them go, with the new one; None takes it away.

    `loads` is requests in the system by address. Who told none may be busy and is not marked.
    """
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    known = [pod for pod in staying if _address(pod) in loads]
    known.sort(key=lambda pod: pod["metadata"].get("creationTimestamp", ""), reverse=True)
    known.sort(key=lambda pod: loads[_address(pod)])
    going = {pod["metadata"]["name"] for pod in known[:leaving]}
    for pod in staying:
        marked = (pod["metadata"].get("annotations") or {}).get(DELETION_COST) == FIRST
        goes = pod["metadata"]["name"] in going
        if goes != marked:
            yield pod, FIRST if goes else None


def _address(pod: Manifest) -> str:
    return str((pod.get("status") or {}).get("podIP", ""))
