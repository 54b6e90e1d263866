"""What a turn does with a receipt whose message is known."""

from collections.abc import Callable
from typing import Final

from smsgw import lifecycle, parts
from smsgw.errors import SmsgwError
from smsgw.metrics import Metrics
from smsgw.models import Rules
from smsgw.turn import OUTCOME, URGENT, Item, Turn, Wants

UNANSWERED: Final = -1
"""For the part of a message: one whose answer was lost."""
Stored = Callable[[BaseException | None], None]
"""Told, once, that a receipt is on disk, or why it is not."""


class Receive(Item):
    """What an operator reported about a message."""

    __slots__ = (
        "elsewhere",
        "metrics",
        "missed",
        "moved_on",
        "number",
        "part",
        "provider_message_id",
        "reason",
        "rules",
        "tell",
        "whole",
        "word",
    )

    priority = OUTCOME
    patient = True

    def __init__(
        self,
        number: int,
        part: int,
        provider_message_id: str,
        word: str,
        reason: str | None,
        rules: Rules,
        metrics: Metrics,
        tell: Stored | None = None,
        elsewhere: Callable[["Receive"], None] | None = None,
        *,
        whole: bool = False,
    ) -> None:
        """Prepare it.

        Args:
            number: the message it is thought to be about.
            part: which part of it; 0 for the whole, ``UNANSWERED`` for one that has no id yet.
            provider_message_id: the operator's id of that message.
            word: what the operator says.
            reason: why, if it says so.
            rules: the settings that count.
            metrics: where it is counted.
            tell: who waits for it to be on disk, if anybody does.
            elsewhere: called, instead of all that, when the message is finished already: operators
                repeat ids, and an older message of that id may still be open. For an ``UNANSWERED``
                part, when nothing of the message is in doubt any more.
            whole: whether that operator reports on whole messages only.
        """
        super().__init__()
        self.whole = whole
        self.tell = tell
        self.part = part
        self.elsewhere = elsewhere
        self.missed = False
        self.moved_on = False
        self.rules = rules
        self.number = number
        self.provider_message_id = provider_message_id
        self.word = word
        self.reason = reason
        self.metrics = metrics

    def needs(self, wants: Wants) -> None:
        """The message, and with it its account."""
        wants.messages.add(self.number)
        if self.part:
            wants.parts.add(self.number)

    def decide(self, turn: Turn) -> None:
        """Apply it; the answer is the final status, if the receipt was the end."""
        message = turn.messages.get(self.number)
        self.moved_on = True
        if message is None:
            return
        final = message.is_final
        part: int | None = self.part
        if part == UNANSWERED:
            part = parts.adopt(turn, message, self.provider_message_id, whole=self.whole)
        elif final and self.elsewhere is not None:
            return
        if part is None:
            return
        self.moved_on = False
        lifecycle.receive(
            turn,
            message,
            self.word,
            self.reason,
            self.provider_message_id,
            self.rules,
            part,
        )
        if message.is_final and not final:
            self.answer = message.status
            self.missed = bool(message.express_missed)

    def done(self) -> None:
        """Count it."""
        if self.moved_on and self.elsewhere is not None:
            self.elsewhere(self)
            return
        self.metrics.receipt("event" if self.answer is None else "matched")
        if self.missed:
            self.metrics.express_missed()
        if self.tell is not None:
            self.tell(None)

    def failed(self, error: SmsgwError) -> None:
        """Tell whoever waits, if anybody does."""
        tell, self.tell = self.tell, None
        if tell is not None:
            tell(error)

    def quarantine(self) -> str:
        """Everything that is known."""
        return f"receipt {self.number}: {self.provider_message_id} {self.word} {self.reason}"


class ReceiveAtOnce(Receive):
    """The same, where a one-time code waits for its handset: its close comes right behind."""

    __slots__ = ()
    priority = URGENT
    patient = False
    kept = True
