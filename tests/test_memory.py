"""Threads share what memory they have, and what waits is seldom gone through."""

import ctypes
import os
import subprocess
import sys

import pytest

HEAPS = """
import ctypes, sys, threading
from smsgw.memory import use_one_arena

if sys.argv[1] == "one":
    use_one_arena()
c = ctypes.CDLL(None)
c.malloc.restype = c.fopen.restype = ctypes.c_void_p
both = threading.Barrier(3)

def take() -> None:
    both.wait()
    c.malloc(1000)
    both.wait()

threads = [threading.Thread(target=take) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out = ctypes.c_void_p(c.fopen(b"/dev/stdout", b"w"))
c.malloc_info(0, out)
c.fflush(out)
"""
SETTLED = """
import gc, sys
from smsgw.memory import settle

settle()
assert gc.get_freeze_count() > 1000
assert sys.version_info >= (3, 14) or gc.get_threshold()[2] >= 100
"""


def ran(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True, timeout=60
    ).stdout


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not the GNU C library")
def test_all_threads_take_memory_from_one_arena() -> None:
    assert ran(HEAPS, "as it was").count("<heap nr=") > 1
    assert ran(HEAPS, "one").count("<heap nr=") == 1


def test_what_is_loaded_is_left_alone_by_the_collector() -> None:
    ran(SETTLED)
