"""Where slow things are kept, outside every checkout and keyed by version; a half-made entry is never seen by anyone.

`MILLRACE_CACHE` names the folder; otherwise it is `millrace` in the user's cache folder.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.progress import say

_TAG = "CACHEDIR.TAG"
"""By the cache directory convention: backups skip the folder, and we know that we may delete it."""
_TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Created by Millrace; may be deleted while no cluster runs.\n"


class NotOurs(Exception):
    """A folder that we did not make, and therefore do not delete."""


def root() -> Path:
    """The cache folder, created when absent."""
    named = os.environ.get("MILLRACE_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace"
    if not base.exists() or not named:
        base.mkdir(parents=True, exist_ok=True)
        (base / _TAG).write_text(_TAG_TEXT)
    return base.resolve()


def purge() -> None:
    """Deletes the cache folder; raises NotOurs when we did not create it."""
    base = root()
    if not (base / _TAG).exists():
        raise NotOurs(f"MILLRACE_CACHE={base} was there before us: delete it yourself, or what you do not need of it")
    shutil.rmtree(base)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the lock `name` among all processes that share this cache; says so when it has to wait."""
    locks = root() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process makes {name}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def folder(key: str, fill: Callable[[Path], None]) -> Path:
    """The folder `key`. The first caller makes it: `fill` writes into a temporary folder, which is renamed when complete."""
    final = root() / key
    if final.is_dir():
        return final
    with locked(key.replace("/", "-")):
        if final.is_dir():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=final.parent))
        try:
            partial.chmod(0o755)
            fill(partial)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final
