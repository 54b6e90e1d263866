"""What time alone does: promotions, expiries, time limits, totals, forgetting in small steps."""

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from smsgw.accounts import Adjust, Cancel
from smsgw.admission import Accepted, Admit, BatchProgress, Replay, key_use
from smsgw.archive import Archive, Filters
from smsgw.clock import ManualClock, day_of
from smsgw.entrance import Wish
from smsgw.errors import ExpressGuaranteeUnavailable, SmsgwError
from smsgw.gateway import Gateway
from smsgw.lifecycle import status_name
from smsgw.models import Lane, Message, Reason, Status, Verdict
from smsgw.store.base import ShardStore, ShardUnavailableError
from smsgw.sweeper import ForgetKeys
from tests.conftest import OpenGateway
from tests.support import (
    DELIVERED,
    Scripted,
    account_of,
    add_client,
    assert_clean,
    crash,
    final_of,
    flushed,
    message_of,
    send,
    send_batch,
    serve_still,
    still,
    sweep,
)

BACKENDS = ("sqlite", "postgres")

DAY_S = 86_400.0
HOUR_S = 3_600.0
GENERATION_S = 2 * 2**24 / 1000
"""After so long, keys are of a generation that is over."""
# Messages are kept for as long as their keys.
SHORT_KEYS = {"idempotency_s": HOUR_S}


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


async def sent(gateway: Gateway, client: bytes, **more: Any) -> Message:
    answer = await send(gateway, client, **more)
    assert isinstance(answer, Accepted)
    return answer.message


async def accepted(gateway: Gateway, operator: Scripted, client: bytes, **more: Any) -> Message:
    """A message that the operator has taken."""
    message = await sent(gateway, client, **more)
    operator.accept(await operator.next(), f"id {message.number}")
    await flushed(gateway)
    return message


async def delivered(gateway: Gateway, operator: Scripted, client: bytes, **more: Any) -> Message:
    message = await accepted(gateway, operator, client, **more)
    operator.receipt(f"id {message.number}")
    return await final_of(gateway, message)


async def status_of(gateway: Gateway, message: Message) -> int:
    return (await message_of(gateway, message)).status


async def is_stored(gateway: Gateway, message: Message) -> bool:
    shard = gateway.shards.of_message(message.id)
    return bool(await shard.store.read("get_message", message.number))


async def test_a_schedule_is_queued_when_it_is_due_and_not_before(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await sent(gateway, client, send_at_ms=clock.now_ms() + 60_000)
    clock.advance(59.999)
    await sweep(gateway)
    assert (await status_of(gateway, message), operator.count) == (Status.SCHEDULED, 0)
    clock.advance(0.001)
    await sweep(gateway)
    assert (await operator.next()).number == message.number


async def test_a_retry_waits_at_most_its_backoff(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"retry_base_s": 30.0})
    client = await add_client(gateway)
    message = await sent(gateway, client)
    for longest_s in (30, 60):
        operator.answer(await operator.next(), Verdict.FAILED)
        await flushed(gateway)
        now = await message_of(gateway, message)
        assert now.due_at_ms is not None
        assert clock.now_ms() < now.due_at_ms <= clock.now_ms() + longest_s * 1000
        clock.advance(longest_s)
        await sweep(gateway)
    assert (await operator.next()).attempt == 3


async def test_any_number_of_due_timers_fires_in_one_sweep(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway = await gateway_of({"providers": {"mock": {"window": 500}}})
    await still(gateway)
    client = await add_client(gateway, 10_000)
    wish = Wish(DELIVERED, "ACME", "x", send_at_ms=clock.now_ms() + 1000)
    progress = await send_batch(gateway, client, [wish] * 450)
    assert isinstance(progress, BatchProgress)
    clock.advance(1)
    await sweep(gateway)
    for result in progress.results.values():
        assert isinstance(result, Accepted)
        assert (await final_of(gateway, result.message)).status == Status.DELIVERED


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("validity_s", [None, 60, 604_800])
async def test_what_is_not_handed_over_in_time_expires_and_is_released(
    gateway_of: OpenGateway, clock: ManualClock, validity_s: int | None, scheduled: bool
) -> None:
    gateway = await gateway_of({"providers": {"mock": {"enabled": False}}})
    await still(gateway)
    client = await add_client(gateway)
    more = {"send_at_ms": clock.now_ms() + 3_600_000} if scheduled else {}
    message = await sent(gateway, client, validity_s=validity_s, **more)
    limit_s = (validity_s or 259_200) + (3600 if scheduled else 0)
    clock.advance(limit_s - 0.001)
    await sweep(gateway)
    assert await status_of(gateway, message) == Status.QUEUED
    # The range is walked over up to the millisecond before.
    clock.advance(0.002)
    await sweep(gateway)
    done = await message_of(gateway, message)
    assert (done.status, done.reason) == (Status.EXPIRED, Reason.VALIDITY_PASSED)
    assert (await account_of(gateway, client)).credits_cents == 1000
    assert sum(gateway.allotter._waits.values()) == 0
    await assert_clean(gateway)


async def test_what_waits_for_a_retry_expires_in_time(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"retry_base_s": 3600.0})
    client = await add_client(gateway)
    messages = [await sent(gateway, client, validity_s=60) for _ in range(20)]
    for _ in messages:
        operator.answer(await operator.next(), Verdict.FAILED)
    await flushed(gateway)
    clock.advance(61)
    await sweep(gateway)
    await flushed(gateway)
    assert [await status_of(gateway, message) for message in messages] == [Status.EXPIRED] * 20


async def test_a_message_without_a_receipt_is_given_up(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"receipt_timeout_s": HOUR_S})
    client = await add_client(gateway)
    message = await accepted(gateway, operator, client)
    clock.advance(HOUR_S - 0.001)
    await sweep(gateway)
    assert await status_of(gateway, message) == Status.SENT
    clock.advance(0.002)
    await sweep(gateway)
    done = await message_of(gateway, message)
    assert (done.status, done.reason) == (Status.UNKNOWN, Reason.RECEIPT_TIMEOUT)
    assert (await account_of(gateway, client)).credits_cents == 1000


@pytest.mark.parametrize("wait_s", [1800, 5400, 20 * HOUR_S])
async def test_the_wait_for_a_receipt_counts_from_the_submit_however_late_that_was(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, wait_s: float
) -> None:
    gateway = await serve(gateway_of, operator, delivery={"receipt_timeout_s": HOUR_S})
    client = await add_client(gateway)
    message = await sent(gateway, client, send_at_ms=clock.now_ms() + round(wait_s * 1000))
    while operator.count == 0:
        clock.advance(1800)
        await sweep(gateway)
        await flushed(gateway)
    operator.accept(await operator.next(), "1")
    await flushed(gateway)
    clock.advance(HOUR_S - 1)
    await sweep(gateway)
    assert await status_of(gateway, message) == Status.SENT
    clock.advance(2)
    await sweep(gateway)
    assert await status_of(gateway, message) == Status.UNKNOWN


async def _uncertain(gateway: Gateway, operator: Scripted, clock: ManualClock) -> Message:
    message = await sent(gateway, await add_client(gateway))
    await operator.next()
    clock.advance(31)
    gateway.worker.time_out()
    await flushed(gateway)
    assert await status_of(gateway, message) == Status.UNCERTAIN
    return message


@pytest.mark.parametrize("restarted_s", [None, 100.0, 300.0])
async def test_what_is_uncertain_for_too_long_is_unknown(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, restarted_s: float | None
) -> None:
    """Also when a restart has made the time longer than it was."""
    gateway = await serve(gateway_of, operator, delivery={"uncertain_s": 100.0})
    message = await _uncertain(gateway, operator, clock)
    if restarted_s:
        await crash(gateway)
        gateway = await serve(gateway_of, operator, delivery={"uncertain_s": restarted_s})
    clock.advance(100 - 0.001)
    await sweep(gateway)
    assert await status_of(gateway, message) == Status.UNCERTAIN
    clock.advance(0.001)
    await sweep(gateway)
    clock.advance(max(0.0, (restarted_s or 0) - 100))
    await sweep(gateway)
    done = await message_of(gateway, message)
    assert (done.status, done.reason, done.held_cents) == (Status.UNKNOWN, Reason.UNCERTAIN, 0)
    await assert_clean(gateway)


async def test_a_sweeper_outlives_a_disk_that_cannot_be_written(
    gateway_of: OpenGateway, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await gateway_of({"providers": {"mock": {"enabled": False}}})
    client = await add_client(gateway)
    message = await sent(gateway, client, validity_s=60)
    shard = gateway.shards.of_client(client)

    async def fail(*_: object) -> None:
        raise ShardUnavailableError("the disk is full")

    for store in gateway.shards.stores.values():
        monkeypatch.setattr(store, "turn", fail)
    sweepers = [task for task in gateway._beside if task.get_name() == "sweeper"]
    clock.advance(61)
    while shard.trouble is None:
        # What the sweeper asks for once a second meets the broken disk.
        await asyncio.wait(sweepers, timeout=0.05)
    monkeypatch.undo()
    assert (await final_of(gateway, message)).status == Status.EXPIRED
    assert not any(task.done() for task in sweepers)


async def test_texts_are_forgotten_before_messages(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    retention = {"texts_days": 2.0, "messages_days": 4.0}
    gateway = await serve(gateway_of, operator, retention=retention)
    client = await add_client(gateway)
    done = await delivered(gateway, operator, client)
    await gateway.pause("", paused=True)
    open_one = await sent(gateway, client, validity_s=604_800)
    clock.advance(2 * DAY_S - 1)
    await sweep(gateway)
    assert (await message_of(gateway, done)).text == "hello"
    clock.advance(2)
    await sweep(gateway)
    assert (await message_of(gateway, done)).text is None
    assert (await message_of(gateway, open_one)).text == "hello"
    clock.advance(2 * DAY_S)
    await sweep(gateway)
    assert not await is_stored(gateway, done)
    assert await is_stored(gateway, open_one)
    # What was not finished then is looked at again once a day.
    clock.advance(3 * DAY_S)
    await sweep(gateway)
    assert await status_of(gateway, open_one) == Status.EXPIRED
    for _ in range(2):
        clock.advance(DAY_S)
        await sweep(gateway)
    assert not await is_stored(gateway, open_one)
    await assert_clean(gateway)


async def test_events_and_batches_go_with_their_messages(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, retention={"messages_days": 1.0}, limits=SHORT_KEYS)
    client = await add_client(gateway)
    progress = await send_batch(gateway, client, [Wish(DELIVERED, "ACME", "x")] * 3)
    assert isinstance(progress, BatchProgress)
    for _ in range(3):
        submission = await operator.next()
        operator.accept(submission, f"{submission.number}")
        operator.receipt(f"{submission.number}", "ENROUTE")
        operator.receipt(f"{submission.number}")
    await flushed(gateway)
    store = gateway.shards.of_client(client).store
    first = progress.results[0]
    assert isinstance(first, Accepted)
    assert await store.read("get_events", first.message.number)
    clock.advance(DAY_S + 1)
    await sweep(gateway)
    assert not await store.read("get_events", first.message.number)
    assert not await store.read("get_batch", progress.batch.number)
    await assert_clean(gateway)


async def digests(store: ShardStore) -> list[bytes]:
    """The keys that are stored, of any generation."""
    return [digest for _, _, digest in await store.read("keys_old", 1 << 40, 100)]


async def test_keys_are_forgotten_after_their_time_but_not_those_that_moved_credit(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway = await gateway_of({"limits": {"idempotency_s": HOUR_S}})
    await still(gateway)
    client = await add_client(gateway)
    shard = gateway.shards.of_client(client)
    sending, adding = key_use("a", "messages"), key_use("b", "credit")
    await send(gateway, client, key=sending)
    await shard.ask(Adjust(client, 50, None, adding))
    clock.advance(HOUR_S + GENERATION_S)
    for _ in range(2):
        await sweep(gateway)
        clock.advance(61)
    assert await digests(shard.store) == []
    await shard.ask(Adjust(client, 50, None, adding))
    assert (await account_of(gateway, client)).sequence == 2 + 2 + 0


@pytest.mark.parametrize("forgets_first", [True, False])
async def test_a_key_that_is_used_anew_in_the_turn_that_forgets_it_is_kept(
    gateway_of: OpenGateway, clock: ManualClock, forgets_first: bool
) -> None:
    gateway = await gateway_of(serve=False)
    client = await add_client(gateway)
    store, key = gateway.shards.of_client(client).store, key_use("a", "messages")
    draft = gateway.entrance.draft(Wish(DELIVERED, "ACME", "hello", Lane.REGULAR))
    first, anew, again = (Admit(client, draft, key, gateway.rules, 0) for _ in range(3))
    await store.turn([first], clock.now_ms(), {})
    clock.advance(gateway.rules.idempotency_ms / 1000 + GENERATION_S)
    forgets = ForgetKeys(clock.now_ms() - gateway.rules.idempotency_ms)
    items = [forgets, anew] if forgets_first else [anew, forgets]
    await store.turn(items, clock.now_ms(), {})
    assert isinstance(anew.answer, Accepted)
    await store.turn([again], clock.now_ms(), {})
    assert isinstance(again.answer, Replay)
    assert (await account_of(gateway, client)).held_cents == 2 * 5
    await assert_clean(gateway)


async def test_many_keys_are_walked_over_in_steps(
    gateway_of: OpenGateway, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.sweeper.PURGE_MAX", 3)
    gateway = await gateway_of({"limits": {"idempotency_s": HOUR_S}}, serve=True)
    await still(gateway)
    client = await add_client(gateway)
    for index in range(10):
        await send(gateway, client, key=key_use(f"old {index}", "messages"))
    clock.advance(GENERATION_S)
    for index in range(10):
        await send(gateway, client, key=key_use(f"new {index}", "messages"))
    clock.advance(HOUR_S)
    for _ in range(12):
        await sweep(gateway)
    assert len(await digests(gateway.shards.of_client(client).store)) == 10


async def test_codes_are_forgotten_once_no_replay_can_ask_for_them(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway = await gateway_of({"limits": {"idempotency_s": HOUR_S}})
    await still(gateway)
    client = await add_client(gateway)
    masked, _ = gateway.otp.text_for(None)
    draft = gateway.entrance.draft(Wish(DELIVERED, "ACME", masked, Lane.OTP))
    await gateway.otp.send(client, draft, None, None, clock.now_ms())
    store = gateway.shards.of_client(client).store
    clock.advance(HOUR_S)
    await sweep(gateway)
    assert len(await store.read("codes_page", 0, 0, 0, 10)) == 1
    clock.advance(400)
    for _ in range(2):
        await sweep(gateway)
    assert await store.read("codes_page", 0, 0, 0, 10) == []


@pytest.mark.parametrize("step", [3, 200])
async def test_a_closed_past_becomes_one_entry_of_equal_sums(
    gateway_of: OpenGateway,
    operator: Scripted,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    monkeypatch.setattr("smsgw.sweeper.PURGE_MAX", step)
    gateway = await serve(gateway_of, operator, retention={"messages_days": 2.0}, limits=SHORT_KEYS)
    client = await add_client(gateway)
    for _ in range(6):
        await delivered(gateway, operator, client)
    clock.advance(DAY_S)
    await gateway.pause("", paused=True)
    await sent(gateway, client, validity_s=604_800)
    await gateway.pause("", paused=False)
    operator.accept(await operator.next(), "open")
    await flushed(gateway)
    before = await account_of(gateway, client)
    archive = Archive(gateway.shards)
    was, _ = await archive.statement(client, 100, None)
    assert len(was) == 1 + 12 + 1
    for _ in range(20):
        clock.advance(DAY_S / 16)
        await sweep(gateway)
    now, _ = await archive.statement(client, 100, None)
    # The opening credit and everything of the six is folded; the open hold stands.
    assert [row[1] for row in now] == [2, 5]
    assert sum(row[3] for row in now) == sum(row[3] for row in was) == before.credits_cents
    assert sum(row[4] for row in now) == sum(row[4] for row in was) == before.held_cents
    assert now[-1][5] == was[1][5]
    assert await account_of(gateway, client) == before
    await assert_clean(gateway)
    operator.receipt("open")
    await flushed(gateway)
    await assert_clean(gateway)


@dataclass
class Life:
    """Random things that happen to the messages of a few clients, the same for the same seed."""

    chance: random.Random
    clients: list[bytes]
    messages: list[Message] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    async def step(self, gateway: Gateway, operator: Scripted, clock: ManualClock) -> None:
        chance = self.chance
        match chance.randrange(8):
            case 0 | 1:
                await self._send(gateway, clock)
            case 2:
                for submission in operator.held[:3]:
                    verdict = chance.choice([*Verdict, Verdict.ACCEPTED, Verdict.ACCEPTED])
                    identifier = f"id {submission.number} {submission.attempt}"
                    if verdict is Verdict.ACCEPTED:
                        self.taken.append(identifier)
                    else:
                        identifier = ""
                    operator.answer(submission, verdict, provider_message_id=identifier)
                del operator.held[:3]
            case 3 if self.taken:
                for identifier in chance.sample(self.taken, min(3, len(self.taken))):
                    operator.receipt(identifier, chance.choice(["DELIVRD", "UNDELIV", "EXPIRED"]))
            case 4 if self.messages:
                message = chance.choice(self.messages)
                shard = gateway.shards.of_message(message.id)
                rows = await shard.store.read("client_by_number", message.client)
                with contextlib.suppress(SmsgwError):
                    await shard.ask(Cancel(rows[0][1], message.number, message.id))
            case 5:
                clock.advance(chance.choice([0.5, 10, 40, HOUR_S, 30 * HOUR_S]))
                gateway.worker.time_out()
                gateway.worker.wake_soon()
            case _:
                await sweep(gateway)
        await flushed(gateway)

    async def _send(self, gateway: Gateway, clock: ManualClock) -> None:
        chance = self.chance
        more: dict[str, Any] = {}
        if chance.random() < 0.3:
            more["send_at_ms"] = clock.now_ms() + chance.choice([2000, 90_000_000])
        if chance.random() < 0.3:
            more["validity_s"] = chance.choice([60, 3600, 604_800])
        for _ in range(chance.randint(1, 4)):
            sender = chance.choice(["ACME", "Bank", "1234"])
            text = "x" * chance.choice([5, 200])
            lane = chance.choice([Lane.REGULAR, Lane.EXPRESS])
            draft = gateway.entrance.draft(Wish(DELIVERED, sender, text, lane, **more))
            try:
                answer = await gateway.entrance.submit(chance.choice(self.clients), draft, None)
            except ExpressGuaranteeUnavailable:
                continue
            assert isinstance(answer, Accepted)
            self.messages.append(answer.message)


async def _assert_reports(gateway: Gateway, life: Life, clock: ManualClock) -> None:
    """What reports say is what the list of messages says, by every grouping."""
    archive = Archive(gateway.shards)
    days = (0, day_of(clock.now_ms()) + 40)
    for client in life.clients:
        listed, following = await archive.messages(client, Filters(), 500, None)
        assert following is None
        for group_by in ("day", "status", "sender"):
            expected: Counter[tuple[str, str]] = Counter()
            for message in listed:
                key = {
                    "day": str(day_of(message.created_at_ms)),
                    "status": status_name(message.status),
                    "sender": message.sender,
                }[group_by]
                amounts = {
                    "messages": 1,
                    "parts": message.parts,
                    "held": message.held_cents,
                    "charged": message.charged_cents,
                    "released": message.cost_cents - message.held_cents - message.charged_cents,
                    "delivered": int(message.status == Status.DELIVERED),
                }
                for name, amount in amounts.items():
                    expected[key, name] += amount
            rows, _ = await archive.report(client, *days, group_by)
            found: Counter[tuple[str, str]] = Counter()
            for index, row in enumerate(rows):
                key = row.key
                if group_by == "day":
                    key = sorted({day for day, _ in expected})[index]
                for name in ("messages", "parts", "held", "charged", "released", "delivered"):
                    found[key, name] = getattr(row, name)
            assert +found == +expected


@pytest.mark.parametrize("seed", range(6))
async def test_reports_equal_the_list_at_any_moment(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, seed: int
) -> None:
    overrides: dict[str, dict[str, Any]] = {
        "delivery": {"on_uncertain": ("wait", "resend", "fail")[seed % 3], "retry_base_s": 5.0},
        "billing": {"capture_on": ("delivered", "sent")[seed % 2]},
        # Nothing is purged here: what is listed is everything.
        "retention": {"messages_days": 3650.0, "texts_days": 3650.0},
    }
    gateway = await serve(gateway_of, operator, **overrides)
    life = Life(random.Random(seed), [await add_client(gateway, 10**6) for _ in range(3)])
    for step in range(70):
        await life.step(gateway, operator, clock)
        if step % 7 == 0:
            await _assert_reports(gateway, life, clock)
            await assert_clean(gateway)
        if step in (25, 50):
            await (crash if step == 25 else Gateway.close)(gateway)
            operator.held.clear()
            gateway = await serve(gateway_of, operator, **overrides)
    await _assert_reports(gateway, life, clock)
    await assert_clean(gateway)
    assert len(life.messages) > 20


async def test_reports_outlive_the_messages(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator, retention={"messages_days": 2.0}, limits=SHORT_KEYS)
    client = await add_client(gateway)
    first = await delivered(gateway, operator, client)
    for _ in range(2):
        await delivered(gateway, operator, client)
    archive = Archive(gateway.shards)
    day = day_of(clock.now_ms())
    before = await archive.report(client, day, day, "sender")
    assert (before[1].messages, before[1].charged, before[1].delivered) == (3, 15, 3)
    clock.advance(3 * DAY_S)
    await sweep(gateway)
    assert not await is_stored(gateway, first)
    assert await archive.report(client, day, day, "sender") == before
    await gateway.close()
    gateway = await serve(gateway_of, operator, retention={"messages_days": 2.0}, limits=SHORT_KEYS)
    assert await Archive(gateway.shards).report(client, day, day, "sender") == before


async def test_watermarks_survive_a_restart_and_nothing_is_counted_twice(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    await delivered(gateway, operator, client)
    clock.advance(10)
    await sweep(gateway)
    shard = gateway.shards.of_client(client)
    mark = await shard.store.read("meta_get", "counted_to")
    assert mark[0][0] > 0
    await crash(gateway)
    gateway = await serve(gateway_of, operator)
    shard = gateway.shards.of_client(client)
    assert await shard.store.read("meta_get", "counted_to") == mark
    await sweep(gateway)
    clock.advance(10)
    await sweep(gateway)
    day = day_of(clock.now_ms())
    _, totals = await Archive(gateway.shards).report(client, day, day, "day")
    assert (totals.messages, totals.charged) == (1, 5)
    await assert_clean(gateway)
