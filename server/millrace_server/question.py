"""What is asked of the model, whichever route it came by: prompts, how to answer them, and until when."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from millrace_server.engine.messages import Sampling
from millrace_server.errors import BadRequest, ContextTooLong


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A prompt that the model's chat template writes."""

    messages: Sequence[Mapping[str, object]]
    variables: Mapping[str, object]
    """What the client tells the template beside the messages."""
    tools: Sequence[Mapping[str, object]] = ()
    """What the model may call."""


Prompt = str | list[int] | Conversation
"""Text, token ids, or messages."""


@dataclass(frozen=True, kw_only=True)
class Question:
    prompts: Sequence[Prompt]
    copies: int = 1
    """Answers to each prompt."""
    max_tokens: int | None
    """Of each answer. None: `default_max_tokens`, or what the context leaves when that is less."""
    default_max_tokens: int | None
    """None: all that the context leaves."""
    sampling: Sampling
    stop: tuple[str, ...] = ()
    """Strings; the first one that an answer completes ends it and is no part of it."""
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    priority: int = 0
    is_streamed: bool = False
    """Whether the text is wanted as it comes; reading it once at the end costs a tenth."""

    use_cache: bool | None = None
    """Whether the answers may come from the cache and stay there. None: if they are greedy."""

    @property
    def answers(self) -> int:
        return len(self.prompts) * self.copies

    def is_greedy(self) -> bool:
        return self.sampling.temperature == 0

    def essence(self) -> "Question":
        """The same for questions whose answers are: without what a greedy choice does not look at, and how or when the answers are told."""
        sampling = self.sampling
        if self.is_greedy():
            plain = Sampling()
            sampling = msgspec.structs.replace(sampling, top_k=plain.top_k, min_p=plain.min_p, top_p=plain.top_p, seed=plain.seed)
        return replace(self, sampling=sampling, priority=0, is_streamed=False, use_cache=None)


@dataclass(frozen=True, kw_only=True)
class Call:
    """Who asks, and how long the answer may take."""

    request_id: str
    arrived: float
    """Monotonic time."""
    timeout: float
    """Seconds from the arrival to the last token."""
    tenant: str = ""
    is_welcome: bool = True
    """False for a request that came too late for a draining server."""

    @property
    def deadline(self) -> float:
        return self.arrived + self.timeout


def fit(prompt_tokens: int, question: Question, *, max_length: int, field: str = "prompt") -> int:
    """The tokens to generate, at least one. `field` is where the prompt came from. Raises ContextTooLong with both numbers."""
    left = max_length - prompt_tokens
    wanted = question.max_tokens
    if wanted is None:
        wanted = max(1, left if question.default_max_tokens is None else min(question.default_max_tokens, left))
    if prompt_tokens == 0:
        raise ContextTooLong(f"{field} has no tokens; send at least one character that the model's tokenizer knows", param=field)
    if wanted > left:
        raise ContextTooLong(
            f"{field} has {prompt_tokens} tokens and max_tokens is {wanted}: together more than the model's limit of {max_length}",
            param=field if left < 1 else "max_tokens",
        )
    if question.sampling.min_tokens > wanted:
        raise BadRequest(
            f"min_tokens is refused: {question.sampling.min_tokens} is more than max_tokens, which is {wanted}", param="min_tokens"
        )
    return wanted


def check_token_ids(tokens: Iterable[int], *, vocabulary: int, field: str) -> None:
    """Raises BadRequest."""
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise BadRequest(f"{field} is refused: {token} is no token id of this model; they go from 0 to {vocabulary - 1}", param=field)
