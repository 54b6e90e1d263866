"""Starting is recovery: whatever was under way when the process ended is decided before serving."""

from typing import Any

import pytest

from smsgw.accounts import PauseClient
from smsgw.admission import Accepted, AdmitBatch, BatchProgress, Replay, key_use
from smsgw.clock import ManualClock
from smsgw.entrance import Wish
from smsgw.gateway import Gateway
from smsgw.models import ANSWER_BATCH, ANSWER_RUNNING, Lane, Message, Reason, Status, Verdict
from smsgw.recovery import STEP_MAX, recover_flights
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
    sweep,
)

BACKENDS = ("sqlite", "postgres")

NOBODY: dict[str, Any] = {"providers": {"mock": {"enabled": False}}}


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


async def in_flight(
    gateway: Gateway, operator: Scripted, client: bytes, count: int
) -> list[Message]:
    """So many messages that the operator holds."""
    progress = await send_batch(gateway, client, [Wish(DELIVERED, "ACME", "x")] * count)
    assert isinstance(progress, BatchProgress)
    for _ in range(count):
        await operator.next()
    return [result.message for result in progress.results.values() if isinstance(result, Accepted)]


async def statuses(gateway: Gateway, messages: list[Message]) -> list[int]:
    return [(await message_of(gateway, message)).status for message in messages]


@pytest.mark.parametrize(
    ("on_uncertain", "status", "reason", "held"),
    [
        ("wait", Status.UNCERTAIN, None, 5),
        ("resend", Status.FAILED_TEMP, None, 5),
        ("fail", Status.UNKNOWN, Reason.UNCERTAIN, 0),
    ],
)
async def test_what_was_being_sent_is_decided_by_on_uncertain(
    gateway_of: OpenGateway,
    operator: Scripted,
    on_uncertain: str,
    status: Status,
    reason: str | None,
    held: int,
) -> None:
    policy: dict[str, Any] = {"delivery": {"on_uncertain": on_uncertain}}
    gateway = await serve(gateway_of, operator, **policy)
    client = await add_client(gateway)
    message = await sent(gateway, client)
    await operator.next()
    await crash(gateway)
    gateway = await serve(gateway_of, operator, **policy)
    now = await message_of(gateway, message)
    assert (now.status, now.reason, now.held_cents, now.attempts) == (status, reason, held, 1)
    assert gateway.allotter.links["mock"].in_flight == 0
    await assert_clean(gateway)


@pytest.mark.parametrize("lane", [Lane.REGULAR, Lane.EXPRESS])
async def test_what_is_resent_goes_out_at_once_and_is_charged_once(
    gateway_of: OpenGateway, operator: Scripted, clock: ManualClock, lane: Lane
) -> None:
    policy: dict[str, Any] = {"delivery": {"on_uncertain": "resend"}}
    gateway = await serve(gateway_of, operator, **policy)
    client = await add_client(gateway)
    message = await sent(gateway, client, lane=lane)
    first = await operator.next()
    await crash(gateway)
    gateway = await serve(gateway_of, operator, **policy)
    await sweep(gateway)
    second = await operator.next()
    assert (second.attempt, second.reference) == (2, first.reference)
    for submission in (second, first):
        operator.accept(submission, f"{submission.attempt}")
        operator.receipt(f"{submission.attempt}")
    done = await final_of(gateway, message)
    await flushed(gateway)
    account = await account_of(gateway, client)
    assert done.status == Status.DELIVERED
    assert (account.charged_cents, account.held_cents) == (message.cost_cents, 0)
    await assert_clean(gateway)


async def test_more_than_one_step_of_flights_is_recovered(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway, 10_000)
    messages = await in_flight(gateway, operator, client, STEP_MAX + 50)
    await crash(gateway)
    gateway = await serve(gateway_of, operator)
    assert await statuses(gateway, messages) == [Status.UNCERTAIN] * len(messages)
    await assert_clean(gateway)


async def test_no_more_is_uncertain_after_a_crash_than_the_window_holds(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator, providers={"mock": {"window": 10}})
    client = await add_client(gateway, 10_000)
    progress = await send_batch(gateway, client, [Wish(DELIVERED, "ACME", "x")] * 100)
    assert isinstance(progress, BatchProgress)
    messages = [r.message for r in progress.results.values() if isinstance(r, Accepted)]
    await flushed(gateway)
    await crash(gateway)
    assert operator.count == 9
    gateway = await serve(gateway_of, operator)
    assert (await statuses(gateway, messages)).count(Status.UNCERTAIN) == 9


async def test_a_crash_during_recovery_is_recovered_from(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway, 10_000)
    messages = await in_flight(gateway, operator, client, 30)
    await crash(gateway)
    for _ in range(2):
        gateway = await gateway_of(serve=False)
        for shard in gateway.shards:
            await recover_flights(shard, gateway.rules)
        await crash(gateway)
    gateway = await serve(gateway_of, operator)
    assert await statuses(gateway, messages) == [Status.UNCERTAIN] * 30
    store = gateway.shards.of_client(client).store
    assert [kind for _, kind, _ in await store.read("get_events", messages[0].number)] == [
        "uncertain"
    ]
    await assert_clean(gateway)


async def test_what_waited_goes_out_in_its_old_order(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator, providers={"mock": {"window": 1}})
    client = await add_client(gateway)
    messages = [await sent(gateway, client) for _ in range(5)]
    await operator.next()
    await crash(gateway)
    gateway = await serve(gateway_of, operator, providers={"mock": {"window": 1}})
    for message in messages[1:]:
        submission = await operator.next()
        assert submission.number == message.number
        operator.answer(submission, Verdict.REFUSED)
    for message in messages[1:]:
        await final_of(gateway, message)


async def test_an_uncertain_message_is_resolved_by_what_arrives_after_the_restart(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)
    message = await sent(gateway, client)
    submission = await operator.next()
    await crash(gateway)
    gateway = await serve(gateway_of, operator)
    operator.accept(submission, "1")
    operator.receipt("1")
    assert (await final_of(gateway, message)).charged_cents == 5
    await assert_clean(gateway)


async def test_the_mock_operator_reports_again_on_what_it_had_accepted(
    gateway_of: OpenGateway,
) -> None:
    gateway = await gateway_of({"providers": {"mock": {"receipt_delay_ms": 600_000}}})
    client = await add_client(gateway)
    messages = [await sent(gateway, client) for _ in range(5)]
    await flushed(gateway)
    await flushed(gateway)
    assert await statuses(gateway, messages) == [Status.SENT] * 5
    await crash(gateway)
    gateway = await gateway_of()
    for message in messages:
        assert (await final_of(gateway, message)).status == Status.DELIVERED


async def test_a_batch_that_a_crash_interrupted_is_finished_under_its_key(
    gateway_of: OpenGateway,
) -> None:
    gateway = await gateway_of(NOBODY, serve=False)
    client = await add_client(gateway, 10_000)
    items = [gateway.entrance.draft(Wish(DELIVERED, "ACME", f"{n}")) for n in range(250)]
    key = key_use("a", "batch")
    first = AdmitBatch(client, items[:100], gateway.rules, 0, size=250, key=key)
    await gateway.shards.of_client(client).ask(first)
    await crash(gateway)
    gateway = await gateway_of(NOBODY, serve=False)
    replay = await gateway.entrance.submit_batch(client, items, key)
    assert isinstance(replay, Replay)
    assert replay.record.answer == ANSWER_RUNNING
    await gateway.entrance.resume_batch(client, items, key, replay)
    again = await gateway.entrance.submit_batch(client, items, key)
    assert isinstance(again, Replay)
    assert again.record.answer == ANSWER_BATCH
    rows = await gateway.shards.of_client(client).store.read(
        "get_batch_messages", replay.record.subject
    )
    assert [Message(*row).text for row in rows] == [f"{n}" for n in range(250)]
    assert (await account_of(gateway, client)).held_cents == 250 * 5
    await assert_clean(gateway)


@pytest.mark.parametrize("subject", ["", "mock", "client"])
async def test_a_pause_survives_a_restart_and_so_does_its_end(
    gateway_of: OpenGateway, operator: Scripted, subject: str
) -> None:
    gateway = await serve(gateway_of, operator)
    client = await add_client(gateway)

    async def pause(gateway: Gateway, *, paused: bool) -> None:
        if subject != "client":
            await gateway.pause(subject, paused=paused)
            return
        shard = gateway.shards.of_client(client)
        account = await shard.ask(PauseClient(client, paused=paused))
        if not paused:
            await gateway.unshelve(client, account.number)

    await pause(gateway, paused=True)
    before = await sent(gateway, client)
    await flushed(gateway)
    await crash(gateway)
    gateway = await serve(gateway_of, operator)
    after = await sent(gateway, client)
    await flushed(gateway)
    assert await statuses(gateway, [before, after]) == [Status.QUEUED] * 2
    assert operator.count == 0
    await pause(gateway, paused=False)
    for _ in range(2):
        operator.answer(await operator.next(), Verdict.REFUSED)
    for message in (before, after):
        assert (await final_of(gateway, message)).status == Status.FAILED_PERM
    await crash(gateway)
    gateway = await serve(gateway_of, operator)
    await sent(gateway, client)
    await operator.next()
    await assert_clean(gateway)


async def test_what_was_accepted_without_an_operator_goes_out_once_there_is_one(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway = await gateway_of(NOBODY)
    clients = [await add_client(gateway, 10_000) for _ in range(5)]
    at_ms = clock.now_ms() + 60_000
    messages = [await sent(gateway, client) for client in clients for _ in range(50)]
    messages += [await sent(gateway, client, lane=Lane.REGULAR) for client in clients]
    messages += [await sent(gateway, client, send_at_ms=at_ms) for client in clients]
    await gateway.close()
    gateway = await gateway_of()
    for message in messages[:-5]:
        assert (await final_of(gateway, message)).status == Status.DELIVERED
    clock.advance(61)
    for message in messages[-5:]:
        assert (await final_of(gateway, message)).status == Status.DELIVERED
    await assert_clean(gateway)


async def test_what_waits_for_an_operator_that_is_gone_goes_to_the_others(
    gateway_of: OpenGateway, operator: Scripted
) -> None:
    two: dict[str, Any] = {
        "mock": {"kind": "mock", "prefixes": ["+1"]},
        "other": {"kind": "mock", "prefixes": ["+98"]},
    }
    gateway = await gateway_of({"providers": two}, serve=False)
    gateway.fleet.providers = {"mock": Scripted("mock"), "other": Scripted("other")}
    await gateway.serve()
    client = await add_client(gateway)
    await gateway.pause("other", paused=True)
    waiting = [await sent(gateway, client, to="+989120000000") for _ in range(3)]
    await gateway.shards.of_client(client).ask(PauseClient(client, paused=True))
    await gateway.pause("other", paused=False)
    await flushed(gateway)
    await crash(gateway)
    gateway = await serve(gateway_of, operator)
    account = await gateway.shards.of_client(client).ask(PauseClient(client, paused=False))
    await gateway.unshelve(client, account.number)
    await gateway._look_closer()
    for _ in waiting:
        operator.answer(await operator.next(), Verdict.REFUSED)
    for message in waiting:
        assert (await final_of(gateway, message)).provider == "mock"
    await assert_clean(gateway)


async def test_ids_rise_over_restarts_even_if_the_clock_has_fallen(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway = await gateway_of(NOBODY, serve=False)
    client = await add_client(gateway)
    clock.advance(3600)
    before = await sent(gateway, client)
    await crash(gateway)
    clock._now_ms -= 3_600_000
    gateway = await gateway_of(NOBODY, serve=False)
    after = await sent(gateway, client)
    assert after.number > before.number
    assert after.id > before.id
