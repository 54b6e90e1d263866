"""Places, tokens and the breaker of one operator, over any order of events."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smsgw.allotter import Allotter
from smsgw.links import Bucket, Link

FAILURES_MAX = 3
OPEN_S = 10.0
WINDOW = 5


class Breaker(RuleBasedStateMachine):
    """A link, beside what its docstring says of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.link = Link(
            "op", WINDOW, Bucket(0.0), otp_share=0.0, failures_max=FAILURES_MAX, open_s=OPEN_S
        )
        self.in_a_row = 0
        self.open_until_s: float | None = None

    @property
    def half_open(self) -> bool:
        return self.open_until_s is not None and self.now_s >= self.open_until_s

    @rule(seconds=st.sampled_from([0.0, 0.5, 9.5, 10.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.link.free(self.now_s))
    @rule(share=st.floats(0.01, 1.0))
    def the_queue_claims(self, share: float) -> None:
        free = self.link.free(self.now_s)
        self.link.take(max(1, int(free * share)))

    @precondition(lambda self: self.link.in_flight)
    @rule()
    def a_submit_has_no_answer(self) -> None:
        self.link.give_back(1)
        self.in_a_row += 1
        if self.open_until_s is not None or self.in_a_row >= FAILURES_MAX:
            self.open_until_s = self.now_s + OPEN_S
        assert self.link.failed(self.now_s) == (self.open_until_s is not None)

    @precondition(lambda self: self.link.in_flight)
    @rule()
    def a_submit_is_answered(self) -> None:
        self.link.give_back(1)
        was_open, self.open_until_s = self.open_until_s is not None, None
        self.in_a_row = 0
        assert self.link.worked() == was_open

    @invariant()
    def nothing_leaves_while_it_is_open(self) -> None:
        if self.open_until_s is not None and not self.half_open:
            assert self.link.free(self.now_s) == 0
            assert not self.link.takes(self.now_s)
            assert self.link.wait_s(self.now_s) == self.open_until_s - self.now_s

    @invariant()
    def one_probe_at_a_time_leaves_while_it_is_half_open(self) -> None:
        if self.half_open:
            assert self.link.free(self.now_s) == (0 if self.link.in_flight else 1)

    @invariant()
    def all_places_are_free_while_it_is_closed(self) -> None:
        if self.open_until_s is None:
            assert self.link.free(self.now_s) == WINDOW - self.link.in_flight

    @invariant()
    def it_is_counted_on_only_while_it_is_closed(self) -> None:
        assert self.link.counts == (self.open_until_s is None)


TestBreaker = Breaker.TestCase


def test_a_breaker_of_no_failures_never_opens() -> None:
    link = Link("mock", 1, Bucket(0.0))
    assert not any(link.failed(0.0) for _ in range(100))
    assert link.free(0.0) == 1


def test_a_one_time_code_is_a_probe_too_and_the_only_one() -> None:
    allotter = Allotter(0.2)
    link = allotter.links["op"] = Link("op", 10, Bucket(0.0), failures_max=1, open_s=5.0)
    link.failed(0.0)
    assert allotter.pick_for_otp(["op"], 1, 4.9) is None
    assert allotter.pick_for_otp(["op"], 1, 5.0) is link
    assert allotter.pick_for_otp(["op"], 1, 5.0) is None
    assert link.free(5.0) == 0


STEPS = st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 9)), max_size=30)


@given(rate=st.floats(0.5, 1000.0), steps=STEPS)
def test_no_more_leaves_than_the_rate_and_what_is_saved_up(
    rate: float, steps: list[tuple[float, int]]
) -> None:
    link = Link("op", 10_000, Bucket(rate), otp_share=0.0)
    now_s, taken = 0.0, 0
    most = max(1.0, rate * link.bucket.burst_s)
    for seconds, wanted in steps:
        now_s += seconds
        parts = min(wanted, link.free(now_s))
        link.take(parts)
        taken += parts
        assert taken <= now_s * rate + 1e-6
        assert link.bucket.tokens <= most


@given(rate=st.floats(0.5, 1000.0), start_s=st.floats(0.0, 10.0))
def test_after_the_wait_that_it_names_there_is_a_token(rate: float, start_s: float) -> None:
    link = Link("op", 10, Bucket(rate, at_s=start_s), otp_share=0.0)
    assert link.free(start_s) == 0
    wait_s = link.wait_s(start_s)
    assert wait_s is not None
    assert link.free(start_s + wait_s + 1e-6) >= 1


def test_what_was_not_sent_gives_its_tokens_back() -> None:
    link = Link("op", 10, Bucket(20.0), otp_share=0.0)
    assert link.free(1.0) == 1
    link.take(1)
    link.give_back(1, unsent=1)
    assert link.free(1.0) == 1
    link.take(1)
    link.give_back(1)
    assert link.free(1.0) == 0


def test_a_rate_that_is_set_later_begins_without_a_burst_of_all_that_time() -> None:
    link = Link("op", 100, Bucket(0.0), otp_share=0.0)
    assert link.free(3600.0) == 100
    link.bucket.rate_per_s = 40.0
    assert link.free(3600.0) == 2


def test_the_share_of_one_time_codes_is_a_whole_place_but_never_the_last() -> None:
    assert Link("op", 10, Bucket(0.0), otp_share=0.1).free(0.0) == 9
    assert Link("op", 2, Bucket(0.0), otp_share=0.1).free(0.0) == 1
    assert Link("op", 1, Bucket(0.0), otp_share=0.1).free(0.0) == 1


def test_one_that_is_off_or_paused_or_down_takes_nothing_and_waits_for_nothing() -> None:
    for change in ({"off": True}, {"paused": True}, {"usable": False}):
        link = Link("op", 10, Bucket(1.0), **change)
        assert (link.counts, link.takes(9.0), link.free(9.0)) == (False, False, 0)
        assert link.wait_s(9.0) is None


def test_while_codes_wait_for_places_the_queue_gets_none() -> None:
    link = Link("op", 10, Bucket(0.0), otp_share=0.0)
    link.otp_waiting = 1
    assert (link.takes(0.0), link.free(0.0)) == (True, 0)
    link.otp_waiting = 0
    assert link.free(0.0) == 10


def test_one_that_rests_may_take_messages_once_it_has_rested() -> None:
    link = Link("op", 10, Bucket(0.0), failures_max=1, open_s=1.0, resume_at_s=2.0)
    assert not link.takes(1.9)
    assert [link.may_take(1.0, until_s) for until_s in (1.9, 2.0)] == [False, True]
    link.failed(0.0)
    assert not link.may_take(0.5, 2.0), "nobody knows whether it will answer"
    assert link.may_take(2.0, 2.0)
    link.worked()
    for change in ("off", "paused"):
        setattr(link, change, True)
        assert not link.may_take(1.0, 2.0)
        setattr(link, change, False)


def test_the_time_of_an_answer_is_learnt_slowly() -> None:
    link = Link("op", 10, Bucket(0.0))
    for _ in range(100):
        link.answered(0.25)
    assert link.answers == 100
    assert 0.25 <= link.answer_s < 0.26
    assert 38 < link.healthy_rate_per_s() <= 40
