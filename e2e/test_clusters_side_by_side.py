"""Clusters of several checkouts run on one machine at once, with the same names, addresses of pods and ports of nodes."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from cluster.local import own_images
from cluster.local.provider import Local, why_not
from cluster.process import wait_until

NODE_PORT = 31080


def test_two_clusters_that_start_together_keep_apart_and_one_outlives_the_other(tmp_path: Path) -> None:
    assert why_not() is None, why_not()
    clusters = {name: Local(tmp_path / name, nodes=1) for name in ("first", "second")}
    try:
        with ThreadPoolExecutor() as together:
            list(together.map(Local.up, clusters.values()))
        assert len({cluster.node_address() for cluster in clusters.values()}) == len(clusters)
        for name, cluster in clusters.items():
            publish(cluster, name)
        told = {name: name for name in clusters}
        wait_until(lambda: {name: answer(each) for name, each in clusters.items()} == told, "each answers its own text", seconds=60)
        clusters["first"].down()
        assert answer(clusters["second"]) == "second"
        clusters["second"].load_scratch(own_images.busybox())
    finally:
        for cluster in clusters.values():
            cluster.down()


def publish(cluster: Local, text: str) -> None:
    """A pod that answers with the text, at the node's port."""
    serve = f"echo {text} > /tmp/text && exec httpd -f -p 8080 -h /tmp"
    image = cluster.load_scratch(own_images.busybox())
    writable = {"name": "tmp", "mountPath": "/tmp"}
    container = {"name": "web", "image": image, "command": ["sh", "-c", serve], "volumeMounts": [writable]}
    port = {"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}
    pod = {
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]},
    }
    service = {"metadata": {"name": "web"}, "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [port]}}
    items: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Pod", **pod}, {"apiVersion": "v1", "kind": "Service", **service}]
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def answer(cluster: Local) -> str | None:
    try:
        return httpx.get(f"http://{cluster.node_address()}:{NODE_PORT}/text", timeout=5).raise_for_status().text.strip()
    except httpx.HTTPError:
        return None
