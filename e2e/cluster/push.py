"""Images of docker's or buildah's local store, on their way to a registry."""

import os
import subprocess

from cluster.packages import MissingTool, tool, tool_environment


class NoSuchImage(Exception):
    """Neither docker nor buildah has the image."""


_TAG_LENGTH = 12


def content_tag(image: str) -> tuple[str, str]:
    """The image's bare name and a tag that changes exactly when its content does: a pod can then never run a stale one."""
    name = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    return name, _identity(image)[1].removeprefix("sha256:")[:_TAG_LENGTH]


def push_from_local_store(image: str, target: str, *, plain_http: bool) -> None:
    """Pushes to `target` (registry/name:tag). `plain_http` is for a registry of our own."""
    store, identity = _identity(image)
    if store == "docker" and not plain_http:
        _run(["docker", "tag", image, target])
        _run(["docker", "push", target])
        return
    buildah = str(tool("buildah"))
    if store == "docker":
        # A Docker engine would have to be told of our registry first; buildah takes the image from it and needs no telling.
        identity = _run([buildah, "pull", f"docker-daemon:{image}"]).split()[-1]
    # 6 GB of CUDA libraries: zstd takes a fraction of gzip's time on two cores. Other registries may not know it yet.
    compression = ["--compression-format=zstd", "--compression-level=1"] if plain_http else []
    _run([buildah, "push", f"--tls-verify={str(not plain_http).lower()}", *compression, identity, f"docker://{target}"])


def _identity(image: str) -> tuple[str, str]:
    """Which store has the image, and the digest of its configuration there."""
    answers = []
    for store, question in (("docker", _docker_identity), ("buildah", _buildah_identity)):
        try:
            return store, _run(question(image)).strip()
        except (subprocess.CalledProcessError, FileNotFoundError, MissingTool) as failure:
            answers.append(f"{store}: {getattr(failure, 'stderr', None) or failure}")
    raise NoSuchImage(f"no image {image} in a local store; build it first ({'; '.join(answers)})")


def _docker_identity(image: str) -> list[str]:
    return ["docker", "image", "inspect", "--format={{.Id}}", image]


def _buildah_identity(image: str) -> list[str]:
    return [str(tool("buildah")), "inspect", "--type=image", "--format={{.FromImageID}}", image]


def _run(command: list[str]) -> str:
    environment = {**os.environ, **(tool_environment() if command[0] != "docker" else {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
