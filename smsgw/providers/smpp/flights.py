"""What a message becomes for an SMSC: a submit_sm for each part, and one answer made of theirs."""

from dataclasses import dataclass, field
from typing import Final, Protocol

from smsgw.models import Outcome, Verdict
from smsgw.operators import SmppProviderSettings
from smsgw.providers.base import Submission, fold
from smsgw.providers.smpp.bodies import ESM_FORWARD, Address, Cancel, ShortMessage
from smsgw.providers.smpp.segments import destination, reference_of, segments, source

ANSWER_SHARE: Final = 0.95
"""Of ``response_timeout_s``: ours ends before the worker's, which knows nothing of parts."""


class Carrier(Protocol):
    """A connection that parts travel on."""

    def give_up(self, part: "Part") -> bool:
        """Wait no longer for an answer; whether it may have left."""
        ...

    def holds(self, part: "Part") -> bool:
        """Whether it has not left yet."""
        ...


@dataclass(slots=True, eq=False)
class Part:
    """One submit_sm: where it is, and under which sequence number."""

    flight: "Flight"
    number: int
    message: ShortMessage
    carrier: Carrier | None = None
    sequence: int = 0


@dataclass(slots=True, eq=False)
class Flight:
    """One submission under way; of times, those of the event loop.

    ``forms`` made it, and reads the answers to it. It is given up at ``due_s``, and what has not
    left by ``expires_at_s`` never will.
    """

    submission: Submission
    forms: "Forms"
    by_part: bool
    due_s: float
    expires_at_s: float
    parts: list[Part] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether each part has an outcome."""
        return len(self.outcomes) == len(self.parts)

    def outcome(self) -> Outcome:
        """What the outcomes of its parts come to."""
        if self.by_part:
            return fold(dict(self.outcomes))
        (outcome,) = self.outcomes.values()
        return outcome


class Forms:
    """How one operator wants its submits."""

    def __init__(self, settings: SmppProviderSettings) -> None:
        self._settings = settings
        self._answer_s = ANSWER_SHARE * settings.response_timeout_s
        self._registered_delivery = 1 if settings.receipts else 0

    def flight(self, submission: Submission, now_s: float) -> Flight:
        """Make ready to send what an operator has not accepted yet.

        Raises:
            PduError: it cannot be said in this operator's ways.
        """
        settings = self._settings
        by_part = submission.parts > 1 and settings.long_messages != "payload"
        flight = Flight(
            submission, self, by_part, now_s + self._answer_s, now_s + submission.valid_s
        )
        forward = ESM_FORWARD if submission.otp and settings.transaction_mode else 0
        sender, recipient = self._addresses(submission)
        cut = segments(
            submission.text,
            reference_of(submission.number),
            settings.long_messages,
            settings.charset,
        )
        for number, segment in enumerate(cut, 1):
            if number not in submission.accepted_parts:
                message = ShortMessage(
                    sender,
                    recipient,
                    segment.esm_class | forward,
                    segment.data_coding,
                    self._registered_delivery,
                    settings.service_type,
                    segment.short_message,
                    tlvs=segment.tlvs,
                )
                flight.parts.append(Part(flight, number, message))
        return flight

    def accepts(self, submission: Submission) -> bool:
        """Whether it can be sent: in one piece, another operator's parts would go out again."""
        return self._settings.long_messages != "payload" or not submission.accepted_parts

    def accepted(self, submission: Submission, message_id: str) -> Outcome:
        """What an acceptance means: in transaction mode, that the handset has it."""
        return Outcome(
            Verdict.ACCEPTED,
            provider_message_id=message_id or None,
            handset=submission.otp and self._settings.transaction_mode,
            receipts=self._settings.receipts,
        )

    def cancel(self, submission: Submission, message_id: str) -> Cancel:
        """Take back what was accepted under an id, as the operator wrote it."""
        sender, recipient = self._addresses(submission)
        return Cancel(self._settings.service_type, message_id, sender, recipient)

    def _addresses(self, submission: Submission) -> tuple[Address, Address]:
        settings = self._settings
        sender = source(submission.sender, settings.short_code_ton, settings.short_code_npi)
        digits = destination(submission.recipient).value
        return sender, Address(settings.destination_ton, settings.destination_npi, digits)
