"""The metrics-server that HorizontalPodAutoscalers read: the real one, by its own manifests, of an image made here."""

from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from cluster import binaries, versions
from cluster.provider import Provider
from kube import Kube, Manifest
from program_image import program_image

PROGRAM = "metrics-server"
MODULE = "sigs.k8s.io/metrics-server"
API_SERVICE = "apiservice/v1beta1.metrics.k8s.io"
ANY_KUBELET = "--kubelet-insecure-tls"
"""Those of kind have signed their certificates themselves."""
READY_SECONDS = 120
"""It answers after its first look at the kubelets."""


@contextmanager
def running(kube: Kube, provider: Provider) -> Iterator[None]:
    """`kubectl top` works inside, and nothing of it is left afterwards: an API that nobody serves would hold up other tests."""
    manifests = _manifests(kube, provider.load(program_image(PROGRAM)))
    try:
        kube.apply(*manifests)
        kube.kubectl("rollout", "status", f"deployment/{PROGRAM}", "-n", "kube-system", f"--timeout={READY_SECONDS}s")
        kube.kubectl("wait", "--for=condition=Available", API_SERVICE, f"--timeout={READY_SECONDS}s")
        yield
    finally:
        kube.delete(*manifests)


def _manifests(kube: Kube, image: str) -> list[Manifest]:
    folder = binaries.module_folder(MODULE, versions.METRICS_SERVER) / "manifests" / "base"
    manifests: list[Manifest] = list(yaml.safe_load_all(kube.kubectl("kustomize", str(folder))))
    [deployment] = (each for each in manifests if each["kind"] == "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    container["image"] = image
    container["args"].append(ANY_KUBELET)
    return manifests
