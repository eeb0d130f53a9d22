"""`pvc://`: a model that lies on a volume of the user's own is served from there; a claim that is missing, or has no volume, is told."""

from collections.abc import Callable
from typing import Any

from demo import prompts
from demo.image import PATH
from demo_service import Service
from installation import References
from kube import Kube, Manifest, condition, wait_for

TOLD_SECONDS = 30
GONE_SECONDS = 120


def test_a_model_that_another_pod_put_on_a_volume_is_served_and_the_volume_goes_with_its_claim(
    serve: Callable[..., Service], kube: Kube, references: References, namespace: str
) -> None:
    kube.apply(claim(namespace), filler(namespace, references.model))

    def is_filled() -> bool:
        return bool(kube.get("pod", "filler", "-n", namespace)["status"].get("phase") == "Succeeded")

    wait_for("the model is on the volume", is_filled, seconds=90, tell=lambda: kube.kubectl("describe", "pod", "filler", "-n", namespace))
    service = serve(model=on_the_volume("models/demo"), autoscaling={"maxReplicas": 1}).wait_ready()
    for question in prompts.CHECKED[:3]:
        assert service.infer(question.prompt, max_tokens=question.max_tokens)["text"] == question.prompt + question.answer
    kube.kubectl("delete", "infsvc", service.name, "-n", namespace)
    kube.kubectl("delete", "pod/filler", "pvc/models", "-n", namespace, "--wait=false")
    wait_for("the volume is gone", lambda: not volumes_of(kube, namespace), seconds=GONE_SECONDS, tell=lambda: volumes_of(kube, namespace))


def test_a_claim_that_is_missing_is_told_by_its_name_and_one_without_a_volume_as_what_it_is(
    serve: Callable[..., Service], kube: Kube, namespace: str
) -> None:
    service = serve(model=on_the_volume("never-made"), autoscaling={"maxReplicas": 1})

    def told(reason: str, words: str) -> bool:
        ready = condition(service.manifest(), "Ready")
        return ready.get("reason") == reason and words in ready["message"]

    missing, unbound = '"never-made" not found. Create', "pod has unbound immediate PersistentVolumeClaims. See"
    wait_for("the claim is missed", lambda: told("VolumeClaimMissing", missing), seconds=TOLD_SECONDS, tell=service.describe)
    kube.apply(claim(namespace, name="never-made", storageClassName="nobody-provides-it"))
    wait_for("it has no volume", lambda: told("VolumeClaimPending", unbound), seconds=TOLD_SECONDS, tell=service.describe)


def on_the_volume(where: str) -> dict[str, Any]:
    return {"name": "millrace-demo", "source": f"pvc://{where}", "dtype": "float32"}


def claim(namespace: str, *, name: str = "models", **spec: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, **spec},
    }


def filler(namespace: str, model_image: str) -> Manifest:
    """Copies the model from its image, as an uploader would."""
    container = {
        "name": "copy",
        "image": model_image,
        "command": ["cp", "-R", PATH, "/volume/demo"],
        "volumeMounts": [{"name": "models", "mountPath": "/volume"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    volumes = [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "filler", "namespace": namespace},
        "spec": {"restartPolicy": "OnFailure", "containers": [container], "volumes": volumes},
    }


def volumes_of(kube: Kube, namespace: str) -> list[str]:
    items = kube.get("persistentvolumes")["items"]
    return [each["metadata"]["name"] for each in items if each["spec"]["claimRef"]["namespace"] == namespace]
