"""A gateway's queues without disk and time: real shards, allotter and worker, on rows in memory.

What the store does on its thread takes a random number of rounds of the event loop here, and
operators answer when the test says so; so a run is the same for the same seed, a million waiting
messages are five numbers, and a loop that forgets to wake another is found at once.
"""

import asyncio
import random
import uuid
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from types import SimpleNamespace
from typing import Any

from smsgw.admission import Admit, Draft, make_message
from smsgw.allotter import Allotter
from smsgw.clock import ManualClock
from smsgw.ids import NumberSource, slot_of
from smsgw.links import Bucket, Link
from smsgw.metrics import Metrics
from smsgw.models import QUANTUM, Account, Flow, Lane, Message, Outcome, Rules, Verdict
from smsgw.providers.base import Submission
from smsgw.routing import Routing
from smsgw.store.base import ShardUnavailableError, TurnResult
from smsgw.store.pace import AT_ONCE, Room
from smsgw.store.shard import Shard
from smsgw.turn import Item, QueueKey, QueuePlace, Turn, Wants, run_items
from smsgw.worker import Worker

ROUNDS_MAX = 5000
RULES = Rules(retry_base_ms=1)


@dataclass
class Run:
    """So many waiting messages of one client, one after the other."""

    client: int
    key: QueueKey
    first: Message
    step: int
    count: int

    def places(self) -> Iterable[QueuePlace]:
        for index in range(self.count):
            rank = self.first.rank + index * self.step
            yield (rank, self.first.number + index, self.client, self.first.parts)

    def pop(self) -> None:
        self.first.number += 1
        self.first.rank += self.step
        self.count -= 1


class Rows:
    """What the store of a shard does, on dictionaries."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self.number = number
        self.waiting: dict[QueueKey, int] = {}
        self.flows: dict[tuple[int, int, int], Flow] = {}
        self.accounts: dict[int, Account] = {}
        self.account_of: dict[bytes, Account] = {}
        self.messages: dict[int, Message] = {}
        self.places: dict[QueueKey, list[QueuePlace]] = {}
        self.runs: list[Run] = []
        self.watched: set[int] = set()
        self.turns = 0
        self.busy = False
        self.broken = False
        self.numbers = NumberSource(number, 0)
        self._chance = chance

    async def turn(
        self, items: Sequence[Item], now_ms: int, virtual: Mapping[QueueKey, int]
    ) -> TurnResult:
        if self.broken:
            raise ShardUnavailableError("the disk is full")
        self.busy = True
        for _ in range(self._chance.randint(1, 6)):
            await asyncio.sleep(0)
        turn = Turn(now_ms, self.numbers, self.flows, virtual, 0)
        turn.accounts = dict(self.accounts)
        turn.account_of = dict(self.account_of)
        wants = Wants()
        for item in items:
            item.needs(wants)
        for key, limit in wants.heads.items():
            turn.heads[key] = list(islice(self._lowest(key), limit))
            wants.messages.update(place[1] for place in turn.heads[key])
            turn.parts |= {number: {} for _, number, _, parts in turn.heads[key] if parts > 1}
        for statement, parameters in wants.asks:
            turn.asked[statement, parameters] = rows = self._ask(statement, *parameters)
            wants.messages.update(row[0] for row in rows)
        for number in wants.messages:
            turn.messages[number] = self._message(number)
        run_items(items, turn)
        self._absorb(turn)
        self.turns += 1
        self.busy = False
        queued = {key: min(places.values())[0] for key, places in turn.queued.items() if places}
        return TurnResult([None] * len(items), turn.claims, dict(self.waiting), queued)

    async def tidy(self) -> None:
        """There is no log to fold back."""

    def _lowest(self, key: QueueKey) -> Iterable[QueuePlace]:
        return merge(self.places.get(key, ()), *(r.places() for r in self.runs if r.key == key))

    def _ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        assert statement == "message_shelved"
        client, limit = parameters
        found = [
            (place[1],)
            for (route, _), places in self.places.items()
            for place in places
            if route < 0 and place[2] == client
        ]
        return found[:limit]

    def _message(self, number: int) -> Message:
        found = self.messages.get(number)
        if found is None:
            run = next(r for r in self.runs if 0 <= number - r.first.number < r.count)
            found = Message(*(getattr(run.first, name) for name in Message.__slots__))
            found.number = number
            found.rank += (number - run.first.number) * run.step
        return found

    def _absorb(self, turn: Turn) -> None:
        self.messages |= turn.new_messages | turn.changed_messages
        for route, lane, rank, number in turn.unqueued.values():
            self.waiting[route, lane] -= 1
            run = next((r for r in self.runs if r.first.number == number), None)
            if run is not None:
                run.pop()
            else:
                places = self.places[route, lane]
                places.remove(next(p for p in places if p[:2] == (rank, number)))
        for key, fresh in turn.queued.items():
            self.waiting[key] = self.waiting.get(key, 0) + len(fresh)
            for place in fresh.values():
                insort(self.places.setdefault(key, []), place)
        self.flows |= turn.flows


class Operator:
    """Holds what it is given until the test has it answer."""

    trouble = None
    warning = None

    def __init__(self, name: str, world: "World") -> None:
        self.name = name
        self.held: list[Submission] = []
        self._world = world

    def submit(self, submission: Submission) -> None:
        self.held.append(submission)
        self._world.submitted(submission)

    def answer(self, count: int, verdict: Verdict = Verdict.REFUSED) -> None:
        """Answer the oldest ones; ``refused`` ends a message without a receipt."""
        now, self.held = self.held[:count], self.held[count:]
        for submission in now:
            self._world.worker.settled(self.name, submission, Outcome(verdict))


class World:
    """Shards over rows in memory, with their loops running."""

    def __init__(
        self, *, shards: int = 4, window: int = 10, seed: int = 1, rate_parts_per_s: float = 0
    ) -> None:
        self.chance = random.Random(seed)
        self.clock = ManualClock()
        self.allotter = Allotter(0.2)
        self.order: list[Submission] = []
        self.served: Counter[bytes] = Counter()
        self.rows = {number: Rows(number, self.chance) for number in range(shards)}
        self.metrics = Metrics()
        every: Any = SimpleNamespace(shards={})
        self.worker = Worker(
            self.clock,
            self.allotter,
            every,
            SimpleNamespace(publish=lambda *_: None),
            Routing([]),
            self.metrics,
            RULES,
        )
        self.worker.response_timeout_s = {"mock": 30.0, "other": 30.0}
        self.operators: dict[str, Operator] = {}
        self.add_operator("mock", window, rate_parts_per_s)
        self.allotter.routes = {0: ("mock",)}
        self.shards = every.shards
        for number, rows in self.rows.items():
            self.shards[number] = Shard(
                rows,  # type: ignore[arg-type]
                self.clock,
                self.allotter,
                self.metrics,
                room=Room(1_000_000),
                hand_over=self.worker.hand_over,
                pace=AT_ONCE,
            )
        self._owners: dict[tuple[int, int], bytes] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def add_operator(self, name: str, window: int, rate_parts_per_s: float = 0) -> None:
        bucket = Bucket(rate_parts_per_s, at_s=self.clock.monotonic_s())
        self.allotter.links[name] = Link(name, window, bucket, otp_share=0.0)
        operator: Any = Operator(name, self)
        self.operators[name] = self.worker.providers[name] = operator

    async def __aenter__(self) -> "World":
        self._tasks = [asyncio.create_task(shard.run()) for shard in self.shards.values()]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add_client(self, shard: int, weight: int = 1) -> bytes:
        rows = self.rows[shard]
        identifier = uuid.UUID(int=self.chance.getrandbits(128)).bytes
        number = len(rows.accounts) + 1
        account = Account(
            number, identifier, slot_of(identifier), "", weight, 0, 10**12, 0, 0, 0, 0, 0
        )
        rows.accounts[number] = rows.account_of[identifier] = account
        self._owners[shard, number] = identifier
        return identifier

    def send(self, shard: int, client: bytes, count: int = 1, **more: Any) -> None:
        """Put admissions into the shard's inbox."""
        for _ in range(count):
            request = Admit(client, draft(**more), None, RULES, 0)
            self.shards[shard].put(request)

    def add_backlog(self, shard: int, client: bytes, count: int, key: QueueKey = (0, 0)) -> None:
        """As if a client had sent that many in one go; no rows are made."""
        rows = self.rows[shard]
        account = rows.account_of[client]
        turn = Turn(self.clock.now_ms(), rows.numbers, {}, {}, 0)
        first = make_message(turn, account, draft(route=key[0], lane=Lane(key[1])), RULES)
        first.rank = self.allotter.virtual.get(key, 0)
        first.status = 1
        step = QUANTUM // account.weight
        # Numbers of the run are beyond any that will be given.
        first.number += (1 + len(rows.runs)) << 50
        rows.runs.append(Run(account.number, key, first, step, count))
        rows.flows[account.number, *key] = Flow(first.rank + count * step, count, count)
        rows.waiting[key] = rows.waiting.get(key, 0) + count
        account.waiting += count
        self.allotter.report(shard, dict(rows.waiting), {}, {key: first.rank})

    def submitted(self, submission: Submission) -> None:
        self.order.append(submission)
        number = self.rows[submission.shard].messages[submission.number].client
        self.served[self._owners[submission.shard, number]] += submission.parts

    async def quiet(self) -> None:
        """Let every loop run until all of them have nothing to do; one that spins is a failure."""
        still, before = 0, -1
        for _ in range(ROUNDS_MAX):
            await asyncio.sleep(0)
            for task in self._tasks:
                assert not task.done(), task
            turns = sum(rows.turns for rows in self.rows.values())
            busy = any(rows.busy for rows in self.rows.values())
            still = 0 if busy or turns != before else still + 1
            before = turns
            if still > 8:
                return
        raise AssertionError("the shards' loops do not come to rest")

    async def serve(self, places: int, at_once: int = 1) -> None:
        """Have the operators answer so many messages, some at a time."""
        while places > 0:
            await self.quiet()
            held = {name: operator.held for name, operator in self.operators.items()}
            assert any(held.values()), "messages wait, places are free, and nothing is claimed"
            for operator in self.operators.values():
                operator.answer(min(places, at_once))
            places -= at_once
        await self.quiet()

    async def serve_all(self) -> None:
        """Have the operators answer until they hold nothing."""
        await self.quiet()
        while any(operator.held for operator in self.operators.values()):
            await self.serve(1)


def draft(
    *, lane: Lane = Lane.REGULAR, parts: int = 1, route: int = 0, validity_ms: int | None = None
) -> Draft:
    return Draft(15005550006, "ACME", "x", False, parts, lane, 0, 0, route, None, validity_ms)


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))
