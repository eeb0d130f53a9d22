"""GPUs that only Kubernetes believes in: they are granted, waited for and freed, and the server of such a pod computes on the CPU."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import images
from kube import Kube

RESOURCE = "nvidia.com/gpu"
CONTAINERFILE = """\
FROM {server}
COPY sitecustomize.py /opt/millrace/app/sitecustomize.py
"""
ON_THE_CPU = "import os\n\nos.environ['DEVICE'] = 'cpu'\n"
"""Python runs this at its start, before the server reads what the operator tells it."""


def server_image() -> str:
    """The server's image for pods that ask for a GPU where none is; the local reference."""
    with tempfile.TemporaryDirectory(prefix="millrace-gpu-") as temporary:
        folder = Path(temporary)
        containerfile = folder / "Containerfile"
        containerfile.write_text(CONTAINERFILE.format(server=images.build("server")))
        (folder / "sitecustomize.py").write_text(ON_THE_CPU)
        (folder / "sitecustomize.py").chmod(0o644)
        return images.build_folder("millrace-server-without-gpu", containerfile, folder)


@contextmanager
def gpus_of(kube: Kube, node: str) -> Iterator[Callable[[int], None]]:
    """A function that makes the node advertise so many GPUs; at the end it has none again.

    The kubelet takes the node's own word for a resource that no device plugin has registered.
    """

    def advertise(count: int | None) -> None:
        told = {RESOURCE: None if count is None else str(count)}
        patch = json.dumps({"status": {"capacity": told, "allocatable": told}})
        kube.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)

    try:
        yield advertise
    finally:
        advertise(None)
