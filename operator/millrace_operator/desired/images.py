"""The images that the operator was told to run; a service's own `spec.image` goes before."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    server: str
    pull_policy: str = "IfNotPresent"
    """For every container of a pod, also an `oci://` model's."""
