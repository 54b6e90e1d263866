"""A store is copied while it is used, and restored: whole or not at all, proved, and paused."""

import asyncio
import hashlib
import json
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smsgw.cli import output
from smsgw.cli.main import main
from smsgw.errors import AlreadyExists, ShuttingDown
from smsgw.store import backup
from smsgw.store.audit import audit
from smsgw.store.manifest import read
from tests import postgres
from tests.stores import plain, rows
from tests.support import DELIVERED, Served, clean_environment, open_gateway, send, smsgw
from tests.test_kill import CLIENTS, Load, environ_of, everything, finished, journal_of
from tests.test_migrate import (
    SHARDS,
    _two_shards,
    cannot_open,
    client_in,
    filled,
    killed,
    ran,
    refused,
    views,
)

__all__ = ["_two_shards", "filled"]

FILES = ("shards/00.db", "shards/01.db", "catalog.db", "otp.key")
KILLED = """
import os, signal, sys
from smsgw.__main__ import run
from smsgw.store.backup import Making

tell = Making._tell

def told(self, what):
    tell(self, what)
    if what == step:
        os.kill(os.getpid(), signal.SIGKILL)

Making._tell, step = told, sys.argv.pop(1)
run()
"""


@pytest.fixture
def data(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "data"))


@pytest.fixture(scope="module")
def made(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of the filled store, made once; tests work on copies."""
    place = tmp_path_factory.mktemp("made")
    data = shutil.copytree(filled, place / "data")
    ended = smsgw("--data", str(data), "backup", str(place / "one"), SMSGW_STORE__SHARDS="2")
    assert ended.returncode == 0, ended.stderr
    return place / "one"


@pytest.fixture
def one(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "one"))


def audit_of(data: Path) -> Any:
    ended = smsgw("--data", str(data), "--json", "audit")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def flip(path: Path, at: int) -> None:
    """Another byte at a place of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.timeout(120)
def test_a_store_under_load_is_copied_and_restored_and_sends_nothing_by_itself(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    environ = environ_of(
        tmp_path / "journal",
        SMSGW_PROVIDERS__MOCK__LATENCY_MS="300",
        SMSGW_PROVIDERS__MOCK__WINDOW="20",
    )
    gateway = served(environ)
    many = {"client_id": CLIENTS[1], "to": [DELIVERED] * 300, "from": "ACME", "text": "waits"}
    status, _ = gateway.request("POST", "/v1/messages/batch", many)
    assert status == 202
    load = Load(gateway.port, 1)
    with load.running():
        load.answered(40)
        before = {identifier for r in list(load.requests) for identifier in r.ids()}
        ended = gateway.cli("--json", "backup", str(tmp_path / "one"))
        assert ended.returncode == 0, ended.stderr
        load.answered(sum(r.status is not None for r in list(load.requests)) + 20)
        gateway.kill()
    manifest = json.loads(ended.stdout)
    assert manifest == json.loads((tmp_path / "one" / "backup.json").read_text())

    restored, journal = tmp_path / "restored", tmp_path / "journal of the restored"
    ended = smsgw("--data", str(restored), "restore", str(tmp_path / "one"))
    assert ended.returncode == 0, ended.stderr
    assert "resume" in ended.stderr
    proof = audit_of(restored)
    for copied, found in zip(manifest["shards"], proof["shards"], strict=True):
        assert {name: copied[name] for name in found} == found
    gateway = served(environ_of(journal), data=restored)
    status, answer = gateway.request("POST", "/v1/messages", {**many, "to": DELIVERED})
    assert (status, answer["status"]) == (202, "QUEUED")
    messages = everything(gateway)
    assert before <= messages.keys()
    waiting = {i for i, row in messages.items() if row["status"] == "QUEUED"}
    assert len(waiting) > 200
    ready = gateway.request("GET", "/ready")[1]
    assert any("paused" in word for word in ready["degraded"])
    assert not journal.exists() or not journal.read_text()
    assert gateway.cli("resume").returncode == 0
    messages = finished(gateway)
    sent = journal_of(journal)
    assert waiting <= sent.keys()
    assert set(sent.values()) == {1}
    # What was with the operator at that moment is not sent again.
    assert sent.keys() <= {i for i, row in messages.items() if row["reason"] != "uncertain"}
    assert gateway.stop() == 0
    audit_of(restored)


def test_everything_is_as_it_was_and_readable_by_its_owner_only(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, target = views(data), tmp_path / "backups" / "monday"
    manifest = ran(capsys, "--data", data, "backup", target)
    assert names(target) == {*FILES, "backup.json"}
    assert folders(target.parent) == ["monday"]
    assert manifest["shards"][0]["bytes"] == (target / FILES[0]).stat().st_size
    assert sum(shard["clients"] for shard in manifest["shards"]) == 6
    restored = tmp_path / "restored"
    done = ran(capsys, "--data", restored, "restore", target)
    assert (done["paused"], done["settings"]) == ("everything", "store.shards = 2")
    assert names(restored) == {*FILES, "lock"}
    for folder in (target, restored):
        for path in (folder, *folder.rglob("*")):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert views(restored) == before
    assert rows(restored / "catalog.db", "SELECT subject FROM pause") == [("",)]
    assert "is a backup" in cannot_open(target)
    assert names(target) == {*FILES, "backup.json"}


def hold(monkeypatch: pytest.MonkeyPatch, at: str) -> tuple[threading.Event, threading.Event]:
    """Let a backup wait at a step: it has come there, it may go on."""
    come, go_on = threading.Event(), threading.Event()
    tell = backup.Making._tell

    def told(self: backup.Making, what: str) -> None:
        if what == at and not come.is_set():
            come.set()
            assert go_on.wait(20)
        tell(self, what)

    monkeypatch.setattr(backup.Making, "_tell", told)
    return come, go_on


async def test_turns_go_on_while_a_shard_is_copied_and_are_not_in_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_STEP_PAGES", 1)
    come, go_on = hold(monkeypatch, "shard 0: copying")
    gateway = await open_gateway(tmp_path / "data", {"store": {"shards": SHARDS}})
    try:
        client = await client_in(gateway, 0, 1)
        await send(gateway, client)
        gateway.back_up(tmp_path / "one")
        assert await asyncio.to_thread(come.wait, 20)
        with pytest.raises(AlreadyExists):
            gateway.back_up(tmp_path / "two")
        for number in range(100):
            await send(gateway, client, text=f"meanwhile {number}")
        go_on.set()
        state = await gateway.backups.state(20)
        assert state["state"] == "done", state
    finally:
        go_on.set()
        await gateway.close()
    assert state["manifest"]["shards"][0]["messages"] == 1
    connection = plain(tmp_path / "one" / "shards" / "00.db")
    assert not audit(connection, 0).findings
    connection.close()
    assert rows(tmp_path / "data/shards/00.db", "SELECT count(*) FROM message") == [(101,)]


async def test_a_gateway_that_stops_gives_its_backup_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    come, go_on = hold(monkeypatch, "shard 1 is copied")
    stop = backup.Making.stop

    def stopped(self: backup.Making) -> None:
        stop(self)
        go_on.set()

    monkeypatch.setattr(backup.Making, "stop", stopped)
    gateway = await open_gateway(tmp_path / "data", {"store": {"shards": SHARDS}})
    gateway.back_up(tmp_path / "one")
    assert await asyncio.to_thread(come.wait, 20)
    await gateway.close()
    assert (await gateway.backups.state())["detail"] == "the backup was given up"
    assert folders(tmp_path) == ["data"]
    with pytest.raises(ShuttingDown):
        gateway.back_up(tmp_path / "one")


def kill_backup(step: str, data: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a command in whose process a backup is killed at a step."""
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, step, "--data", str(data), *arguments],
        env={**clean_environment(), "SMSGW_STORE__SHARDS": str(SHARDS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("step", ["begun", "shard 1 is copied", "whole", "in place"])
def test_a_backup_that_is_killed_is_whole_or_not_there_and_can_be_repeated(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    target = tmp_path / "one"
    with kill_backup(step, data, "backup", str(target)) as process:
        assert process.wait(30) == -signal.SIGKILL
    assert target.exists() == (step == "in place")
    assert target.with_name("one.unfinished").exists() == (step != "in place")
    if step == "in place":
        read(target)
        target = tmp_path / "two"
    ran(capsys, "--data", data, "backup", target)
    assert not target.with_name("one.unfinished").exists()
    ran(capsys, "--data", tmp_path / "restored", "restore", target)
    assert views(tmp_path / "restored") == views(data)


def test_a_gateway_that_is_killed_while_it_backs_up_leaves_no_half_backup(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "one"
    with kill_backup("shard 1 is copied", data, "serve", "--port", "0") as process:
        assert process.stdout is not None
        assert "serves on" in process.stdout.readline()
        assert "before it answered" in refused(capsys, "--data", data, "backup", target)
        assert process.wait(30) == -signal.SIGKILL
    assert not target.exists()
    ran(capsys, "--data", data, "backup", target)


def test_interrupted_from_the_terminal_it_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting:
        def __enter__(self) -> Callable[..., None]:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __call__(self, *_: object) -> None:
            raise KeyboardInterrupt

    _, go_on = hold(monkeypatch, "shard 0 is copied")
    stop = backup.Making.stop
    monkeypatch.setattr(backup.Making, "stop", lambda self: (stop(self), go_on.set()))
    monkeypatch.setattr(output, "counting", lambda _: Interrupting())
    assert main(["--data", str(data), "backup", str(tmp_path / "one")]) == 130
    assert folders(tmp_path) == ["data"]


RESTORE_STEPS = ("shards/01.db is copied, MiB", "proved", "shards/00.db is in place", "decided")


@pytest.mark.parametrize("step", RESTORE_STEPS)
def test_a_restore_that_is_killed_is_no_store_until_it_is_repeated(
    data: Path, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    restored = tmp_path / "restored"
    killed(step, "--data", restored, "restore", one)
    if step != "decided":
        assert "is half restored: call smsgw restore again" in cannot_open(restored)
        assert "is half restored" in refused(capsys, "--data", restored, "serve", "--port", "0")
    assert ran(capsys, "--data", restored, "restore", one)["already"] == (step == "decided")
    assert names(restored) == {*FILES, "lock"}
    assert views(restored) == views(data)
    assert "holds a store already" in refused(capsys, "--data", restored, "restore", one)


def test_what_was_restored_at_the_last_moment_can_be_served_at_once(
    data: Path, one: Path, tmp_path: Path
) -> None:
    restored = tmp_path / "restored"
    killed("decided", "--data", restored, "restore", one)
    assert views(restored) == views(data)
    assert names(restored) == {*FILES, "lock"}


@pytest.mark.parametrize("name", FILES)
def test_a_copy_in_which_one_byte_differs_is_refused(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    restored, middle = tmp_path / "restored", (one / name).stat().st_size // 2
    flip(one / name, middle)
    told = refused(capsys, "--data", restored, "restore", one)
    assert f"{one / name} is damaged: its SHA-256" in told
    assert names(restored) == {"lock"}
    (one / name).write_bytes((one / name).read_bytes()[:-1])
    assert "its length" in refused(capsys, "--data", restored, "restore", one)
    (one / name).unlink()
    assert str(one / name) in refused(capsys, "--data", restored, "restore", one)
    assert names(restored) == {"lock"}


def _changed(one: Path, name: str, sql: str) -> None:
    """A file that was changed together with the manifest."""
    rows(one / name, sql)
    rows(one / name, "PRAGMA wal_checkpoint(TRUNCATE)")
    document = json.loads((one / "backup.json").read_text())
    for kept in (*document["shards"], document["catalog"]):
        content = (one / kept["file"]).read_bytes()
        kept |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (one / "backup.json").write_text(json.dumps(document))


def test_a_backup_that_the_audit_does_not_prove_is_refused(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _changed(one, "shards/00.db", "UPDATE client SET credits_cents = credits_cents + 1")
    told = refused(capsys, "--data", tmp_path / "restored", "restore", one)
    assert "the audit in files found" in told
    assert names(tmp_path / "restored") == {"lock"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epoch": 2}, "not that of its manifest"),
        ({"format": 2}, "damaged or too new: format"),
        ({"shards": []}, "not that of its manifest"),
        ({"key": {"file": "../key", "bytes": 1, "sha256": ""}}, "names other files"),
    ],
)
def test_a_manifest_that_is_not_that_of_the_files_is_refused(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, says: str
) -> None:
    path = one / "backup.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert says in refused(capsys, "--data", tmp_path / "restored", "restore", one)


def test_a_store_with_a_cent_of_drift_is_not_backed_up(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(data / "shards/01.db", "UPDATE client SET credits_cents = credits_cents + 1")
    told = refused(capsys, "--data", data, "backup", tmp_path / "one")
    assert "the audit of the copy found" in told
    assert folders(tmp_path) == ["data"]


def test_nothing_is_overwritten_by_a_backup(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "one"
    target.mkdir()
    at = ("--data", data, "backup")
    ran(capsys, *at, target)
    assert f"{target} is not empty" in refused(capsys, *at, target)
    assert "is in the data directory" in refused(capsys, *at, data / "inside")
    (tmp_path / "file").write_text("mine")
    assert "file is not empty" in refused(capsys, *at, tmp_path / "file")
    assert "file: File exists" in refused(capsys, *at, tmp_path / "file" / "below")
    other = tmp_path / "two.unfinished"
    other.mkdir()
    (other / "mine").write_text("mine")
    assert "mine is in the way" in refused(capsys, *at, tmp_path / "two")
    assert (other / "mine").read_text() == "mine"


def test_a_backup_for_which_there_is_no_room_is_not_begun(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert "has no room" in refused(capsys, "--data", data, "backup", tmp_path / "one")
    assert folders(tmp_path) == ["data"]


def test_nothing_is_overwritten_by_a_restore(
    data: Path, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = views(data)
    assert "holds a store already" in refused(capsys, "--data", data, "restore", one)
    assert views(data) == before
    (data / "catalog.db").unlink()
    assert "00.db is in the way" in refused(capsys, "--data", data, "restore", one)
    restored = tmp_path / "restored"
    (restored / "shards").mkdir(parents=True)
    (restored / "otp.key").write_bytes(b"another's")
    assert "is not that of the backup" in refused(capsys, "--data", restored, "restore", one)
    assert (restored / "otp.key").read_bytes() == b"another's"
    (restored / "otp.key").unlink()
    # Logs of files that are gone: SQLite would take them for those of the new ones.
    for name in ("catalog.db-wal", "catalog.db-shm", "shards/00.db-wal", "shards/00.db-shm"):
        (restored / name).write_bytes(b"stale")
    ran(capsys, "--data", restored, "restore", one)
    assert names(restored) == {*FILES, "lock"}
    assert views(restored) == before
    assert "no whole backup" in refused(capsys, "--data", tmp_path / "x", "restore", tmp_path)


@pytest.fixture
def on_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with postgres.database() as url:
        monkeypatch.setenv("SMSGW_STORE__SHARD_URLS", url)
        yield url


def test_a_store_in_postgresql_is_backed_up_by_its_own_tools(
    one: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    on_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for command in ("backup", "restore"):
        told = refused(capsys, "--data", tmp_path / "data", command, one)
        assert "pg_dump" in told
    served = Served(tmp_path / "data", {"SMSGW_STORE__SHARD_URLS": on_server})
    try:
        # Whoever calls need not know where the store of the gateway is.
        monkeypatch.delenv("SMSGW_STORE__SHARD_URLS")
        told = refused(capsys, "--data", tmp_path / "data", "backup", tmp_path / "two")
        assert "pg_dump" in told
        assert "holds a store" in refused(capsys, "--data", tmp_path / "data", "restore", one)
    finally:
        served.kill()
    assert not (tmp_path / "two").exists()
