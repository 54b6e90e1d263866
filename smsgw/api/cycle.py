"""A request and its response as uvicorn has them, with a whole answer in one write."""

from uvicorn._types import (
    ASGISendEvent,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
)
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from smsgw.api.problems import problem
from smsgw.errors import InternalError


class EdgeCycle(RequestResponseCycle):
    """A request and its response, as uvicorn has them, written at once where possible."""

    _start: HTTPResponseStartEvent | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """Hold the head back until the body is there: one write and one packet for an answer."""
        if message["type"] == "http.response.start" and self._start is None:
            if not self.response_started:
                self._start = message
                return
        elif (start := self._start) is not None:
            self._start = None
            if message["type"] == "http.response.body" and self._is_whole(start, message):
                self._write_whole(start, message.get("body", b""))
                return
            await super().send(start)
        await super().send(message)

    def _is_whole(self, start: HTTPResponseStartEvent, body: HTTPResponseBodyEvent) -> bool:
        return (
            not body.get("more_body", False)
            and self.scope["method"] != "HEAD"
            and not self.flow.write_paused
            and not self.disconnected
            and any(name == b"content-length" for name, _ in start.get("headers", ()))
        )

    def _write_whole(self, start: HTTPResponseStartEvent, body: bytes) -> None:
        """Write an answer; its headers are our own, so they need no second look."""
        self.response_started = True
        self.waiting_for_100_continue = False
        pieces = [STATUS_LINE[start["status"]]]
        for name, value in (*self.default_headers, *start.get("headers", ())):
            if name == b"connection":
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            if name == b"content-length":
                assert int(value) == len(body), "a content-length that is not the body's"
            pieces += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            pieces.append(b"connection: close\r\n")
        pieces += (b"\r\n", body)
        self.transport.write(b"".join(pieces))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    async def send_500_response(self) -> None:
        """Answer for an application that failed without an answer of its own."""
        status, body, headers = problem(InternalError())
        headers.append((b"connection", b"close"))
        await self.send(
            {"type": "http.response.start", "status": status, "headers": headers, "trailers": False}
        )
        await self.send({"type": "http.response.body", "body": body, "more_body": False})
