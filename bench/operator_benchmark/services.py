"""InferenceServices by the thousand: applied by several clients at once, and watched until the operator has told each one's generation.

The operator tells a generation after it has applied all children of it, so this is a little later than the children themselves.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx

from cluster.control_plane import ControlPlane

CLIENTS = 4
NAMESPACE = "bench"
PATH = f"/apis/millrace.dev/v1alpha1/namespaces/{NAMESPACE}/inferenceservices"


class TooSlow(Exception):
    """The operator did not get there in time; says how far it got."""


class Told:
    """Watches, from before the first one is applied: name → monotonic seconds at which its status told its generation."""

    def __init__(self, api: ControlPlane) -> None:
        self.at: dict[str, float] = {}
        self._changed = threading.Condition()
        self._client = api.client()
        version = self._client.get(PATH).json()["metadata"]["resourceVersion"]
        self._thread = threading.Thread(target=self._watch, args=(version,), daemon=True)
        self._thread.start()

    def wait(self, names: Sequence[str], *, seconds: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: all(name in self.at for name in names), timeout=seconds):
                raise TooSlow(f"after {seconds:g} s {sum(name in self.at for name in names)} of {len(names)} services have their children")

    def _watch(self, version: str) -> None:
        query = {"watch": "1", "resourceVersion": version}
        # It is cut when the API server ends.
        with (
            suppress(httpx.HTTPError),
            self._client.stream("GET", PATH, params=query, timeout=httpx.Timeout(10, read=None)) as answer,
        ):
            for line in answer.iter_lines():
                event: dict[str, Any] = json.loads(line)
                manifest = event["object"]
                told = manifest.get("status", {}).get("observedGeneration")
                if event["type"] == "MODIFIED" and told == manifest["metadata"]["generation"]:
                    with self._changed:
                        self.at.setdefault(manifest["metadata"]["name"], time.monotonic())
                        self._changed.notify_all()


def apply(api: ControlPlane, names: Sequence[str], **spec: Any) -> dict[str, float]:  # noqa: ANN401 - fields of a spec
    """Name → monotonic seconds at which the API server accepted it."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        return dict(pair for part in clients.map(lambda part: list(_apply(api, part, spec)), _parts(names)) for pair in part)


def children(api: ControlPlane) -> int:
    """Deployments that exist."""
    with api.client() as client:
        answer = client.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", params={"limit": "1"}, timeout=60).json()
        return len(answer["items"]) + int(answer["metadata"].get("remainingItemCount") or 0)


def _apply(api: ControlPlane, names: Sequence[str], spec: dict[str, Any]) -> Iterator[tuple[str, float]]:
    spec = {"model": {"name": "owner/model"}, "device": "cpu", "cache": {"type": "memory"}, **spec}
    with api.client() as client:
        for name in names:
            body = {"apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name}, "spec": spec}
            client.post(PATH, json=body, timeout=60).raise_for_status()
            yield name, time.monotonic()


def _parts(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start::CLIENTS] for start in range(CLIENTS)]
