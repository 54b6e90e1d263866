"""Who is no more has no say: incarnations are given once, and moves shut everybody out."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from smsgw.accounts import AddClient
from smsgw.errors import StoreError
from smsgw.ids import slot_of
from smsgw.models import Status
from smsgw.recovery import RecoverFlights
from smsgw.settings import PostgresSettings
from smsgw.store import postgres_statements as statements_module
from smsgw.store.base import CommitUnknownError
from smsgw.store.directory import is_store
from smsgw.store.places_postgres import Server
from smsgw.store.postgres import PostgresShard
from smsgw.store.postgres_connection import Database
from smsgw.store.postgres_seat import Seat
from smsgw.store.postgres_store import SeatLostError
from tests import postgres
from tests.conftest import OpenGateway
from tests.records import CLIENT, NOW_MS, RULES
from tests.stores import IDENTITY, rows, turn
from tests.support import DELIVERED, DEMO, Served, smsgw
from tests.test_kill import journal_of
from tests.test_postgres import claimed, opened, side_by_side, status

BACKENDS = ("postgres",)
CATALOG = "smsgw_catalog"
OVER = "UPDATE gateway SET lease_until = clock_timestamp()"
ALIVE = "SELECT bool_or(lease_until > clock_timestamp()) FROM gateway"


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as found:
        yield found


@pytest.fixture
def catalog(url: str) -> postgres.Schema:
    return postgres.Schema(url, CATALOG)


# Incarnations.


async def test_an_incarnation_is_above_all_that_a_shard_has_seen_whatever_the_catalog_says(
    url: str, tmp_path: Path, catalog: postgres.Schema
) -> None:
    async with opened(tmp_path, url):
        # The catalog is of an earlier moment, and so is the clock.
        last = 1 << 60
        rows(postgres.Schema(url, "smsgw_01"), "UPDATE gateway SET incarnation = ?", last)
    async with opened(tmp_path, url):
        ((incarnation,),) = rows(catalog, "SELECT incarnation FROM gateway")
        assert incarnation > last
    async with opened(tmp_path, url):
        ((again,),) = rows(catalog, "SELECT incarnation FROM gateway")
        assert again > incarnation


async def test_what_is_in_flight_under_a_number_that_is_given_anew_is_nobodys(url: str) -> None:
    place = postgres.Schema(url)
    database = Database(url, 0, PostgresSettings())

    async def enter(gateway: int, incarnation: int) -> PostgresShard:
        return await PostgresShard.open(
            0,
            database,
            gateway=gateway,
            incarnation=incarnation,
            identity=IDENTITY,
            new=True,
            now_ms=NOW_MS,
        )

    first = await enter(0, 3)
    await turn(first, AddClient(CLIENT, "test", 1, 1000))
    (message,) = await claimed(first)
    await first.close()
    second = await enter(1, 3)
    assert second.orphans
    await turn(second, RecoverFlights(RULES))
    assert status(place, message) == Status.UNCERTAIN
    await database.close()


# Moves.


@pytest.fixture
async def server(url: str) -> AsyncIterator[Server]:
    """The store, as whoever moves it sees it."""
    found = Server([url], PostgresSettings())
    yield found
    await found.close()


def all_over(url: str) -> None:
    """End all leases, as time would."""
    for name in (CATALOG, "smsgw_00", "smsgw_01"):
        rows(postgres.Schema(url, name), OVER)


async def test_a_move_shuts_out_whoever_only_seemed_to_be_dead(url: str, tmp_path: Path) -> None:
    server = Server([url], PostgresSettings())
    async with opened(tmp_path, url) as shards:
        store = shards.stores[1]
        assert isinstance(store, PostgresShard)
        await server.chart()
        all_over(url)
        await server.begin_moving("somebody", "somebody out")
        with pytest.raises(CommitUnknownError, match="taken the place of gateway 0"):
            await turn(store, AddClient(CLIENT, "test", 1, 1000))
        assert not await store.beat()
        assert shards.server is not None
        assert shards.server._seat is not None
        assert not await shards.server._seat.beat()
    await server.close()


async def test_a_move_waits_for_a_gateway_that_is_alive_in_one_shard_only(
    url: str, tmp_path: Path, server: Server, catalog: postgres.Schema
) -> None:
    async with opened(tmp_path, url):
        await server.chart()
        rows(catalog, OVER)
        rows(postgres.Schema(url, "smsgw_00"), OVER)
        before = rows(catalog, "SELECT * FROM gateway")
        with pytest.raises(StoreError, match="1 other gateways use this store"):
            await server.begin_moving("somebody", "somebody out")
        assert rows(catalog, "SELECT * FROM gateway") == before
        assert rows(catalog, "SELECT 1 FROM meta WHERE key = 'moving'") == []
        place = postgres.Schema(url, "smsgw_00")
        assert rows(place, "SELECT number FROM gateway") == [(0,)]


async def test_a_move_cuts_off_who_stands_still_in_a_turn_once_its_lease_is_over(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements_module, "_LOCK_WAIT_MS", 20)
    async with opened(tmp_path, url):
        pass
    server = Server([url], PostgresSettings(lease_s=1.0))
    await server.chart()
    all_over(url)
    with postgres.Sql(url, "smsgw_01") as frozen:
        frozen.execute("BEGIN")
        frozen.execute("SELECT FROM gateway FOR NO KEY UPDATE")
        async with asyncio.timeout(20):
            with pytest.raises(StoreError, match="gateways use this store"):
                await server.begin_moving("somebody", "somebody out")
            moves = False
            while not moves:
                with contextlib.suppress(StoreError):
                    await server.begin_moving("somebody", "somebody out")
                    moves = True
    await server.close()


async def test_one_directory_moves_a_store_at_a_time(
    url: str, tmp_path: Path, server: Server
) -> None:
    async with opened(tmp_path, url):
        pass
    await server.chart()
    await server.begin_moving("one", "one out")
    await server.begin_moving("one", "one out")
    with pytest.raises(StoreError, match="another data directory moves this store"):
        await server.begin_moving("two", "two out")
    await server.begin_moving("two", "two out", instead_of="one out")


async def test_who_stood_still_while_it_started_does_not_get_in_after_a_move(
    url: str, tmp_path: Path, server: Server
) -> None:
    async with opened(tmp_path, url):
        pass
    chart = await server.chart()
    assert chart is not None
    database = Database(url, 0, PostgresSettings())
    (tmp_path / "slow").mkdir()
    seat = await Seat.take(database, tmp_path / "slow", bytes(32), above=0)
    all_over(url)
    await server.begin_moving("somebody", "somebody slots")
    await server.forget("moving")
    with pytest.raises(StoreError, match="another process is gateway 1"):
        await PostgresShard.open(
            0,
            database,
            gateway=seat.number,
            incarnation=seat.incarnation,
            identity=chart.identity(0),
            new=False,
            now_ms=NOW_MS,
        )
    await database.close()


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO meta VALUES ('moving', 'somebody slots')",
        "UPDATE meta SET value = '2' WHERE key = 'epoch'",
    ],
    ids=["moving", "moved"],
)
async def test_a_gateway_whose_store_moves_ends(
    gateway_of: OpenGateway, tmp_path: Path, change: str
) -> None:
    (gateway,) = await side_by_side(gateway_of, tmp_path, count=1)
    server = gateway.shards.server
    assert server is not None
    rows(postgres.Schema(server.databases[0]._url, CATALOG), change)
    with pytest.raises(ExceptionGroup) as ended:
        await gateway._loops  # type: ignore[misc]
    assert ended.group_contains(SeatLostError)


async def test_a_gateway_that_is_shut_out_of_a_shard_ends(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    short = {"lease_s": 0.3, "poll_ms": 5}
    (gateway,) = await side_by_side(gateway_of, tmp_path, count=1, postgres=short)
    server = gateway.shards.server
    assert server is not None
    place = postgres.Schema(server.databases[0]._url, "smsgw_01")
    rows(place, "UPDATE gateway SET incarnation = incarnation + 1")
    with pytest.raises(ExceptionGroup) as ended:
        await gateway._loops  # type: ignore[misc]
    assert ended.group_contains(SeatLostError)


def wait_for_its_death(url: str) -> None:
    """Return when all leases of a gateway that stands still are over."""
    for name in (CATALOG, "smsgw_00", "smsgw_01"):
        with postgres.Sql(url, name) as sql:
            while sql.execute(ALIVE) != [(False,)]:
                pass


@pytest.mark.parametrize("to", ["files", "another shard"])
def test_a_gateway_that_stood_still_while_its_store_moved_ends_when_it_goes_on(
    served: Callable[..., Served], url: str, tmp_path: Path, to: str
) -> None:
    journal = tmp_path / "journal"
    files = {"SMSGW_STORE__SHARDS": "2", "SMSGW_PROVIDERS__MOCK__JOURNAL": str(journal)}
    environ = {**files, "SMSGW_STORE__SHARD_URLS": url, "SMSGW_POSTGRES__LEASE_S": "1"}
    still, other = tmp_path / "still" / "data", tmp_path / "other" / "data"
    still.parent.mkdir()
    other.mkdir(parents=True)
    gateway = served(environ, still)
    shutil.copy(still / "otp.key", other / "otp.key")
    assert gateway.cli("pause").returncode == 0
    message = {"client_id": DEMO, "to": DELIVERED, "from": "ACME", "text": "hello"}
    sent = [gateway.request("POST", "/v1/messages", message)[1]["message_id"] for _ in range(10)]
    os.kill(gateway.process.pid, signal.SIGSTOP)
    wait_for_its_death(url)
    if to == "files":
        move = ["migrate", "--to", "files"]
    else:
        shard = 1 - slot_of(bytes.fromhex(DEMO.replace("-", ""))) % 2
        move = ["shards", "move", "--client", DEMO, "--to", str(shard)]
    moved = smsgw("--data", str(other), *move, **environ)
    assert moved.returncode == 0, moved.stderr
    os.kill(gateway.process.pid, signal.SIGCONT)
    assert gateway.process.wait(40) != 0
    again = served(files, other) if to == "files" else served(environ, still)
    assert again.cli("resume").returncode == 0
    for identifier in sent:
        assert again.message(identifier, wait_s=30)["status"] == "DELIVERED"
    assert journal_of(journal) == Counter(dict.fromkeys(sent, 1))
    assert again.cli("audit").returncode == 0


# What a directory is bound to.


async def test_a_directory_that_was_refused_is_bound_to_nothing(url: str, tmp_path: Path) -> None:
    refused = tmp_path / "refused"
    async with opened(tmp_path / "first", url):
        with pytest.raises(StoreError, match="is not the key of the gateways that are alive"):
            async with opened(refused, url):
                pass
    assert not is_store(refused)
    async with opened(refused):
        assert is_store(refused)


@pytest.mark.parametrize("move", [["migrate", "--to", "files"], ["shards", "resize", "3"]])
async def test_a_directory_whose_move_was_refused_is_bound_to_nothing(
    url: str, tmp_path: Path, move: list[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    environ = {"SMSGW_STORE__SHARD_URLS": url, "SMSGW_STORE__SHARDS": "2"}
    async with opened(tmp_path / "first", url):
        shutil.copy(tmp_path / "first" / "otp.key", other / "otp.key")
        moved = await asyncio.to_thread(smsgw, "--data", str(other), *move, **environ)
    assert "1 other gateways use this store" in moved.stderr
    assert not is_store(other)
