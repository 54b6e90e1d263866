"""Identifiers: clients hash to slots, messages are numbered in commit order.

A message has one identity in two spellings. Its *number* is a 63-bit integer, the row id in its
shard; its *id* is the UUIDv7 (RFC 9562 §5.7) that clients see. The id contains the number, so that
looking a message up needs no index::

    number   41 bits milliseconds since EPOCH_MS | 8 shard | 4 writer | 10 counter
    UUIDv7   48 bits Unix milliseconds | 7 | 12 slot | 0b10 | 22 low bits of the number | 40 salt

The salt is random and keeps ids from being guessed; it is checked on every look-up.
"""

import zlib
from os import urandom
from typing import Final

SLOTS: Final = 4096
SHARDS_MAX: Final = 256
EPOCH_MS: Final = 1_735_689_600_000  # 2025-01-01T00:00:00Z
NUMBER_MAX: Final = (1 << 63) - 1

_LOW_BITS: Final = 22
_GENERATION_BITS: Final = _LOW_BITS + 24
_COUNTER_MAX: Final = (1 << 10) - 1
_SALT_BITS: Final = 40
_SALT_BYTES: Final = 5
_SALTS: Final = 512


def slot_of(client_id: bytes) -> int:
    """The slot, 0…4095, that a client belongs to for ever: CRC-32 of its 16 id bytes."""
    return zlib.crc32(client_id) & (SLOTS - 1)


def number_at(ms: int) -> int:
    """The lowest number that a message accepted at this Unix millisecond can have.

    Times before the epoch, and after the last one that a number can hold, are brought into range.
    """
    return min(max(0, ms - EPOCH_MS) << _LOW_BITS, NUMBER_MAX)


def generation_of(number: int) -> int:
    """The stretch of time, of 2^24 ms (4 hours 40 minutes), that a number was given in."""
    return number >> _GENERATION_BITS


def created_at_ms(number: int) -> int:
    """The Unix millisecond in a number."""
    return (number >> _LOW_BITS) + EPOCH_MS


def message_id(number: int, slot: int, salt: int) -> bytes:
    """The 16 bytes of the UUIDv7 for a number.

    Args:
        number: as given by ``NumberSource.next``.
        slot: the client's slot, 12 bits.
        salt: 40 random bits.
    """
    high = (((number >> _LOW_BITS) + EPOCH_MS) << 16) | 0x7000 | slot
    low = (0b10 << 62) | ((number & ((1 << _LOW_BITS) - 1)) << _SALT_BITS) | salt
    return ((high << 64) | low).to_bytes(16, "big")


_salts = bytearray()


def salt() -> int:
    """40 random bits for an id, from the system's own source, many at a time."""
    if not _salts:
        _salts.extend(urandom(_SALTS * _SALT_BYTES))
    found = int.from_bytes(_salts[-_SALT_BYTES:], "big")
    del _salts[-_SALT_BYTES:]
    return found


def number_of(identifier: bytes) -> int | None:
    """The number inside a message id, or None where the id cannot be one of ours."""
    value = int.from_bytes(identifier, "big")
    if (value >> 76) & 0xF != 7 or (value >> 62) & 0b11 != 0b10:
        return None
    since_epoch_ms = (value >> 80) - EPOCH_MS
    if not 0 <= since_epoch_ms < (1 << 41):
        return None
    return (since_epoch_ms << _LOW_BITS) | ((value >> _SALT_BITS) & ((1 << _LOW_BITS) - 1))


def slot_in(identifier: bytes) -> int:
    """The slot inside a message id."""
    return (identifier[6] << 8 | identifier[7]) & (SLOTS - 1)


def uuid_text(identifier: bytes) -> str:
    """The usual spelling of 16 bytes: 8-4-4-4-12 hexadecimal digits."""
    text = identifier.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class NumberSource:
    """Gives numbers that rise strictly, also when the clock stands still or falls."""

    def __init__(self, shard: int, last_number: int, writer: int = 0) -> None:
        assert 0 <= shard < SHARDS_MAX
        assert 0 <= writer < 16
        self._tag = (shard << 14) | (writer << 10)
        self._last_ms = last_number >> _LOW_BITS
        # Numbers of that millisecond may have come from another shard: go on in the next one.
        self._counter = _COUNTER_MAX

    def above(self, number: int) -> None:
        """From now on, give numbers above this one only."""
        if number >> _LOW_BITS > self._last_ms:
            self._last_ms = number >> _LOW_BITS
            self._counter = _COUNTER_MAX

    def next(self, now_ms: int) -> int:
        """A number above all earlier ones; its millisecond is ``now_ms`` or later."""
        since_epoch_ms = now_ms - EPOCH_MS
        if since_epoch_ms > self._last_ms:
            self._last_ms = since_epoch_ms
            self._counter = 0
        elif self._counter == _COUNTER_MAX:
            self._last_ms += 1
            self._counter = 0
        else:
            self._counter += 1
        return (self._last_ms << _LOW_BITS) | self._tag | self._counter
