"""Who is no more has no say: incarnations are given once, and moves shut everybody out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from smsgw.accounts import AddClient
from smsgw.models import Status
from smsgw.recovery import RecoverFlights
from smsgw.settings import PostgresSettings
from smsgw.store.postgres import PostgresShard
from smsgw.store.postgres_connection import Database
from tests import postgres
from tests.records import CLIENT, NOW_MS, RULES
from tests.stores import IDENTITY, rows, turn
from tests.test_postgres import claimed, opened, status

CATALOG = "smsgw_catalog"


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
