"""From a model's folder to its runner: on which device, in which type, whether it fits, the weights, and the proof that we compute it.

Any decoder-only architecture works that reaches its attention through transformers' attention interface.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from millrace_server.engine import container, packed
from millrace_server.engine.architecture import first_line, length_limit, read_config
from millrace_server.engine.checkpoint import Checkpoint, Report
from millrace_server.engine.failure import CannotServe, DeviceLost, StepOutOfMemory, unsupported
from millrace_server.engine.proof import prove
from millrace_server.engine.runner import ATTENTION, Facts, Runner
from millrace_server.settings import Device, DType

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the types that are converted to the one in which the model computes."""

log = logging.getLogger(__name__)


def load(checkpoint: Checkpoint, *, device: Device, device_fallback: bool, dtype: DType, max_length: int | None, report: Report) -> Runner:
    """Build the model, prove it and make its runner. Raises CannotServe."""
    where = _device(device, device_fallback)
    config = read_config(checkpoint)
    limit = length_limit(config)
    if max_length is not None and max_length > limit:
        raise CannotServe("inspect", "InvalidMaxLength", f"MAX_LENGTH={max_length} exceeds the model's own limit of {limit}")
    try:
        return _runner(checkpoint, config, where, dtype, limit=max_length or limit, report=report)
    except (CannotServe, DeviceLost):
        raise
    except (torch.OutOfMemoryError, MemoryError, StepOutOfMemory) as error:
        raise CannotServe("load", "OutOfMemory", f"the weights do not fit into memory ({error}); raise the memory limit") from error
    except Exception as error:  # hundreds of architectures, and each reads its config.json in its own way
        log.exception("the model cannot be built")
        why = f"the model cannot be built as config.json says ({type(error).__name__}: {first_line(error)})"
        raise CannotServe("load", "InvalidModel", why) from error


def _runner(checkpoint: Checkpoint, config: Any, device: torch.device, dtype: DType, *, limit: int, report: Report) -> Runner:  # noqa: ANN401
    text = config.get_text_config()
    kind = choose_dtype(dtype, text.dtype, cuda=device.type == "cuda", native_bfloat16=_computes_bfloat16(device))
    _require_memory(checkpoint, text, kind, device)
    model = _weights(checkpoint, config, kind, report).to(device).eval()
    if packed.can_pack(kind, device):
        packed.pack(model)
    _take_ownership(model)
    prove(model, limit=limit)
    facts = Facts(
        device=str(device),
        dtype=str(kind).removeprefix("torch."),
        max_length=limit,
        vocabulary=text.vocab_size,
        eos_token_ids=_eos_token_ids(model, text),
    )
    return Runner(model, facts=facts, free_memory=_free_memory(device))


def _eos_token_ids(model: Any, text: Any) -> frozenset[int]:  # noqa: ANN401
    """Of the tokens that there are: some models name others, which never come."""
    places = (getattr(model, "generation_config", None), text)
    told: int | list[int] = next((found for place in places if (found := getattr(place, "eos_token_id", None)) is not None), [])
    return frozenset(token for token in ([told] if isinstance(told, int) else told) if 0 <= token < text.vocab_size)


def use_container_threads() -> int:
    """Let torch use the CPUs that the container may use, or fewer when OMP_NUM_THREADS says so; returns their number."""
    count: int = min(container.cpu_count(), torch.get_num_threads())
    torch.set_num_threads(count)
    return count


def _device(wanted: Device, fallback: bool) -> torch.device:  # noqa: FBT001
    if wanted is Device.cpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if not fallback:
        hint = "DEVICE=cuda, but torch sees no GPU; check the driver and the pod's accelerator request, or set DEVICE=cpu"
        raise CannotServe("find", "CUDAUnavailable", hint)
    log.warning("DEVICE=cuda, but torch sees no GPU: serving on the CPU")
    return torch.device("cpu")


def choose_dtype(wanted: DType, stored: torch.dtype | None, *, cuda: bool, native_bfloat16: bool) -> torch.dtype:
    """`auto` keeps the type in which the model was saved where the device computes it at speed.

    On a GPU everything becomes bfloat16 (float16 before Ampere). On a CPU half-precision weights stay half only with bfloat16
    instructions, else they become float32; float32 weights stay as they are, because they belong to small models whose owner
    wants exact answers, and DTYPE=bfloat16 is one word away. What is asked for by name is done, fast or not.
    """
    if wanted is not DType.auto:
        kind: torch.dtype = getattr(torch, wanted.value)
        return kind
    if cuda:
        return torch.bfloat16 if native_bfloat16 else torch.float16
    half = stored in (torch.bfloat16, torch.float16)
    return torch.bfloat16 if half and native_bfloat16 else torch.float32


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return packed.can_pack(torch.bfloat16, device)


def _free_memory(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else container.free_memory()


def _require_memory(checkpoint: Checkpoint, text: Any, kind: torch.dtype, device: torch.device) -> None:  # noqa: ANN401
    """Refuse what would not fit before the kernel ends the process without a word."""
    numbers = sum(count for name, count in checkpoint.elements.items() if name in FLOATS)
    if getattr(text, "tie_word_embeddings", False) and packed.can_pack(kind, device):
        numbers += text.vocab_size * text.hidden_size
    needed, free = numbers * kind.itemsize, _free_memory(device)
    if needed > free:
        where, remedy = ("on the GPU", "choose a larger one") if device.type == "cuda" else ("in memory", "raise the memory limit")
        smaller = "" if kind.itemsize < torch.float32.itemsize else " or set DTYPE=bfloat16"
        name = str(kind).removeprefix("torch.")
        hint = f"the weights take {needed / 1e6:.1f} MB as {name}, and {free / 1e6:.1f} MB are free {where}; {remedy}{smaller}"
        raise CannotServe("load", "OutOfMemory", hint)


def _take_ownership(model: Any) -> None:  # noqa: ANN401
    """Copy what is still a view of the weights' file: its pages count as free memory, are read again from disk when memory gets
    scarce, and end the process when the file is changed."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _weights(checkpoint: Checkpoint, config: Any, dtype: torch.dtype, report: Report) -> Any:  # noqa: ANN401
    previous = transformers.logging.set_tqdm_hook(_reporting(report))
    try:
        model, notes = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a damaged file raises whatever the reader at hand raises
        if isinstance(error, KeyError) and ATTENTION in error.args:
            raise unsupported(f"model_type {config.model_type!r} does not use transformers' attention interface") from error
        cause = "OutOfMemory" if "allocate memory" in str(error) else "InvalidModel"
        raise CannotServe("load", cause, f"the weights cannot be loaded: {first_line(error)}") from error
    finally:
        transformers.logging.set_tqdm_hook(previous)
    wrong = sorted(notes["missing_keys"]) + sorted(str(key) for key in notes["mismatched_keys"])
    if wrong:
        raise CannotServe("load", "InvalidModel", f"the weights lack {len(wrong)} tensors that config.json asks for, such as {wrong[0]}")
    return model


def _reporting(report: Report) -> Callable[..., Any]:
    """transformers shows its progress by tqdm; we pass it on instead of drawing it."""

    class Reporter:
        def __init__(self, items: Any = (), **_: object) -> None:  # noqa: ANN401
            self._items = items

        def __iter__(self) -> Iterator[Any]:
            total = len(self._items)
            for done, item in enumerate(self._items, 1):
                yield item
                report("load", done, total)

    return lambda _factory, args, kwargs: Reporter(*args, **kwargs)
