"""What a gateway that has stopped keeps on disk: how much, and when it handed over what."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from smsgw.ids import created_at_ms, number_at

_WAITS: Final = """
SELECT c.id, m.number, m.submitted_at_ms FROM message AS m JOIN client AS c ON c.number = m.client
WHERE m.number >= ? AND m.number < ?"""
_HANDED_OVER: Final = """
SELECT c.id, count(*) FROM message AS m JOIN client AS c ON c.number = m.client
WHERE m.submitted_at_ms >= ? AND m.submitted_at_ms < ? GROUP BY c.id"""

_WAITING: Final = "SELECT id, waiting FROM client WHERE waiting > 0"


@dataclass(slots=True, frozen=True)
class Wait:
    """How long a message waited between its acceptance and the operator's answer."""

    client: bytes
    accepted_ms: int
    wait_ms: int


def shard_files(data: Path) -> list[Path]:
    """The files of all shards."""
    return sorted((data / "shards").glob("*.db"))


def shard_bytes(data: Path) -> int:
    """How much room the shards take."""
    return sum(path.stat().st_size for path in (data / "shards").iterdir())


def waits(data: Path, since_ms: int, until_ms: int, stopped_ms: int) -> list[Wait]:
    """How long the messages that were accepted in some time have waited.

    Args:
        data: the data directory.
        since_ms: when that time began.
        until_ms: when it ended.
        stopped_ms: until when those have waited that no operator has.
    """
    return [
        Wait(client, created_at_ms(number), (submitted_ms or stopped_ms) - created_at_ms(number))
        for client, number, submitted_ms in _rows(
            data, _WAITS, number_at(since_ms), number_at(until_ms)
        )
    ]


def handed_over(data: Path, since_ms: int, until_ms: int) -> Counter[bytes]:
    """How many messages of each client an operator took in some time."""
    found: Counter[bytes] = Counter()
    for client, count in _rows(data, _HANDED_OVER, since_ms, until_ms):
        found[client] += count
    return found


def waiting(data: Path) -> Counter[bytes]:
    """How many messages of each client wait."""
    return Counter(dict(_rows(data, _WAITING)))


def _rows(data: Path, sql: str, *parameters: int) -> Iterator[tuple[Any, ...]]:
    for path in shard_files(data):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            yield from connection.execute(sql, parameters)
