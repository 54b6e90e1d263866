"""A shard's loop: what arrived while the last commit was running becomes the next turn.

One-time codes go first, then outcomes and receipts, then requests in rotation by client; each turn
ends by claiming what the allotter grants. Turns run in the shard's own task, so a client that hangs
up cancels nothing.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, Final

from smsgw.allotter import Allotter
from smsgw.clock import Clock
from smsgw.errors import SmsgwError, StorageUnavailable
from smsgw.fairness import Claim
from smsgw.lifecycle import status_name
from smsgw.logs import get
from smsgw.metrics import Metrics
from smsgw.models import Message
from smsgw.store.base import (
    ShardStore,
    ShardUnavailableError,
    SharedStore,
    TurnResult,
)
from smsgw.store.inbox import Inbox
from smsgw.store.pace import PACE, Pace, Rhythm, Room
from smsgw.turn import OUTCOME, URGENT, Item, QueueKey, Request, Write

log = get(__name__)

UNITS_MIN: Final = 32
TURN_BESIDE_CODES_S: Final = 0.0017
UNITS_BESIDE_CODES: Final = (16, 64)
"""The same while codes are being sent: never less than the first, nor more than the second."""
UNITS_URGENT: Final = 8
URGENT_S: Final = 1.0
STAND_BACK_S: Final = 0.001
STAND_BACK_TIMES: Final = 250
UNITS_MAX: Final = 512
PROBE_S: Final = 0.25
STOP_TRIES: Final = 8


HandOver = Callable[["Shard", Sequence[Message], Mapping[int, frozenset[int]]], None]
"""Called with what a turn has claimed, and with the parts of it that operators have already."""


class Shard:
    """One shard's storage, its inbox and its loop."""

    def __init__(
        self,
        store: ShardStore,
        clock: Clock,
        allotter: Allotter,
        metrics: Metrics,
        *,
        room: Room,
        hand_over: HandOver,
        pace: Pace | None = None,
    ) -> None:
        self.store = store
        self._pace = pace or PACE
        self.number = store.number
        self.trouble: str | None = None
        self.late = False
        """Whether what is handed over now was claimed too long ago to be sent."""
        self.on_timer: Callable[[int], None] = lambda _: None
        self._clock = clock
        self._allotter = allotter
        self._metrics = metrics
        self._hand_over = hand_over
        self._inbox = Inbox(room, self._pace.outcomes_many)
        self._rhythm = Rhythm(self._pace)
        self._awake = asyncio.Event()
        self._watches: dict[int, list[asyncio.Future[None]]] = {}
        self._stopping = False
        self._tries_left = STOP_TRIES
        # The items of the present turn, and those of them that were told not to wait for it.
        self._items: Sequence[Item] = ()
        self._told: set[Item] = set()
        if isinstance(store, SharedStore):
            store.on_doubt = self._in_doubt
        self._unit_s = self._pace.turn_s / UNITS_MIN
        self._room = room
        self._ripe = False
        self._stood_back = 0
        self._resting = False
        self._rests_for_more = False
        self._ripens: asyncio.TimerHandle | None = None
        allotter.report(self.number, dict(store.waiting), {})

    def put(self, item: Item) -> None:
        """Have an item decided in one of the next turns.

        Raises:
            TooManyRequests: when too many requests wait.
            StorageUnavailable: for a request, while the shard cannot write.
        """
        if self.trouble and not _stays(item):
            raise StorageUnavailable(retry_after_s=1, outcome="none")
        inbox = self._inbox
        inbox.add(item)
        if item.priority == URGENT or (self._ends_rest() if self._resting else inbox.presses):
            self._awake.set()
        elif self._ripens is None:
            loop = asyncio.get_running_loop()
            self._ripens = loop.call_later(self._pace.outcomes_wait_s, self._ripen)

    def _ends_rest(self) -> bool:
        """Whether what has come in makes a small turn a large one, which is due sooner."""
        return self._rests_for_more and self._rhythm.is_many(len(self._inbox))

    def _ripen(self) -> None:
        """What came with no request has waited long enough."""
        self._ripens = None
        if self._inbox.outcomes:
            self._ripe = True
            self._awake.set()

    async def ask(self, request: Request) -> Any:
        """Have a request decided, and wait until its answer is on disk.

        Raises:
            SmsgwError: what the request was refused with.
        """
        self.put(request)
        return await request.future

    def wake(self) -> None:
        """Look for something to claim."""
        if not self._resting:
            self._awake.set()

    @property
    def leads(self) -> bool:
        """Whether this gateway sweeps the shard; of several that share it, one does."""
        return not isinstance(self.store, SharedStore) or self.store.leads

    def probe(self) -> None:
        """Find out, by writing, whether the shard works."""
        if not self.trouble and not len(self._inbox):
            self.put(_Probe(("meta_set", ("probe", self._clock.now_ms()))))

    def refresh(self, heads: Mapping[QueueKey, int], ended: Iterable[int]) -> None:
        """Learn what other gateways have changed: what is queued, and what is final."""
        if not self.trouble:
            self._allotter.report(self.number, self.store.waiting, heads)
            if any(self.store.waiting.values()):
                self._awake.set()
        self._tell_ended(ended)

    def _tell_ended(self, ended: Iterable[int]) -> None:
        for number in ended:
            for future in self._watches.get(number, ()):
                if not future.done():
                    future.set_result(None)

    def watch(self, number: int) -> asyncio.Future[None]:
        """A future that is done once a message is final; give it back with ``unwatch``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watches.setdefault(number, []).append(future)
        self.store.watched.add(number)
        return future

    def unwatch(self, number: int, future: asyncio.Future[None]) -> None:
        """Stop watching."""
        watches = self._watches[number]
        watches.remove(future)
        if not watches:
            del self._watches[number]
            self.store.watched.discard(number)

    def stop(self) -> None:
        """End the loop once everything taken in is on disk."""
        self._stopping = True
        self._awake.set()

    async def run(self) -> None:
        """Run turns until stopped.

        Raises:
            CommitUnknownError: a commit may or may not have reached the disk.
        """
        loop = asyncio.get_running_loop()
        while True:
            if not self._inbox.urgent:
                many = self._rhythm.is_many(len(self._inbox))
                if (early_s := self._rhythm.early_s(loop.time(), many=many)) > 0:
                    await self._keep_apart(early_s, for_more=not many)
                    continue
            if self._stands_back():
                await self._keep_apart(STAND_BACK_S)
                continue
            units_max = self._units_max()
            claim = self._claim(units_max)
            if claim is None and not self._due():
                if self._stopping:
                    return
                self._awake.clear()
                await self._awake.wait()
                continue
            now_s = loop.time()
            self._rhythm.begins(self._room.at_work(self.number, now_s), now_s)
            urgent = self._inbox.urgent
            self._room.busy += 1
            try:
                await self._one_turn(claim, units_max)
            finally:
                self._room.busy -= 1
                self._room.urgent -= urgent

    def _stands_back(self) -> bool:
        """Whether another shard goes first.

        One turn at a time beside those of one-time codes: all share one event loop. But where a
        code's turn does not end, since its server does not answer, the others do not wait for it.
        """
        if not self._room.urgent or not self._room.busy or self._inbox.urgent:
            self._stood_back = 0
        elif self._stood_back < STAND_BACK_TIMES:
            self._stood_back += 1
            return True
        return False

    async def _keep_apart(self, early_s: float, *, for_more: bool = False) -> None:
        """Wait until the next turn may begin; only a one-time code comes before that.

        Or, where the wait is ``for_more`` to do, enough of it.
        """
        self._resting = True
        self._rests_for_more = for_more
        self._awake.clear()
        waking = asyncio.get_running_loop().call_later(early_s, self._awake.set)
        await self._awake.wait()
        waking.cancel()
        self._resting = False

    def _due(self) -> bool:
        """Whether what came in calls for a turn now."""
        waits = len(self._inbox) > 0
        return self._inbox.presses or (waits and (self._ripe or self._stopping))

    def _units_max(self) -> int:
        """How much the next turn takes: what costs the event loop about ``Pace.turn_s``.

        A one-time code needs two turns, one after the other: those are kept small, and every turn
        is kept short while codes are being sent, since any of them may be in a code's way.
        """
        if self._inbox.urgent:
            self._room.urgent_until_s = self._clock.monotonic_s() + URGENT_S
            return UNITS_URGENT
        if self._clock.monotonic_s() < self._room.urgent_until_s:
            least, most = UNITS_BESIDE_CODES
            return min(most, max(least, int(TURN_BESIDE_CODES_S / self._unit_s)))
        return min(UNITS_MAX, max(UNITS_MIN, int(self._pace.turn_s / self._unit_s)))

    def _claim(self, units_max: int) -> Claim | None:
        # What was answered but is not on disk yet is in doubt after a crash, like what is not
        # answered: so nothing is claimed while much of that waits.
        if self.trouble or self._inbox.outcomes > units_max:
            return None
        fresh, now_s = self._inbox.fresh(units_max), self._clock.monotonic_s()
        grants = self._allotter.grants(self.number, fresh, now_s, units_max)
        return Claim(grants, dict(self.store.waiting), self._allotter.begun) if grants else None

    async def _one_turn(self, claim: Claim | None, units_max: int) -> None:
        items = self._inbox.take(units_max, claims=claim is not None)
        self._ripe = self._inbox.outcomes > 0
        turn: list[Item] = [*items, claim] if claim else items
        self._items = items
        self._told.clear()
        try:
            result = await self.store.turn(turn, self._clock.now_ms(), self._allotter.virtual)
        except ShardUnavailableError as error:
            self._allotter.withdraw(self.number)
            self._allotter.settle_grants(claim, committed=False)
            await self._unavailable(items, error)
        except BaseException:
            # The loop ends here, and the process with it: the next start recovers.
            self._give_up(items, "unknown")
            raise
        else:
            committed_s = perf_counter()
            self._committed(turn, items, claim, result)
            self._learn(turn, result.work_s + perf_counter() - committed_s)
            await self.store.tidy()

    def _learn(self, turn: Sequence[Item], took_s: float) -> None:
        """Take down what a turn has cost the event loop."""
        units = sum(item.units for item in turn)
        self._unit_s += 0.1 * (took_s / max(1, units) - self._unit_s)

    def _in_doubt(self) -> bool:
        """Tell callers that nobody knows what became of their turn; the turn itself goes on.

        Returns:
            Whether there is time to wait until it is known.
        """
        if not self.trouble:
            log.error("shard.doubt", "nobody knows what became of a turn", shard=self.number)
        self.trouble = "nobody knows yet what became of its last turn"
        self._allotter.withdraw(self.number)
        self._metrics.shard_up(self.number, up=False)
        for item in self._items:
            if item.priority != OUTCOME and item not in self._told:
                self._told.add(item)
                item.failed(StorageUnavailable(retry_after_s=5, outcome="unknown"))
        # Who waits for the next turn would wait as long as the doubt lasts.
        self._inbox.give_back(self._refuse(self._inbox.clear()))
        self._ripe = True
        if self._stopping:
            self._tries_left -= 1
        return self._tries_left >= 0

    def _refuse(self, items: Sequence[Item]) -> list[Item]:
        """Tell everyone who was not told yet that nothing was written.

        Returns:
            What stays, to be stored later.
        """
        for item in items:
            if item.priority != OUTCOME and item not in self._told:
                outcome = "unknown" if item.kept else "none"
                item.failed(StorageUnavailable(retry_after_s=1, outcome=outcome))
        return [item for item in items if _stays(item)]

    def _give_up(self, items: Sequence[Item], outcome: str) -> None:
        """Tell everyone in a turn what became of it, and everyone behind it that nothing did."""
        for item in items:
            if item in self._told:
                continue
            item.failed(StorageUnavailable(retry_after_s=5, outcome=outcome))
        self.trouble = "its loop has ended"
        while left := self._inbox.take(UNITS_MAX):
            for item in left:
                item.failed(StorageUnavailable(retry_after_s=5, outcome="none"))

    def _committed(
        self, turn: list[Item], items: list[Item], claim: Claim | None, result: TurnResult
    ) -> None:
        if self.trouble:
            log.warning("shard.recovered", "the shard writes again", shard=self.number)
            self._metrics.shard_up(self.number, up=True)
            self.trouble = None
        self._metrics.turn(result.work_s + result.commit_s, sum(item.units for item in turn))
        self._metrics.commit(result.commit_s)
        allotter = self._allotter
        claimed = claim is not None and result.errors[-1] is None
        allotter.settle_grants(claim, committed=claimed)
        allotter.served(result.claims)
        heads = claim.heads if claim and claimed else {}
        allotter.report(self.number, result.waiting, heads, result.queued)
        if result.due_ms is not None:
            self.on_timer(result.due_ms)
        for status, messages in result.finals.items():
            self._metrics.final(status_name(status), messages)
        self._tell_ended(result.ended)
        self.late = result.late
        if result.claims:
            self._hand_over(self, result.claims, result.accepted_parts)
        postponed = set(result.postponed) - self._told
        if postponed:
            self._inbox.put_back([item for item in items if item in postponed])
        for item, error in zip(items, result.errors, strict=False):
            if item in self._told or item in postponed:
                continue
            if error is None:
                item.done()
            else:
                self._failed_alone(item, error)

    def _failed_alone(self, item: Item, error: SmsgwError) -> None:
        """An item that cannot be stored: its caller is told, an outcome is kept aside."""
        log.error("item.failed", "an item cannot be stored", error=error.__cause__)
        item.failed(error)
        kept = item.quarantine()
        if kept is not None:
            self._metrics.quarantined()
            parameters = (self._clock.now_ms(), kept, repr(error.__cause__))
            self._inbox.add(_Quarantine(("quarantine_add", parameters)))

    async def _unavailable(self, items: list[Item], error: ShardUnavailableError) -> None:
        """Nothing was written: requests are told so, outcomes stay, and we try again soon."""
        if not self.trouble:
            log.error(
                "shard.trouble", "the shard cannot write", shard=self.number, cause=str(error)
            )
        self.trouble = str(error)
        kept = self._refuse(items)
        self._metrics.shard_up(self.number, up=False)
        if self._stopping:
            self._tries_left -= 1
        if self._tries_left < 0:
            # The next start decides about what was in flight, as after a crash.
            log.error("shard.gave_up", "outcomes could not be stored", outcomes=len(kept))
            self._give_up(kept, "none")
            return
        self._ripe = True
        self._inbox.give_back(kept or [_Probe(("meta_set", ("probe", self._clock.now_ms())))])
        await asyncio.sleep(PROBE_S)


def _stays(item: Item) -> bool:
    return item.kept or item.priority == OUTCOME


class _Quarantine(Write):
    __slots__ = ()
    priority = OUTCOME


class _Probe(Write):
    __slots__ = ()
    priority = OUTCOME
