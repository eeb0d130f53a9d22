"""Names, labels and ports that operator, children and clients agree on. Pure constants and one function per derived name."""

GROUP = "millrace.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceService"
PLURAL = "inferenceservices"
SINGULAR = "inferenceservice"
SHORT_NAME = "infsvc"

FIELD_MANAGER = "millrace-operator"
OPERATOR_LABELS = {"app.kubernetes.io/name": "millrace-operator"}
"""Of the operator's own pods; the chart puts them there."""
LEASE = "millrace-operator"
"""The Lease of whoever leads, in the operator's own namespace. Its Role names it."""
RELEASE_ANNOTATION = f"{GROUP}/operator-version"
"""On the Lease: the version of the operator that leads or led last."""
PAUSED_ANNOTATION = f"{GROUP}/paused"
HASH_ANNOTATION = f"{GROUP}/applied-hash"

INSTANCE_LABEL = "app.kubernetes.io/instance"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"

MAX_NAME_LENGTH = 45
RESERVED_SUFFIXES = ("-redis", "-metrics")

CLIENT_SERVICE_PORT = 80
"""The client Service's port; the container's ports come from millrace_server.settings."""
SERVE_PORT_NAME = "http"
METRICS_PORT_NAME = "metrics"
REDIS_PORT = 6379
REDIS_PORT_NAME = "redis"
SERVER_CONTAINER = "server"
REDIS_CONTAINER = "redis"
DOWNLOAD_CONTAINER = "model"


def metrics_service(name: str) -> str:
    """The headless Service of port 9090."""
    return f"{name}-metrics"


def redis(name: str) -> str:
    """The cache's Deployment and Service."""
    return f"{name}-redis"


def redis_secret(name: str, uid: str) -> str:
    """Of this very InferenceService: one of the same name before it may have left a Secret that is about to be collected."""
    return f"{name}-redis-{uid[:8]}"


def instance_labels(name: str) -> dict[str, str]:
    """By which every child is found, whatever it runs."""
    return {INSTANCE_LABEL: name, MANAGED_BY_LABEL: FIELD_MANAGER}


def redis_selector_labels(name: str) -> dict[str, str]:
    """As immutable as the server's, from which they differ, or clients would be led to Redis."""
    return {"app.kubernetes.io/name": "millrace-redis", INSTANCE_LABEL: name}


def selector_labels(name: str) -> dict[str, str]:
    """Immutable once a Deployment exists: choose a new name rather than change them."""
    return {
        "app.kubernetes.io/name": "millrace-server",
        INSTANCE_LABEL: name,
    }


def metrics_labels(name: str) -> dict[str, str]:
    """By which scrapers tell the Service of the internal port from the clients' one."""
    return {**selector_labels(name), "app.kubernetes.io/component": "metrics"}


def child_labels(name: str) -> dict[str, str]:
    """Labels of every child; the operator watches by `managed-by`. The CR's own labels are never copied (GitOps prunes by them)."""
    return {**selector_labels(name), MANAGED_BY_LABEL: FIELD_MANAGER}
