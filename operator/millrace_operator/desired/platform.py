"""What the operator was told of the platform, the same for every service; a service's own `spec.image` goes before."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    server_image: str
    redis_image: str
    operator_namespace: str
    """Where the operator asks from."""
    pull_policy: str = "IfNotPresent"
    """For every container of a pod, also an `oci://` model's."""
