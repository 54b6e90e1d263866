"""Any items in any turns: a real shard's file does what a small model of money and states does.

Every rule is one or two turns of several items each, on the real file. Afterwards every balance,
every message and what the shard keeps in memory are compared, and the audit must find nothing.
"""

import asyncio
import contextlib
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from smsgw.accounts import AddClient, Adjust, Cancel, PauseClient
from smsgw.admission import (
    Accepted,
    Admit,
    AdmitBatch,
    BatchProgress,
    Draft,
    KeyUse,
    Rejected,
    Replay,
    key_use,
)
from smsgw.codes import Close, Open
from smsgw.errors import (
    IdempotencyInProgress,
    IdempotencyMismatch,
    InsufficientCredits,
    InternalError,
    InvalidRecipient,
    NotCancellable,
    SmsgwError,
    UnknownClient,
    UnknownMessage,
)
from smsgw.fairness import Claim, Grant, Unshelve
from smsgw.ids import number_at
from smsgw.metrics import Metrics
from smsgw.models import FINAL_FROM, WAITING, Lane, Outcome, Status, Timer, Verdict
from smsgw.receive import Receive
from smsgw.recovery import RecoverFlights
from smsgw.store.base import ShardUnavailableError
from smsgw.sweeper import (
    FireTimers,
    FoldEntries,
    ForgetMessages,
)
from smsgw.turn import Item, Turn, Wants
from smsgw.worker import Settle
from tests import postgres
from tests.money_model import (
    CLIENTS,
    DEADLINE_MS,
    FORGET_MS,
    RULES,
    TARIFF,
    WALKS,
    WORDS,
    Book,
    DoAdjust,
    DoAdmit,
    DoBatch,
    DoCancel,
    DoClaim,
    DoClose,
    DoFire,
    DoFold,
    DoOpen,
    DoPause,
    DoPoison,
    DoReceive,
    DoRecover,
    DoSettle,
    DoUnshelve,
    DoWalk,
    Key,
    Model,
    Purse,
    S,
    Sms,
)
from tests.stores import Place, audited, compare_memory, make_unreliable, open_shard, plain

METRICS: Final = Metrics()


class Poison(Item):
    """Changes what it finds, and then cannot be stored."""

    __slots__ = ("client", "kind", "message")

    def __init__(self, kind: str, client: bytes, message: int | None) -> None:
        super().__init__()
        self.kind, self.client, self.message = kind, client, message

    def needs(self, wants: Wants) -> None:
        wants.clients.add(self.client)
        if self.message is not None:
            wants.messages.add(self.message)
        if self.kind == "needs":
            raise ValueError(self.kind)
        if self.kind == "load":
            wants.asks.append(("no such statement", ()))

    def decide(self, turn: Turn) -> None:
        account = turn.account_of[self.client]
        account.credits_cents += 1_000_000
        account.sequence += 7
        turn.touch_account(account)
        message = turn.messages.get(self.message or 0)
        if message is not None:
            turn.touch(message)
            message.held_cents += 1
            flow = turn.flow(message.client, 0, int(Lane.EXPRESS))
            flow.waiting += 5
        turn.next_client += 3
        turn.counted_next += 10
        if self.kind == "decide":
            raise ZeroDivisionError(self.kind)
        account.weight = 0  # its CHECK says otherwise

    def quarantine(self) -> str:
        return self.kind


LIKELY: Final[dict[type, frozenset[Status]]] = {
    DoSettle: frozenset({S.SENDING, S.UNCERTAIN}),
    DoReceive: frozenset({S.SENDING, S.SENT, S.UNCERTAIN}),
    DoCancel: WAITING,
}
"""To which messages something happens most of the time; at other times to any."""

keys = st.sampled_from([None, None, "a", "b", "c"])
clients = st.sampled_from([0, 0, 0, 1, 1, 1, 2, 3])
targets = st.integers(0, 30)
providers = st.sampled_from(["mock", "mock", "blind"])
smses = st.builds(
    Sms,
    st.sampled_from([Lane.REGULAR, Lane.EXPRESS]),
    st.sampled_from([1, 1, 3]),
    st.sampled_from([None, None, None, 0, 20_000]),
    st.sampled_from([None, None, 60_000]),
)
adjusts = st.builds(DoAdjust, clients, st.sampled_from([-40, -5, 3, 20, 100]), keys)
admits = st.builds(DoAdmit, clients, smses, keys)
settles = st.builds(
    DoSettle,
    targets,
    st.sampled_from([Verdict.ACCEPTED, Verdict.ACCEPTED, *Verdict]),
    st.sampled_from([False, False, False, True]),
)
receives = st.builds(DoReceive, targets, st.sampled_from([*WORDS]))
cancels = st.builds(DoCancel, targets, st.sampled_from([False, False, False, True]))
claims = st.builds(DoClaim, st.integers(0, 5), providers)
happenings = st.one_of(
    adjusts,
    admits,
    admits,
    st.builds(
        DoBatch,
        clients,
        st.lists(st.one_of(st.none(), smses, smses, smses), min_size=1, max_size=4).map(tuple),
        st.booleans(),
        keys,
    ),
    st.builds(DoOpen, clients, st.one_of(st.none(), providers, providers), keys),
    st.builds(DoClose, targets, st.sampled_from([None, Verdict.ACCEPTED, *Verdict])),
    settles,
    settles,
    receives,
    cancels,
    st.builds(DoPause, clients, st.booleans()),
    st.builds(DoUnshelve, st.sampled_from([0, 1, 2])),
    st.just(DoFire()),
    st.builds(DoWalk, st.sampled_from([*WALKS])),
    st.builds(DoFold, clients),
)
some = st.lists(happenings, max_size=4)
claiming = st.one_of(st.none(), claims, claims)
poisons = st.builds(DoPoison, st.sampled_from(["needs", "load", "decide", "write"]))


class Money(RuleBasedStateMachine):
    """A shard's file beside the model."""

    alone = False
    """Whether each item of a turn runs alone, since one of them fails."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = contextlib.ExitStack()
        self.path = self.place()
        self.runner = asyncio.Runner()
        self.virtual: dict[tuple[int, int], int] = {}
        self.open()
        self.reader = plain(self.path)

    def place(self) -> Place:
        return Path(self.ends.enter_context(tempfile.TemporaryDirectory())) / "00.db"

    def open(self) -> None:
        self.store = self.runner.run(open_shard(self.path))
        self.disk = make_unreliable(self.store)
        self.tell_when_alone()

    def tell_when_alone(self) -> None:
        one_by_one = self.store._one_by_one

        def told(*arguments: Any) -> Any:
            self.alone = True
            return one_by_one(*arguments)

        self.store._one_by_one = told

    def close(self) -> None:
        self.runner.run(self.store.close())

    def teardown(self) -> None:
        self.reader.close()
        self.close()
        self.runner.close()
        self.ends.close()

    @initialize(
        on_uncertain=st.sampled_from(["wait", "resend", "fail"]), capture_on_sent=st.booleans()
    )
    def begin(self, on_uncertain: str, capture_on_sent: bool) -> None:
        rules = replace(RULES, on_uncertain=on_uncertain, capture_on_sent=capture_on_sent)
        self.model = Model(rules)

        async def add() -> None:
            for client, credit in zip(CLIENTS, (300, 60, 0), strict=False):
                request = AddClient(client, "test", weight=1 + credit % 7, credit_cents=credit)
                await self.store.turn([request], self.model.now, {})
                self.model.purses[client] = Purse(credit)

        self.runner.run(add())
        plain = Sms(Lane.REGULAR, 1)
        self.turn([DoAdmit(0, plain), DoAdmit(0, replace(plain, parts=3)), DoAdmit(1, plain)])

    # Rules: turns of anything, and of the pairs that are most likely to disturb each other.

    @rule(before=some, claim=claiming)
    def anything(self, before: list[Any], claim: Any) -> None:
        self.turn([*before, claim])

    @rule(before=some, sms=smses, client=clients, key=st.sampled_from("ab"), same=st.booleans())
    def two_equal_keys(
        self, before: list[Any], sms: Sms, client: int, key: str, same: bool
    ) -> None:
        second = sms if same else replace(sms, parts=sms.parts + 1)
        self.turn([*before, DoAdmit(client, sms, key), DoAdmit(client, second, key)])

    @rule(before=some, receive=receives, swap=st.booleans(), again=st.booleans(), claim=claiming)
    def a_settlement_and_its_receipt(
        self, before: list[Any], receive: DoReceive, swap: bool, again: bool, claim: Any
    ) -> None:
        flying = self.having(S.SENDING)
        target = flying[receive.target % len(flying)] if flying else receive.target
        pair = [DoSettle(target, Verdict.ACCEPTED), replace(receive, target=target)]
        self.turn([*before, *(pair[::-1] if swap else pair), *([pair[1]] * again), claim])

    @rule(before=some, adjust=adjusts, admit=admits, swap=st.booleans(), claim=claiming)
    def a_top_up_and_an_admission(
        self, before: list[Any], adjust: DoAdjust, admit: DoAdmit, swap: bool, claim: Any
    ) -> None:
        pair: list[Any] = [replace(adjust, client=admit.client), admit]
        self.turn([*before, *(pair[::-1] if swap else pair), claim])

    @rule(before=some, index=targets, claim=claims)
    def a_cancel_and_a_claim(self, before: list[Any], index: int, claim: DoClaim) -> None:
        queued = self.having(S.QUEUED)
        target = queued[index % len(queued)] if queued else index
        self.turn([*before, DoCancel(target), replace(claim, parts=claim.parts + 1)])

    @rule(before=some, poison=st.lists(poisons, min_size=1, max_size=2), after=some, claim=claiming)
    def poison(self, before: list[Any], poison: list[Any], after: list[Any], claim: Any) -> None:
        self.alone = True
        self.turn([*before, *poison, *after, claim])
        self.alone = False

    @precondition(lambda self: self.having(S.QUEUED))
    @rule(
        parts=st.integers(1, 8), verdict=st.sampled_from([*Verdict]), word=st.sampled_from([*WORDS])
    )
    def a_flight(self, parts: int, verdict: Verdict, word: str) -> None:
        self.turn([DoClaim(parts, "mock")])
        self.turn([DoSettle(target, verdict) for target in self.having(S.SENDING)[:4]])
        self.turn([DoReceive(target, word) for target in self.having(S.SENT)[:2]])

    @rule(
        ms=st.sampled_from([1, 1_000, 4_001, 20_000, 60_000, 150_000, 90_000_000]),
        sweep=st.booleans(),
    )
    def time_passes(self, ms: int, sweep: bool) -> None:
        self.model.now += ms
        if sweep:
            self.turn([DoFire(), *(DoWalk(walk) for walk in WALKS)])

    @rule(recover=st.booleans())
    def it_is_opened_again(self, recover: bool) -> None:
        self.close()
        self.open()
        if recover:
            self.turn([DoRecover()])

    @rule(before=some, poison=st.lists(poisons, max_size=1), after=some, claim=claiming)
    def there_is_no_room(
        self, before: list[Any], poison: list[Any], after: list[Any], claim: Any
    ) -> None:
        self.disk.fail("COMMIT", sqlite3.SQLITE_FULL)
        with pytest.raises(ShardUnavailableError):
            self.turn([*before, *poison, *after, claim])

    def having(self, status: Status) -> list[int]:
        """The messages of a status."""
        return [number for number, book in self.model.books.items() if book.status is status]

    # A turn: items for what happens, then what the model says about each.

    def turn(self, happenings: list[Any]) -> None:
        seen: set[Any] = set()
        steps = []
        for happens in happenings:
            # One walk of a kind at a time, as the sweeper does.
            if happens is None or (isinstance(happens, DoWalk) and happens in seen):
                continue
            seen.add(happens)
            target = self.target(happens)
            if not hasattr(happens, "target") or target is not None:
                steps.append((happens, target))
        self.runner.run(self.run_turn(steps))

    def target(self, happens: Any) -> int | None:
        """The message that is meant: by its number, or one of those to which it may happen."""
        index = getattr(happens, "target", 0)
        books = self.model.books
        if index in books:
            return int(index)
        if isinstance(happens, DoClose):
            open_codes = [n for n, b in books.items() if b.lane is Lane.OTP and not b.closed]
            return open_codes[index % len(open_codes)] if open_codes else None
        likely = [n for n, b in books.items() if b.status in LIKELY.get(type(happens), ())]
        numbers = likely if likely and index % 4 else list(books)
        return numbers[index % len(numbers)] if numbers else None

    async def run_turn(self, steps: list[tuple[Any, int | None]]) -> None:
        items = [self.item(happens, target) for happens, target in steps]
        loaded = self.seen()
        self.alone = False
        result = await self.store.turn(items, self.model.now, dict(self.virtual))
        assert len(result.errors) == len(items)
        assert self.alone == any(result.errors), "some item failed where it should not"
        for (happens, target), item, error in zip(steps, items, result.errors, strict=True):
            # Items see what their predecessors changed, but what they ask for is loaded before; or
            # just before each of them, once one of them has failed.
            self.loaded = self.seen() if self.alone else loaded
            if isinstance(happens, DoPoison):
                assert isinstance(error, InternalError)
                assert error.__cause__ is not None
            else:
                assert error is None, (happens, error.__cause__)
                self.judge(happens, target, item)
        self.learn([m.number for m in result.claims], [h for h, _ in steps])
        for message in result.claims:
            key = (message.route, message.lane)
            self.virtual[key] = max(message.rank, self.virtual.get(key, 0))

    def seen(self) -> tuple[set[tuple[int, int, Timer]], dict[int, Status]]:
        """What a query finds now: the timers, and where the messages are."""
        books = self.model.books.items()
        return set(self.model.timers), {number: book.status for number, book in books}

    def item(self, happens: Any, target: int | None) -> Item:
        model, rules = self.model, self.model.rules
        book = model.books.get(target or 0)
        match happens:
            case DoAdjust(client, amount):
                return Adjust(CLIENTS[client], amount, None, use(happens))
            case DoAdmit(client, sms):
                return Admit(CLIENTS[client], self.draft(sms), use(happens), rules, 0)
            case DoBatch(client, smses, all_or_nothing):
                drafts = [InvalidRecipient() if s is None else self.draft(s) for s in smses]
                return AdmitBatch(
                    CLIENTS[client],
                    drafts,
                    rules,
                    0,
                    size=len(drafts),
                    all_or_nothing=all_or_nothing,
                    key=use(happens),
                )
            case DoOpen(client, provider):
                return Open(
                    CLIENTS[client],
                    self.draft(Sms(Lane.OTP, 1)),
                    use(happens),
                    rules,
                    provider=provider,
                    deadline_ms=model.now + DEADLINE_MS,
                    said_no=None,
                )
            case DoPoison(kind):
                return Poison(kind, CLIENTS[0], target)
            case DoPause(client, paused):
                return PauseClient(CLIENTS[client], paused=paused)
            case DoUnshelve(client):
                return Unshelve(CLIENTS[client], client + 1)
            case DoFire():
                return FireTimers(rules, METRICS, model.now)
            case DoWalk(walk):
                after = model.marks[walk]
                return walk(after, max(after, number_at(model.now - WALKS[walk])), rules)
            case DoFold(client):
                return FoldEntries(client + 1, model.now - FORGET_MS)
            case DoRecover():
                return RecoverFlights(rules)
            case DoClaim(parts, provider):
                grants = [
                    Grant(0, int(lane), provider, parts) for lane in (Lane.EXPRESS, Lane.REGULAR)
                ]
                return Claim(grants, dict(self.store.waiting))
        assert book is not None
        assert target is not None
        match happens:
            case DoClose(_, verdict):
                outcome = None if verdict is None else outcome_of(verdict, target, book)
                key = None if book.key is None else use(DoOpen(0, None, book.key))
                return Close(book.client, target, outcome, key, rules, handset=False, codes=True)
            case DoSettle(_, verdict, stale):
                outcome = outcome_of(verdict, target, book)
                return Settle(target, book.attempts - stale, outcome, rules)
            case DoReceive(_, word):
                return Receive(target, 0, f"id-{target}", word, None, rules, METRICS)
            case DoCancel(_, stranger):
                asks = CLIENTS[0] if stranger else book.client
                return Cancel(asks, target, self.row_id(target))
        raise AssertionError(happens)

    def row_id(self, number: int) -> bytes:
        (found,) = self.reader.execute(
            "SELECT id FROM message WHERE number = ?", (number,)
        ).fetchone()
        assert isinstance(found, bytes)
        return found

    def draft(self, sms: Sms) -> Draft:
        return Draft(
            15005550006,
            "ACME",
            "hello",
            False,
            sms.parts,
            sms.lane,
            sms.cost,
            TARIFF.surcharge_cents(sms.lane, sms.parts),
            0,
            None,
            sms.validity_ms,
            None if sms.send_in_ms is None else self.model.now + sms.send_in_ms,
        )

    # What the model says.

    def judge(self, happens: Any, target: int | None, item: Item) -> None:
        model = self.model
        client = CLIENTS[getattr(happens, "client", 0)]
        book = model.books.get(target or 0)
        if isinstance(happens, DoAdjust | DoAdmit | DoBatch | DoOpen | DoPause):
            if client not in model.purses:
                self.refused(item, UnknownClient)
            elif not isinstance(happens, DoPause):
                self.judge_keyed(happens, client, item)
            else:
                model.purses[client].paused = happens.paused
            return
        match happens:
            case DoFire():
                model.fire(self.loaded[0])
            case DoWalk(walk):
                model.walk(walk, number_at(model.now - WALKS[walk]), self.loaded[1])
            case DoRecover():
                model.recover()
            case DoSettle(_, verdict, _) if book is not None:
                assert isinstance(item, Settle)
                model.settle(target or 0, verdict, item.attempt)
            case DoReceive(_, word) if book is not None:
                model.receive(book, word)
            case DoClose(_, verdict) if book is not None:
                self.judge_close(target or 0, book, verdict)
            case DoCancel(_, stranger) if book is not None:
                if stranger and book.client != CLIENTS[0]:
                    self.refused(item, UnknownMessage)
                elif book.status in WAITING:
                    assert item.refusal is None
                    model.end(book, S.CANCELLED)
                elif type(item.refusal) is not UnknownMessage or not self.alone:
                    # Alone, an item also sees what was forgotten just before it.
                    self.refused(item, NotCancellable)

    @staticmethod
    def refused(item: Item, error: type[SmsgwError]) -> None:
        assert type(item.refusal) is error, (item.refusal, item.answer)

    def judge_keyed(self, happens: Any, client: bytes, item: Item) -> None:
        model = self.model
        purse = model.purses[client]
        known = None if happens.key is None else model.keys.get((client, happens.key))
        if known is not None:
            if known.meaning != meaning(happens):
                self.refused(item, IdempotencyMismatch)
            elif known.running:
                self.refused(item, IdempotencyInProgress)
            elif isinstance(happens, DoAdjust):
                assert item.refusal is None
            else:
                assert isinstance(item.answer, Replay)
                record = item.answer.record
                assert (record.subject, record.credits_cents) == (known.subject, known.credits)
            return
        match happens:
            case DoAdjust(_, amount):
                subject = self.judge_adjust(purse, amount, item)
            case DoAdmit(_, sms):
                subject = self.judge_admit(client, sms, item)
            case DoBatch():
                subject = self.judge_batch(client, happens, item)
            case _:
                subject = self.judge_open(client, happens, item)
        if happens.key is not None and subject is not None:
            running = isinstance(happens, DoOpen) and happens.provider is not None
            key = Key(meaning(happens), subject, purse.credits, running)
            model.keys[client, happens.key] = key

    def judge_adjust(self, purse: Purse, amount: int, item: Item) -> int | None:
        if purse.credits + amount < 0:
            self.refused(item, InsufficientCredits)
            return None
        assert item.refusal is None
        purse.credits += amount
        return 0

    def judge_admit(self, client: bytes, sms: Sms, item: Item) -> int | None:
        refusal = self.model.refusal(self.model.purses[client], sms)
        if refusal is not None:
            self.refused(item, refusal)
            return None
        return self.accepted(client, sms, item.answer)

    def accepted(self, client: bytes, sms: Sms, answer: object) -> int:
        assert isinstance(answer, Accepted)
        self.model.accept(client, answer.message.number, sms)
        assert answer.credits_cents == self.model.purses[client].credits
        assert answer.scheduled == (sms.send_in_ms is not None)
        return answer.message.number

    def judge_batch(self, client: bytes, happens: DoBatch, item: Item) -> int | None:
        model = self.model
        if happens.all_or_nothing:
            trial = replace(model.purses[client])
            for index, sms in enumerate(happens.items):
                refusal = InvalidRecipient if sms is None else model.refusal(trial, sms)
                if sms is None or refusal is not None:
                    assert refusal is not None
                    self.refused(item, refusal)
                    assert item.refusal is not None
                    assert item.refusal.members["index"] == index
                    return None
                trial.credits -= sms.cost
                trial.waiting += 1
        assert isinstance(item.answer, BatchProgress)
        batch, results = item.answer.batch, item.answer.results
        assert len(results) == len(happens.items)
        taken = 0
        for index, sms in enumerate(happens.items):
            refusal = InvalidRecipient
            if sms is not None:
                refusal = model.refusal(model.purses[client], sms)
            if refusal is None and sms is not None:
                self.accepted(client, sms, results[index])
                taken += 1
            else:
                result = results[index]
                assert isinstance(result, Rejected)
                assert type(result.error) is refusal
        assert (batch.accepted, batch.done) == (taken, len(happens.items))
        assert batch.credits_cents == model.purses[client].credits
        return batch.number if taken else None

    def judge_open(self, client: bytes, happens: DoOpen, item: Item) -> int | None:
        model, sms = self.model, Sms(Lane.OTP, 1)
        refusal = model.refusal(model.purses[client], sms)
        if refusal is not None:
            self.refused(item, refusal)
            return None
        number: int = item.answer.number
        book = model.accept(client, number, sms, happens.key)
        book.expires_at = model.now + DEADLINE_MS
        book.status, book.attempts, book.provider = S.SENDING, 1, happens.provider
        if happens.provider is None:
            book.attempts, book.closed = 0, True
            model.end(book, S.FAILED_PERM)
        return number

    def judge_close(self, number: int, book: Book, verdict: Verdict | None) -> None:
        model = self.model
        if book.status is S.SENDING:
            if verdict in (None, Verdict.UNKNOWN):
                model.end(book, S.UNKNOWN)
            elif verdict is not Verdict.ACCEPTED:
                book.attempts = 0 if verdict is Verdict.NOT_SENT else 1
                model.end(book, S.FAILED_PERM)
            elif model.invalid(book):
                model.end(book, S.UNKNOWN)
            else:
                model.accepted(book)
        model.close_key(number, book)

    # What the model cannot know before: drawn delays, who was claimed, what was forgotten.

    def learn(self, claimed: list[int], happenings: list[Any]) -> None:
        model = self.model
        claim = next((h for h in happenings if isinstance(h, DoClaim)), None)
        rows = dict(self.reader.execute("SELECT number, status FROM message"))
        parts = dict.fromkeys(Lane, 0)
        for number in claimed:
            book = model.books[number]
            assert claim is not None
            assert book.status is S.QUEUED
            assert not model.invalid(book)
            assert not model.purses[book.client].paused
            assert parts[book.lane] < claim.parts
            parts[book.lane] += book.parts
            model.move(book, S.SENDING)
            book.attempts += 1
            book.provider = claim.provider
        for number, book in list(model.books.items()):
            if book.status is S.QUEUED and rows.get(number, S.EXPIRED) == S.EXPIRED:
                assert claim is not None
                assert model.invalid(book)
                model.end(book, S.EXPIRED)
            if book.status is S.FAILED_TEMP and book.due_at is None:
                self.learn_delay(number, book)
            if number not in rows:
                assert book.status >= FINAL_FROM
                assert number <= model.marks[ForgetMessages]
                del model.books[number]

    def learn_delay(self, number: int, book: Book) -> None:
        model = self.model
        sql = "SELECT due_at_ms FROM message WHERE number = ?"
        (book.due_at,) = self.reader.execute(sql, (number,)).fetchone()
        assert book.due_at is not None
        most = model.rules.retry_base_ms * 2 ** (book.attempts - 1)
        assert model.now < book.due_at <= model.now + most
        model.timers.add((book.due_at, number, Timer.PROMOTE))
        if book.expires_at < book.due_at:
            model.timers.add((book.expires_at, number, Timer.EXPIRE))

    @invariant()
    def the_file_is_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        accounts = {
            row[0]: tuple(row[1:])
            for row in self.reader.execute(
                "SELECT id, credits_cents, held_cents, charged_cents, waiting, paused FROM client"
            )
        }
        purses = {
            client: (p.credits, p.held, p.charged, p.waiting, p.paused)
            for client, p in self.model.purses.items()
        }
        assert not (wrong := differences(accounts, purses)), wrong
        assert min(money for row in accounts.values() for money in row) >= 0
        messages = {
            row[0]: tuple(row[1:])
            for row in self.reader.execute(
                "SELECT number, status, held_cents, charged_cents, attempts, due_at_ms FROM message"
            )
        }
        books = {
            number: (b.status, b.held, b.charged, b.attempts, b.due_at)
            for number, b in self.model.books.items()
        }
        assert not (wrong := differences(messages, books)), wrong
        answers = {
            (row[0], row[1]): tuple(row[2:])
            for row in self.reader.execute(
                "SELECT c.id, i.digest, i.answer = 0, i.credits_cents,"
                " CASE i.answer WHEN 6 THEN 0 ELSE i.subject END"
                " FROM idempotency AS i JOIN client AS c ON c.number = i.client"
            )
        }
        keys = {
            (client, key_use(name, "").digest): (key.running, key.credits, key.subject)
            for (client, name), key in self.model.keys.items()
        }
        assert not (wrong := differences(answers, keys)), wrong
        found = audited(self.reader).findings
        assert not found, found
        compare_memory(self.store, self.reader)


def differences(found: dict[Any, Any], said: dict[Any, Any]) -> list[tuple[Any, Any, Any]]:
    """What a file and the model do not agree on: key, what was found, what it should be."""
    return [
        (key, found.get(key), said.get(key))
        for key in sorted(found.keys() | said.keys())
        if found.get(key) != said.get(key)
    ]


def outcome_of(verdict: Verdict, target: int, book: Book) -> Outcome:
    return Outcome(verdict, f"id-{target}", "detail", receipts=book.provider != "blind")


def use(happens: Any) -> KeyUse | None:
    """The key of something that has one."""
    return None if happens.key is None else key_use(happens.key, *meaning(happens))


def meaning(happens: Any) -> tuple[str, str]:
    """Where a key was used, and for what."""
    what = "" if isinstance(happens, DoOpen) else repr(replace(happens, client=0))
    return (type(happens).__name__, what)


class MoneyInPostgres(Money):
    """The same, in a schema of a server."""

    def place(self) -> Place:
        return postgres.Schema(self.ends.enter_context(postgres.database()))

    def tell_when_alone(self) -> None:
        self.alone = False
        self.disk.on_call = self.called

    def called(self, script: str) -> None:
        self.alone = self.alone or script == "SAVEPOINT item"


@pytest.mark.timeout(900)  # a failure is made small before it is told
@pytest.mark.parametrize(
    ("machine", "examples"), [(Money, 110), (MoneyInPostgres, 12)], ids=["sqlite", "postgres"]
)
def test_the_file_does_what_the_model_does(machine: type[Money], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
