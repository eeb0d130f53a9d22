"""Programs that the clusters and the image builds need: from PATH, else unpacked from Debian packages into the cache, else built.

Nothing is ever installed on the host: a package's daemons and files would displace what a Docker installation brought.
"""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from cluster import binaries, cache
from cluster.progress import step

PACKAGES = {
    "buildah": "buildah",
    "busybox": "busybox-static",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "docker-registry": "docker-registry",
    "etcd": "etcd-server",
    "ip": "iproute2",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "redis-cli": "redis-tools",
    "redis-server": "redis-server",
    "runc": "runc",
}
"""Program → the Debian package that has it."""
CNI_PACKAGE = "containernetworking-plugins"

_NEVER_FROM_PATH = {"busybox"}
"""Only Debian's static build is sure to run in an empty image."""
_PROGRAM_FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin")
_ALTERNATIVES = {f"{family}{what}": f"{family}-nft{what}" for family in ("iptables", "ip6tables") for what in ("", "-save", "-restore")}
"""Names that a package leaves to update-alternatives, and what they stand for here."""


class MissingTool(Exception):
    """A program is neither here nor to be had; the message says what to install."""


def tool(name: str) -> Path:
    """The path of a program that runs as it is, fetched or built first when absent."""
    if name in binaries.MODULES:
        return binaries.binary(name)
    if name not in PACKAGES:
        raise MissingTool(f"{name} is not a known tool; known are {', '.join(sorted({*PACKAGES, *binaries.MODULES}))}")
    found = None if name in _NEVER_FROM_PATH else shutil.which(name)
    if found:
        return Path(found)
    program = unpacked(PACKAGES[name]) / "bin" / name
    if not program.exists():
        raise MissingTool(f"Debian's package {PACKAGES[name]} has no program {name}")
    return program


def tool_environment() -> dict[str, str]:
    """What image builds need in their environment: a store of their own in the cache, and no container runtime.

    The store is not the host's /var/lib/containers, so that nothing is left behind but the cache.
    """
    home = cache.root() / "containers"
    config = home / ".config" / "containers"
    storage = config / "storage.conf"
    with cache.locked("containers"):
        config.mkdir(parents=True, exist_ok=True)
        (config / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
        (config / "registries.conf").write_text("unqualified-search-registries = []\n")
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{home}/storage"\nrunroot = "/run/millrace-containers"\n'
            # Otherwise the store stays mounted on itself after every build.
            '[storage.options.overlay]\nskip_mount_home = "true"\n'
        )
    # With another HOME, `docker login` would be forgotten.
    logins = Path(os.environ.get("REGISTRY_AUTH_FILE") or Path.home() / ".docker" / "config.json")
    return {
        **({"REGISTRY_AUTH_FILE": str(logins)} if logins.exists() else {}),
        "BUILDAH_ISOLATION": "chroot",
        "STORAGE_DRIVER": "overlay",
        "CONTAINERS_STORAGE_CONF": str(storage),
        "CONTAINERS_REGISTRIES_CONF": str(config / "registries.conf"),
        # The signature policy is looked for under HOME and has no variable of its own.
        "HOME": str(home),
    }


def cni_folder() -> Path:
    """The folder of the CNI plugins."""
    installed = Path("/usr/lib/cni")
    return installed if (installed / "bridge").exists() else unpacked(CNI_PACKAGE) / "root" / "usr" / "lib" / "cni"


def search_path(*names: str) -> str:
    """A PATH on which these tools come first."""
    folders = dict.fromkeys(str(tool(name).parent) for name in names)
    return ":".join([*folders, os.environ.get("PATH", os.defpath)])


def unpacked(package: str) -> Path:
    """A folder with `root/` (the package and those of its dependencies that the host lacks) and `bin/` (its programs)."""
    return cache.folder(f"debian/{_release()}/{package}", lambda folder: _unpack(package, folder))


def _unpack(package: str, folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise MissingTool(f"{package} is not installed and there is no apt-get to fetch it with: install it, or use Docker (kind)")
    wanted = _missing(package)
    downloads = folder / "downloads"
    downloads.mkdir()
    with step(f"fetch Debian packages into the cache: {' '.join(wanted)}"):
        # As root apt drops to its own user, which may not write here; that is only a warning, and we do not want it.
        _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", *wanted], downloads)
        for archive in sorted(downloads.iterdir()):
            _run(["dpkg-deb", "-x", str(archive), str(folder / "root")], folder)
    (folder / "packages.txt").write_text("\n".join(sorted(archive.name for archive in downloads.iterdir())) + "\n")
    shutil.rmtree(downloads)
    # The folder is renamed when complete: scripts name the final one.
    _write_programs(folder, final=cache.root() / "debian" / _release() / package)


def _missing(package: str) -> list[str]:
    """The package and its dependencies that are not installed, by apt's own solver."""
    command = ["apt-get", "install", "--simulate", "--no-install-recommends", package]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode and os.geteuid() == 0:
        with step("apt-get update (this machine has no package lists)"):
            _run(["apt-get", "update", "-qq"], Path("/"))
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise MissingTool(f"apt does not know {package}: {answer.stderr.strip()}; run `apt-get update`, or install {package}")
    # `Inst NAME (VERSION …` is new; `Inst NAME [OLD] (NEW …` would be an upgrade of what is there, which will do.
    return re.findall(r"^Inst (\S+) \(", answer.stdout, re.MULTILINE) or [package]


def _write_programs(folder: Path, *, final: Path) -> None:
    (folder / "bin").mkdir()
    libraries = [file.relative_to(folder).parent for file in (folder / "root").glob("**/*-linux-gnu/*.so*")]
    search = ":".join(sorted({str(final / path) for path in libraries if path.name.endswith("-linux-gnu")}))
    for place in _PROGRAM_FOLDERS:
        programs = folder / "root" / place
        for program in sorted(programs.iterdir()) if programs.is_dir() else []:
            target = final / "root" / place / program.name
            names = [program.name, *(name for name, stands_for in _ALTERNATIVES.items() if stands_for == program.name)]
            for name in names:
                if not (folder / "bin" / name).is_symlink():  # runc lies in two folders
                    _write_program(folder / "bin" / name, target, search)


def _write_program(program: Path, target: Path, libraries: str) -> None:
    if not libraries:
        program.symlink_to(target)
        return
    lines = ["#!/bin/sh", f'export LD_LIBRARY_PATH="{libraries}"']
    lines += [f'export XTABLES_LIBDIR="{path}/xtables"' for path in libraries.split(":")[-1:] if "tables" in program.name]
    lines.append(f'exec "{target}" "$@"')
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)


def _release() -> str:
    system = platform.freedesktop_os_release()
    return f"{system.get('ID', 'linux')}-{system.get('VERSION_ID', 'rolling')}-{platform.machine()}"


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise MissingTool(f"`{' '.join(command)}` ended with {done.returncode}: {done.stdout[-2000:]}")
