"""A shard in a schema of a PostgreSQL database, which other gateways may share.

A turn is one transaction of two calls, whatever its size: ``turn_load`` together with the begin,
which locks the clients concerned and returns all rows; ``turn_write`` together with the commit.
Nothing that another gateway may change is trusted from memory: messages under way are kept, but a
turn has the server say first which of them it has not seen in their last version. What else is kept
here are hints for the allotter and for express promises, brought up to date by every turn and by
``look``.

Where the connection is lost in the last call, nobody knows whether it was carried out. A turn's
serial number is written with it, so the server tells as soon as it can be asked again; until then
the shard takes nothing new, and callers who have waited long enough are told that they must ask
again. No process need end.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from smsgw.errors import StorageUnavailable, StoreError
from smsgw.ids import NumberSource
from smsgw.models import Lane, Unreported
from smsgw.store import postgres_rows as rows
from smsgw.store import postgres_statements as statements
from smsgw.store.audit import Proof
from smsgw.store.base import CommitUnknownError, ShardUnavailableError, TurnResult
from smsgw.store.postgres_audit import audit
from smsgw.store.postgres_connection import (
    ERRORS,
    LOCKED,
    TRIES,
    UNIQUE,
    Database,
    code_of,
    fetch,
    migrate,
    sentence,
)
from smsgw.store.postgres_reach import Reach
from smsgw.store.postgres_turn import Again, Attempt, Broken, InDoubt, OneFailed
from smsgw.turn import Item, QueueKey, Turn

DOUBT_S: Final = 2.0
PROBE_S: Final = 0.25
_CLIENTS_MAX: Final = 50_000

T = TypeVar("T")


class PostgresShard:
    """One schema, and what this process makes of it."""

    def __init__(
        self, number: int, database: Database, gateway: int, incarnation: int, schema: str
    ) -> None:
        self.number = number
        self.database = database
        self.schema = schema
        self.gateway = gateway
        self.incarnation = incarnation
        self.waiting: dict[QueueKey, int] = {}
        self.lane_parts: dict[QueueKey, int] = {}
        self.waits = 0
        self.watched: set[int] = set()
        self.orphans = False
        self.leads = True
        self.reach = Reach(database.settings.lease_s)
        self.alive: frozenset[int] = frozenset()
        """The numbers of the gateways that are not known to be dead, as far as this shard tells."""
        self.ended: Sequence[int] = ()
        self.on_doubt: Callable[[], bool] = lambda: True
        """Called while nobody knows what became of a turn; False ends the asking."""
        self.sql = statements.shard_statements(schema, incarnation)
        self.own = statements.gateway_statements(schema, incarnation)
        self.numbers = NumberSource(number, 0, gateway)
        self.kept = rows.Kept()
        self._connections_made = 0
        self._place = database.reserve()
        self._serial = 0
        self._turns = 0
        # Of clients: number and weight, to weigh express promises with.
        self._clients: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        # By route, of those with express messages waiting: parts and weight.
        self._express: dict[int, dict[int, tuple[int, int]]] = {}

    @classmethod
    async def open(
        cls,
        number: int,
        database: Database,
        *,
        gateway: int,
        incarnation: int,
        identity: Mapping[str, int],
        new: bool,
        now_ms: int,
    ) -> "PostgresShard":
        """Open, or make, a shard's schema.

        Args:
            number: the shard's.
            database: where it is.
            gateway: the number of this gateway.
            incarnation: which start of a gateway this is.
            identity: what the schema's ``meta`` must say (shard number, store, epoch, count).
            new: whether it may be made.
            now_ms: the time to note migrations with.

        Raises:
            StoreError: when the schema is missing, foreign or cannot be opened.
        """
        schema = statements.schema_of(number)
        self = cls(number, database, gateway, incarnation, schema)
        try:
            if not new and not await database.fetch(
                "SELECT 1 FROM pg_namespace WHERE nspname = $1", schema
            ):
                raise StoreError(f"{database.name}: the schema {schema} is missing")
            await migrate(database, schema, statements.migrations("schema", schema), now_ms)
            await self._make_functions()
            await self._check_identity(identity)
            lease_s = database.settings.lease_s
            # It may be ourselves who stood still.
            await self._end_overdue()
            if not await database.write(self.own["own_enter"], gateway, incarnation, lease_s):
                raise StoreError(f"{database.name}: another process is gateway {gateway}")
            ((last,),) = await database.fetch(self.own["numbers_last"])
            self.numbers.above(last)
            await self.look()
        except ShardUnavailableError as error:
            raise StoreError(str(error)) from error
        return self

    async def _make_functions(self) -> None:
        for name, script in statements.functions(self.schema).items():
            found = await self.database.fetch(
                "SELECT 1 FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace"
                " WHERE nspname = $1 AND proname = $2",
                self.schema,
                name,
            )
            if not found:
                await self._make_function(script)

    async def _make_function(self, script: str) -> None:
        try:
            await self.database.write(script)
        except Exception as error:
            # 42723, or a unique index of the server's own: another gateway has just made it.
            if code_of(error) not in ("42723", UNIQUE):
                raise

    async def _check_identity(self, identity: Mapping[str, int]) -> None:
        """Compare what the schema says of itself with the catalog; a new one is told."""
        for key, value in identity.items():
            await self.database.write(self.own["identity_set"], key, value)
        found = dict(await self.database.fetch(self.own["identity_get"], list(identity)))
        for key, value in identity.items():
            if found[key] != value:
                raise StoreError(
                    f"{self.database.name}: the schema {self.schema} is foreign: its {key} is"
                    f" {found[key]}, expected {value}"
                )

    @property
    def begin(self) -> str:
        """What begins a turn."""
        return statements.begin(self.database.settings.lease_s, self.database.version)

    async def turn(
        self, items: Sequence[Item], now_ms: int, virtual: Mapping[QueueKey, int]
    ) -> TurnResult:
        """See ``ShardStore.turn``; it goes on to its end when the caller is cancelled."""
        return await _uninterrupted(self._turn(items, now_ms, virtual))

    async def _turn(
        self, items: Sequence[Item], now_ms: int, virtual: Mapping[QueueKey, int]
    ) -> TurnResult:
        together, collided = True, False
        failure: BaseException | None = None
        for _ in range(TRIES):
            attempt = Attempt(self, now_ms, virtual)
            try:
                async with self.database.connection(self._place) as connection:
                    self._forget_if_new()
                    if together:
                        await attempt.together(connection, items)
                    else:
                        await attempt.one_by_one(connection, items)
                return attempt.finish()
            except InDoubt as doubt:
                # Whoever asks needs a connection: the turn has given its own back by now.
                if await self.is_committed(attempt.serial):
                    self.kept.clear()
                    return attempt.finish()
                failure = doubt.__cause__
            except Again as again:
                # The same row of two gateways is there at the next try; the same row of one is not.
                together = together and not (again.collision and collided)
                collided = collided or again.collision
                failure = again.__cause__
            except OneFailed as failed:
                together = False
                failure = failed.__cause__
            except Broken as broken:
                failure = broken.__cause__
            except ShardUnavailableError as error:
                self.kept.clear()
                if code_of(error.__cause__ or error) != LOCKED or not await self._end_overdue():
                    raise
                failure = error.__cause__
            except StoreError as error:
                raise ShardUnavailableError(error.detail) from error
            # Transaction ids may mean something else where another server has taken over.
            self.kept.clear()
        why = sentence(failure) if failure is not None else ""
        raise ShardUnavailableError(f"{self.database.name}: no turn comes to its end: {why}")

    def _forget_if_new(self) -> None:
        """Forget what turns have left, where a connection was made since: see ``_turn``."""
        if self._connections_made != self.database.connections_made:
            self._connections_made = self.database.connections_made
            self.kept.clear()

    async def _end_overdue(self) -> bool:
        """Whether a gateway that stands still in a turn was cut off from the server."""
        lease_s = self.database.settings.lease_s
        try:
            return bool(await self.database.look(self.own["overdue_end"], lease_s))
        except (ShardUnavailableError, StoreError):
            return False

    async def look(self, *, closely: bool = True) -> dict[QueueKey, int]:
        """Learn what other gateways have changed; returns the lowest rank of each queue.

        Args:
            closely: also whether something was left in flight.

        Raises:
            ShardUnavailableError: the server cannot answer now.
        """
        turns = self._turns
        reach = self.reach
        ((document,),) = await self.database.look(
            self.own["look"], list(self.watched), reach.judges_at_s, reach.counted_s, closely
        )
        found = json.loads(document)
        self.reach.answered(found["now"])
        self.alive = frozenset(found["alive"] or ())
        if closely:
            self.orphans = found["orphans"]
        self.leads = found["first"] in (None, self.gateway)
        self.ended = found["ended"] or []
        if turns != self._turns:
            # A turn of our own has ended meanwhile, and knows better.
            return {}
        self.waiting, self.lane_parts, self._express = {}, {}, {}
        heads: dict[QueueKey, int] = {}
        for route, lane, messages, parts, rank in found["backlog"] or ():
            self.waiting[route, lane] = messages
            self.lane_parts[route, lane] = parts
            if rank is not None:
                heads[route, lane] = rank
        self.waits = found["waits"] or 0
        for client, route, parts, weight in found["express"] or ():
            self._express.setdefault(route, {})[client] = (parts, weight)
        return heads

    def absorb(self, turn: Turn, loaded: rows.Loaded) -> None:
        """Remember what a committed turn has left."""
        self._turns += 1
        self.waiting, self.lane_parts = loaded.waiting, loaded.lane_parts
        for key, (messages, parts) in rows.backlog_changes(turn).items():
            self.waiting[key] = self.waiting.get(key, 0) + messages
            self.lane_parts[key] = self.lane_parts.get(key, 0) + parts
        self.waits = loaded.waits + turn.waiting
        for account in turn.accounts.values():
            self._clients[account.id] = (account.number, account.weight)
        while len(self._clients) > _CLIENTS_MAX:
            self._clients.popitem(last=False)
        for (client, route, lane), flow in turn.flows.items():
            if lane == Lane.EXPRESS:
                express = self._express.setdefault(route, {})
                if flow.parts:
                    express[client] = (flow.parts, turn.accounts[client].weight)
                else:
                    express.pop(client, None)

    def express_share(self, client_id: bytes, route: int) -> tuple[int, int, int]:
        """What a client has waiting on the express lane of a route.

        Returns:
            Its waiting parts, its weight, and the weights of all that have some waiting, itself
            included.
        """
        number, weight = self._clients.get(client_id, (-1, 1))
        express = self._express.get(route, {})
        parts, _ = express.get(number, (0, 0))
        others = sum(other for client, (_, other) in express.items() if client != number)
        return (parts, weight, others + weight)

    async def lowest_ranks(self) -> list[tuple[QueueKey, int]]:
        """The lowest rank of every queue."""
        found = await self.read("queue_lowest")
        return [((route, lane), rank) for route, lane, rank in found if rank is not None]

    async def accepted_open(self, before: int, limit: int) -> list[Unreported]:
        """See ``ShardStore.accepted_open``."""
        return [Unreported(*row) for row in await self.read("accepted_open", before, limit)]

    async def read(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """See ``ShardStore.read``."""
        sql = self.sql[statement]
        assert sql.startswith("SELECT"), "what writes is part of a turn"
        try:
            return await self.database.fetch(sql, *statements.storable(parameters))
        except (ShardUnavailableError, StoreError) as error:
            raise StorageUnavailable(retry_after_s=1, outcome="none") from error

    async def report(self, client: int, first_day: int, last_day: int) -> list[tuple[Any, ...]]:
        """What was counted of a client and what was not yet, seen at one moment."""
        try:
            async with self.database.at_once() as connection:
                return [
                    row
                    for name in ("report_totals", "report_fresh")
                    for row in await fetch(connection, self.sql[name], client, first_day, last_day)
                ]
        except (ShardUnavailableError, StoreError) as error:
            raise StorageUnavailable(retry_after_s=1, outcome="none") from error

    async def audit(self, step: Callable[[str], None] = lambda _: None) -> Proof:
        """Prove every sum, every hold and every chain of this shard, at one moment."""
        try:
            async with self.database.audits, self.database.at_once() as connection:
                return await audit(connection, self.schema, self.number, step)
        except (ShardUnavailableError, StoreError) as error:
            raise StorageUnavailable(retry_after_s=1, outcome="none") from error

    async def beat(self) -> bool:
        """Say that this gateway is alive, also where it has nothing to do.

        Returns:
            Whether it is; False where its place was given away.

        Raises:
            ShardUnavailableError: the server cannot be told now.
        """
        lease_s = self.database.settings.lease_s
        beat = self.own["own_beat"]
        return bool(await self.database.beat(beat, self.gateway, self.incarnation, lease_s))

    def wal_bytes(self) -> int:
        """How long the write-ahead log is: the server's own care."""
        return 0

    async def tidy(self) -> None:
        """Do nothing: the server tidies up."""

    async def close(self) -> None:
        """Tell the other gateways that this one has ended; the database is closed by its owner."""
        try:
            await self.database.write(self.own["own_leave"], self.gateway, self.incarnation)
        except (ShardUnavailableError, StoreError):
            # Then its lease ends by itself.
            return

    def next_serial(self) -> int:
        """The number of the next try to write something."""
        self._serial += 1
        return self._serial

    async def is_committed(self, serial: int) -> bool:
        """What became of a turn whose commit was not answered; asks until the server tells.

        Raises:
            CommitUnknownError: nobody can wait any longer, or another process is this gateway now.
        """
        tell_at_s = time.monotonic() + DOUBT_S
        while True:
            try:
                found = await self.database.write(
                    self.own["own_serial"], self.gateway, self.incarnation, places=self._place
                )
            except (ShardUnavailableError, StoreError, *ERRORS) as error:
                if time.monotonic() >= tell_at_s and not self.on_doubt():
                    raise CommitUnknownError(str(error)) from error
                await asyncio.sleep(PROBE_S)
            else:
                if not found:
                    raise CommitUnknownError(f"another process is gateway {self.gateway} now")
                return bool(found[0][0] == serial)


async def _uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Await something that runs to its end even if we are cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            # Read it, so that no warning is left behind.
            task.exception()
        raise
