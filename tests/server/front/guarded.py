"""A real server with API keys, two tenants, and secrets in its environment that nobody may see again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from millrace_server.keys.entries import make
from running_server import RunningServer

CANARY = "canary-that-nobody-logs"
ALICE, ALICE_LINE = make("alice")
BOB, BOB_LINE = make("bob")
SECRETS = {
    "CACHE_SECRET": f"{CANARY}-cache-secret",
    "REDIS_URL": f"redis://:{CANARY}@127.0.0.1:1/0",
    "HF_TOKEN": f"{CANARY}-hub",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-cloud",
    "DATABASE_URL": f"postgres://u:{CANARY}@db/x",
    "npm_config_http_proxy": f"http://u:{CANARY}@proxy",
}


@dataclass
class Guarded:
    """A server whose key file may be written anew."""

    server: RunningServer
    file: Path

    def swap(self, *lines: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text("\n".join(lines))
        new.rename(self.file)

    def get(self, path: str, key: str | None = ALICE, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        return self.request("GET", path, key, **options)

    def request(self, method: str, path: str, key: str | None = ALICE, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        return self.server.requests().request(method, path, headers={**headers, **options.pop("headers", {})}, **options)

    def infer(self, prompt: str, key: str | None = ALICE, **fields: Any) -> httpx.Response:  # noqa: ANN401 - any JSON
        return self.request("POST", "/api/v1/infer", key, json={"prompt": prompt, **fields})

    def used(self, name: str, **labels: str) -> float:
        """Of the internal port's series."""
        return self.server.metric(name, **labels)
