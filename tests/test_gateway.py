"""The whole line in one process: accepted, sent, reported, captured."""

import asyncio

import pytest

from smsgw.admission import Accepted, BatchProgress
from smsgw.codes import Decided
from smsgw.entrance import Wish
from smsgw.errors import BacklogFull, StorageUnavailable
from smsgw.ids import uuid_text
from smsgw.models import Lane, Status
from smsgw.providers.mock import ANSWER_LOST
from tests.conftest import OpenGateway
from tests.support import DELIVERED, account_of, add_client, assert_clean, final_of, send

BACKENDS = ("sqlite", "postgres")


async def test_a_message_is_held_sent_delivered_and_captured(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of()
    client = await add_client(gateway, 100)
    answer = await send(gateway, client)
    assert isinstance(answer, Accepted)
    assert answer.credits_cents == 95
    message = await final_of(gateway, answer.message)
    assert message.status == Status.DELIVERED
    assert message.charged_cents == 5
    account = await account_of(gateway, client)
    assert (account.credits_cents, account.held_cents, account.charged_cents) == (95, 0, 5)
    await assert_clean(gateway)


async def test_a_schedule_wakes_the_sweeper_instead_of_being_found_by_it(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsgw.sweeper.TICK_S", 3600.0)
    gateway = await gateway_of(manual=False)
    client = await add_client(gateway)
    answer = await send(gateway, client, send_at_ms=gateway.clock.now_ms() + 200)
    assert isinstance(answer, Accepted)
    assert answer.scheduled
    assert (await final_of(gateway, answer.message)).status == Status.DELIVERED


async def test_an_uncertain_message_is_found_by_our_name_for_it(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of()
    client = await add_client(gateway)
    answer = await send(gateway, client, ANSWER_LOST)
    assert isinstance(answer, Accepted)
    gateway.clock.advance(31)  # type: ignore[attr-defined]
    gateway.worker.time_out()
    await gateway.receipts.take("mock", uuid_text(answer.message.id), "DELIVRD", None)
    assert (await final_of(gateway, answer.message)).status == Status.DELIVERED
    await assert_clean(gateway)


async def test_codes_wait_for_a_place_instead_of_being_refused(gateway_of: OpenGateway) -> None:
    mock = {"kind": "mock", "window": 1, "latency_ms": 20}
    gateway = await gateway_of({"providers": {"mock": mock}}, manual=False)
    client = await add_client(gateway)
    wish = Wish(DELIVERED, "ACME", gateway.otp.text_for(None)[0], Lane.OTP)
    answers = await asyncio.gather(
        *(
            gateway.otp.send(
                client, gateway.entrance.draft(wish), None, None, gateway.clock.now_ms()
            )
            for _ in range(5)
        )
    )
    assert all(isinstance(answer, Decided) for answer in answers)
    assert gateway.allotter.links["mock"].otp_waiting == 0


async def test_what_is_scheduled_counts_as_waiting(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of({"limits": {"backlog_max": 3}})
    later_ms = gateway.clock.now_ms() + 60_000
    for _ in range(3):
        await send(gateway, await add_client(gateway), send_at_ms=later_ms)
    with pytest.raises(BacklogFull):
        await send(gateway, await add_client(gateway), send_at_ms=later_ms)


@pytest.mark.backends("sqlite")
async def test_a_damaged_shard_is_the_trouble_of_its_own_clients(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of(manual=False)
    clients = [await add_client(gateway) for _ in range(40)]
    damaged = gateway.shards.of_client(clients[0])
    path = damaged.store.path
    for other in (path, path.with_name(path.name + "-wal")):
        size = other.stat().st_size
        with other.open("r+b") as stream:
            stream.write(b"\x55" * size)
    with pytest.raises(StorageUnavailable):
        await damaged.store.read("clients_list")
    spared = next(one for one in clients if gateway.shards.of_client(one) is not damaged)
    answer = await send(gateway, spared)
    assert isinstance(answer, Accepted)
    assert (await final_of(gateway, answer.message)).status == Status.DELIVERED


@pytest.mark.backends("sqlite")
async def test_an_idle_gateway_writes_nothing(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of()
    client = await add_client(gateway)
    answer = await send(gateway, client)
    assert isinstance(answer, Accepted)
    await final_of(gateway, answer.message)
    gateway.clock.advance(60)  # type: ignore[attr-defined]
    for sweeper in gateway._sweepers:
        await sweeper.sweep()
    changes = [shard.store._writer.raw.total_changes for shard in gateway.shards]
    gateway.clock.advance(60)  # type: ignore[attr-defined]
    for sweeper in gateway._sweepers:
        await sweeper.sweep()
    assert [shard.store._writer.raw.total_changes for shard in gateway.shards] == changes


async def test_express_batches_at_the_same_time_share_one_capacity(
    gateway_of: OpenGateway,
) -> None:
    mock = {"kind": "mock", "window": 10, "latency_ms": 60_000}
    gateway = await gateway_of(
        {"providers": {"mock": mock}, "express": {"guarantee_s": 10.0}, "server": {"shutdown_s": 0}}
    )
    clients = [await add_client(gateway) for _ in range(3)]
    draft = gateway.entrance.draft(Wish(DELIVERED, "ACME", "now", Lane.EXPRESS))
    answers = await asyncio.gather(
        *(gateway.entrance.submit_batch(client, [draft] * 30, None) for client in clients)
    )
    accepted = [answer.batch.accepted for answer in answers if isinstance(answer, BatchProgress)]
    # 10 places, a second an answer, 10 s, of which a tenth is margin and a fifth for the others.
    assert sum(accepted) == 72
