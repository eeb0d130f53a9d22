"""The pod of a replica: the only place that builds its spec.

The model's files are put into place before the server starts, by a step that alone has the token and the way out; the server is offline.
"""

from millrace_operator.api import InferenceService, InferenceServiceSpec, effective
from millrace_operator.desired.container import TERMINATION_LOG, confinement, container, from_secret
from millrace_operator.desired.platform import Platform
from millrace_operator.desired.redis import redis_environment
from millrace_operator.manifest import Manifest
from millrace_operator.names import DOWNLOAD_CONTAINER, METRICS_PORT_NAME, SERVE_PORT_NAME, SERVER_CONTAINER, child_labels, selector_labels
from millrace_operator.quantity import whole_units
from millrace_operator.source import ClaimSource, HubSource, ImageSource, ModelSource, parse_source
from millrace_server.settings import CacheType, Device, DType, ServerSettings

MODEL_FOLDER = "/millrace/model"
"""A mount hides what an image has at its place: an `oci://` image may keep its model anywhere but under /millrace and /tmp."""
TEMPORARY_FOLDER = "/tmp"  # noqa: S108 - a mount inside the pod
CACHE_FOLDER = "/millrace/cache"
API_KEYS_FOLDER = "/millrace/keys"
API_KEYS_KEY = "keys"
TOKEN_KEY = "token"  # noqa: S105 - the name of a key, not a secret

TEMPORARY_SIZE_LIMIT = "1Gi"
CACHE_SIZE_LIMIT = "20Gi"
"""Holds what the hub's client and the compilers of kernels keep."""
MODEL_SIZE_LIMIT = "200Gi"
"""When the service states no limit of ephemeral storage. A larger model is refused before its download; an emptyDir
that outgrows its limit all the same evicts the pod, not its neighbours."""

ENDPOINT_LAG_SECONDS = 5
"""Requests still arrive after a pod is told to stop, until every kube-proxy has heard of it."""
EXIT_SECONDS = 5
"""From the end of the drain to the end of the process."""


def pod_template(service: InferenceService, *, platform: Platform) -> Manifest:
    spec = service.spec
    source = parse_source(effective(service).source)
    image = spec.image or platform.server_image
    model_step = _model_step(source, spec, image=image, pull_policy=platform.pull_policy)
    return {
        "metadata": {
            "labels": {**spec.pod_labels, **child_labels(service.name)},
            "annotations": dict(spec.pod_annotations),
        },
        "spec": {
            **confinement(),
            "terminationGracePeriodSeconds": ENDPOINT_LAG_SECONDS + spec.drain_seconds + EXIT_SECONDS,
            "initContainers": [model_step] if model_step else [],
            "containers": [_server(service, source, image=image, pull_policy=platform.pull_policy)],
            "volumes": [
                {"name": "tmp", "emptyDir": {"sizeLimit": TEMPORARY_SIZE_LIMIT}},
                {"name": "cache", "emptyDir": {"sizeLimit": CACHE_SIZE_LIMIT}},
                {"name": "model", **_model_volume(source, spec)},
                *_api_keys_volume(spec),
            ],
            "tolerations": _tolerations(spec),
            **_placement(service),
        },
    }


def _mounts(*, model_is_writable: bool) -> list[Manifest]:
    return [
        {"name": "tmp", "mountPath": TEMPORARY_FOLDER},
        {"name": "cache", "mountPath": CACHE_FOLDER},
        {"name": "model", "mountPath": MODEL_FOLDER, "readOnly": not model_is_writable},
    ]


def _server(service: InferenceService, source: ModelSource, *, image: str, pull_policy: str) -> Manifest:
    settings = server_settings(service.spec, source)
    serving = container(
        name=SERVER_CONTAINER,
        image=image,
        pull_policy=pull_policy,
        command=["python", "-m", "millrace_server"],
        arguments=[],
        environment={**_told(settings), "HF_HUB_OFFLINE": "1", **_CACHE_VARIABLES},
        mounts=[*_mounts(model_is_writable=False), *_api_keys_mount(service.spec)],
        resources=_server_resources(service.spec),
    )
    return {
        **serving,
        "env": [*serving["env"], *redis_environment(service)],
        "ports": [
            {"name": SERVE_PORT_NAME, "containerPort": settings.port, "protocol": "TCP"},
            {"name": METRICS_PORT_NAME, "containerPort": settings.prometheus_port, "protocol": "TCP"},
        ],
        # No startup probe: the server answers at once, and /livez fails only when loading stands still.
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": METRICS_PORT_NAME},
            "initialDelaySeconds": 30,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": METRICS_PORT_NAME},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": ENDPOINT_LAG_SECONDS}}},
    }


IN_A_SECRET = "redis://in-a-secret"  # noqa: S105 - it says that it is none
"""Stands for the URL that only the pod knows."""


def _told(settings: ServerSettings) -> dict[str, str]:
    """The variables whose values are no secrets."""
    return {variable: value for variable, value in settings.to_environment().items() if value != IN_A_SECRET}


_CACHE_VARIABLES = {"HF_HOME": f"{CACHE_FOLDER}/huggingface", "XDG_CACHE_HOME": CACHE_FOLDER}


def server_settings(spec: InferenceServiceSpec, source: ModelSource) -> ServerSettings:
    """What the server of a replica is told."""
    return ServerSettings(
        MODEL_NAME=spec.model.name,
        MODEL_ALIASES=",".join(spec.model.aliases) or None,
        MODEL_PATH=MODEL_FOLDER + (source.path if isinstance(source, ClaimSource) else ""),
        MODEL_REVISION=_pinned_revision(source),
        DEVICE=Device(spec.device),
        DEVICE_FALLBACK=False,
        DTYPE=DType(spec.model.dtype),
        MAX_LENGTH=spec.model.max_length,
        MAX_BATCH_SIZE=spec.batching.max_size,
        BATCH_TIMEOUT_MS=spec.batching.timeout_milliseconds,
        MAX_QUEUE_SIZE=spec.queue.max_size,
        MAX_CONCURRENT_REQUESTS=spec.max_concurrent_requests,
        REQUEST_TIMEOUT=spec.request_timeout_seconds,
        DRAIN_SECONDS=spec.drain_seconds,
        CACHE_TYPE=CacheType(spec.cache.type),
        CACHE_TTL=spec.cache.ttl_seconds,
        REDIS_URL=IN_A_SECRET if spec.cache.type == "redis" else None,
        API_KEYS_FILE=f"{_api_keys_folder(spec)}/{API_KEYS_KEY}" if spec.api_keys_secret else None,
        TERMINATION_LOG=TERMINATION_LOG,
    )


def _pinned_revision(source: ModelSource) -> str | None:
    """Only what cannot move: a tag or a branch would name different files tomorrow, and the server hashes those itself."""
    match source:
        case HubSource(revision=str(revision)) if len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
            return revision
        case ImageSource(digest=str(digest)):
            return digest
    return None


def _model_step(source: ModelSource, spec: InferenceServiceSpec, *, image: str, pull_policy: str) -> Manifest | None:
    """The init container that fills the model's folder; a claim needs none."""
    match source:
        case HubSource(repository=repository, revision=revision):
            step = container(
                name=DOWNLOAD_CONTAINER,
                image=image,
                pull_policy=pull_policy,
                command=["python", "-m", "millrace_server.download"],
                arguments=[
                    f"--repo={repository}",
                    *([f"--revision={revision}"] if revision else []),
                    f"--to={MODEL_FOLDER}",
                    f"--max-bytes={whole_units(_model_size_limit(spec))}",
                ],
                environment={"TERMINATION_LOG": TERMINATION_LOG, **_CACHE_VARIABLES},
                mounts=_mounts(model_is_writable=True),
                resources=_shared_resources(spec),
            )
            if spec.model.token_secret:
                step["env"].append(from_secret("HF_TOKEN", secret=spec.model.token_secret, key=TOKEN_KEY))
            return step
        case ImageSource(image=model_image, path=path):
            return container(
                name=DOWNLOAD_CONTAINER,
                image=model_image,
                pull_policy=pull_policy,
                command=["cp"],
                arguments=["-R", "--", f"{path}/.", f"{MODEL_FOLDER}/"],
                mounts=_mounts(model_is_writable=True),
                resources=_shared_resources(spec),
            )
        case ClaimSource():
            return None


def _model_volume(source: ModelSource, spec: InferenceServiceSpec) -> Manifest:
    if isinstance(source, ClaimSource):
        return {"persistentVolumeClaim": {"claimName": source.claim, "readOnly": True}}
    return {"emptyDir": {"sizeLimit": _model_size_limit(spec)}}


def _api_keys_folder(spec: InferenceServiceSpec) -> str:
    """Names the Secret, because the server names the file when it is missing."""
    return f"{API_KEYS_FOLDER}/{spec.api_keys_secret}"


def _api_keys_mount(spec: InferenceServiceSpec) -> list[Manifest]:
    """A folder, not a file of its own, which would never follow the Secret."""
    return [{"name": "keys", "mountPath": _api_keys_folder(spec), "readOnly": True}] if spec.api_keys_secret else []


def _api_keys_volume(spec: InferenceServiceSpec) -> list[Manifest]:
    # Optional: without it, a missing Secret holds the pod up with a word in an Event at most; the server ends with a sentence.
    only_keys = {"secretName": spec.api_keys_secret, "items": [{"key": API_KEYS_KEY, "path": API_KEYS_KEY}], "optional": True}
    return [{"name": "keys", "secret": only_keys}] if spec.api_keys_secret else []


def _model_size_limit(spec: InferenceServiceSpec) -> str:
    return spec.resources.limits.ephemeral_storage or MODEL_SIZE_LIMIT


def _shared_resources(spec: InferenceServiceSpec) -> Manifest:
    """What the init container asks too: it runs before the server, so it costs nothing, and a ResourceQuota admits the pod."""
    return spec.resources.model_dump(by_alias=True, exclude_none=True)


def _server_resources(spec: InferenceServiceSpec) -> Manifest:
    resources = _shared_resources(spec)
    accelerators = spec.granted_accelerators
    granted = {accelerators.resource: str(accelerators.count)} if accelerators else {}
    return {**resources, "limits": {**resources["limits"], **granted}}


def _tolerations(spec: InferenceServiceSpec) -> list[Manifest]:
    """The user's, and the taint that keeps others off GPU nodes, which is by custom named after the resource."""
    accelerators = spec.granted_accelerators
    own = [{"key": accelerators.resource, "operator": "Exists", "effect": "NoSchedule"}] if accelerators else []
    return [*own, *(toleration.model_dump(by_alias=True, exclude_none=True) for toleration in spec.tolerations)]


def _placement(service: InferenceService) -> Manifest:
    """Pod fields that exist only when the user asks for them."""
    spec = service.spec
    own_pods = {"labelSelector": {"matchLabels": selector_labels(service.name)}, "matchLabelKeys": ["pod-template-hash"]}
    wanted: Manifest = {
        "nodeSelector": dict(spec.node_selector),
        "affinity": spec.affinity and spec.affinity.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "topologySpreadConstraints": [{**each.model_dump(by_alias=True), **own_pods} for each in spec.topology_spread_constraints],
        "priorityClassName": spec.priority_class_name,
        "runtimeClassName": spec.runtime_class_name,
        "imagePullSecrets": [{"name": secret.name} for secret in spec.image_pull_secrets],
    }
    return {field: value for field, value in wanted.items() if value}
