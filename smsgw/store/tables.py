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

_NO_TABLES: Final = frozenset({"migration", "meta", "key_filter"})
_LOW_BITS: Final = (1 << 20) - 1
"""Of every integer so many bits are summed: no sum of them overflows."""
_MONEY: Final = frozenset({"parts", "messages", "waiting", "sequence"})


@dataclass(frozen=True, slots=True)
class Table:
    """A table; ``kinds`` are the columns' types in a file, ``key`` is the primary key."""

    name: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    key: tuple[str, ...]

    def key_of(self, row: Row) -> Row:
        """The key of a row."""
        return tuple(row[self.columns.index(column)] for column in self.key)

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
    )


@dataclass(frozen=True, slots=True)
class Dialect:
    """How SQL is written where a shard is: its schema, its parameters, its order of texts."""

    schema: str = ""
    dollars: bool = False

    def table(self, name: str) -> str:
        """A table's full name."""
        return f"{self.schema}{name}"

    def _parameters(self, count: int) -> str:
        return ", ".join(f"${n + 1}" if self.dollars else "?" for n in range(count))

    def _ordered(self, table: Table) -> list[str]:
        """The key's columns, so that both dialects sort alike: texts by their bytes."""
        kinds = dict(zip(table.columns, table.kinds, strict=True))
        bytewise = ' COLLATE "C"' if self.dollars else ""
        return [column + (bytewise if kinds[column] == "TEXT" else "") for column in table.key]

    def rows(self, table: Table, *, after: bool, slots: Collection[int] | None = None) -> str:
        """Rows in the order of their keys: ``after`` a key that is given, only of some slots."""
        key = ", ".join(self._ordered(table))
        conditions = [f"({key}) > ({self._parameters(len(table.key))})"] if after else []
        if slots is not None:
            conditions.append(self.of_slots(table, slots))
        where = " AND ".join(conditions) or "TRUE"
        columns = ", ".join(table.columns)
        return f"SELECT {columns} FROM {self.table(table.name)} WHERE {where} ORDER BY {key}"

    def last(self, table: Table) -> str:
        """The last key."""
        order = ", ".join(f"{column} DESC" for column in self._ordered(table))
        key = ", ".join(table.key)
        return f"SELECT {key} FROM {self.table(table.name)} ORDER BY {order} LIMIT 1"

    def insert(self, table: Table, columns: Sequence[str]) -> str:
        """Add a row."""
        names = ", ".join(columns)
        values = self._parameters(len(columns))
        return f"INSERT INTO {self.table(table.name)} ({names}) VALUES ({values})"

    def facts(self, table: Table, slots: Collection[int] | None = None) -> str:
        """How many rows there are, and what each column adds up to."""
        kept = [
            (column, kind)
            for column, kind in zip(table.columns, table.kinds, strict=True)
            # A client has another number elsewhere, and what is only counted has, too.
            if slots is None or not _is_local(table, column)
        ]
        sums = [_sum(column, kind) for column, kind in kept]
        sums += [
            f"CAST(coalesce(sum({column}), 0) AS bigint)"
            for column, _ in kept
            if column.endswith("_cents") or column in _MONEY
        ]
        where = "TRUE" if slots is None else self.of_slots(table, slots)
        listed = ", ".join(["count(*)", *sums])
        return f"SELECT {listed} FROM {self.table(table.name)} WHERE {where}"

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

    def delete_number(self, table: Table) -> str:
        """Delete a row by its number."""
        return f"DELETE FROM {self.table(table.name)} WHERE number = {self._parameters(1)}"

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


def _sum(column: str, kind: str) -> str:
    if kind == "INTEGER":
        return f"CAST(coalesce(sum(CAST({column} AS bigint) & {_LOW_BITS}), 0) AS bigint)"
    return f"count({column})"
