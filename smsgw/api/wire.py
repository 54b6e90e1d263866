"""Small things that every route needs: JSON out, the Idempotency-Key in."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Scope, Send

from smsgw.errors import InvalidRequest

to_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_JSON_HEADER: Final = (b"content-type", b"application/json")
_KEY: Final = re.compile(r"[!-~]{1,255}")


def to_json(content: Any) -> bytes:
    """A value as UTF-8 JSON; what is no text in UTF-8 is escaped."""
    return to_text(content).encode("utf-8", "backslashreplace")


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode it."""
        return to_json(content)


async def send_json(send: Send, status: int, content: Mapping[str, Any]) -> None:
    """Answer without building a response object, where a route is hot."""
    body = to_json(content)
    headers = [_JSON_HEADER, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def idempotency_key(scope: Scope) -> str | None:
    """The Idempotency-Key of a request, without the quotes that may stand around it.

    Raises:
        InvalidRequest: it is not 1 to 255 visible ASCII characters, or there are two.
    """
    found = [value for name, value in scope["headers"] if name == b"idempotency-key"]
    return read_key(found) if found else None


def read_key(found: Sequence[bytes]) -> str:
    """The key that these headers give.

    Raises:
        InvalidRequest: it is not 1 to 255 visible ASCII characters, or there are two.
    """
    key = found[0].decode("latin-1").strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if len(found) > 1 or not _KEY.fullmatch(key):
        says = "must be given once, as 1 to 255 visible ASCII characters"
        raise InvalidRequest(
            f"Idempotency-Key {says}.", fields=[{"field": "Idempotency-Key", "message": says}]
        )
    return key
