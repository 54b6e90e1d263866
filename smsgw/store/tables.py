"""The tables of a shard as what is copied from place to place: their columns, keys and sums.

All of it follows from the schema of a file, which a schema in PostgreSQL repeats, and so does the
SQL here, which is understood in both. Whatever was copied can be compared by its sums.
"""

# Names of tables and columns are our own schema's; what comes from elsewhere is a parameter.
# ruff: noqa: S608

import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from smsgw.store import statements
from smsgw.store.sqlite_thread import migrate

Row = tuple[Any, ...]
Call = tuple[str, Row]
"""A statement with its parameters."""
Span = tuple[Row | None, Row | None]
"""A range of keys: behind the first, up to the second; None is no limit."""
ALL: Final[Span] = (None, None)

_TIMES: Final = ("updated_at_ms", "at_ms", "created_at_ms")
_NO_TABLES: Final = frozenset({"migration", "meta", "key_filter"})
_SERVER_KEYS: Final = {"idempotency": ("client", "digest")}
"""What a server knows a row by, where that is less than in a file."""
_BITS: Final = (1 << 31) - 1
_PRIME: Final = (1 << 31) - 19
"""What is left of a number after division by it depends on each of its 64 bits."""
_FACTOR_BITS: Final = (1 << 25) - 1


@dataclass(frozen=True, slots=True)
class Table:
    """A table; ``kinds`` are the columns' types in a file, ``key`` is the primary key."""

    name: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    key: tuple[str, ...]
    nullable: frozenset[str] = frozenset()

    def key_of(self, row: Row) -> Row:
        """The key of a row."""
        return tuple(row[self.columns.index(column)] for column in self.key)

    def kind(self, column: str) -> str:
        """A column's type in a file."""
        return self.kinds[self.columns.index(column)]

    @property
    def changed_at(self) -> str | None:
        """The time of a row's last change, where it has one and is changed often."""
        times = (column for column in _TIMES if column in self.columns)
        return None if self.name == "client" else next(times, None)

    @property
    def bounds(self) -> tuple[str, ...]:
        """What limits ranges: the key up to its first text, which servers order as they like."""
        texts = (n for n, column in enumerate(self.key) if self.kind(column) == "TEXT")
        return self.key[: next(texts, None)]

    @property
    def counted(self) -> bool:
        """Whether its key only says in which order rows came, and means nothing elsewhere."""
        return self.key == ("number",) and self.columns[1] != "id"


@cache
def tables() -> dict[str, Table]:
    """Every table that holds rows of clients, by name; those that others refer to first."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, statements.migrations("schema"), 0)
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid"
        ).fetchall()
        return {name: _described(connection, name) for (name,) in names if name not in _NO_TABLES}


def _described(connection: sqlite3.Connection, name: str) -> Table:
    found = connection.execute(f"PRAGMA table_info({name})").fetchall()
    keyed = sorted((place, column) for _, column, _, _, _, place in found if place)
    return Table(
        name,
        tuple(column for _, column, *_ in found),
        tuple(kind for _, _, kind, *_ in found),
        tuple(column for _, column in keyed),
        frozenset(column for _, column, _, never, _, place in found if not never and not place),
    )


@dataclass(frozen=True, slots=True)
class Dialect:
    """How SQL is written where a shard is: its schema, its parameters."""

    schema: str = ""
    dollars: bool = False

    def table(self, name: str) -> str:
        """A table's full name."""
        return f"{self.schema}{name}"

    def _parameters(self, count: int, before: int = 0) -> str:
        numbers = range(before + 1, before + count + 1)
        return ", ".join(f"${n}" if self.dollars else "?" for n in numbers)

    def _within(self, table: Table, span: Span) -> Call:
        """The condition that a row's key is in a range."""
        names = ", ".join(table.bounds)
        conditions: list[str] = []
        parameters: Row = ()
        for sign, limit in zip((">", "<="), span, strict=True):
            if limit is not None:
                listed = self._parameters(len(limit), len(parameters))
                conditions.append(f"({names}) {sign} ({listed})")
                parameters += limit
        return " AND ".join(conditions) or "TRUE", parameters

    def read(self, table: Table, span: Span) -> Call:
        """The rows of a range."""
        condition, parameters = self._within(table, span)
        return self._rows(table, condition), parameters

    def rows(self, table: Table, slots: Collection[int] | None) -> str:
        """All rows, or only those of some slots."""
        return self._rows(table, "TRUE" if slots is None else self.of_slots(table, slots))

    def _rows(self, table: Table, condition: str) -> str:
        columns, order = ", ".join(table.columns), ", ".join(table.bounds)
        name = self.table(table.name)
        return f"SELECT {columns} FROM {name} WHERE {condition} ORDER BY {order}"

    def recent(self, table: Table, low: Row | None, since_ms: int, rows: int) -> Call:
        """So many of the rows behind a key that have changed since a time."""
        condition, parameters = self._within(table, (low, None))
        since = self._parameters(1, len(parameters))
        found = self._rows(table, f"{condition} AND {table.changed_at} >= {since}")
        return f"{found} LIMIT {rows}", (*parameters, since_ms)

    def bound(self, table: Table, low: Row | None, rows: int) -> Call:
        """The key so many rows behind another one."""
        condition, parameters = self._within(table, (low, None))
        names, name = ", ".join(table.bounds), self.table(table.name)
        found = f"SELECT {names} FROM {name} WHERE {condition} ORDER BY {names}"
        return f"{found} LIMIT 1 OFFSET {rows - 1}", parameters

    def count(self, table: Table) -> str:
        """How many rows there are."""
        return f"SELECT count(*) FROM {self.table(table.name)}"

    def insert(self, table: Table, columns: Sequence[str]) -> str:
        """Add a row."""
        names = ", ".join(columns)
        values = self._parameters(len(columns))
        return f"INSERT INTO {self.table(table.name)} ({names}) VALUES ({values})"

    def upsert(self, table: Table) -> str:
        """Add a row, or put it in the place of the one that has its key."""
        keys = _SERVER_KEYS.get(table.name, table.key) if self.dollars else table.key
        key = ", ".join(keys)
        changes = ", ".join(f"{c} = excluded.{c}" for c in table.columns if c not in keys)
        # A server counts some numbers itself, and wants to be told that this one is given.
        given = "OVERRIDING SYSTEM VALUE " if self.dollars else ""
        insert = self.insert(table, table.columns).replace("VALUES", f"{given}VALUES")
        action = f"UPDATE SET {changes}" if changes else "NOTHING"
        return f"{insert} ON CONFLICT ({key}) DO {action}"

    def remove(self, table: Table) -> str:
        """Delete a row by its key."""
        keys, values = ", ".join(table.key), self._parameters(len(table.key))
        return f"DELETE FROM {self.table(table.name)} WHERE ({keys}) = ({values})"

    def clear(self, table: Table, span: Span) -> Call:
        """Delete the rows of a range."""
        condition, parameters = self._within(table, span)
        return f"DELETE FROM {self.table(table.name)} WHERE {condition}", parameters

    def facts(self, table: Table, span: Span = ALL, slots: Collection[int] | None = None) -> Call:
        """How many rows there are, and sums that change with every change of any of them.

        What is made of each row is summed, and so is the middle of its square: changes of two rows
        may make up for each other in the one sum, but not in both.
        """
        # A client has another number elsewhere, and what is only counted has, too.
        kept = [c for c in table.columns if slots is None or not _is_local(table, c)]
        condition, parameters = self._within(table, span)
        if slots is not None:
            condition += f" AND {self.of_slots(table, slots)}"
        squares = f"(made * made >> 16) & {_BITS}"
        sums = (f"CAST(coalesce(sum({one}), 0) AS bigint)" for one in ("made", squares))
        listed, name = ", ".join(["count(*)", *sums]), self.table(table.name)
        # A subquery with a limit stays one: each row's number is made once.
        rows = f"SELECT {self._made(table, kept)} AS made FROM {name} WHERE {condition}"
        return f"SELECT {listed} FROM ({rows} LIMIT {_BITS}) AS rows", parameters

    def prints(self, table: Table, span: Span) -> Call:
        """The keys of a range, each with what is made of its row."""
        condition, parameters = self._within(table, span)
        columns = ", ".join([*table.key, self._made(table, table.columns)])
        return f"SELECT {columns} FROM {self.table(table.name)} WHERE {condition}", parameters

    def _made(self, table: Table, columns: Sequence[str]) -> str:
        """One number of a row, to which every integer adds itself with a factor of its own.

        A text or a blob only adds whether it is there: where one changes, an integer does, too.
        """
        terms = []
        for place, column in enumerate(columns, 1):
            # An odd number of 25 bits: 60 columns do not overflow.
            factor = 2654435761 * place >> 6 & _FACTOR_BITS | 1
            if table.kind(column) == "INTEGER":
                value = f"coalesce({column}, -1)" if column in table.nullable else column
                value = f"CAST({value} AS bigint)" if self.dollars else value
                terms.append(f"({value} % {_PRIME}) * {factor}")
            elif column in table.nullable:
                terms.append(f"CASE WHEN {column} IS NULL THEN 0 ELSE {factor} END")
        return f"({' + '.join(terms)}) & {_BITS}"

    def of_slots(self, table: Table, slots: Collection[int]) -> str:
        """The condition that a row belongs to a client of some slots."""
        listed = ", ".join(map(str, sorted(slots))) or "-1"
        if table.name == "client":
            return f"slot IN ({listed})"
        clients = f"SELECT number FROM {self.table('client')} WHERE slot IN ({listed})"
        if "client" in table.columns:
            return f"client IN ({clients})"
        assert "message" in table.columns
        messages = f"SELECT number FROM {self.table('message')} WHERE client IN ({clients})"
        return f"message IN ({messages})"

    def delete(self, table: Table, slots: Collection[int]) -> str:
        """Delete the rows of some slots."""
        return f"DELETE FROM {self.table(table.name)} WHERE {self.of_slots(table, slots)}"

    def recount(self, slots: Collection[int], sign: int) -> str:
        """Count the messages between two numbers into the daily totals of their clients, or out."""
        day = "((number >> 22) + 1735689600000) / 86400000"
        sums = ("parts", "cost_cents", "held_cents", "charged_cents")
        counted = ", ".join([f"{sign} * count(*)", *(f"{sign} * sum({one})" for one in sums)])
        added = ", ".join(f"{one} = t.{one} + excluded.{one}" for one in ("messages", *sums))
        return (
            f"INSERT INTO {self.table('total')} AS t"
            f" (client, day, sender, status, messages, {', '.join(sums)})"
            f" SELECT client, {day}, sender, status, {counted} FROM {self.table('message')}"
            f" WHERE {self._between(slots)} GROUP BY client, {day}, sender, status"
            f" ON CONFLICT (client, day, sender, status) DO UPDATE SET {added}"
        )

    def remind(self, slots: Collection[int], kind: int, due: str, condition: str) -> str:
        """Set a timer for the messages between two numbers that fulfil a condition."""
        return (
            f"INSERT INTO {self.table('timer')} (due_at_ms, message, kind)"
            f" SELECT {due}, number, {kind} FROM {self.table('message')}"
            f" WHERE {self._between(slots)} AND {condition} ON CONFLICT DO NOTHING"
        )

    def _between(self, slots: Collection[int]) -> str:
        above, to = ("$1", "$2") if self.dollars else ("?", "?")
        return f"number > {above} AND number <= {to} AND {self.of_slots(_MESSAGE, slots)}"

    def number_last(self) -> str:
        """The last number that was given to something that is still there."""
        return (
            f"SELECT coalesce(max(number), 0) FROM (SELECT max(number) AS number"
            f" FROM {self.table('message')} UNION ALL SELECT max(number)"
            f" FROM {self.table('batch')}) AS numbers"
        )

    def client_last(self) -> str:
        """The last number of a client."""
        return f"SELECT coalesce(max(number), 0) FROM {self.table('client')}"

    def slots_used(self) -> str:
        """The slots that have clients."""
        return f"SELECT DISTINCT slot FROM {self.table('client')}"

    def marks(self) -> str:
        """What a shard knows of itself."""
        return f"SELECT key, value FROM {self.table('meta')}"

    def set_mark(self) -> str:
        """Let a shard know something of itself."""
        return (
            f"INSERT INTO {self.table('meta')} (key, value) VALUES ({self._parameters(2)})"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        )

    def analyze(self, table: Table) -> str:
        """Let the server learn how much is in a table."""
        return f"ANALYZE {self.table(table.name)}"

    def count_on(self, table: Table) -> str:
        """Let the server count on behind what was copied; for ``counted`` tables."""
        name = self.table(table.name)
        return (
            f"SELECT setval(pg_get_serial_sequence('{name}', 'number'),"
            f" coalesce(max(number), 0) + 1, false) FROM {name}"
        )

    def drop(self) -> str:
        """Remove the schema with everything in it."""
        return f"DROP SCHEMA IF EXISTS {self.schema.rstrip('.')} CASCADE"


_MESSAGE: Final = Table("message", ("number", "client"), ("INTEGER", "INTEGER"), ("number",))


def _is_local(table: Table, column: str) -> bool:
    if column == "client" or (table.name == "client" and column == "number"):
        return True
    return table.counted and column == "number"
