"""A Redis as an image, for clusters that reach no registry: Debian's, in a root filesystem of its own."""

import os
import subprocess
import tempfile
from pathlib import Path

from cluster import cache, images
from cluster.packages import tool, tool_environment
from cluster.progress import step

NAME = "millrace-redis"
PACKAGES = "redis-server,redis-tools"


def redis_image() -> str:
    """Build what is missing, and return the local reference."""
    with tempfile.TemporaryDirectory(prefix="millrace-redis-") as temporary:
        containerfile = Path(temporary) / "Containerfile"
        containerfile.write_text("FROM scratch\nADD rootfs.tar /\n")
        return images.build_folder(NAME, containerfile, cache.folder(f"redis/{images.DEBIAN_SUITE}", _unpack))


def _unpack(folder: Path) -> None:
    with step(f"Redis: a Debian {images.DEBIAN_SUITE} root filesystem"):
        rootfs = str(folder / "rootfs.tar")
        command = [str(tool("mmdebstrap")), "--quiet", "--variant=minbase", f"--include={PACKAGES}", images.DEBIAN_SUITE, rootfs]
        subprocess.run(command, env={**os.environ, **tool_environment()}, check=True, capture_output=True)
