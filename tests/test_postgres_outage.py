"""A lease that ran out while nobody could renew it says nothing about who held it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from smsgw.accounts import AddClient
from smsgw.models import Status
from smsgw.recovery import RecoverFlights
from smsgw.store.postgres import PostgresShard
from smsgw.store.postgres_reach import Reach
from tests import postgres
from tests.conftest import OpenGateway
from tests.records import CLIENT, RULES
from tests.stores import rows, turn
from tests.test_postgres import Open, claimed, open_one, side_by_side, status

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
    answers = [reach.answered()]
    for pause_s in (10, 10, 10, 0.1, 15, 15.1, 14.9, 15, 0.2):
        time.now_s += pause_s
        answers.append(reach.answered())
    assert answers == [False, False, False, True, True, True, False, False, False, True]


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
