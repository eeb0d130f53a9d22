"""The HorizontalPodAutoscaler of the examples, for one service of the tests, and what it needs: a metrics-server."""

import yaml

from cluster.provider import CHECKOUT
from demo_service import Service
from kube import Manifest, condition
from metrics_server import running as running

EXAMPLE = CHECKOUT / "manifests/autoscalers/hpa.yaml"


def autoscaler(service: Service, *, most: int, stable_seconds: int) -> list[Manifest]:
    """At most `most` replicas; it shrinks to the largest wish of the last `stable_seconds`."""
    manifests: list[Manifest] = list(yaml.safe_load_all(EXAMPLE.read_text()))
    [wanted] = (each for each in manifests if each["kind"] == "HorizontalPodAutoscaler")
    wanted["metadata"] = {"name": service.name, "namespace": service.namespace}
    wanted["spec"]["scaleTargetRef"]["name"] = service.name
    wanted["spec"] |= {"maxReplicas": most, "behavior": {"scaleDown": {"stabilizationWindowSeconds": stable_seconds}}}
    return [wanted]


def decides(service: Service) -> bool:
    """It has figures of the pods."""
    return condition(service.kube.get("hpa", service.name, "-n", service.namespace), "ScalingActive").get("status") == "True"
