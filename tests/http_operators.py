"""Operators with HTTP interfaces, on local ports: what they are asked is kept, they answer as told.

``Twilio``, ``Vonage`` and ``Kavenegar`` judge a request as those do by their public documents.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from smsgw.models import Outcome, Verdict
from smsgw.operators import HttpProviderSettings
from smsgw.providers.base import Submission
from smsgw.providers.http.provider import HttpProvider


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        """The body as a form without repeated fields."""
        assert self.headers["content-type"] == "application/x-www-form-urlencoded"
        fields = parse_qs(self.body.decode(), keep_blank_values=True, strict_parsing=True)
        assert all(len(values) == 1 for values in fields.values())
        return {name: value for name, (value,) in fields.items()}

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


Answers = Callable[[Asked], web.Response]


def says(content: Any, status: int = 200, **headers: str) -> web.Response:
    """An answer in JSON."""
    return web.Response(
        status=status,
        text=json.dumps(content),
        content_type="application/json",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


@dataclass
class Operator:
    """A server that answers each request by a function."""

    answer: Answers
    asked: list[Asked] = field(default_factory=list)
    base_url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        asked = Asked(
            request.method,
            request.path,
            parse_qs(request.query_string, keep_blank_values=True),
            {name.lower(): value for name, value in request.headers.items()},
            await request.read(),
        )
        self.asked.append(asked)
        return self.answer(asked)


@asynccontextmanager
async def serving(answer: Answers, tls: Any = None) -> AsyncIterator[Operator]:
    """An operator on a free port."""
    operator = Operator(answer)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", operator.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    operator.base_url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        yield operator
    finally:
        await runner.cleanup()


@dataclass
class Raw:
    """A server of bytes: reads a whole request, then does what the test says."""

    port: int = 0
    requests: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/send"


Reply = Callable[[asyncio.StreamWriter], Any]


@asynccontextmanager
async def raw(reply: Reply) -> AsyncIterator[Raw]:
    """An operator that writes what it likes; the connection is cut once ``reply`` returns."""
    state = Raw()
    writers: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            state.requests += 1
            await reply(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


class Desk:
    """A sink that keeps what a provider brings."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[Submission, Outcome]] = []
        self.reports: list[tuple[str, str, str | None]] = []
        self.changes = 0
        self.cannot_store = 0
        self._news = asyncio.Event()

    def settled(self, provider: str, submission: Submission, outcome: Outcome) -> None:
        self.outcomes.append((submission, outcome))
        self._news.set()

    def received(
        self,
        provider: str,
        provider_message_id: str,
        word: str,
        reason: str | None,
        *,
        stored: Callable[[bool], None] | None = None,
        **_: Any,
    ) -> None:
        assert stored is not None
        self.reports.append((provider_message_id, word, reason))
        stored(len(self.reports) > self.cannot_store)
        self._news.set()

    def wrote(self, provider: str) -> None:
        raise AssertionError("no handset writes by HTTP")

    def changed(self, provider: str) -> None:
        self.changes += 1

    async def until(self, enough: Callable[[], bool]) -> None:
        """Wait for news until there is enough of it."""
        while not enough():
            self._news.clear()
            await self._news.wait()


@asynccontextmanager
async def connected(
    receipt_timeout_s: float = 3600.0, **settings: Any
) -> AsyncIterator[tuple[HttpProvider, Desk]]:
    """A provider with these settings, started."""
    desk = Desk()
    provider = HttpProvider("op", HttpProviderSettings(kind="http", **settings), receipt_timeout_s)
    await provider.start(desk)
    try:
        yield provider, desk
    finally:
        await provider.stop()


def submission(**changes: Any) -> Submission:
    """A message to hand over."""
    usual: dict[str, Any] = {
        "shard": 0,
        "number": 4242,
        "reference": "0198c5b2-0000-7000-8000-000000000001",
        "attempt": 1,
        "recipient": "+989121234567",
        "sender": "ACME",
        "text": "hello",
        "ucs2": False,
        "parts": 1,
        "valid_s": 3600.0,
    }
    return Submission(**usual | changes)


async def outcome_of(provider: HttpProvider, desk: Desk, **changes: Any) -> Outcome:
    """What comes of one message."""
    before = len(desk.outcomes)
    sent = submission(**changes)
    provider.submit(sent)
    await desk.until(lambda: len(desk.outcomes) > before)
    assert desk.outcomes[-1][0] is sent
    return desk.outcomes[-1][1]


async def verdict_of(answer: Answers, **settings: Any) -> Verdict:
    """What an answer comes to."""
    async with (
        serving(answer) as operator,
        connected(url=f"{operator.base_url}/send", **settings) as (provider, desk),
    ):
        return (await outcome_of(provider, desk)).verdict


# Those with a name


class Twilio:
    """``POST /2010-04-01/Accounts/{AccountSid}/Messages.json``, and the message it makes."""

    account, secret = "AC" + "0" * 32, "twilio-token-canary"
    numbers_refused = ("+15005550001",)

    def __init__(self) -> None:
        self.delivery = "delivered"
        self.made = 0

    def __call__(self, asked: Asked) -> web.Response:
        expected = base64.b64encode(f"{self.account}:{self.secret}".encode()).decode()
        if asked.headers.get("authorization") != f"Basic {expected}":
            return self._error(401, 20003, "Authenticate")
        messages = f"/2010-04-01/Accounts/{self.account}/Messages"
        if asked.method == "GET" and asked.path.startswith(f"{messages}/SM"):
            return says(self._message({"To": "+1", "Body": "x"}, self.delivery))
        assert (asked.method, asked.path) == ("POST", f"{messages}.json")
        fields = asked.form
        known = {"To", "From", "Body", "StatusCallback", "ValidityPeriod"}
        assert {"To", "From", "Body"} <= set(fields) <= known, fields
        if fields["To"] in self.numbers_refused:
            said = f"The 'To' number {fields['To']} is not a valid phone number."
            return self._error(400, 21211, said)
        if "ValidityPeriod" in fields and not 1 <= int(fields["ValidityPeriod"]) <= 36_000:
            return self._error(400, 21624, "Invalid validity period value")
        self.made += 1
        return says(self._message(fields, "queued"), 201)

    def _message(self, fields: dict[str, str], status: str) -> dict[str, Any]:
        return {
            "sid": f"SM{self.made:032x}",
            "status": status,
            "to": fields["To"],
            "from": fields.get("From"),
            "body": fields["Body"],
            "num_segments": "1",
            "price": None,
            "error_code": None,
            "error_message": None,
            "date_created": "Fri, 24 May 2019 17:44:46 +0000",
        }

    def _error(self, status: int, code: int, message: str) -> web.Response:
        more = f"https://www.twilio.com/docs/errors/{code}"
        return says({"code": code, "message": message, "more_info": more, "status": status}, status)


class Vonage:
    """``POST /sms/json``; HTTP says 200 whatever happens, each part has a status of its own."""

    key, secret = "vonage-key-canary", "vonage-secret-canary"

    def __init__(self, *statuses: str) -> None:
        self.statuses = statuses or ("0",)
        self.made = 0

    def __call__(self, asked: Asked) -> web.Response:
        assert (asked.method, asked.path) == ("POST", "/sms/json")
        fields = asked.form
        if (fields.get("api_key"), fields.get("api_secret")) != (self.key, self.secret):
            return self._parts("4")
        assert fields["to"].isdigit()
        assert not fields["from"].startswith("+")
        assert fields["type"] in ("text", "unicode")
        assert fields["type"] == "unicode" or fields["text"].isascii()
        assert 20_000 <= int(fields["ttl"]) <= 604_800_000
        assert len(fields["client-ref"]) <= 100
        assert len(fields.get("callback", "")) <= 100
        return self._parts(*self.statuses)

    def _parts(self, *statuses: str) -> web.Response:
        return says(
            {
                "message-count": str(len(statuses)),
                "messages": [self._part(status) for status in statuses],
            }
        )

    def _part(self, status: str) -> dict[str, str]:
        if status != "0":
            return {"status": status, "error-text": f"error {status}"}
        self.made += 1
        return {
            "to": "447700900000",
            "message-id": f"0A0000000123ABCD{self.made}",
            "status": "0",
            "remaining-balance": "3.14159265",
            "message-price": "0.03330000",
            "network": "12345",
        }


class Kavenegar:
    """``/v1/{apikey}/sms/send.json`` and ``status.json``; errors stand in ``return.status``."""

    key = "kavenegar-key-canary"

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.delivery = 10

    def __call__(self, asked: Asked) -> web.Response:
        if not asked.path.startswith(f"/v1/{self.key}/sms/"):
            return self._return(403, [])
        if asked.path.endswith("/status.json"):
            (identifier,) = asked.query["messageid"]
            entry = {"messageid": int(identifier), "status": self.delivery, "statustext": "x"}
            return self._return(200, [entry])
        assert asked.path.endswith("/send.json")
        fields = asked.form
        assert set(fields) == {"receptor", "sender", "message", "localid"}
        assert fields["localid"].isdigit()
        if self.status != 200:
            return self._return(self.status, None)
        return self._return(
            200,
            [
                {
                    "messageid": 8_792_343,
                    "message": fields["message"],
                    "status": 1,
                    "statustext": "در صف ارسال",
                    "sender": fields["sender"],
                    "receptor": fields["receptor"],
                    "date": 1_356_619_709,
                    "cost": 120,
                }
            ],
        )

    def _return(self, status: int, entries: Any) -> web.Response:
        said = "تایید شد" if status == 200 else "خطا"
        return says({"return": {"status": status, "message": said}, "entries": entries}, status)
