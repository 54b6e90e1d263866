"""A tester's eyes: a served gateway seen through its sockets, and what every answer must be."""

import http.client
import json
import re
import socket
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from smsgw.api.sockets import connect_unix
from tests.support import DELIVERED, Served

REFUSED = "+15005550001"
FAILS_ONCE = "+15005550002"
UNDELIVERED = "+15005550003"
NO_RECEIPT = "+15005550004"
SLOW = "+15005550005"
CHATTY = "+15005550007"
FAILS_ALWAYS = "+15005550008"
ANSWER_LOST = "+15005550009"

FINAL = {"DELIVERED", "FAILED_PERM", "EXPIRED", "CANCELLED", "UNKNOWN"}
PROBLEM = {"type", "title", "status", "detail", "code", "error"}
ROW = {
    "id", "client_id", "to", "from", "text", "encoding", "parts", "status", "reason", "cost",
    "charged", "otp", "express", "reference", "batch_id", "provider", "provider_message_id",
    "attempts", "last_error", "created_at", "updated_at", "submitted_at", "final_at", "submit_by",
    "express_missed",
}  # fmt: skip
LOOKS_MAX = 1500
SENTENCE = "OTP delivery failed - operator cannot deliver immediately"

is_time = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z").fullmatch
is_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
is_cursor = re.compile("[A-Za-z0-9_-]+").fullmatch

Given = TypeVar("Given")
Taken = TypeVar("Taken")


def moment(text: str) -> datetime:
    """A time of an answer, which has one form only."""
    assert is_time(text), text
    return datetime.fromisoformat(text)


def ahead(seconds: float) -> str:
    """A time so far from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def code(self) -> str:
        """The code of a problem."""
        assert self.status >= 400, self
        code: str = self.body["code"]
        return code

    @property
    def fields(self) -> list[str]:
        """The fields that an ``invalid_request`` names."""
        assert self.code == "invalid_request", self.body
        return [wrong["field"] for wrong in self.body["fields"]]


def judged(answer: Answer) -> Answer:
    """An answer that is what every answer must be."""
    assert answer.headers.get("x-request-id")
    if answer.status < 400:
        assert "retry-after" not in answer.headers
        return answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.body.keys() >= PROBLEM
    assert answer.body["status"] == answer.status
    for member in ("type", "title", "detail", "code", "error"):
        assert isinstance(answer.body[member], str), answer.body
        assert answer.body[member]
    if answer.code == "otp_undeliverable":
        assert answer.body["error"] == SENTENCE
    else:
        assert answer.body["error"] == answer.body["detail"]
    if answer.code == "invalid_request":
        assert answer.body["fields"]
        assert all(wrong.keys() == {"field", "message"} for wrong in answer.body["fields"])
    retries = answer.status in (429, 503) and answer.code != "otp_undeliverable"
    assert not retries or "retry-after" in answer.headers, answer
    assert answer.code != "otp_undeliverable" or "retry-after" not in answer.headers
    if "retry-after" in answer.headers:
        assert int(answer.headers["retry-after"]) >= 1
    return answer


class Site:
    """One served gateway."""

    def __init__(self, served: Served, journal: Path) -> None:
        self.served = served
        self.journal = journal

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request on the connection that this site keeps; not for threads."""
        answer = Answer(*self.served.exchange(method, path, body, headers))
        return answer if method == "HEAD" else judged(answer)

    def get(self, path: str) -> Any:
        """What is there."""
        answer = self.ask("GET", path)
        assert answer.status == 200, answer
        assert answer.headers["content-type"] == "application/json"
        return answer.body

    def post(self, path: str, body: Any, key: str | None = None) -> Answer:
        """One POST, with an Idempotency-Key if there is one."""
        return self.ask("POST", path, body, {} if key is None else {"Idempotency-Key": key})

    def at_once(self, work: Callable[[Given], Taken], given: Iterable[Given]) -> list[Taken]:
        """Do it for each in a thread of its own, all at the same time."""
        wanted = list(given)
        with ThreadPoolExecutor(len(wanted)) as threads:
            return list(threads.map(work, wanted))

    def alone(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own: from any thread."""
        connection = http.client.HTTPConnection("127.0.0.1", self.served.port, timeout=60)
        try:
            raw = None if body is None else json.dumps(body).encode()
            sent = {"content-type": "application/json"} if raw is not None else {}
            connection.request(method, path, raw, {**sent, **(headers or {})})
            return judged(_answer(connection))
        finally:
            connection.close()

    def raw(self, *blocks: bytes, leave_open: bool = True) -> list[Answer]:
        """What a connection answers to these bytes until it is closed."""
        with socket.create_connection(("127.0.0.1", self.served.port), 30) as connection:
            for block in blocks:
                connection.sendall(block)
            if not leave_open:
                connection.shutdown(socket.SHUT_WR)
            found = b""
            while block := connection.recv(65_536):
                found += block
        return list(_answers(found))

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """What the admin socket says."""
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = connect_unix(self.served.data / "admin.sock", 30)
        try:
            raw = None if body is None else json.dumps(body).encode()
            sent = {"content-type": "application/json"} if raw is not None else {}
            connection.request(method, f"/admin/{path}", raw, sent)
            answer = _answer(connection)
        finally:
            connection.close()
        assert answer.status < 300, answer
        return answer.body

    def client(self, credit: int = 10_000) -> str:
        """A client of its own."""
        identifier = str(uuid.uuid4())
        new = {"name": "Test", "id": identifier, "credit_cents": credit}
        self.admin("POST", "clients", new)
        return identifier

    def pause(self, **what: str) -> None:
        """Nothing, or nothing of that client or operator, is handed over from now on."""
        self.admin("POST", "pause", what)

    def resume(self, **what: str) -> None:
        """It is again."""
        self.admin("POST", "resume", what)

    def message(self, client: str, **more: Any) -> dict[str, Any]:
        """A valid body; what is None is left out."""
        body = {"client_id": client, "to": DELIVERED, "from": "ACME", "text": "hello", **more}
        return {name: value for name, value in body.items() if value is not None}

    def send(self, client: str, *, key: str | None = None, **more: Any) -> Answer:
        """Send a message; ``sender`` stands for ``from``."""
        if "sender" in more:
            more["from"] = more.pop("sender")
        return self.post("/v1/messages", self.message(client, **more), key)

    def sent(self, client: str, **more: Any) -> str:
        """The id of a message that was accepted."""
        answer = self.send(client, **more)
        assert answer.status == 202, answer
        identifier: str = answer.body["message_id"]
        return identifier

    def otp(self, client: str, *, key: str | None = None, **more: Any) -> Answer:
        """Send an OTP; without a text unless one is given."""
        return self.send(client, key=key, **{"text": None, "otp": True, **more})

    def look(self, identifier: str) -> dict[str, Any]:
        """A message as it is."""
        found: dict[str, Any] = self.get(f"/v1/messages/{identifier}")
        return found

    def final(self, identifier: str, wait_s: float = 20) -> dict[str, Any]:
        """A message once it is final."""
        found: dict[str, Any] = self.get(f"/v1/messages/{identifier}?wait_s={wait_s}")
        assert found["status"] in FINAL, found
        return found

    def until(self, identifier: str, status: str, events: int = 0) -> dict[str, Any]:
        """A message as soon as it has that status, and so many events."""
        for _ in range(LOOKS_MAX):
            found = self.look(identifier)
            if found["status"] == status and len(found["events"]) >= events:
                return found
            self.wait(0.01)
        raise AssertionError(found)

    def money(self, client: str) -> tuple[int, int, int]:
        """Available, held, captured."""
        me = self.get(f"/v1/me?client_id={client}")
        return me["credits"], me["held"], me["charged"]

    def pages(self, path: str, limit: int, between: Callable[[], object] = lambda: None) -> Any:
        """All rows of a list, page by page."""
        rows, cursor = [], ""
        while True:
            page = self.get(f"{path}&limit={limit}{cursor}")
            assert page.keys() == {"data", "next_cursor"}
            assert len(page["data"]) <= limit
            rows += page["data"]
            if page["next_cursor"] is None:
                return rows
            assert is_cursor(page["next_cursor"])
            assert page["data"]
            cursor = f"&cursor={page['next_cursor']}"
            between()

    def statement(self, client: str) -> list[dict[str, Any]]:
        """All ledger entries, newest first."""
        rows: list[dict[str, Any]] = self.pages(f"/v1/me/statement?client_id={client}", 500)
        return rows

    def handsets(self, to: str, wait_s: float = 0) -> list[dict[str, Any]]:
        """What a number has received."""
        path = f"/v1/sandbox/messages?to=%2B{to[1:]}&wait_s={wait_s}"
        rows: list[dict[str, Any]] = self.get(path)["data"]
        return rows

    def wait(self, seconds: float) -> None:
        """Let time pass on the server, which waits for a message that nobody sends."""
        assert self.handsets("+999999999999999", seconds) == []

    def journal_of(self, identifier: str) -> list[dict[str, Any]]:
        """What left for the operator."""
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [line for line in lines if line["message_id"] == identifier]

    def audit(self) -> None:
        """Every sum and every hold is right."""
        proof = self.admin("GET", "audit")
        assert proof["clean"], proof["findings"]


def new_number() -> str:
    """A number that is delivered to, and that no other test uses."""
    return f"+98{uuid.uuid4().int % 10**10:010d}"


def columns(rows: Sequence[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """Some members of each row."""
    return [tuple(row[name] for name in names) for row in rows]


def _answer(connection: http.client.HTTPConnection) -> Answer:
    answer = connection.getresponse()
    return _parsed(answer.status, answer.getheaders(), answer.read())


def _parsed(status: int, fields: Iterable[tuple[str, str]], content: bytes) -> Answer:
    headers = {name.lower(): value for name, value in fields}
    if "json" in headers.get("content-type", "") and content:
        return Answer(status, headers, json.loads(content))
    return Answer(status, headers, content.decode() if content else None)


def _answers(data: bytes) -> Iterable[Answer]:
    """All whole answers in what a connection gave; nothing may be left over."""
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status_line, *lines = head.decode().split("\r\n")
        fields = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
        length = int(dict(fields).get("content-length", 0))
        assert len(data) >= length
        yield judged(_parsed(int(status_line.split()[1]), fields, data[:length]))
        data = data[length:]
