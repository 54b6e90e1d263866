"""Parked receipts: on disk until their messages are known, each in the shard of its operator's id.

In memory is only under which ids something is parked, so that an answer that names one of them
finds it without asking anybody.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from smsgw.clock import Clock
from smsgw.errors import SmsgwError, StorageUnavailable, TooManyRequests
from smsgw.metrics import Metrics
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards
from smsgw.turn import OUTCOME, Write

PARKED_MAX: Final = 1_000_000
"""Receipts in all."""
OF_ONE_ID_MAX: Final = 20
"""Receipts of one id about one number and sender; what is reported that often was said before."""
READ_MAX: Final = 100
"""Receipts read at once."""
LOOK_AGAIN_S: Final = 10.0
_LOOK_AGAIN_S_EACH: Final = 0.001

Key = tuple[str, str]
"""(provider, the operator's id)"""
About = tuple[int, str]
"""(the recipient's digits, the sender)"""


@dataclass(slots=True, frozen=True)
class Report:
    """What an operator said of a message, when, and of which.

    ``ids`` are the spellings of its id, the likeliest first: ``""`` where it names none. ``about``
    is whom the message went to and from, where the operator says so. ``number`` is that of its row,
    if it is parked.
    """

    provider: str
    ids: tuple[str, ...]
    at_ms: int
    word: str
    reason: str | None
    about: About | None = None
    number: int = 0

    @property
    def key(self) -> Key:
        """Under which it is parked."""
        return (self.provider, self.ids[0])

    @property
    def other(self) -> str | None:
        """The second spelling of its id, if it has one."""
        return self.ids[1] if len(self.ids) > 1 else None

    @property
    def keys(self) -> list[Key]:
        """Under which its message may be known."""
        return [(self.provider, one) for one in self.ids if one]


class Park(Write):
    """Keep a receipt whose message is not known."""

    __slots__ = ()
    priority = OUTCOME

    def quarantine(self) -> str:
        """Everything that is known."""
        return f"park {self.statements}"


class Forget(Write):
    """Forget a parked receipt whose message has it; it stays until that is on disk."""

    __slots__ = ("told",)
    priority = OUTCOME

    def __init__(self, number: int, told: Callable[[], None]) -> None:
        """Prepare it: the number of its row, and what to call once it is gone."""
        super().__init__(("parked_delete", (number,)))
        self.told = told

    def done(self) -> None:
        """Tell that it is gone."""
        self.told()

    def failed(self, error: SmsgwError) -> None:
        """Nobody waits for it."""

    def quarantine(self) -> str:
        """Everything that is known."""
        return f"forget {self.statements}"


class Parked(Mapping[Key, int]):
    """How many receipts are parked under each id, and the way to them."""

    def __init__(self, clock: Clock, shards: Shards, metrics: Metrics) -> None:
        self._clock = clock
        self._shards = shards
        self._metrics = metrics
        # How many under each id, by the second spelling that it has, if it has one.
        self._counts: dict[Key, dict[str | None, int]] = {}
        # The ids by every spelling, in the order in which they are looked at again.
        self._spellings: dict[Key, tuple[Key, ...]] = {}
        # What messages have already, by shard and row, until it is gone from the disk.
        self._leaving: set[tuple[int, int]] = set()
        self._looks_again_s = 0.0
        self._adding = 0
        self.rows = 0
        """How many there are."""

    def __getitem__(self, key: Key) -> int:
        """How many are parked under an id."""
        return sum(self._counts[key].values())

    def __iter__(self) -> Iterator[Key]:
        """The ids."""
        return iter(self._counts)

    def __len__(self) -> int:
        """How many ids there are."""
        return len(self._counts)

    def spelled(self, key: Key) -> tuple[Key, ...]:
        """Under which ids something is parked that has this spelling of its id."""
        return self._spellings.get(key, ())

    def next(self, keys_max: int) -> list[Key]:
        """Some spellings of what is parked; next time, others."""
        found = list(islice(self._spellings, keys_max))
        for spelling in found:
            self._spellings[spelling] = self._spellings.pop(spelling)
        return found

    def home(self, key: Key) -> Shard:
        """Where a receipt of that id is parked."""
        return self._shards.named("\0".join(key))

    async def open(self) -> None:
        """Learn what is parked."""
        await self._learn()
        self._looks_again_s = self._clock.monotonic_s() + LOOK_AGAIN_S

    async def look_again(self) -> None:
        """Learn now and then what other gateways have parked, and what they have matched.

        The more there is, the rarer: with much parked, learning of it must not be most of the work.
        """
        now_s = self._clock.monotonic_s()
        if now_s >= self._looks_again_s:
            try:
                await self._learn()
            finally:
                self._looks_again_s = now_s + max(LOOK_AGAIN_S, self.rows * _LOOK_AGAIN_S_EACH)

    async def _learn(self) -> None:
        known = list(self._counts)
        found: dict[Key, dict[str | None, int]] = {}
        unread: dict[Shard, StorageUnavailable] = {}
        for shard in self._shards:
            try:
                rows = await shard.store.read("parked_keys")
            except StorageUnavailable as error:
                unread[shard] = error
                continue
            for provider, identifier, other, count in rows:
                counts = found.setdefault((provider, identifier), {})
                counts[other] = counts.get(other, 0) + count
        for key in {**dict.fromkeys(known), **found}:
            counts, before = found.get(key, {}), dict(self._counts.get(key, {}))
            if self.home(key) in unread:
                continue
            for other in {**before, **counts}:
                self._count(key, other, counts.get(other, 0) - before.get(other, 0))
        for failure in unread.values():
            raise failure

    async def add(self, report: Report, *, decides: bool) -> None:
        """Park a receipt; returns once it is on disk.

        One that ``decides`` nothing leaves half of the room to those that do.

        Raises:
            TooManyRequests: too many receipts are parked already.
            StorageUnavailable: it could not be stored.
        """
        key, share = report.key, 1 if decides else 2
        if self.rows + self._adding >= PARKED_MAX // share:
            if not decides:
                self._metrics.receipt("undecided")
                return
            raise TooManyRequests("Too many receipts wait for their messages.", retry_after_s=60)
        if key[1] and await self._alike(report) >= OF_ONE_ID_MAX // share:
            self._metrics.receipt("repeated")
            return
        self._metrics.receipt("parked")
        about = report.about or (None, None)
        row = (*key, report.other, report.at_ms, report.word, report.reason, *about)
        self._adding += 1
        try:
            await self.home(key).ask(Park(("parked_add", row)))
        finally:
            self._adding -= 1
        self._count(key, report.other, 1)

    async def _alike(self, report: Report) -> int:
        """How many are parked at most that say of whom they are as this one does.

        Only where an id has too many is the disk asked, since it may be an operator's one word for
        all ids: then they are about different numbers.
        """
        known = self._counts.get(report.key, {}).get(report.other, 0)
        if known < OF_ONE_ID_MAX or report.about is None:
            return known
        parameters = (*report.about, *report.key, OF_ONE_ID_MAX)
        return len(await self.home(report.key).store.read("parked_alike", *parameters))

    async def of(self, key: Key) -> list[Report]:
        """What is parked under an id, in the order it came."""
        home, leaving = self.home(key), frozenset(self._leaving)
        rows = await home.store.read("parked_of", *key, READ_MAX)
        if not rows:
            # Whoever has matched it.
            for other, count in list(self._counts.get(key, {}).items()):
                self._count(key, other, -count)
        return _reports([row for row in rows if (home.number, row[0]) not in leaving])

    async def about(
        self, provider: str, about: About, since_ms: int, to_ms: int
    ) -> AsyncIterator[Report]:
        """What was parked in a span of time about messages to a recipient from a sender.

        It is read page by page, each of all shards and in the order it came.
        """
        after = dict.fromkeys(self._shards, 0)
        while after:
            found = []
            for shard, number in list(after.items()):
                rows: list[tuple[Any, ...]] = []
                # What is parked in the others is found still.
                with contextlib.suppress(StorageUnavailable):
                    rows = await shard.store.read(
                        "parked_about", *about, provider, since_ms, to_ms, number, READ_MAX
                    )
                found += _reports(rows)
                if len(rows) == READ_MAX:
                    after[shard] = rows[-1][0]
                else:
                    del after[shard]
            for report in sorted(found, key=lambda report: report.at_ms):
                yield report

    async def has(self, report: Report) -> bool:
        """Whether a receipt is still parked."""
        home = self.home(report.key)
        if (home.number, report.number) in self._leaving:
            return False
        return bool(await home.store.read("parked_get", report.number))

    def remove(self, report: Report) -> None:
        """Forget a receipt whose message has it.

        Nobody waits until that is on disk, since it may be long; but it is not found any more.
        """
        home = self.home(report.key)
        row = (home.number, report.number)

        def gone() -> None:
            self._leaving.discard(row)
            self._count(report.key, report.other, -1)

        self._leaving.add(row)
        home.put(Forget(report.number, gone))

    def dropped(self, names: Iterable[tuple[str, str, str | None]]) -> None:
        """Learn of receipts that were parked for too long, by what they were parked under."""
        for provider, identifier, other in names:
            self._count((provider, identifier), other, -1)

    def _count(self, key: Key, other: str | None, more: int) -> None:
        """Count what is parked under an id, and keep its spellings as long as anything is."""
        counts = self._counts.setdefault(key, {})
        before = counts.pop(other, 0)
        after = max(0, before + more)
        if after:
            counts[other] = after
        if not counts:
            del self._counts[key]
        self.rows += after - before
        self._spell(key, key, parked=bool(counts))
        if other not in (None, key[1]):
            self._spell((key[0], other), key, parked=after > 0)
        self._metrics.receipts_parked(self.rows)

    def _spell(self, spelling: Key, key: Key, *, parked: bool) -> None:
        if not spelling[1]:
            return
        known = self._spellings.get(spelling, ())
        if parked and key not in known:
            self._spellings[spelling] = (*known, key)
        elif not parked and key in known:
            rest = tuple(one for one in known if one != key)
            if rest:
                self._spellings[spelling] = rest
            else:
                del self._spellings[spelling]


def _reports(rows: list[tuple[Any, ...]]) -> list[Report]:
    return [
        Report(
            provider,
            (identifier, other) if other else (identifier,),
            at_ms,
            word,
            reason,
            None if recipient is None else (recipient, sender),
            number,
        )
        for number, provider, identifier, other, at_ms, word, reason, recipient, sender in rows
    ]
