"""Pods without a node: what the controllers make is said to run, at an address of loopback where its load is answered."""

import asyncio
import itertools
import json
import math
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from aiohttp import web

from cluster.control_plane import ControlPlane
from millrace_operator.names import INSTANCE_LABEL
from operator_benchmark.services import NAMESPACE

PORT = 9090
"""Of the server's metrics, on every address."""
PATH = f"/api/v1/namespaces/{NAMESPACE}/pods"
NAMES_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""A list without specs and statuses, for a tenth of the work."""
CLIENTS = 4
PERIOD_SECONDS = 300.0
"""Of the load, up and down: longer than what the law looks back at, so that there is something to follow."""
REQUEST_SECONDS = 2.0
LEAST, MOST = 5.0, 50.0
"""Requests that run at once in a service, shared by its pods."""


@dataclass
class Company:
    """The pods of one service. `phase` of its load in [0, 1)."""

    phase: float
    size: int = 0

    def share(self, now: float) -> float:
        """Of the service's load, of one pod."""
        whole = LEAST + (MOST - LEAST) * (1 + math.sin(2 * math.pi * (now / PERIOD_SECONDS + self.phase))) / 2
        return whole / max(1, self.size)


@dataclass
class Replica:
    """One pod's counters."""

    company: Company
    boot_id: str
    at: float = field(default_factory=time.monotonic)
    running_seconds: float = 0.0

    def load(self) -> dict[str, Any]:
        now = time.monotonic()
        running = self.company.share(now)
        self.running_seconds += running * (now - self.at)
        self.at = now
        completed = int(self.running_seconds / REQUEST_SECONDS)
        counters = {"arrivals": completed + round(running), "completed": completed, "running_seconds": self.running_seconds}
        return {"queued": 0, "running": round(running), "boot_id": self.boot_id, **counters}


class StubPods:
    """Gives every pod that has none an address, until the block ends."""

    def __init__(self, api: ControlPlane) -> None:
        self._api = api
        self._replicas: dict[str, Replica] = {}
        self._companies: dict[str, Company] = {}
        self._numbers = itertools.count()
        self._ends = threading.Event()

    def count(self) -> int:
        """Pods that are said to run."""
        with self._api.client() as client:
            return len(_pods(client, accept=NAMES_ONLY, fieldSelector="status.phase=Running"))

    def answer(self, address: str) -> bytes:
        return json.dumps(self._replicas[address].load()).encode()

    def run(self) -> None:
        with self._api.client() as client, ThreadPoolExecutor(CLIENTS) as clients:
            while not self._ends.wait(1):
                for service, size in Counter(map(_service, _pods(client, accept=NAMES_ONLY))).items():
                    self._company(service).size = size
                list(clients.map(lambda pod: self._start(client, pod), _pods(client, fieldSelector="status.phase=Pending")))

    def end(self) -> None:
        self._ends.set()

    def _company(self, service: str) -> Company:
        return self._companies.setdefault(service, Company(phase=zlib.crc32(service.encode()) / 2**32))

    def _start(self, client: httpx.Client, pod: dict[str, Any]) -> None:
        number = next(self._numbers)
        address = f"127.1.{number // 250}.{number % 250 + 1}"
        self._replicas[address] = Replica(company=self._company(_service(pod)), boot_id=pod["metadata"]["uid"])
        conditions = [{"type": name, "status": "True"} for name in ("PodScheduled", "Initialized", "ContainersReady", "Ready")]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = client.patch(f"{PATH}/{pod['metadata']['name']}/status", content=json.dumps({"status": status}), headers=headers)
        if answer.status_code != httpx.codes.NOT_FOUND:  # scaled down meanwhile
            answer.raise_for_status()


@contextmanager
def stub_pods(api: ControlPlane) -> Iterator[StubPods]:
    pods = StubPods(api)
    ended = asyncio.Event()
    with asyncio.Runner() as runner, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(runner.run, _serve(pods, ended)), pool.submit(pods.run)]
        try:
            yield pods
        finally:
            pods.end()
            runner.get_loop().call_soon_threadsafe(ended.set)
        for each in running:
            each.result()


async def _serve(pods: StubPods, ended: asyncio.Event) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        return web.Response(body=pods.answer(request.transport.get_extra_info("sockname")[0]))

    app = web.Application()
    app.router.add_get("/internal/load", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "0.0.0.0", PORT).start()  # addresses of loopback are all that is asked
        await ended.wait()
    finally:
        await runner.cleanup()


def _service(pod: dict[str, Any]) -> str:
    name: str = pod["metadata"]["labels"][INSTANCE_LABEL]
    return name


def _pods(client: httpx.Client, *, accept: str = "application/json", **chosen: str) -> list[dict[str, Any]]:
    params = {"resourceVersion": "0", **chosen}
    found: list[dict[str, Any]] = client.get(PATH, params=params, headers={"Accept": accept}, timeout=30).json()["items"] or []
    return found
