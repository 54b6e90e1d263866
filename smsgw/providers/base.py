"""What an operator must be able to do, however it is reached."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from smsgw.models import Outcome, Verdict
from smsgw.operators import ProviderSettings

_DIGITS_MAX: Final = 15
_SHORT_CODE_DIGITS_MAX: Final = 8
FAIR_S: Final = 1.0
"""What does not happen in less speaks against nobody."""
NO_SHARD: Final = -1
"""The shard of a submission that belongs to no message, sent to try an operator out."""

_DECIDING: Final = (
    Verdict.REFUSED,
    Verdict.UNKNOWN,
    Verdict.FAILED,
    Verdict.THROTTLED,
    Verdict.NOT_SENT,
    Verdict.ACCEPTED,
)


def fold(parts: Mapping[int, Outcome]) -> Outcome:
    """What the outcomes of a message's parts come to: the worst, of equals that of the first part.

    Args:
        parts: one at least, counted from 1.
    """
    number = min(parts, key=lambda number: (_DECIDING.index(parts[number].verdict), number))
    pauses = [part.retry_after_s for part in parts.values() if part.retry_after_s is not None]
    return replace(parts[number], retry_after_s=max(pauses, default=None), parts=parts)


@dataclass(slots=True)
class Submission:
    """One attempt to hand a message to an operator; treat it as frozen.

    ``reference`` is our name for the message (its id); ``recipient`` is E.164 with the plus;
    ``text`` is whole, ``parts`` how many segments it is; ``valid_s`` how long the operator may
    keep trying, counted from now. ``otp`` is a one-time code: worth nothing later; one that is
    ``hurried`` was with another operator first, and the little time that is left says nothing about
    this one's health.
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
    hurried: bool = False
    accepted_parts: frozenset[int] = frozenset()


@dataclass(slots=True, frozen=True)
class Accepted:
    """A message, or a part of one, that an operator accepted and has not reported on yet."""

    provider_message_id: str
    recipient: str


def about(recipient: str, sender: str) -> tuple[int, str] | None:
    """Whose receipt it is, as an operator writes it: the recipient's digits and our sender.

    None where they cannot be told. A sender's plus may be missing.
    """
    digits = recipient.removeprefix("+")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > _DIGITS_MAX or not sender:
        return None
    if sender.isascii() and sender.isdecimal() and len(sender) > _SHORT_CODE_DIGITS_MAX:
        sender = f"+{sender}"
    return int(digits), sender


class Sink(Protocol):
    """Where an operator's news goes."""

    def settled(self, provider: str, submission: Submission, outcome: Outcome) -> None:
        """Take the answer to a submit; exactly one per submit, but a late one may follow."""
        ...

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
        """Take a receipt.

        Args:
            provider: whose.
            provider_message_id: the id it names, in its likeliest spelling.
            word: what the operator says, for example ``DELIVRD``.
            reason: why, if it says so.
            others: further spellings under which the id may be known, the likelier first.
            about: the recipient's digits and the sender, where the operator names them.
            stored: told, once, whether it is on disk; only then may it be acknowledged.
        """
        ...

    def wrote(self, provider: str) -> None:
        """Learn that a handset has sent a message of its own."""
        ...

    def changed(self, provider: str) -> None:
        """Learn that an operator's ``trouble`` is another now."""
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

    @property
    def warning(self) -> str | None:
        """What else is not as it should be, though it can be used."""
        ...

    def follow(self, settings: ProviderSettings) -> None:
        """Work by other settings from now on, alike in what its connections were made by.

        What is under way is judged as it was sent.
        """
        ...

    def submit(self, submission: Submission) -> None:
        """Send; never blocks and never raises: the answer goes to the sink."""
        ...

    def state(self) -> Mapping[str, str | int]:
        """What somebody who looks at it wants to know: connections, what waits for an answer."""
        ...

    def cancel(self, submission: Submission, provider_message_id: str, /) -> bool:
        """Ask for what was accepted to be taken back; for one-time codes that are dead.

        Returns:
            Whether the operator is asked, at once or as soon as it can be; nobody waits for its
            answer.
        """
        ...

    def withdraw(self, submission: Submission, /) -> None:
        """Never send what has not left of a submit; if that is all of it, the sink is told now."""
        ...

    def restore(self, accepted: Sequence[Accepted]) -> None:
        """Learn at start what was accepted and still lacks a receipt; may be told twice of some."""
        ...

    def asks_again(self) -> bool:
        """Whether it had no room for all that was accepted, and has now; it says so once.

        Then it is told again what lacks a receipt.
        """
        ...

    async def stop(self) -> None:
        """Say goodbye and close."""
        ...
