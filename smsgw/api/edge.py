"""The edge around the routes: whatever happens inside, the client gets one answer.

Plain ASGI, because every request passes here. What a route raises becomes its problem document;
nothing below has to know about HTTP.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smsgw import logs
from smsgw.api.problems import Headers, problem
from smsgw.errors import (
    InternalError,
    MethodNotAllowed,
    ShuttingDown,
    SmsgwError,
    UnknownRoute,
    UnsupportedMediaType,
)

Observe = Callable[[str, str, int, float], None]
"""Called once an answer: route template, method, status, seconds."""

UNKNOWN: Final = "unknown"
CLIENT_GONE: Final = 499
"""The status under which a request is counted whose client hung up before the answer."""

_JSON: Final = b"application/json"
_STOPPED: Final = "The gateway stopped before this request was answered; it may have taken effect."

log: Final = logs.get(__name__)


class Edge:
    """The outermost application: answers for what its routes raise, and counts every answer.

    Put it around a bare ``starlette.routing.Router``; a ``Starlette`` application would answer
    for its exceptions itself, as plain text.
    """

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request to its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = perf_counter()
        # A router says "no such route" by an exception only where there is an app around it.
        scope["app"] = self
        try:
            logs.request_id.set(scope["state"]["request_id"])
        except KeyError:  # called without a socket, and so without the protocol below
            scope.setdefault("state", {})["request_id"] = uuid.uuid4().hex
            logs.request_id.set(scope["state"]["request_id"])
        status = 0

        def watched(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, watched)
            assert status, "the route returned without an answer"
        except ClientDisconnect:
            status = status or CLIENT_GONE
        except asyncio.CancelledError:
            if not status:
                await _answer(watched, ShuttingDown(_STOPPED, outcome=UNKNOWN))
            raise
        except Exception as error:
            # The one place that catches everything: no defect may leave a client without an answer.
            if status:
                raise  # Half an answer cannot be mended: the server logs this and cuts.
            await _answer(watched, _error_for_client(error, scope), _allow(error))
        finally:
            seconds = perf_counter() - started_s
            self._observe(_template(scope), scope["method"], status, seconds)


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The whole body of a request, which must be JSON unless it is empty.

    Its size and its time are bounded by the protocol below.

    Raises:
        ClientDisconnect: the rest of the body will not come.
        UnsupportedMediaType: there is a body, and it is not said to be JSON.
    """
    blocks = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        blocks.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = blocks[0] if len(blocks) == 1 else b"".join(blocks)
    if body:
        require_json(scope["headers"])
    return body


def require_json(headers: Headers) -> None:
    """Refuse a body that is not ``application/json``; parameters do not matter.

    A browser sends that type to a foreign site only after asking, and we never answer yes.

    Raises:
        UnsupportedMediaType: another type, or none.
    """
    for name, value in headers:
        if name == b"content-type":
            if is_json(value):
                return
            break
    raise UnsupportedMediaType


def is_json(content_type: bytes) -> bool:
    """Whether a Content-Type is ``application/json``."""
    return content_type == _JSON or content_type.partition(b";")[0].strip().lower() == _JSON


def _error_for_client(error: Exception, scope: Scope) -> SmsgwError:
    if isinstance(error, HTTPException) and error.status_code == 404:
        return UnknownRoute()
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed()
    if isinstance(error, SmsgwError) and error.code != InternalError.code:
        return error
    log.error(
        "request.failed",
        "A request failed by a defect of ours.",
        error=error,
        method=scope["method"],
        route=_template(scope),
    )
    # Its own words may name files or rows: they are for the log.
    return InternalError()


def _template(scope: Scope) -> str:
    """The route's pattern, since a path would make a metric of every id."""
    template: str = getattr(scope.get("route"), "path", UNKNOWN)
    return template


def _allow(error: Exception) -> Headers:
    """The ``Allow`` header that a router gives with its 405."""
    headers = error.headers if isinstance(error, HTTPException) else None
    allowed = (headers or {}).get("Allow")
    return [(b"allow", ", ".join(sorted(allowed.split(", "))).encode())] if allowed else []


async def _answer(send: Send, error: SmsgwError, more_headers: Headers | None = None) -> None:
    status, body, headers = problem(error)
    headers += more_headers or []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
