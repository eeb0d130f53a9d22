"""Which field of an InferenceService decides a field of a child: what to name when the API server refuses the child for it.

Only fields whose values the resource's own schema cannot judge, such as a port that is taken or what an annotation's reader demands.
"""

_ORIGINS = (
    ("Service", "spec.ports[0].nodePort", "spec.service.nodePort"),
    ("Service", "metadata.annotations", "spec.service.annotations"),
    ("Deployment", "spec.template.annotations", "spec.podAnnotations"),
)


def origin(kind: str, path: str) -> str | None:
    """`path` as the API server blames it. None when no field of the service decides it alone."""
    return next((field for owner, beginning, field in _ORIGINS if owner == kind and path.startswith(beginning)), None)
