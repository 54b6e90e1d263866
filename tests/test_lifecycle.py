"""The whole state table: what each event does in each status, and nothing elsewhere."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from smsgw import lifecycle
from smsgw.ids import uuid_text
from smsgw.models import (
    FINAL_FROM,
    WAITING,
    Account,
    EntryKind,
    Lane,
    Message,
    Outcome,
    Reason,
    Rules,
    Status,
    Timer,
    Verdict,
)
from smsgw.turn import Turn
from tests.records import NOW_MS, RULES, a_message, a_turn, an_account

S = Status
RANK, VIRTUAL = 7, 1000
ON_SENT = replace(RULES, capture_on_sent=True)
RESEND = replace(RULES, on_uncertain="resend")
FAIL = replace(RULES, on_uncertain="fail")
LAST = replace(RULES, attempts_max=1)
HOUR_MS = 3_600_000

# What a message in each status looks like, besides its status.
_SUBMITTED: Final[dict[str, Any]] = {
    "attempts": 1,
    "provider": "mock",
    "provider_message_id": "id-1",
    "submitted_at_ms": NOW_MS - 500,
}
_FLYING: Final[dict[str, Any]] = {"attempts": 1, "provider": "mock"}
_ENDED: Final[dict[str, Any]] = {**_SUBMITTED, "held_cents": 0, "final_at_ms": NOW_MS - 100}
LOOKS: Final[dict[Status, dict[str, Any]]] = {
    S.SCHEDULED: {"due_at_ms": NOW_MS + 10_000},
    S.QUEUED: {"rank": RANK},
    S.SENDING: _FLYING,
    S.SENT: _SUBMITTED,
    S.UNCERTAIN: _FLYING,
    S.FAILED_TEMP: {**_FLYING, "due_at_ms": NOW_MS + 10_000},
    S.DELIVERED: {**_ENDED, "charged_cents": 5},
    S.FAILED_PERM: {**_ENDED, "reason": "undelivered"},
    S.EXPIRED: {**_ENDED, "reason": "validity_passed"},
    S.CANCELLED: {**_ENDED, "reason": "cancelled_by_client"},
    S.UNKNOWN: {**_ENDED, "reason": "uncertain"},
}


def message_in(status: Status, **changes: Any) -> Message:
    return a_message(**{"status": int(status), **LOOKS[status], **changes})


def account_of(message: Message) -> Account:
    return an_account(
        held_cents=message.held_cents,
        charged_cents=message.charged_cents,
        waiting=int(message.status in WAITING),
    )


@dataclass(frozen=True)
class Event:
    """Something that happens to a message, at a moment, under some settings."""

    happens: Callable[[Turn, Message, Rules], object]
    rules: Rules = RULES
    after_ms: int = 0


def answer(
    verdict: Verdict, attempt: int = 1, **more: Any
) -> Callable[[Turn, Message, Rules], object]:
    outcome = Outcome(verdict, "id-2" if verdict is Verdict.ACCEPTED else None, "detail", **more)
    return lambda turn, message, rules: lifecycle.settle(
        turn, message, attempt, outcome, rules, jitter=lambda: 1.0
    )


def receipt(word: str) -> Callable[[Turn, Message, Rules], object]:
    return lambda turn, message, rules: lifecycle.receive(
        turn, message, word, "reason", message.provider_message_id or "id-2", rules
    )


def recover(turn: Turn, message: Message, rules: Rules) -> object:
    # What is not SENDING is not found by the recovery, and not given to it.
    if message.status == S.SENDING:
        lifecycle.recover(turn, message, rules)
    return None


EXPIRES_MS = 60_000
EVENTS: Final[dict[str, Event]] = {
    "cancel": Event(lambda turn, message, _: lifecycle.cancel(turn, message)),
    "validity over": Event(lambda turn, message, _: lifecycle.expire(turn, message), RULES, 60_000),
    "validity not over": Event(
        lambda turn, message, _: lifecycle.expire(turn, message), RULES, 59_999
    ),
    "due": Event(lambda turn, message, _: lifecycle.promote(turn, message), RULES, 10_000),
    "due, not valid": Event(
        lambda turn, message, _: lifecycle.promote(turn, message), RULES, 60_000
    ),
    "not due": Event(lambda turn, message, _: lifecycle.promote(turn, message), RULES, 9_999),
    "accepted": Event(answer(Verdict.ACCEPTED)),
    "accepted, late": Event(answer(Verdict.ACCEPTED), RULES, 60_000),
    "accepted, captured on sent": Event(answer(Verdict.ACCEPTED), ON_SENT),
    "accepted, no receipts": Event(answer(Verdict.ACCEPTED, receipts=False)),
    "refused": Event(answer(Verdict.REFUSED)),
    "failed": Event(answer(Verdict.FAILED)),
    "failed, none left": Event(answer(Verdict.FAILED), LAST),
    "failed, not valid": Event(answer(Verdict.FAILED), RULES, 60_000),
    "failed, none left, not valid": Event(answer(Verdict.FAILED), LAST, 60_000),
    "throttled": Event(answer(Verdict.THROTTLED)),
    "throttled, not valid": Event(answer(Verdict.THROTTLED), RULES, 60_000),
    "not sent": Event(answer(Verdict.NOT_SENT)),
    "not sent, not valid": Event(answer(Verdict.NOT_SENT), RULES, 60_000),
    "not sent, step aside": Event(answer(Verdict.NOT_SENT, retry_after_s=10.0)),
    "not sent, step aside, not valid": Event(
        answer(Verdict.NOT_SENT, retry_after_s=10.0), RULES, 60_000
    ),
    "no answer, wait": Event(answer(Verdict.UNKNOWN)),
    "no answer, resend": Event(answer(Verdict.UNKNOWN), RESEND),
    "no answer, resend, none left": Event(answer(Verdict.UNKNOWN), replace(RESEND, attempts_max=1)),
    "no answer, fail": Event(answer(Verdict.UNKNOWN), FAIL),
    "crash, wait": Event(recover),
    "crash, resend": Event(recover, RESEND),
    "crash, resend, none left": Event(recover, replace(RESEND, attempts_max=1)),
    "crash, resend, not valid": Event(recover, RESEND, 60_000),
    "crash, fail": Event(recover, FAIL),
    "receipt delivered": Event(receipt("DELIVRD")),
    "receipt undelivered": Event(receipt("undeliv")),
    "receipt expired": Event(receipt("Expired")),
    "receipt expired, captured on sent": Event(receipt("Expired"), ON_SENT),
    "receipt on the way": Event(receipt("ENROUTE")),
    "receipt in strange words": Event(receipt("???")),
    "no receipt for too long": Event(
        lambda turn, message, rules: lifecycle.time_out(turn, message, rules), RULES, 72 * HOUR_MS
    ),
    "uncertain for too long": Event(
        lambda turn, message, rules: lifecycle.time_out(turn, message, rules), RULES, 600_000
    ),
    "in doubt, but not for long": Event(
        lambda turn, message, rules: lifecycle.time_out(turn, message, rules), RULES, 500_000
    ),
} | {
    f"answer to attempt {attempt}, not 1: {verdict}": Event(answer(verdict, attempt))
    for verdict in Verdict
    for attempt in (-1, 2)
}

NONE, RELEASE, CAPTURE = "none", "release", "capture"
Result = tuple[Status, Reason | None, str]
_CANCELLED: Final[Result] = (S.CANCELLED, Reason.CANCELLED_BY_CLIENT, RELEASE)
_INVALID: Final[Result] = (S.EXPIRED, Reason.VALIDITY_PASSED, RELEASE)
_EXHAUSTED: Final[Result] = (S.FAILED_PERM, Reason.RETRIES_EXHAUSTED, RELEASE)
_REPORTED: Final[dict[str, Result]] = {
    "receipt delivered": (S.DELIVERED, None, CAPTURE),
    "receipt undelivered": (S.FAILED_PERM, Reason.UNDELIVERED, RELEASE),
    "receipt expired": (S.EXPIRED, Reason.EXPIRED_BY_OPERATOR, RELEASE),
    # A report proves the acceptance: the money is the same as if the answer had come before it.
    "receipt expired, captured on sent": (S.EXPIRED, Reason.EXPIRED_BY_OPERATOR, CAPTURE),
}
_ANSWERED: Final[dict[str, Result]] = {
    "accepted": (S.SENT, None, NONE),
    "accepted, late": (S.SENT, None, NONE),
    "accepted, captured on sent": (S.SENT, None, CAPTURE),
    "accepted, no receipts": (S.UNKNOWN, Reason.NO_RECEIPTS, CAPTURE),
    "refused": (S.FAILED_PERM, Reason.REJECTED_BY_OPERATOR, RELEASE),
    "failed": (S.FAILED_TEMP, None, NONE),
    "failed, none left": _EXHAUSTED,
    "failed, not valid": _INVALID,
    "failed, none left, not valid": _EXHAUSTED,
    "throttled": (S.QUEUED, None, NONE),
    "throttled, not valid": _INVALID,
    "not sent": (S.QUEUED, None, NONE),
    "not sent, not valid": _INVALID,
    "not sent, step aside": (S.FAILED_TEMP, None, NONE),
    "not sent, step aside, not valid": _INVALID,
}
_WAITS: Final[dict[str, Result]] = {"cancel": _CANCELLED, "validity over": _INVALID}
_COMES_DUE: Final[dict[str, Result]] = {
    **_WAITS,
    "due": (S.QUEUED, None, NONE),
    "due, not valid": _INVALID,
}
TABLE: Final[dict[Status, dict[str, Result]]] = {
    S.SCHEDULED: _COMES_DUE,
    S.QUEUED: _WAITS,
    S.FAILED_TEMP: _COMES_DUE,
    S.SENDING: {
        **_ANSWERED,
        "no answer, wait": (S.UNCERTAIN, None, NONE),
        "no answer, resend": (S.FAILED_TEMP, None, NONE),
        "no answer, resend, none left": _EXHAUSTED,
        "no answer, fail": (S.UNKNOWN, Reason.UNCERTAIN, RELEASE),
        "crash, wait": (S.UNCERTAIN, None, NONE),
        "crash, resend": (S.FAILED_TEMP, None, NONE),
        "crash, resend, none left": (S.FAILED_TEMP, None, NONE),
        "crash, resend, not valid": _INVALID,
        "crash, fail": (S.UNKNOWN, Reason.UNCERTAIN, RELEASE),
        # A receipt may overtake the answer.
        **_REPORTED,
    },
    S.UNCERTAIN: {
        # The answer may come after all.
        **_ANSWERED,
        **_REPORTED,
        "uncertain for too long": (S.UNKNOWN, Reason.UNCERTAIN, RELEASE),
        "no receipt for too long": (S.UNKNOWN, Reason.UNCERTAIN, RELEASE),
    },
    S.SENT: {
        **_REPORTED,
        # With that setting it would have been captured when it was sent.
        "receipt expired, captured on sent": (S.EXPIRED, Reason.EXPIRED_BY_OPERATOR, RELEASE),
        "no receipt for too long": (S.UNKNOWN, Reason.RECEIPT_TIMEOUT, RELEASE),
    },
}
EVERY = [(status, event) for status in Status for event in EVENTS]
CHANGES = [(status, event) for status, event in EVERY if event in TABLE.get(status, {})]
NOTHING = [(status, event) for status, event in EVERY if event not in TABLE.get(status, {})]


def run(event: Event, message: Message) -> tuple[Turn, Account]:
    account = account_of(message)
    turn = a_turn(account, message, now_ms=NOW_MS + event.after_ms, virtual=VIRTUAL)
    event.happens(turn, message, event.rules)
    return turn, account


@pytest.mark.parametrize(("status", "name"), CHANGES)
def test_an_event_leads_to_its_status_and_moves_its_money(status: Status, name: str) -> None:
    message = message_in(status)
    turn, account = run(EVENTS[name], message)
    after, reason, money = TABLE[status][name]
    assert message.status == after
    assert message.reason == reason
    assert (message.held_cents, message.charged_cents) == {
        NONE: (5, 0),
        RELEASE: (0, 0),
        CAPTURE: (0, 5),
    }[money]
    assert account.held_cents == message.held_cents
    assert account.charged_cents == message.charged_cents
    assert account.credits_cents == 100 + (5 if money == RELEASE else 0)
    kinds = {NONE: [], RELEASE: [EntryKind.RELEASE], CAPTURE: [EntryKind.CAPTURE]}[money]
    assert [row[2] for row in turn.entries] == kinds


@pytest.mark.parametrize(("status", "name"), CHANGES)
def test_a_change_keeps_the_books_of_queue_and_time(status: Status, name: str) -> None:
    message = message_in(status)
    turn, account = run(EVENTS[name], message)
    assert turn.changed_messages == {message.number: message}
    assert message.updated_at_ms == turn.now_ms
    assert account.waiting == int(message.status in WAITING)
    assert (message.final_at_ms == turn.now_ms) == (message.status >= FINAL_FROM)
    assert (message.final_at_ms is None) == (message.status < FINAL_FROM)
    place = {message.number: (message.rank, message.number, 1, 1)}
    assert turn.queued[0, 0] == (place if message.status == S.QUEUED else {})
    assert bool(turn.unqueued) == (status == S.QUEUED)
    flow = turn.flow(1, 0, 0)
    assert (flow.waiting, flow.parts) == ((1, 1) if message.status == S.QUEUED else (0, 0))
    due = [row for row in turn.timers if row[2] == Timer.PROMOTE]
    waits_for_a_time = message.status in (S.SCHEDULED, S.FAILED_TEMP)
    assert due == ([(message.due_at_ms, message.number, 0)] if waits_for_a_time else [])
    assert (message.due_at_ms is not None) == waits_for_a_time


@pytest.mark.parametrize(("status", "name"), NOTHING)
def test_elsewhere_an_event_changes_nothing(status: Status, name: str) -> None:
    message = message_in(status)
    before = copy.copy(message)
    account_before = account_of(message)
    turn, account = run(EVENTS[name], message)
    assert message == before
    assert account == account_before
    assert turn.entries == []
    assert turn.timers == []
    assert not turn.queued[0, 0]
    assert not turn.unqueued
    assert turn.changed_messages == {}
    assert {statement for statement, _ in turn.writes} <= {"event_add"}


def test_every_final_status_ignores_every_event() -> None:
    finals = {status for status in Status if status >= FINAL_FROM}
    assert finals.isdisjoint(TABLE)
    assert {(status, name) for status in finals for name in EVENTS} <= set(NOTHING)


@pytest.mark.parametrize("status", [status for status in Status if status >= FINAL_FROM])
@pytest.mark.parametrize(
    "name", [name for name in EVENTS if name.startswith(("receipt", "accepted", "answer"))]
)
def test_what_comes_after_the_end_is_an_event(status: Status, name: str) -> None:
    turn, _ = run(EVENTS[name], message_in(status))
    assert [statement for statement, _ in turn.writes] == ["event_add"]


@pytest.mark.parametrize("name", ["throttled", "not sent"])
def test_what_never_left_goes_back_at_its_old_rank_and_costs_no_attempt(name: str) -> None:
    message = message_in(S.SENDING, rank=RANK)
    run(EVENTS[name], message)
    assert message.rank == RANK
    assert message.attempts == 0
    assert message.provider is None
    assert message.last_error == "detail"


def test_what_may_be_at_fault_itself_steps_aside_and_costs_no_attempt() -> None:
    message = message_in(S.SENDING, rank=RANK)
    turn, _ = run(EVENTS["not sent, step aside"], message)
    assert message.due_at_ms == turn.now_ms + 10_000
    assert (message.attempts, message.provider, message.last_error) == (0, None, "detail")
    run(EVENTS["due"], message)
    assert (message.status, message.attempts) == (S.QUEUED, 0)


@pytest.mark.parametrize("status", [S.SCHEDULED, S.FAILED_TEMP])
def test_what_comes_due_is_queued_at_the_rank_now_served(status: Status) -> None:
    message = message_in(status)
    turn, _ = run(EVENTS["due"], message)
    assert message.rank == VIRTUAL
    assert turn.flow(1, 0, 0).next_rank == 0, "it does not move the client's place on"


def test_a_claim_marks_the_message_and_counts_the_attempt() -> None:
    message = message_in(S.QUEUED)
    account = account_of(message)
    turn = a_turn(account, message)
    lifecycle.claim(turn, message, "mock")
    assert (message.status, message.attempts, message.provider) == (S.SENDING, 1, "mock")
    assert account.waiting == 0
    assert turn.claims == [message]
    assert turn.entries == []


@pytest.mark.parametrize("status", [status for status in Status if status != S.QUEUED])
def test_only_what_is_queued_can_be_claimed(status: Status) -> None:
    message = message_in(status)
    with pytest.raises(AssertionError):
        lifecycle.claim(a_turn(account_of(message), message), message, "mock")


@pytest.mark.parametrize("capture_on_sent", [False, True])
@pytest.mark.parametrize("word", ["DELIVERED", "UNDELIV", "EXPIRED"])
@pytest.mark.parametrize("begins", [S.SENDING, S.UNCERTAIN])
def test_an_answer_and_its_receipt_come_to_the_same_money_in_either_order(
    begins: Status, word: str, capture_on_sent: bool
) -> None:
    rules = replace(RULES, capture_on_sent=capture_on_sent)
    ends = []
    for order in ((answer(Verdict.ACCEPTED), receipt(word)), (receipt(word),) * 2):
        for first, second in (order, order[::-1]):
            message = message_in(begins)
            account = account_of(message)
            turn = a_turn(account, message)
            for happens in (first, second):
                happens(turn, message, rules)
            ends.append((message.status, message.reason, account.credits_cents, turn.entries[0][2]))
            assert len(turn.entries) == 1
    assert len(set(ends)) == 1


@pytest.mark.parametrize("word", sorted(lifecycle.RECEIPT_WORDS))
@pytest.mark.parametrize("spelled", [str.upper, str.lower, str.title])
def test_a_receipts_word_counts_in_any_case(word: str, spelled: Callable[[str], str]) -> None:
    message = message_in(S.SENT)
    run(Event(receipt(spelled(word))), message)
    assert message.status == lifecycle.RECEIPT_WORDS[word]


@pytest.mark.parametrize(
    "word", ["ENROUTE", "ACCEPTD", "ACCEPTED", "SENT", "UNKNOWN", "FAILED_TEMP"]
)
def test_words_on_the_way_are_events(word: str) -> None:
    message = message_in(S.SENT)
    turn, _ = run(Event(receipt(word)), message)
    assert message.status == S.SENT
    assert turn.writes == [("event_add", (message.number, NOW_MS, "receipt", f"{word}: reason"))]


@pytest.mark.parametrize("status", [S.SENDING, S.UNCERTAIN])
def test_an_early_receipt_tells_the_operators_id_and_when_it_was_handed_over(
    status: Status,
) -> None:
    message = message_in(status)
    run(EVENTS["receipt delivered"], message)
    assert message.provider_message_id == "id-2"
    assert message.submitted_at_ms == NOW_MS


@pytest.mark.parametrize("word", ["UNDELIV", "EXPIRED", "DELIVRD"])
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("status", [S.SENDING, S.SENT])
def test_only_that_an_earlier_attempt_was_delivered_ends_a_message(
    status: Status, ours: bool, word: str
) -> None:
    message = message_in(status, attempts=2)
    turn = a_turn(account_of(message), message)
    # By our name for the message, nobody can tell which attempt is meant.
    identifier = uuid_text(message.id).upper() if ours else "id-0"
    lifecycle.receive(turn, message, word, None, identifier, RULES)
    ends = ours or word == "DELIVRD"
    assert message.status == (lifecycle.RECEIPT_WORDS[word] if ends else status)
    if not ends:
        assert turn.writes == [("event_add", (message.number, NOW_MS, "receipt", word))]
        assert message.last_error is None


def test_a_receipt_keeps_the_id_and_the_time_of_the_answer() -> None:
    message = message_in(S.SENT)
    run(EVENTS["receipt delivered"], message)
    assert message.provider_message_id == "id-1"
    assert message.submitted_at_ms == NOW_MS - 500


def express(status: Status, submit_by_ms: int, **changes: Any) -> Message:
    return message_in(
        status,
        lane=int(Lane.EXPRESS),
        cost_cents=7,
        held_cents=7,
        surcharge_cents=2,
        submit_by_ms=submit_by_ms,
        **changes,
    )


@pytest.mark.parametrize(("late_ms", "charged", "missed"), [(0, 7, 0), (1, 5, 1)])
@pytest.mark.parametrize("rules", [RULES, ON_SENT])
def test_a_missed_promise_pays_the_surcharge_back_at_capture(
    late_ms: int, charged: int, missed: int, rules: Rules
) -> None:
    message = express(S.SENDING, NOW_MS - late_ms)
    account = account_of(message)
    turn = a_turn(account, message)
    answer(Verdict.ACCEPTED)(turn, message, rules)
    assert message.express_missed == missed
    turn.now_ms += 3_600_000  # a receipt that comes late misses no promise
    receipt("DELIVERED")(turn, message, rules)
    assert (message.charged_cents, message.express_missed) == (charged, missed)
    assert (account.credits_cents, account.held_cents) == (100 + 7 - charged, 0)


def test_a_missed_promise_without_receipts_pays_the_surcharge_back() -> None:
    message = express(S.SENDING, NOW_MS - 1)
    run(EVENTS["accepted, no receipts"], message)
    assert (message.charged_cents, message.express_missed) == (5, 1)


def test_an_express_message_has_its_own_attempts_and_half_the_delay() -> None:
    message = express(S.SENDING, NOW_MS, attempts=4)
    turn, _ = run(Event(answer(Verdict.FAILED, 4)), message)
    assert message.status == S.FAILED_TEMP
    assert message.due_at_ms == turn.now_ms + 30_000 // 2 * 8
    message = express(S.SENDING, NOW_MS, attempts=5)
    run(Event(answer(Verdict.FAILED, 5)), message)
    assert message.status == S.FAILED_PERM


@pytest.mark.parametrize(("attempt", "delay_ms"), [(1, 30_000), (2, 60_000), (9, 3_600_000)])
def test_the_delay_doubles_up_to_its_limit(attempt: int, delay_ms: int) -> None:
    message = message_in(S.SENDING, attempts=attempt, expires_at_ms=NOW_MS + 72 * HOUR_MS)
    rules = replace(RULES, attempts_max=10)
    run(Event(answer(Verdict.FAILED, attempt), rules), message)
    assert message.due_at_ms == NOW_MS + delay_ms


@pytest.mark.parametrize(("share", "delay_ms"), [(0.0, 1), (0.25, 7_500), (1.0, 30_000)])
def test_the_delay_is_drawn_from_all_of_its_range(share: float, delay_ms: int) -> None:
    message = message_in(S.SENDING)
    turn = a_turn(account_of(message), message)
    failed = Outcome(Verdict.FAILED)
    lifecycle.settle(turn, message, 1, failed, RULES, jitter=lambda: share)
    assert message.due_at_ms == NOW_MS + delay_ms


@pytest.mark.parametrize(("pause_s", "delay_ms"), [(None, 30_000), (7.0, 30_000), (45.5, 45_500)])
@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.UNKNOWN])
def test_it_is_not_tried_again_before_the_operator_wants_it(
    verdict: Verdict, pause_s: float | None, delay_ms: int
) -> None:
    message = message_in(S.SENDING)
    turn = a_turn(account_of(message), message)
    outcome = Outcome(verdict, retry_after_s=pause_s)
    lifecycle.settle(turn, message, 1, outcome, RESEND, jitter=lambda: 1.0)
    assert (message.status, message.due_at_ms) == (S.FAILED_TEMP, NOW_MS + delay_ms)


def test_what_an_operator_wants_after_the_end_of_its_validity_ends_then() -> None:
    message = message_in(S.SENDING, expires_at_ms=NOW_MS + 60_000)
    turn = a_turn(account_of(message), message)
    lifecycle.settle(turn, message, 1, Outcome(Verdict.FAILED, retry_after_s=600.0), RULES)
    assert (NOW_MS + 60_000, message.number, Timer.EXPIRE) in turn.timers


def test_a_retry_after_the_end_of_its_validity_has_a_timer_for_that_end() -> None:
    message = message_in(S.SENDING, expires_at_ms=NOW_MS + 20_000)
    turn, _ = run(EVENTS["failed"], message)
    assert (NOW_MS + 20_000, message.number, Timer.EXPIRE) in turn.timers


@pytest.mark.parametrize("name", ["no answer, wait", "crash, wait"])
def test_a_doubt_is_looked_at_again(name: str) -> None:
    message = message_in(S.SENDING)
    turn, _ = run(EVENTS[name], message)
    assert turn.timers == [(NOW_MS + 600_000, message.number, Timer.UNCERTAIN)]


def otp(status: Status, **changes: Any) -> Message:
    return message_in(status, lane=int(Lane.OTP), **changes)


@pytest.mark.parametrize("rules", [RULES, RESEND, FAIL])
def test_a_one_time_code_that_a_crash_interrupted_failed_and_is_released(rules: Rules) -> None:
    message = otp(S.SENDING)
    _, account = run(Event(recover, rules), message)
    assert (message.status, message.reason) == (S.FAILED_PERM, Reason.INTERRUPTED)
    assert (account.held_cents, account.charged_cents) == (0, 0)


@pytest.mark.parametrize("late_ms", [0, 1])
def test_a_receipt_after_the_deadline_of_a_code_is_an_event(late_ms: int) -> None:
    message = otp(S.SENDING, expires_at_ms=NOW_MS - late_ms)
    turn, account = run(EVENTS["receipt delivered"], message)
    assert message.status == S.SENDING
    assert account.charged_cents == 0
    assert [statement for statement, _ in turn.writes] == ["event_add"]


def test_a_receipt_before_the_deadline_of_a_code_delivers_it() -> None:
    message = otp(S.SENDING, expires_at_ms=NOW_MS + 1)
    run(EVENTS["receipt delivered"], message)
    assert (message.status, message.charged_cents) == (S.DELIVERED, 5)


def test_a_code_that_did_not_reach_its_handset_is_not_charged_under_any_billing_rule() -> None:
    message = otp(S.SENDING, expires_at_ms=NOW_MS + 1)
    _, account = run(Event(receipt("UNDELIV"), ON_SENT), message)
    assert message.status == S.FAILED_PERM
    assert (account.credits_cents, account.charged_cents) == (105, 0)


def test_totals_that_counted_a_message_follow_its_change() -> None:
    message = message_in(S.SENT)
    account = account_of(message)
    turn = a_turn(account, message, counted_to=message.number)
    receipt("DELIVERED")(turn, message, RULES)
    day = message.created_at_ms // 86_400_000
    assert sorted(turn.total_changes()) == [
        (1, day, "ACME", int(S.SENT), -1, -1, -5, -5, 0),
        (1, day, "ACME", int(S.DELIVERED), 1, 1, 5, 0, 5),
    ]


def test_a_status_has_the_name_that_clients_read() -> None:
    assert [lifecycle.status_name(status) for status in Status] == [s.name for s in Status]
