"""Money moves by hold, capture and release, and each leaves an entry that adds up."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgw import ledger
from smsgw.errors import InsufficientCredits
from smsgw.models import Account, EntryKind, Message
from smsgw.turn import Turn
from tests.records import NOW_MS, a_message, a_turn, an_account


def money(account: Account) -> tuple[int, int, int]:
    return (account.credits_cents, account.held_cents, account.charged_cents)


def entries(turn: Turn) -> list[tuple[EntryKind, int, int, int]]:
    """(kind, amount, held, balance) of what a turn entered."""
    return [(EntryKind(row[2]), row[4], row[5], row[6]) for row in turn.entries]


def held(cost_cents: int = 5, **changes: Any) -> tuple[Turn, Account, Message]:
    """A client that had 100 cents, with a message on hold."""
    account = an_account()
    message = a_message(cost_cents=cost_cents, held_cents=0, **changes)
    turn = a_turn(account, message)
    ledger.hold(turn, account, message)
    turn.entries.clear()
    return turn, account, message


def test_a_hold_moves_the_cost_from_available_to_held() -> None:
    account, message = an_account(), a_message(held_cents=0)
    turn = a_turn(account, message)
    ledger.hold(turn, account, message)
    assert money(account) == (95, 5, 0)
    assert message.held_cents == 5
    assert turn.entries == [(1, 2, EntryKind.HOLD, NOW_MS, -5, 5, 95, message.number, None)]
    assert turn.changed_accounts == {1: account}


def test_a_capture_charges_what_is_held() -> None:
    turn, account, message = held()
    ledger.capture(turn, account, message)
    assert money(account) == (95, 0, 5)
    assert (message.held_cents, message.charged_cents) == (0, 5)
    assert entries(turn) == [(EntryKind.CAPTURE, 0, -5, 95)]


def test_a_partial_capture_is_one_capture_and_one_release() -> None:
    turn, account, message = held(7)
    ledger.capture(turn, account, message, refund_cents=2)
    assert money(account) == (95, 0, 5)
    assert (message.held_cents, message.charged_cents) == (0, 5)
    assert entries(turn) == [(EntryKind.CAPTURE, 0, -5, 93), (EntryKind.RELEASE, 2, -2, 95)]


@pytest.mark.parametrize("refund_cents", [7, 8, 1000])
def test_a_refund_of_everything_or_more_is_only_a_release(refund_cents: int) -> None:
    turn, account, message = held(7)
    ledger.capture(turn, account, message, refund_cents)
    assert money(account) == (100, 0, 0)
    assert entries(turn) == [(EntryKind.RELEASE, 7, -7, 100)]


def test_a_release_gives_back_what_is_held() -> None:
    turn, account, message = held()
    ledger.release(turn, account, message)
    assert money(account) == (100, 0, 0)
    assert (message.held_cents, message.charged_cents) == (0, 0)
    assert entries(turn) == [(EntryKind.RELEASE, 5, -5, 100)]


@pytest.mark.parametrize("first", [ledger.capture, ledger.release])
@pytest.mark.parametrize("second", [ledger.capture, ledger.release])
def test_a_hold_ends_once_and_a_second_ending_does_nothing(first: Any, second: Any) -> None:
    turn, account, message = held()
    first(turn, account, message)
    after, count = money(account), len(turn.entries)
    second(turn, account, message)
    assert money(account) == after
    assert len(turn.entries) == count


def test_a_hold_cannot_be_put_on_twice() -> None:
    turn, account, message = held()
    with pytest.raises(AssertionError):
        ledger.hold(turn, account, message)


def test_a_free_message_is_held_captured_and_released_for_nothing() -> None:
    turn, account, message = held(0)
    ledger.capture(turn, account, message)
    ledger.release(turn, account, message)
    assert money(account) == (100, 0, 0)
    assert turn.entries == []


def test_credit_can_be_used_to_the_last_cent_and_no_further() -> None:
    account = an_account(credits_cents=5)
    ledger.afford(account, 5)
    with pytest.raises(InsufficientCredits) as refusal:
        ledger.afford(account, 6)
    assert refusal.value.members == {"required": 6, "credits": 5}


def test_a_top_up_and_a_deduction_are_entered_with_their_note() -> None:
    account = an_account()
    turn = a_turn(account)
    ledger.adjust(turn, account, 50, "invoice 7")
    ledger.adjust(turn, account, -150, None)
    assert money(account) == (0, 0, 0)
    assert turn.entries == [
        (1, 2, EntryKind.TOPUP, NOW_MS, 50, 0, 150, None, "invoice 7"),
        (1, 3, EntryKind.DEDUCT, NOW_MS, -150, 0, 0, None, None),
    ]


def test_a_deduction_below_zero_is_refused_and_changes_nothing() -> None:
    account = an_account(held_cents=40)
    turn = a_turn(account)
    with pytest.raises(InsufficientCredits):
        ledger.adjust(turn, account, -101, None)
    assert money(account) == (100, 40, 0)
    assert turn.entries == []
    assert turn.changed_accounts == {}


def test_nothing_can_be_taken_below_zero() -> None:
    account = an_account(credits_cents=4)
    message = a_message(held_cents=0)
    with pytest.raises(AssertionError):
        ledger.hold(a_turn(account, message), account, message)
    account, message = an_account(held_cents=4), a_message(held_cents=5)
    with pytest.raises(AssertionError):
        ledger.release(a_turn(account, message), account, message)


steps = st.lists(
    st.tuples(st.sampled_from(["topup", "deduct", "hold", "capture", "release"]), st.integers(1, 9))
)


@given(steps)
def test_each_column_of_the_entries_adds_up_to_the_account(found: list[tuple[str, int]]) -> None:
    account = an_account(credits_cents=0, sequence=0)
    turn = a_turn(account)
    messages: list[Message] = []
    for index, (step, amount) in enumerate(found):
        if step == "topup":
            ledger.adjust(turn, account, amount, None)
        elif step == "deduct" and amount <= account.credits_cents:
            ledger.adjust(turn, account, -amount, None)
        elif step == "hold" and amount <= account.credits_cents:
            messages.append(a_message(number=index + 1, cost_cents=amount, held_cents=0))
            ledger.hold(turn, account, messages[-1])
        elif step in ("capture", "release") and messages:
            message = messages[amount % len(messages)]
            if step == "capture":
                ledger.capture(turn, account, message, amount % 3)
            else:
                ledger.release(turn, account, message)
    assert account.credits_cents == sum(row[4] for row in turn.entries)
    assert account.held_cents == sum(row[5] for row in turn.entries)
    assert account.held_cents == sum(message.held_cents for message in messages)
    assert account.charged_cents == sum(message.charged_cents for message in messages)
    assert account.charged_cents == -sum(
        row[5] for row in turn.entries if row[2] == EntryKind.CAPTURE
    )
    assert [row[1] for row in turn.entries] == list(range(1, account.sequence + 1))
    balance = 0
    for row in turn.entries:
        balance += row[4]
        assert row[6] == balance >= 0
