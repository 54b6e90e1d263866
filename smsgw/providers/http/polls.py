"""Asking an operator what became of messages, where it does not tell by itself."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import Final

from smsgw import lifecycle
from smsgw.logs import get
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

log = get(__name__)

WAITING_MAX: Final = 100_000
"""Messages asked about; those beyond it are asked about once there is room."""
ROOM_SHARE: Final = 0.5
"""Of these, free before what was left out is looked for: it takes a look through all shards."""


class Polls:
    """The messages of one operator that are asked about, each every ``receipt_poll_s``."""

    def __init__(
        self,
        name: str,
        settings: HttpProviderSettings,
        requests: Requests,
        client: Client,
        receipts: Receipts,
        for_s: float,
    ) -> None:
        """Prepare it.

        Args:
            name: the operator's.
            settings: how it is asked.
            requests: makes the questions.
            client: sends them.
            receipts: reads the answers.
            for_s: how long a message is asked about.
        """
        self._name = name
        self._settings = settings
        self._requests = requests
        self._client = client
        self._receipts = receipts
        self._for_s = for_s
        self._left_out = False
        # When to ask next, and until when; all wait equally long, so the first is due first.
        self._waiting: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._added = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def follow(
        self, settings: HttpProviderSettings, requests: Requests, receipts: Receipts
    ) -> None:
        """Ask by other settings from now on."""
        self._settings, self._requests, self._receipts = settings, requests, receipts

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

    @property
    def warning(self) -> str | None:
        """That there are more messages than can be asked about."""
        if not self._left_out:
            return None
        return f"it is asked about {WAITING_MAX} messages, and about no more until it has reported"

    def add(self, identifier: str) -> None:
        """Ask about a message from now on; where there is no room, once there is."""
        if not self._tasks:
            return
        if len(self._waiting) < WAITING_MAX:
            now_s = time.monotonic()
            self._put(identifier, now_s, now_s + self._for_s)
        elif not self._left_out:
            self._left_out = True
            log.warning("provider.polls", "polling is full", provider=self._name, why=self.warning)

    def restore(self, identifiers: Iterable[str]) -> None:
        """Ask about what was accepted before, in addition to what is asked about."""
        for identifier in identifiers:
            if identifier not in self._waiting:
                self.add(identifier)

    def asks_again(self) -> bool:
        """See ``Provider.asks_again``."""
        asks = self._left_out and len(self._waiting) <= WAITING_MAX * ROOM_SHARE
        if asks:
            self._left_out = False
        return asks

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
