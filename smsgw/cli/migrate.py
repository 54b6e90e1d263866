"""Moving a whole store: ``migrate``."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smsgw.cli import output
from smsgw.cli.call import CONNECT_S, Failed
from smsgw.cli.options import Invocation, placed
from smsgw.cli.shards import stopped

if TYPE_CHECKING:
    from smsgw.store.directory import DataDirectory
    from smsgw.store.migration import Migrated
    from smsgw.store.places import Step

FILES = "files"
STOP_S: Final = 60.0
"""How long a gateway may take to stop; by itself it takes 25 seconds at most."""
_LOOK_S: Final = 0.1


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
    live: Annotated[
        bool,
        typer.Option("--live", help="While the gateway serves; it is stopped for the last rows."),
    ] = False,
) -> None:
    """Move everything to PostgreSQL, or back to files. Without --live, the gateway must be stopped.

    Every shard is copied and proved, and only then is the copy the store; what was left is kept.
    When it is interrupted, call it again: it goes on where it was.
    """
    urls = [to, *(more or ())]
    if FILES in urls and len(urls) > 1:
        raise typer.BadParameter("--to files stands alone")
    if FILES in urls and live:
        raise typer.BadParameter("--live goes only to PostgreSQL")
    at.show(_migrate(at, urls, live=live), output.fields)


def _migrate(at: Invocation, urls: list[str], *, live: bool) -> dict[str, Any]:
    from smsgw.clock import SystemClock
    from smsgw.store import migration
    from smsgw.store.directory import CATALOG

    settings = at.settings()
    now_ms = SystemClock().now_ms()
    if not at.data.exists():
        raise Failed(f"there is no store in {at.data}")
    with migration.alone(at.data), output.counting("migrate") as step:
        if live and (at.data / CATALOG).exists():
            return _told(_live(at, urls, now_ms, step), to_files=False)
        with stopped(at, "migrate") as directory:
            if urls == [FILES]:
                given = [url.get_secret_value() for url in settings.store.shard_urls]
                moving = migration.to_files(directory, given, settings.postgres, now_ms, step)
            else:
                moving = migration.to_server(directory, urls, settings.postgres, now_ms, step)
            return _told(asyncio.run(moving), to_files=urls == [FILES])


def _live(at: Invocation, urls: list[str], now_ms: int, step: "Step") -> "Migrated":
    from smsgw.store import migration
    from smsgw.store.directory import CATALOG

    told: set[int] = set()
    if (gateway := _serving(at.data)) is not None:
        _tell(gateway, 0)
    moving = migration.to_server_live(
        at.data, urls, at.settings().postgres, now_ms, step, lambda: _take(at.data, told)
    )
    umask = os.umask(0o077)
    try:
        done = asyncio.run(moving)
    except BaseException:
        if told and (at.data / CATALOG).exists():
            output.complain("the files are the store as before: start the gateway again")
        raise
    finally:
        os.umask(umask)
    output.complain("the store is in PostgreSQL: start the gateway; the copy is audited now")
    asyncio.run(migration.prove(urls, at.settings().postgres, done, step))
    return done


def _take(data: Path, told: set[int]) -> "DataDirectory":
    """Stop the gateway, and whatever is started in its place, until the data directory is ours.

    Args:
        data: the data directory.
        told: gets the processes that were told to stop.

    Raises:
        Failed: somebody keeps the directory.
    """
    from smsgw.store.directory import DataDirectory, LockHeld

    end_s = time.monotonic() + STOP_S
    while True:
        gateway = _serving(data)
        if gateway is not None and gateway not in told:
            told.add(gateway)
            _tell(gateway, signal.SIGTERM)
        try:
            return DataDirectory.open(data, "migrate", _LOOK_S)
        except LockHeld as error:
            if time.monotonic() > end_s:
                raise Failed(f"{error.detail}, which does not end") from None


def _serving(data: Path) -> int | None:
    """The process that serves a data directory, as the kernel knows it; None where none does."""
    from smsgw.api.sockets import ADMIN_SOCKET, connect_unix

    try:
        connection = connect_unix(data / ADMIN_SOCKET, CONNECT_S)
    except OSError:
        return None
    with contextlib.closing(connection):
        if not hasattr(socket, "SO_PEERCRED"):
            raise Failed("which process serves cannot be told here: stop it, and leave --live out")
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process: int = struct.unpack("3i", told)[0]
    if process == 0:
        raise Failed("the gateway runs in another container: it cannot be stopped from here")
    return process


def _tell(process: int, number: int) -> None:
    """Send a signal; with 0, find out whether that is allowed."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(process, number)
        except PermissionError:
            raise Failed(f"the gateway, process {process}, is not ours to stop") from None


def _told(done: "Migrated", *, to_files: bool) -> dict[str, Any]:
    """What was done, and what has to be set from now on."""
    counted = {"clients": "client", "messages": "message", "entries": "entry"}
    wanted = f"store.shards = {done.shards}"
    wanted += ", no store.shard_urls" if to_files else ", store.shard_urls = the URLs in this order"
    return {
        "store": FILES if to_files else "postgresql",
        "already": done.already,
        "shards": done.shards,
        **({name: done.counts[table] for name, table in counted.items()} if done.counts else {}),
        "rows": done.rows,
        "resumed": done.resumed,
        "seconds": round(done.seconds, 3),
        "rows_per_s": round(done.rows / done.seconds) if done.seconds else None,
        "passes": done.passes or None,
        "pause_s": None if done.pause_s is None else round(done.pause_s, 3),
        "kept": None if done.kept is None else str(done.kept),
        "settings": wanted,
    }
