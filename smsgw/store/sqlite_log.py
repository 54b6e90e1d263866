"""The write-ahead log of one file: folded back into the file now and then, beside the turns.

A fold that nothing was committed beside ends with a flush of the file; if it ends before the next
turn begins, that one begins the log anew. The first fold is long: it copies nearly all, and seldom
is the one. So more follow, beside the turns too; they have little to copy, and mostly end in time.
Only where none of them does, or the log is too long, the writer folds between two turns, which
wait: not for much either, since what was copied before is mostly flushed.

The one fault of SQLite before 3.51.3 needs a checkpoint that begins when all is folded already, and
a commit at that very moment: one beside the turns begins only where something was committed since
the one before has ended, and the writer's own meets no commit.
"""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from smsgw.store.sqlite_thread import SqliteThread

_FIRST_CHANGES: Final = 20_000
"""Changed rows after which the log is folded back for the first time."""
_FULL: Final = 0.7
"""How full the log is when it is folded back: turns go on meanwhile."""
_TIMES_BESIDE: Final = 5
_FOLD: Final = "PRAGMA wal_checkpoint(PASSIVE)"
_FOLD_ALL: Final = "PRAGMA wal_checkpoint(TRUNCATE)"


class Log:
    """When the log of a file is folded back, and by whom."""

    def __init__(
        self, path: Path, writer: SqliteThread, folder: SqliteThread, bytes_max: int
    ) -> None:
        self._path = path.with_name(path.name + "-wal")
        self._writer = writer
        self._folder = folder
        self._bytes_max = bytes_max
        self._folding: asyncio.Task[int] | None = None
        self._times = 0
        self._folded_at = 0
        self._begun_at = 0
        self._longest_bytes = 0
        self._fold_after = _FIRST_CHANGES
        self._version: int | None = None

    async def open(self) -> None:
        """Fold back everything, before anybody writes.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        await self._fold_all()
        self._version = await self._folder.run(_version, self._folder)

    async def tidy(self) -> None:
        """Between turns: fold, if it is time to."""
        changes = self._writer.raw.total_changes
        if self._folding is None:
            if changes - self._folded_at >= self._fold_after:
                self._begun_at, self._times, self._longest_bytes = changes, 0, 0
                self._begin()
        elif self._folding.done():
            log_bytes = await self._ended()
            begun_anew = 0 < log_bytes < self._longest_bytes
            too_long = self.length_bytes() > self._bytes_max
            if not (begun_anew or too_long) and self._times < _TIMES_BESIDE:
                self._longest_bytes = max(log_bytes, self._longest_bytes)
                self._begin()
                return
            if too_long or not begun_anew:
                # Should this be cut short, nobody knows what is folded.
                self._version = None
                await self._writer.run(_fold, self._writer, _FOLD_ALL if too_long else _FOLD)
                self._version = await self._folder.run(_version, self._folder)
            self._folded_at = changes

    def _begin(self) -> None:
        self._times += 1
        self._folding = asyncio.create_task(self._folder.run(self._fold_beside))

    def _fold_beside(self) -> int:
        # Changes are counted also where they were undone; this tells of commits alone.
        before, now = self._version, _version(self._folder)
        if before is None or now is None or before == now:
            return 0
        self._version = None
        folded_bytes = _fold(self._folder, _FOLD)
        self._version = _version(self._folder)
        return folded_bytes

    async def _ended(self) -> int:
        """Wait until nobody folds, and learn how many changes the log has room for.

        The rarer it is folded, the less is written: most pages change again and again.

        Returns:
            How long the log was, in bytes; 0 where nothing was committed since the last time.
        """
        if self._folding is None:
            return 0
        folding, self._folding = self._folding, None
        log_bytes, changes = await folding, self._begun_at - self._folded_at
        if log_bytes and changes and self._times == 1:
            self._fold_after = int(changes * _FULL * self._bytes_max / log_bytes)
        return log_bytes

    def length_bytes(self) -> int:
        """How long it is."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    async def close(self) -> None:
        """Fold back everything once nobody reads or writes any more."""
        with contextlib.suppress(sqlite3.Error):
            await self._ended()
        await self._folder.close()
        with contextlib.suppress(sqlite3.Error):
            await self._fold_all()

    async def _fold_all(self) -> None:
        await self._writer.run(lambda: self._writer.raw.execute(_FOLD_ALL).fetchall())


def _version(thread: SqliteThread) -> int | None:
    """A number that changes with each commit of another connection that wrote anything.

    None where it cannot be read now.
    """
    with contextlib.suppress(sqlite3.OperationalError):
        found: int = thread.raw.execute("PRAGMA data_version").fetchone()[0]
        return found
    return None


def _fold(thread: SqliteThread, statement: str) -> int:
    """Fold the log back; returns how many bytes it held, as far as that is known."""
    # A reader in the way is no error: the rest is folded the next time.
    with contextlib.suppress(sqlite3.OperationalError):
        [(_, pages, _)] = thread.raw.execute(statement).fetchall()
        [(page_bytes,)] = thread.raw.execute("PRAGMA page_size").fetchall()
        return max(0, int(pages)) * int(page_bytes)
    return 0
