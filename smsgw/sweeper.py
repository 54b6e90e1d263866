"""What time alone does: due messages, expiries, totals, forgetting; in small steps beside traffic.

What follows from the defaults needs no timer: messages are numbered by time, so the sweeper walks
once over each stretch of numbers when its age is reached. Only what differs has a timer row.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from smsgw import lifecycle
from smsgw.clock import Clock
from smsgw.errors import StorageUnavailable
from smsgw.ids import generation_of, number_at
from smsgw.metrics import Metrics
from smsgw.models import Message, Rules, Status, Timer
from smsgw.store.shard import Shard
from smsgw.turn import OUTCOME, Request, Turn, Wants

DUE_MAX: Final = 200
SPAN_MAX: Final = 1000
PURGE_MAX: Final = 200
FORGET_STEPS: Final = 8
TICK_S: Final = 1.0
LOOK_S_MAX: Final = 2.0
"""How long what is due waits, in all, for a look at the receipts of messages in doubt."""
COUNT_LAG_MS: Final = 5_000
FORGET_AGAIN_MS: Final = 86_400_000
_ROUND_MS: Final = 60_000


class FireTimers(Request):
    """Do what the due timers say; the answer is how many fired."""

    __slots__ = ("due_ms", "metrics", "route", "rules")

    priority = OUTCOME
    units = DUE_MAX // 4

    def __init__(
        self,
        rules: Rules,
        metrics: Metrics,
        due_ms: int,
        route: Callable[[int, int], int] | None = None,
    ) -> None:
        """Prepare it.

        Args:
            rules: the settings that count.
            metrics: where it is counted.
            due_ms: up to which time.
            route: today's route for a recipient, and the route it had so far.
        """
        super().__init__()
        self.rules = rules
        self.metrics = metrics
        self.due_ms = due_ms
        self.route = route

    def needs(self, wants: Wants) -> None:
        """The due timers and their messages."""
        wants.asks.append(("message_due", (self.due_ms, DUE_MAX)))

    def decide(self, turn: Turn) -> None:
        """Fire each; one whose message has moved on does nothing."""
        fired = turn.ask("message_due", self.due_ms, DUE_MAX)
        for number, due_ms, kind in fired:
            turn.write("timer_delete", due_ms, number, kind)
            message = turn.messages.get(number)
            if message is not None:
                if self.route and kind == Timer.PROMOTE and message.status in lifecycle.DELAYED:
                    # What waited for a time was routed when it was accepted.
                    turn.touch(message)
                    message.route = self.route(message.recipient, message.route)
                fire(turn, message, Timer(kind), self.rules)
        self.answer = len(fired)


def fire(turn: Turn, message: Message, timer: Timer, rules: Rules) -> None:
    """What a timer does to its message."""
    if timer is Timer.PROMOTE:
        lifecycle.promote(turn, message)
    elif timer is Timer.EXPIRE:
        lifecycle.expire(turn, message)
    elif timer is Timer.FORGET_TEXT or timer is Timer.FORGET:
        forget(turn, message, timer)
    elif timer is Timer.RECEIPT:
        wait_for_receipt(turn, message, rules)
    elif not lifecycle.time_out(turn, message, rules) and message.status == Status.UNCERTAIN:
        # The setting is larger than it was when the timer was set.
        turn.at(message.updated_at_ms + rules.uncertain_ms, message, timer)


def wait_for_receipt(turn: Turn, message: Message, rules: Rules) -> None:
    """Give up on a receipt that has not come for too long, else look again: no wait has no end."""
    if not message.is_final and not lifecycle.time_out(turn, message, rules):
        since_ms = message.submitted_at_ms or turn.now_ms
        turn.at(since_ms + rules.receipt_timeout_ms, message, Timer.RECEIPT)


def forget(turn: Turn, message: Message, timer: Timer) -> None:
    """Purge one message that was not finished when its stretch was purged."""
    number = message.number
    if not message.is_final:
        turn.at(turn.now_ms + FORGET_AGAIN_MS, message, timer)
    elif timer is Timer.FORGET_TEXT:
        turn.write("texts_purge", number - 1, number)
    else:
        _purge(turn, number - 1, number)


def _purge(turn: Turn, after: int, to: int) -> None:
    for statement in ("events_purge", "parts_purge", "messages_purge"):
        turn.write(statement, after, to)


class Walk(Request):
    """Walk over the next stretch of messages that has reached some age.

    ``after`` is the watermark, ``to`` how far it may move; the answer is the new watermark and
    whether there is more.
    """

    __slots__ = ("after", "rules", "to")

    mark: str
    finds: str | None = None
    units = SPAN_MAX // 16

    def __init__(self, after: int, to: int, rules: Rules) -> None:
        super().__init__()
        self.after = after
        self.to = to
        self.rules = rules

    def needs(self, wants: Wants) -> None:
        """Where the stretch ends, and the messages in it that matter."""
        wants.asks.append(("meta_get", (self.mark,)))
        wants.asks.append(("span_end", (self.after, self.to, SPAN_MAX)))
        if self.finds is not None:
            wants.asks.append((self.finds, (self.after, self.to, SPAN_MAX)))

    def decide(self, turn: Turn) -> None:
        """Work on the stretch, and move the watermark with it."""
        kept = turn.ask("meta_get", self.mark)[0][0]
        if kept != self.after:
            # Another gateway has swept meanwhile.
            self.answer = (kept, True)
            return
        end, count = turn.ask("span_end", self.after, self.to, SPAN_MAX)[0]
        if not count:
            # Nothing was written meanwhile, so nothing is written about it.
            self.answer = (self.after, False)
            return
        more = count == SPAN_MAX
        end = end if more else self.to
        found = turn.ask(self.finds, self.after, self.to, SPAN_MAX) if self.finds else []
        self.work(turn, end, [turn.messages[number] for (number,) in found])
        turn.write("meta_set", self.mark, end)
        self.answer = (end, more)

    def work(self, turn: Turn, end: int, messages: list[Message], /) -> None:
        """Do it, for the numbers above ``after`` up to ``end``."""
        raise NotImplementedError


class ExpireSpan(Walk):
    """Expire what was not handed over within the default validity."""

    __slots__ = ()
    mark = "expired_to"
    finds = "message_waiting_in_span"

    def work(self, turn: Turn, _end: int, messages: list[Message]) -> None:
        """Expire each; one with a longer validity has a timer, or gets one."""
        for message in messages:
            if not lifecycle.expire(turn, message):
                turn.at(message.expires_at_ms, message, Timer.EXPIRE)


class ReceiptSpan(Walk):
    """Give up on receipts that have not come for too long."""

    __slots__ = ()
    mark = "receipts_to"
    finds = "message_unfinished_in_span"

    def work(self, turn: Turn, _end: int, messages: list[Message]) -> None:
        """End each, or look again when its time has come."""
        for message in messages:
            wait_for_receipt(turn, message, self.rules)


class CountSpan(Walk):
    """Count a stretch of messages into the daily totals."""

    __slots__ = ()
    mark = "counted_to"

    def work(self, turn: Turn, end: int, _messages: list[Message]) -> None:
        """One statement counts them as they are; later changes are added as differences."""
        turn.write("total_span", self.after, end)

    def decide(self, turn: Turn) -> None:
        """Also let later turns know how far was counted."""
        super().decide(turn)
        turn.counted_next = self.answer[0]


class ForgetTexts(Walk):
    """Forget the texts of old messages."""

    __slots__ = ()
    mark = "texts_to"
    finds = "message_unfinished_in_span"

    def work(self, turn: Turn, end: int, messages: list[Message]) -> None:
        """Those that are not finished are looked at again."""
        turn.write("texts_purge", self.after, end)
        for message in messages:
            turn.at(turn.now_ms + FORGET_AGAIN_MS, message, Timer.FORGET_TEXT)


class ForgetMessages(Walk):
    """Forget old messages, their events and batches."""

    __slots__ = ()
    mark = "purged_to"
    finds = "message_unfinished_in_span"

    def work(self, turn: Turn, end: int, messages: list[Message]) -> None:
        """Those that are not finished are looked at again."""
        _purge(turn, self.after, end)
        turn.write("batches_purge", self.after, end)
        for message in messages:
            turn.at(turn.now_ms + FORGET_AGAIN_MS, message, Timer.FORGET)


class ForgetKeys(Request):
    """Drop idempotency keys of generations that are over; the answer is whether there are more.

    What adjusted credit is of no generation, and is kept for ever.
    """

    __slots__ = ("before",)

    def __init__(self, before_ms: int) -> None:
        super().__init__()
        self.before = generation_of(number_at(before_ms))

    def needs(self, wants: Wants) -> None:
        """Some of them."""
        wants.asks.append(("keys_old", (self.before, PURGE_MAX)))

    def decide(self, turn: Turn) -> None:
        """Drop them."""
        rows = turn.ask("keys_old", self.before, PURGE_MAX)
        for row in rows:
            turn.write("key_delete", *row)
        self.answer = len(rows) == PURGE_MAX


class ForgetCodes(Request):
    """Walk over the one-time codes and drop those that expired long ago."""

    __slots__ = ("after", "before_ms")

    def __init__(self, after: tuple[int, int, int], before_ms: int) -> None:
        super().__init__()
        self.after = after
        self.before_ms = before_ms

    def needs(self, wants: Wants) -> None:
        """The next page."""
        wants.asks.append(("codes_page", (*self.after, PURGE_MAX)))

    def decide(self, turn: Turn) -> None:
        """Drop them."""
        rows = turn.ask("codes_page", *self.after, PURGE_MAX)
        for client, recipient, message, expires_at_ms in rows:
            if expires_at_ms < self.before_ms:
                turn.write("code_delete", client, recipient, message)
        self.answer = tuple(rows[-1][:3]) if len(rows) == PURGE_MAX else None


class FoldEntries(Request):
    """Replace the oldest entries of one client by one that carries their sums forward.

    Only entries older than what is kept, and whose messages are gone, so never an open hold. The
    answer is the client's number, or None after the last one.
    """

    __slots__ = ("after", "before_ms", "client")

    def __init__(self, client: int, before_ms: int) -> None:
        super().__init__()
        self.client = client
        self.before_ms = before_ms

    def needs(self, wants: Wants) -> None:
        """Its oldest entries."""
        wants.asks.append(("entries_oldest", (self.client, self.before_ms, PURGE_MAX)))
        wants.asks.append(("client_after", (self.client,)))

    def decide(self, turn: Turn) -> None:
        """Fold the longest stretch that may go; a single entry stays as it is."""
        following = turn.ask("client_after", self.client)
        amount = held = charged = count = 0
        last: tuple[Any, ...] = ()
        for row in turn.ask("entries_oldest", self.client, self.before_ms, PURGE_MAX):
            _, at_ms, row_amount, row_held, _, row_charged, stored = row
            if at_ms >= self.before_ms or stored:
                break
            amount, held, charged = amount + row_amount, held + row_held, charged + row_charged
            count, last = count + 1, row
        if count > 1:
            sequence, at_ms, _, _, balance, _, _ = last
            turn.write("entries_fold", self.client, sequence)
            turn.write("entry_carry", self.client, sequence, at_ms, amount, held, balance, charged)
        again = count == PURGE_MAX
        self.answer = self.client if again else (following[0][0] if following else None)


class DropParked(Request):
    """Drop receipts whose message never came; the answer is what they were parked under."""

    __slots__ = ("before_ms",)

    def __init__(self, before_ms: int) -> None:
        super().__init__()
        self.before_ms = before_ms

    def needs(self, wants: Wants) -> None:
        """The oldest."""
        wants.asks.append(("parked_old", (self.before_ms, PURGE_MAX)))

    def decide(self, turn: Turn) -> None:
        """Drop them."""
        rows = turn.ask("parked_old", self.before_ms, PURGE_MAX)
        for number, *_ in rows:
            turn.write("parked_delete", number)
        self.answer = [names for _, *names in rows]


class Sweeper:
    """The clockwork of one shard."""

    def __init__(
        self,
        shard: Shard,
        clock: Clock,
        rules: Rules,
        metrics: Metrics,
        *,
        idempotency_ms: int,
        parked_ms: int,
        texts_ms: int,
        messages_ms: int,
        route: Callable[[int, int], int],
        dropped: Callable[[list[tuple[str, str, str | None]]], None],
        resolve: Callable[[Shard, int], Awaitable[None]],
    ) -> None:
        self._shard = shard
        self._clock = clock
        self._rules = rules
        self._metrics = metrics
        self._idempotency_ms = idempotency_ms
        self._parked_ms = parked_ms
        self._route = route
        self._dropped = dropped
        self._resolve = resolve
        # What walks over messages, with the age at which it does.
        self._walks: list[tuple[type[Walk], int]] = [
            (ExpireSpan, rules.validity_ms),
            (ReceiptSpan, rules.receipt_timeout_ms),
            (CountSpan, COUNT_LAG_MS),
            (ForgetTexts, texts_ms),
            (ForgetMessages, messages_ms),
        ]
        self._messages_ms = messages_ms
        self._marks: dict[str, int] = {}
        self._keys_left = True
        self._codes_after: tuple[int, int, int] | None = (0, 0, 0)
        self._client: int | None = 0
        self._rested_at_ms = 0
        self._wakes_at_ms = 0
        self._nudged = asyncio.Event()
        self._stopped = asyncio.Event()
        shard.on_timer = self.nudge

    def stop(self) -> None:
        """End the loop after its present step."""
        self._stopped.set()
        self._nudged.set()

    async def run(self) -> None:
        """Sweep until stopped: timers when they are due, the rest once a second."""
        for walk, _ in self._walks:
            rows = await self._shard.store.read("meta_get", walk.mark)
            self._marks[walk.mark] = rows[0][0]
        swept_at_ms = 0
        while not self._stopped.is_set():
            now_ms = self._clock.now_ms()
            # A shard that cannot write says so itself; what is due stays due.
            with contextlib.suppress(StorageUnavailable):
                if now_ms - swept_at_ms < TICK_S * 1000:
                    await self._fire(now_ms)
                else:
                    await self.sweep()
                    swept_at_ms = now_ms
            await self._rest()

    async def _rest(self) -> None:
        """Wait for the next timer, also one that is set meanwhile; but at most for a tick."""
        self._wakes_at_ms = self._clock.now_ms() + round(TICK_S * 1000)
        with contextlib.suppress(StorageUnavailable):
            rows = await self._shard.store.read("timer_next")
            if rows[0][0] is not None:
                self._wakes_at_ms = min(self._wakes_at_ms, int(rows[0][0]))
        while not self._stopped.is_set():
            self._nudged.clear()
            until_s = (self._wakes_at_ms - self._clock.now_ms()) / 1000
            try:
                async with asyncio.timeout(max(0.005, until_s)):
                    await self._nudged.wait()
            except TimeoutError:
                return

    def nudge(self, due_ms: int) -> None:
        """Learn of a new timer."""
        if due_ms < self._wakes_at_ms:
            self._wakes_at_ms = due_ms
            self._nudged.set()

    async def sweep(self) -> None:
        """Do everything that is due now."""
        now_ms = self._clock.now_ms()
        await self._fire(now_ms)
        if not self._shard.leads:
            return
        for walk, age_ms in self._walks:
            await self._walk(walk, number_at(now_ms - age_ms))
        for _ in range(FORGET_STEPS):
            if not await self._forget(now_ms):
                break

    async def _fire(self, now_ms: int) -> None:
        fired = DUE_MAX
        look_until_s = asyncio.get_running_loop().time() + LOOK_S_MAX
        while fired == DUE_MAX and not self._shard.trouble:
            # What ends unknown now may have a receipt elsewhere; who cannot look ends it still.
            with contextlib.suppress(StorageUnavailable, TimeoutError):
                async with asyncio.timeout_at(look_until_s):
                    await self._resolve(self._shard, now_ms)
            fired = await self._shard.ask(
                FireTimers(self._rules, self._metrics, now_ms, self._route)
            )

    async def _walk(self, walk: type[Walk], to: int) -> None:
        more = True
        while more and self._marks[walk.mark] < to and not self._stopped.is_set():
            request = walk(self._marks[walk.mark], to, self._rules)
            self._marks[walk.mark], more = await self._shard.ask(request)

    async def _forget(self, now_ms: int) -> bool:
        """A step through keys, codes, parked receipts and old entries; then rest for a while.

        Returns:
            Whether there is more to do now.
        """
        if self._keys_left:
            before_ms = now_ms - self._idempotency_ms
            self._keys_left = await self._shard.ask(ForgetKeys(before_ms))
        if self._codes_after is not None:
            # A replay tells whether the code was ours: so they are kept as long as keys.
            before_ms = now_ms - self._idempotency_ms
            self._codes_after = await self._shard.ask(ForgetCodes(self._codes_after, before_ms))
        self._dropped(await self._shard.ask(DropParked(now_ms - self._parked_ms)))
        if self._client is not None:
            before_ms = now_ms - self._messages_ms
            self._client = await self._shard.ask(FoldEntries(self._client, before_ms))
        more = self._keys_left or self._codes_after is not None or self._client is not None
        rested_ms = now_ms - self._rested_at_ms
        if rested_ms > _ROUND_MS:
            self._rested_at_ms = now_ms
            self._keys_left = True
            self._codes_after = self._codes_after or (0, 0, 0)
            self._client = 0 if self._client is None else self._client
        return more
