"""The loop of a shard and the shards of a directory: who is told what when the disk fails."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgw.accounts import AddClient, Adjust
from smsgw.admission import Accepted, Admit, Draft
from smsgw.allotter import Allotter
from smsgw.clock import ManualClock
from smsgw.errors import InternalError, StorageUnavailable, StoreError, TooManyRequests
from smsgw.gateway import Gateway
from smsgw.ids import slot_of
from smsgw.links import Bucket, Link
from smsgw.metrics import Metrics
from smsgw.models import Lane, Message, Outcome, Status, Verdict
from smsgw.settings import StoreSettings
from smsgw.store import shard as shard_module
from smsgw.store.base import CommitUnknownError
from smsgw.store.directory import DataDirectory
from smsgw.store.inbox import Inbox
from smsgw.store.pace import Pace, Room
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards
from smsgw.store.sqlite import SqliteShard
from smsgw.turn import OUTCOME, URGENT, Item, Request, Turn, Write
from smsgw.worker import Settle
from tests.conftest import OpenGateway
from tests.records import CLIENT, NOW_MS, RULES
from tests.stores import (
    Unreliable,
    assert_memory_is_file,
    dump,
    findings,
    make_unreliable,
    open_shard,
    plain,
    rows,
)
from tests.support import account_of, add_client, assert_clean, send

LONG = "x" * 100_000


class Line:
    """One shard with its loop, an operator with ten places, and what was claimed for it."""

    def __init__(self, shard: Shard, allotter: Allotter) -> None:
        self.shard = shard
        self.store = shard.store
        self.path = shard.store.path
        self.allotter = allotter
        self.claimed: asyncio.Queue[Message] = asyncio.Queue()
        self.disk: Unreliable = make_unreliable(shard.store)
        self.loop: asyncio.Task[None] = asyncio.create_task(shard.run())

    async def admit(self, text: str = "hello") -> Message:
        """Accept a message."""
        draft = Draft(15005550006, "ACME", text, False, 1, Lane.REGULAR, 5, 0, 0)
        answer = await self.shard.ask(Admit(CLIENT, draft, None, RULES, 0))
        assert isinstance(answer, Accepted)
        return answer.message

    def settle(self, message: Message, verdict: Verdict = Verdict.ACCEPTED) -> None:
        """Bring in what the operator answered."""
        self.allotter.links["mock"].give_back(message.parts)
        self.shard.put(Settle(message.number, message.attempts, Outcome(verdict, "id"), RULES))

    async def settled(self) -> None:
        """Wait until everything before this is on disk."""
        await self.shard.ask(Marker())

    def status(self, message: Message) -> Status:
        """Where a message is on disk."""
        sql = "SELECT status FROM message WHERE number = ?"
        return Status(rows(self.path, sql, message.number)[0][0])

    def fill(self) -> None:
        """Leave no room on the disk."""
        (pages,) = self.disk.execute("PRAGMA page_count").fetchone()
        self.disk.execute(f"PRAGMA max_page_count = {pages}")

    def make_room(self) -> None:
        """Leave room again."""
        self.disk.execute("PRAGMA max_page_count = 1000000")

    def writable(self, yes: bool) -> None:
        """Let the disk be written, or not."""
        self.disk.execute(f"PRAGMA query_only = {int(not yes)}")


class Marker(Write):
    """An outcome that tells when it is on disk."""

    __slots__ = ()
    priority = OUTCOME


@pytest.fixture
async def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Line]:
    monkeypatch.setattr(shard_module, "PROBE_S", 0)
    clock = ManualClock(NOW_MS)
    allotter = Allotter(0.3)
    allotter.links["mock"] = Link("mock", 10, Bucket(0.0), otp_share=0.0)
    allotter.routes = {0: ("mock",)}
    store = await open_shard(tmp_path / "00.db")

    def hand_over(shard: Shard, messages: Sequence[Message], accepted_parts: object) -> None:
        for message in messages:
            found.claimed.put_nowait(message)

    shard = Shard(store, clock, allotter, Metrics(), room=Room(100), hand_over=hand_over)
    found = Line(shard, allotter)
    await shard.ask(AddClient(CLIENT, "test", 1, 1000))
    yield found
    shard.stop()
    if not found.loop.done():
        await found.loop
    await store.close()


@pytest.mark.parametrize(("turn_s", "units"), [(0.008, 80), (0.02, 200), (0.5, 512)])
async def test_a_turn_takes_what_its_pace_allows_and_little_beside_codes(
    line: Line, turn_s: float, units: int
) -> None:
    room, clock = Room(100), ManualClock(NOW_MS)
    shard = Shard(
        line.store,
        clock,
        line.allotter,
        Metrics(),
        room=room,
        hand_over=lambda *_: None,
        pace=Pace(turn_s=turn_s),
    )
    shard._unit_s = 0.0001
    assert shard._units_max() == units
    room.urgent_until_s = clock.monotonic_s() + 1
    assert shard._units_max() == 17


async def refused(line: Line, outcome: str = "none") -> None:
    """A request is told that its shard cannot write."""
    with pytest.raises(StorageUnavailable) as refusal:
        await line.admit(LONG)
    assert refusal.value.members == {"outcome": outcome}
    assert refusal.value.retry_after_s is not None


async def test_on_a_full_disk_requests_are_refused_until_there_is_room(line: Line) -> None:
    line.fill()
    before = dump(line.path)
    await refused(line)
    assert dump(line.path) == before
    assert_memory_is_file(line.store)
    line.make_room()
    await line.settled()
    assert line.shard.trouble is None
    assert isinstance(await line.admit(LONG), Message)
    assert findings(line.path) == []
    assert_memory_is_file(line.store)


async def test_outcomes_are_kept_in_their_order_until_they_can_be_stored(line: Line) -> None:
    await line.admit()
    message = await line.claimed.get()
    line.writable(False)
    line.settle(message, Verdict.FAILED)
    line.shard.put(Settle(message.number, 1, Outcome(Verdict.REFUSED), RULES))
    await refused(line)
    assert line.status(message) == Status.SENDING
    await refused(line)
    line.writable(True)
    await line.settled()
    assert line.status(message) == Status.FAILED_TEMP
    assert findings(line.path) == []
    assert_memory_is_file(line.store)


async def test_a_shard_in_trouble_refuses_at_once_and_claims_nothing(line: Line) -> None:
    line.allotter.paused = True
    waiting = await line.admit()
    line.writable(False)
    await refused(line)
    line.allotter.paused = False
    line.shard.wake()
    with pytest.raises(StorageUnavailable):
        line.shard.put(Adjust(CLIENT, 5, None, None))
    assert line.claimed.empty()
    assert line.status(waiting) == Status.QUEUED
    line.writable(True)
    assert (await line.claimed.get()).number == waiting.number
    assert line.allotter.links["mock"].in_flight == 1


async def test_places_that_a_failed_turn_was_granted_come_back(line: Line) -> None:
    for _ in range(15):
        line.writable(False)
        await refused(line)
        line.writable(True)
        await line.settled()
    assert line.allotter.links["mock"].in_flight == 0


async def test_while_somebody_else_holds_the_lock_the_shard_waits_for_it(line: Line) -> None:
    await line.admit()
    message = await line.claimed.get()
    with closing(plain(line.path)) as intruder:
        intruder.execute("BEGIN IMMEDIATE")
        line.settle(message)
        await refused(line)
    await line.settled()
    assert line.status(message) == Status.SENT
    assert isinstance(await line.admit(), Message)


async def test_one_outcome_that_cannot_be_stored_is_put_aside_and_the_others_are_stored(
    line: Line,
) -> None:
    await line.admit()
    message = await line.claimed.get()

    class Cursed(Settle):
        __slots__ = ()

        def decide(self, turn: Turn) -> None:
            super().decide(turn)
            turn.accounts[1].weight = 0

    outcome = Outcome(Verdict.REFUSED)
    line.shard.put(Cursed(message.number, 1, outcome, RULES))
    line.settle(message)
    await line.settled()
    assert line.status(message) == Status.SENT
    await line.settled()
    (aside,) = rows(line.path, "SELECT item, error FROM quarantine")
    assert str(message.number) in aside[0]
    assert "refused" in aside[0]
    assert "CHECK" in aside[1]
    assert findings(line.path) == []


async def test_a_request_that_cannot_be_stored_is_a_defect_and_fails_alone(line: Line) -> None:
    class Cursed(Adjust):
        __slots__ = ()

        def decide(self, turn: Turn) -> None:
            super().decide(turn)
            raise ZeroDivisionError

    line.allotter.paused = True
    cursed, good = Cursed(CLIENT, 7, None, None), Adjust(CLIENT, 5, None, None)
    line.shard.put(cursed)
    line.shard.put(good)
    with pytest.raises(InternalError):
        await cursed.future
    assert (await good.future).credits_cents == 1005


async def test_a_caller_who_hangs_up_in_the_middle_of_a_turn_changes_nothing(line: Line) -> None:
    gate = line.disk.hold("COMMIT")
    caller = asyncio.create_task(line.admit())
    await asyncio.to_thread(gate.reached.wait)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.opened.set()
    message = await line.claimed.get()
    line.settle(message)
    await line.settled()
    assert line.status(message) == Status.SENT
    assert_memory_is_file(line.store)


@pytest.mark.parametrize("after", [False, True])
async def test_what_a_failed_commit_came_to_is_unknown_and_ends_the_loop(
    line: Line, after: bool
) -> None:
    gate = line.disk.hold("COMMIT")
    line.disk.fail("COMMIT", sqlite3.SQLITE_IOERR_FSYNC, after=after)
    inside = asyncio.create_task(refused(line, "unknown"))
    await asyncio.to_thread(gate.reached.wait)
    behind = asyncio.create_task(refused(line, "none"))
    await asyncio.sleep(0)
    gate.opened.set()
    await inside
    await behind
    with pytest.raises(CommitUnknownError):
        await line.loop
    await refused(line, "none")


async def test_stopping_stores_everything_that_was_taken_in(line: Line) -> None:
    await line.admit()
    message = await line.claimed.get()
    line.settle(message)
    line.shard.stop()
    await line.loop
    assert line.status(message) == Status.SENT


async def test_stopping_on_a_disk_that_stays_broken_ends_all_the_same(line: Line) -> None:
    await line.admit()
    message = await line.claimed.get()
    line.writable(False)
    marker = Marker()
    line.settle(message, Verdict.REFUSED)
    line.shard.put(marker)
    line.shard.stop()
    await line.loop
    with pytest.raises(StorageUnavailable):
        await marker.future
    assert line.status(message) == Status.SENDING, "the next start decides, as after a crash"


async def test_stopping_waits_a_little_for_the_disk(line: Line) -> None:
    await line.admit()
    message = await line.claimed.get()
    line.writable(False)
    line.settle(message, Verdict.REFUSED)
    await refused(line)
    line.shard.stop()
    await asyncio.sleep(0)
    line.writable(True)
    await line.loop
    assert line.status(message) == Status.FAILED_PERM


# What waits for a turn.


class Named(Request):
    """A request of a client, by whose number it goes."""

    __slots__ = ("client",)

    def __init__(self, client: int) -> None:
        super().__init__(bytes([client]) * 16)
        self.client = client


class Large(Named):
    """One about ten messages."""

    __slots__ = ()
    units = 10


class Report(Named):
    """An outcome."""

    __slots__ = ()
    priority = OUTCOME


class Code(Named):
    """A one-time code."""

    __slots__ = ()
    priority = URGENT


def clients(items: Sequence[Item]) -> list[int]:
    return [item.client for item in items if isinstance(item, Named)]


async def test_codes_go_first_then_outcomes_then_requests() -> None:
    inbox = Inbox(Room(100), 1)
    for item in (Named(1), Report(2), Code(3), Named(4), Report(5), Code(6)):
        inbox.add(item)
    assert len(inbox) == 6
    assert clients(inbox.take(100)) == [3, 6, 2, 5, 1, 4]
    assert len(inbox) == 0
    assert inbox.take(100) == []


async def test_requests_take_turns_by_client() -> None:
    inbox = Inbox(Room(100), 1)
    for client in (1, 1, 1, 1, 2, 2, 3):
        inbox.add(Named(client))
    assert clients(inbox.take(3)) == [1, 2, 3]
    assert clients(inbox.take(3)) == [1, 2, 1]
    assert clients(inbox.take(3)) == [1]


async def test_a_turn_is_bounded_by_what_its_items_are_about() -> None:
    inbox = Inbox(Room(100), 1)
    for client in (1, 2, 3, 4):
        inbox.add(Large(client))
    assert clients(inbox.take(15)) == [1, 2]
    assert clients(inbox.take(1)) == [3], "at least one, however large"


async def test_work_of_our_own_takes_no_room_of_clients() -> None:
    inbox = Inbox(Room(100), 1)
    ours = Large(1)
    ours.client_id = b""
    inbox.add(ours)
    for client in (2, 3, 4):
        inbox.add(Named(client))
    assert clients(inbox.take(16, claims=True)) == [1, 2, 3, 4]


async def test_places_are_kept_for_all_messages_that_a_turn_may_bring() -> None:
    inbox = Inbox(Room(100), 1)
    ours = Named(1)
    ours.client_id = b""
    for item in (ours, Large(2), Large(2), Named(3), Report(4)):
        inbox.add(item)
    assert inbox.fresh(4) == 10, "the first request, however large"
    assert inbox.fresh(40) == 10
    assert inbox.fresh(44) == 11, "in turn by client"
    assert inbox.fresh(48) == 21
    assert inbox.fresh(1000) == 21, "all there is, but not what is our own"
    assert clients(inbox.take(1, claims=True)) == [4]
    brought = inbox.take(48, claims=True)
    assert clients(brought) == [1, 2, 3, 2]
    assert inbox.fresh(48) == 0
    inbox.put_back(brought[2:])
    assert inbox.fresh(4) == 11
    inbox.clear()
    assert inbox.fresh(4) == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=40), st.integers(1, 300))
async def test_a_turn_brings_no_more_than_places_were_kept_for(
    requests: list[tuple[int, bool]], units_max: int
) -> None:
    inbox = Inbox(Room(1000), 1)
    for client, large in requests:
        item = Large(client) if large else Named(client)
        if not client:
            item.client_id = b""
        inbox.add(item)
    kept = inbox.fresh(units_max)
    brought = inbox.take(units_max, claims=True)
    assert kept == sum(item.units for item in brought if isinstance(item, Named) and item.client)


async def test_outcomes_do_not_keep_requests_out() -> None:
    inbox = Inbox(Room(100), 1)
    inbox.add(Named(1))
    for _ in range(50):
        inbox.add(Report(2))
    assert clients(inbox.take(8)) == [2] * 6 + [1]
    assert clients(inbox.take(8)) == [2] * 8


async def test_what_a_turn_left_out_is_in_the_next_whoever_waits() -> None:
    room = Room(100)
    inbox = Inbox(room, 50)
    for client in range(1, 31):
        inbox.add(Named(client))
    first = inbox.take(4)
    inbox.put_back([first[2], report := Report(31)])
    assert (len(inbox), room.count, inbox.presses) == (28, 27, True)
    assert inbox.take(2) == [first[2], report]
    assert room.count == 26
    inbox.put_back([first[2], report])
    assert first[2] in inbox.clear()
    assert (inbox.take(2), room.count) == ([report], 0)


async def test_what_could_not_be_stored_goes_back_to_its_place() -> None:
    inbox = Inbox(Room(100), 1)
    for client in (1, 2, 3):
        inbox.add(Report(client))
    inbox.give_back(inbox.take(2))
    assert clients(inbox.take(9)) == [1, 2, 3]


async def test_a_client_with_a_full_share_is_refused_and_others_are_taken() -> None:
    inbox = Inbox(Room(20), 1)
    for _ in range(10):
        inbox.add(Named(1))
    with pytest.raises(TooManyRequests) as refusal:
        inbox.add(Named(1))
    assert refusal.value.retry_after_s == 1
    for client in range(2, 12):
        inbox.add(Named(client))
    with pytest.raises(TooManyRequests):
        inbox.add(Named(99))
    inbox.add(Report(99))
    inbox.add(Code(99))
    assert len(inbox) == 22


async def test_the_last_places_are_for_clients_with_nothing_waiting() -> None:
    inbox = Inbox(Room(20), 1)
    for client in (1, 2):
        for _ in range(9):
            inbox.add(Named(client))
    inbox.add(Named(3))
    with pytest.raises(TooManyRequests):
        inbox.add(Named(3))
    inbox.add(Named(4))


# The directory.


async def opened(path: Path, shards: int = 2) -> tuple[DataDirectory, Shards]:
    directory = DataDirectory.open(path, "test", wait_s=0)
    try:
        return directory, await Shards.open(directory, StoreSettings(shards=shards), NOW_MS)
    except BaseException:
        directory.close()
        raise


async def made(path: Path, shards: int = 2) -> None:
    directory, store = await opened(path, shards)
    await store.close()
    directory.close()


def files(path: Path) -> list[str]:
    return sorted(found.name for found in path.rglob("*.db"))


async def refuses(path: Path, says: str, shards: int = 2) -> None:
    """It does not start, says why, and leaves everything as it is."""
    before = files(path)
    with pytest.raises(StoreError, match=says):
        await opened(path, shards)
    assert files(path) == before


async def test_a_store_opens_again_and_keeps_its_clients(tmp_path: Path) -> None:
    await made(tmp_path)
    before = dump(tmp_path / "catalog.db")
    await made(tmp_path)
    assert dump(tmp_path / "catalog.db") == before


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("lost", [0, -1])
async def test_a_missing_shard_refuses_to_start_and_is_named(
    tmp_path: Path, shards: int, lost: int
) -> None:
    await made(tmp_path, shards)
    name = f"{range(shards)[lost]:02d}.db"
    (tmp_path / "shards" / name).unlink()
    await refuses(tmp_path, rf"shards/{name} is missing", shards)


async def test_shards_that_are_all_missing_refuse_to_start(tmp_path: Path) -> None:
    await made(tmp_path)
    shutil.rmtree(tmp_path / "shards")
    await refuses(tmp_path, r"shards/00\.db is missing")


async def test_an_empty_shard_refuses_to_start_and_is_named(tmp_path: Path) -> None:
    await made(tmp_path)
    (tmp_path / "shards" / "01.db").write_bytes(b"")
    await refuses(tmp_path, r"shards/01\.db is empty")


async def test_an_extra_shard_refuses_to_start_and_is_named(tmp_path: Path) -> None:
    await made(tmp_path)
    shutil.copy(tmp_path / "shards" / "01.db", tmp_path / "shards" / "02.db")
    await refuses(tmp_path, r"shards/02\.db does not belong to this store")


async def test_a_missing_catalog_refuses_to_start_over_shards(tmp_path: Path) -> None:
    await made(tmp_path)
    (tmp_path / "catalog.db").unlink()
    await refuses(tmp_path, r"shards/00\.db does not belong to this store")


async def test_a_shard_of_another_store_refuses_to_start_and_is_named(tmp_path: Path) -> None:
    await made(tmp_path / "a")
    await made(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "shards" / "01.db", tmp_path / "a" / "shards" / "01.db")
    await refuses(tmp_path / "a", r"a/shards/01\.db is foreign: its store is")


async def test_shards_in_each_others_place_refuse_to_start(tmp_path: Path) -> None:
    await made(tmp_path)
    (tmp_path / "shards" / "00.db").rename(tmp_path / "other")
    (tmp_path / "shards" / "01.db").rename(tmp_path / "shards" / "00.db")
    (tmp_path / "other").rename(tmp_path / "shards" / "01.db")
    await refuses(tmp_path, r"shards/00\.db is foreign: its shard is 1, expected 0")


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_changed_count_refuses_to_start(tmp_path: Path, shards: int) -> None:
    await made(tmp_path)
    await refuses(tmp_path, rf"store\.shards is {shards}, but .* was made with 2", shards)


async def test_a_first_start_that_was_interrupted_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_one = SqliteShard.open

    async def interrupted(number: int, *arguments: Any, **more: Any) -> Any:
        if number == 1:
            raise OSError("power")
        return await open_one(number, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(SqliteShard, "open", interrupted)
        with pytest.raises(OSError, match="power"):
            await made(tmp_path)
    await made(tmp_path)
    (tmp_path / "shards" / "01.db").unlink()
    await refuses(tmp_path, r"shards/01\.db is missing")


async def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    directory, store = await opened(tmp_path)
    with pytest.raises(StoreError, match="in use by smsgw test"):
        await opened(tmp_path)
    await store.close()
    directory.close()


async def send_many(gateway: Gateway, client: bytes) -> None:
    for _ in range(20):
        await send(gateway, client, text="x" * 1500)


async def test_a_broken_shard_refuses_its_own_clients_and_the_others_go_on(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "PROBE_S", 0)
    gateway = await gateway_of({"store": {"shards": 2}}, serve=False)
    shards: dict[int, bytes] = {}
    while len(shards) < 2:
        client = await add_client(gateway, 10_000)
        shards[gateway.shards.catalog.shard_of_slot[slot_of(client)]] = client
    broken = make_unreliable(gateway.shards.stores[0])
    broken.execute("PRAGMA query_only = 1")
    with pytest.raises(StorageUnavailable):
        await send_many(gateway, shards[0])
    await send_many(gateway, shards[1])
    assert list(gateway.trouble()) == ["shard 0"]
    assert (await account_of(gateway, shards[0])).credits_cents > 0
    broken.execute("PRAGMA query_only = 0")
    await gateway.shards.shards[0].ask(Marker())
    assert gateway.trouble() == {}
    await send_many(gateway, shards[0])
    await assert_clean(gateway)
