"""The Service that clients call. It never leads to the internal port."""

from millrace_operator.api import InferenceService
from millrace_operator.desired.metadata import metadata
from millrace_operator.manifest import Manifest
from millrace_operator.names import CLIENT_SERVICE_PORT, SERVE_PORT_NAME, selector_labels


def client_service(service: InferenceService) -> Manifest:
    wish = service.spec.service
    port = {
        "name": SERVE_PORT_NAME,
        "port": CLIENT_SERVICE_PORT,
        "targetPort": SERVE_PORT_NAME,
        "protocol": "TCP",
    }
    if wish.node_port is not None:
        port["nodePort"] = wish.node_port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**metadata(service, service.name), "annotations": wish.annotations},
        "spec": {
            "type": wish.type,
            "selector": selector_labels(service.name),
            "ports": [port],
        },
    }
