"""Whether a server was reached for long enough to judge by it who is alive."""

import time
from collections.abc import Callable
from math import inf
from typing import Final

_COUNTED_LEASES: Final = 3
"""For how many leases those count that are dead, where nobody has looked yet."""


class Reach:
    """For how long a server has answered without a break, as this process sees it.

    While a server is away nobody can renew a lease there, so one that has ended then tells nothing.
    Gateways renew theirs when less than two thirds of them are left: after a break of up to a half
    they still run, after a longer one everybody gets a lease's time to come back. What looked like
    a break may as well have been ours: who stood still does not judge at once, either.
    """

    def __init__(self, lease_s: float) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self.is_back = False
        """Whether the last answer was the first after a break."""
        self.judges_at_s = -inf
        """A time of the server's: whose lease had ended by then is dead."""
        self._lease_s = lease_s
        self._since_s = self._last_s = -inf
        self._trusted_s: float | None = None

    @property
    def counted_s(self) -> float:
        """How long ago a lease may have ended at most, if its gateway is still to share with.

        That is less than for what a gateway was sending: nobody who was dead when the server was
        last trusted has come back since.
        """
        if self._trusted_s is None:
            return _COUNTED_LEASES * self._lease_s
        return self.clock() - self._trusted_s

    def answered(self, server_s: float) -> None:
        """Note that the server has just answered, and what time it was there."""
        now_s = self.clock()
        self.is_back = now_s - self._last_s > self._lease_s / 2
        if self.is_back:
            self._since_s = now_s
        self._last_s = now_s
        self.judges_at_s = -inf
        if now_s - self._since_s >= self._lease_s:
            self._trusted_s, self.judges_at_s = now_s, server_s
