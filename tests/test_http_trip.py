"""The whole trip through an operator with an HTTP interface, receipts in its own form included."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from smsgw import logs
from smsgw.admission import Accepted
from smsgw.api.app import public_app
from smsgw.gateway import Gateway
from smsgw.ids import uuid_text
from smsgw.providers.http import polls
from smsgw.settings import load, with_dev
from tests.conftest import OpenGateway
from tests.http_operators import Answers, Asked, Kavenegar, Twilio, Vonage, raw, says, serving
from tests.support import (
    Served,
    account_of,
    add_client,
    assert_clean,
    final_of,
    flushed,
    send,
)

TOKEN = "t0ken-canary"
TO = "+989121234567"


class Site:
    """A gateway with one operator, as seen through its HTTP routes."""

    def __init__(self, gateway: Gateway, http: httpx2.AsyncClient, client_id: bytes) -> None:
        self.gateway = gateway
        self.http = http
        self.client_id = client_id

    async def send(self, status: int = 202, **changes: Any) -> Any:
        request = {
            "client_id": uuid_text(self.client_id),
            "to": TO,
            "from": "ACME",
            "text": "hello",
            **changes,
        }
        answer = await self.http.post("/v1/messages", json=request)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def message(self, identifier: str, **wait: Any) -> Any:
        return (await self.http.get(f"/v1/messages/{identifier}", params=wait)).json()

    async def accepted(self, **changes: Any) -> Any:
        """A message that the operator has taken."""
        sent = await self.send(**changes)
        await flushed(self.gateway)
        while (message := await self.message(sent["message_id"]))["status"] in (
            "QUEUED",
            "SENDING",
        ):
            await flushed(self.gateway)
        return message

    async def push(self, status: int = 204, method: str = "POST", **request: Any) -> str:
        """What the operator's own call about a receipt is answered."""
        answer = await self.http.request(method, f"/v1/providers/op/dlr/{TOKEN}", **request)
        assert answer.status_code == status, answer.text
        return answer.text


@asynccontextmanager
async def site_with(
    gateway_of: OpenGateway, answer: Answers, credit: int = 1000, **settings: Any
) -> AsyncIterator[Site]:
    """A gateway whose only operator is a server that answers so."""
    async with serving(answer) as operator:
        one = {"kind": "http", "base_url": operator.base_url, "receipt_token": TOKEN, **settings}
        if "preset" not in settings:
            one = {"url": "{base_url}/send", "id_path": "id", **one}
        gateway = await gateway_of(
            {
                "dev": {"allow_providers": True},
                "server": {"shutdown_s": 0.05},
                "providers": {"mock": {"enabled": False}, "op": one},
            },
            manual=False,
        )
        client_id = await add_client(gateway, credit)
        transport = httpx2.ASGITransport(app=public_app(gateway))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            yield Site(gateway, http, client_id)
        await assert_clean(gateway)
        await gateway.close()


def taken(asked: Asked) -> Any:
    return says({"id": "m-1"})


async def changed(site: Site, **settings: Any) -> None:
    """Have the operator's settings changed by a reload, and wait until that is done."""
    gateway = site.gateway
    providers = gateway.settings.providers
    changed = {**providers, "op": providers["op"].model_copy(update=settings)}
    await gateway.reload(gateway.settings.model_copy(update={"providers": changed}))
    while gateway.fleet._tasks:
        await asyncio.wait(set(gateway.fleet._tasks))


async def gateway_error(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n")


async def redirect(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 302 X\r\nLocation: /maintenance\r\nContent-Length: 0\r\n\r\n")


async def page(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 6\r\n\r\n<html>")


async def hang_up(_: asyncio.StreamWriter) -> None:
    """Read all of it, and say nothing."""


@pytest.mark.parametrize("fault", [gateway_error, redirect, page, hang_up])
async def test_faults_of_the_link_open_the_breaker(gateway_of: OpenGateway, fault: Any) -> None:
    async with raw(fault) as bad, serving(taken) as good:
        one = {"kind": "http", "id_path": "id", "breaker_failures": 2, "window": 3}
        gateway = await gateway_of(
            {
                "dev": {"allow_providers": True},
                "server": {"shutdown_s": 0.05},
                "providers": {
                    "mock": {"enabled": False},
                    "bad": {**one, "url": bad.url},
                    "good": {**one, "url": good.base_url, "window": 10, "priority": 1},
                },
            },
            manual=False,
        )
        client = await add_client(gateway)
        for _ in range(20):
            await send(gateway, client, to=TO)
        while "provider bad" not in gateway.trouble() or len(good.asked) + bad.requests < 20:
            await flushed(gateway)
        # What was under way by then, and no more.
        assert bad.requests <= 4
        assert "breaker" in gateway.trouble()["provider bad"]
        await gateway.close()


async def test_a_larger_window_holds_at_once_and_is_the_limit_of_what_is_asked_together(
    gateway_of: OpenGateway,
) -> None:
    # Four places are kept for one-time codes.
    window, together = 34, asyncio.Barrier(30)
    now = most = 0

    async def wait_for_the_others(writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await together.wait()
        now -= 1
        writer.write(b'HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\n{"id":"m"}')

    async with raw(wait_for_the_others) as operator:
        one = {"kind": "http", "url": operator.url, "window": 2, "receipts": False}
        gateway = await gateway_of(
            {
                "dev": {"allow_providers": True},
                "providers": {"mock": {"enabled": False}, "op": one},
            },
            manual=False,
        )
        client = await add_client(gateway)
        larger = gateway.settings.providers["op"].model_copy(update={"window": window})
        changed = {**gateway.settings.providers, "op": larger}
        await gateway.reload(gateway.settings.model_copy(update={"providers": changed}))
        sent = [await send(gateway, client, to=TO) for _ in range(60)]
        async with asyncio.timeout(4):
            for answer in sent:
                assert isinstance(answer, Accepted)
                await final_of(gateway, answer.message)
        assert (most, gateway.trouble()) == (30, {})
        await gateway.close()


TWILIO = {"preset": "twilio", "account": Twilio.account, "secret": Twilio.secret}
VONAGE = {"preset": "vonage", "key": Vonage.key, "secret": Vonage.secret}
KAVENEGAR = {"preset": "kavenegar", "key": Kavenegar.key}


@pytest.mark.parametrize(
    ("server", "settings", "identifier", "receipt"),
    [
        (
            Twilio(),
            TWILIO,
            f"SM{1:032x}",
            {"data": {"MessageSid": f"SM{1:032x}", "MessageStatus": "delivered"}},
        ),
        (
            Vonage(),
            VONAGE,
            "0A0000000123ABCD1",
            {"json": {"messageId": "0A0000000123ABCD1", "status": "delivered", "err-code": "0"}},
        ),
        (
            Kavenegar(),
            KAVENEGAR,
            "8792343",
            {"method": "GET", "params": {"messageid": "8792343", "status": "10"}},
        ),
    ],
    ids=["twilio", "vonage", "kavenegar"],
)
async def test_a_message_is_sent_reported_and_paid(
    gateway_of: OpenGateway,
    server: Answers,
    settings: dict[str, Any],
    identifier: str,
    receipt: dict[str, Any],
) -> None:
    async with site_with(gateway_of, server, **settings) as site:
        message = await site.accepted()
        assert (message["status"], message["provider"]) == ("SENT", "op")
        assert message["provider_message_id"] == identifier
        assert await site.push(**receipt) == ""
        message = await site.message(message["id"], wait_s=10)
        assert (message["status"], message["charged"]) == ("DELIVERED", 5)
        account = await account_of(site.gateway, site.client_id)
        assert (account.credits_cents, account.held_cents, account.charged_cents) == (995, 0, 5)


async def test_a_message_in_parts_is_delivered_once_all_of_them_are(
    gateway_of: OpenGateway,
) -> None:
    async with site_with(gateway_of, Vonage("0", "0"), **VONAGE) as site:
        message = await site.accepted(text="x" * 161)
        assert (message["status"], message["parts"]) == ("SENT", 2)
        for part, status in [(2, "SENT"), (1, "DELIVERED")]:
            await site.push(json={"messageId": f"0A0000000123ABCD{part}", "status": "delivered"})
            assert (await site.message(message["id"]))["status"] == status
        assert (await account_of(site.gateway, site.client_id)).charged_cents == 10


@pytest.mark.parametrize(
    ("words", "end", "charged"),
    [
        (["delivered", "delivered", "delivered"], "DELIVERED", 15),
        (["delivered", "failed", "failed"], "FAILED_PERM", 0),
    ],
)
async def test_in_doubt_a_message_in_parts_is_delivered_once_all_of_them_are(
    gateway_of: OpenGateway, words: list[str], end: str, charged: int
) -> None:
    async with raw(hang_up) as server:
        own = {**VONAGE, "base_url": server.url}
        async with site_with(gateway_of, taken, **own) as site:
            message = await site.accepted(text="x" * 400)
            assert (message["status"], message["parts"]) == ("UNCERTAIN", 3)
            for part, word in enumerate(words, 1):
                assert (await site.message(message["id"]))["charged"] == 0
                receipt = {"status": word, "client-ref": message["id"]}
                await site.push(json={**receipt, "messageId": f"0A{part}"})
            message = await site.message(message["id"])
            assert (message["status"], message["charged"]) == (end, charged)


async def test_all_parts_are_asked_about_after_an_exchange_too(gateway_of: OpenGateway) -> None:
    asked_about: set[str] = set()
    word = "ENROUTE"

    def answer(asked: Asked) -> Any:
        if asked.path == "/send":
            return says({"messages": [{"id": f"p{n}"} for n in (1, 2, 3)]})
        asked_about.update(asked.query["id"])
        return says({"status": word})

    polled = {
        "parts_path": "messages",
        "receipt_poll_s": 0.01,
        "receipt_poll_url": "{base_url}/status?id={id}",
        "receipt_poll_status": "status",
    }
    async with site_with(gateway_of, answer, **polled) as site:
        message = await site.accepted(text="x" * 400)
        assert message["parts"] == 3
        await changed(site, connect_timeout_s=4.0)
        asked_about.clear()
        word = "DELIVERED"
        done = await site.message(message["id"], wait_s=60)
        assert (done["status"], done["charged"]) == ("DELIVERED", 15)
        assert asked_about == {"p1", "p2", "p3"}


async def test_more_messages_than_can_be_asked_about_are_asked_about_in_turn(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polls, "WAITING_MAX", 2)
    sent = 0
    word = "ENROUTE"

    def answer(asked: Asked) -> Any:
        nonlocal sent
        if asked.path == "/send":
            sent += 1
            return says({"id": f"m-{sent}"})
        return says({"status": word})

    polled = {
        "receipt_poll_s": 0.01,
        "receipt_poll_url": "{base_url}/status?id={id}",
        "receipt_poll_status": "status",
        "receipt_polls_max": 1,
    }
    async with site_with(gateway_of, answer, **polled) as site:
        messages = [await site.accepted() for _ in range(6)]
        assert "no more" in site.gateway.trouble()["provider op"]
        word = "DELIVERED"
        open_ids = {message["id"] for message in messages}
        while open_ids or site.gateway.trouble():
            site.gateway.fleet.look()
            await flushed(site.gateway)
            ended = [one for one in open_ids if (await site.message(one))["status"] == "DELIVERED"]
            open_ids.difference_update(ended)


async def test_a_refusal_gives_the_money_back(gateway_of: OpenGateway) -> None:
    async with site_with(gateway_of, Twilio(), **TWILIO) as site:
        message = await site.accepted(to=Twilio.numbers_refused[0])
        assert (message["status"], message["reason"]) == ("FAILED_PERM", "rejected_by_operator")
        assert message["last_error"].startswith("HTTP 400, code 21211: ")
        assert (await account_of(site.gateway, site.client_id)).credits_cents == 1000


async def test_a_code_is_delivered_or_refused_at_once(gateway_of: OpenGateway) -> None:
    texts: list[str] = []

    def answer(asked: Asked) -> Any:
        texts.append(asked.json["text"])
        return says({"id": "m-1"}) if len(texts) == 1 else says({}, 400)

    async with site_with(gateway_of, answer, body={"text": "{text}"}) as site:
        sent = await site.send(200, otp=True, text="code {code}")
        assert (sent["status"], sent["confirmed_by"]) == ("SENT", "operator")
        assert texts == [f"code {sent['otp_code']}"]
        refused = await site.send(503, otp=True, text="code {code}")
        assert (refused["code"], refused["submitted"]) == ("otp_undeliverable", True)
        assert (await account_of(site.gateway, site.client_id)).credits_cents == 995


async def test_a_link_in_trouble_takes_nothing_more_and_the_message_waits(
    gateway_of: OpenGateway,
) -> None:
    seen = 0

    def answer(asked: Asked) -> Any:
        nonlocal seen
        seen += 1
        return says({}, 401)

    async with site_with(gateway_of, answer, breaker_open_s=3600) as site:
        sent = [await site.send() for _ in range(3)]
        provider = site.gateway.providers["op"]
        while provider.trouble is None:
            await flushed(site.gateway)
        sent.append(await site.send())
        await flushed(site.gateway)
        messages = [await site.message(one["message_id"]) for one in sent]
        assert [message["status"] for message in messages] == ["FAILED_TEMP"] * 3 + ["QUEUED"]
        assert [message["attempts"] for message in messages] == [0] * 4
        assert messages[0]["last_error"] == "HTTP 401"
        assert seen == 3
        ready = await site.http.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["degraded"] == ["provider op: the operator answers HTTP 401"]
        refused = await site.send(503, otp=True, text="code")
        assert refused["submitted"] is False
        assert seen == 3


async def test_a_right_secret_holds_at_once_and_ends_the_trouble(gateway_of: OpenGateway) -> None:
    def answer(asked: Asked) -> Any:
        right = asked.headers["authorization"] == "Bearer right"
        return says({"id": "m-1"}, 200 if right else 401)

    settings = {"auth": "bearer", "secret": "wrong", "breaker_open_s": 3600}
    async with site_with(gateway_of, answer, **settings) as site:
        provider = site.gateway.providers["op"]
        for _ in range(3):
            await site.send()
        while provider.trouble is None:
            await flushed(site.gateway)
        await changed(site, secret=SecretStr("right"))
        assert site.gateway.trouble() == {}
        assert (await site.accepted())["status"] == "SENT"
        assert site.gateway.providers["op"] is provider


async def test_a_number_that_the_operator_does_not_allow_holds_up_no_other(
    gateway_of: OpenGateway,
) -> None:
    def answer(asked: Asked) -> Any:
        opted_out = asked.json["to"].endswith("99")
        return says({"error": "opted out"}, 403) if opted_out else says({"id": "m-1"})

    settings = {"body": {"to": "{to}"}, "error_path": "error", "breaker_open_s": 3600, "window": 1}
    async with site_with(gateway_of, answer, **settings) as site:
        wrong = await site.send(to="+989121234599")
        for _ in range(5):
            assert (await site.accepted())["status"] == "SENT"
        message = await site.message(wrong["message_id"])
        assert (message["status"], message["attempts"]) == ("FAILED_TEMP", 0)
        assert message["last_error"] == "HTTP 403: opted out"
        assert not site.gateway.trouble()


# Receipts in the operator's form


@pytest.mark.parametrize(
    "request_of",
    [
        {"json": {"provider_message_id": "m-1", "status": "DELIVRD", "reason": "000"}},
        {"data": {"provider_message_id": "m-1", "status": "delivered", "more": "x"}},
        {"method": "GET", "params": {"provider_message_id": "m-1", "status": "Delivered"}},
        {"params": {"provider_message_id": "m-1"}, "json": {"status": "DELIVERED"}},
        {"content": b'{"provider_message_id": "m-1", "status": "DELIVRD"}'},
    ],
    ids=["json", "form", "query", "both", "untyped"],
)
async def test_a_receipt_is_read_however_it_comes(
    gateway_of: OpenGateway, request_of: dict[str, Any]
) -> None:
    async with site_with(gateway_of, taken) as site:
        message = await site.accepted()
        await site.push(**request_of)
        assert (await site.message(message["id"], wait_s=10))["status"] == "DELIVERED"


async def test_a_receipt_is_read_under_the_names_and_words_of_the_settings(
    gateway_of: OpenGateway,
) -> None:
    names = {
        "receipt_list": "results",
        "receipt_id": "message.id",
        "receipt_status": "state.0",
        "receipt_reason": "error",
        "receipt_words": {"no_route": "UNDELIVERED", "5": "DELIVERED"},
        "receipt_answer": "OK",
    }
    async with site_with(gateway_of, taken, **names) as site:
        message = await site.accepted()
        one = {"message": {"id": "m-1"}, "state": ["NO_ROUTE"], "error": 17}
        two = {"message": {"id": "later"}, "state": [5]}
        assert await site.push(200, json={"results": [two, one]}) == "OK"
        message = await site.message(message["id"], wait_s=10)
        assert (message["status"], message["reason"]) == ("FAILED_PERM", "undelivered")
        assert message["last_error"] == "UNDELIVERED: NO_ROUTE 17"
        assert ("op", "later") in site.gateway.receipts.parked
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        again = await site.http.post(
            "/v1/providers/op/dlr", json={"results": [one]}, headers=bearer
        )
        assert (again.status_code, again.text) == (200, "OK")


@pytest.mark.parametrize("path", ["reports", "."])
async def test_of_a_list_what_can_be_read_is_taken(
    gateway_of: OpenGateway, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with site_with(gateway_of, taken, receipt_list=path) as site:
        message = await site.accepted()
        good = {"provider_message_id": "m-1", "status": "DELIVRD"}
        bad = [{"type": "inbound"}, 7, {"provider_message_id": "", "status": "DELIVRD"}]
        reports = [*bad, good, {"provider_message_id": "m-1"}]
        await site.push(json={path: reports} if path == "reports" else reports)
        assert (await site.message(message["id"]))["status"] == "DELIVERED"
        page = site.gateway.metrics.render().decode()
        assert 'smsgw_receipts_total{result="unreadable"} 4.0' in page
        assert caplog.text.count("cannot be read") == 1
        answer = json.loads(await site.push(400, json={path: bad} if path == "reports" else bad))
        assert answer["code"] == "invalid_request"


async def test_a_list_without_entries_is_no_mistake(gateway_of: OpenGateway) -> None:
    async with site_with(gateway_of, taken, receipt_list=".") as site:
        await site.push(json=[])
        assert not site.gateway.receipts.parked


@pytest.mark.parametrize(
    "receipt",
    [
        {"messageId": "0A1", "status": "delivered", "client-ref": True},
        {"messageId": "0A1", "status": "delivered", "msisdn": TO[1:], "to": "ACME"},
        {"messageId": "0A1", "status": "delivered", "msisdn": TO, "to": "ACME", "client-ref": ""},
    ],
    ids=["our reference", "whom it is about", "no reference"],
)
async def test_an_operator_that_repeats_what_we_said_resolves_what_is_in_doubt(
    gateway_of: OpenGateway, receipt: dict[str, Any]
) -> None:
    async with raw(hang_up) as server:
        own = {"preset": "vonage", "key": "k", "secret": "s", "base_url": server.url}
        async with site_with(gateway_of, taken, **own) as site:
            message = await site.accepted()
            assert message["status"] == "UNCERTAIN"
            if receipt.get("client-ref"):
                receipt = {**receipt, "client-ref": message["id"].upper()}
            await site.push(json=receipt)
            message = await site.message(message["id"])
            assert (message["status"], message["provider_message_id"]) == ("DELIVERED", "0A1")
            assert not site.gateway.receipts.parked


async def test_a_call_without_fields_is_a_question_whether_somebody_is_there(
    gateway_of: OpenGateway,
) -> None:
    async with site_with(gateway_of, taken) as site:
        await site.push(method="GET")
        await site.push()
        assert not site.gateway.receipts.parked


@pytest.mark.parametrize(
    "request_of",
    [
        {"json": {"provider_message_id": "m-1"}},
        {"json": {"status": "DELIVRD"}},
        {"json": {"provider_message_id": "", "status": "x"}},
        {"json": {"provider_message_id": "x" * 256, "status": "x"}},
        {"json": {"provider_message_id": "a\x00b", "status": "x"}},
        {"json": {"provider_message_id": ["m"], "status": "x"}},
        {"json": {"provider_message_id": "m", "status": "x" * 65}},
        {"json": [1]},
        {"json": "m-1"},
        {"content": b"<xml/>"},
        {"content": b"\xff\xfe"},
        {"content": b'{"provider_message_id": "\\ud800", "status": "x"}'},
        {"content": b"[" * 10_000},
        {"data": {str(at): "x" for at in range(200)}},
        {"params": {"provider_message_id": "m"}, "method": "GET"},
        {"files": {"provider_message_id": b"m", "status": b"x"}},
    ],
)
async def test_garbage_is_refused_and_stored_nowhere(
    gateway_of: OpenGateway, request_of: dict[str, Any]
) -> None:
    async with site_with(gateway_of, taken) as site:
        answer = json.loads(await site.push(400, **request_of))
        assert answer["code"] in ("invalid_request", "malformed_request")
        assert not site.gateway.receipts.parked


async def test_the_token_in_the_path_decides(gateway_of: OpenGateway) -> None:
    receipt = {"provider_message_id": "m-1", "status": "DELIVRD"}
    async with site_with(gateway_of, taken) as site:
        for name, token, status, code in [
            ("op", "wrong", 401, "invalid_token"),
            ("op", TOKEN + "x", 401, "invalid_token"),
            ("op", "é", 401, "invalid_token"),
            ("nobody", TOKEN, 404, "unknown_route"),
            ("mock", "x", 404, "unknown_route"),
            ("op", f"{TOKEN}/x", 404, "unknown_route"),
        ]:
            answer = await site.http.post(f"/v1/providers/{name}/dlr/{token}", json=receipt)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert TOKEN not in answer.text
        assert not site.gateway.receipts.parked


async def test_an_operator_that_was_removed_still_reports_on_what_it_has(
    gateway_of: OpenGateway,
) -> None:
    async with site_with(gateway_of, taken) as site:
        message = await site.accepted()
        without = {"dev": {"allow_providers": True}, "providers": {"mock": {"enabled": False}}}
        for _ in range(2):
            await site.gateway.reload(with_dev(load(None, {}, without)))
        await flushed(site.gateway)
        assert "op" not in site.gateway.settings.providers
        receipt = {"provider_message_id": "m-1", "status": "DELIVRD"}
        await site.push(json=receipt)
        wrong = await site.http.post("/v1/providers/op/dlr/wrong", json=receipt)
        assert wrong.status_code == 401
        done = await site.message(message["id"], wait_s=5)
        assert (done["status"], done["provider"]) == ("DELIVERED", "op")


async def test_an_operator_of_another_kind_has_such_a_path_too(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of({"providers": {"mock": {"receipt_token": TOKEN}}})
    transport = httpx2.ASGITransport(app=public_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.get(
            f"/v1/providers/mock/dlr/{TOKEN}",
            params={"provider_message_id": "later", "status": "DELIVRD"},
        )
    assert answer.status_code == 204
    assert ("mock", "later") in gateway.receipts.parked


async def test_neither_tokens_nor_keys_are_in_the_log(gateway_of: OpenGateway) -> None:
    written = StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.setup("debug", written)
    try:
        async with site_with(gateway_of, Kavenegar(403), **KAVENEGAR) as site:
            for _ in range(3):
                sent = await site.send()
            while site.gateway.providers["op"].trouble is None:
                await flushed(site.gateway)
            await site.push(400, content=b"<xml/>")
            await site.push(json={"messageid": "1", "status": "10"})
            shown = await site.message(sent["message_id"])
    finally:
        root.handlers[:], root.level = before
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    # The client of this test tells its own story.
    ours = [line for line in lines if line["logger"] != "httpx2"]
    assert "provider.down" in [line.get("action") for line in ours]
    for secret in (TOKEN, Kavenegar.key):
        assert secret not in str(ours)
        assert secret not in str(shown)


def test_a_served_gateway_tells_no_token_of_a_path(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    token = {"SMSGW_PROVIDERS__MOCK__RECEIPT_TOKEN": TOKEN, "SMSGW_LOG__LEVEL": "debug"}
    gateway = served(token)
    query = "provider_message_id=later&status=DELIVRD"
    assert gateway.request("GET", f"/v1/providers/mock/dlr/{TOKEN}?{query}")[0] == 204
    assert gateway.request("POST", f"/v1/providers/mock/dlr/{TOKEN}", b"<xml/>")[0] == 400
    assert gateway.request("GET", f"/v1/providers/mock/dlr/{TOKEN}/")[0] == 404
    metrics = gateway.request("GET", "/metrics")[1]
    assert 'route="/v1/providers/{name}/dlr/{token}"' in metrics
    assert gateway.stop() == 0
    assert TOKEN not in metrics
    assert TOKEN not in (tmp_path / "serve.log").read_text()
