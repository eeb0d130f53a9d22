"""/livez, /readyz and /metrics of the operator, answered by the loop that does the work."""

from collections.abc import Callable

from aiohttp import web

from millrace_operator.metrics import CONTENT_TYPE


class Probes:
    """`sick` says why the process should be restarted, or None; `unable` why it could not lead, or None: a standby is ready too."""

    def __init__(
        self, *, port: int, sick: Callable[[], str | None], unable: Callable[[], str | None], metrics: Callable[[], bytes]
    ) -> None:
        self._port = port
        self._sick = sick
        self._unable = unable
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Returns the port that is listened on."""
        app = web.Application()
        app.add_routes([web.get("/livez", self._livez), web.get("/readyz", self._readyz), web.get("/metrics", self._prometheus)])
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        # Without a host it listens on IPv4 and IPv6, which would be two ports if the port were free to choose.
        site = web.TCPSite(self._runner, None if self._port else "127.0.0.1", self._port)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(self._sick())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._unable())

    async def _prometheus(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"Content-Type": CONTENT_TYPE})


def _answer(reason: str | None) -> web.Response:
    return web.Response(text="ok") if reason is None else web.Response(text=reason, status=503)
