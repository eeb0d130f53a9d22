"""Where in the API a thing lies."""

from millrace_operator.desired import CHILD_KINDS
from millrace_operator.manifest import Manifest
from millrace_operator.names import PLURAL

_PLURALS = {(kind.api_version, kind.kind): kind.plural for kind in CHILD_KINDS}


def api_path(api_version: str, plural: str, namespace: str, name: str = "") -> str:
    """Of an object, or of a collection without a name; of all namespaces' when that is empty."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{place}/{plural}" + (f"/{name}" if name else "")


def path_of(manifest: Manifest) -> str:
    """Of a child or an InferenceService."""
    metadata = manifest["metadata"]
    plural = _PLURALS.get((manifest["apiVersion"], manifest["kind"]), PLURAL)
    return api_path(manifest["apiVersion"], plural, metadata["namespace"], metadata["name"])
