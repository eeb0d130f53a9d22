"""POST /tokenize and /detokenize: the very tokens that a prompt becomes, within the limits that prompts have."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import fake_model
from contract.test_server_reports import assert_shape
from millrace_server.errors import DeadlinePassed, Draining, ModelLoading, QueueFull
from millrace_server.inference import Inference
from millrace_server.text import LONG_TEXT_CHARACTERS, Text
from millrace_server.tokenizing import DetokenizeRequest, TokenizeRequest, Tokenizing
from running_server import RunningServer
from server.front.scripted import inference
from server.front.test_questions import call

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "naïve <|im_end|> 🎉"}]


def post(server: RunningServer, path: str, **fields: Any) -> Any:  # noqa: ANN401 - any JSON
    response = server.requests().request("POST", path, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_prompt_becomes_the_tokens_that_the_model_reads(server: RunningServer) -> None:
    prompt = "naïve <|im_end|> 🎉"
    tokenized = post(server, "/tokenize", prompt=prompt, model="tiny")
    assert_shape(tokenized, {"count": int, "max_model_len": int, "tokens": list, "token_strs": type(None)})
    assert tokenized["tokens"] == list(prompt.encode()), "what spells a special token is text"
    assert (tokenized["count"], tokenized["max_model_len"]) == (len(prompt.encode()), 512)
    answered = post(server, "/v1/completions", model="tiny", prompt=prompt, max_tokens=1)
    assert answered["usage"]["prompt_tokens"] == tokenized["count"]


def test_tokens_are_named_when_asked(server: RunningServer) -> None:
    assert post(server, "/tokenize", prompt="a b", return_token_strs=True)["token_strs"] == ["a", "Ġ", "b"]


@pytest.mark.parametrize("add_generation_prompt", [None, True, False])
def test_messages_become_what_transformers_makes_of_them(
    server: RunningServer, tiny_model: Path, add_generation_prompt: bool | None
) -> None:
    honest: Any = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    begins = add_generation_prompt is not False
    expected = list(tokenizer.apply_chat_template(honest, add_generation_prompt=begins, return_dict=False))
    tokenized = post(server, "/tokenize", messages=honest, add_generation_prompt=add_generation_prompt)
    assert (tokenized["tokens"], tokenized["count"]) == (expected, len(expected))


def test_messages_cost_what_they_are_said_to(server: RunningServer) -> None:
    tokenized = post(server, "/tokenize", messages=MESSAGES)
    chat = post(server, "/v1/chat/completions", model="tiny", messages=MESSAGES, max_tokens=1)
    assert chat["usage"]["prompt_tokens"] == tokenized["count"]


@pytest.mark.parametrize("text", ["", "naïve 🎉\n"])
def test_tokens_become_their_text_again(server: RunningServer, text: str) -> None:
    tokens = post(server, "/tokenize", prompt=text)["tokens"]
    assert post(server, "/detokenize", tokens=tokens, model="tiny") == {"prompt": text}


async def test_long_texts_are_read_like_short_ones() -> None:
    tokenizing, text = Tokenizing(serving()[0]), "🎉" * LONG_TEXT_CHARACTERS + "a"
    tokenized = await tokenizing.tokenize(TokenizeRequest(prompt=text, return_token_strs=True), call())
    assert (tokenized.tokens, tokenized.token_strs and tokenized.token_strs[-1]) == (list(text.encode()), "a")
    assert (await tokenizing.detokenize(DetokenizeRequest(tokens=tokenized.tokens), call())).prompt == text


def test_special_tokens_are_written_by_their_names(server: RunningServer) -> None:
    assert post(server, "/detokenize", tokens=[257, 97, 258]) == {"prompt": "<|im_start|>a<|im_end|>"}


async def test_no_token_id_betrays_a_mark() -> None:
    text = Text(fake_model.tokenizer())
    beyond = list(range(fake_model.VOCABULARY, fake_model.VOCABULARY + 2 * len(fake_model.SPECIAL_TOKENS)))
    assert await text.spell_out([97, *beyond, 98]) == "ab"


async def test_special_tokens_in_front_are_added_or_not() -> None:
    tokenizer = fake_model.tokenizer()
    tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)])
    server, _ = serving()
    server.text = Text(tokenizer)
    tokenizing = Tokenizing(server)
    for wished, expected in [(None, [256, 97]), (True, [256, 97]), (False, [97])]:
        assert (await tokenizing.tokenize(TokenizeRequest(prompt="a", add_special_tokens=wished), call())).tokens == expected


def serving(**settings: object) -> tuple[Inference, Text]:
    server, _ = inference(None, **settings)
    server.text = text = Text(fake_model.tokenizer())
    return server, text


@contextmanager
def occupied(text: Text) -> Iterator[None]:
    """The only worker is busy."""
    is_done = threading.Event()
    text._thread.submit(is_done.wait)
    try:
        yield
    finally:
        is_done.set()


async def test_no_more_texts_are_read_at_a_time_than_questions_are_asked() -> None:
    server, text = serving(MAX_CONCURRENT_REQUESTS="2")
    tokenizing, long = Tokenizing(server), TokenizeRequest(prompt="a" * (LONG_TEXT_CHARACTERS + 1))
    with occupied(text):
        reading = [asyncio.create_task(tokenizing.tokenize(long, call())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2 texts are already being read"):
            await tokenizing.detokenize(DetokenizeRequest(tokens=[97]), call())
        reading[0].cancel()
        await asyncio.wait({reading[0]})
        assert (await tokenizing.tokenize(TokenizeRequest(prompt="a"), call())).tokens == [97], "who leaves makes room"
    assert (await reading[1]).count == LONG_TEXT_CHARACTERS + 1


async def test_reading_ends_with_the_deadline() -> None:
    server, text = serving()
    with occupied(text), pytest.raises(DeadlinePassed):
        await Tokenizing(server).detokenize(DetokenizeRequest(tokens=[97] * (LONG_TEXT_CHARACTERS + 1)), call(seconds=0.01))


def test_huge_texts_end_with_their_deadline_and_hold_up_no_small_one(tmp_path: Path, tiny_model: Path) -> None:
    huge = {"prompt": "many words " * 20_000}
    with RunningServer(tmp_path, model=tiny_model, settings={"MAX_BODY_BYTES": str(2**20)}) as server:
        server.wait_ready()

        def read_huge(_: int) -> int:
            headers = {"X-Request-Timeout": "0.05"}
            return server.requests().request("POST", "/tokenize", json=huge, headers=headers).status_code

        with ThreadPoolExecutor(3) as clients:
            reading = clients.map(read_huge, range(3))
            assert post(server, "/tokenize", prompt="a")["tokens"] == [97]
            assert set(reading) == {504}
        assert post(server, "/tokenize", **huge)["count"] == len(huge["prompt"])


async def test_nothing_is_read_before_the_model_is_there_or_when_the_replica_leaves() -> None:
    server, _ = inference(None)
    with pytest.raises(ModelLoading):
        await Tokenizing(server).tokenize(TokenizeRequest(prompt="a"), call())
    server, _ = serving()
    unwelcome = type(call())(request_id="id", arrived=time.monotonic(), timeout=30, is_welcome=False)
    with pytest.raises(Draining):
        await Tokenizing(server).tokenize(TokenizeRequest(prompt="a"), unwelcome)
