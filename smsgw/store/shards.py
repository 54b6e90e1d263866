"""All shards of a data directory, and the map from a client or a message to its shard."""

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from smsgw.allotter import Allotter
from smsgw.clock import Clock
from smsgw.ids import slot_in, slot_of
from smsgw.metrics import Metrics
from smsgw.settings import PostgresSettings, StoreSettings
from smsgw.store.base import CatalogStore, ShardStore
from smsgw.store.catalog import Catalog
from smsgw.store.directory import CATALOG, DataDirectory
from smsgw.store.holdings import tidy_files
from smsgw.store.pace import SERVER_PACE, Room
from smsgw.store.shard import HandOver, Shard
from smsgw.store.sqlite import SqliteShard

if TYPE_CHECKING:
    from smsgw.store.postgres_store import PostgresStore

_CACHE_KIB: int = 128 * 1024
"""One page cache budget, divided over the shards."""


class Shards:
    """The open store."""

    def __init__(
        self,
        catalog: CatalogStore,
        stores: Sequence[ShardStore],
        server: "PostgresStore | None" = None,
    ) -> None:
        self.catalog = catalog
        self.server = server
        self.stores = {store.number: store for store in stores}
        self.shards: dict[int, Shard] = {}

    @classmethod
    async def open(
        cls,
        directory: DataDirectory,
        settings: StoreSettings,
        now_ms: int,
        postgres: PostgresSettings | None = None,
    ) -> "Shards":
        """Open the catalog and every shard, in files or, where there are URLs, in PostgreSQL.

        Raises:
            StoreError: when a file is missing, foreign, extra, damaged, or the count has changed.
        """
        if settings.shard_urls:
            # asyncpg is an extra, and takes its time to load.
            from smsgw.store.postgres_store import PostgresStore

            server = await PostgresStore.open(
                directory, settings, postgres or PostgresSettings(), now_ms
            )
            return cls(server.catalog, server.stores, server)
        directory.check_no_server()
        path = directory.path / CATALOG
        if not path.exists():
            directory.check_shards(set(), new=True)
        await tidy_files(directory, now_ms)
        catalog = await Catalog.open(path, settings.shards, secrets.randbits(62), now_ms)
        opened: list[SqliteShard] = []
        try:
            directory.check_shards(set(catalog.shards.values()), new=not catalog.made)
            for number, address in catalog.shards.items():
                store = await SqliteShard.open(
                    number,
                    directory.path / address,
                    readers=settings.readers,
                    cache_kib=max(2048, _CACHE_KIB // len(catalog.shards)),
                    wal_bytes_max=settings.wal_bytes_max,
                    identity={
                        "store": catalog.store_id,
                        "shard": number,
                        "shards": len(catalog.shards),
                        "epoch": catalog.epoch,
                    },
                    now_ms=now_ms,
                )
                opened.append(store)
            if not catalog.made:
                await catalog.set_made()
        except BaseException:
            for store in opened:
                await store.close()
            await catalog.close()
            raise
        return cls(catalog, opened)

    def start(
        self,
        clock: Clock,
        allotter: Allotter,
        metrics: Metrics,
        items_max: int,
        hand_over: HandOver,
    ) -> None:
        """Give every shard its loop; ``run`` runs them."""
        self._allotter = allotter
        if self.server is not None:
            for database in self.server.databases:
                database.on_trips = metrics.round_trips
        room = Room(items_max)
        pace = None if self.server is None else SERVER_PACE
        for number, store in self.stores.items():
            self.shards[number] = Shard(
                store,
                clock,
                allotter,
                metrics,
                room=room,
                hand_over=hand_over,
                pace=pace,
            )
            metrics.shard_up(number, up=True)

    @property
    def gateways(self) -> int:
        """How many gateways send from this store, this one included."""
        return 1 if self.server is None else self.server.gateways_alive

    async def serve(self, allotter: Allotter) -> None:
        """Say that this gateway sends from now on, where there are others."""
        if self.server is not None:
            await self.server.serve(allotter)

    def __iter__(self) -> Iterator[Shard]:
        return iter(self.shards.values())

    def of_client(self, client_id: bytes) -> Shard:
        """The shard in which everything of a client is."""
        return self.shards[self.catalog.shard_of_slot[slot_of(client_id)]]

    def of_message(self, identifier: bytes) -> Shard:
        """The shard in which a message of ours is, if it exists."""
        return self.shards[self.catalog.shard_of_slot[slot_in(identifier)]]

    def named(self, text: str) -> Shard:
        """The shard that a text hashes to, for what belongs to no client."""
        return self.of_client(text.encode())

    async def run(self) -> None:
        """Run every shard's loop; one that fails ends them all."""
        async with asyncio.TaskGroup() as group:
            loops = [group.create_task(shard.run(), name=f"shard {shard.number}") for shard in self]
            if self.server is not None:
                beside = group.create_task(self.server.run(self.shards, self._allotter))
                await asyncio.wait(loops)
                beside.cancel()

    async def close(self) -> None:
        """Checkpoint and close every file, or leave the server."""
        if self.server is not None:
            await self.server.close()
            return
        for store in self.stores.values():
            await store.close()
        await self.catalog.close()
