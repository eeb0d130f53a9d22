"""Programs that the clusters build from their Go modules, as images: they are static, so nothing else is in them."""

import tempfile
from pathlib import Path

from cluster import images
from cluster.packages import tool


def program_image(*programs: str) -> str:
    """Of one module, each in /bin; an image of the first one's name runs that. Builds what is missing; returns the local reference."""
    with tempfile.TemporaryDirectory(prefix="millrace-program-") as temporary:
        containerfile = Path(temporary) / "Containerfile"
        lines = ("FROM scratch", *(f"ADD {program} /bin/" for program in programs), f'ENTRYPOINT ["/bin/{programs[0]}"]')
        containerfile.write_text("\n".join(lines) + "\n")
        return images.build_folder(f"millrace-{programs[0]}", containerfile, tool(programs[0]).parent)
