"""From what a client of OpenAI's API sends to the question that it asks. Raises BadRequest with the field and the limit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from millrace_server.chat.template import check
from millrace_server.engine.messages import Sampling
from millrace_server.errors import BadRequest, ModelNotFound
from millrace_server.openai.requests import (
    MAX_ANSWERS,
    ChatRequest,
    CompletionRequest,
    Message,
    SamplingRequest,
    TokenID,
    ToolCall,
    ToolFunction,
)
from millrace_server.openai.unsupported import MESSAGE_FIELDS, REQUEST_FIELDS, refuse
from millrace_server.protocol import SMALLEST_TEMPERATURE, stop_strings
from millrace_server.question import Conversation, Prompt, Question

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's own."""
ANY_OBJECT = '{"type":"object"}'
"""The schema of `json_object`."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How the answer is told, whatever it says."""

    is_streamed: bool
    has_usage_event: bool
    top_logprobs: int | None
    """None: no log probabilities."""
    echo: bool = False

    @property
    def no_usage(self) -> UnsetType | None:
        """What an event says of the usage when it is not the last."""
        return None if self.has_usage_event else UNSET


def known_model(name: str, *, served: Sequence[str]) -> None:
    """`served` begins with the model's own name. Raises ModelNotFound."""
    if name not in served:
        raise ModelNotFound(f"{name[:200]!r} is not served here; the model is {served[0]!r}", param="model")


def completion(request: CompletionRequest) -> tuple[Question, Manner]:
    refuse(request, REQUEST_FIELDS)
    prompts = _prompts(request.prompt)
    if request.echo and request.logprobs is not None:
        raise BadRequest("logprobs is not supported with echo: leave one of them out", param="logprobs")
    manner = _manner(request, request.logprobs, echo=bool(request.echo))
    return _question(request, prompts, request.max_tokens, DEFAULT_COMPLETION_TOKENS, manner), manner


def chat(request: ChatRequest) -> tuple[Question, Manner]:
    refuse(request, REQUEST_FIELDS)
    messages = [_message(message, f"messages[{number}].") for number, message in enumerate(request.messages)]
    variables = request.chat_template_kwargs or {}
    check(messages, variables)
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs is refused: it needs logprobs to be true", param="top_logprobs")
    manner = _manner(request, (request.top_logprobs or 0) if request.logprobs else None)
    conversation = Conversation(messages=messages, variables=variables, tools=_tools(request))
    question = _question(request, [conversation], _max_tokens(request), None, manner)
    if schema := _schema(request):
        question = replace(question, sampling=msgspec.structs.replace(question.sampling, schema=schema))
    return question, manner


def _schema(request: ChatRequest) -> str | None:
    """The JSON Schema that the answer must satisfy."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    for name in ("ignore_eos", "min_tokens"):
        if getattr(request, name):
            raise BadRequest(f"{name} is refused: with response_format an answer ends when its JSON is complete; leave it out", param=name)
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.json_schema is None:
        raise BadRequest("response_format.json_schema is missing; it holds a name and a schema", param="response_format.json_schema")
    return bytes(wanted.json_schema.schema).decode()


def _prompts(prompt: str | list[str | TokenID | list[TokenID]]) -> list[Prompt]:
    if isinstance(prompt, str):
        return [prompt]
    tokens = [item for item in prompt if isinstance(item, int)]
    texts = [item for item in prompt if isinstance(item, str)]
    lists = [item for item in prompt if isinstance(item, list)]
    if not prompt or len(prompt) not in (len(tokens), len(texts), len(lists)):
        raise BadRequest("prompt is refused: it must be a text, token ids, or a list of either, and not empty", param="prompt")
    return [tokens] if tokens else [*texts, *lists]


def _message(message: Message, where: str) -> dict[str, object]:
    """As the chat template reads it."""
    refuse(message, MESSAGE_FIELDS, where=where)
    content = message.content
    calls = [_call(call, f"{where}tool_calls[{number}].") for number, call in enumerate(message.tool_calls or ())]
    if content is None and calls:
        content = ""
    if content is None:
        raise BadRequest(f"{where}content is missing; send a text, which may be empty", param=f"{where}content")
    if not isinstance(content, str):
        content = "\n".join(_text(part.type, part.text, where) for part in content)
    read: dict[str, object] = {"role": message.role, "content": content}
    optional = {"name": message.name, "tool_call_id": message.tool_call_id, "tool_calls": calls or None}
    return read | {name: value for name, value in optional.items() if value is not None}


def _call(call: ToolCall, where: str) -> dict[str, object]:
    """As templates read it: with its arguments as an object, not as a text."""
    try:
        arguments = msgspec.json.decode(call.function.arguments, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        field = f"{where}function.arguments"
        raise BadRequest(f"{field} is refused: it must be a JSON object, as a text", param=field) from None
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _tools(request: ChatRequest) -> list[dict[str, object]]:
    """As the chat template reads them; none when the model must not call any."""
    if not request.tools or request.tool_choice == "none":
        return []
    if request.parallel_tool_calls is False:
        raise BadRequest("parallel_tool_calls is not supported with false: the model decides; leave it out", param="parallel_tool_calls")
    if _schema(request):
        raise BadRequest("tools is not supported with response_format: leave one of them out", param="tools")
    return [_described(tool.function) for tool in request.tools]


def _described(function: ToolFunction) -> dict[str, object]:
    given = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}


def _text(kind: str, text: str | None, where: str) -> str:
    if kind != "text" or text is None:
        raise BadRequest(
            f"{where}content is refused: its parts must be of type text, this model reads nothing else", param=f"{where}content"
        )
    return text


def _max_tokens(request: ChatRequest) -> int | None:
    older, newer = request.max_tokens, request.max_completion_tokens
    if older is not None and newer is not None and older != newer:
        raise BadRequest("max_completion_tokens and max_tokens mean the same and differ: leave one of them out", param="max_tokens")
    return newer if newer is not None else older


def _manner(request: SamplingRequest, top_logprobs: int | None, *, echo: bool = False) -> Manner:
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options is refused: it needs stream to be true", param="stream_options")
    return Manner(
        is_streamed=bool(request.stream),
        has_usage_event=request.stream_options is not None and bool(request.stream_options.include_usage),
        top_logprobs=top_logprobs,
        echo=echo,
    )


def _question(
    request: SamplingRequest, prompts: Sequence[Prompt], max_tokens: int | None, default_max_tokens: int | None, manner: Manner
) -> Question:
    copies = request.n or 1
    if len(prompts) * copies > MAX_ANSWERS:
        raise BadRequest(
            f"prompt is refused: {len(prompts)} prompts with n={copies} are more than the limit of {MAX_ANSWERS} answers", param="prompt"
        )
    return Question(
        prompts=prompts,
        copies=copies,
        max_tokens=max_tokens,
        default_max_tokens=default_max_tokens,
        sampling=_sampling(request, manner.top_logprobs),
        stop=stop_strings(request.stop),
        stop_token_ids=request.stop_token_ids or (),
        ignore_eos=bool(request.ignore_eos),
        priority=request.priority or 0,
        is_streamed=manner.is_streamed,
        use_cache=request.use_cache,
    )


def _sampling(request: SamplingRequest, logprobs: int | None) -> Sampling:
    given: dict[str, Any] = {
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k if request.top_k != -1 else None,
        "min_p": request.min_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "repetition_penalty": request.repetition_penalty,
        "logit_bias": request.logit_bias,
        "min_tokens": request.min_tokens,
        "seed": None if request.seed is None else request.seed % 2**64,
        "logprobs": logprobs,
    }
    if given["temperature"] < SMALLEST_TEMPERATURE:
        given["temperature"] = 0.0
    return Sampling(**{name: value for name, value in given.items() if value is not None})
