"""The routes: which path does what, on the clients' port and on the internal one. Each reads, asks `Inference`, and answers.

Bodies are read and written by msgspec: a token never meets pydantic.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive

from millrace_server.engine.handle import Dead, Loading
from millrace_server.errors import ClientLeft, RequestError, error_response, http_error
from millrace_server.exchange import Exchange
from millrace_server.inference import Inference
from millrace_server.limits import BodyLimits
from millrace_server.protocol import Health, InferRequest, MetricsReport, QueueReport, read

INFER = "/api/v1/infer"
INFERENCE_ENDPOINTS = frozenset({INFER})

Result = TypeVar("Result")


def client_app(inference: Inference, *, drain_began: Callable[[], float | None]) -> FastAPI:
    """The clients' port. `drain_began` is the monotonic time of the end's announcement, None before."""
    settings, metrics = inference.settings, inference.metrics
    app = _bare_app()

    def observe(endpoint: str, status: int, seconds: float) -> None:
        metrics.answered(endpoint, status, seconds, now=time.monotonic())

    app.add_middleware(BodyLimits, max_bytes=settings.max_body_bytes, timeout=settings.body_timeout)
    app.add_middleware(Exchange, observe=observe, is_draining=lambda: inference.is_draining, log_level=logging.INFO)

    @app.post(INFER)
    async def infer(request: Request) -> Response:
        body = read(await request.body(), InferRequest)
        answer = inference.infer(
            body,
            request_id=request.state.request_id,
            arrived=request.state.arrived,
            is_welcome=_is_welcome(request, drain_began()),
        )
        return _json(await while_connected(request.receive, answer))

    @app.get("/health")
    async def health() -> Response:
        status = inference.status()
        report = Health(
            status=status,
            model_loaded=inference.is_loaded(),
            queue_size=inference.admission.queued,
            metrics=metrics.health(now=time.monotonic()),
        )
        return _json(report, status_code=200 if status == "healthy" else 503)

    @app.get("/metrics")
    async def metrics_report(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        if "text/plain" in accept or "openmetrics" in accept:
            return _prometheus(inference, accept)
        now = time.monotonic()
        admission = inference.admission
        return _json(
            MetricsReport(
                requests=metrics.requests(),
                throughput=metrics.throughput(now=now),
                latency=metrics.latency(now=now),
                system=metrics.system(),
                cache=inference.cache.report(),
                queue=QueueReport(size=admission.queued, running=admission.running, slots=admission.slots, limit=admission.capacity),
            )
        )

    return app


def internal_app(inference: Inference) -> FastAPI:
    """The internal port: Prometheus, probes and the autoscaler; never reachable through the clients' Service."""
    app = _bare_app()
    app.add_middleware(BodyLimits, max_bytes=inference.settings.max_body_bytes, timeout=inference.settings.body_timeout)
    app.add_middleware(Exchange, observe=lambda endpoint, status, seconds: None, is_draining=lambda: False, log_level=logging.DEBUG)

    @app.get("/metrics")
    async def prometheus(request: Request) -> Response:
        return _prometheus(inference, request.headers.get("accept", ""))

    @app.get("/internal/load")
    async def load() -> Response:
        return _json(inference.load())

    @app.get("/livez")
    async def livez() -> Response:
        failure = liveness_failure(inference, now=time.monotonic())
        return Response(failure or "ok", status_code=503 if failure else 200, media_type="text/plain")

    @app.get("/readyz")
    async def readyz() -> Response:
        status = inference.status()
        return Response("ok" if status == "healthy" else status, status_code=200 if status == "healthy" else 503, media_type="text/plain")

    return app


def liveness_failure(inference: Inference, *, now: float) -> str | None:
    """Why a restart would help: a load that stands still, an engine that is gone for good. None while there is hope."""
    state = inference.engine.state
    if isinstance(state, Dead) and not state.restarts:
        return "the engine is gone and does not come back"
    limit = inference.settings.load_stall_seconds
    if isinstance(state, Loading) and now - state.changed_at > limit:
        return (
            f"loading stands still at {state.stage} {state.done} of {state.total} since {now - state.changed_at:.0f} s (limit {limit:g} s)"
        )
    return None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, or ClientLeft once `work` is cancelled. The request's body must have been read."""

    async def departure() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(departure())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
            raise ClientLeft("the client left before its answer")
        return working.result()
    finally:
        watching.cancel()
        working.cancel()


def _is_welcome(request: Request, drain_began: float | None) -> bool:
    """A client that keeps its connection could not know that the server is about to leave: it gets one more answer, which says so."""
    connection = getattr(request.state, "connection", None)
    return drain_began is None or (connection is not None and connection.opened < drain_began)


def _bare_app() -> FastAPI:
    """No documentation pages, no redirects, and every error in our shape."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    async def request_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestError):
            raise error
        return error_response(error)

    async def http_exception(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        known = ", ".join(sorted({path for route in app.routes if (path := getattr(route, "path", None))}))
        path = request.url.path[:200]
        messages = {
            404: f"{path} is not a route of this server; the routes are {known}",
            405: f"{request.method} is not allowed on {path}",
        }
        return error_response(http_error(error.status_code, messages.get(error.status_code, str(error.detail))), headers=error.headers)

    app.add_exception_handler(RequestError, request_error)
    app.add_exception_handler(HTTPException, http_exception)
    return app


def _json(value: msgspec.Struct, *, status_code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status_code, media_type="application/json")


def _prometheus(inference: Inference, accept: str) -> Response:
    body, content_type = inference.metrics.prometheus(accept)
    return Response(body, headers={"content-type": content_type})
