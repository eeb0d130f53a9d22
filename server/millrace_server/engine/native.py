"""The compiled products and steps of server/native, when the CPU has the instructions for them; without them torch does all.

ctypes structures mirror those of native.cpp. They hold addresses: whoever makes one keeps its tensors.
"""

import ctypes
import logging
import platform
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("libnative.so")
PANEL = 16
"""Columns of a weight that are computed together."""
BLOCK = 512
"""Keys that a query sees at once."""
FOUND = 16
"""Floats that a query keeps of a block besides its sums of values, with padding."""
PHASE = 8
"""Numbers in a phase's cache line."""
PHASES_OF_LAYER, PHASES = 13, 4
"""At most, of each layer and of a whole step besides."""
TOGETHER = 3
"""Numbers that describe tokens which attend together."""
OPENMP = ("libgomp", "libiomp5")
"""torch is built with one of these; both have GOMP_parallel."""

log = logging.getLogger(__name__)


class _Team(Structure):
    _fields_ = [("parallel", c_void_p), ("threads", c_int64), ("pairing", c_int64)]


class WeightAddress(Structure):
    _fields_ = [("packed", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("inputs", c_int64)]


class _Linear(Structure):
    _fields_ = [
        ("team", POINTER(_Team)),
        ("weight", POINTER(WeightAddress)),
        ("x", c_void_p),
        ("rows", c_int64),
        ("out", c_void_p),
    ]


class Layer(Structure):
    _fields_ = [
        ("attention_norm", c_void_p),
        ("query", WeightAddress),
        ("key", WeightAddress),
        ("value", WeightAddress),
        ("output", WeightAddress),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("feed_norm", c_void_p),
        ("gate", WeightAddress),
        ("up", WeightAddress),
        ("down", WeightAddress),
        ("window", c_int64),
    ]


class Model(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("layers", "hidden", "heads", "kv_heads", "size", "intermediate")),
        ("epsilon", c_float),
        ("scaling", c_float),
        ("final_norm", c_void_p),
        ("head", WeightAddress),
        ("layer", POINTER(Layer)),
    ]


class Segment(Structure):
    _fields_ = [(name, c_int64) for name in ("first", "tokens", "start", "place", "offset", "capacity")]


class Step(Structure):
    _fields_ = [
        ("team", POINTER(_Team)),
        ("model", POINTER(Model)),
        *((name, c_int64) for name in ("begin", "end", "tokens", "segments", "places", "samples")),
        ("segment", POINTER(Segment)),
        ("keys", POINTER(c_void_p)),
        ("values", POINTER(c_void_p)),
        ("sampled", c_void_p),
        *((name, c_void_p) for name in ("x", "cosines", "sines", "normal", "query", "key", "value", "attended", "gate", "up")),
        ("narrow", c_void_p),
        ("logits", c_void_p),
        ("phases", c_void_p),
        ("together", c_void_p),
        ("found", c_void_p),
        ("blocks", c_int64),
        ("pieces", c_int64),
        ("most_together", c_int64),
    ]


MIRRORED: dict[str, type[Structure]] = {
    "Team": _Team,
    "Weight": WeightAddress,
    "Linear": _Linear,
    "Layer": Layer,
    "Model": Model,
    "Segment": Segment,
    "Step": Step,
}
"""By their names in native.cpp."""
NUMBER = ctypes.sizeof(c_int64)
LAYOUT = (*map(ctypes.sizeof, MIRRORED.values()), TOGETHER * NUMBER, PHASE * NUMBER, BLOCK, FOUND, PHASES_OF_LAYER, PHASES)
"""What the library must agree with."""


class PackedWeight:
    """A weight [outputs, inputs] in the library's own layout, with its bias."""

    def __init__(self, packed: Tensor, bias: Tensor | None, outputs: int, inputs: int) -> None:
        self._tensors = packed, bias
        self.outputs, self.inputs = outputs, inputs
        self.address = WeightAddress(packed.data_ptr(), None if bias is None else bias.data_ptr(), outputs, inputs)


class Library:
    def __init__(self, path: Path, openmp: Path, *, pairing: bool) -> None:
        """Raises OSError when it does not load, and AttributeError or ValueError when it was built from other sources. `pairing`: see
        product.h.
        """
        self._library = ctypes.CDLL(str(path))
        if not self._library.millrace_agrees((c_int64 * len(LAYOUT))(*LAYOUT), c_int64(len(LAYOUT))):
            raise ValueError(f"{path.name} was built from other sources")
        self._openmp = ctypes.CDLL(str(openmp))
        self.pairing = pairing
        self.threads = torch.get_num_threads()
        self._team = _Team(ctypes.cast(self._openmp.GOMP_parallel, c_void_p), self.threads, pairing)
        self.team = ctypes.pointer(self._team)

    def pack(self, weight: Tensor, bias: Tensor | None) -> PackedWeight:
        """`weight` is bfloat16 [outputs, inputs] with `inputs` a multiple of 16; the weight itself is not kept."""
        outputs, inputs = weight.shape
        packed = torch.empty(-(-outputs // PANEL) * PANEL * inputs, dtype=torch.bfloat16)
        source = weight.detach().contiguous()
        self._library.millrace_pack(c_void_p(source.data_ptr()), c_int64(outputs), c_int64(inputs), c_void_p(packed.data_ptr()))
        return PackedWeight(packed, None if bias is None else bias.detach().float().contiguous(), outputs, inputs)

    def linear(self, rows: Tensor, weight: PackedWeight) -> Tensor:
        """bfloat16 [..., inputs] → bfloat16 [..., outputs]. Raises ValueError for rows of another size or type."""
        if rows.shape[-1] != weight.inputs or rows.dtype is not torch.bfloat16:
            raise ValueError(f"{rows.dtype} rows of {rows.shape[-1]} where bfloat16 ones of {weight.inputs} are multiplied")
        x = (rows if self.pairing else rows.float()).contiguous()
        out = rows.new_empty((*rows.shape[:-1], weight.outputs))
        if not out.numel():
            return out
        count = x.numel() // weight.inputs
        call = _Linear(self.team, ctypes.pointer(weight.address), x.data_ptr(), count, out.data_ptr())
        self._library.millrace_linear(byref(call))
        return out

    def step(self, step: Step) -> None:
        self._library.millrace_step(byref(step))


@cache
def library() -> Library | None:
    """None where torch alone serves better, and where there is no library that fits, which is said in the log."""
    openmp = _openmp()
    if openmp is None or not pays():
        return None
    try:
        return Library(LIBRARY, openmp, pairing=_pairs_fast())
    except (OSError, AttributeError, ValueError) as error:
        log.warning("the native step cannot be used (`make env` builds it): %s", error)
        return None


def pays() -> bool:
    """Whether this CPU has AVX-512, and no AMX, which multiplies bfloat16 many times as fast as AVX-512 could."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not torch.cpu._is_amx_tile_supported()


def _openmp() -> Path | None:
    """The OpenMP library that torch has loaded: a second one would have threads of its own, that fight torch's for the cores."""
    if platform.system() != "Linux":
        return None
    loaded = (line.split(maxsplit=5)[5].strip() for line in Path("/proc/self/maps").read_text().splitlines() if line.count("/"))
    return next((Path(path) for path in loaded if Path(path).name.startswith(OPENMP)), None)


def _pairs_fast() -> bool:
    """AMD's cores multiply pairs of bfloat16 faster than floats (measured on Zen 5), Intel's half as fast (on a Xeon without AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported()) and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
