"""A whole store that no gateway serves, in files or in PostgreSQL: for slots that move."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from smsgw.errors import StoreError
from smsgw.settings import PostgresSettings, StoreSettings
from smsgw.store.directory import CATALOG, DataDirectory
from smsgw.store.move import Holding, tidied
from smsgw.store.places import MOVING, TIDYING, Chart
from smsgw.store.places_files import CatalogFile, Files, address

if TYPE_CHECKING:
    from smsgw.store.places_postgres import Server


class FilesHolding:
    """A store in the files of a data directory."""

    def __init__(self, directory: DataDirectory, catalog: CatalogFile, now_ms: int) -> None:
        self.place = Files(directory.path)
        self._directory = directory
        self._catalog = catalog
        self._now_ms = now_ms
        self._new: set[int] = set()

    async def chart(self) -> Chart:
        """See ``Holding.chart``."""
        return await self._catalog.read()

    async def begin(self, shards: int) -> None:
        """See ``Holding.begin``."""
        await self._catalog.keep(TIDYING, str(shards))

    async def check_vacant(self, shard: int) -> None:
        """See ``Holding.check_vacant``."""
        path = self._directory.path / address(shard)
        if path.exists():
            raise StoreError(f"{path} does not belong to this store")
        self._new.add(shard)

    async def open(self, shard: int, chart: Chart) -> None:
        """See ``Holding.open``."""
        path = self._directory.path / address(shard)
        if shard not in self._new and not path.exists():
            raise StoreError(f"{path} is missing")
        await self.place.open(shard, _expected(chart, shard), self._now_ms)

    async def drop(self, shard: int) -> None:
        """See ``Holding.drop``."""
        await self.place.close(shard)
        for file in (self._directory.path / "shards").glob(f"{shard:02d}.db*"):
            file.unlink()

    async def flip(self, _before: Chart, after: Chart) -> None:
        """See ``Holding.flip``."""
        meta = (await self._catalog.read()).meta
        epoch = {"epoch": after.meta["epoch"]}
        after.meta = {**meta, **epoch}
        await self._catalog.write(after)

    async def end(self) -> None:
        """See ``Holding.end``."""
        await self._catalog.forget(TIDYING)


class ServerHolding:
    """A store in PostgreSQL, closed for every other data directory meanwhile."""

    def __init__(self, server: "Server", directory: DataDirectory, name: str, now_ms: int) -> None:
        self.place = server
        self._server = server
        self._directory = directory
        self._name = name
        self._now_ms = now_ms
        self._new: set[int] = set()

    async def chart(self) -> Chart:
        """See ``Holding.chart``."""
        chart = await self._server.chart()
        if chart is None:
            raise StoreError("there is no store at store.shard_urls")
        if MOVING in chart.meta and chart.meta[MOVING].split()[0] != self._name:
            raise StoreError("another data directory moves this store, or has moved it to files")
        return chart

    async def begin(self, shards: int) -> None:
        """See ``Holding.begin``."""
        await self._server.begin_moving(self._name, f"{self._name} slots")
        self._directory.claim_for_server((await self.chart()).store_id)
        await self._server.keep(TIDYING, str(shards))

    async def check_vacant(self, shard: int) -> None:
        """See ``Holding.check_vacant``."""
        self._server.place(shard)
        if await self._server.is_there(shard):
            raise StoreError(f"the schema of shard {shard} does not belong to this store")
        self._new.add(shard)

    async def open(self, shard: int, chart: Chart) -> None:
        """See ``Holding.open``."""
        if not await self._server.is_there(shard) and shard not in self._new:
            raise StoreError(f"the schema of shard {shard} is missing")
        await self._server.make_shard(shard, _expected(chart, shard), self._now_ms)

    async def drop(self, shard: int) -> None:
        """See ``Holding.drop``."""
        self._server.place(shard)
        await self._server.drop_shard(shard)

    async def flip(self, before: Chart, after: Chart) -> None:
        """See ``Holding.flip``."""
        await self._server.flip(before, after)

    async def end(self) -> None:
        """See ``Holding.end``."""
        await self._server.forget(TIDYING)
        await self._server.forget(MOVING)


def _expected(chart: Chart, shard: int) -> dict[str, int]:
    """What a shard must say of itself; while slots move, not yet everything."""
    identity = chart.identity(shard)
    return identity if TIDYING not in chart.meta else {k: identity[k] for k in ("store", "shard")}


async def tidy_files(directory: DataDirectory, now_ms: int) -> None:
    """Remove what slots that moved have left behind in files; see ``tidied``."""
    if (directory.path / CATALOG).exists():
        async with in_files(directory, now_ms) as found:
            await tidied(found)


async def tidy_server(
    directory: DataDirectory, urls: Sequence[str], postgres: PostgresSettings, now_ms: int
) -> None:
    """Remove what slots that moved have left behind in PostgreSQL; see ``tidied``."""
    async with on_server(directory, urls, postgres, now_ms) as found:
        await tidied(found)


@asynccontextmanager
async def holding(
    directory: DataDirectory, settings: StoreSettings, postgres: PostgresSettings, now_ms: int
) -> AsyncIterator[Holding]:
    """Open the store of a data directory to move slots in it.

    Raises:
        StoreError: there is none, or it cannot be opened.
    """
    if not settings.shard_urls:
        directory.check_no_server()
        async with in_files(directory, now_ms) as found:
            yield found
        return
    if (directory.path / CATALOG).exists():
        raise StoreError(f"{directory.path} holds a store in files, but store.shard_urls is set")
    urls = [url.get_secret_value() for url in settings.shard_urls]
    async with on_server(directory, urls, postgres, now_ms) as other:
        yield other


@asynccontextmanager
async def in_files(directory: DataDirectory, now_ms: int) -> AsyncIterator[FilesHolding]:
    """Open a store in files; see ``holding``."""
    path = directory.path / CATALOG
    if not path.exists():
        raise StoreError(f"there is no store in {directory.path}")
    catalog = await CatalogFile.open(path, now_ms)
    found = FilesHolding(directory, catalog, now_ms)
    try:
        yield found
    finally:
        await found.place.close()
        await catalog.close()


@asynccontextmanager
async def on_server(
    directory: DataDirectory, urls: Sequence[str], postgres: PostgresSettings, now_ms: int
) -> AsyncIterator[ServerHolding]:
    """Open a store in PostgreSQL; see ``holding``."""
    # asyncpg is an extra, and takes its time to load.
    from smsgw.store.places_postgres import Server
    from smsgw.store.postgres_seat import name_of

    server = Server(urls, postgres)
    try:
        chart = await server.chart()
        if chart is None:
            raise StoreError("there is no store at store.shard_urls")
        directory.check_claim(chart.store_id)
        yield ServerHolding(server, directory, name_of(directory.path), now_ms)
    finally:
        await server.close()
