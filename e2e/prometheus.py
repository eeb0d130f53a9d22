"""The real Prometheus operator, by its own manifests, and a Prometheus of its making, both of images made here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from cluster import binaries, versions
from cluster.provider import Provider
from kube import Kube, Manifest, wait_for
from program_image import program_image

NAMESPACE = "monitoring"
"""As manifests/autoscalers/keda-prometheus.yaml has it."""
LABELS = {"release": "prometheus"}
"""By which it selects monitors and rules, in every namespace."""
OPERATOR = "prometheus-operator"
RELOADER = "prometheus-config-reloader"
PROMETHEUS = "prometheus"
POD = f"prometheus-{PROMETHEUS}-0"
PORT = 9090
SCRAPE_SECONDS = 5
READY_SECONDS = 180
NOBODY = 65532


@dataclass(frozen=True)
class Prometheus:
    """Its API, at a port of this machine."""

    url: str

    def query(self, expression: str) -> list[Manifest]:
        """The series of an instant vector, each with `metric` and `value`. Raises what it is refused with."""
        answer = self._get("query", query=expression)
        vector: list[Manifest] = answer["result"]
        return vector

    def value(self, expression: str) -> float | None:
        """Of the only series; None while there is none."""
        found = self.query(expression)
        if not found:
            return None
        [series] = found
        return float(series["value"][1])

    def targets(self) -> list[Manifest]:
        """Those that it scrapes."""
        active: list[Manifest] = self._get("targets", state="active")["activeTargets"]
        return active

    def alerts(self) -> dict[str, Manifest]:
        """The alerting rules that it has loaded, by their names."""
        groups = self._get("rules", type="alert")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def _get(self, what: str, **parameters: str) -> Any:  # noqa: ANN401 - JSON
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=parameters, timeout=30)
        assert answer.is_success, f"{parameters}: {answer.text}"
        return answer.json()["data"]


@contextmanager
def running(kube: Kube, provider: Provider) -> Iterator[Prometheus]:
    """Monitors are followed inside, and nothing of it is left afterwards."""
    operator, reloader, prometheus = (provider.load(program_image(each)) for each in (OPERATOR, RELOADER, PROMETHEUS))
    source = binaries.module_folder("github.com/prometheus-operator/prometheus-operator", versions.PROMETHEUS_OPERATOR) / "example"
    definitions = ("-f", str(source / "prometheus-operator-crd"))
    parts = [_namespace(), *_operator(source / "rbac/prometheus-operator", operator, reloader), *_accounts(source / "rbac/prometheus")]
    try:
        # They are larger than what a client-side apply may note down.
        kube.kubectl("apply", "--server-side", *definitions)
        kube.kubectl("wait", "--for=condition=Established", *definitions, "--timeout=60s")
        kube.apply(*parts)
        kube.apply(_prometheus(prometheus))
        kube.kubectl("rollout", "status", f"deployment/{OPERATOR}", "-n", NAMESPACE, f"--timeout={READY_SECONDS}s")
        has_pod = ("pod", POD, "-n", NAMESPACE)
        wait_for("the operator makes a Prometheus", lambda: kube.exists(*has_pod), seconds=READY_SECONDS)
        kube.kubectl("wait", "--for=condition=Ready", *has_pod, f"--timeout={READY_SECONDS}s")
        with kube.forwarded(NAMESPACE, POD, PORT) as url:
            yield Prometheus(url)
    finally:
        kube.delete(*parts)
        kube.kubectl("delete", "--ignore-not-found", "--timeout=2m", *definitions)


def _manifests(folder: Path) -> list[Manifest]:
    return [each for file in sorted(folder.glob("*.yaml")) for each in yaml.safe_load_all(file.read_text()) if each]


def _namespace() -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


def _here(manifests: list[Manifest]) -> Iterator[Manifest]:
    """In the namespace, instead of in `default`."""
    for manifest in manifests:
        if not manifest["kind"].startswith("ClusterRole"):
            manifest["metadata"]["namespace"] = NAMESPACE
        for subject in manifest.get("subjects", ()):
            subject["namespace"] = NAMESPACE
        yield manifest


def _operator(folder: Path, image: str, reloader: str) -> Iterator[Manifest]:
    for manifest in _here(_manifests(folder)):
        if manifest["kind"] == "ServiceMonitor":
            continue
        if manifest["kind"] == "Deployment":
            pod = manifest["spec"]["template"]["spec"]
            pod["securityContext"]["runAsUser"] = NOBODY
            [container] = pod["containers"]
            # Without the others it would keep a Service of the kubelets, which nobody asks for here.
            container |= {"image": image, "imagePullPolicy": "IfNotPresent", "args": [f"--prometheus-config-reloader={reloader}"]}
        yield manifest


def _accounts(folder: Path) -> Iterator[Manifest]:
    """What a Prometheus may read."""
    return _here([each for each in _manifests(folder) if each["kind"] != "Prometheus"])


def _prometheus(image: str) -> Manifest:
    monitors = ("serviceMonitor", "podMonitor", "rule")
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": {"name": PROMETHEUS, "namespace": NAMESPACE},
        "spec": {
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "serviceAccountName": "prometheus",
            "securityContext": {"runAsNonRoot": True, "runAsUser": NOBODY, "fsGroup": NOBODY},
            "resources": {"requests": {"memory": "128Mi"}},
            "scrapeInterval": f"{SCRAPE_SECONDS}s",
            "evaluationInterval": f"{SCRAPE_SECONDS}s",
            **{f"{each}Selector": {"matchLabels": LABELS} for each in monitors},
            **{f"{each}NamespaceSelector": {} for each in monitors},
        },
    }
