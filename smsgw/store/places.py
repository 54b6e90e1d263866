"""Where a store is, as something to copy from and to: table by table, in bounded memory.

A copy is made in passes. A pass goes through every table by ranges of keys, and compares what both
sides say of each; what differs is compared row by row, and put right. So a copy that was
interrupted goes on, and one whose source is served meanwhile comes closer with every pass; once
nobody serves the source, one more pass makes both the same.
"""

import asyncio
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, Final, TypeVar

from smsgw.clock import SystemClock
from smsgw.errors import StoreError
from smsgw.store.audit import Proof
from smsgw.store.tables import ALL, Call, Dialect, Row, Span, Table, tables

CHUNK_ROWS: Final = 10_000
"""How many rows a range has, and how many are in memory, and in one transaction, at a time."""
SHARDS_AT_ONCE: Final = 4
"""How many shards are copied side by side, where nobody is served."""
_MARGIN_MS: Final = 1_000
"""How much earlier than it is seen a change may have been made; what was earlier is found too."""
MOVING: Final = "moving"
"""What the catalog of a server keeps while its store is moved: who moves it, and which way."""
INTO: Final = "into"
"""The way of a copy that has not ended: what is there is no store yet."""
TIDYING: Final = "tidying"
"""What a catalog keeps while slots move: up to how many shards there may be.

Whoever opens the store then has to remove what is not where the catalog says.
"""

T = TypeVar("T")

Step = Callable[[str, int, int], None]
"""Told what is being done, how many rows are done, and how many there are."""


@dataclass(slots=True)
class Chart:
    """What a catalog says, wherever it is; ``meta`` also holds the store's id and the epoch."""

    shards: int
    slots: list[tuple[int, int, int | None]]
    routes: list[tuple[int, str]]
    pauses: list[str]
    meta: dict[str, str] = field(default_factory=dict)

    @property
    def store_id(self) -> int:
        """What the store is called, in all of its shards."""
        return int(self.meta["store"])

    def identity(self, shard: int) -> dict[str, int]:
        """What a shard must say of itself."""
        return {
            "store": self.store_id,
            "shard": shard,
            "shards": self.shards,
            "epoch": int(self.meta["epoch"]),
        }


Facts = tuple[Any, ...]
"""How many rows there are, and what changes with every change of any of them."""


class Place(ABC):
    """The shards of a store that this process alone may change, or that it only reads."""

    name: str

    @abstractmethod
    def dialect(self, shard: int) -> Dialect:
        """How SQL is written for a shard."""

    @abstractmethod
    async def fetch(self, shard: int, sql: str, parameters: Row = ()) -> list[Row]:
        """The rows of a query."""

    @abstractmethod
    async def run(self, shard: int, calls: Sequence[Call]) -> None:
        """Carry out statements, in one transaction."""

    @abstractmethod
    async def put(self, shard: int, table: Table, columns: Sequence[str], rows: list[Row]) -> None:
        """Add rows, in one transaction."""

    @abstractmethod
    def rows(
        self, shard: int, table: Table, slots: Collection[int] | None = None
    ) -> AsyncGenerator[list[Row], None]:
        """Rows in the order of their keys, ``CHUNK_ROWS`` at a time, seen at one moment."""

    @abstractmethod
    async def settle(self, shard: int) -> None:
        """Bring everything up to date that only this kind of place keeps."""

    @abstractmethod
    async def proof(self, shard: int, step: Callable[[str], None]) -> Proof:
        """Prove a shard."""

    async def read(self, shard: int, table: Table, span: Span) -> list[Row]:
        """The rows of a range, in the order of their keys."""
        return await self.fetch(shard, *self.dialect(shard).read(table, span))

    async def recent(
        self, shard: int, table: Table, since_ms: int
    ) -> AsyncGenerator[list[Row], None]:
        """Rows that have changed since a time, ``CHUNK_ROWS`` at a time."""
        low, rows = None, [()]
        while rows:
            sql = self.dialect(shard).recent(table, low, since_ms, CHUNK_ROWS)
            if rows := await self.fetch(shard, *sql):
                yield rows
                low = table.key_of(rows[-1])

    async def bound(self, shard: int, table: Table, low: Row | None) -> Row | None:
        """The key ``CHUNK_ROWS`` rows behind another one; None where there are fewer."""
        found = await self.fetch(shard, *self.dialect(shard).bound(table, low, CHUNK_ROWS))
        return found[0] if found else None

    async def facts(
        self, shard: int, table: Table, span: Span = ALL, slots: Collection[int] | None = None
    ) -> Facts:
        """How many rows there are, and what changes with every change of any of them."""
        if table.name == "client" and slots is None:
            prints = await self.prints(shard, table, span)
            return (len(prints), blake2b(repr(prints).encode()).digest())
        return (await self.fetch(shard, *self.dialect(shard).facts(table, span, slots)))[0]

    async def prints(self, shard: int, table: Table, span: Span) -> dict[Row, Any]:
        """The keys of a range, each with what changes with its row; a client's is all of it."""
        if table.name == "client":
            rows = await self.read(shard, table, span)
            # No text holds a NUL in a server; see ``postgres_statements.storable``.
            return {table.key_of(row): repr(row).replace(r"\x00", "\ufffd") for row in rows}
        rows = await self.fetch(shard, *self.dialect(shard).prints(table, span))
        return {row[:-1]: row[-1] for row in rows}

    async def marks(self, shard: int) -> dict[str, int]:
        """What a shard knows of itself."""
        return dict(await self.fetch(shard, self.dialect(shard).marks()))

    async def set_marks(self, shard: int, marks: Mapping[str, int]) -> None:
        """Let a shard know something of itself."""
        sql = self.dialect(shard).set_mark()
        await self.run(shard, [(sql, mark) for mark in marks.items()])


@dataclass(slots=True)
class _Range:
    """A range, and what the target says of it; None where it was not asked since it wrote it."""

    span: Span
    facts: Facts | None = None
    rows: int = 0


@dataclass(slots=True)
class _Pair:
    """One table of one shard, on both sides; ``late`` is what the target has to do at the end."""

    source: Place
    target: Place
    shard: int
    table: Table
    late: list[Call] = field(default_factory=list)

    async def same(self, one: _Range) -> bool:
        """Whether both sides say the same of a range."""
        ours = self.source.facts(self.shard, self.table, one.span)
        if one.facts is None:
            theirs = self.target.facts(self.shard, self.table, one.span)
            said, one.facts = await _together(ours, theirs)
        else:
            said = await ours
        one.rows = said[0]
        return said == one.facts

    async def mended(self, span: Span, *, known: bool) -> AsyncIterator[tuple[_Range, int]]:
        """Bring a range in line, piece by piece.

        Args:
            span: the range.
            known: whether both sides have it, and differ.

        Yields:
            Each piece, and how many rows of it were not the same.
        """
        low, end = span
        while True:
            high = await self.source.bound(self.shard, self.table, low)
            if high is None or (end is not None and high >= end):
                high = end
            yield await (self._compared if known else self._learned)((low, high))
            if high == end:
                return
            low = high

    async def _learned(self, span: Span) -> tuple[_Range, int]:
        """Bring a range in line of which it is not known what the target has."""
        facts = await self.target.facts(self.shard, self.table, span)
        if facts[0] > 2 * CHUNK_ROWS and self.table.name != "client":
            # What the source has purged meanwhile may be more than can be compared in memory.
            sql = self.target.dialect(self.shard).clear(self.table, span)
            await self.target.run(self.shard, [sql])
        elif facts[0]:
            if facts == await self.source.facts(self.shard, self.table, span):
                return _Range(span, facts, facts[0]), 0
            return await self._compared(span)
        return await self._put(span)

    async def _put(self, span: Span) -> tuple[_Range, int]:
        rows = await self.source.read(self.shard, self.table, span)
        if rows:
            await self._let_in(rows)
            await self.target.put(self.shard, self.table, self.table.columns, rows)
        return _Range(span, None, len(rows)), len(rows)

    async def _compared(self, span: Span) -> tuple[_Range, int]:
        """Replace the rows that differ."""
        ours, theirs = await _together(
            self.source.prints(self.shard, self.table, span),
            self.target.prints(self.shard, self.table, span),
        )
        if not theirs:
            return await self._put(span)
        sql = self.target.dialect(self.shard)
        wanted = {key for key, made in ours.items() if theirs.get(key) != made}
        calls = [(sql.remove(self.table), key) for key in theirs.keys() - ours.keys()]
        changed = len(calls) + len(wanted)
        if self.table.name == "client":
            # Other rows refer to them, and go first.
            self.late += calls
            calls = []
        await self.target.run(self.shard, calls)
        if wanted:
            rows = await self.source.read(self.shard, self.table, span)
            await self.replace([row for row in rows if self.table.key_of(row) in wanted])
        return _Range(span, None, len(ours)), changed

    async def replace(self, rows: list[Row]) -> None:
        """Write rows, where they are not there or not so."""
        await self._let_in(rows)
        sql = self.target.dialect(self.shard).upsert(self.table)
        await self.target.run(self.shard, [(sql, row) for row in rows])

    async def _let_in(self, rows: list[Row]) -> None:
        """Have the clients that rows refer to, who may have come since clients were copied."""
        if not rows or self.table.name not in ("entry", "message"):
            return
        at, client = self.table.columns.index("client"), tables()["client"]
        sql = self.target.dialect(self.shard).client_last()
        ((last,),) = await self.target.fetch(self.shard, sql)
        if max(row[at] for row in rows) > last:
            fresh = await self.source.read(self.shard, client, ((last,), None))
            await self.target.put(self.shard, client, client.columns, fresh)


class Copying:
    """A copy in the making; ``rows`` is how many of them were written or removed in all."""

    def __init__(self, target: Place, shards: int, step: Step) -> None:
        self.rows = 0
        self._target = target
        self._shards = shards
        self._step = step
        self._done = self._total = 0
        self._ranges: dict[tuple[int, str], list[_Range]] = {}
        self._looked_ms: dict[tuple[int, str], int] = {}

    async def go(self, source: Place, at_once: int = SHARDS_AT_ONCE, *, quick: bool = False) -> int:
        """Make one pass.

        Args:
            source: what is copied.
            at_once: how many shards side by side.
            quick: whether to look only for rows that say when they changed.

        Returns:
            How many rows were written or removed.
        """
        before, self._done = self.rows, 0
        if not self._ranges:
            for shard in range(self._shards):
                for table in tables().values():
                    sql = source.dialect(shard).count(table)
                    self._total += (await source.fetch(shard, sql))[0][0]
                    self._step("counting", 0, self._total)
        await self._each(partial(self._bring, source, quick), at_once)
        if not quick:
            self._total = self._done
        return self.rows - before

    async def _each(self, work: Callable[[int], Awaitable[None]], at_once: int) -> None:
        waiting = iter(range(self._shards))

        async def some() -> None:
            for shard in waiting:
                await work(shard)

        await _together(*(some() for _ in range(at_once)))

    async def _bring(self, source: Place, quick: bool, shard: int) -> None:
        late: list[Call] = []
        for table in tables().values():
            pair, name = _Pair(source, self._target, shard, table, late), (shard, table.name)
            known, looked_ms = self._ranges.get(name, []), self._looked_ms.get(name)
            self._looked_ms[name] = SystemClock().now_ms()
            if looked_ms is not None and table.changed_at is not None:
                await self._renew(pair, known, looked_ms - _MARGIN_MS)
            # Other rows refer to clients, which must be there.
            if not quick or table.name == "client":
                self._ranges[name] = await self._compare(pair, known)
        await self._target.run(shard, late)
        await self._target.set_marks(shard, await source.marks(shard))
        self._step(f"shard {shard} is copied", self._done, self._total)

    async def _renew(self, pair: _Pair, known: list[_Range], since_ms: int) -> None:
        """Write what has changed since a time; which is most of it, without looking far."""
        # Only the last range has no end.
        highs = [one.span[1] or () for one in known[:-1]]
        async for rows in pair.source.recent(pair.shard, pair.table, since_ms):
            await pair.replace(rows)
            self.rows += len(rows)
            for row in rows:
                known[bisect_left(highs, pair.table.key_of(row))].facts = None

    async def _compare(self, pair: _Pair, known: list[_Range]) -> list[_Range]:
        """Make every range the same."""
        found = []
        for one in known or [_Range(ALL)]:
            if known and await pair.same(one):
                found.append(one)
                self._tell(pair, one)
                continue
            async for fresh, rows in pair.mended(one.span, known=bool(known)):
                found.append(fresh)
                self.rows += rows
                self._tell(pair, fresh)
        return found

    def _tell(self, pair: _Pair, one: _Range) -> None:
        self._done += one.rows
        self._step(f"shard {pair.shard}: {pair.table.name}", self._done, self._total)

    async def finish(self, source: Place) -> Counter[str]:
        """Bring the target up to date, and compare what was not compared since it was written.

        Args:
            source: which nobody has changed since the last pass began.

        Returns:
            How many rows of each table both have.

        Raises:
            StoreError: naming the first thing that differs.
        """
        await self._each(partial(self._finish, source), SHARDS_AT_ONCE)
        counts: Counter[str] = Counter()
        for (_, name), ranges in self._ranges.items():
            counts[name] += sum(one.rows for one in ranges)
        return counts

    async def _finish(self, source: Place, shard: int) -> None:
        await self._target.settle(shard)
        for table in tables().values():
            self._step(f"shard {shard}: comparing {table.name}", 0, 0)
            pair = _Pair(source, self._target, shard, table)
            for one in self._ranges[shard, table.name]:
                if one.facts is None and not await pair.same(one):
                    raise StoreError(f"shard {shard}: {table.name} differs after the copy")
        if await source.marks(shard) != await self._target.marks(shard):
            raise StoreError(f"shard {shard}: its marks differ after the copy")


async def _together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """What comes of several at once; when one fails, the others have ended before that is told."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def audit(place: Place, shards: Iterable[int], step: Step) -> None:
    """Prove shards, each as it is at one moment.

    Raises:
        StoreError: naming the first thing that must not be.
    """
    for shard in shards:
        proof = await place.proof(shard, partial(_tell_check, step, shard))
        if proof.findings:
            first = proof.findings[0]
            raise StoreError(
                f"the audit in {place.name} found {len(proof.findings)} things that must not be,"
                f" first in shard {shard}, client {first.client_id}: {first.sentence}"
            )


def _tell_check(step: Step, shard: int, check: str) -> None:
    step(f"shard {shard}: {check}", 0, 0)
