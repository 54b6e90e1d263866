"""Three gateways over two servers in a storm: whatever dies or stands still, every promise holds.

``SMSGW_TEST_STORM_ROUNDS`` asks for a longer one, ``SMSGW_TEST_STORM_SEED`` for another.
"""

import http.client
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from smsgw.ids import slot_of
from tests import postgres
from tests.support import DELIVERED, Served
from tests.test_kill import (
    CLIENTS,
    Request,
    comparable,
    finished,
    journal_of,
    kill_while_starting,
)
from tests.test_postgres_kill import CUT

ROUNDS = int(os.environ.get("SMSGW_TEST_STORM_ROUNDS", "5"))
SEED = os.environ.get("SMSGW_TEST_STORM_SEED", "7")
GATEWAYS = 3
SHARDS = 4
WINDOW = 60
LEASE_S = 1.0
PATIENCE_S = 1.5
"""How long a sender waits for an answer before it asks another gateway."""
STILL_S_MAX = LEASE_S + 2.0
ENDED_S_MAX = LEASE_S + 8.0
"""A lease, what waits for evidence then (4 s), and what busy cores take to notice."""

AWAY = {"storage_unavailable", "not_ready"}
"""Refusals that pass."""


@dataclass
class Tally:
    """What happened in the storm."""

    kills: int = 0
    stops: int = 0
    restarts: int = 0
    false_starts: int = 0
    replayed: int = 0
    asked_again: int = 0
    still_s: float = 0.0
    slowest_s: float = 0.0
    ended_s: float = 0.0
    figures: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.figures.items())
        return (
            f"{ROUNDS} rounds: {self.kills} kills and {self.false_starts} while starting,"
            f" {self.stops} stops, {self.restarts} restarts of a server; {counts};"
            f" {self.asked_again} times another gateway was asked,"
            f" {self.replayed} replays; no server's clients went without an answer for more than"
            f" {self.still_s:.2f} s, the slowest request took {self.slowest_s:.2f} s, everything"
            f" was final {self.ended_s:.2f} s after the storm"
        )


class Servers:
    """The servers, and when each of them was away."""

    def __init__(self, urls: list[str], own: list[postgres.OwnServer]) -> None:
        self.urls = urls
        self.away: list[list[tuple[float, float]]] = [[] for _ in urls]
        self._own = own

    def restart(self, count: int) -> None:
        """Restart one after the other; where it is not ours, cut every connection."""
        number = count % len(self.urls)
        mode = ("fast", "immediate")[(count + 1) // 2 % 2]
        since_s = time.monotonic()
        if self._own:
            self._own[number].stop(mode)
            self._own[number].start()
        else:
            with postgres.Sql(self.urls[number]) as sql:
                sql.execute(CUT)
        self.away[number].append((since_s, time.monotonic()))

    def of(self, client: str) -> int:
        """Which one a client is on."""
        return slot_of(uuid.UUID(client).bytes) % SHARDS % len(self.urls)


@pytest.fixture
def servers() -> Iterator[Servers]:
    """Two servers of our own; where one is given, a database of it."""
    with ExitStack() as stack:
        if os.environ.get("SMSGW_TEST_POSTGRES_URL"):
            yield Servers([stack.enter_context(postgres.database())], [])
        else:
            own = [stack.enter_context(postgres.own_server()) for _ in range(2)]
            yield Servers([server.url() for server in own], own)


class Fleet:
    """The gateways, each on a data directory of its own."""

    def __init__(self, start: Callable[..., Served], servers: Servers, folder: Path) -> None:
        self.journals: list[Path] = []
        self.false_starts = 0
        self._start = start
        self._servers = servers
        self._folder = folder
        self.gateways = [self.started(0)]
        for number in range(1, GATEWAYS):
            (folder / str(number)).mkdir()
            shutil.copy(folder / "0" / "otp.key", folder / str(number) / "otp.key")
            self.gateways.append(self.started(number))

    def started(self, number: int) -> Served:
        """A gateway, once it serves."""
        return self._start(self._environ(), self._folder / str(number))

    def _environ(self) -> dict[str, str]:
        # One that is killed may leave half a line: the next writes elsewhere.
        journal = self._folder / f"journal{len(self.journals)}"
        journal.touch()
        self.journals.append(journal)
        return {
            "SMSGW_STORE__SHARD_URLS": ",".join(self._servers.urls),
            "SMSGW_STORE__SHARDS": str(SHARDS),
            "SMSGW_POSTGRES__LEASE_S": str(LEASE_S),
            "SMSGW_DELIVERY__ON_UNCERTAIN": "wait",
            "SMSGW_DELIVERY__UNCERTAIN_S": "1",
            "SMSGW_DELIVERY__RECEIPT_TIMEOUT_S": "3",
            "SMSGW_PROVIDERS__MOCK__LATENCY_MS": "20",
            "SMSGW_PROVIDERS__MOCK__RECEIPT_DELAY_MS": "20",
            "SMSGW_PROVIDERS__MOCK__WINDOW": str(WINDOW),
            "SMSGW_PROVIDERS__MOCK__JOURNAL": str(journal),
        }

    def kill(self, number: int) -> None:
        """End one as the kernel would."""
        self.gateways[number].process.send_signal(signal.SIGKILL)
        self.gateways[number].kill()

    def restart(self, number: int, chance: random.Random) -> None:
        """Start one again that was killed; sometimes it is killed while it starts, too."""
        if chance.random() < 0.25:
            self.false_starts += 1
            data = self._folder / str(number)
            kill_while_starting(data, self._environ(), chance.uniform(0.3, 1.2))
        self.gateways[number] = self.started(number)

    def wait(self, wait_s: float) -> None:
        """Let time pass; none of the gateways may end by itself."""
        with suppress(subprocess.TimeoutExpired):
            self.gateways[0].process.wait(wait_s)
        ended = [one.process.returncode for one in self.gateways if one.process.poll() is not None]
        assert not ended, (self._folder / "serve.log").read_text()[-4000:]


class Caller:
    """Something with a thread and connections of its own, until it is told that it is over."""

    def __init__(self, fleet: Fleet, name: object) -> None:
        self.replayed = 0
        self.over = threading.Event()
        self.gives_up = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self._chance = random.Random(f"{SEED} {name}")
        self._fleet = fleet
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def _run(self) -> None:
        try:
            while not self.over.wait(0.01):
                self._do()
        finally:
            self.close()

    def _do(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close what is open; to ask something opens it again."""
        for connection in self._connections.values():
            connection.close()

    def _ask(self, request: Request, at: int) -> bool:
        """Ask a gateway; False where it did not answer."""
        port = self._fleet.gateways[at % GATEWAYS].port
        connection = self._connections.get(port)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
            self._connections[port] = connection
        try:
            request.ask(connection)
        except (http.client.HTTPException, OSError, ValueError):
            connection.close()
            del self._connections[port]
            request.status = None
        return request.status is not None

    def replay(self, request: Request, at: int) -> None:
        """Ask a gateway what was answered: if it can answer, it answers alike."""
        again = Request(request.path, request.body, request.key)
        if not self._ask(again, at) or again.answer.get("code") in AWAY:
            return
        assert again.status == request.status, (request, again)
        if again.status != 503:
            assert comparable(again.answer) == comparable(request.answer), (request, again)
        self.replayed += 1


class Sender(Caller):
    """Sends one request after the other under a key, each until it is answered for good.

    It asks one gateway first; where that does not answer, it asks the next the same.
    """

    def __init__(self, fleet: Fleet, number: int) -> None:
        super().__init__(fleet, f"sends {number}")
        self.done: list[Request] = []
        self.answered: list[tuple[float, str]] = []
        self.slowest_s = 0.0
        self.asked_again = 0
        self._home = number

    def _do(self) -> None:
        request = self._new_request()
        since_s = time.monotonic()
        at = self._home
        while not self._is_final(request):
            if self.gives_up.wait(0.02 if request.status else 0):
                return
            if not self._ask(request, at):
                at += 1
                self.asked_again += 1
        now_s = time.monotonic()
        self.slowest_s = max(self.slowest_s, now_s - since_s)
        self.answered.append((now_s, request.body["client_id"]))
        self.done.append(request)

    def _new_request(self) -> Request:
        chance = self._chance
        number = f"+1555{chance.randrange(10**7):07d}"
        client = chance.choice(CLIENTS)
        body: dict[str, Any] = {"client_id": client, "from": "ACME", "to": number, "text": "hello"}
        path = "/v1/messages"
        match chance.randrange(10):
            case 0 | 1:
                body["express"] = True
            case 2:
                del body["text"]
                body["otp"] = True
            case 3:
                path = "/v1/messages/batch"
                body["to"] = [DELIVERED] * chance.randrange(2, 20)
        return Request(path, body, str(uuid.UUID(int=chance.getrandbits(128))))

    def _is_final(self, request: Request) -> bool:
        if request.status in (None, 200, 202):
            return request.status is not None
        code = request.answer["code"]
        if code == "otp_undeliverable":
            return True
        assert code in AWAY | {"express_guarantee_unavailable", "idempotency_in_progress"}, request
        return False


class Repeater(Caller):
    """Asks its gateway again and again what was answered, by whichever."""

    def __init__(self, fleet: Fleet, number: int, senders: list[Sender]) -> None:
        super().__init__(fleet, f"repeats {number}")
        self._home = number
        self._senders = senders

    def _do(self) -> None:
        if done := self._chance.choice(self._senders).done:
            self.replay(self._chance.choice(done), self._home)


class Storm:
    """What is done to gateways and servers, at random."""

    def __init__(self, fleet: Fleet, servers: Servers, tally: Tally) -> None:
        self._chance = random.Random(SEED)
        self._fleet = fleet
        self._servers = servers
        self._tally = tally

    def rage(self) -> None:
        """Every round does one thing or several at a time; each thing is done at least once."""
        for number in range(ROUNDS):
            self._fleet.wait(self._chance.uniform(0.1, 0.4))
            things = {number % 3} | {thing for thing in range(3) if self._chance.random() < 0.4}
            self._disturb(0 in things, 1 in things, 2 in things)
        self._fleet.wait(0.3)

    def _disturb(self, kills: bool, stops: bool, restarts: bool) -> None:
        victim, still = self._chance.sample(range(GATEWAYS), 2)
        until_s = time.monotonic() + self._chance.uniform(1.2, 2.2) * LEASE_S
        stopped = self._fleet.gateways[still].process
        if stops:
            self._tally.stops += 1
            stopped.send_signal(signal.SIGSTOP)
        if kills:
            self._tally.kills += 1
            self._fleet.kill(victim)
        if restarts:
            self._servers.restart(self._tally.restarts)
            self._tally.restarts += 1
        if kills:
            self._fleet.restart(victim, self._chance)
        if stops:
            self._fleet.wait(max(0.0, until_s - time.monotonic()))
            stopped.send_signal(signal.SIGCONT)


def still_s(senders: list[Sender], servers: Servers) -> float:
    """How long at most the clients of a server that was there went without any answer."""
    longest = 0.0
    for server, away in enumerate(servers.away):
        times = sorted(
            at_s
            for sender in senders
            for at_s, client in sender.answered
            if servers.of(client) == server
        )
        for before_s, after_s in pairwise(times):
            gone = sum(max(0.0, min(b, after_s) - max(a, before_s)) for a, b in away)
            longest = max(longest, after_s - before_s - gone)
    return longest


@contextmanager
def sending(fleet: Fleet) -> Iterator[tuple[list[Sender], list[Repeater]]]:
    """Two senders and a repeater for each gateway; in the end all that was asked is answered."""
    senders = [Sender(fleet, number) for number in range(2 * GATEWAYS)]
    repeaters = [Repeater(fleet, number, senders) for number in range(GATEWAYS)]
    callers = [*senders, *repeaters]
    for caller in callers:
        caller.thread.start()
    try:
        yield senders, repeaters
        for caller in callers:
            caller.over.set()
        for caller in callers:
            caller.thread.join(20)
            assert not caller.thread.is_alive(), "a request is never answered"
    finally:
        for caller in callers:
            caller.over.set()
            caller.gives_up.set()


def replay_everything(senders: list[Sender]) -> None:
    """Ask everything once more."""
    failures: list[BaseException] = []

    def ask(sender: Sender) -> None:
        try:
            for at, request in enumerate(sender.done):
                sender.replay(request, at)
        except BaseException as failure:
            failures.append(failure)
        finally:
            sender.close()

    threads = [threading.Thread(target=ask, args=(sender,)) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 + 10 * ROUNDS)
    assert not failures, failures[0]
    for sender in senders:
        assert sender.replayed == len(sender.done)


def check(fleet: Fleet, messages: dict[str, dict[str, Any]], senders: list[Sender]) -> Counter[str]:
    """Everything accepted is there, was submitted once at most, and was paid for once."""
    requests = [request for sender in senders for request in sender.done]
    accepted = Counter(identifier for request in requests for identifier in request.ids())
    assert set(accepted.values()) == {1}
    assert accepted.keys() <= messages.keys(), "something that was accepted is lost"
    # Every request had a key, and every key was answered: so nothing else is there.
    more = [row for identifier, row in messages.items() if identifier not in accepted]
    assert {row["otp"] for row in more} <= {True}, "something was accepted twice"
    submits: Counter[str] = Counter()
    for journal in fleet.journals:
        submits += journal_of(journal)
    twice = [identifier for identifier, count in submits.items() if count > 1]
    assert not twice, [messages[identifier] for identifier in twice]
    assert submits.keys() <= messages.keys()
    charged: Counter[str] = Counter()
    for identifier, row in messages.items():
        is_delivered = row["status"] == "DELIVERED"
        assert row["charged"] in ((row["cost"], 5) if is_delivered else (0,)), row
        assert not is_delivered or identifier in submits, row
        assert row["attempts"] <= 1, row
        charged[row["client_id"]] += row["charged"]
    for client in CLIENTS:
        _, account = fleet.gateways[1].request("GET", f"/v1/me?client_id={client}")
        assert (account["charged"], account["held"]) == (charged[client], 0)
    reasons = Counter(row["reason"] for row in messages.values())
    return Counter(
        {
            "requests": len(requests),
            "messages accepted": len(accepted),
            "handed over": len(submits),
            "lost": len(accepted.keys() - messages.keys()),
            "twice": len(twice),
            "uncertain": reasons["uncertain"],
            "interrupted codes": reasons["interrupted"],
        }
    )


@pytest.mark.timeout(120 + 15 * ROUNDS)
def test_in_a_storm_nothing_is_lost_nothing_counts_twice_and_nothing_stands_still(
    served: Callable[..., Served], servers: Servers, tmp_path: Path
) -> None:
    tally = Tally()
    fleet = Fleet(served, servers, tmp_path)
    with sending(fleet) as (senders, repeaters):
        Storm(fleet, servers, tally).rage()
    calm_s = time.monotonic()
    messages = finished(fleet.gateways[0])
    tally.ended_s = time.monotonic() - calm_s
    tally.false_starts = fleet.false_starts
    replay_everything(senders)
    tally.replayed = sum(caller.replayed for caller in [*senders, *repeaters])
    tally.asked_again = sum(sender.asked_again for sender in senders)
    tally.slowest_s = max(sender.slowest_s for sender in senders)
    tally.still_s = still_s(senders, servers)
    tally.figures = check(fleet, messages, senders)
    print(f"\n{tally}")
    disturbed = tally.kills + tally.stops + tally.restarts
    assert tally.figures["uncertain"] <= WINDOW * disturbed
    assert tally.figures["handed over"] > 50 * ROUNDS
    assert tally.still_s < STILL_S_MAX
    assert tally.ended_s < ENDED_S_MAX
    audit = fleet.gateways[2].cli("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    for gateway in fleet.gateways:
        gateway.process.terminate()
    assert [gateway.process.wait(40) for gateway in fleet.gateways] == [0] * GATEWAYS
