"""PostgreSQL databases that a benchmark borrows: nothing is in them before, nothing afterwards."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from smsgw.bench.processes import Spoiled
from smsgw.errors import StoreError
from smsgw.settings import PostgresSettings
from smsgw.store.base import ShardUnavailableError

if TYPE_CHECKING:
    from smsgw.store.postgres_connection import Database

_OURS: Final = "SELECT nspname FROM pg_namespace WHERE nspname ~ '^smsgw_' ORDER BY 1"


def place_of(url: str) -> str:
    """Which server and database a URL names, without whoever may use it."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def borrowed(urls: Sequence[str]) -> Iterator[None]:
    """Use databases for a while, and drop the store that was made in them.

    Raises:
        Spoiled: one cannot be reached, or holds a store already, which is left as it is.
    """
    for url in urls:
        if found := asyncio.run(_schemas(url)):
            raise Spoiled(f"{place_of(url)} holds a store already: its schema {found[0]}")
    try:
        yield
    finally:
        for url in urls:
            asyncio.run(_drop(url))


async def _schemas(url: str) -> list[str]:
    database = _open(url)
    try:
        return [name for (name,) in await database.fetch(_OURS)]
    except (ShardUnavailableError, StoreError) as error:
        raise Spoiled(str(error)) from error
    finally:
        await database.close()


async def _drop(url: str) -> None:
    database = _open(url)
    try:
        for (name,) in await database.fetch(_OURS):
            await database.fetch(f"DROP SCHEMA {name} CASCADE")
    except (ShardUnavailableError, StoreError) as error:
        raise Spoiled(str(error)) from error
    finally:
        await database.close()


def _open(url: str) -> "Database":
    try:
        from smsgw.store.postgres_connection import Database

        return Database(url, 0, PostgresSettings())
    except StoreError as error:
        raise Spoiled(error.detail) from error
