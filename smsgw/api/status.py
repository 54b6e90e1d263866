"""The routes that say how the gateway is, take receipts, and show the sandbox."""

import asyncio
import hmac
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from smsgw import metrics
from smsgw.api import views
from smsgw.api.edge import read_body
from smsgw.api.parsing import parse, query
from smsgw.api.parsing import reads as read_as
from smsgw.api.schemas import ReceiptRequest
from smsgw.api.wire import Json
from smsgw.errors import InvalidToken, NotReady, ShuttingDown, UnknownRoute
from smsgw.gateway import Gateway
from smsgw.operators import MockProviderSettings

RECEIPT_S: Final = 5.0
"""How long an operator waits for its receipt to be stored; it will send it again."""


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
        if gateway.entrance.disk_full:
            degraded.append("disk: too little room")
        if gateway.clients_paused:
            degraded.append(f"paused: {gateway.clients_paused} clients")
        if not any(shard.trouble is None for shard in gateway.shards):
            raise NotReady("No shard works.", degraded=degraded)
        if not any(provider.trouble is None for provider in gateway.providers.values()):
            why = "No operator is usable." if gateway.providers else "There is no operator."
            raise NotReady(why, degraded=degraded)
        return {"status": "ready", "degraded": degraded}

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``: Prometheus text; made in a thread, since it takes milliseconds."""
        query(request.scope["query_string"], {})
        page = await asyncio.to_thread(self._gateway.metrics.render)
        return Response(page, headers={"content-type": metrics.CONTENT_TYPE})


class ReceiptRoutes:
    """``/v1/providers/{name}/dlr``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def dlr(self, request: Request) -> Response:
        """Take a receipt; answered once it is on disk."""
        name = request.path_params["name"]
        settings = self._gateway.settings.providers.get(name)
        token = "" if settings is None else settings.receipt_token.get_secret_value()
        open_mock = self._gateway.dev and isinstance(settings, MockProviderSettings)
        if settings is None or not (token or open_mock):
            raise UnknownRoute
        if token and not _bears(request, token):
            raise InvalidToken
        receipt = parse(ReceiptRequest, await read_body(request.scope, request.receive))
        await self._gateway.receipts.take_within(
            RECEIPT_S, name, receipt.provider_message_id, receipt.status, receipt.reason
        )
        return Response(status_code=204)


def _bears(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    return scheme.lower() == "bearer" and same


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
