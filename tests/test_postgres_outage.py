"""A lease that ran out while nobody could renew it says nothing about who held it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smsgw.accounts import AddClient
from smsgw.gateway import Gateway
from smsgw.models import Status
from smsgw.recovery import RecoverFlights
from smsgw.store.base import ShardUnavailableError
from smsgw.store.postgres import PostgresShard
from smsgw.store.postgres_reach import Reach
from tests import postgres
from tests.conftest import OpenGateway
from tests.records import CLIENT, RULES
from tests.stores import rows, turn
from tests.support import crash
from tests.test_postgres import Open, claimed, open_one, side_by_side, status
from tests.test_postgres_gateways import operators, share_alike

__all__ = ["open_one"]

BACKENDS = ("postgres",)
LEASE_S = 30.0
OVER = "UPDATE gateway SET lease_until = clock_timestamp()"
ALIVE = "SELECT bool_and(lease_until > clock_timestamp()) FROM gateway"


class Time:
    """What a process's own clock says."""

    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as found:
        yield found


@pytest.fixture
def place(url: str) -> postgres.Schema:
    return postgres.Schema(url)


@pytest.fixture
async def store(open_one: Open) -> PostgresShard:
    found = await open_one(lease_s=LEASE_S)
    await turn(found, AddClient(CLIENT, "test", 1, 1000))
    return found


async def watches(store: PostgresShard, time: Time, for_s: float) -> None:
    """Look at a shard for a while, as a gateway does."""
    store.reach.clock = time
    await store.look()
    for _ in range(10):
        time.now_s += for_s / 10
        await store.look()


async def recovered(store: PostgresShard) -> int:
    request = RecoverFlights(RULES)
    await turn(store, request)
    return int(request.answer)


def test_a_server_is_trusted_after_a_lease_without_a_break(time: Time) -> None:
    reach = Reach(LEASE_S)
    reach.clock = time
    trusted = []
    for pause_s in (0, 10, 10, 10, 0.1, 15, 15.1, 14.9, 15, 0.2):
        time.now_s += pause_s
        reach.answered(4711.0)
        trusted.append(reach.judges_at_s == 4711.0)
    assert trusted == [False, False, False, True, True, True, False, False, False, True]


async def test_leases_that_ran_out_while_the_server_was_away_have_the_time_to_be_renewed(
    store: PostgresShard, open_one: Open, place: postgres.Schema, time: Time
) -> None:
    other = await open_one(lease_s=LEASE_S)
    (message,) = await claimed(store)
    await watches(other, time, LEASE_S)
    # Nobody has reached the server for longer than a lease, and this one is the first.
    time.now_s += 2 * LEASE_S
    rows(place, OVER)
    assert await recovered(other) == 0, "it was alive when it was last looked at"
    await other.look()
    assert not other.orphans
    assert await recovered(other) == 0
    await store.beat()
    await watches(other, time, 2 * LEASE_S)
    assert not other.orphans
    assert await recovered(other) == 0
    await turn(store, RecoverFlights(RULES))
    assert status(place, message) == Status.SENDING


async def test_who_does_not_come_back_with_its_server_is_dead_after_a_lease(
    store: PostgresShard, open_one: Open, place: postgres.Schema, time: Time
) -> None:
    other = await open_one(lease_s=LEASE_S)
    (message,) = await claimed(store)
    rows(place, OVER)
    await watches(other, time, 0.99 * LEASE_S)
    assert not other.orphans
    await watches(other, time, 0.1 * LEASE_S)
    assert other.orphans
    other.orphans = False
    await other.look(closely=False)
    assert not other.orphans, "that was not looked for"
    await other.look()
    assert other.orphans
    await other.look(closely=False)
    assert other.orphans, "what was seen stays so until it is looked for again"
    assert await recovered(other) == 1
    assert status(place, message) == Status.UNCERTAIN


async def test_who_starts_decides_at_once_only_about_what_is_its_own(
    store: PostgresShard, open_one: Open, place: postgres.Schema
) -> None:
    other = await open_one(lease_s=LEASE_S)
    (first,) = await claimed(store)
    (second,) = await claimed(other)
    rows(place, OVER)
    again = await open_one(gateway=1, lease_s=LEASE_S)
    assert await recovered(again) == 1
    assert status(place, first) == Status.SENDING
    assert status(place, second) == Status.UNCERTAIN


async def test_a_lease_is_renewed_as_soon_as_the_server_answers_again(
    gateway_of: OpenGateway, tmp_path: Path, time: Time
) -> None:
    long = {"lease_s": 3600.0, "poll_ms": 5}
    (gateway,) = await side_by_side(gateway_of, tmp_path, count=1, postgres=long)
    server = gateway.shards.server
    assert server is not None
    reaches = [server.reach, *(store.reach for store in server.stores)]
    url = server.databases[0]._url
    names = ("smsgw_catalog", "smsgw_00", "smsgw_01")
    for name, reach in zip(names, reaches, strict=True):
        reach.clock = time
        rows(postgres.Schema(url, name), OVER)
    time.now_s += 1e6
    for name in names:
        place = postgres.Schema(url, name)
        while rows(place, ALIVE) != [(True,)]:
            await server.catalog.changes("test", "1")


# A gateway that cannot reach the catalog's server, but those of shards.


async def trusting(gateway: Gateway, time: Time) -> None:
    """Have a gateway look on for longer than a lease."""
    server = gateway.shards.server
    assert server is not None
    for reach in (server.reach, *(store.reach for store in server.stores)):
        reach.clock = time
    for _ in range(5):
        time.now_s += gateway.settings.postgres.lease_s / 3
        for store in server.stores:
            await store.look()
        await server._look_at_catalog(gateway.allotter)


def cut_off(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> postgres.Schema:
    """Keep a gateway from its catalog; returns where that is."""
    server = gateway.shards.server
    assert server is not None
    (database,) = server.databases
    fetch = database.fetch

    async def fetch_of_shards(sql: str, *parameters: Any) -> Any:
        if "smsgw_catalog." in sql:
            raise ShardUnavailableError("away")
        return await fetch(sql, *parameters)

    monkeypatch.setattr(database, "fetch", fetch_of_shards)
    return postgres.Schema(database._url, "smsgw_catalog")


async def test_who_cannot_reach_the_catalog_counts_as_long_as_it_is_alive_in_a_shard(
    gateway_of: OpenGateway, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path, **operators(window=10))
    await share_alike([first, second], 2)
    catalog = cut_off(second, monkeypatch)
    rows(catalog, f"{OVER} WHERE number = 1")
    await trusting(first, time)
    assert first.allotter.links["mock"].window == 5
    for name in ("smsgw_00", "smsgw_01"):
        rows(postgres.Schema(catalog.url, name), f"{OVER} WHERE number = 1")
    await share_alike([first], 1)
    assert first.allotter.links["mock"].window == 10


async def test_who_cannot_reach_the_catalog_learns_from_the_shards_who_is_alive(
    gateway_of: OpenGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = await side_by_side(gateway_of, tmp_path, 3, **operators(window=12))
    await share_alike([second], 3)
    cut_off(second, monkeypatch)
    await crash(first)
    while second.allotter.links["mock"].gateways != 2:
        await third.shards.catalog.changes("test", "1")
    await crash(third)
    while second.allotter.links["mock"].gateways != 1:
        await second.shards.of_client(CLIENT).store.read("timer_next")
    assert second.allotter.links["mock"].window == 12


async def test_after_an_outage_of_everything_nobody_thinks_that_it_is_alone(
    gateway_of: OpenGateway, tmp_path: Path, time: Time
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path, **operators(window=10))
    await share_alike([first, second], 2)
    await trusting(first, time)
    server = first.shards.server
    assert server is not None
    time.now_s += 2 * first.settings.postgres.lease_s
    for name in ("smsgw_catalog", "smsgw_00", "smsgw_01"):
        rows(postgres.Schema(server.databases[0]._url, name), f"{OVER} WHERE number = 1")
    for store in server.stores:
        await store.look()
    await server._look_at_catalog(first.allotter)
    assert first.allotter.links["mock"].window == 5


# A gateway that was killed has left its row as it was: who sends, it says for ever.


def killed(gateway: Gateway, ago_s: float, number: int = 1) -> postgres.Schema:
    """Have a gateway have died so long ago; returns where the catalog is."""
    server = gateway.shards.server
    assert server is not None
    url = server.databases[0]._url
    for name in ("smsgw_catalog", "smsgw_00", "smsgw_01"):
        sql = f"{OVER} - {ago_s} * interval '1 second' WHERE number = {number}"
        rows(postgres.Schema(url, name), sql)
    catalog = postgres.Schema(url, "smsgw_catalog")
    rows(catalog, f"UPDATE gateway SET serving = true WHERE number = {number}")
    return catalog


@pytest.mark.parametrize(("leases", "count"), [(1, 2), (10, 1)])
async def test_who_starts_shares_with_nobody_that_died_long_ago(
    gateway_of: OpenGateway, tmp_path: Path, leases: int, count: int
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path, **operators(window=10))
    await second.close()
    killed(first, leases * first.settings.postgres.lease_s)
    await first.close()
    again = await gateway_of(operators(window=10), data=tmp_path / "data0")
    server = again.shards.server
    assert server is not None
    assert server.gateways_alive == count


async def test_after_an_outage_nobody_counts_that_was_dead_before(
    gateway_of: OpenGateway, tmp_path: Path, time: Time
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path, **operators(window=10))
    await second.close()
    await trusting(first, time)
    time.now_s += 2 * first.settings.postgres.lease_s
    server = first.shards.server
    assert server is not None
    # It ended its lease before the server was last trusted.
    killed(first, 3 * first.settings.postgres.lease_s)
    for store in server.stores:
        await store.look()
    await server._look_at_catalog(first.allotter)
    assert server.gateways_alive == 1


async def test_it_is_noted_who_is_dead_and_sends_no_more(
    gateway_of: OpenGateway, tmp_path: Path, time: Time
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path, **operators(window=10))
    await second.close()
    catalog = killed(first, 1)
    serving = "SELECT serving FROM gateway ORDER BY number"
    shard = postgres.Schema(catalog.url, "smsgw_00")
    rows(shard, "UPDATE gateway SET lease_until = 'infinity' WHERE number = 1")
    await trusting(first, time)
    await share_alike([first], 2)
    assert rows(catalog, serving) == [(True,), (True,)], "it is alive in a shard"
    rows(shard, OVER)
    await share_alike([first], 1)
    while rows(catalog, serving) != [(True,), (False,)]:
        await first.shards.of_client(CLIENT).store.read("timer_next")
