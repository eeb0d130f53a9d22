"""What clients of OpenAI's API send. Every field may be null, which means unset; a field that is not listed here is refused."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from millrace_server.engine.messages import MOST_LISTED_TOKENS, MOST_LOGPROBS
from millrace_server.protocol import LARGEST_INTEGER

MAX_ANSWERS = 64
"""Of one request, over all its prompts."""
MAX_TOOLS = 128
"""That a model may call, and calls of one message."""
MOST_URGENT, LEAST_URGENT = -100, 100

Count = Annotated[int, Meta(ge=1, le=LARGEST_INTEGER)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Label = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], Label], Meta(max_length=16)]
"""With OpenAI's own bounds."""
TokenID = Annotated[int, Meta(ge=0, le=LARGEST_INTEGER)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    """One more event, with the usage, before the end."""
    include_obfuscation: bool | None = None
    """Padding against listeners who count bytes; there is none."""


class SamplingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both ways to ask have in common."""

    model: str
    max_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=LARGEST_INTEGER)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: Annotated[list[TokenID], Meta(max_length=MOST_LISTED_TOKENS)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    """Unset: 1."""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=LARGEST_INTEGER)] | None = None
    """0 and -1: all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=2)] | None = None
    """Logits are divided by it: by less they would overflow."""
    logit_bias: Annotated[dict[int, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MOST_LISTED_TOKENS)] | None = None
    """Token id → what is added to its logit."""
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    priority: Annotated[int, Meta(ge=MOST_URGENT, le=LEAST_URGENT)] | None = None
    """Lower goes first. Unset: 0."""
    use_cache: bool | None = None
    """Unset: greedy answers are cached. True: sampled ones too. False: neither read nor written."""

    # Accepted and without effect: none of them could change an answer.
    user: Label | None = None
    metadata: Metadata | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    store: bool | None = None
    service_tier: Label | None = None


class CompletionRequest(SamplingRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | list[str | TokenID | list[TokenID]]
    """A text, token ids, or a list of either."""
    echo: bool | None = None
    """Whether the text begins with the prompt."""
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    """How many of the likeliest tokens to report beside each token of the answer."""

    suffix: object = None
    best_of: object = None


class TextPart(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    text: str | None = None


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    arguments: str
    """A JSON object."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ToolFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, object] | None = None
    """JSON Schema; described to the model, not enforced."""
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: ToolFunction


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None

    refusal: object = None
    annotations: object = None
    audio: object = None
    function_call: object = None


class JSONSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: msgspec.Raw
    """Not parsed here: whoever compiles it does."""
    description: str | None = None
    strict: bool | None = None
    """Every schema is followed strictly."""


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class ChatRequest(SamplingRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    """The newer name of max_tokens. Unset: what the context leaves."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    response_format: ResponseFormat | None = None

    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, object] | None = None
    """auto or none."""
    parallel_tool_calls: bool | None = None

    functions: object = None
    function_call: object = None
    modalities: object = None
    audio: object = None
    prediction: object = None
    reasoning_effort: object = None
    verbosity: object = None
    web_search_options: object = None
