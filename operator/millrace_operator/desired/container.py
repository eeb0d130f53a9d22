"""What every pod and every container of a service has in common: the only place that confines them.

Pod Security `restricted`, also with a GPU: no field of the resource can loosen it. Nothing goes through a shell.
"""

from collections.abc import Mapping, Sequence

from millrace_operator.manifest import Manifest

USER = 10001
"""The server image's own user; a number, so that the kubelet can tell that it is not root. Redis needs no particular one."""
TERMINATION_LOG = "/dev/termination-log"


def confinement() -> Manifest:
    """The fields by which every pod spec begins."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def container(
    *,
    name: str,
    image: str,
    pull_policy: str,
    command: list[str],
    arguments: list[str],
    environment: Mapping[str, str] | None = None,
    mounts: Sequence[Manifest],
    resources: Manifest,
) -> Manifest:
    """Every container of every pod. `command` and `arguments` are words, never a shell's line."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": pull_policy,
        "command": command,
        "args": arguments,
        "env": [{"name": variable, "value": value} for variable, value in (environment or {}).items()],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": list(mounts),
    }


def from_secret(variable: str, *, secret: str, key: str, optional: bool = False) -> Manifest:
    """An environment variable whose value is in a Secret of the same namespace."""
    reference = {"name": secret, "key": key, **({"optional": True} if optional else {})}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}
