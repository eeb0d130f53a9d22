"""JSON by a schema through the official client; and schemas that mean harm, beside a neighbour who must not notice."""

import asyncio
import json
import time
from typing import Any

import msgspec
import openai
import psutil
import pytest

import fake_model
from millrace_server.engine.handle import Serving
from millrace_server.engine.messages import Sampling
from millrace_server.errors import BadRequest
from millrace_server.question import Call, Question
from millrace_server.schemas.check import SchemaCheck
from millrace_server.text import Text
from running_server import RunningServer
from server.front.scripted import READY, inference

MESSAGES: Any = [{"role": "user", "content": "a JSON"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}


def by_schema(schema: object, **fields: Any) -> Any:  # noqa: ANN401 - the client's own
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {"model": "tiny", "messages": MESSAGES, "max_tokens": 200, "response_format": response_format, **fields}


def assert_valid(text: str | None) -> None:
    found = json.loads(text or "")
    assert list(found) == ["ok", "n"]
    assert type(found["ok"]) is bool
    assert found["n"] in range(10)


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_whole_and_streamed_answers_satisfy_the_schema(client: openai.OpenAI) -> None:
    for seed in range(3):
        whole = client.chat.completions.create(**by_schema(SCHEMA, seed=seed, n=2, temperature=1.2))
        assert [choice.finish_reason for choice in whole.choices] == ["stop", "stop"]
        for choice in whole.choices:
            assert_valid(choice.message.content)
        chunks = list(client.chat.completions.create(stream=True, **by_schema(SCHEMA, seed=seed, n=2, temperature=1.2)))
        for choice in whole.choices:
            parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
            assert "".join(part.delta.content or "" for part in parts) == choice.message.content


def test_greedy_answers_with_penalties_and_log_probabilities_satisfy_it_too(client: openai.OpenAI) -> None:
    options: Any = {"temperature": 0, "frequency_penalty": 2, "presence_penalty": -2, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**by_schema(SCHEMA, extra_body={"repetition_penalty": 1.5}, **options)).choices[0]
    assert_valid(answer.message.content)
    assert answer.logprobs is not None
    assert answer.logprobs.content is not None
    assert "".join(token.token for token in answer.logprobs.content) == answer.message.content


async def test_the_async_client_gets_an_object(async_client: openai.AsyncOpenAI) -> None:
    asked: Any = {**by_schema({}), "response_format": {"type": "json_object"}, "logit_bias": {str(ord("}")): 50}}
    answer = await async_client.chat.completions.create(**asked)
    assert json.loads(answer.choices[0].message.content or "") == {}
    stream = await async_client.chat.completions.create(stream=True, **asked)
    assert json.loads("".join([chunk.choices[0].delta.content or "" async for chunk in stream])) == {}


def test_stop_strings_and_max_tokens_end_it_as_ever(client: openai.OpenAI) -> None:
    word = {"const": "abcdef"}
    answers = [client.chat.completions.create(**by_schema(word, **options)).choices[0] for options in ({"stop": "cd"}, {"max_tokens": 3})]
    assert [(answer.message.content, answer.finish_reason) for answer in answers] == [('"ab', "stop"), ('"ab', "length")]


def test_a_text_format_changes_nothing(client: openai.OpenAI) -> None:
    plain: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    as_text: Any = {**plain, "response_format": {"type": "text"}}
    contents = [client.chat.completions.create(**asked).choices[0].message.content for asked in (plain, as_text)]
    assert contents[0] == contents[1]


async def test_a_model_whose_tokens_cannot_be_matched_says_so() -> None:
    server, _ = inference(Serving(msgspec.structs.replace(READY, no_schemas="its tokens are strange")))
    server.text = Text(fake_model.tokenizer())
    asked = Question(prompts=["a"], max_tokens=1, default_max_tokens=None, sampling=Sampling(schema="{}"))
    with pytest.raises(BadRequest, match="this model cannot follow a schema, its tokens are strange"):
        async with server.ask(asked, Call(request_id="id", arrived=time.monotonic(), timeout=30)):
            pass
    assert (server.admission.in_system, server.admission.arrivals) == (0, 0)


FIELD = "response_format.json_schema.schema"
HOSTILE: dict[str, tuple[object, str]] = {
    "unknown keyword": ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
    "no schema": (["type"], "Expecting object"),
    "nobody's type": ({"type": "integr"}, "integr"),
    "contradiction": ({"type": "string", "enum": [1]}, "Unsatisfiable schema"),
    "remote reference": ({"$ref": "http://localhost/schema"}, "not present in a registry"),
    "file": ({"$ref": "file:///etc/passwd"}, "not present in a registry"),
    "dangling reference": ({"$ref": "#/$defs/nobody"}, "nobody"),
    "circle": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, ""),
    "depth": (nested(200), "recursion limit"),
    "multiples": ({"allOf": [{"type": "integer", "multipleOf": prime} for prime in (10007, 10009, 10037)]}, "compiling it takes too long"),
    "large multiple": ({"type": "integer", "multipleOf": 1000003}, "compiling it takes too long"),
    "regex nesting": ({"type": "string", "pattern": "(" * 3000 + "a" + ")" * 3000}, "regex"),
    "alternatives": ({"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in (0, 1)]} for i in range(20)]}, "too large"),
    "own options": ({"x-guidance": {"lenient": True}, "not": {}}, 'Unimplemented keys: ["not"]'),
    "a megabyte": ({"description": "x" * 1_000_000}, "more than 65536 bytes"),
    "huge enum": ({"enum": [f"the value with the number {number}" for number in range(20_000)]}, "more than 65536 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(name: str) -> None:
    schema, why = HOSTILE[name]
    schemas = SchemaCheck()
    try:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(BadRequest, match="is refused") as refused:
                await schemas.check(json.dumps(schema))
            assert why in refused.value.message
            assert refused.value.param == FIELD
        assert time.monotonic() - began < 1, "the second time it is known"
        await schemas.check(json.dumps(SCHEMA))
    finally:
        await schemas.close()


async def test_after_one_that_was_killed_the_next_schema_is_looked_at() -> None:
    schemas = SchemaCheck()
    checks = [schemas.check(json.dumps(HOSTILE[name][0])) for name in ("multiples", "large multiple", "depth")]
    results = await asyncio.gather(schemas.check(json.dumps(SCHEMA)), *checks, return_exceptions=True)
    await schemas.close()
    assert [type(result) for result in results] == [type(None), BadRequest, BadRequest, BadRequest]


def test_the_process_that_tries_schemas_holds_no_secret_and_may_do_nothing(server: RunningServer, client: openai.OpenAI) -> None:
    client.chat.completions.create(**by_schema(SCHEMA))
    children = psutil.Process(server.process.pid).children()
    (process,) = [child for child in children if "millrace_server.schemas.process" in child.cmdline()]
    assert set(process.environ()) <= {"PATH", "PYTHONPATH", "LC_CTYPE"}
    assert (process.rlimit(psutil.RLIMIT_NOFILE), process.rlimit(psutil.RLIMIT_NPROC)) == ((0, 0), (0, 0))


def test_hostile_schemas_leave_the_neighbour_alone(client: openai.OpenAI, server: RunningServer) -> None:
    plain: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 300, "temperature": 0, "extra_body": {"ignore_eos": True}}
    alone = client.chat.completions.create(**plain).choices[0].message.content
    before = server.load()
    stream = client.chat.completions.create(stream=True, **plain)
    pieces = [next(stream)]
    for name in ("multiples", "circle", "depth", "own options"):
        with pytest.raises(openai.BadRequestError, match="is refused") as refused:
            client.chat.completions.create(**by_schema(HOSTILE[name][0]))
        assert refused.value.param == FIELD
    pieces += list(stream)
    assert "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices) == alone
    server.wait_for(lambda: server.load()["running"] == 0)
    after = server.load()
    assert (after["queued"], after["running"]) == (0, 0)
    assert after["arrivals"] == before["arrivals"] + 1, "a bad schema is no demand"


def test_patterns_that_explode_later_end_by_themselves(server: RunningServer, client: openai.OpenAI) -> None:
    for pattern in ("^.*a.{20}$", "^(a?){500}a{500}$", "^(a+)+$", "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"):
        asked = by_schema({"type": "string", "pattern": pattern}, seed=1)
        answer = server.requests().request("POST", "/v1/chat/completions", json=asked)
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
        else:
            assert any(word in answer.json()["error"]["message"] for word in (FIELD, "structured output")), answer.text
    assert_valid(client.chat.completions.create(**by_schema(SCHEMA)).choices[0].message.content)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "xml"}}, "response_format.type", "it must be one of text, json_object, json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "it holds a name and a schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, FIELD, "is missing"),
    ({"extra_body": {"ignore_eos": True}}, "ignore_eos", "ends when its JSON is complete"),
    ({"extra_body": {"min_tokens": 2}}, "min_tokens", "ends when its JSON is complete"),
]


@pytest.mark.parametrize(("fields", "param", "sentence"), REFUSED, ids=str)
def test_what_contradicts_is_refused_by_field(client: openai.OpenAI, fields: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence) as refused:
        client.chat.completions.create(**{**by_schema(SCHEMA), **fields})
    assert refused.value.param == param
