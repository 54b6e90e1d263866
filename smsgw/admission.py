"""The one entrance for messages: whoever brings them, this decides and answers.

A request is turned into drafts (checked, counted, priced), and an ``Admit`` takes them into a turn
of the client's shard: message, hold, queue place and idempotency record are one transaction.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final

from smsgw import fairness, ledger
from smsgw.errors import (
    BacklogFull,
    ExpressGuaranteeUnavailable,
    IdempotencyInProgress,
    IdempotencyMismatch,
    InvalidRequest,
    Refused,
    SmsgwError,
    UnknownClient,
)
from smsgw.ids import generation_of, message_id, salt
from smsgw.models import (
    ANSWER_ACCEPTED,
    ANSWER_BATCH,
    ANSWER_RUNNING,
    Account,
    Batch,
    KeyRecord,
    Lane,
    Message,
    Rules,
    Status,
    Timer,
)
from smsgw.turn import Request, Tell, Turn, Wants

SEND_AT_AHEAD_MS: Final = 35 * 86_400_000
_BACKLOG_SHARE: Final = 0.95
_DIGEST_BYTES: Final = 16


@dataclass(slots=True)
class Draft:
    """A message that was checked, counted and priced, but not accepted yet.

    Treat it as frozen; that it is not makes it four times cheaper to build. ``recipient`` holds
    the digits of an E.164 number; ``validity_ms`` is None for the default.
    """

    recipient: int
    sender: str
    text: str
    ucs2: bool
    parts: int
    lane: Lane
    cost_cents: int
    surcharge_cents: int
    route: int
    reference: str | None = None
    validity_ms: int | None = None
    send_at_ms: int | None = None


@dataclass(slots=True, frozen=True)
class KeyUse:
    """An Idempotency-Key with what it stands for: digests of the key and of the request."""

    digest: bytes
    fingerprint: bytes


@dataclass(slots=True, frozen=True)
class Replay:
    """The answer is an earlier one, to be told again."""

    record: KeyRecord


@dataclass(slots=True)
class Accepted:
    """A message was accepted; ``credits_cents`` is what the client had left after it."""

    message: Message
    scheduled: bool
    credits_cents: int


def key_use(key: str, route: str, *meaning: Any) -> KeyUse:
    """Digest an Idempotency-Key, and the route and parsed body it came with."""
    digest = blake2b(key.encode(), digest_size=_DIGEST_BYTES).digest()
    content = repr((route, meaning)).encode("utf-8", "surrogatepass")
    return KeyUse(digest, blake2b(content, digest_size=_DIGEST_BYTES).digest())


def replayed(
    turn: Turn, account: Account, key: KeyUse | None, kept_ms: int | None = None
) -> KeyRecord | None:
    """What a key did before; None for a new one, and for one that was kept long enough.

    Args:
        turn: the turn.
        account: whose key it is.
        key: the key, if there is one.
        kept_ms: for how long keys are remembered; None for ever.

    Raises:
        IdempotencyMismatch: it did so for another request.
    """
    if key is None:
        return None
    record = turn.keys.get((account.number, key.digest))
    if record is None:
        return None
    # The sweeper drops old keys sooner or later; what is promised ends at its time.
    if kept_ms is not None and record.created_at_ms + kept_ms <= turn.now_ms:
        return None
    if record.fingerprint != key.fingerprint:
        raise IdempotencyMismatch
    return record


def want_client(wants: Wants, client_id: bytes, key: KeyUse | None) -> None:
    """Want a client's account, and what a key of it did, if there is one."""
    wants.clients.add(client_id)
    if key is not None:
        wants.keys.add((client_id, key.digest))


def remember(turn: Turn, account: Account, key: KeyUse | None, subject: int, answer: int) -> None:
    """Keep what a key did, if there is one: its answer, and what the client had left after it."""
    if key is not None:
        turn.add_key(
            KeyRecord(
                account.number,
                key.digest,
                key.fingerprint,
                subject,
                answer,
                account.credits_cents,
                turn.now_ms,
            )
        )


def known(turn: Turn, client_id: bytes) -> Account:
    """The account of a client.

    Raises:
        UnknownClient: there is none.
    """
    account = turn.account_of.get(client_id)
    if account is None:
        raise UnknownClient
    return account


def make_message(turn: Turn, account: Account, draft: Draft, rules: Rules) -> Message:
    """A new message with its number and times, not yet held or queued."""
    now_ms = turn.now_ms
    number = turn.numbers.next(now_ms)
    begins_ms = now_ms if draft.send_at_ms is None else draft.send_at_ms
    validity_ms = rules.validity_ms if draft.validity_ms is None else draft.validity_ms
    return Message(
        number=number,
        id=message_id(number, account.slot, salt()),
        client=account.number,
        lane=int(draft.lane),
        status=int(Status.QUEUED),
        reason=None,
        recipient=draft.recipient,
        sender=draft.sender,
        text=draft.text,
        ucs2=int(draft.ucs2),
        parts=draft.parts,
        cost_cents=draft.cost_cents,
        held_cents=0,
        charged_cents=0,
        surcharge_cents=draft.surcharge_cents,
        reference=draft.reference,
        batch=None,
        route=draft.route,
        rank=0,
        attempts=0,
        provider=None,
        provider_message_id=None,
        last_error=None,
        due_at_ms=None,
        expires_at_ms=begins_ms + validity_ms,
        submit_by_ms=begins_ms + rules.guarantee_ms if draft.lane is Lane.EXPRESS else None,
        submitted_at_ms=None,
        final_at_ms=None,
        updated_at_ms=now_ms,
        express_missed=0,
    )


def accept(
    turn: Turn,
    account: Account,
    draft: Draft,
    rules: Rules,
    backlog: int,
    batch: int | None = None,
) -> Message:
    """Accept one message: hold its cost, and queue or schedule it.

    Args:
        turn: the turn it happens in.
        account: whose message it is.
        draft: the message.
        rules: the settings that count.
        backlog: how many messages wait in the whole gateway.
        batch: the number of its batch, if it came in one.

    Raises:
        InvalidRequest: the time to send it at is not in the future, or too far in it.
        BacklogFull: too many messages wait already.
        ExpressGuaranteeUnavailable: its client is paused, so no time can be promised.
        InsufficientCredits: the credit does not cover it.
    """
    if draft.send_at_ms is not None:
        check_send_at(draft.send_at_ms, turn.now_ms)
    _check_backlog(account, rules, backlog + turn.waiting)
    _check_promise(account, draft)
    ledger.afford(account, draft.cost_cents)
    message = make_message(turn, account, draft, rules)
    message.batch = batch
    turn.add_message(message)
    ledger.hold(turn, account, message)
    turn.waits(account, 1)
    if draft.send_at_ms is None:
        fairness.admit(turn, message, account)
    else:
        message.status = int(Status.SCHEDULED)
        message.due_at_ms = draft.send_at_ms
        turn.at(draft.send_at_ms, message, Timer.PROMOTE)
    if draft.validity_ms is not None or draft.send_at_ms is not None:
        turn.at(message.expires_at_ms, message, Timer.EXPIRE)
    return message


def check_send_at(send_at_ms: int, now_ms: int) -> None:
    """Check that a schedule lies ahead, but not too far.

    Raises:
        InvalidRequest: naming ``send_at``.
    """
    says = None
    if send_at_ms <= now_ms:
        says = "must be in the future"
    elif send_at_ms > now_ms + SEND_AT_AHEAD_MS:
        says = "must be at most 35 days ahead"
    if says:
        raise InvalidRequest(f"send_at {says}.", fields=[{"field": "send_at", "message": says}])


def _check_backlog(account: Account, rules: Rules, backlog: int) -> None:
    if account.waiting >= rules.backlog_client_max:
        raise BacklogFull("Too many messages of this client are waiting.", retry_after_s=60)
    share = _BACKLOG_SHARE if account.waiting else 1.0
    if backlog >= rules.backlog_max * share:
        raise BacklogFull(retry_after_s=60)


def _check_promise(account: Account, draft: Draft) -> None:
    if draft.lane is Lane.EXPRESS and account.paused:
        raise ExpressGuaranteeUnavailable("This client is paused.", retry_after_s=60)


class Admit(Request):
    """Accept one message."""

    __slots__ = ("backlog", "draft", "key", "rules", "said_no")

    def __init__(
        self,
        client_id: bytes,
        draft: Draft,
        key: KeyUse | None,
        rules: Rules,
        backlog: int,
        said_no: Refused | SmsgwError | None = None,
        tell: Tell | None = None,
    ) -> None:
        """Prepare it.

        Args:
            client_id: whose message it is.
            draft: the message.
            key: its Idempotency-Key, if it has one.
            rules: the settings that count.
            backlog: how many messages wait in the whole gateway.
            said_no: a refusal that holds unless the key was used before.
            tell: whom to tell the answer.
        """
        super().__init__(client_id, tell)
        self.draft = draft
        self.key = key
        self.rules = rules
        self.backlog = backlog
        self.said_no = said_no

    def needs(self, wants: Wants) -> None:
        """The account, and what the key did."""
        want_client(wants, self.client_id, self.key)

    def decide(self, turn: Turn) -> None:
        """Answer ``Accepted``, or the ``Replay`` of an earlier answer."""
        account = known(turn, self.client_id)
        record = replayed(turn, account, self.key, self.rules.idempotency_ms)
        if record is not None:
            if record.answer == ANSWER_RUNNING:
                raise IdempotencyInProgress
            self.answer = Replay(record)
            return
        if self.said_no is not None:
            raise self.said_no
        message = accept(turn, account, self.draft, self.rules, self.backlog)
        remember(turn, account, self.key, message.number, ANSWER_ACCEPTED)
        scheduled = self.draft.send_at_ms is not None
        self.answer = Accepted(message, scheduled, account.credits_cents)


@dataclass(slots=True, frozen=True)
class Rejected:
    """An item of a batch that was not accepted."""

    error: SmsgwError


@dataclass(slots=True)
class BatchProgress:
    """How far a batch has come; the answer once ``done`` equals its size."""

    batch: Batch
    results: dict[int, Accepted | Rejected]


class AdmitBatch(Request):
    """Accept the next items of a batch: all of them with ``all_or_nothing``, else a few a turn."""

    __slots__ = ("all_or_nothing", "backlog", "first", "items", "key", "progress", "rules", "size")

    def __init__(
        self,
        client_id: bytes,
        items: Sequence[Draft | SmsgwError],
        rules: Rules,
        backlog: int,
        *,
        size: int,
        all_or_nothing: bool = False,
        key: KeyUse | None = None,
        progress: BatchProgress | None = None,
    ) -> None:
        super().__init__(client_id)
        self.items = items
        self.rules = rules
        self.backlog = backlog
        self.size = size
        self.all_or_nothing = all_or_nothing
        self.key = key
        self.progress = progress
        self.first = progress is None

    @property
    def units(self) -> int:  # type: ignore[override]
        """How many messages it may add."""
        return len(self.items)

    def needs(self, wants: Wants) -> None:
        """The account, what the key did, and the batch's record."""
        want_client(wants, self.client_id, self.key)
        if self.progress is not None:
            wants.batches.add(self.progress.batch.number)

    def decide(self, turn: Turn) -> None:
        """Answer the ``BatchProgress``, or the ``Replay`` of an earlier answer."""
        account = known(turn, self.client_id)
        if self.first:
            record = replayed(turn, account, self.key, self.rules.idempotency_ms)
            if record is not None:
                self.answer = Replay(record)
                return
        if self.all_or_nothing:
            self._check_all(turn, account)
        batch = self._batch(turn, account)
        if self.progress is not None and batch.done != self.progress.batch.done:
            # Another gateway has taken the batch up.
            raise IdempotencyInProgress(retry_after_s=1)
        results: dict[int, Accepted | Rejected] = {}
        rejections = json.loads(batch.rejections)
        for index, item in enumerate(self.items, batch.done):
            try:
                if isinstance(item, SmsgwError):
                    raise item
                message = accept(turn, account, item, self.rules, self.backlog, batch.number)
            except SmsgwError as error:
                results[index] = Rejected(error)
                rejections.append([index, error.code, error.detail])
            else:
                scheduled = item.send_at_ms is not None
                results[index] = Accepted(message, scheduled, account.credits_cents)
                batch.accepted += 1
        batch.done += len(self.items)
        batch.rejections = json.dumps(rejections, ensure_ascii=False)
        batch.credits_cents = account.credits_cents
        self._keep(turn, account, batch)
        self.answer = BatchProgress(batch, results)

    def _check_all(self, turn: Turn, account: Account) -> None:
        """Refuse the whole batch for one item that would be refused.

        Raises:
            SmsgwError: the item's refusal, with its ``index``.
        """
        trial = replace(account)
        for index, item in enumerate(self.items):
            try:
                if isinstance(item, SmsgwError):
                    raise item
                if item.send_at_ms is not None:
                    check_send_at(item.send_at_ms, turn.now_ms)
                _check_backlog(trial, self.rules, self.backlog + turn.waiting + index)
                _check_promise(trial, item)
                ledger.afford(trial, item.cost_cents)
                trial.credits_cents -= item.cost_cents
                trial.waiting += 1
            except SmsgwError as error:
                error.members["index"] = index
                raise

    def _batch(self, turn: Turn, account: Account) -> Batch:
        if self.progress is not None:
            return turn.batches.get(self.progress.batch.number) or self.progress.batch
        number = turn.numbers.next(turn.now_ms)
        identifier = message_id(number, account.slot, salt())
        return Batch(number, identifier, account.number, self.size, 0, 0, "[]", 0)

    def _keep(self, turn: Turn, account: Account, batch: Batch) -> None:
        """Record the batch; one of which nothing was accepted leaves its key free."""
        complete = batch.done == batch.size
        nothing = complete and batch.accepted == 0
        if nothing and self.first:
            return
        turn.add_batch(batch)
        if self.key is not None and nothing:
            generation = generation_of(batch.number)
            turn.write("key_delete", generation, account.number, self.key.digest)
        else:
            answer = ANSWER_BATCH if complete else ANSWER_RUNNING
            remember(turn, account, self.key, batch.number, answer)
