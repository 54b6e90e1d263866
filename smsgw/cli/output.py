"""What commands print: JSON for programs, lines and tables for people."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

_WIDE: Final = 10_000
"""Columns of a table that no terminal shows: nothing is cut off in a file."""

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(value: object) -> str:
    """A value in one line that does nothing to a terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], str(value))


def complain(detail: str) -> None:
    """Say in one line on standard error what went wrong or is worth knowing."""
    print(f"smsgw: {printable(' '.join(detail.split()))}", file=sys.stderr)


def json_document(document: object) -> None:
    """Print a document as JSON."""
    in_utf8 = sys.stdout.encoding.lower() == "utf-8"
    print(json.dumps(document, indent=2, ensure_ascii=not in_utf8))


def fields(document: Mapping[str, object]) -> None:
    """Print each field that has a value in a line of its own."""
    shown = {
        name: value
        for name, value in document.items()
        if value is not None and not isinstance(value, list | dict)
    }
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name:<{width}}  {printable(value)}".rstrip())


def page(document: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Print a page of a list, and how to get the next one."""
    table(document["data"], columns)
    if (cursor := document["next_cursor"]) is not None:
        complain(f"there is more: --cursor {cursor}")


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Print rows below the names of their columns; numbers stand on the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = sys.stdout.isatty()
    made = Table(box=None, pad_edge=False, show_edge=False)
    for column in columns:
        numeric = bool(rows) and all(
            isinstance(row.get(column), int) and not isinstance(row.get(column), bool)
            for row in rows
        )
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(row.get(column))) for column in columns))
    Console(width=None if on_terminal else _WIDE, highlight=False).print(made)


@contextmanager
def working(at_what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something long goes on; call what is given with each step of it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(at_what, total=None)
        yield lambda step: progress.update(task, description=step)


@contextmanager
def counting(at_what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show on a terminal how far something long is: what it does, how much is done, of how much."""
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(at_what, total=None)
        yield lambda what, done, total: progress.update(
            task, description=what, completed=done, total=total or None
        )
