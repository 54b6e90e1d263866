"""The data directory: who owns it, whether it can be trusted with a promise, what lies in it."""

import ctypes
import ctypes.util
import fcntl
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from smsgw.errors import StoreError

LOCK_WAIT_S: Final = 5.0
_LOCK_STEP_S: Final = 0.05
_KEY_BYTES: Final = 32
CATALOG: Final = "catalog.db"
"""Where it is there, the store is in files."""
NEW_CATALOG: Final = "catalog.new"
"""The catalog of files that a store is being copied into."""
KEY: Final = "otp.key"
MANIFEST: Final = "backup.json"
"""Where it is there, a directory is a backup, and not one to work in."""
RESTORING: Final = "restore.new"
"""What is being restored is in this folder; where there is no catalog beside it, not all of it."""
_SERVER_STORE: Final = "postgresql.id"
_KEPT: Final = "files-"
"""A store's files that have moved into PostgreSQL are kept in a folder named so, and the time."""

# statfs(2) magic numbers of file systems on which WAL or locks do not hold.
_REFUSED: Final = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x65735546: "FUSE",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x47504653: "GPFS",
    0x0BD00BD0: "Lustre",
}
_VOLATILE: Final = {0x01021994: "tmpfs", 0x858458F6: "ramfs"}


class LockHeld(StoreError):
    """Another process owns the data directory."""


class DataDirectory:
    """A locked data directory."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(
        cls, path: Path, purpose: str, wait_s: float = LOCK_WAIT_S, *, restoring: bool = False
    ) -> "DataDirectory":
        """Make the directory if need be, check its file system, take its lock.

        Args:
            path: where to.
            purpose: what holds the lock, for the message that another process shows.
            wait_s: how long to wait for the lock.
            restoring: whether it may be half restored.

        Raises:
            LockHeld: naming the process that holds it.
            StoreError: when the place is not fit for a store, or holds only a part of one.
        """
        if (path / MANIFEST).exists():
            raise StoreError(f"{path} is a backup: smsgw restore makes a data directory from it")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (path / "shards").mkdir(mode=0o700, exist_ok=True)
            refuse_network(path)
            lock = (path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{path} cannot be used: {error.strerror or error}") from error
        deadline_s = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    lock.seek(0)
                    holder = lock.read().strip() or "another process"
                    lock.close()
                    raise LockHeld(f"{path} is in use by {holder}") from None
                time.sleep(_LOCK_STEP_S)
        lock.seek(0)
        lock.truncate()
        lock.write(f"smsgw {purpose}, process {os.getpid()}\n")
        lock.flush()
        self = cls(path, lock)
        if not restoring:
            try:
                self._be_restored()
            except BaseException:
                self.close()
                raise
        return self

    def _be_restored(self) -> None:
        """Refuse what is half restored; what is restored but not tidied is tidied.

        Raises:
            StoreError: it is.
        """
        if (self.path / RESTORING).exists():
            if not (self.path / CATALOG).exists():
                raise StoreError(
                    f"{self.path} is half restored: call smsgw restore again to end it"
                )
            self.end_restoring()

    def close(self) -> None:
        """Give the lock back."""
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.flush()
        self._lock.close()

    def check_shards(self, addresses: set[str], *, new: bool) -> None:
        """Compare the shard files that are here with those the catalog names.

        Raises:
            StoreError: naming the missing or extra file.
        """
        found = {f"shards/{entry.name}" for entry in (self.path / "shards").glob("*.db")}
        for extra in sorted(found - addresses):
            raise StoreError(f"{self.path / extra} does not belong to this store")
        if not new:
            for missing in sorted(addresses - found):
                raise StoreError(f"{self.path / missing} is missing")
            for address in sorted(addresses):
                if (self.path / address).stat().st_size == 0:
                    raise StoreError(f"{self.path / address} is empty")

    def check_claim(self, store_id: int) -> None:
        """Refuse a store in PostgreSQL where this directory is a gateway's of another one.

        Raises:
            StoreError: it is.
        """
        path = self.path / _SERVER_STORE
        if path.exists() and path.read_text("ascii").strip() != str(store_id):
            raise StoreError(f"{self.path} is of another store than the one in store.shard_urls")

    def claim_for_server(self, store_id: int) -> None:
        """Note that this directory is a gateway's of a store in PostgreSQL.

        Raises:
            StoreError: it is of another one.
        """
        self.check_claim(store_id)
        path = self.path / _SERVER_STORE
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_text(f"{store_id}\n", "ascii")
            flush(fresh)
            fresh.rename(path)
            flush(self.path)

    def check_no_server(self) -> None:
        """Refuse to begin a store in files where one in PostgreSQL was used.

        Where the catalog is a file, the store has come back into files, and the note is old.

        Raises:
            StoreError: it was.
        """
        if (self.path / CATALOG).exists():
            (self.path / _SERVER_STORE).unlink(missing_ok=True)
        elif (self.path / _SERVER_STORE).exists():
            raise StoreError(
                f"{self.path} is of a store in PostgreSQL, but store.shard_urls is not set"
            )

    def check_server(self) -> None:
        """Refuse where no store in PostgreSQL was ever used.

        Raises:
            StoreError: there is no store.
        """
        if not (self.path / _SERVER_STORE).exists():
            raise StoreError(f"there is no store in {self.path}")

    def leave_files(self, now_ms: int) -> None:
        """Take the catalog out of use: from this moment the store is in PostgreSQL."""
        kept = self.path / f"{_KEPT}{now_ms}"
        kept.mkdir(mode=0o700)
        (self.path / CATALOG).rename(kept / CATALOG)
        flush(kept)
        flush(self.path)

    def set_aside(self) -> Path | None:
        """Put the shards' files beside the catalog that was taken out of use, if it was just now.

        Returns:
            Where all of them are.
        """
        for kept in sorted(self.path.glob(f"{_KEPT}*"), reverse=True):
            if not (kept / "shards").exists():
                (self.path / "shards").rename(kept / "shards")
                (self.path / "shards").mkdir(mode=0o700)
                flush(self.path)
            return kept
        return None

    def take_files(self) -> None:
        """Bring a new catalog into use: from this moment the store is in files."""
        flush(self.path / "shards")
        (self.path / NEW_CATALOG).rename(self.path / CATALOG)
        flush(self.path)

    def begin_restoring(self, manifest: str, key: bytes) -> Path:
        """Make the folder for what is restored; what an interrupted restore has left is removed.

        Args:
            manifest: of the backup.
            key: the secret in the backup.

        Returns:
            The folder.

        Raises:
            StoreError: something of a store is there.
        """
        folder, shards, own = self.path / RESTORING, self.path / "shards", self.path / KEY
        must_hold_no_store(self.path)
        if own.exists() and own.read_bytes() != key:
            raise StoreError(f"{own} is not that of the backup: nothing was restored")
        if folder.exists():
            # Since that folder was made, nobody could make anything here but a restore.
            for old in shards.glob("*.db"):
                old.unlink()
            shutil.rmtree(folder)
        for old in (self.path / NEW_CATALOG, *sorted(shards.glob("*.db"))):
            if old.exists():
                raise StoreError(f"{old} is in the way: nothing was restored")
        folder.mkdir(mode=0o700)
        (folder / "shards").mkdir(mode=0o700)
        (folder / MANIFEST).write_text(manifest, "utf-8")
        for log in (*self.path.glob("catalog.db-*"), *shards.glob("*.db-*")):
            # SQLite would take the log of another file for that of the one that comes.
            log.unlink()
        flush(self.path)
        return folder

    def take_restored(
        self, addresses: Sequence[str], step: Callable[[str, int, int], None]
    ) -> None:
        """Bring what was restored into use; the store is there once its catalog is, the last one.

        Args:
            addresses: of the shards.
            step: told after each.
        """
        folder = self.path / RESTORING
        for address in (*addresses, KEY):
            (folder / address).rename(self.path / address)
            step(f"{address} is in place", 0, 0)
        flush(self.path / "shards")
        flush(self.path)
        (folder / CATALOG).rename(self.path / CATALOG)
        flush(self.path)

    def is_restored(self, manifest: str) -> bool:
        """Whether exactly this backup was restored, and nobody has used it since."""
        kept = self.path / RESTORING / MANIFEST
        if not (self.path / CATALOG).exists() or not kept.exists():
            return False
        return kept.read_text("utf-8") == manifest

    def end_restoring(self) -> None:
        """Remove the folder of what was restored."""
        shutil.rmtree(self.path / RESTORING)
        flush(self.path)

    def key(self) -> bytes:
        """The secret from which codes are derived; made once, readable by its owner only.

        Raises:
            StoreError: when others may read it, or it is not whole.
        """
        path = self.path / KEY
        if not path.exists():
            fresh = path.with_suffix(".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(secrets.token_bytes(_KEY_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
            fresh.rename(path)
        if path.stat().st_mode & 0o077:
            raise StoreError(f"{path} can be read by others; chmod 600 it")
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise StoreError(f"{path} is not {_KEY_BYTES} bytes long")
        return key

    def free_bytes(self) -> int:
        """How much room is left on its file system."""
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_system(path: Path) -> int | None:
    """The magic number of a path's file system (statfs(2)); None where it cannot be told."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
    buffer = ctypes.create_string_buffer(512)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return None
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def refuse_network(path: Path) -> None:
    """Refuse file systems on which a WAL cannot be shared or locks do not hold.

    Raises:
        StoreError: naming the file system.
    """
    name = _REFUSED.get(file_system(path) or 0)
    if name:
        raise StoreError(f"{path} is on {name}; SQLite's write-ahead log needs a local disk")


def is_store(path: Path) -> bool:
    """Whether a directory is one of a store, wherever that is, or of a part of one."""
    return any((path / name).exists() for name in (CATALOG, _SERVER_STORE, RESTORING))


def must_hold_no_store(path: Path) -> None:
    """Refuse to restore where something would be overwritten.

    Raises:
        StoreError: there is a store, here or in PostgreSQL.
    """
    if (path / CATALOG).exists() or (path / _SERVER_STORE).exists():
        raise StoreError(f"{path} holds a store already: nothing was restored")


def is_volatile(path: Path) -> bool:
    """Whether the path is in memory, where nothing survives a power cut."""
    return (file_system(path) or 0) in _VOLATILE
