"""Measuring this machine: ``bench line``."""

from typing import Annotated, Any, Final

import typer

from smsgw.cli import output
from smsgw.cli.call import Failed
from smsgw.cli.options import Invocation, group, placed

bench = group("Measure this machine, beside a baseline in the same run.")

_SHOWN: Final = (
    "ratio",
    "finished_per_s",
    "bare_per_s",
    "accept_p50_ms",
    "accept_p99_ms",
    "gateway_cpu",
    "load_cpu",
    "fsync_p50_ms",
)


@bench.command()
@placed
def line(
    at: Invocation,
    batch: Annotated[
        int, typer.Option(min=0, max=1000, help="Messages a request; 0: the single route.")
    ] = 0,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Load of a round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How many rounds.")] = 3,
    connections: Annotated[int, typer.Option(min=1, max=1000, help="At a time.")] = 64,
    clients: Annotated[int, typer.Option(min=1, max=100_000, help="Zipf-distributed.")] = 10_000,
) -> None:
    """Messages posted, held, sent, reported and captured a second; a temporary data directory."""
    from smsgw.bench.line import measure

    try:
        with output.working("measuring") as step:
            found = measure(
                seconds=seconds,
                rounds=rounds,
                connections=connections,
                clients=clients,
                batch=batch,
                step=step,
            )
    except RuntimeError as failure:
        raise Failed(str(failure)) from failure
    at.show(found, _table)


def _table(found: dict[str, Any]) -> None:
    rows = [{"round": number, **one} for number, one in enumerate(found["rounds"], 1)]
    output.table([*rows, {"round": "median", **found["median"]}], ("round", *_SHOWN))
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
