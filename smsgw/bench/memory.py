"""``smsgw bench memory``: how much memory a gateway takes with a long queue.

The queue is filled directly, not posted; each round starts a gateway of its own on a copy of it. It
is looked at after the start, while the queue drains as fast as it can, and while it drains and
messages come in, single and in batches.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from smsgw.bench import children
from smsgw.bench.ground import beside, ground, make_store, marks_of, new_ids, prove, texts
from smsgw.bench.load import Plan, admissions
from smsgw.bench.options import Memory
from smsgw.bench.processes import WATCH_S, Spoiled
from smsgw.bench.results import Target, result
from smsgw.bench.seed import BYTES_A_MESSAGE, WAITING, seed, zipf_counts

TARGETS: Final = (Target("resident_max_mb", must=300, aim=150),)
LEFT_SHARE: Final = 0.75
"""Share of the backlog that must be left at the end of a round that was about all of it."""


def measure(options: Memory, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure memory beside a backlog.

    Args:
        options: how long, how much.
        step: told what is being done.

    Raises:
        Spoiled: the audit found something, or messages were refused.
    """
    clients = new_ids(options.clients)
    plan = Plan(port=0, clients=texts(clients), seconds=options.seconds)
    with ground(2 * options.backlog * BYTES_A_MESSAGE) as folder:
        marks = marks_of(folder)
        full, data = folder / "full", folder / "data"
        step(f"{options.clients:,} clients")
        make_store(full, clients)
        seeded = seed(full, zipf_counts(clients, options.backlog), WAITING, step)
        rounds = []
        for number in range(1, options.rounds + 1):
            where = f"round {number} of {options.rounds}"
            step(f"{where}: baseline")
            one = beside(folder, plan)
            step(f"{where}: gateway")
            shutil.copytree(full, data)
            rounds.append({**one, **_resident(data, options, plan, number)})
            step(f"{where}: audit")
            prove(data, options.backlog)
            shutil.rmtree(data)
    return result(
        "memory",
        options,
        rounds,
        targets=TARGETS,
        marks=[*marks, *_marks(options, rounds)],
        once=seeded.figures,
    )


def _resident(data: Path, options: Memory, plan: Plan, number: int) -> dict[str, float]:
    """How much memory a gateway takes on a store with a queue."""
    come = admissions(
        plan.clients, options.seconds, options.singles_per_s, options.batches_per_s, number
    )
    drained_mb: list[float] = []
    admitted_mb: list[float] = []
    with children.gateway(data, {}, options.backlog) as running:
        started_mb = running.resident_mb()
        cpu_s, begun_s = running.cpu_s(), time.monotonic()
        while time.monotonic() < begun_s + options.seconds:
            drained_mb.append(running.resident_mb())
            time.sleep(WATCH_S)
        outcomes = children.load_on(
            running, *come, watch=lambda: admitted_mb.append(running.resident_mb())
        )
        admitted_mb.append(running.resident_mb())
        spent_s = time.monotonic() - begun_s
        cpu_s = running.cpu_s() - cpu_s
        finals = running.finals()
    if any(outcome.statuses.keys() - {"202"} for outcome in outcomes):
        raise Spoiled(f"answers other than 202: {[one.statuses for one in outcomes]}")
    admitted = sum(outcome.messages for outcome in outcomes)
    return {
        "resident_start_mb": started_mb,
        "resident_drain_mb": max(drained_mb),
        "resident_admit_mb": max(admitted_mb),
        "resident_end_mb": admitted_mb[-1],
        "resident_max_mb": max(started_mb, *drained_mb, *admitted_mb),
        "finished_per_s": round(finals / spent_s),
        "waiting_at_end": max(0, options.backlog + admitted - finals),
        "gateway_cpu": cpu_s / spent_s,
        "load_cpu": outcomes[0].cpu,
    }


def _marks(options: Memory, rounds: Sequence[dict[str, float]]) -> list[str]:
    return [
        f"the backlog fell to {one['waiting_at_end']:,} in round {number}"
        for number, one in enumerate(rounds, 1)
        if one["waiting_at_end"] < LEFT_SHARE * options.backlog
    ]
