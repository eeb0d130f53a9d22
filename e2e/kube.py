"""The user's hands in the e2e tests: kubectl and helm on the test cluster, and waiting for what they show."""

import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.packages import search_path, tool
from cluster.provider import CHECKOUT

T = TypeVar("T")
Manifest = dict[str, Any]
POLL_SECONDS = 0.25


class Refused(Exception):
    """What kubectl or helm said on stderr."""


class Late(AssertionError):
    """What did not come true in time, and the state that it left."""


@dataclass(frozen=True)
class Kube:
    """Runs commands against one cluster."""

    kubeconfig: Path

    def run(self, program: str, *arguments: str, stdin: str | None = None) -> str:
        """The output of `kubectl …` or `helm …`. Raises Refused."""
        return self._run([str(tool(program)), *arguments], {}, stdin=stdin)

    def shell(self, line: str) -> str:
        """The output of a line that users are told to paste at the checkout's root. Raises Refused."""
        return self._run(["bash", "-o", "pipefail", "-c", line], {"PATH": search_path("kubectl", "helm")})

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.run("kubectl", *arguments, stdin=stdin)

    def apply(self, *manifests: Manifest) -> str:
        """Client-side apply, as most users do. Raises Refused."""
        return self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}))

    def delete(self, *manifests: Manifest) -> None:
        """What of it is there, and wait until it is gone. Raises Refused."""
        everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl("delete", "--ignore-not-found", "--timeout=2m", "-f", "-", stdin=everything)

    def get(self, *arguments: str) -> Manifest:
        """The object, or the list, as JSON. Raises Refused when it is not there."""
        answer: Manifest = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return answer

    @contextmanager
    def forwarded(self, namespace: str, pod: str, port: int) -> Iterator[str]:
        """The URL of a port of this machine that leads to one pod, past every Service. Raises Refused."""
        command = [str(tool("kubectl")), "port-forward", "--address=127.0.0.1", "-n", namespace, f"pod/{pod}", f":{port}"]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                said = process.stdout.readline() if process.stdout else ""
                found = re.match(r"Forwarding from (\S+) ->", said)
                if found is None:
                    raise Refused(f"kubectl port-forward said {said!r}")
                yield f"http://{found[1]}"
            finally:
                process.terminate()

    def exists(self, *arguments: str) -> bool:
        return bool(self.kubectl("get", *arguments, "-o", "name", "--ignore-not-found"))

    def all_pods(self, namespace: str, service: str, *, name: str = "millrace-server") -> list[Manifest]:
        """Of an InferenceService and one of its workloads, those on their way out among them."""
        labels = f"app.kubernetes.io/name={name},app.kubernetes.io/instance={service}"
        found: list[Manifest] = self.get("pods", "-n", namespace, "-l", labels)["items"]
        return found

    def pods(self, namespace: str, service: str, *, name: str = "millrace-server") -> list[Manifest]:
        """Those that are not on their way out."""
        return [pod for pod in self.all_pods(namespace, service, name=name) if "deletionTimestamp" not in pod["metadata"]]

    def _run(self, command: list[str], variables: Mapping[str, str], *, stdin: str | None = None) -> str:
        environment = {**os.environ, **variables, "KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, input=stdin, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise Refused(done.stderr.strip())
        return done.stdout


@contextmanager
def fresh_namespace(kube: Kube) -> Iterator[str]:
    """A namespace that enforces Pod Security `restricted`; deleted afterwards, with all that is in it."""
    name = f"e2e-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        yield name
    finally:
        kube.kubectl("delete", "namespace", name, "--wait=false")


def wait_for(what: str, look: Callable[[], T | None], *, seconds: float, tell: Callable[[], object] = lambda: "") -> T:
    """Look again and again until the answer is truthy. After `seconds` raises Late with `what`, and with what `tell` says of the state."""
    end = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Late(f"not within {seconds:.0f} s: {what}\n{tell()}")
        time.sleep(POLL_SECONDS)


def condition(manifest: Manifest, kind: str) -> Mapping[str, Any]:
    """One condition of a status; {} when it is not there."""
    found = (each for each in manifest.get("status", {}).get("conditions", []) if each["type"] == kind)
    return next(found, {})
