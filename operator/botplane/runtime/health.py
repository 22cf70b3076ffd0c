"""What probes and Prometheus ask: /livez, /readyz and /metrics on one port."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

Check = Callable[[], str | None]
"""Returns what is wrong, or None."""


async def serve(port: int, live: Check, ready: Check) -> web.AppRunner:
    """Start the server and return its runner; call `cleanup()` on it to stop.

    Args:
        port: TCP port, on all addresses; 0 takes a free one.
        live: A failure makes the kubelet restart the process.
        ready: A failure takes the process out of service.
    """
    app = web.Application()

    def probe(check: Check) -> Callable[[web.Request], object]:
        async def answer(_request: web.Request) -> web.Response:
            problem = check()
            return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

        return answer

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/livez", probe(live))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
