"""A gateway of the version before goes on beside one that has brought the schema up to date.

``data/turns.sql`` is what a gateway of a released version has sent: the functions of its turns, and
some turns. It is written anew when a version is released, from its source:

    python -m tests.test_upgrade > tests/data/turns.sql
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from smsgw import codes
from smsgw.accounts import AddClient, Adjust
from smsgw.admission import Admit, Draft, key_use
from smsgw.fairness import Claim, Grant
from smsgw.metrics import Metrics
from smsgw.models import Lane, Outcome, Status, Verdict
from smsgw.receive import Receive
from smsgw.settings import PostgresSettings
from smsgw.store import postgres as postgres_module
from smsgw.store import postgres_connection as connection_module
from smsgw.store import postgres_statements as statements
from smsgw.store.postgres import PostgresShard
from smsgw.store.postgres_connection import Database
from smsgw.worker import Settle
from tests import postgres
from tests.records import CLIENT, NOW_MS, RULES
from tests.stores import IDENTITY, findings, rows, turn

TURNS = Path(__file__).parent / "data" / "turns.sql"
BETWEEN = "\n-- then\n"
OUTCOME = Outcome(Verdict.ACCEPTED, "id")
CLIENTS = (CLIENT, bytes([7]) * 16)
Old = list[PostgresShard]


async def work(store: PostgresShard) -> None:
    """Turns that touch every table that turns touch: three messages, and a code."""

    def draft(lane: Lane) -> Draft:
        return Draft(15005550006, "ACME", "hello", False, 2, lane, 10, 0, 0)

    await turn(store, AddClient(CLIENT, "test", 1, 1000), Adjust(CLIENT, 5, None, None))
    keys = [key_use(str(number), "messages") for number in range(3)]
    await turn(store, *[Admit(CLIENT, draft(Lane.REGULAR), key, RULES, 0) for key in keys])
    grants = [Grant(0, int(Lane.REGULAR), "mock", 4)]
    for message in (await turn(store, Claim(grants, dict(store.waiting)))).claims:
        await turn(store, Settle(message.number, message.attempts, OUTCOME, RULES))
        receipt = (message.number, 0, "id", "DELIVRD", None, RULES, Metrics())
        await turn(store, Receive(*receipt))
    opening = codes.Open(
        CLIENT,
        draft(Lane.OTP),
        key_use("code", "otp"),
        RULES,
        provider="mock",
        deadline_ms=NOW_MS + 5000,
        said_no=None,
    )
    await turn(store, opening)
    closing = (CLIENT, opening.answer.number, OUTCOME, opening.key, RULES)
    await turn(store, codes.Close(*closing, handset=False, codes=True))


async def recorded() -> str:
    """The functions of this version's turns, and what it calls them with."""
    scripts: list[str] = []
    with postgres.database() as url:
        store = await postgres.open_shard(postgres.Schema(url), IDENTITY)
        postgres.Unreliable(store.database).on_call = scripts.append
        await work(store)
        await store.close()
        made = statements.functions(store.schema).values()
    # How a transaction begins and ends differs between versions of the server.
    call = re.compile(r"SELECT \w+\.turn_\w+\(.*?\)(?=\) TO STDOUT|; COMMIT$|$)", re.DOTALL)
    calls = [found for one in scripts for found in call.findall(one)]
    assert any("turn_load" in one for one in calls)
    assert any("turn_write" in one for one in calls)
    return BETWEEN.join([*made, *calls])


@pytest.mark.backends("postgres")
async def test_the_next_release_can_record_its_turns() -> None:
    assert len((await recorded()).split(BETWEEN)) > len(statements.functions("any")) + 10


@pytest.mark.backends("postgres")
async def test_a_gateway_of_the_version_before_goes_on_beside_a_newer_one() -> None:
    calls = TURNS.read_text().split(BETWEEN)
    with postgres.database() as url:
        place = postgres.Schema(url)
        store = await postgres.open_shard(place, IDENTITY, gateway=1)
        found = re.search(r"turn_load_\w+\('(\d+)', '(\d+)'", "".join(calls))
        assert found is not None
        older, incarnation = int(found[1]), int(found[2])
        enter = statements.gateway_statements(store.schema, incarnation)["own_enter"]
        await store.database.fetch(enter, older, incarnation, 60.0)
        # One that is the same in this version is there already.
        known = statements.functions(store.schema).values()
        for call in calls:
            if call.strip() not in known:
                await store.database.fetch(call)
        assert findings(place) == []
        states = rows(place, "SELECT status, count(*) FROM message GROUP BY 1 ORDER BY 1")
        assert states == [(Status.QUEUED, 1), (Status.SENT, 1), (Status.DELIVERED, 2)]
        await turn(store, Adjust(CLIENT, 5, None, None))
        await store.close()


# A store that is in use is brought up to date.


STEPS = statements.migrations("schema", "smsgw_00")
SCHEMA = "smsgw_00"
WAITS = "SELECT FROM pg_locks WHERE NOT granted AND relation IS NOT NULL"


@pytest.fixture
def place() -> Iterator[postgres.Schema]:
    with postgres.database() as url:
        yield postgres.Schema(url)


@pytest.fixture
async def old(place: postgres.Schema, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Old]:
    """Two gateways with a client each, on a schema that has come to step 2."""

    async def in_part(database: Database, schema: str, steps: Any, now_ms: int) -> None:
        await connection_module.migrate(database, schema, steps[:2], now_ms)

    monkeypatch.setattr(postgres_module, "migrate", in_part)
    found = [await postgres.open_shard(place, IDENTITY, gateway=n) for n in range(2)]
    for store, client in zip(found, CLIENTS, strict=True):
        await turn(store, AddClient(client, "test", 1, 10**9))
        await turn(store, *[some(client) for _ in range(10)])
    yield found
    for store in found:
        await store.close()


def some(client: bytes) -> Admit:
    draft = Draft(15005550006, "ACME", "hello", False, 2, Lane.REGULAR, 10, 0, 0)
    return Admit(client, draft, None, RULES, 0)


def step_of(place: postgres.Schema) -> int:
    return int(rows(place, "SELECT max(number) FROM migration")[0][0])


async def brought_up(place: postgres.Schema) -> None:
    """Bring the schema up to date, as a gateway does that starts."""
    database = Database(place.url, 0, PostgresSettings())
    try:
        await connection_module.migrate(database, SCHEMA, STEPS, NOW_MS)
    finally:
        await database.close()


@pytest.mark.backends("postgres")
async def test_no_turn_is_half_way_while_a_table_is_altered(
    old: Old, place: postgres.Schema
) -> None:
    with postgres.Sql(place.url, SCHEMA) as half_way, postgres.Sql(place.url) as watch:
        half_way.execute("BEGIN")
        half_way.execute("SELECT FROM gateway WHERE number = 1 FOR NO KEY UPDATE")
        half_way.execute("SELECT FROM client FOR NO KEY UPDATE")
        bringing = asyncio.ensure_future(brought_up(place))
        while not await asyncio.to_thread(watch.execute, WAITS):
            pass
        half_way.execute("UPDATE entry SET note = 'still free'")
        half_way.execute("COMMIT")
    await bringing
    assert step_of(place) == len(STEPS)


@pytest.mark.backends("postgres")
async def test_a_schema_is_brought_up_to_date_beside_turns(
    old: Old, place: postgres.Schema
) -> None:
    bringing = asyncio.ensure_future(brought_up(place))

    async def work_meanwhile(store: PostgresShard, client: bytes) -> None:
        while not bringing.done():
            await turn(store, *[some(client) for _ in range(10)])

    await asyncio.gather(bringing, *map(work_meanwhile, old, CLIENTS))
    assert step_of(place) == len(STEPS)
    assert findings(place) == []


@pytest.mark.backends("postgres")
async def test_who_brings_a_schema_up_to_date_tries_again_after_a_deadlock(
    old: Old, place: postgres.Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [asyncpg.DeadlockDetectedError("deadlock detected")]
    steps_done = connection_module._steps_done

    async def in_the_way(*arguments: Any) -> int:
        done = await steps_done(*arguments)
        if done and failures:
            raise failures.pop()
        return done

    monkeypatch.setattr(connection_module, "_steps_done", in_the_way)
    await brought_up(place)
    assert step_of(place) == len(STEPS)


@pytest.mark.backends("postgres")
async def test_every_step_is_kept_by_itself(old: Old, place: postgres.Schema) -> None:
    with postgres.Sql(place.url, SCHEMA) as reader:
        reader.execute("BEGIN")
        # The fourth step needs to wait for nobody who reads; the fifth does.
        reader.execute("LOCK TABLE parked IN ACCESS SHARE MODE")
        bringing = asyncio.ensure_future(brought_up(place))
        while await asyncio.to_thread(step_of, place) < 4:
            pass
        assert rows(place, "SELECT count(*) FROM message") == [(20,)]
        assert not bringing.done()
        reader.execute("COMMIT")
    await bringing
    assert step_of(place) == len(STEPS)


if __name__ == "__main__":
    print(asyncio.run(recorded()))
