"""The only Kubernetes I/O of a pass: observe, apply, prune, scale, write the status. It chooses nothing.

Every write goes through the guard (do we still lead?), the token bucket and a timeout. Server-side apply has one field manager;
every write but a creation and a mark carries the version it was decided on, so that one that comes too late is refused.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from millrace_operator.connection import (
    APPLY,
    JSON,
    JSON_PATCH,
    MERGE,
    METADATA_ONLY,
    AlreadyThere,
    Conflict,
    Connection,
    Forbidden,
    NotFound,
)
from millrace_operator.desired import CHILD_KINDS, ChildKind
from millrace_operator.lists import Lists
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
from millrace_operator.paths import api_path, path_of
from millrace_operator.ports import renumberings
from millrace_operator.view import Key, Place, View
from millrace_operator.workqueue import TokenBucket

POD = ChildKind("v1", "Pod", "pods")
WATCHED = (*(kind for kind in CHILD_KINDS if not kind.optional), POD)
"""Not the optional kinds: kopf never looks for a definition that was missing at its start, and ends with one that goes."""
SCALE_MANAGER = f"{FIELD_MANAGER}-scale"
"""Holds `spec.replicas` while it passes from the applied Deployment to whoever scales."""


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
    """Kinds that could not be listed, and why."""

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
        self.lists = Lists(connection, timeout=read_timeout)
        self.view = View()
        self._unlisted: dict[str, Forbidden] = {}
        self._unseen: dict[str, NotFound | Forbidden] = {}
        """Of the optional kinds."""
        self._newest: dict[Key, int] = {}
        """The newest version that an answer about a service has shown."""

    @property
    def seen(self) -> set[Key]:
        """The services that were there when last looked at, one by one."""
        return set(self._newest)

    async def observe(self, key: Key) -> Observed | None:
        """None when the service is gone. Raises Conflict when the answer is older than an earlier one."""
        namespace, name = key
        try:
            manifest = await self._get(api_path(API_VERSION, PLURAL, namespace, name))
        except NotFound:
            self._newest.pop(key, None)
            return None
        self._require_newest(manifest)
        out_of_reach: dict[str, NotFound | Forbidden] = {**self._unlisted, **self._unseen}
        optional = [kind for kind in CHILD_KINDS if kind.optional and kind.kind not in out_of_reach]

        async def children_of(kind: ChildKind) -> list[Manifest]:
            try:
                pages = self.lists.pages(api_path(kind.api_version, kind.plural, namespace), labels=instance_labels(name))
                return [each async for page in pages for each in _whole(kind, page)]
            except (NotFound, Forbidden) as error:
                out_of_reach[kind.kind] = error
                return []

        lists = await asyncio.gather(*map(children_of, optional))
        seen, uid = [*self.view.of(key), *(child for found in lists for child in found)], manifest["metadata"]["uid"]
        children = tuple(each for each in seen if each["kind"] != POD.kind and owner_uid(each) == uid)
        pods = tuple(each for each in seen if each["kind"] == POD.kind and child_labels(name).items() <= each["metadata"]["labels"].items())
        return Observed(manifest, children, pods, out_of_reach)

    def _require_newest(self, manifest: Manifest) -> None:
        """To decide on an old wish would roll the pods back."""
        metadata = manifest["metadata"]
        key, version = (metadata["namespace"], metadata["name"]), int(metadata["resourceVersion"])
        if version < self._newest.get(key, 0):
            raise Conflict(409, "StaleAnswer", f"version {version} of {key} is older than one that was seen before")
        self._newest[key] = version

    @property
    def sees_all(self) -> bool:
        """Whether every kind could be listed the last time."""
        return not self._unlisted

    async def refresh(self, namespaces: Sequence[str]) -> set[Key]:
        """Look at every child and pod, whatever the watches showed. Returns the services to which there is news. Raises ApiError."""
        news: set[Key] = set()
        for kind in WATCHED:
            try:
                news |= await self._refresh(kind, namespaces)
            except Forbidden as error:
                self._unlisted[kind.kind] = error
            else:
                self._unlisted.pop(kind.kind, None)
        return news

    async def _refresh(self, kind: ChildKind, namespaces: Sequence[str]) -> set[Key]:
        news: set[Key] = set()
        present: set[Place] = set()
        versions: list[int] = []
        for namespace in namespaces or ("",):
            labels = {MANAGED_BY_LABEL: FIELD_MANAGER}
            async for page in self.lists.pages(api_path(kind.api_version, kind.plural, namespace), labels=labels):
                versions.append(int(page["metadata"]["resourceVersion"]))
                for each in _whole(kind, page):
                    news |= self.view.learn(each, as_of=versions[-1])
                    present.add((kind.kind, each["metadata"]["namespace"], each["metadata"]["name"]))
        return news | self.view.keep(kind.kind, present, as_of=min(versions))

    async def versions(self, kind: ChildKind, namespaces: Sequence[str]) -> dict[Key, frozenset[str]] | NotFound | Forbidden:
        """The resource versions of an optional kind's children, by service, or why passes do without them. Raises other ApiErrors."""
        found: dict[Key, frozenset[str]] = {}
        query = {"labelSelector": f"{MANAGED_BY_LABEL}={FIELD_MANAGER}", "resourceVersion": "0"}
        for namespace in namespaces or ("",):
            path = api_path(kind.api_version, kind.plural, namespace)
            try:
                answer = await self._connection.get(path, query=query, accept=METADATA_ONLY, seconds=self._read_timeout)
            except (NotFound, Forbidden) as error:
                self._unseen[kind.kind] = error
                return error
            for metadata in (item["metadata"] for item in answer["items"] or ()):
                key = metadata["namespace"], metadata["labels"].get(INSTANCE_LABEL, "")
                found[key] = found.get(key, frozenset()) | {metadata["resourceVersion"]}
        self._unseen.pop(kind.kind, None)
        return found

    async def apply(self, wish: Manifest, live: Manifest | None) -> Manifest:
        """Make it so, and return the live object. Nothing is sent when it is so already. Raises NameConflict, ApiError."""
        wish = stamped(wish)
        path = path_of(wish)
        if live is None:
            try:
                return await self._apply(path, _anew(wish), manager=FIELD_MANAGER)
            except Conflict:
                live = await self._read_ours(wish, path)
        if is_as_wished(wish, live):
            return live
        async with self._over_what_was_seen(live):
            if owns(live, "spec", "replicas") and "replicas" not in wish["spec"]:
                live = await self._hand_over_replicas(live, path)
            if edits := renumberings(wish, live):
                live = await self._write("PATCH", path, edits, content_type=JSON_PATCH)
                self._wrote(wish["kind"], "patch")
            return await self._apply(path, _over(wish, live), manager=FIELD_MANAGER)

    async def create_secret(self, secret: Manifest) -> None:
        """One that is there already stays as it is, and unread: the operator may only create them."""
        metadata = secret["metadata"]
        with contextlib.suppress(AlreadyThere):
            await self._write("POST", api_path("v1", "secrets", metadata["namespace"]), secret)

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
        async with self._over_what_was_seen(live):
            await self._write("DELETE", path_of(live), options)
        self._wrote(live["kind"], "delete")

    async def scale(self, deployment: Manifest, replicas: int) -> None:
        """Raises Conflict when the Deployment has changed or gone since it was seen."""
        body = {"metadata": {"resourceVersion": deployment["metadata"]["resourceVersion"]}, "spec": {"replicas": replicas}}
        async with self._over_what_was_seen(deployment):
            await self._write("PATCH", f"{path_of(deployment)}/scale", body, content_type=MERGE)
        self._wrote(deployment["kind"], "scale")

    async def mark(self, pod: Manifest, annotation: str, value: str | None) -> None:
        """None takes the annotation away. Raises Conflict when the pod has gone since it was seen; its kubelet may have written."""
        metadata = pod["metadata"]
        body = {"metadata": {"uid": metadata["uid"], "annotations": {annotation: value}}}
        await self._write("PATCH", api_path(POD.api_version, POD.plural, metadata["namespace"], metadata["name"]), body, content_type=MERGE)
        self._wrote(POD.kind, "patch")

    async def write_status(self, manifest: Manifest, status: Manifest) -> None:
        """Raises Conflict when the service has changed or gone since it was seen."""
        body = {**manifest, "status": status}
        body["metadata"] = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
        self._require_newest(await self._write("PUT", f"{path_of(manifest)}/status", body))
        self._wrote(KIND, "status")

    async def create_event(self, event: Manifest) -> None:
        """Raises AlreadyThere."""
        namespace = event["metadata"]["namespace"]
        await self._write("POST", api_path(event["apiVersion"], "events", namespace), event)
        self._wrote(event["kind"], "create")

    async def repeat_event(self, event: Manifest, series: Manifest) -> None:
        """It happened again. Raises Conflict when the API server has forgotten the first one."""
        metadata = event["metadata"]
        path = api_path(event["apiVersion"], "events", metadata["namespace"], metadata["name"])
        await self._write("PATCH", path, {"series": series}, content_type=MERGE)
        self._wrote(event["kind"], "patch")

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
        return self._learn({**answer, "kind": wish["kind"], "apiVersion": wish["apiVersion"]})

    @contextlib.asynccontextmanager
    async def _over_what_was_seen(self, live: Manifest) -> AsyncIterator[None]:
        """What is refused because it is not as it was seen is looked at again, for the next pass: its event may never come."""
        try:
            yield
        except Conflict:
            try:
                self._learn({**await self._get(path_of(live)), "kind": live["kind"], "apiVersion": live["apiVersion"]})
            except NotFound:
                self.view.remove(live)
            raise

    def _learn(self, thing: Manifest) -> Manifest:
        if any(thing["kind"] == kind.kind for kind in WATCHED):
            self.view.learn(thing)
        return thing

    async def _get(self, path: str, query: dict[str, str] | None = None) -> Manifest:
        return await self._connection.get(path, query=query, seconds=self._read_timeout)

    async def _write(
        self,
        method: str,
        path: str,
        body: Manifest | list[Manifest],
        *,
        content_type: str = JSON,
        query: dict[str, str] | None = None,
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


def _anew(wish: Manifest) -> Manifest:
    """The wish, if there is no such object: an apply makes one whatever the version says, and over one it is refused."""
    return {**wish, "metadata": {**wish["metadata"], "resourceVersion": "1"}}


def _over(wish: Manifest, live: Manifest) -> Manifest:
    """The wish, bound to the version that was seen: sent past the Lease's end, it meets a newer one and is refused.

    The version alone would not keep an object that is gone from being made anew.
    """
    seen = {name: live["metadata"][name] for name in ("uid", "resourceVersion")}
    return {**wish, "metadata": {**wish["metadata"], **seen}}


def _whole(kind: ChildKind, page: Manifest) -> list[Manifest]:
    """Items of a list come without kind and apiVersion; they are put back."""
    return [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in page["items"] or ()]
