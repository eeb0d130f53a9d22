"""`python -m millrace_server.download --repo REPO [--revision REV] --to FOLDER [--max-bytes N]`: a model from the hub into a folder.

Takes weights (safetensors), descriptions, tokenizer and templates, nothing that could run. A file that a killed run completed is
kept; a broken connection is resumed in mid-file. The size is compared with the limit and the disk before the first byte. HF_TOKEN
and HF_ENDPOINT are honoured; TERMINATION_LOG gets the cause.

Exit codes: 0 complete, 1 failed (cause in TERMINATION_LOG), 2 wrong arguments.
"""

import argparse
import errno
import glob
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from millrace_server import logs, termination
from millrace_server.engine.checkpoint import REVISION_FILE
from millrace_server.engine.failure import CannotServe

WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt")
UNWANTED = ("consolidated*.safetensors",)
"""The same weights once more, in another project's layout."""
PROGRESS_SECONDS = 5.0
STAGE = "download"
EXIT_FAILED = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit: the files we want of it, with their sizes in bytes."""

    repo: str
    commit: str
    files: dict[str, int]

    @property
    def size(self) -> int:
        return sum(self.files.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="millrace_server.download", description="Download a model from the hub into a folder.")
    parser.add_argument("--repo", required=True, help="OWNER/NAME")
    parser.add_argument("--revision", help="commit, branch or tag; default: the main branch")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="created when absent")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="refuse a larger model before the download begins")
    chosen = parser.parse_args(arguments)
    logs.configure()
    try:
        download(chosen.repo, chosen.revision, chosen.to, max_bytes=chosen.max_bytes)
    except CannotServe as error:
        logger.error("the download failed", extra={"cause": error.failed.cause, "hint": error.failed.hint})  # noqa: TRY400 - the hint says it
        termination.write(os.environ.get("TERMINATION_LOG") or None, error.failed)
        return EXIT_FAILED
    return 0


def download(repo: str, revision: str | None, folder: Path, *, max_bytes: int | None) -> None:
    """Fill the folder. Raises CannotServe."""
    done = folder / REVISION_FILE
    if revision is not None and done.is_file() and done.read_text().strip() == revision:
        logger.info("already complete", extra={"revision": revision})
        return
    with _causes(repo, revision, folder):
        snapshot = find(repo, revision)
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".cache/**/*.incomplete"):
            # The hub's library never takes these up again: they would only fill the disk, once per attempt.
            unfinished.unlink()
        check_room(snapshot, present=_bytes_in(folder), free=shutil.disk_usage(folder).free, max_bytes=max_bytes)
        done.unlink(missing_ok=True)
        with _progress(folder, snapshot.size):
            fetch(snapshot, folder)
        check_complete(snapshot, folder)
        done.write_text(snapshot.commit + "\n")
    logger.info("complete", extra={"revision": snapshot.commit, "bytes": snapshot.size, "files": len(snapshot.files)})


def find(repo: str, revision: str | None) -> Snapshot:
    """Ask the hub what there is. Raises CannotServe, or what the hub's library raises."""
    # The library reads its settings from the environment when it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    files = {file.rfilename: int(file.size or 0) for file in info.siblings or () if is_wanted(file.rfilename)}
    if not any(name.endswith(".safetensors") for name in files):
        hint = f"{repo} holds no *.safetensors file, and other formats can run code; choose a repository or revision with safetensors"
        raise CannotServe(STAGE, "NoSafetensors", hint)
    return Snapshot(repo=repo, commit=str(info.sha), files=files)


def is_wanted(name: str) -> bool:
    """Only the repository's top folder: others hold the same model for other frameworks."""
    return "/" not in name and any(fnmatch(name, p) for p in WANTED) and not any(fnmatch(name, p) for p in UNWANTED)


def check_room(snapshot: Snapshot, *, present: int, free: int, max_bytes: int | None) -> None:
    """`present` bytes are already in the folder, from a run before. Raises CannotServe."""
    if max_bytes is not None and snapshot.size > max_bytes:
        hint = f"{snapshot.repo} has {snapshot.size} bytes, the folder's limit is {max_bytes}; raise it, or choose a smaller model"
        raise CannotServe(STAGE, "DiskFull", hint)
    missing = snapshot.size - min(present, snapshot.size)
    if missing > free:
        hint = f"{snapshot.repo} needs {missing} more bytes, the disk has {free} left; free some space, or choose a smaller model"
        raise CannotServe(STAGE, "DiskFull", hint)


def fetch(snapshot: Snapshot, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    names = [glob.escape(name) for name in snapshot.files]
    snapshot_download(snapshot.repo, revision=snapshot.commit, local_dir=folder, allow_patterns=names)


def check_complete(snapshot: Snapshot, folder: Path) -> None:
    """The library takes an older folder for good when the hub falls silent in between. Raises CannotServe."""
    wrong = [name for name, size in snapshot.files.items() if not (folder / name).is_file() or (folder / name).stat().st_size != size]
    if wrong:
        raise CannotServe(
            STAGE, "NetworkUnreachable", f"{len(wrong)} files are incomplete, {wrong[0]} among them; the next attempt resumes"
        )


@contextmanager
def _causes(repo: str, revision: str | None, folder: Path) -> Iterator[None]:
    """Names for what can go wrong between here and the hub."""
    import httpx2
    from huggingface_hub import errors

    at = f"{repo}@{revision}" if revision else repo
    endpoint = os.environ.get("HF_ENDPOINT") or "the hub"
    has_token = bool(os.environ.get("HF_TOKEN"))
    absent = f"{at} does not exist on {endpoint}, or is private; check the name, or give a token that may read it"
    try:
        yield
    except errors.GatedRepoError:
        raise CannotServe(STAGE, "BadToken", f"{at} is gated; accept its licence on the hub and give a token of that account") from None
    except errors.RevisionNotFoundError:
        raise CannotServe(STAGE, "ModelNotFound", f"{repo} has no revision {revision!r}; check the branch, tag or commit") from None
    except errors.HFValidationError:
        raise CannotServe(STAGE, "ModelNotFound", f"{repo!r} is not a repository's name; it must look like OWNER/NAME") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == 403 or (status == 401 and has_token):
            raise CannotServe(STAGE, "BadToken", f"{endpoint} refuses the token for {at} ({status}); renew it or its permissions") from None
        if status in (401, 404):
            raise CannotServe(STAGE, "ModelNotFound", absent) from None
        raise CannotServe(STAGE, "NetworkUnreachable", f"{endpoint} answered {status} for {at}; the next attempt resumes") from None
    except (httpx2.TransportError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.FileMetadataError) as error:
        hint = f"{endpoint} cannot be reached ({type(error).__name__}); check the network, its policies and HF_ENDPOINT"
        raise CannotServe(STAGE, "NetworkUnreachable", hint) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CannotServe(STAGE, "DiskFull", f"the disk of {folder} is full; give it more room, or choose a smaller model") from None
        raise CannotServe(STAGE, "FolderNotWritable", f"{folder} cannot be written: {error.strerror or error}") from None


@contextmanager
def _progress(folder: Path, total: int) -> Iterator[None]:
    """Log how many bytes lie in the folder, now and then, while the block runs."""
    finished = threading.Event()

    def report() -> None:
        while True:
            logger.info("downloading", extra={"bytes": min(_bytes_in(folder), total), "total_bytes": total})
            if finished.wait(PROGRESS_SECONDS):
                return

    thread = threading.Thread(target=report, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _bytes_in(folder: Path) -> int:
    """Unfinished files included; one that is renamed under our eyes counts nothing."""
    total = 0
    for file in folder.rglob("*"):
        try:
            if file.is_file():
                total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
