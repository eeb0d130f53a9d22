"""Kept answers by the official client: whatever filled the cache, a stream or a whole answer is told like one that was just written."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from contract.test_server_reports import prometheus
from running_server import RunningServer

GREEDY: Any = {"model": "tiny", "temperature": 0, "max_tokens": 90, "n": 2, "stop": ["never written"], "extra_body": {"ignore_eos": True}}
STREAM: Any = {"stream": True, "stream_options": {"include_usage": True}}
HEADER = "x-millrace-cache"


def chat(client: openai.OpenAI, prompt: str, **options: Any) -> tuple[str, Any]:  # noqa: ANN401 - the client's own types
    """What the header says of the cache, and the answer or its chunks."""
    messages: Any = [{"role": "user", "content": prompt}]
    raw = client.chat.completions.with_raw_response.create(messages=messages, logprobs=True, top_logprobs=2, **{**GREEDY, **options})
    return raw.headers[HEADER], raw.parse() if "stream" not in options else list(raw.parse())


def completion(client: openai.OpenAI, prompt: str, **options: Any) -> tuple[str, Any]:  # noqa: ANN401 - the client's own types
    raw = client.completions.with_raw_response.create(prompt=[prompt, prompt + "!"], logprobs=2, **{**GREEDY, **options})
    return raw.headers[HEADER], raw.parse() if "stream" not in options else list(raw.parse())


Told = list[tuple[str, str | None, list[object]]]
"""Of each choice: text, finish reason, and its log probabilities."""


def told_by_chat(answer: Any) -> Told:  # noqa: ANN401 - the client's own types
    if not isinstance(answer, list):
        return [(choice.message.content, choice.finish_reason, choice.logprobs.content) for choice in answer.choices]
    together: dict[int, tuple[str, str | None, list[object]]] = {}
    for choice in (choice for chunk in answer for choice in chunk.choices):
        if choice.index not in together:
            assert (choice.delta.role, choice.delta.content) == ("assistant", ""), "an answer is introduced first"
        text, reason, logprobs = together.get(choice.index, ("", None, []))
        assert reason is None, "nothing follows a finish reason"
        told = choice.logprobs.content if choice.logprobs else []
        together[choice.index] = (text + (choice.delta.content or ""), choice.finish_reason, logprobs + told)
    return [together[index] for index in sorted(together)]


def told_by_completion(answer: Any) -> Told:  # noqa: ANN401 - the client's own types
    parts = [choice for event in (answer if isinstance(answer, list) else [answer]) for choice in event.choices]
    together: dict[int, tuple[str, str | None, list[object]]] = {}
    for choice in parts:
        text, reason, logprobs = together.get(choice.index, ("", None, []))
        assert reason is None, "nothing follows a finish reason"
        lists = choice.logprobs
        told = list(zip(lists.tokens, lists.token_logprobs, map(tuple, lists.top_logprobs), lists.text_offset, strict=True))
        together[choice.index] = (text + choice.text, choice.finish_reason, logprobs + told)
    return [together[index] for index in sorted(together)]


def usage(answer: Any) -> Any:  # noqa: ANN401 - the client's own types
    if not isinstance(answer, list):
        return answer.usage
    assert [chunk.usage for chunk in answer[:-1]] == [None] * (len(answer) - 1)
    assert answer[-1].choices == []
    return answer[-1].usage


Ask = Callable[..., tuple[str, Any]]
ROUTES = [pytest.param(chat, told_by_chat, id="chat"), pytest.param(completion, told_by_completion, id="completion")]


@pytest.mark.parametrize("is_streamed_first", [True, False])
@pytest.mark.parametrize(("ask", "told"), ROUTES)
def test_a_kept_answer_is_told_whole_or_streamed(
    client: openai.OpenAI, server: RunningServer, ask: Ask, told: Callable[[Any], Told], is_streamed_first: bool
) -> None:
    prompt = f"replay {ask.__name__} {is_streamed_first}"
    source, first = ask(client, prompt, **(STREAM if is_streamed_first else {}))
    before = prometheus(server)
    again = [ask(client, prompt), ask(client, prompt, **STREAM), ask(client, prompt, **STREAM)]
    after = prometheus(server)
    assert [source] + [source for source, _ in again] == ["miss", "hit", "hit", "hit"]
    for _, answer in again:
        assert told(answer) == told(first)
        assert usage(answer) == usage(first)
    assert all(len(text) > 64 and reason == "length" and logprobs for text, reason, logprobs in told(first))
    answers = [first, *(answer for _, answer in again)]
    assert len({(answer[0] if isinstance(answer, list) else answer).id for answer in answers}) == 4, "each answer has an id of its own"
    streams = [answer for answer in answers if isinstance(answer, list)]
    assert all(len({(chunk.id, chunk.created, chunk.object) for chunk in stream}) == 1 for stream in streams)
    assert all(len(stream) > 4 for stream in streams), "a replayed stream comes in pieces, too"

    def grown(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after[key] - before[key]

    assert grown("llm_cache_lookups_total", result="hit") == 3
    assert grown("llm_cache_lookup_seconds_count") == 3
    assert grown("llm_tokens_generated_total") == grown("vllm:prompt_tokens_total", model_name="tiny") == 0
    assert grown("llm_request_latency_seconds_count") == 3


@pytest.mark.parametrize(("ask", "told"), ROUTES)
def test_use_cache_is_honoured(client: openai.OpenAI, ask: Ask, told: Callable[[Any], Told]) -> None:
    prompt = f"honoured {ask.__name__}"
    sampled: Any = {"temperature": 1.3, "top_p": 1}
    assert [ask(client, prompt, **sampled)[0] for _ in range(2)] == ["bypass"] * 2
    wished = [ask(client, prompt, extra_body={"use_cache": True}, **sampled) for _ in range(2)]
    assert [source for source, _ in wished] == ["miss", "hit"]
    assert told(wished[0][1]) == told(wished[1][1])
    refused: Any = {"extra_body": {"use_cache": False}}
    assert [ask(client, prompt, **refused)[0], ask(client, prompt, **STREAM, **refused)[0], ask(client, prompt)[0]] == [
        "bypass",
        "bypass",
        "miss",
    ]


def test_how_an_answer_is_told_is_not_part_of_its_key(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": "echoed", "temperature": 0, "max_tokens": 4, "extra_body": {"ignore_eos": True}}
    plain = client.completions.create(**asked)
    echoed = client.completions.with_raw_response.create(echo=True, **asked)
    assert echoed.headers[HEADER] == "hit"
    assert echoed.parse().choices[0].text == "echoed" + plain.choices[0].text
    short = client.completions.with_raw_response.create(**{**asked, "max_tokens": 3})
    assert short.headers[HEADER] == "miss"
