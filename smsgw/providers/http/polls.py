"""Asking an operator what became of messages, where it does not tell by itself."""

import asyncio
import time
from functools import partial
from typing import Final

from smsgw import lifecycle
from smsgw.operators import HttpProviderSettings
from smsgw.providers.base import Sink
from smsgw.providers.http.client import AnswerLostError, Client, NotSentError
from smsgw.providers.http.reading import (
    WORD_CHARACTERS_MAX,
    Receipts,
    Report,
    parsed,
    text_at,
)
from smsgw.providers.http.requests import Requests

WAITING_MAX: Final = 100_000
"""Messages asked about; beyond it new ones are left to ``delivery.receipt_timeout_s``."""
FOR_S: Final = 259_200.0
"""How long a message is asked about."""


class Polls:
    """The messages of one operator that are asked about, each every ``receipt_poll_s``."""

    def __init__(
        self,
        name: str,
        settings: HttpProviderSettings,
        requests: Requests,
        client: Client,
        receipts: Receipts,
    ) -> None:
        self._name = name
        self._settings = settings
        self._requests = requests
        self._client = client
        self._receipts = receipts
        # When to ask next, and until when; all wait equally long, so the first is due first.
        self._waiting: dict[str, tuple[float, float]] = {}
        self._added = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        """How many messages wait for the next question."""
        return len(self._waiting)

    def start(self, sink: Sink) -> None:
        """Begin to ask, if the settings say so."""
        if self._settings.receipts and self._settings.receipt_poll_s:
            self._tasks = [
                asyncio.get_running_loop().create_task(self._run(sink), name="poll")
                for _ in range(self._settings.receipt_polls_max)
            ]

    def add(self, identifier: str) -> None:
        """Ask about a message from now on."""
        if self._tasks and len(self._waiting) < WAITING_MAX:
            now_s = time.monotonic()
            self._put(identifier, now_s, now_s + FOR_S)

    async def stop(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _put(self, identifier: str, now_s: float, until_s: float) -> None:
        self._waiting.pop(identifier, None)
        self._waiting[identifier] = (now_s + self._settings.receipt_poll_s, until_s)
        self._added.set()

    async def _run(self, sink: Sink) -> None:
        while True:
            identifier, until_s = await self._next()
            report = await self._look(identifier)
            if report is not None and lifecycle.decides(report.word):
                stored = partial(self._stored, identifier, until_s)
                sink.received(self._name, identifier, report.word, report.reason, stored=stored)
            else:
                self._ask_again(identifier, until_s)

    def _stored(self, identifier: str, until_s: float, stored: bool) -> None:
        if not stored:
            self._ask_again(identifier, until_s)

    def _ask_again(self, identifier: str, until_s: float) -> None:
        if (now_s := time.monotonic()) < until_s:
            self._put(identifier, now_s, until_s)

    async def _next(self) -> tuple[str, float]:
        while True:
            if not self._waiting:
                self._added.clear()
                await self._added.wait()
                continue
            identifier, (due_s, until_s) = next(iter(self._waiting.items()))
            if (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
                continue
            del self._waiting[identifier]
            return identifier, until_s

    async def _look(self, identifier: str) -> Report | None:
        """What the operator says of a message now; None where it does not."""
        request = self._requests.poll(identifier)
        try:
            answer = await self._client.ask(request, self._settings.response_timeout_s)
        except (NotSentError, AnswerLostError):
            return None
        if answer.body is None or not 200 <= answer.status <= 299:
            return None
        path = self._settings.receipt_poll_status
        said = text_at(parsed(answer.body), path, WORD_CHARACTERS_MAX)
        return None if said is None else self._receipts.report(identifier, said)
