"""The mock operator: what it does depends on the number alone, today and after a restart.

It ships with the gateway for ``serve --dev``, for tests and for benchmarks. Its ids are derived
from the message and the attempt, so that it can report again after a restart.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from smsgw.clock import rfc3339
from smsgw.models import Outcome, Verdict
from smsgw.operators import MockProviderSettings, ProviderSettings
from smsgw.providers.base import Accepted, Sink, Submission

REFUSED: Final = "+15005550001"
FAILS_ONCE: Final = "+15005550002"
UNDELIVERED: Final = "+15005550003"
NO_RECEIPT: Final = "+15005550004"
SLOW: Final = "+15005550005"
DELIVERED: Final = "+15005550006"
CHATTY: Final = "+15005550007"
FAILS_ALWAYS: Final = "+15005550008"
ANSWER_LOST: Final = "+15005550009"

SLOW_S: Final = 10.0
HANDSETS_MAX: Final = 500


@dataclass(slots=True, frozen=True)
class Handset:
    """What a handset received."""

    message_id: str
    to: str
    sender: str
    text: str
    parts: int
    received_at_ms: int


class Sandbox:
    """The handsets behind the mock operator: the last messages they received."""

    def __init__(self) -> None:
        self._messages: deque[Handset] = deque(maxlen=HANDSETS_MAX)
        self._arrived = asyncio.Event()

    def add(self, message: Handset) -> None:
        """Take a message."""
        self._messages.appendleft(message)
        self._arrived.set()

    def find(self, to: str | None) -> list[Handset]:
        """The messages, newest first; those of one number, if given."""
        return [message for message in self._messages if to is None or message.to == to]

    async def wait(self, to: str | None, wait_s: float) -> list[Handset]:
        """The same, waiting until there is at least one or the time is over."""
        try:
            async with asyncio.timeout(wait_s):
                while not self.find(to):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass
        return self.find(to)

    def clear(self) -> None:
        """Forget everything."""
        self._messages.clear()


def _open(path: str) -> IO[str]:
    return Path(path).open("a", encoding="utf-8")


class MockProvider:
    """An operator in this process."""

    def __init__(
        self, name: str, settings: MockProviderSettings, sandbox: Sandbox | None = None
    ) -> None:
        self.name = name
        self._latency_s = settings.latency_ms / 1000
        self._receipt_delay_s = settings.receipt_delay_ms / 1000
        self._receipts = settings.receipts
        self._journal_path = settings.journal
        self._journal: IO[str] | None = None
        self._sandbox = sandbox
        self._sink: Sink | None = None
        self._stopped = False

    async def start(self, sink: Sink) -> None:
        """Open the journal, where one is wanted."""
        self._sink = sink
        if self._journal_path:
            self._journal = _open(self._journal_path)

    @property
    def trouble(self) -> str | None:
        """It never has any."""
        return None

    @property
    def warning(self) -> str | None:
        """Nothing that it could tell."""
        return None

    def submit(self, submission: Submission) -> None:
        """Journal it, then answer as the number says."""
        if self._journal is not None:
            self._write(submission)
        delay_s = SLOW_S if submission.recipient == SLOW else self._latency_s
        self._after(delay_s, self._answer, submission)

    def state(self) -> Mapping[str, str | int]:
        """There is nothing to tell."""
        return {}

    def cancel(self, *_: object) -> bool:
        """It cannot: a handset has it already."""
        return False

    def withdraw(self, *_: object) -> None:
        """Nothing waits here: all has left."""

    def restore(self, accepted: Sequence[Accepted]) -> None:
        """Report again on what was accepted before a restart."""
        for message in accepted:
            self._report(message.provider_message_id, message.recipient)

    def follow(self, settings: ProviderSettings) -> None:
        """Nothing: all that it goes by makes another one of it."""

    def asks_again(self) -> bool:
        """It never does."""
        return False

    async def stop(self) -> None:
        """Stop answering and close the journal."""
        self._stopped = True
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _after(self, delay_s: float, function: Callable[..., None], *arguments: Any) -> None:
        if delay_s > 0:
            asyncio.get_running_loop().call_later(delay_s, function, *arguments)
        else:
            function(*arguments)

    def _write(self, submission: Submission) -> None:
        assert self._journal is not None
        for part in range(1, submission.parts + 1):
            line = {
                "at": rfc3339(int(time.time() * 1000)),
                "message_id": submission.reference,
                "attempt": submission.attempt,
                "part": part,
                "to": submission.recipient,
            }
            self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()

    def _answer(self, submission: Submission) -> None:
        if self._stopped or self._sink is None:
            return
        number = submission.recipient
        if number == REFUSED:
            outcome = Outcome(Verdict.REFUSED, detail="the mock operator refuses this number")
        elif number == FAILS_ALWAYS or (number == FAILS_ONCE and submission.attempt == 1):
            outcome = Outcome(Verdict.FAILED, detail="the mock operator is busy for this number")
        elif number == ANSWER_LOST:
            self._deliver(submission)
            return
        else:
            outcome = Outcome(
                Verdict.ACCEPTED,
                provider_message_id=f"{submission.number:x}-{submission.attempt}",
                receipts=self._receipts,
            )
        self._sink.settled(self.name, submission, outcome)
        if outcome.provider_message_id is not None:
            if number != UNDELIVERED:
                self._deliver(submission)
            self._report(outcome.provider_message_id, number)

    def _deliver(self, submission: Submission) -> None:
        if self._sandbox is not None:
            self._sandbox.add(
                Handset(
                    submission.reference,
                    submission.recipient,
                    submission.sender,
                    submission.text,
                    submission.parts,
                    int(time.time() * 1000),
                )
            )

    def _report(self, provider_message_id: str, number: str) -> None:
        if number == NO_RECEIPT:
            return
        words = ["DELIVRD"]
        if number == UNDELIVERED:
            words = ["UNDELIV"]
        elif number == CHATTY:
            words = ["DELIVRD", "DELIVRD", "DELIVRD", "UNDELIV"]
        for word in words:
            self._after(self._receipt_delay_s, self._receipt, provider_message_id, word)

    def _receipt(self, provider_message_id: str, word: str) -> None:
        if not self._stopped and self._sink is not None:
            self._sink.received(self.name, provider_message_id, word, None)
