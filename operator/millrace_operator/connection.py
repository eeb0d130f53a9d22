"""The one authenticated connection to the API server, and the only module that imports the Kubernetes client.

Manifests go in and out; errors have names. It decides nothing, retries nothing and knows no kind: `cluster` and `lease` do.
"""

import json
import os
from collections.abc import Mapping

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from millrace_operator.manifest import Manifest

JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
SOCKETS = 32
"""Requests that run at once."""


class ApiError(Exception):
    """What the API server answered: the HTTP status (0: none came), its reason and its message."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float = 0, fields: tuple[str, ...] = ()) -> None:
        super().__init__(f"{reason} ({status}): {message}")
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""
        self.fields = fields
        """Paths of the object's fields that the server blames."""


class NotFound(ApiError):
    """404."""


class Conflict(ApiError):
    """The object is no longer what it was seen as: 409, or 404 for a write."""


class AlreadyThere(ApiError):
    """409 of a creation."""


class Forbidden(ApiError):
    """A missing permission, an exceeded quota or a policy; the message says which."""


class NamespaceEnds(Forbidden):
    """403: the namespace is being deleted, and everything in it goes with it."""


class Refused(ApiError):
    """400 or 422: the object itself is wrong, and will be wrong next time."""


class Unreachable(ApiError):
    """No answer in time, or one that is not the API server's."""


class NoCluster(Exception):
    """Neither a kubeconfig nor a service account was found."""


async def configuration() -> Configuration:
    """KUBECONFIG if it is set, else the pod's service account. Raises NoCluster."""
    result = Configuration()
    try:
        if kubeconfig := os.environ.get("KUBECONFIG"):
            await load_kube_config(config_file=kubeconfig, client_configuration=result)
        else:
            load_incluster_config(client_configuration=result)
    except (ConfigException, OSError) as error:
        raise NoCluster(f"no way to the API server: {error}; set KUBECONFIG, or run as a pod with a service account") from error
    return result


def token(config: Configuration) -> str | None:
    """The bearer token, read again from the service account when it is older than a minute."""
    if config.refresh_api_key_hook is not None:
        config.refresh_api_key_hook(config)
    header = config.api_key.get("BearerToken")
    return header.split(" ", 1)[-1].strip() if header else None


class Connection:
    """Requests to the API server. `seconds` bounds a whole request."""

    def __init__(self, config: Configuration) -> None:
        config.connection_pool_maxsize = SOCKETS
        # Else a thread reads ~/.netrc before each request; kopf's own session goes by no proxy of the environment either.
        config.client_session_kwargs = {"trust_env": False}
        self._client = ApiClient(config)
        self._client.user_agent = "millrace-operator"

    async def close(self) -> None:
        await self._client.close()

    async def get(self, path: str, *, query: Mapping[str, str] | None = None, accept: str = JSON, seconds: float) -> Manifest:
        return await self._request("GET", path, query=query, headers={"Accept": accept}, seconds=seconds)

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: Manifest | list[Manifest],
        content_type: str = JSON,
        query: Mapping[str, str] | None = None,
        seconds: float,
    ) -> Manifest:
        """POST, PUT, PATCH or DELETE."""
        headers = {"Accept": JSON, "Content-Type": content_type}
        return await self._request(method, path, query=query, headers=headers, body=body, seconds=seconds)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        headers: dict[str, str],
        seconds: float,
        body: Manifest | list[Manifest] | None = None,
    ) -> Manifest:
        try:
            request = await self._client.param_serialize(
                method, path, query_params=list((query or {}).items()), header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = await self._client.call_api(*request, _request_timeout=aiohttp.ClientTimeout(total=seconds))
            content = await response.read()
        except TimeoutError:
            raise Unreachable(0, "Timeout", f"{method} {path} was not answered within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(0, type(error).__name__, f"{method} {path}: {error}") from error
        if response.status >= 400:
            raise _error(method, path, response.status, content, response.headers.get("Retry-After"))
        answer = _parsed(content)
        if answer is None:
            raise Unreachable(response.status, "NotTheApiServer", f"{method} {path}: no JSON object but {_shortened(content)!r}")
        return answer


_BY_STATUS: dict[int, type[ApiError]] = {400: Refused, 403: Forbidden, 404: NotFound, 409: Conflict, 422: Refused}


def _error(method: str, path: str, status: int, content: bytes, retry_after: str | None) -> ApiError:
    answer = _parsed(content) or {"message": _shortened(content)}
    told, causes = str(answer.get("message") or "no message"), _causes(answer)
    kind = _BY_STATUS.get(status, ApiError)
    if answer.get("reason") == "AlreadyExists":
        kind = AlreadyThere
    if status == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        kind = NamespaceEnds
    if status == 422 and "denied request" in told:
        # A ValidatingAdmissionPolicy: the cluster forbids the object, which Kubernetes calls invalid.
        kind = Forbidden
    if status == 500 and "failed to create typed patch object" in told:
        # A misspelt field in a server-side apply: Kubernetes calls its own failure what is ours.
        kind = Refused
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
    fields = tuple(str(cause["field"]) for cause in causes if cause.get("field"))
    reason = str(answer.get("reason") or status)
    return kind(status, reason, f"{told} [{method} {path}]", retry_after=seconds, fields=fields)


def _parsed(content: bytes) -> Manifest | None:
    """None when it is not a JSON object: what stands between us and the API server answers too."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _causes(answer: Manifest) -> list[Manifest]:
    details = answer.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    return [cause for cause in causes if isinstance(cause, dict)] if isinstance(causes, list) else []


def _shortened(content: bytes) -> str:
    return content[:200].decode(errors="replace")
