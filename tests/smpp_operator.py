"""An operator under test that speaks SMPP, and what it told its sink."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from smsgw.models import Outcome, Verdict
from smsgw.operators import SmppProviderSettings
from smsgw.providers.base import Submission
from smsgw.providers.smpp.provider import SmppProvider
from smsgw.text import measure
from tests.pdus import ENQUIRE_LINK
from tests.smsc import Smsc

TO: Final = "+989121234567"
LONG: Final = "all work and no play makes a dull message " * 8
"""Three parts."""
LIMIT_S: Final = 30

Found = TypeVar("Found")


@dataclass
class Received:
    """A receipt, as the sink got it."""

    identifier: str
    word: str
    reason: str | None
    others: Sequence[str]
    about: tuple[int, str] | None
    stored: Callable[[bool], None]


class Operator:
    """The provider, and the sink that it tells: it keeps everything, and stores at once."""

    def __init__(self, port: int, **settings: Any) -> None:
        defaults = {
            "host": "127.0.0.1",
            "system_id": "esme",
            "password": "secret",
            # Waits are real: none may be long.
            "reconnect_min_s": 0.001,
            "reconnect_max_s": 0.01,
            "unbind_timeout_s": 0.05,
        }
        self.settings = SmppProviderSettings(
            **{"kind": "smpp", "port": port, **defaults, **settings}  # type: ignore[arg-type]
        )
        self.provider = SmppProvider("op", self.settings)
        self.stores = True
        self.submitted: list[Submission] = []
        self.outcomes: list[tuple[Submission, Outcome]] = []
        self.receipts: list[Received] = []
        self.troubles: list[str | None] = []
        self.wrote_count = 0
        self._changed = asyncio.Event()

    # The sink.

    def settled(self, provider: str, submission: Submission, outcome: Outcome) -> None:
        assert provider == "op"
        self.outcomes.append((submission, outcome))
        self._changed.set()

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
        assert (provider, stored is not None) == ("op", True)
        assert stored is not None
        self.receipts.append(
            Received(provider_message_id, word, reason, tuple(others), about, stored)
        )
        if self.stores:
            stored(True)
        self._changed.set()

    def wrote(self, provider: str) -> None:
        assert provider == "op"
        self.wrote_count += 1
        self._changed.set()

    def changed(self, provider: str) -> None:
        assert provider == "op"
        self.troubles.append(self.provider.trouble)
        self._changed.set()

    # What tests ask.

    async def until(self, condition: Callable[[], Found]) -> Found:
        """What a condition gives as soon as it is true, looked at after all that the sink hears."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not (found := condition()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"only heard {self.outcomes}, {self.troubles}") from None
        return found

    async def up(self) -> None:
        """Wait until something can be sent."""
        await self.until(lambda: self.provider.trouble is None)

    async def down(self) -> str:
        """Wait until nothing can be sent; why."""
        return await self.until(lambda: self.provider.trouble or "")

    def submit(
        self, text: str = "hello", to: str = TO, sender: str = "ACME", **more: Any
    ) -> Submission:
        """Submit a message."""
        size = measure(text)
        submission = Submission(
            **{
                "shard": 0,
                "number": len(self.submitted) + 1,
                "reference": "",
                "attempt": 1,
                "recipient": to,
                "sender": sender,
                "text": text,
                "ucs2": size.encoding == "UCS-2",
                "parts": size.parts,
                "valid_s": 3600.0,
                **more,
            }
        )
        self.submitted.append(submission)
        self.provider.submit(submission)
        return submission

    async def outcome_of(self, submission: Submission, count: int = 1) -> Outcome:
        """What became of it; with a count, the latest of so many answers."""
        return (await self.until(lambda: self._answers(submission)[count - 1 :]))[0]

    def _answers(self, submission: Submission) -> list[Outcome]:
        return [outcome for one, outcome in self.outcomes if one is submission]

    async def settle(self, *texts: str, **more: Any) -> list[Outcome]:
        """Submit messages, and wait for what becomes of them."""
        sent = [self.submit(text, **more) for text in texts or ("hello",)]
        return [await self.outcome_of(one) for one in sent]

    async def verdict(self, text: str = "hello", **more: Any) -> tuple[Verdict, str | None]:
        """Submit a message, and wait for what becomes of it."""
        (outcome,) = await self.settle(text, **more)
        return outcome.verdict, outcome.detail

    def check(self) -> None:
        """Each submit was told of: once, unless nothing was known at first."""
        for submission in self.submitted:
            first, *late = self._answers(submission)
            assert not late or first.verdict is Verdict.UNKNOWN, (submission, first, late)


@asynccontextmanager
async def operator(port: int, *, up: bool = True, **settings: Any) -> AsyncIterator[Operator]:
    """An operator that is bound, unless told not to wait for it; stopped in the end."""
    one = Operator(port, **settings)
    await one.provider.start(one)
    try:
        if up:
            await one.up()
        yield one
    finally:
        await one.provider.stop()
    one.check()


async def bound(smsc: Smsc, op: Operator, count: int) -> None:
    """Wait until both sides know of so many binds: the sink is not told of further ones."""
    for session in await smsc.binds(count):
        await session.request(ENQUIRE_LINK).answered()
    assert op.provider.state()["binds"] == f"{count} of {count} bound"
