"""Several gateways on one store: what an operator allows is shared, and so is what was parked."""

import asyncio
import shutil
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from smsgw.admission import Accepted, Replay
from smsgw.clock import ManualClock
from smsgw.codes import Decided
from smsgw.entrance import Wish
from smsgw.errors import TooManyRequests
from smsgw.gateway import Gateway
from smsgw.models import Lane, Status
from smsgw.parked import LOOK_AGAIN_S
from tests.conftest import OpenGateway
from tests.support import (
    DELIVERED,
    account_of,
    add_client,
    assert_clean,
    crash,
    final_of,
    flushed,
    send,
    send_batch,
)
from tests.test_postgres import operator_of, side_by_side

BACKENDS = ("postgres",)
GATEWAYS = 3


async def share_alike(gateways: list[Gateway], count: int) -> None:
    """Return once every gateway knows how many there are."""
    for gateway in gateways:
        server = gateway.shards.server
        assert server is not None
        while gateway.allotter.links["mock"].gateways != count:
            await server.catalog.changes("test", "1")


async def work(gateways: list[Gateway]) -> None:
    """Have every gateway claim what it may, and write down what it has."""
    for gateway in gateways:
        gateway.worker.wake_soon()
    for gateway in gateways:
        await flushed(gateway)


def in_flight(gateways: list[Gateway]) -> int:
    return sum(len(operator_of(gateway).held) for gateway in gateways)


def operators(**mock: Any) -> dict[str, Any]:
    return {"providers": {"mock": mock}, "otp": {"window_share": 0.0}}


async def waiting(gateway: Gateway, count: int) -> bytes:
    """A client with so many messages waiting."""
    client = await add_client(gateway, 5 * count)
    wishes = [Wish(DELIVERED, "ACME", "hello", Lane.REGULAR)] * count
    await send_batch(gateway, client, wishes)
    return client


async def test_gateways_share_an_operators_window_and_never_exceed_it(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    gateways = await side_by_side(gateway_of, tmp_path, GATEWAYS, **operators(window=10))
    await share_alike(gateways, GATEWAYS)
    client = await waiting(gateways[0], 60)
    answered, most, shared = 0, 0, 0
    while answered < 60:
        await work(gateways)
        held = [len(operator_of(gateway).held) for gateway in gateways]
        assert max(held) <= 10 // GATEWAYS
        most = max(most, sum(held))
        shared += all(held)
        for gateway in gateways:
            operator = operator_of(gateway)
            if operator.held:
                answered += 1
                operator.accept(operator.held.pop(0), f"id {answered}")
    assert most == 9
    assert shared > 5, "all of them send"
    await work(gateways)
    for number in range(60):
        operator_of(gateways[number % GATEWAYS]).receipt(f"id {number + 1}")
    await work(gateways)
    account = await account_of(gateways[0], client)
    assert (account.charged_cents, account.held_cents, account.credits_cents) == (300, 0, 0)
    await assert_clean(gateways[0])


async def test_gateways_share_an_operators_rate_and_never_exceed_it(
    gateway_of: OpenGateway, tmp_path: Path, clock: ManualClock
) -> None:
    limits = operators(window=1000, rate_parts_per_s=60.0)
    gateways = await side_by_side(gateway_of, tmp_path, GATEWAYS, **limits)
    await share_alike(gateways, GATEWAYS)
    await waiting(gateways[0], 200)
    before = in_flight(gateways)
    # A bucket holds some parts; so each gateway may be that far ahead of its rate.
    burst = GATEWAYS * ceil(60 / GATEWAYS * gateways[0].allotter.links["mock"].bucket.burst_s)
    for step in range(1, 101):
        clock.advance(0.02)
        await work(gateways)
        assert in_flight(gateways) - before <= 1.2 * step + burst
    assert in_flight(gateways) - before >= 95


async def test_who_is_alone_again_may_use_all_of_the_window(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    gateways = await side_by_side(gateway_of, tmp_path, GATEWAYS, **operators(window=2))
    await share_alike(gateways, GATEWAYS)
    links = [gateway.allotter.links["mock"] for gateway in gateways]
    assert [link.window for link in links] == [1, 1, 1], "each has a place at least"
    await crash(gateways[1])
    await crash(gateways[2])
    await share_alike(gateways[:1], 1)
    assert links[0].window == 2
    await waiting(gateways[0], 5)
    await work(gateways[:1])
    assert in_flight(gateways[:1]) == 2


async def test_who_comes_begins_to_send_when_the_others_have_heard_of_it(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    # It waits for three polls: what a busy machine adds to one is much less than the other two.
    limits = {**operators(window=10), "postgres": {"poll_ms": 200}}
    (first,) = await side_by_side(gateway_of, tmp_path, 1, **limits)
    link = first.allotter.links["mock"]
    assert link.window == 10
    heard: list[int] = []

    def hear(gateways: int) -> None:
        assert second.allotter.stopped, "it does not send yet"
        heard.append(gateways)

    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "data0" / "otp.key", tmp_path / "second" / "otp.key")
    settings = {"server": {"shutdown_s": 0.02}, **limits}
    second = await gateway_of(settings, serve=False, data=tmp_path / "second")
    assert first.shards.server is not None
    first.shards.server.on_gateways = hear
    await second.serve()
    assert heard == [2]
    assert second.allotter.links["mock"].window == 5


async def test_what_waits_on_all_gateways_is_promised_with_the_rate_of_all(
    gateway_of: OpenGateway, tmp_path: Path
) -> None:
    limits = operators(window=300, rate_parts_per_s=3.0)
    gateways = await side_by_side(gateway_of, tmp_path, GATEWAYS, **limits)
    await share_alike(gateways, GATEWAYS)
    for gateway in gateways:
        link = gateway.allotter.links["mock"]
        assert (link.bucket.rate_per_s, link.healthy_rate_per_s()) == (1.0, 3.0)


async def test_a_receipt_that_a_dead_gateway_has_parked_finds_its_message(
    gateway_of: OpenGateway, tmp_path: Path, clock: ManualClock
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path)
    client = await add_client(first)
    second.allotter.paused = True
    answer = await send(first, client)
    assert isinstance(answer, Accepted)
    submission = await operator_of(first).next()
    await second.receipts.take("mock", "early", "DELIVRD", None)
    await crash(second)
    assert not first.receipts.parked
    clock.advance(LOOK_AGAIN_S)
    await first._match_receipts_now()
    assert list(first.receipts.parked) == [("mock", "early")]
    operator_of(first).accept(submission, "early")
    assert (await final_of(first, answer.message)).status == Status.DELIVERED
    await flushed(first)
    assert not first.receipts.parked
    await assert_clean(first)


async def test_what_another_gateway_has_matched_is_forgotten(
    gateway_of: OpenGateway, tmp_path: Path, clock: ManualClock
) -> None:
    first, second = await side_by_side(gateway_of, tmp_path)
    await second.receipts.take("mock", "nobody's", "DELIVRD", None)
    clock.advance(LOOK_AGAIN_S)
    await first._match_receipts_now()
    assert ("mock", "nobody's") in first.receipts.parked
    clock.advance(first.settings.delivery.receipt_parked_s)
    for sweeper in (*first._sweepers, *second._sweepers):
        await sweeper.sweep()
    # Either may have looked on its own just before the sweep.
    clock.advance(LOOK_AGAIN_S)
    await asyncio.gather(first._match_receipts_now(), second._match_receipts_now())
    assert not first.receipts.parked
    assert not second.receipts.parked


async def code_to(gateway: Gateway, client: bytes, to: str) -> Decided | Replay:
    draft = gateway.entrance.draft(Wish(to, "ACME", gateway.otp.text_for(None)[0], Lane.OTP))
    return await gateway.otp.send(client, draft, None, None, gateway.clock.now_ms())


async def sent_one_of(gateways: list[Gateway], *clients: bytes) -> None:
    """Have a number's code asked for on every gateway at once, and one of them sent."""
    tasks = [
        asyncio.create_task(code_to(gateway, client, DELIVERED))
        for gateway in gateways
        for client in clients
    ]
    finished = asyncio.as_completed(tasks)
    for _ in tasks[1:]:
        with pytest.raises(TooManyRequests) as refused:
            await next(finished)
        assert refused.value.retry_after_s
    (sender,) = (gateway for gateway in gateways if operator_of(gateway).held)
    operator_of(sender).accept(await operator_of(sender).next())
    assert isinstance(await next(finished), Decided)


async def test_a_number_is_sent_codes_as_often_as_by_one_gateway(
    gateway_of: OpenGateway, tmp_path: Path, clock: ManualClock
) -> None:
    limits = {"number_interval_s": 30.0, "number_window_s": 600.0, "number_window_max": 2}
    one = {"store": {"shards": 1}, "otp": limits}
    gateways = await side_by_side(gateway_of, tmp_path, GATEWAYS, **one)
    client, other = [await add_client(gateways[0]) for _ in range(2)]
    await sent_one_of(gateways, client)
    clock.advance(29)
    for gateway in gateways:
        with pytest.raises(TooManyRequests) as refused:
            await code_to(gateway, other, DELIVERED)
        assert refused.value.retry_after_s == 1.0
    clock.advance(1)
    await sent_one_of(gateways[::-1], other)
    clock.advance(31)
    for gateway in gateways:
        with pytest.raises(TooManyRequests) as refused:
            await code_to(gateway, client, DELIVERED)
        assert refused.value.retry_after_s == 600.0 - 61
    assert sum(operator_of(gateway).count for gateway in gateways) == 2
    assert [gateway.allotter.links["mock"].in_flight for gateway in gateways] == [0] * GATEWAYS
    await assert_clean(gateways[0])


async def test_a_clients_rate_is_that_of_all_gateways(
    gateway_of: OpenGateway, tmp_path: Path, clock: ManualClock
) -> None:
    rate = {"limits": {"client_rate_per_s": 3.0}}
    gateways = await side_by_side(gateway_of, tmp_path, GATEWAYS, **rate)
    await share_alike(gateways, GATEWAYS)
    client = await add_client(gateways[0])

    async def accepted(gateway: Gateway) -> int:
        for count in range(5):
            try:
                await send(gateway, client)
            except TooManyRequests:
                return count
        return 5

    assert [await accepted(gateway) for gateway in gateways] == [1] * GATEWAYS
    clock.advance(1)
    assert [await accepted(gateway) for gateway in gateways] == [1] * GATEWAYS
    for gateway in gateways[1:]:
        await gateway.close()
    await share_alike(gateways[:1], 1)
    clock.advance(1)
    assert await accepted(gateways[0]) == 3
