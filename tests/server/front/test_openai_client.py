"""The official client, unmodified, against a real server: sync and async, streaming and not."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from running_server import RunningServer

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "naïve 🎉 question"}]
UNCACHED: Any = {"use_cache": False}
GREEDY: Any = {"model": "tiny", "temperature": 0, "max_tokens": 12, "extra_body": UNCACHED}


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index)


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="'other/model' is not served here; the model is 'tiny'") as refused:
        client.models.retrieve("other/model")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_a_chat_answers_in_its_shape(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    (choice,) = answer.choices
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint
    assert (choice.index, choice.message.role, choice.logprobs) == (0, "assistant", None)
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY))
    first, last = chunks[0], chunks[-1]
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert (last.choices, last.usage) == ([], whole.usage)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert text_of(chunks) == whole.choices[0].message.content
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + [whole.choices[0].finish_reason]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert len(chunks) > 3, "it came in pieces"


def test_completions_of_text_and_of_tokens_are_the_same_streamed_or_not(client: openai.OpenAI) -> None:
    tokens = list(b"a prompt")
    prompts: list[Any] = ["a prompt", ["a prompt"], tokens, [tokens]]
    wholes = [client.completions.create(prompt=prompt, **GREEDY) for prompt in prompts]
    streams = [list(client.completions.create(prompt=prompt, stream=True, **GREEDY)) for prompt in prompts]
    texts = [whole.choices[0].text for whole in wholes]
    texts += ["".join(choice.text for chunk in stream for choice in chunk.choices) for stream in streams]
    assert len(set(texts)) == 1
    assert wholes[0].usage is not None
    assert wholes[0].usage.prompt_tokens == 8
    assert {stream[-1].choices[0].finish_reason for stream in streams} == {wholes[0].choices[0].finish_reason}


def test_several_prompts_with_several_answers_are_numbered_prompt_by_prompt(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "max_tokens": 6, "temperature": 1.5, "seed": 5, "n": 2}
    together = client.completions.create(prompt=["first", "second"], echo=True, **options)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    alone = [client.completions.create(prompt=prompt, echo=True, **options) for prompt in ("first", "second")]
    assert [choice.text for choice in together.choices] == [choice.text for answer in alone for choice in answer.choices]
    assert together.choices[0].text != together.choices[1].text, "the copies' seeds follow one another"
    assert together.choices[3].text.startswith("second")
    assert together.usage is not None
    assert together.usage.prompt_tokens == len("first") + len("second"), "a prompt is counted once, however many answers it has"
    streamed = list(client.completions.create(prompt=["first", "second"], echo=True, stream=True, **options))
    for index, choice in enumerate(together.choices):
        assert "".join(part.text for chunk in streamed for part in chunk.choices if part.index == index) == choice.text


def test_text_parts_are_joined_and_an_answer_may_be_sent_back(client: openai.OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    joined: Any = [{"role": "user", "content": "one\ntwo"}]
    answers = [client.chat.completions.create(messages=messages, **GREEDY).choices[0].message for messages in (parts, joined)]
    assert answers[0] == answers[1]
    client.chat.completions.create(messages=[*joined, answers[0], {"role": "user", "content": "go on"}], **GREEDY)


def test_a_stop_string_across_tokens_is_never_half_emitted(client: openai.OpenAI) -> None:
    options: Any = {**GREEDY, "max_tokens": 40}
    whole = client.completions.create(prompt="stop here", **options).choices[0].text
    stop = whole[10:14]
    pieces = [chunk.choices[0] for chunk in client.completions.create(prompt="stop here", stream=True, stop=["never", stop], **options)]
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    almost = whole[10:13] + "\N{SNOWMAN}"
    pieces = [chunk.choices[0] for chunk in client.completions.create(prompt="stop here", stream=True, stop=almost, **options)]
    assert "".join(piece.text for piece in pieces) == whole, "what was held back comes out when it is no stop string"


def test_a_chat_may_take_all_that_the_context_leaves(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, model="tiny", temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert (answer.usage.total_tokens, answer.choices[0].finish_reason) == (512, "length")
    completion = client.completions.create(prompt="a", model="tiny", temperature=0, extra_body={"ignore_eos": True})
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16, "OpenAI's default"


def test_what_does_not_fit_or_does_not_exist_is_told_by_field(client: openai.OpenAI) -> None:
    refusals: list[tuple[dict[str, Any], str, str]] = [
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "together more than the model's limit of 512"),
        ({"max_tokens": 512}, "max_tokens", "together more than the model's limit of 512"),
        ({"logit_bias": {"259": 1}}, "logit_bias", "259 is no token id of this model; they go from 0 to 258"),
        ({"extra_body": {"stop_token_ids": [259]}}, "stop_token_ids", "259 is no token id"),
        ({"extra_body": {"min_tokens": 20}}, "min_tokens", "20 is more than max_tokens, which is 12"),
    ]
    for fields, param, sentence in refusals:
        with pytest.raises(openai.BadRequestError, match=sentence) as refused:
            client.chat.completions.create(**{"messages": MESSAGES, **GREEDY, **fields})
        assert refused.value.param == param
    with pytest.raises(openai.BadRequestError, match="259 is no token id"):
        client.completions.create(prompt=[65, 259], **GREEDY)


def test_a_stop_token_ends_an_answer_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    options: Any = {**GREEDY, "logit_bias": {"90": 100}}
    assert client.completions.create(prompt="a", **options).choices[0].text == "Z" * 12
    stopped = client.completions.create(prompt="a", **{**options, "extra_body": {**UNCACHED, "stop_token_ids": [90]}})
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")


def test_malformed_questions_are_no_demand(server: RunningServer, client: openai.OpenAI) -> None:
    before = server.load()
    for fields in ({"prompt": "x" * 600}, {"prompt": "a", "n": 2, "logit_bias": {"259": 1}}):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**{**GREEDY, **fields})
    after = server.load()
    assert (after["arrivals"], after["completed"], after["queued"]) == (before["arrivals"], before["completed"], 0)


def test_null_means_unset(client: openai.OpenAI) -> None:
    unset = dict.fromkeys(
        ("stop", "n", "seed", "logprobs", "tools", "response_format", "stream", "logit_bias", "user", "top_k", "priority")
    )
    assert client.chat.completions.create(messages=MESSAGES, **{**GREEDY, "extra_body": unset}).choices[0].message.content


def test_the_client_finds_its_own_classes_for_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature is refused: it must be at least 0 and at most 2"):
        client.chat.completions.create(messages=MESSAGES, model="tiny", temperature=3)
    with pytest.raises(openai.NotFoundError, match="the model is 'tiny'"):
        client.completions.create(prompt="a", model="gpt-4o")


async def test_the_async_client_streams_and_waits(async_client: openai.AsyncOpenAI) -> None:
    whole = await async_client.chat.completions.create(messages=MESSAGES, **GREEDY)
    stream = await async_client.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY)
    assert text_of([chunk async for chunk in stream]) == whole.choices[0].message.content
    completion = await async_client.completions.create(prompt="a", **GREEDY)
    pieces = await async_client.completions.create(prompt="a", stream=True, **GREEDY)
    assert "".join([piece.choices[0].text async for piece in pieces]) == completion.choices[0].text


async def test_the_clients_own_helper_puts_a_stream_together(async_client: openai.AsyncOpenAI) -> None:
    whole = (await async_client.chat.completions.create(messages=MESSAGES, **GREEDY)).choices[0].message.content
    assert whole
    stop = whole[4:6]
    async with async_client.chat.completions.stream(messages=MESSAGES, stop=stop, **GREEDY) as stream:
        final = await stream.get_final_completion()
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")
