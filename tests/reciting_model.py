"""A model that writes what it is told, whatever it is asked: which text depends on how many tokens the prompt has.

A GPT-2 without attention or words: each position's embedding is the token that comes next. So real generation, tokenizer, template and
HTTP can be tested on answers that random weights would never give.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import fake_model

STRIDE = 512
"""Tokens of the prompt that are answered by text 0; twice as many by text 1, and so on."""
LONGEST_TEXT = STRIDE
HIDDEN = 264
"""One direction for each token."""


def build(folder: Path, texts: Sequence[str], *, specials: Sequence[str], settings: Mapping[str, object]) -> Path:
    """Save it; `specials` follow fake_model's tokens, `settings` go into tokenizer_config.json."""
    tokenizer = fake_model.tokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    vocabulary = tokenizer.get_vocab_size()
    positions = STRIDE * (len(texts) + 1)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=HIDDEN,
        n_head=4,
        n_layer=1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=fake_model.EOS_TOKEN_ID,
    )
    model: Any = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if name.endswith("ln_f.weight") else 0.0)
        model.lm_head.weight.copy_(torch.eye(HIDDEN)[:vocabulary])
        model.transformer.wpe.weight[:, fake_model.EOS_TOKEN_ID] = 1.0
        for number, text in enumerate(texts):
            _recite(model.transformer.wpe.weight, (number + 1) * STRIDE, _tokens(tokenizer, text))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    description = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": fake_model.SPECIAL_TOKENS[0], **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(description))
    return folder


def _tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens: list[int] = tokenizer.encode(text).ids
    assert len(tokens) < LONGEST_TEXT
    return tokens


def _recite(embeddings: torch.Tensor, prompt_tokens: int, tokens: Sequence[int]) -> None:
    for place, token in enumerate(tokens, start=prompt_tokens - 1):
        embeddings[place] = 0.0
        embeddings[place, token] = 1.0
