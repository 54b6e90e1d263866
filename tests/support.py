"""What many tests need: clients with credit, a gateway in this process, a served one to talk to."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smsgw.accounts import AddClient
from smsgw.admission import Accepted, BatchProgress, KeyUse, Replay
from smsgw.clock import Clock
from smsgw.entrance import Wish
from smsgw.gateway import Gateway
from smsgw.models import Account, Lane, Message, Outcome, Verdict
from smsgw.operators import ProviderSettings
from smsgw.providers.base import Accepted as Restored
from smsgw.providers.base import Sink, Submission
from smsgw.settings import load, with_dev
from smsgw.store.shard import Shard
from smsgw.sweeper import Sweeper
from smsgw.turn import Write

DEMO = "550e8400-e29b-41d4-a716-446655440000"
DELIVERED = "+15005550006"


async def open_gateway(
    data: Path,
    overrides: dict[str, dict[str, Any]] | None = None,
    clock: Clock | None = None,
    *,
    serve: bool = True,
) -> Gateway:
    """A gateway with the mock operator, on real files."""
    settings = with_dev(load(None, {}, overrides or {}))
    gateway = await Gateway.open(settings, data, purpose="test", dev=True, clock=clock)
    if serve:
        await gateway.serve()
    return gateway


async def add_client(gateway: Gateway, credit_cents: int = 1000, weight: int = 1) -> bytes:
    """A new client's id."""
    client_id = uuid.uuid4().bytes
    request = AddClient(client_id, "test", weight, credit_cents)
    await gateway.shards.of_client(client_id).ask(request)
    return client_id


async def send(
    gateway: Gateway,
    client_id: bytes,
    to: str = DELIVERED,
    text: str = "hello",
    *,
    lane: Lane = Lane.REGULAR,
    key: KeyUse | None = None,
    **more: Any,
) -> Accepted | Replay:
    """Accept a message."""
    draft = gateway.entrance.draft(Wish(to, "ACME", text, lane, **more))
    return await gateway.entrance.submit(client_id, draft, key)


async def send_batch(
    gateway: Gateway, client_id: bytes, wishes: Sequence[Wish], key: KeyUse | None = None
) -> BatchProgress | Replay:
    """Accept many messages."""
    drafts = [gateway.entrance.draft(wish) for wish in wishes]
    return await gateway.entrance.submit_batch(client_id, drafts, key)


async def still(gateway: Gateway) -> None:
    """Leave sweeping to the test: it calls ``sweep`` of ``gateway._sweepers`` when it likes."""
    for sweeper in gateway._sweepers:
        sweeper.stop()
    await asyncio.wait([task for task in gateway._beside if task.get_name() == "sweeper"])
    for sweeper in gateway._sweepers:
        sweeper._stopped.clear()


async def serve_still(gateway: Gateway) -> None:
    """Serve, and leave sweeping to the test from the first moment."""
    made = gateway._sweeper

    def stopped(shard: Shard) -> Sweeper:
        sweeper = made(shard)
        sweeper.stop()
        return sweeper

    gateway._sweeper = stopped  # type: ignore[method-assign]
    await gateway.serve()
    await still(gateway)


async def sweep(gateway: Gateway) -> None:
    """One round of every sweeper."""
    for sweeper in gateway._sweepers:
        await sweeper.sweep()


async def flushed(gateway: Gateway) -> None:
    """Return once everything put into the shards so far is on disk."""
    # Twice: what is decided may lead to something more.
    for _ in range(2):
        await gateway.receipts.drain()
        for shard in gateway.shards:
            await shard.ask(Write())


class Scripted:
    """An operator that holds what it is given until the test answers."""

    trouble: str | None = None
    warning: str | None = None

    def __init__(self, name: str = "mock") -> None:
        self.name = name
        self.held: list[Submission] = []
        self.count = 0
        self.restored: list[Restored] = []
        self.cancelled: list[tuple[Submission, str]] = []
        self._arrived = asyncio.Event()
        self._sink: Sink | None = None

    async def start(self, sink: Sink) -> None:
        self._sink = sink

    def submit(self, submission: Submission) -> None:
        self.held.append(submission)
        self.count += 1
        self._arrived.set()

    def cancel(self, submission: Submission, provider_message_id: str) -> bool:
        self.cancelled.append((submission, provider_message_id))
        return True

    def withdraw(self, submission: Submission) -> None:
        pass

    def restore(self, accepted: Sequence[Restored]) -> None:
        self.restored += accepted

    def follow(self, settings: ProviderSettings) -> None:
        pass

    def asks_again(self) -> bool:
        return False

    async def stop(self) -> None:
        pass

    async def next(self) -> Submission:
        """The oldest submit that is held, to be answered."""
        while not self.held:
            self._arrived.clear()
            await self._arrived.wait()
        return self.held.pop(0)

    def answer(self, submission: Submission, verdict: Verdict, **more: Any) -> None:
        """Answer a submit."""
        self.settle(submission, Outcome(verdict, **more))

    def settle(self, submission: Submission, outcome: Outcome) -> None:
        """Answer a submit with all that is known."""
        assert self._sink is not None
        self._sink.settled(self.name, submission, outcome)

    def accept(self, submission: Submission, identifier: str | None = "1") -> None:
        """Accept a submit under an id."""
        self.answer(submission, Verdict.ACCEPTED, provider_message_id=identifier)

    def receipt(self, identifier: str, word: str = "DELIVRD") -> None:
        """Report on a message."""
        assert self._sink is not None
        self._sink.received(self.name, identifier, word, None)


async def crash(gateway: Gateway) -> None:
    """End a gateway as a killed process would: what is on disk stays, nothing more is written."""
    gateway.serving = False
    left = gateway.receipts._tasks | gateway.otp._tasks
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await gateway.close()


async def account_of(gateway: Gateway, client_id: bytes) -> Account:
    """A client's account as it is on disk."""
    rows = await gateway.shards.of_client(client_id).store.read("client_by_id", client_id)
    return Account(*rows[0])


async def message_of(gateway: Gateway, message: Message) -> Message:
    """A message as it is on disk."""
    rows = await gateway.shards.of_message(message.id).store.read("get_message", message.number)
    return Message(*rows[0])


async def final_of(gateway: Gateway, message: Message) -> Message:
    """A message once it is final; a test's own time limit ends a wait in vain."""
    shard = gateway.shards.of_message(message.id)
    watch = shard.watch(message.number)
    try:
        now = await message_of(gateway, message)
        if not now.is_final:
            await watch
        return await message_of(gateway, message)
    finally:
        shard.unwatch(message.number, watch)


async def assert_clean(gateway: Gateway) -> None:
    """The audit finds nothing."""
    for shard in gateway.shards:
        proof = await shard.store.audit()
        assert not proof.findings, proof.findings


class Served:
    """``smsgw serve --dev``, or without, in a process of its own."""

    def __init__(self, data: Path, environ: dict[str, str], *, dev: bool = True) -> None:
        self.data = data
        command = [sys.executable, "-m", "smsgw", "--data", str(data), "serve", "--port", "0"]
        with (data.parent / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *(["--dev"] if dev else [])],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**clean_environment(), **environ},
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "serves on" in line, (data.parent / "serve.log").read_text()[-4000:]
        self.port = int(line.rsplit(":", 1)[1])
        self._connection: http.client.HTTPConnection | None = None

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """One request: status and parsed body (text where it is no JSON, None where empty)."""
        status, _, content = self.exchange(method, path, body, headers)
        return status, content

    def exchange(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """The same, with the answer's headers in lower case."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if raw is not None else {}
        try:
            self._connection.request(method, path, raw, {**sent, **(headers or {})})
            answer = self._connection.getresponse()
            content = answer.read()
        except (http.client.HTTPException, OSError):
            self._connection.close()
            self._connection = None
            raise
        found = {name.lower(): value for name, value in answer.getheaders()}
        if content and "json" in found.get("content-type", ""):
            return answer.status, found, json.loads(content)
        return answer.status, found, content.decode() if content else None

    def message(self, identifier: str, wait_s: float = 0) -> dict[str, Any]:
        """A message, once it is final or the time is over."""
        status, found = self.request("GET", f"/v1/messages/{identifier}?wait_s={wait_s}")
        assert status == 200, found
        assert isinstance(found, dict)
        return found

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command on the same data directory."""
        return smsgw("--data", str(self.data), *arguments)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(40)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def smsgw(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "smsgw", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**clean_environment(), **environ},
    )


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SMSGW_")}
