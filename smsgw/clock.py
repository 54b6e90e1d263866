"""Time, handed in: whoever needs to know the time is given a ``Clock``.

Within a run, time is the wall clock at start plus the monotonic clock, moved gently towards the
wall clock afterwards. So a wall clock that jumps changes no deadline and no order; it is only
followed slowly, and the jump is reported.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

JUMP_MS = 5_000
SLEW_SHARE = 0.05


class Clock(Protocol):
    """What the gateway needs of time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC; never falls within a run."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some start, for deadlines and durations."""
        ...


class SystemClock:
    """The clock of a running gateway."""

    def __init__(
        self,
        wall_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._offset_s = wall_s() - monotonic_s()
        self._slewed_at_s = monotonic_s()
        self._last_ms = 0

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC; never falls within a run."""
        now_ms = int((self._offset_s + self._monotonic_s()) * 1000)
        if now_ms > self._last_ms:
            self._last_ms = now_ms
        return self._last_ms

    def monotonic_s(self) -> float:
        """Seconds of the operating system's monotonic clock."""
        return self._monotonic_s()

    def slew(self) -> int:
        """Move towards the wall clock, by at most 5 % of the time since the last call.

        Returns:
            How far the wall clock is ahead of ours, in milliseconds, before moving.
        """
        now_s = self._monotonic_s()
        ahead_s = self._wall_s() - (self._offset_s + now_s)
        step_s = SLEW_SHARE * (now_s - self._slewed_at_s)
        self._offset_s += max(-step_s, min(step_s, ahead_s))
        self._slewed_at_s = now_s
        return round(ahead_s * 1000)


class ManualClock:
    """A clock that a test moves."""

    def __init__(self, now_ms: int = 1_780_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic_s = 1000.0

    def now_ms(self) -> int:
        """The time last set."""
        return self._now_ms

    def monotonic_s(self) -> float:
        """Seconds, moved together with ``now_ms``."""
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        assert seconds >= 0
        self._now_ms += round(seconds * 1000)
        self._monotonic_s += seconds


def rfc3339(ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 UTC, for example ``2026-11-23T12:00:00.000Z``."""
    whole, rest = divmod(ms, 1000)
    moment = datetime.fromtimestamp(whole, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def day_of(ms: int) -> int:
    """The UTC day of a moment, as days since 1970-01-01."""
    return ms // 86_400_000
