"""The load generator: a raw protocol with prebuilt bytes, in a process of its own.

Every connection sends its next request when the answer to the last one is there (a closed loop),
or, with a rate, all connections together send at that rate and count what waits (an open loop).
There, a request's time runs from when it was due, whether or not a connection was free by then.
"""

import asyncio
import bisect
import gc
import itertools
import json
import random
import secrets
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final

import uvloop

ZIPF: Final = 1.0
BODIES: Final = 5_000
BATCH: Final = 100
SENDER: Final = "ACME"
TEXT: Final = "Your parcel has arrived; collect it before Friday, 18:00, at the counter."
TICK_S: Final = 0.001
IDLE_S: Final = 4.0


@dataclass(slots=True)
class Plan:
    """What to send; ``rate_per_s`` 0 is a closed loop, ``batch`` 0 the single route.

    With ``even`` the clients send in turn; else which one sends is Zipf-distributed.
    """

    port: int
    clients: Sequence[str]
    seconds: float
    connections: int = 64
    batch: int = 0
    keyed_share: float = 0.5
    rate_per_s: float = 0.0
    otp: bool = False
    even: bool = False
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """What came back.

    ``due_s`` says when each request was due, in seconds since ``begun_at_s`` (Unix time), and
    ``took_ms`` how long after that it was answered. ``unsent`` requests were due at the end and
    had found no free connection; they are in both with the time they had waited. ``stalled_ms`` is
    how late the generator itself was at most. ``cpu_s`` is of its whole process.
    """

    messages: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    begun_at_s: float = 0.0
    cpu_s: float = 0.0
    unsent: int = 0
    stalled_ms: float = 0.0
    due_s: "array[float]" = field(default_factory=lambda: array("d"))
    took_ms: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def answers(self) -> int:
        """How many requests were answered."""
        return sum(self.statuses.values()) - self.statuses.get("lost", 0)

    @property
    def cpu(self) -> float:
        """Which share of a core the generator used."""
        return self.cpu_s / self.seconds


def zipf_weights(count: int) -> list[float]:
    """How often each of so many clients sends, beside the others."""
    return [1 / (rank + 1) ** ZIPF for rank in range(count)]


def admissions(
    clients: Sequence[str], seconds: float, singles_per_s: float, batches_per_s: float, seed: int
) -> list[Plan]:
    """Single messages, and batches of a hundred, that come in beside what is measured."""
    return [
        Plan(0, clients, seconds, batch=batch, rate_per_s=rate_per_s, seed=seed * 10 + batch)
        for batch, rate_per_s in ((0, singles_per_s), (BATCH, batches_per_s))
    ]


def picker(plan: Plan) -> Callable[[], int]:
    """Draws 0…clients−1, as the plan says."""
    count = len(plan.clients)
    if plan.even:
        return itertools.cycle(range(count)).__next__
    chance = random.Random(plan.seed)  # noqa: S311  load, not secrets
    sums = list(itertools.accumulate(zipf_weights(count)))
    return lambda: bisect.bisect(sums, chance.random() * sums[-1])


def requests(plan: Plan) -> Iterator[bytes]:
    """Requests without end; some of them with a key of their own."""
    pick = picker(plan)
    path = b"/v1/messages/batch" if plan.batch else b"/v1/messages"
    numbers = _numbers(plan)
    bodies = [_body(plan, plan.clients[pick()], numbers) for _ in range(_bodies(plan))]
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % path
    plain = [b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body) for body in bodies]
    tails = [b"\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies]
    keyed = head + b"Idempotency-Key: %b-" % secrets.token_hex(8).encode()

    def endless() -> Iterator[bytes]:
        for count in itertools.count():
            index = count % len(bodies)
            if (count * 0.618033988749895) % 1 < plan.keyed_share:
                yield b"%b%d%b" % (keyed, count, tails[index])
            else:
                yield plain[index]

    return endless()


def _bodies(plan: Plan) -> int:
    """How many different bodies a plan needs; no number is sent two one-time codes."""
    if plan.otp:
        return max(1, int(plan.rate_per_s * plan.seconds) + 1)
    return BODIES // (10 if plan.batch else 1)


def _numbers(plan: Plan) -> Iterator[str]:
    """Recipients: for one-time codes one after the other, else at random."""
    if plan.otp:
        first = plan.seed * 100_000
        return (f"+98913{number % 10**7:07d}" for number in itertools.count(first))
    chance = random.Random(plan.seed)  # noqa: S311
    return (f"+98912{chance.randrange(10**7):07d}" for _ in itertools.repeat(None))


def _body(plan: Plan, client: str, numbers: Iterator[str]) -> bytes:
    body: dict[str, Any] = {"client_id": client, "from": SENDER}
    if plan.batch:
        body["text"] = TEXT
        body["messages"] = [{"to": next(numbers)} for _ in range(plan.batch)]
    else:
        body["to"] = next(numbers)
        body |= {"otp": True} if plan.otp else {"text": TEXT}
    return json.dumps(body).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._buffer = b""
        self._due_s = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the start."""
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, due_s: float) -> None:
        """Send a request that was due at a moment."""
        assert self.transport is not None
        self._due_s = due_s
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Wait for the whole answer, then go on."""
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        start = buffer.find(b"content-length: ")
        if end < 0 or start < 0:
            self._buffer = buffer
            return
        length = int(buffer[start + 16 : buffer.index(b"\r\n", start)])
        if len(buffer) < end + 4 + length:
            self._buffer = buffer
            return
        self._buffer = b""
        self._load.answered(self, buffer[9:12], self._due_s)

    def connection_lost(self, _: Exception | None) -> None:
        """A lost connection ends the run: nothing here may close one."""
        self._load.lost()


class Load:
    """The run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = requests(plan)
        self._outcome = Outcome()
        self._statuses: Counter[bytes] = Counter()
        self._idle: deque[Connection] = deque()
        self._due: deque[float] = deque()
        self._begun_s = 0.0
        self._ends_s = 0.0
        self._total = max(1, round(plan.rate_per_s * plan.seconds))
        self._sent = 0
        self._open = 0
        self._sending = False
        self._ended = asyncio.Event()

    async def connect(self) -> None:
        """Open all connections; so few that none is idle for so long that it would be closed."""
        loop = asyncio.get_running_loop()
        plan = self._plan
        enough = ceil(plan.rate_per_s * IDLE_S) if plan.rate_per_s else plan.connections
        for _ in range(min(plan.connections, enough)):
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", self._plan.port
            )
            self._idle.append(connection)

    async def run(self) -> Outcome:
        """Send until the time is over, wait for the last answers."""
        cpu_s = time.process_time()
        self._outcome.begun_at_s = time.time()
        self._begun_s = time.perf_counter()
        self._ends_s = self._begun_s + self._plan.seconds
        if self._plan.rate_per_s:
            await self._at_rate()
        else:
            while self._idle:
                self._start(self._idle.popleft(), time.perf_counter())
        await self._ended.wait()
        outcome = self._outcome
        outcome.seconds = time.perf_counter() - self._begun_s
        outcome.cpu_s = time.process_time() - cpu_s
        outcome.statuses = {status.decode(): count for status, count in self._statuses.items()}
        outcome.messages = outcome.statuses.get("202", 0) * max(1, self._plan.batch)
        return outcome

    async def _at_rate(self) -> None:
        self._sending = True
        before_s = now_s = self._begun_s
        while now_s < self._ends_s and not self._ended.is_set():
            self._send_due(now_s)
            await asyncio.sleep(TICK_S)
            before_s, now_s = now_s, time.perf_counter()
            late_ms = (now_s - before_s - TICK_S) * 1000
            self._outcome.stalled_ms = max(self._outcome.stalled_ms, late_ms)
        self._send_due(self._ends_s)
        self._outcome.unsent = len(self._due)
        while self._due:
            self._note(self._due.popleft(), self._ends_s)
        self._sending = False
        if not self._open:
            self._ended.set()

    def _send_due(self, now_s: float) -> None:
        """Send what has become due, or have it wait for a connection."""
        rate_per_s = self._plan.rate_per_s
        due = min(int((now_s - self._begun_s) * rate_per_s) + 1, self._total)
        while self._sent < due:
            due_s = self._begun_s + self._sent / rate_per_s
            self._sent += 1
            if self._idle:
                self._start(self._idle.popleft(), due_s)
            else:
                self._due.append(due_s)

    def _start(self, connection: Connection, due_s: float) -> None:
        self._open += 1
        connection.send(next(self._requests), due_s)

    def _note(self, due_s: float, now_s: float) -> None:
        self._outcome.due_s.append(due_s - self._begun_s)
        self._outcome.took_ms.append((now_s - due_s) * 1000)

    def answered(self, connection: Connection, status: bytes, due_s: float) -> None:
        """Count an answer and go on."""
        now_s = time.perf_counter()
        self._open -= 1
        self._note(due_s, now_s)
        self._statuses[status] += 1
        if self._due:
            self._start(connection, self._due.popleft())
        elif now_s < self._ends_s and not self._plan.rate_per_s:
            self._start(connection, now_s)
        else:
            self._idle.append(connection)
        if not self._open and not self._sending:
            self._ended.set()

    def lost(self) -> None:
        """Give up."""
        if not self._ended.is_set():
            self._statuses[b"lost"] += 1
            self._ended.set()


def run(plans: Sequence[Plan]) -> list[Outcome]:
    """Run plans side by side in this process, to their ends."""
    return uvloop.run(_run(plans))


async def _run(plans: Sequence[Plan]) -> list[Outcome]:
    loads = [Load(plan) for plan in plans]
    for load in loads:
        await load.connect()
    # Nothing that is made here goes in circles; a collection would only be a stall.
    gc.disable()
    return list(await asyncio.gather(*(load.run() for load in loads)))
