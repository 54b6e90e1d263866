"""What only a store in PostgreSQL has: seats and leases, doubts that end, gateways side by side."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smsgw.accounts import AddClient, Adjust
from smsgw.admission import Accepted, Admit, Draft, Replay, key_use
from smsgw.errors import InternalError, SmsgwError, StorageUnavailable, StoreError
from smsgw.fairness import Claim, Grant
from smsgw.gateway import Gateway
from smsgw.models import Lane, Message, Outcome, Rules, Status, Verdict
from smsgw.recovery import RecoverFlights, recover_flights
from smsgw.settings import PostgresSettings, StoreSettings
from smsgw.store import postgres as store_module
from smsgw.store import postgres_audit as audit_module
from smsgw.store import postgres_connection as connection_module
from smsgw.store import postgres_statements as statements_module
from smsgw.store.audit import FINDINGS_MAX
from smsgw.store.base import CommitUnknownError, ShardUnavailableError
from smsgw.store.catalog import PAUSE_ALL
from smsgw.store.directory import DataDirectory
from smsgw.store.postgres import PostgresShard
from smsgw.store.postgres_connection import Database
from smsgw.store.postgres_seat import SEATS, Seat
from smsgw.store.postgres_store import SeatLostError
from smsgw.store.postgres_turn import POSTPONED_MAX
from smsgw.store.shards import Shards
from smsgw.sweeper import CountSpan
from smsgw.turn import URGENT, Item, Turn
from smsgw.worker import Settle
from tests import postgres
from tests.conftest import OpenGateway
from tests.records import CLIENT, NOW_MS, RULES, an_account
from tests.stores import IDENTITY, assert_memory_is_file, findings, plain, rows, turn
from tests.support import (
    Scripted,
    account_of,
    add_client,
    assert_clean,
    crash,
    final_of,
    message_of,
    send,
    serve_still,
)

BACKENDS = ("postgres",)
OTHER = bytes([7]) * 16
SECRET = "geheim"


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as found:
        yield found


@pytest.fixture
def place(url: str) -> postgres.Schema:
    return postgres.Schema(url)


Open = Callable[..., Awaitable[PostgresShard]]


@pytest.fixture
async def open_one(place: postgres.Schema) -> AsyncIterator[Open]:
    """Opens shards on one schema, each as another gateway."""
    opened: list[PostgresShard] = []

    async def open_it(gateway: int | None = None, **settings: Any) -> PostgresShard:
        store = await postgres.open_shard(
            place, IDENTITY, gateway=len(opened) if gateway is None else gateway, **settings
        )
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_one: Open) -> PostgresShard:
    """A shard with one client of 1000 cents."""
    found = await open_one()
    await turn(found, AddClient(CLIENT, "test", 1, 1000))
    return found


async def one_of_two(database: Database, number: int) -> PostgresShard:
    """A shard of a database, beside another one."""
    return await PostgresShard.open(
        number,
        database,
        gateway=0,
        incarnation=next(postgres.incarnations),
        identity={**IDENTITY, "shard": number, "shards": 2},
        new=True,
        now_ms=NOW_MS,
    )


def admit(client: bytes = CLIENT, text: str = "hello", lane: Lane = Lane.REGULAR) -> Admit:
    cost, surcharge = (7, 2) if lane is Lane.EXPRESS else (5, 0)
    draft = Draft(15005550006, "ACME", text, False, 1, lane, cost, surcharge, 0)
    return Admit(client, draft, None, RULES, 0)


def claim(store: PostgresShard, parts: int = 10) -> Claim:
    return Claim([Grant(0, int(Lane.REGULAR), "mock", parts)], dict(store.waiting))


def settle(message: Message, verdict: Verdict = Verdict.ACCEPTED) -> Settle:
    return Settle(message.number, message.attempts, Outcome(verdict, "id"), RULES)


async def claimed(store: PostgresShard, count: int = 1) -> list[Message]:
    """So many messages that a gateway has claimed."""
    await turn(store, *[admit() for _ in range(count)])
    found = list((await turn(store, claim(store, count))).claims)
    assert len(found) == count
    return found


def status(place: postgres.Schema, message: Message) -> int:
    sql = "SELECT status FROM message WHERE number = ?"
    return int(rows(place, sql, message.number)[0][0])


# A turn, and what it costs.


async def test_a_turn_is_two_calls_whatever_its_size(store: PostgresShard) -> None:
    calls: list[str] = []
    watched = postgres.Unreliable(store.database)
    watched.on_call = calls.append
    await turn(store, *[admit() for _ in range(100)], Adjust(CLIENT, 5, None, None))
    load, write = calls
    assert load.startswith("BEGIN")
    assert "turn_load" in load
    assert write.endswith("; COMMIT")
    assert "turn_write" in write


async def test_a_message_under_way_is_not_read_again_unless_somebody_has_changed_it(
    store: PostgresShard, place: postgres.Schema
) -> None:
    kept, changed, gone = await claimed(store, 3)
    with contextlib.closing(plain(place)) as connection:
        connection.execute("UPDATE message SET attempts = 7 WHERE number = ?", (changed.number,))
        connection.execute("DELETE FROM message WHERE number = ?", (gone.number,))
    await turn(store, settle(kept), settle(changed), settle(gone))
    # An answer to the first attempt is none to the seventh.
    assert [status(place, one) for one in (kept, changed)] == [Status.SENT, Status.SENDING]
    assert store.kept.take([kept.number, changed.number, gone.number]).keys() == {kept.number}


async def test_nothing_is_kept_of_a_turn_that_failed(
    store: PostgresShard, place: postgres.Schema
) -> None:
    (message,) = await claimed(store)
    watched = postgres.Unreliable(store.database)
    watched.fail()
    with pytest.raises(ShardUnavailableError):
        await turn(store, settle(message))
    assert store.kept.take([message.number]) == {}
    await turn(store, settle(message))
    assert status(place, message) == Status.SENT
    assert_memory_is_file(store)


async def test_turns_keep_the_connection_they_had(store: PostgresShard) -> None:
    database, turns = store.database, store._place
    async with database.connection(turns) as ours, database.connection() as theirs:
        assert ours is not theirs
    for _ in range(3):
        async with database.connection() as other:
            assert other is theirs
        async with database.connection(turns) as one:
            assert one is ours
    # Where there is no other, it is lent, and comes back.
    async with database.connection() as _, database.connection() as borrowed:
        assert borrowed is ours
    async with database.connection() as other:
        assert other is theirs
    async with database.connection(turns) as one:
        assert one is ours
    # Who cannot wait for that goes on with another one.
    async with database.connection() as _, database.connection() as borrowed:
        assert borrowed is ours
        async with database.connection(turns) as instead:
            pass
    async with database.connection(turns) as one:
        assert one is instead


async def test_nothing_is_kept_of_before_a_connection_was_made_anew(
    store: PostgresShard,
) -> None:
    (message,) = await claimed(store)
    for connection in store.database._idle:
        connection.terminate()
    # Another server may have taken over, and have given the same transaction ids to others.
    await turn(store, Adjust(CLIENT, 1, None, None))
    assert store.kept.take([message.number]) == {}


async def test_what_belongs_to_an_account_that_is_gone_is_not_written(
    store: PostgresShard, place: postgres.Schema
) -> None:
    class Stray(Item):
        def decide(self, turn: Turn) -> None:
            turn.touch_account(an_account(number=99))
            turn.entries.append((99, 1, 2, NOW_MS, -5, 5, 5, 1, None))

    stray, request = Stray(), admit()
    result = await turn(store, stray, request)
    assert [type(error) for error in result.errors] == [InternalError, type(None)]
    assert "an account of nobody" in repr(result.errors[0].__cause__)
    assert rows(place, "SELECT 1 FROM entry WHERE client = 99") == []
    assert isinstance(request.answer, Accepted)


async def test_a_turn_that_changes_nothing_writes_nothing(
    store: PostgresShard, place: postgres.Schema
) -> None:
    before = rows(place, "SELECT xmin, serial FROM gateway")
    await turn(store, admit(client=OTHER), claim(store))
    # Its own row was locked, but not written.
    assert rows(place, "SELECT xmin, serial FROM gateway") == before


@pytest.mark.parametrize(
    "text", ["$turn$; DROP TABLE message; --", "a\0b", "\\u0000 ' \\ \" $1", "؟"]
)
async def test_any_text_is_kept_as_it_is_but_for_nul(
    store: PostgresShard, place: postgres.Schema, text: str
) -> None:
    await turn(store, admit(text=text))
    assert rows(place, "SELECT text FROM message") == [(text.replace("\0", "\ufffd"),)]
    rows_found = await store.read("messages_of_provider_id", text)
    assert rows_found == []


async def test_without_a_statement_cache_everything_works_too(open_one: Open) -> None:
    store = await open_one(statement_cache=False)
    await turn(store, AddClient(CLIENT, "test", 1, 1000))
    (message,) = await claimed(store)
    await turn(store, settle(message))
    assert (await store.audit()).findings == []


# Nobody knows whether a commit was carried out; the server does.


@pytest.mark.parametrize("after", [True, False])
async def test_a_lost_commit_is_looked_up_and_made_up_for(
    store: PostgresShard, place: postgres.Schema, after: bool
) -> None:
    postgres.Unreliable(store.database).lose(after=after)
    request = admit()
    await turn(store, request)
    assert isinstance(request.answer, Accepted)
    assert len(rows(place, "SELECT 1 FROM message")) == 1
    await turn(store, admit())
    assert findings(place) == []
    assert_memory_is_file(store)


async def test_a_doubt_lasts_until_the_server_can_be_asked(
    store: PostgresShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "DOUBT_S", 0)
    monkeypatch.setattr(store_module, "PROBE_S", 0)
    told: list[bool] = []
    write = store.database.write

    async def away(*arguments: Any, **more: Any) -> Any:
        if len(told) < 3:
            raise ShardUnavailableError("away")
        return await write(*arguments, **more)

    store.on_doubt = lambda: told.append(True) or True  # type: ignore[func-returns-value]
    monkeypatch.setattr(store.database, "write", away)
    postgres.Unreliable(store.database).lose(after=True)
    request = admit()
    await turn(store, request)
    assert isinstance(request.answer, Accepted)
    assert len(told) == 3


async def test_who_cannot_wait_for_the_server_ends(
    store: PostgresShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "DOUBT_S", 0)

    async def away(*_: Any, **__: Any) -> Any:
        raise ShardUnavailableError("away")

    store.on_doubt = lambda: False
    postgres.Unreliable(store.database).lose(after=True)
    with monkeypatch.context() as patch:
        patch.setattr(store.database, "write", away)
        with pytest.raises(CommitUnknownError):
            await turn(store, admit())


async def test_callers_are_told_of_a_doubt_and_the_turn_counts_in_the_end(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "DOUBT_S", 0)
    monkeypatch.setattr(store_module, "PROBE_S", 0)
    gateway = await gateway_of({"store": {"shards": 1}}, serve=False)
    client = await add_client(gateway)
    shard = gateway.shards.of_client(client)
    store = shard.store
    assert isinstance(store, PostgresShard)
    back = asyncio.Event()
    write = store.database.write

    async def away(sql: str, *arguments: Any, **more: Any) -> Any:
        if not back.is_set() and "serial" in sql:
            raise ShardUnavailableError("away")
        return await write(sql, *arguments, **more)

    monkeypatch.setattr(store.database, "write", away)
    postgres.Unreliable(store.database).lose(after=True)
    key = key_use("a", "messages")
    with pytest.raises(StorageUnavailable) as refused:
        await send(gateway, client, key=key)
    assert refused.value.members["outcome"] == "unknown"
    with pytest.raises(StorageUnavailable) as refused:
        await send(gateway, client)
    assert refused.value.members["outcome"] == "none"
    back.set()
    while shard.trouble:
        await store.database.fetch("SELECT 1")
    answer = await send(gateway, client, key=key)
    assert isinstance(answer, Replay)
    assert (await account_of(gateway, client)).held_cents + (
        await account_of(gateway, client)
    ).charged_cents == 5
    await assert_clean(gateway)


async def test_turns_in_doubt_take_each_other_no_connection_to_ask_with(url: str) -> None:
    database = Database(url, 0, PostgresSettings(pool_max=2))
    stores = [await one_of_two(database, number) for number in range(2)]
    watched = postgres.Unreliable(database)
    watched.lose(after=True)
    watched.lose(after=False)
    async with asyncio.timeout(30):
        await asyncio.gather(*(turn(store, AddClient(CLIENT, "x", 1, 1000)) for store in stores))
    for store in stores:
        assert await store.read("client_by_id", CLIENT)
        await store.close()
    await database.close()


async def test_nobody_waits_for_ever_for_a_connection_that_others_use(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "PLACE_S", 0)
    database = Database(url, 0, PostgresSettings(pool_max=1))
    async with database.connection():
        with pytest.raises(ShardUnavailableError, match=r"shard_urls\[0\].*: all connections"):
            await database.fetch("SELECT 1")
    assert await database.fetch("SELECT 1") == [(1,)]
    await database.close()


# What else goes on keeps neither turns nor leases waiting.


async def test_reads_that_take_long_keep_neither_turns_nor_leases_waiting(
    open_one: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_one(pool_max=1)
    await turn(store, AddClient(CLIENT, "test", 1, 1000))
    monkeypatch.setattr(connection_module, "PLACE_S", 0)
    async with contextlib.AsyncExitStack() as reads:
        for _ in range(2):
            await reads.enter_async_context(store.database.connection())
        with pytest.raises(StorageUnavailable):
            await store.read("client_by_id", CLIENT)
        await turn(store, Adjust(CLIENT, 1, None, None))
        await store.beat()
        await store.look()
    assert await store.read("client_by_id", CLIENT)


async def test_the_shards_of_a_database_are_audited_one_after_the_other(url: str) -> None:
    database = Database(url, 0, PostgresSettings())
    stores = [await one_of_two(database, number) for number in range(2)]
    steps: list[int] = []

    def step_of(store: PostgresShard) -> Callable[[str], None]:
        return lambda _: steps.append(store.number)

    await asyncio.gather(*(store.audit(step_of(store)) for store in stores))
    assert steps == sorted(steps)
    assert len(set(steps)) == 2
    for store in stores:
        await store.close()
    await database.close()


# Whatever the server's defaults are.


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_a_gateway_takes_note_of_what_is_committed_while_it_waits(
    url: str, place: postgres.Schema, isolation: str
) -> None:
    with contextlib.closing(postgres.Sql(url)) as sql:
        name = sql.execute("SELECT current_database()")[0][0]
        sql.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    store = await postgres.open_shard(place, IDENTITY)
    with postgres.Sql(url, place.name) as other, postgres.Sql(url) as seen:
        for work in (store.beat, lambda: store.is_committed(0), store.close):
            other.execute("BEGIN")
            other.execute("UPDATE gateway SET waits = waits")
            asked = asyncio.ensure_future(work())
            await waits_for(seen, "wait_event_type = 'Lock'")
            other.execute("COMMIT")
            await asked


async def waits_for(sql: postgres.Sql, event: str) -> None:
    """Return once somebody does."""
    waiting = f"SELECT FROM pg_stat_activity WHERE datname = current_database() AND {event}"
    while not await asyncio.to_thread(sql.execute, waiting):
        pass


async def test_what_others_were_in_the_way_of_is_tried_again(
    store: PostgresShard, place: postgres.Schema
) -> None:
    with contextlib.closing(plain(place)) as sql:
        sql.execute("CREATE SEQUENCE calls")
        sql.execute(
            "CREATE FUNCTION third() RETURNS bigint LANGUAGE plpgsql AS $$BEGIN"
            " IF nextval('smsgw_00.calls') % 3 <> 0 THEN RAISE EXCEPTION USING ERRCODE = '40001';"
            " END IF; RETURN currval('smsgw_00.calls'); END$$"
        )
    database = store.database
    for call, number in ((database.fetch, 3), (database.write, 6), (database.look, 9)):
        assert await call("SELECT smsgw_00.third()") == [(number,)]


async def test_nothing_that_a_server_says_ends_what_looks_after_it(store: PostgresShard) -> None:
    wrong = "SELECT 1 / 0 + $1::integer"
    for call in (store.database.look, store.database.beat):
        with pytest.raises(ShardUnavailableError, match=r"shard_urls\[0\].*division by zero"):
            await call(wrong, 1)


# What is refused at the start.


def settings(*urls: str, shards: int | None = 2) -> StoreSettings:
    more = {} if shards is None else {"shards": shards}
    return StoreSettings(shard_urls=list(urls), **more)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def opened(
    path: Path, *urls: str, shards: int | None = 2, **more: Any
) -> AsyncIterator[Shards]:
    directory = DataDirectory.open(path, "test", wait_s=0)
    try:
        found = await Shards.open(
            directory, settings(*urls, shards=shards), NOW_MS, PostgresSettings(**more)
        )
        try:
            yield found
        finally:
            await found.close()
    finally:
        directory.close()


async def refuses(path: Path, *urls: str, says: str, shards: int = 2) -> None:
    with pytest.raises(StoreError, match=says) as refused:
        async with opened(path, *urls, shards=shards):
            pass
    assert SECRET not in f"{refused.value!r} {refused.value.__cause__!r} {refused.value}"


async def test_a_store_opens_again_on_its_schemas(url: str, tmp_path: Path) -> None:
    async with opened(tmp_path, url) as shards:
        first = shards.catalog
        assert first.shards == {0: "postgresql/0/smsgw_00", 1: "postgresql/0/smsgw_01"}
    async with opened(tmp_path, url) as shards:
        assert shards.catalog.store_id == first.store_id
        assert shards.catalog.shard_of_slot == first.shard_of_slot
        assert shards.catalog.made


async def test_shards_are_dealt_over_several_databases(url: str, tmp_path: Path) -> None:
    with postgres.database() as second:
        async with opened(tmp_path, url, second, shards=4) as shards:
            assert list(shards.catalog.shards.values()) == [
                f"postgresql/{n % 2}/smsgw_0{n}" for n in range(4)
            ]
        assert rows(postgres.Schema(second, "smsgw_03"), "SELECT count(*) FROM client") == [(0,)]
        await refuses(tmp_path, url, says=r"shard_urls\[1\], which is not set", shards=4)


async def test_there_is_a_shard_for_each_database_unless_the_settings_say_more(
    url: str, tmp_path: Path
) -> None:
    with postgres.database() as second:
        async with opened(tmp_path, url, second, shards=None) as shards:
            assert list(shards.catalog.shards.values()) == [
                "postgresql/0/smsgw_00",
                "postgresql/1/smsgw_01",
            ]


async def test_settings_that_name_no_count_take_the_store_as_it_is(
    url: str, tmp_path: Path
) -> None:
    async with opened(tmp_path, url, shards=3):
        pass
    async with opened(tmp_path, url, shards=None) as shards:
        assert len(shards.catalog.shards) == 3


async def test_a_server_that_may_lose_commits_is_refused(url: str, tmp_path: Path) -> None:
    with contextlib.closing(postgres.Sql(url)) as sql:
        name = sql.execute("SELECT current_database()")[0][0]
        sql.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    await refuses(tmp_path, url, says="synchronous_commit = off")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (f"postgresql://me:{SECRET}@127.0.0.1:1/db", "127.0.0.1:1/db"),
        (f"postgresql://me:{SECRET}@127.0.0.1:port/db", "not understood"),
        (f"postgresql://me:{SECRET}@127.0.0.1/db?sslmode={SECRET}", "not understood"),
        (f"mysql://me:{SECRET}@127.0.0.1/db", "is no URL of the form"),
        (SECRET, "is no URL of the form"),
    ],
)
async def test_a_url_that_leads_nowhere_is_named_without_its_password(
    tmp_path: Path, bad: str, says: str
) -> None:
    await refuses(tmp_path, bad, says=says)


async def test_a_missing_an_extra_and_a_foreign_schema_are_named(url: str, tmp_path: Path) -> None:
    async with opened(tmp_path, url):
        pass
    with contextlib.closing(postgres.Sql(url)) as sql:
        sql.execute("ALTER SCHEMA smsgw_01 RENAME TO smsgw_09")
        await refuses(tmp_path, url, says="smsgw_09 does not belong to this store")
        sql.execute("DROP SCHEMA smsgw_09 CASCADE")
        await refuses(tmp_path, url, says="smsgw_01 is missing")
        sql.execute("ALTER SCHEMA smsgw_00 RENAME TO smsgw_01")
        await refuses(tmp_path, url, says="smsgw_00 is missing")
        sql.execute("CREATE SCHEMA smsgw_00")
        await refuses(tmp_path, url, says="smsgw_00 does not belong to this store")


async def test_a_changed_count_and_a_directory_of_another_store_are_refused(
    url: str, tmp_path: Path
) -> None:
    async with opened(tmp_path, url):
        pass
    await refuses(tmp_path, url, says="the settings say 3 shards", shards=3)
    with postgres.database() as other:
        await refuses(tmp_path, other, says="is of another store")
    with pytest.raises(StoreError, match="is of a store in PostgreSQL"):
        async with opened(tmp_path):
            pass
    files = tmp_path / "files"
    async with opened(files):
        pass
    await refuses(files, url, says="holds a store in files")


async def test_a_gateway_starts_while_a_dump_is_under_way(
    url: str, place: postgres.Schema, tmp_path: Path
) -> None:
    async with opened(tmp_path, url):
        pass
    with postgres.Sql(url) as dump:
        dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for (table,) in dump.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname LIKE 'smsgw%'"
        ):
            dump.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
        async with asyncio.timeout(10), opened(tmp_path, url):
            pass


async def test_who_cannot_bring_a_schema_up_to_date_for_others_says_so(
    url: str, place: postgres.Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MIGRATE_S", 0)
    monkeypatch.setattr(connection_module, "_LOCK_WAIT_MS", 1)
    async with opened(tmp_path, url):
        pass
    with contextlib.closing(plain(place)) as other:
        other.execute("DELETE FROM migration WHERE number > 1")
        other.execute("BEGIN")
        other.execute("LOCK TABLE migration IN ROW EXCLUSIVE MODE")
        await refuses(tmp_path, url, says="schema smsgw_00: canceling .* due to lock timeout")


async def test_a_newer_schema_is_refused(url: str, tmp_path: Path) -> None:
    async with opened(tmp_path, url):
        pass
    for schema in ("smsgw_catalog", "smsgw_01"):
        rows(postgres.Schema(url, schema), "INSERT INTO migration VALUES (99, 'tomorrow', 0)")
        await refuses(tmp_path, url, says=f"{schema}: the schema is at step 99")
        rows(postgres.Schema(url, schema), "DELETE FROM migration WHERE number = 99")


# The audit also proves what stands in tables here.


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("flows", "UPDATE flow SET waiting = waiting + 1"),
        ("flows", "DELETE FROM flow"),
        ("backlog", "UPDATE backlog SET messages = messages + 1"),
        ("backlog", "UPDATE backlog SET parts = parts - 1"),
        ("backlog", "UPDATE gateway SET waits = waits + 1"),
        ("flights", "DELETE FROM flight"),
        ("flights", "UPDATE flight SET owner = NULL"),
        ("flights", "INSERT INTO flight VALUES (4711, 1, 1)"),
    ],
)
async def test_a_wrong_count_is_found(
    store: PostgresShard, place: postgres.Schema, check: str, change: str
) -> None:
    await claimed(store)
    await turn(store, admit())
    assert findings(place) == []
    rows(place, change)
    assert {name for name, _ in findings(place)} == {check}


async def test_no_more_findings_come_from_the_server_than_are_told(
    store: PostgresShard, place: postgres.Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(place, "INSERT INTO queue SELECT 1, 0, n, n, 1, 1 FROM generate_series(1, 300) AS n")
    came: list[int] = []

    async def watched(*arguments: Any, **more: Any) -> list[tuple[Any, ...]]:
        found = await connection_module.fetch(*arguments, **more)
        came.append(len(found))
        return found

    monkeypatch.setattr(audit_module, "fetch", watched)
    told = (await store.audit()).findings
    assert len([one for one in told if one.check == "places"]) == FINDINGS_MAX
    assert max(came) == FINDINGS_MAX


async def test_no_check_of_an_audit_looks_through_a_list_for_each_row(
    store: PostgresShard, place: postgres.Schema
) -> None:
    checks = statements_module.audit_statements(store.schema, FINDINGS_MAX)
    with postgres.Sql(place.url) as sql:
        for name, check in checks.items():
            if not name.startswith("proof_"):
                plan = sql.execute(f"EXPLAIN {check}")
                assert not [line for (line,) in plan if "SubPlan" in line], name


# Seats.


async def test_a_gateway_that_starts_again_takes_its_own_seat(url: str, tmp_path: Path) -> None:
    async with opened(tmp_path / "a", url):
        pass
    shutil.copy(tmp_path / "a" / "otp.key", tmp_path / "otp.key")
    database = Database(url, 0, PostgresSettings())
    key = bytes(32)
    seats = []
    for name in ("b", "c", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        seats.append(await Seat.take(database, tmp_path / name, key))
    b, c, again = seats
    assert (b.number, c.number) == (1, 2)
    assert again.number == b.number
    assert again.incarnation > c.incarnation > b.incarnation
    assert not await b.beat(), "its seat was taken"
    assert await again.beat()
    shutil.copytree(tmp_path / "b", tmp_path / "copy")
    copy = await Seat.take(database, tmp_path / "copy", key)
    assert copy.number not in (0, b.number, c.number), "a copy is another gateway"
    await database.close()


async def test_the_seat_of_a_dead_gateway_is_free_and_those_of_others_are_not(
    url: str, tmp_path: Path
) -> None:
    async with opened(tmp_path / "a", url):
        pass
    database = Database(url, 0, PostgresSettings())
    seats = []
    for number in range(SEATS):
        (tmp_path / f"{number}").mkdir()
        seats.append(await Seat.take(database, tmp_path / f"{number}", b"key"))
    assert sorted(seat.number for seat in seats) == list(range(SEATS))
    (tmp_path / "late").mkdir()
    with pytest.raises(StoreError, match="all 16 seats are taken"):
        await Seat.take(database, tmp_path / "late", b"key")
    await seats[5].leave()
    late = await Seat.take(database, tmp_path / "late", b"key")
    assert late.number == seats[5].number
    await database.close()


@pytest.mark.parametrize(("code", "tries"), [("40001", connection_module.TRIES), ("22012", 1)])
async def test_what_cannot_be_told_leaves_a_connection_in_order(
    url: str, code: str, tries: int
) -> None:
    database = Database(url, 0, PostgresSettings())
    trips: list[int] = []
    database.on_trips = trips.append
    wrong = f"DO $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{code}'; END $$"
    await database.tell("BEGIN; CREATE TABLE told (); COMMIT")
    with pytest.raises(ShardUnavailableError, match="not now"):
        await database.tell(f"BEGIN; DROP TABLE told; {wrong}; COMMIT")
    assert len(trips) == 1 + tries
    assert await database.fetch("SELECT * FROM told") == []
    assert database.connections_made == 1
    await database.close()


async def test_a_connection_that_is_in_use_while_its_database_is_closed_is_closed_after_use(
    url: str,
) -> None:
    database = Database(url, 0, PostgresSettings())
    async with database.connection() as idle, database.connection() as busy:
        pass
    async with database.connection() as busy:
        await database.close()
        assert await busy.fetchval("SELECT 1") == 1, "its work ends as it would have"
    assert busy.is_closed()
    assert idle.is_closed()


async def test_gateways_with_two_keys_are_refused_side_by_side(url: str, tmp_path: Path) -> None:
    async with opened(tmp_path / "a", url):
        with pytest.raises(StoreError, match=r"otp\.key is not the key of the gateways"):
            async with opened(tmp_path / "b", url):
                pass
    async with opened(tmp_path / "b", url):
        pass


# Several gateways on one schema.


async def test_what_one_gateway_has_done_the_other_knows(
    store: PostgresShard, open_one: Open, place: postgres.Schema
) -> None:
    other = await open_one()
    key = key_use("a", "messages")
    first, again, spend = admit(), admit(), Adjust(CLIENT, -990, None, None)
    first.key = again.key = key
    await turn(store, first)
    await turn(other, again, spend, admit(), admit())
    assert isinstance(again.answer, Replay)
    assert spend.answer.credits_cents == 0
    too_much = admit()
    await turn(store, too_much)
    assert isinstance(too_much.refusal, SmsgwError)
    numbers = [number for (number,) in rows(place, "SELECT number FROM message ORDER BY number")]
    assert {(number >> 10) & 15 for number in numbers} == {0, 1}
    assert findings(place) == []


async def test_two_gateways_that_create_clients_at_once_give_two_numbers(
    store: PostgresShard, open_one: Open, place: postgres.Schema
) -> None:
    other = await open_one()
    requests = [AddClient(bytes([n]) * 16, "new", 1, 10) for n in range(20, 40)]
    same = [AddClient(bytes([50]) * 16, "same") for _ in range(2)]
    await asyncio.gather(
        *(turn(store, *requests[n : n + 2], same[0]) for n in range(0, 10, 2)),
        *(turn(other, *requests[n : n + 2], same[1]) for n in range(10, 20, 2)),
    )
    assert len({request.answer[0].number for request in requests}) == 20
    assert same[0].answer[0].number == same[1].answer[0].number
    assert findings(place) == []


async def test_gateways_in_each_others_way_lose_and_double_nothing(
    store: PostgresShard, open_one: Open, place: postgres.Schema
) -> None:
    clients = [bytes([n]) * 16 for n in range(20, 26)]
    await turn(store, *[AddClient(client, "test", 1, 500) for client in clients])
    stores = [store, await open_one(), await open_one()]
    flown: list[tuple[int, int]] = []

    async def work(gateway: PostgresShard, seed: int) -> None:
        for round_ in range(12):
            some = [admit(clients[(seed + n * (round_ + 1)) % 6]) for n in range(5)]
            await turn(gateway, *some, Adjust(clients[seed % 6], 1, None, None))
            await gateway.look()
            result = await turn(gateway, claim(gateway, 6))
            flown.extend((m.number, m.attempts) for m in result.claims)
            await turn(gateway, *[settle(message) for message in result.claims])

    await asyncio.gather(*(work(gateway, seed) for seed, gateway in enumerate(stores)))
    assert len(flown) == len(set(flown)), "claimed once each"
    # The others may have queued something since its own last turn.
    await store.look()
    while found := (await turn(store, claim(store, 100))).claims:
        flown.extend((m.number, m.attempts) for m in found)
        await turn(store, *[settle(message) for message in found])
    assert len(flown) == len(set(flown)) == 3 * 12 * 5
    assert rows(place, "SELECT DISTINCT status FROM message") == [(int(Status.SENT),)]
    assert findings(place) == []


async def test_only_who_sends_a_message_settles_it(
    store: PostgresShard, open_one: Open, place: postgres.Schema
) -> None:
    other = await open_one()
    (message,) = await claimed(store)
    await turn(other, settle(message, Verdict.REFUSED))
    assert status(place, message) == Status.SENDING
    assert rows(place, "SELECT kind FROM event") == [("late_answer",)]
    await turn(store, settle(message))
    assert status(place, message) == Status.SENT


async def leave(store: PostgresShard) -> None:
    """End a gateway, as one that is stopped ends itself."""
    await store.database.fetch(store.own["own_leave"], store.gateway, store.incarnation)


async def test_what_a_dead_gateway_was_sending_is_recovered_once(
    store: PostgresShard, open_one: Open, place: postgres.Schema
) -> None:
    others = [await open_one(), await open_one()]
    lost = await claimed(store, 3)
    for other in others:
        await other.look()
        assert not other.orphans
        recover = RecoverFlights(RULES)
        await turn(other, recover)
        assert recover.answer == 0, "its owner is alive"
    await leave(store)
    await asyncio.gather(*(turn(other, RecoverFlights(RULES)) for other in others))
    assert {status(place, message) for message in lost} == {int(Status.UNCERTAIN)}
    assert rows(place, "SELECT kind, count(*) FROM event GROUP BY kind") == [("uncertain", 3)]
    # It was only thought to be dead: what its operator says is still evidence.
    await turn(store, settle(lost[0]))
    assert status(place, lost[0]) == Status.SENT
    assert findings(place) == []


async def test_a_message_that_was_recovered_and_claimed_again_is_not_recovered_again(
    store: PostgresShard, open_one: Open, place: postgres.Schema
) -> None:
    rules = Rules(on_uncertain="resend")
    second, third = await open_one(), await open_one()
    (message,) = await claimed(store)
    await leave(store)
    late = RecoverFlights(rules)

    class Overtaken(RecoverFlights):
        """Finds what was in flight, then waits while another gateway is faster."""

        __slots__ = ()

        def decide(self, turn: Turn) -> None:
            number = message.number
            turn.asked["message_in_flight", (200,)] = [(number,)]
            super().decide(turn)

    await turn(second, late)
    assert status(place, message) == Status.FAILED_TEMP
    rows(place, "UPDATE message SET status = 2, attempts = 2, due_at_ms = NULL")
    rows(place, "INSERT INTO flight VALUES (?, ?, 2)", message.number, second.incarnation)

    class Wanting(Overtaken):
        __slots__ = ()

        def needs(self, wants: Any) -> None:
            super().needs(wants)
            wants.messages.add(message.number)

    await turn(third, Wanting(rules))
    assert status(place, message) == Status.SENDING
    await turn(store, settle(message))
    assert status(place, message) == Status.SENDING, "attempt 1 is over"


async def test_a_gateway_whose_place_was_taken_ends(store: PostgresShard, open_one: Open) -> None:
    await open_one(gateway=0)
    with pytest.raises(CommitUnknownError, match="taken the place of gateway 0"):
        await turn(store, admit())


async def test_who_stands_still_while_it_is_answered_is_cut_off_once_its_lease_is_over(
    open_one: Open, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements_module, "_LOCK_WAIT_MS", 20)
    frozen, other = [await open_one(lease_s=0.5) for _ in range(2)]
    await turn(other, AddClient(CLIENT, "test", 1, 1000))
    # More than there is room for on the way.
    await turn(other, admit(text="x" * 16_000_000))
    (message,) = (await turn(other, claim(other))).claims
    with receiving_nothing(frozen):
        stuck = asyncio.ensure_future(turn(frozen, settle(message)))
        with postgres.Sql(url) as sql:
            await waits_for(sql, "wait_event = 'ClientWrite'")
        async with asyncio.timeout(20):
            await until_available(other, Adjust(CLIENT, 1, None, None))
        again = await open_one(0, lease_s=0.5)
        await turn(again, Adjust(CLIENT, 1, None, None))
    with pytest.raises(CommitUnknownError, match="another process"):
        await stuck


@contextlib.contextmanager
def receiving_nothing(store: PostgresShard) -> Iterator[None]:
    """The only connection of a shard that does nothing is not read from."""
    (connection,) = store.database._idle
    connection._transport.pause_reading()
    try:
        yield
    finally:
        connection._transport.resume_reading()


async def until_available(store: PostgresShard, item: Item) -> None:
    """A turn, as often as it takes until there is nothing in its way."""
    done = False
    while not done:
        with contextlib.suppress(ShardUnavailableError):
            await turn(store, item)
            done = True


async def test_two_gateways_that_sweep_count_everything_once(
    store: PostgresShard, open_one: Open, place: postgres.Schema
) -> None:
    other = await open_one()
    await turn(store, *[admit() for _ in range(5)])
    await turn(other, *[admit() for _ in range(5)])
    to = (NOW_MS + 60_000 - 1_735_689_600_000) << 22
    walks = [CountSpan(0, to, RULES), CountSpan(0, to, RULES)]
    await asyncio.gather(turn(store, walks[0]), turn(other, walks[1]))
    assert rows(place, "SELECT sum(messages)::integer FROM total") == [(10,)]
    assert {walk.answer for walk in walks} == {(to, False), (to, True)}
    # What is accepted afterwards is numbered above the mark, whatever its gateway's clock says.
    late = admit()
    await turn(other, late)
    assert late.answer.message.number > to
    assert findings(place) == []


async def test_a_turn_waits_for_a_client_that_is_locked_and_sees_what_was_done(
    store: PostgresShard, open_one: Open, place: postgres.Schema
) -> None:
    other = await open_one()
    with contextlib.closing(postgres.Sql(place.url, place.name)) as sql:
        sql.execute("BEGIN")
        sql.execute("SELECT 1 FROM client FOR UPDATE")
        spending = asyncio.create_task(turn(other, Adjust(CLIENT, -600, None, None)))
        waiting = asyncio.create_task(turn(store, Adjust(CLIENT, -600, None, None)))
        await store.look()
        sql.execute("COMMIT")
    await asyncio.gather(spending, waiting)
    assert rows(place, "SELECT credits_cents FROM client") == [(400,)]


async def test_claims_pass_over_clients_that_are_locked(
    store: PostgresShard, place: postgres.Schema
) -> None:
    await turn(store, AddClient(OTHER, "other", 1, 100))
    await turn(store, admit(), admit(OTHER))
    with contextlib.closing(postgres.Sql(place.url, place.name)) as sql:
        sql.execute("BEGIN")
        sql.execute("SELECT 1 FROM client WHERE number = 1 FOR UPDATE")
        (found,) = (await turn(store, claim(store))).claims
        sql.execute("COMMIT")
    assert found.client == 2
    assert len((await turn(store, claim(store))).claims) == 1


async def test_a_turn_leaves_out_whom_another_gateway_is_at_work_for_but_not_for_ever(
    store: PostgresShard, place: postgres.Schema
) -> None:
    await turn(store, AddClient(OTHER, "other", 1, 100))
    (message,) = await claimed(store)
    mine, answer = admit(), settle(message)
    with contextlib.closing(postgres.Sql(place.url, place.name)) as sql:
        sql.execute("BEGIN")
        sql.execute("SELECT 1 FROM client WHERE number = 1 FOR UPDATE")
        for _ in range(POSTPONED_MAX):
            others = admit(OTHER)
            result = await store.turn([mine, answer, others], NOW_MS, {})
            assert result.postponed == [mine, answer]
            assert isinstance(others.answer, Accepted)
        assert mine.answer is None
        assert (len(rows(place, "SELECT 1 FROM message")), status(place, message)) == (4, 2)
        waiting = asyncio.create_task(store.turn([mine, answer, admit(OTHER)], NOW_MS, {}))
        await store.look()
        assert not waiting.done()
        sql.execute("COMMIT")
    assert not (await waiting).postponed
    assert isinstance(mine.answer, Accepted)
    assert status(place, message) == Status.SENT
    assert_memory_is_file(store)
    assert findings(place) == []


class Code(Adjust):
    """Something as urgent as a one-time code."""

    __slots__ = ()
    priority = URGENT

    def __init__(self, client: bytes) -> None:
        super().__init__(client, -1, None, None)


async def test_a_code_waits_for_its_own_client_and_for_no_other(
    store: PostgresShard, place: postgres.Schema
) -> None:
    await turn(store, AddClient(OTHER, "other", 1, 100))
    free, busy = Code(OTHER), admit()
    with contextlib.closing(postgres.Sql(place.url, place.name)) as sql:
        sql.execute("BEGIN")
        sql.execute("SELECT 1 FROM client WHERE number = 1 FOR UPDATE")
        assert (await store.turn([free, busy], NOW_MS, {})).postponed == [busy]
        sql.execute("COMMIT")
    assert free.answer is not None
    code, beside = Code(CLIENT), admit(OTHER)
    with contextlib.closing(postgres.Sql(place.url, place.name)) as sql:
        sql.execute("BEGIN")
        sql.execute("SELECT 1 FROM client WHERE number = 1 FOR UPDATE")
        waiting = asyncio.create_task(store.turn([code, beside], NOW_MS, {}))
        await store.look()
        assert not waiting.done()
        sql.execute("COMMIT")
    assert not (await waiting).postponed


# Whole gateways, side by side.


async def side_by_side(
    gateway_of: OpenGateway, tmp_path: Path, count: int = 2, **overrides: Any
) -> list[Gateway]:
    """Gateways on one store, each with a data directory and an operator of its own."""
    given = {"server": {"shutdown_s": 0.02}, "postgres": {"poll_ms": 5}, **overrides}
    found: list[Gateway] = []
    for number in range(count):
        data = tmp_path / f"data{number}"
        if found:
            data.mkdir()
            shutil.copy(tmp_path / "data0" / "otp.key", data / "otp.key")
        gateway = await gateway_of(given, serve=False, data=data)
        gateway.fleet.providers = {"mock": Scripted()}
        await serve_still(gateway)
        found.append(gateway)
    return found


def operator_of(gateway: Gateway) -> Scripted:
    found = gateway.providers["mock"]
    assert isinstance(found, Scripted)
    return found


async def test_gateways_share_clients_credit_and_messages(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path)
    client = await add_client(first, 20)
    for gateway in (first, second, first, second):
        await send(gateway, client)
    for gateway in (first, second):
        with pytest.raises(SmsgwError):
            await send(gateway, client)
    assert (await account_of(second, client)).held_cents == 20
    await assert_clean(second)


async def test_what_a_turn_has_left_out_is_decided_by_the_next(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    (gateway,) = await side_by_side(gateway_of, tmp_path, 1)
    busy = free = await add_client(gateway)
    shard = gateway.shards.of_client(busy)
    while free == busy or gateway.shards.of_client(free) is not shard:
        free = await add_client(gateway)
    assert isinstance(shard.store, PostgresShard)
    url, schema = gateway.settings.store.shard_urls[0].get_secret_value(), shard.store.schema
    with contextlib.closing(postgres.Sql(url, schema)) as sql:
        sql.execute("BEGIN")
        sql.execute("SELECT 1 FROM client WHERE id = ? FOR UPDATE", (busy,))
        both = [asyncio.create_task(send(gateway, client)) for client in (busy, free)]
        assert isinstance(await both[1], Accepted)
        assert not both[0].done()
        sql.execute("COMMIT")
    assert isinstance(await both[0], Accepted)
    assert shard._room.count == 0
    await assert_clean(gateway)


async def test_a_receipt_that_comes_to_another_gateway_ends_the_message(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path)
    client = await add_client(first)
    second.allotter.paused = True
    answer = await send(first, client)
    assert isinstance(answer, Accepted)
    operator = operator_of(first)
    operator.accept(await operator.next(), "id-1")
    waiting = asyncio.create_task(final_of(first, answer.message))
    await second.receipts.take("mock", "id-1", "DELIVRD", None)
    assert (await waiting).status == Status.DELIVERED
    await assert_clean(first)


async def test_a_pause_reaches_every_gateway_and_the_count_of_them_too(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path)
    server = first.shards.server
    assert server is not None
    counts: asyncio.Queue[int] = asyncio.Queue()
    server.on_gateways = counts.put_nowait
    if server.gateways_alive == 1:
        assert await counts.get() == 2
    told = asyncio.Event()
    assert second.shards.server is not None
    take_pauses = second.shards.server.on_pauses

    def tell() -> None:
        take_pauses()
        told.set()

    second.shards.server.on_pauses = tell
    await first.pause(PAUSE_ALL, paused=True)
    await told.wait()
    assert second.allotter.paused
    await crash(second)
    assert await counts.get() == 1


async def test_routes_that_cannot_be_numbered_are_told_as_a_matter_of_the_storage(
    gateway_of: OpenGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gateway,) = await side_by_side(gateway_of, tmp_path, count=1)
    server = gateway.shards.server
    assert server is not None

    @contextlib.asynccontextmanager
    async def away(*_: Any) -> AsyncIterator[None]:
        raise ShardUnavailableError("away")
        yield

    with monkeypatch.context() as broken:
        broken.setattr(server.catalog.database, "connection", away)
        with pytest.raises(StorageUnavailable) as told:
            await server.catalog.routes([("new",)])
    assert told.value.members == {"outcome": "none"}
    assert list((await server.catalog.routes([("new",)])).values()) == [("new",)]


async def test_the_queues_come_as_far_on_every_gateway(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path)
    key = (0, int(Lane.REGULAR))
    first.allotter.virtual[key] = 4711
    while second.allotter.virtual.get(key) != 4711:
        await second.shards.catalog.changes("test", "1")
    assert first.allotter.virtual[key] == 4711


async def test_what_a_crashed_gateway_was_sending_is_decided_by_the_other(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path, delivery={"on_uncertain": "fail"})
    client = await add_client(first)
    second.allotter.paused = True
    answer = await send(first, client)
    assert isinstance(answer, Accepted)
    await operator_of(first).next()
    await crash(first)
    shard = second.shards.of_client(client)
    while not await recover_flights(shard, second.rules):
        await shard.store.read("timer_next")
    message = await message_of(second, answer.message)
    assert (message.status, message.held_cents) == (Status.UNKNOWN, 0)
    await assert_clean(second)


async def test_a_gateway_whose_seat_is_taken_ends(gateway_of: OpenGateway, tmp_path: Path) -> None:
    (gateway,) = await side_by_side(
        gateway_of, tmp_path, count=1, postgres={"lease_s": 0.3, "poll_ms": 5}
    )
    server = gateway.shards.server
    assert server is not None
    await server.catalog.database.fetch(
        "UPDATE smsgw_catalog.gateway SET incarnation = incarnation + 1"
    )
    with pytest.raises(ExceptionGroup) as ended:
        await gateway._loops  # type: ignore[misc]
    assert ended.group_contains(SeatLostError)
