"""Killed at any moment, or told to stop, under load: nothing is lost, nothing is sent twice."""

import http.client
import json
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import DELIVERED, DEMO, Served, clean_environment

CYCLES = 16
CLIENTS = [DEMO, *(f"550e8400-e29b-41d4-a716-4466554400{n:02d}" for n in range(1, 11))]
FINAL = {"DELIVERED", "FAILED_PERM", "EXPIRED", "CANCELLED", "UNKNOWN"}
Start = Callable[..., Served]


@dataclass
class Request:
    """What was asked under a key, and what the answer was, if it was read to its end."""

    path: str
    body: dict[str, Any]
    key: str | None
    status: int | None = None
    answer: Any = None

    def ids(self) -> list[str]:
        """The messages that the answer says were accepted."""
        if self.status not in (200, 202):
            return []
        if "results" in self.answer:
            return [item["message_id"] for item in self.answer["results"]]
        return [self.answer["message_id"]]

    def ask(self, connection: http.client.HTTPConnection) -> None:
        headers = {"content-type": "application/json"}
        if self.key is not None:
            headers["Idempotency-Key"] = self.key
        connection.request("POST", self.path, json.dumps(self.body), headers)
        answer = connection.getresponse()
        self.answer = json.loads(answer.read())
        self.status = answer.status


def new_request(chance: random.Random) -> Request:
    client = chance.choice(CLIENTS)
    number = f"+1555{chance.randrange(10**7):07d}"
    body: dict[str, Any] = {"client_id": client, "from": "ACME", "to": number, "text": "hello"}
    key: str | None = str(uuid.UUID(int=chance.getrandbits(128)))
    path = "/v1/messages"
    match chance.randrange(10):
        case 0 | 1:
            body["express"] = True
        case 2 | 3:
            del body["text"]
            body["otp"] = True
        case 4:
            path = "/v1/messages/batch"
            body["to"] = [DELIVERED] * chance.choice([5, 30, 120])
        case 5 | 6:
            key = None
    return Request(path, body, key)


class Load:
    """Senders in threads of their own, each with one connection, until the gateway is gone."""

    def __init__(self, port: int, seed: int, threads: int = 6) -> None:
        self.requests: list[Request] = []
        self.enough = threading.Event()
        self._port = port
        self._threads = [
            threading.Thread(target=self._send, args=(random.Random(f"{seed} {index}"),))
            for index in range(threads)
        ]

    def _send(self, chance: random.Random) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            while not self.enough.is_set():
                request = new_request(chance)
                self.requests.append(request)
                request.ask(connection)
        except (http.client.HTTPException, OSError, ValueError):
            pass
        finally:
            connection.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self.enough.set()
            for thread in self._threads:
                thread.join(60)

    def answered(self, count: int, limit_s: float = 30) -> None:
        """Wait until so many requests have been answered."""
        end_s = time.monotonic() + limit_s
        while sum(request.status is not None for request in list(self.requests)) < count:
            assert time.monotonic() < end_s, "the gateway answers too slowly"
            self._threads[0].join(0.005)


@dataclass
class Tally:
    """What happened over all cycles."""

    cycles: int = 0
    accepted: dict[str, Request] = field(default_factory=dict)
    replayed: int = 0
    taken_up: int = 0
    uncertain: int = 0
    sent: int = 0

    def __str__(self) -> str:
        return (
            f"{self.cycles} kills, {len(self.accepted)} messages accepted, "
            f"{self.sent} handed over, {self.replayed} requests replayed, "
            f"{self.taken_up} of them unanswered before, "
            f"{self.uncertain} messages uncertain"
        )


def listed(served: Served, client: str, **filters: str) -> dict[str, dict[str, Any]]:
    """All of a client's messages that the list tells of."""
    found: dict[str, dict[str, Any]] = {}
    cursor = ""
    more = "".join(f"&{name}={value}" for name, value in filters.items())
    while True:
        path = f"/v1/messages?client_id={client}&limit=500{more}{cursor}"
        status, page = served.request("GET", path)
        assert status == 200, page
        for row in page["data"]:
            assert row["id"] not in found
            found[row["id"]] = row
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


def everything(served: Served) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for client in CLIENTS:
        found |= listed(served, client)
    return found


def journal_of(path: Path) -> Counter[str]:
    """How often each message was submitted; the last line may be torn."""
    lines = path.read_text().split("\n")[:-1]
    return Counter(json.loads(line)["message_id"] for line in lines)


def replay(served: Served, load: Load, tally: Tally, chance: random.Random) -> None:
    """Ask again what was under way, and some of what was answered: with the same outcome."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    keyed = [request for request in load.requests if request.key is not None]
    answered = [request for request in keyed if request.status in (200, 202)]
    unanswered = [request for request in keyed if request.status is None]
    for request in [*chance.sample(answered, min(15, len(answered))), *unanswered]:
        again = Request(request.path, request.body, request.key)
        again.ask(connection)
        tally.replayed += 1
        if request.status is not None:
            assert again.status == request.status, (request, again)
            assert comparable(again.answer) == comparable(request.answer)
            continue
        tally.taken_up += 1
        assert again.status in (200, 202, 503), again
        if again.status == 503:
            assert again.answer["code"] == "otp_undeliverable", again
        for identifier in again.ids():
            tally.accepted[identifier] = again
        third = Request(request.path, request.body, request.key)
        third.ask(connection)
        assert (third.status, comparable(third.answer)) == (again.status, comparable(again.answer))
    connection.close()


def comparable(answer: Any) -> Any:
    """An answer without what may differ in a replay: a code expires."""
    return {name: value for name, value in answer.items() if name != "otp_code"}


def environ_of(journal: Path, **more: str) -> dict[str, str]:
    return {
        "SMSGW_PROVIDERS__MOCK__JOURNAL": str(journal),
        "SMSGW_PROVIDERS__MOCK__LATENCY_MS": "8",
        "SMSGW_PROVIDERS__MOCK__RECEIPT_DELAY_MS": "20",
        "SMSGW_PROVIDERS__MOCK__WINDOW": "60",
        "SMSGW_DELIVERY__UNCERTAIN_S": "0.3",
        "SMSGW_LOG__LEVEL": "error",
        **more,
    }


def credit(served: Served) -> None:
    for client in CLIENTS:
        assert served.cli("credit", "add", client, "10000000").returncode == 0


def kill_while_starting(data: Path, environ: dict[str, str], after_s: float) -> None:
    """A start that is killed at some moment, perhaps in the middle of recovery."""
    process = subprocess.Popen(
        [sys.executable, "-m", "smsgw", "--data", str(data), "serve", "--dev", "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**clean_environment(), **environ},
    )
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait(10)


def finished(served: Served) -> dict[str, dict[str, Any]]:
    """Every message, once all are final; one that is stuck is a failure."""
    end_s = time.monotonic() + 30
    while True:
        messages = everything(served)
        left = [row for row in messages.values() if row["status"] not in FINAL]
        if not left:
            return messages
        assert time.monotonic() < end_s, left[:5]
        served.message(left[0]["id"], wait_s=5)


@pytest.mark.timeout(170)
def test_killed_again_and_again_under_load_it_loses_nothing_and_sends_nothing_twice(
    served: Start, tmp_path: Path
) -> None:
    chance = random.Random(2026)
    journal = tmp_path / "journal"
    environ = environ_of(journal)
    tally = Tally()
    gateway = served(environ)
    credit(gateway)
    for cycle in range(CYCLES):
        load = Load(gateway.port, cycle)
        with load.running():
            load.answered(5)
            try:
                gateway.process.wait(chance.uniform(0.02, 0.35))
            except subprocess.TimeoutExpired:
                gateway.process.send_signal(signal.SIGKILL)
            assert gateway.process.wait(10) == -signal.SIGKILL
        gateway.kill()
        tally.cycles += 1
        if cycle % 4 == 3:
            kill_while_starting(tmp_path / "data", environ, chance.uniform(0.2, 0.45))
            tally.cycles += 1
        accepted = {identifier: r for r in load.requests for identifier in r.ids()}
        tally.accepted |= accepted
        gateway = served(environ)
        # Every answer that was read is there.
        clients = {request.body["client_id"] for request in accepted.values()}
        found = {client: listed(gateway, client) for client in clients}
        for identifier, request in accepted.items():
            row = found[request.body["client_id"]][identifier]
            assert row["client_id"] == request.body["client_id"]
        if cycle % 5 == 4:
            audit = gateway.cli("audit")
            assert audit.returncode == 0, audit.stdout + audit.stderr
        replay(gateway, load, tally, chance)
    messages = finished(gateway)
    assert tally.accepted.keys() <= messages.keys()
    submits = journal_of(journal)
    tally.sent = len(submits)
    assert set(submits.values()) == {1}, submits.most_common(3)
    assert submits.keys() <= messages.keys()
    for identifier, row in messages.items():
        assert (row["charged"] > 0) == (row["status"] == "DELIVERED"), row
        assert row["status"] != "DELIVERED" or identifier in submits
        assert row["attempts"] <= 1, row
        tally.uncertain += row["reason"] == "uncertain"
        if row["reason"] == "interrupted":
            assert row["otp"]
    # The window is what bounds how much is in doubt after each kill.
    assert tally.uncertain <= 60 * tally.cycles
    assert len(tally.accepted) > 20 * CYCLES
    assert gateway.stop() == 0
    audit = gateway.cli("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    print(f"\n{tally}")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("policy", ["resend", "fail"])
def test_killed_under_the_other_policies_it_keeps_their_promises(
    served: Start, tmp_path: Path, policy: str
) -> None:
    chance = random.Random(policy)
    journal = tmp_path / "journal"
    environ = environ_of(journal, SMSGW_DELIVERY__ON_UNCERTAIN=policy)
    tally = Tally()
    gateway = served(environ)
    credit(gateway)
    for cycle in range(3):
        load = Load(gateway.port, cycle)
        with load.running():
            load.answered(40)
            gateway.process.send_signal(signal.SIGKILL)
            gateway.process.wait(10)
        gateway.kill()
        tally.cycles += 1
        tally.accepted |= {identifier: r for r in load.requests for identifier in r.ids()}
        gateway = served(environ)
        replay(gateway, load, tally, chance)
    messages = finished(gateway)
    assert tally.accepted.keys() <= messages.keys()
    submits = journal_of(journal)
    tally.sent = len(submits)
    for identifier, row in messages.items():
        tally.uncertain += row["reason"] == "uncertain" or submits[identifier] > 1
        if policy == "fail":
            assert submits[identifier] <= 1
        elif not row["otp"]:
            # At least once, however often it was interrupted, and charged once.
            assert row["status"] == "DELIVERED", row
            assert submits[identifier] >= 1
        assert row["charged"] in (0, row["cost"])
    assert tally.uncertain > 0
    # An OTP is never handed over twice, whatever the policy says.
    assert all(submits[i] <= 1 for i, row in messages.items() if row["otp"])
    assert gateway.stop() == 0
    audit = gateway.cli("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    print(f"\n{policy}: {tally}")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("latency_ms", [50, 600_000])
def test_told_to_stop_under_load_it_stops_in_time_and_leaves_nothing_sending(
    served: Start, tmp_path: Path, latency_ms: int
) -> None:
    """With an operator that answers, and with one that never does."""
    journal = tmp_path / "journal"
    environ = environ_of(
        journal,
        SMSGW_PROVIDERS__MOCK__LATENCY_MS=str(latency_ms),
        SMSGW_SERVER__SHUTDOWN_S="2",
        SMSGW_DELIVERY__UNCERTAIN_S="600",
        SMSGW_OTP__DEADLINE_MS="300",
    )
    gateway = served(environ)
    credit(gateway)
    load = Load(gateway.port, 1)
    with load.running():
        load.answered(60)
        began_s = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - began_s < 25
    gateway.kill()
    accepted = {identifier: r for r in load.requests for identifier in r.ids()}
    assert accepted
    environ["SMSGW_PROVIDERS__MOCK__ENABLED"] = "false"
    gateway = served(environ)
    messages = everything(gateway)
    assert accepted.keys() <= messages.keys()
    statuses = Counter(row["status"] for row in messages.values())
    assert statuses["SENDING"] == 0
    handed_over = journal_of(journal)
    uncertain = {i for i, row in messages.items() if row["status"] == "UNCERTAIN"}
    if latency_ms == 50:
        # Everything in flight was answered: nothing is in doubt.
        assert statuses["UNCERTAIN"] == 0
        assert set(handed_over.values()) == {1}
    else:
        assert uncertain
        assert uncertain == {i for i in handed_over if not messages[i]["otp"]}
    for request in load.requests:
        if request.status is not None and request.status >= 500:
            assert request.answer["code"] in {
                "shutting_down",
                "otp_undeliverable",
                "express_guarantee_unavailable",
                "not_ready",
            }, request.answer
    audit = gateway.cli("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    print(f"\nSIGTERM: {len(accepted)} accepted, {dict(statuses)}")


def test_a_second_signal_does_no_harm(served: Start, tmp_path: Path) -> None:
    environ = environ_of(tmp_path / "journal", SMSGW_SERVER__SHUTDOWN_S="1")
    gateway = served(environ)
    load = Load(gateway.port, 2)
    with load.running():
        load.answered(20)
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(25) == 0
    assert gateway.cli("audit").returncode == 0


def test_a_pause_survives_a_kill(served: Start, tmp_path: Path) -> None:
    environ = environ_of(tmp_path / "journal")
    gateway = served(environ)
    assert gateway.cli("pause").returncode == 0
    body = {"client_id": DEMO, "to": DELIVERED, "from": "ACME", "text": "x"}
    status, answer = gateway.request("POST", "/v1/messages", body)
    assert status == 202
    gateway.kill()
    gateway = served(environ)
    status, ready = gateway.request("GET", "/ready")
    assert status == 200
    assert ready["degraded"]
    assert gateway.message(answer["message_id"])["status"] == "QUEUED"
    assert gateway.cli("resume").returncode == 0
    assert gateway.message(answer["message_id"], wait_s=20)["status"] == "DELIVERED"
    assert journal_of(tmp_path / "journal") == {answer["message_id"]: 1}


def test_what_was_accepted_without_an_operator_goes_out_once_there_is_one(
    served: Start, tmp_path: Path
) -> None:
    environ = environ_of(tmp_path / "journal")
    gateway = served({**environ, "SMSGW_PROVIDERS__MOCK__ENABLED": "false"})
    assert gateway.request("GET", "/ready")[0] == 503
    body = {"client_id": DEMO, "to": [DELIVERED] * 120, "from": "ACME", "text": "x"}
    status, answer = gateway.request("POST", "/v1/messages/batch", body)
    assert (status, answer["accepted"]) == (202, 120)
    gateway.kill()
    gateway = served(environ)
    for result in answer["results"]:
        assert gateway.message(result["message_id"], wait_s=20)["status"] == "DELIVERED"
