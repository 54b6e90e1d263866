"""On the way to PostgreSQL: servers that go and come back, passwords, TLS, poolers."""

import asyncio
import contextlib
import getpass
import itertools
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from smsgw.admission import key_use
from smsgw.cli.main import main
from smsgw.errors import SmsgwError, StorageUnavailable, StoreError
from smsgw.fields import MASK
from smsgw.gateway import Gateway
from smsgw.providers.mock import ANSWER_LOST
from smsgw.settings import PostgresSettings
from smsgw.store import postgres as postgres_module
from smsgw.store import postgres_connection as connection_module
from smsgw.store import shard as shard_module
from smsgw.store.base import ShardUnavailableError
from smsgw.store.postgres import PostgresShard
from smsgw.store.postgres_connection import Database
from smsgw.turn import URGENT, Write
from tests import postgres
from tests.certificates import Certificates, new_certificates
from tests.conftest import OpenGateway
from tests.stores import IDENTITY, turn
from tests.support import account_of, add_client, assert_clean, flushed, send

BACKENDS = ("postgres",)
FIRST, SECOND = "halbes", "geheimnis"
SECRET = f"{FIRST}-{SECOND}"
SSL_REQUEST = (8).to_bytes(4) + (80_877_103).to_bytes(4)
_names = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.OwnServer]:
    with postgres.own_server() as found:
        yield found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which there is neither a password nor a certificate."""
    for name in ("PGPASSFILE", "PGPASSWORD", "PGSSLMODE", "PGSSLROOTCERT"):
        monkeypatch.delenv(name, raising=False)
    found = tmp_path / "home"
    found.mkdir()
    monkeypatch.setenv("HOME", str(found))
    return found


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A server's certificate for one of the two names of this machine."""
    return new_certificates(tmp_path_factory.mktemp("certificates"), "localhost")


def new_database(server: postgres.OwnServer) -> str:
    name = f"reach_{next(_names)}"
    with postgres.Sql(server.url()) as sql:
        sql.execute(f"CREATE DATABASE {name}")
    return name


def stored_at(*urls: str, **more: Any) -> dict[str, Any]:
    return {"store": {"shard_urls": list(urls), "shards": 2}, **more}


async def connects(url: str) -> None:
    """Connect as a gateway does."""
    database = Database(url, 0, PostgresSettings())
    try:
        assert await database.fetch("SELECT 1") == [(1,)]
    finally:
        await database.close()


async def refusal(url: str) -> str:
    """What is said where a gateway cannot connect, with all that led to it."""
    with pytest.raises((ShardUnavailableError, StoreError)) as refused:
        await connects(url)
    causes: list[BaseException | None] = [refused.value]
    while (error := causes[-1]) is not None:
        causes.append(error.__cause__)
    return "\n".join(f"{error} {error!r}" for error in causes)


async def settled(gateway: Gateway, client: bytes) -> tuple[int, int]:
    """A client's credits, and what it was charged, once nothing is held."""
    await flushed(gateway)
    account = await account_of(gateway, client)
    while account.held_cents:
        account = await account_of(gateway, client)
    await assert_clean(gateway)
    return account.credits_cents, account.charged_cents


class Way:
    """A way to a server on which nothing passes for a while, or everything is encrypted."""

    def __init__(self, to: int, encrypted: ssl.SSLContext | None = None) -> None:
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.closes_behind: bytes | None = None
        self.closed = asyncio.Event()
        self.swallows: bytes | None = None
        """What ends one connection without a word to anybody."""
        self.commits = 0
        self.loses_every: int | None = None
        """Of how many commits the answer to one is lost, with its connection."""
        self.port = 0
        self._to = to
        self._encrypted = encrypted
        self._carrying: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator["Way"]:
        serving = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = serving.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            serving.close()
            for task in self._carrying:
                task.cancel()
            await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        ends = [writer]
        try:
            if self._encrypted is not None:
                assert await reader.readexactly(len(SSL_REQUEST)) == SSL_REQUEST
                writer.write(b"S")
                await writer.start_tls(self._encrypted)
            back, forth = await asyncio.open_connection("127.0.0.1", self._to)
            ends.append(forth)
            lost, dead = asyncio.Event(), asyncio.Event()
            await asyncio.gather(
                self._there(reader, forth, lost, dead), self._and_back(back, writer, lost, dead)
            )
        except (OSError, asyncio.CancelledError):
            # A client that does not trust us hangs up, or this is the end of the test.
            pass
        finally:
            for end in ends:
                end.transport.abort()
            self._carrying.discard(task)

    @staticmethod
    async def _end_if(dead: asyncio.Event) -> None:
        """Carry nothing any more, and hang up on nobody, where a connection is dead."""
        if dead.is_set():
            await asyncio.Event().wait()

    async def _there(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lost: asyncio.Event,
        dead: asyncio.Event,
    ) -> None:
        while data := await reader.read(65_536):
            await self.is_open.wait()
            if self.swallows is not None and self.swallows in data:
                self.swallows = None
                dead.set()
            await self._end_if(dead)
            if self.loses_every is not None and b"COMMIT" in data:
                self.commits += 1
                if self.commits % self.loses_every == 0:
                    lost.set()
            writer.write(data)
            await writer.drain()
            if self.closes_behind is not None and self.closes_behind in data:
                self.closes_behind = None
                self.is_open.clear()
                self.closed.set()
        raise ConnectionResetError

    async def _and_back(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lost: asyncio.Event,
        dead: asyncio.Event,
    ) -> None:
        while (data := await reader.read(65_536)) and not lost.is_set():
            await self.is_open.wait()
            await self._end_if(dead)
            writer.write(data)
            await writer.drain()
        await self._end_if(dead)
        raise ConnectionResetError


@contextlib.asynccontextmanager
async def pooled(server: postgres.OwnServer) -> AsyncIterator[int]:
    """PgBouncer before the server, in transaction mode; its port."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("POOLERS ARE NOT TESTED: there is no pgbouncer on this machine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        # Who it runs as must be able to read its settings.
        await asyncio.to_thread(Path(folder).chmod, 0o755)
        settings = Path(folder) / "pgbouncer.ini"
        text = (
            f"[databases]\n* = host=127.0.0.1 port={server.port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n"
            "pool_mode = transaction\ndefault_pool_size = 4\nunix_socket_dir =\n"
            "server_login_retry = 1\nquery_wait_timeout = 1\n"
        )
        await asyncio.to_thread(settings.write_text, text)
        user = ["-u", "nobody"] if getpass.getuser() == "root" else []
        process = await asyncio.create_subprocess_exec(
            program, *user, str(settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        try:
            told = ""
            while "process up" not in told:
                line = await process.stderr.readline()
                assert line, told
                told += line.decode()
            rest = asyncio.create_task(process.stderr.read())
            yield port
        finally:
            process.terminate()
            await process.wait()
        await rest


# A server goes and comes back.


class Senders:
    """Twenty who send one message after the other, each until it is accepted."""

    def __init__(self, gateway: Gateway, client: bytes) -> None:
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.many, self.refusing, self.back = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._gateway = gateway
        self._client = client
        self._tasks = [asyncio.create_task(self._send(20 * n)) for n in range(20)]

    async def _send(self, first: int) -> None:
        for number in range(first, first + 20):
            while not await self._is_accepted(key_use(str(number), "messages")):
                await self.back.wait()

    async def _is_accepted(self, key: Any) -> bool:
        try:
            await send(self._gateway, self._client, key=key)
        except StorageUnavailable as unavailable:
            self.refused[unavailable.members["outcome"]] += 1
            self.refusing.set()
            return False
        self.accepted += 1
        if self.accepted >= 50:
            self.many.set()
        return True

    async def all(self) -> None:
        """Return once everything is accepted."""
        self.back.set()
        await asyncio.gather(*self._tasks)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("pooler", [False, True], ids=["direct", "pooler"])
async def test_a_server_that_goes_and_comes_back_costs_nobody_anything(
    gateway_of: OpenGateway,
    server: postgres.OwnServer,
    mode: str,
    pooler: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_module, "PROBE_S", 0.01)
    monkeypatch.setattr(postgres_module, "PROBE_S", 0.01)
    monkeypatch.setattr(postgres_module, "DOUBT_S", 0.3)
    name = await asyncio.to_thread(new_database, server)
    async with pooled(server) if pooler else contextlib.nullcontext(server.port) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        cached = {"statement_cache": not pooler}
        gateway = await gateway_of(stored_at(url, postgres=cached), manual=False)
        client = await add_client(gateway, 10_000)
        senders = Senders(gateway, client)
        await senders.many.wait()
        await asyncio.to_thread(server.stop, mode)
        await senders.refusing.wait()
        with pytest.raises(StorageUnavailable) as away:
            await gateway.shards.of_client(client).store.read("client_by_id", client)
        assert away.value.members["outcome"] == "none"
        assert senders.refused.keys() <= {"none", "unknown"}
        await asyncio.to_thread(server.start)
        while gateway.trouble():
            await asyncio.to_thread(server.url)
        await senders.all()
        assert senders.accepted == 400
        assert await settled(gateway, client) == (10_000 - 400 * 5, 400 * 5)
        await gateway.close()


async def test_commits_whose_answers_are_lost_count_once(
    gateway_of: OpenGateway, server: postgres.OwnServer
) -> None:
    name = await asyncio.to_thread(new_database, server)
    async with Way(server.port)() as way:
        url = f"postgresql://postgres@127.0.0.1:{way.port}/{name}"
        gateway = await gateway_of(stored_at(url), manual=False)
        client = await add_client(gateway, 10_000)
        way.loses_every = 3
        senders = Senders(gateway, client)
        await senders.all()
        assert senders.accepted == 400
        assert not senders.refused
        while (await account_of(gateway, client)).held_cents:
            await flushed(gateway)
        assert way.commits > 30
        store = gateway.shards.of_client(client).store
        asked = [store.report(1, 0, 1) for _ in range(4 * way.loses_every)]
        reports = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(report) for report in reports} == {list, StorageUnavailable}
        way.loses_every = None
        assert await settled(gateway, client) == (10_000 - 400 * 5, 400 * 5)
        await gateway.close()


async def test_who_waits_behind_a_turn_in_doubt_is_told_to_come_again(
    gateway_of: OpenGateway, store_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "DOUBT_S", 0)
    monkeypatch.setattr(postgres_module, "PROBE_S", 0)
    gateway = await gateway_of({"store": {"shards": 1}}, serve=False)
    client = await add_client(gateway)
    store = gateway.shards.of_client(client).store
    assert isinstance(store, PostgresShard)
    back = asyncio.Event()
    write = store.database.write
    behind: list[asyncio.Task[Any]] = []

    async def away(sql: str, *arguments: Any, **more: Any) -> Any:
        if "serial" not in sql or back.is_set():
            return await write(sql, *arguments, **more)
        if not behind:
            # Nobody was told of the doubt so far: so these are let in.
            behind.extend(asyncio.create_task(send(gateway, client)) for _ in range(3))
            await store.database.fetch("SELECT 1")
        raise ShardUnavailableError("away")

    monkeypatch.setattr(store.database, "write", away)
    postgres.Unreliable(store.database).lose(after=True)
    with pytest.raises(StorageUnavailable) as in_doubt:
        await send(gateway, client)
    assert in_doubt.value.members["outcome"] == "unknown"
    refused = await asyncio.gather(*behind, return_exceptions=True)
    assert [getattr(error, "members", {}).get("outcome") for error in refused] == ["none"] * 3
    assert gateway.trouble()
    back.set()
    while gateway.trouble():
        await store.database.fetch("SELECT 1")
    await send(gateway, client)
    assert (await account_of(gateway, client)).held_cents == 2 * 5


async def test_a_server_that_does_not_answer_holds_up_nothing_on_the_others(
    gateway_of: OpenGateway, server: postgres.OwnServer
) -> None:
    near, far = [await asyncio.to_thread(new_database, server) for _ in range(2)]
    beats = "SELECT heartbeat_at FROM smsgw_catalog.gateway"
    leases = "SELECT lease_until > clock_timestamp() FROM smsgw_00.gateway"
    async with Way(server.port)() as way:
        urls = server.url(database=near), f"postgresql://postgres@127.0.0.1:{way.port}/{far}"
        short = {"lease_s": 1.0, "poll_ms": 20}
        gateway = await gateway_of(stored_at(*urls, postgres=short), manual=False)
        client = await add_client(gateway, 100_000)
        while gateway.shards.of_client(client).number != 0:
            client = await add_client(gateway, 100_000)
        way.is_open.clear()
        with postgres.Sql(urls[0]) as sql:
            seen = {(await asyncio.to_thread(sql.execute, beats))[0] for _ in range(2)}
            before = len(seen)
            async with asyncio.timeout(8):
                while len(seen) < before + 6:
                    await send(gateway, client)
                    seen.add((await asyncio.to_thread(sql.execute, beats))[0])
            assert await asyncio.to_thread(sql.execute, leases) == [(True,)]
        way.is_open.set()
        await settled(gateway, client)
        await gateway.close()


def looks_for_orphans(_: Gateway, away: PostgresShard) -> None:
    """Have a gateway decide about what one that is no more was sending."""
    away.orphans = True


def looks_for_receipts(gateway: Gateway, _: PostgresShard) -> None:
    """Have a gateway look what others have parked."""
    gateway.receipts.parked._looks_again_s = 0.0


@pytest.mark.parametrize("looks", [looks_for_orphans, looks_for_receipts])
async def test_answers_are_missed_in_time_while_another_server_does_not_answer(
    gateway_of: OpenGateway, server: postgres.OwnServer, looks: Any
) -> None:
    near, far = [await asyncio.to_thread(new_database, server) for _ in range(2)]
    async with Way(server.port)() as way:
        urls = server.url(database=near), f"postgresql://postgres@127.0.0.1:{way.port}/{far}"
        patient = {"mock": {"kind": "mock", "response_timeout_s": 3}}
        gateway = await gateway_of(stored_at(*urls, providers=patient), manual=False)
        client = await add_client(gateway)
        while gateway.shards.of_client(client).number != 0:
            client = await add_client(gateway)
        way.is_open.clear()
        looks(gateway, gateway.shards.shards[1].store)
        await send(gateway, client, ANSWER_LOST)
        while not gateway.worker.in_flight():
            await gateway.shards.of_client(client).ask(Write())
        async with asyncio.timeout(8):
            await gateway.worker.landed("mock")
        way.is_open.set()
        await flushed(gateway)
        await gateway.close()


@pytest.mark.parametrize("setting", ["fsync", "synchronous_commit", "full_page_writes"])
async def test_a_server_that_may_lose_commits_from_now_on_is_given_none(
    server: postgres.OwnServer, setting: str
) -> None:
    name = await asyncio.to_thread(new_database, server)
    store = await postgres.open_shard(postgres.Schema(server.url(database=name)), IDENTITY)
    item = Write(("meta_set", ("probe", 1)))

    async def change(sql: str, *, into: str) -> None:
        with postgres.Sql(server.url()) as connection:
            connection.execute(sql)
        await asyncio.to_thread(server.reload)
        while await store.database.fetch(f"SHOW {setting}") != [(into,)]:
            pass

    await turn(store, item)
    try:
        await change(f"ALTER SYSTEM SET {setting} = off", into="off")
        with pytest.raises(ShardUnavailableError, match=f"reach_.* has {setting} = off"):
            await turn(store, item)
        with pytest.raises(ShardUnavailableError, match=f"has {setting} = off"):
            await connects_again(store)
    finally:
        await change(f"ALTER SYSTEM RESET {setting}", into="on")
    await turn(store, item)
    await store.close()


async def connects_again(store: PostgresShard) -> None:
    """A turn over a new connection."""
    for connection in store.database._idle:
        connection.terminate()
    await turn(store, Write(("meta_set", ("probe", 1))))


@pytest.mark.parametrize(
    "sent",
    [
        "BEGIN ISOLATION LEVEL READ COMMITTED",
        "INSERT INTO smsgw_00.meta",
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "FROM smsgw_00.total",
    ],
)
async def test_a_connection_that_dies_without_a_word_is_given_up(
    server: postgres.OwnServer, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "COMMAND_S", 1.0)
    name = await asyncio.to_thread(new_database, server)
    async with Way(server.port)() as way:
        url = f"postgresql://postgres@127.0.0.1:{way.port}/{name}"
        store = await postgres.open_shard(postgres.Schema(url), IDENTITY, lease_s=0.4)
        way.swallows = sent.encode()
        async with asyncio.timeout(12):
            await turn(store, Write(("meta_set", ("probe", 1))))
            with contextlib.suppress(StorageUnavailable):
                await store.report(1, 0, 1)
            assert way.swallows is None
            assert await store.report(1, 0, 1) == []
        assert await store.read("meta_get", "probe") == [(1,)]
        await store.close()


async def test_a_server_that_does_not_answer_is_not_asked_on_every_connection(
    server: postgres.OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await asyncio.to_thread(new_database, server)
    async with Way(server.port)() as way:
        url = f"postgresql://postgres@127.0.0.1:{way.port}/{name}"
        monkeypatch.setattr(connection_module, "COMMAND_S", 0.5)
        store = await postgres.open_shard(postgres.Schema(url), IDENTITY)
        await asyncio.gather(*(store.database.fetch("SELECT 1") for _ in range(5)))
        assert len(store.database._idle) == 5
        monkeypatch.setattr(connection_module, "CONNECT_S", 0.1)
        way.is_open.clear()
        before = store.next_serial()
        with pytest.raises(ShardUnavailableError):
            await turn(store, Write(("meta_set", ("probe", 1))))
        assert store.next_serial() - before <= 1 + 2, "one that was there, and a new one"
        assert not store.database._idle
        monkeypatch.undo()
        way.is_open.set()
        await turn(store, Write(("meta_set", ("probe", 1))))
        await store.close()


async def test_a_connection_is_looked_after_while_nothing_is_said(
    server: postgres.OwnServer,
) -> None:
    database = Database(server.url(), 0, PostgresSettings())
    async with database.connection() as connection:
        found = connection._transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    await database.close()


class Code(Write):
    """Something that goes before everything else."""

    __slots__ = ()
    priority = URGENT


async def test_a_code_that_a_server_does_not_answer_for_holds_up_nothing_on_the_others(
    gateway_of: OpenGateway, store_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "DOUBT_S", 0)
    monkeypatch.setattr(postgres_module, "PROBE_S", 0.01)
    gateway = await gateway_of(serve=False)
    clients: dict[int, bytes] = {}
    while len(clients) < 2:
        client = await add_client(gateway)
        clients[gateway.shards.of_client(client).number] = client
    here, there = (gateway.shards.of_client(client).store for client in clients.values())
    assert isinstance(here, PostgresShard)
    assert isinstance(there, PostgresShard)
    back = asyncio.Event()
    write = there.database.write

    async def away(sql: str, *arguments: Any, **more: Any) -> Any:
        if f"{there.schema}." in sql and not back.is_set():
            raise ShardUnavailableError("away")
        return await write(sql, *arguments, **more)

    monkeypatch.setattr(there.database, "write", away)
    first, second = clients.values()
    postgres.Unreliable(there.database).lose(after=True)
    with pytest.raises(StorageUnavailable):
        await gateway.shards.of_client(second).ask(Code(("meta_set", ("probe", 1))))
    async with asyncio.timeout(5):
        for _ in range(5):
            await send(gateway, first)
    assert list(gateway.trouble()) == [f"shard {there.number}"]
    back.set()
    while gateway.trouble():
        await there.database.fetch("SELECT 1")


@pytest.mark.parametrize("locked", ["smsgw_catalog.migration", "smsgw_catalog.shard"])
async def test_who_stands_still_while_it_starts_keeps_nobody_else_out(
    gateway_of: OpenGateway, server: postgres.OwnServer, tmp_path: Path, locked: str
) -> None:
    name = await asyncio.to_thread(new_database, server)
    short = {"lease_s": 0.4, "poll_ms": 20}
    async with Way(server.port)() as way:
        way.closes_behind = f"LOCK TABLE {locked}".encode()
        far = stored_at(f"postgresql://postgres@127.0.0.1:{way.port}/{name}", postgres=short)
        frozen = asyncio.ensure_future(gateway_of(far, serve=False, data=tmp_path / "frozen"))
        await way.closed.wait()
        near = stored_at(server.url(database=name), postgres=short)
        async with asyncio.timeout(8):
            await gateway_of(near, serve=False, data=tmp_path / "other")
        way.is_open.set()
        with pytest.raises(StoreError, match=r"shard_urls\[0\] .*: (the connection has|.*idle)"):
            await frozen


async def test_who_stands_still_in_a_turn_holds_up_the_others_no_longer_than_its_lease(
    gateway_of: OpenGateway, server: postgres.OwnServer, tmp_path: Path
) -> None:
    name = await asyncio.to_thread(new_database, server)
    short = {"lease_s": 1.0, "poll_ms": 20}
    near = stored_at(server.url(database=name), postgres=short)
    async with Way(server.port)() as way:
        url = f"postgresql://postgres@127.0.0.1:{way.port}/{name}"
        far = stored_at(url, postgres={**short, "statement_cache": False})
        sweeps = await gateway_of(far, data=tmp_path / "sweeps", manual=False)
        shutil.copytree(tmp_path / "sweeps", tmp_path / "other")
        other = await gateway_of(near, data=tmp_path / "other", manual=False)
        client = await add_client(other, 1000)
        while other.shards.of_client(client).number != 0:
            client = await add_client(other, 1000)
        # While it sweeps, it keeps all others out; and a session that was told a statement, and not
        # yet to carry it out, is not even idle.
        way.closes_behind = b"count(*) FROM\n    (SELECT number FROM smsgw_00.message"
        await way.closed.wait()
        async with asyncio.timeout(4):
            await send(other, client)
            assert await settled(other, client) == (995, 5)
        way.is_open.set()
        await sweeps.close()


# Passwords.


@pytest.fixture(scope="module")
def asked(server: postgres.OwnServer) -> postgres.OwnServer:
    """The server, which asks the role ``app`` for a password."""
    with postgres.Sql(server.url()) as sql:
        sql.execute(f"CREATE ROLE app SUPERUSER LOGIN PASSWORD '{SECRET}'")
    rules = server.folder / "pg_hba.conf"
    rules.write_text(f"host all app 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    server.reload()
    return server


def written(path: Path, server: postgres.OwnServer, password: str = SECRET) -> Path:
    """A file of passwords, as the driver wants it."""
    path.write_text(f"# ours\n127.0.0.1:{server.port}:*:app:{password}\n")
    path.chmod(0o600)
    return path


async def test_a_password_may_stand_in_a_file(
    asked: postgres.OwnServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = asked.url("app")
    assert "password authentication failed" in await refusal(url)
    await connects(f"{url}?passfile={written(tmp_path / 'named', asked)}")
    with monkeypatch.context() as patch:
        patch.setenv("PGPASSFILE", str(tmp_path / "named"))
        await connects(url)
    assert "password authentication failed" in await refusal(url)
    kept = written(home / ".pgpass", asked)
    await connects(url)
    written(kept, asked, f"wrong{SECRET}")
    refused = await refusal(url)
    assert "password authentication failed" in refused
    assert SECRET not in refused


async def test_a_file_of_passwords_that_others_may_read_is_not_used(
    asked: postgres.OwnServer, tmp_path: Path
) -> None:
    kept = written(tmp_path / "passwords", asked)
    kept.chmod(0o640)
    with pytest.warns(UserWarning, match="group or world access"):
        refused = await refusal(f"{asked.url('app')}?passfile={kept}")
    assert "password authentication failed" in refused


async def test_a_gateway_works_with_a_password_from_a_file(
    gateway_of: OpenGateway, asked: postgres.OwnServer, tmp_path: Path
) -> None:
    name = await asyncio.to_thread(new_database, asked)
    kept = written(tmp_path / "passwords", asked)
    url = asked.url("app", name, more=f"?passfile={kept}")
    gateway = await gateway_of(stored_at(url), manual=False)
    client = await add_client(gateway, 10)
    await send(gateway, client)
    assert await settled(gateway, client) == (5, 5)


# TLS.


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_without_tls_is_refused_where_tls_is_required(
    server: postgres.OwnServer, certificates: Certificates, mode: str
) -> None:
    await connects(server.url())
    trusted = f"&sslrootcert={certificates.authority}"
    refused = await refusal(server.url(more=f"?sslmode={mode}{trusted}"))
    assert refused.startswith("store.shard_urls[0] (127.0.0.1:")
    assert "rejected SSL upgrade" in refused


async def test_a_certificate_is_verified_as_far_as_was_asked_for(
    server: postgres.OwnServer, certificates: Certificates
) -> None:
    async with Way(server.port, certificates.for_server())() as way:
        right = f"postgresql://postgres@localhost:{way.port}/postgres"
        other = f"postgresql://postgres@127.0.0.1:{way.port}/postgres"
        trusted = f"&sslrootcert={certificates.authority}"
        await connects(f"{other}?sslmode=require")
        await connects(f"{other}?sslmode=verify-ca{trusted}")
        await connects(f"{right}?sslmode=verify-full{trusted}")
        refused = await refusal(f"{other}?sslmode=verify-full{trusted}")
        assert refused.startswith(f"store.shard_urls[0] (127.0.0.1:{way.port}/postgres): ")
        assert "certificate is not valid for '127.0.0.1'" in refused


async def test_a_certificate_that_nobody_knows_is_refused_with_the_reason(
    server: postgres.OwnServer, certificates: Certificates, home: Path, tmp_path: Path
) -> None:
    stranger = new_certificates(tmp_path, "localhost")
    async with Way(server.port, certificates.for_server())() as way:
        url = f"postgresql://postgres@localhost:{way.port}/postgres"
        for mode in ("require", "verify-ca", "verify-full"):
            refused = await refusal(f"{url}?sslmode={mode}&sslrootcert={stranger.authority}")
            assert "certificate verify failed" in refused
        for mode in ("verify-ca", "verify-full"):
            assert "root.crt" in await refusal(f"{url}?sslmode={mode}")
        missing = f"{url}?sslmode=verify-full&sslrootcert={tmp_path / 'missing.pem'}"
        assert "a file that it names" in await refusal(missing)
        # Where it is looked for when no place is named.
        (home / ".postgresql").mkdir()
        shutil.copy(certificates.authority, home / ".postgresql" / "root.crt")
        await connects(f"{url}?sslmode=verify-full")


async def test_a_gateway_works_over_a_verified_connection(
    gateway_of: OpenGateway, server: postgres.OwnServer, certificates: Certificates
) -> None:
    name = await asyncio.to_thread(new_database, server)
    async with Way(server.port, certificates.for_server())() as way:
        url = f"postgresql://postgres@localhost:{way.port}/{name}"
        url += f"?sslmode=verify-full&sslrootcert={certificates.authority}"
        gateway = await gateway_of(stored_at(url), manual=False)
        client = await add_client(gateway, 10)
        await send(gateway, client)
        assert await settled(gateway, client) == (5, 5)
        await gateway.close()


# Behind a pooler, every transaction may get another session.


async def test_behind_a_pooler_in_transaction_mode_everything_works_without_a_cache(
    gateway_of: OpenGateway, server: postgres.OwnServer
) -> None:
    name = await asyncio.to_thread(new_database, server)
    async with pooled(server) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        uncached = {"statement_cache": False}
        gateway = await gateway_of(stored_at(url, postgres=uncached), manual=False)
        client = await add_client(gateway, 10_000)
        keys = [key_use(str(number // 2), "messages") for number in range(100)]
        await asyncio.gather(*(send(gateway, client, key=key) for key in keys))
        assert await settled(gateway, client) == (10_000 - 50 * 5, 50 * 5)
        await gateway.close()


async def test_without_a_pooler_the_same_works_too(
    gateway_of: OpenGateway, store_settings: dict[str, Any]
) -> None:
    gateway = await gateway_of({"postgres": {"statement_cache": False}}, manual=False)
    client = await add_client(gateway, 20)
    sent = await asyncio.gather(*(send(gateway, client) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(one, SmsgwError) for one in sent) == 1
    assert await settled(gateway, client) == (0, 20)


# Secrets.


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://app:{SECRET}@127.0.0.1:1/db",
        f"postgresql://app@127.0.0.1:1/db?password={SECRET}",
        f"postgresql://app:{SECRET}@127.0.0.1:1/db?sslmode={SECRET}",
        f"postgresql://app:{SECRET}@127.0.0.1:1/db?connect_timeout={SECRET}&{SECRET}",
        f"postgresql://app:{SECRET}@127.0.0.1:1/db?passfile=/{SECRET}&target_session_attrs=x",
        f"postgresql://app:{SECRET}@[::1/db",
        f"postgresql://app:{SECRET}@/db?host=/nowhere",
        # What belongs into a password as %40, %2F and so on tears its URL.
        *(f"postgresql://app:{FIRST}{torn}{SECOND}@127.0.0.1:1/db" for torn in "@/?#%:[]"),
        *(f"postgresql://app:{FIRST}@{torn}{SECOND}@127.0.0.1:1/db" for torn in "/?#"),
        f"postgresql://app:{SECOND}/db",
        f"postgres:app:{SECRET}@127.0.0.1:1/db",
        SECRET,
    ],
)
async def test_no_piece_of_a_password_is_told(url: str) -> None:
    refused = await refusal(url)
    assert FIRST not in refused
    assert SECOND not in refused
    assert refused.startswith("store.shard_urls[0]")


async def test_a_wrong_password_is_not_told_either(asked: postgres.OwnServer) -> None:
    for password in (f"{SECOND}{FIRST}", f"{SECOND}%40{FIRST}", f"{SECOND}%2F{FIRST}"):
        refused = await refusal(asked.url(f"app:{password}"))
        assert "password authentication failed" in refused
        assert FIRST not in refused
        assert SECOND not in refused
    await connects(asked.url(f"app:{SECRET.replace('-', '%2D')}"))


@pytest.mark.parametrize(
    "line",
    [
        "config check",
        "config check --json",
        "config show",
        "config show --json",
        "audit",
        "status",
        "client list",
        "shards list",
        "serve --port 0",
    ],
)
def test_no_command_tells_a_password(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    urls = (
        f"postgresql://app:{SECRET}@127.0.0.1:1/db,postgresql://app@127.0.0.1:1/x?password={SECRET}"
    )
    monkeypatch.setenv("SMSGW_STORE__SHARD_URLS", urls)
    code = main(["--data", str(tmp_path / "data"), *line.split()])
    shown, told = capfd.readouterr()
    assert FIRST not in shown + told
    assert SECOND not in shown + told
    is_config = line.startswith("config")
    assert (code == 0) == is_config, told
    assert not line.startswith("config show") or shown.count(MASK) >= 2


def test_a_mistake_in_the_settings_is_named_without_what_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smsgw.toml").write_text(
        f'[store]\nshard_urls = [["postgresql://app:{SECRET}@127.0.0.1/db"], 7]\n'
    )
    assert main(["--data", str(tmp_path / "data"), "config", "check"]) == 1
    shown, told = capfd.readouterr()
    assert "store.shard_urls" in told
    assert SECOND not in shown + told


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(StoreError, match="no URL of the form"):
        Database("nothing", 0, PostgresSettings())
