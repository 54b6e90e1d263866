"""One-time codes inside a turn: opened, decided, verified.

Codes are derived from the message id with a key that lies outside the shards, so no row holds one.
"""

import hmac
from dataclasses import dataclass
from hashlib import sha256

from smsgw import ledger, lifecycle, parts
from smsgw.admission import (
    Draft,
    KeyUse,
    Replay,
    known,
    make_message,
    remember,
    replayed,
    want_client,
)
from smsgw.errors import IdempotencyInProgress, NoLiveCode, OtpUndeliverable, SmsgwError
from smsgw.ids import uuid_text
from smsgw.models import (
    ANSWER_OTP_FAILED,
    ANSWER_OTP_HANDSET,
    ANSWER_OTP_OPERATOR,
    ANSWER_RUNNING,
    Message,
    OtpCode,
    Outcome,
    Reason,
    Rules,
    Status,
    Verdict,
)
from smsgw.turn import URGENT, Request, Turn, Wants


def derive(key: bytes, message_id: bytes, digits: int) -> str:
    """The code of a message: HMAC-SHA-256 (RFC 2104) reduced to decimal digits without bias."""
    limit = 10**digits
    # Values from the last, incomplete stretch would make low codes likelier: draw again.
    fair = (1 << 64) // limit * limit
    block = message_id
    while True:
        block = hmac.digest(key, block, sha256)
        value = int.from_bytes(block[:8], "big")
        if value < fair:
            return f"{value % limit:0{digits}d}"


@dataclass(slots=True)
class Decided:
    """What the caller is told, as it was decided."""

    message: Message
    answer: int
    credits_cents: int
    code: str | None = None
    expires_at_ms: int | None = None


class Open(Request):
    """Accept a one-time code and mark it as being sent; or close it at once, where nobody can."""

    __slots__ = ("deadline_ms", "draft", "key", "provider", "rules", "said_no")

    priority = URGENT

    def __init__(
        self,
        client_id: bytes,
        draft: Draft,
        key: KeyUse | None,
        rules: Rules,
        *,
        provider: str | None,
        deadline_ms: int,
        said_no: SmsgwError | None,
    ) -> None:
        super().__init__(client_id)
        self.draft = draft
        self.key = key
        self.rules = rules
        self.provider = provider
        self.deadline_ms = deadline_ms
        self.said_no = said_no

    def needs(self, wants: Wants) -> None:
        """The account, and what the key did."""
        want_client(wants, self.client_id, self.key)

    def decide(self, turn: Turn) -> None:
        """Answer the message, or the ``Replay`` of an earlier answer."""
        account = known(turn, self.client_id)
        record = replayed(turn, account, self.key, self.rules.idempotency_ms)
        if record is not None:
            if record.answer == ANSWER_RUNNING:
                raise IdempotencyInProgress(retry_after_s=1)
            self.answer = Replay(record)
            return
        if self.said_no is not None:
            raise self.said_no
        ledger.afford(account, self.draft.cost_cents)
        message = make_message(turn, account, self.draft, self.rules)
        message.expires_at_ms = self.deadline_ms
        message.provider = self.provider
        turn.add_message(message)
        ledger.hold(turn, account, message)
        answer = ANSWER_RUNNING
        if self.provider is not None and turn.now_ms < self.deadline_ms:
            message.status = int(Status.SENDING)
            message.attempts = 1
        else:
            # It is in no queue: SENT is only where it ends from.
            message.status = int(Status.SENT)
            message.last_error = "no operator could take it at once"
            lifecycle.finish(turn, message, Status.FAILED_PERM, Reason.RETRIES_EXHAUSTED)
            answer = ANSWER_OTP_FAILED
        remember(turn, account, self.key, message.number, answer)
        self.answer = message


class Redirect(Request):
    """No byte has left for one operator, so another is asked; of which each receipt must know."""

    __slots__ = ("number", "provider")

    priority = URGENT

    def __init__(self, number: int, provider: str) -> None:
        super().__init__()
        self.number = number
        self.provider = provider

    def needs(self, wants: Wants) -> None:
        """The message."""
        wants.messages.add(self.number)

    def decide(self, turn: Turn) -> None:
        """Write down who has it now; it is still the first attempt.

        Answers whether it may leave: not when it has ended meanwhile, or its time is over.
        """
        message = turn.messages[self.number]
        self.answer = message.status == Status.SENDING and turn.now_ms < message.expires_at_ms
        if self.answer:
            turn.touch(message)
            message.provider = self.provider


class AcceptedByOperator(Request):
    """The operator has it; the receipt of the handset decides, or those of all parts."""

    __slots__ = ("number", "outcome")

    priority = URGENT

    def __init__(self, number: int, outcome: Outcome) -> None:
        super().__init__()
        self.number = number
        self.outcome = outcome

    def needs(self, wants: Wants) -> None:
        """The message, and its parts where the operator takes them one by one."""
        wants.messages.add(self.number)
        if self.outcome.parts is not None:
            wants.parts.add(self.number)

    def decide(self, turn: Turn) -> None:
        """Keep the operator's id, and that of each part; the message stays open."""
        message = turn.messages[self.number]
        if message.status == Status.SENDING:
            turn.touch(message)
            message.provider_message_id = self.outcome.provider_message_id or None
            message.submitted_at_ms = turn.now_ms
            if self.outcome.parts is not None:
                assert message.provider is not None
                parts.record(turn, message, message.provider, self.outcome.parts)


class Close(Request):
    """Decide what the caller is told."""

    __slots__ = ("codes", "handset", "key", "number", "outcome", "rules")

    priority = URGENT
    # A hold must end, also when nobody can be told in time how.
    kept = True

    def __init__(
        self,
        client_id: bytes,
        number: int,
        outcome: Outcome | None,
        key: KeyUse | None,
        rules: Rules,
        *,
        handset: bool,
        codes: bool,
    ) -> None:
        """Prepare it.

        Args:
            client_id: whose it is.
            number: the message.
            outcome: what the operator answered; None for nothing so far.
            key: its Idempotency-Key, if it has one.
            rules: the settings that count.
            handset: whether only the handset confirms, by its receipt or the operator's answer.
            codes: whether the code is ours, and can be verified.
        """
        super().__init__(client_id)
        self.number = number
        self.outcome = outcome
        self.key = key
        self.rules = rules
        self.handset = handset
        self.codes = codes

    def needs(self, wants: Wants) -> None:
        """The message, its account, and its key's record."""
        want_client(wants, self.client_id, self.key)
        wants.messages.add(self.number)

    def decide(self, turn: Turn) -> None:
        """Settle the message and answer ``Decided``; the clock is looked at here."""
        message = turn.messages[self.number]
        account = turn.accounts[message.client]
        if message.status == Status.SENDING:
            self._settle(turn, message)
        answer = ANSWER_OTP_FAILED
        if message.status == Status.DELIVERED:
            answer = ANSWER_OTP_HANDSET
        elif message.status == Status.SENT or message.reason == Reason.NO_RECEIPTS:
            answer = ANSWER_OTP_OPERATOR
        expires_at_ms = None
        if answer != ANSWER_OTP_FAILED and self.codes:
            expires_at_ms = message.created_at_ms + self.rules.otp_valid_ms
            turn.add_code(
                OtpCode(
                    message.number,
                    message.client,
                    message.recipient,
                    message.id,
                    expires_at_ms,
                    0,
                    None,
                    1,
                )
            )
        if self.key is not None:
            record = turn.keys[account.number, self.key.digest]
            record.answer = answer
            record.credits_cents = account.credits_cents
            turn.add_key(record)
        self.answer = Decided(message, answer, account.credits_cents, expires_at_ms=expires_at_ms)

    def _settle(self, turn: Turn, message: Message) -> None:
        outcome = self.outcome
        turn.touch(message)
        if outcome is None or outcome.verdict is Verdict.UNKNOWN:
            message.last_error = outcome.detail if outcome else "no confirmation in time"
            lifecycle.finish(turn, message, Status.UNKNOWN, Reason.UNCERTAIN)
        elif outcome.verdict is not Verdict.ACCEPTED:
            refused = outcome.verdict is Verdict.REFUSED
            if not outcome.has_left:
                message.attempts = 0
            message.last_error = outcome.detail or outcome.verdict
            reason = Reason.REJECTED_BY_OPERATOR if refused else Reason.RETRIES_EXHAUSTED
            lifecycle.finish(turn, message, Status.FAILED_PERM, reason)
        elif turn.now_ms >= message.expires_at_ms or (self.handset and not outcome.handset):
            message.provider_message_id = outcome.provider_message_id or None
            message.submitted_at_ms = turn.now_ms
            message.last_error = "confirmed too late"
            lifecycle.finish(turn, message, Status.UNKNOWN, Reason.UNCERTAIN)
        else:
            lifecycle.settle(turn, message, message.attempts, outcome, self.rules)


class Verify(Request):
    """Compare a code; the try is counted first."""

    __slots__ = ("code", "derive_key", "digits", "recipient", "rules")

    def __init__(
        self, client_id: bytes, recipient: int, code: str, rules: Rules, derive_key: bytes
    ) -> None:
        super().__init__(client_id)
        self.recipient = recipient
        self.code = code
        self.rules = rules
        self.derive_key = derive_key

    def needs(self, wants: Wants) -> None:
        """The account, and its newest code for the number."""
        wants.clients.add(self.client_id)
        wants.codes.add((self.client_id, self.recipient))

    def decide(self, turn: Turn) -> None:
        """Answer (verified, message id, tries left)."""
        account = known(turn, self.client_id)
        row = turn.codes.get((account.number, self.recipient))
        tries_max = self.rules.otp_tries_max
        if (
            row is None
            or not row.live
            or row.used_at_ms is not None
            or row.tries >= tries_max
            or row.expires_at_ms <= turn.now_ms
        ):
            raise NoLiveCode
        row.tries += 1
        turn.add_code(row)
        expected = derive(self.derive_key, row.id, self.rules.otp_digits)
        verified = hmac.compare_digest(expected.encode(), self.code.encode("utf-8", "replace"))
        if verified:
            row.used_at_ms = turn.now_ms
        self.answer = (verified, row.id, 0 if verified else tries_max - row.tries)


def undeliverable(message: Message) -> OtpUndeliverable:
    """The refusal that tells what became of a code; ``submitted`` once bytes have left."""
    return OtpUndeliverable(
        message_id=uuid_text(message.id), submitted=message.attempts > 0, reason=message.reason
    )
