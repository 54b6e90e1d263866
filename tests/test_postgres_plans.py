"""What a turn reads in PostgreSQL does not grow with what clients have sent before.

A session plans a turn's statements once, as a rule when its tables were small, and keeps the plans.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from smsgw.accounts import AddClient
from smsgw.admission import Admit, Draft, KeyUse, Replay, key_use
from smsgw.models import Lane, Outcome, Verdict
from smsgw.store.postgres import PostgresShard
from smsgw.turn import Item
from smsgw.worker import Settle
from tests import postgres
from tests.records import CLIENT, NOW_MS, RULES
from tests.stores import IDENTITY, plain, turn

OTHER = bytes([7]) * 16
MANY = 300


@pytest.fixture
def place() -> Iterator[postgres.Schema]:
    with postgres.database() as url:
        yield postgres.Schema(url)


@pytest.fixture
async def store(place: postgres.Schema) -> AsyncIterator[PostgresShard]:
    """A shard with two clients."""
    found = await postgres.open_shard(place, IDENTITY, gateway=0)
    for client in (CLIENT, OTHER):
        await turn(found, AddClient(client, "test", 1, 10_000))
    yield found
    await found.close()


def admit(key: KeyUse | None = None, client: bytes = CLIENT) -> Admit:
    draft = Draft(15005550006, "ACME", "hello", False, 1, Lane.REGULAR, 5, 0, 0)
    return Admit(client, draft, key, RULES, 0)


def key(number: int) -> KeyUse:
    return key_use(str(number), "messages")


async def loading(store: PostgresShard, *items: Item) -> tuple[str, Sequence[Item]]:
    """The call by which items are loaded, and those that their turn has left out."""
    calls: list[str] = []
    watched = postgres.Unreliable(store.database)
    watched.on_call = calls.append
    postponed = (await store.turn(items, NOW_MS, {})).postponed
    watched.on_call = lambda _: None
    call = calls[0]
    return call[call.index("SELECT ") : call.index(") TO STDOUT")], postponed


def entries_read(sql: postgres.Sql, load: str, index: str) -> int:
    """How many entries of an index a load reads."""
    count = f"SELECT pg_stat_get_xact_tuples_returned('{index}'::regclass)"
    sql.execute("BEGIN")
    before = sql.execute(count)[0][0]
    sql.execute(load)
    after = sql.execute(count)[0][0]
    sql.execute("COMMIT")
    return int(after - before)


async def test_keys_are_looked_up_one_by_one(store: PostgresShard, place: postgres.Schema) -> None:
    again = [admit(key(0)), admit(key(1))]
    load, _ = await loading(store, *again)
    with contextlib.closing(plain(place)) as sql:
        sql.execute(load)
        await turn(store, *[admit(key(number)) for number in range(MANY)])
        assert entries_read(sql, load, "idempotency_pkey") == 2
    await turn(store, *again)
    assert all(isinstance(one.answer, Replay) for one in again)


async def test_messages_of_a_busy_client_are_looked_up_by_their_numbers(
    store: PostgresShard, place: postgres.Schema
) -> None:
    sent = [admit() for _ in range(MANY)]
    await turn(store, *sent)
    answer = Settle(sent[0].answer.message.number, 1, Outcome(Verdict.ACCEPTED, "id"), RULES)
    with contextlib.closing(plain(place)) as other, contextlib.closing(plain(place)) as sql:
        other.execute("BEGIN")
        other.execute("SELECT 1 FROM client WHERE id = ? FOR UPDATE", (CLIENT,))
        load, postponed = await loading(store, answer, admit(client=OTHER))
        assert postponed == [answer]
        sql.execute(load)
        assert entries_read(sql, load, "message_recipient") == 0
        other.execute("COMMIT")
