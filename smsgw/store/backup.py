"""A copy of a store in files, made while it is used.

Each shard is copied as it is at one moment, page by page, by a reader: turns go on, only the log is
not begun anew until that one file is copied. What takes longer, the audit, is done on the copy. The
catalog comes last, since shards name routes that it must know. All of it happens under another
name, and the manifest is written, and the folder renamed, once everything is proved and on disk.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from smsgw import __version__
from smsgw.clock import Clock, rfc3339
from smsgw.errors import AlreadyExists, InvalidRequest, ShuttingDown, StoreError
from smsgw.logs import get
from smsgw.store.audit import Proof, audit
from smsgw.store.directory import CATALOG, KEY, MANIFEST, flush
from smsgw.store.manifest import Kept, KeptShard, Manifest, hashed
from smsgw.store.places_files import address
from smsgw.store.sqlite import check_identity

log = get(__name__)

ON_SERVER: Final = (
    "the store is in PostgreSQL, whose own tools are the way: pg_dump, or an archive of its WAL for"
    " a restore to the second; smsgw/docs/scaling.md says more"
)
UNFINISHED: Final = ".unfinished"
"""What is behind the name of a backup that is no whole one yet."""
_STEP_PAGES: Final = 4096
"""How many pages are copied, and brought to disk, at a time: commits need the disk, too."""
_STOP_LOOK_S: Final = 0.05
_OURS: Final = frozenset({CATALOG, KEY, MANIFEST, "shards"})


class GivenUp(Exception):
    """The backup is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Source:
    """An open store in files; ``spare_bytes`` of its disk are not to be used."""

    path: Path
    store_id: int
    epoch: int
    addresses: Mapping[int, str]
    key: bytes
    spare_bytes: int

    def identity(self, shard: int) -> dict[str, int]:
        """What a shard must say of itself."""
        count = len(self.addresses)
        return {"store": self.store_id, "shard": shard, "shards": count, "epoch": self.epoch}


class Making:
    """One backup in the making, in a thread of its own; others may look, and stop it.

    ``what`` is being done, ``done`` of ``total`` MiB.
    """

    def __init__(self, source: Source, target: Path, clock: Clock) -> None:
        self.target = target
        self.what = "begun"
        self.done = self.total = 0
        self._source = source
        self._clock = clock
        self._stopped = False
        self._connection: sqlite3.Connection | None = None

    def stop(self) -> None:
        """Give it up; to be called again until it has ended."""
        self._stopped = True
        if (connection := self._connection) is not None:
            # It may just have been closed.
            with contextlib.suppress(sqlite3.ProgrammingError):
                connection.interrupt()

    def make(self) -> Manifest:
        """Make it.

        Raises:
            StoreError: it cannot be made there, or what is copied is not as it must be.
            GivenUp: it was stopped.
        """
        try:
            with self._place() as folder:
                return self._fill(folder)
        except sqlite3.Error as error:
            raise StoreError(f"nothing was backed up: {error}") from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise StoreError(f"nothing was backed up: {where}{error.strerror or error}") from error

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """The folder that is to be the backup: ours alone, empty, and gone if anything fails."""
        target = self.target
        if target.resolve().is_relative_to(self._source.path.resolve()):
            raise StoreError(f"{target} is in the data directory: a backup belongs elsewhere")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise StoreError(f"{target} is not empty")
        if target.is_mount():
            raise StoreError(f"{target} is a whole file system: name a folder in it")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.with_name(target.name + UNFINISHED)
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"another backup to {target} is under way") from None
            _empty(folder)
            try:
                yield folder
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        finally:
            os.close(lock)

    def _fill(self, folder: Path) -> Manifest:
        source = self._source
        live = {number: source.path / one for number, one in source.addresses.items()}
        for number, one in source.addresses.items():
            if one != address(number):
                raise StoreError(f"shard {number} is at {one}: only shards in files are backed up")
        self._must_have_room(folder, sum(path.stat().st_size for path in live.values()))
        (folder / "shards").mkdir(mode=0o700)
        self._tell("begun")
        shards = [self._shard(number, path, folder) for number, path in live.items()]
        at = rfc3339(self._clock.now_ms())
        catalog = self._catalog(folder)
        key = folder / KEY
        _write(key, source.key)
        kept = self._kept(key, KEY)
        manifest = Manifest(
            version=__version__,
            store=str(source.store_id),
            epoch=source.epoch,
            at=at,
            shards=shards,
            catalog=catalog,
            key=kept,
        )
        flush(folder / "shards")
        flush(folder)
        self._tell("proved")
        _write(folder / MANIFEST, manifest.text().encode())
        flush(folder)
        self._tell("whole")
        folder.rename(self.target)
        flush(self.target.parent)
        self._tell("in place")
        return manifest

    def _must_have_room(self, folder: Path, needed_bytes: int) -> None:
        self.total = needed_bytes >> 20
        free_bytes = shutil.disk_usage(folder).free
        if folder.stat().st_dev == self._source.path.stat().st_dev:
            free_bytes -= self._source.spare_bytes
        if free_bytes < needed_bytes:
            raise StoreError(
                f"{folder.parent} has no room: {needed_bytes >> 20} MiB are needed,"
                f" {max(0, free_bytes) >> 20} MiB can be used"
            )

    def _tell(self, what: str) -> None:
        """Say what is being done now; the place where it ends if it is not wanted any more."""
        self.what = what
        if self._stopped:
            raise GivenUp

    def _shard(self, number: int, live: Path, folder: Path) -> KeptShard:
        name = address(number)
        at = rfc3339(self._clock.now_ms())
        self._copy(live, folder / name, f"shard {number}: copying")
        self._tell(f"shard {number} is copied")
        with self._opened(folder / name) as connection:
            check_identity(connection, live, self._source.identity(number))
            proof = audit(connection, number, lambda check: self._tell(f"shard {number}: {check}"))
        self._tell(f"shard {number}: hashing")
        _must_be_clean(proof)
        kept = self._kept(folder / name, name)
        return KeptShard(
            **kept.model_dump(),
            shard=number,
            at=at,
            clients=proof.clients,
            messages=proof.messages,
            entries=proof.entries,
            credits=proof.credits_cents,
            held=proof.held_cents,
            charged=proof.charged_cents,
        )

    def _catalog(self, folder: Path) -> Kept:
        self._copy(self._source.path / CATALOG, folder / CATALOG, "catalog: copying")
        with self._opened(folder / CATALOG) as connection:
            ((found,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
        if found != "ok":
            raise StoreError(f"the catalog is damaged: {found}")
        return self._kept(folder / CATALOG, CATALOG)

    def _copy(self, live: Path, path: Path, what: str) -> None:
        """Copy a file that is in use, as it is now."""
        before = self.done
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

        def step(_status: int, left: int, pages: int) -> None:
            os.fsync(descriptor)
            # A file that is small, or has grown, is not measured finely.
            self.done = before + ((pages - left) * page_bytes >> 20)
            self._tell(what)

        uri = f"{live.absolute().as_uri()}?mode=ro"
        try:
            with (
                closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as source,
                closing(sqlite3.connect(path, isolation_level=None)) as target,
            ):
                ((page_bytes,),) = source.execute("PRAGMA page_size").fetchall()
                target.execute("PRAGMA journal_mode = OFF").fetchall()
                target.execute("PRAGMA synchronous = OFF")
                # Without a transaction, each commit of others would begin the copy anew.
                source.execute("BEGIN")
                source.execute("SELECT count(*) FROM sqlite_master").fetchall()
                source.backup(target, pages=_STEP_PAGES, progress=step)
                source.execute("ROLLBACK")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[sqlite3.Connection]:
        """A copy, to be read: nobody else has it, so no lock is taken and no log is made."""
        uri = f"{path.absolute().as_uri()}?immutable=1"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            # There may be much to sort.
            connection.execute("PRAGMA temp_store = FILE")
            self._connection = connection
            try:
                yield connection
            finally:
                self._connection = None

    def _kept(self, path: Path, name: str) -> Kept:
        count, digest = hashed(path, lambda _block: self._tell(self.what))
        return Kept(file=name, bytes=count, sha256=digest)


def _empty(folder: Path) -> None:
    """Remove what an interrupted backup has left, and nothing else."""
    found = list(folder.iterdir())
    for path in found:
        if path.name not in _OURS:
            raise StoreError(f"{path} is in the way")
    if found:
        log.info("backup.leftover", "what an interrupted backup has left is removed")
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _must_be_clean(proof: Proof) -> None:
    if proof.findings:
        first = proof.findings[0]
        raise StoreError(
            f"the audit of the copy found {len(proof.findings)} things that must not be, first in"
            f" shard {proof.shard}, client {first.client_id}: {first.sentence}"
        )


class Backups:
    """The backups of an open store, of which one at a time is made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._making: Making | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._outcome: dict[str, Any] = {}

    def start(self, source: Source, target: Path) -> None:
        """Begin one.

        Raises:
            AlreadyExists: another one is being made.
            ShuttingDown: the gateway stops.
        """
        if self._closed:
            raise ShuttingDown
        if self._making is not None and self._task is not None and not self._task.done():
            raise AlreadyExists(f"A backup to {self._making.target} is under way.")
        self._making = Making(source, target, self._clock)
        self._outcome = {}
        self._task = asyncio.create_task(self._make(self._making), name="backup")

    async def _make(self, making: Making) -> None:
        executor = ThreadPoolExecutor(1, "backup")
        try:
            loop = asyncio.get_running_loop()
            manifest = await loop.run_in_executor(executor, making.make)
            self._outcome = {"state": "done", "manifest": manifest.model_dump()}
            log.info("backup.done", "a backup was made", directory=str(making.target))
        except GivenUp:
            self._outcome = {"state": "failed", "detail": "the backup was given up"}
        except StoreError as error:
            self._outcome = {"state": "failed", "detail": error.detail}
            log.warning("backup.failed", "a backup could not be made", why=error.detail)
        except Exception as error:  # noqa: BLE001
            # Nobody else waits for what becomes of it.
            self._outcome = {"state": "failed", "detail": "the backup failed: the log says why"}
            log.error("backup.failed", "a defect of ours", error=error)  # noqa: TRY400
        finally:
            executor.shutdown(wait=False)

    async def state(self, wait_s: float = 0) -> dict[str, Any]:
        """How far the last one is, once it has ended or the time is over.

        Raises:
            InvalidRequest: there was none.
        """
        if self._making is None or self._task is None:
            raise InvalidRequest("There was no backup since the gateway was started.")
        if wait_s:
            await asyncio.wait({self._task}, timeout=wait_s)
        return {
            "directory": str(self._making.target),
            "state": "running",
            "step": self._making.what,
            "done": self._making.done,
            "total": self._making.total,
            **self._outcome,
        }

    async def stop(self) -> None:
        """Give up the one that is being made, if any."""
        while self._task is not None and self._making is not None and not self._task.done():
            self._making.stop()
            await asyncio.wait({self._task}, timeout=_STOP_LOOK_S)

    async def close(self) -> None:
        """Give it up, and begin none any more."""
        self._closed = True
        await self.stop()
