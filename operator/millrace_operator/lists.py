"""Lists of the API server, page by page."""

from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType

from millrace_operator.connection import JSON, METADATA_ONLY, Connection
from millrace_operator.manifest import Manifest
from millrace_operator.names import API_VERSION, PLURAL
from millrace_operator.paths import api_path
from millrace_operator.view import Key

PAGE = "500"


class Lists:
    """`timeout` in seconds, of each page. Namespaces: of all when none is named. All raise ApiError."""

    def __init__(self, connection: Connection, *, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    async def pages(self, path: str, *, labels: Mapping[str, str] = MappingProxyType({}), accept: str = JSON) -> AsyncIterator[Manifest]:
        """A page that expired (410) raises ApiError; the next list begins anew."""
        query = {"limit": PAGE, "labelSelector": ",".join(f"{label}={value}" for label, value in labels.items())}
        while True:
            page = await self._connection.get(path, query=query, accept=accept, seconds=self._timeout)
            yield page
            if not (following := page["metadata"].get("continue")):
                return
            query["continue"] = following

    async def services(self, namespaces: Sequence[str]) -> set[Key]:
        """Every InferenceService."""
        found: set[Key] = set()
        for namespace in namespaces or ("",):
            async for page in self.pages(api_path(API_VERSION, PLURAL, namespace), accept=METADATA_ONLY):
                found |= {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in page["items"] or ()}
        return found

    async def autoscalers(self, namespaces: Sequence[str]) -> dict[Key, str]:
        """Kind and name of every HorizontalPodAutoscaler of a Deployment, by the Deployment's namespace and name."""
        found: dict[Key, str] = {}
        for namespace in namespaces or ("",):
            async for page in self.pages(api_path("autoscaling/v2", "horizontalpodautoscalers", namespace)):
                for item in page["items"] or ():
                    target, metadata = item["spec"]["scaleTargetRef"], item["metadata"]
                    if target["kind"] == "Deployment":
                        found[metadata["namespace"], target["name"]] = f"HorizontalPodAutoscaler {metadata['name']!r}"
        return found
