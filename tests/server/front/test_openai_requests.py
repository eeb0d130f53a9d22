"""What OpenAI's clients may ask for: every refusal names its field and the next step, and what is accepted reaches the engine."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_server.engine.messages import Sampling
from millrace_server.errors import BadRequest, ModelNotFound, RequestError, UnknownField
from millrace_server.openai import questions
from millrace_server.openai.questions import Manner
from millrace_server.openai.requests import ChatRequest, CompletionRequest
from millrace_server.protocol import read
from millrace_server.question import Conversation, Question

USER = {"role": "user", "content": "a"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def completion(**fields: Any) -> tuple[Question, Manner]:  # noqa: ANN401 - any JSON
    body = json.dumps({"model": "tiny", "prompt": "a", **fields}).encode()
    return questions.completion(read(body, CompletionRequest))


def chat(**fields: Any) -> tuple[Question, Manner]:  # noqa: ANN401 - any JSON
    body = json.dumps({"model": "tiny", "messages": [USER], **fields}).encode()
    return questions.chat(read(body, ChatRequest))


EITHER = [
    ({"user": "x" * 513}, "user", "at most 512 characters long"),
    ({"safety_identifier": "x" * 513}, "safety_identifier", "at most 512 characters long"),
    ({"prompt_cache_key": "x" * 513}, "prompt_cache_key", "at most 512 characters long"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "at most 16 elements long"),
    ({"metadata": {"k" * 65: ""}}, "metadata", "a name in it: it must be at most 64 characters long"),
    ({"metadata": {"k": "v" * 513}}, "metadata[...]", "at most 512 characters long"),
    ({"metadata": {"k": {"deep": 1}}}, "metadata[...]", "expected str, got object"),
    ({"store": "yes"}, "store", "expected bool | null, got str"),
    ({"service_tier": {}}, "service_tier", "expected str | null, got object"),
    ({"temperature": 2.1}, "temperature", "it must be at least 0 and at most 2"),
    ({"top_p": 0}, "top_p", "it must be above 0 and at most 1"),
    ({"top_k": -2}, "top_k", "it must be at least -1"),
    ({"min_p": 2}, "min_p", "it must be at least 0 and at most 1"),
    ({"presence_penalty": 1e9}, "presence_penalty", "it must be at least -2 and at most 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "at least -2 and at most 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "at least 0.01 and at most 2"),
    ({"n": 0}, "n", "it must be at least 1 and at most 64"),
    ({"n": 65}, "n", "it must be at least 1 and at most 64"),
    ({"n": True}, "n", "expected int | null, got bool"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"min_tokens": -1}, "min_tokens", "at least 0"),
    ({"seed": 2**64}, "seed", "at most 9223372036854775807"),
    ({"seed": 2**63}, "seed", "at most 9223372036854775807"),
    ({"priority": 10**6}, "priority", "at least -100 and at most 100"),
    ({"stop": ["a"] * 17}, "stop", "at most 16 are allowed"),
    ({"stop": ""}, "stop", "at least one character"),
    ({"stop": [7]}, "stop[0]", "expected str, got int"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "at least 0"),
    ({"stop_token_ids": [1] * 1025}, "stop_token_ids", "at most 1024 elements long"),
    ({"logit_bias": {"five": 1}}, "logit_bias", "a name in it: expected int, got str"),
    ({"logit_bias": {"5": 101}}, "logit_bias[...]", "at least -100 and at most 100"),
    ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias", "at most 1024 elements long"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "it needs stream to be true"),
    ({"stream": True, "stream_options": {"every": 2}}, "stream_options.every", "leave it out"),
    ({"stream": 1}, "stream", "got int"),
]
COMPLETIONS = [
    *EITHER,
    ({"prompt": []}, "prompt", "and not empty"),
    ({"prompt": ["a", 1]}, "prompt", "a text, token ids, or a list of either"),
    ({"prompt": [[1], "a"]}, "prompt", "a text, token ids, or a list of either"),
    ({"prompt": [-1]}, "prompt[0]", "at least 0"),
    ({"prompt": [[1], [1.5]]}, "prompt[1][0]", "got float"),
    ({"prompt": [True]}, "prompt[0]", "got bool"),
    ({"prompt": None}, "prompt", "got null"),
    ({"prompt": ["a"] * 65}, "prompt", "65 prompts with n=1 are more than the limit of 64 answers"),
    ({"prompt": ["a"] * 9, "n": 8}, "prompt", "9 prompts with n=8 are more than the limit of 64 answers"),
    ({"logprobs": 21}, "logprobs", "at least 0 and at most 20"),
    ({"logprobs": 1, "echo": True}, "logprobs", "leave one of them out"),
    ({"suffix": "z"}, "suffix", "into the prompt"),
    ({"best_of": 2}, "best_of", "ask for n answers"),
]
CHATS = [
    *EITHER,
    ({"messages": []}, "messages", "it must be at least 1 element long"),
    ({"messages": [{"role": "root", "content": "a"}]}, "messages", "a role is one of system, developer, user, assistant, tool"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "content is missing"),
    ({"messages": [USER, {"role": "user", "content": 7}]}, "messages[1].content", "got int"),
    ({"messages": [{**USER, "colour": 1}]}, "messages[0].colour", "is not a field of this request"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content", "of type text"),
    ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id", "is missing"),
    ({"messages": [{"role": "assistant", "content": "a", "refusal": "no"}]}, "messages[0].refusal", "into content"),
    ({"top_logprobs": 2}, "top_logprobs", "it needs logprobs to be true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "at least 0 and at most 20"),
    ({"logprobs": 3}, "logprobs", "expected bool | null, got int"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "leave one of them out"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
    ({"tools": [TOOL] * 129}, "tools", "at most 128 elements long"),
    ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls", "leave it out"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "tools", "leave one of them out"),
    ({"tool_choice": "required"}, "tool_choice", "say auto or none"),
    ({"functions": [{}]}, "functions", "send them as tools"),
    ({"response_format": {"type": "json"}}, "response_format.type", "one of text, json_object, json_schema"),
    ({"response_format": {"type": "json_object"}, "min_tokens": 1}, "min_tokens", "ends when its JSON is complete"),
    ({"modalities": ["text", "audio"]}, "modalities", "answers in text"),
    ({"audio": {"voice": "alloy"}}, "audio", "answers in text"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "chat_template_kwargs"),
    ({"web_search_options": {}}, "web_search_options", "leave it out"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "it may hold enable_thinking"),
    ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", "it may hold enable_thinking"),
    ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs", "it may hold enable_thinking"),
]


@pytest.mark.parametrize(("fields", "param", "sentence"), COMPLETIONS)
def test_a_completion_that_cannot_be_done_is_refused(fields: dict[str, object], param: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        completion(**fields)
    assert refused.value.param == param
    assert sentence in refused.value.message
    assert refused.value.message.startswith(param)


@pytest.mark.parametrize(("fields", "param", "sentence"), CHATS)
def test_a_chat_that_cannot_be_done_is_refused(fields: dict[str, object], param: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        chat(**fields)
    assert refused.value.param == param
    assert sentence in refused.value.message


def test_an_unknown_field_is_refused() -> None:
    for ask in (completion, chat):
        with pytest.raises(UnknownField, match="topp is not a field of this request; the fields are model, max_tokens"):
            ask(topp=1)


def test_what_changes_no_answer_is_accepted() -> None:
    ignored = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "flex",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    }
    harmless = {"response_format": {"type": "text"}, "tool_choice": "auto", "modalities": ["text"], "parallel_tool_calls": False}
    assert chat(**ignored, **harmless) == chat()
    assert completion(**ignored, best_of=1) == completion()


def test_null_is_unset_for_every_optional_field() -> None:
    optional = {field: None for field in ChatRequest.__struct_fields__ if field not in ("model", "messages")}
    assert chat(**optional) == chat()
    optional = {field: None for field in CompletionRequest.__struct_fields__ if field not in ("model", "prompt")}
    assert completion(**optional) == completion()


def test_another_model_is_not_found() -> None:
    for name in ("tiny", "chat"):
        questions.known_model(name, served=("tiny", "chat"))
    for name in ("Tiny", "", "../../etc", "x" * 10_000):
        with pytest.raises(ModelNotFound, match="is not served here; the model is 'tiny'") as refused:
            questions.known_model(name, served=("tiny", "chat"))
        assert len(refused.value.message) < 300


def test_defaults_are_those_of_openai() -> None:
    question, manner = completion()
    assert (question.max_tokens, question.default_max_tokens, question.copies) == (None, 16, 1)
    assert question.sampling == Sampling(temperature=1.0, top_p=1.0)
    assert not manner.is_streamed
    assert chat()[0].default_max_tokens is None


def test_every_way_to_sample_reaches_the_engine() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "min_p": 0.1,
        "frequency_penalty": 0.2,
        "presence_penalty": -0.3,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -100, "6": 2},
        "min_tokens": 3,
        "seed": -1,
    }
    question, _ = completion(
        **fields, logprobs=4, max_tokens=9, n=2, stop=["x", "yz"], stop_token_ids=[8], ignore_eos=True, priority=-2, prompt=[[1], [2, 3]]
    )
    expected: dict[str, Any] = {**fields, "logit_bias": {5: -100, 6: 2}, "seed": 2**64 - 1}
    assert question.sampling == Sampling(**expected, logprobs=4)
    assert (question.max_tokens, question.copies, question.stop, question.priority) == (9, 2, ("x", "yz"), -2)
    assert (question.stop_token_ids, question.ignore_eos, question.prompts) == ([8], True, [[1], [2, 3]])


@pytest.mark.parametrize(("given", "reaches"), [({"top_k": -1}, Sampling(temperature=1)), ({"temperature": 1e-308}, Sampling())])
def test_values_that_say_nothing_or_cannot_be_divided_by(given: dict[str, object], reaches: Sampling) -> None:
    assert completion(**given)[0].sampling == reaches


def test_either_name_of_the_limit_is_the_limit() -> None:
    assert chat(max_tokens=5)[0].max_tokens == chat(max_completion_tokens=5)[0].max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=5)[0].max_tokens == 5


def test_messages_reach_the_template_as_texts() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
    ]
    (conversation,) = chat(messages=messages, chat_template_kwargs={"enable_thinking": False})[0].prompts
    assert isinstance(conversation, Conversation)
    assert conversation.messages == [{"role": "user", "content": "a\nb", "name": "me"}, {"role": "assistant", "content": "c"}]
    assert conversation.variables == {"enable_thinking": False}


def test_tools_and_calls_reach_the_template_as_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "found"}]
    (conversation,) = chat(messages=messages, tools=[TOOL])[0].prompts
    assert isinstance(conversation, Conversation)
    assert conversation.tools == [TOOL]
    called = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"a": 1}}}
    assert conversation.messages == [{"role": "assistant", "content": "", "tool_calls": [called]}, messages[1]]
    unused: list[dict[str, Any]] = [{"tools": []}, {"tools": [TOOL], "tool_choice": "none"}]
    for fields in unused:
        (conversation,) = chat(**fields)[0].prompts
        assert isinstance(conversation, Conversation)
        assert conversation.tools == []


def test_a_schema_reaches_the_engine_as_it_was_written() -> None:
    schema = '{"type":  "object", "required": ["b", "a"]}'
    body = f'{{"model": "tiny", "messages": [{json.dumps(USER)}], "response_format": '
    body += f'{{"type": "json_schema", "json_schema": {{"name": "n", "schema": {schema}}}}}}}'
    assert questions.chat(read(body.encode(), ChatRequest))[0].sampling.schema == schema
    assert chat(response_format={"type": "json_object"})[0].sampling.schema == '{"type":"object"}'


def test_log_probabilities_are_asked_for_in_two_ways() -> None:
    assert completion(logprobs=0)[0].sampling.logprobs == 0
    assert [chat(logprobs=True)[0].sampling.logprobs, chat(logprobs=True, top_logprobs=3)[0].sampling.logprobs] == [0, 3]
    assert [chat(logprobs=False)[0].sampling.logprobs, chat()[1].top_logprobs] == [None, None]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(ChatRequest.__struct_fields__ + CompletionRequest.__struct_fields__), ANY_JSON, max_size=6))
def test_any_values_are_a_question_or_refused_with_a_sentence(fields: dict[str, object]) -> None:
    for ask, shape in ((chat, ChatRequest), (completion, CompletionRequest)):
        try:
            asked: object = ask(**{name: value for name, value in fields.items() if name in shape.__struct_fields__})
        except RequestError as refused:
            asked = refused.message
        assert asked
