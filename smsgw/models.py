"""The nouns: what a shard stores, and what passes between the stations of the line.

Rows are plain mutable records: a turn works on them in memory and writes what has changed. The
order of a row's fields is the order of its columns in ``store/sql``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from smsgw.ids import created_at_ms, generation_of


class Lane(IntEnum):
    """How a message travels."""

    REGULAR = 0
    EXPRESS = 1
    OTP = 2


class Status(IntEnum):
    """Where a message is; everything from ``DELIVERED`` on is final and never changes."""

    SCHEDULED = 0
    QUEUED = 1
    SENDING = 2
    SENT = 3
    UNCERTAIN = 4
    FAILED_TEMP = 5
    DELIVERED = 10
    FAILED_PERM = 11
    EXPIRED = 12
    CANCELLED = 13
    UNKNOWN = 14


FINAL_FROM: Final = int(Status.DELIVERED)
WAITING: Final = frozenset({Status.SCHEDULED, Status.QUEUED, Status.FAILED_TEMP})


class Reason(StrEnum):
    """Why a message ended as it did."""

    REJECTED_BY_OPERATOR = "rejected_by_operator"
    UNDELIVERED = "undelivered"
    RETRIES_EXHAUSTED = "retries_exhausted"
    INTERRUPTED = "interrupted"
    VALIDITY_PASSED = "validity_passed"
    EXPIRED_BY_OPERATOR = "expired_by_operator"
    RECEIPT_TIMEOUT = "receipt_timeout"
    UNCERTAIN = "uncertain"
    NO_RECEIPTS = "no_receipts"
    CANCELLED_BY_CLIENT = "cancelled_by_client"


class EntryKind(IntEnum):
    """What a ledger entry records."""

    TOPUP = 0
    DEDUCT = 1
    HOLD = 2
    CAPTURE = 3
    RELEASE = 4
    CARRIED_FORWARD = 5


class Timer(IntEnum):
    """What time alone will do to a message."""

    PROMOTE = 0
    EXPIRE = 1
    RECEIPT = 2
    UNCERTAIN = 3
    FORGET_TEXT = 4
    FORGET = 5


@dataclass(slots=True)
class Account:
    """A client and its money, in integer cents.

    ``credits_cents`` is available, ``held_cents`` is on hold for messages under way,
    ``charged_cents`` was captured in all. ``sequence`` numbers the client's ledger entries.
    ``waiting`` counts its messages that are scheduled, queued or waiting for a retry.
    """

    number: int
    id: bytes
    slot: int
    name: str
    weight: int
    created_at_ms: int
    credits_cents: int
    held_cents: int
    charged_cents: int
    sequence: int
    waiting: int
    paused: int


@dataclass(slots=True)
class Message:
    """One message. ``recipient`` holds the digits of an E.164 number, without the plus.

    ``held_cents`` is what is still on hold, ``charged_cents`` what was captured; what is missing
    to ``cost_cents`` was released. ``surcharge_cents`` is the express part of the cost. Times are
    Unix milliseconds; ``due_at_ms`` is when a scheduled or failed message is queued again;
    of one that another operator was given at once, when those that failed to take it want it again.
    """

    number: int
    id: bytes
    client: int
    lane: int
    status: int
    reason: str | None
    recipient: int
    sender: str
    text: str | None
    ucs2: int
    parts: int
    cost_cents: int
    held_cents: int
    charged_cents: int
    surcharge_cents: int
    reference: str | None
    batch: int | None
    route: int
    rank: int
    attempts: int
    provider: str | None
    provider_message_id: str | None
    last_error: str | None
    due_at_ms: int | None
    expires_at_ms: int
    submit_by_ms: int | None
    submitted_at_ms: int | None
    final_at_ms: int | None
    updated_at_ms: int
    express_missed: int

    @property
    def created_at_ms(self) -> int:
        """When it was accepted."""
        return created_at_ms(self.number)

    @property
    def is_final(self) -> bool:
        """Whether its status can no longer change."""
        return self.status >= FINAL_FROM


@dataclass(slots=True)
class KeyRecord:
    """What an Idempotency-Key did: enough to give the first answer again.

    ``answer`` is one of the ``ANSWER_`` values; ``subject`` the number of the message or batch.
    """

    client: int
    digest: bytes
    fingerprint: bytes
    subject: int
    answer: int
    credits_cents: int
    created_at_ms: int

    @property
    def generation(self) -> int:
        """Of its subject; 0 for what is kept for ever. Keys of a generation stand together."""
        return 0 if self.answer == ANSWER_ADJUSTED else generation_of(self.subject)


ANSWER_RUNNING: Final = 0
ANSWER_ACCEPTED: Final = 1
ANSWER_BATCH: Final = 2
ANSWER_OTP_OPERATOR: Final = 3
ANSWER_OTP_HANDSET: Final = 4
ANSWER_OTP_FAILED: Final = 5
ANSWER_ADJUSTED: Final = 6


@dataclass(slots=True)
class Batch:
    """A batch request: how far it got, and which of its items were rejected.

    ``rejections`` is JSON: ``[[index, code, sentence], …]``.
    """

    number: int
    id: bytes
    client: int
    size: int
    done: int
    accepted: int
    rejections: str
    credits_cents: int


@dataclass(slots=True)
class OtpCode:
    """A code that we made: derived from the message id, so only its use is stored."""

    message: int
    client: int
    recipient: int
    id: bytes
    expires_at_ms: int
    tries: int
    used_at_ms: int | None
    live: int


QUANTUM: Final = 1 << 20
"""How far one part moves a client of weight 1 on."""


@dataclass(slots=True)
class Flow:
    """A client's place in one queue: how many messages and parts wait, and what the next ones rank.

    New messages form one row, those that come back (retries, schedules, resumed and rerouted ones)
    another: so a campaign's retries neither wait behind all of it nor stand before everybody else.
    """

    next_rank: int = 0
    waiting: int = 0
    parts: int = 0
    again_rank: int = 0
    served_rank: int = 0

    def copy(self) -> "Flow":
        """Another one like it."""
        return Flow(self.next_rank, self.waiting, self.parts, self.again_rank, self.served_rank)

    def join(self, virtual: int, cost: int) -> int:
        """The rank of a new message that moves the client on by ``cost``."""
        # What was cancelled or has expired was never served: with nothing waiting, it is forgotten.
        rank = max(virtual, self.next_rank if self.waiting else self.served_rank)
        self.next_rank = rank + cost
        return rank

    def rejoin(self, virtual: int, cost: int) -> int:
        """The rank of a message that comes back."""
        rank = max(virtual, self.again_rank if self.waiting else self.served_rank)
        self.again_rank = rank + cost
        return rank


@dataclass(slots=True)
class Part:
    """A part that an operator has accepted, where it takes parts one by one, counted from 1.

    ``status`` is ``SENT``, or how the part has ended.
    """

    message: int
    part: int
    provider: str
    status: int
    provider_message_id: str | None


class Unreported(NamedTuple):
    """What an operator has accepted, and no receipt has told yet how it ended."""

    message: int
    provider: str | None
    provider_message_id: str | None
    recipient: int


class Verdict(StrEnum):
    """What a submit came to, for one part."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    FAILED = "failed"
    THROTTLED = "throttled"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Outcome:
    """What an operator made of a submit; treat it as frozen.

    ``refused`` is for good, ``failed`` is temporary, ``throttled`` says that the link is too fast
    and is no failure of the message, ``not_sent`` that no byte left, or, where it was ``answered``,
    that the operator used none, and if it should come back only after a while, that this may be its
    own fault; ``unknown`` that bytes may have left and nothing came back;
    ``timed_out``, that this speaks against the operator's health.
    ``handset`` says of what was accepted that the handset has it, and not only the operator;
    ``receipts``, that the operator was asked to report on it. Where
    an operator takes parts one by one, ``parts`` has an outcome for each part of this submit,
    counted from 1, and the rest is what they come to.
    """

    verdict: Verdict
    provider_message_id: str | None = None
    detail: str | None = None
    retry_after_s: float | None = None
    handset: bool = False
    receipts: bool = True
    timed_out: bool = False
    parts: "Mapping[int, Outcome] | None" = None
    answered: bool = False

    @property
    def has_left(self) -> bool:
        """Whether bytes may have left for the operator."""
        return (
            self.verdict is not Verdict.NOT_SENT
            or self.answered
            or any(part.has_left for part in (self.parts or {}).values())
        )


@dataclass(slots=True, frozen=True)
class Rules:
    """The settings that decisions depend on, in the units decisions use."""

    attempts_max: int = 3
    express_attempts_max: int = 5
    retry_base_ms: int = 30_000
    retry_max_ms: int = 3_600_000
    on_uncertain: str = "wait"
    uncertain_ms: int = 600_000
    receipt_timeout_ms: int = 259_200_000
    validity_ms: int = 259_200_000
    capture_on_sent: bool = False
    backlog_max: int = 20_000_000
    backlog_client_max: int = 5_000_000
    guarantee_ms: int = 60_000
    otp_tries_max: int = 5
    otp_valid_ms: int = 300_000
    otp_digits: int = 6
    idempotency_ms: int = 259_200_000
