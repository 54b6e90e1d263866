"""A copy becomes its source, whatever has changed on either side, and tells when it is not."""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from smsgw.clock import SystemClock
from smsgw.errors import StoreError
from smsgw.settings import PostgresSettings
from smsgw.store import places, statements
from smsgw.store.places import Copying
from smsgw.store.places_files import Files, address
from smsgw.store.places_postgres import Server
from smsgw.store.sqlite_thread import migrate
from smsgw.store.tables import Dialect, Table, tables
from tests import postgres
from tests.stores import rows
from tests.test_migrate import SHARDS, _two_shards, filled, quiet, same_rows

__all__ = ["_two_shards", "filled"]

# What a filled store has nothing of.
MORE = (
    "INSERT INTO queue VALUES (9, 0, 5, 1, 1, 1), (9, 0, 6, 1, 1, 2)",
    "INSERT INTO part VALUES (1, 1, 'mock', 3, 'one'), (1, 2, 'mock', 3, NULL)",
    "INSERT INTO code VALUES (1, 15005550006, 1, zeroblob(16), 5, 0, NULL, 1)",
    "INSERT INTO code VALUES (1, 15005550006, 2, zeroblob(16), 6, 1, 7, 0)",
    "INSERT INTO event VALUES (901, 1, 5, 'refused', 'why'), (902, 1, 6, 'refused', NULL)",
    "INSERT INTO quarantine VALUES (1, 5, 'item', 'error'), (2, 5, 'item', 'error')",
    "INSERT INTO total VALUES (1, 20000, 'ACME', 10, 1, 1, 5, 0, 5)",
    "INSERT INTO total VALUES (1, 20000, 'BEST', 10, 2, 2, 10, 0, 10)",
)


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before a pass has not changed since."""
    monkeypatch.setattr(places, "_MARGIN_MS", 0)


@pytest.fixture
def data(filled: Path, tmp_path: Path) -> Path:
    data = Path(shutil.copytree(filled, tmp_path / "data"))
    for number in range(SHARDS):
        for sql in MORE:
            rows(data / address(number), sql)
    return data


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as found:
        yield found


@pytest.fixture
async def files(data: Path) -> AsyncIterator[Files]:
    found = Files(data, read_only=True)
    for shard in range(SHARDS):
        await found.open(shard, {}, 0)
    yield found
    await found.close()


@pytest.fixture
async def server(url: str) -> AsyncIterator[Server]:
    found = Server([url], PostgresSettings())
    for shard in range(SHARDS):
        found.place(shard)
        await found.make_shard(shard, {"shard": shard}, 0)
    yield found
    await found.close()


@pytest.fixture
def trusting(url: str, server: Server) -> Server:
    """A server that takes what is against the schema's own rules."""
    for shard in range(SHARDS):
        with closing(postgres.Sql(url, f"smsgw_{shard:02d}")) as sql:
            sql.trust()
    return server


def full(data: Path) -> Path:
    """The file that has the most clients, and so something of everything."""
    paths = [data / address(shard) for shard in range(SHARDS)]
    return max(paths, key=lambda path: len(rows(path, "SELECT number FROM client")))


def changed(path: Path, sql: str, *parameters: Any) -> None:
    """Change a file as no gateway would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        assert connection.execute(sql, parameters).rowcount > 0


def other(table: Table, column: str) -> str:
    """Another value for a column."""
    if table.kind(column) == "INTEGER":
        return f"coalesce({column} + 1, 7)"
    return f"CASE WHEN {column} IS NULL THEN 'new' END"


# Texts that are never NULL change with something that is counted, or not at all.
CELLS = [
    (table, column)
    for table in tables().values()
    for column in table.columns
    if column not in table.key and (table.kind(column) == "INTEGER" or column in table.nullable)
]


async def test_every_change_of_any_column_is_noticed_and_put_right(
    data: Path, url: str, files: Files, trusting: Server
) -> None:
    copying = Copying(trusting, SHARDS, quiet)
    await copying.go(files, 2)
    assert (await copying.finish(files))["message"] > 50
    assert await copying.go(files, 2) == 0
    path = full(data)
    for table, column in CELLS:
        keys = ", ".join(table.key)
        first = f"SELECT {keys} FROM {table.name} ORDER BY {keys} LIMIT 1"
        sql = (
            f"UPDATE {table.name} SET {column} = {other(table, column)} WHERE ({keys}) = ({first})"
        )
        changed(path, sql)
        assert await copying.go(files, 1) == 1, (table.name, column)
    await copying.finish(files)
    same_rows(data, url)


async def test_a_change_of_the_high_half_of_a_number_is_noticed_and_put_right(
    data: Path, url: str, files: Files, trusting: Server
) -> None:
    copying = Copying(trusting, SHARDS, quiet)
    await copying.go(files, 2)
    path = full(data)
    large = rows(
        postgres.Schema(url),
        "SELECT table_name::text, column_name::text FROM information_schema.columns"
        " WHERE table_schema = 'smsgw_00' AND data_type = 'bigint'",
    )
    cells = [(table, column) for table, column in CELLS if (table.name, column) in large]
    assert len(cells) > 40
    for table, column in cells:
        keys = ", ".join(table.key)
        first = f"SELECT {keys} FROM {table.name} ORDER BY {keys} LIMIT 1"
        for value in (f"coalesce({column}, 0) + 2147483648", f"-1099511627776 - {column}"):
            changed(path, f"UPDATE {table.name} SET {column} = {value} WHERE ({keys}) = ({first})")
            assert await copying.go(files, 1) == 1, (table.name, column, value)
    await copying.finish(files)
    same_rows(data, url)


@pytest.mark.parametrize("name", tables())
def test_every_bit_of_a_number_changes_what_is_compared(name: str) -> None:
    table = tables()[name]
    empty = {"INTEGER": 0, "TEXT": "", "BLOB": b""}
    ask = Dialect()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, statements.migrations("schema"), 0)
        connection.execute("PRAGMA ignore_check_constraints = 1")
        connection.execute(ask.insert(table, table.columns), [empty[kind] for kind in table.kinds])
        for column in table.columns:
            if table.kind(column) != "INTEGER":
                continue
            found = set()
            values = [0, -(1 << 63), -1, *(1 << bit for bit in range(63))]
            for value in values:
                connection.execute(f"UPDATE {name} SET {column} = ?", (value,))
                found.add(connection.execute(*ask.facts(table)).fetchone())
            connection.execute(f"UPDATE {name} SET {column} = 0")
            assert len(found) == len(values), column


async def test_changes_that_make_up_for_each_other_are_noticed(
    data: Path, url: str, files: Files, trusting: Server
) -> None:
    copying = Copying(trusting, SHARDS, quiet)
    await copying.go(files, 2)
    path = full(data)
    for table, column in CELLS:
        if table.kind(column) != "INTEGER" or column in table.nullable:
            continue
        keys = ", ".join(table.key)
        for sign, end in (("+ 1", "ASC"), ("- 1", "DESC")):
            order = ", ".join(f"{key} {end}" for key in table.key)
            last = f"SELECT {keys} FROM {table.name} ORDER BY {order} LIMIT 1"
            changed(
                path,
                f"UPDATE {table.name} SET {column} = {column} {sign} WHERE ({keys}) = ({last})",
            )
        assert await copying.go(files, 1) == 2, (table.name, column)
    await copying.finish(files)
    same_rows(data, url)


async def test_a_client_that_gets_another_name_of_the_same_length_is_noticed(
    data: Path, files: Files, trusting: Server
) -> None:
    copying = Copying(trusting, SHARDS, quiet)
    await copying.go(files, 2)
    changed(full(data), "UPDATE client SET name = 'tset' WHERE number = 1")
    assert await copying.go(files, 1) == 1


async def test_a_quick_pass_brings_what_says_that_it_has_changed(
    data: Path, url: str, files: Files, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "CHUNK_ROWS", 3)
    copying = Copying(server, SHARDS, quiet)
    await copying.go(files)
    assert await copying.go(files, quick=True) == 0
    soon_ms = SystemClock().now_ms() + 60_000
    for name, column in (("message", "updated_at_ms"), ("entry", "at_ms")):
        few = f"SELECT rowid FROM {name} ORDER BY rowid LIMIT 7" if name == "message" else "1, 2"
        where = "number" if name == "message" else "sequence"
        changed(full(data), f"UPDATE {name} SET {column} = {soon_ms} WHERE {where} IN ({few})")
    changed(full(data), "UPDATE client SET name = 'tset' WHERE number = 1")
    changed(full(data), "DELETE FROM timer")
    # Three clients, with two entries each.
    assert await copying.go(files, quick=True) == 7 + 6 + 1
    with pytest.raises(AssertionError, match="timer"):
        same_rows(data, url)
    assert await copying.go(files) > 7 + 6
    await copying.finish(files)
    same_rows(data, url)


def muddled(path: Path, chance: random.Random) -> None:
    """Remove some rows of everything, add some, change some."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        for table in tables().values():
            found = connection.execute(f"SELECT * FROM {table.name}").fetchall()
            keys, places = ", ".join(table.key), ", ".join("?" * len(table.key))
            for row in chance.sample(found, len(found) // 3):
                connection.execute(
                    f"DELETE FROM {table.name} WHERE ({keys}) = ({places})", table.key_of(row)
                )
            values = ", ".join("?" * len(table.columns))
            for row in chance.sample(found, len(found) // 3):
                fresh = [
                    chance.getrandbits(14) if kind == "INTEGER" else value
                    for value, kind in zip(row, table.kinds, strict=True)
                ]
                if table.name == "client":
                    fresh[1] = chance.randbytes(16)
                connection.execute(f"INSERT OR REPLACE INTO {table.name} VALUES ({values})", fresh)
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES ('probe', ?)", (chance.random() * 9 // 1,)
        )


@pytest.mark.parametrize("chunk", [1, 2, 7, 10_000])
async def test_whatever_has_changed_one_pass_puts_it_right(
    data: Path,
    url: str,
    files: Files,
    trusting: Server,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
) -> None:
    monkeypatch.setattr(places, "CHUNK_ROWS", chunk)
    chance = random.Random(chunk)
    copying = Copying(trusting, SHARDS, quiet)
    for again in range(4):
        if again == 3:
            # Another process knows nothing of what this one has compared.
            copying = Copying(trusting, SHARDS, quiet)
        assert await copying.go(files, 1 + again % 2) > 0
        await copying.finish(files)
        same_rows(data, url)
        for number in range(SHARDS):
            muddled(data / address(number), chance)


@pytest.mark.parametrize("quick", [False, True])
async def test_a_client_that_comes_while_clients_are_copied_comes_with_its_messages(
    data: Path, url: str, files: Files, server: Server, quick: bool
) -> None:
    path = full(data)
    comes = f"shard {path.stem[1]}: client"

    def step(what: str, _done: int, _total: int) -> None:
        nonlocal comes
        if what != comes:
            return
        comes = ""
        soon_ms = SystemClock().now_ms() + 60_000
        for name in ("client", "message", "entry"):
            table = tables()[name]
            (row,) = rows(path, f"SELECT * FROM {name} ORDER BY {', '.join(table.key)} LIMIT 1")
            new = dict(zip(table.columns, row, strict=True))
            new |= {"number": 7_000, "id": bytes(16)} if "id" in new else {}
            new |= {"client": 7_000} if "client" in new else {}
            new |= {table.changed_at: soon_ms} if table.changed_at else {}
            asked = ", ".join("?" * len(table.columns))
            changed(path, f"INSERT INTO {name} VALUES ({asked})", *new.values())

    if quick:
        copying = Copying(server, SHARDS, quiet)
        await copying.go(files)
        copying._step = step
    else:
        copying = Copying(server, SHARDS, step)
    await copying.go(files, 1, quick=quick)
    assert not comes
    await copying.go(files)
    await copying.finish(files)
    same_rows(data, url)


async def test_a_key_that_is_used_anew_meanwhile_is_no_obstacle(
    data: Path, url: str, files: Files, server: Server
) -> None:
    """A server has it once; in a file it is in another generation then."""
    copying = Copying(server, SHARDS, quiet)
    await copying.go(files)
    table = tables()["idempotency"]
    for n, bring in enumerate(("put", "quick", "again"), 1):
        soon_ms = SystemClock().now_ms() + 60_000
        new = f"generation = generation + {n}, subject = subject + ({n} << 46)"
        sql = f"UPDATE idempotency SET {new}, created_at_ms = ? WHERE answer <> 6"
        changed(full(data), sql, soon_ms)
        if bring == "put":
            shard = int(full(data).stem)
            fresh = await files.read(shard, table, ((1, 0, b""), None))
            await server.put(shard, table, table.columns, fresh)
        await copying.go(files, quick=bring == "quick")
        await copying.go(files)
    await copying.finish(files)
    same_rows(data, url)


async def test_a_client_that_is_gone_goes_after_all_that_refers_to_it(
    data: Path, url: str, files: Files, server: Server
) -> None:
    await Copying(server, SHARDS, quiet).go(files, 2)
    ((client,),) = rows(full(data), "SELECT client FROM message ORDER BY number LIMIT 1")
    for name in ("entry", "message", "client"):
        column = "number" if name == "client" else "client"
        changed(full(data), f"DELETE FROM {name} WHERE {column} = ?", client)
    copying = Copying(server, SHARDS, quiet)
    await copying.go(files, 2)
    await copying.finish(files)
    same_rows(data, url)


async def test_what_was_purged_meanwhile_goes_even_where_it_is_much(
    data: Path, url: str, files: Files, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "CHUNK_ROWS", 3)
    await Copying(server, SHARDS, quiet).go(files, 2)
    for name in ("entry", "message", "part", "event"):
        changed(full(data), f"DELETE FROM {name}")
    copying = Copying(server, SHARDS, quiet)
    await copying.go(files, 2)
    await copying.finish(files)
    same_rows(data, url)


async def test_a_text_that_a_server_keeps_in_another_way_is_the_same(
    data: Path, files: Files, server: Server
) -> None:
    copying = Copying(server, SHARDS, quiet)
    for text in ("'a' || char(0) || 'b'", "NULL", "'c' || char(0)"):
        for name, column in (("message", "text"), ("client", "name")):
            if name == "message" or text != "NULL":
                changed(full(data), f"UPDATE {name} SET {column} = {text}")
        assert await copying.go(files, 1) > 0
        await copying.finish(files)
        assert await copying.go(files, 1) == 0


@pytest.mark.parametrize("name", [*tables(), "meta"])
async def test_what_was_lost_after_it_was_written_is_found(
    url: str, files: Files, trusting: Server, name: str
) -> None:
    copying = Copying(trusting, SHARDS, quiet)
    await copying.go(files, 1)
    place = postgres.Schema(url, "smsgw_01")
    await asyncio.to_thread(rows, place, f"DELETE FROM {name}")
    with pytest.raises(StoreError, match="differ"):
        await copying.finish(files)


async def test_no_side_is_asked_any_more_once_the_other_has_failed(
    monkeypatch: pytest.MonkeyPatch, files: Files, trusting: Server
) -> None:
    copying = Copying(trusting, SHARDS, quiet)
    await copying.go(files, 1)
    asked = asyncio.Event()
    asking: set[str] = set()

    async def slow(*_: Any, **__: Any) -> Any:
        asking.add("the server")
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            asking.clear()

    async def failing(*_: Any, **__: Any) -> Any:
        await asked.wait()
        raise StoreError("the file cannot be read")

    monkeypatch.setattr(trusting, "facts", slow)
    monkeypatch.setattr(files, "facts", failing)
    with pytest.raises(StoreError, match="cannot be read"):
        await copying.finish(files)
    assert not asking
