"""The processes of a benchmark: the gateway, the baseline, the load. Each in one of its own.

They are spawned, not forked, so that none inherits a loop, a thread or an open database; and so
that it works from the one-file executable, too.
"""

import asyncio
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import uvloop

from smsgw import logs
from smsgw.api import server
from smsgw.bench import bare
from smsgw.bench.load import Load, Outcome, Plan
from smsgw.settings import Settings, load

READY_S: Final = 30
_SPAWN: Final = get_context("spawn")


def settings_for(port: int, more: dict[str, dict[str, Any]]) -> Settings:
    """The settings of the gateway under test: a mock operator with receipts, else the defaults."""
    overrides: dict[str, dict[str, Any]] = {
        "server": {"port": port},
        "log": {"level": "error"},
        "providers": {"mock": {"kind": "mock"}},
    }
    for section, values in more.items():
        overrides.setdefault(section, {}).update(values)
    return load(None, {}, overrides)


def _serve(port: int, data: str, more: dict[str, dict[str, Any]], told: Connection) -> None:
    settings = settings_for(port, more)
    logs.setup(settings.log.level)
    begun_s = time.process_time()
    uvloop.run(server.serve(settings, Path(data), dev=False, quiet=True))
    told.send(time.process_time() - begun_s)


def _bare(listener: socket.socket) -> None:
    bare.run(listener)


def _load(plan: dict[str, Any], told: Connection) -> None:
    told.send(asdict(uvloop.run(Load(Plan(**plan)).run())))


class Running:
    """A gateway that runs; its CPU seconds are known once it has ended."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cpu_s = 0.0

    def finals(self) -> int:
        """How many messages have become final since it started."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as page:
            lines = page.read().decode().splitlines()
        prefix = "smsgw_messages_final_total{"
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(prefix))


@contextmanager
def gateway(data: Path, more: dict[str, dict[str, Any]]) -> Iterator[Running]:
    """A gateway in a process of its own, stopped as an operator would stop it."""
    port = _free_port()
    here, there = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_serve, args=(port, str(data), more, there))
    process.start()
    running = Running(port)
    try:
        _await_health(port, process.is_alive)
        yield running
    finally:
        process.terminate()
        if here.poll(40):
            running.cpu_s = here.recv()
        process.join(10)
        if process.is_alive():
            process.kill()


@contextmanager
def baseline() -> Iterator[int]:
    """The bare application in a process of its own; gives its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    port: int = listener.getsockname()[1]
    process = _SPAWN.Process(target=_bare, args=(listener,))
    process.start()
    listener.close()
    try:
        yield port
    finally:
        process.kill()
        process.join()


def load_on(plan: Plan) -> Outcome:
    """Run a plan in a process of its own, to its end."""
    here, there = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_load, args=(asdict(plan), there))
    process.start()
    there.close()
    try:
        return Outcome(**here.recv())
    finally:
        process.join()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _await_health(port: int, alive: Any) -> None:
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s and alive():
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the gateway under test did not start")


def run(work: Any) -> Any:
    """Run a coroutine on a loop like the gateway's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
