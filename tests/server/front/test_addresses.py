"""What a request names by its address is not fetched: nobody makes this server call others."""

import socket
from typing import Any

import pytest

from running_server import RunningServer

CHAT = "/v1/chat/completions"


def part(kind: str, value: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": kind, kind: value}]}]}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, part("image_url", {"url": "{address}"})),
        (CHAT, part("input_audio", {"data": "{address}", "format": "wav"})),
        (CHAT, part("file", {"file_id": "{address}"})),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "web_search_options": {"url": "{address}"}}),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "mcp", "server_url": "{address}"}]}),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "model": "{address}"}),
        (
            CHAT,
            {
                "messages": [{"role": "user", "content": "a"}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "{address}"}}},
            },
        ),
        ("/v1/completions", {"prompt": "a", "model": "{address}"}),
        ("/api/v1/infer", {"prompt": "a", "callback_url": "{address}"}),
    ],
)
def test_an_address_is_refused_and_not_called(server: RunningServer, path: str, fields: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        address = f"http://127.0.0.1:{canary.getsockname()[1]}/secret"
        body = filled({"model": "tiny", "max_tokens": 1, **fields} if path != "/api/v1/infer" else fields, address)
        assert server.requests().request("POST", path, json=body).status_code in (400, 404)
        with pytest.raises(BlockingIOError):
            canary.accept()


def filled(value: Any, address: str) -> Any:  # noqa: ANN401 - any JSON
    match value:
        case dict():
            return {name: filled(each, address) for name, each in value.items()}
        case list():
            return [filled(each, address) for each in value]
        case "{address}":
            return address
    return value
