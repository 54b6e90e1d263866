"""Messages taken part by part: any order of answers and receipts comes to the right end."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from smsgw import fleet, lifecycle, parts
from smsgw.admission import Accepted
from smsgw.clock import ManualClock
from smsgw.gateway import Gateway
from smsgw.models import EntryKind, Message, Outcome, Reason, Status, Verdict
from smsgw.providers.base import Submission, fold
from smsgw.turn import Turn
from tests.conftest import OpenGateway
from tests.records import NOW_MS, RULES, a_message, a_turn, an_account
from tests.support import (
    Scripted,
    account_of,
    add_client,
    assert_clean,
    crash,
    final_of,
    flushed,
    message_of,
    send,
    serve_still,
    sweep,
)

BACKENDS = ("sqlite", "postgres")
S, V = Status, Verdict
SIZE = 3
COST_CENTS = 15
WORDS = {
    "DELIVRD": S.DELIVERED,
    "UNDELIV": S.FAILED_PERM,
    "EXPIRED": S.EXPIRED,
    "ENROUTE": None,
}
WHY = {S.FAILED_PERM: Reason.UNDELIVERED, S.EXPIRED: Reason.EXPIRED_BY_OPERATOR}
# Which verdict of several counts, the strongest first.
STRENGTH = [V.REFUSED, V.UNKNOWN, V.FAILED, V.THROTTLED, V.NOT_SENT, V.ACCEPTED]


@dataclass
class Book:
    """What a message of three parts has to come to, in the plainest words."""

    attempts: int = 0
    accepted: set[int] = field(default_factory=set)
    delivered: set[int] = field(default_factory=set)
    status: Status = S.QUEUED
    reason: Reason | None = None
    was_sent: bool = False

    @property
    def is_final(self) -> bool:
        return self.status >= S.DELIVERED

    def end(self, status: Status, reason: Reason | None) -> None:
        self.status, self.reason = status, reason

    def answers(self, verdicts: dict[int, Verdict]) -> None:
        self.accepted |= {part for part, verdict in verdicts.items() if verdict is V.ACCEPTED}
        worst = min(verdicts.values(), key=STRENGTH.index)
        if worst is V.REFUSED:
            self.end(S.FAILED_PERM, Reason.REJECTED_BY_OPERATOR)
        elif worst is V.UNKNOWN:
            self.status = S.UNCERTAIN
        elif worst is V.FAILED and self.attempts == RULES.attempts_max:
            self.end(S.FAILED_PERM, Reason.RETRIES_EXHAUSTED)
        elif worst is V.FAILED:
            self.status = S.FAILED_TEMP
        elif worst is V.ACCEPTED:
            self.status, self.was_sent = S.SENT, True
            self.look()
        else:
            self.attempts -= 1
            self.status = S.QUEUED

    def receipt(self, part: int, word: str) -> None:
        status = WORDS[word]
        if self.is_final or status is None or part in self.delivered:
            return
        if status is S.DELIVERED:
            self.delivered.add(part)
            self.look()
        else:
            self.end(status, WHY[status])

    def look(self) -> None:
        if len(self.delivered) == len(self.accepted) == SIZE:
            self.end(S.DELIVERED, None)
            self.was_sent = True


def outcome_of(verdicts: dict[int, Verdict]) -> Outcome:
    return fold(
        {
            part: Outcome(verdict, f"id-{part}" if verdict is V.ACCEPTED else None)
            for part, verdict in verdicts.items()
        }
    )


def kinds_of(turn: Turn) -> Counter[EntryKind]:
    """How many ledger entries of each kind were written."""
    return Counter(EntryKind(entry[2]) for entry in turn.entries)


@pytest.mark.parametrize("on_sent", [False, True], ids=["capture on delivered", "capture on sent"])
@given(data=st.data())
def test_any_order_of_answers_and_receipts_comes_to_the_right_end(
    on_sent: bool, data: st.DataObject
) -> None:
    rules = replace(RULES, capture_on_sent=on_sent)
    message = a_message(
        parts=SIZE, cost_cents=COST_CENTS, held_cents=COST_CENTS, expires_at_ms=NOW_MS + 10**10
    )
    account = an_account(held_cents=COST_CENTS, waiting=1)
    turn, book = a_turn(account, message), Book()
    asked: list[int] = []
    for _ in range(data.draw(st.integers(1, 25))):
        if message.status == S.FAILED_TEMP:
            assert message.due_at_ms is not None
            turn.now_ms = message.due_at_ms
            assert lifecycle.promote(turn, message)
        if message.status == S.QUEUED:
            turn.dequeue(message)
            lifecycle.claim(turn, message, "op")
            book.attempts += 1
            book.status = S.SENDING
            # What the operator is given: only what nobody has accepted.
            asked = [part for part in range(1, SIZE + 1) if part not in book.accepted]
            assert set(turn.parts.get(message.number, ())) == book.accepted
        steps = []
        if message.status == S.SENDING or (message.status == S.UNCERTAIN and asked):
            steps.append("answer")
        if book.accepted:
            steps.append("receipt")
        if not steps:
            break
        if data.draw(st.sampled_from(steps)) == "answer":
            verdict = st.sampled_from([V.ACCEPTED, V.ACCEPTED, *STRENGTH])
            verdicts = {
                # A late answer takes nothing back that was accepted in time.
                part: V.ACCEPTED if part in book.accepted else data.draw(verdict)
                for part in asked
            }
            late = book.status == S.UNCERTAIN
            attempt = message.attempts
            lifecycle.settle(turn, message, attempt, outcome_of(verdicts), rules)
            if not (late and min(verdicts.values(), key=STRENGTH.index) is V.UNKNOWN):
                book.answers(verdicts)
            else:
                book.accepted |= {p for p, verdict in verdicts.items() if verdict is V.ACCEPTED}
        else:
            part = data.draw(st.sampled_from(sorted(book.accepted)))
            word = data.draw(st.sampled_from(["DELIVRD", "DELIVRD", *WORDS]))
            lifecycle.receive(turn, message, word, None, f"id-{part}", rules, part)
            book.receipt(part, word)
        assert message.status == book.status
        if book.is_final:
            assert message.reason == book.reason
        paid = book.was_sent if on_sent else book.status is S.DELIVERED
        assert message.charged_cents == account.charged_cents == (COST_CENTS if paid else 0)
        held = 0 if paid or book.is_final else COST_CENTS
        assert message.held_cents == account.held_cents == held
        kinds = kinds_of(turn)
        assert kinds[EntryKind.CAPTURE] == int(paid)
        assert kinds[EntryKind.RELEASE] == int(book.is_final and not paid)
        assert account.waiting == int(message.status in (S.QUEUED, S.FAILED_TEMP))
    event(str(book.status))


@given(st.dictionaries(st.integers(1, 5), st.sampled_from(STRENGTH), min_size=1))
def test_what_several_parts_come_to_is_the_worst_of_them(verdicts: dict[int, Verdict]) -> None:
    outcome = outcome_of(verdicts)
    assert outcome.verdict is min(verdicts.values(), key=STRENGTH.index)
    assert outcome.parts is not None
    assert {part: one.verdict for part, one in outcome.parts.items()} == verdicts


def test_a_message_is_known_by_the_id_of_its_first_part() -> None:
    message = a_message(parts=2, status=int(S.SENDING), attempts=1, provider="op")
    turn = a_turn(an_account(held_cents=5), message)
    lifecycle.settle(turn, message, 1, outcome_of({2: V.ACCEPTED, 1: V.ACCEPTED}), RULES)
    assert (message.status, message.provider_message_id) == (S.SENT, "id-1")


def test_a_receipt_of_a_part_that_ended_is_told_once() -> None:
    message = a_message(parts=2, status=int(S.SENDING), attempts=1, provider="op")
    turn = a_turn(an_account(held_cents=5), message)
    lifecycle.settle(turn, message, 1, outcome_of({1: V.ACCEPTED, 2: V.ACCEPTED}), RULES)
    assert parts.report(turn, message, 1, S.DELIVERED) is None
    assert parts.report(turn, message, 1, S.FAILED_PERM) is None
    assert parts.report(turn, message, 3, S.FAILED_PERM) is None
    assert parts.report(turn, message, 2, S.DELIVERED) is S.DELIVERED


@pytest.mark.parametrize("word", ["UNDELIV", "DELIVRD"])
def test_a_receipt_of_a_part_that_is_not_under_way_is_an_event(word: str) -> None:
    message = a_message(parts=2, status=int(S.SENDING), attempts=2, provider="op")
    turn = a_turn(an_account(held_cents=5), message)
    # The answer to the first attempt was late, and told its id; the second has none so far.
    lifecycle.receive(turn, message, word, None, "id-1", RULES, 1)
    assert message.status == S.SENDING
    assert events_of(turn) == [word]
    lifecycle.settle(turn, message, 2, outcome_of({1: V.ACCEPTED, 2: V.ACCEPTED}), RULES)
    for _ in range(2):
        lifecycle.receive(turn, message, "DELIVRD", None, "id-1", RULES, 1)
    assert message.status == S.SENT
    assert events_of(turn) == [word, "DELIVRD"]


def events_of(turn: Turn) -> list[str]:
    """What was written down beside messages about receipts."""
    return [
        parameters[3]
        for name, parameters in turn.writes
        if name == "event_add" and parameters[2] == "receipt"
    ]


# The same through a whole gateway, on every kind of store.


async def serve(gateway_of: OpenGateway, **delivery: object) -> tuple[Gateway, Scripted]:
    """A gateway whose operator does what the test says, and whose sweeper waits for the test."""
    operator = Scripted()
    gateway = await gateway_of(
        {"server": {"shutdown_s": 0.02}, "delivery": {"retry_base_s": 0.0, **delivery}},
        serve=False,
    )
    gateway.fleet.providers = {"mock": operator}
    await serve_still(gateway)
    return gateway, operator


def answer(operator: Scripted, submission: Submission, **verdicts: Verdict) -> None:
    """Answer each part of a submission; ``p2=V.FAILED`` is about the second."""
    outcomes = outcome_of({int(name[1:]): verdict for name, verdict in verdicts.items()})
    assert operator._sink is not None
    operator._sink.settled("mock", submission, outcomes)


async def three_parts(gateway: Gateway, client: bytes) -> Message:
    sent = await send(gateway, client, text="x" * 400)
    assert isinstance(sent, Accepted)
    assert sent.message.parts == SIZE
    return sent.message


async def retried(gateway: Gateway, clock: ManualClock, operator: Scripted) -> Submission:
    """The next attempt, once its time has come."""
    await flushed(gateway)
    clock.advance(1)
    await sweep(gateway)
    return await operator.next()


async def parts_of(gateway: Gateway, message: Message) -> list[tuple[int, int]]:
    """Whose parts the operator's ids are: message and part."""
    shard = gateway.shards.of_message(message.id)
    found: list[tuple[int, int]] = []
    for part in range(1, SIZE + 1):
        for number, _, _, which in await shard.store.read("messages_of_provider_id", f"id-{part}"):
            if which:
                found.append((number, which))
    return found


async def test_a_retry_sends_the_parts_that_were_not_accepted(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, operator = await serve(gateway_of)
    client = await add_client(gateway)
    message = await three_parts(gateway, client)
    first = await operator.next()
    assert first.accepted_parts == frozenset()
    answer(operator, first, p1=V.ACCEPTED, p2=V.FAILED, p3=V.FAILED)
    second = await retried(gateway, clock, operator)
    assert second.accepted_parts == {1}
    answer(operator, second, p2=V.ACCEPTED, p3=V.FAILED)
    third = await retried(gateway, clock, operator)
    assert third.accepted_parts == {1, 2}
    # A receipt of one part says nothing of the others, whenever it comes.
    operator.receipt("id-1")
    answer(operator, third, p3=V.ACCEPTED)
    operator.receipt("id-3")
    await flushed(gateway)
    assert (await message_of(gateway, message)).status == S.SENT
    assert await parts_of(gateway, message) == [(message.number, part) for part in (1, 2, 3)]
    operator.receipt("id-2")
    done = await final_of(gateway, message)
    assert (done.status, done.charged_cents, done.attempts) == (S.DELIVERED, COST_CENTS, 3)
    assert done.provider_message_id == "id-1"
    assert (await account_of(gateway, client)).held_cents == 0
    await assert_clean(gateway)


async def test_the_first_part_that_is_not_delivered_ends_the_message(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, operator = await serve(gateway_of)
    client = await add_client(gateway)
    message = await three_parts(gateway, client)
    answer(operator, await operator.next(), p1=V.ACCEPTED, p2=V.FAILED, p3=V.ACCEPTED)
    await flushed(gateway)
    operator.receipt("id-3", "UNDELIV")
    done = await final_of(gateway, message)
    assert (done.status, done.charged_cents, done.held_cents) == (S.FAILED_PERM, 0, 0)
    clock.advance(100)
    await sweep(gateway)
    assert operator.count == 1, "what has failed is not tried again"
    await assert_clean(gateway)


def test_only_a_part_in_doubt_adopts_an_id() -> None:
    message = a_message(parts=2, status=int(S.UNCERTAIN), attempts=1, provider="op")
    turn = a_turn(an_account(held_cents=5), message)
    assert [parts.adopt(turn, message, one) for one in ("a", "b", "c")] == [1, 2, None]
    assert parts.adopt(turn, message, "b") == 2, "that part has it already"
    whole = a_message(status=int(S.UNCERTAIN), attempts=1, provider="op")
    assert parts.adopt(turn, whole, "a") == 0
    for status in set(S) - {S.UNCERTAIN}:
        whole.status = message.status = int(status)
        assert parts.adopt(turn, whole, "a") is None
        assert parts.adopt(turn, message, "a") is None


def test_where_an_operator_reports_on_whole_messages_an_id_is_that_of_the_whole() -> None:
    message = a_message(parts=2, status=int(S.UNCERTAIN), attempts=1, provider="op")
    turn = a_turn(an_account(held_cents=5), message)
    assert parts.adopt(turn, message, "a", whole=True) == 0
    assert parts.adopt(turn, message, "a") == 1
    assert parts.adopt(turn, message, "b", whole=True) == 2, "it was taken part by part"


@pytest.mark.parametrize("word", ["UNDELIV", "DELIVRD"])
def test_only_that_an_earlier_attempt_was_delivered_ends_a_part(word: str) -> None:
    message = a_message(parts=2, status=int(S.SENDING), attempts=2, provider="op")
    turn = a_turn(an_account(held_cents=5), message)
    lifecycle.settle(turn, message, 2, outcome_of({1: V.ACCEPTED, 2: V.ACCEPTED}), RULES)
    lifecycle.receive(turn, message, word, None, "id-0", RULES, 2)
    assert message.status == S.SENT
    lifecycle.receive(turn, message, "DELIVRD", None, "id-1", RULES, 1)
    assert message.status == (S.DELIVERED if word == "DELIVRD" else S.SENT)
    lifecycle.receive(turn, message, "DELIVRD", None, "id-2", RULES, 2)
    assert message.status == S.DELIVERED


async def test_an_operator_is_told_of_every_open_part_after_a_restart(
    gateway_of: OpenGateway,
) -> None:
    gateway, operator = await serve(gateway_of)
    client = await add_client(gateway)
    sent, doubtful, whole, unknown = [
        await three_parts(gateway, client),
        await three_parts(gateway, client),
        (await send(gateway, client)),
        (await send(gateway, client)),
    ]
    held = {one.number: one for one in [await operator.next() for _ in range(4)]}
    accept = Outcome(V.ACCEPTED, "a-1"), Outcome(V.ACCEPTED, "a-2"), Outcome(V.ACCEPTED, "a-3")
    operator.answer(held[sent.number], V.ACCEPTED, parts=dict(enumerate(accept, 1)))
    half = {1: Outcome(V.UNKNOWN), 2: Outcome(V.ACCEPTED, "b-2"), 3: Outcome(V.ACCEPTED, "b-3")}
    operator.answer(held[doubtful.number], V.UNKNOWN, parts=half)
    assert isinstance(whole, Accepted)
    assert isinstance(unknown, Accepted)
    operator.accept(held[whole.message.number], "c")
    operator.answer(held[unknown.message.number], V.UNKNOWN)
    await flushed(gateway)
    operator.receipt("a-1")
    operator.receipt("b-3")
    await flushed(gateway)
    await crash(gateway)

    gateway, operator = await serve(gateway_of)
    assert sorted(known.provider_message_id for known in operator.restored) == [
        "a-2",
        "a-3",
        "b-2",
        "c",
    ]
    operator.receipt("a-2")
    operator.receipt("a-3")
    assert (await final_of(gateway, sent)).status == S.DELIVERED
    await assert_clean(gateway)


async def test_what_is_open_is_told_page_by_page_and_none_ends_it_early(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "RESTORED_STEP", 1)
    gateway, operator = await serve(gateway_of)
    client = await add_client(gateway)
    for verdict in (V.ACCEPTED, V.UNKNOWN, V.ACCEPTED, V.UNKNOWN):
        await send(gateway, client)
        submission = await operator.next()
        operator.answer(submission, verdict, provider_message_id=f"id {submission.number}")
    await flushed(gateway)
    await crash(gateway)

    gateway, operator = await serve(gateway_of)
    assert len(operator.restored) == 2
    await assert_clean(gateway)


async def test_accepted_parts_outlive_a_crash(gateway_of: OpenGateway, clock: ManualClock) -> None:
    gateway, operator = await serve(gateway_of, on_uncertain="resend")
    client = await add_client(gateway)
    message = await three_parts(gateway, client)
    answer(operator, await operator.next(), p1=V.ACCEPTED, p2=V.FAILED, p3=V.ACCEPTED)
    second = await retried(gateway, clock, operator)
    assert second.accepted_parts == {1, 3}
    await crash(gateway)
    gateway, operator = await serve(gateway_of, on_uncertain="resend")
    third = await retried(gateway, clock, operator)
    assert third.number == message.number
    assert third.accepted_parts == {1, 3}
    operator.receipt("id-1")
    operator.receipt("id-3")
    answer(operator, third, p2=V.ACCEPTED)
    operator.receipt("id-2")
    done = await final_of(gateway, message)
    assert (done.status, done.charged_cents) == (S.DELIVERED, COST_CENTS)
    await assert_clean(gateway)
