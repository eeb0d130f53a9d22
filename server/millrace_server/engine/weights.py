"""The safetensors files of a model's folder, by their names and headers alone. Pure files: no torch here.

Format: 8 bytes, the header's length; the header, JSON of every tensor's type, shape and place; the tensors.
"""

import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from millrace_server.engine.failure import CannotServe

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LENGTH = struct.Struct("<Q")
LARGEST_HEADER = 100_000_000
"""Bytes, as the format itself limits it."""


def files(folder: Path) -> tuple[Path, ...]:
    """The files that hold the weights, as transformers chooses them. Raises CannotServe."""
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if not (folder / INDEX).is_file():
        raise _missing(folder)
    places = read_object(folder / INDEX).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise CannotServe("inspect", "InvalidModel", f"{INDEX} names no files of this folder")
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        hint = f"{len(lacking)} of {len(names)} files of weights are missing, such as {lacking[0]}; download the model again"
        raise CannotServe("inspect", "InvalidModel", hint)
    return tuple(folder / name for name in names)


def elements(file: Path) -> Counter[str]:
    """Numbers in a safetensors file by the name of their type. Raises CannotServe when its length is not what the header says."""
    size = file.stat().st_size
    counts: Counter[str] = Counter()
    end = 0
    try:
        with file.open("rb") as stream:
            (length,) = LENGTH.unpack(stream.read(LENGTH.size))
            header = json.loads(stream.read(length)) if length <= min(size, LARGEST_HEADER) else {}
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[str(tensor["dtype"])] += math.prod(tensor["shape"])
                end = max(end, tensor["data_offsets"][1])
    except (struct.error, ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        raise CannotServe("inspect", "InvalidModel", f"{file.name} has no safetensors header; download the model again") from None
    if LENGTH.size + length + end != size:
        hint = f"{file.name} has {size} bytes and its header says {LENGTH.size + length + end}; download the model again"
        raise CannotServe("inspect", "InvalidModel", hint)
    return counts


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CannotServe."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CannotServe("inspect", "InvalidModel", f"{file.name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CannotServe("inspect", "InvalidModel", f"{file.name} is no JSON object")
    return found


def _missing(folder: Path) -> CannotServe:
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        hint = f"{folder} has {others[0]}, but neither {SINGLE} nor {INDEX}; an adapter must be merged into its base model first"
    elif any(file for pattern in PICKLES for file in folder.glob(pattern)):
        hint = "the weights are pickles, which can run code; convert them to safetensors"
    else:
        hint = f"{folder} has no {SINGLE}"
    return CannotServe("inspect", "InvalidModel", hint)
