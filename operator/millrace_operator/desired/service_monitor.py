"""The ServiceMonitor, by which a Prometheus of the Prometheus operator scrapes every replica."""

from millrace_operator.api import InferenceService
from millrace_operator.desired.metadata import metadata
from millrace_operator.manifest import Manifest
from millrace_operator.names import METRICS_PORT_NAME, child_labels, metrics_labels


def service_monitor(service: InferenceService) -> Manifest:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {**metadata(service, service.name), "labels": {**service.spec.monitoring.labels, **child_labels(service.name)}},
        "spec": {
            "selector": {"matchLabels": metrics_labels(service.name)},
            "endpoints": [{"port": METRICS_PORT_NAME}],
        },
    }
