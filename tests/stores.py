"""A shard's store without its loop, on a real file or server, for tests that break it."""

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from smsgw.models import Account, Lane, Message
from smsgw.store.audit import Proof, audit
from smsgw.store.base import ShardStore, TurnResult
from smsgw.store.sqlite import SqliteShard
from smsgw.turn import Item
from tests import postgres
from tests.records import NOW_MS

IDENTITY = {"store": 77, "shard": 0, "shards": 1, "epoch": 1}


Place = Path | postgres.Schema
"""Where a shard is: a file, or a schema in a server."""
Reader = sqlite3.Connection | postgres.Sql


async def open_shard(
    path: Place,
    *,
    number: int = 0,
    identity: Mapping[str, int] | None = None,
    wal_bytes_max: int = 1 << 24,
) -> Any:
    """One shard, opened as a gateway does."""
    if isinstance(path, postgres.Schema):
        return await postgres.open_shard(path, identity or {**IDENTITY, "shard": number})
    return await SqliteShard.open(
        number,
        path,
        readers=1,
        cache_kib=2048,
        wal_bytes_max=wal_bytes_max,
        identity=identity or {**IDENTITY, "shard": number},
        now_ms=NOW_MS,
    )


async def turn(store: ShardStore, *items: Item, now_ms: int = NOW_MS) -> TurnResult:
    """One turn of these items; what it leaves out comes in the next, as in a shard's loop."""
    result = await store.turn(items, now_ms, {})
    errors = dict(zip(items, result.errors, strict=True))
    left = result.postponed
    while left:
        more = await store.turn(left, now_ms, {})
        errors.update(zip(left, more.errors, strict=True))
        left = more.postponed
    result.errors = list(errors.values())
    return result


def plain(path: Place) -> Any:
    """A connection of our own, in which nothing is watched over."""
    if isinstance(path, postgres.Schema):
        return postgres.Sql(path.url, path.name)
    return sqlite3.connect(path, isolation_level=None, timeout=0)


def rows(path: Place, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """What a shard says."""
    with closing(plain(path)) as connection:
        return list(connection.execute(sql, parameters).fetchall())


def dump(path: Place) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of a shard."""
    with closing(plain(path)) as connection:
        return content(connection)


def content(connection: Reader) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table; but no leases, which change with the time."""
    if isinstance(connection, postgres.Sql):
        tables = connection.execute(
            "SELECT tablename FROM pg_tables"
            " WHERE schemaname = current_schema() AND tablename <> 'gateway'"
        )
    else:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
    return {
        name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
        for (name,) in tables
    }


def audited(connection: Reader, shard: int = 0, step: Callable[[str], None] = str) -> Proof:
    """The proof of a shard, over a connection that is there already."""
    if isinstance(connection, postgres.Sql):
        return postgres.audited(connection, shard, step)
    return audit(connection, shard, step)


def findings(path: Place) -> list[tuple[str, str | None]]:
    """What an audit of a shard finds: (check, client id)."""
    with closing(plain(path)) as connection:
        return [(found.check, found.client_id) for found in audited(connection).findings]


def assert_memory_is_file(store: Any) -> None:
    """What a shard keeps in memory is what its file, or its schema, says."""
    with closing(plain(postgres.place_of(store) or store.path)) as connection:
        compare_memory(store, connection)


def compare_memory(store: Any, connection: Reader) -> None:
    """The same, over a connection that is there already."""
    queue = connection.execute(
        "SELECT client, route, lane, count(*), sum(parts) FROM queue GROUP BY 1, 2, 3"
    ).fetchall()
    assert {key: n for key, n in store.waiting.items() if n} == _sums(queue, 3)
    express = _sums((row for row in queue if row[2] == Lane.EXPRESS), 4)
    parts = {key: n for key, n in store.lane_parts.items() if n and key[1] == Lane.EXPRESS}
    assert parts == express
    ((waits,),) = connection.execute("SELECT sum(waiting) FROM client").fetchall()
    assert store.waits == (waits or 0)
    if isinstance(store, SqliteShard):
        assert isinstance(connection, sqlite3.Connection)
        _compare_rows(store, connection, queue)
    else:
        _compare_kept(store, connection)


def _compare_rows(store: SqliteShard, connection: sqlite3.Connection, queue: list[Any]) -> None:
    accounts = {row[0]: Account(*row) for row in connection.execute("SELECT * FROM client")}
    for number, account in store._cache.accounts.items():
        assert account == accounts[number]
        assert store._cache.account_of[account.id] is account
    assert len(store._cache.account_of) == len(store._cache.accounts)
    for number, message in store._cache.messages.items():
        row = connection.execute("SELECT * FROM message WHERE number = ?", (number,)).fetchone()
        assert message == Message(*row)
    flows = {key: (flow.waiting, flow.parts) for key, flow in store.flows.items() if flow.waiting}
    assert flows == {tuple(row[:3]): tuple(row[3:]) for row in queue}
    assert store._next_client == max(accounts, default=0) + 1
    counted = connection.execute("SELECT value FROM meta WHERE key = 'counted_to'").fetchone()
    assert (store._counted_to,) == counted


def _compare_kept(store: Any, connection: Reader) -> None:
    """What is kept of a message is its row, unless another transaction has changed that."""
    for number, (xid, message) in store.kept._messages.items():
        sql = "SELECT * FROM message WHERE number = ? AND xmin::text::bigint = ?"
        for row in connection.execute(sql, (number, xid)).fetchall():
            assert message == Message(*row)


def _sums(rows: Iterable[Sequence[int]], column: int) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for row in rows:
        key = (row[1], row[2])
        found[key] = found.get(key, 0) + row[column]
    return found


@asynccontextmanager
async def read_only(catalog: Any) -> AsyncIterator[None]:
    """A catalog whose disk takes nothing more."""
    run, execute = catalog._thread.run, catalog._thread.raw.execute
    await run(execute, "PRAGMA query_only = 1")
    try:
        yield
    finally:
        await run(execute, "PRAGMA query_only = 0")


class Gate:
    """Where a statement waits until a test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()


class Unreliable:
    """A connection whose statements can be made to fail, in place of a disk that does."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.fails: dict[str, tuple[int, bool]] = {}
        self.gates: dict[str, Gate] = {}

    def fail(self, statement: str, code: int, *, after: bool = False) -> None:
        """Have the next such statement fail, before or after it was carried out."""
        self.fails[statement] = (code, after)

    def hold(self, statement: str) -> "Gate":
        """Have the next such statement wait."""
        self.gates[statement] = Gate()
        return self.gates[statement]

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """Run it, or fail."""
        if gate := self.gates.pop(sql, None):
            gate.reached.set()
            assert gate.opened.wait(60)
        code, after = self.fails.pop(sql, (0, False))
        if not code or after:
            cursor = self.connection.execute(sql, *parameters)
            if not code:
                return cursor
        error = sqlite3.OperationalError(f"simulated: {code}")
        error.sqlite_errorcode = code
        raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


def make_unreliable(store: Any) -> Any:
    """Put an ``Unreliable`` in front of a shard's writing connection."""
    if postgres.place_of(store) is not None:
        return postgres.Unreliable(store.database)
    connection = Unreliable(store._writer.raw)
    store._writer.raw = connection
    return connection
