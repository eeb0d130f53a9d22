"""Answers that a JSON Schema accepts: which tokens may come next, by llguidance, whose work per token and per schema is limited here.

A schema is somebody else's program. Some schemas take minutes to compile, whatever the library's own limits say, so that the front has
each one compiled once by a process that it can kill (`schemas`); what went well there takes as little here. Knows neither torch nor text.
"""

import time
from collections.abc import Callable
from functools import lru_cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

REMEMBERED = 8
"""Compiled schemas, for copies and for who asks again."""
WHITESPACE = r"[ \n\r\t]{0,32}"
"""Between two parts of the JSON: enough for any layout, and no answer consists of it."""
LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=100_000,
    step_max_items=200_000,
    max_lexer_states=20_000,
    max_grammar_size=50_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
"""About 10 ms for a token at worst, and some ten megabytes."""
FIRST_SECONDS = 0.2
SECONDS_PER_TOKEN = 0.002
"""Processor time that the choice of an answer's tokens may take: everybody in the batch waits for it. Usual schemas need a tenth."""


class BadGrammar(Exception):
    """The schema cannot be compiled, or an answer cannot go on; in words for the client."""


class Grammar:
    """One answer's place in its schema."""

    def __init__(self, matcher: LLMatcher, *, clock: Callable[[], float] = time.thread_time) -> None:
        self._matcher = matcher
        self._clock = clock
        self._left = FIRST_SECONDS

    def allowed(self) -> bytes:
        """A bit for each token id, the lowest one first: whether it may come next. The end of the answer is among them where the JSON may
        be complete. Raises BadGrammar."""
        started = self._clock()
        bits: bytes = self._matcher.compute_bitmask()
        self._left += SECONDS_PER_TOKEN + started - self._clock()
        _check(self._matcher)
        if self._left < 0:
            raise BadGrammar("its schema takes too long for each token; make its patterns and alternatives simpler")
        return bits

    def accept(self, token: int) -> bool:
        """Go on with this token. Returns whether nothing more can come. Raises BadGrammar when it was not allowed."""
        self._matcher.consume_token(token)
        _check(self._matcher)
        return self._matcher.is_stopped()


class Grammars:
    """Schemas over one vocabulary."""

    def __init__(self, tokens: LLTokenizer) -> None:
        self._tokens = tokens
        self._compiled = lru_cache(REMEMBERED)(self._compile)

    def compile(self, schema: str) -> Grammar:
        """The beginning of an answer that this JSON Schema accepts. Raises BadGrammar."""
        return Grammar(self._compiled(schema).deep_copy())

    def _compile(self, schema: str) -> LLMatcher:
        try:
            # The empty options keep a schema from setting its own.
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE, "lenient": False})
        except ValueError as error:
            raise BadGrammar(str(error)) from None
        matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=LIMITS)
        _check(matcher)
        return matcher


def tokens_of(tokenizer: str, *, vocabulary: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """A model's tokens; `tokenizer` is the content of tokenizer.json. Raises BadGrammar when the library cannot spell them."""
    eos = sorted(eos_token_ids) or None
    try:
        return LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=eos)
    except ValueError:
        pass  # it may know more tokens than the model
    try:
        return LLTokenizer(tokenizer, eos_token=eos)
    except ValueError as error:
        raise BadGrammar(f"its tokens cannot be matched with a grammar: {str(error)[:200]}") from None


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise BadGrammar(matcher.get_error().partition("\n")[0])
