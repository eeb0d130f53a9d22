"""The cache that a service's replicas share: a Redis of its own, or the one that `spec.cache.urlSecret` leads to.

What is in it is lost with its pod, which costs time and nothing else: there is no disk, no second replica and no backup.
"""

from millrace_operator import names
from millrace_operator.api import InferenceService
from millrace_operator.desired.container import confinement, container, from_secret
from millrace_operator.desired.metadata import metadata
from millrace_operator.desired.platform import Platform
from millrace_operator.manifest import Manifest

URL_KEY = "url"
SEAL_KEY = "secret"
"""Seals what is kept. In a user's own Secret it may be missing: the server then derives it from the password in the URL."""
ACCESS_KEY = "users.acl"
SECRET_FOLDER = "/millrace/redis"  # noqa: S105 - a folder
SERVER_COMMANDS = ("getrange", "set", "unlink")
"""All that the server asks of Redis; more than that a stolen password does not open."""
MAX_MEMORY = "256mb"
RESOURCES: Manifest = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "384Mi"}}
"""The limit leaves room for connections and for what the allocator holds beyond the entries."""


def runs_redis(service: InferenceService) -> bool:
    """A Redis of the service's own is wanted."""
    return service.spec.cache.type == "redis" and service.spec.cache.url_secret is None


def redis_children(service: InferenceService, *, platform: Platform) -> tuple[Manifest, ...]:
    """But for the Secret, which is made once and by itself."""
    return (_service(service), _deployment(service, platform=platform)) if runs_redis(service) else ()


def redis_secret(service: InferenceService, *, password: str, seal: str) -> Manifest:
    """Both are random, and of characters that mean nothing in a URL or in Redis's own files."""
    host = names.redis(service.name)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": redis_metadata(service, names.redis_secret(service.name, service.uid)),
        "immutable": True,
        "stringData": {
            URL_KEY: f"redis://:{password}@{host}:{names.REDIS_PORT}/0",
            SEAL_KEY: seal,
            ACCESS_KEY: f"user default on >{password} ~millrace:* -@all {' '.join(f'+{word}' for word in SERVER_COMMANDS)}\n",
        },
    }


def redis_environment(service: InferenceService) -> list[Manifest]:
    """What the server knows of its Redis; empty when it has none."""
    if service.spec.cache.type != "redis":
        return []
    own = service.spec.cache.url_secret
    secret = own or names.redis_secret(service.name, service.uid)
    return [
        from_secret("REDIS_URL", secret=secret, key=URL_KEY),
        from_secret("CACHE_SECRET", secret=secret, key=SEAL_KEY, optional=own is not None),
    ]


def redis_metadata(service: InferenceService, name: str) -> Manifest:
    return {**metadata(service, name), "labels": _labels(service)}


def _labels(service: InferenceService) -> dict[str, str]:
    return {**names.redis_selector_labels(service.name), **names.instance_labels(service.name)}


def _service(service: InferenceService) -> Manifest:
    port = {"name": names.REDIS_PORT_NAME, "port": names.REDIS_PORT, "targetPort": names.REDIS_PORT_NAME, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": redis_metadata(service, names.redis(service.name)),
        "spec": {"selector": names.redis_selector_labels(service.name), "ports": [port]},
    }


def _deployment(service: InferenceService, *, platform: Platform) -> Manifest:
    secret = {"secretName": names.redis_secret(service.name, service.uid), "items": [{"key": ACCESS_KEY, "path": ACCESS_KEY}]}
    pull_secrets = [{"name": secret.name} for secret in service.spec.image_pull_secrets]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": redis_metadata(service, names.redis(service.name)),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": names.redis_selector_labels(service.name)},
            # Two at a time would each keep half of the answers, and a quota need not have room for both.
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 3,
            "template": {
                "metadata": {"labels": _labels(service)},
                "spec": {
                    **confinement(),
                    "terminationGracePeriodSeconds": 5,
                    **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
                    "containers": [_container(platform)],
                    "volumes": [{"name": "access", "secret": secret}],
                },
            },
        },
    }


def _container(platform: Platform) -> Manifest:
    options = {
        "save": "",
        "appendonly": "no",
        "maxmemory": MAX_MEMORY,
        "maxmemory-policy": "allkeys-lru",
        "aclfile": f"{SECRET_FOLDER}/{ACCESS_KEY}",
    }
    return {
        **container(
            name=names.REDIS_CONTAINER,
            image=platform.redis_image,
            pull_policy=platform.pull_policy,
            command=["redis-server"],
            arguments=[word for option, value in options.items() for word in (f"--{option}", value)],
            mounts=[{"name": "access", "mountPath": SECRET_FOLDER, "readOnly": True}],
            resources=RESOURCES,
        ),
        "ports": [{"name": names.REDIS_PORT_NAME, "containerPort": names.REDIS_PORT, "protocol": "TCP"}],
        # Without the password it is answered that one is needed: that Redis answers is all there is to know.
        "livenessProbe": {"exec": {"command": ["redis-cli", "ping"]}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        "readinessProbe": {"tcpSocket": {"port": names.REDIS_PORT_NAME}, "periodSeconds": 2},
    }
