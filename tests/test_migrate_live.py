"""A store moves to PostgreSQL while a gateway serves it: nothing that was answered is lost."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smsgw.cli import migrate, output
from smsgw.cli.call import Failed, open_door
from smsgw.errors import StoreError
from smsgw.store import migration, places
from smsgw.store.directory import DataDirectory
from tests import postgres
from tests.stores import rows
from tests.support import Served, clean_environment, smsgw
from tests.test_kill import CLIENTS, Load, environ_of, everything, finished, journal_of
from tests.test_migrate import (
    SHARDS,
    _two_shards,
    cannot_open,
    killed,
    ran,
    refused,
    same_rows,
    settings,
)
from tests.test_postgres_kill import repeated

__all__ = ["_two_shards"]

MOVE = ("shards", "move", "--slot", "0", "--to", "1")

Start = Callable[..., Served]
Step = Callable[[str, int, int], None]


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as found:
        yield found


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return environ_of(tmp_path / "journal", SMSGW_STORE__SHARDS=str(SHARDS))


@pytest.fixture
def gateway(served: Start, environ: dict[str, str]) -> Served:
    """One that serves files, with something in them."""
    gateway = served(environ)
    with open_door(gateway.data, settings, "test") as door:
        for client in CLIENTS:
            door.ask("POST", f"/admin/clients/{client}/add", body={"amount_cents": 10**7})
    return gateway


def steps_with(monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    """Have a test told of every step of a command in this process."""

    @contextmanager
    def counting(_: str) -> Iterator[Step]:
        yield step

    monkeypatch.setattr(output, "counting", counting)


def at(name: str, work: Callable[[], None]) -> Step:
    """A step at which a test does something."""

    def step(what: str, _done: int, _total: int) -> None:
        if what == name:
            work()

    return step


def on_server(url: str, environ: dict[str, str]) -> dict[str, str]:
    return {**environ, "SMSGW_STORE__SHARD_URLS": url}


def check(gateway: Served, load: Load, journal: Path) -> None:
    """Everything that was accepted is there, was sent once, and is answered alike."""
    accepted = {identifier for request in load.requests for identifier in request.ids()}
    assert accepted <= finished(gateway).keys()
    assert max(journal_of(journal).values()) == 1, "nothing left twice"
    assert repeated(gateway, load.requests) > 0
    audit = gateway.cli("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_a_store_moves_under_load(
    gateway: Served,
    served: Start,
    url: str,
    environ: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (places, migration):
        monkeypatch.setattr(module, "CHUNK_ROWS", 50)
    load = Load(gateway.port, 1, 3)
    # What comes while the copy is read again and again.
    comes = {"begun": 150, "pass 1 has ended": 250}
    steps_with(monkeypatch, lambda what, *_: load.answered(comes.get(what, 0)))
    with load.running():
        load.answered(60)
        done = ran(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert gateway.process.wait(1) == 0
    assert done["passes"] > 1
    assert 0 < done["pause_s"] < 20
    assert done["messages"] >= sum(len(request.ids()) for request in load.requests)
    same_rows(Path(done["kept"]), url)
    gateway.kill()
    again = served(on_server(url, environ))
    check(again, load, tmp_path / "journal")
    assert again.stop() == 0


@pytest.mark.parametrize("step", ["shard 1: message", "pass 1 has ended"])
def test_killed_while_the_gateway_serves_it_is_called_again(
    gateway: Served,
    served: Start,
    url: str,
    environ: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    step: str,
) -> None:
    load = Load(gateway.port, 2, 2)
    with load.running():
        load.answered(40)
        killed(step, "--data", gateway.data, "migrate", "--to", url, "--live")
        load.answered(80)
        assert gateway.process.poll() is None
        done = ran(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert done["resumed"]
    assert gateway.process.wait(1) == 0
    gateway.kill()
    check(served(on_server(url, environ)), load, tmp_path / "journal")


@pytest.mark.parametrize("step", ["stopped", "copied", "claimed"])
def test_killed_in_the_pause_the_files_are_the_store(
    gateway: Served,
    served: Start,
    url: str,
    environ: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    step: str,
) -> None:
    load = Load(gateway.port, 3, 2)
    with load.running():
        load.answered(40)
        killed(step, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert gateway.process.wait(1) == 0
    gateway.kill()
    assert "another data directory moves this store" in cannot_open(tmp_path / "other", url)
    assert "holds a store in files" in cannot_open(gateway.data, url)
    gateway = served(environ)
    more = Load(gateway.port, 4, 2)
    with more.running():
        more.answered(20)
        done = ran(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert done["resumed"]
    gateway.kill()
    gateway = served(on_server(url, environ))
    more.requests += load.requests
    check(gateway, more, tmp_path / "journal")


def test_killed_when_it_was_decided_the_server_is_the_store(
    gateway: Served, served: Start, url: str, environ: dict[str, str]
) -> None:
    before = everything(gateway)
    killed("decided", "--data", gateway.data, "migrate", "--to", url, "--live")
    gateway.kill()
    assert "store.shard_urls is not set" in cannot_open(gateway.data)
    gateway = served(on_server(url, environ))
    assert everything(gateway).keys() == before.keys()
    assert gateway.cli("audit").returncode == 0


def test_two_migrations_do_not_run_side_by_side(
    gateway: Served, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = DataDirectory.open
    monkeypatch.setattr(DataDirectory, "open", lambda path, purpose: patient(path, purpose, 0.0))
    with migration.alone(gateway.data):
        for more in ([], ["--live"]):
            complaint = refused(capsys, "--data", gateway.data, "migrate", "--to", url, *more)
            assert "another migration of" in complaint
    complaint = refused(capsys, "--data", gateway.data, "migrate", "--to", url)
    assert "in use by smsgw serve" in complaint
    assert gateway.request("GET", "/ready")[0] == 200


def test_what_fails_in_the_pause_is_told_and_the_files_are_the_store(
    gateway: Served,
    served: Start,
    url: str,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = everything(gateway)

    def fail() -> None:
        raise StoreError("the server has gone")

    steps_with(monkeypatch, at("copied", fail))
    assert migrate_live(gateway.data, url) == 1
    complaint = capsys.readouterr().err.splitlines()
    assert complaint == [
        "smsgw: the files are the store as before: start the gateway again",
        "smsgw: the server has gone",
    ]
    gateway.kill()
    assert everything(served(environ)).keys() == before.keys()


def test_what_has_moved_is_audited_when_the_pause_is_over(
    gateway: Served,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spoil() -> None:
        place = postgres.Schema(url, "smsgw_01")
        rows(place, "UPDATE client SET credits_cents = credits_cents + 1")

    steps_with(monkeypatch, at("decided", spoil))
    assert migrate_live(gateway.data, url) == 1
    over, complaint = capsys.readouterr().err.splitlines()
    assert over.startswith("smsgw: the store is in PostgreSQL: start the gateway")
    assert complaint.startswith("smsgw: the store is in PostgreSQL now, its files are in ")
    assert "the audit in PostgreSQL found" in complaint
    DataDirectory.open(gateway.data, "test", 0.0).close()


def migrate_live(data: Path, url: str) -> int:
    from smsgw.cli.main import main

    return main(["--data", str(data), "migrate", "--to", url, "--live"])


def test_what_fails_before_the_pause_stops_nobody(
    gateway: Served, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drift() -> None:
        raise StoreError("the audit has found something")

    steps_with(monkeypatch, at("shard 0: sums", drift))
    assert migrate_live(gateway.data, url) == 1
    assert "audit" in capsys.readouterr().err
    assert gateway.request("GET", "/ready")[0] == 200
    for wrong, says in (
        ("mysql://root@localhost/x", "is no URL of the form"),
        (postgres.database_url("smsgw_missing"), "does not exist"),
    ):
        assert migrate_live(gateway.data, wrong) == 1
        assert says in capsys.readouterr().err
    assert migrate_live(gateway.data, "files") == 2
    assert gateway.request("GET", "/ready")[0] == 200


def test_whoever_starts_the_gateway_again_at_once_waits_or_is_refused(
    gateway: Served,
    url: str,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started: list[subprocess.Popen[str]] = []

    def start(**more: str) -> None:
        command = [sys.executable, "-m", "smsgw", "--data", str(gateway.data), "serve"]
        started.append(
            subprocess.Popen(
                [*command, "--port", "0", "--dev"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**clean_environment(), **environ, **more},
                text=True,
            )
        )

    steps_with(monkeypatch, at("stopped", start))
    done = ran(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert done["pause_s"] < 20
    _, complaint = started[0].communicate(timeout=20)
    assert started[0].returncode == 1
    assert "store.shard_urls is not set" in complaint
    # One that was told before where the store will be serves as soon as it is there.
    start(SMSGW_STORE__SHARD_URLS=url)
    assert started[1].stdout is not None
    assert "serves on" in started[1].stdout.readline()
    started[1].terminate()
    started[1].communicate(timeout=20)
    assert started[1].returncode == 0


def test_without_a_gateway_it_is_the_same(
    gateway: Served, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.kill()
    done = ran(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert done["clients"] > 10
    same_rows(Path(done["kept"]), url)
    assert ran(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")["already"]


def test_nobody_is_stopped_who_is_not_the_gateway(
    gateway: Served,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def forbidden(_process: int, _number: int) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", forbidden)
        complaint = refused(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert f"the gateway, process {gateway.process.pid}, is not ours to stop" in complaint
    with monkeypatch.context() as patch:
        patch.setattr(migrate.struct, "unpack", lambda _format, _told: (0, 0, 0))
        complaint = refused(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert "another container" in complaint
    with monkeypatch.context() as patch:
        patch.delattr(migrate.socket, "SO_PEERCRED")
        complaint = refused(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert "leave --live out" in complaint
    gateway.stop()
    monkeypatch.setattr(migrate, "STOP_S", 0)
    holder = DataDirectory.open(gateway.data, "audit")
    with pytest.raises(Failed, match="in use by smsgw audit, process"):
        migrate._take(gateway.data, set())
    holder.close()


def test_the_one_that_takes_the_place_of_the_gateway_is_stopped_too(
    gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    serving = iter([7, 7, 8, None])
    holder = threading.Event()

    def tell(process: int, number: int) -> None:
        told.append((process, number))
        if process == 8:
            gateway.stop()
            holder.set()

    monkeypatch.setattr(migrate, "_serving", lambda _data: next(serving))
    monkeypatch.setattr(migrate, "_tell", tell)
    migrate._take(gateway.data, set()).close()
    assert told == [(7, signal.SIGTERM), (8, signal.SIGTERM)]
    assert holder.is_set()


def test_files_of_an_older_version_and_slots_under_way_are_left_alone(
    gateway: Served, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.stop()
    shard, catalog = gateway.data / "shards" / "01.db", gateway.data / "catalog.db"
    for path, spoil, heal, says in (
        (
            shard,
            "UPDATE migration SET number = -number",
            "UPDATE migration SET number = -number",
            "is at step -1 of its schema",
        ),
        (
            catalog,
            "INSERT INTO meta VALUES ('tidying', '2')",
            "DELETE FROM meta WHERE key = 'tidying'",
            "slots were being moved",
        ),
    ):
        rows(path, spoil)
        complaint = refused(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
        assert says in complaint
        rows(path, heal)


def test_clients_that_have_moved_to_another_shard_meanwhile_end_it(
    gateway: Served,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def move() -> None:
        gateway.stop()
        moved = smsgw("--data", str(gateway.data), *MOVE, SMSGW_STORE__SHARDS=str(SHARDS))
        assert moved.returncode == 0, moved.stderr

    steps_with(monkeypatch, at("stopping the gateway", move))
    assert migrate_live(gateway.data, url) == 1
    assert "clients have moved between shards meanwhile" in capsys.readouterr().err
    steps_with(monkeypatch, lambda *_: None)
    done = ran(capsys, "--data", gateway.data, "migrate", "--to", url, "--live")
    assert not done["resumed"]
    same_rows(Path(done["kept"]), url)
