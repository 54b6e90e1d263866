"""All shards of a data directory, and the map from a client or a message to its shard."""

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from smsgw.clock import Clock
from smsgw.errors import StoreError
from smsgw.fairness import Allotter
from smsgw.ids import slot_in, slot_of
from smsgw.metrics import Metrics
from smsgw.models import Message
from smsgw.settings import StoreSettings
from smsgw.store.catalog import Catalog
from smsgw.store.directory import DataDirectory
from smsgw.store.shard import Room, Shard
from smsgw.store.sqlite import SqliteShard

_CACHE_KIB: int = 64 * 1024
"""One page cache budget, divided over the shards."""


class Shards:
    """The open store."""

    def __init__(self, catalog: Catalog, stores: Sequence[SqliteShard]) -> None:
        self.catalog = catalog
        self.stores = {store.number: store for store in stores}
        self.shards: dict[int, Shard] = {}

    @classmethod
    async def open(cls, directory: DataDirectory, settings: StoreSettings, now_ms: int) -> "Shards":
        """Open the catalog and every shard.

        Raises:
            StoreError: when a file is missing, foreign, extra, damaged, or the count has changed.
        """
        if settings.shard_urls:
            raise StoreError("store.shard_urls: this version keeps its shards in files only")
        path = directory.path / "catalog.db"
        if not path.exists():
            directory.check_shards(set(), new=True)
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
        hand_over: Callable[[Shard, Sequence[Message]], None],
    ) -> None:
        """Give every shard its loop; ``run`` runs them."""
        room = Room(items_max)
        for number, store in self.stores.items():
            self.shards[number] = Shard(
                store,
                clock,
                allotter,
                metrics,
                room=room,
                hand_over=hand_over,
            )
            metrics.shard_up(number, up=True)

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
            for shard in self:
                group.create_task(shard.run(), name=f"shard {shard.number}")

    async def close(self) -> None:
        """Checkpoint and close every file."""
        for store in self.stores.values():
            await store.close()
        await self.catalog.close()

    @property
    def path(self) -> Path:
        """Where the store is."""
        return self.catalog.path.parent
