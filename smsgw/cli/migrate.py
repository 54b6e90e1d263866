"""Moving a whole store: ``migrate``."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smsgw.cli import output
from smsgw.cli.options import Invocation, placed
from smsgw.cli.shards import stopped

if TYPE_CHECKING:
    from smsgw.store.migration import Migrated

FILES = "files"


@placed
def migrate(
    at: Invocation,
    to: Annotated[
        str,
        typer.Option("--to", metavar="URL", help="postgresql://user@host/database, or: files."),
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URL]...", help="Further databases, to divide the shards over."),
    ] = None,
) -> None:
    """Move everything to PostgreSQL, or back to files. The gateway must be stopped.

    Every shard is copied and proved, and only then is the copy the store; what was left is kept.
    When it is interrupted, call it again: it goes on where it was.
    """
    urls = [to, *(more or ())]
    if FILES in urls and len(urls) > 1:
        raise typer.BadParameter("--to files stands alone")
    at.show(_migrate(at, urls), output.fields)


def _migrate(at: Invocation, urls: list[str]) -> dict[str, Any]:
    from smsgw.clock import SystemClock
    from smsgw.store import migration

    settings = at.settings()
    now_ms = SystemClock().now_ms()
    with stopped(at, "migrate") as directory, output.counting("migrate") as step:
        if urls == [FILES]:
            given = [url.get_secret_value() for url in settings.store.shard_urls]
            moving = migration.to_files(directory, given, settings.postgres, now_ms, step)
        else:
            moving = migration.to_server(directory, urls, settings.postgres, now_ms, step)
        return _told(asyncio.run(moving), to_files=urls == [FILES])


def _told(done: "Migrated", *, to_files: bool) -> dict[str, Any]:
    """What was done, and what has to be set from now on."""
    sums = {
        name: sum(getattr(proof, name) for proof in done.proofs)
        for name in ("clients", "messages", "entries")
    }
    wanted = f"store.shards = {done.shards}"
    wanted += ", no store.shard_urls" if to_files else ", store.shard_urls = the URLs in this order"
    return {
        "store": FILES if to_files else "postgresql",
        "already": done.already,
        "shards": done.shards,
        **(sums if done.proofs else {}),
        "rows": done.rows,
        "resumed": done.resumed,
        "seconds": round(done.seconds, 3),
        "rows_per_s": round(done.rows / done.seconds) if done.seconds else None,
        "kept": None if done.kept is None else str(done.kept),
        "settings": wanted,
    }
