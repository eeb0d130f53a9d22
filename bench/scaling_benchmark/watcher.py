"""Looks at one service twice a second, through the API server and without a process per look."""

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx

from cluster.packages import tool
from demo_service import Service
from kube import Manifest
from scaling_benchmark.figures import Pod, Sample

INTERVAL_SECONDS = 0.5
LOAD = "9090/proxy/internal/load"


class Watcher:
    """Between `begin` and the end of the block it collects `samples`."""

    def __init__(self, service: Service, api: httpx.Client) -> None:
        self._service = service
        self._api = api
        self._stop = threading.Event()
        self._began = 0.0
        self._thread = threading.Thread(target=self._run)
        self.samples: list[Sample] = []

    @property
    def now(self) -> float:
        """Seconds since the step."""
        return time.monotonic() - self._began

    def begin(self) -> None:
        """The step is now."""
        self._began = time.monotonic()
        self.samples.append(self._look())
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            with suppress(httpx.HTTPError):  # a look that failed is left out
                self.samples.append(self._look())

    def _look(self) -> Sample:
        core = f"/api/v1/namespaces/{self._service.namespace}"
        deployment = self._get(f"/apis/apps/v1/namespaces/{self._service.namespace}/deployments/{self._service.name}")
        pods = self._get(f"{core}/pods?labelSelector=app.kubernetes.io/name=millrace-server")["items"]
        at = self.now
        seen = {
            pod["metadata"]["name"]: Pod(
                ready=any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ())),
                completed=self._completed(f"{core}/pods/{pod['metadata']['name']}:{LOAD}"),
            )
            for pod in pods
        }
        return Sample(at=at, wanted=deployment["spec"]["replicas"], pods=seen)

    def _get(self, path: str) -> Manifest:
        answer = self._api.get(path)
        answer.raise_for_status()
        found: Manifest = answer.json()
        return found

    def _completed(self, path: str) -> int | None:
        try:
            answer = self._api.get(path)
        except httpx.HTTPError:
            return None
        return int(answer.json()["completed"]) if answer.is_success else None


@contextmanager
def watching(service: Service) -> Iterator[Watcher]:
    command = [str(tool("kubectl")), f"--kubeconfig={service.kube.kubeconfig}", "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline() if process.stdout else ""
            found = re.search(r"Starting to serve on (\S+)", said)
            if found is None:
                raise RuntimeError(f"kubectl proxy said {said!r}")
            with httpx.Client(base_url=f"http://{found[1]}", timeout=5, trust_env=False) as api:
                watcher = Watcher(service, api)
                try:
                    yield watcher
                finally:
                    watcher.end()
        finally:
            process.terminate()
