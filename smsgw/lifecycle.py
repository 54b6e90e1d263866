"""The states of a message, and what each change does to its money.

Every function here is one line of the state table. Settling is guarded by status and attempt: an
answer to attempt 1 never settles attempt 2, and a final status never changes; what comes later is
kept as an event beside it.
"""

import random
from collections.abc import Callable
from typing import Final
from uuid import UUID

from smsgw import ledger, parts
from smsgw.models import (
    FINAL_FROM,
    QUANTUM,
    WAITING,
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

RECEIPT_WORDS: Final = {
    "DELIVERED": Status.DELIVERED,
    "DELIVRD": Status.DELIVERED,
    "UNDELIV": Status.FAILED_PERM,
    "UNDELIVERED": Status.FAILED_PERM,
    "UNDELIVERABLE": Status.FAILED_PERM,
    "REJECTED": Status.FAILED_PERM,
    "REJECTD": Status.FAILED_PERM,
    "DELETED": Status.FAILED_PERM,
    "FAILED": Status.FAILED_PERM,
    "FAILED_PERM": Status.FAILED_PERM,
    "EXPIRED": Status.EXPIRED,
}
_REASON_OF: Final = {
    Status.FAILED_PERM: Reason.UNDELIVERED,
    Status.EXPIRED: Reason.EXPIRED_BY_OPERATOR,
}
DELAYED: Final = frozenset({Status.SCHEDULED, Status.FAILED_TEMP})
_NAMES: Final = {int(status): status.name for status in Status}


def status_name(status: int) -> str:
    """A status as clients read it, for example ``DELIVERED``."""
    return _NAMES[status]


def finish(turn: Turn, message: Message, status: Status, reason: Reason | None) -> None:
    """Bring a message to a final status and end its hold: captured if delivered, else released."""
    assert status >= FINAL_FROM
    assert message.status < FINAL_FROM
    account = turn.accounts[message.client]
    turn.touch(message)
    if message.status in WAITING:
        turn.waits(account, -1)
    message.status = int(status)
    message.reason = reason
    message.final_at_ms = turn.now_ms
    message.due_at_ms = None
    if status is Status.DELIVERED:
        _capture(turn, message)
    else:
        ledger.release(turn, account, message)


def _capture(turn: Turn, message: Message) -> None:
    account = turn.accounts[message.client]
    missed = (
        message.submit_by_ms is not None
        and (message.submitted_at_ms or turn.now_ms) > message.submit_by_ms
    )
    if missed:
        message.express_missed = 1
    ledger.capture(turn, account, message, message.surcharge_cents if missed else 0)


def claim(turn: Turn, message: Message, provider: str) -> None:
    """QUEUED → SENDING: the commit of this is the mark that bytes may leave."""
    assert message.status == Status.QUEUED
    account = turn.accounts[message.client]
    turn.touch(message)
    turn.waits(account, -1)
    message.status = int(Status.SENDING)
    message.attempts += 1
    message.provider = provider
    turn.claims.append(message)


def queue_again(turn: Turn, message: Message, rank: int) -> None:
    """To QUEUED, at a given rank, without moving the client's place in the queue."""
    turn.touch(message)
    if message.status not in WAITING:
        turn.waits(turn.accounts[message.client], 1)
    message.status = int(Status.QUEUED)
    message.rank = rank
    turn.enqueue(message)


NextRoute = Callable[[Message, str | None], tuple[int, bool]]
"""The route for a message that its operator has failed to take, and whether it may go at once.

That is so where one is ready that has not failed to take it. Told which operator has accepted parts
of it, if one has.
"""


def same_route(message: Message, _begun_by: str | None) -> tuple[int, bool]:
    """There is no other operator."""
    return message.route, False


def settle(
    turn: Turn,
    message: Message,
    attempt: int,
    outcome: Outcome,
    rules: Rules,
    next_route: NextRoute = same_route,
    jitter: Callable[[], float] = random.random,
) -> bool:
    """Write down what an operator answered to an attempt.

    Args:
        turn: the turn.
        message: the message.
        attempt: which attempt it answers.
        outcome: the answer.
        rules: the settings that count.
        next_route: where a message goes that was not taken.
        jitter: draws from 0 to 1, for the time until the next attempt.

    Returns:
        False where the message has moved on and the answer changes nothing.
    """
    if message.attempts != attempt or message.status not in (Status.SENDING, Status.UNCERTAIN):
        turn.event(message, "late_answer", f"attempt {attempt}: {outcome.verdict}")
        return False
    verdict = outcome.verdict
    if outcome.parts is not None:
        assert message.provider is not None
        parts.record(turn, message, message.provider, outcome.parts)
        if verdict is Verdict.ACCEPTED and not parts.accepted(turn, message):
            # A late answer to one part; nothing is known of another.
            verdict = Verdict.UNKNOWN
    if message.status == Status.UNCERTAIN and verdict is Verdict.UNKNOWN:
        return False
    turn.touch(message)
    if verdict is Verdict.ACCEPTED:
        _accepted(turn, message, outcome, rules)
    elif verdict is Verdict.REFUSED:
        message.last_error = outcome.detail
        finish(turn, message, Status.FAILED_PERM, Reason.REJECTED_BY_OPERATOR)
    elif verdict is Verdict.FAILED:
        _failed(turn, message, outcome, rules, next_route, jitter)
    elif verdict is Verdict.UNKNOWN:
        _unknown(turn, message, outcome, rules, next_route, jitter)
    else:
        message.attempts -= 1
        message.last_error = outcome.detail or message.last_error
        if verdict is Verdict.NOT_SENT and outcome.retry_after_s:
            _step_aside(turn, message, outcome.retry_after_s, next_route)
        else:
            _requeue_or_expire(turn, message)
    return True


def _accepted(turn: Turn, message: Message, outcome: Outcome, rules: Rules) -> None:
    message.submitted_at_ms = turn.now_ms
    message.provider_message_id = (
        parts.first_id(turn, message) or outcome.provider_message_id or None
    )
    message.last_error = None
    message.due_at_ms = None
    message.status = int(Status.SENT)
    if message.submit_by_ms is not None and turn.now_ms > message.submit_by_ms:
        message.express_missed = 1
    if outcome.handset or (outcome.parts is not None and parts.delivered(turn, message)):
        finish(turn, message, Status.DELIVERED, None)
    elif not outcome.receipts:
        _capture(turn, message)
        finish(turn, message, Status.UNKNOWN, Reason.NO_RECEIPTS)
    elif rules.capture_on_sent:
        _capture(turn, message)


def _failed(
    turn: Turn,
    message: Message,
    outcome: Outcome,
    rules: Rules,
    next_route: NextRoute,
    jitter: Callable[[], float],
) -> None:
    message.last_error = outcome.detail
    express = message.lane == Lane.EXPRESS
    attempts_max = rules.express_attempts_max if express else rules.attempts_max
    if message.attempts >= attempts_max:
        finish(turn, message, Status.FAILED_PERM, Reason.RETRIES_EXHAUSTED)
        return
    turn.event(message, "failed_temporarily", outcome.detail)
    wanted_at_ms = _hand_on(turn, message, outcome.retry_after_s or 0.0, next_route)
    if wanted_at_ms is None:
        return
    base_ms = rules.retry_base_ms / 2 if express else rules.retry_base_ms
    backoff_ms = min(base_ms * 2 ** (message.attempts - 1), rules.retry_max_ms) * jitter()
    _retry_at(turn, message, max(turn.now_ms + max(1, int(backoff_ms)), wanted_at_ms))


def _hand_on(turn: Turn, message: Message, pause_s: float, next_route: NextRoute) -> int | None:
    """Queue a message for those that have not failed to take it, if one of them is ready.

    Returns:
        Else, when those that have failed want it again.
    """
    message.route, at_once = next_route(message, parts.begun_by(turn, message))
    # Those that have failed before, in this row, may want it later still.
    wanted_at_ms = max(turn.now_ms + int(pause_s * 1000), message.due_at_ms or 0)
    if not at_once or message.expires_at_ms <= turn.now_ms:
        return wanted_at_ms
    message.due_at_ms = wanted_at_ms
    queue_again(turn, message, rank_again(turn, message))
    return None


def _retry_at(turn: Turn, message: Message, due_at_ms: int) -> None:
    if message.expires_at_ms <= turn.now_ms:
        finish(turn, message, Status.EXPIRED, Reason.VALIDITY_PASSED)
        return
    turn.waits(turn.accounts[message.client], 1)
    message.status = int(Status.FAILED_TEMP)
    message.due_at_ms = due_at_ms
    turn.at(due_at_ms, message, Timer.PROMOTE)
    if message.expires_at_ms < due_at_ms:
        turn.at(message.expires_at_ms, message, Timer.EXPIRE)


def _requeue_or_expire(turn: Turn, message: Message) -> None:
    if message.expires_at_ms <= turn.now_ms:
        finish(turn, message, Status.EXPIRED, Reason.VALIDITY_PASSED)
    else:
        message.provider = None
        queue_again(turn, message, message.rank)


def _step_aside(turn: Turn, message: Message, pause_s: float, next_route: NextRoute) -> None:
    """Nothing was sent, and that may be the message's own fault.

    Another operator gets it now; where none is ready, other messages go first for a while.
    """
    wanted_at_ms = _hand_on(turn, message, pause_s, next_route)
    message.provider = None
    if wanted_at_ms is not None:
        _retry_at(turn, message, max(turn.now_ms + 1, wanted_at_ms))


def _unknown(
    turn: Turn,
    message: Message,
    outcome: Outcome,
    rules: Rules,
    next_route: NextRoute,
    jitter: Callable[[], float],
) -> None:
    message.last_error = outcome.detail or "no answer from the operator"
    if rules.on_uncertain == "wait":
        message.status = int(Status.UNCERTAIN)
        turn.event(message, "uncertain", message.last_error)
        turn.at(turn.now_ms + rules.uncertain_ms, message, Timer.UNCERTAIN)
    elif rules.on_uncertain == "resend":
        _failed(turn, message, outcome, rules, next_route, jitter)
    else:
        finish(turn, message, Status.UNKNOWN, Reason.UNCERTAIN)


def decides(word: str) -> bool:
    """Whether a receipt's word says how a message has ended."""
    return word.upper() in RECEIPT_WORDS


def receive(
    turn: Turn,
    message: Message,
    word: str,
    reason: str | None,
    provider_message_id: str | None,
    rules: Rules,
    part: int = 0,
) -> None:
    """Apply what an operator reported about a message it had accepted.

    Args:
        turn: the turn.
        message: the message.
        word: what the operator says.
        reason: why, if it says so.
        provider_message_id: the operator's id.
        rules: the settings that count.
        part: of which part that is the id; 0 for the whole.
    """
    status = RECEIPT_WORDS.get(word.upper())
    detail = f"{word}: {reason}" if reason else word
    closed = message.is_final or (message.status in WAITING and not part)
    # Of a part nothing is known here when it was accepted in an attempt that had no answer in time.
    closed = closed or (part > 0 and not parts.is_under_way(turn, message, part))
    # A one-time code's caller has been told by then that it failed.
    late = message.lane == Lane.OTP and message.status == Status.SENDING
    late = late and turn.now_ms >= message.expires_at_ms
    # What became of an earlier attempt is no failure of the one that counts.
    other = status is not Status.DELIVERED and _is_other(turn, message, provider_message_id, part)
    if status is None or closed or late or other:
        turn.event(message, "receipt", detail)
        return
    if part:
        status = parts.report(turn, message, part, status)
        if status is None:
            return
        if message.status == Status.QUEUED:
            turn.dequeue(message)
    turn.touch(message)
    if message.submitted_at_ms is None:
        message.submitted_at_ms = turn.now_ms
    if message.provider_message_id is None:
        message.provider_message_id = provider_message_id
    if status is not Status.DELIVERED:
        message.last_error = detail
    overtook = message.status != Status.SENT and (not part or parts.accepted(turn, message))
    if rules.capture_on_sent and overtook and message.lane != Lane.OTP:
        # What it would have found captured after the answer must be captured.
        _capture(turn, message)
    finish(turn, message, status, _REASON_OF.get(status))


def _is_other(turn: Turn, message: Message, identifier: str | None, part: int) -> bool:
    """Whether an operator's id is not that of the attempt that counts."""
    known = parts.id_of(turn, message, part) if part else message.provider_message_id
    if identifier is None or _is_ours(message, identifier):
        return False
    if known is None:
        # No receipt overtakes the answer that makes its id known: this is of another attempt.
        return not part and message.status == Status.SENDING and message.attempts > 1
    return identifier != known


def _is_ours(message: Message, identifier: str) -> bool:
    """Whether that is not an operator's id, but our name for the message."""
    try:
        return UUID(identifier).bytes == message.id
    except ValueError:
        return False


def cancel(turn: Turn, message: Message) -> bool:
    """SCHEDULED, QUEUED or FAILED_TEMP → CANCELLED.

    Returns:
        False where it is too late.
    """
    if message.status not in WAITING:
        return False
    if message.status == Status.QUEUED:
        turn.dequeue(message)
    finish(turn, message, Status.CANCELLED, Reason.CANCELLED_BY_CLIENT)
    return True


def expire(turn: Turn, message: Message) -> bool:
    """End a message that was not handed over within its validity.

    Returns:
        False where it is no longer waiting, or its time has not come.
    """
    if message.status not in WAITING or message.expires_at_ms > turn.now_ms:
        return False
    if message.status == Status.QUEUED:
        turn.dequeue(message)
    finish(turn, message, Status.EXPIRED, Reason.VALIDITY_PASSED)
    return True


def promote(turn: Turn, message: Message) -> bool:
    """SCHEDULED or FAILED_TEMP → QUEUED once due."""
    if message.status not in DELAYED:
        return False
    if message.due_at_ms is None or message.due_at_ms > turn.now_ms:
        return False
    if message.expires_at_ms <= turn.now_ms:
        finish(turn, message, Status.EXPIRED, Reason.VALIDITY_PASSED)
    else:
        message.due_at_ms = None
        queue_again(turn, message, rank_again(turn, message))
    return True


def rank_again(turn: Turn, message: Message) -> int:
    """Where a message that comes back stands in its queue."""
    flow = turn.flow(message.client, message.route, message.lane)
    now = turn.virtual.get((message.route, message.lane), 0)
    return flow.rejoin(now, message.parts * QUANTUM // turn.accounts[message.client].weight)


def time_out(turn: Turn, message: Message, rules: Rules) -> bool:
    """SENT without a receipt, or UNCERTAIN without evidence, for too long → UNKNOWN."""
    now_ms = turn.now_ms
    if message.status == Status.SENT:
        assert message.submitted_at_ms is not None
        if message.submitted_at_ms + rules.receipt_timeout_ms > now_ms:
            return False
        finish(turn, message, Status.UNKNOWN, Reason.RECEIPT_TIMEOUT)
        return True
    if message.status == Status.UNCERTAIN:
        if message.updated_at_ms + rules.uncertain_ms > now_ms:
            return False
        finish(turn, message, Status.UNKNOWN, Reason.UNCERTAIN)
        return True
    return False


def recover(turn: Turn, message: Message, rules: Rules) -> None:
    """Decide about a message that was in flight when the process died."""
    assert message.status == Status.SENDING
    turn.touch(message)
    if message.lane == Lane.OTP:
        finish(turn, message, Status.FAILED_PERM, Reason.INTERRUPTED)
        return
    outcome = Outcome(Verdict.UNKNOWN, detail="the gateway was interrupted while sending")
    if rules.on_uncertain == "resend":
        # Being interrupted by ourselves is not a failure of the message: it may go out at once.
        turn.event(message, "interrupted", outcome.detail)
        message.last_error = outcome.detail
        _retry_at(turn, message, turn.now_ms)
    else:
        _unknown(turn, message, outcome, rules, same_route, lambda: 0.0)
