"""What a config.json may be for its model to be served: a decoder-only architecture with attention that we compute, and a length.

These refusals cost nothing and have names. What a config.json does not tell is found out by `proof` once the model is built.
"""

from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from millrace_server.engine.checkpoint import Checkpoint
from millrace_server.engine.failure import CannotServe, unsupported

FITTING_LAYERS = {"full_attention", "sliding_attention"}
LENGTH_DEPENDENT_ROPES = {"dynamic", "longrope"}
"""Rotary frequencies that change with the longest row of a batch; below the original length they do not."""
MOST_TOKENS = 1 << 26
"""No model is longer, and some build tables of this many rows before anything else."""


def read_config(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - transformers is untyped
    """The model's configuration. Raises CannotServe when no servable class of transformers has it."""
    kind = checkpoint.config["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        own_code = ", and code that comes with a model is never run" if "auto_map" in checkpoint.config else ""
        raise unsupported(f"model_type {kind!r} is unknown to transformers {transformers.__version__}{own_code}")
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # every class of transformers checks its own fields in its own way
        raise CannotServe("inspect", "InvalidModel", f"config.json is refused: {first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise unsupported(f"model_type {kind!r} is an encoder with a decoder")
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        raise unsupported(f"model_type {kind!r} does not generate text")
    text = config.get_text_config()
    if not isinstance(text, PreTrainedConfig):
        raise CannotServe("inspect", "InvalidModel", "config.json has a text_config that transformers does not know")
    layers = set(getattr(text, "layer_types", None) or ()) - FITTING_LAYERS
    if layers:
        raise unsupported(f"{model_class.__name__} has layers of another kind: {', '.join(sorted(layers))}")
    return config


def length_limit(config: Any) -> int:  # noqa: ANN401
    """Tokens that the model can hold. Raises CannotServe."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        raise unsupported(f"model_type {text.model_type!r} has no max_position_embeddings: it counts positions in another way")
    if not isinstance(limit, int) or not 1 <= limit <= MOST_TOKENS:
        hint = f"config.json says max_position_embeddings={str(limit)[:40]}; it must be from 1 to {MOST_TOKENS}"
        raise CannotServe("inspect", "InvalidModel", hint)
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in ropes.values() if all(isinstance(rope, dict) for rope in ropes.values()) else [ropes]:
        if rope.get("rope_type") in LENGTH_DEPENDENT_ROPES:
            limit = min(limit, rope.get("original_max_position_embeddings") or limit)
    return limit


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a status."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
