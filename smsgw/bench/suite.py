"""All benchmarks, in the order in which they run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from smsgw.bench import fair, history, line, memory, otp, smpp, steady
from smsgw.bench.ground import under
from smsgw.bench.options import Fair, History, Line, Memory, Options, Otp, Smpp, Steady
from smsgw.bench.processes import Spoiled
from smsgw.bench.results import machine

_MEASURES: Final[Mapping[type[Options], Callable[[Any, Callable[[str], None]], dict[str, Any]]]] = {
    Line: line.measure,
    Smpp: smpp.measure,
    Otp: otp.measure,
    Fair: fair.measure,
    Steady: steady.measure,
    History: history.measure,
    Memory: memory.measure,
}


@dataclass(frozen=True, slots=True)
class Bench:
    """A benchmark as it is called, with what it is told."""

    name: str
    options: Options


BENCHES: Final = (
    Bench("line", Line()),
    Bench("line --batch 100", Line(batch=100)),
    Bench("smpp", Smpp()),
    Bench("otp", Otp()),
    Bench("fair", Fair()),
    Bench("steady", Steady()),
    Bench("history", History()),
    Bench("memory", Memory()),
)


def measure(options: Options, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run the benchmark that these options are for.

    Raises:
        Spoiled: its figures mean nothing.
    """
    return _MEASURES[type(options)](options, step)


def measure_all(factor: float, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run all benchmarks; one that is spoiled does not keep the others from running.

    Args:
        factor: how large each is, beside its defaults.
        step: told what is being done.

    Returns:
        The results, and why others are missing.
    """
    results = []
    failures = []
    for bench in BENCHES:
        options = bench.options if factor == 1 else bench.options.scaled(factor)
        try:
            found = measure(options, under(bench.name, step))
        except Spoiled as spoiled:
            failures.append({"bench": bench.name, "error": str(spoiled)})
        else:
            results.append({**found, "bench": bench.name})
    return {"bench": "all", "machine": machine(), "results": results, "failures": failures}
