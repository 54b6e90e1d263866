"""A gateway's seat among those that share a store in PostgreSQL: its number, and its lease.

The number, 0…15, is in every id that the gateway gives; the incarnation says which start of it
this is, and owns what is in flight. A seat is held by a lease of the database's clock. The data
directory names the gateway, and its lock keeps a second process out of it: so one that starts again
takes its own seat at once, and what was in flight under the earlier incarnation is decided.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final

from smsgw.errors import StoreError
from smsgw.store import postgres_statements as statements
from smsgw.store.base import ShardUnavailableError
from smsgw.store.places import INTO, MOVING
from smsgw.store.postgres_connection import Connection, Database, fetch

SEATS: Final = 16


def name_of(directory: Path) -> str:
    """The name of a data directory, made once; a copy of the directory gets another one."""
    path = directory / "gateway.id"
    with contextlib.suppress(OSError, ValueError):
        name, inode = path.read_text("ascii").split()
        if inode == str(path.stat().st_ino):
            return name
    name = secrets.token_hex(16)
    with path.open("w", encoding="ascii") as stream:
        stream.write(f"{name} {os.fstat(stream.fileno()).st_ino}\n")
        stream.flush()
        os.fsync(stream.fileno())
    return name


def told_of(key: bytes) -> str:
    """What a catalog is told of the secret from which codes are derived, to know it again."""
    return blake2b(key, digest_size=16, person=b"smsgw otp.key").hexdigest()


class Seat:
    """A seat that this process holds."""

    def __init__(self, database: Database, number: int, incarnation: int) -> None:
        self.number = number
        self.incarnation = incarnation
        self.serving = False
        self._database = database
        self._sql = statements.catalog_statements()

    @classmethod
    async def take(
        cls, database: Database, directory: Path, key: bytes, *, above: int = 0
    ) -> "Seat":
        """Take a gateway's own seat again, or else a free one.

        Args:
            database: where the catalog is.
            directory: the data directory, locked.
            key: the secret from which codes are derived.
            above: the last incarnation that any shard knows.

        Raises:
            StoreError: all are taken by gateways that are alive, or those have another key.
        """
        name = name_of(directory)
        sql = statements.catalog_statements()
        try:
            async with database.alone() as connection:
                await connection.execute(sql["catalog_lock"])
                seats = await fetch(connection, sql["gateways_locked"])
                number = _choose(seats, name)
                told = told_of(key)
                meta = dict(await fetch(connection, sql["catalog_meta"]))
                await _end_moving(database, connection, meta, name)
                kept = meta.get("otp_key")
                alone = not any(alive for _, other, alive in seats if other != name)
                if kept not in (None, told) and not alone:
                    raise StoreError(
                        f"{directory / 'otp.key'} is not the key of the gateways that are alive:"
                        " codes of one could not be verified by another; copy theirs"
                    )
                await connection.execute(sql["catalog_meta_set"], "otp_key", told)
                lease_s = database.settings.lease_s
                ((incarnation,),) = await fetch(
                    connection, sql["gateway_enter"], number, name, lease_s, above
                )
        except ShardUnavailableError as error:
            raise StoreError(str(error)) from error
        return cls(database, number, incarnation)

    async def beat(self) -> bool:
        """Say that this gateway is alive; False where another process has taken its seat.

        Raises:
            ShardUnavailableError: the server cannot be told now.
        """
        lease_s = self._database.settings.lease_s
        return bool(
            await self._database.beat(
                self._sql["gateway_beat"], self.number, self.incarnation, self.serving, lease_s
            )
        )

    async def leave(self) -> None:
        """Give the seat back; where that fails, its lease ends by itself."""
        with contextlib.suppress(ShardUnavailableError, StoreError):
            await self._database.write(self._sql["gateway_leave"], self.number, self.incarnation)


async def _end_moving(
    database: Database, connection: Connection, meta: Mapping[str, str], name: str
) -> None:
    """Open a store again that its own data directory has moved here, or has not moved away.

    Where the store is, that directory alone can tell, and it has: it holds no catalog.

    Raises:
        StoreError: it is, or was, another directory that moves it; or it is not all here yet.
    """
    if MOVING not in meta:
        return
    if meta[MOVING].split()[0] != name:
        raise StoreError(
            f"{database.name}: another data directory moves this store, or has moved it to files"
        )
    if meta[MOVING].split()[-1] == INTO:
        raise StoreError(f"{database.name} holds an unfinished copy of a store in files")
    sql = statements.moving_statements(statements.CATALOG)
    await connection.execute(sql["catalog_meta_forget"], MOVING)


def _choose(seats: list[tuple[int, str, bool]], name: str) -> int:
    for number, holder, _ in seats:
        if holder == name:
            return number
    taken = {number for number, _, alive in seats if alive}
    never = [number for number in range(SEATS) if number not in {seat[0] for seat in seats}]
    free = never + [number for number, _, alive in seats if not alive]
    if not free:
        raise StoreError(f"all {len(taken)} seats are taken by gateways that are alive")
    return free[0]
