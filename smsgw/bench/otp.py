"""``smsgw bench otp``: what the gateway adds to the time that an operator takes for a code.

The time is the caller's: from when the request was due to the answer, less the fixed latency of the
mock operator. Meanwhile a backlog drains as fast as it can, and single messages and batches come
in. The rounds are loads one after the other on the same gateway; the limits of codes per number are
off, and no number gets two codes all the same.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from smsgw.bench import children
from smsgw.bench.ground import beside, ground, make_store, marks_of, new_ids, prove, texts
from smsgw.bench.load import Outcome, Plan, admissions
from smsgw.bench.options import Otp
from smsgw.bench.processes import Spoiled
from smsgw.bench.results import Target, quantile, result
from smsgw.bench.seed import BYTES_A_MESSAGE, WAITING, seed, zipf_counts

TARGETS: Final = (Target("added_p99_ms", must=25, aim=10),)
_NO_LIMITS: Final = {"number_interval_s": 0.0, "number_window_s": 0.0, "number_window_max": 0}


def measure(options: Otp, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure one-time codes beside a backlog.

    Args:
        options: how long, how much.
        step: told what is being done.

    Raises:
        Spoiled: the audit found something, or messages were refused.
    """
    clients = new_ids(options.clients)
    with ground(options.backlog * BYTES_A_MESSAGE) as folder:
        data = folder / "data"
        step(f"{options.clients:,} clients")
        make_store(data, clients)
        step("baseline")
        codes = Plan(
            port=0,
            clients=texts(clients),
            seconds=options.seconds,
            rate_per_s=options.codes_per_s,
            otp=True,
        )
        besides = [beside(folder, codes) for _ in range(options.rounds)]
        seeded = seed(data, zipf_counts(clients, options.backlog), WAITING, step)
        rounds = _rounds(data, options, codes, besides, step)
        step("audit")
        prove(data, options.backlog)
        marks = marks_of(folder)
    return result(
        "otp",
        options,
        rounds,
        targets=TARGETS,
        marks=[*marks, *_marks(rounds)],
        once=seeded.figures,
    )


def _rounds(
    data: Path,
    options: Otp,
    codes: Plan,
    besides: Sequence[dict[str, float]],
    step: Callable[[str], None],
) -> list[dict[str, float]]:
    settings: children.Overrides = {
        "providers": {"mock": {"kind": "mock", "latency_ms": options.latency_ms}},
        "otp": _NO_LIMITS,
    }
    step("the gateway starts")
    waiting = options.backlog
    finals = 0
    rounds = []
    with children.gateway(data, settings, options.backlog) as running:
        for number, one in enumerate(besides, 1):
            step(f"round {number} of {options.rounds}")
            codes.seed = number
            others = admissions(
                codes.clients,
                options.seconds,
                options.singles_per_s,
                options.batches_per_s,
                seed=number,
            )
            cpu_s, begun_s = running.cpu_s(), time.perf_counter()
            sent, singles, batches = children.load_on(running, codes, *others)
            spent_s = time.perf_counter() - begun_s
            cpu_s = running.cpu_s() - cpu_s
            finals_before, finals = finals, running.finals()
            waiting += singles.messages + batches.messages
            waiting += sent.statuses.get("200", 0) - (finals - finals_before)
            rounds.append(
                {
                    **one,
                    **_figures(options, sent),
                    "single_p99_ms": quantile(singles.took_ms, 0.99),
                    "batch_p99_ms": quantile(batches.took_ms, 0.99),
                    "finished_per_s": round((finals - finals_before) / spent_s),
                    "waiting_at_end": max(0, waiting),
                    "gateway_cpu": cpu_s / spent_s,
                    "load_cpu": sent.cpu,
                }
            )
    return rounds


def _figures(options: Otp, sent: Outcome) -> dict[str, float]:
    if sent.statuses.keys() - {"200", "503"}:
        raise Spoiled(f"codes were refused: {sent.statuses}")
    added_ms = [took_ms - options.latency_ms for took_ms in sent.took_ms]
    return {
        "codes": sent.answers,
        "codes_undeliverable": sent.statuses.get("503", 0),
        "added_p50_ms": quantile(added_ms, 0.5),
        "added_p99_ms": quantile(added_ms, 0.99),
        "added_max_ms": max(added_ms, default=0.0),
        "load_stalled_ms": sent.stalled_ms,
    }


def _marks(rounds: Sequence[dict[str, float]]) -> list[str]:
    marks = []
    for number, one in enumerate(rounds, 1):
        if not one["waiting_at_end"]:
            marks.append(f"the backlog ran out in round {number}")
        if one["codes_undeliverable"]:
            marks.append(
                f"{one['codes_undeliverable']} of {one['codes']} codes of round {number} "
                "could not be delivered in time"
            )
    return marks
