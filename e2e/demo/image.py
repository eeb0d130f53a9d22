"""The demo model as an image: the model's folder and a static `cp`, all that an `oci://` source needs."""

import shutil
import tempfile
from pathlib import Path

from cluster import images
from cluster.packages import tool
from demo import model

NAME = "millrace-demo-model"
PATH = "/model"
"""Where the model lies in the image: the part of the source after `#`."""
CONTAINERFILE = f"""\
FROM scratch
COPY cp /bin/cp
COPY model {PATH}
USER 65534:65534
"""


def model_image() -> str:
    """Train and build what is missing, and return the local reference."""
    return pack(model.folder())


def pack(folder: Path) -> str:
    """An image of any model folder; its tag is the hash of the content."""
    with tempfile.TemporaryDirectory(prefix="millrace-model-") as temporary:
        context = Path(temporary) / "context"
        shutil.copytree(folder, context / "model")
        # Busybox does what it is called: as /bin/cp it copies.
        shutil.copyfile(tool("busybox"), context / "cp")
        for path in context.rglob("*"):
            path.chmod(0o755 if path.is_dir() or path.name == "cp" else 0o644)
        containerfile = Path(temporary) / "Containerfile"
        containerfile.write_text(CONTAINERFILE)
        return images.build_folder(NAME, containerfile, context)


if __name__ == "__main__":
    print(model_image())
