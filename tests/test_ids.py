"""Numbers rise in commit order, and a message's id contains its number."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from smsgw.ids import (
    EPOCH_MS,
    NUMBER_MAX,
    SLOTS,
    NumberSource,
    created_at_ms,
    message_id,
    number_at,
    number_of,
    slot_in,
    slot_of,
    uuid_text,
)

NOW_MS = 1_780_000_000_000
numbers = st.integers(0, NUMBER_MAX)
slots = st.integers(0, SLOTS - 1)
salts = st.integers(0, (1 << 40) - 1)


@given(numbers, slots, salts)
def test_an_id_is_a_uuid_version_7_with_its_number_slot_and_time(
    number: int, slot: int, salt: int
) -> None:
    identifier = message_id(number, slot, salt)
    found = uuid.UUID(bytes=identifier)
    assert found.version == 7
    assert found.variant == uuid.RFC_4122
    assert found.int >> 80 == created_at_ms(number)
    assert number_of(identifier) == number
    assert slot_in(identifier) == slot
    assert uuid_text(identifier) == str(found)


@given(st.lists(numbers, min_size=2, max_size=2, unique=True), slots, salts, salts)
def test_ids_of_one_client_sort_as_their_numbers(
    pair: list[int], slot: int, salt: int, other_salt: int
) -> None:
    low, high = sorted(pair)
    assert message_id(low, slot, salt) < message_id(high, slot, other_salt)


@given(st.binary(min_size=16, max_size=16))
def test_only_what_could_be_ours_has_a_number(identifier: bytes) -> None:
    number = number_of(identifier)
    if number is not None:
        assert 0 <= number <= NUMBER_MAX
        salt = int.from_bytes(identifier, "big") & ((1 << 40) - 1)
        assert message_id(number, slot_in(identifier), salt) == identifier


def test_other_uuids_have_no_number() -> None:
    assert number_of(uuid.UUID("550e8400-e29b-41d4-a716-446655440000").bytes) is None
    before_the_epoch = uuid.UUID("00000000-0000-7000-8000-000000000000")
    assert number_of(before_the_epoch.bytes) is None
    after_the_last = uuid.UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")
    assert number_of(after_the_last.bytes) is None


def test_a_client_keeps_its_slot_for_ever() -> None:
    # A changed hash would look for every client in the wrong shard.
    assert slot_of(b"123456789") == 0xCBF43926 & 0xFFF  # the check value of CRC-32
    assert slot_of(bytes(16)) == 0xECBB4B55 & 0xFFF
    assert slot_of(uuid.UUID("550e8400-e29b-41d4-a716-446655440000").bytes) == 1565


@given(st.binary(min_size=16, max_size=16))
def test_a_slot_is_one_of_4096(identifier: bytes) -> None:
    assert 0 <= slot_of(identifier) < SLOTS


@given(st.integers(0, 255), st.lists(st.integers(NOW_MS - 50, NOW_MS + 50), max_size=200))
def test_numbers_rise_whatever_the_clock_does(shard: int, times: list[int]) -> None:
    source = NumberSource(shard, number_at(NOW_MS))
    last = number_at(NOW_MS)
    highest_ms = NOW_MS
    for now_ms in times:
        number = source.next(now_ms)
        highest_ms = max(highest_ms, now_ms)
        assert number > last
        assert created_at_ms(number) >= now_ms
        assert created_at_ms(number) <= highest_ms + 1
        assert number >> 14 & 0xFF == shard
        last = number


def test_a_millisecond_holds_1024_numbers_and_then_lends_from_the_next() -> None:
    source = NumberSource(3, 0)
    found = [source.next(NOW_MS) for _ in range(1025)]
    assert found == sorted(set(found))
    assert [created_at_ms(number) - NOW_MS for number in found] == [0] * 1024 + [1]


def test_numbers_go_on_above_the_last_one_after_a_restart() -> None:
    before = NumberSource(1, 0)
    last = [before.next(NOW_MS) for _ in range(2000)][-1]
    assert NumberSource(1, last).next(NOW_MS - 10_000) > last


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_no_two_shards_or_writers_give_the_same_number(turns: list[tuple[int, int]]) -> None:
    sources = {(s, w): NumberSource(s, 0, w) for s in range(4) for w in range(4)}
    found = [sources[turn].next(NOW_MS) for turn in turns]
    assert len(found) == len(set(found))


def test_the_lowest_number_of_a_time() -> None:
    assert number_at(EPOCH_MS - 1) == number_at(EPOCH_MS) == 0
    assert created_at_ms(number_at(NOW_MS)) == NOW_MS
    assert NumberSource(0, 0).next(NOW_MS) == number_at(NOW_MS)
