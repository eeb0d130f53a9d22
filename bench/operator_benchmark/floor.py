"""The least that the same children cost: a bare client writes them, knowing that nothing is there, and never looks again.

What it needs is the API server's, its controllers' and this machine's share of the operator's time.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Sequence

import aiohttp

from cluster.control_plane import ControlPlane
from millrace_operator.api import parse
from millrace_operator.desired import CHILD_KINDS, Platform, children
from millrace_operator.manifest import Manifest
from millrace_operator.names import API_VERSION, KIND
from millrace_operator.paths import path_of
from operator_benchmark.services import PATH

CLIENTS = 8
"""As many as the operator has workers."""
PLATFORM = Platform(server_image="millrace/server:bench", redis_image="redis", operator_namespace="default", pull_policy="IfNotPresent")


def write(api: ControlPlane, names: Sequence[str]) -> dict[str, float]:
    """Name → monotonic seconds at which its children were there and its status was told."""
    with api.client() as client:
        stored = client.get(PATH, timeout=60).json()["items"]
    services = [{**each, "apiVersion": API_VERSION, "kind": KIND} for each in stored if each["metadata"]["name"] in set(names)]
    return asyncio.run(_write_all(api, services))


async def _write_all(api: ControlPlane, services: list[Manifest]) -> dict[str, float]:
    context = ssl.create_default_context(cafile=str(api.ca))
    context.load_cert_chain(api.certificate, api.key)
    waiting, told = services[::-1], dict[str, float]()
    async with aiohttp.ClientSession(api.url, connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def work() -> None:
            while waiting:
                service = waiting.pop()
                await _write(session, service)
                told[service["metadata"]["name"]] = time.monotonic()

        await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return told


async def _write(session: aiohttp.ClientSession, service: Manifest) -> None:
    kinds = {kind.kind for kind in CHILD_KINDS if not kind.optional}
    query, applied = {"fieldManager": "floor", "force": "true", "fieldValidation": "Strict"}, "application/apply-patch+yaml"
    for child in children(parse(service), platform=PLATFORM):
        if child["kind"] in kinds:
            async with session.patch(path_of(child), data=json.dumps(child), params=query, headers={"Content-Type": applied}) as answer:
                answer.raise_for_status()
    status = {**service["status"], "observedGeneration": service["metadata"]["generation"]}
    async with session.put(f"{PATH}/{service['metadata']['name']}/status", json={**service, "status": status}) as answer:
        answer.raise_for_status()
