"""A tiny random Llama with a byte-level tokenizer, saved as a user would find it: safetensors, tokenizer.json, chat template.

Its weights are drawn wide, so that logits are far apart and a different summation order cannot change the greedy token. Token ids
0…255 are bytes; the special tokens follow.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig

BYTES = 256
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_TOKEN_ID = BYTES
VOCABULARY = BYTES + len(SPECIAL_TOKENS)
MAX_LENGTH = 512
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path, **overrides: Any) -> Path:  # noqa: ANN401
    """Save the Llama, with fields of its config overridden. Returns the folder."""
    return save(config("Llama", **{"tie_word_embeddings": False, "eos_token_id": EOS_TOKEN_ID, **overrides}), folder)


def config(family: str, **fields: Any) -> PreTrainedConfig:  # noqa: ANN401
    """The tiny shape in any of transformers' families, such as "GPT2"."""
    return getattr(transformers, f"{family}Config")(**{**SHAPE, **fields})


def save(config: PreTrainedConfig, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save any architecture with random weights and the byte-level tokenizer. Returns the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    description = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[0],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(description))
    return folder


def tokenizer() -> Tokenizer:
    """One token per byte, no merges, special tokens recognised in text."""
    result = Tokenizer(models.BPE(vocab=_byte_letters(), merges=[]))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return result


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte: printable Latin-1 stands for itself, the rest is shifted past 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [byte for byte in range(BYTES) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(BYTES + index): byte for index, byte in enumerate(shifted)}
    return dict(sorted(letters.items(), key=lambda item: item[1]))
