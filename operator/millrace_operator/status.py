"""Facts → what the user reads. Pure: the time is an argument, and is used only where a condition flips.

kstatus reads it: Reconciling=True is InProgress, Stalled=True is Failed (a human must act), Ready=True at this generation is
Current. The two former are never True together. Nothing here ticks: an unchanged service has an unchanged status.

A new condition: one function `_name(facts) -> Answer` and a line in `_answers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from millrace_operator.api import AutoscalingStatus, Condition, InferenceService, InferenceServiceStatus, effective, parse_status
from millrace_operator.autoscale import CONFLICTING, Decision
from millrace_operator.manifest import Manifest
from millrace_operator.names import PAUSED_ANNOTATION, selector_labels
from millrace_operator.rollout import NODE_LOST, Rollout, Trouble

NEWS = 0.25
"""A load that changed by this share is worth telling."""
MAX_MESSAGE = 2048

SERVING = "Serving"
STARTING = "Starting"
ROLLING_OUT = "RollingOut"
NO_REPLICAS = "NoReplicas"
COMPLETE = "Complete"
PAUSED = "Paused"
INVALID_SPEC = "InvalidSpec"
NAME_CONFLICT = "NameConflict"
CHILD_REFUSED = "ChildRefused"
FORBIDDEN = "Forbidden"
FIELD_CONFLICT = "FieldConflict"
MODEL_LOADED = "Loaded"
MODEL_LOADING = "Loading"
FOLLOWING_LOAD = "FollowingLoad"
CRD_NOT_INSTALLED = "CRDNotInstalled"
MONITORED = "ServiceMonitorApplied"
CACHE_SERVES = "RedisServes"
REDIS_NOT_READY = "RedisNotReady"
NOT_SCALING = ("MetricsUnavailable", "NoReadyReplicas", CONFLICTING)

PROGRESSING = "Progressing"
NO_EVENT = {STARTING, ROLLING_OUT, COMPLETE, PROGRESSING, PAUSED, "NoReadyReplicas"}
"""Reasons that tell no trouble."""

NEXT_STEP = {
    NAME_CONFLICT: "Then this service is completed by itself.",
    INVALID_SPEC: "Correct the field; what runs is left as it is.",
    CHILD_REFUSED: "If the value comes from a field of this service, correct it there; else this is a defect: please report it.",
    FIELD_CONFLICT: "Make that writer leave the field alone; what should change is changed in this InferenceService.",
    FORBIDDEN: "Grant the permission or lift the policy; it is tried again by itself.",
    CRD_NOT_INSTALLED: "Install the Prometheus operator, or set spec.monitoring.enabled to false; the service itself lacks nothing.",
    REDIS_NOT_READY: "If it lasts, see `kubectl describe pods -l app.kubernetes.io/name=millrace-redis`.",
    "QuotaExceeded": "Raise the quota or ask for less; it is tried again by itself.",
    "PodsRefused": "The cluster's policy refuses the pods; it is tried again by itself.",
    "ImagePullBackOff": "Correct spec.image or spec.model.source, or name the registry's credentials in spec.imagePullSecrets.",
    "ErrImageNeverPull": "The image is not on the node and the pull policy is Never: load it, or change the operator's pull policy.",
    "InvalidImageName": "Correct spec.image or the image in spec.model.source.",
    "CreateContainerError": "Correct what the message names; the container is tried again by itself.",
    "RunContainerError": "Correct what the message names, such as spec.runtimeClassName; the container is tried again by itself.",
    "ContainerFailed": "`kubectl logs --previous` of the pod says more; it is started again by itself.",
    NODE_LOST: "Bring the node back or delete it; by default Kubernetes gives it up after 5 minutes, and another pod takes its place.",
    "NotResponding": "Its log says why; one that hangs is started again by itself.",
    "OutOfMemory": "Raise spec.resources.limits.memory or choose a smaller model.",
    "Evicted": "Raise spec.resources.requests, or free the node's memory or disk; another pod takes its place by itself.",
    "PodFailed": "Another pod takes its place by itself; if it goes on, look at the node.",
    "VolumeClaimMissing": "Create the PersistentVolumeClaim, or correct its name in spec.model.source; it is scheduled by itself.",
    "VolumeClaimPending": "See `kubectl describe pvc` for why no volume is bound; it is scheduled by itself.",
    "CreateContainerConfigError": "Create the Secret that it names, or correct its name in the spec.",
    "InsufficientGPU": "Free or add an accelerator, or correct spec.accelerators.resource; it is scheduled by itself.",
    CONFLICTING: "Delete it, or set spec.autoscaling.mode to None and leave spec.replicas out.",
    "Unschedulable": "Free or add a node, or loosen resources, nodeSelector and tolerations; it is scheduled by itself.",
}
"""What to do about a cause that does not say so itself."""


@dataclass(frozen=True)
class Answer:
    """A condition without its clock and generation."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a pass knows when it ends. `problems` are what acting ran into."""

    service: InferenceService
    rollout: Rollout | None
    problems: tuple[Trouble, ...] = ()
    monitoring: Trouble | None = None
    """What keeps Prometheus from finding the replicas; none of the other conditions looks at it."""
    autoscaling: AutoscalingStatus | None = None
    unscaled: Trouble | None = None
    """What keeps a decision of scaling from being carried out."""
    redis_serves: bool | None = None
    """None without a Redis of the service's own."""

    @property
    def wanted(self) -> int:
        """Replicas that make the service complete; what scaling adds beyond comes and goes."""
        autoscaling = self.service.spec.autoscaling
        if autoscaling.mode == "Embedded":
            return autoscaling.min_replicas
        return self.rollout.wanted if self.rollout else 1

    @property
    def stepping(self) -> bool:
        """A step of scaling that the Deployment's controller has yet to see: no edit of the service caused it, and replicas serve.

        Until it has, its counts say nothing about the present; the answers that were given stand.
        """
        rollout, told = self.rollout, self.service.status
        if rollout is None or rollout.settled or self.problems or told.observed_generation != self.service.generation:
            return False
        return any(pod.ready for pod in rollout.pods) and any(each.type == "Ready" and each.status == "True" for each in told.conditions)

    @property
    def complete(self) -> bool:
        rollout = self.rollout
        return rollout is not None and not rollout.rolling and rollout.updated_ready >= self.wanted

    @property
    def trouble(self) -> Trouble | None:
        """The one to name: of what acting, the Deployment and the pods say, the first that needs a human, or else the first."""
        troubles = [*self.problems, *([self.unscaled] if self.unscaled else [])]
        if self.rollout is not None and not self.complete:
            troubles += [self.rollout.trouble] if self.rollout.trouble else []
            troubles += [pod.trouble for pod in self.rollout.pods if pod.trouble]
        return next((trouble for trouble in troubles if trouble.needs_a_human), troubles[0] if troubles else None)


def report(facts: Facts, *, now: str) -> InferenceServiceStatus:
    """The whole status. `now` is RFC 3339."""
    service, rollout = facts.service, facts.rollout
    return InferenceServiceStatus(
        observed_generation=service.generation,
        conditions=_conditions(_answers(facts), service.status, service.generation, now, keep_others=facts.stepping),
        effective=effective(service),
        replicas=rollout.replicas if rollout else 0,
        ready_replicas=rollout.ready if rollout else 0,
        selector=",".join(f"{label}={value}" for label, value in selector_labels(service.name).items()),
        url=f"http://{service.name}.{service.namespace}.svc",
        autoscaling=facts.autoscaling,
    )


def report_paused(service: InferenceService, *, now: str) -> InferenceServiceStatus:
    """Said once; then nothing is written until the annotation goes."""
    message = f"the annotation {PAUSED_ANNOTATION} stops every change; remove it to go on"
    answers = [Answer("Reconciling", "False", PAUSED, message)]
    return service.status.model_copy(update={"conditions": _conditions(answers, service.status, service.generation, now, keep_others=True)})


def report_invalid(manifest: Manifest, *, problem: str, now: str) -> InferenceServiceStatus:
    """A stored object that cannot be understood; its children are left as they are."""
    previous = parse_status(manifest.get("status"))
    message = f"{problem}. {NEXT_STEP[INVALID_SPEC]}"
    answers = [
        Answer("Ready", "False", INVALID_SPEC, message),
        Answer("Reconciling", "False", INVALID_SPEC, message),
        Answer("Stalled", "True", INVALID_SPEC, message),
    ]
    generation = manifest["metadata"].get("generation", 0)
    conditions = _conditions(answers, previous, generation, now, keep_others=True)
    return previous.model_copy(update={"conditions": conditions, "observed_generation": generation})


def autoscaling_status(
    told: AutoscalingStatus | None, decision: Decision, *, measured_for: str, hint: str | None, may_update_load: bool
) -> AutoscalingStatus | None:
    """The words for a decision, or those already told when it is no news."""
    if not decision.certain:
        return told
    words = AutoscalingStatus(
        load=decision.load,
        target=decision.target,
        desired=decision.desired,
        reason=f"{decision.cause}: {decision.sentence}",
        blocked_by=decision.blocked_by,
        fresh_pods=decision.fresh,
        seconds_per_request=None if decision.seconds_per_request is None else float(f"{decision.seconds_per_request:.2g}"),
        measured_for=None if decision.seconds_per_request is None else measured_for,
        hint=hint,
    )
    if told is None or _gist(told) != _gist(words):
        return words
    has_moved = _differs(words.load, told.load) or _differs(words.seconds_per_request, told.seconds_per_request)
    return words if may_update_load and has_moved else told


def _differs(now: float | None, told: float | None) -> bool:
    return abs((now or 0) - (told or 0)) > NEWS * (told or 0)


def as_manifest(status: InferenceServiceStatus) -> Manifest:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _gist(words: AutoscalingStatus) -> tuple[object, ...]:
    """What changes with a decision, unlike the load, which changes all the time."""
    return words.target, words.desired, (words.reason or "").partition(":")[0], words.blocked_by, words.hint, words.measured_for


def _answers(facts: Facts) -> list[Answer]:
    answers = [] if facts.stepping else [_ready(facts), _reconciling(facts), _stalled(facts), _model_loaded(facts)]
    if facts.autoscaling is not None:
        answers.append(_scaling_active(facts.autoscaling, facts.unscaled))
    if facts.redis_serves is not None:
        answers.append(_cache_degraded(serves=facts.redis_serves))
    if facts.service.spec.monitoring.enabled:
        answers.append(_monitoring_ready(facts))
    return answers


def _ready(facts: Facts) -> Answer:
    rollout, trouble = facts.rollout, facts.trouble
    blocked = any(problem.needs_a_human and problem.bars_serving for problem in facts.problems)
    if rollout is not None and rollout.updated_ready and not blocked:
        return Answer("Ready", "True", SERVING, f"{rollout.ready} of {rollout.wanted} replicas serve")
    if trouble is not None:
        return Answer("Ready", "False", trouble.cause, _sentence(trouble))
    if rollout is not None and rollout.ready:
        return Answer("Ready", "False", ROLLING_OUT, f"{rollout.ready} replicas of an earlier revision serve until a new one is ready")
    if rollout is not None and not rollout.wanted:
        return Answer("Ready", "False", NO_REPLICAS, "no replica is wanted; raise the count to serve")
    return Answer("Ready", "False", STARTING, "no replica is ready yet")


def _reconciling(facts: Facts) -> Answer:
    trouble = facts.trouble
    if trouble is not None and trouble.needs_a_human:
        return Answer("Reconciling", "False", trouble.cause, "waits for a human, see Stalled")
    if trouble is not None:
        return Answer("Reconciling", "True", trouble.cause, _sentence(trouble))
    if facts.complete:
        return Answer("Reconciling", "False", COMPLETE)
    rollout = facts.rollout
    if rollout is not None and rollout.rolling and rollout.ready:
        return Answer("Reconciling", "True", ROLLING_OUT, f"{rollout.updated} of {rollout.replicas} replicas run the present revision")
    ready = rollout.updated_ready if rollout else 0
    return Answer("Reconciling", "True", STARTING, f"{ready} of {facts.wanted} replicas are ready")


def _stalled(facts: Facts) -> Answer:
    trouble = facts.trouble
    if trouble is not None and trouble.needs_a_human:
        return Answer("Stalled", "True", trouble.cause, _sentence(trouble))
    return Answer("Stalled", "False", COMPLETE if facts.complete else PROGRESSING)


def _model_loaded(facts: Facts) -> Answer:
    trouble = facts.trouble
    if trouble is not None and trouble.in_model:
        return Answer("ModelLoaded", "False", trouble.cause, _sentence(trouble))
    if facts.rollout is not None and facts.rollout.updated_ready:
        return Answer("ModelLoaded", "True", MODEL_LOADED)
    return Answer("ModelLoaded", "Unknown", MODEL_LOADING)


def _scaling_active(words: AutoscalingStatus, unscaled: Trouble | None) -> Answer:
    if unscaled is not None:
        return Answer("ScalingActive", "False", unscaled.cause, _sentence(unscaled))
    cause, _, sentence = (words.reason or "").partition(": ")
    if cause in NOT_SCALING:
        return Answer("ScalingActive", "False", cause, f"{sentence}. {NEXT_STEP[cause]}" if cause in NEXT_STEP else sentence)
    return Answer("ScalingActive", "True", FOLLOWING_LOAD)


def _cache_degraded(*, serves: bool) -> Answer:
    if serves:
        return Answer("CacheDegraded", "False", CACHE_SERVES)
    message = f"the service's Redis is not ready; answers are computed anew, and nothing fails. {NEXT_STEP[REDIS_NOT_READY]}"
    return Answer("CacheDegraded", "True", REDIS_NOT_READY, message)


def _monitoring_ready(facts: Facts) -> Answer:
    if facts.monitoring is not None:
        return Answer("MonitoringReady", "False", facts.monitoring.cause, _sentence(facts.monitoring))
    unlabelled = "a Prometheus that selects by labels ignores the ServiceMonitor; see spec.monitoring.labels"
    return Answer("MonitoringReady", "True", MONITORED, "" if facts.service.spec.monitoring.labels else unlabelled)


def _sentence(trouble: Trouble) -> str:
    return f"{trouble.sentence.rstrip('. ')}. {NEXT_STEP.get(trouble.cause, '')}".strip()


def _conditions(
    answers: Sequence[Answer], previous: InferenceServiceStatus, generation: int, now: str, *, keep_others: bool = False
) -> tuple[Condition, ...]:
    """`lastTransitionTime` moves only when `status` flips."""
    old = {condition.type: condition for condition in previous.conditions}
    fresh = {
        answer.type: Condition(
            type=answer.type,
            status=answer.status,
            reason=answer.reason,
            message=answer.message[:MAX_MESSAGE],
            observed_generation=generation,
            last_transition_time=_since(answer, old.get(answer.type), now),
        )
        for answer in answers
    }
    return tuple({**old, **fresh}.values()) if keep_others else tuple(fresh.values())


def _since(answer: Answer, old: Condition | None, now: str) -> str:
    return old.last_transition_time if old is not None and old.status == answer.status else now
