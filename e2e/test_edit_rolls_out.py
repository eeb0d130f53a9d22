"""An edit reaches the running service; what does not touch the pods leaves them alone."""

from collections.abc import Callable
from pathlib import Path

from cluster import images
from cluster.provider import Provider
from demo import prompts
from demo_service import Service
from kube import Kube, wait_for
from traffic import Traffic


def slots(kube: Kube, service: Service, pod: str) -> int:
    """What the server says that it runs at once."""
    ask = "import json, urllib.request as r; print(json.load(r.urlopen('http://127.0.0.1:9090/internal/load'))['slots'])"
    return int(kube.kubectl("exec", pod, "-n", service.namespace, "--", "python", "-c", ask))


def test_a_new_batch_size_and_a_new_image_roll_out_without_a_failed_request(
    kube: Kube, provider: Provider, serve: Callable[..., Service], tmp_path: Path
) -> None:
    service = serve(autoscaling={"maxReplicas": 1}).wait_ready()
    [before] = kube.pods(service.namespace, service.name)
    assert slots(kube, service, before["metadata"]["name"]) == 8

    with Traffic(service.url, clients=2) as traffic:
        service.edit(batching={"maxSize": 3})
        service.wait_ready()
        edited = changed_image(provider, before["spec"]["containers"][0]["image"], tmp_path)
        service.edit(image=edited)
        service.wait_ready()

    def one_pod_is_left() -> bool:
        return len(kube.pods(service.namespace, service.name)) == 1

    wait_for("the old pods are gone", one_pod_is_left, seconds=90)
    [after] = kube.pods(service.namespace, service.name)
    assert after["spec"]["containers"][0]["image"] == edited
    assert slots(kube, service, after["metadata"]["name"]) == 3
    assert traffic.answered > 0
    assert traffic.answered == traffic.outcomes.total(), traffic.outcomes
    question = prompts.CHECKED[0]
    assert service.infer(question.prompt, max_tokens=question.max_tokens)["text"] == question.prompt + question.answer


def test_an_edit_that_no_pod_needs_restarts_none(kube: Kube, serve: Callable[..., Service]) -> None:
    service = serve().wait_ready()
    [before] = kube.pods(service.namespace, service.name)
    service.edit(service={"annotations": {"example.com/team": "chat"}}, autoscaling={"maxReplicas": 3})

    def is_annotated() -> bool:
        annotations = kube.get("service", service.name, "-n", service.namespace)["metadata"].get("annotations", {})
        return bool(annotations.get("example.com/team") == "chat")

    wait_for("the Service carries the annotation", is_annotated, seconds=15)
    service.wait_ready()
    [after] = kube.pods(service.namespace, service.name)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def changed_image(provider: Provider, server: str, folder: Path) -> str:
    """The server's image with a label more, which is another image to Kubernetes."""
    containerfile = folder / "Containerfile"
    containerfile.write_text(f"FROM {images.build('server')}\nLABEL edited=once\n")
    edited = provider.load(images.build_folder("millrace-server-edited", containerfile, folder))
    assert edited != server
    return edited
