"""``smsgw bench line``: messages finished a second, beside the bare baseline, in one run.

Finished means that the money of the message is captured on disk; a round counts only the messages
it accepted, until the last of them is finished, and ends with the audit.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from smsgw.bench import children
from smsgw.bench.ground import beside, ground, make_store, marks_of, new_ids, prove, texts
from smsgw.bench.load import Plan
from smsgw.bench.options import Line
from smsgw.bench.processes import Spoiled
from smsgw.bench.results import Target, quantile, result

FINISH_S: Final = 120.0
TARGETS: Final[Mapping[int, Target]] = {
    0: Target("ratio", must=0.25, aim=0.35, at_least=True),
    100: Target("ratio", must=0.55, aim=0.90, at_least=True),
}
"""By messages a request."""


def measure(options: Line, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure the line.

    Args:
        options: how long, how much.
        step: told what is being done.

    Raises:
        Spoiled: the audit found something, or messages were refused or left unfinished.
    """
    clients = new_ids(options.clients)
    rounds = []
    for number in range(1, options.rounds + 1):
        where = f"round {number} of {options.rounds}"
        with ground() as folder:
            marks = marks_of(folder)
            step(f"{where}: {options.clients:,} clients")
            make_store(folder / "data", clients)
            plan = Plan(
                port=0,
                clients=texts(clients),
                seconds=options.seconds,
                connections=options.connections,
                batch=options.batch,
                seed=number,
            )
            step(f"{where}: baseline")
            one = beside(folder, plan)
            step(f"{where}: gateway")
            one |= finished(folder / "data", plan)
            one["ratio"] = one["finished_per_s"] / max(1, one["bare_per_s"])
            step(f"{where}: audit")
            prove(folder / "data", int(one["messages"]))
            rounds.append(one)
    target = TARGETS.get(options.batch)
    return result(
        "line",
        options,
        rounds,
        targets=[target] if target else [],
        marks=[*marks, *grown(rounds)],
    )


def finished(data: Path, plan: Plan, stored: int = 0) -> dict[str, float]:
    """Load a gateway, and wait until everything that it accepted is finished.

    Args:
        data: its data directory.
        plan: what to send.
        stored: about how many messages it has already.

    Raises:
        Spoiled: something was refused, or is not finished in time.
    """
    opening_s = time.perf_counter()
    with children.gateway(data, {}, stored) as running:
        cpu_s, begun_s = running.cpu_s(), time.perf_counter()
        (outcome,) = children.load_on(running, plan)
        at_end = running.finals()
        running.await_finals(outcome.messages, FINISH_S)
        cpu_s = running.cpu_s() - cpu_s
        spent_s = time.time() - outcome.begun_at_s
    if outcome.statuses.keys() - {"202"}:
        raise Spoiled(f"answers other than 202: {outcome.statuses}")
    return {
        "messages": outcome.messages,
        "finished_per_s": round(outcome.messages / spent_s),
        "accepted_per_s": round(outcome.messages / outcome.seconds),
        "unfinished_at_end": max(0, outcome.messages - at_end),
        "accept_p50_ms": quantile(outcome.took_ms, 0.5),
        "accept_p99_ms": quantile(outcome.took_ms, 0.99),
        "accept_max_ms": max(outcome.took_ms, default=0.0),
        "gateway_cpu": cpu_s / spent_s,
        "load_cpu": outcome.cpu,
        "start_s": begun_s - opening_s,
    }


def grown(rounds: Sequence[Mapping[str, float]], prefix: str = "") -> list[str]:
    """A mark for each round at whose end more was unfinished than a second can finish."""
    return [
        f"the backlog grew: {one[prefix + 'unfinished_at_end']:,} messages were unfinished "
        f"when the load of round {number} ended"
        for number, one in enumerate(rounds, 1)
        if one[prefix + "unfinished_at_end"] > one[prefix + "finished_per_s"]
    ]
