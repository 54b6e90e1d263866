"""Keys by generation: what was used is always found, wherever its generation stands."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import blake2b
from struct import unpack

import pytest

from smsgw.admission import Accepted, Admit, Replay, key_use
from smsgw.clock import ManualClock
from smsgw.entrance import Wish
from smsgw.models import Lane
from smsgw.store import keys
from smsgw.store.keys import BloomFilter, KeyShelf, may_have, seal_all
from smsgw.store.sqlite import SqliteShard
from smsgw.store.sqlite_thread import migrate
from smsgw.store.statements import migrations
from tests.conftest import OpenGateway
from tests.support import DELIVERED, add_client, assert_clean

GENERATION_S = 2**24 / 1000


def digest(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=16).digest()


def words(number: int) -> tuple[int, ...]:
    return unpack("<4I", digest(number))


@pytest.fixture
def file() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, migrations("schema"), 0)
        yield connection


def put(connection: sqlite3.Connection, generation: int, numbers: range, client: int = 1) -> None:
    connection.executemany(
        "INSERT INTO idempotency VALUES (?, ?, ?, zeroblob(16), ?, 1, 0, 0)",
        [(generation, client, digest(number), generation << 46) for number in numbers],
    )


def seal(connection: sqlite3.Connection) -> None:
    """Give every generation that is over its filter."""
    shelf = KeyShelf()
    shelf.load(connection)
    while shelf.over():
        if sealed := shelf.step(connection):
            keys.store(connection, *sealed)
            shelf.seal(*sealed)


def filtered(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT generation FROM key_filter ORDER BY 1")]


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 40_000])
def test_a_filter_has_all_of_its_keys_and_few_others(count: int) -> None:
    made = BloomFilter()
    made.add([digest(number) for number in range(count)])
    made.fold()
    assert len(made.bits) <= max(8, count * 4)
    bits = bytes(made.bits)
    has = [may_have(bits, words(n)) for n in range(count + 4000)]
    assert all(has[:count])
    assert sum(has[count:]) <= 40


def test_a_filter_is_made_for_what_is_over_and_every_key_is_still_found(
    file: sqlite3.Connection,
) -> None:
    for generation in (0, 5, 6, 9, 10):
        if generation:
            put(file, generation, range(generation * 1000, generation * 1000 + 700))
    shelf = KeyShelf()
    shelf.load(file)
    assert shelf.open == {5, 6, 9, 10}
    assert sorted(shelf.places(digest(1))) == [5, 6, 9, 10]
    seal(file)
    shelf.load(file)
    assert (filtered(file), shelf.open) == ([5, 6, 9], {10})
    for generation in (5, 6, 9, 10):
        for number in range(700):
            assert generation in shelf.places(digest(generation * 1000 + number))
    looked = sum(len(list(shelf.places(digest(-n)))) for n in range(1000))
    assert looked <= 1000 + 20


def test_what_is_kept_for_ever_never_gets_a_filter(file: sqlite3.Connection) -> None:
    file.execute("INSERT INTO idempotency VALUES (0, 1, ?, zeroblob(16), 3, 6, 0, 0)", (digest(1),))
    put(file, 90, range(1))
    seal_all(file)
    shelf = KeyShelf()
    shelf.load(file)
    assert shelf.open == {0}
    assert not shelf.over()


def test_a_filter_goes_when_a_key_comes_into_its_generation_and_comes_back_when_that_fails(
    file: sqlite3.Connection,
) -> None:
    put(file, 5, range(10))
    put(file, 9, range(10, 20))
    seal(file)
    shelf = KeyShelf()
    shelf.load(file)
    file.execute("BEGIN")
    shelf.add(file, {5})
    assert (filtered(file), shelf.open) == ([], {5, 9})
    file.execute("ROLLBACK")
    shelf.undone(file)
    assert (filtered(file), shelf.open) == ([5], {9})
    shelf.add(file, {5})
    shelf.kept()
    shelf.undone(file)
    assert (filtered(file), shelf.open) == ([], {5, 9})


def test_a_filter_in_the_making_begins_anew_when_a_key_comes(
    file: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_STEP_ROWS", 4)
    put(file, 5, range(10))
    put(file, 9, range(10, 20))
    shelf = KeyShelf()
    shelf.load(file)
    assert shelf.step(file) is None
    put(file, 5, range(20, 30))
    shelf.add(file, {5})
    made = [shelf.step(file) for _ in range(6)]
    assert made[:5] == [None] * 5
    assert made[5] is not None
    generation, bits = made[5]
    assert generation == 5
    assert all(may_have(bits, words(n)) for n in [*range(10), *range(20, 30)])


def test_a_filter_goes_with_the_last_key_of_its_generation(file: sqlite3.Connection) -> None:
    put(file, 5, range(10))
    put(file, 9, range(10, 20))
    seal(file)
    shelf = KeyShelf()
    shelf.load(file)
    shelf.drop(file)
    assert filtered(file) == [5]
    file.execute("DELETE FROM idempotency WHERE generation = 5")
    shelf.add(file, {10})
    shelf.drop(file)
    assert (filtered(file), shelf.filters) == ([], {})


async def test_a_key_is_known_in_every_generation_and_after_a_restart(
    gateway_of: OpenGateway, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.store.sqlite.SEALING_SHARE", 1e9)
    gateway = await gateway_of(serve=False)
    client = await add_client(gateway, credit_cents=10_000)
    store = gateway.shards.of_client(client).store
    assert isinstance(store, SqliteShard)
    draft = gateway.entrance.draft(Wish(DELIVERED, "ACME", "hello", Lane.REGULAR))
    names = [f"key {n}" for n in range(9)]
    accepted = {}
    for name in names:
        item = Admit(client, draft, key_use(name, "messages"), gateway.rules, 0)
        await store.turn([item], clock.now_ms(), {})
        await store.tidy()
        assert isinstance(item.answer, Accepted)
        accepted[name] = item.answer.message.number
        clock.advance(GENERATION_S)
    shelf = store._cache.keys
    assert len(shelf.filters) == 8
    for _ in range(2):
        for name in names:
            item = Admit(client, draft, key_use(name, "messages"), gateway.rules, 0)
            await store.turn([item], clock.now_ms(), {})
            assert isinstance(item.answer, Replay)
            assert item.answer.record.subject == accepted[name]
        shelf.load(store._writer.raw)
    await assert_clean(gateway)


async def test_a_key_that_is_used_anew_after_its_time_stands_there_once(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway = await gateway_of(serve=False)
    client = await add_client(gateway, credit_cents=10_000)
    store = gateway.shards.of_client(client).store
    draft = gateway.entrance.draft(Wish(DELIVERED, "ACME", "hello", Lane.REGULAR))
    key = key_use("again", "messages")
    for _ in range(2):
        item = Admit(client, draft, key, gateway.rules, 0)
        await store.turn([item], clock.now_ms(), {})
        assert isinstance(item.answer, Accepted)
        clock.advance(gateway.rules.idempotency_ms / 1000 + 1)
    assert len(await store.read("keys_old", 1 << 40, 10)) == 1
