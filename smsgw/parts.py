"""Messages that an operator takes part by part: each part has an answer and a receipt of its own.

A message is accepted once all its parts are, and delivered once all are; the first part that is not
delivered ends it. A retry sends only what was not accepted.
"""

from collections.abc import Mapping
from itertools import count

from smsgw.models import FINAL_FROM, Message, Outcome, Part, Status, Verdict
from smsgw.turn import Turn


def record(turn: Turn, message: Message, provider: str, outcomes: Mapping[int, Outcome]) -> None:
    """Write down which parts an operator has accepted."""
    rows = turn.parts.setdefault(message.number, {})
    for number, outcome in outcomes.items():
        if outcome.verdict is Verdict.ACCEPTED and number not in rows:
            identifier = outcome.provider_message_id or None
            turn.set_part(Part(message.number, number, provider, int(Status.SENT), identifier))


def first_id(turn: Turn, message: Message) -> str | None:
    """The operator's id of the first part."""
    rows = turn.parts.get(message.number)
    return rows[min(rows)].provider_message_id if rows else None


def id_of(turn: Turn, message: Message, number: int) -> str | None:
    """The operator's id of a part."""
    row = turn.parts.get(message.number, {}).get(number)
    return row.provider_message_id if row is not None else None


def is_under_way(turn: Turn, message: Message, number: int) -> bool:
    """Whether a part was accepted and has not ended."""
    row = turn.parts.get(message.number, {}).get(number)
    return row is not None and row.status < FINAL_FROM


def begun_by(turn: Turn, message: Message) -> str | None:
    """Which operator has accepted parts of it, of several that of the first; None for nobody."""
    rows = turn.parts.get(message.number)
    return rows[min(rows)].provider if rows else None


def accepted(turn: Turn, message: Message) -> bool:
    """Whether all parts were accepted."""
    return len(turn.parts.get(message.number, ())) == message.parts


def delivered(turn: Turn, message: Message) -> bool:
    """Whether all parts were accepted, and delivered."""
    rows = turn.parts.get(message.number, {})
    return accepted(turn, message) and all(row.status == Status.DELIVERED for row in rows.values())


def adopt(turn: Turn, message: Message, identifier: str, *, whole: bool = False) -> int | None:
    """Give an operator's id to the first part that has none, of a message that is in doubt.

    Args:
        turn: the turn.
        message: the message.
        identifier: the operator's id.
        whole: whether that operator reports on whole messages only.

    Returns:
        The part; 0 where the message is a whole, None where nothing of it is in doubt any more.
    """
    if message.status != Status.UNCERTAIN:
        return None
    rows = turn.parts.get(message.number, {})
    if message.parts == 1 or (whole and not rows):
        return 0
    for row in rows.values():
        if identifier and row.provider_message_id == identifier:
            return row.part
    number = next(one for one in count(1) if one not in rows)
    if number > message.parts:
        return None
    assert message.provider is not None
    turn.set_part(Part(message.number, number, message.provider, int(Status.SENT), identifier))
    return number


def report(turn: Turn, message: Message, number: int, status: Status) -> Status | None:
    """Write down how a part has ended.

    Returns:
        How the message has ended by that; None while other parts are under way, and where the part
        had ended before.
    """
    row = turn.parts.get(message.number, {}).get(number)
    if row is None or row.status >= FINAL_FROM:
        return None
    row.status = int(status)
    turn.set_part(row)
    if status is not Status.DELIVERED:
        return status
    return status if delivered(turn, message) else None
