"""The model runner: computes a step's chunks and samples their next tokens.

It alone knows the weights, the KV cache's layout and the device. Any decoder-only architecture works that reaches its attention
through transformers' attention interface: the runner registers its own attention there and leaves the rest of the model as it is.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from millrace_server.engine import container, sampling
from millrace_server.engine.checkpoint import Checkpoint, Report
from millrace_server.engine.failure import CannotServe
from millrace_server.engine.kv import KVCache, Rules
from millrace_server.engine.messages import Submit
from millrace_server.engine.scheduler import Chunk
from millrace_server.engine.sequence import Sequence
from millrace_server.settings import Device, DType

ATTENTION = "slot"
"""Our attention's name in transformers' registry. Unknown to its mask registry, so that no mask is built: we have our own."""
KV_SHARE = 0.8
"""Of the memory that is free once the weights are loaded, for keys and values; the rest is for a step's own tensors."""
LANE_SLACK = 2
"""Lanes double their rows when full, so they may hold twice what is in use."""
FITTING_LAYERS = {"full_attention", "sliding_attention"}
LENGTH_DEPENDENT_ROPES = {"dynamic", "longrope"}
"""Rotary frequencies that change with the longest row of a batch; below the original length they do not."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a loaded model is, as far as anything outside the runner needs it."""

    device: str
    dtype: str
    max_length: int
    vocabulary: int
    eos_token_ids: frozenset[int]


class Runner:
    """Computes chunks, one forward pass per step; holds the KV cache of every sequence until it is released."""

    def __init__(self, model: Any, *, facts: Facts, free_memory: int) -> None:  # noqa: ANN401 - transformers is untyped
        self.facts = facts
        self._device = torch.device(facts.device)
        self._model = model
        self._kv = KVCache(facts.max_length, self._device)
        self._keeps_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        for module in model.modules():
            if hasattr(module, "layer_idx"):
                module.millrace_kv = self._kv
        bytes_per_token = self._measure()
        self.kv_tokens = int(free_memory * KV_SHARE) // (bytes_per_token * LANE_SLACK)
        """What the memory holds, in the units of `reserve`."""
        if self.kv_tokens < self.reserve(facts.max_length):
            needed = self.reserve(facts.max_length) * bytes_per_token * LANE_SLACK / KV_SHARE
            hint = (
                f"one request of {facts.max_length} tokens needs {needed / 1e6:.0f} MB for its KV cache, and {free_memory / 1e6:.0f} MB"
                f" are free; lower MAX_LENGTH to {self.kv_tokens // 2} or raise the memory limit"
            )
            raise CannotServe("allocate", "OutOfMemory", hint)

    def reserve(self, tokens: int) -> int:
        """KV tokens that a sequence of this final length may come to occupy."""
        return self._kv.capacity(tokens)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run(self, chunks: tuple[Chunk, ...]) -> list[int]:
        """Compute the chunks. Returns the next token of each one that samples, in the given order (INVALID_TOKEN: NaN)."""
        laid_out = self._kv.begin(chunks)
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for chunk in laid_out:
            ids += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            if chunk.samples:
                last.append(len(ids) - 1)
        logits = self._forward(
            torch.tensor([ids, positions], device=self._device), torch.tensor(last, dtype=torch.long, device=self._device)
        )
        self._kv.end(laid_out)
        sequences = [chunk.sequence for chunk in laid_out if chunk.samples]
        tokens = dict(zip(sequences, sampling.sample(logits, sequences), strict=True)) if sequences else {}
        return [tokens[chunk.sequence] for chunk in chunks if chunk.samples]

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def release(self, sequence: Sequence) -> None:
        """Forget a sequence's keys and values."""
        self._kv.release(sequence)

    def bytes_held(self) -> int:
        """Memory that keys and values take now."""
        return self._kv.bytes_held()

    def _forward(self, inputs: Tensor, last: Tensor) -> Tensor:
        ids, positions = inputs[:, None]
        keep = {"logits_to_keep": last} if self._keeps_last else {}
        logits: Tensor = self._model(input_ids=ids, position_ids=positions, use_cache=False, **keep).logits[0]
        return logits if self._keeps_last else logits[last]

    def _measure(self) -> int:
        """KV bytes per token, from a first token that goes all the way; proves that every layer attends through us."""
        request = Submit(request_id="", prompt=[0], max_tokens=1, temperature=0, top_p=1, deadline=0)
        sequence = Sequence(request, seed=0, arrived=0)
        try:
            self.run((Chunk(sequence, 0, 1),))
            layers, expected = self._kv.layers(sequence), self._model.config.get_text_config().num_hidden_layers
            if layers != expected:
                raise _unsupported(f"{layers} of {expected} layers use attention with a KV cache of their own")
            return self._kv.bytes_held() // self._kv.capacity(1)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _unsupported(f"its forward pass does not fit ({type(error).__name__}: {error})") from error
        finally:
            self.release(sequence)


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
        raise _unsupported(f"model_type {kind!r} is unknown to transformers {transformers.__version__}") from error
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        raise _unsupported(f"model_type {kind!r} does not generate text")
    layers = set(getattr(config.get_text_config(), "layer_types", None) or ()) - FITTING_LAYERS
    if layers:
        raise _unsupported(f"{model_class.__name__} has layers of another kind: {', '.join(sorted(layers))}")
    return config


def _length_limit(text: Any) -> int:  # noqa: ANN401
    """Tokens that the model can hold."""
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise _unsupported("config.json names no max_position_embeddings")
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
            raise _unsupported(f"model_type {config.model_type!r} does not use transformers' attention interface") from error
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


def _unsupported(why: str) -> CannotServe:
    return CannotServe("inspect", "UnsupportedArchitecture", f"{why}; choose a decoder-only model such as Llama, Qwen, Mistral or GPT-2")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _attend(  # noqa: PLR0913 - the signature is transformers'
    module: Any,  # noqa: ANN401
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, tokens, size] in, [1, tokens, heads, size] out."""
    if s_aux is not None:
        raise _unsupported("attention sinks are not supported")
    rules = Rules(scaling=query.shape[-1] ** -0.5 if scaling is None else scaling, window=sliding_window, softcap=softcap)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return module.millrace_kv.attend(module.layer_idx, query, key, value, rules)[None], None


AttentionInterface.register(ATTENTION, _attend)
