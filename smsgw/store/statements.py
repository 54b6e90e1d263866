"""Named SQL statements, read from the ``.sql`` files beside this module."""

import re
import sqlite3
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import chain
from typing import Any, Final

# A statement for each of these row counts is prepared once and kept.
_WIDTHS: Final = (128, 32, 8, 4, 2, 1)
_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_MIGRATION: Final = re.compile(r"^-- migration: (\d+) (.+)$", re.MULTILINE)


def _read(noun: str) -> str:
    return (resources.files("smsgw.store") / "sql" / f"{noun}.sql").read_text("utf-8")


@cache
def load(*nouns: str) -> dict[str, str]:
    """The statements of these files, by name."""
    found: dict[str, str] = {}
    for noun in nouns:
        pieces = _NAME.split(_read(noun))[1:]
        for name, body in zip(pieces[::2], pieces[1::2], strict=True):
            assert name not in found, f"two statements are named {name}"
            lines = [line for line in body.splitlines() if not line.startswith("--")]
            found[name] = "\n".join(lines).strip().removesuffix(";")
    return found


def migrations(noun: str) -> list[tuple[int, str, str]]:
    """The numbered migrations of a schema file: (number, name, script)."""
    pieces = _MIGRATION.split(_read(noun))[1:]
    found = [
        (int(number), name, script)
        for number, name, script in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True)
    ]
    assert [number for number, _, _ in found] == list(range(1, len(found) + 1))
    return found


@cache
def _widened(statement: str, columns: int, rows: int) -> str:
    row = "(" + ",".join("?" * columns) + ")"
    return statement.replace("{rows}", ",".join([row] * rows))


def execute_rows(
    connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]]
) -> list[Any]:
    """Run a statement with ``{rows}`` in it over any number of rows of parameters.

    Returns:
        The rows it returned, if it is a query.
    """
    found: list[Any] = []
    columns = len(rows[0])
    start, left = 0, len(rows)
    for width in _WIDTHS:
        while left >= width:
            chunk = rows[start : start + width]
            sql = _widened(statement, columns, width)
            cursor = connection.execute(sql, list(chain.from_iterable(chunk)))
            found += cursor.fetchall()
            start += width
            left -= width
    return found
