"""The proof of a shard: every sum, every hold, every chain, every queue place."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from smsgw.ids import uuid_text
from smsgw.store import statements

FINDINGS_MAX: Final = 100
"""How many findings of one kind are told; more would not say more."""


@dataclass(slots=True, frozen=True)
class Finding:
    """Something that is not as it must be."""

    shard: int
    client_id: str | None
    check: str
    sentence: str


@dataclass(slots=True, frozen=True)
class Proof:
    """What an audit of one shard came to; sums are in cents."""

    shard: int
    clients: int
    messages: int
    entries: int
    credits_cents: int
    held_cents: int
    charged_cents: int
    findings: Sequence[Finding]


def checks() -> list[str]:
    """The names of what is proved of each shard."""
    return list(statements.load("audit"))


def audit(
    connection: sqlite3.Connection, shard: int, step: Callable[[str], None] = lambda _: None
) -> Proof:
    """Prove a shard, as it is at one moment.

    Args:
        connection: a connection to it, not in a transaction.
        shard: its number.
        step: called with the name of each check before it runs.
    """
    found: list[Finding] = []
    connection.execute("BEGIN")
    try:
        for name, sql in statements.load("audit").items():
            step(name)
            rows = connection.execute(sql).fetchmany(FINDINGS_MAX)
            found += [_finding(connection, shard, name, *row) for row in rows]
        integrity = connection.execute("PRAGMA quick_check(10)").fetchall()
        found += [Finding(shard, None, "file", row[0]) for row in integrity if row[0] != "ok"]
        sums: tuple[int, int, int, int, int, int] = connection.execute(
            "SELECT (SELECT count(*) FROM client), (SELECT count(*) FROM message),"
            " (SELECT count(*) FROM entry), coalesce(sum(credits_cents), 0),"
            " coalesce(sum(held_cents), 0), coalesce(sum(charged_cents), 0) FROM client"
        ).fetchone()
    except sqlite3.DatabaseError as error:
        # A damaged file is what an audit is there to tell.
        found.append(Finding(shard, None, "file", str(error)))
        sums = (0, 0, 0, 0, 0, 0)
    finally:
        connection.execute("ROLLBACK")
    return Proof(shard, *sums, found)


def _finding(
    connection: sqlite3.Connection, shard: int, name: str, client: int | None, sentence: str
) -> Finding:
    row = connection.execute("SELECT id FROM client WHERE number = ?", (client,)).fetchone()
    return Finding(shard, uuid_text(row[0]) if row else None, name, sentence)
