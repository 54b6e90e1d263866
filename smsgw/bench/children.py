"""The servers of a benchmark, the gateway and the bare one, and what is sent to them."""

import asyncio
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import uvloop

from smsgw import logs
from smsgw.api import server
from smsgw.bench import bare, load
from smsgw.bench.load import Outcome, Plan
from smsgw.bench.processes import (
    ANSWER_S,
    Spoiled,
    ask_about,
    in_child,
    spawned,
    tell_about_ourselves,
)
from smsgw.settings import Settings
from smsgw.settings import load as load_settings

READY_S: Final = 30.0
READ_PER_S: Final = 20_000
"""Messages a second that even a slow machine looks at when it starts."""
STOP_S: Final = 40.0
LAST_ANSWERS_S: Final = 60.0
LOOK_S: Final = 0.05

Overrides = dict[str, dict[str, Any]]


def settings_for(port: int, more: Overrides) -> Settings:
    """The settings of the gateway under test: a mock operator with receipts, else the defaults."""
    overrides: Overrides = {
        "server": {"port": port},
        "log": {"level": "error"},
        "providers": {"mock": {"kind": "mock"}},
    }
    for section, values in more.items():
        overrides[section] = {**overrides.get(section, {}), **values}
    return load_settings(None, {}, overrides)


def run(work: Any) -> Any:
    """Run a coroutine on a loop like the gateway's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


class Running:
    """A server in a process of its own."""

    def __init__(self, port: int, line: "Connection[Any, Any]") -> None:
        self.port = port
        self._line = line

    def cpu_s(self) -> float:
        """The CPU seconds it has used so far."""
        return ask_about(self._line)[0]

    def resident_mb(self) -> float:
        """How much memory it has."""
        return ask_about(self._line)[1] / 1e6

    def finals(self) -> int:
        """How many messages have become final since it started; for a gateway."""
        page = self._get("/metrics").decode()
        return _added_up(page, "smsgw_messages_final_total{")

    def round_trips(self) -> int:
        """How often it has called a database server; for a gateway."""
        return _added_up(self._get("/metrics").decode(), "smsgw_postgres_round_trips_total ")

    def await_finals(self, wanted: int, limit_s: float) -> None:
        """Return once so many messages are final.

        Raises:
            Spoiled: they are not, in time.
        """
        await_finals([self], wanted, limit_s)

    def await_health(self, alive: Callable[[], bool], limit_s: float) -> None:
        """Return once it answers.

        Raises:
            Spoiled: it has ended, or does not answer in time.
        """
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            if not alive():
                raise Spoiled("the gateway under test ended while it started")
            try:
                self._get("/health")
            except Spoiled:
                time.sleep(LOOK_S)
            else:
                return
        raise Spoiled(f"the gateway under test did not start within {limit_s:.0f} s")

    def _get(self, path: str) -> bytes:
        where = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(where, timeout=ANSWER_S) as answer:
                content: bytes = answer.read()
        except (urllib.error.URLError, OSError) as error:
            raise Spoiled(f"the server did not answer: {error}") from error
        return content


def _added_up(page: str, prefix: str) -> int:
    """The values of some lines of a page of metrics."""
    return sum(
        int(float(line.rsplit(" ", 1)[1])) for line in page.splitlines() if line.startswith(prefix)
    )


def await_finals(gateways: Sequence[Running], wanted: int, limit_s: float) -> None:
    """Return once so many messages are final, whichever of some gateways has ended them.

    Raises:
        Spoiled: they are not, in time.
    """
    deadline_s = time.monotonic() + limit_s
    while (found := sum(one.finals() for one in gateways)) < wanted:
        if time.monotonic() > deadline_s:
            raise Spoiled(f"{wanted - found} messages were unfinished after {limit_s:.0f} s")
        time.sleep(LOOK_S)


@contextmanager
def gateway(data: Path, more: Overrides, messages: int = 0) -> Iterator[Running]:
    """A gateway in a process of its own, stopped as an operator would stop it.

    Args:
        data: its data directory.
        more: settings that are not the default.
        messages: about how many are stored, for how long it may take to start.

    Raises:
        Spoiled: it did not start, or not stop, as it should.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    with spawned(_serve, port, str(data), more) as (process, line):
        running = Running(port, line)
        try:
            running.await_health(process.is_alive, READY_S + messages / READ_PER_S)
            yield running
        finally:
            process.terminate()
            process.join(STOP_S)
        if process.exitcode != 0:
            raise Spoiled(f"the gateway did not stop as it should: {process.exitcode}")


def _serve(line: "Connection[Any, Any]", port: int, data: str, more: Overrides) -> None:
    tell_about_ourselves(line)
    settings = settings_for(port, more)
    logs.setup(settings.log.level)
    uvloop.run(server.serve(settings, Path(data), dev=False, quiet=True))


@contextmanager
def baseline() -> Iterator[Running]:
    """The bare application in a process of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        port: int = listener.getsockname()[1]
        with spawned(bare.serve, listener) as (_, line):
            listener.close()
            yield Running(port, line)


def load_on(
    running: Running, *plans: Plan, watch: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Run plans side by side against a server, all in one other process, to their ends.

    Args:
        running: the server.
        plans: what to send.
        watch: called a few times a second meanwhile.

    Raises:
        Spoiled: the last answers did not come in time.
    """
    return load_each([replace(plan, port=running.port) for plan in plans], watch=watch)


def load_each(plans: Sequence[Plan], *, watch: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Run plans side by side, each against the server that it names, in one other process.

    Args:
        plans: what to send, and where.
        watch: called a few times a second meanwhile.

    Raises:
        Spoiled: the last answers did not come in time.
    """
    limit_s = max(plan.seconds for plan in plans) + LAST_ANSWERS_S
    return in_child(load.run, list(plans), limit_s=limit_s, watch=watch)
