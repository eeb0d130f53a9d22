"""What clients of OpenAI's API get: whole answers, and the events of a stream."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    """Of every prompt, once."""
    completion_tokens: int
    """Of all answers, those that became part of a stop string among them."""
    total_tokens: int


class LikelyToken(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLikelihood(LikelyToken, frozen=True, kw_only=True):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: list[TokenLikelihood]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """One entry per token in each list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Characters of the choice's text before the token's own."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What every reply and every event says of itself."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str
    """Changes with the model's revision and its chat template."""


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    """None in all events but a choice's last."""


class Completion(Reply, frozen=True, kw_only=True):
    """A whole answer, and in the same shape an event of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    """In streams only when asked for: null in all events but the last."""


class Function(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: str
    """JSON."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: Function


class CallDelta(Call, frozen=True, kw_only=True):
    """A whole call."""

    index: int


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    """None when there are calls and no text."""
    tool_calls: list[Call] | UnsetType = UNSET
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(Reply, frozen=True, kw_only=True):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(Reply, frozen=True, kw_only=True):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    """Only when asked for: null in all events but the last."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    """Seconds since 1970: the server's start."""
    owned_by: str = "millrace"
    max_model_len: int | None
    """Tokens of prompt and answer together; null while the model is loaded."""


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]
