"""One SQLite connection on its own thread, with one call: run a function there.

aiosqlite awaits one statement at a time, and each await is a thread hop of about 100 µs, so what
takes many statements must be one hop. aiosqlite has no public call for that:
``Connection._tx``, the queue of its thread, is private, which is why it is used only here and the
version is pinned in ``pyproject.toml``. (Its own ``_execute`` would need a task around it.)
"""

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite

from smsgw.errors import StoreError

T = TypeVar("T")

VERSION_MIN: Final = (3, 37, 0)
VERSION_WAL_FIX: Final = (3, 51, 3)
_STATEMENTS_CACHED: Final = 512
PAGE_BYTES: Final = 2048


class SqliteThread:
    """A connection and its thread."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self.raw: sqlite3.Connection = connection._conn
        self._closed = False

    @classmethod
    async def open(
        cls, path: Path, *, read_only: bool = False, cache_kib: int = 8192
    ) -> "SqliteThread":
        """Open a WAL file and read back every pragma that a promise rests on.

        Raises:
            StoreError: when a pragma does not hold, or the file cannot be opened.
        """
        check_version()
        connection = aiosqlite.connect(
            _to_read(path) if read_only else path,
            uri=read_only,
            isolation_level=None,
            cached_statements=_STATEMENTS_CACHED,
            check_same_thread=False,
        )
        try:
            await connection
        except sqlite3.Error as error:
            # Its thread has a last word for this loop, which may be closed next.
            await asyncio.to_thread(connection._thread.join)
            raise StoreError(f"{path} cannot be opened: {error}") from error
        self = cls(connection)
        try:
            await self.run(_configure, self.raw, path, read_only, cache_kib)
        except BaseException as error:
            await self.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{path} cannot be opened: {error}") from error
            raise
        return self

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function on the connection's thread, to its end even if we are cancelled."""
        if self._closed:
            raise ValueError("the connection is closed")
        call: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._connection._tx.put_nowait((call, partial(function, *arguments)))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            # The thread goes on regardless; nobody may act as if it had not.
            await asyncio.wait([call])
            raise

    async def close(self) -> None:
        """Close the connection and end its thread."""
        self._closed = True
        await self._connection.close()


def _to_read(path: Path) -> str:
    """How a file is named to be only read: the last one to close it folds no log back then."""
    return f"{path.absolute().as_uri()}?mode=ro"


def check_version() -> None:
    """Refuse an SQLite without STRICT tables and RETURNING.

    Raises:
        StoreError: naming the version and the way out.
    """
    if sqlite3.sqlite_version_info < VERSION_MIN:
        raise StoreError(
            f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or newer is needed: "
            "pip install 'smsgw[sqlite]' brings one"
        )


def _configure(connection: sqlite3.Connection, path: Path, read_only: bool, cache_kib: int) -> None:
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "mmap_size": 0,
        # What a wide statement may have to undo stays in memory: beyond 64 KiB, and with a long
        # history there is more, each statement would make and remove a file of its own.
        # Readers sort on the disk: an audit may have much to sort.
        "temp_store": 0 if read_only else 2,
        # Nobody checkpoints by chance: SQLite before 3.51.3 can corrupt a WAL where a checkpoint
        # that begins with nothing to do meets a commit. See sqlite_log.
        "wal_autocheckpoint": 0,
        "cache_size": -cache_kib,
        "query_only": int(read_only),
        "trusted_schema": 0,
    }
    # The writer never waits for a lock: it works on the event loop's thread, and its shard tries
    # again by itself. Readers meet locks only while somebody opens or closes the file.
    connection.execute(f"PRAGMA busy_timeout = {5000 if read_only else 0}")
    # Counts only for a new file. With a long history, of most pages a turn changes one row, such as
    # a client's last entry: pages of half the usual size make the log half as long.
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    for pragma, value in wanted.items():
        connection.execute(f"PRAGMA {pragma} = {value}")
        row = connection.execute(f"PRAGMA {pragma}").fetchone()
        # A library built without memory mapping returns no row.
        if row is not None and row[0] != value:
            raise StoreError(f"{path}: PRAGMA {pragma} is {row[0]!r}, it must be {value!r}")


def migrate(connection: sqlite3.Connection, steps: list[tuple[int, str, str]], now_ms: int) -> None:
    """Bring a schema up to date; each step and the note that it ran are one transaction.

    All steps of a new file are one: it is made in half the time.

    Raises:
        StoreError: when the file is newer than this program.
    """
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migration "
        "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at_ms INTEGER NOT NULL) STRICT"
    )
    (done,) = connection.execute("SELECT coalesce(max(number), 0) FROM migration").fetchone()
    if done > len(steps):
        raise StoreError(f"the schema is at step {done}, this program knows {len(steps)}")
    # Number and name come from our own file, the time from our own clock.
    scripts = [
        f"{script}\nINSERT INTO migration VALUES ({number}, '{name}', {now_ms});"
        for number, name, script in steps[done:]
    ]
    for script in scripts if done else ["\n".join(scripts)]:
        try:
            # executescript would commit on its own; one BEGIN … COMMIT inside keeps them together.
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
