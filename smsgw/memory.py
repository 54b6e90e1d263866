"""Where the threads of the process take memory from, and when cycles are sought in it."""

import contextlib
import ctypes
import gc
import sys
from typing import Final

_M_ARENA_MAX: Final = -8
"""How ``mallopt`` of the GNU C library calls the greatest number of arenas."""
_COLLECTED_AFTER: Final = (3000, 5, 100)
"""Of the young, the middle and the old, in allocations and in collections of the younger."""


def use_one_arena() -> None:
    """Let all threads take memory from one place, as far as none of them has begun.

    By default, the GNU C library gives each thread a place of its own, and memory that one of them
    has given back does not serve another: with a connection's thread for each of them, a sixth of
    all memory was kept for nobody. Other C libraries do not have this, or do it well.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def settle() -> None:
    """Have what is loaded by now left alone by the collector of cycles, and what comes, mostly.

    What is loaded lives as long as the process. What comes later and lives long is what waits, and
    has no cycles; to go through all of it stops everything for 20 ms, and is done twenty times less
    often than by default: once in a minute, at full load.
    """
    gc.collect()
    gc.freeze()
    if sys.version_info < (3, 14):  # From there on, it goes through what is old bit by bit.
        gc.set_threshold(*_COLLECTED_AFTER)
