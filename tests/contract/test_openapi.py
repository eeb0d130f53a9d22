"""The OpenAPI document is true: it knows every route, and a real server's answers to made-up bodies are all in it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from millrace_server.app import client_app
from millrace_server.errors import ErrorBody
from millrace_server.openapi import DOCS, DOCUMENT, OPERATIONS, Operation, document
from running_server import RunningServer
from server.front.scripted import inference

POSTS = [each for each in OPERATIONS if each.request]
GREEDY = {"temperature": 0, "max_tokens": 4, "use_cache": False}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(-3, 3) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
BASES: dict[str, dict[str, Any]] = {
    "infer": {"prompt": "a"},
    "createCompletion": {"model": "tiny", "prompt": "a"},
    "createChatCompletion": {"model": "tiny", "messages": [{"role": "user", "content": "a"}]},
    "tokenize": {"prompt": "a"},
    "detokenize": {"tokens": [1]},
}


def schemas() -> dict[str, Any]:
    result: dict[str, Any] = document(has_keys=True)["components"]["schemas"]
    return result


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What the document allows, kept small."""
    if "$ref" in schema:
        schema = schemas()[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return st.one_of([values(part) for part in schema["anyOf"]])
    match schema.get("type"):
        case "string":
            return st.text(min_size=schema.get("minLength", 0), max_size=8)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "integer":
            return st.integers(schema.get("minimum", 0), min(schema.get("maximum", 8), 8))
        case "number":
            low, high = schema.get("minimum", schema.get("exclusiveMinimum", -1)), schema.get("maximum", 2)
            return st.floats(low, high, exclude_min="exclusiveMinimum" in schema)
        case "array":
            return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
        case "object" if "properties" in schema:
            needed = set(schema.get("required", ()))
            fields = {name: values(part) for name, part in schema["properties"].items()}
            optional = {name: fields[name] for name in fields if name not in needed}
            return st.fixed_dictionaries({name: fields[name] for name in sorted(needed)}, optional=optional)
    return JSON


def bodies(each: Operation) -> st.SearchStrategy[bytes]:
    """Right ones with a field of any allowed value, wrong ones, and noise."""
    assert each.request
    fields = schemas()[each.request.__name__]["properties"]
    base = BASES[each.name]
    one = st.sampled_from(sorted(fields)).flatmap(lambda name: st.tuples(st.just(name), values(fields[name]) | JSON))
    changed = one.map(lambda field: {**base, **({"max_tokens": 2} if "max_tokens" in fields else {}), field[0]: field[1]})
    whole = values(schemas()[each.request.__name__])
    return (changed | whole | JSON).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)


def assert_documented(response: httpx.Response, each: Operation) -> None:
    answers = document(has_keys=False)["paths"][each.path][each.method]["responses"]
    status = str(response.status_code)
    assert status in answers, response.text
    assert response.status_code < 500 or response.status_code in (503, 504), response.text
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in answers[status]["content"]
    assert response.headers["x-request-id"]
    if response.status_code != 200:
        error = msgspec.json.decode(response.content, type=ErrorBody).error
        assert str(error.code) in answers[status]["description"]
    elif kind == "text/event-stream":
        assert each.event
        *events, last = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert last == "[DONE]"
        for event in events:
            msgspec.json.decode(event, type=each.event | ErrorBody if "error" in json.loads(event) else each.event)
    else:
        msgspec.json.decode(response.content, type=each.answer)


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("documented"), model=tiny_model, settings={"API_DOCS": "true"}) as running:
        yield running.wait_ready()


def test_every_route_is_in_the_document_and_no_other() -> None:
    app = client_app(inference()[0], drain_began=lambda: None, keys=None)
    routes = {
        (route.path_format, method.lower())  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods  # type: ignore[attr-defined]
        if method != "HEAD"
    }
    described = {(path, method) for path, methods in document(has_keys=False)["paths"].items() for method in methods}
    assert described == routes


@pytest.mark.parametrize("has_keys", [False, True])
def test_the_document_is_openapi(has_keys: bool) -> None:
    validate(document(has_keys=has_keys))


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(document(has_keys=True))
    named = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named == set(schemas()), "nothing is missing, nothing is left over"


def test_only_what_needs_a_key_says_so() -> None:
    operations = document(has_keys=True)["paths"]
    assert {path for path, methods in operations.items() for each in methods.values() if "security" not in each} == {"/health"}
    assert "401" in operations["/metrics"]["get"]["responses"]
    assert "securitySchemes" not in document(has_keys=False)["components"]


def test_the_document_is_written_without_a_server() -> None:
    written = subprocess.run([sys.executable, "-m", "millrace_server.openapi"], check=True, capture_output=True).stdout
    assert json.loads(written) == document(has_keys=True)


def test_the_document_and_a_page_are_served_when_asked_for(documented: RunningServer) -> None:
    assert documented.requests().get(DOCUMENT).json() == document(has_keys=False)
    page = documented.requests().get(DOCS)
    assert page.headers["content-type"].startswith("text/html")
    assert all(each.path in page.text for each in OPERATIONS)


@pytest.mark.parametrize("each", [each for each in OPERATIONS if not each.request], ids=lambda each: each.name)
def test_what_is_read_is_as_documented(documented: RunningServer, each: Operation) -> None:
    for model in ("tiny", "other"):
        assert_documented(documented.requests().get(each.path.replace("{model}", model)), each)


@pytest.mark.parametrize("each", POSTS, ids=lambda each: each.name)
def test_no_body_gets_an_answer_that_is_not_documented(documented: RunningServer, each: Operation) -> None:
    before = documented.requests().infer("neighbour", **GREEDY).json()["text"]
    answered: set[int] = set()

    with documented.client() as client:

        @settings(max_examples=30)
        @example(body=json.dumps(BASES[each.name]).encode())
        @example(body=b"{")
        @given(body=bodies(each))
        def fuzz(body: bytes) -> None:
            response = client.post(each.path, content=body)
            assert_documented(response, each)
            answered.add(response.status_code)

        fuzz()
    assert {200, 400} <= answered, "both right and wrong bodies were tried"
    documented.wait_for(lambda: documented.load()["running"] == documented.load()["queued"] == 0 or None)
    assert documented.requests().get("/health").json()["status"] == "healthy"
    assert documented.requests().infer("neighbour", **GREEDY).json()["text"] == before
