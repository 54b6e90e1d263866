"""One shard's file: a turn is all or nothing, an item fails alone, memory is the file."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from smsgw.accounts import AddClient, Adjust, Cancel
from smsgw.admission import Accepted, Admit, AdmitBatch, Draft
from smsgw.errors import (
    BacklogFull,
    InsufficientCredits,
    InternalError,
    StorageUnavailable,
    StoreError,
    UnknownClient,
    UnknownMessage,
)
from smsgw.fairness import Claim, Grant
from smsgw.models import Lane, Message, Rules, Status
from smsgw.store.base import CommitUnknownError, ShardUnavailableError
from smsgw.store.sqlite import SqliteShard
from smsgw.store.sqlite_thread import SqliteThread, migrate
from smsgw.store.statements import migrations
from smsgw.turn import Item, Turn, Wants, Write
from tests.records import CLIENT, NOW_MS, RULES, a_message
from tests.stores import (
    IDENTITY,
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


@pytest.mark.parametrize("kind", POISONS)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
async def test_only_the_item_that_cannot_be_stored_fails(
    store: SqliteShard, path: Path, kind: str, place: int
) -> None:
    waiting = admit()
    await turn(store, waiting)
    items: list[Item] = [Adjust(CLIENT, 50, None, None), admit(), claim(store)]
    items.insert(place, Poison(kind))
    result = await turn(store, *items)
    assert [type(error) for error in result.errors] == [
        InternalError if index == place else type(None) for index in range(4)
    ]
    (error,) = (error for error in result.errors if error is not None)
    assert error.__cause__ is not None
    credit = rows(path, "SELECT credits_cents FROM client WHERE number = 1")
    assert credit == [(1000 + 50 - 2 * 5,)]
    assert len(result.claims) >= 1
    assert findings(path) == []
    assert_memory_is_file(store)


async def test_several_items_that_cannot_be_stored_fail_each_alone(
    store: SqliteShard, path: Path
) -> None:
    result = await turn(store, *[Poison(kind) for kind in POISONS], admit())
    assert [error is None for error in result.errors] == [False] * len(POISONS) + [True]
    assert_memory_is_file(store)


async def test_after_one_failed_an_item_still_sees_what_its_predecessors_did(
    store: SqliteShard, path: Path
) -> None:
    top_up, spend = Adjust(OTHER, 5, None, None), admit(client=OTHER)
    too_much = admit(client=OTHER)
    result = await turn(store, Poison("check"), top_up, spend, too_much)
    assert result.errors[1:] == [None, None, None]
    assert isinstance(spend.answer, Accepted)
    assert spend.answer.credits_cents == 0
    assert isinstance(too_much.refusal, InsufficientCredits)
    message = spend.answer.message
    cancel = Cancel(OTHER, message.number, message.id)
    result = await turn(store, cancel, Poison("check"), claim(store))
    assert result.claims == []
    assert findings(path) == []


async def test_two_clients_that_are_created_after_a_failure_get_two_numbers(
    store: SqliteShard, path: Path
) -> None:
    new = [AddClient(bytes([n]) * 16, "new") for n in (21, 22, 21)]
    await turn(store, Poison("check"), *new)
    assert [request.answer[1] for request in new] == [True, True, False]
    assert [request.answer[0].number for request in new] == [3, 4, 3]
    assert_memory_is_file(store)


async def test_a_refusal_fails_nobody(store: SqliteShard) -> None:
    refused, accepted = admit(client=bytes(16)), admit()
    result = await turn(store, refused, accepted)
    assert result.errors == [None, None]
    assert isinstance(refused.refusal, UnknownClient)
    assert isinstance(accepted.answer, Accepted)


async def test_a_message_is_found_by_its_whole_id_only(store: SqliteShard) -> None:
    request = admit()
    await turn(store, request)
    message: Message = request.answer.message
    guessed = Cancel(CLIENT, message.number, message.id[:-1] + bytes([message.id[-1] ^ 1]))
    await turn(store, guessed)
    assert isinstance(guessed.refusal, UnknownMessage)


@pytest.mark.parametrize("waiting_max", [1, 2])
async def test_a_batch_of_all_or_nothing_stops_at_the_limit_of_what_may_wait(
    store: SqliteShard, path: Path, waiting_max: int
) -> None:
    rules = Rules(backlog_client_max=waiting_max)
    batch = AdmitBatch(CLIENT, [draft()] * 3, rules, 0, size=3, all_or_nothing=True)
    await turn(store, batch)
    assert isinstance(batch.refusal, BacklogFull)
    assert batch.refusal.members["index"] == waiting_max
    assert numbers(path) == []


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


@pytest.mark.parametrize("alone", [False, True])
async def test_a_commit_that_finds_no_room_has_done_nothing(
    store: SqliteShard, path: Path, alone: bool
) -> None:
    items: list[Item] = [admit(), *([Poison("check")] if alone else [])]
    before = dump(path)
    make_unreliable(store).fail("COMMIT", sqlite3.SQLITE_FULL)
    with pytest.raises(ShardUnavailableError):
        await turn(store, *items)
    assert dump(path) == before
    assert_memory_is_file(store)
    await turn(store, admit(), claim(store))
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


async def test_watched_messages_are_told_when_they_end(store: SqliteShard) -> None:
    first, second = admit(), admit()
    await turn(store, first, second)
    message: Message = first.answer.message
    store.watched.add(message.number)
    assert (await turn(store, admit())).ended == []
    cancels = [
        Cancel(CLIENT, found.number, found.id)
        for found in (first.answer.message, second.answer.message)
    ]
    assert (await turn(store, *cancels)).ended == [message.number]


# Opening it again.


async def test_opening_again_changes_nothing_and_numbers_go_on(path: Path) -> None:
    store = await open_shard(path)
    await turn(store, AddClient(CLIENT, "test", 3, 1000), AddClient(OTHER, "other"))
    express = [Admit(CLIENT, draft(lane=Lane.EXPRESS), None, RULES, 0) for _ in range(3)]
    await turn(store, *express, *[admit() for _ in range(5)])
    result = await turn(store, claim(store, 2))
    await store.close()
    before = dump(path)
    again = await open_shard(path)
    assert dump(path) == before
    assert_memory_is_file(again)
    last = max(numbers(path))
    request, client = admit(), AddClient(bytes(16), "new")
    await turn(again, request, client, now_ms=NOW_MS - 3_600_000)
    assert request.answer.message.number > last
    assert client.answer[0].number == 3
    assert [message.status for message in result.claims] == [Status.SENDING] * 2
    await again.close()


async def test_a_clean_end_leaves_no_log(path: Path) -> None:
    store = await open_shard(path)
    await turn(store, AddClient(CLIENT, "test", 1, 1000))
    assert store.wal_bytes() > 0
    await store.close()
    assert store.wal_bytes() == 0


async def test_a_log_that_grew_too_long_is_folded_back(path: Path) -> None:
    store = await open_shard(path, wal_bytes_max=1)
    for page in range(60):
        clients = [AddClient((page * 100 + n).to_bytes(16, "big"), "test") for n in range(100)]
        await turn(store, *clients)
    assert store.wal_bytes() > 0
    await store.tidy()
    assert store.wal_bytes() == 0
    await store.close()


@pytest.mark.parametrize("key", ["store", "shard", "shards", "epoch"])
async def test_a_foreign_file_is_refused_and_named(path: Path, key: str) -> None:
    await (await open_shard(path)).close()
    identity = {**IDENTITY, key: IDENTITY[key] + 1}
    with pytest.raises(StoreError, match=rf"00\.db is foreign: its {key} is"):
        await open_shard(path, identity=identity)
    await (await open_shard(path)).close()


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


def test_a_migration_that_fails_leaves_nothing_and_can_be_repeated(
    memory: sqlite3.Connection,
) -> None:
    broken = [
        STEPS[0],
        (2, "second", "CREATE TABLE b (x INTEGER); INSERT INTO missing VALUES (1);"),
    ]
    with pytest.raises(sqlite3.OperationalError, match="missing"):
        migrate(memory, broken, 5)
    assert not memory.in_transaction
    tables = memory.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("migration",), ("a",)]
    migrate(memory, STEPS, 6)
    assert memory.execute("SELECT number FROM migration").fetchall() == [(1,), (2,)]


async def test_a_schema_of_a_newer_program_is_refused(path: Path) -> None:
    await (await open_shard(path)).close()
    rows(path, "INSERT INTO migration VALUES (99, 'of tomorrow', 0)")
    with pytest.raises(StoreError, match="step 99"):
        await open_shard(path)


# Every rule of money and state stands in the schema a second time.


@pytest.fixture
async def schema(store: SqliteShard, path: Path) -> AsyncIterator[sqlite3.Connection]:
    with closing(plain(path)) as connection:
        yield connection


def message_row(**changes: Any) -> list[Any]:
    found = a_message(**changes)
    return [getattr(found, name) for name in Message.__slots__]


def insert_message(connection: sqlite3.Connection, **changes: Any) -> None:
    row = message_row(**changes)
    connection.execute(f"INSERT INTO message VALUES ({','.join('?' * len(row))})", row)


SENT: dict[str, Any] = {"attempts": 1, "provider": "mock", "submitted_at_ms": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 6},
        {"status": 9},
        {"status": 15},
        {"lane": 3},
        {"id": b"short"},
        {"client": None},
        {"recipient": 999_999},
        {"recipient": 10**15},
        {"recipient": "nobody"},
        {"parts": 0},
        {"parts": 256},
        {"parts": 1.5},
        {"cost_cents": -1, "held_cents": 0},
        {"held_cents": -1},
        {"held_cents": 6},
        {"held_cents": 3, "charged_cents": 2},
        {"held_cents": 0, "charged_cents": 6},
        {"surcharge_cents": 6},
        {"status": 10, "final_at_ms": 5},
        {"status": 10, "held_cents": 0},
        {"final_at_ms": 5},
        {"status": 2},
        {"status": 2, "provider": "mock"},
        {"status": 2, "attempts": 1},
        {"attempts": -1},
        {"status": 0},
        {"status": 5},
        {"express_missed": 2},
        {"ucs2": 2},
        {"text": b"\xff"},
    ],
)
def test_the_schema_refuses_a_message_against_the_rules(
    schema: sqlite3.Connection, changes: dict[str, Any]
) -> None:
    insert_message(schema, number=5)
    with pytest.raises(sqlite3.IntegrityError):
        insert_message(schema, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"status": 2, **SENT},
        {"status": 3, **SENT},
        {"status": 4, **SENT},
        {"status": 3, **SENT, "held_cents": 0, "charged_cents": 5},
        {"status": 5, **SENT, "due_at_ms": 5},
        {"status": 0, "due_at_ms": 5},
        {"status": 10, **SENT, "held_cents": 0, "charged_cents": 5, "final_at_ms": 5},
        {"status": 13, "held_cents": 0, "final_at_ms": 5},
        {"cost_cents": 0, "held_cents": 0},
        {"text": None},
    ],
)
def test_the_schema_takes_a_message_that_keeps_the_rules(
    schema: sqlite3.Connection, changes: dict[str, Any]
) -> None:
    insert_message(schema, **changes)


KINDS = {"topup": 0, "deduct": 1, "hold": 2, "capture": 3, "release": 4}


@pytest.mark.parametrize(
    ("kind", "amount", "held", "message"),
    [
        ("topup", 0, 0, None),
        ("topup", -5, 0, None),
        ("topup", 5, 5, None),
        ("deduct", 5, 0, None),
        ("deduct", -5, 5, None),
        ("hold", -5, 4, 7),
        ("hold", 5, -5, 7),
        ("hold", -5, 5, None),
        ("capture", 0, 5, 7),
        ("capture", 0, 0, 7),
        ("capture", -5, -5, 7),
        ("capture", 0, -5, None),
        ("release", 5, 5, 7),
        ("release", 0, 0, 7),
        ("release", 5, -4, 7),
        ("release", 5, -5, None),
    ],
)
def test_the_schema_refuses_an_entry_against_the_rules(
    schema: sqlite3.Connection, kind: str, amount: int, held: int, message: int | None
) -> None:
    row = (1, 99, KINDS[kind], 0, amount, held, 50, message, None)
    with pytest.raises(sqlite3.IntegrityError):
        schema.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE client SET credits_cents = -1",
        "UPDATE client SET held_cents = -1",
        "UPDATE client SET charged_cents = -1",
        "UPDATE client SET waiting = -1",
        "UPDATE client SET weight = 0",
        "UPDATE client SET weight = 1001",
        "UPDATE client SET paused = 2",
        "UPDATE client SET slot = 4096",
        "UPDATE client SET id = x'00'",
        "UPDATE client SET credits_cents = 'much'",
        "UPDATE client SET credits_cents = 0.5",
        "UPDATE client SET id = (SELECT max(id) FROM client)",
        "UPDATE entry SET balance_cents = -1",
        "UPDATE entry SET kind = 6",
        "INSERT INTO entry SELECT * FROM entry",
        "INSERT INTO queue VALUES (0, 2, 0, 1, 1, 1)",
        "INSERT INTO queue VALUES (0, 0, 0, 1, 1, 0)",
        "INSERT INTO timer VALUES (0, 1, 6)",
        "INSERT INTO idempotency VALUES (1, x'00', zeroblob(16), 1, 1, 1, 1)",
        "INSERT INTO idempotency VALUES (1, zeroblob(16), zeroblob(16), 1, 7, 1, 1)",
        "INSERT INTO batch VALUES (1, zeroblob(16), 1, 2, 3, 0, '[]', 0)",
        "INSERT INTO batch VALUES (1, zeroblob(16), 1, 2, 1, 2, '[]', 0)",
        "INSERT INTO code VALUES (1, 1, 1, zeroblob(16), 1, -1, NULL, 1)",
    ],
)
def test_the_schema_refuses_a_row_against_the_rules(
    schema: sqlite3.Connection, change: str
) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        schema.execute(change)


def test_every_table_is_strict(schema: sqlite3.Connection) -> None:
    tables = schema.execute(
        "SELECT name, strict FROM pragma_table_list"
        " WHERE schema = 'main' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    assert len(tables) > 10
    assert [name for name, strict in tables if not strict] == []


async def test_money_must_belong_to_a_client(store: SqliteShard) -> None:
    class Stray(Write):
        __slots__ = ()

        def decide(self, turn: Turn) -> None:
            turn.entries.append((99, 1, 0, 0, 5, 0, 5, None, None))

    result = await turn(store, Stray())
    assert isinstance(result.errors[0], InternalError)
    assert "FOREIGN KEY" in str(result.errors[0].__cause__)
