"""The routes: which path does what, on the clients' port and on the internal one. Each reads, asks `Inference`, and answers.

Bodies are read and written by msgspec: a token never meets pydantic.
"""

import logging
import time

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from millrace_server import caller, openapi, tokenizing
from millrace_server.caller import DrainBegan
from millrace_server.connected import while_connected
from millrace_server.engine.handle import Dead, Loading
from millrace_server.errors import RequestError, error_response, http_error
from millrace_server.exchange import Exchange
from millrace_server.inference import Inference
from millrace_server.keys import Authentication, KeyRing
from millrace_server.limits import BodyLimits
from millrace_server.openai import routes as openai
from millrace_server.protocol import HEALTH, INFER, METRICS, Health, InferRequest, MetricsReport, QueueReport, json_response, read
from millrace_server.question import Call

OPEN_PATHS = frozenset({HEALTH})
"""Of the clients' port: all that nobody needs a key for."""
INFERENCE_ENDPOINTS = frozenset({INFER, openai.COMPLETIONS, openai.CHAT_COMPLETIONS})


def client_app(inference: Inference, *, drain_began: DrainBegan, keys: KeyRing | None) -> FastAPI:
    """The clients' port; without `keys` it is open to everybody."""
    settings, metrics = inference.settings, inference.metrics
    app = _bare_app()

    def observe(endpoint: str, status: int, seconds: float) -> None:
        metrics.answered(endpoint, status, seconds, now=time.monotonic())

    app.add_middleware(BodyLimits, max_bytes=settings.max_body_bytes, timeout=settings.body_timeout)
    if keys is not None:
        app.add_middleware(Authentication, keys=keys, usage=metrics.usage, open_paths=OPEN_PATHS)
    app.add_middleware(Exchange, observe=observe, is_draining=lambda: inference.is_draining, log_level=logging.INFO)

    def call_of(request: Request) -> Call:
        return caller.call(request, limit=settings.request_timeout, drain_began=drain_began)

    openai.add_routes(app, inference, call_of=call_of)
    tokenizing.add_routes(app, inference, call_of=call_of)
    if settings.api_docs:
        openapi.add_routes(app, has_keys=keys is not None)

    @app.post(INFER)
    async def infer(request: Request) -> Response:
        body = read(await request.body(), InferRequest)
        return json_response(await while_connected(request.receive, inference.infer(body, call_of(request))))

    @app.get(HEALTH)
    async def health() -> Response:
        status = inference.status()
        report = Health(
            status=status,
            model_loaded=inference.is_loaded(),
            queue_size=inference.admission.queued,
            metrics=metrics.health(now=time.monotonic()),
        )
        return json_response(report, status_code=200 if status == "healthy" else 503)

    @app.get(METRICS)
    async def metrics_report(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        if "text/plain" in accept or "openmetrics" in accept:
            return _prometheus(inference, accept, is_internal=False)
        now = time.monotonic()
        admission = inference.admission
        return json_response(
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
        return _prometheus(inference, request.headers.get("accept", ""), is_internal=True)

    @app.get("/internal/load")
    async def load() -> Response:
        return json_response(inference.load())

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
        known = ", ".join(sorted({path for route in app.routes if (path := getattr(route, "path_format", None))}))
        path = request.url.path[:200]
        messages = {
            404: f"{path} is not a route of this server; the routes are {known}",
            405: f"{request.method} is not allowed on {path}",
        }
        return error_response(http_error(error.status_code, messages.get(error.status_code, str(error.detail))), headers=error.headers)

    app.add_exception_handler(RequestError, request_error)
    app.add_exception_handler(HTTPException, http_exception)
    return app


def _prometheus(inference: Inference, accept: str, *, is_internal: bool) -> Response:
    body, content_type = inference.metrics.prometheus(accept, is_internal=is_internal)
    return Response(body, headers={"content-type": content_type})
