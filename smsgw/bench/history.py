"""``smsgw bench history``: what many stored messages cost the line.

The line on a store full of finished messages, divided by the line on an empty one; the two take
turns. What the gateway itself leaves behind on the empty store stands beside what it was filled
with, so that one can see whether the two are alike.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from smsgw.bench.ground import beside, ground, make_store, marks_of, new_ids, prove, texts
from smsgw.bench.kept import shard_bytes
from smsgw.bench.line import finished, grown
from smsgw.bench.load import Plan
from smsgw.bench.options import History
from smsgw.bench.results import Target, result
from smsgw.bench.seed import BYTES_A_MESSAGE, DELIVERED, seed, zipf_counts

TARGETS: Final = (Target("ratio", must=0.85, aim=0.97, at_least=True),)


def measure(options: History, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure the line on a full store and on an empty one.

    Args:
        options: how long, how much.
        step: told what is being done.

    Raises:
        Spoiled: the audit found something, or messages were refused or left unfinished.
    """
    clients = new_ids(options.clients)
    plan = Plan(
        port=0,
        clients=texts(clients),
        seconds=options.seconds,
        connections=options.connections,
    )
    with ground(options.messages * BYTES_A_MESSAGE) as folder:
        marks = marks_of(folder)
        full = folder / "full"
        step(f"{options.clients:,} clients")
        make_store(full, clients)
        seeded = seed(full, zipf_counts(clients, options.messages), DELIVERED, step)
        rounds: list[dict[str, float]] = []
        for number in range(1, options.rounds + 1):
            where = f"round {number} of {options.rounds}"
            step(f"{where}: baseline")
            plan = replace(plan, seed=number)
            one = beside(folder, plan)
            step(f"{where}: empty store")
            one |= _on_empty(clients, plan, options.warm_s)
            step(f"{where}: {options.messages:,} stored messages")
            on_full = finished(full, plan, options.messages, warm_s=options.warm_s)
            one |= {f"full_{figure}": value for figure, value in on_full.items()}
            one["ratio"] = one["full_finished_per_s"] / max(1, one["empty_finished_per_s"])
            rounds.append(one)
        step("audit")
        prove(full, options.messages)
    return result(
        "history",
        options,
        rounds,
        targets=TARGETS,
        marks=[*marks, *grown(rounds, "empty_"), *grown(rounds, "full_")],
        once=seeded.figures,
    )


def _on_empty(clients: list[bytes], plan: Plan, warm_s: float) -> dict[str, float]:
    """A round of the line on a store of its own."""
    with ground() as folder:
        data: Path = folder / "empty"
        make_store(data, clients)
        size_bytes = shard_bytes(data)
        on_empty = finished(data, plan, warm_s=warm_s)
        found = {f"empty_{figure}": value for figure, value in on_empty.items()}
        written_bytes = shard_bytes(data) - size_bytes
        messages = int(on_empty["messages"] + on_empty.get("warm_messages", 0))
        found["empty_bytes_a_message"] = written_bytes / max(1, messages)
        prove(data, messages)
    return found
