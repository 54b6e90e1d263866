"""``smsgw bench smpp``: the line through an operator that speaks SMPP, beside the bare baseline.

The SMSC is a process of its own, which answers and reports at once; a round is as in ``line``, and
every message has come to the SMSC exactly once. Afterwards, once, how the rate follows the window:
an SMSC that takes ``answer_ms`` to answer gets at most window ÷ time a second, and the gateway has
a backlog to fill every window with.
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any, Final

from smsgw.bench import children, smsc
from smsgw.bench.ground import beside, ground, make_store, marks_of, new_ids, prove, texts, under
from smsgw.bench.line import finished, grown
from smsgw.bench.load import Plan
from smsgw.bench.options import Smpp
from smsgw.bench.processes import Spoiled
from smsgw.bench.results import Target, result
from smsgw.bench.seed import WAITING, seed, zipf_counts

TARGETS: Final = (Target("ratio", must=0.16, aim=0.25, at_least=True),)
WINDOWS: Final = (1, 10, 50)
BOUND_S: Final = 15.0
WARM_S: Final = 0.5
"""Of a bind's time, not counted: the first claims come before the window is full."""
_LOOK_S: Final = 0.02
_SPARE: Final = 2
"""How many times the messages that a window can send are there for it."""


def measure(options: Smpp, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure the line through SMPP, and the rate of small windows.

    Args:
        options: how long, how much.
        step: told what is being done.

    Raises:
        Spoiled: the audit found something, a message did not come to the SMSC exactly once, or
            messages were refused or left unfinished.
    """
    clients = new_ids(options.clients)
    rounds = []
    for number in range(1, options.rounds + 1):
        where = f"round {number} of {options.rounds}"
        with ground() as folder:
            marks = marks_of(folder)
            rounds.append(_round(folder, options, clients, number, under(where, step)))
    return result(
        "smpp",
        options,
        rounds,
        targets=TARGETS,
        marks=[*marks, *grown(rounds)],
        once=_rates(options, clients, step),
    )


def _round(
    folder: Path,
    options: Smpp,
    clients: list[bytes],
    number: int,
    step: Callable[[str], None],
) -> dict[str, float]:
    data = folder / "data"
    step(f"{options.clients:,} clients")
    make_store(data, clients)
    plan = Plan(
        port=0,
        clients=texts(clients),
        seconds=options.seconds,
        connections=options.connections,
        seed=number,
    )
    step("baseline")
    one = beside(folder, plan)
    step("gateway")
    with smsc.running() as operator:
        before_s = operator.report().cpu_s
        more = _bound_to(operator.port, options.binds, options.window)
        one |= finished(data, plan, more=more)
        seen = operator.report()
    if seen.submits != one["messages"]:
        raise Spoiled(f"{one['messages']} messages came to the SMSC {seen.submits} times")
    spent_s = one["messages"] / one["finished_per_s"]
    one |= {
        "ratio": one["finished_per_s"] / max(1, one["bare_per_s"]),
        "smsc_cpu": (seen.cpu_s - before_s) / spent_s,
    }
    step("audit")
    prove(data, int(one["messages"]))
    return one


def _bound_to(port: int, binds: int, window: int) -> children.Overrides:
    """The settings of a gateway whose only operator is an SMSC on this machine."""
    operator = {
        "kind": "smpp",
        "host": "127.0.0.1",
        "port": port,
        "system_id": "bench",
        "binds": binds,
        "window": window,
    }
    return {"providers": {"mock": {"kind": "mock", "enabled": False}, "smsc": operator}}


def _rates(options: Smpp, clients: list[bytes], step: Callable[[str], None]) -> dict[str, float]:
    """How many a second one bind submits, by its window, to an SMSC that takes its time."""
    answer_s = options.answer_ms / 1000
    span_s = options.seconds / len(WINDOWS)
    backlog = ceil(_SPARE * sum(WINDOWS) / answer_s * (span_s + WARM_S))
    found = {}
    with ground() as folder:
        data = folder / "data"
        make_store(data, clients)
        seed(data, zipf_counts(clients, backlog), WAITING, step)
        for window in WINDOWS:
            step(f"window {window}, an answer after {options.answer_ms} ms")
            per_s = _rate(data, window, answer_s, span_s, backlog)
            found[f"window_{window}_per_s"] = per_s
            found[f"window_{window}_of_most"] = per_s / (window / answer_s)
        step("audit")
        prove(data, backlog)
    return found


def _rate(data: Path, window: int, answer_s: float, span_s: float, stored: int) -> float:
    """How many submits a second come, at the median of stretches of about a second."""
    with (
        smsc.running(smsc.Behaviour(answer_after_s=answer_s)) as operator,
        children.gateway(data, _bound_to(operator.port, 1, window), stored),
    ):
        deadline_s = time.monotonic() + BOUND_S
        while operator.report().submits < window:
            if time.monotonic() > deadline_s:
                raise Spoiled(f"the gateway submitted nothing within {BOUND_S:.0f} s")
            time.sleep(_LOOK_S)
        time.sleep(min(WARM_S, span_s))
        seen = [(time.monotonic(), operator.report().submits)]
        for _ in range(max(1, round(span_s))):
            time.sleep(min(1.0, span_s))
            seen.append((time.monotonic(), operator.report().submits))
        most = operator.report().outstanding_max
    if most > window:
        raise Spoiled(f"{most} submits were without an answer, with a window of {window}")
    return statistics.median(
        (submits - before) / (at_s - before_s)
        for (before_s, before), (at_s, submits) in pairwise(seen)
    )
