"""The worker pool: hands claimed messages to their operators and brings back what they answer.

A claim's commit is the mark that bytes may leave. From there on a message is a *flight* until its
operator answers or ``response_timeout_s`` is over; an operator's window bounds its flights.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

from smsgw import lifecycle
from smsgw.allotter import Allotter
from smsgw.clock import Clock
from smsgw.ids import uuid_text
from smsgw.logs import get
from smsgw.metrics import Metrics
from smsgw.models import Lane, Message, Outcome, Rules, Verdict
from smsgw.providers.base import NO_SHARD, Provider, Submission
from smsgw.routing import Routing
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards
from smsgw.turn import OUTCOME, Item, Turn, Wants

log = get(__name__)

_NONE_ACCEPTED: Final[frozenset[int]] = frozenset()


class Settle(Item):
    """What an operator answered to one attempt."""

    __slots__ = ("attempt", "next_route", "number", "outcome", "rules")

    priority = OUTCOME
    patient = True

    def __init__(
        self,
        number: int,
        attempt: int,
        outcome: Outcome,
        rules: Rules,
        next_route: lifecycle.NextRoute = lifecycle.same_route,
    ) -> None:
        super().__init__()
        self.next_route = next_route
        self.number = number
        self.attempt = attempt
        self.outcome = outcome
        self.rules = rules

    def needs(self, wants: Wants) -> None:
        """The message, and with it its account; its parts, where it matters which were accepted."""
        wants.messages.add(self.number)
        if self.outcome.parts is not None or self.outcome.verdict is not Verdict.ACCEPTED:
            wants.parts.add(self.number)

    def decide(self, turn: Turn) -> None:
        """Apply it, if the message is still there."""
        message = turn.messages.get(self.number)
        if message is None:
            return
        if message.lane == Lane.OTP or self.number in turn.elsewhere:
            # Only its desk settles a one-time code, since that is who tells the caller. And what
            # another gateway sends is settled there.
            turn.event(message, "late_answer", f"attempt {self.attempt}: {self.outcome.verdict}")
        else:
            lifecycle.settle(turn, message, self.attempt, self.outcome, self.rules, self.next_route)

    def quarantine(self) -> str:
        """Everything that is known."""
        return f"settle {self.number} attempt {self.attempt}: {self.outcome}"


class Receiver(Protocol):
    """The station for receipts, as the worker needs it."""

    reports_whole: Callable[[str], bool]
    """Whether an operator reports on whole messages only."""

    def publish(
        self, provider: str, identifier: str, shard: int, number: int, part: int = 0
    ) -> None:
        """Make known whose an operator's id is."""
        ...

    def receive(
        self,
        provider: str,
        identifier: str,
        word: str,
        reason: str | None,
        others: Sequence[str] = (),
        about: tuple[int, str] | None = None,
        stored: Callable[[bool], None] | None = None,
    ) -> None:
        """Take a receipt."""
        ...


@dataclass(slots=True)
class _Flight:
    submission: Submission
    parts: int
    since_s: float
    answered: Callable[[Outcome], None] | None = None


def _unsent(submission: Submission, outcome: Outcome) -> int:
    """How many of a message's parts have not left in this attempt."""
    if not outcome.has_left:
        return submission.parts
    unsent = len(submission.accepted_parts)
    if outcome.parts is not None:
        unsent += sum(not part.has_left for part in outcome.parts.values())
    return unsent


class Worker:
    """All flights of the process."""

    def __init__(
        self,
        clock: Clock,
        allotter: Allotter,
        shards: Shards,
        receipts: Receiver,
        routing: Routing,
        metrics: Metrics,
        rules: Rules,
    ) -> None:
        self.providers: dict[str, Provider] = {}
        self.response_timeout_s: dict[str, float] = {}
        self.rules = rules
        self.on_landed: Callable[[], None] = lambda: None
        self.on_late_code: Callable[[str, Submission, Outcome], None] = lambda *_: None
        """Called with an answer to a code that had one: that nothing was known."""
        self._clock = clock
        self._allotter = allotter
        self._shards = shards
        self._receipts = receipts
        self._routing = routing
        self._metrics = metrics
        # Per operator, oldest first: all flights of one operator have the same time limit.
        self._flights: dict[str, dict[tuple[int, int], _Flight]] = {}
        self._waking = False
        self._wake_timer: asyncio.TimerHandle | None = None
        self._landed = asyncio.Event()
        allotter.changed = self.wake_soon
        allotter.begun = routing.begun
        receipts.reports_whole = routing.reports_whole

    def hand_over(
        self,
        shard: Shard,
        messages: Sequence[Message],
        accepted_parts: Mapping[int, frozenset[int]],
    ) -> None:
        """Submit what a turn has claimed, now that the claim is on disk.

        Args:
            shard: where it was claimed.
            messages: what was claimed.
            accepted_parts: which parts of which message an operator has already.
        """
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
                accepted_parts=accepted_parts.get(message.number, _NONE_ACCEPTED),
            )
            name = message.provider
            flights = self._flights.setdefault(name, {})
            flights[message.number, message.attempts] = _Flight(submission, message.parts, now_s)
            if self._allotter.stopped or shard.late or self._allotter.links[name].off:
                self.settled(name, submission, Outcome(Verdict.NOT_SENT))
            else:
                self.providers[name].submit(submission)

    def submit_now(
        self, provider: str, submission: Submission, answered: Callable[[Outcome], None]
    ) -> None:
        """Submit a one-time code, or a test, past the queue; its place was reserved by the caller.

        Args:
            provider: the operator.
            submission: what to send.
            answered: called with the outcome, instead of writing it down.
        """
        flight = _Flight(submission, submission.parts, self._clock.monotonic_s(), answered)
        flights = self._flights.setdefault(provider, {})
        flights[submission.number, submission.attempt] = flight
        if self._allotter.links[provider].off:
            self.settled(provider, submission, Outcome(Verdict.NOT_SENT))
        else:
            self.providers[provider].submit(submission)

    def settled(self, provider: str, submission: Submission, outcome: Outcome) -> None:
        """See ``Sink.settled``."""
        flights = self._flights.get(provider, {})
        flight = flights.pop((submission.number, submission.attempt), None)
        link = self._allotter.links[provider]
        verdict = outcome.verdict
        is_answer = verdict is not Verdict.NOT_SENT and verdict is not Verdict.UNKNOWN
        duration_s = inf
        if flight is not None:
            # A place is free as soon as the operator has answered, not once that is on disk.
            has_rate = link.bucket.rate_per_s > 0
            link.give_back(flight.parts, unsent=_unsent(submission, outcome) if has_rate else 0)
            duration_s = self._clock.monotonic_s() - flight.since_s
            if is_answer or outcome.answered:
                link.answered(duration_s)
            self.on_landed()
            self._metrics.submitted(provider, verdict, duration_s)
            if not flights:
                self._landed.set()
            self.wake_soon()
        if verdict is Verdict.NOT_SENT and self.providers[provider].trouble is not None:
            # What was not sent is claimed again at once, but not for a link that is down.
            link.usable = False
            if outcome.answered:
                link.doubt(self._clock.monotonic_s())
        if outcome.timed_out:
            # Whoever gives up second, we or the provider, tells nothing new.
            if flight is not None and link.failed(self._clock.monotonic_s()):
                log.warning("provider.silent", "its breaker is open", provider=provider)
        elif is_answer and link.worked(duration_s):
            log.info("provider.answers", "its breaker is closed again", provider=provider)
        if verdict is Verdict.THROTTLED:
            resume_at_s = self._clock.monotonic_s() + (outcome.retry_after_s or 1.0)
            link.resume_at_s = max(link.resume_at_s, resume_at_s)
        if flight is not None and flight.answered is not None:
            flight.answered(outcome)
        elif submission.otp:
            self.on_late_code(provider, submission, outcome)
        elif submission.shard != NO_SHARD:
            self._settle(submission, outcome)
        for part, answer in (outcome.parts or {0: outcome}).items():
            if answer.provider_message_id:
                self._receipts.publish(
                    provider, answer.provider_message_id, submission.shard, submission.number, part
                )

    def _settle(self, submission: Submission, outcome: Outcome) -> None:
        """Have an outcome written down."""
        number, attempt = submission.number, submission.attempt
        self._shards.shards[submission.shard].put(
            Settle(number, attempt, outcome, self.rules, self._next_route)
        )

    def _next_route(self, message: Message, begun_by: str | None) -> tuple[int, bool]:
        """See ``lifecycle.NextRoute``."""
        if message.provider is None:
            return message.route, False
        recipient, failed = message.recipient, message.provider
        links = self._allotter.links
        untried = self._routing.untried(
            recipient, message.route, failed, message.attempts, begun_by
        )
        ready = [
            (min(links[name].priority for name in names if links[name].counts), route)
            for route, names in untried
            if any(links[name].counts for name in names)
        ]
        if ready:
            return min(ready)[1], True
        route, names = self._routing.next_after(recipient, failed, begun_by)
        if failed not in names and any(links[name].counts for name in names):
            return route, False
        # Nobody else is ready: so when its time comes, it may go to that one again.
        route = self._routing.route(message.recipient)
        if begun_by:
            route = self._routing.begun(message.recipient, route, begun_by)
        return route, False

    def changed(self, provider: str) -> None:
        """See ``Sink.changed``."""
        trouble = self.providers[provider].trouble
        link = self._allotter.links[provider]
        if link.usable != (trouble is None):
            link.usable = trouble is None
            if trouble is None:
                log.info("provider.up", "it can be used", provider=provider)
            else:
                log.warning("provider.down", "it cannot be used", provider=provider, why=trouble)
        self._metrics.provider_up(provider, link.counts)
        self.wake_soon()

    def received(
        self,
        provider: str,
        provider_message_id: str,
        word: str,
        reason: str | None,
        *,
        others: Sequence[str] = (),
        about: tuple[int, str] | None = None,
        stored: Callable[[bool], None] | None = None,
    ) -> None:
        """See ``Sink.received``."""
        self._receipts.receive(provider, provider_message_id, word, reason, others, about, stored)

    def wrote(self, provider: str) -> None:
        """See ``Sink.wrote``."""
        self._metrics.inbound(provider)

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
            limit_s = self.response_timeout_s[provider]
            late = []
            for flight in flights.values():
                if flight.since_s + limit_s > now_s:
                    break
                late.append(flight.submission)
            for submission in late:
                outcome = Outcome(
                    Verdict.UNKNOWN, detail=f"no answer within {limit_s:g} s", timed_out=True
                )
                self.settled(provider, submission, outcome)

    async def landed(self, provider: str) -> None:
        """Return once an operator has no flights; each ends when its time is over at the latest."""
        while self._flights.get(provider):
            self._landed.clear()
            await self._landed.wait()

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
