"""The whole line in one process: accepted, sent, reported, captured."""

import pytest

from smsgw.admission import Accepted
from smsgw.models import Status
from tests.conftest import OpenGateway
from tests.support import account_of, add_client, assert_clean, final_of, send


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
