"""``smsgw bench line``: messages finished a second, beside the bare baseline, in one run.

Finished means that the money of the message is captured on disk; a round counts only the messages
it accepted, until the last of them is finished, and ends with the audit.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from smsgw.bench import children, servers
from smsgw.bench.ground import beside, ground, make_store, marks_of, new_ids, prove, texts, under
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
TARGETS_OF_SERVERS: Final = (Target("round_trips_a_message", must=0.2, aim=0.1),)
SHARED_BY: Final = 3
TARGET_SHARED: Final = Target("of_files", must=1.0, aim=1.5, at_least=True)
"""So many gateways on one server finish at least as much as one gateway with files."""


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
        plan = Plan(
            port=0,
            clients=texts(clients),
            seconds=options.seconds,
            connections=options.connections,
            batch=options.batch,
            seed=number,
        )
        with ground() as folder:
            marks = marks_of(folder)
            where = under(f"round {number} of {options.rounds}", step)
            rounds.append(_round(folder, options, clients, plan, where))
    return result(
        "line",
        # Of a URL, which may hold a password, only the place is told.
        replace(options, shards=tuple(map(servers.place_of, options.shards))),
        rounds,
        targets=_targets(options),
        marks=[*marks, *grown(rounds)],
    )


def _targets(options: Line) -> list[Target]:
    if options.shards:
        shared = options.gateways >= SHARED_BY and options.beside_files
        return [*TARGETS_OF_SERVERS, *([TARGET_SHARED] if shared else [])]
    target = TARGETS.get(options.batch)
    return [target] if target else []


def _round(
    folder: Path,
    options: Line,
    clients: list[bytes],
    plan: Plan,
    step: Callable[[str], None],
) -> dict[str, float]:
    step("baseline")
    one = beside(folder, plan)
    if not options.shards or options.beside_files:
        data = folder / "files"
        step(f"{options.clients:,} clients")
        make_store(data, clients)
        step("gateway")
        found = finished(data, plan, more=_operator(options))
        step("audit")
        prove(data, int(found["messages"]))
        one |= (
            {f"files_{name}": value for name, value in found.items()} if options.shards else found
        )
    if options.shards:
        one |= _on_servers(folder, options, clients, plan, step)
        if options.beside_files:
            one["of_files"] = one["finished_per_s"] / max(1, one["files_finished_per_s"])
    one["ratio"] = one["finished_per_s"] / max(1, one["bare_per_s"])
    return one


def _operator(options: Line) -> children.Overrides:
    """A mock operator whose window limits nothing, unless it is meant to."""
    return {"providers": {"mock": {"kind": "mock", "window": options.window}}}


def _on_servers(
    folder: Path,
    options: Line,
    clients: list[bytes],
    plan: Plan,
    step: Callable[[str], None],
) -> dict[str, float]:
    """The same in PostgreSQL, with as many gateways as are wanted."""
    places = [folder / f"gateway{number}" for number in range(options.gateways)]
    more = {"store": {"shard_urls": list(options.shards)}} | _operator(options)
    with servers.borrowed(options.shards):
        step(f"{options.clients:,} clients in PostgreSQL")
        make_store(places[0], clients, more)
        for place in places[1:]:
            place.mkdir(mode=0o700)
            shutil.copy(places[0] / "otp.key", place / "otp.key")
        step(f"{options.gateways} on PostgreSQL")
        found = finished_by(places, plan, more=more)
        step("audit in PostgreSQL")
        prove(places[0], int(found["messages"]), more)
    return found


def finished(
    data: Path,
    plan: Plan,
    stored: int = 0,
    more: children.Overrides | None = None,
    warm_s: float = 0.0,
) -> dict[str, float]:
    """Load a gateway, and wait until everything that it accepted is finished.

    Args:
        data: its data directory.
        plan: what to send.
        stored: about how many messages it has already.
        more: settings that are not the default.
        warm_s: for how long it is loaded before that is measured.

    Raises:
        Spoiled: something was refused, or is not finished in time.
    """
    return finished_by([data], plan, stored, more, warm_s)


def finished_by(
    places: Sequence[Path],
    plan: Plan,
    stored: int = 0,
    more: children.Overrides | None = None,
    warm_s: float = 0.0,
) -> dict[str, float]:
    """The same for gateways that share a store, each with a data directory and a part of the load.

    Raises:
        Spoiled: something was refused, or is not finished in time.
    """
    opening_s = time.perf_counter()
    with ExitStack() as opened:
        gateways = [
            opened.enter_context(children.gateway(data, more or {}, stored)) for data in places
        ]
        plans = [
            replace(
                plan,
                port=running.port,
                connections=max(1, plan.connections // len(gateways)),
                seed=plan.seed * len(gateways) + index,
            )
            for index, running in enumerate(gateways)
        ]
        begun_s = time.perf_counter()
        warmed = _warm(gateways, plans, warm_s) if warm_s else 0
        before = _used(gateways)
        outcomes = children.load_each(plans)
        messages = sum(outcome.messages for outcome in outcomes)
        at_end = sum(running.finals() for running in gateways) - warmed
        children.await_finals(gateways, warmed + messages, FINISH_S)
        cpu_s, round_trips = (now - then for now, then in zip(_used(gateways), before, strict=True))
        spent_s = time.time() - min(outcome.begun_at_s for outcome in outcomes)
    statuses = [outcome.statuses for outcome in outcomes if outcome.statuses.keys() - {"202"}]
    if statuses:
        raise Spoiled(f"answers other than 202: {statuses[0]}")
    took_ms = [ms for outcome in outcomes for ms in outcome.took_ms]
    found = {
        "messages": messages,
        "finished_per_s": round(messages / spent_s),
        "accepted_per_s": round(messages / max(outcome.seconds for outcome in outcomes)),
        "unfinished_at_end": max(0, messages - at_end),
        "accept_p50_ms": quantile(took_ms, 0.5),
        "accept_p99_ms": quantile(took_ms, 0.99),
        "accept_max_ms": max(took_ms, default=0.0),
        "gateway_cpu": cpu_s / spent_s,
        # All plans run in one process, and each outcome tells of all of it.
        "load_cpu": max(outcome.cpu for outcome in outcomes),
        "start_s": begun_s - opening_s,
    }
    if warmed:
        found["warm_messages"] = warmed
    if round_trips:
        found["round_trips_a_message"] = round_trips / max(1, messages)
    return found


def _warm(gateways: Sequence[children.Running], plans: Sequence[Plan], warm_s: float) -> int:
    """Load gateways as they will be loaded, and say how many messages that were."""
    outcomes = children.load_each(
        [replace(plan, seconds=warm_s, seed=1_000_000 + plan.seed) for plan in plans]
    )
    messages = sum(outcome.messages for outcome in outcomes)
    children.await_finals(gateways, messages, FINISH_S)
    return messages


def _used(gateways: Sequence[children.Running]) -> tuple[float, int]:
    """CPU seconds, and calls to database servers."""
    return (
        sum(running.cpu_s() for running in gateways),
        sum(running.round_trips() for running in gateways),
    )


def grown(rounds: Sequence[Mapping[str, float]], prefix: str = "") -> list[str]:
    """A mark for each round at whose end more was unfinished than a second can finish."""
    return [
        f"the backlog grew: {one[prefix + 'unfinished_at_end']:,} messages were unfinished "
        f"when the load of round {number} ended"
        for number, one in enumerate(rounds, 1)
        if one[prefix + "unfinished_at_end"] > one[prefix + "finished_per_s"]
    ]
