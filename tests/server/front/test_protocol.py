"""Reading a body: every wrong field is named with its limits, quickly, whatever a client sends."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_server.errors import BadRequest, NotJSON, UnknownField
from millrace_server.openai.requests import ChatRequest
from millrace_server.protocol import InferRequest, read

WRONG_FIELDS = [
    (b'{"max_tokens": 5}', "prompt", "prompt is missing; it is required"),
    (b'{"prompt": ""}', "prompt", "prompt is refused: it must be at least 1 character long"),
    (b'{"prompt": 7}', "prompt", "prompt is refused: expected str, got int"),
    (b'{"prompt": null}', "prompt", "prompt is refused: expected str, got null"),
    (b'{"prompt": "a", "max_tokens": 0}', "max_tokens", "max_tokens is refused: it must be at least 1 and at most 2147483647"),
    (b'{"prompt": "a", "max_tokens": -1}', "max_tokens", "at least 1"),
    (b'{"prompt": "a", "max_tokens": 9223372036854775808}', "max_tokens", "at most 2147483647"),
    (b'{"prompt": "a", "max_tokens": 1.5}', "max_tokens", "expected int | null, got float"),
    (b'{"prompt": "a", "max_tokens": true}', "max_tokens", "got bool"),
    (b'{"prompt": "a", "max_tokens": "9"}', "max_tokens", "got str"),
    (b'{"prompt": "a", "temperature": 2.1}', "temperature", "temperature is refused: it must be at least 0 and at most 2"),
    (b'{"prompt": "a", "temperature": -1}', "temperature", "at least 0"),
    (b'{"prompt": "a", "temperature": 1e999}', "temperature", "at most 2"),
    (b'{"prompt": "a", "temperature": "hot"}', "temperature", "got str"),
    (b'{"prompt": "a", "top_p": 0}', "top_p", "top_p is refused: it must be above 0 and at most 1"),
    (b'{"prompt": "a", "top_p": 1.01}', "top_p", "at most 1"),
    (b'{"prompt": "a", "seed": -1}', "seed", "at least 0"),
    (b'{"prompt": "a", "use_cache": 1}', "use_cache", "got int"),
]


@pytest.mark.parametrize(("body", "field", "sentence"), WRONG_FIELDS)
def test_a_wrong_field_is_named_with_its_limit(body: bytes, field: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(body, InferRequest)
    assert refused.value.param == field
    assert sentence in refused.value.message


def test_an_unknown_field_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(
        UnknownField, match="stream is not a field of this request; the fields are prompt, max_tokens, temperature"
    ) as refused:
        read(b'{"prompt": "a", "stream": true}', InferRequest)
    assert refused.value.param == "stream"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"prompt": "a"',
        b'{"prompt": "a"} trailing',
        b'{"prompt": "\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": -Infinity}',
    ],
)
def test_what_is_not_json_is_told_so(body: bytes) -> None:
    with pytest.raises(NotJSON, match="the body is not valid JSON"):
        read(body, InferRequest)


@pytest.mark.parametrize("body", [b"[]", b"null", b'"prompt"', b"3"])
def test_a_body_must_be_an_object(body: bytes) -> None:
    with pytest.raises(BadRequest, match="the body must be a JSON object"):
        read(body, InferRequest)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"prompt": ' + b"[" * 1_000_000,
        b'{"unknown": ' + b'{"a":' * 200_000,
        b'{"prompt": "a", "max_tokens": ' + b"1" * 1_000_000 + b"}",
        b'{"prompt": "a", "temperature": ' + b"9" * 1_000_000 + b"}",
    ],
)
def test_depth_and_digits_cost_no_time(body: bytes) -> None:
    began = time.process_time()
    with pytest.raises(BadRequest):
        read(body, InferRequest)
    assert time.process_time() - began < 0.05


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(BadRequest, match="prompt is refused: it is there 2 times in one object") as refused:
        read(b'{"prompt": "a", "max_tokens": 1, "prompt": "b"}', InferRequest)
    assert refused.value.param == "prompt"


def test_a_key_that_is_there_twice_is_found_in_the_depth() -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "a", "role": "user"}]}'
    with pytest.raises(BadRequest, match="role is refused: it is there 2 times in one object"):
        read(body, ChatRequest)


def test_two_objects_may_have_the_same_keys() -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]}'
    assert len(read(body, ChatRequest).messages) == 2


def test_defaults_are_the_documented_ones() -> None:
    request = read(b'{"prompt": "a"}', InferRequest)
    assert (request.temperature, request.top_p, request.max_tokens, request.seed, request.use_cache) == (0.7, 0.9, None, None, None)


@pytest.mark.parametrize(("temperature", "is_greedy"), [(0, True), (1e-308, True), (1e-4, False)])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float, is_greedy: bool) -> None:
    assert InferRequest(prompt="a", temperature=temperature).is_greedy() == is_greedy


@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda text: f'{{"prompt": {text}}}'.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused_with_a_sentence(body: bytes) -> None:
    message = "read"
    try:
        read(body, InferRequest)
    except BadRequest as error:
        message = error.message
    assert message
