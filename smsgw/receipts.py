"""Receipts: what operators report later, matched in any order and applied at most once.

A receipt finds its message by the operator's id: in a bounded map in memory, else in the shards;
else it is parked in the shard that (provider, id) hashes to, until the message is known. Nothing is
acknowledged before it is on disk.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from smsgw import lifecycle
from smsgw.clock import Clock
from smsgw.errors import SmsgwError, TooManyRequests
from smsgw.logs import get
from smsgw.metrics import Metrics
from smsgw.models import Rules
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards
from smsgw.turn import OUTCOME, Item, Turn, Wants, Write

log = get(__name__)

IDS_MAX: Final = 50_000
PARKED_MAX: Final = 1_000_000

Key = tuple[str, str]
"""(provider, the operator's id)"""


class Receive(Item):
    """What an operator reported about a message."""

    __slots__ = (
        "future",
        "metrics",
        "missed",
        "number",
        "provider_message_id",
        "reason",
        "rules",
        "word",
    )

    priority = OUTCOME

    def __init__(
        self,
        number: int,
        provider_message_id: str,
        word: str,
        reason: str | None,
        rules: Rules,
        metrics: Metrics,
        future: asyncio.Future[None] | None = None,
    ) -> None:
        super().__init__()
        self.future = future
        self.missed = False
        self.rules = rules
        self.number = number
        self.provider_message_id = provider_message_id
        self.word = word
        self.reason = reason
        self.metrics = metrics

    def needs(self, wants: Wants) -> None:
        """The message, and with it its account."""
        wants.messages.add(self.number)

    def decide(self, turn: Turn) -> None:
        """Apply it; the answer is the final status, if the receipt was the end."""
        message = turn.messages.get(self.number)
        if message is None:
            return
        final = message.is_final
        lifecycle.receive(
            turn, message, self.word, self.reason, self.provider_message_id, self.rules
        )
        if message.is_final and not final:
            self.answer = message.status
            self.missed = bool(message.express_missed)

    def done(self) -> None:
        """Count it."""
        self.metrics.receipt("event" if self.answer is None else "matched")
        if self.missed:
            self.metrics.express_missed()
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def failed(self, error: SmsgwError) -> None:
        """Tell whoever waits, if anybody does."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    def quarantine(self) -> str:
        """Everything that is known."""
        return f"receipt {self.number}: {self.provider_message_id} {self.word} {self.reason}"


class Park(Write):
    """Keep a receipt whose message is not known."""

    __slots__ = ()
    priority = OUTCOME

    def quarantine(self) -> str:
        """Everything that is known."""
        return f"park {self.statements}"


class Receipts:
    """The station where receipts arrive."""

    def __init__(self, clock: Clock, shards: Shards, rules: Rules, metrics: Metrics) -> None:
        self.parked: set[Key] = set()
        self._clock = clock
        self._shards = shards
        self._rules = rules
        self._metrics = metrics
        self._ids: dict[Key, tuple[int, int]] = {}
        self._parking: dict[Key, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.watchers: dict[int, asyncio.Future[None]] = {}

    async def open(self) -> None:
        """Learn what is parked."""
        for shard in self._shards:
            for provider, identifier in await shard.store.read("parked_keys"):
                self.parked.add((provider, identifier))
        self._metrics.receipts_parked(len(self.parked))

    def publish(self, provider: str, identifier: str, shard: int, number: int) -> None:
        """Make known whose an operator's id is; then look whether its receipt is here already.

        A receipt that arrives looks here, then in the shards, then here again before it is parked,
        so one of the two always sees the other.
        """
        key = (provider, identifier)
        ids = self._ids
        ids[key] = (shard, number)
        if len(ids) > IDS_MAX:
            del ids[next(iter(ids))]
        if key in self.parked:
            self._keep(self._match(key))

    def receive(self, provider: str, identifier: str, word: str, reason: str | None) -> None:
        """Take a receipt whose sender does not wait."""
        place = self._ids.get((provider, identifier))
        if place is not None:
            shard, number = place
            receipt = Receive(number, identifier, word, reason, self._rules, self._metrics)
            self._shards.shards[shard].put(receipt)
            self._tell_watcher(number)
        else:
            self._keep(self.take(provider, identifier, word, reason))

    async def take(self, provider: str, identifier: str, word: str, reason: str | None) -> None:
        """Take a receipt; returns once it is on disk, applied or parked.

        Raises:
            TooManyRequests: too many receipts are parked already.
            StorageUnavailable: it could not be stored.
        """
        key = (provider, identifier)
        if identifier and await self._apply(key, word, reason):
            return
        if len(self.parked) >= PARKED_MAX:
            raise TooManyRequests("Too many receipts wait for their messages.", retry_after_s=60)
        self.parked.add(key)
        self._metrics.receipts_parked(len(self.parked))
        self._metrics.receipt("parked")
        shard = self._home(key)
        park = Park(("parked_add", (provider, identifier, self._clock.now_ms(), word, reason)))
        self._parking[key] = park.future
        try:
            await shard.ask(park)
        finally:
            self._parking.pop(key, None)

    def _home(self, key: Key) -> Shard:
        return self._shards.named(f"{key[0]}\0{key[1]}")

    async def _apply(self, key: Key, word: str, reason: str | None) -> bool:
        """Find the message and apply the receipt; False where there is no message."""
        place = self._ids.get(key) or await self._search(key) or self._ids.get(key)
        if place is None:
            return False
        shard, number = place
        future = asyncio.get_running_loop().create_future()
        receipt = Receive(number, key[1], word, reason, self._rules, self._metrics, future)
        self._shards.shards[shard].put(receipt)
        self._tell_watcher(number)
        await future
        return True

    def _tell_watcher(self, number: int) -> None:
        """Tell a one-time code that waits for its handset: its close comes after this receipt."""
        watcher = self.watchers.pop(number, None)
        if watcher is not None and not watcher.done():
            watcher.set_result(None)

    async def _search(self, key: Key) -> tuple[int, int] | None:
        """Ask every shard; the newest message of that operator wins."""
        found: list[tuple[int, int]] = []
        for shard in self._shards:
            rows = await shard.store.read("messages_of_provider_id", key[1])
            found += [(number, shard.number) for number, provider in rows if provider == key[0]]
        if not found:
            return None
        number, home = max(found)
        return (home, number)

    async def _match(self, key: Key) -> None:
        """Apply what is parked under an id that has become known, then forget it."""
        if key in self._parking:
            await asyncio.wait([self._parking[key]])
        self.parked.discard(key)
        home = self._home(key)
        for number, word, reason in await home.store.read("parked_of", *key):
            if await self._apply(key, word, reason):
                await home.ask(Park(("parked_delete", (number,))))
            else:
                self.parked.add(key)
        self._metrics.receipts_parked(len(self.parked))

    def dropped(self, keys: list[Key]) -> None:
        """Forget keys that were parked for too long."""
        self.parked.difference_update(keys)

    async def match_again(self, keys_max: int) -> None:
        """Look for the messages of some parked receipts once more."""
        for key in list(self.parked)[:keys_max]:
            if self._ids.get(key) or await self._search(key):
                await self._match(key)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background, and hold on to it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("receipt.failed", "a receipt could not be stored", error=error)

    async def drain(self) -> None:
        """Wait for what runs in the background."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
