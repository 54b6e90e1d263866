"""What the money machine tries, and a small model of what must come of it, with dictionaries."""

from dataclasses import dataclass, field
from typing import Any, Final

from smsgw.errors import (
    BacklogFull,
    ExpressGuaranteeUnavailable,
    InsufficientCredits,
    InvalidRequest,
    SmsgwError,
)
from smsgw.models import FINAL_FROM, WAITING, Lane, Rules, Status, Timer, Verdict
from smsgw.sweeper import CountSpan, ExpireSpan, ForgetMessages, ReceiptSpan, Walk
from smsgw.tariff import Tariff
from tests.records import NOW_MS

TARIFF: Final = Tariff()
VALIDITY_MS, RECEIPT_MS, FORGET_MS = 100_000, 200_000, 86_400_000
DEADLINE_MS: Final = 5_000
RULES: Final = Rules(
    attempts_max=2,
    express_attempts_max=3,
    retry_base_ms=10_000,
    uncertain_ms=50_000,
    receipt_timeout_ms=RECEIPT_MS,
    validity_ms=VALIDITY_MS,
    guarantee_ms=4_000,
    backlog_client_max=7,
    idempotency_ms=1 << 50,
)
CLIENTS: Final = [bytes([n]) * 16 for n in range(4)]
"""The last of them is never created."""
WORDS: Final = {
    "DELIVRD": Status.DELIVERED,
    "UNDELIV": Status.FAILED_PERM,
    "EXPIRED": Status.EXPIRED,
    "ENROUTE": None,
}
WALKS: Final[dict[type[Walk], int]] = {
    ExpireSpan: VALIDITY_MS,
    ReceiptSpan: RECEIPT_MS,
    CountSpan: 5_000,
    ForgetMessages: FORGET_MS,
}
S = Status

# What can happen. Where it says ``target``, a message that was there before the turn is meant.


@dataclass(frozen=True)
class DoAdjust:
    client: int
    amount: int
    key: str | None = None


@dataclass(frozen=True)
class Sms:
    lane: Lane
    parts: int
    send_in_ms: int | None = None
    validity_ms: int | None = None

    @property
    def cost(self) -> int:
        return TARIFF.cost_cents(self.lane, self.parts)


@dataclass(frozen=True)
class DoAdmit:
    client: int
    sms: Sms
    key: str | None = None


@dataclass(frozen=True)
class DoBatch:
    client: int
    items: tuple[Sms | None, ...]
    all_or_nothing: bool
    key: str | None = None


@dataclass(frozen=True)
class DoOpen:
    client: int
    provider: str | None
    key: str | None = None


@dataclass(frozen=True)
class DoClose:
    target: int
    verdict: Verdict | None


@dataclass(frozen=True)
class DoSettle:
    target: int
    verdict: Verdict
    stale: bool = False


@dataclass(frozen=True)
class DoReceive:
    target: int
    word: str


@dataclass(frozen=True)
class DoCancel:
    target: int
    stranger: bool = False


@dataclass(frozen=True)
class DoPause:
    client: int
    paused: bool


@dataclass(frozen=True)
class DoUnshelve:
    client: int


@dataclass(frozen=True)
class DoFire:
    pass


@dataclass(frozen=True)
class DoWalk:
    walk: type[Walk]


@dataclass(frozen=True)
class DoFold:
    client: int


@dataclass(frozen=True)
class DoRecover:
    pass


@dataclass(frozen=True)
class DoClaim:
    parts: int
    provider: str


@dataclass(frozen=True)
class DoPoison:
    kind: str


# The model: what CONTRACT and DESIGN say, with dictionaries.


@dataclass
class Purse:
    credits: int = 0
    held: int = 0
    charged: int = 0
    waiting: int = 0
    paused: bool = False


@dataclass
class Book:
    """A message of the model."""

    client: bytes
    lane: Lane
    parts: int
    cost: int
    surcharge: int
    expires_at: int
    submit_by: int | None
    status: Status = S.QUEUED
    held: int = 0
    charged: int = 0
    attempts: int = 0
    provider: str | None = None
    due_at: int | None = None
    submitted_at: int | None = None
    since: int = 0
    key: str | None = None
    closed: bool = False


@dataclass
class Key:
    meaning: Any
    subject: int
    credits: int
    running: bool = False


@dataclass
class Model:
    rules: Rules
    now: int = NOW_MS
    purses: dict[bytes, Purse] = field(default_factory=dict)
    books: dict[int, Book] = field(default_factory=dict)
    keys: dict[tuple[bytes, str], Key] = field(default_factory=dict)
    timers: set[tuple[int, int, Timer]] = field(default_factory=set)
    marks: dict[type[Walk], int] = field(default_factory=lambda: dict.fromkeys(WALKS, 0))

    def move(self, book: Book, status: Status) -> None:
        purse = self.purses[book.client]
        purse.waiting += (status in WAITING) - (book.status in WAITING)
        book.status = status

    def capture(self, book: Book) -> None:
        purse, held = self.purses[book.client], book.held
        missed = book.submit_by is not None and (book.submitted_at or self.now) > book.submit_by
        back = min(held, book.surcharge) if missed else 0
        book.held = 0
        book.charged += held - back
        purse.held -= held
        purse.charged += held - back
        purse.credits += back

    def release(self, book: Book) -> None:
        purse = self.purses[book.client]
        purse.held -= book.held
        purse.credits += book.held
        book.held = 0

    def end(self, book: Book, status: Status) -> None:
        self.move(book, status)
        book.due_at = None
        if status is S.DELIVERED:
            self.capture(book)
        else:
            self.release(book)

    def invalid(self, book: Book) -> bool:
        return book.expires_at <= self.now

    def accept(self, client: bytes, number: int, sms: Sms, key: str | None = None) -> Book:
        begins = self.now + (sms.send_in_ms or 0)
        validity = VALIDITY_MS if sms.validity_ms is None else sms.validity_ms
        book = Book(
            client,
            sms.lane,
            sms.parts,
            sms.cost,
            TARIFF.surcharge_cents(sms.lane, sms.parts),
            begins + validity,
            begins + self.rules.guarantee_ms if sms.lane is Lane.EXPRESS else None,
            held=sms.cost,
            key=key,
        )
        purse = self.purses[client]
        purse.credits -= sms.cost
        purse.held += sms.cost
        assert number not in self.books
        assert number > max(self.books, default=0)
        self.books[number] = book
        if sms.lane is not Lane.OTP:
            purse.waiting += 1
        if sms.send_in_ms is not None:
            book.status, book.due_at = S.SCHEDULED, begins
            self.timers.add((begins, number, Timer.PROMOTE))
        if sms.send_in_ms is not None or sms.validity_ms is not None:
            self.timers.add((book.expires_at, number, Timer.EXPIRE))
        return book

    def refusal(self, purse: Purse, sms: Sms) -> type[SmsgwError] | None:
        """Why a message is refused now, if it is."""
        if sms.send_in_ms is not None and sms.send_in_ms <= 0:
            return InvalidRequest
        if sms.lane is not Lane.OTP and purse.waiting >= self.rules.backlog_client_max:
            return BacklogFull
        if sms.lane is Lane.EXPRESS and purse.paused:
            return ExpressGuaranteeUnavailable
        return InsufficientCredits if purse.credits < sms.cost else None

    def settle(self, number: int, verdict: Verdict, attempt: int) -> None:
        book = self.books[number]
        if book.lane is Lane.OTP or book.attempts != attempt:
            return
        if book.status not in (S.SENDING, S.UNCERTAIN):
            return
        if verdict is Verdict.ACCEPTED:
            self.accepted(book)
        elif verdict is Verdict.REFUSED:
            self.end(book, S.FAILED_PERM)
        elif verdict is Verdict.FAILED:
            self.fail(number, book)
        elif verdict is Verdict.UNKNOWN:
            if book.status is S.SENDING:
                self.doubt(number, book)
        elif self.invalid(book):
            book.attempts -= 1
            self.end(book, S.EXPIRED)
        else:
            book.attempts -= 1
            self.move(book, S.QUEUED)

    def accepted(self, book: Book) -> None:
        book.submitted_at = self.now
        self.move(book, S.SENT)
        if book.provider == "blind":
            self.capture(book)
            self.end(book, S.UNKNOWN)
        elif self.rules.capture_on_sent:
            self.capture(book)

    def fail(self, number: int, book: Book) -> None:
        express = book.lane is Lane.EXPRESS
        limit = self.rules.express_attempts_max if express else self.rules.attempts_max
        if book.attempts >= limit:
            self.end(book, S.FAILED_PERM)
        else:
            self.try_later(number, book)

    def try_later(self, number: int, book: Book, due_at: int | None = None) -> None:
        if self.invalid(book):
            self.end(book, S.EXPIRED)
        else:
            self.move(book, S.FAILED_TEMP)
            book.due_at = due_at  # None: to be learned, its delay is drawn
            if due_at is not None:
                self.timers.add((due_at, number, Timer.PROMOTE))

    def doubt(self, number: int, book: Book, *, crashed: bool = False) -> None:
        if self.rules.on_uncertain == "wait":
            self.move(book, S.UNCERTAIN)
            book.since = self.now
            self.timers.add((self.now + self.rules.uncertain_ms, number, Timer.UNCERTAIN))
        elif self.rules.on_uncertain == "fail":
            self.end(book, S.UNKNOWN)
        elif crashed:
            self.try_later(number, book, self.now)
        else:
            self.fail(number, book)

    def receive(self, book: Book, word: str) -> None:
        status = WORDS[word]
        late = book.lane is Lane.OTP and book.status is S.SENDING and self.invalid(book)
        # The answer that would tell its id is not there: so it is about an earlier attempt.
        other = status is not S.DELIVERED and book.status is S.SENDING and book.attempts > 1
        if status is None or late or other or book.status not in (S.SENDING, S.SENT, S.UNCERTAIN):
            return
        if book.submitted_at is None:
            book.submitted_at = self.now
        early = book.status is not S.SENT
        if self.rules.capture_on_sent and early and book.lane is not Lane.OTP:
            self.capture(book)
        self.end(book, status)

    def expire(self, book: Book) -> None:
        if book.status in WAITING and self.invalid(book):
            self.end(book, S.EXPIRED)

    def time_out(self, book: Book) -> bool:
        since, limit = {
            S.SENT: (book.submitted_at or 0, self.rules.receipt_timeout_ms),
            S.UNCERTAIN: (book.since, self.rules.uncertain_ms),
        }.get(book.status, (self.now, 1))
        if since + limit > self.now:
            return False
        self.end(book, S.UNKNOWN)
        return True

    def fire(self, timers: set[tuple[int, int, Timer]]) -> None:
        for due_at, number, timer in sorted(timers):
            if due_at > self.now:
                break
            self.timers.discard((due_at, number, timer))
            book = self.books.get(number)
            if book is None:
                continue
            if timer is Timer.PROMOTE:
                if book.due_at is not None and book.due_at <= self.now:
                    if self.invalid(book):
                        self.end(book, S.EXPIRED)
                    else:
                        self.move(book, S.QUEUED)
                        book.due_at = None
            elif timer is Timer.EXPIRE:
                self.expire(book)
            elif timer is Timer.RECEIPT:
                self.wait_for_receipt(number, book)
            elif timer is Timer.UNCERTAIN:
                self.time_out(book)

    def wait_for_receipt(self, number: int, book: Book) -> None:
        if book.status < FINAL_FROM and not self.time_out(book):
            since = book.submitted_at or self.now
            self.timers.add((since + self.rules.receipt_timeout_ms, number, Timer.RECEIPT))

    def walk(self, walk: type[Walk], to: int, seen: dict[int, Status]) -> None:
        """Work on a stretch; ``seen`` is where its messages were when it was loaded."""
        stretch = [(n, b) for n, b in self.books.items() if self.marks[walk] < n <= to]
        if stretch:
            self.marks[walk] = max(to, self.marks[walk])
        for number, book in stretch:
            if walk is ExpireSpan and seen[number] in WAITING:
                if book.status in WAITING and self.invalid(book):
                    self.end(book, S.EXPIRED)
                else:
                    self.timers.add((book.expires_at, number, Timer.EXPIRE))
            elif walk is ReceiptSpan:
                self.wait_for_receipt(number, book)

    def recover(self) -> None:
        for number, book in self.books.items():
            if book.status is S.SENDING:
                if book.lane is Lane.OTP:
                    self.end(book, S.FAILED_PERM)
                    self.close_key(number, book)
                else:
                    self.doubt(number, book, crashed=True)

    def close_key(self, number: int, book: Book) -> None:
        book.closed = True
        if book.key is not None:
            key = self.keys[book.client, book.key]
            assert key.subject == number
            key.running, key.credits = False, self.purses[book.client].credits
