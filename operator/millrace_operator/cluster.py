"""The only Kubernetes I/O of a pass: observe, apply, prune, scale, write the status. It chooses nothing.

Every write goes through the guard (do we still lead?), the token bucket and a timeout. Server-side apply has one field manager;
every write but a creation carries the version it was decided on, so that one that comes too late is refused.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from millrace_operator.connection import APPLY, MERGE, METADATA_ONLY, AlreadyThere, Conflict, Connection, Forbidden, NotFound
from millrace_operator.desired import CHILD_KINDS, ChildKind
from millrace_operator.manifest import Manifest
from millrace_operator.names import (
    API_VERSION,
    FIELD_MANAGER,
    INSTANCE_LABEL,
    KIND,
    MANAGED_BY_LABEL,
    PLURAL,
    child_labels,
    instance_labels,
)
from millrace_operator.ownership import applied_fields, is_as_wished, owner_uid, owns, stamped
from millrace_operator.workqueue import TokenBucket

Key = tuple[str, str]
"""(namespace, name) of an InferenceService."""

SCALE_MANAGER = f"{FIELD_MANAGER}-scale"
"""Holds `spec.replicas` while it passes from the applied Deployment to whoever scales."""
PAGE = "500"


class NameConflict(Exception):
    """An object that is not ours has a child's name. It is never adopted."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name!r} exists and does not belong to this InferenceService; delete or rename it")


@dataclass(frozen=True)
class Observed:
    """One service as it is: its own manifest, the children it owns by UID, and the server's pods."""

    manifest: Manifest
    children: tuple[Manifest, ...]
    pods: tuple[Manifest, ...]
    out_of_reach: Mapping[str, NotFound | Forbidden] = field(default_factory=dict)
    """Optional kinds that could not be listed, and why; the others' failure is the pass's."""

    def child(self, kind: str, name: str) -> Manifest | None:
        return next((child for child in self.children if child["kind"] == kind and child["metadata"]["name"] == name), None)


class Cluster:
    """`guard` raises when this process may not write; `wrote` is told kind and verb of each accepted write. Timeouts in seconds."""

    def __init__(
        self,
        connection: Connection,
        *,
        guard: Callable[[], None],
        bucket: TokenBucket,
        read_timeout: float,
        write_timeout: float,
        wrote: Callable[[str, str], None] = lambda kind, verb: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._bucket = bucket
        self._read_timeout = read_timeout
        self._write_timeout = write_timeout
        self._wrote = wrote
        self._clock = clock

    async def keys(self, namespaces: Sequence[str]) -> set[Key]:
        """Every InferenceService of these namespaces, or of all when none is named."""
        found: set[Key] = set()
        for namespace in namespaces or ("",):
            found |= await self._keys_of(namespace)
        return found

    async def observe(self, key: Key) -> Observed | None:
        """None when the service is gone."""
        namespace, name = key
        try:
            manifest = await self._get(_path(API_VERSION, PLURAL, namespace, name))
        except NotFound:
            return None
        out_of_reach: dict[str, NotFound | Forbidden] = {}

        async def children_of(kind: ChildKind) -> list[Manifest]:
            try:
                return await self._list(kind, namespace, instance_labels(name))
            except (NotFound, Forbidden) as error:
                if not kind.optional:
                    raise
                out_of_reach[kind.kind] = error
                return []

        *lists, pods = await asyncio.gather(
            *map(children_of, CHILD_KINDS),
            self._list(ChildKind("v1", "Pod", "pods"), namespace, child_labels(name)),
        )
        uid = manifest["metadata"]["uid"]
        children = tuple(child for found in lists for child in found if owner_uid(child) == uid)
        return Observed(manifest, children, tuple(pods), out_of_reach)

    async def versions(self, kind: ChildKind, namespaces: Sequence[str]) -> dict[Key, frozenset[str]] | None:
        """The resource versions of this kind's children, by service; None while its definition is missing. Raises ApiError."""
        found: dict[Key, frozenset[str]] = {}
        query = {"labelSelector": f"{MANAGED_BY_LABEL}={FIELD_MANAGER}", "resourceVersion": "0"}
        for namespace in namespaces or ("",):
            path = _path(kind.api_version, kind.plural, namespace)
            try:
                answer = await self._connection.get(path, query=query, accept=METADATA_ONLY, seconds=self._read_timeout)
            except NotFound:
                return None
            for metadata in (item["metadata"] for item in answer["items"] or ()):
                key = metadata["namespace"], metadata["labels"].get(INSTANCE_LABEL, "")
                found[key] = found.get(key, frozenset()) | {metadata["resourceVersion"]}
        return found

    async def apply(self, wish: Manifest, live: Manifest | None) -> Manifest:
        """Make it so, and return the live object. Nothing is sent when it is so already. Raises NameConflict, ApiError."""
        wish = stamped(wish)
        path = _path_of(wish)
        if live is None:
            try:
                return await self._apply(path, _anew(wish), manager=FIELD_MANAGER)
            except Conflict:
                live = await self._read_ours(wish, path)
        if is_as_wished(wish, live):
            return live
        if owns(live, "spec", "replicas") and "replicas" not in wish["spec"]:
            live = await self._hand_over_replicas(live, path)
        return await self._apply(path, _over(wish, live), manager=FIELD_MANAGER)

    async def create_secret(self, secret: Manifest) -> None:
        """One that is there already stays as it is, and unread: the operator may only create them."""
        metadata = secret["metadata"]
        with contextlib.suppress(AlreadyThere):
            await self._write("POST", _path("v1", "secrets", metadata["namespace"]), secret)

    async def prune(self, live: Manifest) -> None:
        """Delete a child that is no longer wanted, unless it is not ours or has changed since it was seen."""
        if not applied_fields(live):
            return
        metadata = live["metadata"]
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
        }
        await self._write("DELETE", _path_of(live), options)
        self._wrote(live["kind"], "delete")

    async def scale(self, deployment: Manifest, replicas: int) -> None:
        """Raises Conflict when the Deployment has changed or gone since it was seen."""
        body = {"metadata": {"resourceVersion": deployment["metadata"]["resourceVersion"]}, "spec": {"replicas": replicas}}
        await self._write("PATCH", f"{_path_of(deployment)}/scale", body, content_type=MERGE)
        self._wrote(deployment["kind"], "scale")

    async def write_status(self, manifest: Manifest, status: Manifest) -> None:
        """Raises Conflict when the service has changed or gone since it was seen."""
        body = {**manifest, "status": status}
        body["metadata"] = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
        await self._write("PUT", f"{_path_of(manifest)}/status", body)
        self._wrote(KIND, "status")

    async def create_event(self, event: Manifest) -> None:
        """Raises AlreadyThere."""
        namespace = event["metadata"]["namespace"]
        await self._write("POST", _path(event["apiVersion"], "events", namespace), event)
        self._wrote(event["kind"], "create")

    async def repeat_event(self, event: Manifest, series: Manifest) -> None:
        """It happened again. Raises Conflict when the API server has forgotten the first one."""
        metadata = event["metadata"]
        path = _path(event["apiVersion"], "events", metadata["namespace"], metadata["name"])
        await self._write("PATCH", path, {"series": series}, content_type=MERGE)
        self._wrote(event["kind"], "patch")

    async def _keys_of(self, namespace: str) -> set[Key]:
        """Metadata only, in pages; a page that expired (410) raises ApiError and the next full list begins anew."""
        found: set[Key] = set()
        query = {"limit": PAGE}
        while True:
            path = _path(API_VERSION, PLURAL, namespace)
            page = await self._connection.get(path, query=query, accept=METADATA_ONLY, seconds=self._read_timeout)
            found |= {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in page["items"] or ()}
            following = page["metadata"].get("continue")
            if not following:
                return found
            query = {"limit": PAGE, "continue": following}

    async def _list(self, kind: ChildKind, namespace: str, labels: dict[str, str]) -> list[Manifest]:
        """Items of a list come without kind and apiVersion; they are put back."""
        selector = ",".join(f"{label}={value}" for label, value in labels.items())
        answer = await self._get(_path(kind.api_version, kind.plural, namespace), {"labelSelector": selector})
        return [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in answer["items"] or ()]

    async def _read_ours(self, wish: Manifest, path: str) -> Manifest:
        """The object that has the name: ours, without its labels. Raises NameConflict, and Conflict when it is gone again."""
        try:
            live = await self._get(path)
        except NotFound as gone:
            raise Conflict(404, "NotFound", gone.message) from gone
        if owner_uid(live) != owner_uid(wish):
            raise NameConflict(wish["kind"], wish["metadata"]["name"])
        return live

    async def _hand_over_replicas(self, live: Manifest, path: str) -> Manifest:
        """A field that its only manager stops applying is removed, which would reset the count to 1: hold it by a second manager."""
        held = {
            "apiVersion": live["apiVersion"],
            "kind": live["kind"],
            "metadata": {"name": live["metadata"]["name"]},
            "spec": {"replicas": live["spec"]["replicas"]},
        }
        return await self._apply(path, _over(held, live), manager=SCALE_MANAGER)

    async def _apply(self, path: str, wish: Manifest, *, manager: str) -> Manifest:
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        answer = await self._write("PATCH", path, wish, content_type=APPLY, query=query)
        self._wrote(wish["kind"], "apply")
        return {**answer, "kind": wish["kind"], "apiVersion": wish["apiVersion"]}

    async def _get(self, path: str, query: dict[str, str] | None = None) -> Manifest:
        return await self._connection.get(path, query=query, seconds=self._read_timeout)

    async def _write(
        self, method: str, path: str, body: Manifest, *, content_type: str = "application/json", query: dict[str, str] | None = None
    ) -> Manifest:
        self._guard()
        await asyncio.sleep(self._bucket.reserve(now=self._clock()))
        self._guard()
        query = query or {"fieldManager": FIELD_MANAGER} if method != "DELETE" else None
        try:
            return await self._connection.send(method, path, body=body, content_type=content_type, query=query, seconds=self._write_timeout)
        except NotFound as gone:
            # It went away since it was seen, itself or with its namespace: the same news as a newer version.
            raise Conflict(404, "NotFound", gone.message) from gone


_PLURALS = {(kind.api_version, kind.kind): kind.plural for kind in CHILD_KINDS}


def _anew(wish: Manifest) -> Manifest:
    """The wish, if there is no such object: an apply makes one whatever the version says, and over one it is refused."""
    return {**wish, "metadata": {**wish["metadata"], "resourceVersion": "1"}}


def _over(wish: Manifest, live: Manifest) -> Manifest:
    """The wish, bound to the version that was seen: sent past the Lease's end, it meets a newer one and is refused.

    The version alone would not keep an object that is gone from being made anew.
    """
    seen = {name: live["metadata"][name] for name in ("uid", "resourceVersion")}
    return {**wish, "metadata": {**wish["metadata"], **seen}}


def _path(api_version: str, plural: str, namespace: str, name: str = "") -> str:
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{place}/{plural}" + (f"/{name}" if name else "")


def _path_of(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    plural = _PLURALS.get((manifest["apiVersion"], manifest["kind"]), PLURAL)
    return _path(manifest["apiVersion"], plural, metadata["namespace"], metadata["name"])
