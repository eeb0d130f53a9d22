"""The default StorageClass: a volume is a folder in the cluster's state, which every node sees at the same place. Gone with its claim.

Run by the machine as `python -m cluster.local.volumes STATE SLOT`. It looks once a second and remembers nothing.
"""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from cluster.control_plane import ControlPlane
from cluster.local.slot import Slot

CLASS = "standard"
_PROVISIONER = "millrace.dev/folder"
_LOOK_SECONDS = 1
_CLAIMS = "/api/v1/persistentvolumeclaims"
_VOLUMES = "/api/v1/persistentvolumes"


def storage_class() -> dict[str, Any]:
    """What claims that name no class get."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": _PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    }


def main(state: Path, slot: Slot) -> None:
    """Never returns."""
    with ControlPlane(state / "control-plane", place=slot.place).client() as client:
        while True:
            try:
                _look(client, state / "volumes")
            except httpx.HTTPError as error:
                print(f"{time.strftime('%H:%M:%S')} {error}", flush=True)
            time.sleep(_LOOK_SECONDS)


def _look(client: httpx.Client, folder: Path) -> None:
    for claim in _items(client, _CLAIMS):
        if claim["spec"].get("storageClassName") == CLASS and "volumeName" not in claim["spec"]:
            _make(client, folder, claim)
    for volume in _items(client, _VOLUMES):
        if volume["spec"].get("storageClassName") == CLASS and volume["status"].get("phase") == "Released":
            shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
            client.delete(f"{_VOLUMES}/{volume['metadata']['name']}").raise_for_status()


def _items(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get(path).raise_for_status().json()["items"]
    return items


def _make(client: httpx.Client, folder: Path, claim: dict[str, Any]) -> None:
    name = f"pvc-{claim['metadata']['uid']}"
    path = folder / name
    # Pods have users of their own, and are given the volume itself; other users of this machine come to the folder above first.
    folder.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(exist_ok=True)
    path.chmod(0o777)
    reference = {key: claim["metadata"][key] for key in ("name", "namespace", "uid")}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": _PROVISIONER}},
        "spec": {
            "storageClassName": CLASS,
            "accessModes": claim["spec"]["accessModes"],
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
            "hostPath": {"path": str(path), "type": "Directory"},
        },
    }
    answer = client.post(_VOLUMES, json=volume)
    if answer.status_code != httpx.codes.CONFLICT:  # made at an earlier look, and not bound yet
        answer.raise_for_status()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Slot(int(sys.argv[2])))
