"""Within a run time goes on, whatever the wall clock does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgw.clock import SLEW_SHARE, ManualClock, SystemClock, day_of, rfc3339


class Hands:
    """A wall clock and a monotonic clock, moved by hand."""

    def __init__(self) -> None:
        self.wall_s = 1_780_000_000.0
        self.monotonic_s = 5000.0

    def clock(self) -> SystemClock:
        return SystemClock(lambda: self.wall_s, lambda: self.monotonic_s)

    def go(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


def test_time_is_the_wall_clock_at_start_plus_what_has_passed() -> None:
    hands = Hands()
    clock = hands.clock()
    assert clock.now_ms() == 1_780_000_000_000
    hands.go(1.5)
    assert clock.now_ms() == 1_780_000_001_500
    assert clock.monotonic_s() == 5001.5


@pytest.mark.parametrize("jump_s", [3600, -3600, 86_400, -86_400])
def test_a_jump_of_the_wall_clock_is_told_and_followed_slowly(jump_s: float) -> None:
    hands = Hands()
    clock = hands.clock()
    hands.wall_s += jump_s
    assert clock.now_ms() == 1_780_000_000_000
    hands.go(1)
    assert clock.slew() == jump_s * 1000
    moved_ms = clock.now_ms() - 1_780_000_001_000
    assert abs(moved_ms) <= SLEW_SHARE * 1000
    assert moved_ms * jump_s >= 0


def test_a_small_difference_is_made_up_for_and_then_gone() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.wall_s += 0.02
    hands.go(1)
    assert clock.slew() == 20
    hands.go(1)
    assert clock.slew() == 0
    assert clock.now_ms() == round(hands.wall_s * 1000)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(-100_000, 100_000), st.booleans()), max_size=30)
)
def test_time_never_falls_within_a_run(steps: list[tuple[float, float, bool]]) -> None:
    hands = Hands()
    clock = hands.clock()
    start_ms = last_ms = clock.now_ms()
    all_s = 0.0
    for passed_s, jump_s, slews in steps:
        hands.go(passed_s)
        all_s += passed_s
        hands.wall_s += jump_s
        if slews:
            clock.slew()
        now_ms = clock.now_ms()
        assert now_ms >= last_ms
        assert abs(now_ms - start_ms - all_s * 1000) <= SLEW_SHARE * all_s * 1000 + 2
        last_ms = now_ms


def test_a_manual_clock_moves_both_of_its_hands() -> None:
    clock = ManualClock(1000)
    clock.advance(2.5)
    assert clock.now_ms() == 3500
    assert clock.monotonic_s() == 1002.5


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_795_435_200_000, "2026-11-23T12:00:00.000Z"),
        (1_795_435_200_007, "2026-11-23T12:00:00.007Z"),
        (1_795_435_199_999, "2026-11-23T11:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339_utc_with_milliseconds(ms: int, text: str) -> None:
    assert rfc3339(ms) == text


def test_a_day_is_a_utc_day() -> None:
    assert day_of(0) == 0
    assert day_of(86_399_999) == 0
    assert day_of(86_400_000) == 1
