"""Filling a store faster than anybody could post, with what the gateway itself would have left.

Messages come in the order of time, their clients mixed, so that every index is as scattered as in
real life; each has its entries in the ledger, half of them an idempotency record; daily totals and
sums are as the sweeper and the turns keep them. The audit that follows proves all of it, also the
CHECKs, which are not looked at row by row here.
"""

import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smsgw.bench.kept import shard_bytes, shard_files
from smsgw.bench.load import SENDER, TEXT, zipf_weights
from smsgw.ids import NumberSource, created_at_ms, generation_of, message_id
from smsgw.models import QUANTUM, Account, Flow
from smsgw.settings import Settings
from smsgw.store import keys, statements

BYTES_A_MESSAGE: Final = 700
"""Room that is wanted on the disk for each, the audit's own files included."""
_CHUNK: Final = 50_000
_DAY_MS: Final = 86_400_000
_RECIPIENT_FIRST: Final = 989_120_000_000
_PRAGMAS: Final = (
    # The directory is temporary: after a crash nobody wants it. All of it is flushed in the end.
    "journal_mode = OFF",
    "synchronous = OFF",
    "locking_mode = EXCLUSIVE",
    "cache_size = -262144",
    "ignore_check_constraints = ON",
    "temp_store = MEMORY",
)

# What all of them have in common stands in one row, so that few values are bound for each.
_USUAL: Final = """
CREATE TEMP TABLE usual AS SELECT ? AS sender, ? AS text, ? AS cost, ? AS validity, ? AS route"""
_DELIVERED: Final = """
INSERT INTO message (
    number, id, client, lane, status, recipient, sender, text, ucs2, parts,
    cost_cents, held_cents, charged_cents, surcharge_cents, route, rank, attempts,
    provider, provider_message_id, expires_at_ms, submitted_at_ms, final_at_ms, updated_at_ms,
    express_missed)
SELECT ?1, ?2, ?3, 0, 10, ?4, sender, text, 0, 1, cost, 0, cost, 0, route, ?5, 1,
    'mock', printf('%x-1', ?1), ?6 + validity, ?6 + 1, ?6 + 2, ?6 + 2, 0 FROM usual"""
_WAITING: Final = """
INSERT INTO message (
    number, id, client, lane, status, recipient, sender, text, ucs2, parts,
    cost_cents, held_cents, charged_cents, surcharge_cents, route, rank, attempts,
    expires_at_ms, updated_at_ms, express_missed)
SELECT ?1, ?2, ?3, 0, 1, ?4, sender, text, 0, 1, cost, cost, 0, 0, route, ?5, 0,
    ?6 + validity, ?6, 0 FROM usual"""
_HOLD: Final = """
INSERT INTO entry SELECT ?1, ?2, 2, ?3, -cost, cost, ?4, ?5, NULL FROM usual"""
_HOLD_AND_CAPTURE: Final = """
INSERT INTO entry SELECT ?1, ?2, 2, ?3, -cost, cost, ?4, ?5, NULL FROM usual
UNION ALL SELECT ?1, ?2 + 1, 3, ?3 + 2, 0, -cost, ?4, ?5, NULL FROM usual"""
_KEY: Final = """
INSERT INTO idempotency (
    generation, client, digest, fingerprint, subject, answer, credits_cents, created_at_ms)
VALUES (?, ?, randomblob(16), randomblob(16), ?, 1, ?, ?)"""
_PLACE: Final = """
INSERT INTO queue (route, lane, rank, message, client, parts)
SELECT route, 0, ?1, ?2, ?3, 1 FROM usual"""
_ACCOUNT: Final = """
UPDATE client SET
    credits_cents = ?, held_cents = ?, charged_cents = ?, sequence = ?, waiting = ?
WHERE number = ?"""


@dataclass(frozen=True, slots=True)
class Stock:
    """A kind of message to fill a store with, spread over a stretch of time before now."""

    name: str
    waiting: bool
    first_ms_ago: int
    last_ms_ago: int


DELIVERED: Final = Stock("delivered", False, 2 * _DAY_MS, 600_000)
"""Finished, and young enough that nothing of it is purged yet."""
WAITING: Final = Stock("waiting", True, 300_000, 10_000)
"""Accepted, held and queued, and counted by the sweeper already."""


@dataclass(frozen=True, slots=True)
class Seeded:
    """What was put into a store, how long that took, and how much larger its shards are now."""

    messages: int
    seconds: float
    size_bytes: int

    @property
    def figures(self) -> dict[str, float]:
        """The same, to stand beside what is measured."""
        return {
            "seed_s": self.seconds,
            "seeded_per_s": round(self.messages / self.seconds),
            "bytes_a_message": self.size_bytes / self.messages,
        }


def zipf_counts(clients: Sequence[bytes], messages: int) -> dict[bytes, int]:
    """How many of some messages each client gets, Zipf-distributed; the first gets the rest."""
    weights = zipf_weights(len(clients))
    counts = {
        client: int(messages * weight / sum(weights))
        for client, weight in zip(clients, weights, strict=True)
    }
    counts[clients[0]] += messages - sum(counts.values())
    return counts


def seed(
    data: Path,
    counts: Mapping[bytes, int],
    stock: Stock,
    step: Callable[[str], None] = lambda _: None,
) -> Seeded:
    """Put messages into a store that no gateway has open.

    Args:
        data: its directory; its queues are empty.
        counts: how many messages each client gets; the clients are there already.
        stock: what kind of messages.
        step: told what is being done.
    """
    begun_s, size_bytes = time.perf_counter(), shard_bytes(data)
    total = sum(counts.values())
    done = 0
    route = _route(data)
    for path in shard_files(data):
        with _opened(path) as connection:
            for added in _Filling(connection, counts, stock, route).run():
                done += added
                step(f"{done:,} of {total:,} {stock.name} messages")
        _flush(path)
    assert done == total, "a client is not in the store"
    return Seeded(total, time.perf_counter() - begun_s, shard_bytes(data) - size_bytes)


def _route(data: Path) -> int:
    with closing(sqlite3.connect(data / "catalog.db")) as catalog:
        found = catalog.execute("SELECT number FROM route WHERE providers = 'mock'").fetchone()
    route: int = found[0]
    return route


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        yield connection


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Fresh:
    """A message to be added; ``entry`` is the sequence number of its hold, ``left`` the balance."""

    number: int
    id: bytes
    client: int
    recipient: int
    rank: int
    at_ms: int
    entry: int
    left: int


class _Filling:
    """One shard while it is filled."""

    def __init__(
        self, connection: sqlite3.Connection, counts: Mapping[bytes, int], stock: Stock, route: int
    ) -> None:
        settings = Settings()
        self._connection = connection
        self._stock = stock
        self._cost_cents = settings.billing.part_cents
        validity_ms = round(settings.limits.validity_s * 1000)
        connection.execute(_USUAL, (SENDER, TEXT, self._cost_cents, validity_ms, route))
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM message").fetchone()
        self._numbers = NumberSource(meta["shard"], last)
        self._counted_to = meta["counted_to"]
        rows = connection.execute("SELECT * FROM client ORDER BY number").fetchall()
        self._accounts = [Account(*row) for row in rows]
        self._flows = {account.number: Flow() for account in self._accounts}
        self._chance = random.Random(meta["shard"])  # noqa: S311  load, not secrets
        self._order = [
            account for account in self._accounts for _ in range(counts.get(account.id, 0))
        ]
        self._chance.shuffle(self._order)
        self._first_ms = int(time.time() * 1000) - stock.first_ms_ago
        self._step_ms = (stock.first_ms_ago - stock.last_ms_ago) / max(1, len(self._order))

    def run(self) -> Iterator[int]:
        """Fill it, some thousand messages at a time; yields how many they were."""
        for first in range(0, len(self._order), _CHUNK):
            accounts = self._order[first : first + _CHUNK]
            self._add([self._decide(account, first + n) for n, account in enumerate(accounts)])
            yield len(accounts)
        self._connection.executemany(
            _ACCOUNT,
            [
                (a.credits_cents, a.held_cents, a.charged_cents, a.sequence, a.waiting, a.number)
                for a in self._accounts
            ],
        )
        keys.seal_all(self._connection)

    def _decide(self, account: Account, position: int) -> _Fresh:
        """What a turn decides about a message, and about its receipt where it has one."""
        cost_cents = self._cost_cents
        number = self._numbers.next(int(self._first_ms + position * self._step_ms))
        flow = self._flows[account.number]
        rank = flow.join(0, QUANTUM // account.weight)
        flow.waiting += 1
        account.sequence += 1
        account.credits_cents -= cost_cents
        fresh = _Fresh(
            number,
            message_id(number, account.slot, self._chance.getrandbits(40)),
            account.number,
            _RECIPIENT_FIRST + self._chance.getrandbits(23),
            rank,
            created_at_ms(number),
            account.sequence,
            account.credits_cents,
        )
        if self._stock.waiting:
            account.held_cents += cost_cents
            account.waiting += 1
        else:
            account.charged_cents += cost_cents
            account.sequence += 1
        return fresh

    def _add(self, fresh: Sequence[_Fresh]) -> None:
        waiting = self._stock.waiting
        connection = self._connection
        connection.execute("BEGIN")
        connection.executemany(
            _WAITING if waiting else _DELIVERED,
            [(f.number, f.id, f.client, f.recipient, f.rank, f.at_ms) for f in fresh],
        )
        connection.executemany(
            _HOLD if waiting else _HOLD_AND_CAPTURE,
            [(f.client, f.entry, f.at_ms, f.left, f.number) for f in fresh],
        )
        connection.executemany(
            _KEY,
            [(generation_of(f.number), f.client, f.number, f.left, f.at_ms) for f in fresh[::2]],
        )
        if waiting:
            connection.executemany(_PLACE, [(f.rank, f.number, f.client) for f in fresh])
        sweeps = statements.load("sweep")
        connection.execute(sweeps["total_span"], (self._counted_to, fresh[-1].number))
        connection.execute(sweeps["meta_set"], ("counted_to", fresh[-1].number))
        connection.execute("COMMIT")
        self._counted_to = fresh[-1].number
