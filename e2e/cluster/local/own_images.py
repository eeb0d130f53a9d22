"""The two images that a cluster has before any other: what holds a pod's namespaces, and CoreDNS."""

from cluster.packages import tool
from cluster.scratch_image import ScratchImage

PAUSE_REFERENCE_FILE = "pause-image"
"""In the state folder: the reference that containerd uses."""


def pause() -> ScratchImage:
    """Sleeps for as long as its pod lives."""
    return ScratchImage(name="millrace/pause", files={"/busybox": tool("busybox")}, entrypoint=("/busybox", "sleep", "infinity"))


def coredns() -> ScratchImage:
    """The cluster's DNS server."""
    return ScratchImage(name="millrace/coredns", files={"/coredns": tool("coredns")}, entrypoint=("/coredns",))


def busybox() -> ScratchImage:
    """A shell with the tools that tests of the cluster need. Its `wget` wants an address: a static glibc resolves no names."""
    applets = ("cat", "httpd", "id", "nslookup", "sed", "sh", "sleep", "touch", "wget")
    links: dict[str, str] = {f"/bin/{applet}": "busybox" for applet in applets}
    return ScratchImage(
        name="millrace/busybox",
        files={"/bin/busybox": tool("busybox"), **links},
        entrypoint=("/bin/sh",),
        environment={"PATH": "/bin"},
    )
