"""The connection: what uvicorn's HTTP protocol does not limit, limited.

uvicorn waits for ever for the rest of a request and reads headers and bodies of any size. Here a
connection has a deadline for what it owes, and a request that is too slow, too large, malformed or
meant for another host is answered with a problem document before any route sees it.

The usual request arrives in one block of data and pays almost nothing for this: deadlines are
attributes that one sweep for all connections looks at, and idle connections need no timer of
their own.
"""

import asyncio
import random
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from math import inf
from typing import Any, ClassVar, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn._types import (
    HTTPScope,
)
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from smsgw import logs
from smsgw.api.cycle import EdgeCycle
from smsgw.api.edge import UNKNOWN, Observe
from smsgw.api.problems import problem
from smsgw.api.quick import RAW_PATH, Exchange, Handle, joined
from smsgw.errors import (
    BodyTooLarge,
    ForbiddenHost,
    HeadersTooLarge,
    InternalError,
    MalformedRequest,
    RequestTimeout,
    SmsgwError,
    TooManyConnections,
)
from smsgw.settings import ServerSettings

BATCH_PATH: Final = b"/v1/messages/batch"
LINGER_S: Final = 2.0
"""How long a refused client may go on sending, unread, so that it gets to our answer."""

# What a connection is in the middle of receiving; also the index of its time limit.
_NOTHING: Final = 0
_HEAD: Final = 1
_BODY: Final = 2

_DUE_SOON: Final = -inf
"""A deadline that is set once the block of data at hand is read and its request still open."""

_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}")
_AUTHORITY: Final = re.compile(rb"(\[[0-9a-f:.]+\]|[^\[\]:/@]+)(?::\d*)?")
_UUID_RANDOM_BITS: Final = ((1 << 128) - 1) ^ (0xF << 76) ^ (0b11 << 62)
_UUID_VERSION_4: Final = (4 << 76) | (0b10 << 62)

log: Final = logs.get(__name__)


def edge_protocol(
    settings: ServerSettings,
    *,
    check_host: bool = True,
    observe: Observe | None = None,
    handle: Handle | None = None,
) -> type["EdgeProtocol"]:
    """The protocol class for one server, as ``uvicorn.Config(http=…, ws="none")`` takes it.

    Args:
        settings: the limits.
        check_host: whether Host and Origin matter; not on a Unix socket, which no browser reaches.
        observe: told of every answer that is given here and not by a route.
        handle: takes messages by the short way, if there is one.
    """

    class Bound(EdgeProtocol):
        _rules = Rules(settings, check_host, observe or _observe_nothing, handle)

    return Bound


class Rules:
    """What all connections of one server have in common."""

    def __init__(
        self,
        settings: ServerSettings,
        check_host: bool,
        observe: Observe,
        handle: Handle | None,
    ) -> None:
        # Copied, because every request asks, and a pydantic model answers slowly.
        self.connections_max = settings.connections_max
        self.header_bytes_max = settings.header_bytes_max
        self.body_bytes_max = settings.body_bytes_max
        self.batch_body_bytes_max = settings.batch_body_bytes_max
        self.idle_timeout_s = settings.idle_timeout_s
        self.header_timeout_s = settings.header_timeout_s
        self.check_host = check_host
        self.is_served = _host_rule(settings.allowed_hosts)
        self.observe = observe
        self.handle = handle
        self._common: tuple[object, bytes] = (None, b"")
        # Indexed by what a connection is receiving.
        self.limits_s = (
            settings.idle_timeout_s,
            settings.header_timeout_s,
            settings.body_timeout_s,
        )
        self.sweep = Sweep(min(1.0, min(self.limits_s) / 10))

    def common_head(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The headers of every answer, joined; the server makes a new list of them each second."""
        if self._common[0] is not headers:
            self._common = (headers, joined(headers))
        return self._common[1]


class Sweep:
    """One timer for all connections of a server, running while there are any."""

    def __init__(self, interval_s: float) -> None:
        self.connections: set[EdgeProtocol] = set()
        self._interval_s = interval_s
        self._running = False

    def add(self, connection: "EdgeProtocol") -> None:
        """Watch a connection from now on."""
        self.connections.add(connection)
        if not self._running:
            self._running = True
            connection.loop.call_later(self._interval_s, self._run, connection.loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for connection in tuple(self.connections):
            if connection.deadline_s <= now_s or connection.write_deadline_s <= now_s:
                connection.expire(now_s)
        self._running = bool(self.connections)
        if self._running:
            loop.call_later(self._interval_s, self._run, loop)


class EdgeProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits; made by ``edge_protocol``."""

    _rules: ClassVar[Rules]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deadline_s = inf
        self.write_deadline_s = inf
        self._receiving = _NOTHING
        self._body_left_bytes = 0
        # Bytes since a body grew or a request was complete: heads, trailers, the frames of chunks.
        self._fruitless_bytes = 0
        self._deaf = False
        self._farewell: bytes | None = None
        # A request that may go the short way, while its body is being read.
        self._short: Exchange | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Watch a new connection, or refuse it where too many are open."""
        super().connection_made(transport)
        self._rules.sweep.add(self)
        self.deadline_s = self.loop.time() + self._rules.header_timeout_s
        if len(self._rules.sweep.connections) > self._rules.connections_max:
            self._deaf = True
            transport.write(self._answer(TooManyConnections()))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._rules.sweep.connections.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a block of data and start the requests in it."""
        if self._deaf:
            return
        self._fruitless_bytes += len(data)
        try:
            rest = self._feed(data)
            while rest is not None:
                self.parser.feed_data(self._head_without_upgrade())
                rest = self._feed(rest)
        except httptools.HttpParserError as failure:
            self._refuse(_error_for_client(failure))
        else:
            if self._receiving:
                self._await_rest()

    def _feed(self, data: bytes | memoryview) -> memoryview | None:
        """Let the parser read, up to the end of a head that asks for another protocol.

        The parser drops the body of such a request. As we upgrade to nothing, it has to read the
        head again, without its Upgrade, and then the rest that is returned.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return memoryview(data)[upgrade.args[0] :]
        return None

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def _await_rest(self) -> None:
        """The block of data is read, but a request is still open: see how long it may be."""
        if self._short is not None:
            self._go_the_long_way(self._short)
        if self._fruitless_bytes > self._rules.header_bytes_max:
            self._refuse(self._headers_too_large())
        elif self.deadline_s == _DUE_SOON:
            self.deadline_s = self.loop.time() + self._rules.limits_s[self._receiving]

    # What the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._receiving = _HEAD
        self.deadline_s = _DUE_SOON

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers come here too and are dropped."""
        if self._receiving == _HEAD:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Judge the head, and start the request if nothing is wrong with it.

        Raises:
            SmsgwError: what is wrong; the parser passes it on.
        """
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise MalformedRequest("This is no proxy.")
            return
        fields = {}
        head_bytes = len(self.url)
        for name, value in self.headers:
            fields[name] = value
            head_bytes += len(name) + len(value) + 4
        if head_bytes > self._rules.header_bytes_max:
            raise self._headers_too_large()
        if self._rules.check_host:
            self._judge_host(fields)
        if b"content-length" in fields or b"transfer-encoding" in fields:
            self._judge_body(fields)
        request_id = _request_id(fields.get(b"x-request-id"))
        if self.url == RAW_PATH and self._may_be_short(fields):
            keep_alive = self.parser.should_keep_alive()
            self._short = Exchange(self, fields, request_id, keep_alive=keep_alive)
        else:
            self._begin(request_id)
        self._receiving = _BODY
        self.deadline_s = _DUE_SOON

    def _may_be_short(self, fields: dict[bytes, bytes]) -> bool:
        cycle = self.cycle
        return (
            self._rules.handle is not None
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and (cycle is None or cycle.response_complete)
            and b"expect" not in fields
            and len(fields) == len(self.headers)
            and not self.flow.write_paused
        )

    def _go_the_long_way(self, short: Exchange) -> None:
        """Leave a request to the application after all."""
        self._short = None
        self._begin(short.request_id)
        self.cycle.body += short.body
        self.cycle.message_event.set()

    def _begin(self, request_id: bytes) -> None:
        """Start the request, or let it wait for those before it."""
        version = self.parser.get_http_version()
        path, raw_path, query = _target(self.url)
        scope: HTTPScope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "root_path": self.root_path,
            "headers": self.headers,
            "state": {**self.app_state, "request_id": request_id.decode()},
            "method": self.parser.get_method().decode(),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
        }
        before = self.cycle
        self.cycle = EdgeCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=[*self.server_state.default_headers, (b"x-request-id", request_id)],
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on.

        Raises:
            BodyTooLarge: there is more of it than allowed.
        """
        self._fruitless_bytes = 0
        self._body_left_bytes -= len(body)
        if self._body_left_bytes < 0:
            raise self._body_too_large()
        if self._short is not None:
            self._short.body += body
            return
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The request is all there; from now on it is we who owe something."""
        if self._receiving == _HEAD:
            return  # The head comes again, without its Upgrade.
        self._receiving = _NOTHING
        self._fruitless_bytes = 0
        if self._short is not None:
            self._run_short(self._short)
            return
        cycle = self.cycle
        if cycle.response_complete:
            self.deadline_s = self.loop.time() + self._rules.idle_timeout_s
            return
        self.deadline_s = inf
        cycle.more_body = False
        cycle.message_event.set()

    def _run_short(self, short: Exchange) -> None:
        assert self._rules.handle is not None
        self._short = None
        self.deadline_s = inf
        before, self.cycle = self.cycle, cast("RequestResponseCycle", short)
        if not short.run(self._rules.handle):
            self.cycle = before
            self._go_the_long_way(short)
            self.cycle.more_body = False

    def common_head(self) -> bytes:
        """The headers that every answer has."""
        return self._rules.common_head(self.server_state.default_headers)

    def observe(self, template: str, method: str, status: int, seconds: float) -> None:
        """Have an answer counted."""
        self._rules.observe(template, method, status, seconds)

    # Judging a head

    def _judge_host(self, fields: dict[bytes, bytes]) -> None:
        """Refuse what a browser may have been tricked into sending to a local address."""
        is_served = self._rules.is_served
        host = fields.get(b"host")
        if host is None and self.parser.get_http_version() == "1.1":
            raise MalformedRequest("There is no Host header.")
        if (
            len(fields) < len(self.headers)
            and [name for name, _ in self.headers].count(b"host") > 1
        ):
            raise MalformedRequest("There is more than one Host header.")
        if not is_served(host or b""):
            raise ForbiddenHost
        if b"origin" in fields and not is_served(fields[b"origin"].partition(b"://")[2]):
            raise ForbiddenHost

    def _judge_body(self, fields: dict[bytes, bytes]) -> None:
        """Give the body its limit, and refuse it if it says that it is longer."""
        self._body_left_bytes = self._body_bytes_max()
        # The parser has seen that a length is a number, and stands alone.
        length = fields.get(b"content-length")
        if length is None:
            if fields[b"transfer-encoding"].lower() != b"chunked":
                raise MalformedRequest("The only transfer encoding known here is chunked.")
        elif int(length) > self._body_left_bytes:
            raise self._body_too_large()
        if b"expect" in fields:
            self.expect_100_continue = fields[b"expect"].lower() == b"100-continue"

    def _body_bytes_max(self) -> int:
        url = self.url
        if url.startswith(BATCH_PATH) and url.partition(b"?")[0] == BATCH_PATH:
            return self._rules.batch_body_bytes_max
        return self._rules.body_bytes_max

    def _body_too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body is larger than {self._body_bytes_max()} bytes.")

    def _headers_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"The headers exceed {self._rules.header_bytes_max} bytes.")

    # Deadlines

    def on_response_complete(self) -> None:
        """An answer is written: begin the next one, or wait for the next request."""
        self.server_state.total_requests += 1
        if self._receiving == _NOTHING and not self.pipeline:
            self.deadline_s = self.loop.time() + self._rules.idle_timeout_s
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._farewell is not None:
            self._part(self._farewell)
        elif self._receiving == _BODY and self.expect_100_continue and self.cycle.response_complete:
            # The client may keep back the body that it was never asked for; whether it does, and
            # so where its next request begins, cannot be known.
            self._part(b"")

    def pause_writing(self) -> None:
        """The client does not read our answer: it must before long."""
        super().pause_writing()
        self.write_deadline_s = self.loop.time() + self._rules.idle_timeout_s

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self.write_deadline_s = inf

    def expire(self, now_s: float) -> None:
        """A deadline has passed: end the connection, with an answer if one is owed."""
        is_idle = self._receiving == _NOTHING and self.cycle is not None
        is_leaving = self._deaf or self.transport.is_closing()
        if is_idle or is_leaving or self.write_deadline_s <= now_s:
            self.transport.abort()
        elif self.flow.read_paused:
            # It is we who do not read.
            self.deadline_s = now_s + self._rules.limits_s[self._receiving]
        else:
            self._refuse(RequestTimeout())

    # Refusing

    def _refuse(self, error: SmsgwError) -> None:
        """Answer what is being received with a problem, in its turn, and hear no more."""
        farewell = self._answer(error)
        cycle = self.cycle
        self._deaf = True
        self.deadline_s = inf
        if self._receiving != _BODY or self._short is not None:
            if cycle is None or cycle.response_complete:
                self._part(farewell)
            else:
                self._farewell = farewell
        elif self.pipeline:
            # The request waits behind others, and shall not begin at all.
            self.pipeline.popleft()
            self._farewell = farewell
        else:
            self._part_from(cycle, farewell)

    def _part_from(self, cycle: RequestResponseCycle, farewell: bytes) -> None:
        """End a request that a route has begun with, and the connection."""
        cycle.disconnected = True
        cycle.message_event.set()
        if not cycle.response_started:
            self._part(farewell)
        elif cycle.response_complete:
            self._part(b"")
        else:
            # Half an answer cannot be mended.
            self.transport.abort()

    def _part(self, farewell: bytes) -> None:
        """Write the last answer, and let the client finish sending before the connection goes.

        Closing with data unread resets the connection, and the client may lose the answer.
        """
        self._deaf = True
        self.deadline_s = self.loop.time() + LINGER_S
        self.flow.resume_reading()
        self.transport.write(farewell)
        self.transport.write_eof()

    def _answer(self, error: SmsgwError) -> bytes:
        """The bytes of a problem that no route gives."""
        status, body, headers = problem(error)
        method, request_id = b"", None
        if self._receiving != _NOTHING and self.url:
            method = self.parser.get_method()
            request_id = dict(self.headers).get(b"x-request-id")
        headers = [
            *self.server_state.default_headers,
            *headers,
            (b"x-request-id", _request_id(request_id)),
            (b"connection", b"close"),
        ]
        self._rules.observe(UNKNOWN, method.decode() or UNKNOWN, status, 0.0)
        return (
            STATUS_LINE[status] + joined(headers) + b"\r\n" + (body if method != b"HEAD" else b"")
        )


def _request_id(given: bytes | None) -> bytes:
    """The id that a client gave its request, if it is one we can repeat, or a new UUID."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    # It must be rare, not secret; and a uuid4() costs four times as much.
    bits = random.getrandbits(128)
    return b"%032x" % (bits & _UUID_RANDOM_BITS | _UUID_VERSION_4)


@lru_cache(maxsize=256)
def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """The path, decoded and raw, and the query of a request's target."""
    parsed = httptools.parse_url(url)
    raw_path = parsed.path or b"/"
    return unquote(raw_path.decode("ascii")), raw_path, parsed.query or b""


def _host_rule(allowed_hosts: Iterable[str]) -> Callable[[bytes], bool]:
    """Whether a host, with or without a port, is among these; any is, if these are none."""
    names = frozenset(host.lower().encode() for host in allowed_hosts)

    @lru_cache(maxsize=64)
    def is_served(authority: bytes) -> bool:
        match = _AUTHORITY.fullmatch(authority.lower())
        return not names or (match is not None and match[1] in names)

    return is_served


def _error_for_client(failure: httptools.HttpParserError) -> SmsgwError:
    """What to tell the client: our own error, raised while parsing, or that it makes no sense."""
    cause = failure.__context__
    if isinstance(cause, SmsgwError):
        return cause
    if cause is None or isinstance(cause, httptools.HttpParserError):
        return MalformedRequest()
    log.error("connection.failed", "A connection failed by a defect of ours.", error=cause)
    return InternalError()


def _observe_nothing(_template: str, _method: str, _status: int, _seconds: float) -> None:
    """For a server that counts nothing."""
