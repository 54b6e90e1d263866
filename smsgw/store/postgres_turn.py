"""One try to carry out a turn in PostgreSQL: load, decide, write, commit."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from smsgw.errors import InternalError, SmsgwError
from smsgw.models import FINAL_FROM
from smsgw.store import postgres_rows as rows
from smsgw.store import postgres_statements as statements
from smsgw.store.base import CommitUnknownError, ShardUnavailableError, TurnResult
from smsgw.store.postgres_connection import (
    AGAIN,
    UNIQUE,
    USURPED,
    Connection,
    code_of,
    fetch_value,
    is_passing,
    sentence,
)
from smsgw.turn import URGENT, Item, QueueKey, Turn, Wants, run_items

if TYPE_CHECKING:
    from smsgw.store.postgres import PostgresShard

_WALKS: Final = frozenset({"span_end"})
"""What is asked by turns behind whose mark no other turn may add anything."""
_SWEEPS: Final = frozenset({"keys_old", "codes_page", "entries_oldest", "parked_old"})
"""What is asked by turns that work on what only they change."""
_LOCKED: Final = frozenset({"otp_recent_of"})
"""What is asked once the clients are locked, and shows what other gateways did for them before."""
_JUDGE: Final = frozenset({"message_in_flight"})
"""What is told who counts as alive: whose lease had not ended at a time."""
POSTPONED_MAX: Final = 3
"""How many turns leave an item out before one waits for its client's lock."""
_SERVER_SHARE: Final = 1.5
"""What a turn costs, for each second of it that is ours; waiting for other gateways is no cost."""


Ask = tuple[str, tuple[Any, ...]]
"""A statement's name, with its parameters."""


class Attempt:
    """One try to carry out a turn."""

    def __init__(
        self, shard: "PostgresShard", now_ms: int, virtual: Mapping[QueueKey, int]
    ) -> None:
        self._shard = shard
        self._now_ms = now_ms
        self._virtual = virtual
        self.serial = shard.next_serial()
        self._postponed: list[Item] = []
        self._wrote = False
        self._work_s = 0.0
        self._commit_begun_s = 0.0
        self._done: list[tuple[Turn, rows.Loaded]] = []
        self._errors: list[SmsgwError | None] = []

    async def together(self, connection: Connection, items: Sequence[Item]) -> None:
        """All items at once.

        Raises:
            OneFailed: some item cannot be decided or written.
            Again: another gateway was in the way.
            InDoubt: nobody knows yet whether it was committed.
        """
        turn, loaded = await self._decided(connection, items, self._shard.begin, passes_over=True)
        script = self._script(turn)
        if rest := self._rest(turn):
            await self._run(connection, script)
            await self._write_rest(connection, rest)
            script = ""
        self._done, self._errors = [(turn, loaded)], [None] * len(items)
        await self._commit(connection, script)
        if not rest:
            # The rest may have changed what is in memory, too.
            self._shard.kept.keep(turn, loaded.xid)

    async def one_by_one(self, connection: Connection, items: Sequence[Item]) -> None:
        """After a turn failed: each item under a savepoint, so that one fails alone.

        Raises:
            Again: another gateway was in the way.
            InDoubt: nobody knows yet whether it was committed.
        """
        await self._run(connection, self._shard.begin)
        done, errors = self._done, self._errors
        for item in items:
            await self._run(connection, "SAVEPOINT item")
            try:
                turn, loaded = await self._decided(connection, [item])
                await self._run(connection, self._script(turn))
                await self._write_rest(connection, self._rest(turn))
            except OneFailed as failed:
                await self._run(connection, "ROLLBACK TO item")
                failure = InternalError()
                failure.__cause__ = failed.__cause__
                errors.append(failure)
            except Again as again:
                if not again.collision:
                    raise
                await self._run(connection, "ROLLBACK TO item")
                failure = InternalError()
                failure.__cause__ = again.__cause__
                errors.append(failure)
            else:
                done.append((turn, loaded))
                errors.append(None)
            await self._run(connection, "RELEASE item")
        await self._commit(connection, "")

    async def _decided(
        self,
        connection: Connection,
        items: Sequence[Item],
        before: str = "",
        *,
        passes_over: bool = False,
    ) -> tuple[Turn, rows.Loaded]:
        """Load what the items need, after something else, and let them decide."""
        shard = self._shard
        wants = Wants()
        try:
            for item in items:
                item.needs(wants)
            asks = {ask: shard.sql[ask[0]] for ask in wants.asks}
        except Exception as error:
            raise OneFailed from error
        late = {ask: asks.pop(ask) for ask in list(asks) if ask[0] in _LOCKED}
        if asks:
            await self._run(connection, before)
            before = ""
        asks_for = {statement for statement, _ in asks}
        if asks_for & _WALKS:
            await self._fetch(connection, shard.own["sweep_lock"])
        elif asks_for & _SWEEPS:
            await self._fetch(connection, shard.own["sweep_alone"])
        asked = await self._answers(connection, asks)
        for (statement, _), found in asked.items():
            if statement.startswith("message_"):
                wants.messages.update(row[0] for row in found)
        kept = shard.kept.take(wants.messages)
        call = statements.load_call(
            shard.schema,
            shard.gateway,
            shard.incarnation,
            rows.wanted(wants, kept, self._awaited(items, kept)),
            passes_over=passes_over and not asks,
        )
        document = await self._fetch_value(connection, before, call)
        asked |= await self._answers(connection, late)
        begun_s = time.perf_counter()
        loaded = rows.parse(document)
        for setting in loaded.unsafe:
            # It may have been changed after we connected.
            raise ShardUnavailableError(shard.database.unsafe(setting))
        shard.numbers.above(loaded.floor)
        turn = Turn(self._now_ms, shard.numbers, loaded.flows, self._virtual, loaded.counted_to)
        turn.asked = asked
        turn.elsewhere = frozenset(loaded.rows["elsewhere"] or ())
        rows.fill(turn, wants, loaded, kept)
        try:
            if busy := rows.Busy(loaded, kept):
                self._postponed = [item for item in items if busy.concerns(item)]
                postponed = set(self._postponed)
                items = [item for item in items if item not in postponed]
                shard.kept.give_back(busy.kept)
            run_items(items, turn)
        except Exception as error:
            raise OneFailed from error
        self._work_s += time.perf_counter() - begun_s
        return turn, loaded

    async def _answers(
        self, connection: Connection, asks: Mapping[Ask, str]
    ) -> dict[Ask, list[tuple[Any, ...]]]:
        found = {}
        for (statement, parameters), sql in asks.items():
            more = (self._shard.reach.judges_at_s,) if statement in _JUDGE else ()
            found[statement, parameters] = await self._fetch(
                connection, sql, *statements.storable(parameters), *more
            )
        return found

    @staticmethod
    def _awaited(items: Sequence[Item], kept: rows.KeptMessages) -> Wants:
        """The needs of those items for whose clients a turn waits, if others are at work for them.

        Of one-time codes, and of what was left out often enough: so nothing waits for ever.
        """
        wants = Wants()
        for item in items:
            if item.priority == URGENT or item.postponed >= POSTPONED_MAX:
                item.needs(wants)
        wants.numbers.update(kept[n][1].client for n in wants.messages & kept.keys())
        return wants

    def _script(self, turn: Turn) -> str:
        """The call that writes a turn; nothing where nothing has changed."""
        shard = self._shard
        try:
            changes, numbers = rows.changes(turn), rows.numbers(turn)
            if not changes and not any(numbers) and not turn.writes and not turn.waiting:
                return ""
            self._wrote = True
            return statements.write_call(
                shard.schema,
                {
                    "gateway": shard.gateway,
                    "incarnation": shard.incarnation,
                    "serial": self.serial,
                    "lease_s": shard.database.settings.lease_s,
                    "waits": turn.waiting,
                    **changes,
                },
                numbers,
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise OneFailed from error

    def _rest(self, turn: Turn) -> list[tuple[str, list[tuple[Any, ...]]]]:
        """What a turn wants written by its name, after everything else: runs of one statement."""
        runs: list[tuple[str, list[tuple[Any, ...]]]] = []
        for statement, parameters in turn.writes:
            if statement in statements.WRITTEN_TOGETHER:
                continue
            if not runs or runs[-1][0] != statement:
                runs.append((statement, []))
            runs[-1][1].append(parameters)
        return runs

    async def _write_rest(
        self, connection: Connection, runs: list[tuple[str, list[tuple[Any, ...]]]]
    ) -> None:
        for statement, parameters in runs:
            try:
                sql = self._shard.sql[statement]
                self._shard.database.queried()
                await connection.executemany(sql, statements.storable(parameters))
            except Exception as error:
                raise _judged(error, connection) from error

    async def _run(self, connection: Connection, script: str) -> None:
        if not script:
            return
        self._shard.database.on_trips(1)
        try:
            await connection.execute(script)
        except Exception as error:
            raise _judged(error, connection) from error

    async def _fetch(self, connection: Connection, sql: str, *parameters: Any) -> list[Any]:
        self._shard.database.queried()
        try:
            found = await connection.fetch(sql, *parameters)
            return [tuple(row) for row in found]
        except Exception as error:
            raise _judged(error, connection) from error

    async def _fetch_value(self, connection: Connection, before: str, query: str) -> bytes:
        self._shard.database.on_trips(1)
        try:
            return await fetch_value(connection, before, query)
        except Exception as error:
            raise _judged(error, connection) from error

    async def _commit(self, connection: Connection, script: str) -> None:
        """Write and commit in one call.

        Raises:
            ShardUnavailableError: nothing was written.
            InDoubt: its answer is lost.
        """
        self._commit_begun_s = time.perf_counter()
        commit = f"{script}; COMMIT" if script else "COMMIT"
        self._shard.database.on_trips(1)
        try:
            await connection.execute(commit)
        except Exception as error:
            fatal = getattr(error, "severity_en", "") in ("FATAL", "PANIC")
            answered = code_of(error) and not fatal and not connection.is_closed()
            if answered or not self._wrote:
                raise _judged(error, connection) from error
            connection.terminate()
            raise InDoubt from error

    def finish(self) -> TurnResult:
        """Remember what was committed, and tell the loop about it."""
        commit_s = time.perf_counter() - self._commit_begun_s
        done = self._done
        result = TurnResult(self._errors, work_s=_SERVER_SHARE * self._work_s, commit_s=commit_s)
        shard = self._shard
        result.postponed = self._postponed
        for item in self._postponed:
            item.postponed += 1
        turns = [turn for turn, _ in done]
        if done:
            shard.absorb(*done[-1])
        changed = [
            message
            for turn in turns
            for messages in (turn.new_messages, turn.changed_messages)
            for message in messages.values()
        ]
        finals = [message for message in changed if message.status >= FINAL_FROM]
        result.claims = [message for turn in turns for message in turn.claims]
        result.accepted_parts = {
            number: frozenset(parts)
            for turn in turns
            for number, parts in turn.parts.items()
            if parts
        }
        result.late = commit_s > shard.database.settings.lease_s / 2
        result.waiting = dict(shard.waiting)
        result.queued = _lowest_queued(turns)
        result.finals = Counter(message.status for message in finals)
        result.ended = [m.number for m in finals if m.number in shard.watched]
        result.due_ms = min((due for turn in turns for due, _, _ in turn.timers), default=None)
        return result


def _lowest_queued(turns: Sequence[Turn]) -> dict[QueueKey, int]:
    """The lowest rank that turns have put into each queue and left there."""
    lowest: dict[QueueKey, int] = {}
    for turn in turns:
        for key, places in turn.queued.items():
            if places:
                rank = min(places.values())[0]
                lowest[key] = min(rank, lowest.get(key, rank))
    return lowest


def _judged(error: Exception, connection: Connection) -> Exception:
    """What an error of a statement means for its turn."""
    if code_of(error) == USURPED:
        return CommitUnknownError(sentence(error))
    if code_of(error) in AGAIN:
        return Again(collision=False)
    if code_of(error) == UNIQUE:
        return Again(collision=True)
    if is_passing(error, connection):
        kind = Broken if connection.is_closed() else ShardUnavailableError
        return kind(sentence(error))
    return OneFailed()


class Broken(ShardUnavailableError):
    """The connection broke, and nothing was written: another connection may be better."""


class InDoubt(Exception):
    """The connection broke in the call that commits: the server knows what became of it."""


class OneFailed(Exception):
    """Some item of a turn could not be decided or written."""


class Again(Exception):
    """Another gateway was in the way; ``collision``: by adding the same row."""

    def __init__(self, *, collision: bool) -> None:
        super().__init__()
        self.collision = collision
