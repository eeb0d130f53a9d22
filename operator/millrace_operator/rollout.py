"""What the Deployment and its pods say about a service, as frozen values. Pure parsing; `status` judges."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from millrace_operator.manifest import Manifest

MAX_TERMINATION_MESSAGE = 1024
OVER = frozenset({"Evicted", "PodFailed"})
"""Causes of pods that have ended for good."""
NODE_LOST = "NodeLost"
_NO_ROOM = frozenset({"InsufficientGPU", "Unschedulable"})


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a replica does not serve: one word, a sentence, and whether a human must act."""

    cause: str
    sentence: str
    needs_a_human: bool
    in_model: bool = False
    """The container itself said so: its model could not be fetched or loaded."""
    bars_serving: bool = True
    """False: replicas that serve go on doing so."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One pod that is not on its way out."""

    address: str
    ready: bool
    trouble: Trouble | None = None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The Deployment's counts. `updated` replicas run the present template."""

    settled: bool
    """The counts are of the present template: the Deployment controller has seen it."""
    wanted: int
    replicas: int
    updated: int
    ready: int
    trouble: Trouble | None
    pods: tuple[Replica, ...]
    overdue: bool = False
    """The Deployment controller has waited for `progressDeadlineSeconds` in vain."""

    @property
    def updated_ready(self) -> int:
        """At least this many replicas of the present template serve: the old ones are counted as ready first."""
        return max(0, self.ready - (self.replicas - self.updated)) if self.settled else 0

    @property
    def rolling(self) -> bool:
        return not self.settled or self.updated < self.replicas

    @property
    def progresses(self) -> bool:
        """A rollout is on its way, and not one that hangs."""
        return self.rolling and not (self.settled and self.overdue)

    @property
    def failing(self) -> int:
        """Replicas of the present template that something keeps from serving. One that is over has been replaced, and one whose node
        is lost says nothing about those elsewhere."""
        return sum(pod.trouble is not None and pod.trouble.cause not in OVER | {NODE_LOST} for pod in self.pods)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(pod.address for pod in self.pods if pod.ready and pod.address)


def read_rollout(deployment: Manifest, pods: Sequence[Manifest], *, before: Manifest | None = None) -> Rollout:
    """`before` is the Deployment as it was seen; what was counted then still holds after an edit that leaves the template as it was."""
    status = deployment.get("status") or {}
    living = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    present = _revision(max(living, key=lambda pod: pod["metadata"].get("creationTimestamp", ""), default={}))
    # Whoever waits for the GPU or memory of a pod that leaves has no trouble; a lost node gives nothing back.
    room_is_made = any("deletionTimestamp" in pod["metadata"] and not _is_cut_off(_conditions(pod)) for pod in pods)
    # A pod that is over is told only when no other has anything to tell: it stays for hours beside those that replace it.
    living.sort(key=lambda pod: (pod.get("status") or {}).get("phase") == "Failed")
    return Rollout(
        settled=_is_seen(deployment) or (before is not None and _is_seen(before) and _template(before) == _template(deployment)),
        wanted=deployment["spec"].get("replicas", 1),
        replicas=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        ready=status.get("readyReplicas", 0),
        trouble=_deployment_trouble(status.get("conditions") or ()),
        pods=tuple(_replica(pod, judged=_revision(pod) == present, room_is_made=room_is_made) for pod in living),
        overdue=any(
            condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded"
            for condition in status.get("conditions") or ()
        ),
    )


def _is_seen(deployment: Manifest) -> bool:
    """By the Deployment controller."""
    generation: int = deployment["metadata"]["generation"]
    return bool((deployment.get("status") or {}).get("observedGeneration", 0) >= generation)


def _template(deployment: Manifest) -> Manifest | None:
    template: Manifest | None = deployment["spec"].get("template")
    return template


def _revision(pod: Manifest) -> str | None:
    """The ReplicaSet's hash of the template that the pod was made from; the youngest pod has the present one."""
    hashed: str | None = pod.get("metadata", {}).get("labels", {}).get("pod-template-hash")
    return hashed


def _deployment_trouble(conditions: Sequence[Manifest]) -> Trouble | None:
    """Pods that the API server refuses (quota, policy) appear only here."""
    for condition in conditions:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            message = condition.get("message", "")
            cause = "QuotaExceeded" if "exceeded quota" in message else "PodsRefused"
            return Trouble(cause=cause, sentence=message, needs_a_human=False)
    return None


def _conditions(pod: Manifest) -> dict[str, Manifest]:
    return {condition["type"]: condition for condition in (pod.get("status") or {}).get("conditions") or ()}


def _replica(pod: Manifest, *, judged: bool, room_is_made: bool) -> Replica:
    """What ails a pod of an earlier template is no news: the edit that replaces it may be the cure."""
    ready = _conditions(pod).get("Ready", {}).get("status") == "True"
    trouble = _pod_trouble(pod) if judged and not ready else None
    if trouble is not None and trouble.cause in _NO_ROOM and room_is_made:
        trouble = None
    return Replica(address=(pod.get("status") or {}).get("podIP", ""), ready=ready, trouble=trouble)


def _is_cut_off(conditions: dict[str, Manifest]) -> bool:
    """Of a node that falls silent, Kubernetes takes back that its pods are ready, and leaves what it last said of their containers.

    A pod's own reasons not to be ready are named; the node's is not.
    """
    ready, of_containers = conditions.get("Ready", {}), conditions.get("ContainersReady", {})
    return ready.get("status") == "False" and not ready.get("reason") and of_containers.get("status") == "True"


def _pod_trouble(pod: Manifest) -> Trouble | None:
    name, status, conditions = pod["metadata"]["name"], pod.get("status") or {}, _conditions(pod)
    if _is_cut_off(conditions):
        sentence = f"pod {name}: its node {pod['spec']['nodeName']} no longer answers"
        return Trouble(cause=NODE_LOST, sentence=sentence, needs_a_human=False)
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        # What its plugin for preemption says last is of itself (Kubernetes 1.34), and reads as if the claim were not found.
        message = _printable(scheduled.get("message", "")).removesuffix(". not found")
        return Trouble(cause=_unschedulable(message), sentence=f"pod {name}: {message}", needs_a_human=False)
    if status.get("phase") == "Failed":
        # The kubelet's reasons are many (Evicted, NodeShutdown, OutOfnvidia.com/gpu), and not all are words that a condition may bear.
        reason = status.get("reason") or "Failed"
        sentence = f"pod {name} ended as {reason}: {_printable(status.get('message') or 'no message')}"
        return Trouble(cause="Evicted" if reason == "Evicted" else "PodFailed", sentence=sentence, needs_a_human=False)
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        if _fell_silent(container, conditions.get("Ready", {})):
            sentence = f"container {container['name']} of pod {name} served, and no longer says that it is ready"
            return Trouble(cause="NotResponding", sentence=sentence, needs_a_human=False)
        trouble = _container_trouble(name, container)
        if trouble:
            return trouble
    return None


def _unschedulable(message: str) -> str:
    """The scheduler names what every node lacks, and a claim that is not there before anything else."""
    if "persistentvolumeclaim" in message.lower():
        return "VolumeClaimMissing" if re.search(r'persistentvolumeclaim "[^"]*" not found', message) else "VolumeClaimPending"
    # An extended resource has a domain; taints and labels of GPU nodes speak of GPUs too.
    return "InsufficientGPU" if re.search(r"Insufficient [^ ,/]+/[^ ,]+", message) else "Unschedulable"


_NEVER_STARTS = {
    "ErrImagePull": "ImagePullBackOff",
    "ImagePullBackOff": "ImagePullBackOff",
    "ErrImageNeverPull": "ErrImageNeverPull",
    "InvalidImageName": "InvalidImageName",
    "CreateContainerConfigError": "CreateContainerConfigError",
    "CreateContainerError": "CreateContainerError",
    "RunContainerError": "RunContainerError",
}
"""Waiting reasons that pass only when someone acts. The two of a failed pull alternate; they are one cause."""


def _fell_silent(container: Manifest, ready: Manifest) -> bool:
    """Ready since this start of the container, and no more: it hangs, or its engine is being restarted. What ended an earlier start is
    no news. The API server writes both times alike, to the second."""
    started: str = ((container.get("state") or {}).get("running") or {}).get("startedAt", "")
    changed: str = ready.get("lastTransitionTime", "")
    return bool(started) and changed > started


def _container_trouble(pod: str, container: Manifest) -> Trouble | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    where = f"container {container['name']} of pod {pod}"
    if waiting.get("reason") in _NEVER_STARTS:
        cause = _NEVER_STARTS[waiting["reason"]]
        return Trouble(cause=cause, sentence=f"{where}, image {container.get('image')}: {_settled(waiting)}", needs_a_human=True)
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    if not ended or ended.get("exitCode") == 0:
        return None
    again = container.get("restartCount", 0) >= 2
    told = _termination_message(ended.get("message") or "")
    if told:
        return Trouble(cause=told[0], sentence=f"{where}: {told[1]}", needs_a_human=again, in_model=True)
    if ended.get("reason") == "OOMKilled":
        sentence = f"{where} used more memory than its limit"
        return Trouble(cause="OutOfMemory", sentence=sentence, needs_a_human=again, in_model=True)
    last_words = _printable((ended.get("message") or "no message").strip()[-MAX_TERMINATION_MESSAGE:])
    return Trouble(
        cause="ContainerFailed", sentence=f"{where} ended with exit code {ended.get('exitCode')}: {last_words}", needs_a_human=again
    )


def _settled(waiting: Manifest) -> str:
    """Kubernetes tells a failed pull in two alternating ways; only one of them names the cause, the other would flip the message."""
    return "the image cannot be pulled" if waiting["reason"] in ("ErrImagePull", "ImagePullBackOff") else waiting.get("message", "")


def _termination_message(text: str) -> tuple[str, str] | None:
    """(cause, sentence) of the structured message that init and server container write; None when it is something else."""
    try:
        message = json.loads(text[:MAX_TERMINATION_MESSAGE])
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("cause"), str) or not message["cause"].isalpha():
        return None
    stage, hint = str(message.get("stage", "start")), str(message.get("hint", ""))
    return message["cause"][:63], _printable(f"{stage} failed: {message['cause']}. {hint}".strip())


def _printable(text: str) -> str:
    """A container's words end in a terminal: no escape sequence, no line break, no half of a surrogate pair."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
