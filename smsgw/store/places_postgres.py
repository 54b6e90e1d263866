"""A store in PostgreSQL, as a place to copy from and to."""

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Final

from smsgw.errors import StoreError
from smsgw.settings import PostgresSettings
from smsgw.store import postgres_statements as statements
from smsgw.store.audit import Proof
from smsgw.store.base import ShardUnavailableError
from smsgw.store.places import CHUNK_ROWS, MOVING, Chart, Place
from smsgw.store.postgres_audit import audit
from smsgw.store.postgres_catalog import address, database_index
from smsgw.store.postgres_connection import (
    ERRORS,
    LOCKED,
    UNIQUE,
    Connection,
    Database,
    code_of,
    fetch,
    migrate,
    sentence,
)
from smsgw.store.tables import Call, Dialect, Row, Table, tables

_WRITING: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_READING: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_QUIET: Final = "SET LOCAL client_min_messages = warning"
_SETTLED: Final = (
    *("flows_forget", "flows_empty", "flows_count", "backlog_forget", "backlog_count"),
    *("waits_forget", "waits_count", "flights_forget", "flights_note"),
)

_IN_USE: Final = (
    "other gateways use this store: stop them first, and wait until their leases"
    " (postgres.lease_s) have ended"
)


class Server(Place):
    """The shards' schemas, in the databases that URLs name in turn."""

    name = "PostgreSQL"

    def __init__(self, urls: Sequence[str], settings: PostgresSettings) -> None:
        # Rows are read and written at the same time.
        wide = settings.model_copy(update={"pool_max": max(4, settings.pool_max)})
        self.databases = [Database(url, n, wide, patient=True) for n, url in enumerate(urls)]
        self._places: dict[int, Database] = {}
        self._sql = {
            **statements.catalog_statements(),
            **statements.moving_statements(statements.CATALOG),
        }

    def place(self, shard: int, database: Database | None = None) -> None:
        """Say where a shard is; by default, where the shard of a new store is."""
        self._places[shard] = database or self.databases[shard % len(self.databases)]

    def is_dealt(self, shards: int) -> bool:
        """Whether every shard is where that of a new store would be."""
        count = len(self.databases)
        return all(self._places[n] is self.databases[n % count] for n in range(shards))

    @asynccontextmanager
    async def _at(self, shard: int, *, writes: bool = True) -> AsyncIterator[Connection]:
        """A connection to a shard's database, in a transaction."""
        async with self._transaction(self._places[shard], writes=writes) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(
        self, database: Database, *, writes: bool = True, waits: bool = True
    ) -> AsyncIterator[Connection]:
        begin = _WRITING if writes else _READING
        with _told(database.name):
            async with database.connection() as connection:
                if not waits:
                    begin = statements.begin(database.settings.lease_s, database.version)
                await connection.execute(begin)
                yield connection
                await connection.execute("COMMIT")

    def dialect(self, shard: int) -> Dialect:
        """See ``Place.dialect``."""
        return Dialect(f"{statements.schema_of(shard)}.", dollars=True)

    async def fetch(self, shard: int, sql: str, parameters: Row = ()) -> list[Row]:
        """See ``Place.fetch``."""
        async with self._at(shard, writes=False) as connection:
            return await fetch(connection, sql, *parameters)

    async def run(self, shard: int, calls: Sequence[Call]) -> None:
        """See ``Place.run``; the same statement many times over is one trip."""
        if calls:
            async with self._at(shard) as connection:
                for sql, group in groupby(calls, key=itemgetter(0)):
                    rows = [parameters for _, parameters in group]
                    if any("\0" in one for row in rows for one in row if isinstance(one, str)):
                        rows = [statements.storable(row) for row in rows]
                    await connection.executemany(sql, rows)

    async def put(self, shard: int, table: Table, columns: Sequence[str], rows: list[Row]) -> None:
        """See ``Place.put``."""
        texts = [n for n, column in enumerate(columns) if table.kind(column) == "TEXT"]
        if any("\0" in (row[n] or "") for row in rows for n in texts):
            rows = [statements.storable(row) for row in rows]
        try:
            async with self._at(shard) as connection:
                await connection.copy_records_to_table(
                    table.name,
                    schema_name=statements.schema_of(shard),
                    columns=columns,
                    records=rows,
                )
        except StoreError as error:
            if code_of(error.__cause__ or error) != UNIQUE or columns != table.columns:
                raise
            # A key that was used anew while it was copied is here, of an earlier time.
            sql = self.dialect(shard).upsert(table)
            await self.run(shard, [(sql, row) for row in rows])

    async def rows(
        self, shard: int, table: Table, slots: Collection[int] | None = None
    ) -> AsyncGenerator[list[Row], None]:
        """See ``Place.rows``."""
        sql = self.dialect(shard).rows(table, slots)
        async with self._at(shard, writes=False) as connection:
            cursor = await connection.cursor(sql)
            while rows := await cursor.fetch(CHUNK_ROWS):
                yield [tuple(row) for row in rows]

    async def settle(self, shard: int) -> None:
        """Count what is queued and what waits, and note what is in flight."""
        named = statements.moving_statements(statements.schema_of(shard))
        dialect = self.dialect(shard)
        async with self._at(shard) as connection:
            for name in _SETTLED:
                await connection.execute(named[name])
            for sql in (dialect.count_on(table) for table in tables().values() if table.counted):
                await connection.execute(sql)

    async def analyze(self, shard: int) -> None:
        """Let the server learn how much is there, or its plans are poor."""
        dialect = self.dialect(shard)
        with _told(self._places[shard].name):
            async with self._places[shard].connection() as connection:
                for sql in map(dialect.analyze, tables().values()):
                    await connection.execute(sql)

    async def proof(self, shard: int, step: Callable[[str], None]) -> Proof:
        """See ``Place.proof``."""
        await self.analyze(shard)
        async with self._at(shard, writes=False) as connection:
            return await audit(connection, statements.schema_of(shard), shard, step)

    # The catalog, and the schemas as a whole.

    async def chart(self) -> Chart | None:
        """What the catalog says; None where there is none, or an empty one."""
        async with self._transaction(self.databases[0], writes=False) as connection:
            there = self._sql["schema_is_there"]
            if not await fetch(connection, there, statements.CATALOG):
                return None
            shards = await fetch(connection, self._sql["catalog_shards"])
            if not shards:
                return None
            for number, where in shards:
                index = database_index(where)
                if index >= len(self.databases):
                    raise StoreError(
                        f"shard {number} is at store.shard_urls[{index}], which is not given"
                    )
                self.place(number, self.databases[index])
            return Chart(
                len(shards),
                await fetch(connection, self._sql["catalog_slots"]),
                await self._routes(connection),
                [subject for (subject,) in await fetch(connection, self._sql["catalog_pauses"])],
                dict(await fetch(connection, self._sql["catalog_meta"])),
            )

    async def _routes(self, connection: Connection) -> list[tuple[int, str]]:
        found = await fetch(connection, self._sql["catalog_routes"])
        return sorted((number, providers) for providers, number in found)

    async def schemas(self) -> list[str]:
        """Everything that is named like a shard, in all databases, with the database's name."""
        found = []
        for database in self.databases:
            async with self._transaction(database, writes=False) as connection:
                rows = await fetch(connection, self._sql["schemas_of_shards"])
                found += [f"{database.name}: the schema {schema}" for (schema,) in rows]
        return found

    async def write_catalog(self, chart: Chart, now_ms: int) -> None:
        """Let the catalog, made if need be, say this; with ``moving`` in it, it opens for nobody.

        Raises:
            StoreError: it says already that it is something else.
        """
        steps = statements.migrations("catalog", statements.CATALOG)
        with _told(self.databases[0].name):
            await migrate(self.databases[0], statements.CATALOG, steps, now_ms)
        places = [
            (number, address(number % len(self.databases), statements.schema_of(number)))
            for number in range(chart.shards)
        ]
        async with self._transaction(self.databases[0]) as connection:
            await connection.execute(self._sql["catalog_lock"])
            meta = dict(await fetch(connection, self._sql["catalog_meta"]))
            if meta and meta.get(MOVING, "").split()[:1] != chart.meta[MOVING].split()[:1]:
                raise StoreError(f"{self.databases[0].name} is not empty any more")
            await connection.execute(self._sql["catalog_clear"])
            for name, rows in (
                ("catalog_shard_add", places),
                ("catalog_slot_add", chart.slots),
                ("catalog_route_set", chart.routes),
                ("catalog_pause", [(subject,) for subject in chart.pauses]),
                ("catalog_meta_set", list(chart.meta.items())),
            ):
                await connection.executemany(self._sql[name], rows)

    async def make_shard(self, shard: int, identity: Mapping[str, int], now_ms: int) -> None:
        """Make a shard's schema, if it is not there, and tell it what it is.

        Raises:
            StoreError: it says that it is something else.
        """
        schema, database = statements.schema_of(shard), self._places[shard]
        with _told(database.name):
            await migrate(database, schema, statements.migrations("schema", schema), now_ms)
        marks = await self.marks(shard)
        for key, value in identity.items():
            if marks.get(key, value) != value:
                raise StoreError(
                    f"{database.name}: the schema {schema} is foreign: its {key} is {marks[key]},"
                    f" expected {value}"
                )
        await self.set_marks(shard, identity)

    async def is_there(self, shard: int) -> bool:
        """Whether a shard has a schema."""
        async with self._at(shard, writes=False) as connection:
            schema = statements.schema_of(shard)
            return bool(await fetch(connection, self._sql["schema_is_there"], schema))

    async def drop_shard(self, shard: int) -> None:
        """Remove a shard's schema."""
        await self._drop(self._places[shard], self.dialect(shard))

    async def drop(self, chart: Chart) -> None:
        """Remove everything of a store; the catalog, which tells whose it is, last."""
        for shard in range(chart.shards):
            await self.drop_shard(shard)
        await self._drop(self.databases[0], Dialect(f"{statements.CATALOG}."))

    async def _drop(self, database: Database, dialect: Dialect) -> None:
        sql = dialect.drop()
        async with self._transaction(database) as connection:
            await connection.execute(_QUIET)
            await connection.execute(sql)

    async def flip(self, before: Chart, after: Chart) -> None:
        """Let the catalog say something else, in one transaction."""
        places = [
            (number, address(number % len(self.databases), statements.schema_of(number)))
            for number in range(before.shards, after.shards)
        ]
        moved = [new for old, new in zip(before.slots, after.slots, strict=True) if old != new]
        async with self._transaction(self.databases[0]) as connection:
            await connection.execute(self._sql["catalog_lock"])
            await connection.executemany(self._sql["catalog_shard_add"], places)
            await connection.executemany(self._sql["catalog_slot_set"], moved)
            await connection.executemany(self._sql["catalog_meta_set"], list(after.meta.items()))

    async def keep(self, key: str, value: str) -> None:
        """Keep a value in the catalog."""
        async with self._transaction(self.databases[0]) as connection:
            await connection.execute(self._sql["catalog_meta_set"], key, value)

    async def forget(self, key: str) -> None:
        """Forget a value of the catalog."""
        async with self._transaction(self.databases[0]) as connection:
            await connection.execute(self._sql["catalog_meta_forget"], key)

    async def begin_moving(self, name: str, value: str, *, instead_of: str = "") -> None:
        """Let no gateway open the store any more, but that of this data directory.

        A lease that is over does not say that its gateway has ended: it may stand still, or may not
        have reached the server. So every place is given away, in the catalog and in every shard:
        whoever had one finds its next turn refused, and its next beat, and ends.

        Args:
            name: the data directory's.
            value: what the catalog keeps meanwhile.
            instead_of: what another directory keeps there, which is lost.

        Raises:
            StoreError: other gateways are alive, or another directory moves the store.
        """
        while True:
            try:
                return await self._give_places_away(name, value, instead_of)
            except StoreError as error:
                if not _is_locked(error):
                    raise
                if not await self._end_overdue():
                    raise StoreError(_IN_USE) from error

    async def _end_overdue(self) -> bool:
        """Whether gateways that stand still in a turn were cut off from any shard."""
        ended: list[Row] = []
        for shard, database in self._places.items():
            schema = statements.schema_of(shard)
            async with self._at(shard, writes=False) as connection:
                if await fetch(connection, self._sql["schema_is_there"], schema):
                    end = statements.gateway_statements(schema, 0)["overdue_end"]
                    ended += await fetch(connection, end, database.settings.lease_s)
        return bool(ended)

    async def _give_places_away(self, name: str, value: str, instead_of: str) -> None:
        async with AsyncExitStack() as stack:
            # The catalog's is entered first, and so committed last: nobody starts meanwhile.
            connections = {
                database: await stack.enter_async_context(self._transaction(database, waits=False))
                for database in self.databases
            }
            catalog = connections[self.databases[0]]
            await catalog.execute(self._sql["catalog_lock"])
            meta = dict(await fetch(catalog, self._sql["catalog_meta"]))
            if (kept := meta.get(MOVING, name)).split()[0] != name and kept != instead_of:
                raise StoreError(
                    "another data directory moves this store, or has moved it to files"
                )
            places: list[tuple[Connection, str]] = []
            found = await fetch(catalog, self._sql["seats_locked"])
            own = {seat[0] for seat in found if seat[3] == name}
            for shard, database in sorted(self._places.items()):
                schema, connection = statements.schema_of(shard), connections[database]
                if await fetch(connection, self._sql["schema_is_there"], schema):
                    named = statements.moving_statements(schema)
                    found += await fetch(connection, named["places_locked"])
                    places.append((connection, named["places_fence"]))
            if alive := {place[0] for place in found if place[2]} - own:
                raise StoreError(f"{len(alive)} {_IN_USE}")
            above = 1 + max((place[1] for place in found), default=0)
            for connection, fence in [*places, (catalog, self._sql["seats_fence"])]:
                await connection.execute(fence, above)
            await catalog.execute(self._sql["catalog_meta_set"], MOVING, value)

    async def close(self) -> None:
        """Close every database."""
        for database in self.databases:
            await database.close()


def _is_locked(error: BaseException | None) -> bool:
    """Whether that was the cause: something is locked for too long."""
    return error is not None and (code_of(error) == LOCKED or _is_locked(error.__cause__))


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Errors of a server, told as a store's, with the name of the database."""
    try:
        yield
    except ShardUnavailableError as error:
        text = str(error)
        raise StoreError(text if text.startswith(name) else f"{name}: {text}") from error
    except ERRORS as error:
        raise StoreError(f"{name}: {sentence(error)}") from error
