"""The routes that say how the gateway is, and show the sandbox."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from smsgw import metrics
from smsgw.api import views
from smsgw.api.parsing import query
from smsgw.api.parsing import reads as read_as
from smsgw.api.wire import Json
from smsgw.errors import NotReady, ShuttingDown
from smsgw.gateway import Gateway


class StatusRoutes:
    """``/health``, ``/ready``, ``/metrics``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def health(self, request: Request) -> Response:
        """``GET /health``: the process answers."""
        query(request.scope["query_string"], {})
        return Json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """``GET /ready``: messages are taken and can leave."""
        query(request.scope["query_string"], {})
        return Json(self.judge())

    def judge(self) -> dict[str, Any]:
        """Whether the gateway works, and what of it does not.

        Raises:
            NotReady: it takes nothing, or nothing can leave.
        """
        gateway = self._gateway
        if gateway.entrance.closed:
            raise ShuttingDown
        trouble = gateway.trouble()
        degraded = [f"{name}: {why}" for name, why in sorted(trouble.items())]
        if gateway.allotter.paused:
            degraded.append("paused: everything")
        degraded += [
            f"paused: provider {name}"
            for name, link in gateway.allotter.links.items()
            if link.paused
        ]
        degraded += [
            f"disabled: provider {name}"
            for name in gateway.settings.providers
            if gateway.fleet.is_disabled(name)
        ]
        if gateway.entrance.disk_full:
            degraded.append("disk: too little room")
        if gateway.clients_paused:
            degraded.append(f"paused: {gateway.clients_paused} clients")
        if not any(shard.trouble is None for shard in gateway.shards):
            raise NotReady("No shard works.", degraded=degraded)
        if not gateway.fleet.usable():
            why = "No operator is usable." if gateway.providers else "There is no operator."
            raise NotReady(why, degraded=degraded)
        return {"status": "ready", "degraded": degraded}

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``: Prometheus text; made in a thread, since it takes milliseconds."""
        query(request.scope["query_string"], {})
        page = await asyncio.to_thread(self._gateway.metrics.render)
        return Response(page, headers={"content-type": metrics.CONTENT_TYPE})


class SandboxRoutes:
    """``/v1/sandbox/messages``: what the mock operator's handsets received."""

    def __init__(self, gateway: Gateway) -> None:
        assert gateway.sandbox is not None
        self._sandbox = gateway.sandbox

    async def messages(self, request: Request) -> Response:
        """Look, or empty it."""
        return await (self.clear if request.method == "DELETE" else self.list)(request)

    async def list(self, request: Request) -> Response:
        """``GET``: newest first; waits for one that matches."""
        given = query(
            request.scope["query_string"], {"to": read_as.number, "wait_s": read_as.wait_s}
        )
        to = given.get("to")
        if given.get("wait_s"):
            found = await self._sandbox.wait(to, given["wait_s"])
        else:
            found = self._sandbox.find(to)
        return Json({"data": [views.handset(row) for row in found], "next_cursor": None})

    async def clear(self, request: Request) -> Response:
        """``DELETE``: empty it."""
        query(request.scope["query_string"], {})
        self._sandbox.clear()
        return Response(status_code=204)
