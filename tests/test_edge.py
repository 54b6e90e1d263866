"""The edge and the protocol below it, over real sockets, as a client meets them."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smsgw import errors, logs
from smsgw.api.edge import Edge, read_body, require_json
from smsgw.api.protocol import EdgeProtocol, edge_protocol
from smsgw.settings import ServerSettings

GET = b"GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE_BYTES = 20_000_000
JSON_HEADERS = b"Host: localhost\r\nContent-Type: application/json\r\n"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        document = json.loads(self.body)
        assert document["status"] == self.status
        return document["code"]


def answers(data: bytes) -> list[Answer]:
    """All whole answers in what a connection gave; nothing may be left over."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status_line, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("content-length", 0))
        assert len(data) >= length
        found.append(Answer(int(status_line.split()[1]), headers, data[:length]))
        data = data[length:]
    return found


@dataclass
class Site:
    """A server in the test's own loop, and what its routes saw."""

    server: uvicorn.Server
    seen: list[str] = field(default_factory=list)
    observed: list[tuple[str, str, int]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self.server.servers[0].sockets[0].getsockname()
        if isinstance(address, str):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            reader, writer = await asyncio.open_connection(*address)
        self.writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        self.gate.set()
        for listener in self.server.servers:
            listener.close()
        connections = self.server.server_state.connections
        for connection in list(connections):
            assert isinstance(connection, EdgeProtocol)
            connection.transport.abort()
        for writer in self.writers:
            writer.transport.abort()
        closing = [writer.wait_closed() for writer in self.writers]
        await asyncio.gather(*closing, *self.server.server_state.tasks, return_exceptions=True)
        assert not connections

    async def until_closed(self, *blocks: bytes) -> list[Answer]:
        """Send, and read until the server ends the connection."""
        async with asyncio.timeout(10):
            reader, writer = await self.connect()
            for block in blocks:
                writer.write(block)
                await writer.drain()
            data = await reader.read()
            return answers(data)

    async def ask(self, request: bytes) -> Answer:
        """Send one request, and read its answer."""
        async with asyncio.timeout(10):
            reader, writer = await self.connect()
            writer.write(request)
            return await read_answer(reader)


async def read_answer(reader: asyncio.StreamReader, has_body: bool = True) -> Answer:
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
        body = await reader.readexactly(length) if has_body else b""
    status_line, *lines = head.decode().strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(status_line.split()[1]), headers, body)


def routes(site: Callable[[], Site]) -> Router:
    async def plain(request: Request) -> PlainTextResponse:
        site().seen.append(logs.request_id.get())
        return PlainTextResponse("plain")

    async def echo(request: Request) -> JSONResponse:
        if request.query_params.get("held"):
            site().reached.set()
            await site().gate.wait()
        body = await read_body(request.scope, request.receive)
        return JSONResponse(
            {
                "bytes": len(body),
                "id": request.state.request_id,
                "trailer": request.headers.get("x-trailer"),
                "version": request.scope["http_version"],
            }
        )

    async def last(request: Request) -> PlainTextResponse:
        return PlainTextResponse("last", headers={"connection": "close"})

    async def unread(request: Request) -> PlainTextResponse:
        return PlainTextResponse("not interested")

    async def held(request: Request) -> PlainTextResponse:
        site().reached.set()
        await site().gate.wait()
        return PlainTextResponse("held")

    async def broken(request: Request) -> PlainTextResponse:
        raise ZeroDivisionError("a secret")

    async def leaking(request: Request) -> PlainTextResponse:
        raise errors.StoreError("/private/path is damaged")

    async def poor(request: Request) -> PlainTextResponse:
        raise errors.InsufficientCredits(required=5, credits=1)

    async def large(request: Request) -> PlainTextResponse:
        site().reached.set()
        return PlainTextResponse(b"x" * LARGE_BYTES)

    async def stream(request: Request) -> StreamingResponse:
        async def blocks() -> AsyncIterator[bytes]:
            for _ in range(LARGE_BYTES // 100_000):
                yield b"x" * 100_000
                site().reached.set()

        return StreamingResponse(blocks())

    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"10")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        site().seen.append(message["type"])
        if message["type"] == "http.request":
            raise ZeroDivisionError

    async def mute(scope: Scope, receive: Receive, send: Send) -> None:
        return None

    return Router(
        [
            Route("/plain", plain),
            Route("/echo", echo, methods=["POST"]),
            Route("/v1/messages/batch", echo, methods=["POST"]),
            Route("/last", last),
            Route("/items/{item}", plain),
            Route("/unread", unread, methods=["POST"]),
            Route("/held", held, methods=["GET", "POST"]),
            Route("/broken", broken),
            Route("/leaking", leaking),
            Route("/poor", poor),
            Route("/large", large),
            Route("/stream", stream),
            Route("/half", _Endpoint(half)),
            Route("/mute", _Endpoint(mute)),
        ],
        redirect_slashes=False,
    )


class _Endpoint:
    """A plain ASGI application as a route's endpoint."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp | None = None, uds: str | None = None, check_host: bool = True, **limits: Any
) -> AsyncIterator[Site]:
    """A running server whose time limits are long, but for those given."""
    site: Site

    def observe(template: str, method: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        site.observed.append((template, method, status))

    protocol = edge_protocol(ServerSettings(**limits), check_host=check_host, observe=observe)
    config = uvicorn.Config(
        app or Edge(routes(lambda: site), observe),
        host="127.0.0.1",
        port=0,
        uds=uds,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    site = Site(server)
    await server.startup()
    await server.on_tick(0)
    try:
        yield site
    finally:
        await site.close()


def post(path: bytes, body: bytes, more_headers: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return (
        b"POST " + path + b" HTTP/1.1\r\n" + JSON_HEADERS + more_headers + length + b"\r\n" + body
    )


def chunked(path: bytes, *chunks: bytes) -> bytes:
    head = b"POST " + path + b" HTTP/1.1\r\n" + JSON_HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


# Time


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="silent socket"),
        pytest.param(b"P", id="one byte"),
        pytest.param(b"GET /plain HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", id="half a head"),
    ],
)
async def test_a_head_that_does_not_come_is_given_up(sent: bytes) -> None:
    async with serving(header_timeout_s=0.05) as site:
        [answer] = await site.until_closed(sent)
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"
        assert site.seen == []
        assert site.observed[0][2] == 408


async def test_a_head_that_comes_in_drops_is_given_up_all_the_same() -> None:
    async with serving(header_timeout_s=0.1) as site:
        async with asyncio.timeout(10):
            reader, writer = await site.connect()
            reading = asyncio.ensure_future(reader.read())
            writer.write(b"GET /plain HTTP/1.1\r\nHost: localhost\r\n")
            while not reading.done():
                writer.write(b"A: b\r\n")
                await asyncio.wait([reading], timeout=0.01)
            [answer] = answers(await reading)
            writer.close()
        assert answer.code == "request_timeout"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(post(b"/echo", b"x" * 100)[:-1], id="content-length"),
        pytest.param(post(b"/echo", b"x" * 100)[:-100], id="nothing of it"),
        pytest.param(chunked(b"/echo", b"x" * 100), id="chunked"),
    ],
)
async def test_a_body_that_does_not_come_is_given_up(sent: bytes) -> None:
    async with serving(body_timeout_s=0.05) as site:
        [answer] = await site.until_closed(sent)
        assert (answer.status, answer.code) == (408, "request_timeout")
        # The route saw its client go, and its own end was not written.
        assert ("/echo", "POST", 499) in site.observed


async def test_a_route_that_never_reads_cannot_answer_after_the_time_out() -> None:
    async with serving(body_timeout_s=0.05) as site:
        reader, writer = await site.connect()
        writer.write(post(b"/held", b"x" * 100)[:-1])
        async with asyncio.timeout(10):
            await site.reached.wait()
            first = await reader.read()
            site.gate.set()
            await asyncio.gather(*site.server.server_state.tasks)
        assert [answer.code for answer in answers(first)] == ["request_timeout"]


async def test_a_body_in_time_is_a_body_however_long_the_route_then_takes() -> None:
    async with serving(header_timeout_s=0.1, body_timeout_s=0.1, idle_timeout_s=0.1) as site:
        reader, writer = await site.connect()
        writer.write(GET.replace(b"/plain", b"/held"))
        await site.reached.wait()
        await site.until_closed()  # a silent socket beside it is cut meanwhile, for the same times
        site.gate.set()
        assert (await read_answer(reader)).body == b"held"


async def test_a_slow_request_is_served_if_it_is_in_time() -> None:
    async with serving(idle_timeout_s=0.1) as site:
        reader, writer = await site.connect()
        request = post(b"/echo", b"abc")
        for piece in (request[:20], request[20:-2], request[-2:]):
            writer.write(piece)
            await site.until_closed(GET)  # an idle connection is cut meanwhile
        assert json.loads((await read_answer(reader)).body)["bytes"] == 3


async def test_a_client_is_not_blamed_while_it_is_we_who_do_not_read() -> None:
    async with serving(body_timeout_s=0.1, idle_timeout_s=0.2) as site:
        reader, writer = await site.connect()
        request = post(b"/v1/messages/batch?held=1", b"x" * 8_000_000)
        writer.write(request)
        await site.reached.wait()
        await site.until_closed(GET)
        [connection] = site.server.server_state.connections
        assert isinstance(connection, EdgeProtocol)
        assert len(connection.cycle.body) < 1_000_000
        site.gate.set()
        assert json.loads((await read_answer(reader)).body)["bytes"] == 8_000_000


async def test_the_idle_time_begins_when_a_body_that_nobody_reads_has_come() -> None:
    async with serving(idle_timeout_s=0.05) as site:
        reader, writer = await site.connect()
        request = post(b"/unread", b"x" * 10_000)
        writer.write(request[:-1])
        await read_answer(reader)
        writer.write(request[-1:])
        async with asyncio.timeout(10):
            assert await reader.read() == b""


async def test_a_waiting_request_is_not_idle() -> None:
    async with serving(idle_timeout_s=0.1) as site:
        reader, writer = await site.connect()
        writer.write(GET + GET.replace(b"/plain", b"/held"))
        assert (await read_answer(reader)).body == b"plain"
        await site.reached.wait()
        await site.until_closed(GET)
        site.gate.set()
        assert (await read_answer(reader)).body == b"held"


async def test_half_a_head_behind_a_request_has_its_time_too() -> None:
    async with serving(header_timeout_s=0.1) as site:
        reader, writer = await site.connect()
        writer.write(GET.replace(b"/plain", b"/held") + GET[:-2])
        await site.reached.wait()
        site.gate.set()
        async with asyncio.timeout(10):
            first, second = answers(await reader.read())
        assert (first.body, second.code) == (b"held", "request_timeout")


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with serving(idle_timeout_s=0.05) as site:
        [answer] = await site.until_closed(GET)
        assert (answer.status, answer.body) == (200, b"plain")


async def test_an_idle_connection_is_kept_between_requests() -> None:
    async with serving(header_timeout_s=0.1) as site:
        reader, writer = await site.connect()
        writer.write(GET)
        await read_answer(reader)
        await site.until_closed()  # longer than a head may take
        writer.write(GET)
        assert (await read_answer(reader)).status == 200


async def test_the_second_request_of_a_connection_has_its_own_time() -> None:
    async with serving(header_timeout_s=0.1) as site:
        first, second = await site.until_closed(GET + b"GET /plain HTTP/1.1\r\nHo")
        assert first.status == 200
        assert second.code == "request_timeout"


async def test_a_refused_client_that_does_not_go_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smsgw.api.protocol.LINGER_S", 0.05)
    async with serving(idle_timeout_s=0.1) as site:
        reader, writer = await site.connect()
        writer.write(b"NONSENSE\r\n\r\n")
        assert (await read_answer(reader)).code == "malformed_request"
        [refused] = site.server.server_state.connections
        await site.until_closed(GET)
        assert refused not in site.server.server_state.connections


@pytest.mark.parametrize("path", [b"/large", b"/stream"])
async def test_a_client_that_does_not_read_its_answer_is_cut(path: bytes) -> None:
    async with serving(idle_timeout_s=0.05) as site:
        reader, writer = await site.connect()
        writer.write(GET.replace(b"/plain", path))
        await site.reached.wait()
        await site.until_closed(GET)  # cut for the same time-out, and later
        async with asyncio.timeout(10):
            await asyncio.gather(*site.server.server_state.tasks)
            read_bytes = 0
            with contextlib.suppress(ConnectionResetError):
                while block := await reader.read(1_000_000):
                    read_bytes += len(block)
        assert read_bytes < LARGE_BYTES


async def test_a_client_that_reads_late_but_reads_is_not_cut_later() -> None:
    async with serving(idle_timeout_s=0.2) as site:
        reader, writer = await site.connect()
        writer.write(GET.replace(b"/plain", b"/stream"))
        async with asyncio.timeout(10):
            end = b""
            while end != b"\r\n0\r\n\r\n":
                end = (end + await reader.read(1_000_000))[-7:]
        writer.write(GET.replace(b"/plain", b"/held"))
        await site.until_closed(GET)
        site.gate.set()
        assert (await read_answer(reader)).body == b"held"


# Size


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET /" + b"x" * 2000, id="endless target"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * 2000, id="endless header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 1000, id="many headers"),
        pytest.param(
            b"GET /plain HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2000 + b"\r\n\r\n",
            id="whole, but large",
        ),
        pytest.param(
            GET[:-2] + b"X: " + b"x" * 20 + b"\r\n" + b"Y: x\r\n" * 200 + b"\r\n",
            id="whole, but many",
        ),
        pytest.param(GET + GET[:-2] + b"X: " + b"x" * 2000 + b"\r\n\r\n", id="the second of two"),
    ],
)
async def test_headers_over_the_limit_are_refused(sent: bytes) -> None:
    async with serving(header_bytes_max=1024) as site:
        *_, last = await site.until_closed(sent)
        assert (last.status, last.code) == (431, "headers_too_large")


async def test_a_flood_of_headers_is_refused_at_its_limit() -> None:
    async with serving() as site:
        *_, last = await site.until_closed(b"GET / HTTP/1.1\r\n", *[b"X: " + b"y" * 60_000] * 20)
        assert last.code == "headers_too_large"


async def test_trailers_without_end_are_refused() -> None:
    async with serving(header_bytes_max=1024) as site:
        [answer] = await site.until_closed(
            chunked(b"/echo", b"abc"), b"0\r\nX: ", *[b"x" * 60_000] * 10
        )
        assert answer.code == "headers_too_large"


async def test_trailers_are_no_headers() -> None:
    async with serving() as site:
        answer = await site.ask(chunked(b"/echo", b"abc") + b"0\r\nX-Trailer: x\r\n\r\n")
        document = json.loads(answer.body)
        assert (document["bytes"], document["trailer"]) == (3, None)


async def test_headers_up_to_the_limit_are_taken() -> None:
    async with serving(header_bytes_max=1024) as site:
        answer = await site.ask(GET[:-2] + b"X: " + b"x" * 900 + b"\r\n\r\n")
        assert answer.status == 200


@pytest.mark.parametrize("path", [b"/echo", b"/echo?q=/v1/messages/batch", b"/nowhere"])
async def test_a_body_that_says_it_is_too_large_is_refused_unread(path: bytes) -> None:
    async with serving(body_bytes_max=1000, batch_body_bytes_max=5000) as site:
        head = post(path, b"x" * 1001)[:-1001]
        [answer] = await site.until_closed(head)
        assert (answer.status, answer.code) == (413, "body_too_large")


async def test_a_huge_content_length_is_refused_without_100_continue() -> None:
    async with serving() as site:
        head = b"POST /echo HTTP/1.1\r\n" + JSON_HEADERS + b"Expect: 100-continue\r\n"
        [answer] = await site.until_closed(head + b"Content-Length: 999999999999\r\n\r\n")
        assert answer.code == "body_too_large"


async def test_a_chunked_body_is_cut_at_its_limit_while_it_streams() -> None:
    async with serving(body_bytes_max=1000) as site:
        [answer] = await site.until_closed(
            chunked(b"/echo", b"x" * 600), b"258\r\n" + b"x" * 600 + b"\r\n"
        )
        assert (answer.status, answer.code) == (413, "body_too_large")


async def test_a_client_that_sends_megabytes_too_many_still_gets_to_the_answer() -> None:
    async with serving() as site:
        [answer] = await site.until_closed(post(b"/echo", b"x" * 5_000_000))
        assert answer.code == "body_too_large"
        [answer] = await site.until_closed(chunked(b"/echo", *[b"x" * 50_000] * 100))
        assert answer.code == "body_too_large"


@pytest.mark.parametrize("size", [0, 1, 65_536])
async def test_a_body_up_to_its_limit_is_taken(size: int) -> None:
    async with serving() as site:
        for request in (post(b"/echo", b"x" * size), chunked(b"/echo", b"x" * size)):
            ending = b"" if b"Length" in request or not size else b"0\r\n\r\n"
            answer = await site.ask(request + ending)
            assert (answer.status, json.loads(answer.body)["bytes"]) == (200, size)


async def test_a_batch_may_be_larger_than_other_bodies() -> None:
    async with serving(batch_body_bytes_max=500_000) as site:
        for path in (b"/v1/messages/batch", b"/v1/messages/batch?x=1"):
            answer = await site.ask(post(path, b"x" * 500_000))
            assert json.loads(answer.body)["bytes"] == 500_000
        [answer] = await site.until_closed(post(b"/v1/messages/batch", b"x" * 500_001)[:-1])
        assert answer.code == "body_too_large"


async def test_one_connection_too_many_is_refused_and_the_others_stay() -> None:
    async with serving(connections_max=2) as site:
        first_reader, first = await site.connect()
        second_reader, second = await site.connect()
        for writer, reader in ((first, first_reader), (second, second_reader)):
            writer.write(GET)
            assert (await read_answer(reader)).status == 200
        [answer] = await site.until_closed()
        assert (answer.status, answer.code) == (503, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
        first.write(GET)
        assert (await read_answer(first_reader)).status == 200
        second.close()
        await second.wait_closed()
        while len(site.server.server_state.connections) > 1:
            first.write(GET)
            await read_answer(first_reader)
        assert (await site.ask(GET)).status == 200
        first.close()


# What makes no sense


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", id="TLS"),
        pytest.param(b"HELLO\r\n\r\n", id="no HTTP"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /plain HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(GET[:-2] + b"Host: localhost\r\n\r\n", id="two Hosts"),
        pytest.param(GET[:-2] + b"A : b\r\n\r\n", id="space before the colon"),
        pytest.param(GET[:-2] + b"A: b\r\n c\r\n\r\n", id="folded header"),
        pytest.param(GET[:-2] + b"A: b\0c\r\n\r\n", id="NUL"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", id="target not ASCII"),
        pytest.param(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", id="CONNECT"),
        pytest.param(post(b"/echo", b"abc", b"Content-Length: 3\r\n"), id="length twice"),
        pytest.param(post(b"/echo", b"abc", b"Content-Length: 4\r\n"), id="two lengths"),
        pytest.param(
            post(b"/echo", b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"), id="length and chunks"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + JSON_HEADERS + b"Content-Length: +3\r\n\r\nabc", id="+3"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + JSON_HEADERS + b"Content-Length: 3, 3\r\n\r\nabc",
            id="3, 3",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + JSON_HEADERS + b"Transfer-Encoding: gzip\r\n\r\nabc",
            id="encoding not chunked",
        ),
        pytest.param(
            chunked(b"/held").replace(b": chunked", b": gzip, chunked") + b"0\r\n\r\n",
            id="encoding not only chunked",
        ),
        pytest.param(chunked(b"/echo") + b"xyz\r\n", id="bad chunk"),
    ],
)
async def test_what_makes_no_sense_is_malformed(sent: bytes) -> None:
    async with serving() as site:
        [answer] = await site.until_closed(sent)
        assert (answer.status, answer.code) == (400, "malformed_request")
        assert site.seen == []


async def test_nonsense_after_a_request_is_answered_after_it() -> None:
    async with serving() as site:
        reader, writer = await site.connect()
        writer.write(GET.replace(b"/plain", b"/held") + GET + b"NONSENSE\r\n\r\n")
        await site.reached.wait()
        site.gate.set()
        first, second, third = answers(await reader.read())
        assert (first.body, second.body, third.code) == (b"held", b"plain", "malformed_request")


async def test_a_refused_body_waits_for_the_answers_before_it_and_its_route_never_begins() -> None:
    async with serving(body_bytes_max=1000) as site:
        reader, writer = await site.connect()
        writer.write(GET.replace(b"/plain", b"/held") + chunked(b"/echo", b"x" * 1001))
        await site.reached.wait()
        site.gate.set()
        first, second = answers(await reader.read())
        assert (first.body, second.code) == (b"held", "body_too_large")
        assert [template for template, _, _ in site.observed].count("/echo") == 0


# Who is asking


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"LOCALHOST:8080", b"127.0.0.1", b"127.0.0.1:1", b"[::1]", b"[::1]:8080"],
)
async def test_our_own_hosts_are_served(host: bytes) -> None:
    async with serving() as site:
        assert (await site.ask(GET.replace(b"localhost", host))).status == 200


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8080",
        b"localhost.evil.example",
        b"localhost@evil.example",
        b"evil.example#localhost",
        b"localhost:evil",
        b"[::2]",
        b"::1",
        b"127.0.0.2",
        b"",
    ],
)
async def test_a_foreign_host_is_refused(host: bytes) -> None:
    async with serving() as site:
        [answer] = await site.until_closed(GET.replace(b"localhost", host))
        assert (answer.status, answer.code) == (403, "forbidden_host")
        assert site.seen == []


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"http://localhost:3000", 200),
        (b"https://127.0.0.1", 200),
        (b"http://evil.example", 403),
        (b"http://localhost.evil.example", 403),
        (b"http://evil.example/http://localhost", 403),
        (b"null", 403),
        (b"", 403),
    ],
)
async def test_a_foreign_origin_is_refused(origin: bytes, status: int) -> None:
    async with serving() as site:
        answer = await site.ask(GET[:-2] + b"Origin: " + origin + b"\r\n\r\n")
        assert answer.status == status


async def test_http_1_0_needs_no_host_where_any_will_do() -> None:
    request = b"GET /plain HTTP/1.0\r\n\r\n"
    async with serving(allowed_hosts=()) as site:
        assert [answer.status for answer in await site.until_closed(request)] == [200]
    async with serving() as site:
        assert [answer.code for answer in await site.until_closed(request)] == ["forbidden_host"]


async def test_any_host_is_served_where_the_list_is_empty() -> None:
    async with serving(allowed_hosts=()) as site:
        request = GET.replace(b"localhost", b"gateway.example")[:-2] + b"Origin: http://any\r\n\r\n"
        assert (await site.ask(request)).status == 200


async def test_a_unix_socket_asks_for_no_host(tmp_path: Any) -> None:
    async with serving(uds=str(tmp_path / "s"), check_host=False) as site:
        assert (await site.ask(b"GET /plain HTTP/1.1\r\n\r\n")).status == 200
        assert (await site.ask(GET.replace(b"localhost", b"evil.example"))).status == 200


# Request ids


async def test_a_request_id_is_given_back_and_known_to_the_log() -> None:
    async with serving() as site:
        answer = await site.ask(GET[:-2] + b"X-Request-ID: order-7/b\r\n\r\n")
        assert answer.headers["x-request-id"] == "order-7/b"
        assert site.seen == ["order-7/b"]
        answer = await site.ask(post(b"/echo", b"{}", b"x-request-id: " + b"z" * 128 + b"\r\n"))
        assert json.loads(answer.body)["id"] == answer.headers["x-request-id"] == "z" * 128


@pytest.mark.parametrize("given", [None, b"", b"two words", b"z" * 129, "é".encode()])
async def test_a_request_without_a_usable_id_is_given_one(given: bytes | None) -> None:
    header = b"" if given is None else b"X-Request-ID: " + given + b"\r\n"
    async with serving() as site:
        first = await site.ask(GET[:-2] + header + b"\r\n")
        second = await site.ask(GET[:-2] + header + b"\r\n")
        ids = [first.headers["x-request-id"], second.headers["x-request-id"]]
        assert ids == site.seen
        assert len(set(ids)) == 2
        for one in ids:
            assert len(one) == 32
            assert (int(one, 16) >> 76) & 0xF == 4
            assert (int(one, 16) >> 62) & 0b11 == 0b10


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(
            GET[:-2].replace(b"localhost", b"evil") + b"X-Request-ID: a1\r\n\r\n", id="403"
        ),
        pytest.param(
            post(b"/echo", b"x" * 70_000, b"X-Request-ID: a1\r\n")[:-70_000], id="413 by length"
        ),
        pytest.param(GET[:-2] + b"X-Request-ID: a1\r\nX: \0", id="400"),
        pytest.param(GET[:-2] + b"X-Request-ID: a1\r\nX: x", id="408"),
        pytest.param(GET[:-2] + b"X-Request-ID: a1\r\nX: " + b"x" * 20_000, id="431"),
    ],
)
async def test_a_refusal_gives_the_request_id_back_too(sent: bytes) -> None:
    async with serving(header_timeout_s=0.05) as site:
        [answer] = await site.until_closed(sent)
        assert answer.headers["x-request-id"] == "a1"


async def test_a_refusal_does_not_give_back_the_id_of_an_earlier_request() -> None:
    async with serving(connections_max=1) as site:
        sent = GET[:-2] + b"X-Request-ID: a1\r\n\r\n" + b"NONSENSE\r\n\r\n"
        first, second = await site.until_closed(sent)
        assert first.headers["x-request-id"] == "a1"
        assert len(second.headers["x-request-id"]) == 32


# What HTTP lets a client do


async def test_requests_sent_together_are_answered_in_order() -> None:
    async with serving() as site:
        sent = b"".join(
            post(b"/echo", b"x" * size, b"X-Request-ID: %d\r\n" % size) for size in range(50)
        )
        reader, writer = await site.connect()
        writer.write(sent)
        got = [await read_answer(reader) for _ in range(50)]
        assert [json.loads(answer.body)["bytes"] for answer in got] == list(range(50))
        assert [answer.headers["x-request-id"] for answer in got] == [str(n) for n in range(50)]


async def test_a_request_that_comes_byte_by_byte_is_a_request() -> None:
    async with serving() as site:
        reader, writer = await site.connect()
        for byte in post(b"/echo", b"abc"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert json.loads((await read_answer(reader)).body)["bytes"] == 3


async def test_requests_go_on_after_some_sent_together() -> None:
    async with serving() as site:
        reader, writer = await site.connect()
        writer.write(GET.replace(b"/plain", b"/held") + GET)
        await site.reached.wait()
        site.gate.set()
        assert (await read_answer(reader)).body == b"held"
        assert (await read_answer(reader)).body == b"plain"
        writer.write(GET)
        assert (await read_answer(reader)).body == b"plain"


async def test_nothing_is_begun_after_the_last_answer() -> None:
    async with serving() as site:
        [answer] = await site.until_closed(GET.replace(b"/plain", b"/last") + GET)
        assert answer.body == b"last"
        assert site.seen == []


async def test_http_1_0_is_one_request_a_connection() -> None:
    async with serving() as site:
        request = post(b"/echo", b"abc", b"Connection: keep-alive\r\n")
        [answer] = await site.until_closed(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert json.loads(answer.body)["version"] == "1.0"
        assert answer.headers["connection"] == "close"


async def test_a_target_may_be_escaped_or_whole() -> None:
    async with serving() as site:
        for target in (b"/%70lain", b"/plain?x=%20", b"http://localhost/plain", b"/plain#x"):
            assert (await site.ask(GET.replace(b"/plain", target))).body == b"plain"
        answer = await site.ask(GET.replace(b"/plain", b"http://localhost"))
        assert answer.code == "unknown_route"


async def test_100_continue_is_said_when_the_route_reads() -> None:
    async with serving() as site:
        reader, writer = await site.connect()
        request = post(b"/echo", b"abc", b"Expect: 100-continue\r\n")
        writer.write(request[:-3])
        async with asyncio.timeout(10):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"abc")
            assert json.loads((await read_answer(reader)).body)["bytes"] == 3
        writer.write(GET)
        assert (await read_answer(reader)).status == 200


async def test_a_body_that_is_never_asked_for_ends_the_connection() -> None:
    async with serving() as site:
        request = post(b"/unread", b"abc", b"Expect: 100-continue\r\n")
        [answer] = await site.until_closed(request[:-3])
        assert (answer.status, answer.body) == (200, b"not interested")


async def test_a_body_that_nobody_reads_is_passed_over() -> None:
    async with serving() as site:
        reader, writer = await site.connect()
        request = post(b"/unread", b"x" * 10_000)
        writer.write(request[:-5000])
        assert (await read_answer(reader)).body == b"not interested"
        writer.write(request[-5000:] + GET)
        assert (await read_answer(reader)).body == b"plain"


async def test_a_body_that_nobody_reads_may_not_be_too_large() -> None:
    async with serving() as site:
        reader, writer = await site.connect()
        writer.write(chunked(b"/unread", b"x"))
        assert (await read_answer(reader)).body == b"not interested"
        writer.write(b"400000\r\n" + b"x" * 0x400000)
        await writer.drain()
        async with asyncio.timeout(10):
            assert await reader.read() == b""


async def test_a_body_that_nobody_reads_must_come_all_the_same() -> None:
    async with serving(body_timeout_s=0.05) as site:
        [answer] = await site.until_closed(post(b"/unread", b"x" * 10_000)[:-1])
        assert answer.body == b"not interested"


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
async def test_an_upgrade_is_ignored_and_the_body_is_not_lost(upgrade: bytes) -> None:
    headers = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + upgrade + b"\r\n"
    request = post(b"/echo", b"abc", headers)
    async with serving() as site:
        reader, writer = await site.connect()
        writer.write(request + GET[:-2] + headers + b"\r\n")
        assert json.loads((await read_answer(reader)).body)["bytes"] == 3
        assert (await read_answer(reader)).body == b"plain"
        writer.write(request[:-2])
        await site.ask(GET)
        writer.write(request[-2:] + GET)
        assert json.loads((await read_answer(reader)).body)["bytes"] == 3
        assert (await read_answer(reader)).body == b"plain"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (GET[:-2] + b"Origin: http://evil.example\r\n", "forbidden_host"),
        (GET.replace(b"localhost", b"evil.example")[:-2], "forbidden_host"),
        (post(b"/echo", b"x" * 70_000)[:-70_002], "body_too_large"),
    ],
)
async def test_an_upgrade_excuses_nothing(sent: bytes, code: str) -> None:
    async with serving() as site:
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        [answer] = await site.until_closed(sent + upgrade)
        assert answer.code == code
        *_, answer = await site.until_closed(GET[:-2] + upgrade + b"NONSENSE\r\n\r\n")
        assert answer.code == "malformed_request"


async def test_a_defect_in_the_protocol_is_answered_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("smsgw.api.protocol._target", broken)
    async with serving() as site:
        [answer] = await site.until_closed(GET)
        assert (answer.status, answer.code) == (500, "internal_error")
        assert [record.levelno for record in caplog.records] == [logging.ERROR]


# What routes raise


async def test_a_route_that_fails_is_answered_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as site:
        answer = await site.ask(GET.replace(b"/plain", b"/broken"))
        assert (answer.status, answer.code) == (500, "internal_error")
        assert b"secret" not in answer.body
        [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert record.exc_info
        assert record.exc_info[0] is ZeroDivisionError
        assert site.observed == [("/broken", "GET", 500)]


async def test_the_words_of_an_error_of_ours_stay_in_the_log() -> None:
    async with serving() as site:
        answer = await site.ask(GET.replace(b"/plain", b"/leaking"))
        assert (answer.status, answer.code) == (500, "internal_error")
        assert b"private" not in answer.body


async def test_a_route_that_says_nothing_is_answered_for() -> None:
    async with serving() as site:
        assert (await site.ask(GET.replace(b"/plain", b"/mute"))).code == "internal_error"
        assert site.observed == [("/mute", "GET", 500)]


async def test_an_answer_that_breaks_off_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as site:
        async with asyncio.timeout(10):
            reader, writer = await site.connect()
            writer.write(post(b"/half", b"x")[:-1].replace(b"POST", b"GET"))
            await reader.readuntil(b"12345")
            writer.write(b"x")
            assert await reader.read() == b""
        assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


async def test_a_body_that_stops_under_half_an_answer_ends_the_connection() -> None:
    async with serving(body_timeout_s=0.05) as site:
        async with asyncio.timeout(10):
            reader, writer = await site.connect()
            writer.write(chunked(b"/half", b"x").replace(b"POST", b"GET"))
            data = await reader.read()
            assert data.endswith(b"12345")
            await asyncio.gather(*site.server.server_state.tasks)
        assert site.seen == ["http.disconnect"]


async def test_what_a_route_refuses_becomes_its_problem() -> None:
    async with serving() as site:
        answer = await site.ask(GET.replace(b"/plain", b"/poor"))
        assert (answer.status, answer.code) == (402, "insufficient_credits")
        assert json.loads(answer.body)["required"] == 5


async def test_routes_and_methods_that_are_not_there_have_problems_too() -> None:
    async with serving() as site:
        answer = await site.ask(GET.replace(b"/plain", b"/nowhere"))
        assert (answer.status, answer.code) == (404, "unknown_route")
        for method in (b"DELETE", b"OPTIONS", b"POST"):
            answer = await site.ask(GET.replace(b"GET", method))
            assert (answer.status, answer.code) == (405, "method_not_allowed")
            assert answer.headers["allow"] == "GET, HEAD"
        answer = await site.ask(GET.replace(b"GET /plain", b"OPTIONS *"))
        assert answer.code == "unknown_route"


async def test_head_has_the_headers_and_no_body() -> None:
    async with serving() as site:
        reader, writer = await site.connect()
        for path, status in ((b"/plain", 200), (b"/nowhere", 404), (b"/echo", 405)):
            writer.write(GET.replace(b"GET /plain", b"HEAD " + path))
            answer = await read_answer(reader, has_body=False)
            assert answer.status == status
            assert int(answer.headers["content-length"]) > 0
        writer.write(GET.replace(b"GET", b"HEAD").replace(b"localhost", b"evil"))
        assert (await read_answer(reader, has_body=False)).status == 403
        assert await reader.read() == b""


async def test_requests_are_counted_by_route_and_not_by_path() -> None:
    async with serving() as site:
        await site.ask(GET.replace(b"/plain", b"/items/7"))
        await site.ask(GET.replace(b"/plain", b"/items"))
        await site.until_closed(GET.replace(b"localhost", b"evil"))
        assert site.observed == [
            ("/items/{item}", "GET", 200),
            ("unknown", "GET", 404),
            ("unknown", "GET", 403),
        ]


async def test_a_request_that_is_stopped_says_that_its_outcome_is_unknown() -> None:
    async with serving() as site:
        reader, writer = await site.connect()
        writer.write(GET.replace(b"/plain", b"/held"))
        await site.reached.wait()
        for task in list(site.server.server_state.tasks):
            task.cancel()
        answer = await read_answer(reader)
        assert (answer.status, answer.code) == (503, "shutting_down")
        assert json.loads(answer.body)["outcome"] == "unknown"


async def test_an_application_without_an_edge_is_answered_for_too() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async with serving(app) as site:
        [answer] = await site.until_closed(GET)
        assert (answer.status, answer.code) == (500, "internal_error")


async def test_half_a_body_does_not_keep_the_server_from_stopping() -> None:
    async with serving(body_timeout_s=0.1) as site:
        reader, writer = await site.connect()
        writer.write(post(b"/echo", b"abc", b"Expect: 100-continue\r\n")[:-1])
        async with asyncio.timeout(10):
            assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
            stopping = asyncio.ensure_future(site.server.shutdown())
            [answer] = answers(await reader.read())
            writer.close()
            await stopping
        assert answer.code == "request_timeout"


async def test_a_client_that_hangs_up_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as site:
        _, writer = await site.connect()
        writer.write(post(b"/echo", b"abc")[:-1])
        await site.ask(GET)
        writer.close()
        await writer.wait_closed()
        while ("/echo", "POST", 499) not in site.observed:
            await site.ask(GET)
        assert caplog.records == []


async def test_without_the_protocol_below_a_request_still_has_an_id() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert logs.request_id.get() == scope["state"]["request_id"] != ""
        raise errors.NotReady

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await Edge(app, lambda *_: None)(scope, receive, send)
    assert sent[0]["status"] == 503


async def test_other_than_http_passes_the_edge_untouched() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    await Edge(app, lambda *_: None)({"type": "lifespan"}, nothing, nothing)
    assert seen == [{"type": "lifespan"}]


# Bodies


@pytest.mark.parametrize(
    "content_type",
    [b"application/json", b"application/json; charset=utf-8", b"Application/JSON ;v=1"],
)
def test_json_is_json_whatever_its_parameters(content_type: bytes) -> None:
    require_json([(b"host", b"x"), (b"content-type", content_type)])


@pytest.mark.parametrize(
    "content_type", [None, b"", b"text/plain", b"application/jsonp", b"text/plain;application/json"]
)
def test_anything_else_is_not_json(content_type: bytes | None) -> None:
    headers = [] if content_type is None else [(b"content-type", content_type)]
    with pytest.raises(errors.UnsupportedMediaType):
        require_json(headers)


async def test_a_body_that_is_not_said_to_be_json_is_refused() -> None:
    async with serving() as site:
        for header in (b"", b"Content-Type: text/plain\r\n"):
            head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n" + header
            answer = await site.ask(head + b"Content-Length: 2\r\n\r\n{}")
            assert (answer.status, answer.code) == (415, "unsupported_media_type")
            answer = await site.ask(head + b"Content-Length: 0\r\n\r\n")
            assert answer.status == 200
