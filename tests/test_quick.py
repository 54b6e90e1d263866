"""The short way of a message, over real sockets: whoever answers, the client cannot tell."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, Router

from smsgw.admission import Accepted
from smsgw.api import views
from smsgw.api.edge import Edge
from smsgw.api.protocol import edge_protocol
from smsgw.api.quick import Answer, Refuse
from smsgw.errors import InsufficientCredits, InvalidRequest
from smsgw.models import Message
from smsgw.settings import ServerSettings
from tests.records import a_message
from tests.test_edge import answers, read_answer

HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def post(body: bytes, more: bytes = b"") -> bytes:
    return HEAD + more + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


class Desk:
    """Handles requests as their bodies say, and remembers who came which way."""

    def __init__(self) -> None:
        self.short: list[bytes] = []
        self.long: list[bytes] = []
        self.owed: list[Callable[[], None]] = []
        self.came = asyncio.Event()

    def handle(
        self, fields: Mapping[bytes, bytes], body: bytes, answer: Answer, refuse: Refuse
    ) -> bool:
        if body == b"long":
            return False
        self.short.append(body)
        if body == b"refused":
            raise InvalidRequest("No.")
        if body == b"broken":
            raise ZeroDivisionError
        if body == b"poor":
            self.owed.append(lambda: refuse(InsufficientCredits(required=5, credits=4)))
        elif body.startswith(b"later"):
            self.owed.append(lambda: answer(202, body))
        else:
            answer(202, body)
        self.came.set()
        return True

    async def application(self, request: Request) -> JSONResponse:
        self.long.append(await request.body())
        return JSONResponse({"long": True})


@pytest.fixture
async def desk() -> AsyncIterator[tuple[Desk, Any, list[tuple[str, str, int]]]]:
    desk = Desk()
    seen: list[tuple[str, str, int]] = []

    def observe(template: str, method: str, status: int, _: float) -> None:
        seen.append((template, method, status))

    router = Router([Route("/v1/messages", desk.application, methods=["POST"])])
    settings = ServerSettings(body_timeout_s=5.0)
    config = uvicorn.Config(
        Edge(router, observe),
        port=0,
        http=edge_protocol(settings, observe=observe, handle=desk.handle),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = server.servers[0].sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        writers.append(writer)
        return reader, writer

    yield desk, connect, seen
    for listener in server.servers:
        listener.close()
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    for writer in writers:
        writer.transport.abort()
    waits = [writer.wait_closed() for writer in writers]
    await asyncio.gather(*waits, *server.server_state.tasks, return_exceptions=True)


async def test_a_request_in_one_block_goes_the_short_way_and_is_counted(desk: Any) -> None:
    desk, connect, seen = desk
    reader, writer = await connect()
    writer.write(post(b'{"a":1}', b"X-Request-ID: mine\r\n"))
    answer = await read_answer(reader)
    assert (answer.status, answer.body) == (202, b'{"a":1}')
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["content-type"] == "application/json"
    assert desk.short == [b'{"a":1}']
    assert seen == [("/v1/messages", "POST", 202)]


async def test_a_body_that_comes_later_goes_the_long_way(desk: Any) -> None:
    desk, connect, _ = desk
    reader, writer = await connect()
    writer.write(HEAD + b"Content-Length: 6\r\n\r\nabc")
    await writer.drain()
    await asyncio.sleep(0)
    writer.write(b"def")
    answer = await read_answer(reader)
    assert answer.status in (200, 202)
    assert desk.short + desk.long == [b"abcdef"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"long"),
        HEAD + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\nlong",
        post(b"long", b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n"),
        HEAD.replace(b"/v1/messages", b"/v1/messages?x=1") + b"Content-Length: 4\r\n\r\nlong",
        HEAD.replace(b"1.1", b"1.0") + b"Content-Length: 4\r\n\r\nlong",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nlong\r\n0\r\n\r\n",
    ],
)
async def test_what_is_out_of_the_ordinary_reaches_the_application(
    desk: Any, request_bytes: bytes
) -> None:
    desk, connect, _ = desk
    reader, writer = await connect()
    writer.write(request_bytes)
    answer = await read_answer(reader)
    if answer.status == 100:
        answer = await read_answer(reader)
    assert (answer.status, desk.long) == (200, [b"long"])
    assert desk.short == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"refused", 400, "invalid_request"), (b"broken", 500, "internal_error")],
)
async def test_a_refusal_is_a_problem_document(
    desk: Any, body: bytes, status: int, code: str
) -> None:
    desk, connect, seen = desk
    reader, writer = await connect()
    writer.write(post(body))
    answer = await read_answer(reader)
    assert (answer.status, answer.code) == (status, code)
    assert seen == [("/v1/messages", "POST", status)]
    writer.write(post(b"next"))
    assert (await read_answer(reader)).body == b"next"


async def test_requests_on_one_connection_are_answered_in_order(desk: Any) -> None:
    desk, connect, _ = desk
    reader, writer = await connect()
    writer.write(post(b"later-1") + post(b"second") + post(b"long"))
    async with asyncio.timeout(10):
        await desk.came.wait()
    assert desk.short == [b"later-1"]
    assert desk.long == []
    desk.owed.pop()()
    assert (await read_answer(reader)).body == b"later-1"
    # What stood behind it waited, and so goes the long way.
    assert [(await read_answer(reader)).status for _ in range(2)] == [200, 200]
    assert desk.long == [b"second", b"long"]


async def test_a_late_refusal_is_told_and_the_connection_goes_on(desk: Any) -> None:
    desk, connect, _ = desk
    reader, writer = await connect()
    writer.write(post(b"poor"))
    async with asyncio.timeout(10):
        await desk.came.wait()
    desk.owed.pop()()
    answer = await read_answer(reader)
    assert (answer.status, answer.code) == (402, "insufficient_credits")
    writer.write(post(b"again"))
    assert (await read_answer(reader)).body == b"again"


async def test_an_answer_for_a_client_that_is_gone_harms_nobody(desk: Any) -> None:
    desk, connect, seen = desk
    _, writer = await connect()
    writer.write(post(b"later"))
    async with asyncio.timeout(10):
        await desk.came.wait()
    writer.transport.abort()
    reader, writer = await connect()
    writer.write(post(b"someone else"))
    assert (await read_answer(reader)).body == b"someone else"
    desk.owed.pop()()
    assert seen.count(("/v1/messages", "POST", 202)) == 2


async def test_connection_close_is_obeyed(desk: Any) -> None:
    _, connect, _ = desk
    reader, writer = await connect()
    writer.write(post(b"bye", b"Connection: close\r\n"))
    async with asyncio.timeout(10):
        (answer,) = answers(await reader.read())
    assert answer.body == b"bye"
    assert answer.headers["connection"] == "close"


async def test_a_body_that_is_too_large_is_refused_before_anybody_sees_it(desk: Any) -> None:
    desk, connect, _ = desk
    reader, writer = await connect()
    writer.write(HEAD + b"Content-Length: 70000\r\n\r\n")
    async with asyncio.timeout(10):
        (answer,) = answers(await reader.read())
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert desk.short == desk.long == []


async def test_garbage_after_a_request_does_not_cost_it_its_answer(desk: Any) -> None:
    _, connect, _ = desk
    reader, writer = await connect()
    writer.write(post(b"fine") + b"\0garbage\r\n\r\n")
    async with asyncio.timeout(10):
        first, second = answers(await reader.read())
    assert first.body == b"fine"
    assert (second.status, second.code) == (400, "malformed_request")


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("reference", [None, 'order "7" \\ é 😀 \n', "\ud83d"])
@pytest.mark.parametrize("submit_by_ms", [None, 1_800_000_000_123])
@pytest.mark.parametrize("ucs2", [0, 1])
def test_the_answer_put_together_by_hand_is_the_answer(
    scheduled: bool, reference: str | None, submit_by_ms: int | None, ucs2: int
) -> None:
    row: Message = a_message(reference=reference, submit_by_ms=submit_by_ms, ucs2=ucs2)
    answer = Accepted(row, scheduled, 12345)
    assert json.loads(views.accepted_json(answer)) == json.loads(json.dumps(views.accepted(answer)))
