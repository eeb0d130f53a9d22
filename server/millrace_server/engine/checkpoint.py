"""A model's folder: found, looked at and read once, before any of it is built. Pure files: no torch here.

Only safetensors weights are accepted: a pickle can run code. Code that a repository brings along is never run either.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from millrace_server.engine import weights
from millrace_server.engine.failure import CannotServe

DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
REVISION_FILE = ".millrace-revision"
"""Written last by `millrace_server.download`: the commit that it fetched."""
QUANTIZED_TYPES = ("F4", "F6", "F8")
"""Beginnings of safetensors' names of types that mean nothing without scales, which only a quantisation's own code applies."""
READ_BYTES = 8 * 1024 * 1024

Report = Callable[[str, int, int], None]
"""Called with a stage and `done` of `total`."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    config: dict[str, Any]
    """config.json as it stands; the keys are the model's own business, only the few we refuse by are read."""
    weights: tuple[Path, ...]
    elements: Counter[str]
    """Numbers in the weights, by safetensors' name of their type."""


def find(*, name: str, path: str | None, revision: str | None = None) -> Path:
    """The folder of MODEL_PATH, or of MODEL_NAME in the hub's cache on this machine: serving never downloads. Raises CannotServe."""
    if path is not None:
        if not Path(path).is_dir():
            raise CannotServe("find", "ModelNotFound", f"MODEL_PATH={path!r} is not a folder; it must hold config.json and *.safetensors")
        return Path(path)
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        hint = f"MODEL_NAME={name!r} is not in this machine's hub cache; run `hf download {name}` first, or set MODEL_PATH to a folder"
        raise CannotServe("find", "ModelNotFound", hint) from None


def inspect(folder: Path) -> Checkpoint:
    """Refuse early what cannot be served. Raises CannotServe."""
    file = folder / "config.json"
    if not file.is_file():
        raise CannotServe("inspect", "ModelNotFound", f"{folder} has no config.json; is it a transformers model?")
    config = weights.read_object(file)
    if not isinstance(config.get("model_type"), str):
        raise CannotServe("inspect", "InvalidModel", "config.json names no model_type")
    method = _quantization(config)
    if method:
        raise _quantized(method)
    files = weights.files(folder)
    elements: Counter[str] = sum((weights.elements(file) for file in files), Counter())
    strange = sorted(name for name in elements if name.startswith(QUANTIZED_TYPES))
    if strange:
        raise _quantized(strange[0])
    return Checkpoint(folder, config, files, elements)


def read(checkpoint: Checkpoint, report: Report) -> str:
    """Read every file once, which also brings the weights into the page cache. Returns their hash (40 hex digits)."""
    files = [file for name in DESCRIPTIONS if (file := checkpoint.folder / name).is_file()]
    files += checkpoint.weights
    total, done = sum(file.stat().st_size for file in files), 0
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while part := stream.read(READ_BYTES):
                digest.update(part)
                done += len(part)
                report("read", done, total)
    return digest.hexdigest()[:40]


def commit(folder: Path) -> str | None:
    """The hub's, where a download noted it or the folder is a snapshot of it."""
    noted = folder / REVISION_FILE
    if noted.is_file():
        return noted.read_text().strip()
    return folder.name if folder.parent.name == "snapshots" else None


def _quantization(config: dict[str, Any]) -> str | None:
    """The method by which a config.json says that its weights are quantised."""
    for part in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            said = part.get(key) if isinstance(part, dict) else None
            if said:
                return str(said.get("quant_method", "unknown")) if isinstance(said, dict) else "unknown"
    return None


def _quantized(method: str) -> CannotServe:
    hint = f"the weights are quantised ({method}); choose the unquantised bfloat16, float16 or float32 version of this model"
    return CannotServe("inspect", "UnsupportedQuantization", hint)
