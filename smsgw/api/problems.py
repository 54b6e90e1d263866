"""Errors on the wire: which HTTP status a code has, and how an error becomes an answer.

Every error is ``application/problem+json`` (RFC 9457), whoever finds it: a route, the edge around
the routes, or the protocol below them.
"""

import json
import math
from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from smsgw.errors import OtpUndeliverable, SmsgwError

Headers = list[tuple[bytes, bytes]]

TYPE_PREFIX: Final = "urn:smsgw:problem:"

PROBLEMS: Final[dict[str, tuple[int, str]]] = {
    "invalid_request": (400, "Invalid request"),
    "malformed_request": (400, "Malformed request"),
    "invalid_id": (400, "Invalid id"),
    "invalid_recipient": (400, "Invalid recipient"),
    "invalid_sender": (400, "Invalid sender"),
    "text_too_long": (400, "Text too long"),
    "conflicting_options": (400, "Conflicting options"),
    "invalid_token": (401, "Invalid token"),
    "insufficient_credits": (402, "Insufficient credits"),
    "forbidden_host": (403, "Forbidden host"),
    "unknown_client": (404, "Unknown client"),
    "unknown_message": (404, "Unknown message"),
    "unknown_route": (404, "Unknown route"),
    "no_live_code": (404, "No live code"),
    "method_not_allowed": (405, "Method not allowed"),
    "request_timeout": (408, "Request timeout"),
    "not_cancellable": (409, "Not cancellable"),
    "already_exists": (409, "Already exists"),
    "idempotency_in_progress": (409, "Request in progress"),
    "body_too_large": (413, "Body too large"),
    "unsupported_media_type": (415, "Unsupported media type"),
    "idempotency_mismatch": (422, "Idempotency-Key used before"),
    "too_many_requests": (429, "Too many requests"),
    "backlog_full": (429, "Backlog full"),
    "headers_too_large": (431, "Headers too large"),
    "internal_error": (500, "Internal error"),
    "otp_undeliverable": (503, "OTP undeliverable"),
    "express_guarantee_unavailable": (503, "Express guarantee unavailable"),
    "storage_unavailable": (503, "Storage unavailable"),
    "shutting_down": (503, "Shutting down"),
    "not_ready": (503, "Not ready"),
    "too_many_connections": (503, "Too many connections"),
}

_OTP_SENTENCE: Final = OtpUndeliverable().detail
_TRY_AGAIN: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


def problem(error: SmsgwError) -> tuple[int, bytes, Headers]:
    """The answer that tells a client about an error.

    Returns:
        The HTTP status, the body, and the headers that go with them.
    """
    status, title = PROBLEMS[error.code]
    document = {
        "type": TYPE_PREFIX + error.code,
        "title": title,
        "status": status,
        "detail": error.detail,
        "code": error.code,
        # Clients know an OTP refusal by this sentence, whatever the detail adds.
        "error": _OTP_SENTENCE if error.code == OtpUndeliverable.code else error.detail,
    }
    assert document.keys().isdisjoint(error.members), error.members
    # Escaped to ASCII: a detail may quote a lone surrogate, which UTF-8 has no bytes for.
    body = json.dumps(document | error.members, default=str, separators=(",", ":")).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
    ]
    if (retry_after_s := _retry_after_s(error, status)) is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    return status, body, headers


def problem_response(error: SmsgwError) -> Response:
    """The same answer as a Starlette response."""
    status, body, headers = problem(error)
    response = Response(body, status)
    response.raw_headers = headers
    return response


def _retry_after_s(error: SmsgwError, status: int) -> int | None:
    if error.code == OtpUndeliverable.code:
        return None
    if error.retry_after_s is None:
        return 1 if status in _TRY_AGAIN else None
    return max(1, math.ceil(error.retry_after_s))
