"""Whatever is answered becomes a Manifest or an error with a name: proxies and load balancers answer in the API server's place."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from fake_api import FakeApi
from millrace_operator.connection import ApiError, Connection, Forbidden, NamespaceEnds, Refused, Unreachable, configuration
from millrace_operator.manifest import Manifest

Answering = Callable[[int, Manifest | bytes], AbstractContextManager[FakeApi]]


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answering:
    @contextmanager
    def serve(status: int, content: Manifest | bytes) -> Iterator[FakeApi]:
        with FakeApi(lambda *_: (status, content)) as api:
            monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
            yield api

    return serve


async def ask() -> Manifest:
    connection = Connection(await configuration())
    try:
        return await connection.get("/api/v1/pods", seconds=5)
    finally:
        await connection.close()


async def test_an_object_is_returned_as_it_is(answering: Answering) -> None:
    with answering(200, {"items": []}):
        assert await ask() == {"items": []}


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>", b"[]", b'"ok"', b"\xff", b"[" * 100_000])
async def test_a_success_that_is_no_json_object_is_not_the_api_servers(answering: Answering, content: bytes) -> None:
    with answering(200, content), pytest.raises(Unreachable, match="GET /api/v1/pods: no JSON object"):
        await ask()


@pytest.mark.parametrize(
    "content", [b"", b"<html>Bad gateway</html>", b"[]", b'{"details": "x", "reason": 3}', b'{"details": {"causes": [1]}}']
)
async def test_a_failure_of_any_shape_is_an_api_error(answering: Answering, content: bytes) -> None:
    with answering(502, content), pytest.raises(ApiError, match="502"):
        await ask()


def failure(message: str = "", **cause: str) -> Manifest:
    return {"kind": "Status", "message": message, "details": {"causes": [cause]}}


async def test_a_refusal_tells_the_fields_that_are_to_blame(answering: Answering) -> None:
    with answering(422, failure(field="spec.ports[0].nodePort")), pytest.raises(Refused) as caught:
        await ask()
    assert caught.value.fields == ("spec.ports[0].nodePort",)


async def test_a_namespace_that_ends_is_told_apart(answering: Answering) -> None:
    with answering(403, failure(reason="NamespaceTerminating")), pytest.raises(NamespaceEnds):
        await ask()


async def test_a_policys_denial_is_no_fault_of_the_object(answering: Answering) -> None:
    with answering(422, failure("ValidatingAdmissionPolicy 'p' with binding 'p' denied request: no")), pytest.raises(Forbidden):
        await ask()
