"""``smsgw bench fair``: what small clients feel of large ones, while the operator is the limit.

Three scenes, each with a backlog and small clients that send a little each: one whale, its shard
shared with small clients; the same with the whale alone in its shard; and eight equals that share
the backlog. A wait runs from a message's acceptance to the operator's answer, as the gateway has
written them down. The rounds are stretches of one run of each scene.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from smsgw.bench import children
from smsgw.bench.ground import beside, ground, make_store, marks_of, new_ids, prove, texts, under
from smsgw.bench.kept import Wait, handed_over, waiting, waits
from smsgw.bench.load import Plan
from smsgw.bench.options import Fair
from smsgw.bench.processes import Spoiled
from smsgw.bench.results import Target, quantile, result
from smsgw.bench.seed import BYTES_A_MESSAGE, WAITING, seed

TARGETS: Final = (
    Target("small_wait_p99_ms", must=1000, aim=200),
    Target("jain", must=0.95, aim=0.99, at_least=True),
)
EQUALS: Final = 8
GRACE_S: Final = 2.0
"""How long small clients may still be served after the load; what is left has waited until then."""
BUSY_SHARE: Final = 0.9
"""Share of the operator's rate below which it was not the limit."""


@dataclass(slots=True, frozen=True)
class Scene:
    """Who has a backlog, and who sends a little."""

    name: str
    backlogs: Mapping[bytes, int]
    small: Sequence[bytes]


def measure(options: Fair, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure what small clients feel of large ones.

    Args:
        options: how long, how much.
        step: told what is being done.

    Raises:
        Spoiled: the audit found something, or messages were refused.
    """
    with ground(options.backlog * BYTES_A_MESSAGE) as folder:
        marks = marks_of(folder)
        homes = make_store(folder / "map")
        scenes = _scenes(options, homes)
        step("baseline")
        plan = _plan(options, scenes[0])
        rounds = [beside(folder, plan) for _ in range(options.rounds)]
    for scene in scenes:
        with ground(options.backlog * BYTES_A_MESSAGE) as folder:
            found = _played(folder / "data", options, scene, under(scene.name, step))
            for one, figures in zip(rounds, found, strict=True):
                one |= {f"{scene.name}_{figure}": value for figure, value in figures.items()}
    for one in rounds:
        one["small_wait_p99_ms"] = max(one[f"{scene.name}_wait_p99_ms"] for scene in scenes)
        one["jain"] = one.pop("equals_jain")
    return result(
        "fair", options, rounds, targets=TARGETS, marks=[*marks, *_marks(options, rounds)]
    )


def _scenes(options: Fair, homes: Sequence[int]) -> list[Scene]:
    """The three of them; every new store has the same map from slots to shards."""
    first, *others = sorted(set(homes))
    small = new_ids(options.clients)
    elsewhere = new_ids(options.clients, others, homes) if others else small
    share = options.backlog // EQUALS
    return [
        Scene("whale", {new_ids(1, [first], homes)[0]: options.backlog}, small),
        Scene("alone", {new_ids(1, [first], homes)[0]: options.backlog}, elsewhere),
        Scene("equals", dict.fromkeys(new_ids(EQUALS), share), small),
    ]


def _plan(options: Fair, scene: Scene) -> Plan:
    return Plan(
        port=0,
        clients=texts(scene.small),
        seconds=options.seconds * options.rounds,
        rate_per_s=options.requests_per_s,
        even=True,
    )


def _played(
    data: Path, options: Fair, scene: Scene, step: Callable[[str], None]
) -> list[dict[str, float]]:
    """Play a scene; returns the figures of each round."""
    make_store(data, [*scene.backlogs, *scene.small])
    seed(data, scene.backlogs, WAITING, step)
    settings: children.Overrides = {
        "providers": {"mock": {"kind": "mock", "rate_parts_per_s": options.parts_per_s}}
    }
    step("the gateway starts")
    with children.gateway(data, settings, options.backlog) as running:
        step(f"{options.rounds} rounds")
        cpu_s = running.cpu_s()
        (outcome,) = children.load_on(running, _plan(options, scene))
        cpu_s = running.cpu_s() - cpu_s
        time.sleep(GRACE_S)
        stopped_ms = int(time.time() * 1000)
    if outcome.statuses.keys() - {"202"}:
        raise Spoiled(f"answers other than 202: {outcome.statuses}")
    step("audit")
    prove(data, options.backlog)
    left = waiting(data)
    found = []
    for number in range(options.rounds):
        since_ms = int((outcome.begun_at_s + number * options.seconds) * 1000)
        until_ms = since_ms + int(options.seconds * 1000)
        waited = waits(data, since_ms, until_ms, stopped_ms)
        served = handed_over(data, since_ms, until_ms)
        figures = {
            **_waits_of(waited, set(scene.small)),
            "handed_per_s": sum(served.values()) / options.seconds,
            "least_backlog": min(left[client] for client in scene.backlogs),
            "gateway_cpu": cpu_s / outcome.seconds,
            "load_cpu": outcome.cpu,
        }
        if len(scene.backlogs) > 1:
            figures["jain"] = jain([served[client] for client in scene.backlogs])
        found.append(figures)
    return found


def _waits_of(waited: Iterable[Wait], clients: set[bytes]) -> dict[str, float]:
    times_ms = [wait.wait_ms for wait in waited if wait.client in clients]
    return {
        "wait_p50_ms": quantile(times_ms, 0.5),
        "wait_p99_ms": quantile(times_ms, 0.99),
        "wait_max_ms": max(times_ms, default=0),
    }


def jain(served: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all got the same, 1/n where one got everything."""
    squares = sum(one * one for one in served)
    return sum(served) ** 2 / (len(served) * squares) if squares else 0.0


def _marks(options: Fair, rounds: Sequence[dict[str, float]]) -> list[str]:
    least = BUSY_SHARE * options.parts_per_s
    marks = [
        f"a backlog ran out: {figure} was 0 at the end"
        for figure in rounds[0]
        if figure.endswith("least_backlog") and not rounds[0][figure]
    ]
    marks += [
        f"the operator was not the limit: {figure} was {one[figure]:,.0f} in round {number}"
        for number, one in enumerate(rounds, 1)
        for figure in one
        if figure.endswith("handed_per_s") and one[figure] < least
    ]
    return marks
