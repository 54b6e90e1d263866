"""Fairness is the sort key: start-time fair queueing over (route, lane), and who may claim when.

A message gets the rank ``max(V, the client's next rank)``, and the client's next rank moves on by
``parts × QUANTUM / weight``; V, which never falls, is the rank last claimed. Claiming takes the
lowest ranks. So a campaign of a million is ranked far into the future by its own weight, and a
newcomer's message is ranked now: one indexed integer, no scan over clients.

The ``Allotter`` owns V for the whole process, the operators' free places and their tokens, and
hands each shard's turn the grants it may claim for, following the lowest rank over all shards.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from smsgw import lifecycle
from smsgw.models import Account, Lane, Message, Status
from smsgw.turn import OUTCOME, Item, Request, QueueKey, QueuePlace, Turn, Wants

QUANTUM: Final = 1 << 20
RANK_MAX: Final = (1 << 63) - 1
CLAIMS_MAX: Final = 256
SHELVED_MAX: Final = 200
SLACK: Final = 4 * QUANTUM


def admit(turn: Turn, message: Message, account: Account) -> None:
    """Rank a newly accepted message and queue it."""
    flow = turn.flow(account.number, message.route, message.lane)
    now = turn.virtual.get((message.route, message.lane), 0)
    # A client with nothing waiting starts again from V.
    rank = max(now, flow.next_rank) if flow.waiting else now
    flow.next_rank = rank + message.parts * QUANTUM // account.weight
    message.status = int(Status.QUEUED)
    message.rank = rank
    turn.enqueue(message)


def shelf(route: int) -> int:
    """The route under which a paused client's places wait; its own inverse."""
    return ~route


@dataclass(slots=True)
class Grant:
    """Leave to claim from one queue for one provider.

    ``parts`` is how many parts may be claimed (a longer last message may overdraw), ``rank_max``
    up to which rank; ``used`` is what the turn took.
    """

    route: int
    lane: int
    provider: str
    parts: int
    rank_max: int = RANK_MAX
    used: int = 0


class Claim(Item):
    """The last item of a turn: takes the lowest-ranked messages that its grants allow."""

    __slots__ = ("grants", "heads", "waiting")

    priority = OUTCOME

    def __init__(self, grants: list[Grant], waiting: dict[QueueKey, int]) -> None:
        super().__init__()
        self.grants = grants
        self.waiting = waiting
        self.heads: dict[QueueKey, int | None] = {}

    def needs(self, wants: Wants) -> None:
        """The heads of those queues that have something on disk."""
        for grant in self.grants:
            key = (grant.route, grant.lane)
            if self.waiting.get(key):
                # A few more than granted: some may have been cancelled or paused meanwhile.
                limit = min(grant.parts, CLAIMS_MAX) + 8
                wants.heads[key] = max(limit, wants.heads.get(key, 0))

    def decide(self, turn: Turn) -> None:
        """Claim, in order of rank, what is on disk and what this turn has queued."""
        for grant in self.grants:
            grant.used = 0
        keys = dict.fromkeys((grant.route, grant.lane) for grant in self.grants)
        for key in keys:
            grants = [grant for grant in self.grants if (grant.route, grant.lane) == key]
            self.heads[key] = self._claim(turn, key, grants)

    def _claim(self, turn: Turn, key: QueueKey, grants: list[Grant]) -> int | None:
        """Claim from one queue; returns the lowest rank that stays, where known."""
        places = self._places(turn, key)
        shelved = 0
        for index, (rank, number, client, parts) in enumerate(places):
            account = turn.accounts[client]
            message = turn.messages[number]
            if account.paused:
                if shelved < SHELVED_MAX:
                    _move(turn, message, shelf(message.route))
                    shelved += 1
                continue
            if message.expires_at_ms <= turn.now_ms:
                lifecycle.expire(turn, message)
                continue
            grant = next((g for g in grants if g.used < g.parts and rank <= g.rank_max), None)
            if grant is None:
                return places[index][0]
            turn.dequeue(message)
            lifecycle.claim(turn, message, grant.provider)
            grant.used += parts
        more = self.waiting.get(key, 0) > len(turn.heads.get(key, ()))
        return places[-1][0] if places and more else None

    @staticmethod
    def _places(turn: Turn, key: QueueKey) -> list[QueuePlace]:
        fresh = turn.queued.get(key)
        stored = turn.heads.get(key)
        places = list(fresh.values()) if fresh else []
        if stored:
            gone = turn.unqueued
            places += [place for place in stored if place[1] not in gone]
        places.sort()
        return places


class Unshelve(Request):
    """Brings a resumed client's places back into their queues, some at a time."""

    __slots__ = ("client",)

    def __init__(self, client_id: bytes, client: int) -> None:
        super().__init__(client_id)
        self.client = client

    def needs(self, wants: Wants) -> None:
        """Some of its shelved messages."""
        wants.numbers.add(self.client)
        wants.asks.append(("message_shelved", (self.client, SHELVED_MAX)))

    def decide(self, turn: Turn) -> None:
        """Move them; the answer says how many."""
        rows = turn.ask("message_shelved", self.client, SHELVED_MAX)
        if turn.accounts[self.client].paused:
            self.answer = 0
            return
        for (number,) in rows:
            message = turn.messages[number]
            _move(turn, message, shelf(message.route))
        self.answer = len(rows)


def _move(turn: Turn, message: Message, route: int) -> None:
    """Move a queued message to another route's queue at its old rank."""
    turn.dequeue(message)
    turn.touch(message)
    message.route = route
    turn.enqueue(message)


@dataclass(slots=True)
class Bucket:
    """A token bucket in parts; a rate of 0 means no limit.

    It holds at most ``burst_s`` seconds of its rate, and may be overdrawn by what must not wait.
    """

    rate_per_s: float
    burst_s: float = 0.05
    tokens: float = 0.0
    at_s: float = 0.0

    def refill(self, now_s: float) -> float:
        """Add what time has brought; returns the tokens there are."""
        most = max(1.0, self.rate_per_s * self.burst_s)
        self.tokens = min(most, self.tokens + (now_s - self.at_s) * self.rate_per_s)
        self.at_s = now_s
        return self.tokens


@dataclass(slots=True)
class Link:
    """What the allotter knows of one operator: its window, its tokens, and whether to use it.

    ``in_flight`` counts parts claimed and not answered yet. The otp share of the window is kept
    free for one-time codes.
    """

    name: str
    window: int
    bucket: Bucket
    weight: int = 1
    priority: int = 0
    otp_share: float = 0.1
    usable: bool = True
    paused: bool = False
    resume_at_s: float = 0.0
    in_flight: int = 0
    finished: int = 0
    rate_seen_per_s: float = 0.0
    _rated_at_s: float = 0.0
    _rated_finished: int = 0

    def free(self, now_s: float) -> int:
        """How many parts the queue may claim for it now."""
        if not self.usable or self.paused or now_s < self.resume_at_s:
            return 0
        queue_window = max(1, self.window - int(self.window * self.otp_share))
        places = queue_window - self.in_flight
        if self.bucket.rate_per_s:
            places = min(places, int(self.bucket.refill(now_s)))
        return max(0, places)

    def wait_s(self, now_s: float) -> float | None:
        """After how long time alone frees places; None where only an answer does."""
        if not self.usable or self.paused:
            return None
        if now_s < self.resume_at_s:
            return self.resume_at_s - now_s
        if self.bucket.rate_per_s and self.bucket.tokens < 1:
            return max(0.001, (1 - self.bucket.tokens) / self.bucket.rate_per_s)
        return None

    def take(self, parts: int) -> None:
        """Reserve places and tokens."""
        self.in_flight += parts
        if self.bucket.rate_per_s:
            self.bucket.tokens -= parts

    def give_back(self, parts: int, *, tokens: bool) -> None:
        """Free places; with the tokens where nothing was sent."""
        self.in_flight -= parts
        assert self.in_flight >= 0, "more places freed than taken"
        if tokens and self.bucket.rate_per_s:
            self.bucket.tokens += parts

    def healthy_rate_per_s(self, now_s: float) -> float:
        """Parts a second it can be counted on for: its limit, else what was seen, else a window."""
        if self.bucket.rate_per_s:
            return self.bucket.rate_per_s
        if now_s - self._rated_at_s >= 1.0:
            seen = (self.finished - self._rated_finished) / (now_s - self._rated_at_s)
            self.rate_seen_per_s = max(seen, 0.9 * self.rate_seen_per_s)
            self._rated_at_s, self._rated_finished = now_s, self.finished
        return max(self.rate_seen_per_s, float(self.window))


@dataclass(slots=True)
class _ShardView:
    waiting: dict[QueueKey, int] = field(default_factory=dict)
    heads: dict[QueueKey, int | None] = field(default_factory=dict)


class Allotter:
    """One per process: V, the operators' places, and who may claim how much, up to which rank."""

    def __init__(self, regular_share: float) -> None:
        self.links: dict[str, Link] = {}
        self.routes: dict[int, tuple[str, ...]] = {}
        self.virtual: dict[QueueKey, int] = {}
        self.paused = False
        self.stopped = False
        self._regular_share = regular_share
        self._regular_debt: dict[int, float] = {}
        self._shards: dict[int, _ShardView] = {}

    def report(
        self, shard: int, waiting: dict[QueueKey, int], heads: dict[QueueKey, int | None]
    ) -> None:
        """Learn what a shard has waiting, and the lowest rank of each of its queues."""
        view = self._shards.setdefault(shard, _ShardView())
        view.waiting = waiting
        view.heads.update(heads)
        for key in [key for key in view.heads if not waiting.get(key)]:
            del view.heads[key]

    def start_at(self, key: QueueKey, rank: int) -> None:
        """Set V of a queue at start; it never falls."""
        self.virtual[key] = max(rank, self.virtual.get(key, 0))

    def waiting(self, lane: int | None = None) -> int:
        """How many messages wait, over all shards."""
        return sum(
            count
            for view in self._shards.values()
            for (_, queue_lane), count in view.waiting.items()
            if lane is None or queue_lane == lane
        )

    def grants(self, shard: int, fresh: int, now_s: float) -> list[Grant]:
        """What a shard's turn may claim; places are reserved until ``settle_grants``.

        Args:
            shard: the shard whose turn begins.
            fresh: how many new messages the turn may bring.
            now_s: monotonic seconds.
        """
        if self.paused or self.stopped:
            return []
        view = self._shards.setdefault(shard, _ShardView())
        found: list[Grant] = []
        for route, names in self.routes.items():
            stored = {int(lane): view.waiting.get((route, lane), 0) for lane in _LANES}
            if not fresh and not any(stored.values()):
                continue
            free = {name: self.links[name].free(now_s) for name in names}
            places = sum(free.values())
            if places:
                found += self._share_out(shard, route, stored, fresh, free, places)
        return found

    def _share_out(
        self,
        shard: int,
        route: int,
        stored: dict[int, int],
        fresh: int,
        free: dict[str, int],
        places: int,
    ) -> list[Grant]:
        """Divide a route's free places over its lanes: express first, but never all."""
        places = min(places, CLAIMS_MAX)
        wanted = {lane: min(places, stored[lane] + fresh) for lane in _LANES}
        express = wanted[Lane.EXPRESS]
        if self._anyone_waits(route, Lane.REGULAR):
            debt = self._regular_debt.get(route, 0.0)
            if express + wanted[Lane.REGULAR] > places:
                kept = min(places, int(places * self._regular_share + debt))
                self._regular_debt[route] = min(1.0, places * self._regular_share + debt - kept)
                express = min(express, places - kept)
        regular = min(wanted[Lane.REGULAR], places - express)
        found = []
        for lane, parts in ((Lane.EXPRESS, express), (Lane.REGULAR, regular)):
            scarce = places <= self._waiting_on(route, lane) + fresh
            rank_max = self._rank_max(shard, (route, int(lane))) if scarce else RANK_MAX
            found += self._reserve(route, lane, parts, rank_max, free)
        return found

    def _anyone_waits(self, route: int, lane: Lane) -> bool:
        return any(view.waiting.get((route, lane)) for view in self._shards.values())

    def _waiting_on(self, route: int, lane: Lane) -> int:
        return sum(view.waiting.get((route, lane), 0) for view in self._shards.values())

    def _rank_max(self, shard: int, key: QueueKey) -> int:
        """Up to which rank a shard may claim: a little beyond the lowest head of the others."""
        others = [
            head
            for number, view in self._shards.items()
            if number != shard
            and view.waiting.get(key)
            and (head := view.heads.get(key)) is not None
        ]
        if not others:
            return RANK_MAX
        return max(min(others), self.virtual.get(key, 0)) + SLACK

    def _reserve(
        self, route: int, lane: Lane, parts: int, rank_max: int, free: dict[str, int]
    ) -> list[Grant]:
        grants = []
        for name in self._in_order(free):
            taken = min(parts, free[name])
            if taken > 0:
                free[name] -= taken
                parts -= taken
                self.links[name].take(taken)
                grants.append(Grant(route, int(lane), name, taken, rank_max))
        return grants

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """Operators by priority, then by how little of their weighted share is in use."""
        links = self.links
        return sorted(
            names,
            key=lambda name: (
                links[name].priority,
                (links[name].in_flight + 1) / links[name].weight,
            ),
        )

    def settle_grants(self, claim: Claim | None, *, committed: bool) -> None:
        """Hand back what a turn did not use, and follow the ranks it claimed."""
        if claim is None:
            return
        for grant in claim.grants:
            used = grant.used if committed else 0
            link = self.links[grant.provider]
            if used > grant.parts:
                link.take(used - grant.parts)
            else:
                link.give_back(grant.parts - used, tokens=True)

    def served(self, messages: Iterable[Message]) -> None:
        """Move V on to the ranks that were claimed."""
        virtual = self.virtual
        for message in messages:
            key = (message.route, message.lane)
            if message.rank > virtual.get(key, 0):
                virtual[key] = message.rank

    def behind(self, now_s: float) -> list[int]:
        """The shards that could claim now, lowest head first."""
        if self.paused or self.stopped:
            return []
        open_routes = {
            route
            for route, names in self.routes.items()
            if any(self.links[name].free(now_s) for name in names)
        }
        ready: list[tuple[int, int]] = []
        for shard, view in self._shards.items():
            ranks = [
                view.heads.get(key) or 0
                for key, count in view.waiting.items()
                if count and key[0] in open_routes
            ]
            if ranks:
                ready.append((min(ranks), shard))
        return [shard for _, shard in sorted(ready)]

    def wait_s(self, now_s: float) -> float | None:
        """After how long time alone frees places on any operator."""
        waits = [wait for link in self.links.values() if (wait := link.wait_s(now_s)) is not None]
        return min(waits, default=None)

    def pick_for_otp(self, names: Iterable[str], parts: int, now_s: float) -> Link | None:
        """Reserve places on an operator for a code that is sent now; tokens may be overdrawn."""
        for name in self._in_order(names):
            link = self.links[name]
            if link.usable and not link.paused and now_s >= link.resume_at_s:
                if link.bucket.rate_per_s:
                    link.bucket.refill(now_s)
                    if link.bucket.tokens < -link.bucket.rate_per_s:
                        continue
                if link.in_flight == 0 or link.in_flight + parts <= link.window:
                    link.take(parts)
                    return link
        return None


_LANES: Final = (Lane.EXPRESS, Lane.REGULAR)
