"""An operator with an HTTP interface: one request hands over a whole message."""

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from smsgw.logs import get
from smsgw.models import Outcome, Verdict
from smsgw.operators import HttpProviderSettings, ProviderSettings
from smsgw.providers.base import FAIR_S, Accepted, Sink, Submission
from smsgw.providers.http.client import AnswerLostError, Client, NotSentError
from smsgw.providers.http.judge import Judge
from smsgw.providers.http.polls import Polls
from smsgw.providers.http.reading import Receipts
from smsgw.providers.http.requests import Requests
from smsgw.providers.http.suspects import Suspects

log = get(__name__)

PAUSE_S: Final = 1.0
"""After a connection that could not be made."""


class HttpProvider:
    """An operator that is described in settings."""

    def __init__(self, name: str, settings: HttpProviderSettings, receipt_timeout_s: float) -> None:
        """Prepare it.

        Args:
            name: the operator's.
            settings: what it is sent and what it answers.
            receipt_timeout_s: how long it is asked about a message, where asking is the way.

        Raises:
            SettingsError: a file for TLS cannot be used.
        """
        self.name = name
        self._settings = settings
        self._requests = Requests(name, settings)
        self._client = Client(name, settings)
        self._judge = Judge(settings, self._requests.hidden)
        self._polls = Polls(
            name, settings, self._requests, self._client, Receipts(settings), receipt_timeout_s
        )
        self._suspects = Suspects()
        self._sink: Sink | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble: str | None = None
        self._trouble_until_s = 0.0

    async def start(self, sink: Sink) -> None:
        """Make ready; connections are made when there is something to send."""
        self._sink = sink
        self._client.open()
        self._polls.start(sink)

    @property
    def trouble(self) -> str | None:
        """Why it cannot be used: for a while after a fault that was not a message's."""
        return self._trouble if time.monotonic() < self._trouble_until_s else None

    @property
    def warning(self) -> str | None:
        """That there are more messages than it can be asked about."""
        return self._polls.warning

    def follow(self, settings: ProviderSettings) -> None:
        """See ``Provider.follow``."""
        assert isinstance(settings, HttpProviderSettings)
        self._settings = settings
        self._requests = Requests(self.name, settings)
        self._judge = Judge(settings, self._requests.hidden)
        self._polls.follow(settings, self._requests, Receipts(settings))
        self._suspects = Suspects()
        if self._trouble is not None:
            # It may be over by what has changed.
            self._in_trouble(None, 0.0)

    def submit(self, submission: Submission) -> None:
        """Send it; several at a time, as many as the window allows."""
        self._keep(self._send(submission))

    def state(self) -> Mapping[str, str | int]:
        """How many messages wait for an answer, and how many are asked about."""
        return {"unanswered": len(self._tasks), "asked_about": len(self._polls)}

    def cancel(self, *_: object) -> bool:
        """It cannot: nothing in the settings says how."""
        return False

    def withdraw(self, *_: object) -> None:
        """A code that had no connection in half of its time was given up then; else it has left."""

    def restore(self, accepted: Sequence[Accepted]) -> None:
        """Ask about what was accepted before a restart, where asking is the way."""
        self._polls.restore(message.provider_message_id for message in accepted)

    def asks_again(self) -> bool:
        """See ``Provider.asks_again``."""
        return self._polls.asks_again()

    async def stop(self) -> None:
        """Leave what is unanswered, and close the connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._polls.stop()
        await self._client.close()

    async def _send(self, submission: Submission) -> None:
        assert self._sink is not None
        outcome = await self._outcome(submission)
        self._sink.settled(self.name, submission, outcome)
        if outcome.verdict is Verdict.ACCEPTED:
            for part in (outcome.parts or {1: outcome}).values():
                if part.provider_message_id:
                    self._polls.add(part.provider_message_id)

    async def _outcome(self, submission: Submission) -> Outcome:
        if submission.accepted_parts:
            # Another operator has some of it; this one would send all of it again.
            return Outcome(Verdict.FAILED, detail="this operator takes whole messages only")
        settings, judge = self._settings, self._judge
        timeout_s, connect_s = settings.response_timeout_s, settings.connect_timeout_s
        if submission.otp:
            timeout_s = min(timeout_s, submission.valid_s)
            # The other half is for another operator.
            connect_s = min(connect_s, timeout_s / 2)
            if timeout_s <= 0:
                return Outcome(Verdict.NOT_SENT, detail="its time is over")
        try:
            answer = await self._client.ask(self._requests.submit(submission), timeout_s, connect_s)
        except NotSentError as error:
            if error.late and connect_s < min(settings.connect_timeout_s, FAIR_S):
                # It is the code that had too little time.
                return Outcome(Verdict.NOT_SENT, detail=str(error))
            # However many find out together, it is one sign of the operator's health.
            first = self.trouble is None
            self._in_trouble(str(error), PAUSE_S)
            return Outcome(Verdict.NOT_SENT, detail=str(error), timed_out=first)
        except AnswerLostError as error:
            is_sign = not (error.late and submission.hurried)
            return Outcome(Verdict.UNKNOWN, detail=str(error), timed_out=is_sign)
        outcome, trouble = judge.outcome(answer, submission)
        if trouble is not None:
            return self._troubled(submission, outcome, trouble)
        if outcome.verdict is Verdict.ACCEPTED:
            self._suspects.accepted(submission.reference)
            if self._trouble is not None:
                self._in_trouble(None, 0.0)
        return outcome

    def _troubled(self, submission: Submission, outcome: Outcome, trouble: str) -> Outcome:
        """Rest if it is the link; else let the message step aside, or fail if it is the message."""
        rest_s = self._settings.breaker_open_s
        is_the_message = self._suspects.said_of(submission.reference)
        if self._suspects.is_the_link:
            self._in_trouble(trouble, rest_s)
        if outcome.verdict is not Verdict.NOT_SENT:
            return outcome
        if is_the_message:
            return replace(outcome, verdict=Verdict.FAILED, answered=False)
        return replace(outcome, retry_after_s=rest_s)

    def _in_trouble(self, why: str | None, pause_s: float) -> None:
        """Rest for a while, or no more."""
        assert self._sink is not None
        self._trouble = why
        self._trouble_until_s = time.monotonic() + pause_s
        self._sink.changed(self.name)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its flight ends as unknown when its time is over.
            log.error("provider.failed", "a submit failed by a defect of ours", error=error)
