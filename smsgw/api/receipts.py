"""The routes where operators report: in our form, or in their own with the token in the path."""

import hmac
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from smsgw.api.edge import read_body
from smsgw.api.parsing import parse, wrong_field
from smsgw.api.schemas import ReceiptRequest
from smsgw.errors import InvalidToken, MalformedRequest, UnknownRoute
from smsgw.gateway import Gateway
from smsgw.logs import get
from smsgw.operators import HttpProviderSettings, MockProviderSettings, ProviderSettings
from smsgw.providers.http.reading import Receipts, Report, parsed

log = get(__name__)

RECEIPT_S: Final = 5.0
"""How long an operator waits for its receipt to be stored; it will send it again."""
FIELDS_MAX: Final = 100

_FORM: Final = "application/x-www-form-urlencoded"


class ReceiptRoutes:
    """``/v1/providers/{name}/dlr``, and ``…/dlr/{token}``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def dlr(self, request: Request) -> Response:
        """Take a receipt; answered once it is on disk."""
        name, settings, token = self._operator(request)
        open_mock = self._gateway.dev and isinstance(settings, MockProviderSettings)
        if not (token or open_mock):
            raise UnknownRoute
        if token and not _bears(request, token):
            raise InvalidToken
        if isinstance(settings, HttpProviderSettings):
            return await self._take_all(name, settings, request)
        receipt = parse(ReceiptRequest, await read_body(request.scope, request.receive))
        report = Report(receipt.provider_message_id, receipt.status, receipt.reason)
        await self._take(name, report)
        return Response(status_code=204)

    async def dlr_of_token(self, request: Request) -> Response:
        """The same for operators that set no headers, in the fields that they have."""
        name, settings, token = self._operator(request)
        if not token:
            raise UnknownRoute
        if not _same(request.path_params["token"], token):
            raise InvalidToken
        return await self._take_all(name, settings, request)

    def _operator(self, request: Request) -> tuple[str, ProviderSettings, str]:
        name = request.path_params["name"]
        settings = self._gateway.reporting.get(name)
        if settings is None:
            raise UnknownRoute
        return name, settings, settings.receipt_token.get_secret_value()

    async def _take_all(self, name: str, settings: ProviderSettings, request: Request) -> Response:
        receipts = Receipts(settings)
        fields = await _fields(request)
        # Some ask without any field whether there is somebody.
        try:
            reports, mistakes = receipts.read(fields) if fields else ([], [])
        except ValueError as error:
            reports, mistakes = [], [str(error)]
        for report in reports:
            await self._take(name, report)
        if mistakes:
            self._gateway.metrics.receipt("unreadable", len(mistakes))
            log.warning(
                "receipt.unreadable",
                "a receipt cannot be read",
                provider=name,
                field=mistakes[0],
                receipts=len(mistakes),
            )
            if not reports:
                # What can be read is taken: with its whole list it would be sent again for ever.
                raise wrong_field(mistakes[0], "is missing, or not a text of fair length")
        if receipts.answer:
            return PlainTextResponse(receipts.answer)
        return Response(status_code=204)

    async def _take(self, name: str, report: Report) -> None:
        await self._gateway.receipts.take_within(
            RECEIPT_S,
            name,
            report.provider_message_id,
            report.word,
            report.reason,
            others=(report.reference,) if report.reference else (),
            about=report.about,
        )


async def _fields(request: Request) -> Any:
    """What a request says: the fields of its query, and over them those of its body.

    Raises:
        MalformedRequest: the body is neither JSON nor a form.
    """
    fields: dict[str, Any] = _form(request.scope["query_string"])
    body = await request.body()
    if not body.strip():
        return fields
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    said = _form(body) if kind == _FORM else parsed(body)
    if isinstance(said, dict):
        return fields | said
    if isinstance(said, list):
        return said
    raise MalformedRequest("The body is neither a JSON object nor a form.")


def _form(text: bytes) -> dict[str, Any]:
    try:
        pairs = parse_qsl(
            text.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FIELDS_MAX
        )
    except ValueError:
        raise MalformedRequest(f"There are more than {FIELDS_MAX} fields.") from None
    return dict(pairs)


def _bears(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return _same(given.strip(), token) and scheme.lower() == "bearer"


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
