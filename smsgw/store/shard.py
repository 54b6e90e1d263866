"""A shard's loop: what arrived while the last commit was running becomes the next turn.

One-time codes go first, then outcomes and receipts, then requests in rotation by client; each turn
ends by claiming what the allotter grants. Turns run in the shard's own task, so a client that hangs
up cancels nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from smsgw.clock import Clock
from smsgw.errors import SmsgwError, StorageUnavailable, TooManyRequests
from smsgw.fairness import Allotter, Claim
from smsgw.lifecycle import status_name
from smsgw.logs import get
from smsgw.metrics import Metrics
from smsgw.models import Message
from smsgw.store.base import (
    ShardUnavailableError,
    TurnResult,
)
from smsgw.store.sqlite import SqliteShard
from smsgw.turn import OUTCOME, URGENT, Item, Request, Write

log = get(__name__)

TURN_S: Final = 0.005
UNITS_MIN: Final = 16
UNITS_MAX: Final = 512
PROBE_S: Final = 0.25
STOP_TRIES: Final = 8
_CLIENT_SHARE: Final = 0.5
_SHARE_WITH_SOMETHING_WAITING: Final = 0.95


@dataclass(slots=True)
class Room:
    """How many requests may wait in all inboxes of the process, and how many do."""

    items_max: int
    count: int = 0


class Inbox:
    """What waits for a turn; bounded per client and, over all shards, in all."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._urgent: deque[Item] = deque()
        self._outcomes: deque[Item] = deque()
        self._requests: dict[bytes, deque[Request]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._outcomes) + self._count

    def add(self, item: Item) -> None:
        """Take an item.

        Raises:
            TooManyRequests: for a request, when too many wait already.
        """
        if item.priority == URGENT:
            self._urgent.append(item)
        elif item.priority == OUTCOME:
            self._outcomes.append(item)
        else:
            assert isinstance(item, Request)
            self._add_request(item)

    def _add_request(self, item: Request) -> None:
        queue = self._requests.get(item.client_id)
        if queue is None:
            if self._room.count >= self._room.items_max:
                raise TooManyRequests("Too many requests are waiting.", retry_after_s=1)
            self._requests[item.client_id] = deque((item,))
        else:
            share = _CLIENT_SHARE * self._room.items_max
            total = _SHARE_WITH_SOMETHING_WAITING * self._room.items_max
            if len(queue) >= share or self._room.count >= total:
                raise TooManyRequests("Too many requests are waiting.", retry_after_s=1)
            queue.append(item)
        self._count += 1
        self._room.count += 1

    def give_back(self, items: Sequence[Item]) -> None:
        """Put outcomes that could not be stored back where they were."""
        self._outcomes.extendleft(reversed(items))

    def take(self, units_max: int) -> list[Item]:
        """The next turn's items: at least one, if there is one, and about ``units_max`` units."""
        items: list[Item] = list(self._urgent)
        self._urgent.clear()
        units = 0
        # Outcomes never take all of a turn, so that they cannot keep requests out.
        limit = units_max if not self._requests else max(1, units_max * 3 // 4)
        while self._outcomes and units < limit:
            item = self._outcomes.popleft()
            units += item.units
            items.append(item)
        requests = self._requests
        while requests and units < units_max:
            client = next(iter(requests))
            queue = requests.pop(client)
            request = queue.popleft()
            self._count -= 1
            self._room.count -= 1
            units += request.units
            items.append(request)
            if queue:
                requests[client] = queue
        return items


class Shard:
    """One shard's storage, its inbox and its loop."""

    def __init__(
        self,
        store: SqliteShard,
        clock: Clock,
        allotter: Allotter,
        metrics: Metrics,
        *,
        room: Room,
        hand_over: Callable[["Shard", Sequence[Message]], None],
    ) -> None:
        self.store = store
        self.number = store.number
        self.trouble: str | None = None
        self.on_timer: Callable[[int], None] = lambda _: None
        self._clock = clock
        self._allotter = allotter
        self._metrics = metrics
        self._hand_over = hand_over
        self._inbox = Inbox(room)
        self._awake = asyncio.Event()
        self._watches: dict[int, list[asyncio.Future[None]]] = {}
        self._stopping = False
        self._tries_left = STOP_TRIES
        self._unit_s = TURN_S / UNITS_MIN
        allotter.report(self.number, dict(store.waiting), {})

    def put(self, item: Item) -> None:
        """Have an item decided in one of the next turns.

        Raises:
            TooManyRequests: when too many requests wait.
            StorageUnavailable: for a request, while the shard cannot write.
        """
        if self.trouble and not _stays(item):
            raise StorageUnavailable(retry_after_s=1, outcome="none")
        self._inbox.add(item)
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
        self._awake.set()

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
        while True:
            claim = self._claim()
            if not len(self._inbox) and claim is None:
                if self._stopping:
                    return
                self._awake.clear()
                await self._awake.wait()
                continue
            await self._one_turn(claim)

    def _claim(self) -> Claim | None:
        if self.trouble:
            return None
        fresh = len(self._inbox)
        grants = self._allotter.grants(self.number, fresh, self._clock.monotonic_s())
        return Claim(grants, dict(self.store.waiting)) if grants else None

    async def _one_turn(self, claim: Claim | None) -> None:
        units_max = min(UNITS_MAX, max(UNITS_MIN, int(TURN_S / self._unit_s)))
        items = self._inbox.take(units_max)
        turn: list[Item] = [*items, claim] if claim else items
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
            self._committed(turn, items, claim, result)
            await self.store.tidy()

    def _give_up(self, items: Sequence[Item], outcome: str) -> None:
        """Tell everyone in a turn what became of it, and everyone behind it that nothing did."""
        for item in items:
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
        count = sum(item.units for item in turn)
        self._unit_s += 0.1 * (result.work_s / max(1, count) - self._unit_s)
        self._metrics.turn(result.work_s + result.commit_s, count)
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
        for number in result.ended:
            for future in self._watches.get(number, ()):
                if not future.done():
                    future.set_result(None)
        if result.claims:
            self._hand_over(self, result.claims)
        for item, error in zip(items, result.errors, strict=False):
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
        kept = [item for item in items if _stays(item)]
        for item in items:
            if item.priority != OUTCOME:
                outcome = "unknown" if item.kept else "none"
                item.failed(StorageUnavailable(retry_after_s=1, outcome=outcome))
        self._metrics.shard_up(self.number, up=False)
        if self._stopping:
            self._tries_left -= 1
        if self._tries_left < 0:
            # The next start decides about what was in flight, as after a crash.
            log.error("shard.gave_up", "outcomes could not be stored", outcomes=len(kept))
            self._give_up(kept, "none")
            return
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
