"""A copy of everything, and a data directory from it: ``backup`` and ``restore``."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smsgw.cli import output
from smsgw.cli.call import Door, Failed
from smsgw.cli.options import Invocation, placed

if TYPE_CHECKING:
    from smsgw.store.restore import Restored

_LOOK_S: Final = 0.25
_SUMS: Final = ("clients", "messages", "entries", "credits", "held", "charged")


@placed
def backup(
    at: Invocation,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to: a folder that is new, or empty.")
    ],
) -> None:
    """Copy the whole store, also while the gateway serves; every copy is proved.

    With --json, the manifest of the backup is printed.
    """
    _must_be_in_files(at)
    with at.door() as door:
        try:
            state = _followed(door, directory.absolute())
        except KeyboardInterrupt:
            if door.serving:
                at.ask("DELETE", "/admin/backup")
            raise
    if state["state"] != "done":
        raise Failed(state["detail"])
    at.show(state["manifest"], lambda manifest: output.fields(_told(directory, manifest)))


def _followed(door: Door, target: Path) -> Any:
    """Begin a backup, and show how far it is until it has ended."""
    with output.counting("backup") as step:
        state = door.ask("POST", "/admin/backup", body={"directory": os.fspath(target)})
        while state["state"] == "running":
            step(f"{state['step']}, MiB", state["done"], state["total"])
            state = door.ask("GET", "/admin/backup", query={"wait_s": _LOOK_S})
    return state


def _must_be_in_files(at: Invocation) -> None:
    from smsgw.store.backup import ON_SERVER
    from smsgw.store.directory import CATALOG

    if not (at.data / CATALOG).exists() and at.settings().store.shard_urls:
        raise Failed(ON_SERVER)


def _told(directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What is in a backup, for people."""
    shards = manifest["shards"]
    return {
        "backup": str(directory),
        "at": manifest["at"],
        "shards": len(shards),
        **{name: sum(shard[name] for shard in shards) for name in _SUMS},
    }


@placed
def restore(
    at: Invocation,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The backup.")],
) -> None:
    """Make the data directory from a backup; what is in it is proved first, and paused.

    Nothing is overwritten: --data names a directory without a store. When it is interrupted, call
    it again.
    """
    _must_be_in_files(at)
    done = _restored(at, directory.absolute())
    told = {
        **_told(directory, done.manifest.model_dump()),
        "data": str(at.data),
        "already": done.already,
        "paused": "everything",
        "settings": f"store.shards = {len(done.manifest.shards)}",
    }
    at.show(told, output.fields)
    output.complain(
        "nothing is sent until smsgw resume: what was sent after the backup looks unsent here, so"
        " look at what waits first"
    )


def _restored(at: Invocation, backup: Path) -> "Restored":
    from smsgw.clock import SystemClock
    from smsgw.store import manifest as manifests
    from smsgw.store import restore as restoring
    from smsgw.store.directory import RESTORING, DataDirectory, must_hold_no_store

    manifest = manifests.read(backup)
    if not (at.data / RESTORING).exists():
        must_hold_no_store(at.data)
    umask = os.umask(0o077)
    try:
        store = DataDirectory.open(at.data, "restore", restoring=True)
        try:
            with output.counting("restore") as step:
                now_ms = SystemClock().now_ms()
                return asyncio.run(restoring.restore(store, backup, manifest, now_ms, step))
        finally:
            store.close()
    finally:
        os.umask(umask)
