"""kopf is the watch: its events fill the view and become keys on our own queue. Handlers write nothing and decide nothing."""

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kopf

from millrace_operator.cluster import WATCHED
from millrace_operator.connection import configuration, token
from millrace_operator.desired import ChildKind
from millrace_operator.names import FIELD_MANAGER, GROUP, MANAGED_BY_LABEL, PLURAL, VERSION
from millrace_operator.view import Key, View


class EndlessBackoff:
    """Delays for failed API requests, jittered and without end: kopf gives up, and the process with it, when they run out."""

    def __iter__(self) -> Iterator[float]:
        delay = 0.5
        while True:
            yield delay * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
            delay = min(delay * 2, 30)


class NothingToCompare:
    """In the place of what kopf compares of an object from event to event: a copy of it all, for handlers that we have none of."""

    def build(self, **_: object) -> dict[str, object]:
        return {}

    def fetch(self, **_: object) -> None:
        """Nothing is stored in an object."""


def settings(*, silence: float) -> kopf.OperatorSettings:
    """kopf's settings, each for a measured reason; see operator/README.md. `silence` of a watch, in seconds."""
    result = kopf.OperatorSettings()
    result.networking.error_backoffs = EndlessBackoff()
    result.networking.request_timeout = 60
    result.networking.connect_timeout = 5
    result.watching.inactivity_timeout = silence
    result.watching.chunk_size = None
    result.queueing.worker_limit = None
    result.posting.enabled = False
    result.posting.loggers = False
    result.scanning.disabled = True
    result.process.ultimate_exiting_timeout = 30
    result.persistence.diffbase_storage = NothingToCompare()
    for kind in WATCHED:
        group = kind.api_version.rpartition("/")[0]
        result.watching.label_selectors[group, kind.plural] = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
    return result


def registry(view: View, add: Callable[[Key], None], relisted: Callable[[], None]) -> kopf.OperatorRegistry:
    """`add` gets the key of whatever changed, our own children as we wrote them apart.

    `relisted` is called when a watch began anew and may have missed deletions.
    """
    result = kopf.OperatorRegistry()

    async def log_in(**_: Any) -> kopf.ConnectionInfo:  # noqa: ANN401 - kopf's calling convention
        config = await configuration()
        return kopf.ConnectionInfo(
            server=config.host,
            ca_path=config.ssl_ca_cert,
            insecure=not config.verify_ssl,
            token=token(config),
            certificate_path=config.cert_file,
            private_key_path=config.key_file,
        )

    async def on_service(namespace: str, name: str, type: str | None, **_: Any) -> None:  # noqa: ANN401, A002
        add((namespace, name))
        if type is None:
            relisted()

    async def on_child(kind: ChildKind, event: Any, type: str | None, **_: Any) -> None:  # noqa: ANN401, A002
        thing = {**event["object"], "kind": kind.kind, "apiVersion": kind.api_version}
        for key in view.remove(thing) if type == "DELETED" else view.put(thing):
            add(key)
        if type is None:
            relisted()

    kopf.on.login(registry=result)(log_in)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=result)(on_service)
    for kind in WATCHED:
        group, _, version = kind.api_version.rpartition("/")
        kopf.on.event(group, version, kind.plural, registry=result)(functools.partial(on_child, kind))
    return result


async def watch(
    namespaces: Collection[str],
    *,
    silence: float,
    view: View,
    add: Callable[[Key], None],
    relisted: Callable[[], None],
    started: Callable[[], None],
) -> None:
    """Runs until kopf gives up: the CRD is gone, or a watch broke in a way that only a new process mends.

    kopf takes SIGTERM for itself when it starts; `started` is called right afterwards, so that the process can take it back.
    """
    logging.getLogger("kopf").setLevel(logging.WARNING)
    ours = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry(view, add, relisted),
        settings=settings(silence=silence),
        standalone=True,
        identity=FIELD_MANAGER,  # else kopf asks for the user's name, which a container's user does not have
        clusterwide=not namespaces,
        namespaces=namespaces,
    )
    started()
    await kopf.run_tasks(tasks, ignored=ours)
