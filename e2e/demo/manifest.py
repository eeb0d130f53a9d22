"""What `make demo` applies: manifests/examples/demo.yaml with a model that this cluster has. Pure, but for reading the file."""

from typing import Any

import yaml

from cluster.provider import CHECKOUT
from demo.image import PATH

EXAMPLE = CHECKOUT / "manifests" / "examples" / "demo.yaml"
HUB = "hf://"
HUB_MEMORY = "16Gi"

Manifest = dict[str, Any]


def of_demo_model(reference: str) -> list[Manifest]:
    """The example with the demo model's image, as pods name it."""
    return _with_model(source=f"oci://{reference}#{PATH}")


def of_hub_model(source: str) -> list[Manifest]:
    """The example with a model of the hub: `hf://OWNER/NAME[@REVISION]`, in its own number format and with more memory."""
    name = source.removeprefix(HUB).partition("@")[0]
    namespace, service = _with_model(source=source, name=name, dtype="auto")
    service["spec"]["resources"]["limits"]["memory"] = HUB_MEMORY
    return [namespace, service]


def _with_model(**model: str) -> list[Manifest]:
    namespace, service = yaml.safe_load_all(EXAMPLE.read_text())
    service["spec"]["model"].update(model)
    return [namespace, service]
