"""The whole line in one process: accepted, sent, reported, captured."""

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
