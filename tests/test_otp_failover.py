"""One-time codes with several operators: one that is dead or silent costs few codes, or none."""

import asyncio
import socket
from typing import Any

import pytest

from smsgw import lifecycle
from smsgw.admission import KeyUse, Replay
from smsgw.clock import ManualClock
from smsgw.codes import Decided, Redirect
from smsgw.errors import OtpUndeliverable
from smsgw.gateway import Gateway
from smsgw.links import DOUBT_MIN_S
from smsgw.models import ANSWER_OTP_FAILED, Outcome, Reason, Rules, Status, Verdict
from smsgw.turn import Item, Request, Turn, Wants
from tests.conftest import OpenGateway
from tests.http_operators import raw, says, serving
from tests.support import add_client, assert_clean, flushed
from tests.test_failover import HTTP, MOCK, Operator, down, serve, submitted
from tests.test_otp import ask, asked, assert_released, result_of, stored

BACKENDS = ("sqlite", "postgres")
SECOND: dict[str, Any] = {**MOCK, "priority": 1}


async def confirmed(gateway: Gateway, client: bytes, operator: Operator) -> None:
    """A code goes to this operator, which takes it."""
    task = asked(gateway, client)
    submission = await operator.next()
    operator.accept(submission, f"{operator.name}-{submission.number}")
    decided = await task
    assert isinstance(decided, Decided)
    assert decided.message.provider == operator.name


async def lost(gateway: Gateway, client: bytes) -> None:
    """A code is not confirmed in time; only it has little, however slow the machine is."""
    desk = gateway.otp
    settings = desk._settings
    desk._settings = settings.model_copy(update={"deadline_ms": 50})
    refusal = await result_of(asked(gateway, client))
    desk._settings = settings
    assert isinstance(refusal, OtpUndeliverable)
    assert refusal.members["submitted"]


async def waits_for(gateway: Gateway, name: str) -> None:
    """A code waits for a place on an operator."""
    while not gateway.allotter.links[name].otp_waiting:  # noqa: ASYNC110  a turn of the loop
        await asyncio.sleep(0)


async def test_a_code_that_has_not_left_goes_to_the_next_operator(gateway_of: OpenGateway) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": SECOND})
    client = await add_client(gateway)
    task = asked(gateway, client)
    first = await a.next()
    a.answer(first, Verdict.NOT_SENT, detail="no connection")
    second = await b.next()
    assert (second.number, second.attempt, second.text) == (first.number, 1, first.text)
    assert (await stored(gateway, second)).provider == "b"
    b.accept(second, "b-1")
    b.receipt("b-1")
    decided = await task
    assert isinstance(decided, Decided)
    assert (decided.message.provider, decided.message.attempts) == ("b", 1)
    await flushed(gateway)
    assert (await stored(gateway, second)).status == Status.DELIVERED
    assert all(link.in_flight == 0 for link in gateway.allotter.links.values())
    await assert_clean(gateway)


async def test_a_code_that_nobody_could_send_was_not_submitted(gateway_of: OpenGateway) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": SECOND})
    client = await add_client(gateway)
    task = asked(gateway, client)
    a.answer(await a.next(), Verdict.NOT_SENT, detail="no connection")
    last = await b.next()
    b.answer(last, Verdict.NOT_SENT, detail="no bind")
    refusal = await result_of(task)
    assert isinstance(refusal, OtpUndeliverable)
    assert (refusal.members["submitted"], a.count, b.count) == (False, 1, 1)
    message = await stored(gateway, last)
    assert (message.status, message.reason) == (Status.FAILED_PERM, Reason.RETRIES_EXHAUSTED)
    assert (message.attempts, message.last_error) == (0, "no bind")
    await assert_released(gateway, client)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(Verdict.NOT_SENT, answered=True),
        Outcome(Verdict.NOT_SENT, parts={1: Outcome(Verdict.ACCEPTED, "1")}),
        Outcome(Verdict.FAILED),
    ],
)
async def test_a_code_of_which_bytes_have_left_goes_to_nobody_else(
    gateway_of: OpenGateway, outcome: Outcome
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": SECOND})
    task = asked(gateway, await add_client(gateway))
    submission = await a.next()
    assert a._sink is not None
    a._sink.settled("a", submission, outcome)
    refusal = await result_of(task)
    assert isinstance(refusal, OtpUndeliverable)
    assert (refusal.members["submitted"], b.count) == (True, 0)


async def test_after_its_deadline_a_code_goes_to_nobody_else(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": SECOND})
    task = asked(gateway, await add_client(gateway))
    submission = await a.next()
    clock.advance(5)
    a.answer(submission, Verdict.NOT_SENT)
    assert isinstance(await result_of(task), OtpUndeliverable)
    assert b.count == 0


class Interrupted(Request):
    """What another gateway does that takes this one for dead."""

    def __init__(self, number: int, rules: Rules) -> None:
        super().__init__()
        self.number = number
        self.rules = rules

    def needs(self, wants: Wants) -> None:
        wants.messages.add(self.number)
        wants.parts.add(self.number)

    def decide(self, turn: Turn) -> None:
        lifecycle.recover(turn, turn.messages[self.number], self.rules)


async def test_a_code_that_has_ended_goes_to_nobody_else(gateway_of: OpenGateway) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": SECOND})
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await a.next()
    shard = gateway.shards.shards[submission.shard]
    await shard.ask(Interrupted(submission.number, gateway.worker.rules))
    a.answer(submission, Verdict.NOT_SENT)
    assert isinstance(await result_of(task), OtpUndeliverable)
    message = await stored(gateway, submission)
    assert (message.reason, message.provider, b.count) == (Reason.INTERRUPTED, "a", 0)
    assert gateway.allotter.links["b"].in_flight == 0
    await assert_released(gateway, client)


async def test_a_turn_that_comes_after_the_deadline_sends_a_code_to_nobody_else(
    gateway_of: OpenGateway, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": SECOND})
    task = asked(gateway, await add_client(gateway))
    submission = await a.next()
    shard = gateway.shards.shards[submission.shard]
    put = shard.put

    def slow(item: Item) -> None:
        if isinstance(item, Redirect):
            clock.advance(5)
        put(item)

    monkeypatch.setattr(shard, "put", slow)
    a.answer(submission, Verdict.NOT_SENT)
    assert isinstance(await result_of(task), OtpUndeliverable)
    assert ((await stored(gateway, submission)).provider, b.count) == ("a", 0)


@pytest.mark.parametrize("what", ["the turn", "the submit"])
async def test_a_code_is_closed_whatever_goes_wrong(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": SECOND})
    client = await add_client(gateway)
    if what == "the turn":
        monkeypatch.setattr(Redirect, "decide", broken)
    else:
        monkeypatch.setattr(b, "submit", broken)
    key = KeyUse(b"k" * 16, b"f" * 16)
    task = asked(gateway, client, key=key)
    submission = await a.next()
    a.answer(submission, Verdict.NOT_SENT, detail="no bind")
    with pytest.raises(OtpUndeliverable if what == "the turn" else ZeroDivisionError):
        await task
    await flushed(gateway)
    message = await stored(gateway, submission)
    assert (message.status, message.last_error, b.count) == (Status.FAILED_PERM, "no bind", 0)
    again = await ask(gateway, client, key=key)
    assert isinstance(again, Replay)
    assert again.record.answer == ANSWER_OTP_FAILED
    await assert_released(gateway, client)


async def test_the_rest_of_a_codes_time_says_nothing_of_who_gets_it_late(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": SECOND})
    task = asked(gateway, await add_client(gateway))
    submission = await a.next()
    clock.advance(4.95)
    a.answer(submission, Verdict.NOT_SENT)
    late = await b.next()
    assert (late.hurried, submission.hurried) == (True, False)
    assert isinstance(await result_of(task), OtpUndeliverable)
    assert gateway.allotter.links["b"].doubted_since_s is None


def give_up(gateway: Gateway, clock: ManualClock) -> None:
    """Let the time of all that was submitted be over."""
    clock.advance(31)
    gateway.worker.time_out()


async def test_an_operator_that_left_a_code_without_an_answer_comes_after_the_others(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": HTTP, "b": SECOND})
    client = await add_client(gateway)
    await lost(gateway, client)
    await confirmed(gateway, client, b)
    give_up(gateway, clock)
    # After a pause one code tries it, and only one; then it is left alone for longer.
    clock.advance(DOUBT_MIN_S)
    trying = asyncio.create_task(lost(gateway, client))
    while a.count < 2:  # noqa: ASYNC110  a turn of the loop
        await asyncio.sleep(0)
    await confirmed(gateway, client, b)
    await trying
    give_up(gateway, clock)
    clock.advance(DOUBT_MIN_S)
    await confirmed(gateway, client, b)
    a.held.clear()
    clock.advance(10 * DOUBT_MIN_S)
    await confirmed(gateway, client, a)
    await confirmed(gateway, client, a)
    await assert_clean(gateway)


async def test_a_regular_message_finds_an_operator_again_for_codes(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": HTTP, "b": SECOND})
    client = await add_client(gateway)
    await lost(gateway, client)
    late = await a.next()
    message = await submitted(gateway, client)
    submission = await a.next()
    assert submission.number == message.number
    # An answer that came too late for its code is no sign that the next will be in time.
    clock.advance(1)
    a.accept(late, "late")
    await confirmed(gateway, client, b)
    a.accept(submission, "slow")
    await confirmed(gateway, client, b)
    message = await submitted(gateway, client)
    a.accept(await a.next(), "quick")
    await confirmed(gateway, client, a)


async def test_a_code_tries_an_open_breaker_only_where_nobody_else_takes_it(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": HTTP, "b": SECOND})
    client = await add_client(gateway)
    link = gateway.allotter.links["a"]
    for _ in range(link.failures_max):
        link.failed(clock.monotonic_s())
    clock.advance(link.open_s)
    assert link.takes(clock.monotonic_s())
    for _ in range(3):
        await confirmed(gateway, client, b)
    down(gateway, b, "no connection")
    await confirmed(gateway, client, a)
    down(gateway, b, None)
    await confirmed(gateway, client, a)


async def test_a_code_waits_for_a_place_rather_than_try_an_operator_in_doubt(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": HTTP, "b": {**SECOND, "window": 1}})
    client = await add_client(gateway)
    gateway.allotter.links["a"].doubt(clock.monotonic_s())
    first = asked(gateway, client)
    held = await b.next()
    second = asked(gateway, client)
    await waits_for(gateway, "b")
    b.accept(held, "b-1")
    b.accept(await b.next(), "b-2")
    assert isinstance(await first, Decided)
    assert isinstance(await second, Decided)
    # Without a place in time, it is the last that is left.
    third = asked(gateway, client)
    await b.next()
    fourth = asked(gateway, client)
    await waits_for(gateway, "b")
    clock.advance(2.5)
    gateway.otp._landed.set()
    a.accept(await a.next(), "a-1")
    assert isinstance(await fourth, Decided)
    third.cancel()


def http(url: str, priority: int, **more: Any) -> dict[str, Any]:
    return {"kind": "http", "url": url, "id_path": "id", "priority": priority, **more}


def refused_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/"


async def with_two(
    gateway_of: OpenGateway, first: dict[str, Any], second: str
) -> tuple[Gateway, bytes]:
    gateway = await gateway_of(
        {
            "dev": {"allow_providers": True},
            "server": {"shutdown_s": 0.05},
            "providers": {"mock": {"enabled": False}, "a": first, "b": http(second, 1)},
        }
    )
    return gateway, await add_client(gateway)


async def test_an_http_operator_that_refuses_connections_costs_no_code(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    async with serving(lambda _: says({"id": "m-1"})) as good:
        first = http(refused_port(), 0, breaker_failures=2)
        gateway, client = await with_two(gateway_of, first, good.base_url)
        provider: Any = gateway.providers["a"]
        for _ in range(3):
            # As if its pause were over: it is asked again.
            provider._in_trouble(None, 0.0)
            clock.advance(2 * 3600)
            decided = await ask(gateway, client)
            assert isinstance(decided, Decided)
            assert decided.message.provider == "b"
        assert gateway.allotter.links["a"].probes()


async def test_an_http_operator_that_is_silent_costs_one_code_and_opens_its_breaker(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    async def never(_: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with raw(never) as bad, serving(lambda _: says({"id": "m-1"})) as good:
        first = http(bad.url, 0, breaker_failures=2)
        gateway, client = await with_two(gateway_of, first, good.base_url)
        link = gateway.allotter.links["a"]
        for failures in (1, 2):
            await lost(gateway, client)
            while link.failures < failures:  # noqa: ASYNC110  a turn of the loop
                await asyncio.sleep(0)
            for _ in range(3):
                decided = await ask(gateway, client)
                assert isinstance(decided, Decided)
                assert decided.message.provider == "b"
            clock.advance(DOUBT_MIN_S)
        assert link.probes()
