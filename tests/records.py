"""Rows and turns in memory, for tests of the rules: nothing here touches a file."""

from typing import Any

from smsgw.ids import NumberSource, message_id, number_at
from smsgw.models import Account, Lane, Message, Rules, Status
from smsgw.turn import Turn

NOW_MS = 1_780_000_000_000
CLIENT = bytes(range(16))
RULES = Rules()


def an_account(**changes: Any) -> Account:
    """A client with 100 cents available, unless told otherwise."""
    values: dict[str, Any] = {
        "number": 1,
        "id": CLIENT,
        "slot": 0,
        "name": "test",
        "weight": 1,
        "created_at_ms": NOW_MS,
        "credits_cents": 100,
        "held_cents": 0,
        "charged_cents": 0,
        "sequence": 1,
        "waiting": 0,
        "paused": 0,
    }
    return Account(**(values | changes))


def a_message(**changes: Any) -> Message:
    """A regular message of 5 cents, accepted a second ago and valid for a minute more."""
    number = changes.get("number", number_at(NOW_MS - 1000))
    values: dict[str, Any] = {
        "number": number,
        "id": message_id(number, 0, 0),
        "client": 1,
        "lane": int(Lane.REGULAR),
        "status": int(Status.QUEUED),
        "reason": None,
        "recipient": 15005550006,
        "sender": "ACME",
        "text": "hello",
        "ucs2": 0,
        "parts": 1,
        "cost_cents": 5,
        "held_cents": 5,
        "charged_cents": 0,
        "surcharge_cents": 0,
        "reference": None,
        "batch": None,
        "route": 0,
        "rank": 7,
        "attempts": 0,
        "provider": None,
        "provider_message_id": None,
        "last_error": None,
        "due_at_ms": None,
        "expires_at_ms": NOW_MS + 60_000,
        "submit_by_ms": None,
        "submitted_at_ms": None,
        "final_at_ms": None,
        "updated_at_ms": NOW_MS - 1000,
        "express_missed": 0,
    }
    return Message(**(values | changes))


def a_turn(
    account: Account,
    *messages: Message,
    now_ms: int = NOW_MS,
    virtual: int = 0,
    counted_to: int = 0,
) -> Turn:
    """A turn that has loaded a client and some messages of it."""
    virtuals = {(0, int(lane)): virtual for lane in Lane}
    turn = Turn(now_ms, NumberSource(0, 0), {}, virtuals, counted_to)
    turn.accounts[account.number] = turn.account_of[account.id] = account
    for message in messages:
        turn.messages[message.number] = message
        if message.status == Status.QUEUED:
            flow = turn.flow(message.client, message.route, message.lane)
            flow.waiting += 1
            flow.parts += message.parts
    return turn
