"""Processes of our own, each with a line to it, that end when they must.

They are spawned, not forked, so that none inherits a loop, a thread or an open database; and so
that it works from the one-file executable, too. A Ctrl-C is for the parent, which ends its
children itself; a server whose parent has died ends by itself. What is imported here is imported
in all of them, so it is little.
"""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

ANSWER_S: Final = 10.0
WATCH_S: Final = 0.25
_SPAWN: Final = get_context("spawn")


class Spoiled(RuntimeError):
    """A run whose figures mean nothing: something was refused, left over, too slow or wrong."""


@contextmanager
def spawned(
    work: Callable[..., None], *arguments: Any
) -> Iterator[tuple[SpawnProcess, "Connection[Any, Any]"]]:
    """A process of its own and a line to it; killed, if it still runs, when this is left.

    Args:
        work: a function of a module, so that the other process can find it; it gets its end of the
            line first.
        arguments: what it gets besides.
    """
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=work, args=(there, *arguments))
    # A blocked signal stays blocked in what is started: a Ctrl-C reaches nobody but us.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    try:
        yield process, here
    finally:
        process.kill()
        process.join()
        here.close()


def in_child(
    work: Callable[..., T],
    *arguments: Any,
    limit_s: float,
    watch: Callable[[], None] = lambda: None,
) -> T:
    """Run a function in a process of its own and return what it returns.

    Args:
        work: a function of a module.
        arguments: for it.
        limit_s: how long it may take.
        watch: called a few times a second meanwhile.

    Raises:
        Spoiled: it failed, or took too long.
    """
    with spawned(_answer, work, arguments) as (process, line):
        deadline_s = time.monotonic() + limit_s
        while not line.poll(WATCH_S):
            if time.monotonic() > deadline_s:
                raise Spoiled(f"{work.__name__} took longer than {limit_s:.0f} s")
            watch()
        try:
            found: T = line.recv()
        except EOFError:
            process.join(ANSWER_S)
            raise Spoiled(f"{work.__name__} has failed: {process.exitcode}") from None
        return found


def _answer(
    line: "Connection[Any, Any]", work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    line.send(work(*arguments))


def tell_about_ourselves(line: "Connection[Any, Any]") -> None:
    """Tell the parent, whenever it asks, what this process has used; end when the parent ends."""

    def tell() -> None:
        while True:
            try:
                line.recv()
            except EOFError:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            line.send((time.process_time(), _resident_bytes()))

    threading.Thread(target=tell, daemon=True).start()


def ask_about(line: "Connection[Any, Any]") -> tuple[float, int]:
    """What a process that tells about itself has used: CPU seconds, and bytes of memory now.

    Raises:
        Spoiled: it does not answer.
    """
    try:
        line.send(None)
        if line.poll(ANSWER_S):
            found: tuple[float, int] = line.recv()
            return found
    except (EOFError, BrokenPipeError):
        raise Spoiled("the server has died") from None
    raise Spoiled(f"the server did not answer within {ANSWER_S:.0f} s")


def _resident_bytes() -> int:
    """How much memory this process has now; where that cannot be told, the most it ever had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
