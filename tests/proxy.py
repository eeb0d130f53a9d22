"""Stands between an operator and a real API server, to break what runs between them: kill at a write, silence, outages, deaf watches."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import httpx

from cluster.control_plane import ControlPlane
from fake_api import kubeconfig_of

PASSED_ON = ("Content-Type", "Accept")


@dataclass(frozen=True)
class Fault:
    """An answer that is not the API server's."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(self.status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(self.body))), *self.headers):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(self.body)


def failure(code: int, reason: str, message: str = "", **headers: str) -> Fault:
    """As the API server says that it failed; headers with `_` for `-`."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": message or reason}
    return Fault(code, json.dumps(status).encode(), tuple((name.replace("_", "-"), value) for name, value in headers.items()))


def watch_error(code: int, reason: str) -> Fault:
    """A watch that begins, fails and ends."""
    failed = json.loads(failure(code, reason).body)
    return Fault(200, json.dumps({"type": "ERROR", "object": failed}).encode() + b"\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    """`server_close` waits for every handler: one that still read from a connection that another thread has closed would take the bytes
    of whatever connection gets the same descriptor next.
    """

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in socketserver
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - as in socketserver
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """A client that is killed hangs up in mid-sentence."""


class Proxy:
    """`with Proxy(control_plane) as proxy:`; whoever uses it is the administrator.

    A watch that has something to say while `is_mute` stays open and never says anything more.
    """

    def __init__(self, control_plane: ControlPlane) -> None:
        self.is_mute = threading.Event()
        self.writes: list[tuple[str, str]] = []
        """(method, path) of all that were accepted, those of the Lease apart."""
        self.after_write: Callable[[int], None] = lambda _: None
        """Called with their number, before the writer is answered."""
        self.fault: Callable[[str, str], Fault | None] = lambda method, path: None
        """What is answered in the API server's place, by method and path with query; None: nothing is."""
        self.watches = 0
        """How many were begun."""
        self.told: list[bytes] = []
        """What watches brought, in the pieces in which it came."""
        self._compacted_at = 0
        self._is_down = threading.Event()
        self._ends = threading.Event()
        self._streams: set[socket.socket] = set()
        """Both ends of every watch."""
        proxy, upstream = self, control_plane.client()
        self._upstream = upstream

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
                if proxy._is_down.is_set():
                    self.close_connection = True
                elif fault := proxy._fault(self.command, self.path):
                    fault.send(self)
                elif "watch=true" in self.path:
                    self.close_connection = True
                    with suppress(httpx.HTTPError, OSError):
                        self._watch(headers)
                else:
                    self._ask(content, headers)

            def _ask(self, content: bytes, headers: dict[str, str]) -> None:
                answer = upstream.request(self.command, self.path, content=content, headers=headers, timeout=30)
                path = self.path.partition("?")[0]
                if self.command != "GET" and answer.is_success and "/leases" not in path:
                    proxy.writes.append((self.command, path))
                    proxy.after_write(len(proxy.writes))
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def _watch(self, headers: dict[str, str]) -> None:
                proxy.watches += 1
                proxy._streams.add(self.connection)
                with upstream.stream("GET", self.path, headers=headers, timeout=httpx.Timeout(30, read=None)) as answer:
                    proxy._streams.add(answer.extensions["network_stream"].get_extra_info("socket"))
                    self.send_response(answer.status_code)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                    self.end_headers()
                    for chunk in answer.iter_raw():
                        if proxy.is_mute.is_set():
                            proxy._ends.wait()
                        proxy.told.append(chunk)
                        self.wfile.write(chunk)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - names that http.server looks for

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def go_down(self) -> None:
        """Nothing is answered any more, and watches are cut."""
        self._is_down.set()
        self.cut_watches()

    def cut_watches(self) -> None:
        _cut(self._streams)

    def come_back(self) -> None:
        self._is_down.clear()

    def forget_what_happened(self) -> None:
        """No watch can go on from where it was cut, as after a compaction of etcd."""
        self._compacted_at = int(self._upstream.get("/api/v1/namespaces", params={"limit": 1}).json()["metadata"]["resourceVersion"])

    def _fault(self, method: str, path: str) -> Fault | None:
        return watch_error(410, "Expired") if self._is_too_old(path) else self.fault(method, path)

    def _is_too_old(self, path: str) -> bool:
        query = parse_qs(urlsplit(path).query)
        return "watch" in query and int(query.get("resourceVersion", ["0"])[0]) < self._compacted_at

    def kubeconfig(self, folder: Path) -> Path:
        """By which an operator finds this way to the API server."""
        return kubeconfig_of(f"http://127.0.0.1:{self._server.server_address[1]}", folder)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self.go_down()
        self._server.shutdown()
        self._thread.join()
        _cut(self._server.connections)
        self._server.server_close()
        self._upstream.close()


def _cut(streams: set[socket.socket]) -> None:
    """Who reads from them learns that they have ended, and closes them."""
    while streams:
        with suppress(OSError):
            streams.pop().shutdown(socket.SHUT_RDWR)
