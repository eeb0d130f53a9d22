"""`make run`: the server alone on this machine, without Kubernetes. `python -m demo.alone MODEL`: a folder, or OWNER/NAME on the hub.

Serving never downloads, so a model of the hub is downloaded first, once: it stays in the cache, and later runs need no network.
"""

import os
import sys
from pathlib import Path

from cluster import cache
from millrace_server import download
from millrace_server.engine.checkpoint import REVISION_FILE

EXAMPLE = "make run MODEL=Qwen/Qwen2.5-0.5B-Instruct"


def main(model: str) -> None:
    """Becomes the server."""
    if not model:
        sys.exit(f"run: MODEL is not said: {EXAMPLE}, or a folder")
    named = {} if Path(model).is_dir() else {"MODEL_NAME": model}
    command = [sys.executable, "-m", "millrace_server", "--model", str(folder(model))]
    os.execve(sys.executable, command, {**os.environ, **named})


def folder(model: str) -> Path:
    """Where the model's files lie, downloaded when they are not here. Exits as the download does when that fails."""
    if Path(model).is_dir():
        return Path(model)
    downloaded = cache.root() / "hub" / model
    if not (downloaded / REVISION_FILE).exists():
        failure = download.main(["--repo", model, "--to", str(downloaded)])
        if failure:
            sys.exit(failure)
    return downloaded


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "")
    except KeyboardInterrupt:
        sys.exit("run: interrupted; the same command goes on where this one stopped")
