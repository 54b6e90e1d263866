"""Who may claim when: the operators' places and tokens, divided over routes, lanes and shards.

The ``Allotter`` owns V for the whole process (see ``fairness``), the operators' free places and
their tokens. It hands each shard's turn the grants that it may claim for, following the lowest rank
over all shards.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from types import MappingProxyType
from typing import Final

from smsgw.fairness import RANK_MAX, Begun, Claim, Grant
from smsgw.links import Link, in_order, level
from smsgw.models import QUANTUM, Lane, Message
from smsgw.turn import QueueKey

ANY: Final = -1
CLAIMS_MAX: Final = 256
AHEAD_MIN: Final = 4


@dataclass(slots=True)
class _ShardView:
    """What the allotter knows of one shard; a head is at most the lowest rank that waits there."""

    waiting: dict[QueueKey, int] = field(default_factory=dict)
    heads: dict[QueueKey, int] = field(default_factory=dict)
    works: bool = True


class Allotter:
    """One per process: V, the operators' places, and who may claim how much, up to which rank."""

    def __init__(self, regular_share: float) -> None:
        self.links: dict[str, Link] = {}
        self.routes: dict[int, tuple[str, ...]] = {}
        self.virtual: dict[QueueKey, int] = {}
        self.paused = False
        self.stopped = False
        self.begun: Begun | None = None
        self.changed: Callable[[], None] = lambda: None
        """Called when a turn has ended that held places: others may find some now."""
        self._regular_share = regular_share
        self._regular_owed: dict[str, float] = {}
        self._spared: set[tuple[int, str]] = set()
        self._shards: dict[int, _ShardView] = {}
        self._waits: Counter[QueueKey] = Counter()
        self._claimed: dict[QueueKey, int] = {}
        self._used: dict[QueueKey, int] = {}

    def report(
        self,
        shard: int,
        waiting: Mapping[QueueKey, int],
        heads: Mapping[QueueKey, int | None],
        queued: Mapping[QueueKey, int] = MappingProxyType({}),
    ) -> None:
        """Learn what a shard has waiting after a turn.

        Args:
            shard: the shard.
            waiting: how many messages, by queue.
            heads: the lowest rank of each queue that the turn looked at.
            queued: the lowest rank that the turn put into each queue.
        """
        view = self._shards.setdefault(shard, _ShardView())
        view.works = True
        view.waiting = {key: count for key, count in waiting.items() if count}
        for key, rank in queued.items():
            view.heads[key] = min(rank, view.heads.get(key, rank))
        view.heads.update((key, head) for key, head in heads.items() if head is not None)
        for key in [key for key in view.heads if key not in view.waiting]:
            del view.heads[key]
        self._look()

    def withdraw(self, shard: int) -> None:
        """Count a shard out that cannot write: nobody waits for what it could claim."""
        self._shards[shard].works = False
        self._look()

    def _look(self) -> None:
        """Count what waits where it can be claimed, and move V on."""
        self._waits = Counter()
        lowest: dict[QueueKey, int] = {}
        for view in self._shards.values():
            if view.works:
                for key, count in view.waiting.items():
                    self._waits[key] += count
                    head = view.heads.get(key, 0)
                    lowest[key] = min(head, lowest.get(key, head))
        if len(self.routes) > 1:
            # A route that begins to wait is as far as the one that was served least.
            used = {key: parts for key, parts in self._used.items() if key in self._waits}
            least: dict[int, int] = {}
            for (_, lane), parts in used.items():
                least[lane] = min(parts, least.get(lane, parts))
            self._used = {key: used.get(key, least.get(key[1], 0)) for key in self._waits}
        for key, rank in self._claimed.items():
            self._move_on(key, lowest.get(key, rank))

    def _move_on(self, key: QueueKey, lowest: int) -> None:
        """Move V on to the rank last claimed, but no further than the lowest that competes."""
        self.virtual[key] = max(self.virtual.get(key, 0), min(self._claimed.get(key, 0), lowest))

    def start(self, shard: int, heads: Mapping[QueueKey, int]) -> None:
        """Learn at start which ranks a shard has; V is the lowest of all."""
        self.report(shard, self._shards[shard].waiting, heads)
        for key, rank in heads.items():
            self.virtual[key] = min(rank, self.virtual.get(key, rank))

    def waiting(self, lane: int | None = None) -> int:
        """How many messages wait, over all shards."""
        return sum(
            count
            for view in self._shards.values()
            for (_, queue_lane), count in view.waiting.items()
            if lane is None or queue_lane == lane
        )

    def waiting_for(self, provider: str) -> int:
        """How many messages wait that may go to an operator."""
        return sum(
            count
            for view in self._shards.values()
            for (route, _), count in view.waiting.items()
            if provider in self.routes.get(route, ())
        )

    def grants(
        self, shard: int, fresh: int, now_s: float, parts_max: int = CLAIMS_MAX
    ) -> list[Grant]:
        """What a shard's turn may claim; places are reserved until ``settle_grants``.

        Args:
            shard: the shard whose turn begins.
            fresh: how many new messages the turn may bring.
            now_s: monotonic seconds.
            parts_max: how much the turn may claim of a route.
        """
        if self.paused or self.stopped:
            return []
        self._level()
        view = self._shards.setdefault(shard, _ShardView())
        for_fresh = self._for_fresh(min(fresh, parts_max), now_s) if fresh else []
        found: list[Grant] = []
        for route in self.routes:
            stored = {lane: view.waiting.get((route, lane), 0) for lane in _LANES}
            if any(stored.values()):
                free = self._free(route, now_s)
                found += self._share_out(shard, route, stored, free, parts_max)
        return found + for_fresh

    def _for_fresh(self, fresh: int, now_s: float) -> list[Grant]:
        """Grants for what arrives in this very turn, which is ranked behind what waits anywhere.

        One for each operator, whatever is to come: places that were kept for each lane and route
        apart would be missing where there are few, and the message go to a worse operator.
        """
        grants: list[Grant] = []
        for name in self._in_order(self.links):
            link = self.links[name]
            routes = frozenset(route for route, names in self.routes.items() if name in names)
            parts = min(fresh, link.free(now_s) - sum(map(self._waits_on, routes)))
            if routes and parts > 0:
                link.take(parts)
                before = sum(one.promised for one in grants if one.routes & routes)
                promised = max(0, min(parts, fresh - before))
                link.promised += promised
                grants.append(Grant(ANY, ANY, name, parts, promised=promised, routes=routes))
        return grants

    def _free(self, route: int, now_s: float) -> dict[Lane, dict[str, int]]:
        """The free places of a route's operators for each lane: express first, but never all.

        What several routes share is divided evenly over those that wait, one lane after the other:
        so express of one goes before what is regular on any. Places are kept only for what is
        regular and needs them.
        """
        free: dict[Lane, dict[str, int]] = {lane: {} for lane in _LANES}
        for name in self.routes[route]:
            places = self.links[name].free(now_s)
            if places:
                hurried, patient = (self._sharing(name, lane) for lane in _LANES)
                express = sum(self._waits[key] for key in hurried)
                needy = self._needy(name, patient)
                for_express = places - (self._kept(name, places) if needy else 0)
                for_regular = places - min(express, for_express)
                if express >= for_express:
                    patient = needy
                free[Lane.EXPRESS][name] = self._part(for_express, route, hurried)
                free[Lane.REGULAR][name] = self._part(for_regular, route, patient)
        return free

    def _sharing(self, name: str, lane: Lane) -> list[QueueKey]:
        """What waits in a lane for an operator, that which was served least first."""
        keys = [
            key for key in self._waits if key[1] == lane and name in self.routes.get(key[0], ())
        ]
        if len(keys) > 1:
            keys.sort(key=lambda key: (self._used.get(key, 0), key))
        return keys

    def _needy(self, name: str, patient: list[QueueKey]) -> list[QueueKey]:
        """Those that need an operator's places, as their routes' others leave them too few."""
        return [key for key in patient if (key[0], name) not in self._spared]

    @staticmethod
    def _part(places: int, route: int, sharing: list[QueueKey]) -> int:
        """An even part of some places; what is left over goes to the first."""
        for index, key in enumerate(sharing):
            if key[0] == route:
                share, rest = divmod(places, len(sharing))
                return share + (index < rest)
        return 0

    def _waits_on(self, route: int) -> int:
        return sum(self._waits[route, lane] for lane in _LANES)

    def _share_out(
        self,
        shard: int,
        route: int,
        stored: dict[Lane, int],
        free: dict[Lane, dict[str, int]],
        parts_max: int,
    ) -> list[Grant]:
        """Grants for a route, lane by lane."""
        found = []
        for lane, places in free.items():
            most = sum(places.values())
            parts, rank_max = self._may_claim(shard, (route, int(lane)), stored[lane], most)
            parts = min(parts, parts_max)
            parts_max -= parts
            grants = self._reserve(route, lane, parts, rank_max, places)
            if lane == Lane.REGULAR and stored[lane]:
                self._spare(route, grants, most - parts)
            found += grants
        return found

    def _spare(self, route: int, grants: list[Grant], left: int) -> None:
        """Remember which operators what is regular on a route does without, until it looks again.

        Those that it took nothing of, though some was left even for every shard that waits for it:
        what they kept for it would stay empty, and be owed for ever.
        """
        key = (route, int(Lane.REGULAR))
        enough = grants and left >= sum(key in view.waiting for view in self._shards.values())
        taken = {grant.provider for grant in grants}
        for name in self.routes[route]:
            if enough and name not in taken:
                self._spared.add((route, name))
            else:
                self._spared.discard((route, name))

    def _kept(self, name: str, places: int) -> int:
        """How many of an operator's places are kept for the regular lane, where some needs them."""
        owed = self._regular_owed.get(name, 0.0)
        return min(places, int(places * self._regular_share + owed + _ROUNDING))

    def _may_claim(self, shard: int, key: QueueKey, stored: int, places: int) -> tuple[int, int]:
        """How many parts of what it has stored a shard may claim, and up to which rank.

        A shard with something earlier, but no more than its even share of the places, has them kept
        for all of it, and until its turn holds up neither others nor V. Beside the rest, places are
        scarce: none runs far ahead, each takes its share of the windows at most at a time, and the
        last places are for the lowest heads: so ranks compare across shards, whoever looks first. A
        share of what is free now would leave most of it empty until all had turns.
        """
        if not stored or places >= self._waits[key]:
            return min(stored, places), RANK_MAX
        own = self._shards[shard].heads.get(key, 0)
        others = [
            (view.heads.get(key, 0), view.waiting[key])
            for number, view in self._shards.items()
            if number != shard and view.works and key in view.waiting
        ]
        share = places // (1 + len(others))
        places -= sum(count for head, count in others if head < own and count <= share)
        heads = [head for head, count in others if head >= own or count > share]
        self._move_on(key, min([own, *heads]))
        if not heads:
            return min(stored, places), RANK_MAX
        shards = 1 + len(heads)
        rank_max = min(heads) + max(AHEAD_MIN, ceil(places / shards)) * QUANTUM
        if own > rank_max:
            return 0, rank_max
        windows = sum(self.links[name].window for name in self.routes[key[0]])
        lower = sum(head < own for head in heads)
        return max(0, min(stored, ceil(windows / shards), places - lower)), rank_max

    def _reserve(
        self, route: int, lane: Lane, parts: int, rank_max: int, free: dict[str, int]
    ) -> list[Grant]:
        grants = []
        for name in self._in_order(free):
            taken = min(parts, free[name])
            if taken > 0:
                parts -= taken
                link = self.links[name]
                link.take(taken)
                link.promised += taken
                grants.append(Grant(route, int(lane), name, taken, rank_max, promised=taken))
        return grants

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """Operators in the order in which they are given what waits."""
        return [link.name for link in in_order(self.links[name] for name in names)]

    def _level(self) -> None:
        """Bring those that share a route in line."""
        for names in self.routes.values():
            if len(names) > 1:
                level([self.links[name] for name in names])

    def settle_grants(self, claim: Claim | None, *, committed: bool) -> None:
        """Hand back what a turn did not use."""
        if claim is None:
            return
        for grant in claim.grants:
            used = grant.used if committed else 0
            link = self.links[grant.provider]
            link.promised -= grant.promised
            if used > grant.parts:
                link.take(used - grant.parts)
            else:
                link.give_back(grant.parts - used, unsent=grant.parts - used)
            if used:
                link.serve(used)
                if not grant.routes:
                    self._count(grant, used)
        self.changed()

    def _count(self, grant: Grant, used: int) -> None:
        """Remember who was served, for what is owed to the others."""
        key, name = (grant.route, grant.lane), grant.provider
        self._used[key] = self._used.get(key, 0) + used
        owed = self._regular_owed.get(name, 0.0)
        if grant.lane == Lane.REGULAR:
            self._regular_owed[name] = max(0.0, owed - used)
        elif self._needy(name, self._sharing(name, Lane.REGULAR)):
            share = self._regular_share
            self._regular_owed[name] = min(owed + used * share / (1 - share), CLAIMS_MAX)
        else:
            self._regular_owed.pop(name, None)

    def served(self, messages: Iterable[Message]) -> None:
        """Learn which ranks were claimed; V follows with the next report."""
        claimed = self._claimed
        for message in messages:
            key = (message.route, message.lane)
            if message.rank > claimed.get(key, -1):
                claimed[key] = message.rank

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
            ranks = [view.heads.get(key, 0) for key in view.waiting if key[0] in open_routes]
            if ranks and view.works:
                ready.append((min(ranks), shard))
        return [shard for _, shard in sorted(ready)]

    def wait_s(self, now_s: float) -> float | None:
        """After how long time alone frees places on any operator."""
        waits = [wait for link in self.links.values() if (wait := link.wait_s(now_s)) is not None]
        return min(waits, default=None)

    def pick_for_otp(
        self, names: Iterable[str], parts: int, now_s: float, until_s: float = 0.0
    ) -> Link | None:
        """Reserve places on an operator for a code that is sent now; tokens may be overdrawn.

        Args:
            names: the operators that it may go to.
            parts: its parts.
            now_s: monotonic seconds.
            until_s: how long it may wait for a place on an operator that is not in doubt.
        """
        waits = False
        links = [self.links[name] for name in names]
        level(links)
        for link in sorted(in_order(links), key=lambda link: link.is_doubted(now_s)):
            doubted = link.is_doubted(now_s)
            if doubted and waits:
                return None
            if link.has_room_for_code(parts, now_s):
                link.take(parts)
                link.serve(parts)
                return link
            waits |= not doubted and now_s < until_s and link.may_take(now_s, until_s)
        return None


_LANES: Final = (Lane.EXPRESS, Lane.REGULAR)
# A share of places is not a whole number of them, and 5 × 0.2 must be one.
_ROUNDING: Final = 1e-9
