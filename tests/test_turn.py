"""The overlay: every item sees what its predecessors did, and only the difference is written."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgw.errors import InternalError, NotCancellable, SmsgwError
from smsgw.ids import NumberSource
from smsgw.models import Flow, KeyRecord, Message, OtpCode, Status
from smsgw.turn import Item, Request, Turn, Write, run_items
from tests.records import NOW_MS, a_message, a_turn, an_account


def queued(turn: Turn) -> list[tuple[int, ...]]:
    return [place for places in turn.queued.values() for place in places.values()]


def test_what_is_queued_and_taken_out_again_leaves_nothing_to_write() -> None:
    message = a_message(status=int(Status.SENDING))
    turn = a_turn(an_account(), message)
    turn.enqueue(message)
    assert queued(turn) == [(7, message.number, 1, 1)]
    turn.dequeue(message)
    assert queued(turn) == []
    assert turn.unqueued == {}


def test_what_is_taken_out_and_put_back_at_its_place_leaves_nothing_to_write() -> None:
    message = a_message()
    turn = a_turn(an_account(), message)
    turn.dequeue(message)
    assert turn.unqueued == {message.number: (0, 0, 7, message.number)}
    turn.enqueue(message)
    assert turn.unqueued == {}
    assert queued(turn) == []


def test_what_moves_leaves_its_old_place_and_takes_the_new_one() -> None:
    message = a_message()
    turn = a_turn(an_account(), message)
    turn.dequeue(message)
    message.rank = 99
    turn.enqueue(message)
    assert turn.unqueued == {message.number: (0, 0, 7, message.number)}
    assert queued(turn) == [(99, message.number, 1, 1)]
    turn.dequeue(message)
    assert turn.unqueued == {message.number: (0, 0, 7, message.number)}
    assert queued(turn) == []


@given(st.lists(st.sampled_from(["out", "back", "elsewhere"]), max_size=12), st.booleans())
def test_places_written_and_deleted_come_to_where_the_message_is(
    steps: list[str], stored: bool
) -> None:
    """Whatever was done: deleting, then writing, turns the old table into the new one."""
    message = a_message(status=int(Status.QUEUED if stored else Status.SENDING))
    turn = a_turn(an_account(), message)
    table = {(0, 0, 7, message.number)} if stored else set()
    inside = stored
    for step in steps:
        if step == "out" and inside:
            turn.dequeue(message)
            inside = False
        elif step != "out" and not inside:
            message.rank = message.rank + 1 if step == "elsewhere" else 7
            turn.enqueue(message)
            inside = True
    assert set(turn.unqueued.values()) <= table
    table -= set(turn.unqueued.values())
    added = {(0, 0, rank, number) for rank, number, _, _ in queued(turn)}
    assert added.isdisjoint(table)
    table |= added
    assert table == ({(0, 0, message.rank, message.number)} if inside else set())
    assert turn.flow(1, 0, 0).waiting == int(inside)


def test_a_message_cannot_leave_a_queue_it_is_not_in() -> None:
    turn = a_turn(an_account())
    with pytest.raises(AssertionError):
        turn.dequeue(a_message())


def test_a_flow_is_changed_in_a_copy() -> None:
    before = Flow(next_rank=5, waiting=1, parts=2)
    turn = Turn(NOW_MS, NumberSource(0, 0), {(1, 0, 0): before}, {}, 0)
    turn.flow(1, 0, 0).waiting += 1
    assert turn.flow(1, 0, 0) == Flow(5, 2, 2)
    assert before == Flow(5, 1, 2)
    assert turn.flow(1, 0, 1) == Flow()


def test_a_change_of_a_new_message_is_no_change_to_write() -> None:
    turn, message = a_turn(an_account()), a_message()
    turn.add_message(message)
    turn.touch(message)
    assert turn.new_messages == {message.number: message} == turn.messages
    assert turn.changed_messages == {}


def test_a_change_of_a_new_account_is_no_change_to_write() -> None:
    turn = a_turn(an_account())
    account = an_account(number=2, id=bytes(16))
    turn.add_account(account)
    turn.touch_account(account)
    assert turn.account_of[bytes(16)] is turn.accounts[2] is turn.new_accounts[2] is account
    assert turn.changed_accounts == {}


def changed(message: Message, turn: Turn, **changes: Any) -> None:
    turn.touch(message)
    for name, value in changes.items():
        setattr(message, name, value)


def test_totals_get_the_difference_between_before_the_turn_and_after_it() -> None:
    message = a_message(status=int(Status.SENT))
    turn = a_turn(an_account(), message, counted_to=message.number)
    changed(message, turn, status=int(Status.UNCERTAIN))
    changed(message, turn, status=int(Status.DELIVERED), held_cents=0, charged_cents=5)
    day = message.created_at_ms // 86_400_000
    assert sorted(turn.total_changes()) == [
        (1, day, "ACME", int(Status.SENT), -1, -1, -5, -5, 0),
        (1, day, "ACME", int(Status.DELIVERED), 1, 1, 5, 0, 5),
    ]


def test_totals_are_left_alone_where_nothing_counted_changes() -> None:
    message = a_message(status=int(Status.SENT))
    turn = a_turn(an_account(), message, counted_to=message.number)
    changed(message, turn, last_error="something")
    assert list(turn.total_changes()) == []
    uncounted = a_turn(an_account(), message, counted_to=message.number - 1)
    changed(message, uncounted, status=int(Status.DELIVERED), held_cents=0)
    assert list(uncounted.total_changes()) == []


def test_totals_of_several_messages_come_together() -> None:
    first, second = (a_message(number=number, status=int(Status.SENT)) for number in (1, 2))
    turn = a_turn(an_account(), first, second, counted_to=2)
    for message in (first, second):
        changed(message, turn, status=int(Status.UNKNOWN), held_cents=0)
    assert [row[4:] for row in sorted(turn.total_changes())] == [
        (-2, -2, -10, -10, 0),
        (2, 2, 10, 0, 0),
    ]


def test_the_newest_code_for_a_number_is_the_one_that_counts() -> None:
    turn = a_turn(an_account())
    older, newer = (OtpCode(n, 1, 15005550006, bytes(16), NOW_MS, 0, None, 1) for n in (5, 6))
    turn.add_code(newer)
    turn.add_code(older)
    assert turn.codes[1, 15005550006] is newer
    assert turn.new_codes == {(1, 5): older, (1, 6): newer}


def test_a_key_is_seen_by_the_items_after_it() -> None:
    turn = a_turn(an_account())
    record = KeyRecord(1, b"d" * 16, b"f" * 16, 7, 1, 95, NOW_MS)
    turn.add_key(record)
    assert turn.keys == turn.new_keys == {(1, b"d" * 16): record}


class Answers(Item):
    __slots__ = ("seen",)

    def decide(self, turn: Turn) -> None:
        self.answer = turn.counted_next
        turn.counted_next += 1


class Refuses(Item):
    __slots__ = ()

    def decide(self, turn: Turn) -> None:
        raise NotCancellable


class Explodes(Item):
    __slots__ = ()

    def decide(self, turn: Turn) -> None:
        raise ZeroDivisionError


def test_items_decide_in_order_and_a_refusal_is_an_answer() -> None:
    first, refused, last = Answers(), Refuses(), Answers()
    run_items([first, refused, last], a_turn(an_account()))
    assert (first.answer, last.answer) == (0, 1)
    assert isinstance(refused.refusal, NotCancellable)
    assert first.refusal is last.refusal is refused.answer is None


def test_any_other_error_is_no_answer() -> None:
    with pytest.raises(ZeroDivisionError):
        run_items([Explodes()], a_turn(an_account()))


def test_an_item_that_decides_again_forgets_what_it_said_before() -> None:
    item = Refuses()
    item.answer = "an answer of a turn that failed"
    run_items([item], a_turn(an_account()))
    assert item.answer is None
    answers = Answers()
    answers.refusal = NotCancellable()
    run_items([answers], a_turn(an_account()))
    assert answers.refusal is None


async def test_a_request_gives_its_answer_or_refusal_to_its_caller() -> None:
    answered, refused, broken = Request(), Request(), Request()
    answered.answer = 7
    answered.done()
    assert await answered.future == 7
    refused.refusal = NotCancellable()
    refused.done()
    with pytest.raises(NotCancellable):
        await refused.future
    broken.failed(InternalError())
    with pytest.raises(InternalError):
        await broken.future


@pytest.mark.parametrize("refusal", [None, NotCancellable()])
async def test_a_caller_who_is_gone_is_not_answered(refusal: SmsgwError | None) -> None:
    request = Request()
    request.refusal = refusal
    request.future.cancel()
    request.done()
    request.failed(InternalError())
    assert request.future.cancelled()


async def test_a_write_names_its_statements() -> None:
    turn = a_turn(an_account())
    Write(("meta_set", ("a", 1)), ("meta_set", ("b", 2))).decide(turn)
    assert turn.writes == [("meta_set", ("a", 1)), ("meta_set", ("b", 2))]


def test_an_item_whose_caller_is_told_is_not_kept_aside() -> None:
    assert Item().quarantine() is None
