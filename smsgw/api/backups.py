"""Backups: begun, looked at, given up. On the Unix socket only."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from smsgw.api.edge import read_body
from smsgw.api.parsing import parse, query
from smsgw.api.parsing import reads as read_as
from smsgw.api.schemas import BackupRequest
from smsgw.api.wire import Json
from smsgw.errors import InvalidRequest
from smsgw.gateway import Gateway


class BackupRoutes:
    """Everything under ``/admin/backup``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """All routes about backups."""
        return [
            Route("/admin/backup", self.start, methods=["POST"]),
            Route("/admin/backup", self.look, methods=["GET"]),
            Route("/admin/backup", self.stop, methods=["DELETE"]),
        ]

    async def start(self, request: Request) -> Response:
        """Begin a backup."""
        wanted = parse(BackupRequest, await read_body(request.scope, request.receive))
        target = Path(wanted.directory)
        if not target.is_absolute():
            raise InvalidRequest("The directory of a backup must be an absolute path.")
        self._gateway.back_up(target)
        return Json(await self._gateway.backups.state(), 202)

    async def look(self, request: Request) -> Response:
        """How far it is, and what came of it."""
        given = query(request.scope["query_string"], {"wait_s": read_as.wait_s})
        return Json(await self._gateway.backups.state(given.get("wait_s", 0)))

    async def stop(self, request: Request) -> Response:
        """Give it up."""
        query(request.scope["query_string"], {})
        await self._gateway.backups.stop()
        return Json(await self._gateway.backups.state())
