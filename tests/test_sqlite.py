"""One shard's file: a turn is all or nothing, an item fails alone, memory is the file."""

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from smsgw.accounts import AddClient, Adjust
from smsgw.admission import Accepted, Admit, Draft
from smsgw.errors import (
    StorageUnavailable,
    StoreError,
)
from smsgw.fairness import Claim, Grant
from smsgw.models import Lane, Rules
from smsgw.store.base import CommitUnknownError, ShardUnavailableError
from smsgw.store.sqlite import SqliteShard
from smsgw.store.sqlite_thread import SqliteThread, migrate
from smsgw.store.statements import migrations
from smsgw.turn import Item, Turn, Wants
from tests.records import CLIENT, NOW_MS, RULES
from tests.stores import (
    assert_memory_is_file,
    content,
    dump,
    findings,
    make_unreliable,
    open_shard,
    plain,
    rows,
    turn,
)

OTHER = bytes([7]) * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteShard]:
    """A shard with one client of 1000 cents, and another of nothing."""
    found = await open_shard(path)
    await turn(found, AddClient(CLIENT, "test", 1, 1000), AddClient(OTHER, "other"))
    yield found
    await found.close()


def draft(text: str = "hello", lane: Lane = Lane.REGULAR) -> Draft:
    return Draft(15005550006, "ACME", text, False, 1, lane, 5, 0, 0)


def admit(text: str = "hello", client: bytes = CLIENT, rules: Rules = RULES) -> Admit:
    return Admit(client, draft(text), None, rules, 0)


def claim(store: SqliteShard, parts: int = 10) -> Claim:
    return Claim([Grant(0, int(Lane.REGULAR), "mock", parts)], dict(store.waiting))


def numbers(path: Path) -> list[int]:
    return [number for (number,) in rows(path, "SELECT number FROM message ORDER BY number")]


class Poison(Item):
    """An item that cannot be stored."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def needs(self, wants: Wants) -> None:
        wants.clients.add(CLIENT)
        if self.kind == "needs":
            raise RuntimeError(self.kind)
        if self.kind == "load":
            wants.asks.append(("there is no such statement", ()))

    def decide(self, turn: Turn) -> None:
        account = turn.account_of[CLIENT]
        account.credits_cents += 1_000_000
        turn.touch_account(account)
        turn.next_client += 1
        if self.kind == "decide":
            raise RuntimeError(self.kind)
        if self.kind == "check":
            account.weight = 0
        elif self.kind == "type":
            account.name = b"\xff"  # type: ignore[assignment]
        elif self.kind == "unique":
            turn.entries.append((account.number, 1, 0, 0, 1, 0, 1, None, None))
        elif self.kind == "too large":
            account.credits_cents = 1 << 70


POISONS = ["needs", "load", "decide", "check", "type", "unique", "too large"]


# A disk that is full, locked, or broken.


async def fill(store: SqliteShard) -> None:
    """Leave room for next to nothing."""
    raw = store._writer.raw
    (pages,) = await store._writer.run(lambda: raw.execute("PRAGMA page_count").fetchone())
    await store._writer.run(lambda: raw.execute(f"PRAGMA max_page_count = {pages + 1}").fetchone())


async def make_room(store: SqliteShard) -> None:
    raw = store._writer.raw
    await store._writer.run(lambda: raw.execute("PRAGMA max_page_count = 1000000").fetchone())


LONG = "x" * 100_000


async def test_on_a_full_disk_nothing_of_a_turn_is_written_and_room_heals_it(
    store: SqliteShard, path: Path
) -> None:
    await turn(store, admit())
    await fill(store)
    before = dump(path)
    with pytest.raises(ShardUnavailableError, match="full"):
        await turn(store, Adjust(CLIENT, 7, None, None), admit(LONG), claim(store))
    assert dump(path) == before
    assert_memory_is_file(store)
    await make_room(store)
    result = await turn(store, Adjust(CLIENT, 7, None, None), admit(LONG), claim(store))
    assert list(result.errors) == [None] * 3
    assert len(result.claims) == 2
    assert findings(path) == []
    assert_memory_is_file(store)


async def test_a_disk_that_fills_while_items_run_alone_undoes_them_all(
    store: SqliteShard, path: Path
) -> None:
    await fill(store)
    before = dump(path)
    with pytest.raises(ShardUnavailableError):
        await turn(store, AddClient(bytes(16), "new", 1, 7), admit(), Poison("check"), admit(LONG))
    assert dump(path) == before
    assert_memory_is_file(store)
    await make_room(store)
    request = AddClient(bytes(16), "new", 1, 7)
    await turn(store, request, admit(), claim(store))
    assert request.answer[0].number == 3
    assert findings(path) == []
    assert_memory_is_file(store)


async def test_while_another_connection_holds_the_lock_nothing_is_written(
    store: SqliteShard, path: Path
) -> None:
    intruder = plain(path)
    intruder.execute("BEGIN IMMEDIATE")
    with pytest.raises(ShardUnavailableError, match="locked"):
        await turn(store, admit())
    assert_memory_is_file(store)
    intruder.execute("ROLLBACK")
    request = admit()
    await turn(store, request)
    assert isinstance(request.answer, Accepted)
    intruder.close()


async def test_a_file_that_cannot_be_written_is_unavailable_until_it_can(
    store: SqliteShard, path: Path
) -> None:
    await store._writer.run(store._writer.raw.execute, "PRAGMA query_only = 1")
    with pytest.raises(ShardUnavailableError, match="readonly"):
        await turn(store, admit())
    assert_memory_is_file(store)
    await store._writer.run(store._writer.raw.execute, "PRAGMA query_only = 0")
    await turn(store, admit())
    assert len(numbers(path)) == 1


@pytest.mark.parametrize(
    "code",
    [
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY_SNAPSHOT,
    ],
)
async def test_a_turn_that_cannot_begin_has_done_nothing(
    store: SqliteShard, path: Path, code: int
) -> None:
    make_unreliable(store).fail("BEGIN IMMEDIATE", code)
    with pytest.raises(ShardUnavailableError):
        await turn(store, admit())
    assert numbers(path) == []
    await turn(store, admit())
    assert_memory_is_file(store)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_WRITE])
async def test_what_a_failed_flush_left_is_unknown_and_whole_either_way(
    path: Path, after: bool, code: int
) -> None:
    store = await open_shard(path)
    await turn(store, AddClient(CLIENT, "test", 1, 1000))
    make_unreliable(store).fail("COMMIT", code, after=after)
    with pytest.raises(CommitUnknownError, match=r"00\.db"):
        await turn(store, admit(), Adjust(CLIENT, -5, None, None))
    await store.close()
    again = await open_shard(path)
    assert len(numbers(path)) == int(after)
    assert findings(path) == []
    assert_memory_is_file(again)
    await again.close()


# Cancellation, and reading beside it.


async def test_a_turn_whose_task_is_cancelled_is_committed_to_its_end(
    store: SqliteShard, path: Path
) -> None:
    gate = make_unreliable(store).hold("COMMIT")
    task = asyncio.create_task(turn(store, admit()))
    await asyncio.to_thread(gate.reached.wait)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0)
    assert not done, "nobody may act as if the turn had ended"
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(numbers(path)) == 1


async def test_an_interruption_while_deciding_leaves_no_transaction_open(
    store: SqliteShard, path: Path
) -> None:
    class Interrupted(Item):
        __slots__ = ()

        def decide(self, turn: Turn) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await turn(store, admit(), Interrupted())
    assert not store._writer.raw.in_transaction
    await turn(store, admit())
    assert len(numbers(path)) == 1
    assert_memory_is_file(store)


async def test_a_reader_sees_what_was_committed_and_cannot_write(store: SqliteShard) -> None:
    await turn(store, admit())
    rows = await store.read("client_by_id", CLIENT)
    assert rows[0][6:8] == (995, 5)
    with pytest.raises(StorageUnavailable) as refused:
        await store.read("meta_set", "stolen", 1)
    assert "readonly" in str(refused.value.__cause__)


# Opening it again.


async def test_a_clean_end_leaves_no_log(path: Path) -> None:
    store = await open_shard(path)
    await turn(store, AddClient(CLIENT, "test", 1, 1000))
    assert store.wal_bytes() > 0
    await store.close()
    assert store.wal_bytes() == 0


async def folded(store: SqliteShard) -> None:
    """Go on until nobody folds any more."""
    while store._log._folding is not None:
        await asyncio.wait([store._log._folding])
        await store.tidy()


async def test_a_log_that_grew_too_long_is_folded_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.store.sqlite_log._FIRST_CHANGES", 5_000)
    store = await open_shard(path, wal_bytes_max=1)
    for page in range(60):
        clients = [AddClient((page * 100 + n).to_bytes(16, "big"), "test") for n in range(100)]
        await turn(store, *clients)
    long = store.wal_bytes()
    await store.tidy()
    assert store._log._folding is not None
    # Turns go on meanwhile; what they leave is folded too.
    await turn(store, AddClient(b"x" * 16, "test"))
    assert store.wal_bytes() >= long
    await folded(store)
    assert store._log._times == 1, "it grows no further"
    assert store.wal_bytes() == 0
    assert (await store.read("client_by_id", b"x" * 16))[0][3] == "test"
    await store.close()


async def test_no_fold_begins_where_nothing_was_committed_since_the_last(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a one, and a commit at that moment, is what SQLite before 3.51.3 corrupts a log by."""
    monkeypatch.setattr("smsgw.store.sqlite_log._FIRST_CHANGES", 0)
    monkeypatch.setattr("smsgw.store.sqlite_log._TIMES_BESIDE", 1)
    store = await open_shard(path, wal_bytes_max=1)
    begun: list[str] = []
    store._log._folder.raw.set_trace_callback(begun.append)

    async def tidied() -> int:
        """How many folds the next two calls begin."""
        begun.clear()
        await store.tidy()
        assert store._log._folding is not None
        await asyncio.wait([store._log._folding])
        await store.tidy()
        return sum("wal_checkpoint" in statement for statement in begun)

    assert await tidied() == 0
    await turn(store, AddClient(CLIENT, "test", 1, 1000))
    assert await tidied() == 1
    assert await tidied() == 0
    # A turn that writes nothing commits nothing, however many changes were undone meanwhile.
    await turn(store)
    assert await tidied() == 0
    await turn(store, AddClient(b"x" * 16, "test"))
    assert await tidied() == 1
    await store.close()


@pytest.mark.parametrize(("times", "by_writer"), [(1, True), (3, False)])
async def test_the_log_begins_anew_without_the_writer_once_a_fold_meets_no_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch, times: int, by_writer: bool
) -> None:
    monkeypatch.setattr("smsgw.store.sqlite_log._FIRST_CHANGES", 20)
    monkeypatch.setattr("smsgw.store.sqlite_log._TIMES_BESIDE", times)
    store = await open_shard(path)
    clients = itertools.count()
    said: list[str] = []
    store._writer.raw.set_trace_callback(said.append)

    async def turn_and_tidy() -> None:
        await turn(store, AddClient(next(clients).to_bytes(16, "big"), "test"))
        await store.tidy()

    while store._log._folding is None:
        await turn_and_tidy()
    length = store.wal_bytes()
    while store._log._folding is not None:
        await asyncio.wait([store._log._folding])
        await turn_and_tidy()
    assert any("wal_checkpoint" in statement for statement in said) is by_writer
    for _ in range(5):
        await turn_and_tidy()
    assert store.wal_bytes() == length, "it is written from its beginning"
    await store.close()


async def test_a_log_is_folded_back_when_it_is_nearly_as_long_as_it_may_be(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.store.sqlite_log._FIRST_CHANGES", 100)
    wal_bytes_max = 2_000_000
    store = await open_shard(path, wal_bytes_max=wal_bytes_max)
    clients = itertools.count()
    lengths = []
    for _ in range(4):
        while store._log._folding is None:
            new = [AddClient(next(clients).to_bytes(16, "big"), "test") for _ in range(10)]
            await turn(store, *new)
            await store.tidy()
        await asyncio.wait([store._log._folding])
        lengths.append(store._log._folding.result())
        await folded(store)
    first, *_, last = lengths
    assert first < wal_bytes_max / 10
    assert wal_bytes_max / 2 < last < wal_bytes_max
    assert store.wal_bytes() < wal_bytes_max, "it is as long as its longest time, and not cut off"
    await store.close()


async def test_a_log_is_being_folded_back_when_the_shard_is_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.store.sqlite_log._FIRST_CHANGES", 1)
    store = await open_shard(path)
    await turn(store, AddClient(CLIENT, "test", 1, 1000))
    await store.tidy()
    assert store._log._folding is not None
    await store.close()
    assert store.wal_bytes() == 0


@pytest.mark.parametrize("content", [b"this was never a database" * 100, b"\0" * 5000])
def test_a_file_that_is_no_database_is_refused_and_named(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"00\.db"):
        asyncio.run(open_shard(path))
    assert path.read_bytes() == content


def test_a_damaged_file_is_found_by_the_audit(path: Path) -> None:
    async def fill_it() -> None:
        store = await open_shard(path)
        await turn(store, *[AddClient(bytes([n]) * 16, "test", 1, 10) for n in range(200)])
        await store.close()

    asyncio.run(fill_it())
    content = bytearray(path.read_bytes())
    client = content.rindex(bytes([150]) * 16) // 4096 * 4096
    content[client : client + 4096] = b"\xaa" * 4096
    path.write_bytes(content)
    assert "file" in {check for check, _ in findings(path)}


async def test_every_pragma_that_a_promise_rests_on_is_read_back(store: SqliteShard) -> None:
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "wal_autocheckpoint": 0,
        "trusted_schema": 0,
    }
    for thread, query_only in ((store._writer, 0), (store._readers[0], 1)):
        found = {
            name: (await thread.run(thread.raw.execute, f"PRAGMA {name}")).fetchone()[0]
            for name in [*wanted, "query_only"]
        }
        assert found == {**wanted, "query_only": query_only}


async def test_a_pragma_that_does_not_hold_refuses_to_start() -> None:
    # A database in memory has no write-ahead log.
    with pytest.raises(StoreError, match="PRAGMA journal_mode is 'memory', it must be 'wal'"):
        await SqliteThread.open(MEMORY)


async def test_a_place_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        await SqliteThread.open(tmp_path / "nowhere" / "00.db")


async def test_an_sqlite_that_is_too_old_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(StoreError, match=r"too old; 3\.37"):
        await SqliteThread.open(path)


# The schema.


def schema_of(connection: sqlite3.Connection) -> list[Any]:
    return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()


@pytest.mark.parametrize("noun", ["schema", "catalog"])
def test_a_schema_built_step_by_step_equals_one_built_at_once(noun: str) -> None:
    steps = migrations(noun)
    with closing(plain(MEMORY)) as at_once, closing(plain(MEMORY)) as by_step:
        migrate(at_once, steps, NOW_MS)
        for count in range(len(steps) + 1):
            migrate(by_step, steps[:count], NOW_MS)
        assert schema_of(by_step) == schema_of(at_once)
        assert content(by_step) == content(at_once)


MEMORY = Path(":memory:")


@pytest.fixture
def memory() -> Iterator[sqlite3.Connection]:
    with closing(plain(MEMORY)) as connection:
        yield connection


STEPS = [
    (1, "first", "CREATE TABLE a (x INTEGER) STRICT; INSERT INTO a VALUES (1);"),
    (2, "second", "CREATE TABLE b (x INTEGER) STRICT; INSERT INTO b SELECT x FROM a;"),
]


def test_migrations_run_once_each(memory: sqlite3.Connection) -> None:
    migrate(memory, STEPS[:1], 5)
    migrate(memory, STEPS, 6)
    migrate(memory, STEPS, 7)
    assert memory.execute("SELECT * FROM migration").fetchall() == [
        (1, "first", 5),
        (2, "second", 6),
    ]
    assert memory.execute("SELECT * FROM b").fetchall() == [(1,)]


@pytest.mark.parametrize("new", [True, False])
def test_a_migration_that_fails_leaves_nothing_and_can_be_repeated(
    memory: sqlite3.Connection, new: bool
) -> None:
    broken = [
        STEPS[0],
        (2, "second", "CREATE TABLE b (x INTEGER); INSERT INTO missing VALUES (1);"),
    ]
    if not new:
        migrate(memory, STEPS[:1], 4)
    with pytest.raises(sqlite3.OperationalError, match="missing"):
        migrate(memory, broken, 5)
    assert not memory.in_transaction
    tables = [name for (name,) in memory.execute("SELECT name FROM sqlite_master")]
    assert tables == (["migration"] if new else ["migration", "a"])
    migrate(memory, STEPS, 6)
    assert memory.execute("SELECT number, applied_at_ms FROM migration").fetchall() == [
        (1, 6 if new else 4),
        (2, 6),
    ]


# Every rule of money and state stands in the schema a second time.


@pytest.fixture
async def schema(store: SqliteShard, path: Path) -> AsyncIterator[sqlite3.Connection]:
    with closing(plain(path)) as connection:
        yield connection


@pytest.mark.parametrize("column", ["credits_cents", "weight"])
def test_money_is_never_a_fraction(schema: sqlite3.Connection, column: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="cannot store REAL"):
        schema.execute(f"UPDATE client SET {column} = 0.5")


def test_every_table_is_strict(schema: sqlite3.Connection) -> None:
    tables = schema.execute(
        "SELECT name, strict FROM pragma_table_list"
        " WHERE schema = 'main' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    assert len(tables) > 10
    assert [name for name, strict in tables if not strict] == []
