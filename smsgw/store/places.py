"""Where a store is, as something to copy from and to: whole, table by table, in bounded memory."""

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from smsgw.errors import StoreError
from smsgw.store.audit import Proof
from smsgw.store.tables import Dialect, Row, Table, tables

CHUNK_ROWS: Final = 10_000
"""How many rows are in memory, and in one transaction, at a time."""
IDENTITY: Final = frozenset({"store", "shard", "shards", "epoch"})
MOVING: Final = "moving"
"""What a catalog keeps while its store is moved: whoever opens it otherwise, forgets it."""
TIDYING: Final = "tidying"
"""What a catalog keeps while slots move: up to how many shards there may be.

Whoever opens the store then has to remove what is not where the catalog says.
"""

Step = Callable[[str, int, int], None]
"""Told what is being done, how many rows are done, and how many there are."""


@dataclass(slots=True)
class Chart:
    """What a catalog says, wherever it is; ``meta`` also holds the store's id and the epoch."""

    shards: int
    slots: list[tuple[int, int, int | None]]
    routes: list[tuple[int, str]]
    pauses: list[str]
    meta: dict[str, str] = field(default_factory=dict)

    @property
    def store_id(self) -> int:
        """What the store is called, in all of its shards."""
        return int(self.meta["store"])

    def identity(self, shard: int) -> dict[str, int]:
        """What a shard must say of itself."""
        return {
            "store": self.store_id,
            "shard": shard,
            "shards": self.shards,
            "epoch": int(self.meta["epoch"]),
        }


class Place(Protocol):
    """The shards of a store that no gateway serves now."""

    name: str

    def rows(
        self,
        shard: int,
        table: Table,
        after: Row | None = None,
        slots: Collection[int] | None = None,
    ) -> AsyncGenerator[list[Row], None]:
        """Rows in the order of their keys, ``CHUNK_ROWS`` at a time, seen at one moment."""
        ...

    async def put(self, shard: int, table: Table, columns: Sequence[str], rows: list[Row]) -> None:
        """Add rows, in one transaction."""
        ...

    async def last(self, shard: int, table: Table) -> Row | None:
        """The last key that is there."""
        ...

    async def facts(
        self, shard: int, table: Table, slots: Collection[int] | None = None
    ) -> tuple[int, ...]:
        """How many rows there are, and what their columns add up to."""
        ...

    async def marks(self, shard: int) -> dict[str, int]:
        """What a shard knows of itself."""
        ...

    async def set_marks(self, shard: int, marks: Mapping[str, int]) -> None:
        """Let a shard know something of itself."""
        ...

    async def settle(self, shard: int) -> None:
        """Bring everything up to date that only this kind of place keeps."""
        ...

    def dialect(self, shard: int) -> Dialect:
        """How SQL is written for a shard."""
        ...

    async def run(self, shard: int, calls: Sequence[tuple[str, Row]]) -> None:
        """Carry out statements with their parameters, in one transaction."""
        ...

    async def fetch(self, shard: int, sql: str) -> list[Row]:
        """The rows of a query."""
        ...

    async def proof(self, shard: int, step: Callable[[str], None]) -> Proof:
        """Prove a shard."""
        ...


async def copy(source: Place, target: Place, chart: Chart, step: Step) -> int:
    """Copy every shard; what is there already, up to the last key of each table, stays.

    Returns:
        How many rows were copied; those of an earlier, interrupted copy are not among them.
    """
    total = done = copied = 0
    for shard in range(chart.shards):
        for table in tables().values():
            total += (await source.facts(shard, table))[0]
            step("counting", 0, total)
    for shard in range(chart.shards):
        for table in tables().values():
            what = f"shard {shard}: {table.name}"
            after = await target.last(shard, table)
            if after is not None:
                done += (await target.facts(shard, table))[0]
            async with aclosing(source.rows(shard, table, after)) as chunks:
                async for rows in chunks:
                    await target.put(shard, table, table.columns, rows)
                    done, copied = done + len(rows), copied + len(rows)
                    step(what, done, total)
        marks = await source.marks(shard)
        kept = {key: value for key, value in marks.items() if key not in IDENTITY}
        await target.set_marks(shard, kept)
        await target.settle(shard)
        step(f"shard {shard} is copied", done, total)
    return copied


async def prove(source: Place, target: Place, chart: Chart, step: Step) -> list[Proof]:
    """Prove that both places hold the same, and that all of it is as it must be.

    Raises:
        StoreError: naming the first thing that differs, or that an audit found.
    """
    proofs = []
    for shard in range(chart.shards):
        for table in tables().values():
            step(f"shard {shard}: comparing {table.name}", 0, 0)
            before, after = await source.facts(shard, table), await target.facts(shard, table)
            if before != after:
                raise StoreError(
                    f"shard {shard}: {table.name} differs after the copy: {before[0]} rows in"
                    f" {source.name}, {after[0]} in {target.name}, or their sums are not equal"
                )
        await _compare_clients(source, target, shard)
        proof = await target.proof(shard, partial(_tell, step, shard))
        if proof.findings:
            first = proof.findings[0]
            raise StoreError(
                f"the audit of the copy found {len(proof.findings)} things that must not be, first"
                f" in shard {shard}, client {first.client_id}: {first.sentence}"
            )
        proofs.append(proof)
    return proofs


def _tell(step: Step, shard: int, check: str) -> None:
    step(f"shard {shard}: {check}", 0, 0)


async def _compare_clients(source: Place, target: Place, shard: int) -> None:
    """Every client's row, and so every balance and hold, is the same on both sides."""
    table = tables()["client"]
    async with (
        aclosing(source.rows(shard, table)) as some,
        aclosing(target.rows(shard, table)) as others,
    ):
        async for rows in some:
            for one, other in zip(rows, await anext(others), strict=True):
                if one != other:
                    raise StoreError(f"shard {shard}: client {one[0]} differs after the copy")
