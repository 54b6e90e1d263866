"""The ground a benchmark stands on: a directory, clients with credit, a baseline, a proof.

Every benchmark works in a temporary directory that is gone when it ends, however it ends; beside
each of its rounds stand what the bare application does with the same load, and how long the disk
takes to flush; and every run ends with the audit.
"""

import asyncio
import os
import shutil
import signal
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from smsgw.accounts import AddClient
from smsgw.bench import children
from smsgw.bench.load import Plan
from smsgw.bench.processes import Spoiled, in_child
from smsgw.bench.results import quantile
from smsgw.gateway import Gateway
from smsgw.ids import slot_of
from smsgw.store.directory import is_volatile

CREDIT_CENTS: Final = 10**12
PREPARE_S: Final = 120.0
AUDIT_S: Final = 60.0
AUDITED_PER_S: Final = 5_000
"""Messages a second that even a slow machine proves."""
BARE_S_MAX: Final = 4.0
_AT_ONCE: Final = 500
_FSYNCS: Final = 100


@contextmanager
def bounded(limit_s: float) -> Iterator[None]:
    """Give up after some time, and end in good order also when told to terminate.

    Raises:
        Spoiled: the time is over.
    """

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise Spoiled(f"it has taken longer than {limit_s / 60:g} minutes")

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        signal.SIGALRM: signal.signal(signal.SIGALRM, give_up),
        signal.SIGTERM: signal.signal(signal.SIGTERM, leave),
    }
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ground(needs_bytes: int = 0) -> Iterator[Path]:
    """A temporary directory, on a disk with enough room.

    Raises:
        Spoiled: there is not enough room.
    """
    with tempfile.TemporaryDirectory(prefix="smsgw-bench-") as folder:
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < needs_bytes:
            raise Spoiled(
                f"{needs_bytes / 1e9:.1f} GB are needed in {tempfile.gettempdir()}, and "
                f"{free_bytes / 1e9:.1f} are free; TMPDIR can name another place"
            )
        yield Path(folder)


def under(where: str, step: Callable[[str], None]) -> Callable[[str], None]:
    """Tell the steps of a part of something."""
    return lambda what: step(f"{where}: {what}")


def marks_of(folder: Path) -> list[str]:
    """What is doubtful about the place itself."""
    if is_volatile(folder):
        return ["the temporary directory is in memory, nothing is flushed: set TMPDIR"]
    return []


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


def new_ids(count: int, shards: Sequence[int] = (), homes: Sequence[int] = ()) -> list[bytes]:
    """Ids for new clients.

    Args:
        count: how many.
        shards: those in which they must live; empty for any.
        homes: the shard of each slot, where that matters.
    """
    found: list[bytes] = []
    while len(found) < count:
        identifier = uuid.uuid4().bytes
        if not shards or homes[slot_of(identifier)] in shards:
            found.append(identifier)
    return found


def texts(ids: Sequence[bytes]) -> list[str]:
    """Ids as clients write them."""
    return [str(uuid.UUID(bytes=identifier)) for identifier in ids]


def make_store(
    data: Path, clients: Sequence[bytes] = (), more: children.Overrides | None = None
) -> list[int]:
    """Make a data directory, or open it, and add clients.

    Args:
        data: the directory.
        clients: their ids.
        more: settings that are not the default.

    Returns:
        The shard of each slot.
    """
    homes: list[int] = children.run(_make_store(data, clients, more or {}))
    return homes


async def _make_store(data: Path, clients: Sequence[bytes], more: children.Overrides) -> list[int]:
    async with asyncio.timeout(PREPARE_S):
        gateway = await Gateway.open(children.settings_for(0, more), data, purpose="bench")
        try:
            for first in range(0, len(clients), _AT_ONCE):
                await asyncio.gather(
                    *(
                        gateway.shards.of_client(client).ask(
                            AddClient(client, "bench", 1, CREDIT_CENTS)
                        )
                        for client in clients[first : first + _AT_ONCE]
                    )
                )
            return list(gateway.shards.catalog.shard_of_slot)
        finally:
            await gateway.close()


def beside(folder: Path, plan: Plan) -> dict[str, float]:
    """What stands beside a round: the disk, and the bare application under single messages.

    Where the plan has a rate, also how long the bare application takes at that rate.
    """
    plan = replace(plan, batch=0, otp=False, seconds=min(plan.seconds / 2, BARE_S_MAX))
    with children.baseline() as running:
        (outcome,) = children.load_on(running, replace(plan, rate_per_s=0.0))
        found = {
            "fsync_p50_ms": fsync_p50_ms(folder),
            "bare_per_s": round(outcome.answers / outcome.seconds),
            "bare_load_cpu": outcome.cpu,
            "bare_resident_mb": running.resident_mb(),
        }
        if plan.rate_per_s:
            (outcome,) = children.load_on(running, plan)
            found["bare_p99_ms"] = quantile(outcome.took_ms, 0.99)
    return found


def prove(data: Path, messages: int, more: children.Overrides | None = None) -> None:
    """Audit a store that no gateway has open.

    Args:
        data: its directory.
        messages: about how many it has, for how long that may take.
        more: settings that are not the default.

    Raises:
        Spoiled: something was found.
    """
    limit_s = AUDIT_S + messages / AUDITED_PER_S
    findings = in_child(_findings, str(data), more or {}, limit_s=limit_s)
    if findings:
        raise Spoiled(f"the audit found: {findings[0]}")


def _findings(data: str, more: children.Overrides) -> list[str]:
    found: list[str] = children.run(_audit(Path(data), more))
    return found


async def _audit(data: Path, more: children.Overrides) -> list[str]:
    gateway = await Gateway.open(children.settings_for(0, more), data, purpose="bench audit")
    try:
        proofs = [await shard.store.audit() for shard in gateway.shards]
    finally:
        await gateway.close()
    return [finding.sentence for proof in proofs for finding in proof.findings]
