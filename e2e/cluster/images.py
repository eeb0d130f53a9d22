"""The project's container images: built from one Dockerfile, by docker where an engine runs, else by buildah.

A tag is the hash of what went into the image, so an unchanged image is neither built nor pushed again and a changed one rolls out.
This module builds; getting an image to the nodes is a provider's `load`. It never pulls: without a registry the base image is a
Debian root filesystem made by mmdebstrap.
"""

import argparse
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster import install_lines
from cluster.binaries import CannotBuild
from cluster.packages import MissingTool, tool, tool_environment
from cluster.progress import step
from cluster.provider import CHECKOUT, NoCluster, docker_runs, wanted
from cluster.push import NoSuchImage, push_from_local_store

DOCKERFILE = CHECKOUT / "Dockerfile"
TARGETS = {
    "operator": (
        "requirements/install",
        "requirements/uv.txt",
        "requirements/operator.txt",
        "operator/millrace_operator",
        "server/millrace_server",
    ),
    "server": (
        "requirements/install",
        "requirements/uv.txt",
        "requirements/server.txt",
        "requirements/native.txt",
        "server/millrace_server",
        "server/native",
    ),
}
# The operator takes these two files of the server and nothing else: an edit of the engine must not roll the operator.
OPERATOR_TAKES_OF_SERVER = {"server/millrace_server/__init__.py", "server/millrace_server/settings.py"}
DEBIAN_SUITE = "bookworm"
DEBIAN_PACKAGES = "python3,python3-venv,ca-certificates"
KEPT_BUILDS = 3
STAGED_AT = 1_577_836_800  # one time stamp for every staged file, or a fresh clone would miss the builder's layer cache


def build(target: str) -> str:
    """Build `operator` or `server` and return the local reference, such as `localhost/millrace-server:3f2a…`."""
    with tempfile.TemporaryDirectory(prefix="millrace-build-") as folder:
        context = Path(folder)
        # buildah 1.28 also runs the stages before the target, so the context holds every target's files; the tag knows only its own.
        for each in TARGETS:
            _stage(context, _sources(each))
        own = [context / file.relative_to(CHECKOUT) for file in _sources(target)]
        tag = _content_hash(context, [DOCKERFILE, *own], target, _base_image() or "")
        arguments = ["--target", target, *(["--build-arg", f"BASE_IMAGE={base}"] if (base := _base_image()) else [])]
        return _build(f"localhost/millrace-{target}:{tag}", DOCKERFILE, context, arguments)


def build_folder(name: str, containerfile: Path, context: Path) -> str:
    """Build any other folder (the demo model) into `localhost/<name>:<hash>`."""
    files = sorted(path for path in context.rglob("*") if path.is_file())
    return _build(f"localhost/{name}:{_content_hash(context, [containerfile, *files])}", containerfile, context, [])


@functools.cache
def docker_builds() -> bool:
    """Whether a Docker engine builds the images; the local provider's registry is fed by buildah."""
    return wanted() != "local" and docker_runs()


def buildah(*arguments: str) -> list[str]:
    """A buildah command line, to be run with `tool_environment()`.

    It gets a mount namespace of its own: nothing stays mounted when a build is interrupted. A buildah unpacked into the cache also
    finds its libraries there, in the system's folder: it starts itself anew with an empty environment, so no variable would help.
    """
    program = tool("buildah")
    prepare = "exec"
    root = program.parents[1] / "root"
    if root.is_dir():
        libraries = next(path.parent for path in root.glob("usr/lib/*-linux-gnu/libgpgme.so.*"))
        system = Path("/") / libraries.relative_to(root)
        prepare = f"mount -t overlay millrace-libraries -o lowerdir={libraries}:{system} {system} && exec"
        program = root / "usr" / "bin" / "buildah"
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{prepare} "$0" "$@"', str(program), *arguments]


def _sources(target: str) -> Iterable[Path]:
    for source in TARGETS[target]:
        path = CHECKOUT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            relative = str(file.relative_to(CHECKOUT))
            if not file.is_file() or "__pycache__" in file.parts or file.suffix == ".so":
                continue  # what the checkout has built for itself; the image builds its own
            if target == "operator" and relative.startswith("server/") and relative not in OPERATOR_TAKES_OF_SERVER:
                continue
            yield file


def _stage(context: Path, files: Iterable[Path]) -> None:
    for file in files:
        staged = context / file.relative_to(CHECKOUT)
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, staged)
    for path in sorted(context.rglob("*"), reverse=True):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (STAGED_AT, STAGED_AT))


def _content_hash(context: Path, files: Iterable[Path], *parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    for file in files:
        content = file.read_bytes()
        name = file.relative_to(context) if file.is_relative_to(context) else file.name
        digest.update(f"{name}:{len(content)}:{file.stat().st_mode & 0o111}:".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _build(image: str, containerfile: Path, context: Path, arguments: list[str]) -> str:
    if _exists(image):
        return image
    with step(f"image {image}"):
        last = ["-f", str(containerfile), "-t", image, str(context)]
        if docker_builds():
            _run(["docker", "build", "--quiet", *arguments, *last])
        else:
            _run(buildah("bud", "--quiet", "--layers", *_host_certificates(), *arguments, *last))
    _prune(image)
    return image


def _prune(image: str) -> None:
    """Forget all but the newest builds of an image: one with other dependencies weighs 6 GB."""
    old = _builds(image.rpartition(":")[0])[KEPT_BUILDS:]
    if old:
        _run(["docker", "rmi", *old] if docker_builds() else buildah("rmi", *old))


def _builds(name: str) -> list[str]:
    """References of every local build of `name`, newest first."""
    if docker_builds():  # which lists the newest first
        return _run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}", name]).splitlines()
    listed = json.loads(_run(buildah("images", "--json")))
    found = [(each["createdatraw"], reference) for each in listed for reference in each["names"] or [] if reference.startswith(f"{name}:")]
    return [reference for _, reference in sorted(found, reverse=True)]


def _environment() -> dict[str, str]:
    if docker_builds():
        return {**os.environ, "DOCKER_BUILDKIT": "1"}
    return {**os.environ, **tool_environment()}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImageBuildFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


class ImageBuildFailed(RuntimeError):
    """The builder's own last lines."""


def _exists(image: str) -> bool:
    return image in _builds(image.rpartition(":")[0])


def _host_certificates() -> list[str]:
    """Where TLS is intercepted, a build must trust what the host trusts."""
    bundle = os.environ.get("SSL_CERT_FILE")
    if not bundle or not Path(bundle).exists():
        return []
    folder = str(Path(bundle).parent)
    return ["-v", f"{folder}:{folder}:ro", "--build-arg", f"SSL_CERT_FILE={bundle}", "--build-arg", f"PIP_CERT={bundle}"]


@functools.cache
def _base_image() -> str | None:
    """None leaves the Dockerfile's default, which docker pulls; buildah gets a Debian root filesystem unless MILLRACE_BASE_IMAGE is set."""
    given = os.environ.get("MILLRACE_BASE_IMAGE")
    if given or docker_builds():
        return given
    image = f"localhost/millrace-base:{DEBIAN_SUITE}"
    if _exists(image):
        return image
    with step(f"base image: a Debian {DEBIAN_SUITE} root filesystem"), tempfile.TemporaryDirectory(prefix="millrace-base-") as folder:
        archive = Path(folder) / "rootfs.tar"
        command = [str(tool("mmdebstrap")), "--quiet", "--variant=minbase", f"--include={DEBIAN_PACKAGES}", DEBIAN_SUITE, str(archive)]
        _run(command)
        containerfile = Path(folder) / "Containerfile"
        containerfile.write_text("FROM scratch\nADD rootfs.tar /\n")
        _run(buildah("bud", "--quiet", "-f", str(containerfile), "-t", image, folder))
    return image


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.images", description="Build both images; with --push, copy them to a registry."
    )
    parser.add_argument("--push", metavar="REGISTRY", help="such as registry.example.com/team; log in with your builder first")
    registry = parser.parse_args(arguments).push
    if registry is not None and (not registry or "://" in registry):
        parser.error(f"REGISTRY={registry} must be a host and a path: make images-push REGISTRY=registry.example.com/team")
    built = [build(target) for target in TARGETS]
    print("\n".join(built))
    if registry:
        operator, server = (_push(image, registry) for image in built)
        print(f"install the chart:\n  {install_lines.by_chart(operator=operator, server=server)}")
        print(f"or the manifests:\n  {install_lines.by_manifests(operator=operator, server=server)}")


def _push(image: str, registry: str) -> str:
    destination = f"{registry.rstrip('/')}/{image.removeprefix('localhost/')}"
    with step(f"push {destination}"):
        push_from_local_store(image, destination, plain_http=False)
    return destination


if __name__ == "__main__":
    try:
        main()
    except (ImageBuildFailed, NoSuchImage, MissingTool, CannotBuild, NoCluster) as failure:
        sys.exit(f"images: {failure}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"images: {failure}\n{failure.stderr or ''}")
    except KeyboardInterrupt:
        sys.exit("images: interrupted; the same command goes on where this one stopped")
