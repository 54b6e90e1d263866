"""What the gateway knows of an operator while it runs: places, tokens, answers, and trouble.

Pure, like the rules around it: nothing here reads a clock or speaks to anybody.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import ceil, inf
from typing import Final

ANSWER_WEIGHT: Final = 0.1
ANSWER_S_MIN: Final = 0.1
"""No operator is counted on for more than ten windows a second, however fast it answers."""
DOUBT_MIN_S: Final = 60.0
DOUBT_MAX_S: Final = 3600.0
_ROUNDING: Final = 1e-9


@dataclass(slots=True)
class Bucket:
    """A token bucket in parts; a rate of 0 means no limit.

    It holds at most ``burst_s`` seconds of its rate, and may be overdrawn by what must not wait.
    """

    rate_per_s: float
    burst_s: float = 0.05
    tokens: float = 0.0
    at_s: float = 0.0

    def refill(self, now_s: float) -> float:
        """Add what time has brought; returns the tokens there are."""
        most = max(1.0, self.rate_per_s * self.burst_s)
        self.tokens = min(most, self.tokens + (now_s - self.at_s) * self.rate_per_s)
        self.at_s = now_s
        return self.tokens


def in_order(links: Iterable["Link"]) -> list["Link"]:
    """Operators by priority; of equals, the one first that was given least for its weight."""
    found = list(links)
    if len(found) > 1:
        found.sort(key=lambda link: (link.priority, link.ended + link.promised / link.weight))
    return found


def level(links: Collection["Link"]) -> None:
    """Bring operators that share messages in line: none is owed what it had no room for.

    As in start-time fair queueing: whoever has been away, or full, is as far as its equals are.
    """
    begun: dict[int, float] = {}
    for link in links:
        begun[link.priority] = max(link.began, begun.get(link.priority, 0.0))
    for link in links:
        link.ended = max(link.ended, begun[link.priority] - link.promised / link.weight)


@dataclass(slots=True)
class Link:
    """What the allotter knows of one operator: its window, its tokens, and whether to use it.

    Where several ``gateways`` send through it, window and rate are this one's share of what the
    operator allows all of them together.

    ``in_flight`` counts parts claimed and not answered yet, ``answer_s`` is how long an answer
    takes at the average, ``otp_waiting`` how many parts of one-time codes wait for places: until
    they have them, the queue gets none. The otp share of the window is kept free for one-time
    codes.

    ``ended`` is how much it was given, in parts for its weight, and ``began`` what that was before
    the last time: of equals the one that was given least is next, however fast it answers.
    ``promised`` is what turns that are under way will probably give it: that counts too, or all of
    them would choose the same.

    ``usable`` is what the operator's connections say of themselves, ``paused`` and ``off`` what
    somebody has said: a paused one keeps what waits for it, one that is off takes part in nothing.

    The breaker opens for ``open_s`` when ``failures_max`` submits in a row had no answer (0: it
    never does), and closes with the first answer after that. A refusal is an answer; what only says
    that the operator gave none is not.

    One submit without an answer, or a code without one in time, puts the operator in doubt: codes,
    which have one try, go to the others first. An answer ends that, if it came sooner than the
    code in doubt was waited for. Where only codes are sent, one of them tries after a pause, which
    grows with the doubt's age: a recovered operator is found again after twice the time that it
    was away, or an hour, and a dead one costs a code an hour.
    """

    name: str
    window: int
    bucket: Bucket
    weight: int = 1
    priority: int = 0
    began: float = 0.0
    ended: float = 0.0
    promised: int = 0
    otp_share: float = 0.1
    usable: bool = True
    paused: bool = False
    off: bool = False
    resume_at_s: float = 0.0
    in_flight: int = 0
    answer_s: float = 1.0
    answers: int = 0
    otp_waiting: int = 0
    failures_max: int = 0
    open_s: float = 10.0
    failures: int = 0
    open_until_s: float | None = None
    doubted_since_s: float | None = None
    doubted_until_s: float = 0.0
    patience_s: float = inf
    gateways: int = 1

    def share(self, window: int, rate_per_s: float, gateways: int) -> None:
        """Take a share of what an operator allows; there is always one place.

        Args:
            window: how many parts it may have unanswered, over all gateways.
            rate_per_s: how many parts a second it takes from all of them; 0 for no limit.
            gateways: how many there are.
        """
        self.gateways = gateways
        self.window = max(1, window // gateways)
        self.bucket.rate_per_s = rate_per_s / gateways

    @property
    def is_on(self) -> bool:
        """Whether it is connected, and nobody has stopped it."""
        return self.usable and not self.paused and not self.off

    @property
    def counts(self) -> bool:
        """Whether it can be counted on at the moment."""
        return self.is_on and self.open_until_s is None

    def takes(self, now_s: float) -> bool:
        """Whether it takes messages now, places aside."""
        return (
            self.is_on
            and now_s >= self.resume_at_s
            and (self.open_until_s is None or now_s >= self.open_until_s)
        )

    def may_take(self, now_s: float, until_s: float) -> bool:
        """Whether it takes messages now, or once it has rested as its operator has asked."""
        return self.takes(now_s) or (self.counts and self.resume_at_s <= until_s)

    def probes(self) -> bool:
        """Whether its breaker is open: then one message at a time may try whether it is back."""
        return self.open_until_s is not None

    def failed(self, now_s: float) -> bool:
        """A submit had no answer; several in a row open the breaker.

        Returns:
            Whether it is open by that, or still is.
        """
        self.failures += 1
        self.doubt(now_s)
        if self.failures_max and (self.failures >= self.failures_max or self.probes()):
            self.open_until_s = now_s + self.open_s
        return self.probes()

    def worked(self, duration_s: float = 0.0) -> bool:
        """A submit was answered, whatever the answer was; says whether that closed the breaker."""
        was_open = self.probes()
        self.failures = 0
        self.open_until_s = None
        if duration_s < self.patience_s:
            self.doubted_since_s = None
            self.patience_s = inf
        return was_open

    def doubt(self, now_s: float, waited_s: float = inf) -> None:
        """Have codes go to others first; a code may have ``waited_s`` in vain for an answer."""
        if self.doubted_since_s is None:
            self.doubted_since_s = now_s
        pause_s = min(max(DOUBT_MIN_S, now_s - self.doubted_since_s), DOUBT_MAX_S)
        self.doubted_until_s = now_s + pause_s
        self.patience_s = min(self.patience_s, waited_s)

    def is_doubted(self, now_s: float) -> bool:
        """Whether codes go to others first: but after a pause, one may try."""
        if self.doubted_since_s is None:
            return False
        return now_s < self.doubted_until_s or self.in_flight > 0

    def free(self, now_s: float) -> int:
        """How many parts the queue may claim for it now."""
        if self.otp_waiting or not self.takes(now_s):
            return 0
        # A share of a small window is a place of its own, never none.
        kept = ceil(self.window * self.otp_share - _ROUNDING)
        window = 1 if self.probes() else max(1, self.window - kept)
        places = window - self.in_flight
        if self.bucket.rate_per_s:
            places = min(places, int(self.bucket.refill(now_s) + _ROUNDING))
        return max(0, places)

    def has_room_for_code(self, parts: int, now_s: float) -> bool:
        """Whether a code may leave now, which has the whole window and may overdraw a second."""
        if not self.takes(now_s) or (self.probes() and self.in_flight):
            return False
        rate_per_s = self.bucket.rate_per_s
        if rate_per_s and self.bucket.refill(now_s) < -rate_per_s:
            return False
        return self.in_flight == 0 or self.in_flight + parts <= self.window

    def wait_s(self, now_s: float) -> float | None:
        """After how long time alone frees places; None where only an answer does."""
        if not self.is_on:
            return None
        ready_at_s = max(self.resume_at_s, self.open_until_s or 0.0)
        if now_s < ready_at_s:
            return ready_at_s - now_s
        if self.bucket.rate_per_s and self.bucket.tokens < 1:
            return max(0.001, (1 - self.bucket.tokens) / self.bucket.rate_per_s)
        return None

    def take(self, parts: int) -> None:
        """Reserve places and tokens."""
        self.in_flight += parts
        if self.bucket.rate_per_s:
            self.bucket.tokens -= parts

    def serve(self, parts: int) -> None:
        """Count what it was given towards its share."""
        self.began = self.ended
        self.ended += parts / self.weight

    def give_back(self, parts: int, *, unsent: int = 0) -> None:
        """Free places; with the tokens of those parts that have not left."""
        self.in_flight -= parts
        assert self.in_flight >= 0, "more places freed than taken"
        if unsent and self.bucket.rate_per_s:
            self.bucket.tokens += unsent

    def healthy_rate_per_s(self) -> float:
        """Parts a second it can be counted on for: a window an answer, at most its limit.

        From all gateways together: what waits, waits for whichever of them comes to it.
        """
        rate_per_s = self.window / max(self.answer_s, ANSWER_S_MIN)
        return self.gateways * min(rate_per_s, self.bucket.rate_per_s or rate_per_s)

    def answered(self, duration_s: float) -> None:
        """Learn how long it took to answer."""
        self.answers += 1
        self.answer_s += ANSWER_WEIGHT * (duration_s - self.answer_s)
