"""The catalog: which slot lives where, kept for ever; what is paused, kept over restarts."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from smsgw.errors import StorageUnavailable, StoreError
from smsgw.ids import SLOTS
from smsgw.store.catalog import PAUSE_ALL, Catalog
from tests.records import NOW_MS
from tests.stores import Unreliable, dump, read_only, rows


async def opened(path: Path, shards: int = 4, store_id: int = 77) -> Catalog:
    return await Catalog.open(path, shards, store_id, NOW_MS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


async def test_slots_are_dealt_evenly_over_the_shards(path: Path) -> None:
    catalog = await opened(path)
    assert catalog.shards == {n: f"shards/0{n}.db" for n in range(4)}
    assert len(catalog.shard_of_slot) == SLOTS
    assert [catalog.shard_of_slot.count(n) for n in range(4)] == [SLOTS // 4] * 4
    assert catalog.moved_from == {}
    await catalog.close()


async def test_opening_again_changes_nothing(path: Path) -> None:
    first = await opened(path)
    await first.close()
    before = dump(path)
    second = await opened(path, store_id=88)
    assert second.store_id == first.store_id == 77
    assert (second.epoch, second.shards) == (first.epoch, first.shards)
    assert second.shard_of_slot == first.shard_of_slot
    await second.close()
    assert dump(path) == before


@pytest.mark.parametrize("shards", [1, 3, 8])
async def test_another_number_of_shards_is_refused_and_both_are_told(
    path: Path, shards: int
) -> None:
    await (await opened(path)).close()
    with pytest.raises(StoreError, match=rf"store\.shards is {shards}, but .* was made with 4"):
        await opened(path, shards)


async def test_a_catalog_of_a_newer_program_is_refused(path: Path) -> None:
    await (await opened(path)).close()
    rows(path, "INSERT INTO migration VALUES (99, 'of tomorrow', 0)")
    with pytest.raises(StoreError, match="step 99"):
        await opened(path)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM slot WHERE slot = 17",
        "UPDATE slot SET shard = 9 WHERE slot = 17",
    ],
)
async def test_a_slot_map_that_is_not_whole_is_refused(path: Path, damage: str) -> None:
    await (await opened(path)).close()
    rows(path, damage)
    with pytest.raises(StoreError, match=r"catalog\.db is damaged"):
        await opened(path)


def test_a_file_that_is_no_catalog_is_refused_and_named(path: Path) -> None:
    path.write_bytes(b"this was never a database" * 100)

    async def open_it() -> None:
        with pytest.raises(StoreError, match=r"catalog\.db"):
            await opened(path)

    asyncio.run(open_it())


async def test_a_moved_slot_is_found_where_it_is_and_where_it_was(path: Path) -> None:
    await (await opened(path)).close()
    rows(path, "UPDATE slot SET shard = 2, moved_from = 1 WHERE slot = 17")
    catalog = await opened(path)
    assert catalog.shard_of_slot[17] == 2
    assert catalog.moved_from == {17: 1}
    await catalog.close()


async def test_pauses_survive_a_restart_until_they_are_lifted(path: Path) -> None:
    catalog = await opened(path)
    for subject in (PAUSE_ALL, "mock", "mock"):
        await catalog.set_paused(subject, paused=True)
    assert catalog.paused == {PAUSE_ALL, "mock"}
    await catalog.close()
    catalog = await opened(path)
    assert catalog.paused == {PAUSE_ALL, "mock"}
    await catalog.set_paused(PAUSE_ALL, paused=False)
    await catalog.set_paused("never paused", paused=False)
    await catalog.close()
    catalog = await opened(path)
    assert catalog.paused == {"mock"}
    await catalog.close()


async def test_a_route_keeps_its_number_for_ever(path: Path) -> None:
    catalog = await opened(path)
    first = await catalog.routes([("a", "b"), ("a",)])
    await catalog.close()
    catalog = await opened(path)
    second = await catalog.routes([("c",), ("a",), ()])
    assert len(first | second) == 4
    number_of = {names: number for number, names in (first | second).items()}
    assert first[number_of["a",]] == second[number_of["a",]] == ("a",)
    assert await catalog.routes([("a", "b")]) == {number_of["a", "b"]: ("a", "b")}
    await catalog.close()


async def test_that_its_files_were_made_is_noted_once(path: Path) -> None:
    catalog = await opened(path)
    assert not catalog.made
    await catalog.set_made()
    await catalog.set_made()
    await catalog.close()
    catalog = await opened(path)
    assert catalog.made
    await catalog.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda catalog: catalog.set_made(),
        lambda catalog: catalog.set_paused("mock", paused=True),
        lambda catalog: catalog.changes("key", "value"),
        lambda catalog: catalog.routes([("a",)]),
    ],
    ids=["set_made", "set_paused", "changes", "routes"],
)
async def test_what_cannot_be_written_is_told_and_nothing_is_remembered_of_it(
    path: Path, write: Callable[[Catalog], Awaitable[object]]
) -> None:
    catalog = await opened(path)
    before = dump(path)
    async with read_only(catalog):
        with pytest.raises(StorageUnavailable, match="The catalog is not available now") as told:
            await write(catalog)
    assert told.value.members == {"outcome": "none"}
    assert (catalog.made, catalog.paused) == (False, set())
    assert dump(path) == before
    await write(catalog)
    assert dump(path) != before
    await catalog.close()


async def test_of_what_the_disk_has_failed_to_write_nobody_knows_whether_it_is_there(
    path: Path,
) -> None:
    catalog = await opened(path)
    sound = catalog._thread.raw
    broken = Unreliable(sound)
    broken.fail("INSERT OR IGNORE INTO pause VALUES (?)", sqlite3.SQLITE_IOERR_FSYNC, after=True)
    catalog._thread.raw = broken  # type: ignore[assignment]
    with pytest.raises(StorageUnavailable) as told:
        await catalog.set_paused("mock", paused=True)
    assert told.value.members == {"outcome": "unknown"}
    catalog._thread.raw = sound
    await catalog.close()
