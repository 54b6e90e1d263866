"""``smsgw bench steady``: a hundred million messages a day, spread evenly, one request each.

An open loop: a request that is late because the gateway is, is late by its whole delay. How long a
message takes to the operator's answer is what the gateway has written down. The rounds are
stretches of one run, so that no spike falls between them.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from smsgw.bench import children
from smsgw.bench.ground import beside, ground, make_store, marks_of, new_ids, prove, texts
from smsgw.bench.kept import waits
from smsgw.bench.load import Outcome, Plan
from smsgw.bench.options import Steady
from smsgw.bench.processes import Spoiled
from smsgw.bench.results import Target, quantile, result

FINISH_S: Final = 60.0
SPIKE_MS: Final = 250.0
STALL_MS: Final = 50.0
KEPT_SHARE: Final = 0.99
TARGETS: Final = (
    Target("accept_p99_ms", must=25, aim=10),
    Target("handover_p99_ms", must=100, aim=50),
    Target("gateway_cpu", must=0.5, aim=0.3),
)


class _CpuWatch:
    """How much CPU the gateway had used at what time."""

    def __init__(self, running: children.Running) -> None:
        self._running = running
        self._seen: list[tuple[float, float]] = []

    def look(self) -> None:
        """Look now."""
        self._seen.append((time.time(), self._running.cpu_s()))

    def share(self, since_s: float, until_s: float) -> float:
        """Which share of a core it used between two Unix times, as far as it was looked at."""
        inside = [seen for seen in self._seen if since_s <= seen[0] <= until_s]
        if len(inside) < 2:
            inside = self._seen
        (first_s, first), (last_s, last) = inside[0], inside[-1]
        return (last - first) / (last_s - first_s)


def measure(options: Steady, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure a steady load.

    Args:
        options: how long, how much.
        step: told what is being done.

    Raises:
        Spoiled: the audit found something, or messages were lost or left unfinished.
    """
    clients = new_ids(options.clients)
    with ground() as folder:
        data = folder / "data"
        step(f"{options.clients:,} clients")
        make_store(data, clients)
        plan = Plan(
            port=0,
            clients=texts(clients),
            seconds=options.seconds,
            connections=options.connections,
            rate_per_s=options.rate,
        )
        step("baseline")
        besides = [beside(folder, plan) for _ in range(options.rounds)]
        step(f"{options.rate:,.0f} messages a second for {options.seconds:,.0f} s")
        with children.gateway(data, {}) as running:
            watch = _CpuWatch(running)
            watch.look()
            (outcome,) = children.load_on(running, plan, watch=watch.look)
            watch.look()
            unfinished = max(0, outcome.messages - running.finals())
            running.await_finals(outcome.messages, FINISH_S)
            stopped_ms = int(time.time() * 1000)
        if "lost" in outcome.statuses:
            raise Spoiled("the gateway closed a connection")
        rounds = [
            {**one, **_stretch(data, options, outcome, watch, number, stopped_ms)}
            for number, one in enumerate(besides)
        ]
        step("audit")
        prove(data, outcome.messages)
        marks = marks_of(folder)
    once = _once(outcome, unfinished)
    return result(
        "steady",
        options,
        rounds,
        targets=TARGETS,
        marks=[*marks, *_marks(options, outcome, rounds, once)],
        once=once,
    )


def _stretch(
    data: Path,
    options: Steady,
    outcome: Outcome,
    watch: _CpuWatch,
    number: int,
    stopped_ms: int,
) -> dict[str, float]:
    """The figures of one stretch of the run."""
    length_s = options.seconds / options.rounds
    since_s, until_s = number * length_s, (number + 1) * length_s
    accepts_ms = [
        took_ms
        for due_s, took_ms in zip(outcome.due_s, outcome.took_ms, strict=True)
        if since_s <= due_s < until_s
    ]
    begun_s = outcome.begun_at_s
    handovers_ms = [
        wait.wait_ms
        for wait in waits(
            data, int((begun_s + since_s) * 1000), int((begun_s + until_s) * 1000), stopped_ms
        )
    ]
    return {
        "accepted_per_s": round(len(accepts_ms) / length_s),
        "accept_p50_ms": quantile(accepts_ms, 0.5),
        "accept_p99_ms": quantile(accepts_ms, 0.99),
        "accept_max_ms": max(accepts_ms, default=0.0),
        "handover_p50_ms": quantile(handovers_ms, 0.5),
        "handover_p99_ms": quantile(handovers_ms, 0.99),
        "handover_max_ms": max(handovers_ms, default=0),
        "gateway_cpu": watch.share(begun_s + since_s, begun_s + until_s),
        "load_cpu": outcome.cpu,
    }


def _once(outcome: Outcome, unfinished: int) -> dict[str, float]:
    spike_ms, at_s = max(zip(outcome.took_ms, outcome.due_s, strict=True), default=(0.0, 0.0))
    return {
        "spike_max_ms": spike_ms,
        "spike_at_s": at_s,
        "over_250_ms": sum(took_ms > SPIKE_MS for took_ms in outcome.took_ms),
        "load_stalled_ms": outcome.stalled_ms,
        "unsent_at_end": outcome.unsent,
        "unfinished_at_end": unfinished,
    }


def _marks(
    options: Steady,
    outcome: Outcome,
    rounds: Sequence[dict[str, float]],
    once: dict[str, float],
) -> list[str]:
    marks = []
    if once["over_250_ms"]:
        marks.append(
            f"{once['over_250_ms']} requests took more than {SPIKE_MS:.0f} ms, the longest "
            f"{once['spike_max_ms']:,.0f} ms, {once['spike_at_s']:.1f} s after the start"
        )
    if (longest_ms := max(one["handover_max_ms"] for one in rounds)) > SPIKE_MS:
        marks.append(f"a message took {longest_ms:,} ms to the operator")
    if once["load_stalled_ms"] > STALL_MS:
        marks.append(
            f"the load generator itself was held up for {once['load_stalled_ms']:,.0f} ms: "
            "the machine was busy with something else"
        )
    if outcome.answers < KEPT_SHARE * options.rate * options.seconds:
        marks.append(
            f"the rate is more than this machine can do: {outcome.unsent:,} requests were due "
            "and never sent"
        )
    if refused := outcome.answers - outcome.messages:
        marks.append(f"{refused:,} requests were refused: {outcome.statuses}")
    if once["unfinished_at_end"] > options.rate:
        marks.append(f"the backlog grew: {once['unfinished_at_end']:,} were unfinished at the end")
    return marks
