"""The catalog: one small file that says which slot lives where, and what is paused."""

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from smsgw.errors import StorageUnavailable, StoreError
from smsgw.ids import SLOTS
from smsgw.store import statements
from smsgw.store.sqlite_thread import SqliteThread, migrate

T = TypeVar("T")

PAUSE_ALL = ""
DISABLED = "disabled "
"""What a provider's name, which has no spaces, is kept behind that nobody is to send through."""


class Catalog:
    """The open catalog."""

    def __init__(self, thread: SqliteThread, path: Path) -> None:
        self.path = path
        self._thread = thread
        self.store_id = 0
        self.epoch = 0
        self.made = False
        self.shards: dict[int, str] = {}
        self.shard_of_slot: list[int] = []
        self.moved_from: dict[int, int] = {}
        self.paused: set[str] = set()

    @classmethod
    async def open(cls, path: Path, shards: int, store_id: int, now_ms: int) -> "Catalog":
        """Open, or make, the catalog.

        Args:
            path: where it is.
            shards: how many shard files a new store gets.
            store_id: what a new store is called, in all of its files.
            now_ms: the time to note migrations with.

        Raises:
            StoreError: when the catalog says another number of shards, or cannot be read.
        """
        thread = await SqliteThread.open(path, cache_kib=256)
        self = cls(thread, path)
        try:
            await thread.run(migrate, thread.raw, statements.migrations("catalog"), now_ms)
            await thread.run(self._begin, shards, store_id)
            await thread.run(self._read)
        except BaseException as error:
            await thread.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{path}: {error}") from error
            raise
        if len(self.shards) != shards:
            await thread.close()
            raise StoreError(
                f"store.shards is {shards}, but {path.parent} was made with {len(self.shards)}"
            )
        return self

    def _begin(self, shards: int, store_id: int) -> None:
        """Fill a new catalog: slots are dealt over the shards in turn."""
        connection = self._thread.raw
        if connection.execute("SELECT 1 FROM shard").fetchone():
            return
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO shard VALUES (?, ?)",
            [(number, f"shards/{number:02d}.db") for number in range(shards)],
        )
        connection.executemany(
            "INSERT INTO slot VALUES (?, ?, NULL)", [(slot, slot % shards) for slot in range(SLOTS)]
        )
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)", [("store", str(store_id)), ("epoch", "1")]
        )
        connection.execute("COMMIT")

    def _read(self) -> None:
        connection = self._thread.raw
        self.shards = dict(connection.execute("SELECT number, address FROM shard ORDER BY number"))
        rows = connection.execute("SELECT slot, shard, moved_from FROM slot ORDER BY slot")
        slots = rows.fetchall()
        self.shard_of_slot = [shard for _, shard, _ in slots]
        self.moved_from = {slot: origin for slot, _, origin in slots if origin is not None}
        self.paused = {subject for (subject,) in connection.execute("SELECT subject FROM pause")}
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        self.store_id, self.epoch = int(meta["store"]), int(meta["epoch"])
        self.made = "made" in meta
        if len(slots) != SLOTS or not set(self.shard_of_slot) <= set(self.shards):
            raise StoreError(f"{self.path} is damaged: its slot map is not whole")

    async def set_made(self) -> None:
        """Note that every shard's file was made: from now on a missing one is a loss."""
        sql = "INSERT OR IGNORE INTO meta VALUES ('made', '1')"
        await self._do(self._thread.raw.execute, sql)
        self.made = True

    async def set_paused(self, subject: str, *, paused: bool) -> None:
        """Pause or resume everything (``PAUSE_ALL``) or a provider; survives a restart.

        Behind ``DISABLED`` it is disabled or enabled.
        """
        sql = (
            "INSERT OR IGNORE INTO pause VALUES (?)"
            if paused
            else "DELETE FROM pause WHERE subject = ?"
        )
        await self._do(self._thread.raw.execute, sql, (subject,))
        (self.paused.add if paused else self.paused.discard)(subject)

    async def changes(self, key: str, value: str) -> bool:
        """Keep a value; says whether another one was kept before."""
        return await self._do(self._changes, key, value)

    def _changes(self, key: str, value: str) -> bool:
        connection = self._thread.raw
        kept = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if kept is None or kept[0] != value:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        return kept is not None and kept[0] != value

    async def routes(self, sets: Iterable[tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
        """The numbers of these sets of providers; a new set gets the next number for ever."""
        return await self._do(self._routes, list(sets))

    def _routes(self, sets: list[tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
        connection = self._thread.raw
        known = dict(connection.execute("SELECT providers, number FROM route").fetchall())
        for names in sets:
            text = ",".join(names)
            if text not in known:
                known[text] = max(known.values(), default=-1) + 1
                connection.execute("INSERT INTO route VALUES (?, ?)", (known[text], text))
        return {known[",".join(names)]: names for names in sets}

    async def _do(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do something on the catalog's thread.

        Raises:
            StorageUnavailable: the disk does not let it.
        """
        try:
            return await self._thread.run(function, *arguments)
        except sqlite3.Error as error:
            # What a disk has failed to write may be there after the next start all the same.
            failed = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
            raise StorageUnavailable(
                f"The catalog is not available now: {error}.",
                retry_after_s=1,
                outcome="unknown" if failed else "none",
            ) from error

    async def close(self) -> None:
        """Fold the log back and close."""
        await self._thread.run(
            lambda: self._thread.raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        )
        await self._thread.close()
