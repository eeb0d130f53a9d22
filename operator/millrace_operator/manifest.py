"""The one open-ended type: a Kubernetes object on its way to or from the API server. Everything else is a frozen model."""

from typing import Any

Manifest = dict[str, Any]
