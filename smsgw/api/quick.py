"""The short way of the request that every message is: no scope, no task, no future.

An ASGI application costs a request more than all the rest of accepting a message. So a plain POST
to one path that arrived whole, on a connection that owes nothing else, is handed to a function that
answers by a call, when the message is on disk. Everything else goes to the application.
"""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from smsgw import logs
from smsgw.api.problems import Headers, problem
from smsgw.errors import InternalError, SmsgwError

if TYPE_CHECKING:
    from smsgw.api.protocol import EdgeProtocol

PATH: Final = "/v1/messages"
RAW_PATH: Final = PATH.encode()

Answer = Callable[[int, bytes], None]
"""Answers with a status and a JSON body."""
Refuse = Callable[[SmsgwError], None]
"""Answers with a problem document."""
Handle = Callable[[Mapping[bytes, bytes], bytes, Answer, Refuse], bool]
"""Takes a request's header fields and its body; False leaves it to the application.

It may raise a refusal; once it has returned True, it calls one of the two exactly once.
"""

log: Final = logs.get(__name__)


class _NobodyWaits:
    """The event of a request whose body is all there."""

    def set(self) -> None:
        """Wake nobody."""


class Exchange:
    """A request on the short way; its connection treats it like one of uvicorn's cycles."""

    __slots__ = (
        "_begun_s",
        "_protocol",
        "body",
        "disconnected",
        "fields",
        "keep_alive",
        "more_body",
        "request_id",
        "response_complete",
        "response_started",
    )
    message_event: Final = _NobodyWaits()

    def __init__(
        self,
        protocol: "EdgeProtocol",
        fields: Mapping[bytes, bytes],
        request_id: bytes,
        *,
        keep_alive: bool,
    ) -> None:
        self._protocol = protocol
        self._begun_s = perf_counter()
        self.fields = fields
        self.request_id = request_id
        self.keep_alive = keep_alive
        self.body = b""
        self.more_body = False
        self.disconnected = False
        self.response_started = False
        self.response_complete = False

    def run(self, handle: Handle) -> bool:
        """Hand the request over; False where it needs the application."""
        try:
            return handle(self.fields, self.body, self.answer, self.refuse)
        except SmsgwError as refusal:
            self.refuse(refusal)
        except Exception as error:  # noqa: BLE001
            # As at the edge of the application: no defect may leave a client without an answer.
            log.error(  # noqa: TRY400
                "request.failed",
                "A request failed by a defect of ours.",
                error=error,
                method="POST",
                route=PATH,
            )
            self.refuse(InternalError())
        return True

    def answer(self, status: int, body: bytes) -> None:
        """Answer with JSON."""
        self._write(
            status,
            b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
            body,
        )

    def refuse(self, error: SmsgwError) -> None:
        """Answer with a problem document."""
        status, body, headers = problem(error)
        self._write(status, joined(headers), body)

    def _write(self, status: int, head: bytes, body: bytes) -> None:
        protocol = self._protocol
        self.response_started = self.response_complete = True
        if not self.disconnected:
            protocol.transport.write(
                b"%b%bx-request-id: %b\r\n%b%b\r\n%b"
                % (
                    STATUS_LINE[status],
                    protocol.common_head(),
                    self.request_id,
                    head,
                    b"" if self.keep_alive else b"connection: close\r\n",
                    body,
                )
            )
            if not self.keep_alive:
                protocol.transport.close()
            protocol.on_response_complete()
        protocol.observe(PATH, "POST", status, perf_counter() - self._begun_s)


def joined(headers: Headers) -> bytes:
    """Headers as they are written."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)
