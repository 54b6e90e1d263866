"""Asking what became of messages: until it is known, a few at a time, also after a restart."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from smsgw.models import Verdict
from smsgw.providers.base import Accepted
from smsgw.providers.http import polls
from tests.http_operators import Asked, connected, outcome_of, raw, says, serving

POLLED: dict[str, Any] = {
    "id_path": "id",
    "receipt_poll_s": 0.001,
    "receipt_poll_status": "status",
    "receipt_words": {"3": "DELIVERED", "4": "EXPIRED"},
    "auth": "bearer",
    "secret": "s3cret",
    "headers": {"X-Ref": "{reference}", "X-Plain": "p"},
}


def polled(base_url: str, **more: Any) -> dict[str, Any]:
    status = f"{base_url}/status?message={{id}}"
    return {"url": f"{base_url}/send", "receipt_poll_url": status, **POLLED, **more}


class Told:
    """Takes messages as m-1, m-2, …, and says of each what the script says next."""

    def __init__(self, *script: Any) -> None:
        self.script = iter(script)
        self.taken = 0

    def __call__(self, asked: Asked) -> web.Response:
        if asked.path == "/send":
            self.taken += 1
            return says({"id": f"m/{self.taken}&x"})
        assert asked.method == "GET"
        assert asked.body == b""
        assert asked.headers["authorization"] == "Bearer s3cret"
        assert asked.headers["x-plain"] == "p"
        assert "x-ref" not in asked.headers
        said = next(self.script)
        return said if isinstance(said, web.Response) else says({"status": said})


async def test_a_message_is_asked_about_until_it_has_ended() -> None:
    noise = web.Response(text="<html>"), web.Response(status=500, text='{"status": 3}')
    async with (
        serving(Told(1, "buffered", None, *noise, 3)) as operator,
        connected(**polled(operator.base_url)) as (provider, desk),
    ):
        await outcome_of(provider, desk)
        await desk.until(lambda: bool(desk.reports))
        assert desk.reports == [("m/1&x", "DELIVERED", "3")]
        questions = [asked for asked in operator.asked if asked.path == "/status"]
        assert [asked.query for asked in questions] == [{"message": ["m/1&x"]}] * 6
        assert not provider._polls._waiting


async def test_what_was_accepted_before_a_restart_is_asked_about() -> None:
    async with (
        serving(Told(4)) as operator,
        connected(**polled(operator.base_url)) as (provider, desk),
    ):
        provider.restore([Accepted("old", "+98912")])
        await desk.until(lambda: bool(desk.reports))
        assert desk.reports == [("old", "EXPIRED", "4")]


async def test_no_more_than_some_questions_are_open_at_a_time() -> None:
    opened = 0
    enough = asyncio.Event()

    async def never(writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        if opened == 2:
            enough.set()
        await asyncio.Event().wait()

    async with raw(never) as server:
        base_url = f"http://127.0.0.1:{server.port}"
        async with connected(**polled(base_url, receipt_polls_max=2)) as (provider, _):
            provider.restore([Accepted(f"m-{at}", "+98912") for at in range(10)])
            await enough.wait()
            assert len(provider._polls._waiting) == 8
    assert opened == 2


async def test_nobody_is_asked_about_a_message_for_longer_than_it_waits_for_a_receipt() -> None:
    asked_about: asyncio.Queue[str] = asyncio.Queue()

    def never_known(asked: Asked) -> web.Response:
        asked_about.put_nowait(asked.query["message"][0])
        return says({"status": 1})

    async with (
        serving(never_known) as operator,
        connected(0.0, **polled(operator.base_url, receipt_polls_max=1)) as (provider, desk),
    ):
        provider.restore([Accepted("m-1", "+98912")])
        assert await asked_about.get() == "m-1"
        # One question at a time: with the next, all is done about the one before.
        provider.restore([Accepted("m-3", "+98912")])
        assert await asked_about.get() == "m-3"
        assert not provider._polls._waiting
        assert not desk.reports


async def test_what_there_is_no_room_for_is_told_of_and_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polls, "WAITING_MAX", 2)
    async with (
        serving(Told(*[3] * 4)) as operator,
        connected(**polled(operator.base_url)) as (provider, desk),
    ):
        accepted = [Accepted(f"m-{number}", "+98912") for number in range(4)]
        provider.restore(accepted[:2])
        assert (provider.warning, provider.asks_again()) == (None, False)
        provider.restore(accepted)
        assert provider.warning is not None
        assert "no more" in provider.warning
        assert not provider.asks_again(), "there is no room yet"
        await desk.until(lambda: len(desk.reports) == 2)
        assert provider.asks_again()
        assert (provider.warning, provider.asks_again()) == (None, False)
        provider.restore(accepted[2:])
        await desk.until(lambda: len(desk.reports) == 4)
        assert sorted(report[0] for report in desk.reports) == ["m-0", "m-1", "m-2", "m-3"]


async def test_a_lost_answer_to_a_question_is_asked_for_again() -> None:
    answers = 0

    async def first_nothing(writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        answers += 1
        if answers > 1:
            body = b'{"status": 3}'
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            writer.write(head + body)

    async with (
        raw(first_nothing) as server,
        connected(**polled(f"http://127.0.0.1:{server.port}")) as (provider, desk),
    ):
        provider.restore([Accepted("m-1", "+98912")])
        await desk.until(lambda: bool(desk.reports))
        assert desk.reports == [("m-1", "DELIVERED", "3")]
        assert provider.trouble is None


async def test_what_could_not_be_stored_is_asked_for_again() -> None:
    async with (
        serving(Told(3, 3)) as operator,
        connected(**polled(operator.base_url)) as (provider, desk),
    ):
        desk.cannot_store = 1
        provider.restore([Accepted("m-1", "+98912")])
        await desk.until(lambda: len(desk.reports) == 2)
        assert desk.reports == [("m-1", "DELIVERED", "3")] * 2
        assert not provider._polls._waiting


async def test_an_operator_without_receipts_is_not_asked() -> None:
    async with (
        serving(Told()) as operator,
        connected(**polled(operator.base_url, receipts=False)) as (provider, desk),
    ):
        assert (await outcome_of(provider, desk)).verdict is Verdict.ACCEPTED
        assert not provider._polls._waiting
