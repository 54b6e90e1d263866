"""A data directory made from a backup: proved before anything is in place, and paused.

What is restored is copied into a folder of the data directory, compared with the manifest, brought
up to date and proved there; then each file is renamed into its place, the catalog last. Nobody
opens a directory that has this folder and no catalog.
"""

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from smsgw.errors import StoreError
from smsgw.store import manifest as manifests
from smsgw.store.catalog import PAUSE_ALL
from smsgw.store.directory import CATALOG, KEY, DataDirectory, flush
from smsgw.store.manifest import Kept, Manifest
from smsgw.store.places import Chart, Step, audit
from smsgw.store.places_files import CatalogFile, Files


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored; ``already`` by a call before that was interrupted at its very end."""

    manifest: Manifest
    already: bool = False


async def restore(
    directory: DataDirectory, backup: Path, manifest: Manifest, now_ms: int, step: Step
) -> Restored:
    """Make a store in a data directory from a backup; everything in it is paused.

    Args:
        directory: it, locked.
        backup: where the backup is.
        manifest: of the backup.
        now_ms: the time to note migrations with.
        step: told how far it is; called again after it has ended the process, all is well.

    Raises:
        StoreError: there is a store, or the backup is not as it was made. There is no store then.
    """
    text = manifest.text()
    if directory.is_restored(text):
        directory.end_restoring()
        return Restored(manifest, already=True)
    _must_have_room(directory.path, manifest.bytes)
    key = _read_key(backup / KEY, manifest.key)
    folder = directory.begin_restoring(text, key)
    step("begun", 0, 0)
    try:
        await asyncio.to_thread(_copy, manifest, backup, folder, step)
        step("copied", 0, 0)
        await _prove(folder, manifest, now_ms, step)
    except BaseException:
        directory.end_restoring()
        raise
    step("proved", 0, 0)
    directory.take_restored([one.file for one in manifest.shards], step)
    step("decided", 0, 0)
    directory.end_restoring()
    return Restored(manifest)


def _must_have_room(path: Path, needed_bytes: int) -> None:
    if (free_bytes := shutil.disk_usage(path).free) < needed_bytes:
        raise StoreError(
            f"{path} has no room: {needed_bytes >> 20} MiB are needed, {free_bytes >> 20} MiB"
            " are free"
        )


def _read_key(path: Path, kept: Kept) -> bytes:
    found: list[bytes] = []
    try:
        _must_be(path, kept, manifests.hashed(path, found.append))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    return b"".join(found)


def _copy(manifest: Manifest, backup: Path, folder: Path, step: Step) -> None:
    """Copy every file, and compare what was read with what the manifest says."""
    done, total = 0, manifest.bytes
    for one in manifest.files:
        try:
            descriptor = os.open(folder / one.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                found = manifests.hashed(backup / one.file, stream.write)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise StoreError(f"{error.filename or folder}: {error.strerror or error}") from error
        _must_be(backup / one.file, one, found)
        done += one.bytes
        step(f"{one.file} is copied, MiB", done >> 20, total >> 20)


def _must_be(path: Path, kept: Kept, found: tuple[int, str]) -> None:
    if found != (kept.bytes, kept.sha256):
        what = "length" if found[0] != kept.bytes else "SHA-256"
        raise StoreError(f"{path} is damaged: its {what} is not that of the manifest")


async def _prove(folder: Path, manifest: Manifest, now_ms: int, step: Step) -> None:
    """Bring the copies up to date, prove them, and pause everything."""
    catalog = await CatalogFile.open(folder / CATALOG, now_ms)
    files = Files(folder)
    try:
        chart = await catalog.read()
        _must_be_that(chart, manifest)
        for shard in range(chart.shards):
            await files.open(shard, chart.identity(shard), now_ms)
        await audit(files, range(chart.shards), step)
        chart.pauses = sorted({*chart.pauses, PAUSE_ALL})
        await catalog.write(chart)
    finally:
        await files.close()
        await catalog.close()
    for one in manifest.files:
        flush(folder / one.file)
    flush(folder / "shards")
    flush(folder)


def _must_be_that(chart: Chart, manifest: Manifest) -> None:
    found = (chart.meta.get("store"), chart.meta.get("epoch"), chart.shards)
    if found != (manifest.store, str(manifest.epoch), len(manifest.shards)):
        raise StoreError("the catalog of the backup is not that of its manifest")
