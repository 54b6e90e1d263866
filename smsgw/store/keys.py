"""Which generations of a file may hold an idempotency key, so that a new key costs no reading.

A key that nobody used before has to be looked for all the same. Those of the last hours stand
together in pages that are in memory. For each generation before them there is a Bloom filter, of
16 to 32 bits a key: a key that is in none of them is nowhere, and 1 in 400 is looked for in vain.
A filter is made and stored once, when its generation is over: numbers rise in commit order, so no
key can come into it any more. A generation without a filter is just looked into.
"""

import sqlite3
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Final

BITS_MAX_LOG2: Final = 25
"""A filter begins with so many bits, 4 MiB, and is folded to what its keys want."""
_BITS_A_KEY: Final = 16
_STEP_ROWS: Final = 250
_WORDS: Final = struct.Struct("<4I")

_GENERATIONS: Final = """
WITH RECURSIVE found (generation) AS (
    SELECT min(generation) FROM idempotency
    UNION ALL
    SELECT (SELECT min(i.generation) FROM idempotency AS i WHERE i.generation > found.generation)
    FROM found WHERE found.generation IS NOT NULL)
SELECT generation FROM found WHERE generation IS NOT NULL"""
_STEP: Final = """
SELECT client, digest FROM idempotency
WHERE generation = ? AND (client, digest) > (?, ?) ORDER BY client, digest LIMIT ?"""


class BloomFilter:
    """A filter over digests, which are as good as random numbers themselves."""

    def __init__(self, bits_log2: int = BITS_MAX_LOG2) -> None:
        self.bits = bytearray(1 << bits_log2 - 3)
        self.keys = 0

    def add(self, digests: Sequence[bytes]) -> None:
        """Take digests of 16 bytes in."""
        bits, mask = self.bits, len(self.bits) - 1
        self.keys += len(digests)
        for words in map(_WORDS.unpack, digests):
            for word in words:
                bits[word >> 3 & mask] |= 1 << (word & 7)

    def fold(self) -> None:
        """Halve it, as long as its keys leave room."""
        while len(self.bits) > 8 and len(self.bits) * 4 >= self.keys * _BITS_A_KEY:
            half = len(self.bits) // 2
            left, right = (
                int.from_bytes(p, "little") for p in (self.bits[:half], self.bits[half:])
            )
            self.bits = bytearray((left | right).to_bytes(half, "little"))


def may_have(bits: bytes, words: Sequence[int]) -> bool:
    """Whether a digest, read as four words, may be in a filter."""
    mask = len(bits) - 1
    for word in words:  # noqa: SIM110  half as long as a generator
        if not bits[word >> 3 & mask] >> (word & 7) & 1:
            return False
    return True


class KeyShelf:
    """The generations of one file: those with a filter, and those that are looked into."""

    def __init__(self) -> None:
        self.filters: dict[int, bytes] = {}
        self.open: set[int] = set()
        self._sealing: tuple[int, BloomFilter, tuple[int, bytes]] | None = None
        self.newest = 0
        self._dropped_at = 0
        self._unsealed = False

    def load(self, connection: sqlite3.Connection) -> None:
        """Read which generations there are, and their filters."""
        filters = dict(connection.execute("SELECT generation, bits FROM key_filter"))
        there = {row[0] for row in connection.execute(_GENERATIONS)}
        self.filters = filters
        self.open = there - self.filters.keys()
        self.newest = max(there, default=0)
        self._sealing = None
        self._unsealed = False

    def places(self, digest: bytes) -> Iterator[int]:
        """The generations that may have a key."""
        yield from self.open
        one, *words = _WORDS.unpack(digest)
        place, bit = one >> 3, 1 << (one & 7)
        for generation, bits in self.filters.items():
            # Most filters say no at once, and are not asked by a call.
            if bits[place & len(bits) - 1] & bit and may_have(bits, words):
                yield generation

    def add(self, connection: sqlite3.Connection, generations: Collection[int]) -> None:
        """Know that new keys come into some generations; a filter that lacks them must go."""
        for generation in generations:
            if generation not in self.open:
                self.open.add(generation)
                if self.filters.pop(generation, None) is not None:
                    forget(connection, generation)
                    self._unsealed = True
            elif self._sealing and self._sealing[0] == generation:
                self._sealing = None
        self.newest = max(self.newest, *generations)

    def kept(self) -> None:
        """Know that what was added is committed."""
        self._unsealed = False

    def undone(self, connection: sqlite3.Connection) -> None:
        """Know that what was added is rolled back; a generation too many is only looked into."""
        if self._unsealed:
            self.load(connection)

    def over(self) -> list[int]:
        """The generations that want a filter."""
        return [one for one in self.open if 0 < one < self.newest]

    def step(self, connection: sqlite3.Connection) -> tuple[int, bytes] | None:
        """Read on through a generation that is over, which needs no transaction.

        Returns:
            A generation with its filter, once there is one to be stored.
        """
        if self._sealing is None:
            over = self.over()
            if not over:
                return None
            self._sealing = (min(over), BloomFilter(), (0, b""))
        generation, filled, after = self._sealing
        rows = connection.execute(_STEP, (generation, *after, _STEP_ROWS)).fetchall()
        filled.add([digest for _, digest in rows])
        if len(rows) == _STEP_ROWS:
            self._sealing = (generation, filled, rows[-1])
            return None
        self._sealing = None
        filled.fold()
        return generation, bytes(filled.bits)

    def seal(self, generation: int, bits: bytes) -> None:
        """Use a filter that was stored."""
        self.open.discard(generation)
        self.filters[generation] = bits

    def drop(self, connection: sqlite3.Connection) -> None:
        """Forget the generations whose keys are all gone, now and then."""
        if self._dropped_at == self.newest:
            return
        self._dropped_at = self.newest
        there = {row[0] for row in connection.execute(_GENERATIONS)}
        for generation in self.filters.keys() - there:
            del self.filters[generation]
            forget(connection, generation)
        self.open &= there


def store(connection: sqlite3.Connection, generation: int, bits: bytes) -> None:
    """Write a filter down; in a transaction, with nothing written into its generation since."""
    connection.execute("INSERT OR REPLACE INTO key_filter VALUES (?, ?)", (generation, bits))


def forget(connection: sqlite3.Connection, generation: int | None = None) -> None:
    """Remove a generation's filter, or all of them where keys were put in by other hands."""
    connection.execute("DELETE FROM key_filter WHERE ?1 IS NULL OR generation = ?1", (generation,))


def seal_all(connection: sqlite3.Connection) -> None:
    """Write a filter down for every generation, as if all of them were over."""
    shelf = KeyShelf()
    shelf.load(connection)
    shelf.newest += 1
    while shelf.over():
        if sealed := shelf.step(connection):
            store(connection, *sealed)
            shelf.seal(*sealed)
