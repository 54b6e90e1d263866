"""The load generator: a raw protocol with prebuilt bytes, in a process of its own.

Every connection sends its next request when the answer to the last one is there (a closed loop),
or, with a rate, all connections together send at that rate and count what waits (an open loop).
"""

import asyncio
import bisect
import itertools
import json
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

ZIPF: Final = 1.0
BODIES: Final = 5_000
TEXT: Final = "Your parcel has arrived; collect it before Friday, 18:00, at the counter."


@dataclass(slots=True)
class Plan:
    """What to send; ``rate_per_s`` 0 is a closed loop, ``batch`` 0 the single route."""

    port: int
    clients: list[str]
    seconds: float
    connections: int = 64
    batch: int = 0
    keyed_share: float = 0.5
    rate_per_s: float = 0.0
    otp: bool = False
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """What came back; latencies in milliseconds, CPU in seconds."""

    answers: int = 0
    messages: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


def zipf_picker(count: int, seed: int) -> Callable[[], int]:
    """Draws 0…count−1, Zipf-distributed."""
    chance = random.Random(seed)  # noqa: S311  load, not secrets
    sums = list(itertools.accumulate(1 / (rank + 1) ** ZIPF for rank in range(count)))
    return lambda: bisect.bisect(sums, chance.random() * sums[-1])


def requests(plan: Plan) -> Iterator[bytes]:
    """Requests without end; half of them with a key of their own."""
    pick = zipf_picker(len(plan.clients), plan.seed)
    chance = random.Random(plan.seed)  # noqa: S311
    path = b"/v1/messages/batch" if plan.batch else b"/v1/messages"
    count = BODIES // (10 if plan.batch else 1)
    bodies = [_body(plan, plan.clients[pick()], chance) for _ in range(count)]
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % path
    plain = [b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body) for body in bodies]
    tails = [b"\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies]
    keyed = head + b"Idempotency-Key: %d-" % plan.seed
    for count in itertools.count():
        index = count % len(bodies)
        if (count * 0.618033988749895) % 1 < plan.keyed_share:
            yield b"%b%d%b" % (keyed, count, tails[index])
        else:
            yield plain[index]


def _body(plan: Plan, client: str, chance: random.Random) -> bytes:
    def number() -> str:
        return f"+98912{chance.randrange(10**7):07d}"

    body: dict[str, Any] = {"client_id": client, "from": "ACME"}
    if plan.batch:
        body["text"] = TEXT
        body["messages"] = [{"to": number()} for _ in range(plan.batch)]
    else:
        body["to"] = number()
        body |= {"otp": True} if plan.otp else {"text": TEXT}
    return json.dumps(body).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._buffer = b""
        self._sent_at_s = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport  # type: ignore[assignment]
        self._load.ready(self)

    def send(self, request: bytes, since_s: float) -> None:
        """Send a request that was due at a moment."""
        assert self.transport is not None
        self._sent_at_s = since_s
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
        self._load.answered(self, buffer[9:12], self._sent_at_s)

    def connection_lost(self, _: Exception | None) -> None:
        """A lost connection ends the run: nothing here may close one."""
        self._load.lost()


class Load:
    """The run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = requests(plan)
        self._latencies: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._idle: list[Connection] = []
        self._due: list[float] = []
        self._begun_s = 0.0
        self._ends_s = 0.0
        self._open = 0
        self._ended = asyncio.Event()

    async def run(self) -> Outcome:
        """Connect, send until the time is over, wait for the last answers."""
        loop = asyncio.get_running_loop()
        self._begun_s = time.perf_counter()
        self._ends_s = self._begun_s + self._plan.seconds
        for _ in range(self._plan.connections):
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._plan.port)
        if self._plan.rate_per_s:
            await self._at_rate()
        await self._ended.wait()
        return self._outcome()

    async def _at_rate(self) -> None:
        sent = 0
        while (now_s := time.perf_counter()) < self._ends_s:
            wanted = int((now_s - self._begun_s) * self._plan.rate_per_s)
            while sent < wanted:
                due_s = self._begun_s + sent / self._plan.rate_per_s
                sent += 1
                if self._idle:
                    self._start(self._idle.pop(), due_s)
                else:
                    self._due.append(due_s)
            await asyncio.sleep(0.001)
        self._due.clear()
        if not self._open:
            self._ended.set()

    def ready(self, connection: Connection) -> None:
        """A connection can send."""
        if self._plan.rate_per_s:
            self._idle.append(connection)
        else:
            self._start(connection, time.perf_counter())

    def _start(self, connection: Connection, since_s: float) -> None:
        self._open += 1
        connection.send(next(self._requests), since_s)

    def answered(self, connection: Connection, status: bytes, since_s: float) -> None:
        """Count an answer and go on."""
        now_s = time.perf_counter()
        self._open -= 1
        self._latencies.append(now_s - since_s)
        self._statuses[status.decode()] += 1
        if now_s >= self._ends_s:
            if not self._open:
                self._ended.set()
        elif not self._plan.rate_per_s:
            self._start(connection, now_s)
        elif self._due:
            self._start(connection, self._due.pop(0))
        else:
            self._idle.append(connection)

    def lost(self) -> None:
        """Give up."""
        if time.perf_counter() < self._ends_s:
            self._statuses["lost"] += 1
        self._ended.set()

    def _outcome(self) -> Outcome:
        spent_s = time.perf_counter() - self._begun_s
        usage = resource.getrusage(resource.RUSAGE_SELF)
        ordered = sorted(self._latencies) or [0.0]
        count = len(self._latencies)
        return Outcome(
            answers=count,
            messages=self._statuses["202"] * max(1, self._plan.batch),
            statuses=dict(self._statuses),
            seconds=spent_s,
            cpu_s=usage.ru_utime + usage.ru_stime,
            p50_ms=ordered[len(ordered) // 2] * 1000,
            p99_ms=ordered[int(len(ordered) * 0.99)] * 1000,
            max_ms=ordered[-1] * 1000,
        )
