"""A served gateway and an SMSC, each in a process of its own; either dies, or lies, under load.

The SMSC writes down every submit_sm before anything else happens to it: what is in its journal has
reached an operator, whatever became of the answer.
"""

import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import DEMO, Served, clean_environment
from tests.test_kill import FINAL, listed

KILLS = int(os.environ.get("SMSGW_TEST_SMPP_KILLS", "3"))
"""More of them for a long look."""
CODES = 150
LONG = "all work and no play makes a dull message " * 8
"""Three parts, each of them another text."""
INTERRUPTED = "the gateway was interrupted while sending"
Start = Callable[..., Served]


class Operator:
    """An SMSC in a process of its own, which can die and come back on the same port."""

    def __init__(self, journal: Path, *options: str) -> None:
        self.port = 0
        self._journal = journal
        self._options = options
        self.start()

    def start(self) -> None:
        command = ["-m", "tests.smsc", "--port", str(self.port), "--journal", str(self._journal)]
        self._process = subprocess.Popen(
            [sys.executable, *command, *self._options],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            env=clean_environment(),
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline().rsplit(":", 1)[1])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def submits(self) -> list[dict[str, Any]]:
        """What it was handed; the last line may be torn."""
        lines = self._journal.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def environ(self, **more: str) -> dict[str, str]:
        """The settings of a gateway that has no other operator."""
        own = {
            "KIND": "smpp",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "SYSTEM_ID": "esme",
            "BINDS": "2",
            "WINDOW": "40",
            "BREAKER_OPEN_S": "0.1",
            "RESPONSE_TIMEOUT_S": "2",
            "RECONNECT_MIN_S": "0.01",
            "RECONNECT_MAX_S": "0.05",
            "UNBIND_TIMEOUT_S": "0.3",
        }
        return {
            "SMSGW_DEV__ALLOW_PROVIDERS": "true",
            "SMSGW_PROVIDERS__MOCK__ENABLED": "false",
            "SMSGW_DELIVERY__ATTEMPTS_MAX": "20",
            "SMSGW_DELIVERY__RETRY_BASE_S": "0.05",
            "SMSGW_DELIVERY__UNCERTAIN_S": "2",
            "SMSGW_DELIVERY__RECEIPT_TIMEOUT_S": "6",
            "SMSGW_LOG__LEVEL": "error",
            **{f"SMSGW_PROVIDERS__OP__{key}": value for key, value in own.items()},
            **more,
        }


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    started: list[Operator] = []

    def start(*options: str) -> Operator:
        started.append(Operator(tmp_path / "submits.jsonl", *options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@dataclass
class Senders:
    """Threads that post, each message to a number of its own, until there is nobody to post to."""

    numbers: Iterator[int]
    parts: Counter[str] = field(default_factory=Counter)
    """How many parts were asked for, by number."""
    accepted: dict[str, str] = field(default_factory=dict)
    """The numbers of messages whose acceptance was read, by id."""
    enough: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def at(self, port: int, threads: int = 3) -> Iterator[None]:
        """Post to a gateway meanwhile."""
        self.enough.clear()
        running = [threading.Thread(target=self._post, args=(port,)) for _ in range(threads)]
        for thread in running:
            thread.start()
        try:
            yield
        finally:
            self.enough.set()
            for thread in running:
                thread.join(60)

    def _post(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            while not self.enough.is_set():
                self._batch(connection)
        except (http.client.HTTPException, OSError, ValueError):
            pass
        finally:
            connection.close()

    def _batch(self, connection: http.client.HTTPConnection) -> None:
        to = [f"+1555{next(self.numbers):07d}" for _ in range(10)]
        text = LONG if to[0].endswith("0") and int(to[0][-2]) % 2 else "hello"
        self.parts.update(dict.fromkeys(to, 3 if text is LONG else 1))
        body = {"client_id": DEMO, "from": "ACME", "to": to, "text": text}
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/messages/batch", json.dumps(body), headers)
        answer = connection.getresponse()
        document = json.loads(answer.read())
        assert answer.status == 202, document
        for number, result in zip(to, document["results"], strict=True):
            self.accepted[result["message_id"]] = number


def wait_for(condition: Callable[[], bool], beside: threading.Event) -> None:
    """Look a few times a second, for half a minute."""
    for _ in range(600):
        if condition() or beside.wait(0.05):
            return
    raise AssertionError("it does not come to that")


def finished(gateway: Served) -> dict[str, dict[str, Any]]:
    """Every message, once all are final; one that is stuck is a failure."""
    end_s = time.monotonic() + 30
    while True:
        messages = listed(gateway, DEMO)
        left = [row for row in messages.values() if row["status"] not in FINAL]
        if not left:
            return messages
        assert time.monotonic() < end_s, left[:5]
        gateway.message(left[0]["id"], wait_s=5)


def proved(gateway: Served) -> None:
    audit = gateway.cli("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr


def each_ended_once(
    senders: Senders, messages: dict[str, dict[str, Any]], handed: Counter[tuple[str, str]]
) -> None:
    """Nothing accepted is lost, only what arrived is paid for, and nothing came from nowhere."""
    assert senders.accepted.keys() <= messages.keys()
    parts_of = Counter(number for number, _ in handed)
    rows = {row["to"]: row for row in messages.values()}
    assert len(rows) == len(messages)
    assert parts_of.keys() <= {number.removeprefix("+") for number in rows}
    for number, row in rows.items():
        delivered = row["status"] == "DELIVERED"
        assert row["charged"] == (row["cost"] if delivered else 0), row
        if delivered:
            assert parts_of[number.removeprefix("+")] == senders.parts[number], row


@pytest.mark.timeout(120 + 5 * KILLS)
@pytest.mark.parametrize("policy", ["wait", "resend", "fail"])
def test_killed_while_answers_are_under_way_it_keeps_what_its_policy_promises(
    served: Start, operator: Callable[..., Operator], policy: str
) -> None:
    smsc = operator("--answer-after-s", "0.05", "--receipt-after-s", "0.08")
    environ = smsc.environ(SMSGW_DELIVERY__ON_UNCERTAIN=policy)
    senders = Senders(itertools.count())
    gateway = served(environ)
    for _ in range(KILLS):
        seen = len(smsc.submits())
        with senders.at(gateway.port):
            wait_for(lambda: len(smsc.submits()) > seen + 60, senders.enough)  # noqa: B023
            gateway.process.send_signal(signal.SIGKILL)
            gateway.process.wait(10)
        gateway.kill()
        gateway = served(environ)
    messages = finished(gateway)
    handed = Counter((one["to"], one["data"]) for one in smsc.submits())
    each_ended_once(senders, messages, handed)
    ended = Counter(row["status"] for row in messages.values())
    twice = sum(count > 1 for count in handed.values())
    uncertain = sum(row["last_error"] == INTERRUPTED for row in messages.values())
    if policy == "resend":
        # At least once, however often it was interrupted, and charged once.
        assert set(ended) == {"DELIVERED"}
        assert 0 < twice <= 40 * KILLS
    else:
        assert twice == 0
        assert set(ended) <= {"DELIVERED", "UNKNOWN"}
        # What is in doubt after a crash is no more than the window.
        assert ended["UNKNOWN"] <= 40 * KILLS
    if policy == "wait":
        # Receipts come to light whose answers were lost, and only they can tell.
        assert uncertain > 0
        assert ended["UNKNOWN"] < uncertain
    if policy == "fail":
        assert ended["UNKNOWN"] > 0
    proved(gateway)
    assert gateway.stop() == 0
    print(
        f"\n{policy}: {KILLS} kills, {len(senders.accepted)} accepted of {len(messages)}, "
        f"{sum(handed.values())} submits, {twice} parts twice, {uncertain} uncertain, {dict(ended)}"
    )


@pytest.mark.timeout(120)
def test_a_link_that_flaps_loses_nothing_and_charges_nothing_twice(
    served: Start, operator: Callable[..., Operator]
) -> None:
    smsc = operator("--reset-every", "45")
    senders = Senders(itertools.count())
    gateway = served(smsc.environ(SMSGW_DELIVERY__RECEIPT_TIMEOUT_S="3"))
    with senders.at(gateway.port, threads=1):
        wait_for(lambda: len(smsc.submits()) > 400, senders.enough)
        # It dies with the receipts that it owes, and comes back.
        smsc.kill()
        smsc.start()
        wait_for(lambda: len(smsc.submits()) > 800, senders.enough)
    messages = finished(gateway)
    handed = Counter((one["to"], one["data"]) for one in smsc.submits())
    each_ended_once(senders, messages, handed)
    assert set(handed.values()) == {1}
    ended = Counter(row["status"] for row in messages.values())
    assert set(ended) <= {"DELIVERED", "UNKNOWN"}
    assert ended["DELIVERED"] > ended["UNKNOWN"]
    proved(gateway)
    assert gateway.stop() == 0
    print(f"\nflapping: {len(senders.accepted)} accepted, {dict(ended)}")


@dataclass
class Code:
    """A one-time code that was asked for, what the answer was, and when it was read."""

    to: str
    status: int
    answer: Any
    at_s: float


def ask_for_codes(port: int, numbers: list[str], found: list[Code]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number in numbers:
        body = {"client_id": DEMO, "from": "ACME", "to": number, "otp": True}
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/messages", json.dumps(body), headers)
        answer = connection.getresponse()
        document = json.loads(answer.read())
        found.append(Code(number, answer.status, document, time.time()))
    connection.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("capture_on", ["delivered", "sent"])
def test_codes_contradict_nothing_whatever_the_operator_does(
    served: Start, operator: Callable[..., Operator], capture_on: str
) -> None:
    """It answers late, twice over, to somebody else, or not; it lies, hangs up, and dies."""
    smsc = operator("--hostile-s", "0.3")
    more = {
        "SMSGW_BILLING__CAPTURE_ON": capture_on,
        "SMSGW_OTP__DEADLINE_MS": "150",
        "SMSGW_DELIVERY__RECEIPT_TIMEOUT_S": "1",
    }
    gateway = served(smsc.environ(**more))
    numbers = [f"+1555{number:07d}" for number in range(CODES)]
    random.Random(capture_on).shuffle(numbers)
    found: list[Code] = []
    threads = [
        threading.Thread(target=ask_for_codes, args=(gateway.port, numbers[first::5], found))
        for first in range(5)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(found) > CODES // 2, threading.Event())
    smsc.kill()
    smsc.start()
    for thread in threads:
        thread.join(60)
    messages = {row["to"]: row for row in finished(gateway).values()}
    submits = {f"+{one['to']}": one["at_s"] for one in smsc.submits()}
    assert len(submits) == len(smsc.submits())
    assert len(found) == CODES
    for code in found:
        row = messages.get(code.to)
        if code.status == 200:
            assert row is not None
            paid = capture_on == "sent" or row["status"] == "DELIVERED"
            assert row["charged"] == (row["cost"] if paid else 0), row
            assert code.to in submits
        else:
            assert (code.status, code.answer["code"]) == (503, "otp_undeliverable"), code
            assert row is None or (row["charged"], row["status"]) != (row["cost"], "DELIVERED")
            assert row is None or row["charged"] == 0, row
            # Nothing leaves once its caller has been told no.
            assert submits.get(code.to, 0.0) <= code.at_s, code
            assert code.answer["submitted"] or code.to not in submits, code
    answers = Counter(code.status for code in found)
    assert min(answers[200], answers[503]) > CODES // 10
    proved(gateway)
    assert gateway.stop() == 0
    print(f"\ncodes, {capture_on}: {dict(answers)}, contradictions 0")
