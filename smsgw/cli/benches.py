"""Measuring this machine: ``bench`` and what is below it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer

from smsgw.bench.options import Fair, History, Line, Memory, Options, Otp, Smpp, Steady
from smsgw.cli import output
from smsgw.cli.call import Failed
from smsgw.cli.options import Invocation, group, placed

bench = group("Measure this machine, beside a baseline in the same run.")

_Rounds = Annotated[int, typer.Option(min=1, max=20, help="How many rounds.")]
_Seconds = Annotated[float, typer.Option(min=1, max=3600, help="Load of a round.")]
_Clients = Annotated[int, typer.Option(min=1, max=100_000, help="Zipf-distributed.")]
_Connections = Annotated[int, typer.Option(min=1, max=1000, help="At a time.")]
_Backlog = Annotated[int, typer.Option(min=8, max=5_000_000, help="Messages that wait.")]
_Rate = Annotated[float, typer.Option(min=0.1, max=100_000, help="Requests a second.")]
_Limit = Annotated[float, typer.Option(min=0.1, max=600, help="Minutes until it gives up.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]

_COLUMNS: Final = ("figure", "median", "spread", "must", "aim", "reaches")
_BESIDE_TARGETS: Final = frozenset({"finished_per_s", "full_finished_per_s", "bytes_a_message"})
"""Figures that the table of all benchmarks has although no target names them."""


@bench.command()
@placed
def line(
    at: Invocation,
    batch: Annotated[
        int, typer.Option(min=0, max=1000, help="Messages a request; 0: the single route.")
    ] = Line.batch,
    seconds: _Seconds = Line.seconds,
    rounds: _Rounds = Line.rounds,
    connections: _Connections = Line.connections,
    clients: _Clients = Line.clients,
    window: Annotated[
        int, typer.Option(min=1, max=100_000, help="Of the mock operator: unanswered parts.")
    ] = Line.window,
    shards: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A PostgreSQL database without a store; several may be."),
    ] = None,
    gateways: Annotated[
        int, typer.Option(min=1, max=16, help="That share the databases.")
    ] = Line.gateways,
    beside_files: Annotated[
        bool, typer.Option("--beside-files", help="Also one with shards in files, to compare.")
    ] = Line.beside_files,
    limit: _Limit = 10,
    quiet: _Quiet = False,
) -> None:
    """Messages posted, held, sent, reported and captured a second. Takes a minute."""
    urls = tuple(url for named in shards or () for url in named.split(","))
    if not urls and (gateways > 1 or beside_files):
        raise typer.BadParameter("--gateways and --beside-files need --shards")
    options = Line(
        rounds=rounds,
        seconds=seconds,
        clients=clients,
        connections=connections,
        batch=batch,
        window=window,
        shards=urls,
        gateways=gateways,
        beside_files=beside_files,
    )
    _measure(at, options, limit, quiet=quiet)


@bench.command()
@placed
def smpp(
    at: Invocation,
    seconds: _Seconds = Smpp.seconds,
    rounds: _Rounds = Smpp.rounds,
    connections: _Connections = Smpp.connections,
    clients: _Clients = Smpp.clients,
    binds: Annotated[int, typer.Option(min=1, max=100, help="With the SMSC.")] = Smpp.binds,
    window: Annotated[
        int, typer.Option(min=1, max=100_000, help="Submits without an answer, over all binds.")
    ] = Smpp.window,
    answer: Annotated[
        int, typer.Option(min=1, max=1000, help="Milliseconds of an answer, for small windows.")
    ] = Smpp.answer_ms,
    limit: _Limit = 10,
    quiet: _Quiet = False,
) -> None:
    """The line through an SMSC in another process, and the rate of small windows. Two minutes."""
    options = Smpp(
        rounds=rounds,
        seconds=seconds,
        clients=clients,
        connections=connections,
        binds=binds,
        window=window,
        answer_ms=answer,
    )
    _measure(at, options, limit, quiet=quiet)


@bench.command()
@placed
def otp(
    at: Invocation,
    backlog: _Backlog = Otp.backlog,
    codes: _Rate = Otp.codes_per_s,
    singles: _Rate = Otp.singles_per_s,
    batches: _Rate = Otp.batches_per_s,
    latency: Annotated[
        int, typer.Option(min=0, max=1000, help="Milliseconds that the operator takes.")
    ] = Otp.latency_ms,
    seconds: _Seconds = Otp.seconds,
    rounds: _Rounds = Otp.rounds,
    clients: _Clients = Otp.clients,
    limit: _Limit = 15,
    quiet: _Quiet = False,
) -> None:
    """What the gateway adds to an operator's time, beside a backlog. Takes three minutes."""
    options = Otp(
        rounds=rounds,
        seconds=seconds,
        clients=clients,
        backlog=backlog,
        latency_ms=latency,
        codes_per_s=codes,
        singles_per_s=singles,
        batches_per_s=batches,
    )
    _measure(at, options, limit, quiet=quiet)


@bench.command()
@placed
def fair(
    at: Invocation,
    backlog: _Backlog = Fair.backlog,
    clients: Annotated[
        int, typer.Option(min=1, max=10_000, help="Small clients, beside the large.")
    ] = Fair.clients,
    rate: _Rate = Fair.requests_per_s,
    operator: Annotated[
        float, typer.Option(min=1, max=100_000, help="Parts a second that the operator takes.")
    ] = Fair.parts_per_s,
    seconds: _Seconds = Fair.seconds,
    rounds: _Rounds = Fair.rounds,
    limit: _Limit = 20,
    quiet: _Quiet = False,
) -> None:
    """What small clients feel of large ones, at a slow operator. Takes five minutes."""
    options = Fair(
        rounds=rounds,
        seconds=seconds,
        clients=clients,
        backlog=backlog,
        requests_per_s=rate,
        parts_per_s=operator,
    )
    _measure(at, options, limit, quiet=quiet)


@bench.command()
@placed
def steady(
    at: Invocation,
    rate: _Rate = Steady.rate,
    seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="Load of all rounds together.")
    ] = Steady.seconds,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="Stretches of the load to look at.")
    ] = Steady.rounds,
    connections: _Connections = Steady.connections,
    clients: _Clients = Steady.clients,
    limit: _Limit = 15,
    quiet: _Quiet = False,
) -> None:
    """A hundred million messages a day, spread evenly. Takes four minutes."""
    options = Steady(
        rounds=rounds, seconds=seconds, clients=clients, connections=connections, rate=rate
    )
    _measure(at, options, limit, quiet=quiet)


@bench.command()
@placed
def history(
    at: Invocation,
    messages: Annotated[
        int, typer.Option(min=1, max=100_000_000, help="Messages that are stored already.")
    ] = History.messages,
    seconds: _Seconds = History.seconds,
    rounds: _Rounds = History.rounds,
    connections: _Connections = History.connections,
    clients: _Clients = History.clients,
    limit: _Limit = 40,
    quiet: _Quiet = False,
) -> None:
    """The line on many stored messages, beside an empty store. Takes ten minutes, and 7 GB."""
    options = History(
        rounds=rounds,
        seconds=seconds,
        clients=clients,
        connections=connections,
        messages=messages,
    )
    _measure(at, options, limit, quiet=quiet)


@bench.command()
@placed
def memory(
    at: Invocation,
    backlog: _Backlog = Memory.backlog,
    singles: _Rate = Memory.singles_per_s,
    batches: _Rate = Memory.batches_per_s,
    seconds: _Seconds = Memory.seconds,
    rounds: _Rounds = Memory.rounds,
    clients: _Clients = Memory.clients,
    limit: _Limit = 15,
    quiet: _Quiet = False,
) -> None:
    """Memory of a gateway with a long queue. Takes three minutes."""
    options = Memory(
        rounds=rounds,
        seconds=seconds,
        clients=clients,
        backlog=backlog,
        singles_per_s=singles,
        batches_per_s=batches,
    )
    _measure(at, options, limit, quiet=quiet)


@bench.command(name="all")
@placed
def all_of_them(
    at: Invocation,
    scale: Annotated[
        float, typer.Option(min=0.00001, max=1, help="How large each is, beside its defaults.")
    ] = 1.0,
    limit: _Limit = 90,
    quiet: _Quiet = False,
) -> None:
    """All of them, in one table at the end. Takes half an hour; with --scale 0.01, two minutes."""
    with _working(at, limit, quiet=quiet) as step:
        from smsgw.bench.suite import measure_all

        found = measure_all(scale, step)
    at.show(found, _table_of_all)
    for failure in found["failures"]:
        output.complain(f"{failure['bench']}: {failure['error']}")
    if found["failures"]:
        raise typer.Exit(1)


def _measure(at: Invocation, options: Options, limit_min: float, *, quiet: bool) -> None:
    with _working(at, limit_min, quiet=quiet) as step:
        from smsgw.bench.suite import measure

        found = measure(options, step)
    at.show(found, _table)


@contextmanager
def _working(at: Invocation, limit_min: float, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Bound a benchmark, show how it goes on, and tell in a line what has spoiled it."""
    from smsgw.bench.ground import bounded
    from smsgw.bench.processes import Spoiled

    try:
        with bounded(limit_min * 60):
            if quiet or at.as_json:
                yield lambda _: None
            else:
                with output.working("measuring") as step:
                    yield step
    except Spoiled as spoiled:
        raise Failed(str(spoiled)) from spoiled


def _table(found: Mapping[str, Any]) -> None:
    from smsgw.bench.results import rows

    output.table(rows(found), _COLUMNS)
    _notes([found], found["machine"])


def _table_of_all(found: Mapping[str, Any]) -> None:
    from smsgw.bench.results import rows

    shown = [
        {"bench": one["bench"], **row, "fsync_p50_ms": f"{one['median']['fsync_p50_ms']:,}"}
        for one in found["results"]
        for row in rows(one)
        if row["must"] or row["figure"] in _BESIDE_TARGETS
    ]
    output.table(shown, ("bench", *_COLUMNS, "fsync_p50_ms"))
    _notes(found["results"], found["machine"])


def _notes(results: list[Mapping[str, Any]], machine: Mapping[str, Any]) -> None:
    """What is to be known beside the figures: marks, and what they were measured on."""
    for one in results:
        for mark in one["marks"]:
            print(f"! {one['bench']}: {mark}")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
