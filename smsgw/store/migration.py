"""Moving a whole store from files to PostgreSQL and back, while no gateway serves it.

Who owns a store is one fact: where there is a ``catalog.db`` in the data directory, the store is
in its files; where there is none, it is in PostgreSQL. So the move ends in the renaming of that one
file, after everything was copied and proved. Until then the copy, and after it the catalog that
was left, is closed by a note that says which directory moves it: only that directory opens it, and
only where the rename says so.

The note also holds a word that the source keeps as well, and forgets when a gateway opens it. An
interrupted copy goes on behind the last keys it has where the word is still the same; otherwise
the source may have changed, and the copy begins anew.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from smsgw.errors import StoreError
from smsgw.settings import PostgresSettings
from smsgw.store.audit import Proof
from smsgw.store.directory import CATALOG, NEW_CATALOG, DataDirectory
from smsgw.store.holdings import tidy_files, tidy_server
from smsgw.store.places import MOVING, Chart, Step, copy, prove
from smsgw.store.places_files import CatalogFile, Files, address

if TYPE_CHECKING:
    from smsgw.store.places_postgres import Server

_INTO: Final = "into"
_OUT: Final = "out"


@dataclass(slots=True)
class Migrated:
    """What a migration came to; ``rows`` were copied in ``seconds`` by this run alone."""

    shards: int
    already: bool = False
    rows: int = 0
    seconds: float = 0.0
    resumed: bool = False
    kept: Path | None = None
    proofs: Sequence[Proof] = ()


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

    await tidy_files(directory, now_ms)
    server = Server(urls, postgres)
    files = Files(directory.path)
    try:
        if not (directory.path / CATALOG).exists():
            return await _is_on_server(directory, server)
        return await _into_server(directory, files, server, now_ms, step)
    finally:
        await files.close()
        await server.close()


async def _is_on_server(directory: DataDirectory, server: "Server") -> Migrated:
    """End a migration that was interrupted after its end was decided."""
    directory.check_server()
    chart = await server.chart()
    if chart is None:
        raise StoreError("the store of this data directory is in PostgreSQL, but not at this URL")
    directory.claim_for_server(chart.store_id)
    kept = directory.set_aside()
    if _is_ours(directory, chart, _INTO):
        await server.forget(MOVING)
    return Migrated(chart.shards, already=True, kept=kept)


async def _into_server(
    directory: DataDirectory, files: Files, server: "Server", now_ms: int, step: Step
) -> Migrated:
    catalog = await CatalogFile.open(directory.path / CATALOG, now_ms)
    try:
        chart = await catalog.read()
        if len(server.databases) > chart.shards:
            raise StoreError(f"there are more URLs than shards, of which there are {chart.shards}")
        if "made" not in chart.meta:
            raise StoreError(f"{directory.path} was never started: there is nothing to move")
        word = chart.meta.pop(MOVING, None) or secrets.token_hex(8)
        await catalog.keep(MOVING, word)
        note = f"{_name(directory)} {word} {_INTO}"
        step("opening", 0, 0)
        for shard in range(chart.shards):
            _must_be_there(directory.path / address(shard))
            await files.open(shard, chart.identity(shard), now_ms)
        resumed = await _begin_on_server(directory, server, chart, note, now_ms)
        step("begun", 0, 0)
        for shard in range(chart.shards):
            server.place(shard)
            await server.make_shard(shard, chart.identity(shard), now_ms)
        started_s = time.monotonic()
        rows = await copy(files, server, chart, step)
        seconds = time.monotonic() - started_s
        proofs = await prove(files, server, chart, step)
    finally:
        await catalog.close()
        await files.close()
    step("proved", 0, 0)
    directory.claim_for_server(chart.store_id)
    step("claimed", 0, 0)
    directory.leave_files(now_ms)
    step("decided", 0, 0)
    kept = directory.set_aside()
    step("set aside", 0, 0)
    await server.forget(MOVING)
    return Migrated(chart.shards, False, rows, seconds, resumed, kept, proofs)


async def _begin_on_server(
    directory: DataDirectory, server: "Server", chart: Chart, note: str, now_ms: int
) -> bool:
    """Make the catalog of the copy; whether there was one of this very copy already."""
    found = await server.chart()
    if found is not None:
        if found.meta.get(MOVING) == note and found.shards == chart.shards:
            return True
        if not _is_ours(directory, found, _INTO):
            raise StoreError(f"{server.databases[0].name} is not empty: it holds a store already")
        # The files were served since that copy began: it is worth nothing.
        for shard in range(found.shards):
            server.place(shard)
        await server.drop(found)
    if extra := await server.schemas():
        raise StoreError(f"the target is not empty: {extra[0]} is there")
    await server.make_catalog(replace(chart, meta={**chart.meta, MOVING: note}), now_ms)
    return False


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
    if not urls:
        raise StoreError("store.shard_urls does not say where the store is")
    from smsgw.store.places_postgres import Server

    directory.set_aside()
    await tidy_server(directory, urls, postgres, now_ms)
    server = Server(urls, postgres)
    files = Files(directory.path)
    try:
        return await _out_of_server(directory, server, files, now_ms, step)
    finally:
        await files.close()
        await server.close()


async def _out_of_server(
    directory: DataDirectory, server: "Server", files: Files, now_ms: int, step: Step
) -> Migrated:
    chart = await server.chart()
    if chart is None:
        raise StoreError(f"{server.databases[0].name} holds no store")
    directory.claim_for_server(chart.store_id)
    _check_key(directory, chart)
    name = _name(directory)
    note = chart.meta.pop(MOVING, f"{name} {secrets.token_hex(8)} {_OUT}")
    if note.split()[0] != name:
        raise StoreError(f"{server.databases[0].name} is moved by another data directory")
    if note.split()[2] != _OUT:
        note = f"{name} {secrets.token_hex(8)} {_OUT}"
    await server.begin_moving(name, note)
    step("begun", 0, 0)
    # The key is the directory's own.
    meta = {key: value for key, value in chart.meta.items() if key != "otp_key"}
    resumed = await _begin_in_files(
        directory, replace(chart, meta={**meta, MOVING: note.split()[1]}), now_ms
    )
    try:
        for shard in range(chart.shards):
            await files.open(shard, chart.identity(shard), now_ms)
        started_s = time.monotonic()
        rows = await copy(server, files, chart, step)
        seconds = time.monotonic() - started_s
        proofs = await prove(server, files, chart, step)
    finally:
        await files.close()
    step("proved", 0, 0)
    directory.take_files()
    step("decided", 0, 0)
    directory.check_no_server()
    return Migrated(chart.shards, False, rows, seconds, resumed, None, proofs)


async def _begin_in_files(directory: DataDirectory, chart: Chart, now_ms: int) -> bool:
    """Make the catalog of the copy; whether there was one of this very copy already."""
    path = directory.path / NEW_CATALOG
    begun = path.exists()
    if begun:
        catalog = await CatalogFile.open(path, now_ms)
        try:
            if (await catalog.read()).meta.get(MOVING) == chart.meta[MOVING]:
                return True
        finally:
            await catalog.close()
    for file in sorted((directory.path / "shards").glob("*.db*")):
        if not begun:
            raise StoreError(f"the target is not empty: {file} is there")
        # Of a copy of what has been served since: it is worth nothing.
        file.unlink()
    for file in directory.path.glob(f"{NEW_CATALOG}*"):
        file.unlink()
    catalog = await CatalogFile.open(path, now_ms)
    await catalog.write(chart)
    await catalog.close()
    return False


def _check_key(directory: DataDirectory, chart: Chart) -> None:
    from smsgw.store.postgres_seat import told_of

    if chart.meta.get("otp_key") not in (None, told_of(directory.key())):
        raise StoreError(
            f"{directory.path / 'otp.key'} is not the key of this store: its codes could not be"
            " verified any more; copy the key of its gateway"
        )


def _name(directory: DataDirectory) -> str:
    from smsgw.store.postgres_seat import name_of

    return name_of(directory.path)


def _is_ours(directory: DataDirectory, chart: Chart, way: str) -> bool:
    words = chart.meta.get(MOVING, "").split()
    return bool(words) and words[0] == _name(directory) and words[2] == way


def _must_be_there(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        raise StoreError(f"{path} is missing")
