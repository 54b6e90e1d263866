"""Receipts: what operators report later, matched in any order and applied at most once.

A receipt finds its message by the operator's id: in a bounded map in memory, else in the shards.
One whose id nobody knows may still be about the only message between two numbers that is in doubt.
Else it is parked, and tried again in both ways: when an answer names its id, and as long as
messages are in doubt. Nothing is acknowledged before it is on disk.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID

from smsgw import lifecycle
from smsgw.clock import Clock
from smsgw.errors import StorageUnavailable
from smsgw.ids import NUMBER_MAX, created_at_ms, number_at, number_of, uuid_text
from smsgw.logs import get
from smsgw.metrics import Metrics
from smsgw.models import Message, Rules, Status
from smsgw.parked import About, Key, Parked, Report
from smsgw.providers.base import NO_SHARD
from smsgw.receive import UNANSWERED, Receive, ReceiveAtOnce, Stored
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards

log = get(__name__)

IDS_MAX: Final = 50_000
LOOK_S_MAX: Final = 10.0
"""How long one look at what is parked may take, and another at what is in doubt."""
DOUBTS_MAX: Final = 200
"""Messages in doubt that are looked at before as many timers fire."""
ENDED_WITHIN_MS: Final = 86_400_000
"""How old a message may be that has ended without an operator's id, to be meant by a receipt."""

Place = tuple[int, int, int]
"""(shard, message number, which part of it; 0 for the whole)"""
Work = Callable[[], Coroutine[Any, Any, None]]
Way = Callable[[Report], Coroutine[Any, Any, bool]]
"""How a receipt finds its message; False where it does not."""
NEVER_MS: Final = 2**62


class Receipts:
    """The station where receipts arrive."""

    def __init__(self, clock: Clock, shards: Shards, rules: Rules, metrics: Metrics) -> None:
        self.parked = Parked(clock, shards, metrics)
        self.watchers: dict[int, asyncio.Future[None]] = {}
        self.reports_whole: Callable[[str], bool] = lambda _: False
        self._clock = clock
        self._shards = shards
        self._rules = rules
        self._metrics = metrics
        self._ids: OrderedDict[Key, Place] = OrderedDict()
        # What is being done about an id, the last of it: receipts of one id keep their order.
        self._lines: dict[Key, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # About which something takes longer than whoever wanted it can wait.
        self._slow: set[Key] = set()
        # Behind which message of a shard those in doubt are looked at next.
        self._doubts_after: dict[int, int] = {}
        # The operators that have been told of for receipts that name no message.
        self._nameless: set[str] = set()

    def publish(
        self, provider: str, identifier: str, shard: int, number: int, part: int = 0
    ) -> None:
        """Make known whose an operator's id is; then look whether its receipt is here already.

        A receipt looks here before it is parked and again once it is, so one of the two always sees
        the other.
        """
        key = (provider, identifier)
        ids = self._ids
        ids[key] = (shard, number, part)
        if len(ids) > IDS_MAX:
            ids.popitem(last=False)
        for parked in self.parked.spelled(key):
            self._keep(self._line_up(parked, partial(self._match, parked)))

    def receive(
        self,
        provider: str,
        identifier: str,
        word: str,
        reason: str | None,
        others: Sequence[str] = (),
        about: About | None = None,
        stored: Callable[[bool], None] | None = None,
    ) -> None:
        """Take a receipt; see ``Sink.received``."""
        key = (provider, identifier)
        place = self._ids.get(key)
        if place is None and others:
            spelled = ((provider, one) for one in others)
            key = next((other for other in spelled if other in self._ids), key)
            place = self._ids.get(key)
        tell = None if stored is None else partial(_tell, stored)
        if place is not None and key not in self._lines:
            self._put(place, key, word, reason, tell)
            return
        report = Report(provider, (identifier, *others), self._clock.now_ms(), word, reason, about)
        task = self._keep(self._line_up(key, partial(self._take, report)))
        if stored is not None:
            task.add_done_callback(lambda done: stored(_succeeded(done)))

    async def take(
        self,
        provider: str,
        identifier: str,
        word: str,
        reason: str | None,
        others: Sequence[str] = (),
        about: About | None = None,
    ) -> None:
        """Take a receipt; returns once it is on disk, applied or parked.

        Raises:
            TooManyRequests: too many receipts are parked already.
            StorageUnavailable: it could not be stored.
        """
        report = Report(provider, (identifier, *others), self._clock.now_ms(), word, reason, about)
        await self._line_up(report.key, partial(self._take, report))

    async def take_within(
        self,
        limit_s: float,
        provider: str,
        identifier: str,
        word: str,
        reason: str | None,
        others: Sequence[str] = (),
        about: About | None = None,
    ) -> None:
        """Take a receipt, but do not have its sender wait for ever; it may be sent again.

        Raises:
            TooManyRequests: too many receipts are parked already.
            StorageUnavailable: it is not stored yet; perhaps it will be.
        """
        task = self._keep(self.take(provider, identifier, word, reason, others, about))
        await asyncio.wait({task}, timeout=limit_s)
        if not task.done():
            raise StorageUnavailable(retry_after_s=5, outcome="unknown")
        task.result()

    def _line_up(self, key: Key, work: Work) -> Coroutine[Any, Any, None]:
        """Do something about an id once everything that came before it is done."""
        before = self._lines.get(key)
        mine = self._lines[key] = asyncio.get_running_loop().create_future()
        return self._in_line(key, work, before, mine)

    async def _do(self, key: Key, work: Work) -> None:
        """The same, and wait for its end; where it fails, that is logged.

        Who waits may be cancelled: then it goes on, and nothing more is lined up behind it here.
        """
        if key in self._slow:
            return
        task = self._keep(self._line_up(key, work))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            self._slow.add(key)
            task.add_done_callback(lambda _: self._slow.discard(key))
            raise

    async def _in_line(
        self,
        key: Key,
        work: Work,
        before: asyncio.Future[None] | None,
        mine: asyncio.Future[None],
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            await work()
        finally:
            mine.set_result(None)
            if self._lines[key] is mine:
                del self._lines[key]

    async def _take(self, report: Report) -> None:
        if await self._apply(report) or await self._adopt(report) or self._is_lost(report):
            return
        await self.parked.add(report, decides=lifecycle.decides(report.word))
        if any(key in self._ids for key in report.keys):
            await self._match(report.key)

    def _is_lost(self, report: Report) -> bool:
        """Whether it is of no use to keep a receipt: it names no message.

        A number and a sender are enough for one that decides.
        """
        if report.keys:
            return False
        if not lifecycle.decides(report.word):
            self._metrics.receipt("undecided")
            return True
        if report.about is not None:
            return False
        self._metrics.receipt("nameless")
        if report.provider not in self._nameless:
            self._nameless.add(report.provider)
            log.warning("receipt.nameless", "a receipt names no message", provider=report.provider)
        return True

    def _put(
        self,
        place: Place,
        key: Key,
        word: str,
        reason: str | None,
        tell: Stored | None = None,
    ) -> None:
        shard, number, part = place
        if shard == NO_SHARD:
            self._metrics.receipt("event")
            if tell is not None:
                tell(None)
            return

        def elsewhere(receipt: Receive) -> None:
            self._keep(self._put_elsewhere(receipt, place, key))

        watched = number in self.watchers and lifecycle.decides(word)
        receipt = (ReceiveAtOnce if watched else Receive)(
            number, part, key[1], word, reason, self._rules, self._metrics, tell, elsewhere
        )
        self._shards.shards[shard].put(receipt)
        if not part:
            # Of a part, only its turn knows whether the message has ended by it.
            self._tell_watcher(number, word)

    async def _put_elsewhere(self, receipt: Receive, place: Place, key: Key) -> None:
        """Apply a receipt to an older message that is open; else it is an event of the newest."""
        try:
            shard, receipt.number, receipt.part = await self._search(key) or place
        except BaseException as error:
            if receipt.tell is not None:
                receipt.tell(error)
            raise
        receipt.elsewhere = None
        self._shards.shards[shard].put(receipt)

    async def _apply(self, report: Report) -> bool:
        """Find the message by its id and apply the receipt; False where there is no message."""
        for key in report.keys:
            place = self._ids.get(key) or await self._search(key) or self._ids.get(key)
            if place is not None:
                self._check(report, place)
                await self._put_and_wait(place, key, report.word, report.reason)
                return True
        place = await self._by_reference(report)
        if place is None:
            return False
        self._check(report, place)
        await self._put_and_wait(place, report.key, report.word, report.reason)
        return True

    def _check(self, report: Report, place: Place) -> None:
        """Leave what is parked where it is while the shard of its message cannot write.

        Raises:
            StorageUnavailable: it cannot.
        """
        shard = self._shards.shards.get(place[0])
        if report.number and shard is not None and shard.trouble:
            raise StorageUnavailable(retry_after_s=1, outcome="none")

    async def _put_and_wait(self, place: Place, key: Key, word: str, reason: str | None) -> None:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._put(place, key, word, reason, partial(_answer, future))
        await future

    async def _adopt(self, report: Report) -> bool:
        """Apply a receipt to the only message that it may be about; False where there is none."""
        place = await self._in_doubt(report) if lifecycle.decides(report.word) else None
        if place is None:
            return False
        # What answers have told while we looked was not counted as in doubt.
        # Of one that is named, its turn sees that.
        if await self._named(report) is None and await self._apply(report):
            return True
        self._check(report, place)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        shard, number, part = place
        self._shards.shards[shard].put(
            Receive(
                number,
                part,
                report.ids[0],
                report.word,
                report.reason,
                self._rules,
                self._metrics,
                tell=partial(_answer, future),
                elsewhere=lambda _: _answer(future, None, applied=False),
                whole=self.reports_whole(report.provider),
            )
        )
        # False where it was answered meanwhile.
        return await future

    async def _in_doubt(self, report: Report) -> Place | None:
        """The one message for a number, from a sender, that may have reached an operator.

        None where another may be meant: what is being sent, since a receipt may overtake the answer
        that names its id, or what has ended without an id. What was made after it is not meant.
        Where the operator repeats our reference, that one and no other is.
        """
        if (named := await self._named(report)) is not None:
            shard, message, _ = named
            doubtful = message.status == Status.UNCERTAIN
            return (shard, message.number, UNANSWERED) if doubtful else None
        if report.about is None:
            return None
        whose = (report.provider, *report.about)
        to = number_at(report.at_ms + 1)
        uncertain = await self._places("uncertain_of", *whose, to)
        if len(uncertain) != 1:
            return None
        since = number_at(report.at_ms - ENDED_WITHIN_MS)
        owners = await self._places("owners_of", *whose, since, to)
        return uncertain[0] if owners == uncertain else None

    async def _places(self, statement: str, *parameters: Any) -> list[Place]:
        return [
            (shard.number, number, UNANSWERED)
            for shard in self._shards
            for (number,) in await shard.store.read(statement, *parameters)
        ]

    async def _by_reference(self, report: Report) -> Place | None:
        """The message that an operator calls by our name for it.

        Where it has a name of its own besides, that may be one of a part: then a message of several
        is not ended by it, but it has the event.
        """
        if (named := await self._named(report)) is None:
            return None
        shard, message, alone = named
        whole = alone or message.parts == 1 or message.is_final
        return (shard, message.number, 0) if whole else None

    async def _named(self, report: Report) -> tuple[int, Message, bool] | None:
        """The message of ours that a receipt names: its shard, itself, and if by its first id."""
        for identifier in report.ids:
            try:
                ours = UUID(identifier).bytes
            except ValueError:
                continue
            number = number_of(ours)
            if number is None:
                continue
            shard = self._shards.of_message(ours)
            for row in await shard.store.read("get_message", number):
                message = Message(*row)
                if message.id == ours and message.provider == report.provider:
                    return (shard.number, message, identifier == report.ids[0])
        return None

    def _tell_watcher(self, number: int, word: str) -> None:
        """Tell a one-time code that waits for its handset: its close comes after this receipt."""
        watcher = self.watchers.pop(number, None) if lifecycle.decides(word) else None
        # Its deadline may have come in this very round of the loop.
        if watcher is not None and not watcher.done():
            watcher.set_result(None)

    async def _search(self, key: Key) -> Place | None:
        """Ask every shard: the newest open message of that operator wins, else the newest."""
        found: list[tuple[int, int, int, int]] = []
        for shard in self._shards:
            for number, provider, is_open, part in await shard.store.read(
                "messages_of_provider_id", key[1]
            ):
                if provider == key[0]:
                    found.append((is_open, number, part, shard.number))
        if not found:
            return None
        _, number, part, home = max(found)
        return (home, number, part)

    async def _match(self, key: Key) -> None:
        """Apply what is parked under an id, as far as its messages are known now."""
        with contextlib.suppress(StorageUnavailable):
            for report in await self.parked.of(key):
                await self._match_by(report, self._apply, self._adopt)

    async def _match_by(self, report: Report, *ways: Way) -> bool:
        """Apply a parked receipt; it stays where a shard cannot be asked, or cannot forget it."""
        if self.parked.home(report.key).trouble:
            return False
        with contextlib.suppress(StorageUnavailable):
            for way in ways:
                if await way(report):
                    self.parked.remove(report)
                    return True
        return False

    async def match_again(self, keys_max: int) -> None:
        """Look for the messages of some parked receipts once more; next time, of the next ones.

        And for the receipts of some messages that are in doubt.
        """
        if not self.parked:
            return
        for look in (self._match_next, self._resolve_next):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S_MAX):
                    await look(keys_max)

    async def _match_next(self, keys_max: int) -> None:
        for spelling in self.parked.next(keys_max):
            with contextlib.suppress(StorageUnavailable):
                if spelling in self._ids or await self._search(spelling):
                    for key in self.parked.spelled(spelling):
                        await self._do(key, partial(self._match, key))

    async def _resolve_next(self, doubts_max: int) -> None:
        for shard in self._shards:
            with contextlib.suppress(StorageUnavailable):
                after = self._doubts_after.get(shard.number, 0)
                doubts = await shard.store.read("doubts", after, doubts_max)
                more = len(doubts) == doubts_max
                self._doubts_after[shard.number] = doubts[-1][0] if more else 0
                await self._resolve(doubts)

    async def resolve_due(self, shard: Shard, now_ms: int) -> None:
        """Look once more for the receipts of messages that have been in doubt for too long.

        It may be cancelled: a match that is under way goes on.
        """
        if self.parked:
            await self._resolve(await shard.store.read("doubts_due", now_ms, DOUBTS_MAX))

    async def _resolve(self, doubts: Sequence[tuple[Any, ...]]) -> None:
        """Look whether something is parked that names messages in doubt, or is about them."""
        whose: dict[tuple[str, About], None] = {}
        for _, identifier, provider, recipient, sender in doubts:
            for key in self.parked.spelled((provider, uuid_text(identifier))):
                await self._do(key, partial(self._match_doubt, key))
            whose[provider, (recipient, sender)] = None
        for provider, about in whose:
            with contextlib.suppress(StorageUnavailable):
                while await self._resolve_about(provider, about):
                    pass

    async def _match_doubt(self, key: Key) -> None:
        """Apply what is parked under an id that names a message in doubt."""
        with contextlib.suppress(StorageUnavailable):
            for report in await self.parked.of(key):
                await self._match_by(report, self._adopt)

    async def _resolve_about(self, provider: str, about: About) -> bool:
        """Match what is parked about the oldest message in doubt from a sender to a recipient.

        It is only meant by what came before the next one was made.

        Returns:
            Whether something was matched, so that it may be another one's turn.
        """
        doubts = await self._places("uncertain_of", provider, *about, NUMBER_MAX)
        if not doubts:
            return False
        since_ms, to_ms, *_ = [*sorted(created_at_ms(one) for _, one, _ in doubts), NEVER_MS]
        matched: list[Report] = []
        async for report in self.parked.about(provider, about, since_ms, to_ms):
            await self._do(report.key, partial(self._match_about, report, matched))
        return bool(matched)

    async def _match_about(self, report: Report, matched: list[Report]) -> None:
        with contextlib.suppress(StorageUnavailable):
            # It may have been matched by its id meanwhile.
            if await self.parked.has(report) and await self._match_by(report, self._adopt):
                matched.append(report)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background, and hold on to it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("receipt.failed", "a receipt could not be stored", error=error)

    async def drain(self) -> None:
        """Wait for what runs in the background."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))


def _tell(stored: Callable[[bool], None], error: BaseException | None) -> None:
    stored(error is None)


def _answer(
    future: asyncio.Future[bool], error: BaseException | None, *, applied: bool = True
) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(applied)
    else:
        future.set_exception(error)


def _succeeded(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and task.exception() is None
