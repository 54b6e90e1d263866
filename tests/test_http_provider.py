"""An operator described in settings: what it is sent, and what each of its answers comes to."""

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from smsgw import logs
from smsgw.errors import SettingsError
from smsgw.models import Outcome, Verdict
from smsgw.operators import HttpProviderSettings
from smsgw.providers import http
from smsgw.providers.base import Accepted
from smsgw.providers.http import suspects
from smsgw.providers.http.client import Client, NotSentError
from smsgw.providers.http.judge import basic
from smsgw.providers.http.requests import Request
from tests.certificates import new_certificates
from tests.http_operators import (
    Answers,
    Asked,
    connected,
    outcome_of,
    raw,
    says,
    serving,
    submission,
    verdict_of,
)

TEXT = 'say "hi" & {to} 100%\r\nX-Evil: 1 é سلام 🚀'


def taken(asked: Asked) -> web.Response:
    return says({"id": "m-1"})


def answering(status: int, content: Any = None, **headers: str) -> Answers:
    return lambda asked: says(content, status, **headers)


async def asked_by(answer: Answers = taken, /, path: str = "/send", **settings: Any) -> Asked:
    """What an operator with these settings is asked for one message."""
    async with (
        serving(answer) as operator,
        connected(url=f"{operator.base_url}{path}", **settings) as (provider, desk),
    ):
        await outcome_of(provider, desk, text=TEXT, sender="+44770", ucs2=True, parts=2)
        (asked,) = operator.asked
        return asked


# What is sent


async def test_a_table_becomes_json_whatever_stands_in_the_text() -> None:
    body = {
        "messages": [{"to": "{to}", "text": "{text}", "n": "{parts}", "w": "{parts} parts"}],
        "from": "{from}",
        "digits": "{from_digits}/{to_digits}",
        "ref": "{reference}",
        "braces": "{{to}}",
        "flash": False,
        "validity": "{validity_s}",
        "callback": "{callback_url}",
        "coding": "{encoding}",
    }
    asked = await asked_by(body=body, ucs2_word="utf16")
    assert asked.method == "POST"
    assert asked.json == {
        "messages": [{"to": "+989121234567", "text": TEXT, "n": 2, "w": "2 parts"}],
        "from": "+44770",
        "digits": "44770/989121234567",
        "ref": "0198c5b2-0000-7000-8000-000000000001",
        "braces": "{to}",
        "flash": False,
        "validity": 3600,
        "coding": "utf16",
    }


async def test_a_form_is_encoded_and_holds_no_field_of_the_texts_making() -> None:
    body = {"to": "{to}", "text": "{text}", "tags": ["a", "{attempt}"], "max": 5}
    asked = await asked_by(body_format="form", body=body)
    assert b"X-Evil" in asked.body
    assert "x-evil" not in asked.headers
    assert asked.body.count(b"&") == 4
    assert asked.body.count(b"=") == 5
    assert b"to=%2B989121234567&" in asked.body
    assert asked.body.endswith(b"&tags=a&tags=1&max=5")


async def test_a_get_says_all_in_its_address() -> None:
    asked = await asked_by(
        path="/{to}/send?v=1", method="GET", query={"text": "{text}", "key": "{key}"}, key="k&1"
    )
    assert asked.method == "GET"
    assert asked.body == b""
    assert asked.path == "/+989121234567/send"
    assert asked.query == {"v": ["1"], "text": [TEXT], "key": ["k&1"]}


async def test_a_value_in_the_path_stays_one_step_of_it() -> None:
    asked = await asked_by(path="/a/{from}/b", method="GET")
    assert asked.path == "/a/+44770/b"
    async with (
        serving(taken) as operator,
        connected(url=operator.base_url + "/a/{from}/b", method="GET") as (provider, desk),
    ):
        await outcome_of(provider, desk, sender="x/../?#")
        # The server has decoded it; what matters is that it was no query and no fragment.
        assert operator.asked[0].query == {}
        assert operator.asked[0].path == "/a/x/../?#/b"


async def test_credentials_are_in_the_header_and_no_header_of_the_texts_making() -> None:
    asked = await asked_by(
        auth="bearer", secret="s3cret!", key="k-1", headers={"X-Ref": "r {reference}, {key}"}
    )
    assert asked.headers["authorization"] == "Bearer s3cret!"
    assert asked.headers["x-ref"] == "r 0198c5b2-0000-7000-8000-000000000001, k-1"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["user-agent"].startswith("smsgw/")
    assert "cookie" not in asked.headers


@pytest.mark.parametrize(("key", "user"), [("", "me"), ("k-1", "k-1")])
async def test_basic_takes_the_key_as_the_name_where_there_is_one(key: str, user: str) -> None:
    asked = await asked_by(auth="basic", account="me", key=key, secret="pass:word")
    assert asked.headers["authorization"] == basic(user, "pass:word")


@pytest.mark.parametrize(("valid_s", "told"), [(0.2, 20), (60.9, 60), (604_800.0, 36_000)])
async def test_the_validity_told_is_what_the_operator_takes(valid_s: float, told: int) -> None:
    limits = {"validity_s_min": 20, "validity_s_max": 36_000}
    body = {"s": "{validity_s}", "ms": "{validity_ms}"}
    async with (
        serving(taken) as operator,
        connected(url=operator.base_url, body=body, **limits) as (provider, desk),
    ):
        await outcome_of(provider, desk, valid_s=valid_s)
        assert operator.asked[0].json == {"s": told, "ms": told * 1000}


async def test_the_callback_address_has_the_token_in_its_path() -> None:
    asked = await asked_by(
        body={"callback": "{callback_url}"},
        public_url="https://sms.example.com/",
        receipt_token="t0ken",
    )
    assert asked.json == {"callback": "https://sms.example.com/v1/providers/op/dlr/t0ken"}


async def test_connections_are_kept() -> None:
    async with (
        serving(taken) as operator,
        connected(url=operator.base_url) as (provider, desk),
    ):
        for _ in range(3):
            await outcome_of(provider, desk)
        connector = provider._client._session.connector  # type: ignore[union-attr]
        assert len(connector._conns) == 1  # type: ignore[union-attr]


async def test_connections_need_not_be_kept() -> None:
    async with (
        serving(taken) as operator,
        connected(url=operator.base_url, keep_alive_s=0.0) as (provider, desk),
    ):
        await outcome_of(provider, desk)
        assert operator.asked[0].headers["connection"] == "close"


async def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await verdict_of(taken, id_path="id") is Verdict.ACCEPTED


# What an answer comes to


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.ACCEPTED),
        (201, Verdict.ACCEPTED),
        (202, Verdict.ACCEPTED),
        (301, Verdict.UNKNOWN),
        (302, Verdict.UNKNOWN),
        (303, Verdict.UNKNOWN),
        (307, Verdict.UNKNOWN),
        (308, Verdict.UNKNOWN),
        (400, Verdict.REFUSED),
        (401, Verdict.NOT_SENT),
        (402, Verdict.NOT_SENT),
        (403, Verdict.NOT_SENT),
        (404, Verdict.NOT_SENT),
        (408, Verdict.FAILED),
        (409, Verdict.REFUSED),
        (422, Verdict.REFUSED),
        (429, Verdict.THROTTLED),
        (500, Verdict.UNKNOWN),
        (501, Verdict.NOT_SENT),
        (502, Verdict.UNKNOWN),
        (503, Verdict.FAILED),
        (504, Verdict.UNKNOWN),
        (599, Verdict.UNKNOWN),
    ],
)
async def test_an_http_status_alone_has_a_meaning(status: int, verdict: Verdict) -> None:
    assert await verdict_of(answering(status, {"id": "1"})) is verdict


async def test_the_settings_say_otherwise_the_first_that_fits() -> None:
    statuses = {"404": "refused", "500-504": "failed", "500-599": "refused", "200": "failed"}
    statuses["301"] = "trouble"
    for status, verdict in [
        (404, Verdict.REFUSED),
        (301, Verdict.NOT_SENT),
        (504, Verdict.FAILED),
        (505, Verdict.REFUSED),
        (200, Verdict.FAILED),
        (201, Verdict.ACCEPTED),
    ]:
        assert await verdict_of(answering(status), statuses=statuses) is verdict


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("0", Verdict.ACCEPTED),
        (0, Verdict.ACCEPTED),
        (7, Verdict.THROTTLED),
        ("x", Verdict.REFUSED),
        ("", Verdict.UNKNOWN),
        (None, Verdict.UNKNOWN),
        (True, Verdict.UNKNOWN),
        ({}, Verdict.UNKNOWN),
        (10**400, Verdict.UNKNOWN),
    ],
)
async def test_a_code_counts_before_the_status_and_a_success_without_one_is_none(
    code: Any, verdict: Verdict
) -> None:
    codes = {"0": "accepted", "7": "throttled", "*": "refused"}
    answer = answering(200, {"result": [{"code": code}], "id": "1"})
    assert await verdict_of(answer, code_path="result.0.code", codes=codes) is verdict


async def test_codes_that_name_no_success_leave_it_to_the_status() -> None:
    told: dict[str, Any] = {"code_path": "code", "codes": {"21611": "throttled"}}
    assert await verdict_of(answering(201, {"code": None}), **told) is Verdict.ACCEPTED
    assert await verdict_of(answering(400, {"code": 21611}), **told) is Verdict.THROTTLED
    assert await verdict_of(answering(400, {"code": 1}), **told) is Verdict.REFUSED


async def outcome_for(answer: Answers, **settings: Any) -> Outcome:
    async with (
        serving(answer) as operator,
        connected(url=operator.base_url, **settings) as (provider, desk),
    ):
        return await outcome_of(provider, desk)


@pytest.mark.parametrize(
    ("content", "path", "identifier"),
    [
        ({"a": {"b": [{"c.d": "x-1"}]}}, "a.b.0.c.d", "x-1"),
        ({"message-id": 8_792_343}, "message-id", "8792343"),
        ([{"id": 2**63}], "0.id", str(2**63)),
    ],
)
async def test_an_id_is_found_by_its_path(content: Any, path: str, identifier: str) -> None:
    outcome = await outcome_for(answering(200, content), id_path=path)
    assert outcome == Outcome(Verdict.ACCEPTED, identifier)


@pytest.mark.parametrize(
    "content",
    [{}, {"id": ""}, {"id": None}, {"id": True}, {"id": ["x"]}, {"id": "x" * 256}, [], "x", 1],
)
async def test_a_success_without_the_id_it_should_have_leaves_open_what_happened(
    content: Any,
) -> None:
    outcome = await outcome_for(answering(200, content), id_path="id")
    why = "HTTP 200: the answer has no id"
    assert outcome == Outcome(Verdict.UNKNOWN, detail=why, timed_out=True)


async def test_who_takes_some_parts_answers_though_another_has_no_id() -> None:
    content = {"parts": [{"id": "m-1"}, {}]}
    outcome = await outcome_for(answering(200, content), id_path="id", parts_path="parts")
    assert (outcome.verdict, outcome.timed_out) == (Verdict.UNKNOWN, False)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{", b"\xff", b"[" * 100_000, b"1" * 6000, rb'{"id": "\ud800"}']
)
async def test_what_is_no_json_is_no_success_but_still_a_refusal(body: bytes) -> None:
    for status, verdict in [(200, Verdict.UNKNOWN), (400, Verdict.REFUSED)]:
        answer = lambda asked, status=status: web.Response(status=status, body=body)  # noqa: E731
        assert await verdict_of(answer, id_path="id", code_path="c") is verdict


async def test_an_error_is_told_in_one_line_of_the_operators_words() -> None:
    content = {"error": {"code": 21211, "text": "The\r\nnumber\x00 is\u2028 bad " + "x" * 500}}
    outcome = await outcome_for(
        answering(400, content), code_path="error.code", error_path="error.text"
    )
    assert outcome.detail is not None
    assert outcome.detail.startswith("HTTP 400, code 21211: The number is bad xxx")
    assert len(outcome.detail) == 200


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("999999", 3600.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2115 07:28:00 GMT", 3600.0),
        ("-1", None),
        ("soon", None),
        ("٧", None),
        ("Wed, 99999999999999999999 Oct 2115 07:28:00 GMT", None),
        ("Wed, 21 Oct 2115 07:28:00 +99999999999999999999", None),
    ],
)
async def test_retry_after_is_obeyed_within_reason(said: str, seconds: float | None) -> None:
    outcome = await outcome_for(answering(429, None, Retry_After=said))
    assert (outcome.verdict, outcome.retry_after_s) == (Verdict.THROTTLED, seconds)


@pytest.mark.parametrize("status", [502, 504])
async def test_that_there_was_no_operator_behind_a_gateway_is_a_fault_of_the_link(
    status: int,
) -> None:
    outcome = await outcome_for(answering(status))
    assert outcome == Outcome(Verdict.UNKNOWN, detail=f"HTTP {status}", timed_out=True)
    outcome = await outcome_for(answering(status), statuses={f"{status}": "failed"})
    assert (outcome.verdict, outcome.timed_out) == (Verdict.FAILED, False)
    assert not (await outcome_for(answering(500))).timed_out


# Parts


def parts(*codes: str) -> Answers:
    return answering(
        200, {"parts": [{"code": code, "id": f"p-{at}"} for at, code in enumerate(codes, 1)]}
    )


PARTS: dict[str, Any] = {
    "parts_path": "parts",
    "code_path": "code",
    "id_path": "id",
    "codes": {"0": "accepted", "1": "throttled", "?": "unknown", "*": "refused"},
}


async def outcome_of_parts(*codes: str, count: int = 3) -> Outcome:
    async with (
        serving(parts(*codes)) as operator,
        connected(url=operator.base_url, **PARTS) as (provider, desk),
    ):
        return await outcome_of(provider, desk, parts=count)


async def test_every_part_has_its_own_id() -> None:
    outcome = await outcome_of_parts("0", "0", "0")
    assert (outcome.verdict, outcome.provider_message_id) == (Verdict.ACCEPTED, "p-1")
    assert outcome.parts == {part: Outcome(Verdict.ACCEPTED, f"p-{part}") for part in (1, 2, 3)}


async def test_parts_counted_otherwise_are_one_message() -> None:
    outcome = await outcome_of_parts("0", "0", count=3)
    assert outcome == Outcome(Verdict.ACCEPTED, "p-1")


async def test_what_waits_can_be_looked_at() -> None:
    async with raw(never) as server, connected(url=server.url) as (provider, _):
        provider.submit(submission())
        assert provider.state() == {"unanswered": 1, "asked_about": 0}


async def test_what_is_half_taken_is_never_sent_again() -> None:
    outcome = await outcome_of_parts("0", "1", "0")
    assert outcome.verdict is Verdict.REFUSED
    assert outcome.detail == "2 of 3 parts were taken; HTTP 200, code 1"
    assert outcome.parts is not None
    assert [outcome.parts[part].verdict for part in (1, 2, 3)] == [
        Verdict.ACCEPTED,
        Verdict.REFUSED,
        Verdict.ACCEPTED,
    ]


async def test_what_is_not_taken_at_all_may_be_sent_again() -> None:
    assert (await outcome_of_parts("1", "1", "1")).verdict is Verdict.THROTTLED
    assert (await outcome_of_parts("9", "1", "1")).verdict is Verdict.REFUSED


async def test_of_what_is_half_unknown_the_ids_are_kept() -> None:
    outcome = await outcome_of_parts("0", "?", "0")
    assert outcome.verdict is Verdict.UNKNOWN
    assert outcome.parts is not None
    ids = [outcome.parts[part].provider_message_id for part in (1, 2, 3)]
    assert ids == ["p-1", None, "p-3"]


async def test_a_message_of_which_another_operator_has_a_part_is_not_for_this_one() -> None:
    async with serving(taken) as operator, connected(url=operator.base_url) as (provider, desk):
        outcome = await outcome_of(provider, desk, parts=2, accepted_parts=frozenset({1}))
        assert outcome.verdict is Verdict.FAILED
        assert not operator.asked


# Bad links


async def lost(
    reply: Callable[[asyncio.StreamWriter], Any], **settings: Any
) -> tuple[Outcome, int]:
    """What comes of a message to a server of bytes, and how many requests it had."""
    async with (
        raw(reply) as server,
        connected(url=server.url, **settings) as (provider, desk),
    ):
        return await outcome_of(provider, desk), server.requests


async def never(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Nothing at all, then the end."""


async def half_a_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-")


async def noise(writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 smtp.example.com ESMTP\r\n\r\n")


async def headers_without_end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-%d: y\r\n" % id(writer) * 1000)
        await writer.drain()


def cut_after(head: bytes) -> Callable[[asyncio.StreamWriter], Any]:
    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(head)

    return reply


async def test_no_connection_is_not_sent_and_the_operator_rests() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken_port:
        port = taken_port.getsockname()[1]
    async with connected(url=f"http://127.0.0.1:{port}/") as (provider, desk):
        assert provider.trouble is None
        outcome = await outcome_of(provider, desk)
        assert outcome == Outcome(
            Verdict.NOT_SENT, timed_out=True, detail="no connection to the operator"
        )
        assert provider.trouble == "no connection to the operator"
        assert desk.changes == 1


async def test_a_connection_that_takes_too_long_is_not_sent() -> None:
    async with full() as url, connected(url=url, connect_timeout_s=0.05) as (provider, desk):
        outcome = await outcome_of(provider, desk)
    assert outcome == Outcome(
        Verdict.NOT_SENT, timed_out=True, detail="no connection to the operator in time"
    )


@asynccontextmanager
async def full() -> AsyncIterator[str]:
    """A server that accepts nothing, and whose backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            yield f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize(("connect_timeout_s", "is_its_fault"), [(5.0, False), (0.02, True)])
async def test_the_little_time_of_a_code_says_nothing_of_the_operator(
    connect_timeout_s: float, is_its_fault: bool
) -> None:
    async with (
        full() as url,
        connected(url=url, connect_timeout_s=connect_timeout_s) as (provider, desk),
    ):
        outcome = await outcome_of(provider, desk, otp=True, valid_s=0.1)
        why = "no connection to the operator in time"
        assert outcome == Outcome(Verdict.NOT_SENT, timed_out=is_its_fault, detail=why)
        assert provider.trouble == (why if is_its_fault else None)


async def test_a_code_whose_time_is_over_is_not_sent() -> None:
    async with (
        serving(taken) as operator,
        connected(url=operator.base_url) as (provider, desk),
    ):
        assert (await outcome_of(provider, desk)).verdict is Verdict.ACCEPTED
        outcome = await outcome_of(provider, desk, otp=True, valid_s=0.0)
        assert outcome == Outcome(Verdict.NOT_SENT, detail="its time is over")
        assert provider.trouble is None
        assert len(operator.asked) == 1


async def test_a_name_without_an_address_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_names: Any, **_more: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    async with connected(url="http://sms.example.com/") as (provider, desk):
        outcome = await outcome_of(provider, desk)
    assert outcome == Outcome(
        Verdict.NOT_SENT, timed_out=True, detail="the operator's name has no address"
    )


@pytest.mark.parametrize(
    "url", ["http://h:99999/", "http://a..b/", "http://[zz]/", f"http://{'x' * 64}/"]
)
async def test_an_address_that_cannot_be_one_is_not_sent_to(url: str) -> None:
    # No settings say so; what was not foreseen there shall not be the end of a submit.
    client = Client("op", HttpProviderSettings(kind="http", url="http://h/"))
    client.open()
    try:
        with pytest.raises(NotSentError, match="the operator's address cannot be one"):
            await client.ask(Request("POST", url, {}, None), 30.0)
    finally:
        await client.close()


async def test_a_server_without_tls_gets_nothing() -> None:
    async with (
        serving(taken) as operator,
        connected(url=operator.base_url.replace("http:", "https:")) as (provider, desk),
    ):
        outcome = await outcome_of(provider, desk)
        assert outcome == Outcome(
            Verdict.NOT_SENT, timed_out=True, detail="no TLS with the operator"
        )
        assert not operator.asked


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
async def test_a_lost_answer_is_unknown_and_the_request_goes_out_once(method: str) -> None:
    outcome, requests = await lost(hang_up, method=method)
    assert outcome.verdict is Verdict.UNKNOWN
    assert outcome.detail == "the connection was lost before the answer"
    assert outcome.timed_out
    assert requests == 1


async def test_half_an_answer_is_unknown() -> None:
    outcome, requests = await lost(half_a_head)
    assert (outcome.verdict, requests) == (Verdict.UNKNOWN, 1)


@pytest.mark.parametrize("reply", [noise, headers_without_end])
async def test_what_is_no_http_is_unknown(reply: Any) -> None:
    outcome, _ = await lost(reply)
    assert outcome == Outcome(Verdict.UNKNOWN, detail="the answer is not HTTP", timed_out=True)


async def test_no_answer_in_time_is_unknown() -> None:
    outcome, requests = await lost(never, response_timeout_s=0.05)
    assert outcome == Outcome(Verdict.UNKNOWN, detail="no answer in time", timed_out=True)
    assert requests == 1


async def test_an_answer_that_drips_is_cut_off_and_judged_by_its_status() -> None:
    def dripping(status: bytes) -> Callable[[asyncio.StreamWriter], Any]:
        async def reply(writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 " + status + b" X\r\nContent-Length: 1000\r\n\r\n{")
            await never(writer)

        return reply

    limit = {"response_timeout_s": 0.05, "id_path": "id"}
    outcome, _ = await lost(dripping(b"200"), **limit)
    assert outcome.verdict is Verdict.UNKNOWN
    outcome, _ = await lost(dripping(b"400"), **limit)
    assert outcome.verdict is Verdict.REFUSED


async def test_a_body_that_breaks_off_is_judged_by_its_status() -> None:
    head = b" X\r\nContent-Length: 1000\r\n\r\n"
    outcome, _ = await lost(cut_after(b"HTTP/1.1 200" + head), id_path="id")
    assert outcome.verdict is Verdict.UNKNOWN
    outcome, _ = await lost(cut_after(b"HTTP/1.1 503" + head), id_path="id")
    assert outcome.verdict is Verdict.FAILED


async def test_a_body_without_end_is_read_no_further_than_allowed() -> None:
    written = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" " * 65_536)
            await writer.drain()
            written += 65_536

    outcome, _ = await lost(flood, response_bytes_max=1000, id_path="id")
    assert outcome.verdict is Verdict.UNKNOWN
    # What lies in the buffers between.
    assert written < 30_000_000


async def test_a_redirect_is_not_followed() -> None:
    async with (
        serving(taken) as elsewhere,
        serving(
            lambda asked: web.Response(status=307, headers={"Location": elsewhere.base_url})
        ) as operator,
        connected(url=operator.base_url, body={"to": "{to}"}) as (provider, desk),
    ):
        outcome = await outcome_of(provider, desk)
        assert outcome.verdict is Verdict.UNKNOWN
        assert outcome.detail == "HTTP 307: a redirect, which is not followed"
        assert outcome.timed_out
        assert not elsewhere.asked


@pytest.mark.parametrize("hurried", [False, True])
async def test_a_code_is_waited_for_no_longer_than_it_is_good(hurried: bool) -> None:
    async with (
        raw(never) as server,
        connected(url=server.url) as (provider, desk),
    ):
        outcome = await outcome_of(provider, desk, otp=True, valid_s=0.05, hurried=hurried)
        why = "no answer in time"
        assert outcome == Outcome(Verdict.UNKNOWN, timed_out=not hurried, detail=why)


# TLS


async def test_a_certificate_is_checked(tmp_path: Path) -> None:
    files = new_certificates(tmp_path, "127.0.0.1")
    async with serving(taken, tls=files.for_server()) as operator:
        async with connected(url=operator.base_url) as (provider, desk):
            outcome = await outcome_of(provider, desk)
            why = "the operator's certificate is not trusted"
            assert outcome == Outcome(Verdict.NOT_SENT, timed_out=True, detail=why)
            assert not operator.asked
        trust = {"tls_ca_file": str(files.authority)}
        async with connected(url=operator.base_url, **trust) as (provider, desk):
            assert (await outcome_of(provider, desk)).verdict is Verdict.ACCEPTED


async def test_our_certificate_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    files = new_certificates(tmp_path, "127.0.0.1")
    shown = {
        "tls_ca_file": str(files.authority),
        "tls_cert_file": str(files.client),
        "tls_key_file": str(files.client_key),
    }
    async with (
        serving(taken, tls=files.for_server(ask_client=True)) as operator,
        connected(url=operator.base_url, **shown) as (provider, desk),
    ):
        assert (await outcome_of(provider, desk)).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("key", ["tls_ca_file", "tls_cert_file"])
def test_a_file_for_tls_that_cannot_be_used_is_named(tmp_path: Path, key: str) -> None:
    (tmp_path / "noise").write_text("noise")
    for name, why in [("none", "No such file or directory"), ("noise", "cannot be used")]:
        files = {key: str(tmp_path / name)}
        settings = HttpProviderSettings(kind="http", url="https://localhost", **files)
        with pytest.raises(SettingsError, match=f"^providers.op.{key}: {why}$"):
            http.open_provider("op", settings, 60.0)


@pytest.mark.parametrize("key", ["tls_ca_file", "tls_cert_file", "tls_key_file"])
@pytest.mark.parametrize(
    ("name", "why"),
    [("a\0b", "cannot be used"), ("\ud800", "cannot be used"), ("no", "No such file or directory")],
    ids=["nul", "surrogate", "missing"],
)
def test_the_name_of_a_file_for_tls_that_cannot_be_one_is_told_with_its_setting(
    tmp_path: Path, key: str, name: str, why: str
) -> None:
    files = new_certificates(tmp_path, "127.0.0.1")
    given = {"tls_cert_file": str(files.client), key: str(tmp_path / name)}
    settings = HttpProviderSettings(kind="http", url="https://localhost", **given)
    with pytest.raises(SettingsError) as told:
        http.open_provider("op", settings, 60.0)
    assert told.value.members["mistakes"] == [f"providers.op.{key}: {why}"]


# Trouble


async def test_what_several_messages_are_told_in_a_row_is_the_fault_of_the_link() -> None:
    status = 401
    async with (
        serving(lambda asked: answering(status)(asked)) as operator,
        connected(url=operator.base_url, breaker_open_s=7.0) as (provider, desk),
    ):
        # One alone may be at fault itself, however often it is tried.
        for reference in ("a", "a", "a", "b", "c"):
            assert provider.trouble is None
            outcome = await outcome_of(provider, desk, reference=reference)
            assert outcome == Outcome(
                Verdict.NOT_SENT, detail="HTTP 401", retry_after_s=7.0, answered=True
            )
        assert provider.trouble == "the operator answers HTTP 401"
        # As long as nothing is accepted, no message is blamed, and one more is enough to rest.
        again = await outcome_of(provider, desk, reference="a")
        assert again.verdict is Verdict.NOT_SENT
        status = 200
        assert (await outcome_of(provider, desk, reference="d")).verdict is Verdict.ACCEPTED
        assert provider.trouble is None
        assert (await outcome_of(provider, desk, reference="a")).verdict is Verdict.ACCEPTED
        status = 401
        again = await outcome_of(provider, desk, reference="a")
        assert (again.verdict, provider.trouble) == (Verdict.NOT_SENT, None)


async def test_a_message_that_fails_where_others_are_accepted_has_failed_itself() -> None:
    def answer(asked: Asked) -> web.Response:
        return says({}, 403 if asked.json["to"].endswith("99") else 200)

    async with (
        serving(answer) as operator,
        connected(url=operator.base_url, body={"to": "{to}"}) as (provider, desk),
    ):
        verdicts = []
        for number in range(12):
            wrong = await outcome_of(provider, desk, reference="x", recipient="+9899")
            verdicts.append(wrong.verdict)
            assert (wrong.detail, provider.trouble) == ("HTTP 403", None)
            right = await outcome_of(provider, desk, reference=f"n{number}", recipient="+9800")
            assert right.verdict is Verdict.ACCEPTED
        # Its attempts are bounded, so that this comes to an end.
        assert verdicts == [Verdict.NOT_SENT] + [Verdict.FAILED] * 11


async def test_trouble_is_looked_at_again_after_our_own_time() -> None:
    outcome = await outcome_for(answering(403, None, Retry_After="1800"), breaker_open_s=7.0)
    assert (outcome.verdict, outcome.retry_after_s) == (Verdict.NOT_SENT, 7.0)


async def test_suspects_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "SUSPECTS_MAX", 2)
    known = suspects.Suspects()
    for reference in ("a", "b", "c"):
        assert not known.said_of(reference)
    known.accepted("d")
    assert [known.said_of(reference) for reference in ("a", "c")] == [False, True]


async def test_trouble_is_over_after_a_while() -> None:
    async with (
        serving(answering(403)) as operator,
        connected(url=operator.base_url, breaker_open_s=1e-9) as (provider, desk),
    ):
        for reference in ("a", "b", "c"):
            await outcome_of(provider, desk, reference=reference)
        assert provider._trouble is not None
        assert provider.trouble is None


# Starting and stopping


async def test_a_stop_leaves_what_is_unanswered_and_says_nothing_about_it() -> None:
    async with raw(never) as server, connected(url=server.url) as (provider, desk):
        provider.submit(submission())
        await provider.stop()
        assert not provider._tasks
        assert not desk.outcomes


async def test_restored_messages_are_left_alone_where_nobody_asks() -> None:
    async with serving(taken) as operator, connected(url=operator.base_url) as (provider, _):
        provider.restore([Accepted("m-1", "+98912")])
        assert not operator.asked


def test_without_the_library_the_settings_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    settings = HttpProviderSettings(kind="http", url="https://localhost")
    with pytest.raises(SettingsError) as caught:
        http.open_provider("x", settings, 60.0)
    assert caught.value.detail == "providers.x: kind http needs pip install 'smsgw[http]'"
    assert caught.value.members["mistakes"] == [caught.value.detail]


def test_the_gateway_does_not_load_the_library_before_it_needs_it() -> None:
    program = "import sys, smsgw.gateway, smsgw.api.app; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Secrets

KEY, SECRET, HEADER = (f"canary/{each}+{each}&{each}" for each in "ABC")
TOKEN = "canary-token-D"


def whispering(status: int) -> Answers:
    """It repeats everything it was told."""

    def answer(asked: Asked) -> web.Response:
        told = f"{asked.path} {asked.query} {asked.body.decode()} {asked.headers}"
        return says({"code": f"bad {KEY}"[:60], "text": told}, status)

    return answer


@pytest.mark.parametrize("status", [200, 301, 400, 401, 429, 500, 503])
async def test_no_secret_is_in_an_error_a_log_or_the_trouble(status: int) -> None:
    written = StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.setup("debug", written)
    try:
        async with (
            serving(whispering(status)) as operator,
            connected(
                url=operator.base_url + "/{key}",
                query={"k": "{key}", "s": "{secret}"},
                body={"s": "{secret}", "callback": "{callback_url}"},
                headers={"X-Key": HEADER, "X-Both": "{key} {secret}"},
                auth="basic",
                account="me",
                key=KEY,
                secret=SECRET,
                public_url="https://sms.example.com",
                receipt_token=TOKEN,
                id_path="id",
                code_path="code",
                error_path="text",
            ) as (provider, desk),
        ):
            for reference in ("a", "b", "c"):
                outcome = await outcome_of(provider, desk, reference=reference)
            seen = f"{outcome} {provider.trouble} {written.getvalue()} {provider._settings!r}"
    finally:
        root.handlers[:], root.level = before
    assert "********" in seen
    for secret in (KEY, SECRET, TOKEN, HEADER, basic(KEY, SECRET)):
        assert secret not in seen
        assert quote(secret, safe="") not in seen


async def test_the_error_of_a_code_does_not_tell_the_code() -> None:
    async with (
        serving(
            answering(400, {"code": 123456, "text": "Bad text: your code is 123456"})
        ) as operator,
        connected(url=operator.base_url, code_path="code", error_path="text") as (provider, desk),
    ):
        outcome = await outcome_of(provider, desk, otp=True)
        assert outcome.detail == "HTTP 400, code ******: Bad text: your code is ******"
