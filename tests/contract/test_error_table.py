"""server/ERRORS.md lists every reason to fail as it is, and those that a client can cause are answered and counted as it says."""

from pathlib import Path

import pytest

from millrace_server import errors
from millrace_server.errors import RequestError
from running_server import RunningServer

TABLE = Path(__file__).parents[2] / "server" / "ERRORS.md"
INFER = "/api/v1/infer"
GROUPS = {errors.Refused}
"""Classes that stand for several reasons and are none themselves."""

PROVOKED = [
    ("BadRequest", "POST", INFER, b"{}"),
    ("NotJSON", "POST", INFER, b"{"),
    ("UnknownField", "POST", INFER, b'{"prompt": "a", "every": 1}'),
    ("ContextTooLong", "POST", INFER, b'{"prompt": "' + b"a" * 15_000 + b'"}'),
    ("NoSuchRoute", "GET", "/nowhere", b""),
    ("ModelNotFound", "POST", "/v1/completions", b'{"model": "other", "prompt": "a"}'),
    ("MethodNotAllowed", "GET", INFER, b""),
    ("BodyTooLarge", "POST", INFER, b" " * 20_001),
]


def table() -> dict[str, tuple[int, str, str]]:
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    return {row[0]: (int(row[1]), row[2], row[3]) for row in rows}


def reasons(base: type[RequestError] = RequestError) -> set[type[RequestError]]:
    return {base}.union(*(reasons(each) for each in base.__subclasses__())) - GROUPS


def counted(server: RunningServer, status: int) -> float:
    lines = server.internal().get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("llm_requests_total{") and f'status="{status}"' in line)


def test_the_table_has_every_reason_as_it_is() -> None:
    assert table() == {each.__name__: (each.status, each.type, each.code) for each in reasons()}


@pytest.mark.parametrize(("reason", "method", "path", "body"), PROVOKED, ids=[each[0] for each in PROVOKED])
def test_a_mistake_is_answered_and_counted_as_the_table_says(
    server: RunningServer, reason: str, method: str, path: str, body: bytes
) -> None:
    status, kind, code = table()[reason]
    before = counted(server, status)
    response = server.requests().request(method, path, content=body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (status, kind, code)
    assert counted(server, status) - before == 1
