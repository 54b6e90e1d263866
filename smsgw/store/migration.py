"""Moving a whole store from files to PostgreSQL, also while a gateway serves it, and back.

Who owns a store is one fact: where there is a ``catalog.db`` in the data directory, the store is
in its files; where there is none, it is in PostgreSQL. So the move ends in the renaming of that one
file, after everything was copied and proved. Until then the copy, and after it the catalog that
was left, is closed by a note that says which directory moves it, and which way: only that directory
opens it, and only where the rename says so.
"""

import asyncio
import fcntl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from smsgw.errors import StoreError
from smsgw.settings import PostgresSettings
from smsgw.store.directory import CATALOG, NEW_CATALOG, DataDirectory
from smsgw.store.holdings import tidy_files, tidy_server
from smsgw.store.places import (
    CHUNK_ROWS,
    INTO,
    MOVING,
    TIDYING,
    Chart,
    Copying,
    Step,
    audit,
)
from smsgw.store.places_files import CatalogFile, Files, address

if TYPE_CHECKING:
    from smsgw.store.places_postgres import Server

PASSES_MAX: Final = 5
"""How often a store that is served is gone through, before the gateway is stopped for the rest."""
_WHOLE, _OUT, _SLOTS = "whole", "out", "slots"
_LEFT: Final = {
    INTO: "has begun to copy its files here and not ended, so what is here is no store: it would"
    " be removed",
    _WHOLE: "has copied its files here, whole and proved, but has not said that it is done: if it"
    " has its catalog.db, the store is there",
    _OUT: "was moving this store to files: if it ended that, the store is there, and what is here"
    " is old: it would send, and charge, once more",
    _SLOTS: "was moving slots: what that left unfinished would be removed",
}
"""What a data directory was at that has left its note in a server."""


@dataclass(slots=True)
class Migrated:
    """What a migration came to.

    ``rows`` were copied in ``seconds``, by this run alone; both sides have ``counts`` of each
    table. The gateway was stopped ``pause_s`` before it could be started again.
    """

    shards: int
    already: bool = False
    rows: int = 0
    seconds: float = 0.0
    resumed: bool = False
    kept: Path | None = None
    counts: Mapping[str, int] = field(default_factory=Counter)
    passes: int = 0
    pause_s: float | None = None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Be the only migration of a data directory, whether or not a gateway serves it.

    Raises:
        StoreError: there is another one.
    """
    try:
        lock = (path / "migrate.lock").open("a")
    except OSError as error:
        raise StoreError(f"{path} cannot be used: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"another migration of {path} is under way") from None
        yield


@dataclass(slots=True)
class _Following:
    """A copy of what is served; ``chart`` is what the catalog said when it was begun."""

    chart: Chart
    copying: Copying
    resumed: bool
    passes: int = 0


async def to_server(
    directory: DataDirectory,
    urls: Sequence[str],
    postgres: PostgresSettings,
    now_ms: int,
    step: Step,
) -> Migrated:
    """Move a store from the files of a data directory into PostgreSQL.

    Args:
        directory: it, locked.
        urls: of the databases, over which the shards are dealt in turn.
        postgres: how they are reached.
        now_ms: the time to note migrations with.
        step: told how far it is; nothing is lost when it ends the process.

    Raises:
        StoreError: the target is not empty or cannot be reached, or a proof has failed. The files
            are the store as before.
    """
    # asyncpg is an extra, and takes its time to load.
    from smsgw.store.places_postgres import Server

    server = Server(urls, postgres)
    try:
        await tidy_files(directory, now_ms)
        if not (directory.path / CATALOG).exists():
            return await _is_on_server(directory, server)
        return await _into_server(directory, server, None, now_ms, step)
    finally:
        await server.close()


async def to_server_live(
    path: Path,
    urls: Sequence[str],
    postgres: PostgresSettings,
    now_ms: int,
    step: Step,
    take: Callable[[], DataDirectory],
) -> Migrated:
    """Move a store from files into PostgreSQL while a gateway serves it, up to a pause at the end.

    Args:
        path: the data directory.
        urls: of the databases, over which the shards are dealt in turn.
        postgres: how they are reached.
        now_ms: the time to note migrations with.
        step: told how far it is; nothing is lost when it ends the process.
        take: stops the gateway, and locks the directory.

    Raises:
        StoreError: see ``to_server``.
    """
    from smsgw.store.places_postgres import Server

    server = Server(urls, postgres)
    try:
        begun_s = time.monotonic()
        following = await _follow(path, server, now_ms, step)
        step("stopping the gateway", 0, 0)
        stopped_s = time.monotonic()
        directory = await asyncio.to_thread(take)
        try:
            step("stopped", 0, 0)
            await tidy_files(directory, now_ms)
            done = await _into_server(directory, server, following, now_ms, step)
        finally:
            directory.close()
        done.pause_s = time.monotonic() - stopped_s
        done.seconds, done.passes = stopped_s - begun_s, following.passes
        return done
    finally:
        await server.close()


async def prove(
    urls: Sequence[str], postgres: PostgresSettings, done: Migrated, step: Step
) -> None:
    """Audit a store that has moved, also while a gateway serves it again.

    Raises:
        StoreError: what must not be; the store has moved all the same.
    """
    from smsgw.store.places_postgres import Server

    server = Server(urls, postgres)
    try:
        for shard in range(done.shards):
            server.place(shard)
        await audit(server, range(done.shards), step)
    except StoreError as error:
        raise StoreError(
            f"the store is in PostgreSQL now, its files are in {done.kept}; but {error.detail}"
        ) from error
    finally:
        await server.close()


async def _follow(path: Path, server: "Server", now_ms: int, step: Step) -> _Following:
    """Copy what is served, until little is left to do or it was tried often enough."""
    files = Files(path, read_only=True)
    try:
        chart = await CatalogFile.look(path / CATALOG)
        if TIDYING in chart.meta:
            raise StoreError("slots were being moved: start the gateway, which ends that")
        resumed = await _open(path, files, server, chart, now_ms)
        following = _Following(chart, Copying(server, chart.shards, step), resumed)
        step("begun", 0, 0)
        # What the copy is compared with in the end must be right itself.
        await audit(files, range(chart.shards), step)
        for number in range(1, PASSES_MAX + 1):
            # The first copies everything, the second knows what to compare.
            left = await following.copying.go(files, 1, quick=number > 2)
            following.passes = number
            step(f"pass {number} has ended", left, left)
            if number == 1:
                for shard in range(chart.shards):
                    await server.analyze(shard)
            if left <= CHUNK_ROWS:
                break
        return following
    finally:
        await files.close()


async def _is_on_server(directory: DataDirectory, server: "Server") -> Migrated:
    """End a migration that was interrupted after its end was decided."""
    directory.check_server()
    chart = await server.chart()
    if chart is None:
        raise StoreError("the store of this data directory is in PostgreSQL, but not at this URL")
    _must_be_whole(chart)
    directory.claim_for_server(chart.store_id)
    kept = directory.set_aside()
    if _noted(chart) == (_name(directory.path), _WHOLE):
        await server.forget(MOVING)
    return Migrated(chart.shards, already=True, kept=kept)


async def _into_server(
    directory: DataDirectory,
    server: "Server",
    following: _Following | None,
    now_ms: int,
    step: Step,
) -> Migrated:
    path = directory.path
    files = Files(path)
    catalog = await CatalogFile.open(path / CATALOG, now_ms)
    try:
        chart = await catalog.read()
        if following is not None and not _alike(following.chart, chart):
            raise StoreError("clients have moved between shards meanwhile: call it again")
        resumed = await _open(path, files, server, chart, now_ms)
        step("begun", 0, 0)
        copying = following.copying if following else Copying(server, chart.shards, step)
        started_s = time.monotonic()
        await copying.go(files)
        seconds = time.monotonic() - started_s
        step("copied", 0, 0)
        counts = await copying.finish(files)
        if following is None:
            await audit(server, range(chart.shards), step)
    finally:
        await catalog.close()
        await files.close()
    step("proved", 0, 0)
    await server.keep(MOVING, f"{_name(path)} {_WHOLE}")
    directory.claim_for_server(chart.store_id)
    step("claimed", 0, 0)
    directory.leave_files(now_ms)
    step("decided", 0, 0)
    kept = directory.set_aside()
    step("set aside", 0, 0)
    await server.forget(MOVING)
    if following is not None:
        resumed = following.resumed
    return Migrated(chart.shards, False, copying.rows, seconds, resumed, kept, counts)


async def _open(path: Path, files: Files, server: "Server", chart: Chart, now_ms: int) -> bool:
    """Open both sides; whether there was something of this copy already."""
    if len(server.databases) > chart.shards:
        raise StoreError(f"there are more URLs than shards, of which there are {chart.shards}")
    if "made" not in chart.meta:
        raise StoreError(f"{path} was never started: there is nothing to move")
    for shard in range(chart.shards):
        _must_be_there(path / address(shard))
        await files.open(shard, chart.identity(shard), now_ms)
    resumed = await _begin_on_server(_name(path), server, chart, now_ms)
    for shard in range(chart.shards):
        server.place(shard)
        await server.make_shard(shard, _label(chart, shard), now_ms)
    return resumed


async def _begin_on_server(name: str, server: "Server", chart: Chart, now_ms: int) -> bool:
    """Make the catalog of the copy; whether there was one of this very copy already."""
    found = await server.chart()
    resumed = found is not None
    if found is not None:
        if _noted(found) not in ((name, INTO), (name, _WHOLE)):
            raise StoreError(f"{server.databases[0].name} is not empty: it holds a store already")
        if not _alike(found, chart) or not server.is_dealt(chart.shards):
            # Clients have other numbers now, or other places.
            await server.drop(found)
            resumed = False
    if not resumed and (extra := await server.schemas()):
        raise StoreError(f"the target is not empty: {extra[0]} is there")
    wanted = replace(chart, meta={**chart.meta, MOVING: f"{name} {INTO}"})
    if found != wanted or not resumed:
        await server.write_catalog(wanted, now_ms)
    return resumed


async def to_files(
    directory: DataDirectory,
    urls: Sequence[str],
    postgres: PostgresSettings,
    now_ms: int,
    step: Step,
) -> Migrated:
    """Move a store from PostgreSQL into the files of a data directory.

    Args:
        directory: it, locked; the one of a gateway of this store.
        urls: of the databases where the store is.
        postgres: how they are reached.
        now_ms: the time to note migrations with.
        step: told how far it is; nothing is lost when it ends the process.

    Raises:
        StoreError: other gateways use the store, there are files in the way, or a proof has failed.
            The store in PostgreSQL is the store as before.
    """
    if (directory.path / CATALOG).exists():
        directory.check_no_server()
        return Migrated(len(list((directory.path / "shards").glob("*.db"))), already=True)
    _must_be_told(urls)
    from smsgw.store.places_postgres import Server

    directory.set_aside()
    await tidy_server(directory, urls, postgres, now_ms)
    server = Server(urls, postgres)
    try:
        return await _out_of_server(directory, server, now_ms, step)
    finally:
        await server.close()


async def _out_of_server(
    directory: DataDirectory, server: "Server", now_ms: int, step: Step
) -> Migrated:
    chart = await server.chart()
    if chart is None:
        raise StoreError(f"{server.databases[0].name} holds no store")
    directory.check_claim(chart.store_id)
    _check_key(directory, chart)
    name = _name(directory.path)
    if (noted := _noted(chart)) is not None and noted[0] != name:
        raise StoreError(f"{server.databases[0].name} is moved by another data directory")
    _must_be_whole(chart)
    await server.begin_moving(name, f"{name} {_OUT}")
    directory.claim_for_server(chart.store_id)
    step("begun", 0, 0)
    # The key is the directory's own, and the note is the server's.
    meta = {key: value for key, value in chart.meta.items() if key not in ("otp_key", MOVING)}
    resumed = await _begin_in_files(directory, replace(chart, meta=meta), now_ms)
    files = Files(directory.path)
    try:
        for shard in range(chart.shards):
            await files.open(shard, _label(chart, shard), now_ms)
        copying = Copying(files, chart.shards, step)
        started_s = time.monotonic()
        await copying.go(server)
        seconds = time.monotonic() - started_s
        step("copied", 0, 0)
        counts = await copying.finish(server)
        await audit(files, range(chart.shards), step)
    finally:
        await files.close()
    step("proved", 0, 0)
    directory.take_files()
    step("decided", 0, 0)
    directory.check_no_server()
    return Migrated(chart.shards, False, copying.rows, seconds, resumed, None, counts)


async def _begin_in_files(directory: DataDirectory, chart: Chart, now_ms: int) -> bool:
    """Make the catalog of the copy; whether there was one already that can be gone on with."""
    path = directory.path / NEW_CATALOG
    begun = path.exists()
    if begun:
        catalog = await CatalogFile.open(path, now_ms)
        found = await catalog.read()
        if found.meta and _alike(found, chart):
            await catalog.write(chart)
            await catalog.close()
            return True
        await catalog.close()
    for file in sorted((directory.path / "shards").glob("*.db*")):
        if not begun:
            raise StoreError(f"the target is not empty: {file} is there")
        # Of a copy in which clients have other numbers.
        file.unlink()
    for file in directory.path.glob(f"{NEW_CATALOG}*"):
        file.unlink()
    catalog = await CatalogFile.open(path, now_ms)
    await catalog.write(chart)
    await catalog.close()
    return False


async def take_over(
    directory: DataDirectory,
    urls: Sequence[str],
    postgres: PostgresSettings,
    now_ms: int,
    *,
    sure: bool,
) -> str:
    """Open a store in PostgreSQL again that a data directory was moving which is lost.

    Args:
        directory: another one, locked.
        urls: of the databases where the store is.
        postgres: how they are reached.
        now_ms: the time to note migrations with.
        sure: whether the directory is lost, and its move with it.

    Returns:
        What is there now.

    Raises:
        StoreError: nobody moves it, or gateways use it; or it is not sure: what would be done.
    """
    _must_be_told(urls)
    from smsgw.store.places_postgres import Server

    server = Server(urls, postgres)
    try:
        chart = await server.chart()
        noted = None if chart is None else _noted(chart)
        name = _name(directory.path)
        if chart is None or noted is None or (noted[0] == name and noted[1] != INTO):
            raise StoreError(f"{server.databases[0].name}: no other data directory moves a store")
        if not sure:
            raise StoreError(
                f"the data directory whose gateway.id begins with {noted[0][:8]} {_LEFT[noted[1]]}."
                " If that directory is lost, and nobody will ever use it again, say --yes"
            )
        lost = chart.meta[MOVING]
        await server.begin_moving(name, f"{name} {noted[1]}", instead_of=lost)
        if noted[1] == INTO:
            await server.drop(chart)
            return "nothing any more"
        if noted[1] == _SLOTS:
            await tidy_server(directory, urls, postgres, now_ms)
        await server.forget(MOVING)
        return "the store, for every gateway"
    finally:
        await server.close()


def _check_key(directory: DataDirectory, chart: Chart) -> None:
    from smsgw.store.postgres_seat import told_of

    if chart.meta.get("otp_key") not in (None, told_of(directory.key())):
        raise StoreError(
            f"{directory.path / 'otp.key'} is not the key of this store: its codes could not be"
            " verified any more; copy the key of its gateway"
        )


def _name(path: Path) -> str:
    from smsgw.store.postgres_seat import name_of

    return name_of(path)


def _noted(chart: Chart) -> tuple[str, str] | None:
    """Which data directory moves a store, and which way."""
    words = chart.meta.get(MOVING, "").split()
    return (words[0], words[-1]) if words else None


def _must_be_whole(chart: Chart) -> None:
    if (_noted(chart) or ("", ""))[1] == INTO:
        raise StoreError("what is there is no store, but an unfinished copy of one in files")


def _alike(one: Chart, other: Chart) -> bool:
    """Whether clients are in the same shards, under the same numbers."""
    return one.identity(0) == other.identity(0)


def _label(chart: Chart, shard: int) -> dict[str, int]:
    """What a shard must say of itself before it has been copied."""
    return {"store": chart.store_id, "shard": shard}


def _must_be_told(urls: Sequence[str]) -> None:
    if not urls:
        raise StoreError("store.shard_urls does not say where the store is")


def _must_be_there(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        raise StoreError(f"{path} is missing")
