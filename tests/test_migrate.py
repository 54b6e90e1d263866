"""A whole store moves to PostgreSQL and back: nothing is lost, and one place at a time owns it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from smsgw.accounts import AddClient
from smsgw.admission import key_use
from smsgw.cli.call import open_door
from smsgw.cli.main import main
from smsgw.clock import SystemClock
from smsgw.entrance import Wish
from smsgw.errors import StoreError
from smsgw.gateway import Gateway
from smsgw.models import Lane
from smsgw.settings import PostgresSettings, Settings, load
from smsgw.store import migration, places
from smsgw.store.directory import DataDirectory
from smsgw.store.tables import tables
from tests import postgres
from tests.stores import dump, rows
from tests.support import (
    DELIVERED,
    clean_environment,
    final_of,
    flushed,
    open_gateway,
    send,
    send_batch,
)

SHARDS = 2
KILLED = """
import os, signal, sys
from contextlib import contextmanager
from smsgw.cli import output
from smsgw.cli.main import main

@contextmanager
def counting(_):
    def step(what, done, total):
        if what == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGKILL)
    yield step

output.counting = counting
sys.exit(main(sys.argv[2:]))
"""

Views = dict[str, Any]


@pytest.fixture(autouse=True)
def _two_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("SMSGW_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SMSGW_STORE__SHARDS", str(SHARDS))
    monkeypatch.chdir(tmp_path)


async def client_in(gateway: Gateway, shard: int, weight: int) -> bytes:
    """A new client that lives in a shard."""
    while True:
        client = uuid.uuid4().bytes
        home = gateway.shards.of_client(client)
        if home.number == shard:
            await home.ask(AddClient(client, "test", weight, 10_000))
            return client


async def fill(data: Path) -> None:
    """A store with something of everything, as a gateway leaves it that was stopped."""
    gateway = await open_gateway(data, {"store": {"shards": SHARDS}})
    clients = [await client_in(gateway, n % SHARDS, n + 1) for n in range(6)]
    for number, client in enumerate(clients):
        key = key_use(f"one {number}", "messages")
        done = await send(gateway, client, text=f"first {number}", key=key, reference="ref")
        await final_of(gateway, done.message)  # type: ignore[union-attr]
        late = await send(gateway, client, "+15005550003")
        await final_of(gateway, late.message)  # type: ignore[union-attr]
        # Accepted, but the operator never reports on it; and one that fails for now.
        await send(gateway, client, "+15005550004", lane=Lane.EXPRESS)
        await send(gateway, client, "+15005550008")
        soon_ms = gateway.clock.now_ms() + 3_600_000
        await send(gateway, client, text="later", send_at_ms=soon_ms)
        wishes = [Wish(DELIVERED, "ACME", f"batch {n}", Lane.REGULAR) for n in range(3)]
        await send_batch(gateway, client, wishes, key_use(f"batch {number}", "batch"))
        others, about = (f"or {number}",), (989_120_000_000 + number, "ACME")
        gateway.receipts.receive("mock", f"nobody's {number}", "DELIVRD", None, others, about)
    await flushed(gateway)
    await gateway.pause("", paused=True)
    for client in clients[:4]:
        for number in range(2):
            await send(gateway, client, text=f"waits {number}")
    await flushed(gateway)
    await gateway.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a store, made once; tests work on copies."""
    data = tmp_path_factory.mktemp("filled") / "data"
    asyncio.run(fill(data))
    return data


@pytest.fixture
def data(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "data"))


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as found:
        yield found


def settings(*urls: str, shards: int = SHARDS) -> Settings:
    return load(None, {}, {"store": {"shards": shards, "shard_urls": list(urls)}})


def views(data: Path, *urls: str, shards: int = SHARDS) -> Views:
    """What every client sees of everything it has; and the audit finds nothing."""
    found: Views = {}
    with open_door(data, lambda: settings(*urls, shards=shards), "test") as door:
        assert door.ask("GET", "/admin/audit")["clean"]
        found["parked"] = sorted(
            (row["provider_message_id"], row["status"])
            for row in door.ask("GET", "/admin/receipts/parked")["data"]
        )
        for client in door.ask("GET", "/admin/clients")["data"]:
            query = {"client_id": client["id"], "limit": 500}
            messages = door.ask("GET", "/v1/messages", query=query)
            found[client["id"]] = {
                "client": client,
                "me": door.ask("GET", "/v1/me", query={"client_id": client["id"]}),
                "statement": door.ask("GET", "/v1/me/statement", query=query),
                "messages": messages,
                "referred": door.ask("GET", "/v1/messages", query={**query, "reference": "ref"}),
                "sent to": door.ask("GET", "/v1/messages", query={**query, "to": DELIVERED}),
                "each": [
                    door.ask("GET", f"/v1/messages/{one['id']}", query=query | {"limit": None})
                    for one in messages["data"]
                ],
                "reports": [
                    door.ask(
                        "GET",
                        "/v1/reports",
                        query={"client_id": client["id"], "group_by": group},
                    )
                    for group in ("day", "status", "sender")
                ],
            }
    return found


@contextmanager
def in_use(data: Path, url: str) -> Iterator[None]:
    """A gateway that lives meanwhile; an open door stands still between its questions."""

    @asynccontextmanager
    async def living() -> AsyncIterator[None]:
        gateway = await Gateway.open(settings(url), data, purpose="test")
        try:
            yield
        finally:
            await gateway.close()

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(living()):
        yield


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The document that a command prints; it must succeed."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Why a command fails, in its one line."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    return complaint


def killed(step: str, *arguments: object, **environ: str) -> None:
    """Run a command that is killed at a step."""
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, step, *map(str, arguments)],
        env={**clean_environment(), "SMSGW_STORE__SHARDS": str(SHARDS), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr


def cannot_open(data: Path, *urls: str) -> str:
    with pytest.raises(StoreError) as refusal:
        views(data, *urls)
    return refusal.value.detail


def same_rows(files: Path, url: str) -> None:
    """Every row of every table is the same in a file and in its schema."""
    columns = {table.name: ", ".join(table.columns) for table in tables().values()}
    for number in range(SHARDS):
        ours = files / "shards" / f"{number:02d}.db"
        theirs = postgres.Schema(url, f"smsgw_{number:02d}")
        for name, listed in [*columns.items(), ("meta", "key, value")]:
            sql = f"SELECT {listed} FROM {name}"
            assert sorted(rows(ours, sql), key=repr) == sorted(rows(theirs, sql), key=repr), name


def test_a_store_that_moves_there_and_back_is_the_same_for_everybody(
    data: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = views(data)
    assert len(before) == 7
    assert len(before["parked"]) == 6
    done = ran(capsys, "--data", data, "migrate", "--to", url)
    assert done["clients"] == 6
    assert done["rows"] > 100
    assert not (data / "catalog.db").exists()
    kept = Path(done["kept"])
    assert sorted(path.name for path in kept.rglob("*.db")) == ["00.db", "01.db", "catalog.db"]
    same_rows(kept, url)
    assert "store.shard_urls is not set" in cannot_open(data)
    assert views(data, url) == before
    monkeypatch.setenv("SMSGW_STORE__SHARD_URLS", url)
    back = ran(capsys, "--data", data, "migrate", "--to", "files")
    assert back["clients"] == 6
    assert "holds a store in files" in cannot_open(data, url)
    monkeypatch.delenv("SMSGW_STORE__SHARD_URLS")
    assert views(data) == before
    assert not (data / "postgresql.id").exists()
    elsewhere = data.with_name("elsewhere")
    assert "moved it to files" in cannot_open(elsewhere, url)
    assert "is not empty" in refused(capsys, "--data", data, "migrate", "--to", url)


def test_what_waited_is_sent_after_the_move_and_numbers_rise(data: Path, url: str) -> None:
    assert main(["--data", str(data), "migrate", "--to", url]) == 0

    async def serve() -> None:
        over = {"store": {"shard_urls": [url], "shards": SHARDS}}
        gateway = await open_gateway(data, over)
        try:
            await gateway.pause("", paused=False)
            for client in [account.id for account in await _clients(gateway)]:
                newest = await send(gateway, client)
                found = await final_of(gateway, newest.message)  # type: ignore[union-attr]
                assert found.charged_cents == 5
            waits = [shard.store.waits for shard in gateway.shards]
            assert sum(waits) == 12, "six scheduled, six to be tried again"
        finally:
            await gateway.close()

    asyncio.run(serve())
    with open_door(data, lambda: settings(url), "test") as door:
        assert door.ask("GET", "/admin/audit")["clean"]


async def _clients(gateway: Any) -> list[Any]:
    from smsgw.archive import Archive

    return await Archive(gateway.shards).clients()


class Stopped(Exception):
    """The test ends a migration."""


def migrate(
    data: Path, url: str, step: Callable[[str, int, int], None], *, back: bool = False
) -> migration.Migrated:
    """A migration in this process."""
    directory = DataDirectory.open(data, "test", 0)
    work = migration.to_files if back else migration.to_server
    now_ms = SystemClock().now_ms()
    try:
        return asyncio.run(work(directory, [url], PostgresSettings(), now_ms, step))
    finally:
        directory.close()


def stop_at(name: str) -> Callable[[str, int, int], None]:
    def step(what: str, _done: int, _total: int) -> None:
        if what == name:
            raise Stopped

    return step


def quiet(_what: str, _done: int, _total: int) -> None:
    pass


@pytest.mark.parametrize("back", [False, True])
def test_an_interrupted_copy_goes_on_with_what_it_has(
    data: Path, url: str, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    monkeypatch.setattr(places, "CHUNK_ROWS", 7)
    before = views(data)
    if back:
        migrate(data, url, quiet)
    with pytest.raises(Stopped):
        migrate(data, url, stop_at("shard 1: entry"), back=back)
    done = migrate(data, url, quiet, back=back)
    assert done.resumed
    total = 0

    def add(what: str, _done: int, rows: int) -> None:
        nonlocal total
        total = rows if what == "counting" else total

    with postgres.database() as other:
        place = data if back else Path(str(done.kept))
        copy = Path(shutil.copytree(place, data.with_name("copy")))
        (copy / "shards").mkdir(exist_ok=True)
        whole = migrate(copy, other, add)
    assert 0 < done.rows < whole.rows == total
    assert views(data, *([] if back else [url])) == before


def test_a_copy_of_what_was_served_since_learns_what_has_changed(data: Path, url: str) -> None:
    with pytest.raises(Stopped):
        migrate(data, url, stop_at("copied"))
    with open_door(data, settings, "test") as door:
        client = door.ask("GET", "/admin/clients")["data"][0]["id"]
        door.ask("POST", f"/admin/clients/{client}/add", body={"amount_cents": 7})
        door.ask("POST", "/admin/resume", body={})
    before = views(data)
    done = migrate(data, url, quiet)
    assert (done.resumed, done.rows) == (True, 2), "an account, and its new entry"
    assert views(data, url) == before
    with pytest.raises(Stopped):
        migrate(data, url, stop_at("copied"), back=True)
    with open_door(data, lambda: settings(url), "test") as door:
        door.ask("POST", f"/admin/clients/{client}/add", body={"amount_cents": 8})
        assert not door.ask("GET", "/admin/status")["paused"]["all"]
    before = views(data, url)
    done = migrate(data, url, quiet, back=True)
    assert (done.resumed, done.rows) == (True, 2)
    assert views(data) == before


def test_what_was_sent_between_two_copies_is_queued_no_more(data: Path, url: str) -> None:
    with pytest.raises(Stopped):
        migrate(data, url, stop_at("proved"))

    async def serve() -> None:
        gateway = await open_gateway(data, {"store": {"shards": SHARDS}})
        try:
            await gateway.pause("", paused=False)
            newest = [await send(gateway, account.id) for account in await _clients(gateway)]
            for one in newest:
                await final_of(gateway, one.message)  # type: ignore[union-attr]
            await gateway.pause("", paused=True)
            for account in await _clients(gateway):
                await send(gateway, account.id)
        finally:
            await gateway.close()

    asyncio.run(serve())
    before = views(data)
    last = "SELECT client, route, lane, max(rank) FROM queue GROUP BY client, route, lane"
    queued = [row for n in range(SHARDS) for row in rows(data / "shards" / f"{n:02d}.db", last)]
    assert len(queued) == 6
    migrate(data, url, quiet)
    assert views(data, url) == before
    flows = "SELECT client, route, lane, next_rank - 1 FROM flow WHERE waiting > 0"
    assert sorted(queued) == sorted(
        row for n in range(SHARDS) for row in rows(postgres.Schema(url, f"smsgw_{n:02d}"), flows)
    )


def test_a_copy_in_which_clients_have_moved_since_begins_anew(
    data: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = views(data)
    with pytest.raises(Stopped):
        migrate(data, url, stop_at("copied"))
    ran(capsys, "--data", data, "shards", "move", "--slot", 0, "--to", 1)
    assert not migrate(data, url, quiet).resumed
    assert views(data, url) == before


def test_killed_at_any_step_there_is_one_owner_and_the_next_run_ends_it(
    data: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = views(data)
    elsewhere = data.with_name("elsewhere")
    for step in ("begun", "shard 1: message", "proved", "claimed"):
        killed(step, "--data", data, "migrate", "--to", url)
        assert "another data directory moves this store" in cannot_open(elsewhere, url)
        assert "holds a store in files" in cannot_open(data, url)
        assert views(data) == before
    killed("decided", "--data", data, "migrate", "--to", url)
    assert "store.shard_urls is not set" in cannot_open(data)
    assert "another data directory moves this store" in cannot_open(elsewhere, url)
    assert ran(capsys, "--data", data, "migrate", "--to", url)["already"]
    assert views(data, url) == before
    environ = {"SMSGW_STORE__SHARD_URLS": url}
    for step in ("begun", "shard 1: message", "proved"):
        killed(step, "--data", data, "migrate", "--to", "files", **environ)
        assert "store.shard_urls is not set" in cannot_open(data)
        assert "another data directory" in cannot_open(elsewhere, url)
        assert views(data, url) == before
    killed("decided", "--data", data, "migrate", "--to", "files", **environ)
    assert "holds a store in files" in cannot_open(data, url)
    assert "another data directory" in cannot_open(elsewhere, url)
    assert ran(capsys, "--data", data, "migrate", "--to", "files")["already"]
    assert views(data) == before


@pytest.mark.parametrize("step", ["decided", "set aside"])
def test_a_gateway_ends_a_migration_that_was_decided(data: Path, url: str, step: str) -> None:
    before = views(data)
    killed(step, "--data", data, "migrate", "--to", url)
    assert views(data, url) == before
    assert list((data / "shards").iterdir()) == []
    (kept,) = data.glob("files-*")
    assert (kept / "shards" / "01.db").exists()
    assert (
        rows(postgres.Schema(url, "smsgw_catalog"), "SELECT * FROM meta WHERE key = 'moving'") == []
    )


def test_a_copy_that_differs_is_found_and_nothing_has_moved(data: Path, url: str) -> None:
    before = views(data)

    def spoil(what: str, _done: int, _total: int) -> None:
        if what == "copied":
            place = postgres.Schema(url, "smsgw_00")
            rows(place, "UPDATE client SET credits_cents = credits_cents + 1")

    with pytest.raises(StoreError, match="shard 0: client differs after the copy"):
        migrate(data, url, spoil)
    assert views(data) == before
    assert "holds a store in files" in cannot_open(data, url)


def test_drift_that_was_there_before_is_found_by_the_audit(data: Path, url: str) -> None:
    rows(data / "shards" / "00.db", "UPDATE client SET credits_cents = credits_cents + 1")
    with pytest.raises(StoreError, match="the audit in PostgreSQL found"):
        migrate(data, url, quiet)
    assert (data / "catalog.db").exists()


def test_wrong_and_occupied_places_are_refused_and_the_store_stays(
    data: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong, says in (
        ("mysql://root@localhost/x", "is no URL of the form"),
        ("postgresql://nobody:geheim@127.0.0.1:1/nowhere", "127.0.0.1:1/nowhere"),
        (postgres.database_url("smsgw_missing"), "does not exist"),
    ):
        complaint = refused(capsys, "--data", data, "migrate", "--to", wrong)
        assert says in complaint
        assert "geheim" not in complaint
    complaint = refused(capsys, "--data", data, "migrate", "--to", url, url, url)
    assert "more URLs than shards" in complaint
    with closing(postgres.Sql(url)) as sql:
        sql.execute("CREATE SCHEMA smsgw_01")
        assert "smsgw_01 is there" in refused(capsys, "--data", data, "migrate", "--to", url)
        sql.execute("DROP SCHEMA smsgw_01")
    views(data.with_name("another"), url)
    assert "is not empty" in refused(capsys, "--data", data, "migrate", "--to", url)
    assert "there is no store" in refused(capsys, "--data", "nowhere", "migrate", "--to", url)
    assert len(views(data)) == 7
    assert main(["--data", str(data), "migrate", "--to", "files", url]) == 2


def test_a_directory_in_use_is_refused(
    data: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = DataDirectory.open
    monkeypatch.setattr(DataDirectory, "open", lambda path, purpose: patient(path, purpose, 0.0))
    holder = patient(data, "serve")
    complaint = refused(capsys, "--data", data, "migrate", "--to", url)
    assert "in use by smsgw serve" in complaint
    assert "stop it first" in complaint
    holder.close()


def test_a_store_that_others_use_and_a_foreign_key_do_not_move_to_files(
    data: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(data, url, quiet)
    monkeypatch.setenv("SMSGW_STORE__SHARD_URLS", url)
    other = data.with_name("other")
    foreign = refused(capsys, "--data", other, "migrate", "--to", "files")
    assert "there is no store" in foreign
    other.mkdir()
    assert "is not the key of this store" in (
        views(data, url) and refused(capsys, "--data", other, "migrate", "--to", "files")
    )
    shutil.copy(data / "otp.key", other / "otp.key")
    with in_use(other, url):
        complaint = refused(capsys, "--data", data, "migrate", "--to", "files")
    assert "1 other gateways use this store" in complaint
    assert len(views(data, url)) == 7


def test_two_databases_share_the_shards(data: Path, url: str) -> None:
    before = views(data)
    with postgres.database() as second:
        assert main(["--data", str(data), "migrate", "--to", url, second]) == 0
        assert len(dump(postgres.Schema(second, "smsgw_01"))["client"]) > 0
        assert views(data, url, second) == before
