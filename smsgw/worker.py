"""The worker pool: hands claimed messages to their operators and brings back what they answer.

A claim's commit is the mark that bytes may leave. From there on a message is a *flight* until its
operator answers or ``response_timeout_s`` is over; an operator's window bounds its flights.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from smsgw import lifecycle
from smsgw.clock import Clock
from smsgw.fairness import Allotter
from smsgw.ids import uuid_text
from smsgw.metrics import Metrics
from smsgw.models import Lane, Message, Outcome, Rules, Verdict
from smsgw.providers.base import Provider, Submission
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards
from smsgw.turn import OUTCOME, Item, Turn, Wants


class Settle(Item):
    """What an operator answered to one attempt."""

    __slots__ = ("attempt", "number", "outcome", "rules")

    priority = OUTCOME

    def __init__(self, number: int, attempt: int, outcome: Outcome, rules: Rules) -> None:
        super().__init__()
        self.number = number
        self.attempt = attempt
        self.outcome = outcome
        self.rules = rules

    def needs(self, wants: Wants) -> None:
        """The message, and with it its account."""
        wants.messages.add(self.number)

    def decide(self, turn: Turn) -> None:
        """Apply it, if the message is still there."""
        message = turn.messages.get(self.number)
        if message is None:
            return
        if message.lane == Lane.OTP:
            # Only its desk settles a one-time code, since that is who tells the caller.
            turn.event(message, "late_answer", f"attempt {self.attempt}: {self.outcome.verdict}")
        else:
            lifecycle.settle(turn, message, self.attempt, self.outcome, self.rules)

    def quarantine(self) -> str:
        """Everything that is known."""
        return f"settle {self.number} attempt {self.attempt}: {self.outcome}"


class Receiver(Protocol):
    """The station for receipts, as the worker needs it."""

    def publish(self, provider: str, identifier: str, shard: int, number: int) -> None:
        """Make known whose an operator's id is."""
        ...

    def receive(self, provider: str, identifier: str, word: str, reason: str | None) -> None:
        """Take a receipt."""
        ...


@dataclass(slots=True)
class _Flight:
    submission: Submission
    parts: int
    since_s: float
    answered: Callable[[Outcome], None] | None = None


class Worker:
    """All flights of the process."""

    def __init__(
        self,
        clock: Clock,
        allotter: Allotter,
        shards: Shards,
        receipts: Receiver,
        metrics: Metrics,
        rules: Rules,
        response_timeout_s: Mapping[str, float],
    ) -> None:
        self.providers: dict[str, Provider] = {}
        self.rules = rules
        self.on_landed: Callable[[], None] = lambda: None
        self._clock = clock
        self._allotter = allotter
        self._shards = shards
        self._receipts = receipts
        self._metrics = metrics
        self._response_timeout_s = response_timeout_s
        # Per operator, oldest first: all flights of one operator have the same time limit.
        self._flights: dict[str, dict[tuple[int, int], _Flight]] = {}
        self._waking = False
        self._wake_timer: asyncio.TimerHandle | None = None
        self._landed = asyncio.Event()
        allotter.changed = self.wake_soon

    def hand_over(self, shard: Shard, messages: Sequence[Message]) -> None:
        """Submit what a turn has claimed, now that the claim is on disk."""
        now_ms, now_s = self._clock.now_ms(), self._clock.monotonic_s()
        for message in messages:
            assert message.provider is not None
            submission = Submission(
                shard=shard.number,
                number=message.number,
                reference=uuid_text(message.id),
                attempt=message.attempts,
                recipient=f"+{message.recipient}",
                sender=message.sender,
                text=message.text or "",
                ucs2=bool(message.ucs2),
                parts=message.parts,
                valid_s=max(0.0, (message.expires_at_ms - now_ms) / 1000),
            )
            name = message.provider
            flights = self._flights.setdefault(name, {})
            flights[message.number, message.attempts] = _Flight(submission, message.parts, now_s)
            if self._allotter.stopped:
                self.settled(name, submission, Outcome(Verdict.NOT_SENT))
            else:
                self.providers[name].submit(submission)

    def submit_now(
        self, provider: str, submission: Submission, answered: Callable[[Outcome], None]
    ) -> None:
        """Submit a one-time code past the queue; its place was reserved by the caller.

        Args:
            provider: the operator.
            submission: what to send.
            answered: called with the outcome, instead of writing it down.
        """
        flight = _Flight(submission, submission.parts, self._clock.monotonic_s(), answered)
        flights = self._flights.setdefault(provider, {})
        flights[submission.number, submission.attempt] = flight
        self.providers[provider].submit(submission)

    def settled(self, provider: str, submission: Submission, outcome: Outcome) -> None:
        """See ``Sink.settled``."""
        flights = self._flights.get(provider, {})
        flight = flights.pop((submission.number, submission.attempt), None)
        link = self._allotter.links[provider]
        verdict = outcome.verdict
        if flight is not None:
            # A place is free as soon as the operator has answered, not once that is on disk.
            link.give_back(flight.parts, tokens=verdict is Verdict.NOT_SENT)
            duration_s = self._clock.monotonic_s() - flight.since_s
            link.answered(duration_s)
            self.on_landed()
            self._metrics.submitted(provider, verdict, duration_s)
            if not flights:
                self._landed.set()
            self.wake_soon()
        if verdict is Verdict.THROTTLED:
            link.resume_at_s = self._clock.monotonic_s() + (outcome.retry_after_s or 1.0)
        if flight is not None and flight.answered is not None:
            flight.answered(outcome)
        else:
            self.settle(submission, outcome)
        if outcome.provider_message_id:
            self._receipts.publish(
                provider, outcome.provider_message_id, submission.shard, submission.number
            )

    def settle(self, submission: Submission, outcome: Outcome) -> None:
        """Have an outcome written down."""
        number, attempt = submission.number, submission.attempt
        self._shards.shards[submission.shard].put(Settle(number, attempt, outcome, self.rules))

    def received(
        self, provider: str, provider_message_id: str, word: str, reason: str | None
    ) -> None:
        """See ``Sink.received``."""
        self._receipts.receive(provider, provider_message_id, word, reason)

    def wake_soon(self) -> None:
        """Look, at the end of this round of the event loop, which shards can claim."""
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        now_s = self._clock.monotonic_s()
        for number in self._allotter.behind(now_s):
            self._shards.shards[number].wake()
        wait_s = self._allotter.wait_s(now_s)
        if wait_s is not None:
            self._wake_after(wait_s)

    def _wake_after(self, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        timer = self._wake_timer
        if timer is not None and timer.when() <= loop.time() + wait_s:
            return
        if timer is not None:
            # A link that was told to wait long must not hold up one that waits for a token.
            timer.cancel()
        self._wake_timer = loop.call_later(wait_s, self._timed_wake)

    def _timed_wake(self) -> None:
        self._wake_timer = None
        self._wake()

    def time_out(self) -> None:
        """Give up on flights whose operator has not answered in time."""
        now_s = self._clock.monotonic_s()
        for provider, flights in self._flights.items():
            limit_s = self._response_timeout_s[provider]
            late = []
            for flight in flights.values():
                if flight.since_s + limit_s > now_s:
                    break
                late.append(flight.submission)
            for submission in late:
                outcome = Outcome(Verdict.UNKNOWN, detail=f"no answer within {limit_s:g} s")
                self.settled(provider, submission, outcome)

    def in_flight(self) -> int:
        """How many submits have no answer yet."""
        return sum(len(flights) for flights in self._flights.values())

    async def drain(self, limit_s: float) -> None:
        """Claim nothing more; wait for the flights, then call the rest unknown."""
        self._allotter.stopped = True
        try:
            async with asyncio.timeout(limit_s):
                while self.in_flight():
                    self._landed.clear()
                    await self._landed.wait()
        except TimeoutError:
            pass
        for provider, flights in self._flights.items():
            for flight in list(flights.values()):
                outcome = Outcome(Verdict.UNKNOWN, detail="the gateway stopped while waiting")
                self.settled(provider, flight.submission, outcome)
