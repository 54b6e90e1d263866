"""What a benchmark says in the end: the same shape for all of them, beside what must be reached.

A figure is a number with its unit in its name. It has a value for each round, and is told as the
median of them with the lowest and the highest; a mark is a sentence about why it is not what it
seems.
"""

import os
import platform
import sqlite3
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Final

from smsgw import __version__
from smsgw.bench.options import Options

GENERATOR_BOUND: Final = 0.9
"""Share of a core from which on the load generator, not what it loads, bounds a figure."""

Round = Mapping[str, float]
_LIBRARIES: Final = ("starlette", "uvicorn", "pydantic", "aiosqlite", "uvloop", "httptools")


@dataclass(frozen=True, slots=True)
class Target:
    """What the median of a figure must reach on the project's own kind of machine."""

    figure: str
    must: float
    aim: float
    at_least: bool = False

    def verdict(self, value: float) -> str:
        """``aim``, ``must``, or ``missed``."""
        for word, bound in (("aim", self.aim), ("must", self.must)):
            if (value >= bound) if self.at_least else (value <= bound):
                return word
        return "missed"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "smsgw": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "cores": os.cpu_count(),
        **{name: version(name) for name in _LIBRARIES},
    }


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which that share of them lies; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def result(
    bench: str,
    options: Options,
    rounds: Sequence[Round],
    *,
    targets: Iterable[Target] = (),
    marks: Iterable[str] = (),
    once: Round | None = None,
) -> dict[str, Any]:
    """The result of a benchmark.

    Args:
        bench: its name.
        options: what it was told.
        rounds: the figures of each round; all rounds have the same ones.
        targets: what must be reached.
        marks: why some figure is not what it seems.
        once: figures that were measured once, not in each round.

    Returns:
        A document for JSON.
    """
    rounds = [_rounded(one) for one in rounds]
    by_figure = {name: [one[name] for one in rounds] for name in rounds[0]}
    median = _rounded({name: statistics.median(values) for name, values in by_figure.items()})
    told = {
        target.figure: {
            "must": target.must,
            "aim": target.aim,
            "verdict": target.verdict(median[target.figure]),
        }
        for target in targets
    }
    return {
        "bench": bench,
        # Addresses may hold passwords: how many there are is enough.
        "options": {
            name: len(value) if isinstance(value, tuple) else value
            for name, value in asdict(options).items()
        },
        "machine": machine(),
        "rounds": rounds,
        "median": median,
        "spread": {name: [min(values), max(values)] for name, values in by_figure.items()},
        "once": _rounded(once or {}),
        "targets": told,
        "marks": [*_missed(told, median), *_generator_bound(rounds), *marks],
    }


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A result as the rows of a table, one for each figure; those with a target come first."""
    made = []
    values = {**found["median"], **found["once"]}
    for figure, value in sorted(values.items(), key=lambda one: one[0] not in found["targets"]):
        target = found["targets"].get(figure, {})
        low, high = found["spread"].get(figure, (value, value))
        made.append(
            {
                "figure": figure,
                "median": f"{value:,}",
                "spread": "" if low == high else f"{low:,} to {high:,}",
                "must": f"{target['must']:,}" if target else "",
                "aim": f"{target['aim']:,}" if target else "",
                "reaches": target.get("verdict", ""),
            }
        )
    return made


def _rounded(figures: Round) -> dict[str, float]:
    """Four digits, which is more than any of them is worth; whole numbers are left whole."""
    return {
        name: int(value)
        if value == int(value)
        else round(value, max(0, 4 - len(str(int(abs(value))))) or None)
        for name, value in figures.items()
    }


def _missed(targets: Mapping[str, Any], median: Round) -> list[str]:
    return [
        f"{figure} is {median[figure]:,}, it must be {target['must']:,}"
        for figure, target in targets.items()
        if target["verdict"] == "missed"
    ]


def _generator_bound(rounds: Sequence[Round]) -> list[str]:
    """Where the load generator used up its core: it may have been the bottleneck itself."""
    return [
        f"generator-bound: {name} was {one[name]} in round {number}"
        for number, one in enumerate(rounds, 1)
        for name in one
        if name.endswith("load_cpu") and one[name] > GENERATOR_BOUND
    ]
