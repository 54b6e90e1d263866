"""Connections to one PostgreSQL database: as many as are needed, up to a limit, checked once each.

Nothing here tells a URL: it may hold a password. What went wrong is told by the server's own
sentence and the place's name, ``store.shard_urls[0] (host/database)``.
"""

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from ssl import SSLError
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from smsgw.errors import StoreError
from smsgw.settings import PostgresSettings
from smsgw.store.base import ShardUnavailableError
from smsgw.store.postgres_statements import begin_alone, begin_long

try:
    import asyncpg
except ImportError as missing:
    raise StoreError(
        "store.shard_urls needs asyncpg: pip install 'smsgw[postgres]' brings it"
    ) from missing

VERSION_MIN: Final = 140_000
CONNECT_S: Final = 5.0
COMMAND_S: Final = 15.0
"""How long a call may take that is no proof of everything, and copies nothing."""
PATIENT_S: Final = 3600.0
"""How long any other call may take."""
MIGRATE_S: Final = 60.0
"""How long others may keep a schema from being brought up to date."""
_LOCK_WAIT_MS: Final = 5_000
PLACE_S: Final = 15.0
"""How long a call may have to wait for a connection that others use."""
_BESIDE: Final = 2
"""The connections of what gateways tell each other: leases, looks."""
_SHARED_MIN: Final = 2
"""An audit takes one of them for long."""
_STATEMENTS_CACHED: Final = 1000
# After so many seconds without a word a connection is looked after, so often, and so many times.
# What is sent must have arrived in as many milliseconds.
_KEEPALIVE: Final = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 30_000,
}
# Before and after the one value of one row: signature, flags, extension, columns, length; end.
_COPY_HEAD_BYTES: Final = 25
_COPY_TAIL_BYTES: Final = 2
_READ_AT_ONCE: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

AGAIN: Final = frozenset({"40001", "40P01"})
"""Serialization failure, deadlock: the transaction may be tried again."""
TRIES: Final = 8
"""How often something is tried: another gateway may be in its way, or a connection break."""
UNIQUE: Final = "23505"
UNDEFINED_TABLE: Final = "42P01"
LOCKED: Final = "55P03"
USURPED: Final = "SG001"
_IN_THE_WAY: Final = AGAIN | {LOCKED}
# Classes of errors that are the server's, not the statement's: they pass once their cause is gone.
_PASSING: Final = frozenset({"08", "53", "57", "58", "XX", "F0"})
_PASSING_CODES: Final = frozenset({"25006", "55P03", "25P03", "25P04"}) | AGAIN

# One host, or several, each with a port or none.
_HOST: Final = r"(?:[^\s:@\[\]]*|\[[\da-fA-F:.]+\])(?::\d*)?"
_HOSTS: Final = re.compile(rf"{_HOST}(?:,{_HOST})*")

ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # A connection that ends at the wrong moment confuses asyncpg.
    asyncpg.InternalClientError,
    OSError,
)
"""What a call to the server may end in."""

T = TypeVar("T")
Connection = Any
"""An ``asyncpg.Connection``; asyncpg brings no types."""


def is_passing(error: BaseException, connection: Connection) -> bool:
    """Whether an error of a statement is the trouble of the server, or of the way to it.

    A connection on which no answer came, or a strange one, is not used again.
    """
    if isinstance(error, asyncpg.PostgresError):
        code = error.sqlstate or ""
        return code[:2] in _PASSING or code in _PASSING_CODES
    if isinstance(error, OSError | asyncpg.InternalClientError):
        connection.terminate()
    return isinstance(error, ERRORS) and bool(connection.is_closed())


def code_of(error: BaseException) -> str:
    """An error's SQLSTATE; empty where the server said none."""
    return str(getattr(error, "sqlstate", None) or "")


def sentence(error: BaseException) -> str:
    """What went wrong, without what somebody sent: no detail, no statement, no URL."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.args[0] if error.args else type(error).__name__)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, FileNotFoundError):
        return "a file that it names, or its socket, is not there"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "no host is as target_session_attrs wants it"
    if isinstance(error, asyncpg.InternalClientError):
        return "the connection has ended"
    return type(error).__name__


class Places:
    """So many may use a connection at a time; nobody waits for his turn for ever."""

    def __init__(self, name: str, count: int) -> None:
        self.last: Connection | None = None
        """The connection that turns had here last."""
        self._name = name
        self._free = asyncio.Semaphore(count)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A place.

        Raises:
            ShardUnavailableError: none came free in time.
        """
        if self._free.locked():
            try:
                async with asyncio.timeout(PLACE_S):
                    await self._free.acquire()
            except TimeoutError:
                raise ShardUnavailableError(f"{self._name}: all connections are in use") from None
        else:
            await self._free.acquire()
        try:
            yield
        finally:
            self._free.release()


class Database:
    """One database of ``store.shard_urls``.

    The turns of each shard have a connection, and what gateways tell each other has two: what only
    reads, or is done seldom, shares the others, and keeps none of those waiting.
    """

    def __init__(
        self, url: str, index: int, settings: PostgresSettings, *, patient: bool = False
    ) -> None:
        self.name = f"store.shard_urls[{index}]"
        self.settings = settings
        self.version = VERSION_MIN
        """What the server is, as far as it is known."""
        self.connections_made = 0
        self._url = url
        self._idle: list[Connection] = []
        self._closed = False
        self._command_s = PATIENT_S if patient else COMMAND_S
        self.on_trips: Callable[[int], None] = lambda _: None
        """Told about every so many calls to the server."""
        # Without a cache, a statement is prepared again for each time that it runs.
        self._trips_of_query = 1 if settings.statement_cache else 2
        parts = None
        with contextlib.suppress(ValueError):
            parts = urlsplit(url)
        if parts is None or parts.scheme not in ("postgresql", "postgres"):
            raise StoreError(f"{self.name} is no URL of the form postgresql://user@host/database")
        user, _, host = parts.netloc.rpartition("@")
        if "@" in user + parts.path or parts.fragment:
            raise StoreError(f"{self.name}: in a password, @ / ? # are written %40 %2F %3F %23")
        if "@" not in parts.query and _HOSTS.fullmatch(host):
            # Else a piece of a password may stand there.
            self.name += f" ({host}{parts.path})"
        self._turns: list[Places] = []
        self._shared = Places(self.name, settings.pool_max)
        self._beside = Places(self.name, _BESIDE)
        self.audits = asyncio.Lock()
        """One audit at a time: each may take long."""

    def reserve(self) -> Places:
        """The place of the turns of one more shard, and of nothing else."""
        places = Places(self.name, 1)
        self._turns.append(places)
        shared = self.settings.pool_max - len(self._turns) - _BESIDE
        self._shared = Places(self.name, max(_SHARED_MIN, shared))
        return places

    async def _connect(self) -> Connection:
        """A new, checked connection.

        Raises:
            StoreError: the server must not be trusted with a promise.
            ShardUnavailableError: it cannot be reached now.
        """
        cached = _STATEMENTS_CACHED if self.settings.statement_cache else 0
        try:
            connection = await asyncpg.connect(
                self._url,
                timeout=CONNECT_S,
                command_timeout=self._command_s,
                statement_cache_size=cached,
                max_cached_statement_lifetime=0,
            )
        except SSLError as error:
            # It may be a ValueError, too.
            raise ShardUnavailableError(f"{self.name}: {sentence(error)}") from error
        except ValueError as error:
            if getattr(error, "hint", None):
                # There is no certificate to verify the server's with.
                raise StoreError(f"{self.name}: {error.args[0]}") from None
            # Its message may repeat the URL.
            raise StoreError(f"{self.name} is not understood") from None
        except ERRORS as error:
            raise ShardUnavailableError(f"{self.name}: {sentence(error)}") from error
        _keep_alive(connection)
        try:
            await self._check(connection)
        except BaseException:
            connection.terminate()
            raise
        self.connections_made += 1
        return connection

    async def _check(self, connection: Connection) -> None:
        try:
            found = await connection.fetchrow(
                "SELECT current_setting('server_version_num')::integer AS version,"
                " current_setting('fsync') AS fsync,"
                " current_setting('synchronous_commit') AS synchronous_commit,"
                " current_setting('full_page_writes') AS full_page_writes,"
                " current_setting('server_encoding') AS encoding,"
                " pg_is_in_recovery() AS standby",
                timeout=CONNECT_S,
            )
        except ERRORS as error:
            raise ShardUnavailableError(f"{self.name}: {sentence(error)}") from error
        self.version = found["version"]
        if found["version"] < VERSION_MIN:
            old = found["version"] // 10_000
            raise StoreError(f"{self.name} is PostgreSQL {old}; 14 or newer is needed")
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            if found[setting] == "off":
                raise StoreError(self.unsafe(setting))
        if found["encoding"] != "UTF8":
            raise StoreError(f"{self.name} has the encoding {found['encoding']}, not UTF8")
        if found["standby"]:
            raise ShardUnavailableError(f"{self.name} is a standby: it cannot be written")

    def unsafe(self, setting: str) -> str:
        """What is said where a setting of the server is off that must not be."""
        return f"{self.name} has {setting} = off: it would lose what was promised; set it to on"

    @contextlib.asynccontextmanager
    async def connection(self, places: Places | None = None) -> AsyncIterator[Connection]:
        """A connection to use; what is left of a transaction is rolled back afterwards.

        Args:
            places: one of which is taken, unless one of those that are shared.

        Raises:
            StoreError: the server must not be trusted with a promise.
            ShardUnavailableError: it cannot be reached now.
        """
        places = places or self._shared
        async with places.one():
            connection = self._take(places) or await self._connect()
            if places in self._turns:
                places.last = connection
            try:
                yield connection
            except BaseException as error:
                if isinstance(error.__cause__ or error, TimeoutError):
                    self._drop_idle()
                await _put_in_order(connection)
                raise
            else:
                await _put_in_order(connection)
            finally:
                if self._closed:
                    # Whoever used it was slower to end than everything else.
                    connection.terminate()
                elif not connection.is_closed():
                    self._idle.insert(0 if places in self._turns else len(self._idle), connection)

    def _take(self, places: Places) -> Connection | None:
        """An idle connection: for turns the one that they had last, if it can be.

        The server keeps their plans with it, and the fewer of its processes are at work, the more
        of what they need is in a cache. Others take one that turns have left only where there is
        no other.
        """
        idle, last = self._idle, places.last
        while idle:
            connection = idle.pop(idle.index(last) if last is not None and last in idle else -1)
            if not connection.is_closed():
                return connection
        return None

    def _drop_idle(self) -> None:
        """Ask no other idle connection for as long, where a server does not answer on one."""
        while self._idle:
            self._idle.pop().terminate()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[Connection]:
        """A connection that keeps others out of what it locks, and commits at the end.

        Raises:
            ShardUnavailableError: the server cannot do so now.
        """
        begin = begin_alone(self.settings.lease_s, self.version)
        async with self._transaction(begin) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def at_once(self) -> AsyncIterator[Connection]:
        """A connection that only reads, and sees everything as it is at one moment.

        Raises:
            ShardUnavailableError: the server cannot be reached now.
        """
        async with self._transaction(_READ_AT_ONCE) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _transaction(
        self, begin: str, places: Places | None = None
    ) -> AsyncIterator[Connection]:
        async with self.connection(places) as connection:
            try:
                await connection.execute(begin)
                yield connection
                await connection.execute("COMMIT")
            except ShardUnavailableError as error:
                raise ShardUnavailableError(f"{self.name}: {error}") from error.__cause__
            except ERRORS as error:
                if is_passing(error, connection):
                    raise ShardUnavailableError(f"{self.name}: {sentence(error)}") from error
                raise

    async def fetch(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of one statement that only reads.

        Raises:
            ShardUnavailableError: the server cannot answer now.
        """
        return await self._fetch(self._shared, statement, parameters)

    async def write(
        self, statement: str, *parameters: Any, places: Places | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows of one statement that writes, or locks.

        It sees what others have committed while it waited, whatever is the default where it runs.

        Raises:
            ShardUnavailableError: the server cannot do so now.
        """
        begin = begin_alone(self.settings.lease_s, self.version)

        async def work() -> list[tuple[Any, ...]]:
            self.on_trips(2)
            self.queried()
            async with self._transaction(begin, places) as connection:
                return await fetch(connection, statement, *parameters)

        return await _until_nobody_is_in_the_way(work)

    async def look(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What a gateway asks again and again: whatever goes wrong may be right the next time.

        Raises:
            ShardUnavailableError: the server does not answer now.
        """
        with self._passing():
            return await self._fetch(self._beside, statement, parameters)

    async def beat(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What a gateway tells again and again, see ``look``.

        Raises:
            ShardUnavailableError: the server cannot be told now.
        """
        with self._passing():
            return await self.write(statement, *parameters, places=self._beside)

    async def tell(self, script: str) -> None:
        """The same in one call, with statements that take no parameters; see ``beat``.

        Raises:
            ShardUnavailableError: the server cannot be told now.
        """

        async def work() -> None:
            self.on_trips(1)
            async with self.connection(self._beside) as connection:
                try:
                    await connection.execute(script)
                except ERRORS as error:
                    if is_passing(error, connection):
                        raise ShardUnavailableError(sentence(error)) from error
                    raise

        with self._passing():
            await _until_nobody_is_in_the_way(work)

    async def _fetch(
        self, places: Places, statement: str, parameters: Sequence[Any]
    ) -> list[tuple[Any, ...]]:
        async def work() -> list[tuple[Any, ...]]:
            self.queried()
            async with self.connection(places) as connection:
                return await fetch(connection, statement, *parameters)

        return await _until_nobody_is_in_the_way(work)

    @contextlib.contextmanager
    def _passing(self) -> Iterator[None]:
        try:
            yield
        except ERRORS as error:
            raise ShardUnavailableError(f"{self.name}: {sentence(error)}") from error

    def queried(self) -> None:
        """Count a statement with parameters."""
        self.on_trips(self._trips_of_query)

    async def close(self) -> None:
        """Close every connection; one that is still in use is closed once it is not."""
        self._closed = True
        while self._idle:
            connection = self._idle.pop()
            try:
                with contextlib.suppress(*ERRORS):
                    await connection.close(timeout=CONNECT_S)
            finally:
                if not connection.is_closed():
                    connection.terminate()


async def fetch(
    connection: Connection, statement: str, *parameters: Any, timeout_s: float | None = None
) -> list[tuple[Any, ...]]:
    """The rows of one statement on a connection; it may take as long as others there, or as said.

    Raises:
        ShardUnavailableError: the server cannot answer now.
    """
    try:
        found = await connection.fetch(statement, *parameters, timeout=timeout_s)
        return [tuple(row) for row in found]
    except ERRORS as error:
        if is_passing(error, connection):
            raise ShardUnavailableError(sentence(error)) from error
        raise


async def fetch_value(connection: Connection, before: str, query: str) -> bytes:
    """The one value of a query, in one call together with what comes before it.

    Only statements without parameters can be sent together, and then asyncpg hands over no rows:
    but it does hand over what is copied, if that comes last.
    """
    chunks: list[bytes] = []

    async def keep(chunk: bytes) -> None:
        chunks.append(chunk)

    script = f"{before}; COPY ({query}) TO STDOUT (FORMAT binary)"
    # Its public methods for that send nothing but the COPY.
    await connection._copy_out(script.removeprefix("; "), keep, None)
    return b"".join(chunks)[_COPY_HEAD_BYTES:-_COPY_TAIL_BYTES]


async def _until_nobody_is_in_the_way(work: Callable[[], Awaitable[T]]) -> T:
    for _ in range(TRIES - 1):
        try:
            return await work()
        except ShardUnavailableError as error:
            if code_of(error.__cause__ or error) not in AGAIN:
                raise
    return await work()


def _keep_alive(connection: Connection) -> None:
    """Have the system find out that the other end of an idle connection is gone."""
    found = connection._transport.get_extra_info("socket")
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _put_in_order(connection: Connection) -> None:
    """End an open transaction; a connection on which that fails is dropped."""
    if connection.is_closed() or not connection.is_in_transaction():
        return
    try:
        await connection.execute("ROLLBACK", timeout=CONNECT_S)
    except ERRORS:
        connection.terminate()


async def migrate(
    database: Database, schema: str, steps: list[tuple[int, str, str]], now_ms: int
) -> None:
    """Bring a schema up to date, or make it; every step is a transaction.

    Where there is nothing to do nothing is locked: a dump may be under way. Who waits for a lock
    keeps others waiting behind: so the wait for one is short, but there are several.

    Raises:
        StoreError: the schema is newer than this program, or it cannot be made.
    """
    begin = begin_long(database.settings.lease_s)
    tell_at_s = time.monotonic() + MIGRATE_S
    async with database.connection() as connection:
        while True:
            try:
                if not await _step(connection, begin, schema, steps, now_ms):
                    return
                tell_at_s = time.monotonic() + MIGRATE_S
            except asyncpg.UniqueViolationError:
                # Another gateway makes it at this very moment; what it has made is there now.
                await _put_in_order(connection)
            except StoreError as error:
                raise StoreError(f"{database.name}, schema {schema}: {error.detail}") from None
            except ERRORS as error:
                if code_of(error) not in _IN_THE_WAY or time.monotonic() > tell_at_s:
                    raise StoreError(
                        f"{database.name}, schema {schema}: {sentence(error)}"
                    ) from error
                await _put_in_order(connection)


async def _step(
    connection: Connection, begin: str, schema: str, steps: list[tuple[int, str, str]], now_ms: int
) -> bool:
    """Carry out the next step; says whether there was one."""
    # The schema's name is our own.
    if await _steps_done(connection, schema, steps) == len(steps):
        return False
    await connection.execute(
        f"""
        {begin};
        SET LOCAL client_min_messages = warning;
        SET LOCAL lock_timeout = {_LOCK_WAIT_MS};
        CREATE SCHEMA IF NOT EXISTS {schema};
        CREATE TABLE IF NOT EXISTS {schema}.migration (
            number integer PRIMARY KEY, name text NOT NULL, applied_at_ms bigint NOT NULL);
        LOCK TABLE {schema}.migration IN SHARE ROW EXCLUSIVE MODE
        """
    )
    done = await _steps_done(connection, schema, steps)
    for number, name, script in steps[done : done + 1]:
        if done and "ALTER TABLE" in script:
            # That needs tables for itself, of which turns half way hold one and want another; none
            # is half way then. A new index needs one table, but for long: leases are renewed.
            await connection.execute(f"LOCK TABLE {schema}.gateway IN EXCLUSIVE MODE")
        await connection.execute(script, timeout=PATIENT_S)
        await connection.execute(
            f"INSERT INTO {schema}.migration VALUES ($1, $2, $3)",  # noqa: S608
            number,
            name,
            now_ms,
        )
    await connection.execute("COMMIT")
    return True


async def _steps_done(
    connection: Connection, schema: str, steps: list[tuple[int, str, str]]
) -> int:
    there = "SELECT to_regclass($1) IS NOT NULL"
    if not (await connection.fetchrow(there, f"{schema}.migration"))[0]:
        return 0
    (done,) = await connection.fetchrow(
        f"SELECT coalesce(max(number), 0) FROM {schema}.migration"  # noqa: S608
    )
    if done > len(steps):
        raise StoreError(f"the schema is at step {done}, this program knows {len(steps)}")
    return int(done)
