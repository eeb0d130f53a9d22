"""Tools through the official client: a model that recites calls, in Hermes' form with markers that are special tokens."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import pytest_asyncio

import reciting_model
from running_server import RunningServer

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer by <tool_call>{"name": <function-name>, "arguments": <args-json-object>}</tool_call><|im_end|>\n{% endif %}'
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
PARIS = '<tool_call>{"name": "weather", "arguments": {"city": "Paris 🎉"}}</tool_call>'
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
CALL, BOTH, BROKEN, TEXT = range(4)
TEXTS = (PARIS, f"I shall look. \n{PARIS}\n{ROME}", "<tool_call>{oops}</tool_call> sorry", "No <tool is needed.")


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = {"chat_template": TEMPLATE}
    folder = reciting_model.build(
        tmp_path_factory.mktemp("model") / "calling", TEXTS, specials=("<tool_call>", "</tool_call>"), settings=settings
    )
    with RunningServer(tmp_path_factory.mktemp("calling"), model=folder) as running:
        yield running.wait_ready()


@pytest.fixture
def client(calling: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{calling.port}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(calling: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{calling.port}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def asking(client: openai.OpenAI, text: int, **fields: Any) -> Any:  # noqa: ANN401 - the client's own
    """A question that is answered by this text: its prompt has the right number of tokens."""
    asked: Any = {"model": "tiny", "temperature": 0, "max_tokens": 400, "tools": TOOLS, **fields}
    before = asked.pop("messages", [])
    empty: Any = {**asked, "messages": [*before, {"role": "user", "content": ""}], "max_tokens": 1, "stream": False}
    used = client.chat.completions.create(**empty).usage.prompt_tokens
    missing = reciting_model.STRIDE * (text + 1) - used
    return {**asked, "messages": [*before, {"role": "user", "content": "x" * missing}]}


def test_a_call_is_a_call_and_its_markers_are_no_content(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**asking(client, CALL)).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris 🎉"})
    assert call.id


def test_text_before_calls_is_content_and_every_call_has_its_own_id(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**asking(client, BOTH, n=2))
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls or []]
    assert len(set(ids)) == 4
    for choice in answer.choices:
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I shall look.")
        cities = [json.loads(call.function.arguments)["city"] for call in choice.message.tool_calls or [] if call.type == "function"]
        assert cities == ["Paris 🎉", "Rome"]


def test_a_malformed_call_is_content_and_no_error(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**asking(client, BROKEN)).choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (TEXTS[BROKEN], None, "stop")


def test_text_that_only_begins_like_a_marker_is_told(client: openai.OpenAI) -> None:
    asked = asking(client, TEXT)
    chunks = list(client.chat.completions.create(stream=True, **asked))
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == TEXTS[TEXT]
    assert len(pieces) > 5, "text is not held back because there are tools"
    assert client.chat.completions.create(**asked).choices[0].message.content == TEXTS[TEXT]


async def test_a_stream_puts_together_what_the_whole_answer_says(client: openai.OpenAI, async_client: openai.AsyncOpenAI) -> None:
    asked = asking(client, BOTH)
    whole = client.chat.completions.create(**asked).choices[0]
    events = [chunk async for chunk in await async_client.chat.completions.create(stream=True, **asked)]
    deltas = [choice.delta for event in events for choice in event.choices]
    content = "".join(delta.content or "" for delta in deltas)
    assert content == whole.message.content
    assert "<" not in content
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert [call.index for call in calls] == [0, 1]
    assert all(call.id and call.type == "function" and call.function and call.function.name == "weather" for call in calls)
    assert events[-1].choices[0].finish_reason == "tool_calls"
    async with async_client.chat.completions.stream(**asked) as stream:
        final = (await stream.get_final_completion()).choices[0]
    assert [call.function.arguments for call in final.message.tool_calls or []] == [
        call.function.arguments for call in whole.message.tool_calls or [] if call.type == "function"
    ]


def test_an_answer_that_is_cut_says_length(client: openai.OpenAI) -> None:
    asked = asking(client, CALL, max_tokens=20)
    cut = client.chat.completions.create(**asked).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)
    assert (cut.message.content or "").startswith('<tool_call>{"name"')


def test_calls_and_results_are_rendered(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**asking(client, CALL)).choices[0].message
    assert first.tool_calls
    history: Any = [first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "rain"}]
    asked = asking(client, TEXT, messages=history)
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == TEXTS[TEXT]
    without: Any = {**asked, "messages": asked["messages"][-1:], "max_tokens": 1}
    shorter = client.chat.completions.create(**without)
    assert answer.usage is not None
    assert shorter.usage is not None
    written = f"<|im_start|>assistant\n{PARIS}<|im_end|>\n<|im_start|>tool\nrain<|im_end|>\n"
    for special in ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"):
        written = written.replace(special, "?")
    assert answer.usage.prompt_tokens - shorter.usage.prompt_tokens == len(written.encode())


def test_tool_choice_none_neither_describes_nor_reads_calls(client: openai.OpenAI) -> None:
    asked = asking(client, CALL, tool_choice="none")
    choice = client.chat.completions.create(**asked).choices[0]
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")
    assert choice.message.content == PARIS.removeprefix("<tool_call>").removesuffix("</tool_call>"), "special tokens leave no text"
    described = {**asked, "tool_choice": "auto", "max_tokens": 1}
    usages = [client.chat.completions.create(**each).usage for each in (asked, described)]
    assert usages[0].prompt_tokens < usages[1].prompt_tokens


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tool_choice": "required"}, "tool_choice", "say auto or none"),
    ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice", "say auto or none"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", "leave it out"),
    ({"response_format": {"type": "json_object"}}, "tools", "leave one of them out"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "it must be one of function"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "at least 1"),
    (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "a", "arguments": "[1]"}}]}
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
        "it must be a JSON object, as a text",
    ),
]


@pytest.mark.parametrize(("fields", "param", "sentence"), REFUSED, ids=str)
def test_what_cannot_be_done_is_refused_by_field(client: openai.OpenAI, fields: dict[str, Any], param: str, sentence: str) -> None:
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "tools": TOOLS, "max_tokens": 1, **fields}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked)
    assert sentence in refused.value.message
    assert (refused.value.param or "").startswith(param)


def test_a_template_without_tools_refuses_them(server: RunningServer) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "tools": TOOLS, "max_tokens": 1}
    answer = server.requests().request("POST", "/v1/chat/completions", json=asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
    assert "the model's chat template knows none; describe them in a system message" in answer.json()["error"]["message"]
    assert server.requests().request("POST", "/v1/chat/completions", json={**asked, "tool_choice": "none"}).status_code == 200
