"""Every field of an InferenceService: its type, bounds, default and meaning.

The only source of the CRD's schema, of its defaults, of the parser and of the field reference (`generate.py` writes them).
Rules over several fields are CEL, enforced by the API server alone: a stored object is parsed field by field, so that a rule
added later does not orphan what already runs. Pure: nothing here reads a cluster.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError

from millrace_operator.fields import (
    ATOMIC_LIST,
    EXTENDED_RESOURCE,
    UNIQUE_LIST,
    AnnotationValue,
    ImageName,
    LabelKey,
    LabelValue,
    Model,
    ModelName,
    ObjectName,
    Quantity,
    Rule,
    Size,
    keys_are_labels,
    list_map,
    reserved_keys,
    text,
    validations,
)
from millrace_operator.manifest import Manifest
from millrace_operator.names import GROUP, MAX_NAME_LENGTH, PAUSED_ANNOTATION, RESERVED_SUFFIXES
from millrace_operator.placement import SPREAD_KEYS, Affinity, SpreadConstraint
from millrace_operator.source import HUB_PREFIX, MAX_SOURCE_LENGTH, REPOSITORY_PATTERN, SOURCE_PATTERN

TARGET_SHARE_OF_SLOTS = 0.85
"""The default target leaves room for arrivals while a new replica starts."""


class ModelSpec(Model):
    """What is served."""

    name: ModelName
    """The name that clients send. Without `source` it is also the hub repository to download."""
    aliases: Annotated[tuple[ModelName, ...], Field(max_length=8, json_schema_extra=UNIQUE_LIST)] = ()
    """Further names that clients may send, such as a short one; `/v1/models` lists them."""
    source: (
        Annotated[
            str,
            text(
                SOURCE_PATTERN,
                "must be hf://REPOSITORY[@REVISION], pvc://CLAIM[/PATH] or oci://IMAGE[:TAG|@DIGEST]#/PATH",
                at_most=MAX_SOURCE_LENGTH,
            ),
        ]
        | None
    ) = None
    """Where the files come from: `hf://REPOSITORY[@REVISION]`, `pvc://CLAIM[/PATH]` (same namespace, mounted read-only) or
    `oci://IMAGE[:TAG|@DIGEST]#/PATH` (an image that holds the files and a `cp` command). Unset: `hf://` and the model's name."""
    token_secret: ObjectName | None = None
    """Secret of the same namespace whose key `token` is the hub's access token. It reaches only the download step."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of weights and cache; `auto` takes the checkpoint's own."""
    max_length: Annotated[int, Field(ge=16, le=10_485_760)] | None = None
    """Tokens that a request may hold, prompt and answer together. Unset: the model's own limit."""

    rules: ClassVar = (
        Rule(
            cel=f"has(self.source) || self.name.matches(r'{REPOSITORY_PATTERN}')",
            message="without spec.model.source the name must be a hub repository: OWNER/NAME",
            path=".name",
        ),
        Rule(
            cel=f"!has(self.tokenSecret) || !has(self.source) || self.source.startsWith('{HUB_PREFIX}')",
            message="tokenSecret is only used with an hf:// source; remove it or change spec.model.source",
            path=".tokenSecret",
        ),
    )


class Accelerators(Model):
    """The accelerator of one replica."""

    resource: Annotated[str, text(EXTENDED_RESOURCE, "must be DOMAIN/NAME, such as nvidia.com/gpu", at_most=200)] = "nvidia.com/gpu"
    """Extended resource that the node's device plugin announces, such as `nvidia.com/gpu` or `nvidia.com/mig-1g.10gb`. One that is
    shared (time-slicing, MPS: `nvidia.com/gpu.shared`) is not apart from its neighbours: they can exhaust its memory."""
    count: Annotated[int, Field(ge=1, le=1)] = 1
    """How many of them. One, until a model can be split over several."""

    rules: ClassVar = (
        Rule(
            cel="!self.resource.contains('kubernetes.io/') && !self.resource.startsWith('requests.')",
            message="resource must be an extended resource of a device plugin, such as nvidia.com/gpu",
            path=".resource",
        ),
    )


class Batching(Model):
    """How requests share a step of the model."""

    max_size: Annotated[int, Field(ge=1, le=1024)] = 32
    """Requests that run at once in a replica."""
    timeout_milliseconds: Annotated[int, Field(ge=0, le=10_000)] = 50
    """Milliseconds that an idle replica waits for company after the first request, when more is expected."""


class Queue(Model):
    """Requests that wait in a replica."""

    max_size: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Requests that may wait for a place in the batch; further ones get 503 with Retry-After."""


class Cache(Model):
    """Answers kept for equal requests."""

    type: Literal["memory", "redis", "none"] = "memory"
    """`memory` keeps answers in each replica; `redis` in one place for all of them, a Redis of this service's own unless `urlSecret` names
    another; `none` computes every answer."""
    ttl_seconds: Annotated[int, Field(ge=1, le=31_536_000)] = 3600
    """Seconds that an answer is kept."""
    url_secret: ObjectName | None = None
    """Secret of the same namespace that leads to a Redis of yours: `url` is `redis://:PASSWORD@HOST:6379/0`, or `rediss://` for TLS, and
    `secret`, which may be missing, seals the answers (16 characters or more). Its edits reach replicas that start afterwards."""

    rules: ClassVar = (
        Rule(
            cel="!has(self.urlSecret) || self.type == 'redis'",
            message="urlSecret needs type redis; remove it or change spec.cache.type",
            path=".urlSecret",
        ),
    )


class Autoscaling(Model):
    """Who decides how many replicas run."""

    mode: Literal["Embedded", "None"] = "Embedded"
    """`Embedded`: the operator follows the load. `None`: `spec.replicas` or, without it, whoever scales the Deployment, such as an HPA."""
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """The fewest replicas that the operator keeps in mode Embedded."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 4
    """The most replicas that the operator asks for in mode Embedded."""
    target_per_replica: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Requests in the system (waiting and running) per replica that scaling aims at. Unset: 85 % of the requests that run at once."""


class ResourceList(Model):
    """Amounts in Kubernetes' units. Accelerators are asked for by `spec.accelerators`."""

    cpu: Quantity | None = None
    """CPU cores: `2`, `500m`."""
    memory: Size | None = None
    """Memory: `8Gi`. The model's weights, the cache and the batch must fit."""
    ephemeral_storage: Size | None = Field(default=None, alias="ephemeral-storage")
    """Disk of the node, which holds the downloaded model."""


class Resources(Model):
    """What the server container asks of its node."""

    requests: ResourceList = ResourceList()
    """Reserved for each replica."""
    limits: ResourceList = ResourceList()
    """The most that a replica may use."""


class Toleration(Model):
    """A taint that replicas accept, as in a pod."""

    key: LabelKey | None = None
    """Key of the taint. Unset, with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """`Exists` accepts any value of the key."""
    value: LabelValue | None = None
    """Value of the taint, for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Unset: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds that a replica stays after a NoExecute taint appears. Unset: for ever."""

    rules: ClassVar = (
        Rule(cel="has(self.key) || self.operator == 'Exists'", message="a toleration without key needs operator Exists", path=".operator"),
        Rule(cel="!has(self.value) || self.operator == 'Equal'", message="value is only used with operator Equal", path=".value"),
        Rule(
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="tolerationSeconds is only used with effect NoExecute",
            path=".tolerationSeconds",
        ),
    )


class LocalReference(Model):
    """An object of the same namespace."""

    name: ObjectName
    """Its name."""


class ServiceSpec(Model):
    """The Service that clients call."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How far it reaches: inside the cluster, on a port of every node, or through a load balancer."""
    node_port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """Port on every node, inside the cluster's range of node ports. Unset: Kubernetes chooses one."""
    annotations: Annotated[
        dict[LabelKey, AnnotationValue],
        Field(max_length=32, json_schema_extra=validations(keys_are_labels("annotations"), reserved_keys(f"{GROUP}/"))),
    ] = Field(default_factory=dict)
    """Annotations of the Service, as load balancers read them."""

    rules: ClassVar = (
        Rule(
            cel="!has(self.nodePort) || self.type != 'ClusterIP'", message="nodePort needs type NodePort or LoadBalancer", path=".nodePort"
        ),
    )


class Monitoring(Model):
    """How Prometheus finds the replicas."""

    enabled: bool = True
    """Make a ServiceMonitor, where the cluster knows that kind: `MonitoringReady` in the status says whether it does."""
    labels: Annotated[
        dict[LabelKey, LabelValue],
        Field(
            max_length=32,
            json_schema_extra=validations(keys_are_labels("labels"), reserved_keys(f"{GROUP}/", "app.kubernetes.io/")),
        ),
    ] = Field(default_factory=dict)
    """Labels of the ServiceMonitor, by which a Prometheus selects it: often `release: NAME`. Without them most ignore it in silence."""


class Rollout(Model):
    """How replicas are replaced by an edit."""

    max_surge: Annotated[int, Field(ge=0, le=100)] | None = None
    """Replicas started before old ones stop. 0 stops one first, which needs no spare accelerator but is an outage for a single replica.
    Unset: 0 on `cuda`, 1 on `cpu`."""


def _request_within_limit(resource: str) -> Rule:
    """Kubernetes refuses such a pod template; this refuses it where the user wrote it."""
    field = resource.replace("-", "__dash__")
    requested, limit = f"self.resources.requests.{field}", f"self.resources.limits.{field}"
    return Rule(
        cel=f"!has({requested}) || !has({limit}) || quantity(string({requested})).compareTo(quantity(string({limit}))) <= 0",
        message=f"the request of {resource} must not be greater than its limit",
        path=".resources.requests",
    )


class InferenceServiceSpec(Model):
    """What a user asks for. `model.name` alone is complete."""

    model: ModelSpec
    """What is served."""
    device: Literal["cuda", "cpu"] = "cuda"
    """What the model runs on. A replica on `cuda` never falls back to the CPU."""
    accelerators: Accelerators | None = None
    """The accelerator of one replica, only with device `cuda`. Unset with `cuda`: one `nvidia.com/gpu`."""
    batching: Batching = Batching()
    """How requests share a step of the model."""
    queue: Queue = Queue()
    """Requests that wait in a replica."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Requests in a replica, waiting and running together. The smaller of this and batch plus queue wins."""
    request_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 30
    """Seconds from a request's arrival to its last token; then it ends with 504."""
    drain_seconds: Annotated[int, Field(ge=1, le=86_400)] = 60
    """Seconds that a replica that is told to stop has to finish what it accepted. At least `requestTimeoutSeconds`."""
    cache: Cache = Cache()
    """Answers kept for equal requests."""
    autoscaling: Autoscaling = Autoscaling()
    """Who decides how many replicas run."""
    replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How many replicas run, only in autoscaling mode None. Unset there: the Deployment's count is left to whoever scales it."""
    resources: Resources = Resources()
    """What the server container asks of its node."""
    node_selector: Annotated[
        dict[LabelKey, LabelValue], Field(max_length=32, json_schema_extra=validations(keys_are_labels("nodeSelector")))
    ] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, json_schema_extra=ATOMIC_LIST)] = ()
    """Taints that replicas accept. On `cuda` the taint named after the accelerator is accepted without saying."""
    affinity: Affinity | None = None
    """Near what replicas run."""
    topology_spread_constraints: Annotated[tuple[SpreadConstraint, ...], Field(max_length=8, json_schema_extra=SPREAD_KEYS)] = ()
    """How replicas are spread over nodes or zones."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, such as `nvidia`."""
    image: ImageName | None = None
    """Server image of this service. Unset: the operator's."""
    image_pull_secrets: Annotated[tuple[LocalReference, ...], Field(max_length=8, json_schema_extra=list_map("name"))] = ()
    """Secrets with registry credentials, also for an `oci://` source."""
    pod_labels: Annotated[
        dict[LabelKey, LabelValue],
        Field(max_length=32, json_schema_extra=validations(keys_are_labels("podLabels"), reserved_keys(f"{GROUP}/", "app.kubernetes.io/"))),
    ] = Field(default_factory=dict)
    """Further labels of the pods."""
    pod_annotations: Annotated[
        dict[LabelKey, AnnotationValue],
        Field(
            max_length=32,
            json_schema_extra=validations(
                keys_are_labels("podAnnotations"),
                # These would loosen the pod's sandbox behind the security context's back.
                reserved_keys(f"{GROUP}/", "container.apparmor.security.beta.kubernetes.io/"),
            ),
        ),
    ] = Field(default_factory=dict)
    """Further annotations of the pods."""
    api_keys_secret: ObjectName | None = None
    """Secret of the same namespace whose key `keys` is a file with the API keys that clients must have, a line each, as
    `python -m millrace_server.keys new NAME` prints it. Its edits are followed while replicas run. Unset: nobody needs a key."""
    service: ServiceSpec = ServiceSpec()
    """The Service that clients call."""
    monitoring: Monitoring = Monitoring()
    """How Prometheus finds the replicas."""
    rollout: Rollout = Rollout()
    """How replicas are replaced by an edit."""

    rules: ClassVar = (
        Rule(
            cel="!has(self.accelerators) || self.device == 'cuda'",
            message="accelerators need device cuda; remove them or change spec.device",
            path=".accelerators",
        ),
        Rule(
            cel="self.drainSeconds >= self.requestTimeoutSeconds",
            message="drainSeconds must be at least requestTimeoutSeconds, or accepted requests are cut off",
            path=".drainSeconds",
        ),
        Rule(
            cel="!has(self.replicas) || self.autoscaling.mode == 'None'",
            message="replicas needs autoscaling.mode None; in mode Embedded set autoscaling.minReplicas and maxReplicas",
            path=".replicas",
        ),
        Rule(
            cel="self.autoscaling.mode == 'None' || self.autoscaling.minReplicas == self.autoscaling.maxReplicas || "
            "(self.autoscaling.?targetPerReplica.orValue(1) < self.maxConcurrentRequests && "
            "self.autoscaling.?targetPerReplica.orValue(1) < self.batching.maxSize + self.queue.maxSize)",
            message="targetPerReplica must be less than maxConcurrentRequests and than batching.maxSize + queue.maxSize, "
            "or it is never exceeded and scaling never happens",
            path=".autoscaling.targetPerReplica",
        ),
        # Here and not at their own objects, whose default `{}` the API server judges before it fills in what is inside.
        Rule(
            cel="self.autoscaling.minReplicas <= self.autoscaling.maxReplicas",
            message="minReplicas must not be greater than maxReplicas",
            path=".autoscaling.minReplicas",
        ),
        *(_request_within_limit(resource) for resource in ("cpu", "memory", "ephemeral-storage")),
    )

    @property
    def granted_accelerators(self) -> Accelerators | None:
        """What each replica gets; None on a CPU."""
        return (self.accelerators or Accelerators()) if self.device == "cuda" else None


class Condition(Model):
    """One question about the service, answered, by Kubernetes' API conventions."""

    type: Annotated[str, Field(min_length=1, max_length=63)]
    """The question."""
    status: Literal["True", "False", "Unknown"]
    """The answer."""
    reason: Annotated[str, Field(min_length=1, max_length=63)]
    """The answer's cause, for programs."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """The cause, the object and the next step, for people."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The `metadata.generation` that the answer is about."""
    last_transition_time: Annotated[str, Field(max_length=40)]
    """When `status` last flipped, RFC 3339."""


class EffectiveStatus(Model):
    """What the operator computed where the spec leaves a choice."""

    source: Annotated[str, Field(max_length=MAX_SOURCE_LENGTH)]
    """Where the model's files come from."""
    slots: Annotated[int, Field(ge=1)]
    """Requests that run at once in a replica."""
    target: Annotated[int, Field(ge=1)]
    """Requests in the system per replica that scaling aims at."""


class AutoscalingStatus(Model):
    """The last scaling decision, explained."""

    load: Annotated[int, Field(ge=0)] | None = None
    """Requests in the system, waiting and running, over all replicas that answered."""
    target: Annotated[int, Field(ge=1)] | None = None
    """Requests in the system per replica that scaling aims at."""
    desired: Annotated[int, Field(ge=0)] | None = None
    """Replicas that the operator asks for."""
    reason: Annotated[str, Field(max_length=1024)] | None = None
    """Why."""
    blocked_by: Annotated[str, Field(max_length=1024)] | None = None
    """What keeps the operator from asking for what the load needs."""
    fresh_pods: Annotated[int, Field(ge=0)] | None = None
    """Ready replicas whose load was read in time."""
    seconds_per_request: Annotated[float, Field(ge=0)] | None = None
    """How long a request holds a slot, as measured; whoever leads next begins with it."""
    measured_for: Annotated[str, Field(max_length=64)] | None = None
    """Of which model and device: another one is measured anew."""
    hint: Annotated[str, Field(max_length=1024)] | None = None
    """What could be saved."""


class InferenceServiceStatus(Model):
    """What the operator saw. Written by the operator alone."""

    observed_generation: Annotated[int, Field(ge=-1)] = -1
    """The `metadata.generation` that the status is about; -1 before the operator has seen the object."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16, json_schema_extra=list_map("type"))] = ()
    """`Ready`, `Reconciling`, `Stalled` and others."""
    effective: EffectiveStatus | None = None
    """What the operator computed where the spec leaves a choice."""
    replicas: Annotated[int, Field(ge=0)] | None = None
    """Replicas that exist."""
    ready_replicas: Annotated[int, Field(ge=0)] | None = None
    """Replicas that serve."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the replicas, for the scale subresource."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Where clients inside the cluster call."""
    autoscaling: AutoscalingStatus | None = None
    """The last scaling decision, explained."""


def _name_rules() -> tuple[Rule, ...]:
    suffixes = " || ".join(f"self.metadata.name.endsWith('{suffix}')" for suffix in RESERVED_SUFFIXES)
    return (
        Rule(
            cel=f"size(self.metadata.name) <= {MAX_NAME_LENGTH} && self.metadata.name.matches(r'^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            message=f"metadata.name must be a DNS label that begins with a letter, of at most {MAX_NAME_LENGTH} characters",
            path=".metadata.name",
        ),
        Rule(
            cel=f"!({suffixes})",
            message=f"metadata.name must not end with {' or '.join(RESERVED_SUFFIXES)}, which name the service's own children",
            path=".metadata.name",
        ),
    )


ROOT_RULES = _name_rules()
"""Rules of the whole object; `metadata.name` can be reached from nowhere else."""


class InvalidService(ValueError):
    """A stored object that today's schema refuses: a sentence that names the field."""


@dataclass(frozen=True, kw_only=True)
class InferenceService:
    """A parsed custom resource."""

    name: str
    namespace: str
    uid: str
    generation: int
    annotations: Mapping[str, str]
    spec: InferenceServiceSpec
    status: InferenceServiceStatus

    @property
    def paused(self) -> bool:
        """The user asks for no writes at all."""
        return self.annotations.get(PAUSED_ANNOTATION) == "true"


def parse(manifest: Manifest) -> InferenceService:
    """Raises InvalidService."""
    metadata = manifest["metadata"]
    return InferenceService(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        annotations=metadata.get("annotations") or {},
        spec=_parse_spec(manifest.get("spec")),
        status=parse_status(manifest.get("status")),
    )


def _parse_spec(spec: object) -> InferenceServiceSpec:
    try:
        return InferenceServiceSpec.model_validate(spec)
    except ValidationError as error:
        first = error.errors()[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise InvalidService(f"spec{path}: {first['msg']}") from None


def parse_status(status: object) -> InferenceServiceStatus:
    """The status is ours: one that another version wrote in another shape is rewritten, not refused."""
    try:
        return InferenceServiceStatus.model_validate(status or {})
    except ValidationError:
        return InferenceServiceStatus()


def effective(service: InferenceService) -> EffectiveStatus:
    """The computed defaults."""
    spec = service.spec
    slots = min(spec.batching.max_size, spec.max_concurrent_requests)
    return EffectiveStatus(
        source=spec.model.source or f"{HUB_PREFIX}{spec.model.name}",
        slots=slots,
        target=spec.autoscaling.target_per_replica or max(1, int(TARGET_SHARE_OF_SLOTS * slots)),
    )
