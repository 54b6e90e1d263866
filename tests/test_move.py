"""Slots move between shards: their clients see no difference, and one shard at a time owns them."""

import asyncio
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smsgw.cli.call import Failed, open_door
from smsgw.cli.main import main
from smsgw.clock import SystemClock
from smsgw.errors import StoreError
from smsgw.ids import SLOTS, slot_of
from smsgw.settings import PostgresSettings
from smsgw.store import migration, move, places_files, places_postgres
from smsgw.store.directory import DataDirectory
from smsgw.store.holdings import holding
from smsgw.store.places import Chart
from tests import postgres
from tests.stores import rows
from tests.support import final_of, open_gateway, send
from tests.test_migrate import (
    SHARDS,
    Stopped,
    Views,
    _two_shards,
    cannot_open,
    filled,
    killed,
    quiet,
    ran,
    refused,
    settings,
    stop_at,
    views,
)

__all__ = ["_two_shards", "filled"]

BACKENDS = ("sqlite", "postgres")


class Site:
    """A store of two shards, in files or in PostgreSQL, and how to get at it."""

    def __init__(self, data: Path, urls: list[str]) -> None:
        self.data = data
        self.urls = urls
        self.shards = SHARDS

    @property
    def environ(self) -> dict[str, str]:
        found = {"SMSGW_STORE__SHARDS": str(self.shards)}
        return found | ({"SMSGW_STORE__SHARD_URLS": self.urls[0]} if self.urls else {})

    def views(self) -> Views:
        found = views(self.data, *self.urls, shards=self.shards)
        return {
            key: {name: view for name, view in one.items() if name != "client"}
            if isinstance(one, dict)
            else one
            for key, one in found.items()
        }

    def place(self, shard: int) -> Any:
        """Where a shard is, for statements of a test's own."""
        if self.urls:
            return postgres.Schema(self.urls[0], f"smsgw_{shard:02d}")
        return self.data / "shards" / f"{shard:02d}.db"

    def catalog(self) -> Any:
        if self.urls:
            return postgres.Schema(self.urls[0], "smsgw_catalog")
        return self.data / "catalog.db"

    def slots(self, shard: int) -> set[int]:
        """The slots that have rows in a shard."""
        return {slot for (slot,) in rows(self.place(shard), "SELECT DISTINCT slot FROM client")}

    def clients(self) -> list[tuple[int, bytes]]:
        """Every client's shard and id."""
        return [
            (shard, bytes(client))
            for shard in range(self.shards)
            for (client,) in rows(self.place(shard), "SELECT id FROM client ORDER BY number")
        ]

    def move(
        self, plan: dict[int, int], step: Callable[[str, int, int], None] = quiet, shards: int = 0
    ) -> move.Moved:
        """Move slots in this process."""

        async def work() -> move.Moved:
            store = settings(*self.urls, shards=self.shards).store
            now_ms = SystemClock().now_ms()
            async with holding(directory, store, PostgresSettings(), now_ms) as found:
                return await move.move(found, plan, shards or self.shards, step)

        directory = DataDirectory.open(self.data, "test", 0)
        try:
            return asyncio.run(work())
        finally:
            directory.close()

    def door(self) -> Any:
        return open_door(self.data, lambda: settings(*self.urls, shards=self.shards), "test")


@pytest.fixture
def site(backend: str, filled: Path, tmp_path: Path) -> Iterator[Site]:
    data = Path(shutil.copytree(filled, tmp_path / "data"))
    if backend == "sqlite":
        yield Site(data, [])
        return
    with postgres.database() as url:
        directory = DataDirectory.open(data, "test", 0)
        now_ms = SystemClock().now_ms()
        asyncio.run(migration.to_server(directory, [url], PostgresSettings(), now_ms, quiet))
        directory.close()
        yield Site(data, [url])


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch, site: Site, _two_shards: None) -> None:
    for name, value in site.environ.items():
        monkeypatch.setenv(name, value)


def test_a_client_that_moves_sees_no_difference(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (places_files, places_postgres):
        monkeypatch.setattr(module, "CHUNK_ROWS", 3)
    before = site.views()
    for source, client in site.clients():
        done = ran(
            *(capsys, "--data", site.data, "shards", "move"),
            *("--client", str(_uuid(client)), "--to", 1 - source),
        )
        assert done["slots"] == done["clients"] == 1
        assert slot_of(client) not in site.slots(source)
        assert slot_of(client) in site.slots(1 - source)
    assert site.views() == before
    (moved,) = set(rows(site.catalog(), "SELECT count(*) FROM slot WHERE moved_from = 1 - shard"))
    assert moved == (6,)
    epoch = {rows(site.place(n), "SELECT value FROM meta WHERE key = 'epoch'")[0] for n in (0, 1)}
    assert epoch == {(7,)}


def _uuid(client: bytes) -> str:
    return str(uuid.UUID(bytes=client))


def test_everything_still_works_after_a_move(site: Site) -> None:
    plan = {slot_of(client): 1 - shard for shard, client in site.clients()}
    site.move(plan)
    with site.door() as door:
        for client in door.ask("GET", "/admin/clients")["data"]:
            who = {"client_id": client["id"]}
            query = {**who, "status": "SCHEDULED", "limit": 1}
            (waits,) = door.ask("GET", "/v1/messages", query=query)["data"]
            gone = door.ask("POST", f"/v1/messages/{waits['id']}/cancel", body=who)
            assert gone["status"] == "CANCELLED"
            with pytest.raises(Failed):
                door.ask("POST", f"/v1/messages/{waits['id']}/cancel", body=who)
        assert door.ask("GET", "/admin/audit")["clean"]

    async def serve() -> None:
        over = {"store": {"shard_urls": site.urls, "shards": SHARDS}}
        gateway = await open_gateway(site.data, over)
        try:
            await gateway.pause("", paused=False)
            for _, client in clients:
                newest = await send(gateway, client)
                await final_of(gateway, newest.message)  # type: ignore[union-attr]
                replay = await send(gateway, client)
                assert replay.message.number > newest.message.number  # type: ignore[union-attr]
        finally:
            await gateway.close()

    clients = site.clients()
    asyncio.run(serve())
    site.views()


def test_shards_are_added_and_slots_are_spread_over_them(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = site.views()
    done = ran(capsys, "--data", site.data, "shards", "resize", 5)
    assert done["shards"] == 5
    assert done["settings"] == "store.shards = 5"
    assert done["slots"] == SLOTS - 2 * 819 - 1
    with pytest.raises(StoreError, match=r"2"):
        site.views()
    site.shards = 5
    assert site.views() == before
    monkeypatch.setenv("SMSGW_STORE__SHARDS", "5")
    with site.door() as door:
        listed = door.ask("GET", "/admin/shards")["data"]
    assert sorted(row["slots"] for row in listed) == [819, 819, 819, 819, 820]
    ran(capsys, "--data", site.data, "shards", "resize", 6, "--empty")
    site.shards = 6
    assert site.slots(5) == set()
    assert site.views() == before
    assert "but not fewer" in refused(capsys, "--data", site.data, "shards", "resize", 4)


def test_a_plan_moves_few_slots_and_makes_shards_equal() -> None:
    slots: list[tuple[int, int, int | None]] = [(slot, slot % 4, None) for slot in range(SLOTS)]
    plan = move.spread(Chart(4, slots, [], []), 6)
    now = Counter(plan.get(slot, shard) for slot, shard, _ in slots)
    assert set(now.values()) == {682, 683}
    assert len(plan) == now[4] + now[5]
    assert set(plan.values()) == {4, 5}


STEPS = ("begun", "opened", "shard 0 to 1: message", "proved", "flipped", "shard 0 is tidied")


def test_killed_at_any_step_one_shard_owns_every_slot(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    before = site.views()
    for step in STEPS:
        source, client = site.clients()[0]
        slot = slot_of(client)
        if source == 1:
            site.move({slot: 0})
        killed(
            *(step, "--data", site.data, "shards", "move", "--slot", slot, "--to", 1),
            **site.environ,
        )
        if site.urls:
            elsewhere = site.data.with_name("elsewhere")
            assert "another data directory" in cannot_open(elsewhere, *site.urls)
        assert site.views() == before
        owner = int(step in ("flipped", "shard 0 is tidied"))
        assert slot in site.slots(owner)
        assert slot not in site.slots(1 - owner)
        assert site.move({slot: 1}).slots == 1 - owner
        assert site.move({slot: 0}).slots == 1
        assert site.views() == before


@pytest.mark.parametrize("step", ["opened", "proved", "flipped"])
def test_shards_whose_adding_was_interrupted_are_gone_or_there(site: Site, step: str) -> None:
    before = site.views()
    plan = {slot_of(client): 3 for _, client in site.clients()}
    with pytest.raises(Stopped):
        site.move(plan, stop_at(step), shards=4)
    site.shards = 4 if step == "flipped" else 2
    assert site.views() == before
    if step != "flipped":
        site.move(plan, shards=4)
        site.shards = 4
        assert site.views() == before
    assert site.slots(3) == set(plan)


def test_marks_of_shards_that_differ_are_brought_in_line(site: Site) -> None:
    """What one shard has walked over and the other has not is neither lost nor counted twice."""
    before = site.views()
    numbers = sorted(
        number for n in range(2) for (number,) in rows(site.place(n), "SELECT number FROM message")
    )
    middle = numbers[len(numbers) // 2]
    # As if the first shard had counted everything and the other nothing; and walked so far.
    for mark in ("expired_to", "receipts_to", "texts_to", "purged_to"):
        rows(site.place(1), f"UPDATE meta SET value = {middle} WHERE key = '{mark}'")
    for shard, client in site.clients():
        site.move({slot_of(client): 1 - shard})
        after = site.views()
        for name in before:
            if name != "parked":
                assert after[name]["reports"] == before[name]["reports"]
    kinds = {kind for (kind,) in rows(site.place(1), "SELECT DISTINCT kind FROM timer")}
    assert {1, 2, 4, 5} <= kinds


def test_a_shard_does_not_number_again_what_has_moved_away(site: Site) -> None:
    last = max(n for (n,) in rows(site.place(0), "SELECT max(number) FROM message"))
    site.move({slot_of(client): 1 for shard, client in site.clients() if shard == 0})
    ((mark,),) = rows(site.place(0), "SELECT value FROM meta WHERE key = 'numbered_to'")
    assert mark == last
    assert rows(site.place(0), "SELECT count(*) FROM message") == [(0,)]


def test_a_copy_that_differs_moves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    before = site.views()
    source, client = site.clients()[0]
    honest = move._renumbered

    def dishonest(way: Any, columns: Any, row: Any) -> Any:
        found = honest(way, columns, row)
        if "balance_cents" in columns:
            at = list(columns).index("balance_cents")
            found = (*found[:at], found[at] + 1, *found[at + 1 :])
        return found

    monkeypatch.setattr(move, "_renumbered", dishonest)
    with pytest.raises(StoreError, match="entry differs"):
        site.move({slot_of(client): 1 - source})
    assert site.views() == before
    assert slot_of(client) in site.slots(source)


def test_what_cannot_be_moved_is_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--data", site.data, "shards")
    nobody = "550e8400-e29b-41d4-a716-446655449999"
    assert "only the shards 0 to 1" in refused(capsys, *at, "move", "--slot", 1, "--to", 2)
    assert "there is no client" in refused(capsys, *at, "move", "--client", nobody, "--to", 1)
    assert main([*map(str, at), "move", "--to", "1"]) == 2
    assert ran(capsys, *at, "move", "--slot", 0, "--to", 0)["slots"] == 0
