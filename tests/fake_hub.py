"""A model hub on a loopback port: the few endpoints that huggingface_hub asks for one repository, and the ways in which a hub fails."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

REPO = "acme/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `files` of REPO at COMMIT (and its branch main). A context; `url` is for HF_ENDPOINT."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.token: str | None = None
        """When set, only requests with this bearer token are answered."""
        self.is_gated = False
        self.is_broken = False
        self.broken_file = ""
        """The one whose content cannot be had."""
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and Range header of everything that was asked."""

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append(("GET", self.path, self.headers["Range"]))
                Answer(hub, self).get()

            def do_HEAD(self) -> None:
                hub.requests.append(("HEAD", self.path, None))
                Answer(hub, self).get()

            def log_message(self, *_: object) -> None:
                """Tests read `requests`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """The files whose content was asked for."""
        return sorted({path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path})


class Answer:
    def __init__(self, hub: FakeHub, handler: BaseHTTPRequestHandler) -> None:
        self._hub = hub
        self._handler = handler

    def get(self) -> None:
        path = unquote(urlsplit(self._handler.path).path)
        if self._hub.is_broken:
            return self._error(503, "", "")
        if self._hub.is_gated:
            return self._error(403, "GatedRepo", "Access to this model is restricted")
        authorization = self._handler.headers["Authorization"]
        if self._hub.token is not None and authorization != f"Bearer {self._hub.token}":
            return self._error(401, "", "Invalid credentials in Authorization header" if authorization else "")
        if match := re.fullmatch(rf"/api/models/{REPO}(?:/(revision|tree)/([^/]+))?", path):
            kind, revision = match.group(1) or "revision", match.group(2) or "main"
            if revision not in ("main", COMMIT):
                return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return self._json(self._tree() if kind == "tree" else self._info())
        if match := re.fullmatch(rf"/{REPO}/resolve/{COMMIT}/(.+)", path):
            return self._file(match.group(1))
        return self._error(404 if authorization else 401, "RepoNotFound", "Repository not found")

    def _info(self) -> object:
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self._hub.files.items()]
        return {"_id": "1", "id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": siblings}

    def _tree(self) -> object:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self._hub.files.items()
        ]

    def _file(self, name: str) -> None:
        if name not in self._hub.files:
            return self._error(404, "EntryNotFound", "Entry not found")
        if name == self._hub.broken_file and self._handler.command == "GET":
            return self._error(500, "", "")
        content = self._hub.files[name]
        requested = self._handler.headers["Range"]
        start = int(requested.removeprefix("bytes=").split("-")[0]) if requested else 0
        part = content[start:]
        self._handler.send_response(206 if requested else 200)
        self._handler.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self._handler.send_header("X-Repo-Commit", COMMIT)
        self._handler.send_header("Accept-Ranges", "bytes")
        self._handler.send_header("Content-Length", str(len(part)))
        if requested:
            self._handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self._handler.end_headers()
        if self._handler.command == "GET":
            self._handler.wfile.write(part)
        return None

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._handler.send_response(200)
        self._handler.send_header("Content-Type", "application/json")
        self._handler.send_header("Content-Length", str(len(body)))
        self._handler.end_headers()
        self._handler.wfile.write(body)

    def _error(self, status: int, code: str, message: str) -> None:
        self._handler.send_response(status)
        self._handler.send_header("X-Error-Code", code)
        self._handler.send_header("X-Error-Message", message)
        self._handler.send_header("Content-Length", "0")
        self._handler.end_headers()
