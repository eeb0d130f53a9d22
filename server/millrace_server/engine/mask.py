"""A grammar as the sampling sees it: logits of tokens that must not come next become -inf."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from millrace_server.engine.grammar import BadGrammar, Grammar, Grammars, tokens_of

FORBIDDEN = float("-inf")


class GrammarMask:
    """Asking it twice changes nothing, so that a step may be repeated; only `accept` moves it."""

    def __init__(self, grammar: Grammar) -> None:
        self.failure: str | None = None
        self._grammar = grammar

    def forbid(self, logits: Tensor) -> None:
        """Of one row [vocabulary], in place. A grammar that cannot go on forbids everything, and `failure` says why."""
        try:
            allowed = self._grammar.allowed()
        except BadGrammar as error:
            self.failure = str(error)
            logits.fill_(FORBIDDEN)
            return
        packed = torch.frombuffer(bytearray(allowed), dtype=torch.uint8).to(logits.device)
        bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device) & 1
        known = bits.flatten()[: len(logits)] == 0
        logits[: len(known)].masked_fill_(known, FORBIDDEN)
        logits[len(known) :] = FORBIDDEN

    def accept(self, token: int) -> bool:
        return self._grammar.accept(token)


def schema_compiler(folder: Path, *, vocabulary: int, eos_token_ids: frozenset[int]) -> Callable[[str], GrammarMask]:
    """From a JSON Schema to the mask of an answer that it accepts, by the tokenizer in the model's folder. Raises OSError, BadGrammar."""
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    grammars = Grammars(tokens_of(tokenizer, vocabulary=vocabulary, eos_token_ids=eos_token_ids))
    return lambda schema: GrammarMask(grammars.compile(schema))
