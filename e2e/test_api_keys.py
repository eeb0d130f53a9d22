"""API keys from a Secret: missing, there, changed while replicas run."""

import json
from collections.abc import Callable

import httpx

from demo_service import Service
from kube import Kube, condition, wait_for
from millrace_server.keys.entries import make

KUBELET_SECONDS = 150
"""A kubelet looks at mounted Secrets every minute or so."""


def write_keys(kube: Kube, namespace: str, *lines: str) -> None:
    metadata = {"name": "team-keys", "namespace": namespace}
    kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"keys": "\n".join(lines)}})


def status_with(service: Service, key: str | None) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"{service.url}/v1/models", headers=headers, timeout=10).status_code


def test_keys_are_waited_for_demanded_and_followed(serve: Callable[..., Service], kube: Kube, namespace: str) -> None:
    service = serve(apiKeysSecret="team-keys", autoscaling={"maxReplicas": 1})

    def names_the_secret() -> bool:
        told = condition(service.manifest(), "ModelLoaded")
        return bool(told) and told["status"] == "False" and "team-keys" in told["message"]

    wait_for("the status names the missing Secret", names_the_secret, seconds=120, tell=service.describe)
    (old, old_line), (new, new_line) = make("search"), make("search")
    write_keys(kube, namespace, old_line)
    service.wait_ready(seconds=KUBELET_SECONDS + 180)
    assert (status_with(service, None), status_with(service, old), status_with(service, new)) == (401, 200, 401)
    [before] = kube.pods(namespace, service.name)
    write_keys(kube, namespace, new_line)
    wait_for("the new key is known", lambda: status_with(service, new) == 200, seconds=KUBELET_SECONDS, tell=service.describe)
    assert status_with(service, old) == 401
    [after] = kube.pods(namespace, service.name)
    assert after["metadata"]["uid"] == before["metadata"]["uid"], "no replica was replaced for it"
    assert old not in json.dumps(service.manifest())
