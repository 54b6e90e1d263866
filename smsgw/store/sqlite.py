"""A shard in an SQLite file: one connection writes, one folds the log back, a few others read.

A turn loads, decides and writes on the event loop's thread, over pages in memory; its commit waits
for the disk on the writing connection's thread. The file belongs to this process
alone, so rows that were just written are kept: accounts, and messages that are under way. A turn
works on those rows directly; when it fails, what it touched is forgotten and read again.
"""

import contextlib
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from smsgw.errors import InternalError, SmsgwError, StorageUnavailable, StoreError
from smsgw.ids import NumberSource
from smsgw.models import FINAL_FROM, Flow, Lane, Unreported
from smsgw.store import statements
from smsgw.store.audit import Proof, audit
from smsgw.store.base import CommitUnknownError, ShardUnavailableError, TurnResult
from smsgw.store.keys import store
from smsgw.store.rows import RowCache, load, write
from smsgw.store.sqlite_log import Log
from smsgw.store.sqlite_thread import PAGE_BYTES, SqliteThread, migrate
from smsgw.turn import Item, QueueKey, Turn, Wants, run_items

# Primary result codes after which the file can still be used once the cause is gone.
_PASSING: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
}
_ROLLED_BACK: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}
SEALING_SHARE = 0.03
"""How much of the event loop's time the filters of old keys may take."""
_IDLE_MAX: Final = 4096


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class SqliteShard:
    """One file and what this process remembers of it."""

    def __init__(
        self,
        number: int,
        path: Path,
        writer: SqliteThread,
        log: Log,
        readers: Sequence[SqliteThread],
    ) -> None:
        self.number = number
        self.path = path
        self.flows: dict[tuple[int, int, int], Flow] = {}
        # Clients with nothing waiting, and when they are forgotten: the oldest first.
        self._idle: deque[tuple[int, int, int]] = deque()
        self.waiting: dict[QueueKey, int] = {}
        self.lane_parts: dict[QueueKey, int] = {}
        self._express: dict[int, dict[int, int]] = {}
        self._express_parts: dict[tuple[int, int], int] = {}
        self.watched: set[int] = set()
        self.waits = 0
        self._writer = writer
        self._log = log
        self._readers = list(readers)
        self._next_reader = 0
        self._statements = statements.load("turn", "sweep", "reads")
        self._cache = RowCache()
        self._numbers = NumberSource(number, 0)
        self._next_client = 1
        self._counted_to = 0
        self._seal_at_s = 0.0

    @classmethod
    async def open(
        cls,
        number: int,
        path: Path,
        *,
        readers: int,
        cache_kib: int,
        wal_bytes_max: int,
        identity: Mapping[str, int],
        now_ms: int,
    ) -> "SqliteShard":
        """Open, or make, a shard's file; checkpoint it; read what is kept in memory.

        Args:
            number: the shard's.
            path: its file.
            readers: how many connections read it.
            cache_kib: how much of it the writing connection keeps in memory.
            wal_bytes_max: how long its log may grow before all of it is folded back.
            now_ms: the time to note migrations with.
            identity: what the file's ``meta`` must say (shard number, store, epoch, count).

        Raises:
            StoreError: when the file is foreign, damaged or cannot be opened.
        """
        writer = await SqliteThread.open(path, cache_kib=cache_kib)
        opened = [writer]
        try:
            await writer.run(migrate, writer.raw, statements.migrations("schema"), now_ms)
            await writer.run(check_identity, writer.raw, path, identity)
            opened.append(await SqliteThread.open(path, cache_kib=64))
            for _ in range(readers):
                opened.append(await SqliteThread.open(path, read_only=True, cache_kib=2048))
            log = Log(path, writer, opened[1], wal_bytes_max)
            self = cls(number, path, writer, log, opened[2:])
            # After a failed flush, only this makes what is in the log safe to build on.
            await log.open()
            await writer.run(self._remember)
            await writer.run(self._warm, cache_kib)
        except BaseException as error:
            for thread in opened:
                await thread.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{path}: {error}") from error
            raise
        return self

    def _warm(self, cache_kib: int) -> None:
        """Have in memory where clients' next entries go: with a long history, a page for each.

        Otherwise turns would read these pages one by one, on the event loop's thread.
        """
        clients = cache_kib * 1024 // PAGE_BYTES // 2
        self._writer.raw.execute(self._statements["entries_last"], (clients,)).fetchall()

    def _remember(self) -> None:
        """Read the queue's flows, the last number and the watermark, instead of what was known."""
        self._cache.keys.load(self._writer.raw)
        connection = self._writer.raw
        self.flows, self.waiting, self.lane_parts = {}, {}, {}
        self._express, self._express_parts = {}, {}
        (last,) = connection.execute(
            "SELECT max(coalesce((SELECT max(number) FROM message), 0),"
            " coalesce((SELECT max(number) FROM batch), 0),"
            # What has moved to another shard was numbered here.
            " coalesce((SELECT value FROM meta WHERE key = 'numbered_to'), 0))"
        ).fetchone()
        self._numbers = NumberSource(self.number, last)
        (client,) = connection.execute("SELECT coalesce(max(number), 0) FROM client").fetchone()
        self._next_client = client + 1
        (self.waits,) = connection.execute(
            "SELECT coalesce(sum(waiting), 0) FROM client"
        ).fetchone()
        (self._counted_to,) = connection.execute(
            "SELECT value FROM meta WHERE key = 'counted_to'"
        ).fetchone()
        for client, route, lane, rank, waiting, parts in connection.execute(
            "SELECT client, route, lane, max(rank), count(*), sum(parts) FROM queue"
            " GROUP BY client, route, lane"
        ):
            self.flows[client, route, lane] = Flow(rank + 1, waiting, parts)
            self._count_parts((client, route, lane), self.flows[client, route, lane])
            key = (route, lane)
            self.waiting[key] = self.waiting.get(key, 0) + waiting

    async def turn(
        self, items: Sequence[Item], now_ms: int, virtual: Mapping[QueueKey, int]
    ) -> TurnResult:
        """See ``ShardStore.turn``."""
        started_s = time.perf_counter()
        turns, errors = self._prepare(items, now_ms, virtual)
        worked_s = time.perf_counter()
        await self._writer.run(self._commit, turns)
        result = TurnResult(errors, work_s=worked_s - started_s)
        result.commit_s = time.perf_counter() - worked_s
        self._finish(turns, result)
        return result

    def _prepare(
        self, items: Sequence[Item], now_ms: int, virtual: Mapping[QueueKey, int]
    ) -> tuple[list[Turn], Sequence[SmsgwError | None]]:
        """Everything of a turn but its commit, on the event loop's own thread.

        All of it works on pages in memory. On the connection's thread, each statement would give
        the interpreter's lock away and wait to get it back from a busy event loop: that took three
        times as long as the work itself. Only the commit, which waits for the disk, goes there.
        """
        try:
            self._begin()
            return [self._together(items, now_ms, virtual)], [None] * len(items)
        except _OneFailed:
            return self._one_by_one(items, now_ms, virtual)

    def _finish(self, turns: list[Turn], result: TurnResult) -> None:
        """Remember what was committed, and tell the loop about it."""
        result.claims = [message for turn in turns for message in turn.claims]
        result.accepted_parts = {
            number: frozenset(rows) for turn in turns for number, rows in turn.parts.items() if rows
        }
        for turn in turns:
            self._absorb(turn)
        result.waiting = dict(self.waiting)
        result.queued = _lowest_queued(turns)
        result.finals = Counter(_finals(turns))
        result.due_ms = min((due for turn in turns for due, _, _ in turn.timers), default=None)
        if self.watched:
            result.ended = self._ended(turns)

    def _ended(self, turns: list[Turn]) -> list[int]:
        """Which of the watched messages are final now."""
        return [
            number
            for turn in turns
            for number in list(self.watched)
            if (message := turn.messages.get(number)) is not None and message.is_final
        ]

    def _begin(self) -> None:
        try:
            self._writer.raw.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise ShardUnavailableError(str(error)) from error

    def _new_turn(self, now_ms: int, virtual: Mapping[QueueKey, int]) -> Turn:
        turn = Turn(now_ms, self._numbers, self.flows, virtual, self._counted_to)
        turn.next_client = self._next_client
        return turn

    def _together(
        self, items: Sequence[Item], now_ms: int, virtual: Mapping[QueueKey, int]
    ) -> Turn:
        turn = self._new_turn(now_ms, virtual)
        try:
            self._work(turn, items)
        except sqlite3.Error as error:
            self._undo([turn])
            if _primary(error) in _PASSING:
                raise ShardUnavailableError(str(error)) from error
            raise _OneFailed from error
        except BaseException as error:
            self._undo([turn])
            if isinstance(error, Exception):
                raise _OneFailed from error
            raise
        return turn

    def _work(self, turn: Turn, items: Sequence[Item]) -> None:
        wants = Wants()
        for item in items:
            item.needs(wants)
        load(self._writer.raw, self._statements, self._cache, turn, wants)
        run_items(items, turn)
        write(self._writer.raw, self._statements, self._cache, turn)

    def _one_by_one(
        self, items: Sequence[Item], now_ms: int, virtual: Mapping[QueueKey, int]
    ) -> tuple[list[Turn], list[SmsgwError | None]]:
        """After a turn failed: each item alone, under a savepoint, so that one fails alone."""
        connection = self._writer.raw
        turns: list[Turn] = []
        errors: list[SmsgwError | None] = []
        self._begin()
        for item in items:
            turn = self._new_turn(now_ms, virtual)
            connection.execute("SAVEPOINT item")
            try:
                self._work(turn, [item])
            except Exception as error:
                self._cache.forget(turn)
                if not connection.in_transaction:
                    self._undo(turns)
                    raise ShardUnavailableError(str(error)) from error
                connection.execute("ROLLBACK TO item")
                self._cache.keys.undone(connection)
                if isinstance(error, sqlite3.Error) and _primary(error) in _PASSING:
                    self._undo(turns)
                    raise ShardUnavailableError(str(error)) from error
                failure = InternalError()
                failure.__cause__ = error
                errors.append(failure)
            else:
                # Later items of this transaction must see it.
                self._absorb(turn)
                turns.append(turn)
                errors.append(None)
            connection.execute("RELEASE item")
        return turns, errors

    def _undo(self, turns: Sequence[Turn]) -> None:
        """Roll back, on the disk and in memory."""
        for turn in turns:
            self._cache.forget(turn)
        with contextlib.suppress(sqlite3.Error):
            if self._writer.raw.in_transaction:
                self._writer.raw.execute("ROLLBACK")
            self._cache.keys.undone(self._writer.raw)
        if any(turn.absorbed for turn in turns):
            try:
                self._remember()
            except sqlite3.Error as error:
                raise CommitUnknownError(f"{self.path}: {error}") from error

    def _commit(self, turns: list[Turn]) -> None:
        try:
            self._writer.raw.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo(turns)
            if _primary(error) in _ROLLED_BACK and not self._writer.raw.in_transaction:
                raise ShardUnavailableError(str(error)) from error
            raise CommitUnknownError(f"{self.path}: {error}") from error

    def _absorb(self, turn: Turn) -> None:
        """Remember what a turn wrote."""
        if turn.absorbed:
            return
        turn.absorbed = True
        self._cache.keep(turn)
        self._next_client = turn.next_client
        self._counted_to = turn.counted_next
        self.waits += turn.waiting
        for key, flow in turn.flows.items():
            self.flows[key] = flow
            if not flow.waiting:
                self._idle.append(key)
            self._count_parts(key, flow)
        while len(self._idle) > _IDLE_MAX:
            oldest = self._idle.popleft()
            if oldest in self.flows and not self.flows[oldest].waiting:
                del self.flows[oldest]
        waiting = self.waiting
        for queue, places in turn.queued.items():
            if places:
                waiting[queue] = waiting.get(queue, 0) + len(places)
        for route, lane, _, _ in turn.unqueued.values():
            waiting[route, lane] -= 1

    def _count_parts(self, key: tuple[int, int, int], flow: Flow) -> None:
        """Keep the express parts that wait, and who has some waiting."""
        client, route, lane = key
        if lane != Lane.EXPRESS:
            return
        express = self._express.setdefault(route, {})
        before = self._express_parts.get((client, route), 0)
        now = self.lane_parts.get((route, lane), 0) + flow.parts - before
        self.lane_parts[route, lane] = now
        if flow.parts:
            account = self._cache.accounts.get(client)
            express[client] = account.weight if account else 1
            self._express_parts[client, route] = flow.parts
        else:
            express.pop(client, None)
            self._express_parts.pop((client, route), None)

    async def tidy(self) -> None:
        """See ``ShardStore.tidy``: keys of the past get their filters, the log is folded back."""
        begun_s = time.perf_counter()
        if begun_s >= self._seal_at_s:
            sealed = self._cache.keys.step(self._writer.raw)
            self._seal_at_s = begun_s + (time.perf_counter() - begun_s) / SEALING_SHARE
            if sealed:
                await self._writer.run(self._seal, *sealed)
        await self._log.tidy()

    def _seal(self, generation: int, bits: bytes) -> None:
        connection, keys = self._writer.raw, self._cache.keys
        try:
            self._begin()
            store(connection, generation, bits)
            keys.drop(connection)
            self._commit([])
        except (sqlite3.Error, ShardUnavailableError):
            # A filter only spares looking: it is made again.
            self._undo([])
        else:
            keys.seal(generation, bits)

    async def lowest_ranks(self) -> list[tuple[QueueKey, int]]:
        """The lowest rank of every queue."""
        rows = await self.read("queue_lowest")
        return [((route, lane), rank) for route, lane, rank in rows if rank is not None]

    async def accepted_open(self, before: int, limit: int) -> list[Unreported]:
        """See ``ShardStore.accepted_open``."""
        return [Unreported(*row) for row in await self.read("accepted_open", before, limit)]

    def express_share(self, client_id: bytes, route: int) -> tuple[int, int, int]:
        """What a client has waiting on the express lane of a route.

        Returns:
            Its waiting parts, its weight, and the weights of all that have some waiting, itself
            included.
        """
        account = self._cache.account_of.get(client_id)
        number, weight = (account.number, account.weight) if account else (-1, 1)
        express = self._express.get(route, {})
        flow = self.flows.get((number, route, int(Lane.EXPRESS)))
        others = sum(express.values()) - express.get(number, 0)
        return (flow.parts if flow else 0, weight, others + weight)

    def wal_bytes(self) -> int:
        """How long the write-ahead log is."""
        return self._log.length_bytes()

    async def read(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """See ``ShardStore.read``; a query runs to its end, so no cursor outlives this call."""
        reader = self._reader()
        sql = self._statements[statement]
        return await _reading(reader.run(lambda: reader.raw.execute(sql, parameters).fetchall()))

    async def report(self, client: int, first_day: int, last_day: int) -> list[tuple[Any, ...]]:
        """What was counted of a client and what was not yet, seen at one moment."""

        def both() -> list[tuple[Any, ...]]:
            reader.raw.execute("BEGIN")
            try:
                return [
                    row
                    for name in ("report_totals", "report_fresh")
                    for row in reader.raw.execute(
                        self._statements[name], (client, first_day, last_day)
                    ).fetchall()
                ]
            finally:
                reader.raw.execute("ROLLBACK")

        reader = self._reader()
        return await _reading(reader.run(both))

    async def audit(self, step: Callable[[str], None] = lambda _: None) -> Proof:
        """Prove every sum, every hold and every chain of this shard, at one moment."""
        auditor = await SqliteThread.open(self.path, read_only=True, cache_kib=8192)
        try:
            return await auditor.run(audit, auditor.raw, self.number, step)
        finally:
            await auditor.close()

    def _reader(self) -> SqliteThread:
        self._next_reader = (self._next_reader + 1) % len(self._readers)
        return self._readers[self._next_reader]

    async def close(self) -> None:
        """See ``ShardStore.close``."""
        for reader in self._readers:
            await reader.close()
        await self._log.close()
        await self._writer.close()


def _finals(turns: list[Turn]) -> Iterator[int]:
    """The status of each message that became final: one that already was is never changed."""
    for turn in turns:
        for messages in (turn.new_messages, turn.changed_messages):
            for message in messages.values():
                if message.status >= FINAL_FROM:
                    yield message.status


def _lowest_queued(turns: list[Turn]) -> dict[QueueKey, int]:
    """The lowest rank that turns have put into each queue and left there."""
    lowest: dict[QueueKey, int] = {}
    for turn in turns:
        for key, places in turn.queued.items():
            if places:
                rank = min(places.values())[0]
                lowest[key] = min(rank, lowest.get(key, rank))
    return lowest


async def _reading(rows: Awaitable[list[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """The rows, or a refusal: a file that cannot be read is the trouble of its own clients only.

    Raises:
        StorageUnavailable: it cannot be read now.
    """
    try:
        return await rows
    except sqlite3.Error as error:
        raise StorageUnavailable(retry_after_s=1, outcome="none") from error


class _OneFailed(Exception):
    """Some item of a turn could not be decided or written."""


def check_identity(connection: sqlite3.Connection, path: Path, identity: Mapping[str, int]) -> None:
    """Compare what the file says of itself with what the catalog says; a new file is told."""
    found = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    for key, value in identity.items():
        if key not in found:
            connection.execute("INSERT INTO meta (key, value) VALUES (?, ?)", (key, value))
        elif found[key] != value:
            raise StoreError(f"{path} is foreign: its {key} is {found[key]}, expected {value}")
