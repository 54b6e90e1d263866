"""One shard, in a file or in a server: a turn is all or nothing, an item fails alone."""

import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest

from smsgw.accounts import AddClient, Adjust, Cancel, PauseClient
from smsgw.admission import Accepted, Admit, AdmitBatch, Draft
from smsgw.allotter import ANY
from smsgw.errors import (
    BacklogFull,
    InsufficientCredits,
    InternalError,
    StoreError,
    UnknownClient,
    UnknownMessage,
)
from smsgw.fairness import Claim, Grant, Unshelve
from smsgw.models import Lane, Message, Rules, Status
from smsgw.recovery import Reroute
from smsgw.routing import Routing
from smsgw.store.base import ShardStore, ShardUnavailableError
from smsgw.turn import Item, Request, Turn, Wants, Write
from tests import postgres
from tests.records import CLIENT, NOW_MS, RULES, a_message
from tests.stores import (
    IDENTITY,
    Place,
    Reader,
    assert_memory_is_file,
    dump,
    findings,
    make_unreliable,
    open_shard,
    plain,
    rows,
    turn,
)

BACKENDS = ("sqlite", "postgres")
OTHER = bytes([7]) * 16
REFUSALS = (sqlite3.IntegrityError, asyncpg.PostgresError, asyncpg.DataError)


@pytest.fixture
def path(backend: str, tmp_path: Place) -> Iterator[Place]:
    if backend == "sqlite":
        yield tmp_path / "00.db"
    else:
        with postgres.database() as url:
            yield postgres.Schema(url)


@pytest.fixture
async def store(path: Place) -> AsyncIterator[ShardStore]:
    """A shard with one client of 1000 cents, and another of nothing."""
    found = await open_shard(path)
    await turn(found, AddClient(CLIENT, "test", 1, 1000), AddClient(OTHER, "other"))
    yield found
    await found.close()


def draft(text: str = "hello", lane: Lane = Lane.REGULAR) -> Draft:
    return Draft(15005550006, "ACME", text, False, 1, lane, 5, 0, 0)


def admit(text: str = "hello", client: bytes = CLIENT, rules: Rules = RULES) -> Admit:
    return Admit(client, draft(text), None, rules, 0)


def claim(store: ShardStore, parts: int = 10) -> Claim:
    return Claim([Grant(0, int(Lane.REGULAR), "mock", parts)], dict(store.waiting))


def numbers(path: Place) -> list[int]:
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
            account.waiting = "many"  # type: ignore[assignment]
        elif self.kind == "unique":
            turn.entries.append((account.number, 1, 0, 0, 1, 0, 1, None, None))
        elif self.kind == "fraction":
            account.credits_cents += 0.5  # type: ignore[assignment]
        elif self.kind == "endless":
            account.credits_cents = float("inf")  # type: ignore[assignment]
        elif self.kind == "too large":
            account.credits_cents = 1 << 70


POISONS = ["needs", "load", "decide", "check", "type", "unique", "fraction", "endless", "too large"]


@pytest.mark.parametrize("kind", POISONS)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
async def test_only_the_item_that_cannot_be_stored_fails(
    store: ShardStore, path: Place, kind: str, place: int
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
    store: ShardStore, path: Place
) -> None:
    result = await turn(store, *[Poison(kind) for kind in POISONS], admit())
    assert [error is None for error in result.errors] == [False] * len(POISONS) + [True]
    assert_memory_is_file(store)


async def test_after_one_failed_an_item_still_sees_what_its_predecessors_did(
    store: ShardStore, path: Place
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
    store: ShardStore, path: Place
) -> None:
    new = [AddClient(bytes([n]) * 16, "new") for n in (21, 22, 21)]
    await turn(store, Poison("check"), *new)
    assert [request.answer[1] for request in new] == [True, True, False]
    assert [request.answer[0].number for request in new] == [3, 4, 3]
    assert_memory_is_file(store)


async def test_a_refusal_fails_nobody(store: ShardStore) -> None:
    refused, accepted = admit(client=bytes(16)), admit()
    result = await turn(store, refused, accepted)
    assert result.errors == [None, None]
    assert isinstance(refused.refusal, UnknownClient)
    assert isinstance(accepted.answer, Accepted)


async def test_a_message_is_found_by_its_whole_id_only(store: ShardStore) -> None:
    request = admit()
    await turn(store, request)
    message: Message = request.answer.message
    guessed = Cancel(CLIENT, message.number, message.id[:-1] + bytes([message.id[-1] ^ 1]))
    await turn(store, guessed)
    assert isinstance(guessed.refusal, UnknownMessage)


@pytest.mark.parametrize("waiting_max", [1, 2])
async def test_a_batch_of_all_or_nothing_stops_at_the_limit_of_what_may_wait(
    store: ShardStore, path: Place, waiting_max: int
) -> None:
    rules = Rules(backlog_client_max=waiting_max)
    batch = AdmitBatch(CLIENT, [draft()] * 3, rules, 0, size=3, all_or_nothing=True)
    await turn(store, batch)
    assert isinstance(batch.refusal, BacklogFull)
    assert batch.refusal.members["index"] == waiting_max
    assert numbers(path) == []


@pytest.mark.parametrize("alone", [False, True])
async def test_a_commit_that_finds_no_room_has_done_nothing(
    store: ShardStore, path: Place, alone: bool
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


async def test_watched_messages_are_told_when_they_end(store: ShardStore) -> None:
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


async def test_opening_again_changes_nothing_and_numbers_go_on(path: Place) -> None:
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


@pytest.mark.parametrize("key", ["store", "shard", "shards", "epoch"])
async def test_a_foreign_file_is_refused_and_named(path: Place, key: str) -> None:
    await (await open_shard(path)).close()
    identity = {**IDENTITY, key: IDENTITY[key] + 1}
    with pytest.raises(StoreError, match=rf"_?00(\.db)? is foreign: its {key} is"):
        await open_shard(path, identity=identity)
    await (await open_shard(path)).close()


async def test_a_schema_of_a_newer_program_is_refused(path: Place) -> None:
    await (await open_shard(path)).close()
    rows(path, "INSERT INTO migration VALUES (99, 'of tomorrow', 0)")
    with pytest.raises(StoreError, match="step 99"):
        await open_shard(path)


@pytest.fixture
async def schema(store: ShardStore, path: Place) -> AsyncIterator[Reader]:
    with closing(plain(path)) as connection:
        yield connection


def message_row(**changes: Any) -> list[Any]:
    found = a_message(**changes)
    return [getattr(found, name) for name in Message.__slots__]


def insert_message(connection: Reader, **changes: Any) -> None:
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
    schema: Reader, changes: dict[str, Any]
) -> None:
    insert_message(schema, number=5)
    with pytest.raises(REFUSALS):
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
    schema: Reader, changes: dict[str, Any]
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
    schema: Reader, kind: str, amount: int, held: int, message: int | None
) -> None:
    row = (1, 99, KINDS[kind], 0, amount, held, 50, message, None)
    with pytest.raises(REFUSALS):
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
        "UPDATE client SET id = (SELECT max(id) FROM client)",
        "UPDATE entry SET balance_cents = -1",
        "UPDATE entry SET kind = 6",
        "INSERT INTO entry SELECT * FROM entry",
        "INSERT INTO queue VALUES (0, 2, 0, 1, 1, 1)",
        "INSERT INTO queue VALUES (0, 0, 0, 1, 1, 0)",
        "INSERT INTO timer VALUES (0, 1, 6)",
        "INSERT INTO idempotency VALUES (0, 1, x'00', zeroblob(16), 1, 1, 1, 1)",
        "INSERT INTO idempotency VALUES (0, 1, zeroblob(16), zeroblob(16), 1, 7, 1, 1)",
        "INSERT INTO idempotency VALUES (1, 1, zeroblob(16), zeroblob(16), 1, 6, 1, 1)",
        "INSERT INTO batch VALUES (1, zeroblob(16), 1, 2, 3, 0, '[]', 0)",
        "INSERT INTO batch VALUES (1, zeroblob(16), 1, 2, 1, 2, '[]', 0)",
        "INSERT INTO code VALUES (1, 1, 1, zeroblob(16), 1, -1, NULL, 1)",
    ],
)
def test_the_schema_refuses_a_row_against_the_rules(schema: Reader, change: str) -> None:
    with pytest.raises(REFUSALS):
        schema.execute(change)


async def test_money_must_belong_to_a_client(store: ShardStore) -> None:
    class Stray(Write):
        __slots__ = ()

        def decide(self, turn: Turn) -> None:
            turn.entries.append((99, 1, 0, 0, 5, 0, 5, None, None))

    result = await turn(store, Stray())
    assert isinstance(result.errors[0], InternalError)
    assert re.search("FOREIGN ?KEY", repr(result.errors[0].__cause__), re.IGNORECASE)


class InOneGo(Request):
    """Two things that are decided as one: if either fails, both do."""

    __slots__ = ("items",)

    def __init__(self, *items: Item) -> None:
        super().__init__()
        self.items = items

    def needs(self, wants: Wants) -> None:
        for item in self.items:
            item.needs(wants)

    def decide(self, turn: Turn) -> None:
        for item in self.items:
            item.decide(turn)


async def test_what_was_cancelled_a_moment_before_is_not_brought_back_into_its_queue(
    store: ShardStore, path: Place
) -> None:
    admits = admit(), admit()
    await turn(store, *admits)
    await turn(store, PauseClient(CLIENT, paused=True))
    await turn(store, claim(store))
    await turn(store, PauseClient(CLIENT, paused=False))
    gone, waits = (one.answer.message for one in admits)
    unshelve = Unshelve(CLIENT, 1)
    result = await turn(store, InOneGo(Cancel(CLIENT, gone.number, gone.id), unshelve))
    assert (list(result.errors), unshelve.answer) == ([None], 2)
    assert rows(path, "SELECT route, message FROM queue") == [(0, waits.number)]
    assert findings(path) == []


async def test_what_was_cancelled_a_moment_before_is_not_given_another_route(
    store: ShardStore, path: Place
) -> None:
    admits = admit(), admit()
    await turn(store, *admits)
    gone, waits = (one.answer.message for one in admits)
    to_five = cast(Routing, SimpleNamespace(route=lambda _: 5))
    reroute = Reroute(0, to_five, (-1, -1, -1))
    result = await turn(store, InOneGo(Cancel(CLIENT, gone.number, gone.id), reroute))
    assert list(result.errors) == [None]
    assert rows(path, "SELECT route, message FROM queue") == [(5, waits.number)]
    assert findings(path) == []


async def test_of_what_a_turn_brings_express_is_claimed_first(store: ShardStore) -> None:
    regular = [admit() for _ in range(12)]
    hurried = admit()
    hurried.draft.lane = Lane.EXPRESS
    places = Grant(ANY, ANY, "mock", 9, routes=frozenset({0}))
    result = await turn(store, *regular, hurried, Claim([places], {}))
    assert len(result.claims) == 9
    assert hurried.answer.message.number in [message.number for message in result.claims]
