"""The routes of a client's own money: me, statement, reports."""

import csv
import io
import uuid
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from smsgw.api import views
from smsgw.api.parsing import query, wrong_field
from smsgw.api.parsing import reads as read_as
from smsgw.api.wire import Json
from smsgw.archive import Archive, ReportRow
from smsgw.clock import day_of
from smsgw.gateway import Gateway

DAYS_DEFAULT: Final = 30
_COLUMNS: Final = ("key", "messages", "parts", "held", "charged", "released", "delivered_share")


class AccountRoutes:
    """``/v1/me``, ``/v1/me/statement`` and ``/v1/reports``."""

    def __init__(self, gateway: Gateway, archive: Archive) -> None:
        self._gateway = gateway
        self._archive = archive

    async def me(self, request: Request) -> Response:
        """``GET /v1/me``."""
        given = query(request.scope["query_string"], {"client_id": read_as.uuid})
        return Json(views.account(await self._archive.account(_client_id(given))))

    async def statement(self, request: Request) -> Response:
        """``GET /v1/me/statement``."""
        given = query(
            request.scope["query_string"],
            {"client_id": read_as.uuid, "limit": read_as.limit, "cursor": read_as.text},
        )
        client_id = _client_id(given)
        rows, following = await self._archive.statement(
            client_id, given.get("limit", 50), given.get("cursor")
        )
        owner = uuid.UUID(bytes=client_id)
        # An entry has no id of its own on disk: client and sequence name it for ever.
        data = [views.entry(row, str(uuid.uuid5(owner, str(row[0])))) for row in rows]
        return Json({"data": data, "next_cursor": following})

    async def report(self, request: Request) -> Response:
        """``GET /v1/reports``, as JSON or CSV."""
        given = query(
            request.scope["query_string"],
            {
                "client_id": read_as.uuid,
                "since": read_as.day,
                "until": read_as.day,
                "group_by": read_as.group_by,
            },
        )
        client_id = _client_id(given)
        last = given.get("until", day_of(self._gateway.clock.now_ms()))
        first = given.get("since", last - DAYS_DEFAULT + 1)
        if first > last:
            raise wrong_field("since", "must not lie after until")
        rows, totals = await self._archive.report(
            client_id, first, last, given.get("group_by", "day")
        )
        if "text/csv" in request.headers.get("accept", ""):
            return _csv(rows, totals)
        return Json(
            {
                "data": [views.report_row(row) for row in rows],
                "totals": {k: v for k, v in views.report_row(totals).items() if k != "key"},
            }
        )


def _client_id(given: dict[str, Any]) -> bytes:
    if "client_id" not in given:
        raise wrong_field("client_id", "is required")
    client_id: bytes = given["client_id"]
    return client_id


def _csv(rows: list[ReportRow], totals: ReportRow) -> Response:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_COLUMNS)
    for row in (*rows, totals):
        view = views.report_row(row)
        # A sender may begin with what a spreadsheet takes for a formula.
        key = f"'{view['key']}" if str(view["key"])[:1] in "=+-@" else view["key"]
        writer.writerow([key, *(view[column] for column in _COLUMNS[1:])])
    return Response(out.getvalue(), media_type="text/csv; charset=utf-8")
