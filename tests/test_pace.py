"""When turns begin."""

import pytest

from smsgw.store.pace import AT_ONCE, Pace, Rhythm, Room

PACE = Pace(turns_apart_s=1.0, small_turns_apart_s=1.5, items_many=10)


def begun(at_work: int, now_s: float) -> Rhythm:
    rhythm = Rhythm(PACE)
    rhythm.begins(at_work, now_s)
    return rhythm


def test_a_shard_that_has_had_no_turn_does_not_wait() -> None:
    rhythm = Rhythm(PACE)
    assert rhythm.early_s(100.0, many=False) <= 0
    assert rhythm.early_s(100.0, many=True) <= 0


@pytest.mark.parametrize("at_work", [1, 4])
def test_turns_with_much_to_do_keep_apart_by_the_shards_at_work(at_work: int) -> None:
    rhythm = begun(at_work, 60.25)
    assert rhythm.early_s(60.25, many=True) == at_work
    assert rhythm.early_s(60.25 + at_work, many=True) == 0


def test_small_turns_of_all_shards_are_due_at_the_same_moment() -> None:
    due_s = {now_s + begun(4, now_s).early_s(now_s, many=False) for now_s in (60.0, 60.25, 61.75)}
    assert due_s == {66.0}


def test_a_small_turn_is_never_sooner_than_a_large_one() -> None:
    rhythm = begun(4, 65.5)
    assert rhythm.early_s(65.5, many=False) == rhythm.early_s(65.5, many=True) == 4.0


def test_how_many_items_are_worth_a_turn_of_their_own() -> None:
    assert not Rhythm(PACE).is_many(9)
    assert Rhythm(PACE).is_many(10)


def test_turns_may_follow_each_other_at_once() -> None:
    rhythm = Rhythm(AT_ONCE)
    rhythm.begins(4, 7.0)
    assert rhythm.early_s(7.0, many=False) <= 0


def test_a_shard_is_at_work_where_it_had_a_turn_lately() -> None:
    room = Room(100)
    assert room.at_work(0, 1.0) == 1
    assert room.at_work(1, 1.01) == 2
    assert room.at_work(1, 1.03) == 2
    assert room.at_work(1, 1.06) == 1
