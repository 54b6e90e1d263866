"""What an operator must be able to do, however it is reached."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from smsgw.models import Outcome


@dataclass(slots=True)
class Submission:
    """One attempt to hand a message to an operator; treat it as frozen.

    ``reference`` is our name for the message (its id); ``recipient`` is E.164 with the plus;
    ``text`` is whole, ``parts`` how many segments it is; ``valid_s`` how long the operator may
    keep trying, counted from now. ``otp`` is a one-time code: worth nothing later.
    ``accepted_parts`` were accepted in earlier attempts, counted from 1, and are not sent again.
    """

    shard: int
    number: int
    reference: str
    attempt: int
    recipient: str
    sender: str
    text: str
    ucs2: bool
    parts: int
    valid_s: float
    otp: bool = False
    accepted_parts: frozenset[int] = frozenset()


@dataclass(slots=True, frozen=True)
class Accepted:
    """A message that an operator accepted and has not reported on yet, as known at start."""

    provider_message_id: str
    recipient: str


class Sink(Protocol):
    """Where an operator's news goes."""

    def settled(self, provider: str, submission: Submission, outcome: Outcome) -> None:
        """Take the answer to a submit; exactly one per submit, but a late one may follow."""
        ...

    def received(
        self, provider: str, provider_message_id: str, word: str, reason: str | None
    ) -> None:
        """Take a receipt."""
        ...


class Provider(Protocol):
    """An operator."""

    name: str

    async def start(self, sink: Sink) -> None:
        """Begin to connect; returns at once, whether or not the operator answers."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why it cannot be used now; None where it can."""
        ...

    def submit(self, submission: Submission) -> None:
        """Send; never blocks and never raises: the answer goes to the sink."""
        ...

    def restore(self, accepted: Sequence[Accepted]) -> None:
        """Learn at start which accepted messages still lack a receipt."""
        ...

    async def stop(self) -> None:
        """Say goodbye and close."""
        ...
