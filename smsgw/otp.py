"""One-time codes: delivered now or refused now, never in the queue, never sent twice.

Opening a code (message, hold, idempotency record) is one turn; the provider is then asked once; the
deciding turn looks at the clock again and writes down what the caller is told: 200 if and only if
the operator (or the handset) had confirmed before the deadline, else 503 and the money back. Where
no byte has left for an operator, the next one is asked: nothing can be sent twice by that. The work
goes on in a task of its own, so a caller that hangs up changes nothing.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from smsgw.admission import Draft, KeyUse, Replay
from smsgw.allotter import Allotter
from smsgw.clock import Clock
from smsgw.codes import (
    AcceptedByOperator,
    Close,
    Decided,
    Open,
    Redirect,
    Verify,
    derive,
    undeliverable,
)
from smsgw.entrance import Entrance
from smsgw.errors import OtpUndeliverable, SmsgwError, TooManyRequests
from smsgw.ids import uuid_text
from smsgw.links import Link
from smsgw.metrics import Metrics
from smsgw.models import ANSWER_OTP_FAILED, Message, Outcome, Reason, Rules, Status, Verdict
from smsgw.providers.base import FAIR_S, Submission
from smsgw.settings import OtpSettings
from smsgw.store.base import SharedStore
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards
from smsgw.text import mask_digits
from smsgw.turn import Turn, Wants
from smsgw.worker import Settle, Worker

PLACEHOLDER: Final = "{code}"
OUR_TEXT: Final = "Your verification code is {code}"
PLACE_LOOK_S: Final = 0.1
"""Tokens come with time, not with an event."""
_NUMBERS_MAX: Final = 100_000
_TAKEN_BACK_MAX: Final = 10_000
_ENDED_THERE: Final = frozenset({Reason.UNDELIVERED, Reason.EXPIRED_BY_OPERATOR})
"""By the operator's own word: of what it took as a whole, nothing is left to be taken back."""


class NumberLimits:
    """How often one number may be sent a code, over all clients; 0 switches a limit off."""

    def __init__(self, interval_s: float, window_s: float, window_max: int) -> None:
        self._interval_ms = round(interval_s * 1000)
        self._window_ms = round(window_s * 1000)
        self._window_max = window_max
        self._sent: OrderedDict[int, deque[int]] = OrderedDict()

    @property
    def horizon_ms(self) -> int:
        """How far back a code still counts."""
        return max(self._interval_ms, self._window_ms if self._window_max else 0)

    def refuse(self, recipient: int, now_ms: int) -> TooManyRequests | None:
        """Why a number may not be sent a code now; None where it may."""
        sent = self._sent.get(recipient)
        if sent is None:
            return None
        while sent and sent[0] <= now_ms - self.horizon_ms:
            sent.popleft()
        if not sent:
            del self._sent[recipient]
        return self.judge(sent, now_ms)

    def judge(self, sent: Sequence[int], now_ms: int) -> TooManyRequests | None:
        """Why a number may not be sent a code now that was sent some at these times, in order."""
        if not sent:
            return None
        wait_ms = sent[-1] + self._interval_ms - now_ms if self._interval_ms else 0
        if self._window_max and self._window_ms:
            recent = [at for at in sent if at > now_ms - self._window_ms]
            if len(recent) >= self._window_max:
                wait_ms = max(wait_ms, recent[-self._window_max] + self._window_ms - now_ms)
        if wait_ms <= 0:
            return None
        return TooManyRequests(
            "This number was sent a code too recently, or too many.", retry_after_s=wait_ms / 1000
        )

    def note(self, recipient: int, now_ms: int) -> None:
        """Count a code."""
        if self.horizon_ms:
            self._sent.setdefault(recipient, deque()).append(now_ms)
            if len(self._sent) > _NUMBERS_MAX:
                self._sent.popitem(last=False)

    def forgive(self, recipient: int, at_ms: int) -> None:
        """Take back a code that did not leave."""
        sent = self._sent.get(recipient)
        if sent and at_ms in sent:
            sent.remove(at_ms)


class OpenBesideOthers(Open):
    """The same where other gateways send codes, too: what they have sent to the number counts.

    The client is locked by then, so of several that it asks for at once, over several gateways,
    one is sent.
    """

    __slots__ = ("limits", "noticed", "since_ms")

    def __init__(
        self, limits: NumberLimits, now_ms: int, client_id: bytes, draft: Draft, **more: Any
    ) -> None:
        super().__init__(client_id, draft, **more)
        self.limits = limits
        self.noticed = self.said_no
        self.since_ms = now_ms - limits.horizon_ms

    def needs(self, wants: Wants) -> None:
        """Also, when the number was sent codes."""
        super().needs(wants)
        wants.asks.append(("otp_recent_of", (self.draft.recipient, self.since_ms)))

    def decide(self, turn: Turn) -> None:
        """Judge by what was sent from everywhere, unless this gateway's own was too much."""
        sent = turn.ask("otp_recent_of", self.draft.recipient, self.since_ms)
        self.said_no = self.noticed or self.limits.judge([at for (at,) in sent], turn.now_ms)
        super().decide(turn)


class Ahead:
    """A code that waits for a place: until it has left, the queue gets none where it waits."""

    def __init__(self, parts: int, over: Callable[[], None]) -> None:
        self._parts = parts
        self._over = over
        self._links: Sequence[Link] = ()

    def wait_on(self, links: Sequence[Link]) -> None:
        """Wait on these, and no longer on any other."""
        for one in self._links:
            one.otp_waiting -= self._parts
        for one in links:
            one.otp_waiting += self._parts
        self._links = links

    def stay_on(self, link: Link) -> None:
        """It has a place, and has not left."""
        if self._links:
            self.wait_on((link,))

    def end(self) -> None:
        """It has left, or never will."""
        if self._links:
            self.wait_on(())
            self._over()


class Late(Settle):
    """An answer that comes after a code was decided: an event, and the answer where it is dead."""

    __slots__ = ("refused",)

    def __init__(
        self, submission: Submission, outcome: Outcome, rules: Rules, refused: Callable[[], None]
    ) -> None:
        super().__init__(submission.number, submission.attempt, outcome, rules)
        self.refused = refused

    def decide(self, turn: Turn) -> None:
        """Note it; the answer is why the code has ended."""
        super().decide(turn)
        message = turn.messages.get(self.number)
        self.answer = message.reason if message is not None else None

    def done(self) -> None:
        """Say that the caller was told that it had failed, if so."""
        if self.answer == Reason.UNCERTAIN:
            self.refused()


@dataclass(slots=True)
class _Code:
    """A code that is opened, and what is needed to send it."""

    client_id: bytes
    draft: Draft
    message: Message
    text: str
    ours: bool
    key: KeyUse | None
    arrived_ms: int
    ahead: Ahead


@dataclass(slots=True)
class _Try:
    """A code at one operator."""

    link: Link
    submission: Submission
    answered: asyncio.Future[Outcome]

    @property
    def outcome(self) -> Outcome | None:
        """What the operator has answered, if it has."""
        return self.answered.result() if self.answered.done() else None


class OtpDesk:
    """Where one-time codes are opened, sent and closed."""

    def __init__(
        self,
        settings: OtpSettings,
        rules: Rules,
        key: bytes,
        clock: Clock,
        entrance: Entrance,
        allotter: Allotter,
        worker: Worker,
        shards: Shards,
        metrics: Metrics,
        watchers: dict[int, asyncio.Future[None]],
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._key = key
        self._clock = clock
        self._entrance = entrance
        self._allotter = allotter
        self._worker = worker
        self._shards = shards
        self._metrics = metrics
        self._watchers = watchers
        self._tasks: set[asyncio.Task[Any]] = set()
        # Of several answers to one code, each says again which parts were accepted.
        self._taken_back: OrderedDict[tuple[str, int, str], None] = OrderedDict()
        self._landed = asyncio.Event()
        worker.on_landed = self._landed.set
        worker.on_late_code = self._late
        self._limits = NumberLimits(
            settings.number_interval_s, settings.number_window_s, settings.number_window_max
        )

    async def open(self) -> None:
        """Learn which numbers were sent codes lately."""
        since = self._clock.now_ms() - self._limits.horizon_ms
        for shard in self._shards:
            for recipient, at_ms in await shard.store.read("otp_recent", since):
                self._limits.note(recipient, at_ms)

    def text_for(self, text: str | None) -> tuple[str, bool]:
        """The text with as many stars as the code has digits, and whether we make the code."""
        template = OUR_TEXT if text is None else text
        stars = "*" * self._settings.digits
        return template.replace(PLACEHOLDER, stars), PLACEHOLDER in template

    async def send(
        self,
        client_id: bytes,
        draft: Draft,
        text: str | None,
        key: KeyUse | None,
        arrived_ms: int,
    ) -> Decided | Replay:
        """Send a code and return what was decided; goes on if the caller does not wait.

        Args:
            client_id: whose it is.
            draft: the message, counted and priced.
            text: the client's text, perhaps with ``{code}``; None for ours.
            key: its Idempotency-Key, if it has one.
            arrived_ms: when the request arrived; the deadline counts from there.

        Raises:
            OtpUndeliverable: it was not confirmed; the money is back.
            SmsgwError: what else it was refused with; nothing was written.
        """
        ahead = Ahead(draft.parts, self._worker.wake_soon)
        work = self._send(client_id, draft, text, key, arrived_ms, ahead)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        task.add_done_callback(lambda _: ahead.end())
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Read it, so that a caller who hung up leaves no warning behind.
            task.exception()

    async def _send(
        self,
        client_id: bytes,
        draft: Draft,
        text: str | None,
        key: KeyUse | None,
        arrived_ms: int,
        ahead: Ahead,
    ) -> Decided | Replay:
        shard = self._entrance.open_for(client_id)
        deadline_ms = arrived_ms + self._settings.deadline_ms
        now_ms = self._clock.now_ms()
        said_no = self._limits.refuse(draft.recipient, now_ms)
        link = None if said_no else await self._place(draft, arrived_ms, ahead)
        template, ours = OUR_TEXT if text is None else text, self.text_for(text)[1]
        if not ours:
            draft.text = mask_digits(draft.text)
        self._limits.note(draft.recipient, now_ms)
        opened: Any = None
        try:
            opened = await shard.ask(
                self._opening(shard, now_ms)(
                    client_id,
                    draft,
                    key=key,
                    rules=self._rules,
                    provider=link.name if link else None,
                    deadline_ms=deadline_ms,
                    said_no=said_no,
                )
            )
        finally:
            sending = isinstance(opened, Message) and opened.status == Status.SENDING
            if not sending:
                self._limits.forgive(draft.recipient, now_ms)
                if link is not None:
                    link.give_back(draft.parts, unsent=draft.parts)
        if isinstance(opened, Replay):
            return opened
        self._metrics.accepted("otp", 1, draft.parts)
        if not sending or link is None:
            raise self._undeliverable(opened)
        code = derive(self._key, opened.id, self._settings.digits) if ours else None
        full = template.replace(PLACEHOLDER, code) if code else template
        code_sent = _Code(client_id, draft, opened, full, ours, key, arrived_ms, ahead)
        decided = await self._deliver(shard, code_sent, link)
        if decided.answer == ANSWER_OTP_FAILED:
            raise self._undeliverable(decided.message)
        decided.code = code
        self._metrics.otp("confirmed")
        return decided

    def _opening(self, shard: Shard, now_ms: int) -> Callable[..., Open]:
        """What opens a code in a shard."""
        if isinstance(shard.store, SharedStore) and self._limits.horizon_ms:
            return partial(OpenBesideOthers, self._limits, now_ms)
        return Open

    async def _place(
        self, draft: Draft, arrived_ms: int, ahead: Ahead, tried: Collection[str] = ()
    ) -> Link | None:
        """Reserve a place on an operator; wait for one for half of the deadline at most.

        Codes that wait go before everything that is queued.
        """
        limit_ms = arrived_ms + self._settings.deadline_ms // 2
        names = [name for name in self._allotter.routes.get(draft.route, ()) if name not in tried]
        links = [self._allotter.links[name] for name in names]
        while True:
            left_s = (limit_ms - self._clock.now_ms()) / 1000
            now_s = self._clock.monotonic_s()
            link = self._reserve(names, draft.parts, now_s, now_s + left_s)
            if link is not None:
                break
            able = [one for one in links if one.may_take(now_s, now_s + left_s)]
            able = [one for one in able if not one.is_doubted(now_s)] or able
            if left_s <= 0 or not able or self._allotter.stopped or self._allotter.paused:
                ahead.end()
                return None
            ahead.wait_on(able)
            rests_s = [one.resume_at_s - now_s for one in able if one.resume_at_s > now_s]
            self._landed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, PLACE_LOOK_S, *rests_s)):
                    await self._landed.wait()
        ahead.stay_on(link)
        return link

    def _reserve(
        self, names: Sequence[str], parts: int, now_s: float, until_s: float
    ) -> Link | None:
        if self._allotter.stopped or self._allotter.paused:
            return None
        return self._allotter.pick_for_otp(names, parts, now_s, until_s)

    async def _deliver(self, shard: Shard, code: _Code, link: Link) -> Decided:
        """Have it sent, wait for what confirms until the deadline, and have it decided."""
        number = code.message.number
        handset = self._settings.confirm == "handset"
        accepted: AcceptedByOperator | None = None
        close: Close | None = None

        def decide(outcome: Outcome | None) -> None:
            nonlocal close
            to_close = (code.client_id, number, outcome, code.key, self._rules)
            request = Close(*to_close, handset=handset, codes=code.ours)
            shard.put(request)
            close = request

        def take(one: _Try, outcome: Outcome) -> None:
            nonlocal accepted
            if close is not None:
                self._late(one.link.name, one.submission, outcome)
                return
            # At once, so that no receipt can overtake the answer it belongs to.
            with contextlib.suppress(SmsgwError):
                if not outcome.has_left:
                    pass
                elif not handset or outcome.handset:
                    decide(outcome)
                elif outcome.verdict is Verdict.ACCEPTED:
                    request = AcceptedByOperator(number, outcome)
                    shard.put(request)
                    accepted = request
            if not one.answered.done():
                one.answered.set_result(outcome)

        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended = shard.watch(number)
        if handset:
            self._watchers[number] = watcher
            # The receipt may come to another gateway.
            ended.add_done_callback(partial(_pass_on, watcher))
        one = self._try(shard, code, link, take, first=True)
        try:
            with contextlib.suppress(TimeoutError, SmsgwError):
                async with asyncio.timeout(one.submission.valid_s):
                    tried = {link.name}
                    while not (await asyncio.shield(one.answered)).has_left:
                        next_link = await self._next(shard, code, tried)
                        if next_link is None:
                            break
                        tried.add(next_link.name)
                        one = self._try(shard, code, next_link, take, first=False)
                    if accepted is not None:
                        await accepted.future
                        await watcher
        except Exception:
            # Whatever goes wrong, its hold must end.
            if close is None:
                decide(one.outcome)
            raise
        finally:
            self._watchers.pop(number, None)
            shard.unwatch(number, ended)
        if one.outcome is None:
            self._give_up(one)
        if close is None:
            decide(one.outcome)
        assert close is not None
        decided: Decided = await close.future
        if one.outcome is not None and _is_left(decided, one.outcome):
            self._take_back(one.link.name, one.submission, one.outcome)
        return decided

    def _try(
        self,
        shard: Shard,
        code: _Code,
        link: Link,
        take: Callable[[_Try, Outcome], None],
        *,
        first: bool,
    ) -> _Try:
        """Ask an operator to send it."""
        left_s = max(0.0, (code.message.expires_at_ms - self._clock.now_ms()) / 1000)
        hurried = not first and left_s < FAIR_S
        submission = _submission(shard, code.message, code.text, left_s, hurried=hurried)
        one = _Try(link, submission, asyncio.get_running_loop().create_future())
        self._worker.submit_now(link.name, submission, partial(take, one))
        code.ahead.end()
        return one

    def _give_up(self, one: _Try) -> None:
        """Wait no longer: what has not left never does; and no answer in time is a doubt."""
        # Where nothing has left, that is told at once.
        self._worker.providers[one.link.name].withdraw(one.submission)
        if one.outcome is None and one.submission.valid_s and not one.submission.hurried:
            one.link.doubt(self._clock.monotonic_s(), self._settings.deadline_ms / 1000)

    async def _next(self, shard: Shard, code: _Code, tried: Collection[str]) -> Link | None:
        """A place on another operator, for a code of which no byte has left; if there is time."""
        if self._clock.now_ms() >= code.message.expires_at_ms:
            return None
        link = await self._place(code.draft, code.arrived_ms, code.ahead, tried)
        if link is None:
            return None
        leaves = False
        try:
            leaves = await shard.ask(Redirect(code.message.number, link.name))
        finally:
            if not leaves:
                link.give_back(code.draft.parts, unsent=code.draft.parts)
        return link if leaves else None

    def _late(self, provider: str, submission: Submission, outcome: Outcome) -> None:
        """Note an answer that came too late to be the caller's, and have a dead code taken back."""

        def refused() -> None:
            if outcome.verdict is Verdict.ACCEPTED:
                self._metrics.otp_late_after_503(provider)
            self._take_back(provider, submission, outcome)

        self._shards.shards[submission.shard].put(Late(submission, outcome, self._rules, refused))

    def _take_back(self, provider: str, submission: Submission, outcome: Outcome) -> None:
        """Ask an operator for what it has of a code that is dead; its answer changes nothing."""
        operator = self._worker.providers[provider]
        for answer in (outcome.parts or {0: outcome}).values():
            identifier = answer.provider_message_id
            if answer.verdict is not Verdict.ACCEPTED or not identifier:
                continue
            one = (provider, submission.number, identifier)
            if one not in self._taken_back and operator.cancel(submission, identifier):
                self._metrics.otp_cancelled(provider)
                self._taken_back[one] = None
                if len(self._taken_back) > _TAKEN_BACK_MAX:
                    self._taken_back.popitem(last=False)

    def _undeliverable(self, message: Message) -> OtpUndeliverable:
        self._metrics.otp("refused")
        return undeliverable(message)

    async def verify(self, client_id: bytes, recipient: int, code: str) -> tuple[bool, bytes, int]:
        """Compare a code: (verified, message id, tries left).

        Raises:
            NoLiveCode: there is nothing to compare with.
        """
        shard = self._shards.of_client(client_id)
        answer: tuple[bool, bytes, int] = await shard.ask(
            Verify(client_id, recipient, code, self._rules, self._key)
        )
        return answer

    def code_of(self, message_id: bytes) -> str:
        """A message's code, once more."""
        return derive(self._key, message_id, self._settings.digits)

    async def drain(self) -> None:
        """Wait until everything open is closed."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))


def _pass_on(watcher: asyncio.Future[None], _ended: asyncio.Future[None]) -> None:
    """Tell a code that waits for its handset that it has ended."""
    if not watcher.done():
        watcher.set_result(None)


def _is_left(decided: Decided, outcome: Outcome) -> bool:
    """Whether the operator may still be sending a code that was refused, or parts of it."""
    ended_there = decided.message.reason in _ENDED_THERE and outcome.parts is None
    return decided.answer == ANSWER_OTP_FAILED and not ended_there


def _submission(
    shard: Shard, message: Message, text: str, valid_s: float, *, hurried: bool
) -> Submission:
    """The one attempt to hand a code over; its text is nowhere else."""
    return Submission(
        shard=shard.number,
        number=message.number,
        reference=uuid_text(message.id),
        attempt=1,
        recipient=f"+{message.recipient}",
        sender=message.sender,
        text=text,
        ucs2=bool(message.ucs2),
        parts=message.parts,
        valid_s=valid_s,
        otp=True,
        hurried=hurried,
    )
