"""What answers in the place of an API server, for answers that a real one cannot be made to give: conflicts without end, nonsense."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import yaml

from millrace_operator.manifest import Manifest

Answer = Callable[[str, str, Manifest], tuple[int, Manifest | bytes]]
"""(method, path without query, body) → (status, body)."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that is killed hangs up in mid-sentence."""


class FakeApi:
    """`with FakeApi(answer) as api:`; every request is noted as (method, path)."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[tuple[str, str]] = []
        noted = self.requests

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                path = self.path.partition("?")[0]
                noted.append((self.command, path))
                given = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answered = answer(self.command, path, json.loads(given or "{}"))
                content = answered if isinstance(answered, bytes) else json.dumps(answered).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - names that http.server looks for

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def count(self, method: str, end_of_path: str) -> int:
        return sum(each == method and path.endswith(end_of_path) for each, path in list(self.requests))

    def kubeconfig(self, folder: Path) -> Path:
        """By which an operator finds this API server."""
        return kubeconfig_of(f"http://127.0.0.1:{self._server.server_address[1]}", folder)


def kubeconfig_of(url: str, folder: Path) -> Path:
    """Of somebody without a name."""
    result = folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "nobody", "user": {"token": "none"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "nobody"}}],
        "current-context": "fake",
    }
    result.write_text(yaml.safe_dump(content))
    return result


class Lease:
    """There is none at first; then it is as it was last written."""

    def __init__(self) -> None:
        self.stored: Manifest | None = None

    def answer(self, method: str, body: Manifest) -> tuple[int, Manifest]:
        if method != "GET":
            self.stored = {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}
        return (200, self.stored) if self.stored else (404, {})
