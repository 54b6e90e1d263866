"""A whole store in PostgreSQL: its databases, its catalog, this gateway's seat, every shard.

``run`` keeps the leases and looks at what other gateways have changed, every ``postgres.poll_ms``:
no connection is held for notifications, and none has a state, so that poolers may stand between.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any, Final, NoReturn

from smsgw.allotter import Allotter
from smsgw.errors import StoreError
from smsgw.logs import get
from smsgw.settings import PostgresSettings, StoreSettings
from smsgw.store import postgres_statements as statements
from smsgw.store.base import ShardUnavailableError
from smsgw.store.directory import CATALOG, DataDirectory
from smsgw.store.holdings import tidy_server
from smsgw.store.postgres import PostgresShard
from smsgw.store.postgres_catalog import PostgresCatalog, database_index
from smsgw.store.postgres_connection import UNDEFINED_TABLE, Database, code_of
from smsgw.store.postgres_reach import Reach
from smsgw.store.postgres_seat import Seat
from smsgw.store.shard import Shard

log = get(__name__)

BEATS: Final = 3
"""How often a lease is renewed before it would end."""
CLOSELY_S: Final = 0.5
"""How often a gateway looks for what another one has left in flight."""
_POLLS_TO_LEARN: Final = 3


class SeatLostError(Exception):
    """This gateway's place was given away, or the store it knows is no more: it must end."""


class PostgresStore:
    """The open store."""

    def __init__(self, databases: list[Database], settings: PostgresSettings) -> None:
        self.databases = databases
        self.stores: list[PostgresShard] = []
        self.gateways_alive = 1
        self.on_gateways: Callable[[int], None] = lambda _: None
        """Called when another number of gateways is alive and sends."""
        self.on_pauses: Callable[[], None] = lambda: None
        """Called when another gateway has paused or resumed something."""
        self.catalog: PostgresCatalog
        self._settings = settings
        self.reach = Reach(settings.lease_s)
        """Of the catalog's server."""
        self._seat: Seat | None = None
        self._sql = statements.catalog_statements()
        self._pushed: dict[tuple[int, int], int] = {}
        self._closely_at_s: dict[int, float] = {}

    @classmethod
    async def open(
        cls,
        directory: DataDirectory,
        settings: StoreSettings,
        postgres: PostgresSettings,
        now_ms: int,
    ) -> "PostgresStore":
        """Open the catalog and every shard.

        Raises:
            StoreError: saying which database is unfit or out of reach, or which shard is missing,
                foreign or extra.
        """
        urls = [url.get_secret_value() for url in settings.shard_urls]
        self = cls([Database(url, n, postgres) for n, url in enumerate(urls)], postgres)
        try:
            await self._open(directory, settings, now_ms)
        except BaseException:
            await self.close()
            raise
        return self

    async def _open(self, directory: DataDirectory, settings: StoreSettings, now_ms: int) -> None:
        if (directory.path / CATALOG).exists():
            raise StoreError(
                f"{directory.path} holds a store in files; with store.shard_urls, another data"
                " directory is needed; or move it: smsgw migrate --to URL"
            )
        first = self.databases[0]
        databases = len(self.databases)
        # A turn finds the more to do, the fewer shards what comes in is divided over.
        wanted = max(settings.shards, databases) if "shards" in settings.model_fields_set else None
        self.catalog = catalog = await PostgresCatalog.open(first, wanted, databases, now_ms)
        directory.set_aside()
        if catalog.tidying:
            urls = [url.get_secret_value() for url in settings.shard_urls]
            await tidy_server(directory, urls, self._settings, now_ms)
        try:
            await self._check_extra()
            above = await self._last_incarnation()
        except ShardUnavailableError as error:
            raise StoreError(str(error)) from error
        directory.check_claim(catalog.store_id)
        self._seat = seat = await Seat.take(first, directory.path, directory.key(), above=above)
        directory.claim_for_server(catalog.store_id)
        for number, place in catalog.shards.items():
            self.stores.append(
                await PostgresShard.open(
                    number,
                    self._database(number, place),
                    gateway=seat.number,
                    incarnation=seat.incarnation,
                    identity={
                        "store": catalog.store_id,
                        "shard": number,
                        "shards": len(catalog.shards),
                        "epoch": catalog.epoch,
                    },
                    new=not catalog.made,
                    now_ms=now_ms,
                )
            )
        if not catalog.made:
            await catalog.set_made()

    def _database(self, number: int, place: str) -> Database:
        index = database_index(place)
        if index >= len(self.databases):
            raise StoreError(f"shard {number} is at store.shard_urls[{index}], which is not set")
        return self.databases[index]

    async def _check_extra(self) -> None:
        """Compare the schemas that are there with those the catalog names.

        Raises:
            StoreError: naming the extra one.
        """
        for database in self.databases:
            found = await database.fetch(
                "SELECT nspname FROM pg_namespace WHERE nspname ~ '^smsgw_[0-9]{2,3}$'"
            )
            for (schema,) in sorted(found):
                number = int(schema.removeprefix("smsgw_"))
                if number not in self.catalog.shards or not await self._is_ours(database, schema):
                    raise StoreError(
                        f"{database.name}: the schema {schema} does not belong to this store"
                    )

    async def _is_ours(self, database: Database, schema: str) -> bool:
        """Whether a schema was made for this store, or is being made."""
        found = await _asked(database, schema, "identity_get", ["store"])
        return found is not None and (not found or found[0][1] == self.catalog.store_id)

    async def _last_incarnation(self) -> int:
        """The last incarnation of a gateway that any shard knows; the catalog may know less."""
        last = 0
        for number, place in self.catalog.shards.items():
            schema = statements.schema_of(number)
            found = await _asked(self._database(number, place), schema, "incarnation_last")
            last = max(last, found[0][0] if found else 0)
        return last

    async def serve(self, allotter: Allotter) -> None:
        """Say that this gateway sends from now on, and learn how far queues have come.

        Returns once the others have had the time to learn of it, and send less.
        """
        assert self._seat is not None
        self._seat.serving = True
        with contextlib.suppress(ShardUnavailableError, StoreError):
            await self._seat.beat()
        await self._look_at_catalog(allotter)
        if self.gateways_alive > 1:
            await asyncio.sleep(_POLLS_TO_LEARN * self._settings.poll_ms / 1000)

    async def run(self, shards: Mapping[int, Shard], allotter: Allotter) -> None:
        """Keep the leases, and look at what other gateways do, until cancelled.

        Raises:
            ExceptionGroup: this gateway's place was given away, or the store moves.
        """
        beat_s = self._settings.lease_s / BEATS
        # Who looks more seldom takes its own rests for breaks; see ``Reach``.
        poll_s = min(self._settings.poll_ms / 1000, beat_s / 2)
        # Each by itself: a server that does not answer holds up nothing that is on another.
        async with asyncio.TaskGroup() as group:
            assert self._seat is not None
            group.create_task(_again_and_again(beat_s, _keep_alive, self._seat))
            group.create_task(_again_and_again(poll_s, self._look_at_catalog, allotter))
            for store in self.stores:
                group.create_task(_again_and_again(beat_s, _keep_alive, store))
                shard = shards[store.number]
                group.create_task(_again_and_again(poll_s, self._look_at, store, shard))

    async def _look_at(self, store: PostgresShard, shard: Shard) -> None:
        now_s = asyncio.get_running_loop().time()
        if closely := now_s >= self._closely_at_s.get(store.number, 0.0):
            self._closely_at_s[store.number] = now_s + CLOSELY_S
        try:
            heads = await store.look(closely=closely)
        except (ShardUnavailableError, StoreError):
            shard.probe()
        else:
            shard.refresh(heads, store.ended)
            if store.reach.is_back:
                await _keep_alive(store)

    async def _look_at_catalog(self, allotter: Allotter) -> None:
        first = self.catalog.database
        try:
            await self._push(allotter)
            ((document,),) = await first.look(self._sql["catalog_look"], self.reach.counted_s)
        except (ShardUnavailableError, StoreError):
            # Whoever is alive may send.
            self._count(self._alive())
            return
        found = json.loads(document)
        self.reach.answered(found["now"])
        if self.reach.is_back and self._seat is not None:
            await _keep_alive(self._seat)
        if found["moving"] is not None or found["epoch"] != self.catalog.epoch:
            raise SeatLostError("the store is being moved, or its slots were: start again")
        for route, lane, rank in found["virtual"] or ():
            key = (route, lane)
            allotter.virtual[key] = max(rank, allotter.virtual.get(key, 0))
        paused = set(found["paused"] or ())
        if paused != self.catalog.paused:
            self.catalog.paused = paused
            self.on_pauses()
        alive = self._alive()
        serving = found["serving"] or ()
        alive |= {number for number, lives in serving if lives}
        sending = {number for number, _ in serving}
        self._count(sending & alive)
        dead = sending - alive
        if dead and self.reach.judges_at_s > -inf:
            with contextlib.suppress(ShardUnavailableError, StoreError):
                silence = self._sql["gateways_silence"]
                await first.beat(silence, list(dead), self.reach.judges_at_s)

    def _alive(self) -> set[int]:
        """The numbers of the gateways that are alive in any shard, as far as is known."""
        return {number for store in self.stores for number in store.alive}

    def _count(self, sending: set[int]) -> None:
        """Share with those that send, this gateway included."""
        alive = max(1, len(sending))
        if alive != self.gateways_alive:
            log.info("gateways.alive", "another number of gateways sends", gateways=alive)
            self.gateways_alive = alive
            self.on_gateways(alive)

    async def _push(self, allotter: Allotter) -> None:
        """Tell how far our queues have come, where that is further than was told."""
        ahead = {
            key: rank for key, rank in allotter.virtual.items() if rank > self._pushed.get(key, -1)
        }
        if ahead:
            first = self.catalog.database
            await first.tell(statements.push_call(self._settings.lease_s, first.version, ahead))
            self._pushed |= ahead

    async def close(self) -> None:
        """Give the seat back, and close every database."""
        for store in self.stores:
            await store.close()
        if self._seat is not None:
            await self._seat.leave()
        for database in self.databases:
            await database.close()


async def _asked(
    database: Database, schema: str, statement: str, *parameters: Any
) -> list[tuple[Any, ...]] | None:
    """What a shard says before it is opened; None where it is not there yet."""
    sql = statements.gateway_statements(schema, 0)[statement]
    try:
        return await database.fetch(sql, *parameters)
    except ShardUnavailableError:
        raise
    except Exception as error:
        if code_of(error) == UNDEFINED_TABLE:
            return None
        raise


async def _keep_alive(held: Seat | PostgresShard) -> None:
    """Renew the lease of a seat, or of a place in a shard; if it cannot be now, then later."""
    with contextlib.suppress(ShardUnavailableError, StoreError):
        if not await held.beat():
            raise SeatLostError("another process has this gateway's place now, or moves the store")


async def _again_and_again(
    every_s: float, work: Callable[..., Awaitable[None]], *arguments: Any
) -> NoReturn:
    while True:
        await work(*arguments)
        await asyncio.sleep(every_s)
