"""A store in files, as a place to copy from and to."""

import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from smsgw.errors import StoreError
from smsgw.store import statements
from smsgw.store.audit import Proof, audit
from smsgw.store.keys import forget
from smsgw.store.places import CHUNK_ROWS, Chart, Place
from smsgw.store.sqlite import check_identity
from smsgw.store.sqlite_thread import SqliteThread, migrate
from smsgw.store.tables import Call, Dialect, Row, Table

_CACHE_KIB: Final = 4 * 1024
_SQL: Final = Dialect()


def address(number: int) -> str:
    """Where a shard's file is, in the data directory."""
    return f"shards/{number:02d}.db"


class Files(Place):
    """The shards' files of a data directory that this process has locked, or that it only reads.

    What it only reads, a gateway may be serving: nothing is written then, no log is folded back,
    and every query ends with its call.
    """

    name = "files"

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self.directory = directory
        self._read_only = read_only
        self._threads: dict[int, SqliteThread] = {}

    async def open(self, shard: int, identity: Mapping[str, int], now_ms: int) -> None:
        """Open, or make, a shard's file.

        Raises:
            StoreError: when it is foreign, damaged or cannot be opened.
        """
        if shard in self._threads:
            return
        path = self.directory / address(shard)
        thread = await SqliteThread.open(path, read_only=self._read_only, cache_kib=_CACHE_KIB)
        self._threads[shard] = thread
        steps = statements.migrations("schema")
        with _told(path):
            if self._read_only:
                await thread.run(_must_be_current, thread.raw, path, steps)
            else:
                await thread.run(migrate, thread.raw, steps, now_ms)
            await thread.run(check_identity, thread.raw, path, identity)

    def dialect(self, _shard: int) -> Dialect:
        """See ``Place.dialect``."""
        return _SQL

    async def fetch(self, shard: int, sql: str, parameters: Row = ()) -> list[Row]:
        """See ``Place.fetch``."""
        thread = self._threads[shard]
        with _told(self.directory / address(shard)):
            return await thread.run(lambda: thread.raw.execute(sql, parameters).fetchall())

    async def run(self, shard: int, calls: Sequence[Call]) -> None:
        """See ``Place.run``."""

        def run_all(connection: sqlite3.Connection) -> None:
            for sql, parameters in calls:
                connection.execute(sql, parameters)

        await self._do(shard, run_all)

    async def _do(self, shard: int, function: Callable[[sqlite3.Connection], Any]) -> None:
        thread = self._threads[shard]
        with _told(self.directory / address(shard)):
            await thread.run(_in_transaction, thread.raw, function)
            await self._fold(shard)

    async def _fold(self, shard: int) -> None:
        thread = self._threads[shard]
        await thread.run(lambda: thread.raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

    async def put(self, shard: int, table: Table, columns: Sequence[str], rows: list[Row]) -> None:
        """See ``Place.put``."""
        sql = _SQL.insert(table, columns)
        await self._do(shard, lambda connection: connection.executemany(sql, rows))

    async def rows(
        self, shard: int, table: Table, slots: Collection[int] | None = None
    ) -> AsyncGenerator[list[Row], None]:
        """See ``Place.rows``."""
        thread = self._threads[shard]
        cursor = await thread.run(thread.raw.execute, _SQL.rows(table, slots))
        try:
            while rows := await thread.run(cursor.fetchmany, CHUNK_ROWS):
                yield rows
        finally:
            await thread.run(cursor.close)

    async def settle(self, shard: int) -> None:
        """Forget the filters, which do not know the keys that have come."""
        await self._do(shard, forget)

    async def proof(self, shard: int, step: Callable[[str], None]) -> Proof:
        """See ``Place.proof``."""
        thread = self._threads[shard]
        # What has to be sorted of a long history is more than memory should hold.
        await thread.run(thread.raw.execute, "PRAGMA temp_store = FILE")
        return await thread.run(audit, thread.raw, shard, step)

    async def close(self, shard: int | None = None) -> None:
        """Close one file or all of them, with nothing left in any log that was written."""
        for number in [*self._threads] if shard is None else [shard]:
            if number in self._threads:
                if not self._read_only:
                    with suppress(sqlite3.Error):
                        await self._fold(number)
                await self._threads.pop(number).close()


def _must_be_current(
    connection: sqlite3.Connection, path: Path, steps: list[tuple[int, str, str]]
) -> None:
    (done,) = connection.execute("SELECT max(number) FROM migration").fetchone()
    if done != len(steps):
        raise StoreError(
            f"{path} is at step {done} of its schema, this program knows {len(steps)}: start the"
            " gateway again with this version of the program first"
        )


class CatalogFile:
    """A catalog's file, read and written as a whole."""

    def __init__(self, thread: SqliteThread) -> None:
        self._thread = thread

    @classmethod
    async def open(cls, path: Path, now_ms: int) -> "CatalogFile":
        """Open, or make, it.

        Raises:
            StoreError: it cannot be read.
        """
        thread = await SqliteThread.open(path, cache_kib=256)
        try:
            await thread.run(migrate, thread.raw, statements.migrations("catalog"), now_ms)
        except BaseException as error:
            await thread.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{path}: {error}") from error
            raise
        return cls(thread)

    @staticmethod
    async def look(path: Path) -> Chart:
        """What it says while a gateway has it.

        Raises:
            StoreError: it cannot be read.
        """
        thread = await SqliteThread.open(path, read_only=True, cache_kib=256)
        try:
            with _told(path):
                return await thread.run(_read_chart, thread.raw)
        finally:
            await thread.close()

    async def read(self) -> Chart:
        """What it says."""
        return await self._thread.run(_read_chart, self._thread.raw)

    async def write(self, chart: Chart) -> None:
        """Let it say this and nothing else, in one transaction."""
        await self._thread.run(
            _in_transaction,
            self._thread.raw,
            lambda connection: _write_chart(connection, chart),
        )

    async def keep(self, key: str, value: str) -> None:
        """Keep a value."""
        sql = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
        await self._thread.run(self._thread.raw.execute, sql, (key, value))

    async def forget(self, key: str) -> None:
        """Forget a value."""
        sql = "DELETE FROM meta WHERE key = ?"
        await self._thread.run(self._thread.raw.execute, sql, (key,))

    async def close(self) -> None:
        """Close it, with nothing left in its log."""
        await self._thread.run(
            lambda: self._thread.raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        )
        await self._thread.close()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of a file, told as a store's, with its name."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from error


def _in_transaction(
    connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], Any]
) -> Any:
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = function(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return found


def _read_chart(connection: sqlite3.Connection) -> Chart:
    (shards,) = connection.execute("SELECT count(*) FROM shard").fetchone()
    slots = connection.execute("SELECT slot, shard, moved_from FROM slot ORDER BY slot")
    routes = connection.execute("SELECT number, providers FROM route ORDER BY number")
    pauses = connection.execute("SELECT subject FROM pause")
    meta = connection.execute("SELECT key, value FROM meta")
    return Chart(
        shards,
        slots.fetchall(),
        routes.fetchall(),
        [subject for (subject,) in pauses],
        dict(meta.fetchall()),
    )


def _write_chart(connection: sqlite3.Connection, chart: Chart) -> None:
    for sql in (
        "DELETE FROM slot",
        "DELETE FROM shard",
        "DELETE FROM route",
        "DELETE FROM pause",
        "DELETE FROM meta",
    ):
        connection.execute(sql)
    places = [(number, address(number)) for number in range(chart.shards)]
    connection.executemany("INSERT INTO shard VALUES (?, ?)", places)
    connection.executemany("INSERT INTO slot VALUES (?, ?, ?)", chart.slots)
    connection.executemany("INSERT INTO route VALUES (?, ?)", chart.routes)
    connection.executemany("INSERT INTO pause VALUES (?)", [(one,) for one in chart.pauses])
    connection.executemany("INSERT INTO meta VALUES (?, ?)", list(chart.meta.items()))
