"""From a model's folder to its runner: what can be served at all, on which device, in which type, and the weights.

Any decoder-only architecture works that reaches its attention through transformers' attention interface.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from millrace_server.engine import container
from millrace_server.engine.checkpoint import Checkpoint, Report
from millrace_server.engine.failure import CannotServe, unsupported
from millrace_server.engine.runner import ATTENTION, Facts, Runner
from millrace_server.settings import Device, DType

FITTING_LAYERS = {"full_attention", "sliding_attention"}
LENGTH_DEPENDENT_ROPES = {"dynamic", "longrope"}
"""Rotary frequencies that change with the longest row of a batch; below the original length they do not."""

log = logging.getLogger(__name__)


def load(checkpoint: Checkpoint, *, device: Device, device_fallback: bool, dtype: DType, max_length: int | None, report: Report) -> Runner:
    """Build the model and its runner. Raises CannotServe."""
    where = _device(device, device_fallback)
    config = _config(checkpoint)
    text = config.get_text_config()
    limit = _length_limit(text)
    if max_length is not None and max_length > limit:
        raise CannotServe("inspect", "InvalidMaxLength", f"MAX_LENGTH={max_length} exceeds the model's own limit of {limit}")
    kind = _dtype(dtype, text.dtype, where)
    try:
        model = _weights(checkpoint, config, kind, report).to(where).eval()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise CannotServe("load", "OutOfMemory", f"the weights do not fit into memory ({error}); raise the memory limit") from error
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None) or text.eos_token_id or []
    facts = Facts(
        device=str(where),
        dtype=str(kind).removeprefix("torch."),
        max_length=max_length or limit,
        vocabulary=text.vocab_size,
        eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos),
    )
    free = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else container.free_memory()
    return Runner(model, facts=facts, free_memory=free)


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


def _dtype(wanted: DType, stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """`auto` keeps the type in which the model was saved where the device computes it at speed.

    On a GPU everything becomes bfloat16 (float16 before Ampere). On a CPU half-precision weights stay half only with bfloat16
    instructions, else they become float32; float32 weights stay as they are, because they belong to small models whose owner
    wants exact answers, and DTYPE=bfloat16 is one word away.
    """
    if wanted is not DType.auto:
        kind: torch.dtype = getattr(torch, wanted.value)
        return kind
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    half = stored in (torch.bfloat16, torch.float16)
    return torch.bfloat16 if half and torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def _config(checkpoint: Checkpoint) -> Any:  # noqa: ANN401
    """The model's configuration, or CannotServe when no servable class of transformers has it."""
    kind = checkpoint.config["model_type"]
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError) as error:
        if kind in transformers.CONFIG_MAPPING:
            raise CannotServe("inspect", "InvalidModel", f"config.json is refused: {_first_line(error)}") from error
        raise unsupported(f"model_type {kind!r} is unknown to transformers {transformers.__version__}") from error
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        raise unsupported(f"model_type {kind!r} does not generate text")
    layers = set(getattr(config.get_text_config(), "layer_types", None) or ()) - FITTING_LAYERS
    if layers:
        raise unsupported(f"{model_class.__name__} has layers of another kind: {', '.join(sorted(layers))}")
    return config


def _length_limit(text: Any) -> int:  # noqa: ANN401
    """Tokens that the model can hold."""
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise unsupported("config.json names no max_position_embeddings")
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in ropes.values() if all(isinstance(rope, dict) for rope in ropes.values()) else [ropes]:
        if rope.get("rope_type") in LENGTH_DEPENDENT_ROPES:
            limit = min(limit, rope.get("original_max_position_embeddings") or limit)
    return limit


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
        raise CannotServe("load", cause, f"the weights cannot be loaded: {_first_line(error)}") from error
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
