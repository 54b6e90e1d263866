"""Receipts in any order, any number of times, early, late or unknown: one end, and nothing lost."""

import asyncio
import random
from itertools import permutations
from typing import Any

import pytest

from smsgw.admission import Accepted
from smsgw.clock import ManualClock
from smsgw.errors import InternalError, StorageUnavailable, TooManyRequests
from smsgw.gateway import Gateway
from smsgw.ids import uuid_text
from smsgw.models import Message, Outcome, Status, Verdict
from smsgw.parked import Park, Report
from smsgw.receipts import Place
from smsgw.store.base import ShardUnavailableError
from smsgw.store.shard import Shard
from tests.conftest import OpenGateway
from tests.support import (
    Scripted,
    account_of,
    add_client,
    assert_clean,
    crash,
    final_of,
    flushed,
    message_of,
    send,
    serve_still,
    sweep,
)

BACKENDS = ("sqlite", "postgres")

FINAL = {
    "DELIVRD": Status.DELIVERED,
    "UNDELIV": Status.FAILED_PERM,
    "EXPIRED": Status.EXPIRED,
}
EVENTS = ("accept", "DELIVRD", "UNDELIV", "EXPIRED", "ENROUTE")


@pytest.fixture
def operator() -> Scripted:
    return Scripted()


async def serve(
    gateway_of: OpenGateway, operator: Scripted, **overrides: dict[str, Any]
) -> Gateway:
    """A gateway whose operator does what the test says, and whose sweeper waits for the test."""
    gateway = await gateway_of({"server": {"shutdown_s": 0.02}, **overrides}, serve=False)
    gateway.fleet.providers = {"mock": operator}
    await serve_still(gateway)
    return gateway


async def submitted(gateway: Gateway, client: bytes) -> Message:
    answer = await send(gateway, client)
    assert isinstance(answer, Accepted)
    return answer.message


async def accepted(
    gateway: Gateway, operator: Scripted, client: bytes, identifier: str | None
) -> Message:
    """A message that the operator knows by an id."""
    message = await submitted(gateway, client)
    operator.accept(await operator.next(), identifier)
    await flushed(gateway)
    return message


async def status_of(gateway: Gateway, message: Message) -> int:
    return (await message_of(gateway, message)).status


async def receipts_beside(gateway: Gateway, message: Message) -> list[str | None]:
    rows = await gateway.shards.of_message(message.id).store.read("get_events", message.number)
    return [detail for _, kind, detail in rows if kind == "receipt"]


async def parked(gateway: Gateway) -> int:
    return sum([len(await shard.store.read("parked_list", 1000)) for shard in gateway.shards])


async def _run(
    gateway: Gateway, operator: Scripted, client: bytes, order: list[str], *, in_turn: bool
) -> None:
    message = await submitted(gateway, client)
    submission = await operator.next()
    identifier = f"id {message.number}"
    for event in order:
        if event == "accept":
            operator.accept(submission, identifier)
        else:
            operator.receipt(identifier, event)
        if in_turn:
            await flushed(gateway)
    await flushed(gateway)
    now = await message_of(gateway, message)
    deciding = [event for event in order if event in FINAL]
    assert now.status == FINAL[deciding[0]], order
    assert (now.held_cents, now.charged_cents) == (0, 5 * (now.status == Status.DELIVERED))
    # One receipt has decided; every other one is kept beside the message.
    others = await receipts_beside(gateway, message)
    assert len(others) == len(order) - 2, order


async def test_every_order_of_answer_and_receipts_ends_once(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway, 10_000)
    for order in permutations(EVENTS):
        await _run(gateway, operator, client, list(order), in_turn=True)
    account = await account_of(gateway, client)
    assert (account.held_cents, account.charged_cents) == (0, 5 * 40)
    assert await parked(gateway) == 0
    assert gateway.receipts.parked == {}
    await assert_clean(gateway)


@pytest.mark.parametrize("in_turn", [True, False])
async def test_repeated_receipts_change_nothing(
    gateway_of: OpenGateway, operator: Scripted, in_turn: bool
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway, 10_000)
    chance = random.Random(1)
    for _ in range(60):
        order = ["accept", *chance.choices(EVENTS[1:4], k=3), *chance.choices(EVENTS[1:], k=5)]
        chance.shuffle(order)
        await _run(gateway, operator, client, order, in_turn=in_turn)
    assert await parked(gateway) == 0
    assert gateway.receipts.parked == {}
    await assert_clean(gateway)


async def test_a_receipt_that_overtakes_the_answer_is_parked_and_then_matched(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    submission = await operator.next()
    operator.receipt("7")
    await flushed(gateway)
    assert await parked(gateway) == 1
    assert await status_of(gateway, message) == Status.SENDING
    operator.accept(submission, "7")
    assert (await final_of(gateway, message)).charged_cents == 5
    await flushed(gateway)
    assert await parked(gateway) == 0


async def reported(gateway: Gateway, message: Message, identifier: str = "new") -> None:
    """A receipt with an id that is not known, and whom its message was from and to."""
    about = (message.recipient, message.sender)
    gateway.receipts.receive("mock", identifier, "DELIVRD", None, about=about)
    await gateway.receipts.drain()
    await flushed(gateway)


async def other_message(
    gateway: Gateway, clock: ManualClock, operator: Scripted, client: bytes, how: str
) -> None:
    """Another message for the same number, from the same sender."""
    if how == "alone":
        return
    await submitted(gateway, client)
    submission = await operator.next()
    if how == "without an id":
        operator.accept(submission, None)
    elif how == "known":
        operator.accept(submission, "7")
    elif how == "refused":
        operator.answer(submission, Verdict.REFUSED)
    elif how != "being sent":
        operator.answer(submission, Verdict.UNKNOWN)
        await flushed(gateway)
        clock.advance(700 if how == "given up" else 100_000)
        await sweep(gateway)
    await flushed(gateway)


@pytest.mark.parametrize(
    ("how", "adopted"),
    [
        ("alone", True),
        ("known", True),
        ("refused", True),
        ("given up long ago", True),
        ("being sent", False),
        ("without an id", False),
        ("given up", False),
    ],
)
async def test_only_what_alone_may_be_meant_gets_a_receipt_that_nobody_knows(
    gateway_of: OpenGateway, clock: ManualClock, operator: Scripted, how: str, adopted: bool
) -> None:
    gateway = await serve(gateway_of, operator, providers={"mock": {"response_timeout_s": 1e6}})
    client = await add_client(gateway)
    await other_message(gateway, clock, operator, client, how)
    message = await submitted(gateway, client)
    operator.answer(await operator.next(), Verdict.UNKNOWN)
    await flushed(gateway)
    await reported(gateway, message)
    now = await message_of(gateway, message)
    if adopted:
        assert (now.status, now.provider_message_id) == (Status.DELIVERED, "new")
    else:
        assert (now.status, now.provider_message_id) == (Status.UNCERTAIN, None)
    assert await parked(gateway) == (not adopted)
    await assert_clean(gateway)


@pytest.mark.parametrize("looked", ["now and then", "before it ends", "after a crash"])
@pytest.mark.parametrize("text", ["hello", "x" * 400], ids=["one part", "three parts"])
async def test_a_receipt_before_an_answer_that_never_comes_is_no_less_than_one_after_it(
    gateway_of: OpenGateway, clock: ManualClock, operator: Scripted, text: str, looked: str
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    sent = await send(gateway, client, text=text)
    assert isinstance(sent, Accepted)
    submission = await operator.next()
    parts = sent.message.parts
    for part in range(parts):
        await reported(gateway, sent.message, f"early {part}")
    assert await parked(gateway) == parts
    assert await status_of(gateway, sent.message) == Status.SENDING
    if looked == "after a crash":
        await crash(gateway)
        gateway = await serve(gateway_of, operator)
    else:
        operator.answer(submission, Verdict.UNKNOWN)
        await flushed(gateway)
        assert await status_of(gateway, sent.message) == Status.UNCERTAIN
    if looked == "before it ends":
        clock.advance(700)
        await sweep(gateway)
    else:
        await gateway.receipts.match_again(100)
    await flushed(gateway)
    now = await message_of(gateway, sent.message)
    assert (now.status, now.charged_cents) == (Status.DELIVERED, 5 * parts)
    assert (now.provider_message_id or "").startswith("early")
    assert await parked(gateway) == 0
    assert gateway.receipts.parked == {}
    await assert_clean(gateway)


async def test_a_parked_receipt_waits_until_only_one_message_may_be_meant(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    one, other = [await submitted(gateway, client) for _ in range(2)]
    first, second = [await operator.next() for _ in range(2)]
    await reported(gateway, one)
    operator.answer(first, Verdict.UNKNOWN)
    await flushed(gateway)
    await gateway.receipts.match_again(100)
    assert await status_of(gateway, one) == Status.UNCERTAIN
    operator.accept(second, "7")
    await flushed(gateway)
    await gateway.receipts.match_again(100)
    assert await status_of(gateway, one) == Status.DELIVERED
    assert await status_of(gateway, other) == Status.SENT
    await flushed(gateway)
    assert await parked(gateway) == 0
    await assert_clean(gateway)


@pytest.mark.parametrize("identifier", ["early", ""])
async def test_a_parked_receipt_is_of_no_message_that_was_made_after_it(
    gateway_of: OpenGateway, clock: ManualClock, operator: Scripted, identifier: str
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    meant = await submitted(gateway, client)
    first = await operator.next()
    await reported(gateway, meant, identifier)
    clock.advance(1)
    later = await submitted(gateway, client)
    for submission in (first, await operator.next()):
        operator.answer(submission, Verdict.UNKNOWN)
    await flushed(gateway)
    await gateway.receipts.match_again(100)
    assert await status_of(gateway, later) == Status.UNCERTAIN
    assert await status_of(gateway, meant) == Status.DELIVERED
    await flushed(gateway)
    assert await parked(gateway) == 0
    await assert_clean(gateway)


async def parked_elsewhere(gateway: Gateway, message: Message) -> Shard:
    """Park a receipt that is about a message, and is in another shard than that."""
    own = gateway.shards.of_message(message.id)
    home = gateway.receipts.parked.home
    identifier = next(f"x{n}" for n in range(100) if home(("mock", f"x{n}")) is not own)
    await reported(gateway, message, identifier)
    return home(("mock", identifier))


async def in_trouble(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a shard that cannot write any more, and knows it."""

    async def fail(*_: object) -> None:
        raise ShardUnavailableError("the disk is full")

    monkeypatch.setattr(shard.store, "turn", fail)
    shard.probe()
    while shard.trouble is None:
        await shard.store.read("timer_next")


def held(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Have a shard whose next turns wait for an event."""
    go_on = asyncio.Event()
    turn = shard.store.turn

    async def wait(*arguments: Any) -> Any:
        await go_on.wait()
        return await turn(*arguments)

    monkeypatch.setattr(shard.store, "turn", wait)
    return go_on


@pytest.mark.parametrize("known", [False, True], ids=["in trouble", "just when it is asked"])
async def test_a_shard_that_cannot_write_holds_up_no_timer_of_another(
    gateway_of: OpenGateway,
    clock: ManualClock,
    operator: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    monkeypatch.setattr("smsgw.sweeper.LOOK_S_MAX", 0.05)
    monkeypatch.setattr("smsgw.receipts.LOOK_S_MAX", 0.05)
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    own = gateway.shards.of_client(client)
    doubt = await submitted(gateway, client)
    home = await parked_elsewhere(gateway, doubt)
    first = await operator.next()
    retried = await send(gateway, client, to="+989121234560")
    assert isinstance(retried, Accepted)
    operator.answer(await operator.next(), Verdict.FAILED)
    operator.answer(first, Verdict.UNKNOWN)
    await flushed(gateway)
    assert await status_of(gateway, retried.message) == Status.FAILED_TEMP
    await in_trouble(home, monkeypatch)
    if known:
        # It gets into trouble behind our back.
        home.trouble = None
    clock.advance(700)
    (sweeper,) = [one for one in gateway._sweepers if one._shard is own]
    async with asyncio.timeout(5):
        await gateway.receipts.match_again(100)
        await sweeper.sweep()
    assert await status_of(gateway, retried.message) in (Status.QUEUED, Status.SENDING)
    assert own.trouble is None
    monkeypatch.undo()
    while home.trouble is not None:
        await home.store.read("timer_next")
    await flushed(gateway)
    await assert_clean(gateway)


async def test_a_shard_that_does_not_answer_holds_up_no_look_at_what_is_parked(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.receipts.LOOK_S_MAX", 0.05)
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    await parked_elsewhere(gateway, message)
    operator.answer(await operator.next(), Verdict.UNKNOWN)
    await flushed(gateway)
    go_on = held(gateway.shards.of_message(message.id), monkeypatch)
    async with asyncio.timeout(5):
        for _ in range(3):
            await gateway.receipts.match_again(100)
    assert len(gateway.receipts._tasks) == 1, "nothing is lined up behind what is under way"
    assert await status_of(gateway, message) == Status.UNCERTAIN
    go_on.set()
    await flushed(gateway)
    assert await status_of(gateway, message) == Status.DELIVERED
    assert await receipts_beside(gateway, message) == []
    assert await parked(gateway) == 0
    await assert_clean(gateway)


async def test_a_parked_receipt_that_is_being_forgotten_is_applied_once(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    home = await parked_elsewhere(gateway, message)
    operator.answer(await operator.next(), Verdict.UNKNOWN)
    await flushed(gateway)
    go_on = held(home, monkeypatch)
    async with asyncio.timeout(5):
        for _ in range(3):
            await gateway.receipts.match_again(100)
    assert await status_of(gateway, message) == Status.DELIVERED
    assert await receipts_beside(gateway, message) == []
    assert await parked(gateway) == gateway.receipts.parked.rows == 1
    go_on.set()
    await flushed(gateway)
    assert await parked(gateway) == gateway.receipts.parked.rows == 0
    assert gateway.receipts.parked == {}
    await assert_clean(gateway)


async def test_what_is_in_doubt_is_looked_at_in_turn(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    messages = []
    for index in range(5):
        sent = await send(gateway, client, to=f"+98912123456{index}")
        assert isinstance(sent, Accepted)
        messages.append(sent.message)
        submission = await operator.next()
        if index == 4:
            await reported(gateway, sent.message)
        operator.answer(submission, Verdict.UNKNOWN)
        await flushed(gateway)
    for _ in range(3):
        await gateway.receipts.match_again(2)
    assert [await status_of(gateway, one) for one in messages] == [
        *[Status.UNCERTAIN] * 4,
        Status.DELIVERED,
    ]


def same_home(gateway: Gateway, count: int, shard: Shard) -> list[str]:
    """Ids whose receipts are parked in a shard."""
    home = gateway.receipts.parked.home
    return [one for one in map("y{}".format, range(200)) if home(("mock", one)) is shard][:count]


async def test_where_several_may_be_meant_nothing_that_is_parked_is_read(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    messages = [await submitted(gateway, client) for _ in range(5)]
    for index in range(30):
        await reported(gateway, messages[0], f"early {index}")
    for _ in messages:
        operator.answer(await operator.next(), Verdict.UNKNOWN)
    await flushed(gateway)
    await gateway.receipts._match_next(100)
    asked: list[str] = []
    for shard in gateway.shards:

        async def read(
            statement: str, *parameters: Any, read: Any = shard.store.read
        ) -> list[tuple[Any, ...]]:
            asked.append(statement)
            rows: list[tuple[Any, ...]] = await read(statement, *parameters)
            return rows

        monkeypatch.setattr(shard.store, "read", read)
    await gateway.receipts._resolve_next(100)
    shards = len(gateway.shards.shards)
    assert asked.count("uncertain_of") == shards, "once for all of them"
    assert len(asked) <= 3 * shards
    monkeypatch.undo()


async def test_all_of_what_is_parked_about_a_message_in_doubt_is_looked_at(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.parked.READ_MAX", 2)
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    submission = await operator.next()
    # Something is said of parts of another message, in receipts about the same number.
    other = await send(gateway, client, to="+989121234560", text="x" * 400)
    assert isinstance(other, Accepted)
    others, about = (uuid_text(other.message.id),), (message.recipient, message.sender)
    *bad, good = same_home(gateway, 6, gateway.receipts.parked.home(("mock", "y0")))
    for identifier in bad:
        await gateway.receipts.take("mock", identifier, "DELIVRD", None, others, about)
    await reported(gateway, message, good)
    operator.answer(submission, Verdict.UNKNOWN)
    await flushed(gateway)
    await gateway.receipts.match_again(100)
    await flushed(gateway)
    assert await status_of(gateway, message) == Status.DELIVERED
    assert await parked(gateway) == len(bad)
    await assert_clean(gateway)


async def test_a_shard_that_cannot_be_read_keeps_no_doubt_of_another_from_being_looked_at(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    own = gateway.shards.of_client(client)
    message = await submitted(gateway, client)
    (identifier,) = same_home(gateway, 1, own)
    await gateway.receipts.take("mock", "first of all", "DELIVRD", None)
    reference = uuid_text(message.id)
    # Before it is in doubt it is not meant yet.
    row = (identifier, reference, gateway.clock.now_ms(), "DELIVRD", None, None, None)
    await own.ask(Park(("parked_add", ("mock", *row))))
    await gateway.receipts.parked.open()
    operator.answer(await operator.next(), Verdict.UNKNOWN)
    await flushed(gateway)

    async def fail(*_: object) -> None:
        raise StorageUnavailable(retry_after_s=1, outcome="none")

    for shard in gateway.shards:
        if shard is not own:
            monkeypatch.setattr(shard.store, "read", fail)
    await gateway.receipts.match_again(100)
    monkeypatch.undo()
    await flushed(gateway)
    assert await status_of(gateway, message) == Status.DELIVERED
    assert await parked(gateway) == 1
    await assert_clean(gateway)


@pytest.mark.parametrize("text", ["hello", "x" * 400], ids=["one part", "three parts"])
@pytest.mark.parametrize(
    ("verdict", "status"),
    [(Verdict.ACCEPTED, Status.SENT), (Verdict.THROTTLED, Status.QUEUED)],
)
async def test_a_receipt_is_not_given_to_what_was_in_doubt_until_just_now(
    gateway_of: OpenGateway,
    operator: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    verdict: Verdict,
    status: Status,
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    sent = await send(gateway, client, text=text)
    assert isinstance(sent, Accepted)
    submission = await operator.next()
    operator.answer(submission, Verdict.UNKNOWN)
    await flushed(gateway)
    look = gateway.receipts._in_doubt

    async def answered_meanwhile(report: Report) -> Place | None:
        place = await look(report)
        assert place is not None
        gateway.allotter.stopped = True
        operator.answer(submission, verdict, provider_message_id="7")
        return place

    monkeypatch.setattr(gateway.receipts, "_in_doubt", answered_meanwhile)
    await reported(gateway, sent.message)
    assert await status_of(gateway, sent.message) == status
    assert await receipts_beside(gateway, sent.message) == []
    assert await parked(gateway) == 1
    await assert_clean(gateway)


@pytest.mark.parametrize("seed", range(8))
async def test_a_receipt_and_the_answer_at_the_same_moment_never_miss_each_other(
    gateway_of: OpenGateway, operator: Scripted, seed: int
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway, 10_000)
    chance = random.Random(seed)
    messages = [await submitted(gateway, client) for _ in range(20)]
    works = []
    for index in range(20):
        submission = await operator.next()
        identifier = f"id {index}"
        for word in chance.choices(["ENROUTE", "ACCEPTD"], k=chance.randint(0, 3)):
            operator.receipt(identifier, word)
            await _rounds(gateway, chance.randint(0, 8))
        operator.receipt(identifier)
        await _rounds(gateway, chance.randint(0, 8))
        works.append((identifier, submission))
        operator.accept(submission, identifier)
    for message in messages:
        assert (await final_of(gateway, message)).status == Status.DELIVERED
    await flushed(gateway)
    assert await parked(gateway) == 0
    assert gateway.receipts.parked == {}


async def _rounds(gateway: Gateway, count: int) -> None:
    """Let some trips to the reading threads go by."""
    for _ in range(count):
        await gateway.shards.shards[0].store.read("parked_keys")


async def test_an_unknown_id_is_on_disk_before_it_is_acknowledged(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of()
    await gateway.receipts.take("mock", "never heard of", "DELIVRD", "000")
    await crash(gateway)
    gateway = await gateway_of(serve=False)
    assert set(gateway.receipts.parked) == {("mock", "never heard of")}
    rows = [row for shard in gateway.shards for row in await shard.store.read("parked_list", 10)]
    assert [(row[0], row[1], row[3], row[4]) for row in rows] == [
        ("mock", "never heard of", "DELIVRD", "000")
    ]


async def test_what_was_parked_is_matched_after_a_restart(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    await gateway.receipts.take("mock", "9", "UNDELIV", None)
    await gateway.close()
    gateway = await serve(gateway_of, operator)
    message = await accepted(gateway, operator, client, "9")
    assert (await final_of(gateway, message)).status == Status.FAILED_PERM
    await flushed(gateway)
    assert await parked(gateway) == 0


async def test_a_receipt_finds_its_message_after_a_restart(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    clients = [await add_client(gateway) for _ in range(6)]
    messages = [
        await accepted(gateway, operator, client, f"id {index}")
        for index, client in enumerate(clients)
    ]
    await crash(gateway)
    gateway = await serve(gateway_of, operator)
    assert {known.provider_message_id for known in operator.restored} == {
        f"id {index}" for index in range(6)
    }
    for index in range(6):
        operator.receipt(f"id {index}")
    for message in messages:
        assert (await final_of(gateway, message)).status == Status.DELIVERED


@pytest.mark.parametrize("restart", [False, True])
async def test_of_repeated_ids_the_newest_live_one_wins(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, restart: bool
) -> None:
    gateway = await serve(gateway_of, operator)
    messages = []
    for _ in range(3):
        clock.advance(1)
        messages.append(await accepted(gateway, operator, await add_client(gateway), "1"))
    oldest, middle, newest = messages
    if restart:
        await crash(gateway)
        gateway = await serve(gateway_of, operator)
    for message, word in ((newest, "DELIVRD"), (middle, "UNDELIV"), (oldest, "DELIVRD")):
        assert await status_of(gateway, message) == Status.SENT
        operator.receipt("1", word)
        await flushed(gateway)
        assert await status_of(gateway, message) == FINAL[word]
    await gateway.receipts.take("mock", "1", "EXPIRED", None)
    assert await receipts_beside(gateway, newest) == ["EXPIRED"]
    assert await parked(gateway) == 0
    await assert_clean(gateway)


async def test_ids_of_other_operators_are_other_ids(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await accepted(gateway, operator, client, "1")
    await gateway.receipts.take("other", "1", "DELIVRD", None)
    assert await status_of(gateway, message) == Status.SENT
    assert await parked(gateway) == 1


@pytest.mark.parametrize("identifier", ["", None])
async def test_an_empty_id_is_no_id(
    gateway_of: OpenGateway, operator: Scripted, identifier: str | None
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await accepted(gateway, operator, client, identifier)
    await gateway.receipts.take("mock", "", "DELIVRD", None)
    await gateway.receipts.match_again(100)
    assert await status_of(gateway, message) == Status.SENT


async def test_what_is_parked_is_dropped_after_its_time(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"receipt_parked_s": 100.0})
    await gateway.receipts.take("mock", "old", "DELIVRD", None)
    clock.advance(60)
    await gateway.receipts.take("mock", "young", "DELIVRD", None)
    await gateway.receipts.take("mock", "old", "UNDELIV", None)
    clock.advance(41)
    await sweep(gateway)
    assert await parked(gateway) == 2
    # Something is still parked under the older one's id.
    assert set(gateway.receipts.parked) == {("mock", "old"), ("mock", "young")}
    clock.advance(60)
    await sweep(gateway)
    assert await parked(gateway) == 0
    assert gateway.receipts.parked == {}


async def test_what_is_parked_is_looked_at_again_however_much_there_is(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await accepted(gateway, operator, client, "late")
    for index in range(150):
        await gateway.receipts.take("mock", f"unknown {index}", "DELIVRD", None)
    # As a crash between the two halves of a match would leave it.
    key = ("mock", "late")
    row = ("parked_add", (*key, None, gateway.clock.now_ms(), "DELIVRD", None, None, None))
    await gateway.receipts.parked.home(key).ask(Park(row))
    await gateway.receipts.parked.open()
    gateway.receipts._ids.clear()
    for _ in range(4):
        await gateway.receipts.match_again(50)
    await flushed(gateway)
    assert await status_of(gateway, message) == Status.DELIVERED
    assert await parked(gateway) == 150


@pytest.mark.parametrize("known", [True, False])
async def test_a_receipt_outlasts_a_disk_that_cannot_be_written(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    submission = await operator.next()
    if known:
        operator.accept(submission, "1")
        await flushed(gateway)

    async def fail(*_: object) -> None:
        raise ShardUnavailableError("the disk is full")

    for store in gateway.shards.stores.values():
        monkeypatch.setattr(store, "turn", fail)
    operator.receipt("1")
    shard = gateway.receipts.parked.home(("mock", "1"))
    watched = gateway.shards.of_message(message.id) if known else shard
    while watched.trouble is None:
        await shard.store.read("timer_next")
    monkeypatch.undo()
    if not known:
        operator.accept(submission, "1")
    assert (await final_of(gateway, message)).status == Status.DELIVERED
    await flushed(gateway)
    assert await parked(gateway) == 0
    await assert_clean(gateway)


async def test_too_many_parked_receipts_are_refused_and_known_ones_still_taken(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.parked.PARKED_MAX", 2)
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await accepted(gateway, operator, client, "1")
    for identifier in ("a", "b"):
        await gateway.receipts.take("mock", identifier, "DELIVRD", None)
    with pytest.raises(TooManyRequests):
        await gateway.receipts.take("mock", "c", "DELIVRD", None)
    await gateway.receipts.take("mock", "1", "DELIVRD", None)
    assert await status_of(gateway, message) == Status.DELIVERED


@pytest.mark.parametrize("word", ["DELIVRD", "delivered", "Delivered"])
async def test_words_are_read_in_any_case(
    gateway_of: OpenGateway, operator: Scripted, word: str
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await accepted(gateway, operator, client, "1")
    operator.receipt("1", word)
    assert (await final_of(gateway, message)).status == Status.DELIVERED


async def test_ids_beyond_the_map_in_memory_are_found_on_disk(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.receipts.IDS_MAX", 3)
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    messages = [await accepted(gateway, operator, client, f"id {n}") for n in range(10)]
    assert len(gateway.receipts._ids) == 3
    for index in range(10):
        operator.receipt(f"id {index}")
    for message in messages:
        assert (await final_of(gateway, message)).status == Status.DELIVERED


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("early", [True, False])
async def test_a_receipt_is_found_by_each_spelling_of_its_id_whenever_it_comes(
    gateway_of: OpenGateway, operator: Scripted, early: bool, restart: bool
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    if early:
        gateway.receipts.receive("mock", "in a TLV", "DELIVRD", None, others=("in its text",))
        await flushed(gateway)
    if restart:
        await gateway.close()
        gateway = await serve(gateway_of, operator)
    message = await accepted(gateway, operator, client, "in its text")
    if not early:
        gateway.receipts.receive("mock", "in a TLV", "DELIVRD", None, others=("in its text",))
        await flushed(gateway)
    assert await status_of(gateway, message) == Status.DELIVERED
    assert await parked(gateway) == 0


async def test_a_spelling_of_several_parked_receipts_finds_all_of_them(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    for first in ("one", "two"):
        gateway.receipts.receive("mock", first, "DELIVRD", None, others=("text",))
        await flushed(gateway)
    message = await accepted(gateway, operator, client, "text")
    assert await status_of(gateway, message) == Status.DELIVERED
    assert await parked(gateway) == 0
    assert gateway.receipts.parked == {}


async def test_an_id_that_an_operator_has_for_all_its_messages_is_no_repetition(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.parked.OF_ONE_ID_MAX", 4)
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    for index in range(10):
        about = (989121234560 + index, "ACME")
        for _ in range(6 if index == 3 else 1):
            await gateway.receipts.take("mock", "0", "DELIVRD", None, about=about)
    assert await parked(gateway) == 9 + 4
    sent = await send(gateway, client, to="+989121234569")
    assert isinstance(sent, Accepted)
    operator.answer(await operator.next(), Verdict.UNKNOWN)
    await flushed(gateway)
    await gateway.receipts.match_again(100)
    await flushed(gateway)
    assert await status_of(gateway, sent.message) == Status.DELIVERED
    assert await parked(gateway) == 8 + 4
    await assert_clean(gateway)


async def test_what_cannot_be_read_is_not_forgotten_when_the_others_are_learned_of(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await serve(gateway_of, operator)
    for identifier in ("a", "b", "c", "d"):
        await gateway.receipts.take("mock", identifier, "DELIVRD", None)
    known = dict(gateway.receipts.parked)
    shut = gateway.receipts.parked.home(("mock", "a"))
    (identifier,) = same_home(gateway, 1, next(one for one in gateway.shards if one is not shut))
    key = ("mock", identifier)
    row = ("parked_add", (*key, None, gateway.clock.now_ms(), "DELIVRD", None, None, None))
    await gateway.receipts.parked.home(key).ask(Park(row))

    async def fail(*_: object) -> None:
        raise StorageUnavailable(retry_after_s=1, outcome="none")

    monkeypatch.setattr(shut.store, "read", fail)
    with pytest.raises(StorageUnavailable):
        await gateway.receipts.parked.open()
    monkeypatch.undo()
    assert gateway.receipts.parked == {**known, key: 1}


@pytest.mark.parametrize("identifier", ["", "same", None], ids=["no id", "one id", "ids"])
async def test_what_has_found_its_message_leaves_nothing_in_memory(
    gateway_of: OpenGateway, clock: ManualClock, operator: Scripted, identifier: str | None
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"receipt_parked_s": 100.0})
    parked_now = gateway.receipts.parked
    await gateway.receipts.take("mock", "same", "DELIVRD", None, ("stays",), (1, "ACME"))
    for index in range(30):
        name = f"id {index}" if identifier is None else identifier
        await gateway.receipts.take("mock", name, "DELIVRD", None, (f"other {index}",))
        key = ("mock", name)
        for report in await parked_now.of(key):
            if report.ids[-1] != "stays":
                parked_now.remove(report)
        await flushed(gateway)
    stays = [("mock", "same"), ("mock", "stays")]
    assert parked_now == {("mock", "same"): 1}
    assert sorted(parked_now.next(100)) == stays
    await parked_now.open()
    assert sorted(parked_now.next(100)) == stays
    clock.advance(101)
    await sweep(gateway)
    assert (parked_now, parked_now.next(100)) == ({}, [])


async def test_where_nothing_is_parked_nothing_is_looked_at(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await serve(gateway_of, operator)

    async def read(*_: object) -> None:
        pytest.fail("it was looked at")

    for shard in gateway.shards:
        monkeypatch.setattr(shard.store, "read", read)
    await gateway.receipts.match_again(100)
    monkeypatch.undo()


async def test_what_is_parked_is_bounded_in_all_and_for_each_id(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.parked.PARKED_MAX", 10)
    monkeypatch.setattr("smsgw.parked.OF_ONE_ID_MAX", 4)
    gateway = await serve(gateway_of, operator)
    for _ in range(20):
        await gateway.receipts.take("mock", "same", "DELIVRD", None)
    assert gateway.receipts.parked == {("mock", "same"): 4}
    told: list[bool] = []
    for index in range(20):
        about = (989121234567, "ACME")
        identifier = "" if index % 2 else f"id {index}"
        gateway.receipts.receive(
            "mock", identifier, "DELIVRD", None, about=about, stored=told.append
        )
    await gateway.receipts.drain()
    assert (told.count(True), told.count(False)) == (6, 14)
    assert await parked(gateway) == gateway.receipts.parked.rows == 10
    # The place of what has found its message is free again.
    client = await add_client(gateway)
    message = await accepted(gateway, operator, client, "same")
    assert await status_of(gateway, message) == Status.DELIVERED
    assert await parked(gateway) == gateway.receipts.parked.rows == 6


async def test_what_decides_nothing_is_kept_and_leaves_half_of_the_room(
    gateway_of: OpenGateway, operator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.parked.PARKED_MAX", 10)
    monkeypatch.setattr("smsgw.parked.OF_ONE_ID_MAX", 4)
    gateway = await serve(gateway_of, operator)
    for identifier in ("same", "same", "same", "a", "b", "c", "d"):
        await gateway.receipts.take("mock", identifier, "ENROUTE", None)
    assert await parked(gateway) == gateway.receipts.parked.rows == 5
    for identifier in ("same", "same", "same", "e", "f", "g"):
        await gateway.receipts.take("mock", identifier, "DELIVRD", None)
    assert await parked(gateway) == gateway.receipts.parked.rows == 10
    page = gateway.metrics.render().decode()
    assert 'smsgw_receipts_total{result="repeated"} 2.0' in page
    assert 'smsgw_receipts_total{result="undecided"} 1.0' in page
    client = await add_client(gateway)
    message = await accepted(gateway, operator, client, "same")
    assert await status_of(gateway, message) == Status.DELIVERED
    assert len(await receipts_beside(gateway, message)) == 3


async def test_what_can_never_be_matched_is_not_parked(
    gateway_of: OpenGateway, operator: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await serve(gateway_of, operator)
    about = (989121234567, "ACME")
    told: list[bool] = []
    for identifier, word, whose in [
        ("", "DELIVRD", None),
        ("", "UNDELIV", None),
        ("", "ENROUTE", about),
        ("", "no word", None),
    ]:
        gateway.receipts.receive("mock", identifier, word, None, about=whose, stored=told.append)
    await gateway.receipts.drain()
    assert told == [True] * 4, "it is acknowledged: another time it would say no more"
    assert await parked(gateway) == 0
    assert gateway.receipts.parked == {}
    assert caplog.text.count("names no message") == 1
    page = gateway.metrics.render().decode()
    assert 'smsgw_receipts_total{result="nameless"} 2.0' in page
    assert 'smsgw_receipts_total{result="undecided"} 2.0' in page


@pytest.mark.parametrize("text", ["hello", "x" * 400], ids=["one part", "three parts"])
@pytest.mark.parametrize("early", [True, False])
async def test_a_receipt_that_repeats_our_reference_resolves_what_is_in_doubt(
    gateway_of: OpenGateway, operator: Scripted, early: bool, text: str
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    sent, twin = [await send(gateway, client, text=text) for _ in range(2)]
    assert isinstance(sent, Accepted)
    assert isinstance(twin, Accepted)
    submissions = [await operator.next() for _ in range(2)]
    if not early:
        for submission in submissions:
            operator.answer(submission, Verdict.UNKNOWN)
        await flushed(gateway)
    for part in range(sent.message.parts):
        assert await status_of(gateway, sent.message) in (Status.SENDING, Status.UNCERTAIN)
        gateway.receipts.receive(
            "mock", f"id {part}", "DELIVRD", None, others=(uuid_text(sent.message.id),)
        )
        await flushed(gateway)
    if early:
        for submission in submissions:
            operator.answer(submission, Verdict.UNKNOWN)
        await flushed(gateway)
        await gateway.receipts.match_again(100)
    now = await message_of(gateway, sent.message)
    assert (now.status, now.charged_cents) == (Status.DELIVERED, 5 * now.parts)
    assert (now.provider_message_id or "").startswith("id ")
    assert await status_of(gateway, twin.message) == Status.UNCERTAIN
    await flushed(gateway)
    assert await parked(gateway) == 0
    await assert_clean(gateway)


@pytest.mark.parametrize("text", ["hello", "x" * 400], ids=["one part", "three parts"])
async def test_our_reference_does_not_say_which_attempt_or_part_is_meant(
    gateway_of: OpenGateway, clock: ManualClock, operator: Scripted, text: str
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"on_uncertain": "resend"})
    client = await add_client(gateway)
    sent = await send(gateway, client, text=text)
    assert isinstance(sent, Accepted)
    operator.answer(await operator.next(), Verdict.UNKNOWN)
    await flushed(gateway)
    clock.advance(100)
    await sweep(gateway)
    submission = await operator.next()
    reference = uuid_text(sent.message.id)
    gateway.receipts.receive("mock", "first", "UNDELIV", None, others=(reference,))
    await flushed(gateway)
    assert await status_of(gateway, sent.message) == Status.SENDING
    parts = sent.message.parts
    answers = {n: Outcome(Verdict.ACCEPTED, f"second {n}") for n in range(1, parts + 1)}
    operator.answer(submission, Verdict.ACCEPTED, parts=answers)
    await flushed(gateway)
    word = "UNDELIV" if parts == 1 else "DELIVRD"
    gateway.receipts.receive("mock", "first too", word, None, others=(reference,))
    await flushed(gateway)
    assert await status_of(gateway, sent.message) == Status.SENT
    await assert_clean(gateway)


async def test_a_parked_receipt_that_cannot_be_applied_holds_up_nothing(
    gateway_of: OpenGateway,
    clock: ManualClock,
    operator: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await submitted(gateway, client)
    await reported(gateway, message)
    operator.answer(await operator.next(), Verdict.UNKNOWN)
    await flushed(gateway)

    async def fail(report: Report) -> bool:
        raise InternalError

    monkeypatch.setattr(gateway.receipts, "_adopt", fail)
    await gateway.receipts.match_again(100)
    clock.advance(700)
    await sweep(gateway)
    assert await status_of(gateway, message) == Status.UNKNOWN
    assert await parked(gateway) == 1
    assert "could not be stored" in caplog.text
