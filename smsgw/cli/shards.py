"""Where clients are: ``shards``."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from smsgw.cli import output
from smsgw.cli.call import Failed
from smsgw.cli.options import Invocation, group, placed

if TYPE_CHECKING:
    from smsgw.settings import Settings
    from smsgw.store.directory import DataDirectory
    from smsgw.store.move import Holding, Moved
    from smsgw.store.places import Step

shards = group("Look at the shards that hold clients and messages, and move clients between them.")

_COUNT_MAX = 256


@shards.command("list", help="Where every shard is, and what is in it.")
@placed
def list_shards(at: Invocation) -> None:
    """Show every shard."""
    columns = ("shard", "address", "slots", "clients", "credits", "held", "charged", "waiting")
    at.show_list(at.ask("GET", "/admin/shards"), *columns)


@shards.command()
@placed
def move(
    at: Invocation,
    to: Annotated[
        int, typer.Option("--to", metavar="SHARD", min=0, max=_COUNT_MAX - 1, help="Where to.")
    ],
    client: Annotated[
        UUID | None,
        typer.Option(help="A client's id; the clients that share its slot go with it."),
    ] = None,
    slot: Annotated[
        int | None, typer.Option(min=0, max=4095, help="Or a slot, with all of its clients.")
    ] = None,
) -> None:
    """Move a client, or a slot, to another shard. The gateway must be stopped.

    When it is interrupted, what was copied is removed by the next start, or it is called again.
    """
    if (client is None) == (slot is None):
        raise typer.BadParameter("either --client or --slot says what is to be moved")

    async def work(holding: "Holding", step: "Step") -> "Moved":
        from smsgw.ids import slot_of
        from smsgw.store import move

        wanted = slot if client is None else slot_of(client.bytes)
        assert wanted is not None
        chart = await holding.chart()
        if client is not None:
            await _must_exist(holding, wanted, client)
        return await move.move(holding, {wanted: to}, chart.shards, step)

    _work(at, "shards move", work)


async def _must_exist(holding: "Holding", slot: int, client: UUID) -> None:
    """Refuse an id that is nobody's: it is mistyped."""
    from smsgw.store import move
    from smsgw.store.tables import tables

    chart = await move.tidied(holding)
    shard = chart.slots[slot][1]
    await holding.open(shard, chart)
    async for rows in holding.place.rows(shard, tables()["client"], slots=[slot]):
        if any(row[1] == client.bytes for row in rows):
            return
    raise Failed(f"there is no client {client}")


@shards.command()
@placed
def resize(
    at: Invocation,
    count: Annotated[
        int,
        typer.Argument(metavar="COUNT", min=1, max=_COUNT_MAX, help="How many shards there are."),
    ],
    empty: Annotated[
        bool, typer.Option("--empty", help="Leave the new ones empty, to move clients there.")
    ] = False,
) -> None:
    """Have more shards, and spread the slots evenly over them. The gateway must be stopped."""

    async def work(holding: "Holding", step: "Step") -> "Moved":
        from smsgw.store import move

        chart = await holding.chart()
        plan = {} if empty or count < chart.shards else move.spread(chart, count)
        return await move.move(holding, plan, count, step)

    _work(at, "shards resize", work)


@shards.command("take-over")
@placed
def take_over(
    at: Invocation,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="That directory is lost, and will never be used again."),
    ] = False,
) -> None:
    """Open a store in PostgreSQL again that a lost data directory was moving.

    A data directory that moves a store keeps all others away from it until it has ended. Where it
    is lost, this one takes its place. Without --yes it only says what that would mean.
    """
    from smsgw.store import migration

    settings = at.settings()
    urls = [url.get_secret_value() for url in settings.store.shard_urls]
    at.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with stopped(at, "shards take-over") as directory:
        taking = migration.take_over(directory, urls, settings.postgres, _now_ms(), sure=yes)
        at.show({"there": asyncio.run(taking)}, output.fields)


def _now_ms() -> int:
    from smsgw.clock import SystemClock

    return SystemClock().now_ms()


def _work(
    at: Invocation,
    purpose: str,
    work: Callable[["Holding", "Step"], Coroutine[Any, Any, "Moved"]],
) -> None:
    settings = at.settings()
    with stopped(at, purpose) as directory, output.counting(purpose) as step:
        moved = asyncio.run(_held(settings, directory, work, step))
    document = {
        "shards": moved.shards,
        "epoch": moved.epoch,
        "slots": moved.slots,
        "clients": len(moved.clients),
        "rows": moved.rows,
        "settings": f"store.shards = {moved.shards}",
    }
    at.show(document, output.fields)


async def _held(
    settings: "Settings",
    directory: "DataDirectory",
    work: Callable[["Holding", "Step"], Coroutine[Any, Any, "Moved"]],
    step: "Step",
) -> "Moved":
    from smsgw.store.holdings import holding

    async with holding(directory, settings.store, settings.postgres, _now_ms()) as found:
        return await work(found, step)


@contextmanager
def stopped(at: Invocation, purpose: str) -> Iterator["DataDirectory"]:
    """The data directory, locked: no gateway runs on it.

    Raises:
        Failed: there is none, or a gateway runs.
    """
    from smsgw.store.directory import DataDirectory, LockHeld

    if not at.data.exists():
        raise Failed(f"there is no store in {at.data}")
    umask = os.umask(0o077)
    try:
        try:
            directory = DataDirectory.open(at.data, purpose)
        except LockHeld as error:
            raise Failed(f"{error.detail}; stop it first: nobody may use it meanwhile") from None
        try:
            yield directory
        finally:
            directory.close()
    finally:
        os.umask(umask)
