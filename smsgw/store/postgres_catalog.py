"""The catalog in PostgreSQL: a schema in the first database."""

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from smsgw.errors import StorageUnavailable, StoreError
from smsgw.ids import SLOTS
from smsgw.store import postgres_statements as statements
from smsgw.store.base import ShardUnavailableError
from smsgw.store.places import TIDYING
from smsgw.store.postgres_connection import Database, fetch, migrate

_PLACE = "postgresql"


def address(index: int, schema: str) -> str:
    """Where a shard is: the index of its URL and its schema."""
    return f"{_PLACE}/{index}/{schema}"


def database_index(place: str) -> int:
    """The index of a shard's URL.

    Raises:
        StoreError: the shard is somewhere else than in PostgreSQL.
    """
    kind, _, rest = place.partition("/")
    index = rest.partition("/")[0]
    if kind != _PLACE or not index.isdigit():
        raise StoreError(f"the catalog says that a shard is at {place}, which is not in PostgreSQL")
    return int(index)


@contextlib.contextmanager
def _reachable() -> Iterator[None]:
    """Tell callers that the catalog is not available, where its server is not."""
    try:
        yield
    except (ShardUnavailableError, StoreError) as error:
        raise StorageUnavailable(
            f"The catalog is not available now: {error}.", retry_after_s=1, outcome="none"
        ) from error


class PostgresCatalog:
    """The open catalog."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store_id = 0
        self.epoch = 0
        self.made = False
        self.tidying = False
        self.shards: dict[int, str] = {}
        self.shard_of_slot: list[int] = []
        self.moved_from: dict[int, int] = {}
        self.paused: set[str] = set()
        self._sql = statements.catalog_statements()

    @classmethod
    async def open(
        cls, database: Database, shards: int | None, databases: int, now_ms: int
    ) -> "PostgresCatalog":
        """Open, or make, the catalog.

        Args:
            database: where it is.
            shards: how many there are to be; None for as many as there are, or, in a new store, as
                there are databases.
            databases: over how many databases they are dealt in turn.
            now_ms: the time to note migrations with.

        Raises:
            StoreError: when the catalog says another number of shards, or cannot be read.
        """
        self = cls(database)
        try:
            steps = statements.migrations("catalog", statements.CATALOG)
            await migrate(database, statements.CATALOG, steps, now_ms)
            await self._begin(shards or databases, databases)
            await self._read()
        except ShardUnavailableError as error:
            raise StoreError(str(error)) from error
        if shards is not None and len(self.shards) != shards:
            raise StoreError(
                f"the settings say {shards} shards, but {database.name} was made with"
                f" {len(self.shards)}"
            )
        return self

    async def _begin(self, shards: int, databases: int) -> None:
        """Fill a new catalog: slots are dealt over the shards in turn."""
        async with self.database.alone() as connection:
            await connection.execute(self._sql["catalog_lock"])
            if not await fetch(connection, self._sql["catalog_shards"]):
                places = [
                    (number, address(number % databases, statements.schema_of(number)))
                    for number in range(shards)
                ]
                await connection.executemany(self._sql["catalog_shard_add"], places)
                await connection.execute(self._sql["catalog_slots_deal"], shards)
                meta = [("store", str(secrets.randbits(62))), ("epoch", "1")]
                await connection.executemany(self._sql["catalog_meta_set"], meta)

    async def _read(self) -> None:
        async with self.database.at_once() as connection:
            self.shards = dict(await fetch(connection, self._sql["catalog_shards"]))
            slots = await fetch(connection, self._sql["catalog_slots"])
            pauses = await fetch(connection, self._sql["catalog_pauses"])
            meta = dict(await fetch(connection, self._sql["catalog_meta"]))
        self.shard_of_slot = [shard for _, shard, _ in slots]
        self.moved_from = {slot: origin for slot, _, origin in slots if origin is not None}
        self.paused = {subject for (subject,) in pauses}
        self.store_id, self.epoch = int(meta["store"]), int(meta["epoch"])
        self.made = "made" in meta
        self.tidying = TIDYING in meta
        if len(slots) != SLOTS or not set(self.shard_of_slot) <= set(self.shards):
            raise StoreError(f"{self.database.name} is damaged: its slot map is not whole")

    async def set_made(self) -> None:
        """Note that every shard's schema was made: from now on a missing one is a loss."""
        await self._do("catalog_meta_set", "made", "1")
        self.made = True

    async def set_paused(self, subject: str, *, paused: bool) -> None:
        """Pause or resume everything (``PAUSE_ALL``) or a provider; survives a restart."""
        await self._do("catalog_pause" if paused else "catalog_resume", subject)
        (self.paused.add if paused else self.paused.discard)(subject)

    async def changes(self, key: str, value: str) -> bool:
        """Keep a value; says whether another one was kept before."""
        kept = dict(await self._do("catalog_meta")).get(key)
        if kept != value:
            await self._do("catalog_meta_set", key, value)
        return kept is not None and kept != value

    async def routes(self, sets: Iterable[tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
        """The numbers of these sets of providers; a new set gets the next number for ever."""
        names = list(sets)
        with _reachable():
            async with self.database.alone() as connection:
                await connection.execute(self._sql["catalog_lock"])
                known = dict(await fetch(connection, self._sql["catalog_routes"]))
                for text in map(",".join, names):
                    if text not in known:
                        await connection.execute(self._sql["catalog_route_add"], text)
                        known = dict(await fetch(connection, self._sql["catalog_routes"]))
        return {known[",".join(one)]: one for one in names}

    async def _do(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with _reachable():
            return await self.database.write(self._sql[statement], *parameters)

    async def close(self) -> None:
        """Do nothing: its database is closed by its owner."""
