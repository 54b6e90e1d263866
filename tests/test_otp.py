"""One-time codes: 200 if and only if it was decided in time; else refused, released, and over."""

import asyncio
import random
from collections import Counter
from copy import deepcopy
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgw.admission import Accepted, KeyUse, Replay, key_use
from smsgw.clock import ManualClock
from smsgw.codes import Decided, derive
from smsgw.entrance import Wish
from smsgw.errors import (
    IdempotencyInProgress,
    InsufficientCredits,
    NoLiveCode,
    OtpUndeliverable,
    SmsgwError,
    StorageUnavailable,
    TooManyRequests,
)
from smsgw.gateway import Gateway
from smsgw.ids import number_of
from smsgw.models import (
    ANSWER_OTP_FAILED,
    ANSWER_OTP_HANDSET,
    ANSWER_OTP_OPERATOR,
    Lane,
    Message,
    Outcome,
    Reason,
    Status,
    Verdict,
)
from smsgw.otp import NumberLimits
from smsgw.providers.base import Submission, fold
from smsgw.store.base import ShardUnavailableError
from smsgw.store.sqlite import SqliteShard
from tests.conftest import OpenGateway
from tests.support import (
    Scripted,
    account_of,
    add_client,
    assert_clean,
    crash,
    final_of,
    flushed,
    serve_still,
)

CONFIRMED = {ANSWER_OTP_OPERATOR, ANSWER_OTP_HANDSET}
_numbers = count(15550000000)


@pytest.fixture
def operator() -> Scripted:
    return Scripted()


async def serve(
    gateway_of: OpenGateway,
    operator: Scripted,
    *,
    manual: bool = True,
    **overrides: dict[str, Any],
) -> Gateway:
    """A gateway whose operator does what the test says, and whose sweeper waits for the test."""
    overrides = {"server": {"shutdown_s": 0.02}, **overrides}
    gateway = await gateway_of(overrides, serve=False, manual=manual)
    gateway.fleet.providers = {"mock": operator}
    await serve_still(gateway)
    return gateway


async def ask(
    gateway: Gateway,
    client: bytes,
    *,
    to: str | None = None,
    text: str | None = None,
    key: KeyUse | None = None,
) -> Decided | Replay:
    """Ask for a code as the API does."""
    masked, _ = gateway.otp.text_for(text)
    to = to or f"+{next(_numbers)}"
    draft = gateway.entrance.draft(Wish(to, "ACME", masked, Lane.OTP))
    return await gateway.otp.send(client, draft, text, key, gateway.clock.now_ms())


def asked(*arguments: Any, **more: Any) -> "asyncio.Task[Decided | Replay]":
    return asyncio.create_task(ask(*arguments, **more))


async def result_of(task: "asyncio.Task[Decided | Replay]") -> Decided | OtpUndeliverable:
    try:
        found = await task
    except OtpUndeliverable as refusal:
        return refusal
    assert isinstance(found, Decided)
    return found


async def stored(gateway: Gateway, submission: Submission) -> Message:
    shard = gateway.shards.shards[submission.shard]
    return Message(*(await shard.store.read("get_message", submission.number))[0])


async def assert_released(gateway: Gateway, client: bytes, credits_cents: int = 1000) -> None:
    account = await account_of(gateway, client)
    assert (account.credits_cents, account.held_cents) == (credits_cents, 0)
    assert (account.charged_cents, account.waiting) == (0, 0)
    await assert_clean(gateway)


@pytest.mark.parametrize("late_ms", [-1, 0, 1, 60_000])
async def test_200_means_decided_before_the_deadline(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, late_ms: int
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await operator.next()
    clock.advance(5 + late_ms / 1000)
    operator.accept(submission)
    result = await result_of(task)
    now = await stored(gateway, submission)
    if late_ms < 0:
        assert isinstance(result, Decided)
        assert (result.answer, now.status, now.held_cents) == (ANSWER_OTP_OPERATOR, Status.SENT, 5)
    else:
        assert isinstance(result, OtpUndeliverable)
        assert result.members["submitted"] is True
        assert (now.status, now.reason) == (Status.UNKNOWN, Reason.UNCERTAIN)
        await assert_released(gateway, client)


async def test_a_process_that_slept_over_the_deadline_has_not_confirmed(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    """The answer came in time, but the turn that could decide so did not."""
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await operator.next()
    operator.accept(submission)
    clock.advance(5.001)
    assert isinstance(await result_of(task), OtpUndeliverable)
    await assert_released(gateway, client)


async def test_no_answer_until_the_deadline_is_a_refusal(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator, manual=False, otp={"deadline_ms": 30})
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await operator.next()
    result = await result_of(task)
    assert isinstance(result, OtpUndeliverable)
    assert (result.members["submitted"], result.members["reason"]) == (True, "uncertain")
    before = await stored(gateway, submission)
    operator.accept(submission, "late")
    operator.receipt("late")
    await flushed(gateway)
    assert await stored(gateway, submission) == before
    assert gateway.worker.in_flight() == gateway.allotter.links["mock"].in_flight == 0
    await assert_released(gateway, client)


@pytest.mark.parametrize(
    ("verdict", "status", "reason", "attempts"),
    [
        (Verdict.REFUSED, Status.FAILED_PERM, Reason.REJECTED_BY_OPERATOR, 1),
        (Verdict.FAILED, Status.FAILED_PERM, Reason.RETRIES_EXHAUSTED, 1),
        (Verdict.THROTTLED, Status.FAILED_PERM, Reason.RETRIES_EXHAUSTED, 1),
        (Verdict.NOT_SENT, Status.FAILED_PERM, Reason.RETRIES_EXHAUSTED, 0),
        (Verdict.UNKNOWN, Status.UNKNOWN, Reason.UNCERTAIN, 1),
    ],
)
@pytest.mark.parametrize("confirm", ["operator", "handset"])
@pytest.mark.backends("sqlite", "postgres")
async def test_every_verdict_but_one_is_a_refusal_and_is_never_tried_again(
    gateway_of: OpenGateway,
    operator: Scripted,
    clock: ManualClock,
    confirm: str,
    verdict: Verdict,
    status: Status,
    reason: Reason,
    attempts: int,
) -> None:
    gateway = await serve(gateway_of, operator, otp={"confirm": confirm})
    client = await add_client(gateway)
    key = key_use("a", "messages")
    task = asked(gateway, client, key=key)
    submission = await operator.next()
    operator.answer(submission, verdict, detail="why")
    result = await result_of(task)
    assert isinstance(result, OtpUndeliverable)
    assert result.members["submitted"] is (attempts > 0)
    assert result.members["reason"] == reason
    now = await stored(gateway, submission)
    assert (now.status, now.reason, now.attempts) == (status, reason, attempts)
    assert now.last_error == "why"
    # By then an operator that found it too much has rested.
    clock.advance(1)
    replay = await ask(gateway, client, key=key)
    assert isinstance(replay, Replay)
    assert replay.record.answer == ANSWER_OTP_FAILED
    assert operator.count == 1
    assert gateway.allotter.links["mock"].in_flight == 0
    await assert_released(gateway, client)


@pytest.mark.parametrize(
    ("word", "answer"), [("DELIVRD", ANSWER_OTP_HANDSET), ("UNDELIV", None), ("EXPIRED", None)]
)
@pytest.mark.parametrize("order", ["answer first", "receipt first"])
async def test_the_handset_decides_where_it_must_confirm(
    gateway_of: OpenGateway, operator: Scripted, word: str, answer: int | None, order: str
) -> None:
    gateway = await serve(gateway_of, operator, otp={"confirm": "handset"})
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await operator.next()
    if order == "receipt first":
        operator.receipt("1", word)
        await flushed(gateway)
    operator.accept(submission)
    if order == "answer first":
        await flushed(gateway)
        assert not task.done()
        operator.receipt("1", word)
    result = await result_of(task)
    if answer is None:
        assert isinstance(result, OtpUndeliverable)
        await assert_released(gateway, client)
    else:
        assert isinstance(result, Decided)
        assert (result.answer, result.credits_cents) == (answer, 995)
        assert (await stored(gateway, submission)).charged_cents == 5


def accept_parts(operator: Scripted, submission: Submission) -> None:
    """Accept each part under an id: "1", "2", …"""
    assert operator._sink is not None
    parts = {part: Outcome(Verdict.ACCEPTED, str(part)) for part in range(1, submission.parts + 1)}
    operator._sink.settled("mock", submission, fold(parts))


@pytest.mark.parametrize("order", ["one by one", "receipts first", "right behind", "last first"])
@pytest.mark.backends("sqlite", "postgres")
async def test_the_handset_has_a_long_code_once_it_has_all_its_parts(
    gateway_of: OpenGateway, operator: Scripted, order: str
) -> None:
    gateway = await serve(gateway_of, operator, otp={"confirm": "handset"})
    client = await add_client(gateway)
    task = asked(gateway, client, text="رمز شما {code} است. " * 7)
    submission = await operator.next()
    assert (submission.ucs2, submission.parts) == (True, 3)
    identifiers = ["3", "1", "2"] if order == "last first" else ["1", "2", "3"]
    if order == "receipts first":
        for identifier in identifiers:
            operator.receipt(identifier)
        await flushed(gateway)
    accept_parts(operator, submission)
    if order == "right behind":
        for identifier in identifiers:
            operator.receipt(identifier)
    elif order != "receipts first":
        for identifier in identifiers:
            await flushed(gateway)
            assert not task.done()
            assert (await stored(gateway, submission)).status == Status.SENDING
            # Said twice, it is still one part.
            operator.receipt(identifier)
            operator.receipt(identifier)
    result = await result_of(task)
    assert isinstance(result, Decided)
    assert (result.answer, result.credits_cents) == (ANSWER_OTP_HANDSET, 985)
    now = await stored(gateway, submission)
    assert (now.status, now.charged_cents, now.held_cents) == (Status.DELIVERED, 15, 0)
    assert now.provider_message_id == "1"
    await flushed(gateway)
    assert gateway.receipts.watchers == {}
    assert operator.cancelled == []
    await assert_clean(gateway)


@pytest.mark.backends("sqlite", "postgres")
async def test_the_first_part_that_is_not_delivered_refuses_a_long_code(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator, otp={"confirm": "handset"})
    client = await add_client(gateway)
    task = asked(gateway, client, text="{code} " * 30)
    submission = await operator.next()
    accept_parts(operator, submission)
    operator.receipt("1")
    await flushed(gateway)
    assert not task.done()
    operator.receipt("2", "UNDELIV")
    refusal = await result_of(task)
    assert isinstance(refusal, OtpUndeliverable)
    assert refusal.members["reason"] == "undelivered"
    assert (await stored(gateway, submission)).status == Status.FAILED_PERM
    # Another part may still be on its way.
    assert operator.cancelled == [(submission, "1"), (submission, "2")]
    await assert_released(gateway, client)


async def test_a_long_code_of_which_a_part_is_not_reported_in_time_is_refused(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    otp = {"confirm": "handset", "deadline_ms": 200}
    gateway = await serve(gateway_of, operator, manual=False, otp=otp)
    client = await add_client(gateway)
    task = asked(gateway, client, text="{code} " * 30)
    submission = await operator.next()
    accept_parts(operator, submission)
    operator.receipt("1")
    refusal = await result_of(task)
    assert isinstance(refusal, OtpUndeliverable)
    assert refusal.members["reason"] == "uncertain"
    assert operator.cancelled == [(submission, "1"), (submission, "2")]
    now = await stored(gateway, submission)
    operator.receipt("2")
    await flushed(gateway)
    assert await stored(gateway, submission) == now
    await assert_released(gateway, client)


LATE = ["decided too late", "no handset", "after the deadline", "after it was given up"]


@pytest.mark.parametrize("how", LATE)
async def test_what_an_operator_has_of_a_refused_code_is_taken_back(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, how: str
) -> None:
    otp: dict[str, Any] = {"confirm": "handset" if how == "no handset" else "operator"}
    if how in ("no handset", "after the deadline"):
        otp["deadline_ms"] = 30
    gateway = await serve(gateway_of, operator, manual="deadline_ms" not in otp, otp=otp)
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await operator.next()
    if how == "decided too late":
        clock.advance(5)
        operator.accept(submission, "id")
    elif how == "no handset":
        operator.accept(submission, "id")
    elif how == "after it was given up":
        operator.answer(submission, Verdict.UNKNOWN)
    result = await result_of(task)
    assert isinstance(result, OtpUndeliverable)
    now = await stored(gateway, submission)
    assert (now.status, now.reason) == (Status.UNKNOWN, Reason.UNCERTAIN)
    late = how.startswith("after")
    if late:
        assert operator.cancelled == []
        operator.accept(submission, "id")
        await flushed(gateway)
    assert operator.cancelled == [(submission, "id")]
    page = gateway.metrics.render().decode()
    assert 'smsgw_otp_cancels_total{provider="mock"} 1.0' in page
    assert ('smsgw_otp_late_after_503_total{provider="mock"} 1.0' in page) is late
    assert await stored(gateway, submission) == now
    await assert_released(gateway, client)


@pytest.mark.parametrize("how", ["confirmed", "refused", "no id", "failed on the way"])
async def test_nothing_is_taken_back_where_nothing_is_left_or_known(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, how: str
) -> None:
    otp = {"confirm": "handset" if how == "failed on the way" else "operator"}
    gateway = await serve(gateway_of, operator, otp=otp)
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await operator.next()
    if how == "confirmed":
        operator.accept(submission)
        # A contradiction that no operator should give.
        operator.accept(submission)
    elif how == "refused":
        operator.answer(submission, Verdict.REFUSED)
    elif how == "no id":
        clock.advance(5)
        operator.accept(submission, None)
    else:
        operator.accept(submission)
        operator.receipt("1", "UNDELIV")
    result = await result_of(task)
    await flushed(gateway)
    assert isinstance(result, Decided) is (how == "confirmed")
    assert operator.cancelled == []
    assert "smsgw_otp_cancels_total{" not in gateway.metrics.render().decode()


async def asked_in_two_parts(
    gateway_of: OpenGateway, operator: Scripted
) -> tuple[Gateway, bytes, "asyncio.Task[Decided | Replay]", Submission]:
    """Ask for a code whose text takes two parts, up to where the operator has it."""
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    task = asked(gateway, client, text="{code} " * 30)
    submission = await operator.next()
    assert submission.parts == 2
    return gateway, client, task, submission


async def test_the_part_of_a_refused_code_that_was_accepted_is_taken_back(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway, client, task, submission = await asked_in_two_parts(gateway_of, operator)
    parts = {1: Outcome(Verdict.ACCEPTED, "id-1"), 2: Outcome(Verdict.REFUSED)}
    assert operator._sink is not None
    operator._sink.settled("mock", submission, fold(parts))
    refusal = await result_of(task)
    assert isinstance(refusal, OtpUndeliverable)
    assert refusal.members["reason"] == "rejected_by_operator"
    assert operator.cancelled == [(submission, "id-1")]
    await assert_released(gateway, client)


@pytest.mark.parametrize(
    ("outcome", "left"),
    [
        (Outcome(Verdict.NOT_SENT), False),
        (Outcome(Verdict.NOT_SENT, answered=True), True),
        (fold({1: Outcome(Verdict.NOT_SENT), 2: Outcome(Verdict.NOT_SENT)}), False),
        (fold({1: Outcome(Verdict.NOT_SENT), 2: Outcome(Verdict.ACCEPTED, "id-2")}), True),
        (fold({1: Outcome(Verdict.NOT_SENT), 2: Outcome(Verdict.NOT_SENT, answered=True)}), True),
    ],
)
async def test_a_refusal_says_whether_bytes_of_any_part_have_left(
    gateway_of: OpenGateway, operator: Scripted, outcome: Outcome, left: bool
) -> None:
    gateway, client, task, submission = await asked_in_two_parts(gateway_of, operator)
    assert operator._sink is not None
    operator._sink.settled("mock", submission, outcome)
    refusal = await result_of(task)
    assert isinstance(refusal, OtpUndeliverable)
    assert refusal.members["submitted"] is left
    now = await stored(gateway, submission)
    assert (now.status, now.attempts) == (Status.FAILED_PERM, int(left))
    await assert_released(gateway, client)


async def test_each_part_of_a_refused_code_is_taken_back_once(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway, client, task, submission = await asked_in_two_parts(gateway_of, operator)
    assert operator._sink is not None
    first, second = Outcome(Verdict.ACCEPTED, "id-1"), Outcome(Verdict.ACCEPTED, "id-2")
    operator._sink.settled(
        "mock", submission, fold({1: first, 2: Outcome(Verdict.UNKNOWN, timed_out=True)})
    )
    assert isinstance(await result_of(task), OtpUndeliverable)
    assert operator.cancelled == [(submission, "id-1")]
    for _ in range(2):
        operator._sink.settled("mock", submission, fold({1: first, 2: second}))
        await flushed(gateway)
    assert operator.cancelled == [(submission, "id-1"), (submission, "id-2")]
    await assert_released(gateway, client)


@pytest.mark.parametrize("capture_on", ["delivered", "sent"])
@pytest.mark.parametrize("confirm", ["operator", "handset"])
async def test_an_operator_that_answers_for_the_handset_confirms_by_it_at_once(
    gateway_of: OpenGateway, operator: Scripted, confirm: str, capture_on: str
) -> None:
    gateway = await serve(
        gateway_of, operator, otp={"confirm": confirm}, billing={"capture_on": capture_on}
    )
    client = await add_client(gateway)
    key = key_use("a", "messages")
    task = asked(gateway, client, key=key)
    submission = await operator.next()
    operator.answer(submission, Verdict.ACCEPTED, provider_message_id="1", handset=True)
    result = await result_of(task)
    assert isinstance(result, Decided)
    assert (result.answer, result.credits_cents) == (ANSWER_OTP_HANDSET, 995)
    now = await stored(gateway, submission)
    assert (now.status, now.charged_cents, now.held_cents) == (Status.DELIVERED, 5, 0)
    replay = await ask(gateway, client, key=key)
    assert isinstance(replay, Replay)
    assert replay.record.answer == ANSWER_OTP_HANDSET
    # What is reported afterwards is no more than an event.
    operator.receipt("1", "UNDELIV")
    await flushed(gateway)
    assert await stored(gateway, submission) == now
    assert gateway.receipts.watchers == {}
    await assert_clean(gateway)


async def test_an_operator_that_answers_for_the_handset_too_late_has_not_confirmed(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, otp={"confirm": "handset"})
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await operator.next()
    clock.advance(5)
    operator.answer(submission, Verdict.ACCEPTED, provider_message_id="1", handset=True)
    assert isinstance(await result_of(task), OtpUndeliverable)
    assert (await stored(gateway, submission)).status == Status.UNKNOWN
    await assert_released(gateway, client)


async def test_a_word_that_decides_nothing_does_not_end_the_wait_for_the_handset(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator, otp={"confirm": "handset"})
    client = await add_client(gateway)
    task = asked(gateway, client)
    operator.accept(await operator.next())
    for word in ("ENROUTE", "ACCEPTD"):
        operator.receipt("1", word)
        await flushed(gateway)
        assert not task.done()
    operator.receipt("1", "DELIVRD")
    result = await result_of(task)
    assert isinstance(result, Decided)
    assert result.answer == ANSWER_OTP_HANDSET


async def test_a_handset_that_confirms_after_the_deadline_changes_nothing(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, otp={"confirm": "handset"})
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await operator.next()
    operator.accept(submission)
    await flushed(gateway)
    clock.advance(5)
    operator.receipt("1")
    assert isinstance(await result_of(task), OtpUndeliverable)
    assert (await stored(gateway, submission)).status == Status.UNKNOWN
    await assert_released(gateway, client)


@pytest.mark.parametrize("capture_on", ["delivered", "sent"])
async def test_a_confirmed_code_is_captured_as_the_billing_rule_says(
    gateway_of: OpenGateway, operator: Scripted, capture_on: str
) -> None:
    gateway = await serve(gateway_of, operator, billing={"capture_on": capture_on})
    client = await add_client(gateway)
    task = asked(gateway, client)
    submission = await operator.next()
    operator.accept(submission)
    assert isinstance(await result_of(task), Decided)
    charged = 5 if capture_on == "sent" else 0
    assert (await stored(gateway, submission)).charged_cents == charged
    operator.receipt("1", "UNDELIV")
    await flushed(gateway)
    now = await stored(gateway, submission)
    assert (now.status, now.charged_cents, now.held_cents) == (Status.FAILED_PERM, charged, 0)


@pytest.mark.parametrize("confirm", ["operator", "handset"])
async def test_answer_state_and_money_never_contradict_each_other(
    gateway_of: OpenGateway, operator: Scripted, confirm: str
) -> None:
    """Answers and receipts at any moment around the deadline, many at once, with keys."""
    gateway = await serve(
        gateway_of, operator, manual=False, otp={"deadline_ms": 200, "confirm": confirm}
    )
    chance = random.Random(7)
    loop = asyncio.get_running_loop()
    clients = [await add_client(gateway, 10_000) for _ in range(120)]
    keys = [key_use(str(index), "messages") for index in range(120)]
    tasks = [asked(gateway, client, key=key) for client, key in zip(clients, keys, strict=True)]
    last = loop.create_future()
    for index in range(120):
        submission = await operator.next()
        identifier = f"id {submission.number}"
        verdict = chance.choice([*Verdict, Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.ACCEPTED])
        answer_s, receipt_s = chance.uniform(0, 0.25), chance.uniform(0, 0.25)
        if verdict is Verdict.ACCEPTED:
            loop.call_later(answer_s, operator.accept, submission, identifier)
            if chance.random() < 0.8:
                word = chance.choice(["DELIVRD", "DELIVRD", "UNDELIV", "ENROUTE"])
                loop.call_later(receipt_s, operator.receipt, identifier, word)
        else:
            loop.call_later(answer_s, operator.answer, submission, verdict)
        if index == 119:
            loop.call_later(0.3, last.set_result, None)
    results = [await result_of(task) for task in tasks]
    await last
    await flushed(gateway)
    told = Counter(type(result).__name__ for result in results)
    assert len(told) == 2
    for client, key, result in zip(clients, keys, results, strict=True):
        account = await account_of(gateway, client)
        replay = await ask(gateway, client, key=key)
        assert isinstance(replay, Replay)
        number = replay.record.subject
        shard = gateway.shards.of_client(client)
        now = Message(*(await shard.store.read("get_message", number))[0])
        if isinstance(result, Decided):
            assert replay.record.answer == result.answer
            assert result.answer in CONFIRMED
            # It may have turned out undelivered afterwards, where the operator's word counted.
            assert now.status in {Status.SENT, Status.DELIVERED, Status.FAILED_PERM}
            if confirm == "handset":
                assert (now.status, account.charged_cents) == (Status.DELIVERED, 5)
            if now.status == Status.FAILED_PERM:
                assert now.reason == Reason.UNDELIVERED
        else:
            assert replay.record.answer == ANSWER_OTP_FAILED
            assert now.status in {Status.FAILED_PERM, Status.UNKNOWN}
            assert (account.credits_cents, account.charged_cents) == (10_000, 0)
        assert account.held_cents == (5 if now.status == Status.SENT else 0)
    assert operator.count == 120
    assert gateway.allotter.links["mock"].in_flight == 0
    await assert_clean(gateway)


async def test_a_caller_who_hangs_up_changes_nothing(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    key = key_use("a", "messages")
    task = asked(gateway, client, key=key)
    submission = await operator.next()
    with pytest.raises(IdempotencyInProgress):
        await ask(gateway, client, key=key)
    task.cancel()
    await asyncio.wait([task])
    operator.accept(submission)
    await gateway.otp.drain()
    assert (await stored(gateway, submission)).status == Status.SENT
    replay = await ask(gateway, client, key=key)
    assert isinstance(replay, Replay)
    assert replay.record.answer == ANSWER_OTP_OPERATOR
    assert operator.count == 1


async def test_no_task_and_no_watcher_is_left_behind(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator, otp={"confirm": "handset"})
    client = await add_client(gateway, 100_000)
    before = len(asyncio.all_tasks())
    chance = random.Random(3)
    for _ in range(10):
        tasks = [asked(gateway, client) for _ in range(20)]
        for index in range(20):
            submission = await operator.next()
            if chance.random() < 0.5:
                tasks[index].cancel()
            if chance.random() < 0.5:
                operator.accept(submission, f"{submission.number}")
                operator.receipt(f"{submission.number}")
            else:
                operator.answer(submission, Verdict.REFUSED)
        await asyncio.wait(tasks)
        for task in tasks:
            _ = task.cancelled() or task.exception()
        await gateway.otp.drain()
    await flushed(gateway)
    assert len(asyncio.all_tasks()) == before
    assert gateway.receipts.watchers == {}
    assert operator.count == 200
    assert gateway.allotter.links["mock"].in_flight == 0
    await assert_clean(gateway)


async def test_after_a_crash_what_was_open_is_closed_and_released(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    key = key_use("a", "messages")
    task = asked(gateway, client, key=key)
    submission = await operator.next()
    await crash(gateway)
    task.cancel()
    gateway = await serve(gateway_of, operator)
    now = await stored(gateway, submission)
    assert (now.status, now.reason) == (Status.FAILED_PERM, Reason.INTERRUPTED)
    replay = await ask(gateway, client, key=key)
    assert isinstance(replay, Replay)
    assert (replay.record.answer, replay.record.credits_cents) == (ANSWER_OTP_FAILED, 1000)
    assert operator.count == 1
    await assert_released(gateway, client)
    # An answer that was under way to the old process finds it final.
    operator.accept(submission, "late")
    operator.receipt("late")
    await flushed(gateway)
    assert await stored(gateway, submission) == now


async def test_a_hold_ends_also_when_the_disk_failed_at_the_decision(
    gateway_of: OpenGateway,
    operator: Scripted,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    key = key_use("a", "messages")
    task = asked(gateway, client, key=key)
    submission = await operator.next()

    async def fail(*_: object) -> None:
        raise ShardUnavailableError("the disk is full")

    monkeypatch.setattr(SqliteShard, "turn", fail)
    operator.accept(submission)
    with pytest.raises(StorageUnavailable) as refused:
        await task
    assert refused.value.members["outcome"] == "unknown"
    clock.advance(6)
    monkeypatch.undo()
    now = await final_of(gateway, await stored(gateway, submission))
    assert (now.status, now.held_cents) == (Status.UNKNOWN, 0)
    replay = await ask(gateway, client, key=key)
    assert isinstance(replay, Replay)
    assert replay.record.answer == ANSWER_OTP_FAILED
    await assert_released(gateway, client)


async def test_a_code_waits_for_a_place_for_half_of_its_deadline(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    mock = {"window": 2}
    gateway = await serve(gateway_of, operator, providers={"mock": mock})
    client = await add_client(gateway)
    tasks = [asked(gateway, client) for _ in range(2)]
    held = [await operator.next() for _ in range(2)]
    waiting = asked(gateway, client)
    while not gateway.allotter.links["mock"].otp_waiting:  # noqa: ASYNC110  a turn of the loop
        await asyncio.sleep(0)
    clock.advance(2.6)
    refusal = await result_of(waiting)
    assert isinstance(refusal, OtpUndeliverable)
    assert (refusal.members["submitted"], operator.count) == (False, 2)
    for submission in held:
        operator.accept(submission, f"{submission.number}")
    assert all([isinstance(await result_of(task), Decided) for task in tasks])
    assert operator.count == 2


async def throttled(gateway: Gateway, operator: Scripted, client: bytes, pause_s: float) -> Message:
    """A message that its operator has found too much, and whose link rests."""
    draft = gateway.entrance.draft(Wish(f"+{next(_numbers)}", "ACME", "hello"))
    accepted = await gateway.entrance.submit(client, draft, None)
    assert isinstance(accepted, Accepted)
    operator.answer(await operator.next(), Verdict.THROTTLED, retry_after_s=pause_s)
    await flushed(gateway)
    return accepted.message


async def waits(gateway: Gateway) -> None:
    while not gateway.allotter.links["mock"].otp_waiting:  # noqa: ASYNC110  a turn of the loop
        await asyncio.sleep(0)


async def test_a_code_waits_while_its_operator_rests_and_goes_before_the_queue(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await throttled(gateway, operator, client, 1.0)
    task = asked(gateway, client)
    await waits(gateway)
    clock.advance(1.0)
    gateway.worker.wake_soon()
    submission = await operator.next()
    assert (submission.otp, operator.count) == (True, 2)
    again = await operator.next()
    assert (again.number, again.attempt, again.otp) == (message.number, 1, False)
    operator.accept(submission)
    assert isinstance(await result_of(task), Decided)
    assert gateway.allotter.links["mock"].otp_waiting == 0


async def test_a_code_does_not_wait_for_an_operator_that_rests_for_too_long(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    await throttled(gateway, operator, client, 2.6)
    refusal = await result_of(asked(gateway, client))
    assert isinstance(refusal, OtpUndeliverable)
    assert refusal.members["submitted"] is False
    assert operator.count == 1


async def test_the_queue_goes_on_when_a_code_that_it_let_go_first_is_refused(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator)
    message = await throttled(gateway, operator, await add_client(gateway), 1.0)
    task = asked(gateway, await add_client(gateway, 0))
    await waits(gateway)
    clock.advance(1.0)
    with pytest.raises(InsufficientCredits):
        await task
    assert (await operator.next()).number == message.number


@pytest.mark.parametrize("what", ["all", "mock", "unusable"])
async def test_what_cannot_be_sent_at_once_is_refused_at_once(
    gateway_of: OpenGateway, operator: Scripted, what: str
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    if what == "unusable":
        gateway.allotter.links["mock"].usable = False
    else:
        await gateway.pause("" if what == "all" else what, paused=True)
    refusal = await result_of(asked(gateway, client))
    assert isinstance(refusal, OtpUndeliverable)
    message_id = bytes.fromhex(refusal.members["message_id"].replace("-", ""))
    shard = gateway.shards.of_message(message_id)
    now = Message(*(await shard.store.read("get_message", number_of(message_id)))[0])
    assert (now.status, now.attempts) == (Status.FAILED_PERM, 0)
    assert operator.count == 0
    await assert_released(gateway, client)


async def test_the_operator_gets_the_code_and_the_store_does_not(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    for text, shown in ((None, "Your verification code is ******"), ("<{code}>", "<******>")):
        task = asked(gateway, client, text=text)
        submission = await operator.next()
        operator.accept(submission)
        result = await result_of(task)
        assert isinstance(result, Decided)
        assert result.code is not None
        assert submission.text == shown.replace("******", result.code)
        assert (await stored(gateway, submission)).text == shown
    task = asked(gateway, client, text="PIN 123456, call 12")
    submission = await operator.next()
    operator.accept(submission)
    result = await result_of(task)
    assert isinstance(result, Decided)
    assert (submission.text, result.code) == ("PIN 123456, call 12", None)
    assert (await stored(gateway, submission)).text == "PIN ******, call 12"


async def test_the_operator_is_told_how_long_it_may_try(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    masked, _ = gateway.otp.text_for(None)
    draft = gateway.entrance.draft(Wish("+15550001111", "ACME", masked, Lane.OTP))
    arrived_ms = clock.now_ms()
    clock.advance(2)
    task = asyncio.create_task(gateway.otp.send(client, draft, None, None, arrived_ms))
    submission = await operator.next()
    assert submission.valid_s == 3.0
    operator.accept(submission)
    await task


async def _confirmed(gateway: Gateway, operator: Scripted, client: bytes, to: str) -> str:
    task = asked(gateway, client, to=to)
    operator.accept(await operator.next())
    result = await result_of(task)
    assert isinstance(result, Decided)
    assert result.code is not None
    return result.code


def _wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06d}"


async def test_tries_are_counted_before_they_are_compared(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    to = "+15550001111"
    code = await _confirmed(gateway, operator, client, to)
    digits = int(to[1:])
    answers = await asyncio.gather(
        *(gateway.otp.verify(client, digits, _wrong(code)) for _ in range(12)),
        return_exceptions=True,
    )
    tries = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert [(verified, left) for verified, _, left in tries] == [
        (False, left) for left in (4, 3, 2, 1, 0)
    ]
    assert [type(answer) for answer in answers if isinstance(answer, BaseException)] == (
        [NoLiveCode] * 7
    )
    with pytest.raises(NoLiveCode):
        await gateway.otp.verify(client, digits, code)


async def test_tries_and_uses_survive_a_crash(gateway_of: OpenGateway, operator: Scripted) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    used, tried = await _confirmed(gateway, operator, client, "+15550001111"), ""
    assert (await gateway.otp.verify(client, 15550001111, used))[0]
    tried = await _confirmed(gateway, operator, client, "+15550002222")
    for _ in range(4):
        await gateway.otp.verify(client, 15550002222, _wrong(tried))
    await crash(gateway)
    gateway = await serve(gateway_of, operator)
    with pytest.raises(NoLiveCode):
        await gateway.otp.verify(client, 15550001111, used)
    verified, _, left = await gateway.otp.verify(client, 15550002222, tried)
    assert (verified, left) == (True, 0)


async def test_a_code_is_used_once_however_many_try_at_once(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    code = await _confirmed(gateway, operator, client, "+15550001111")
    answers = await asyncio.gather(
        *(gateway.otp.verify(client, 15550001111, code) for _ in range(5)), return_exceptions=True
    )
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1


async def test_a_code_is_dead_once_its_time_is_over(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, otp={"valid_s": 100.0})
    client = await add_client(gateway)
    code = await _confirmed(gateway, operator, client, "+15550001111")
    clock.advance(99.999)
    assert not (await gateway.otp.verify(client, 15550001111, _wrong(code)))[0]
    clock.advance(0.001)
    with pytest.raises(NoLiveCode):
        await gateway.otp.verify(client, 15550001111, code)


@pytest.mark.parametrize("how", ["refused", "late"])
async def test_a_refused_code_is_dead(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, how: str
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    task = asked(gateway, client, to="+15550001111")
    submission = await operator.next()
    if how == "refused":
        operator.answer(submission, Verdict.REFUSED)
    else:
        clock.advance(6)
        operator.accept(submission)
        operator.receipt("1")
    assert isinstance(await result_of(task), OtpUndeliverable)
    code = submission.text.rsplit(" ", 1)[1]
    with pytest.raises(NoLiveCode):
        await gateway.otp.verify(client, 15550001111, code)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32), st.integers(4, 10))
def test_a_code_is_derived_the_same_every_time(message: bytes, key: bytes, digits: int) -> None:
    code = derive(key, message, digits)
    assert len(code) == digits
    assert code.isdecimal()
    assert derive(key, message, digits) == code
    assert derive(key[::-1] + b"x", message, digits) != code or digits < 8


@pytest.mark.parametrize("position", range(4))
def test_every_digit_is_as_likely_as_any_other(position: int) -> None:
    key = bytes(32)
    digits = Counter(derive(key, index.to_bytes(16, "big"), 4)[position] for index in range(20_000))
    squares = sum((digits[str(digit)] - 2000) ** 2 / 2000 for digit in range(10))
    # Chi-square with nine degrees of freedom: beyond 27.9 once in a thousand.
    assert squares < 27.9


def test_values_of_the_last_incomplete_stretch_are_drawn_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 10**10
    first_unfair = (1 << 64) // limit * limit
    draws = [first_unfair, (1 << 64) - 1, first_unfair - 1]
    monkeypatch.setattr(
        "smsgw.codes.hmac.digest", lambda *_: draws.pop(0).to_bytes(8, "big") + bytes(24)
    )
    assert derive(b"key", b"message", 10) == "9999999999"
    assert draws == []


@given(
    st.integers(0, 40),
    st.integers(0, 100),
    st.integers(0, 4),
    st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(["send", "send", "forgive"])), max_size=30
    ),
)
def test_number_limits_refuse_exactly_what_is_too_soon_or_too_much(
    interval_s: int, window_s: int, window_max: int, steps: list[tuple[int, str]]
) -> None:
    limits = NumberLimits(interval_s, window_s, window_max)
    sent: list[int] = []
    now_ms = 1_780_000_000_000
    for wait_s, what in steps:
        now_ms += wait_s * 1000
        if what == "forgive" and sent:
            limits.forgive(1, sent[-1])
            sent.pop()
        refusal = limits.refuse(1, now_ms)
        recent = [at_ms for at_ms in sent if at_ms > now_ms - window_s * 1000]
        soon = bool(interval_s and sent and sent[-1] + interval_s * 1000 > now_ms)
        much = bool(window_max and window_s and len(recent) >= window_max)
        assert (refusal is not None) == (soon or much)
        if refusal is None:
            limits.note(1, now_ms)
            sent.append(now_ms)
        else:
            then_ms = now_ms + round((refusal.retry_after_s or 0) * 1000)
            assert deepcopy(limits).refuse(1, then_ms) is None
        assert limits.refuse(2, now_ms) is None


async def test_number_limits_count_over_clients_and_restarts_but_not_what_did_not_leave(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    limited: dict[str, Any] = {
        "otp": {"number_interval_s": 30.0, "number_window_s": 600.0, "number_window_max": 2}
    }
    gateway = await serve(gateway_of, operator, **limited)
    clients = [await add_client(gateway) for _ in range(2)]
    to = "+15550001111"
    await gateway.pause("", paused=True)
    assert isinstance(await result_of(asked(gateway, clients[0], to=to)), OtpUndeliverable)
    await gateway.pause("", paused=False)
    await _confirmed(gateway, operator, clients[0], to)
    with pytest.raises(TooManyRequests) as refused:
        await ask(gateway, clients[1], to=to)
    assert refused.value.retry_after_s == 30.0
    await crash(gateway)
    gateway = await serve(gateway_of, operator, **limited)
    clock.advance(29)
    with pytest.raises(TooManyRequests):
        await ask(gateway, clients[1], to=to)
    clock.advance(1)
    await _confirmed(gateway, operator, clients[1], to)
    clock.advance(31)
    with pytest.raises(TooManyRequests) as refused:
        await ask(gateway, clients[0], to=to)
    assert refused.value.retry_after_s == 600.0 - 61
    assert operator.count == 2
    assert (await account_of(gateway, clients[0])).held_cents == 5
    await assert_clean(gateway)


async def test_a_key_replays_whatever_the_limits_say(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator, otp={"number_interval_s": 30.0})
    client = await add_client(gateway)
    key = key_use("a", "messages")
    task = asked(gateway, client, to="+15550001111", key=key)
    operator.accept(await operator.next())
    assert isinstance(await result_of(task), Decided)
    for _ in range(2):
        assert isinstance(await ask(gateway, client, to="+15550001111", key=key), Replay)
    with pytest.raises(TooManyRequests):
        await ask(gateway, client, to="+15550001111", key=key_use("b", "messages"))
    assert operator.count == 1


async def test_a_stop_closes_every_open_code(gateway_of: OpenGateway, operator: Scripted) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    tasks = [asked(gateway, client) for _ in range(3)]
    held = [await operator.next() for _ in range(3)]
    await gateway.close()
    assert all([isinstance(await result_of(task), OtpUndeliverable) for task in tasks])
    with pytest.raises(SmsgwError):
        await ask(gateway, client)
    gateway = await gateway_of(serve=False)
    for submission in held:
        assert (await stored(gateway, submission)).status == Status.UNKNOWN
    await assert_released(gateway, client)
