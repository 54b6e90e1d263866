"""Several operators: who gets a message, who gets it next, and what happens when they change."""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from smsgw import fleet, lifecycle
from smsgw.admission import Accepted
from smsgw.clock import ManualClock
from smsgw.entrance import Wish
from smsgw.errors import (
    InvalidRecipient,
    InvalidRequest,
    NotReady,
    OtpUndeliverable,
    SettingsError,
    StorageUnavailable,
)
from smsgw.gateway import Gateway
from smsgw.models import Lane, Message, Outcome, Reason, Status, Verdict
from smsgw.providers.base import Submission, fold
from smsgw.settings import Settings, load, with_dev
from smsgw.sweeper import FireTimers
from tests.conftest import OpenGateway
from tests.stores import read_only
from tests.support import (
    DELIVERED,
    Scripted,
    account_of,
    add_client,
    assert_clean,
    final_of,
    flushed,
    message_of,
    send,
    still,
    sweep,
)

MOCK: dict[str, Any] = {"kind": "mock"}
# One that is built without a word, and that has a breaker.
HTTP: dict[str, Any] = {"kind": "http", "url": "http://127.0.0.1:9/"}
SMPP: dict[str, Any] = {"kind": "smpp", "host": "127.0.0.1", "port": 9, "system_id": "esme"}
IRAN, TEHRAN = "+989350000000", "+982100000000"


class Operator(Scripted):
    """A scripted operator that knows whether it was stopped."""

    stopped = False

    def state(self) -> Mapping[str, str | int]:
        return {"held": len(self.held)}

    async def stop(self) -> None:
        self.stopped = True


def settings_of(
    providers: dict[str, dict[str, Any]], **overrides: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    return {
        "server": {"shutdown_s": 0.02},
        "dev": {"allow_providers": True},
        **overrides,
        "providers": {"mock": {"enabled": False}, **providers},
    }


async def serve(
    gateway_of: OpenGateway, providers: dict[str, dict[str, Any]], **overrides: dict[str, Any]
) -> tuple[Gateway, list[Operator]]:
    """A gateway whose operators do what the test says."""
    gateway = await gateway_of(settings_of(providers, **overrides), serve=False)
    operators = [Operator(name) for name in providers]
    gateway.fleet.providers = {operator.name: operator for operator in operators}
    await gateway.serve()
    return gateway, operators


def reread(providers: dict[str, dict[str, Any]], **overrides: dict[str, Any]) -> Settings:
    return with_dev(load(None, {}, settings_of(providers, **overrides)))


async def submitted(gateway: Gateway, client: bytes, **more: Any) -> Message:
    answer = await send(gateway, client, **more)
    assert isinstance(answer, Accepted)
    return answer.message


def down(gateway: Gateway, operator: Operator, why: str | None) -> None:
    """Have an operator lose its connection, or find it again."""
    operator.trouble = why
    gateway.worker.changed(operator.name)


async def settled(gateway: Gateway) -> None:
    """Return once no operator is being exchanged, queues are in line, and all is on disk."""
    while gateway.fleet._tasks:
        await asyncio.wait(set(gateway.fleet._tasks))
    gateway.worker.wake_soon()
    await flushed(gateway)


async def delivered(gateway: Gateway, message: Message, operator: Operator, at: Submission) -> None:
    identifier = f"{operator.name}-{at.number}"
    operator.accept(at, identifier)
    operator.receipt(identifier)
    done = await final_of(gateway, message)
    assert (done.status, done.provider) == (Status.DELIVERED, operator.name)
    assert (done.attempts, done.charged_cents, done.held_cents) == (at.attempt, 5, 0)


async def test_what_one_fails_to_take_goes_to_another_at_once(gateway_of: OpenGateway) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": {**MOCK, "priority": 1}})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    a.answer(await a.next(), Verdict.FAILED, detail="busy")
    again = await b.next()
    assert (again.number, again.attempt) == (message.number, 2)
    await delivered(gateway, message, b, again)
    await assert_clean(gateway)


async def test_failing_over_spends_attempts_and_ends_with_them(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": {**MOCK, "priority": 1}})
    await still(gateway)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    for operator in (a, b):
        operator.answer(await operator.next(), Verdict.FAILED, detail="busy")
    await come_back(gateway, clock)
    a.answer(await a.next(), Verdict.FAILED, detail="busy")
    done = await final_of(gateway, message)
    assert (done.status, done.reason) == (Status.FAILED_PERM, Reason.RETRIES_EXHAUSTED)
    assert (done.attempts, a.count, b.count) == (3, 2, 1)
    assert (await account_of(gateway, client)).credits_cents == 1000
    await assert_clean(gateway)


@pytest.mark.parametrize(("first_s", "second_s", "wait_s"), [(600, 7, 600), (7, 600, 600)])
async def test_once_all_have_failed_a_message_waits_as_long_as_any_of_them_wants(
    gateway_of: OpenGateway, clock: ManualClock, first_s: float, second_s: float, wait_s: float
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": {**MOCK, "priority": 1}})
    await still(gateway)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    for operator, pause_s in ((a, first_s), (b, second_s)):
        operator.answer(await operator.next(), Verdict.FAILED, retry_after_s=pause_s)
    await flushed(gateway)
    now = await message_of(gateway, message)
    assert (now.status, now.attempts) == (Status.FAILED_TEMP, 2)
    assert now.due_at_ms == clock.now_ms() + wait_s * 1000
    await come_back(gateway, clock)
    await delivered(gateway, message, a, await a.next())
    assert (await message_of(gateway, message)).due_at_ms is None
    await assert_clean(gateway)


async def test_once_all_have_failed_the_usual_pause_grows_with_the_attempts(
    gateway_of: OpenGateway, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle.settle, "__defaults__", (lifecycle.same_route, lambda: 1.0))
    delivery = {"attempts_max": 4, "retry_base_s": 10}
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": MOCK}, delivery=delivery)
    await still(gateway)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    waits_s = []
    for operator in (a, b, a):
        operator.answer(await operator.next(), Verdict.FAILED)
        await flushed(gateway)
        now = await message_of(gateway, message)
        if now.status == Status.FAILED_TEMP:
            assert now.due_at_ms is not None
            waits_s.append((now.due_at_ms - clock.now_ms()) / 1000)
            clock.advance(waits_s[-1])
            await sweep(gateway)
            await flushed(gateway)
    assert waits_s == [20, 40]
    await delivered(gateway, message, b, await b.next())


async def test_of_several_each_gets_a_message_once_before_any_gets_it_again(
    gateway_of: OpenGateway,
) -> None:
    providers = {name: {**MOCK, "priority": n} for n, name in enumerate("abcd")}
    gateway, operators = await serve(gateway_of, providers, delivery={"attempts_max": 9})
    a, b, c, d = operators
    await still(gateway)
    client = await add_client(gateway)
    down(gateway, b, "no connection")
    message = await submitted(gateway, client)
    for operator in (a, c):
        operator.answer(await operator.next(), Verdict.FAILED)
    await flushed(gateway)
    await delivered(gateway, message, d, await d.next())
    assert [one.count for one in operators] == [1, 0, 1, 1]


async def test_what_steps_aside_goes_to_each_other_one_that_is_ready_before_it_waits(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    providers = {name: {**MOCK, "priority": at} for at, name in enumerate("abcd")}
    gateway, (a, b, c, d) = await serve(gateway_of, providers)
    await still(gateway)
    down(gateway, d, "no connection")
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    # The one that was the last to say so has a rest.
    for asked in ((a, b, c), (a, b)):
        started_ms = clock.now_ms()
        for operator in asked:
            submission = await operator.next()
            assert (submission.number, submission.attempt) == (message.number, 1)
            assert clock.now_ms() == started_ms
            operator.answer(submission, Verdict.NOT_SENT, retry_after_s=5.0, answered=True)
        await flushed(gateway)
        now = await message_of(gateway, message)
        assert (now.status, now.attempts, now.provider) == (Status.FAILED_TEMP, 0, None)
        assert now.due_at_ms == started_ms + 5000
        clock.advance(5.0)
        await sweep(gateway)
    await delivered(gateway, message, a, await a.next())
    assert (a.count, b.count, c.count, d.count) == (3, 2, 1, 0)
    await assert_clean(gateway)


async def test_with_nobody_else_ready_a_failure_waits_for_its_time(gateway_of: OpenGateway) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": {**MOCK, "priority": 1}})
    down(gateway, b, "no connection")
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    a.answer(await a.next(), Verdict.FAILED)
    await flushed(gateway)
    now = await message_of(gateway, message)
    assert now.status == Status.FAILED_TEMP
    assert now.due_at_ms is not None
    assert now.due_at_ms > gateway.clock.now_ms()
    assert (a.count, b.count) == (1, 0)


def answered(operator: Operator, submission: Submission, **verdicts: Verdict) -> None:
    """Answer each part of a submit; ``p2=Verdict.FAILED`` is about the second."""
    outcomes = {
        int(name[1:]): Outcome(verdict, f"{operator.name}-{name[1:]}")
        if verdict is Verdict.ACCEPTED
        else Outcome(verdict, detail="busy")
        for name, verdict in verdicts.items()
    }
    assert operator._sink is not None
    operator._sink.settled(operator.name, submission, fold(outcomes))


async def half_sent(
    gateway: Gateway, client: bytes, operator: Operator, rest: Verdict = Verdict.FAILED
) -> Message:
    """A message of three parts, two of which an operator has accepted."""
    message = await submitted(gateway, client, text="x" * 400)
    first = await operator.next()
    assert (first.parts, first.accepted_parts) == (3, frozenset())
    answered(operator, first, p1=Verdict.ACCEPTED, p2=rest, p3=Verdict.ACCEPTED)
    return message


async def completed(
    gateway: Gateway, message: Message, operator: Operator, *, begun_by: Operator, attempts: int
) -> None:
    """The part that is missing goes to an operator, and the message to its end."""
    second = await operator.next()
    assert second.accepted_parts == {1, 3}
    answered(operator, second, p2=Verdict.ACCEPTED)
    for one, identifier in ((begun_by, 1), (operator, 2), (begun_by, 3)):
        one.receipt(f"{one.name}-{identifier}")
    done = await final_of(gateway, message)
    assert (done.status, done.charged_cents, done.held_cents) == (Status.DELIVERED, 15, 0)
    assert (done.attempts, done.provider_message_id) == (attempts, f"{begun_by.name}-1")
    await assert_clean(gateway)


async def come_back(gateway: Gateway, clock: ManualClock) -> None:
    """Let the time of every retry come."""
    await flushed(gateway)
    clock.advance(3600)
    await sweep(gateway)
    await flushed(gateway)


async def test_a_retry_gives_another_operator_only_the_parts_that_nobody_has(
    gateway_of: OpenGateway,
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": SMPP, "b": {**SMPP, "priority": 1}})
    client = await add_client(gateway)
    message = await half_sent(gateway, client, a)
    await completed(gateway, message, b, begun_by=a, attempts=2)


STRANGERS: dict[str, dict[str, Any]] = {
    "http": {**HTTP, "priority": 1},
    "payload": {**SMPP, "priority": 1, "long_messages": "payload"},
    "sar": {**SMPP, "priority": 1, "long_messages": "sar"},
    "latin1": {**SMPP, "priority": 1, "charset": "latin1"},
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_what_is_half_sent_stays_with_whoever_can_go_on_with_it(
    gateway_of: OpenGateway, clock: ManualClock, stranger: str
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": SMPP, "b": STRANGERS[stranger]})
    await still(gateway)
    client = await add_client(gateway)
    message = await half_sent(gateway, client, a)
    await flushed(gateway)
    now = await message_of(gateway, message)
    # Nobody else can take it: so it waits, as it would with one operator.
    assert (now.status, a.count, b.count) == (Status.FAILED_TEMP, 1, 0)
    assert now.due_at_ms is not None
    assert now.due_at_ms > clock.now_ms()
    await come_back(gateway, clock)
    await completed(gateway, message, a, begun_by=a, attempts=2)
    assert b.count == 0


async def test_what_its_operator_takes_as_a_whole_only_is_not_offered_to_it_again(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    resend = {"on_uncertain": "resend"}
    gateway, (a,) = await serve(gateway_of, {"a": HTTP}, delivery=resend)
    await still(gateway)
    client = await add_client(gateway)
    message = await half_sent(gateway, client, a, Verdict.UNKNOWN)
    for _ in range(3):
        await come_back(gateway, clock)
    now = await message_of(gateway, message)
    assert (now.status, now.attempts, a.count) == (Status.QUEUED, 1, 1)
    # It holds up nobody, and a receipt for what was accepted still counts.
    other = await submitted(gateway, client)
    assert (await a.next()).number == other.number
    a.receipt("a-1", "UNDELIV")
    done = await final_of(gateway, message)
    assert (done.status, done.attempts, a.count) == (Status.FAILED_PERM, 1, 2)
    await assert_clean(gateway)


@pytest.mark.parametrize("rest", [Verdict.NOT_SENT, Verdict.THROTTLED])
async def test_the_rest_of_a_message_waits_for_its_operator_and_costs_no_attempt(
    gateway_of: OpenGateway, clock: ManualClock, rest: Verdict
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": SMPP, "b": STRANGERS["sar"]})
    client = await add_client(gateway)
    if rest is Verdict.NOT_SENT:
        a.trouble = "the connection was lost"
    message = await half_sent(gateway, client, a, rest)
    others = [await submitted(gateway, client) for _ in range(5)]
    for _ in range(5):
        gateway.worker.wake_soon()
        await flushed(gateway)
    now = await message_of(gateway, message)
    assert (now.status, now.attempts, a.count) == (Status.QUEUED, 0, 1)
    # It holds up nobody.
    assert [one.number for one in b.held] == [other.number for other in others]
    clock.advance(1)
    down(gateway, a, None)
    await completed(gateway, message, a, begun_by=a, attempts=1)


@pytest.mark.parametrize("gone_first", [True, False])
async def test_what_is_half_sent_goes_on_with_its_operator_where_the_others_are_gone(
    gateway_of: OpenGateway, clock: ManualClock, gone_first: bool
) -> None:
    gateway, (a, b, c) = await serve(
        gateway_of,
        {"a": SMPP, "b": {**SMPP, "priority": 1}, "c": {**STRANGERS["http"], "priority": 2}},
    )
    client = await add_client(gateway)
    if gone_first:
        down(gateway, b, "no connection")
        message = await half_sent(gateway, client, a)
        await come_back(gateway, clock)
    else:
        message = await half_sent(gateway, client, a)
        again = await b.next()
        b.trouble = "the connection was lost"
        answered(b, again, p2=Verdict.NOT_SENT)
        await flushed(gateway)
        assert (await message_of(gateway, message)).status == Status.QUEUED
        gateway.fleet.look()
        await settled(gateway)
    await completed(gateway, message, a, begun_by=a, attempts=2)
    assert (a.count, c.count) == (2, 0)


async def test_of_several_only_those_that_cut_alike_take_the_rest_one_after_the_other(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b, c) = await serve(
        gateway_of, {"a": SMPP, "b": STRANGERS["http"], "c": {**SMPP, "priority": 2}}
    )
    await still(gateway)
    client = await add_client(gateway)
    message = await half_sent(gateway, client, a)
    second = await c.next()
    assert second.accepted_parts == {1, 3}
    answered(c, second, p2=Verdict.FAILED)
    await come_back(gateway, clock)
    await completed(gateway, message, a, begun_by=a, attempts=3)
    assert (a.count, b.count, c.count) == (2, 0, 1)


async def test_what_is_half_sent_ends_with_its_attempts_and_with_its_validity(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": SMPP, "b": STRANGERS["sar"]})
    await still(gateway)
    client = await add_client(gateway)
    spent = await half_sent(gateway, client, a)
    for _ in range(2):
        await come_back(gateway, clock)
        answered(a, await a.next(), p2=Verdict.FAILED)
    done = await final_of(gateway, spent)
    assert (done.status, done.reason) == (Status.FAILED_PERM, Reason.RETRIES_EXHAUSTED)
    late = await half_sent(gateway, client, a, Verdict.NOT_SENT)
    down(gateway, a, "no connection")
    clock.advance(4 * 86_400)
    await sweep(gateway)
    done = await final_of(gateway, late)
    assert (done.status, done.reason) == (Status.EXPIRED, Reason.VALIDITY_PASSED)
    assert (a.count, b.count) == (4, 0)
    account = await account_of(gateway, client)
    assert (account.credits_cents, account.held_cents) == (1000, 0)
    await assert_clean(gateway)


@pytest.mark.parametrize("alike", [True, False])
async def test_what_is_half_sent_goes_on_elsewhere_or_waits_where_its_operator_is_disabled(
    gateway_of: OpenGateway, clock: ManualClock, alike: bool
) -> None:
    second = {**SMPP, "priority": 1} if alike else STRANGERS["sar"]
    gateway, (a, b) = await serve(gateway_of, {"a": SMPP, "b": second})
    client = await add_client(gateway)
    down(gateway, b, "no connection")
    a.trouble = "the connection was lost"
    message = await half_sent(gateway, client, a, Verdict.NOT_SENT)
    await settled(gateway)
    await gateway.fleet.switch("a", on=False)
    down(gateway, b, None)
    await settled(gateway)
    other = await submitted(gateway, client)
    await flushed(gateway)
    gateway.fleet.look()
    await settled(gateway)
    if alike:
        await completed(gateway, message, b, begun_by=a, attempts=1)
        return
    now = await message_of(gateway, message)
    assert (now.status, now.attempts) == (Status.QUEUED, 0)
    assert [one.number for one in b.held] == [other.number]
    before = gateway.fleet.providers
    await gateway.fleet.switch("a", on=True)
    assert before is gateway.fleet.providers
    await settled(gateway)
    # It is a real one now, which does not get through to anybody: but there it waits.
    now = await message_of(gateway, message)
    assert (now.status, b.count) == (Status.QUEUED, 1)
    assert gateway.allotter.waiting_for("a") == 1
    await assert_clean(gateway)


async def test_parts_that_were_accepted_are_known_also_where_much_happens_in_one_turn(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": SMPP})
    await still(gateway)
    client = await add_client(gateway)
    message = await half_sent(gateway, client, a)
    await flushed(gateway)
    clock.advance(3600)
    # The retry becomes due in the turn that admits another message, and so claims.
    shard = gateway.shards.of_client(client)
    due = FireTimers(gateway.rules, gateway.metrics, clock.now_ms(), gateway.routing.again)
    shard.put(due)
    await submitted(gateway, client)
    await flushed(gateway)
    assert due.answer == 1
    retry = next(one for one in a.held if one.number == message.number)
    assert retry.accepted_parts == {1, 3}
    a.held.remove(retry)
    a.held.insert(0, retry)
    await completed(gateway, message, a, begun_by=a, attempts=2)


async def test_what_cannot_be_used_is_left_out_until_it_is_back(gateway_of: OpenGateway) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": {**MOCK, "priority": 1}})
    client = await add_client(gateway)
    down(gateway, a, "no connection")
    await submitted(gateway, client)
    b.accept(await b.next(), "1")
    down(gateway, a, None)
    await submitted(gateway, client)
    a.accept(await a.next(), "2")
    assert (a.count, b.count) == (1, 1)


async def test_the_lower_priority_is_for_what_the_higher_has_no_room_for(
    gateway_of: OpenGateway,
) -> None:
    gateway, (a, b) = await serve(
        gateway_of, {"a": {**MOCK, "window": 2, "priority": 5}, "b": {**MOCK, "priority": 9}}
    )
    client = await add_client(gateway)
    for _ in range(4):
        await submitted(gateway, client)
    await flushed(gateway)
    # A place of the two is kept for one-time codes.
    assert (a.count, b.count) == (1, 3)


async def test_operators_of_one_priority_share_by_weight(gateway_of: OpenGateway) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": {**MOCK, "weight": 3}, "b": MOCK})
    client = await add_client(gateway)
    for _ in range(40):
        await submitted(gateway, client)
    await flushed(gateway)
    assert a.count + b.count == 40
    assert 28 <= a.count <= 32


async def test_the_longest_prefix_decides(gateway_of: OpenGateway) -> None:
    gateway, (iran, mobile, rest) = await serve(
        gateway_of,
        {"iran": {**MOCK, "prefixes": ["+98"]}, "mobile": {**MOCK, "prefixes": ["989"]}, "c": MOCK},
    )
    client = await add_client(gateway)
    for to in (IRAN, TEHRAN, DELIVERED):
        await submitted(gateway, client, to=to)
    for operator, to in ((mobile, IRAN), (iran, TEHRAN), (rest, DELIVERED)):
        assert (await operator.next()).recipient == to
    assert [one.count for one in (iran, mobile, rest)] == [1, 1, 1]


async def test_timeouts_open_the_breaker_and_one_probe_closes_it(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    quick = {**HTTP, "window": 4, "breaker_failures": 2}
    gateway, (a, b) = await serve(gateway_of, {"a": quick, "b": {**MOCK, "priority": 1}})
    client = await add_client(gateway)
    silent = [await submitted(gateway, client) for _ in range(2)]
    await flushed(gateway)
    assert (a.count, b.count) == (2, 0)
    clock.advance(31)
    gateway.worker.time_out()
    await flushed(gateway)
    for message in silent:
        assert (await message_of(gateway, message)).status == Status.UNCERTAIN
    assert "breaker" in gateway.trouble()["provider a"]

    for _ in range(3):
        await submitted(gateway, client)
    await flushed(gateway)
    assert (a.count, b.count) == (2, 3)
    a.held.clear()

    clock.advance(10)
    more = [await submitted(gateway, client) for _ in range(3)]
    await flushed(gateway)
    assert (a.count, b.count) == (3, 5)
    probe = await a.next()
    assert probe.number in {message.number for message in more}
    a.accept(probe, "probe")
    assert gateway.trouble() == {}
    await submitted(gateway, client)
    await flushed(gateway)
    assert a.count == 4


async def test_a_probe_without_an_answer_keeps_the_breaker_open(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": {**HTTP, "breaker_failures": 1}})
    client = await add_client(gateway)
    for _ in range(5):
        await submitted(gateway, client)
    await flushed(gateway)
    for probes in range(1, 4):
        clock.advance(31)
        gateway.worker.time_out()
        await flushed(gateway)
        assert gateway.allotter.links["a"].in_flight == 0
        before = a.count
        clock.advance(10)
        gateway.worker.wake_soon()
        await flushed(gateway)
        assert a.count == before + (1 if before < 5 else 0), probes


async def test_giving_up_twice_on_one_submit_is_one_failure(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": {**HTTP, "breaker_failures": 2}})
    client = await add_client(gateway)
    await submitted(gateway, client)
    submission = await a.next()
    clock.advance(31)
    gateway.worker.time_out()
    a.answer(submission, Verdict.UNKNOWN, timed_out=True)
    assert gateway.allotter.links["a"].failures == 1
    assert gateway.trouble() == {}


async def test_a_refusal_is_an_answer_and_opens_no_breaker(gateway_of: OpenGateway) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": {**HTTP, "breaker_failures": 1}})
    client = await add_client(gateway)
    for verdict in (Verdict.REFUSED, Verdict.FAILED, Verdict.THROTTLED):
        await submitted(gateway, client)
        a.answer(await a.next(), verdict)
    assert gateway.allotter.links["a"].open_until_s is None


async def test_what_was_not_sent_costs_no_attempt_and_waits_for_the_link(
    gateway_of: OpenGateway,
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    submission = await a.next()
    # It says so only after the answer: the answer alone must not be asked for again and again.
    a.trouble = "the connection was lost"
    a.answer(submission, Verdict.NOT_SENT)
    for _ in range(5):
        gateway.worker.wake_soon()
        await flushed(gateway)
    now = await message_of(gateway, message)
    assert (now.status, now.attempts, now.rank, a.count) == (Status.QUEUED, 0, message.rank, 1)
    down(gateway, a, None)
    again = await a.next()
    assert again.attempt == 1
    await delivered(gateway, message, a, again)


async def test_throttling_slows_down_one_link_only(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": MOCK, "b": {**MOCK, "priority": 1}})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    a.answer(await a.next(), Verdict.THROTTLED, retry_after_s=5.0)
    again = await b.next()
    assert (again.number, again.attempt) == (message.number, 1)
    await submitted(gateway, client)
    await b.next()
    clock.advance(5)
    await submitted(gateway, client)
    await a.next()
    assert gateway.allotter.links["a"].open_until_s is None


@pytest.mark.parametrize("pauses_s", [(60.0, None), (None, 60.0), (60.0, 5.0)])
async def test_of_what_an_operator_says_about_when_to_come_back_the_latest_counts(
    gateway_of: OpenGateway, clock: ManualClock, pauses_s: tuple[float | None, ...]
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": HTTP})
    client = await add_client(gateway)
    for _ in pauses_s:
        await submitted(gateway, client)
    flights = [await a.next() for _ in pauses_s]
    for submission, pause_s in zip(flights, pauses_s, strict=True):
        a.answer(submission, Verdict.THROTTLED, retry_after_s=pause_s)
    link = gateway.allotter.links["a"]
    assert link.resume_at_s == clock.monotonic_s() + 60


# Switched on and off, and exchanged, while messages travel.


async def test_disabling_ends_what_is_in_flight_and_hands_on_what_waits(
    gateway_of: OpenGateway,
) -> None:
    gateway, (a, b) = await serve(
        gateway_of, {"a": {**MOCK, "window": 2, "prefixes": ["+98"]}, "b": MOCK}
    )
    client = await add_client(gateway)
    messages = [await submitted(gateway, client, to=IRAN) for _ in range(3)]
    in_flight = await a.next()
    await gateway.fleet.switch("a", on=False)
    handed_on = [await b.next() for _ in range(2)]
    assert [one.number for one in handed_on] == [message.number for message in messages[1:]]
    assert not a.stopped
    assert gateway.fleet.changing("a")
    # Its receipts still come in.
    await delivered(gateway, messages[0], a, in_flight)
    await settled(gateway)
    assert a.stopped
    assert "a" not in gateway.providers
    await submitted(gateway, client, to=IRAN)
    await b.next()
    assert a.count == 1
    await assert_clean(gateway)


async def test_a_paused_operator_keeps_what_waits_for_it(gateway_of: OpenGateway) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": {**MOCK, "prefixes": ["+98"]}, "b": MOCK})
    client = await add_client(gateway)
    await gateway.pause("a", paused=True)
    message = await submitted(gateway, client, to=IRAN)
    await settled(gateway)
    assert (a.count, b.count) == (0, 0)
    assert gateway.allotter.waiting_for("a") == 1
    await gateway.pause("a", paused=False)
    assert (await a.next()).number == message.number


async def test_what_is_disabled_is_so_after_a_restart_until_it_is_enabled(
    gateway_of: OpenGateway,
) -> None:
    two = {"a": {**MOCK, "prefixes": ["+98"]}, "b": {**MOCK, "enabled": False}}
    gateway, _ = await serve(gateway_of, two)
    client = await add_client(gateway)
    await gateway.fleet.switch("a", on=False)
    await gateway.close()

    gateway = await gateway_of(settings_of(two))
    assert dict(gateway.providers) == {}
    message = await submitted(gateway, client, to=IRAN)
    await settled(gateway)
    assert (await message_of(gateway, message)).status == Status.QUEUED
    await gateway.fleet.switch("a", on=True)
    assert (await final_of(gateway, message)).provider == "a"
    assert gateway.allotter.links["a"].counts
    await assert_clean(gateway)


async def test_one_that_is_enabled_while_a_shard_cannot_be_read_is_used_and_restored_later(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    a.accept(await a.next(), "a-1")
    await flushed(gateway)
    await gateway.fleet.switch("a", on=False)
    await settled(gateway)

    async def unreadable(*_: object) -> None:
        raise StorageUnavailable(retry_after_s=1, outcome="none")

    again = Operator("a")
    monkeypatch.setattr(fleet, "_build", lambda *_: again)
    with monkeypatch.context() as broken:
        for shard in gateway.shards:
            broken.setattr(shard.store, "accepted_open", unreadable)
        await gateway.fleet.switch("a", on=True)
        await settled(gateway)
        assert gateway.fleet.usable() == ["a"]
        gateway.fleet.look()
        await settled(gateway)
    assert again.restored == []
    gateway.fleet.look()
    await settled(gateway)
    assert [one.provider_message_id for one in again.restored] == ["a-1"]
    again.receipt("a-1")
    assert (await final_of(gateway, message)).status == Status.DELIVERED


async def test_one_that_could_not_be_started_can_be_enabled_once_more(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = await serve(gateway_of, {"a": MOCK})
    await gateway.fleet.switch("a", on=False)
    await settled(gateway)

    async def unable(_: object) -> None:
        raise OSError("no journal")

    made = [Operator("a"), Operator("a")]
    monkeypatch.setattr(made[0], "start", unable)
    monkeypatch.setattr(fleet, "_build", lambda *_: made[0])
    await gateway.fleet.switch("a", on=True)
    await settled(gateway)
    assert gateway.fleet.usable() == []
    monkeypatch.setattr(fleet, "_build", lambda *_: made[1])
    await gateway.fleet.switch("a", on=True)
    await settled(gateway)
    assert gateway.fleet.usable() == ["a"]
    assert made[0].stopped


async def test_what_the_settings_disable_is_enabled_there(gateway_of: OpenGateway) -> None:
    gateway, _ = await serve(gateway_of, {"a": MOCK})
    with pytest.raises(InvalidRequest, match=r"providers\.mock\.enabled is false"):
        await gateway.fleet.switch("mock", on=True)


async def test_on_and_off_and_on_again_ends_on(gateway_of: OpenGateway) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    in_flight = await a.next()
    for on in (False, True, False, True):
        await gateway.fleet.switch("a", on=on)
    more = await submitted(gateway, client)
    await flushed(gateway)
    assert a.count == 1
    await delivered(gateway, message, a, in_flight)
    assert (await final_of(gateway, more)).provider == "a"
    await settled(gateway)
    assert a.stopped
    assert gateway.providers["a"] is not a
    await assert_clean(gateway)


async def test_one_that_is_disabled_with_silent_flights_is_closed_when_their_time_is_over(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    await a.next()
    await gateway.fleet.switch("a", on=False)
    clock.advance(31)
    gateway.worker.time_out()
    await settled(gateway)
    assert a.stopped
    assert (await message_of(gateway, message)).status == Status.UNCERTAIN


async def test_a_stop_while_one_is_being_exchanged_is_clean(gateway_of: OpenGateway) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    await submitted(gateway, client)
    await a.next()
    await gateway.reload(reread({"a": {**MOCK, "latency_ms": 1}}))
    await gateway.close()
    assert a.stopped
    assert "a" not in gateway.providers


async def test_all_are_stopped_together_and_one_that_fails_keeps_no_other_from_it(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, operators = await serve(gateway_of, {"a": MOCK, "b": MOCK, "c": MOCK})
    # "a" is stopped as one that is being exchanged: it is one of all, too.
    client = await add_client(gateway)
    gateway.allotter.links["b"].off = gateway.allotter.links["c"].off = True
    await submitted(gateway, client)
    await operators[0].next()
    await gateway.fleet.switch("a", on=False)
    together = asyncio.Barrier(3)

    async def goodbye(operator: Operator) -> None:
        operator.stopped = True
        await together.wait()
        if operator.name == "b":
            raise OSError("the connection is lost")

    for operator in operators:
        monkeypatch.setattr(operator, "stop", partial(goodbye, operator))
    await asyncio.wait_for(gateway.close(), 10)
    assert all(operator.stopped for operator in operators)


async def test_a_code_does_not_go_to_one_that_is_disabled(gateway_of: OpenGateway) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    await gateway.fleet.switch("a", on=False)
    wish = {"to": DELIVERED, "text": "{code}"}
    with pytest.raises(OtpUndeliverable):
        await code(gateway, client, **wish)
    assert a.count == 0
    await assert_clean(gateway)


async def code(gateway: Gateway, client: bytes, to: str, text: str) -> Any:
    masked, _ = gateway.otp.text_for(text)
    draft = gateway.entrance.draft(Wish(to, "ACME", masked, Lane.OTP))
    return await gateway.otp.send(client, draft, text, None, gateway.clock.now_ms())


# Settings read again.


async def test_numbers_of_the_link_apply_at_once_and_leave_its_connections(
    gateway_of: OpenGateway,
) -> None:
    gateway, (a, b) = await serve(gateway_of, {"a": {**MOCK, "window": 1}, "b": MOCK})
    await gateway.reload(
        reread(
            {
                "a": {**MOCK, "window": 7, "rate_parts_per_s": 3.0, "weight": 2},
                "b": {**MOCK, "priority": -4, "prefixes": ["+98"], "receipt_token": "t"},
            }
        )
    )
    links = gateway.allotter.links
    assert (links["a"].window, links["a"].bucket.rate_per_s, links["a"].weight) == (7, 3.0, 2)
    assert links["b"].priority == -4
    assert gateway.routing.eligible(int(IRAN)) == ("b",)
    assert gateway.providers["a"] is a
    assert gateway.providers["b"] is b
    assert not gateway.fleet.changing("a")
    assert gateway.settings.providers["b"].receipt_token.get_secret_value() == "t"


async def test_an_exchange_waits_for_the_answers_to_the_old_connections(
    gateway_of: OpenGateway,
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    in_flight = await a.next()
    await gateway.reload(reread({"a": {**MOCK, "latency_ms": 1}}))
    more = await submitted(gateway, client)
    await flushed(gateway)
    assert gateway.trouble() == {"provider a": "its connections are being exchanged or closed"}
    assert (a.count, a.stopped) == (1, False)
    await delivered(gateway, message, a, in_flight)
    assert (await final_of(gateway, more)).status == Status.DELIVERED
    assert (a.count, a.stopped) == (1, True)
    await settled(gateway)
    assert gateway.trouble() == {}
    await assert_clean(gateway)


async def test_new_operators_are_connected_and_removed_ones_closed(gateway_of: OpenGateway) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": {**MOCK, "prefixes": ["+98"]}})
    client = await add_client(gateway)
    down(gateway, a, "no connection")
    message = await submitted(gateway, client, to=IRAN)
    nobody = await submitted(gateway, client, to=DELIVERED)
    await gateway.reload(reread({"b": MOCK}))
    for one in (message, nobody):
        assert (await final_of(gateway, one)).provider == "b"
    await settled(gateway)
    assert a.stopped
    assert list(gateway.providers) == ["b"]
    assert b'smsgw_provider_up{provider="a"}' not in gateway.metrics.render()
    await assert_clean(gateway)


async def test_settings_with_a_mistake_change_nothing(gateway_of: OpenGateway) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    wrong = {**HTTP, "tls_ca_file": "/nowhere/ca.pem"}
    with pytest.raises(SettingsError, match=r"providers\.b"):
        await gateway.reload(reread({"b": wrong}))
    assert dict(gateway.providers) == {"a": a}
    assert set(gateway.settings.providers) == {"mock", "a"}
    assert not a.stopped


async def test_settings_whose_routes_cannot_be_noted_change_nothing(
    gateway_of: OpenGateway,
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    settings = reread({"a": {**MOCK, "window": 7, "prefixes": ["+98"]}, "b": MOCK})
    text = gateway.routing.text()
    async with read_only(gateway.shards.catalog):
        with pytest.raises(StorageUnavailable):
            await gateway.reload(settings)
    assert gateway.allotter.links["a"].window == gateway.settings.providers["a"].window == 500
    assert dict(gateway.providers) == {"a": a}
    assert "b" not in gateway.settings.providers.keys() | gateway.reporting.keys()
    assert gateway.routing.text() == text
    await gateway.reload(settings)
    await settled(gateway)
    assert gateway.allotter.links["a"].window == gateway.settings.providers["a"].window == 7
    assert set(gateway.providers) == {"a", "b"}
    assert "b" in gateway.settings.providers.keys() & gateway.reporting.keys()
    assert gateway.routing.text() != text


async def test_settings_that_only_exchange_routes_change_nothing_either_if_that_cannot_be_noted(
    gateway_of: OpenGateway,
) -> None:
    iran: dict[str, Any] = {**MOCK, "prefixes": ["+98"]}
    gateway, _ = await serve(gateway_of, {"a": iran, "b": MOCK})
    settings = reread({"a": MOCK, "b": iran})
    async with read_only(gateway.shards.catalog):
        with pytest.raises(StorageUnavailable):
            await gateway.reload(settings)
    assert gateway.routing.eligible(int(IRAN)) == ("a",)
    assert gateway.settings.providers["b"].prefixes == ()
    await gateway.reload(settings)
    assert gateway.routing.eligible(int(IRAN)) == ("b",)
    await settled(gateway)


async def test_routes_that_cannot_be_numbered_in_the_midst_of_a_change_are_so_at_the_next_look(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    routes, calls = gateway.shards.catalog.routes, 0

    async def once(sets: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise StorageUnavailable(retry_after_s=1, outcome="none")
        # Whose receipts come from now on is known before anything is sent.
        assert "b" not in gateway.providers
        return await routes(sets)

    with monkeypatch.context() as broken:
        broken.setattr(gateway.shards.catalog, "routes", once)
        await gateway.reload(reread({"b": MOCK}))
    assert "b" in gateway.settings.providers.keys() & gateway.reporting.keys()
    message = await submitted(gateway, client)
    await settled(gateway)
    gateway.fleet.look()
    assert (await final_of(gateway, message)).provider == "b"
    await settled(gateway)


async def test_one_that_cannot_be_built_any_more_is_told_and_keeps_no_other_from_being_used(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = await serve(gateway_of, {"a": MOCK, "b": MOCK})
    for name in ("a", "b"):
        await gateway.fleet.switch(name, on=False)
    await settled(gateway)
    mistake = "providers.a.tls_ca_file: Permission denied"

    def build(name: str, *_: object) -> Operator:
        if name == "a":
            raise SettingsError(mistake, mistakes=[mistake])
        return Operator(name)

    monkeypatch.setattr(fleet, "_build", build)
    # Both are enabled elsewhere: another gateway has noted it in the catalog that all share.
    gateway.shards.catalog.paused.clear()
    gateway.fleet.take_pauses()
    await settled(gateway)
    assert gateway.fleet.usable() == ["b"]
    assert gateway.trouble() == {"provider a": f"it could not be started: {mistake}"}


async def test_what_needs_a_restart_is_named_and_does_not_apply(
    gateway_of: OpenGateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = await serve(gateway_of, {"a": MOCK})
    # Another test may have set up the log of the whole process.
    ours = logging.getLogger("smsgw")
    monkeypatch.setattr(ours, "propagate", True)
    caplog.set_level(logging.DEBUG, logger="smsgw")
    await gateway.reload(
        reread({"a": {**MOCK, "weight": 2}}, billing={"part_cents": 9}, log={"level": "debug"})
    )
    named = [getattr(record, "fields", {}).get("key") for record in caplog.records]
    assert [key for key in named if key] == ["billing.part_cents"]
    assert gateway.settings.billing.part_cents == 5
    assert gateway.settings.log.level == "debug"


async def test_whether_receipts_come_can_change(gateway_of: OpenGateway) -> None:
    gateway, _ = await serve(gateway_of, {"a": MOCK})
    await gateway.reload(reread({"a": {**MOCK, "receipts": False}}))
    client = await add_client(gateway)
    done = await final_of(gateway, await submitted(gateway, client))
    assert (done.reason, done.charged_cents) == (Reason.NO_RECEIPTS, 5)


async def test_reloads_under_load_lose_nothing(gateway_of: OpenGateway) -> None:
    base = settings_of({"a": {**MOCK, "prefixes": ["+98"]}, "b": MOCK})
    gateway = await gateway_of(base)
    client = await add_client(gateway, 100_000)
    variants: list[dict[str, dict[str, Any]]] = [
        {"a": {**MOCK, "latency_ms": 1}, "b": MOCK},
        {"b": {**MOCK, "latency_ms": 2, "window": 3}},
        {"c": {**MOCK, "prefixes": ["+98"]}, "b": {**MOCK, "weight": 5}},
        {
            "a": {**MOCK, "window": 2},
            "c": {**MOCK, "enabled": False},
            "b": {**MOCK, "latency_ms": 1},
        },
    ]
    messages = []
    for index in range(200):
        to = IRAN if index % 2 else DELIVERED
        messages.append(await submitted(gateway, client, to=to))
        if index % 20 == 19:
            await gateway.reload(reread(variants[index // 20 % 4]))
        if index % 50 == 30:
            await gateway.fleet.switch("b", on=False)
            await gateway.fleet.switch("b", on=True)
    for message in messages:
        done = await final_of(gateway, message)
        assert (done.status, done.attempts, done.charged_cents) == (Status.DELIVERED, 1, 5)
    await settled(gateway)
    account = await account_of(gateway, client)
    assert (account.credits_cents, account.held_cents) == (99_000, 0)
    assert all(link.in_flight == 0 for link in gateway.allotter.links.values())
    await assert_clean(gateway)


# Numbers that nobody serves, and tests.


@pytest.mark.parametrize("unrouted", ["wait", "refuse"])
async def test_a_number_that_nobody_serves_waits_or_is_refused(
    gateway_of: OpenGateway, unrouted: str
) -> None:
    gateway, (a,) = await serve(
        gateway_of, {"a": {**MOCK, "prefixes": ["+98"]}}, limits={"unrouted": unrouted}
    )
    client = await add_client(gateway)
    await submitted(gateway, client, to=IRAN)
    if unrouted == "wait":
        message = await submitted(gateway, client)
        await flushed(gateway)
        assert (await message_of(gateway, message)).status == Status.QUEUED
        return
    with pytest.raises(InvalidRecipient, match="No operator serves"):
        await submitted(gateway, client)
    await gateway.fleet.switch("a", on=False)
    with pytest.raises(InvalidRecipient):
        await submitted(gateway, client, to=IRAN)
    await gateway.reload(reread({"a": MOCK, "b": MOCK}))
    await submitted(gateway, client)
    assert a.count <= 1


async def test_a_test_goes_past_queue_and_ledger_and_its_receipt_is_nobodys(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    draft = gateway.entrance.draft(Wish(DELIVERED, "ACME", "x" * 200))
    await gateway.pause("a", paused=True)
    testing = asyncio.create_task(gateway.fleet.try_out("a", draft))
    submission = await a.next()
    assert (submission.recipient, submission.sender, submission.parts) == (DELIVERED, "ACME", 2)
    assert gateway.allotter.links["a"].in_flight == 2
    a.accept(submission, "t-1")
    a.receipt("t-1")
    assert (await testing).provider_message_id == "t-1"
    assert gateway.allotter.links["a"].in_flight == 0
    await flushed(gateway)
    assert gateway.receipts.parked == {}

    # Without an answer in time it is unknown; what comes after that is nobody's, too.
    testing = asyncio.create_task(gateway.fleet.try_out("a", draft))
    submission = await a.next()
    clock.advance(31)
    gateway.worker.time_out()
    assert (await testing).verdict is Verdict.UNKNOWN
    a.accept(submission, "t-2")
    a.receipt("t-2")
    await flushed(gateway)
    assert (await account_of(gateway, client)).credits_cents == 1000
    await assert_clean(gateway)


async def test_what_is_disabled_cannot_be_tested(gateway_of: OpenGateway) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    await gateway.fleet.switch("a", on=False)
    await settled(gateway)
    with pytest.raises(NotReady):
        await gateway.fleet.try_out("a", gateway.entrance.draft(Wish(DELIVERED, "ACME", "x")))
    assert a.count == 0
