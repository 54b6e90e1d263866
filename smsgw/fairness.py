"""Fairness is the sort key: start-time fair queueing over (route, lane).

A message gets the rank ``max(V, the client's next rank)``, and the client's next rank moves on by
``parts × QUANTUM / weight``; V, which never falls, is the rank last claimed, or the lowest that
waits for scarce places where some shard has run ahead. Claiming takes the lowest ranks. So a
campaign of a million is ranked far into the future by its own weight, and a newcomer's message is
ranked now: one indexed integer, no scan over clients. A client with nothing waiting starts again
behind what it was served last, not at V: or who sends its next at once would always be first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from smsgw import lifecycle
from smsgw.models import QUANTUM, Account, Message, Status
from smsgw.parts import begun_by
from smsgw.turn import OUTCOME, Item, QueueKey, QueuePlace, Request, Turn, Wants

RANK_MAX: Final = (1 << 63) - 1
HEADS_MORE: Final = 8
SHELVED_MAX: Final = 200


def admit(turn: Turn, message: Message, account: Account) -> None:
    """Rank a newly accepted message and queue it."""
    flow = turn.flow(account.number, message.route, message.lane)
    now = turn.virtual.get((message.route, message.lane), 0)
    message.status = int(Status.QUEUED)
    message.rank = flow.join(now, message.parts * QUANTUM // account.weight)
    turn.enqueue(message)


def shelf(route: int) -> int:
    """The route under which a paused client's places wait; its own inverse."""
    return ~route


@dataclass(slots=True)
class Grant:
    """Leave to claim from one queue for one provider.

    ``parts`` is how many parts may be claimed (a longer last message may overdraw), ``rank_max``
    up to which rank; ``promised`` is how many probably will be, ``used`` what the turn took. Where
    ``routes`` are named, it is for what the turn itself brings, on any of them.
    """

    route: int
    lane: int
    provider: str
    parts: int
    rank_max: int = RANK_MAX
    used: int = 0
    promised: int = 0
    routes: frozenset[int] = frozenset()

    def covers(self, key: QueueKey) -> bool:
        """Whether it is leave to claim from a queue."""
        return key[0] in self.routes if self.routes else key == (self.route, self.lane)


Begun = Callable[[int, int, str], int]
"""The route for a message that an operator has accepted parts of: given its recipient's digits, the
route that it is on, and the operator's name.
"""


class Claim(Item):
    """The last item of a turn: takes the lowest-ranked messages that its grants allow."""

    __slots__ = ("begun", "grants", "heads", "waiting")

    priority = OUTCOME

    def __init__(
        self, grants: list[Grant], waiting: dict[QueueKey, int], begun: Begun | None = None
    ) -> None:
        super().__init__()
        self.grants = grants
        self.waiting = waiting
        self.begun = begun
        self.heads: dict[QueueKey, int | None] = {}

    def needs(self, wants: Wants) -> None:
        """The heads of those queues that have something on disk."""
        for grant in self.grants:
            key = (grant.route, grant.lane)
            if self.waiting.get(key):
                # A few more than granted: some may have been cancelled or paused meanwhile.
                wants.heads[key] = wants.heads.get(key, HEADS_MORE) + grant.parts

    @property
    def units(self) -> int:  # type: ignore[override]
        """How many parts it has claimed."""
        return sum(grant.used for grant in self.grants)

    def decide(self, turn: Turn) -> None:
        """Claim, in order of rank, what is on disk and what this turn has queued.

        Express first: leave for what the turn brings is the same for both lanes.
        """
        for grant in self.grants:
            grant.used = 0
        keys = dict.fromkeys((grant.route, grant.lane) for grant in self.grants if not grant.routes)
        keys |= dict.fromkeys(key for key, places in turn.queued.items() if places)
        for key in sorted(keys, key=_lane, reverse=True):
            if grants := [grant for grant in self.grants if grant.covers(key)]:
                self.heads[key] = self._claim(turn, key, grants)

    def _claim(self, turn: Turn, key: QueueKey, grants: list[Grant]) -> int | None:
        """Claim from one queue; returns the lowest rank that stays, where known."""
        places = self._places(turn, key)
        shelved = 0
        left: int | None = None
        for rank, number, client, parts in places:
            account = turn.accounts[client]
            message = turn.messages[number]
            if account.paused:
                if shelved < SHELVED_MAX:
                    _shelve(turn, message)
                    shelved += 1
                continue
            if message.expires_at_ms <= turn.now_ms:
                lifecycle.expire(turn, message)
                continue
            if parts > 1 and number not in turn.new_messages:
                if number not in turn.parts:
                    # It came back in this turn, which has not looked what was accepted of it.
                    left = rank if left is None else left
                    continue
                if self._moves(turn, message):
                    continue
            grant = next((g for g in grants if g.used < g.parts and rank <= g.rank_max), None)
            if grant is None:
                return rank if left is None else left
            turn.dequeue(message)
            flow = turn.flow(client, *key)
            flow.served_rank = max(flow.served_rank, rank + parts * QUANTUM // account.weight)
            lifecycle.claim(turn, message, grant.provider)
            grant.used += parts
        stored = turn.heads.get(key)
        more = stored and self.waiting.get(key, 0) > len(stored)
        return stored[-1][0] if stored and more and left is None else left

    def _moves(self, turn: Turn, message: Message) -> bool:
        """Move what was accepted in part to where only those are who can go on with it."""
        operator = begun_by(turn, message)
        if operator is None or self.begun is None:
            return False
        route = self.begun(message.recipient, message.route, operator)
        if route == message.route:
            return False
        rejoin(turn, message, route)
        return True

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


def _lane(key: QueueKey) -> int:
    return key[1]


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
            # It may have been cancelled in this very turn.
            if message.status == Status.QUEUED and message.route < 0:
                rejoin(turn, message, shelf(message.route))
        self.answer = len(rows)


def rejoin(turn: Turn, message: Message, route: int) -> None:
    """Move a queued message to another queue, ranked anew: ranks do not compare across queues."""
    turn.dequeue(message)
    turn.touch(message)
    message.route = route
    message.rank = lifecycle.rank_again(turn, message)
    turn.enqueue(message)


def _shelve(turn: Turn, message: Message) -> None:
    turn.dequeue(message)
    turn.touch(message)
    message.route = shelf(message.route)
    turn.enqueue(message)
