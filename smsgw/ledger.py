"""Money: hold, capture, release, and nothing else moves it.

All amounts are integer cents. Each function changes an account and the message on which the hold
stands, and adds the entries that say so: ``amount`` is the signed effect on available credit,
``held`` the signed effect on held credit, so that each column adds up to the account. A hold is on
its message (``held_cents``); once that is zero, ending it again does nothing.
"""

from smsgw.errors import InsufficientCredits
from smsgw.models import Account, EntryKind, Message
from smsgw.turn import Turn


def _enter(
    turn: Turn,
    account: Account,
    kind: EntryKind,
    amount: int,
    held: int,
    message: int | None = None,
    note: str | None = None,
) -> None:
    account.credits_cents += amount
    account.held_cents += held
    account.sequence += 1
    assert account.credits_cents >= 0, "available credit below zero"
    assert account.held_cents >= 0, "held credit below zero"
    turn.touch_account(account)
    turn.entries.append(
        (
            account.number,
            account.sequence,
            int(kind),
            turn.now_ms,
            amount,
            held,
            account.credits_cents,
            message,
            note,
        )
    )


def afford(account: Account, cost_cents: int) -> None:
    """Check that a cost is covered.

    Raises:
        InsufficientCredits: with ``required`` and ``credits``, in cents.
    """
    if account.credits_cents < cost_cents:
        raise InsufficientCredits(
            f"This needs {cost_cents} cents; {account.credits_cents} are available.",
            required=cost_cents,
            credits=account.credits_cents,
        )


def hold(turn: Turn, account: Account, message: Message) -> None:
    """Put a message's cost on hold; the caller has checked that it is covered."""
    assert message.held_cents == 0
    message.held_cents = message.cost_cents
    cost = message.cost_cents
    _enter(turn, account, EntryKind.HOLD, -cost, cost, message.number)


def capture(turn: Turn, account: Account, message: Message, refund_cents: int = 0) -> None:
    """Charge what is held for a message, less a refund, and release the refund with it."""
    held = message.held_cents
    refund = min(refund_cents, held)
    if held == 0:
        return
    message.held_cents = 0
    message.charged_cents += held - refund
    account.charged_cents += held - refund
    if held > refund:
        _enter(turn, account, EntryKind.CAPTURE, 0, refund - held, message.number)
    if refund:
        _enter(turn, account, EntryKind.RELEASE, refund, -refund, message.number)


def release(turn: Turn, account: Account, message: Message) -> None:
    """Give back what is still held for a message."""
    held = message.held_cents
    if held == 0:
        return
    message.held_cents = 0
    _enter(turn, account, EntryKind.RELEASE, held, -held, message.number)


def adjust(turn: Turn, account: Account, amount_cents: int, note: str | None) -> None:
    """Add to a client's credit, or take from it.

    Raises:
        InsufficientCredits: when a deduction is larger than what is available.
    """
    assert amount_cents != 0
    if amount_cents < 0:
        afford(account, -amount_cents)
    kind = EntryKind.TOPUP if amount_cents > 0 else EntryKind.DEDUCT
    _enter(turn, account, kind, amount_cents, 0, None, note)
