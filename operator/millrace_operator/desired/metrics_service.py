"""The headless Service of the internal port, by which Prometheus finds every replica, also those that still load."""

from millrace_operator import names
from millrace_operator.api import InferenceService
from millrace_operator.desired.metadata import metadata
from millrace_operator.manifest import Manifest
from millrace_server.settings import DEFAULT_PROMETHEUS_PORT


def metrics_service(service: InferenceService) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            **metadata(service, names.metrics_service(service.name)),
            "labels": {**names.child_labels(service.name), **names.metrics_labels(service.name)},
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector_labels(service.name),
            "ports": [
                {
                    "name": names.METRICS_PORT_NAME,
                    "port": DEFAULT_PROMETHEUS_PORT,
                    "targetPort": names.METRICS_PORT_NAME,
                    "protocol": "TCP",
                }
            ],
        },
    }
