"""The real KEDA: its operator and metrics adapter, by its own manifests, of an image made here; and the ScaledObject of the examples."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from cluster import binaries, versions
from cluster.provider import CHECKOUT, Provider
from demo_service import Service
from kube import Kube, Manifest, condition
from program_image import program_image

NAMESPACE = "keda"
PROGRAMS = {"keda-operator": "keda", "keda-metrics-apiserver": "keda-adapter"}
"""Deployment → what it runs."""
NO_WEBHOOKS = "--enable-webhook-patching=false"
PARTS = ("metrics-server", "crd", "general", "rbac", "service_account", "manager")
"""Of its manifests; the webhooks, which only check what people write, are left out. Taken down in this order: the API first, for while
one has nobody who serves it, no namespace can be deleted.
"""
API_SERVICE = "apiservice/v1beta1.external.metrics.k8s.io"
READY_SECONDS = 240
"""The adapter waits for the certificates that the operator makes, and the kubelet brings them a minute later."""
NOBODY = 65532
EXAMPLE = CHECKOUT / "manifests/autoscalers/keda-metrics-api.yaml"


@contextmanager
def running(kube: Kube, provider: Provider) -> Iterator[None]:
    """ScaledObjects work inside, and nothing of it is left afterwards."""
    manifests = _manifests(kube, provider.load(program_image(*PROGRAMS.values())))
    try:
        kube.apply(*(each for each in manifests if each["kind"] == "Namespace"))
        # Its definitions are larger than what a client-side apply may note down.
        kube.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))
        for deployment in PROGRAMS:
            kube.kubectl("rollout", "status", f"deployment/{deployment}", "-n", NAMESPACE, f"--timeout={READY_SECONDS}s")
        kube.kubectl("wait", "--for=condition=Available", API_SERVICE, f"--timeout={READY_SECONDS}s")
        yield
    finally:
        kube.delete(*manifests)


def autoscaler(service: Service, *, most: int, stable_seconds: int) -> list[Manifest]:
    """The example's, for one service: two requests per replica, asked for every five seconds."""
    text = EXAMPLE.read_text().replace("chat-metrics.default.svc", f"{service.name}-metrics.{service.namespace}.svc")
    scaled, policy = (each for each in yaml.safe_load_all(text) if each["kind"] != "InferenceService")
    scaled["metadata"] = {"name": service.name, "namespace": service.namespace}
    spec = scaled["spec"]
    spec |= {"scaleTargetRef": {"name": service.name}, "maxReplicaCount": most, "pollingInterval": 5}
    spec["advanced"]["scalingModifiers"]["target"] = "2"
    spec["advanced"]["horizontalPodAutoscalerConfig"] = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": stable_seconds}}}
    policy["metadata"]["namespace"] = service.namespace
    policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] = service.name
    return [scaled, policy]


def decides(service: Service) -> bool:
    """It has figures of the pods."""
    name = f"keda-hpa-{service.name}"
    found = service.kube.exists("hpa", name, "-n", service.namespace)
    return found and condition(service.kube.get("hpa", name, "-n", service.namespace), "ScalingActive").get("status") == "True"


def _manifests(kube: Kube, image: str) -> list[Manifest]:
    folder = binaries.module_folder(binaries.KEDA.path, versions.KEDA) / "config"
    manifests: list[Manifest] = [each for part in PARTS for each in yaml.safe_load_all(kube.kubectl("kustomize", str(folder / part)))]
    for deployment in (each for each in manifests if each["kind"] == "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        pod["securityContext"] = {"runAsNonRoot": True, "runAsUser": NOBODY}
        [container] = pod["containers"]
        program = PROGRAMS[deployment["metadata"]["name"]]
        container |= {"image": image, "imagePullPolicy": "IfNotPresent", "command": [f"/bin/{program}"]}
        container["args"] += [NO_WEBHOOKS] if program == "keda" else []
    return manifests
