"""The worker pool: what operators answer, late or never, and that no place is ever lost."""

import asyncio
import random
from typing import Any

import pytest

from smsgw.admission import Accepted
from smsgw.clock import ManualClock
from smsgw.entrance import Wish
from smsgw.gateway import Gateway
from smsgw.models import Lane, Message, Outcome, Reason, Status, Verdict
from smsgw.providers.base import fold
from tests.conftest import OpenGateway
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
    serve_still,
    sweep,
)

PATIENT: dict[str, Any] = {"retry_base_s": 0.0}


@pytest.fixture
def operator() -> Scripted:
    return Scripted()


async def serve(
    gateway_of: OpenGateway, operator: Scripted, **overrides: dict[str, Any]
) -> Gateway:
    """A gateway whose operator does what the test says, and whose sweeper waits for the test."""
    gateway = await gateway_of({"server": {"shutdown_s": 0.02}, **overrides}, serve=False)
    gateway.fleet.providers = {"mock": operator}
    await serve_still(gateway)
    return gateway


async def submitted(gateway: Gateway, client: bytes, **more: Any) -> Message:
    answer = await send(gateway, client, **more)
    assert isinstance(answer, Accepted)
    return answer.message


async def events_of(gateway: Gateway, message: Message) -> list[str]:
    rows = await gateway.shards.of_message(message.id).store.read("get_events", message.number)
    return [kind for _, kind, _ in rows]


async def retry(gateway: Gateway, clock: ManualClock) -> None:
    clock.advance(1)
    await sweep(gateway)


@pytest.mark.parametrize(
    ("on_uncertain", "status", "held"),
    [("wait", Status.UNCERTAIN, 5), ("resend", Status.FAILED_TEMP, 5), ("fail", Status.UNKNOWN, 0)],
)
async def test_no_answer_in_time_is_decided_by_on_uncertain(
    gateway_of: OpenGateway,
    operator: Scripted,
    clock: ManualClock,
    on_uncertain: str,
    status: Status,
    held: int,
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"on_uncertain": on_uncertain})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    await operator.next()
    clock.advance(29.9)
    gateway.worker.time_out()
    assert gateway.worker.in_flight() == 1
    clock.advance(0.2)
    gateway.worker.time_out()
    assert gateway.worker.in_flight() == 0
    await flushed(gateway)
    now = await message_of(gateway, message)
    assert (now.status, now.held_cents, now.attempts) == (status, held, 1)
    assert gateway.allotter.links["mock"].in_flight == 0
    await assert_clean(gateway)


async def test_a_late_acceptance_resolves_what_waits_for_evidence(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    submission = await operator.next()
    clock.advance(31)
    gateway.worker.time_out()
    await flushed(gateway)
    operator.accept(submission)
    await flushed(gateway)
    assert (await message_of(gateway, message)).status == Status.SENT
    operator.receipt("1")
    assert (await final_of(gateway, message)).charged_cents == 5
    assert operator.count == 1


async def test_a_late_answer_to_a_first_attempt_never_settles_the_second(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"on_uncertain": "resend", **PATIENT})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    first = await operator.next()
    clock.advance(31)
    gateway.worker.time_out()
    await flushed(gateway)
    await retry(gateway, clock)
    second = await operator.next()
    assert (first.attempt, second.attempt) == (1, 2)
    operator.answer(first, Verdict.REFUSED)
    await flushed(gateway)
    assert (await message_of(gateway, message)).status == Status.SENDING
    assert gateway.worker.in_flight() == 1
    operator.accept(second)
    operator.receipt("1")
    done = await final_of(gateway, message)
    assert (done.status, done.charged_cents, done.attempts) == (Status.DELIVERED, 5, 2)
    assert await events_of(gateway, message) == ["failed_temporarily", "late_answer"]
    await assert_clean(gateway)


async def test_a_late_answer_after_fail_changes_neither_state_nor_money(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"on_uncertain": "fail"})
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    submission = await operator.next()
    clock.advance(31)
    gateway.worker.time_out()
    done = await final_of(gateway, message)
    assert (done.status, done.reason) == (Status.UNKNOWN, Reason.UNCERTAIN)
    operator.accept(submission)
    operator.receipt("1")
    await flushed(gateway)
    assert await message_of(gateway, message) == done
    assert (await account_of(gateway, client)).credits_cents == 1000
    assert await events_of(gateway, message) == ["late_answer", "receipt"]


async def test_a_time_limit_is_each_flights_own(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    early = await submitted(gateway, client)
    await operator.next()
    clock.advance(20)
    late = await submitted(gateway, client)
    await operator.next()
    clock.advance(15)
    gateway.worker.time_out()
    await flushed(gateway)
    assert (await message_of(gateway, early)).status == Status.UNCERTAIN
    assert (await message_of(gateway, late)).status == Status.SENDING


async def test_what_may_be_at_fault_itself_lets_others_go_first(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, providers={"mock": {"window": 1}})
    client = await add_client(gateway)
    first, second = [await submitted(gateway, client) for _ in range(2)]
    operator.answer(await operator.next(), Verdict.NOT_SENT, retry_after_s=5.0, detail="HTTP 403")
    then = await operator.next()
    assert then.number == second.number
    operator.accept(then, "2")
    now = await message_of(gateway, first)
    assert (now.status, now.attempts, now.last_error) == (Status.FAILED_TEMP, 0, "HTTP 403")
    clock.advance(5.0)
    await sweep(gateway)
    again = await operator.next()
    assert (again.number, again.attempt) == (first.number, 1)
    await assert_clean(gateway)


@pytest.mark.parametrize("verdict", [Verdict.THROTTLED, Verdict.NOT_SENT])
async def test_what_was_not_taken_goes_back_at_its_old_rank_and_costs_no_attempt(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, verdict: Verdict
) -> None:
    gateway = await serve(gateway_of, operator, providers={"mock": {"window": 1}})
    client = await add_client(gateway)
    first, second = [await submitted(gateway, client) for _ in range(2)]
    submission = await operator.next()
    rest_s = 5.0 if verdict is Verdict.THROTTLED else None
    operator.answer(submission, verdict, retry_after_s=rest_s)
    await flushed(gateway)
    if verdict is Verdict.THROTTLED:
        now = await message_of(gateway, first)
        assert (now.status, now.attempts, now.rank) == (Status.QUEUED, 0, first.rank)
        clock.advance(4.9)
        gateway.worker.wake_soon()
        await flushed(gateway)
        assert operator.held == []
        clock.advance(0.2)
        gateway.worker.wake_soon()
    again = await operator.next()
    assert (again.number, again.attempt) == (first.number, 1)
    operator.accept(again, "1")
    operator.accept(await operator.next(), "2")
    await flushed(gateway)
    for message in (first, second):
        assert (await message_of(gateway, message)).attempts == 1
    await assert_clean(gateway)


@pytest.mark.parametrize(("lane", "attempts_max"), [(Lane.REGULAR, 3), (Lane.EXPRESS, 5)])
async def test_temporary_failures_are_tried_again_as_often_as_the_lane_allows(
    gateway_of: OpenGateway,
    operator: Scripted,
    clock: ManualClock,
    lane: Lane,
    attempts_max: int,
) -> None:
    gateway = await serve(gateway_of, operator, delivery=PATIENT)
    client = await add_client(gateway)
    message = await submitted(gateway, client, lane=lane)
    for attempt in range(1, attempts_max + 1):
        submission = await operator.next()
        assert submission.attempt == attempt
        operator.answer(submission, Verdict.FAILED, detail="busy")
        await flushed(gateway)
        await retry(gateway, clock)
    done = await final_of(gateway, message)
    assert (done.status, done.reason) == (Status.FAILED_PERM, Reason.RETRIES_EXHAUSTED)
    assert (done.attempts, done.last_error, done.held_cents) == (attempts_max, "busy", 0)
    assert operator.count == attempts_max
    await assert_clean(gateway)


async def test_a_refusal_is_for_good(gateway_of: OpenGateway, operator: Scripted) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    operator.answer(await operator.next(), Verdict.REFUSED, detail="unknown number")
    done = await final_of(gateway, message)
    assert (done.status, done.reason) == (Status.FAILED_PERM, Reason.REJECTED_BY_OPERATOR)
    assert (await account_of(gateway, client)).credits_cents == 1000


@pytest.mark.parametrize("verdict", [Verdict.NOT_SENT, Verdict.UNKNOWN])
async def test_the_time_of_an_answer_is_learnt_from_answers_only(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, verdict: Verdict
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    link = gateway.allotter.links["mock"]
    link.answer_s = 2.0
    await send(gateway, client)
    first = await operator.next()
    gateway.allotter.paused = True
    operator.answer(first, verdict)
    await flushed(gateway)
    assert (link.answer_s, link.answers) == (2.0, 0)
    gateway.allotter.paused = False
    await send(gateway, client)
    submission = await operator.next()
    clock.advance(3)
    operator.answer(submission, Verdict.NOT_SENT, answered=True)
    assert (round(link.answer_s, 6), link.answers) == (2.1, 1)


TAKEN, NOT_TAKEN = Outcome(Verdict.ACCEPTED, "1"), Outcome(Verdict.NOT_SENT)


@pytest.mark.parametrize(
    ("outcome", "unsent"),
    [
        (Outcome(Verdict.NOT_SENT), 3),
        (fold({1: NOT_TAKEN, 2: NOT_TAKEN, 3: NOT_TAKEN}), 3),
        (fold({1: TAKEN, 2: TAKEN, 3: NOT_TAKEN}), 1),
        (fold({1: TAKEN, 2: Outcome(Verdict.NOT_SENT, answered=True), 3: NOT_TAKEN}), 1),
        (fold({1: Outcome(Verdict.FAILED), 2: TAKEN, 3: NOT_TAKEN}), 1),
        (Outcome(Verdict.NOT_SENT, answered=True), 0),
        (Outcome(Verdict.UNKNOWN), 0),
        (fold({1: TAKEN, 2: TAKEN, 3: TAKEN}), 0),
    ],
)
async def test_tokens_come_back_for_parts_that_have_not_left(
    gateway_of: OpenGateway, operator: Scripted, outcome: Outcome, unsent: int
) -> None:
    gateway = await serve(gateway_of, operator, providers={"mock": {"rate_parts_per_s": 10}})
    client = await add_client(gateway)
    link = gateway.allotter.links["mock"]
    link.bucket.tokens = 1.0
    await send(gateway, client, text="x" * 400)
    submission = await operator.next()
    gateway.allotter.paused = True
    before = link.bucket.tokens
    operator.settle(submission, outcome)
    assert (link.in_flight, link.bucket.tokens - before) == (0, unsent)


async def test_parts_that_an_operator_has_already_take_no_tokens(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, providers={"mock": {"rate_parts_per_s": 10}})
    client = await add_client(gateway)
    link = gateway.allotter.links["mock"]
    link.bucket.tokens = 1.0
    await send(gateway, client, text="x" * 400)
    failed = Outcome(Verdict.FAILED)
    operator.settle(await operator.next(), fold({1: TAKEN, 2: TAKEN, 3: failed}))
    await flushed(gateway)
    clock.advance(3600)
    await sweep(gateway)
    again = await operator.next()
    assert again.accepted_parts == {1, 2}
    before = link.bucket.tokens
    operator.settle(again, fold({3: Outcome(Verdict.ACCEPTED, "3")}))
    assert link.bucket.tokens - before == 2


async def test_a_place_is_free_as_soon_as_the_operator_has_answered(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    await submitted(gateway, client)
    submission = await operator.next()
    link = gateway.allotter.links["mock"]
    assert link.in_flight == 1
    operator.accept(submission)
    assert link.in_flight == 0


async def test_a_place_that_frees_is_taken_without_polling(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator, providers={"mock": {"window": 1}})
    _stop_looking(gateway)
    clients = [await add_client(gateway, 10_000) for _ in range(8)]
    messages = [await submitted(gateway, client) for _ in range(5) for client in clients]
    for _ in messages:
        operator.answer(await operator.next(), Verdict.REFUSED)
    for message in messages:
        assert (await final_of(gateway, message)).attempts == 1


async def test_a_link_that_was_throttled_holds_up_no_other(gateway_of: OpenGateway) -> None:
    mocks = {
        "mock": {"kind": "mock", "rate_parts_per_s": 500.0, "prefixes": ["+1"]},
        "other": {"kind": "mock", "prefixes": ["+98"]},
    }
    gateway = await gateway_of({"providers": mocks}, manual=False, serve=False)
    operator = Scripted("other")
    gateway.fleet.providers = {"mock": gateway.providers["mock"], "other": operator}
    await gateway.serve()
    _stop_looking(gateway)
    client = await add_client(gateway, 10_000)
    await submitted(gateway, client, to="+989120000000")
    operator.answer(await operator.next(), Verdict.THROTTLED, retry_after_s=3600.0)
    messages = [await submitted(gateway, client) for _ in range(100)]
    for message in messages:
        assert (await final_of(gateway, message)).status == Status.DELIVERED


def _stop_looking(gateway: Gateway) -> None:
    """End what looks for lost wake-ups every 0.1 s."""
    for task in gateway._beside:
        if task.get_name() == "look after":
            task.cancel()
    gateway._beside = [task for task in gateway._beside if task.get_name() != "look after"]


async def test_a_clean_stop_waits_for_answers_and_claims_nothing_more(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    slow: dict[str, Any] = {"server": {"shutdown_s": 20.0}}
    gateway = await serve(gateway_of, operator, providers={"mock": {"window": 1}}, **slow)
    client = await add_client(gateway)
    first, second = [await submitted(gateway, client) for _ in range(2)]
    submission = await operator.next()
    closing = asyncio.create_task(gateway.close())
    await flushed(gateway)
    assert not closing.done()
    operator.accept(submission)
    await closing
    assert operator.count == 1
    gateway = await gateway_of(serve=False)
    assert (await message_of(gateway, first)).status == Status.SENT
    assert (await message_of(gateway, second)).status == Status.QUEUED
    await assert_clean(gateway)


@pytest.mark.parametrize(
    ("on_uncertain", "status"),
    [("wait", Status.UNCERTAIN), ("resend", Status.FAILED_TEMP), ("fail", Status.UNKNOWN)],
)
async def test_a_clean_stop_leaves_nothing_sending(
    gateway_of: OpenGateway, operator: Scripted, on_uncertain: str, status: Status
) -> None:
    gateway = await serve(
        gateway_of,
        operator,
        delivery={"on_uncertain": on_uncertain},
        providers={"mock": {"window": 5}},
    )
    client = await add_client(gateway)
    messages = [await submitted(gateway, client) for _ in range(10)]
    while operator.count < 4:
        await operator.next()
    await gateway.close()
    gateway = await gateway_of(serve=False)
    statuses = [(await message_of(gateway, message)).status for message in messages]
    assert statuses == [status] * 4 + [Status.QUEUED] * 6
    await assert_clean(gateway)


async def test_what_was_claimed_when_the_stop_came_was_not_sent(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    asked = asyncio.create_task(submitted(gateway, client))
    # The turn that will claim it is under way when claiming stops.
    while not gateway.allotter.links["mock"].in_flight:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await gateway.close()
    message = await asked
    assert operator.count == 0
    gateway = await gateway_of(serve=False)
    now = await message_of(gateway, message)
    assert (now.status, now.attempts) == (Status.QUEUED, 0)


VERDICTS = [*Verdict, None]


@pytest.mark.parametrize("seed", range(4))
async def test_no_place_is_ever_lost(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, seed: int
) -> None:
    chance = random.Random(seed)
    mock = {"window": 7, "rate_parts_per_s": 1000.0 * (seed % 2)}
    policy = ("wait", "resend", "fail", "wait")[seed]
    delivery = {"on_uncertain": policy, **PATIENT}
    gateway = await serve(gateway_of, operator, providers={"mock": mock}, delivery=delivery)
    clients = [await add_client(gateway, 10_000) for _ in range(4)]
    messages = []
    for index in range(40):
        text = "x" * chance.choice([1, 200, 400])
        lane = chance.choice([Lane.REGULAR, Lane.EXPRESS])
        messages.append(await submitted(gateway, clients[index % 4], text=text, lane=lane))
    left = list(messages)
    silent = []
    for step in range(2000):
        if not left:
            break
        await flushed(gateway)
        for submission in operator.held:
            verdict = chance.choice(VERDICTS)
            if verdict is None:
                silent.append(submission)
            elif verdict is Verdict.ACCEPTED:
                operator.accept(submission, f"{submission.number}-{step}")
                operator.receipt(f"{submission.number}-{step}")
            else:
                operator.answer(submission, verdict)
        operator.held.clear()
        clock.advance(chance.choice([0.1, 5, 31, 700]))
        gateway.worker.time_out()
        while silent and chance.random() < 0.5:
            operator.answer(silent.pop(), Verdict.REFUSED)
        gateway.worker.wake_soon()
        await sweep(gateway)
        left = [message for message in left if not (await message_of(gateway, message)).is_final]
    assert left == []
    assert gateway.worker.in_flight() == 0
    assert gateway.allotter.links["mock"].in_flight == 0
    assert sum(gateway.allotter._waits.values()) == 0
    for client in clients:
        account = await account_of(gateway, client)
        assert (account.held_cents, account.waiting) == (0, 0)
    await assert_clean(gateway)


async def test_an_unknown_late_answer_to_what_is_uncertain_changes_nothing(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    submission = await operator.next()
    clock.advance(31)
    gateway.worker.time_out()
    await flushed(gateway)
    before = await message_of(gateway, message)
    clock.advance(300)
    operator.answer(submission, Verdict.UNKNOWN)
    await flushed(gateway)
    assert await message_of(gateway, message) == before


async def test_what_an_operator_is_given_is_the_message(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    draft = gateway.entrance.draft(Wish(DELIVERED, "ACME", "سلام", validity_s=60))
    answer = await gateway.entrance.submit(client, draft, None)
    assert isinstance(answer, Accepted)
    given = await operator.next()
    assert given.reference.replace("-", "") == answer.message.id.hex()
    assert (given.recipient, given.sender, given.text) == (DELIVERED, "ACME", "سلام")
    assert (given.ucs2, given.parts, given.valid_s, given.attempt) == (True, 1, 60.0, 1)
