"""``smsgw bench line``: messages finished a second, beside the bare baseline, in one run.

Finished means that the money of the message is captured on disk; a round counts only the messages
it accepted, until the last of them is finished, and ends with the audit.
"""

import asyncio
import os
import platform
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from smsgw import __version__
from smsgw.accounts import AddClient
from smsgw.bench import children
from smsgw.bench.load import Plan
from smsgw.gateway import Gateway

CREDIT_CENTS: Final = 10**12
FINISH_S: Final = 120
GENERATOR_BOUND: Final = 0.9
_AT_ONCE: Final = 500
_FSYNCS: Final = 100


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    libraries = ("starlette", "uvicorn", "pydantic", "aiosqlite", "uvloop", "httptools")
    return {
        "smsgw": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "cores": os.cpu_count(),
        **{name: version(name) for name in libraries},
    }


def fsync_p50_ms(folder: Path) -> float:
    """How long this disk takes to flush a page, at the median."""
    took = []
    descriptor = os.open(folder / "fsync", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(_FSYNCS):
            os.pwrite(descriptor, b"x" * 4096, 0)
            begun_s = time.perf_counter()
            os.fsync(descriptor)
            took.append(time.perf_counter() - begun_s)
    finally:
        os.close(descriptor)
    return statistics.median(took) * 1000


async def _prepare(data: Path, clients: list[bytes]) -> None:
    gateway = await Gateway.open(children.settings_for(0, {}), data, purpose="bench")
    try:
        for first in range(0, len(clients), _AT_ONCE):
            some = clients[first : first + _AT_ONCE]
            await asyncio.gather(
                *(
                    gateway.shards.of_client(client).ask(
                        AddClient(client, "bench", 1, CREDIT_CENTS)
                    )
                    for client in some
                )
            )
    finally:
        await gateway.close()


async def _findings(data: Path) -> list[str]:
    gateway = await Gateway.open(children.settings_for(0, {}), data, purpose="bench audit")
    try:
        proofs = [await shard.store.audit() for shard in gateway.shards]
    finally:
        await gateway.close()
    return [finding.sentence for proof in proofs for finding in proof.findings]


def measure(
    *,
    seconds: float,
    rounds: int,
    connections: int,
    clients: int,
    batch: int,
    step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure the line.

    Args:
        seconds: how long the load of a round lasts.
        rounds: how many rounds, each with a baseline of its own.
        connections: how many connections load at a time.
        clients: how many clients there are; which one sends is Zipf-distributed.
        batch: messages a request through the batch route; 0 for the single route.
        step: told what is being done.

    Returns:
        The machine, every round, and the medians.

    Raises:
        RuntimeError: the audit of a round found something, or messages were left unfinished.
    """
    ids = [uuid.uuid4() for _ in range(clients)]
    found = []
    for number in range(1, rounds + 1):
        with tempfile.TemporaryDirectory(prefix="smsgw-bench-") as folder:
            data = Path(folder) / "data"
            step(f"round {number} of {rounds}: preparing {clients} clients")
            children.run(_prepare(data, [client.bytes for client in ids]))
            plan = Plan(
                port=0,
                clients=[str(client) for client in ids],
                seconds=seconds,
                connections=connections,
                batch=batch,
                seed=number,
            )
            step(f"round {number} of {rounds}: baseline")
            one = {"fsync_p50_ms": round(fsync_p50_ms(Path(folder)), 3), **_baseline(plan)}
            step(f"round {number} of {rounds}: gateway")
            one |= _line(plan, data)
            one["ratio"] = round(one["finished_per_s"] / one["bare_per_s"], 3)
            step(f"round {number} of {rounds}: audit")
            if findings := children.run(_findings(data)):
                raise RuntimeError(f"the audit found: {findings[0]}")
            found.append(one)
    return {
        "bench": "line",
        "batch": batch,
        "machine": machine(),
        "rounds": found,
        "median": {
            name: round(statistics.median(one[name] for one in found), 3) for name in found[0]
        },
    }


def _baseline(plan: Plan) -> dict[str, Any]:
    with children.baseline() as port:
        outcome = children.load_on(replace(plan, port=port, batch=0, seconds=plan.seconds / 2))
    return {
        "bare_per_s": round(outcome.answers / outcome.seconds),
        "bare_load_cpu": round(outcome.cpu_s / outcome.seconds, 2),
    }


def _line(plan: Plan, data: Path) -> dict[str, Any]:
    with children.gateway(data, {}) as running:
        begun_s = time.perf_counter()
        outcome = children.load_on(replace(plan, port=running.port))
        at_end = running.finals()
        deadline_s = time.perf_counter() + FINISH_S
        while running.finals() < outcome.messages:
            if time.perf_counter() > deadline_s:
                raise RuntimeError(f"{outcome.messages - running.finals()} messages unfinished")
            time.sleep(0.02)
        spent_s = time.perf_counter() - begun_s
    if outcome.statuses.keys() - {"202"}:
        raise RuntimeError(f"answers other than 202: {outcome.statuses}")
    return {
        "finished_per_s": round(outcome.messages / spent_s),
        "accepted_per_s": round(outcome.messages / outcome.seconds),
        "unfinished_at_end": outcome.messages - at_end,
        "accept_p50_ms": round(outcome.p50_ms, 1),
        "accept_p99_ms": round(outcome.p99_ms, 1),
        "accept_max_ms": round(outcome.max_ms, 1),
        "gateway_cpu": round(running.cpu_s / spent_s, 2),
        "load_cpu": round(outcome.cpu_s / outcome.seconds, 2),
    }
