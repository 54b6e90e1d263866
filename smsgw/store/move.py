"""Moving slots, with everything of their clients, from shard to shard while no gateway serves them.

The catalog's map says who owns a slot, always and alone. Rows are copied first, and compared; then
the map is changed in one commit; then what is left behind is removed. The catalog notes that slots
move before the first row is copied: whoever opens the store next removes from every shard what the
map does not give to it, be that an unfinished copy or what was left behind.

Numbers of messages stay as they are, wherever they were given. Numbers of clients count within a
shard, so a client gets a new one on arrival. What a shard keeps for all of its messages together,
its marks, is brought in line with messages that come from elsewhere: see ``_fit_in``.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from smsgw.errors import StoreError
from smsgw.ids import SHARDS_MAX, SLOTS, slot_of
from smsgw.store.places import TIDYING, Chart, Place, Step, audit
from smsgw.store.tables import Row, tables

_PARKED: Final = "parked"
_NOT_MOVED: Final = frozenset({_PARKED, "quarantine"})
# In which order rows are removed: what is found by way of others goes before these.
_REMOVED: Final = ("part", "event", "timer", "queue", "idempotency", "batch", "code", "total")
_REMOVED_LAST: Final = ("entry", "message", "client")
_EXPIRE, _RECEIPT, _FORGET_TEXT, _FORGET = 1, 2, 4, 5
_WAITING: Final = "status IN (0, 1, 5)"


class Holding(Protocol):
    """A store that no gateway serves, and whose slots may be moved."""

    @property
    def place(self) -> Place:
        """Its shards."""
        ...

    async def chart(self) -> Chart:
        """What its catalog says."""
        ...

    async def check_vacant(self, shard: int) -> None:
        """Refuse to make a shard where something is already.

        Raises:
            StoreError: naming it.
        """
        ...

    async def begin(self, shards: int) -> None:
        """Note that slots move, and that there may be so many shards in the end."""
        ...

    async def open(self, shard: int, chart: Chart) -> None:
        """Open, or make, a shard; while slots move, it may be of the epoch before."""
        ...

    async def drop(self, shard: int) -> None:
        """Remove a shard that the catalog does not name."""
        ...

    async def flip(self, before: Chart, after: Chart) -> None:
        """Change the map, in one commit."""
        ...

    async def end(self) -> None:
        """Forget that slots moved."""
        ...


@dataclass(slots=True)
class Moved:
    """What a move came to."""

    shards: int
    epoch: int
    slots: int = 0
    rows: int = 0
    clients: Sequence[bytes] = ()


@dataclass(slots=True)
class _Way:
    """Slots on their way from one shard to another; ``numbers`` are their clients' new ones."""

    source: int
    target: int
    slots: set[int] = field(default_factory=set)
    numbers: dict[int, int] = field(default_factory=dict)
    clients: list[bytes] = field(default_factory=list)


def spread(chart: Chart, shards: int) -> dict[int, int]:
    """Which slots have to move where, so that every shard has as many as any other, moving few."""
    where = {slot: shard for slot, shard, _ in chart.slots}
    counts = Counter(where.values())
    quota = {n: SLOTS // shards + (n < SLOTS % shards) for n in range(shards)}
    free = [n for n in range(shards) for _ in range(quota[n] - counts[n])]
    plan = {}
    for slot in reversed(range(SLOTS)):
        if free and counts[where[slot]] > quota[where[slot]]:
            counts[where[slot]] -= 1
            plan[slot] = free.pop()
    return plan


async def move(holding: Holding, plan: Mapping[int, int], shards: int, step: Step) -> Moved:
    """Move slots to shards, and add shards up to a count.

    Args:
        holding: the store.
        plan: to which shard each slot goes.
        shards: how many shards there are to be.
        step: told how far it is; nothing is lost when it ends the process.

    Raises:
        StoreError: there is no such shard, or a proof has failed: then nothing has moved.
    """
    chart = await tidied(holding, step)
    if not chart.shards <= shards <= SHARDS_MAX:
        raise StoreError(
            f"there are {chart.shards} shards: there can be up to {SHARDS_MAX}, but not fewer"
        )
    if any(not 0 <= target < shards for target in plan.values()):
        raise StoreError(f"there are only the shards 0 to {shards - 1}")
    ways = _ways(chart, plan)
    if not ways and shards == chart.shards:
        return Moved(chart.shards, int(chart.meta["epoch"]))
    for shard in range(chart.shards, shards):
        await holding.check_vacant(shard)
    after = _changed(chart, ways, shards)
    await holding.begin(shards)
    step("begun", 0, 0)
    for shard in range(shards):
        await holding.open(shard, after if shard >= chart.shards else chart)
    step("opened", 0, 0)
    rows = 0
    for way in ways:
        rows += await _copy(holding.place, way, step)
        await _compare(holding.place, way)
        await _fit_in(holding.place, way)
        await holding.place.settle(way.target)
        step(f"from shard {way.source} to {way.target}: compared", 0, 0)
    await audit(holding.place, sorted({way.target for way in ways}), step)
    step("proved", 0, 0)
    await holding.flip(chart, after)
    step("flipped", 0, 0)
    await tidied(holding, step)
    clients = [client for way in ways for client in way.clients]
    slots = sum(len(way.slots) for way in ways)
    return Moved(shards, int(after.meta["epoch"]), slots, rows, clients)


def _ways(chart: Chart, plan: Mapping[int, int]) -> list[_Way]:
    found: dict[tuple[int, int], _Way] = {}
    for slot, source, _ in chart.slots:
        target = plan.get(slot, source)
        if target != source:
            found.setdefault((source, target), _Way(source, target)).slots.add(slot)
    return list(found.values())


def _changed(chart: Chart, ways: Sequence[_Way], shards: int) -> Chart:
    moved = {slot: way for way in ways for slot in way.slots}
    return replace(
        chart,
        shards=shards,
        slots=[
            (slot, moved[slot].target, shard) if slot in moved else (slot, shard, origin)
            for slot, shard, origin in chart.slots
        ],
        meta={**chart.meta, "epoch": str(int(chart.meta["epoch"]) + 1)},
    )


async def _copy(place: Place, way: _Way, step: Step) -> int:
    """Copy everything of some slots; what is only counted is counted anew in the target."""
    ((last,),) = await place.fetch(way.target, place.dialect(way.target).client_last())
    done = 0
    for table in tables().values():
        if table.name in _NOT_MOVED:
            continue
        columns = table.columns[1:] if table.counted else table.columns
        async with aclosing(place.rows(way.source, table, slots=way.slots)) as chunks:
            async for rows in chunks:
                if table.name == "client":
                    way.clients += [row[1] for row in rows]
                    for row in rows:
                        last += 1
                        way.numbers[row[0]] = last
                fresh = [_renumbered(way, table.columns, row)[-len(columns) :] for row in rows]
                await place.put(way.target, table, columns, fresh)
                done += len(rows)
                step(f"shard {way.source} to {way.target}: {table.name}", done, 0)
    return done + await _copy_parked(place, way)


def _renumbered(way: _Way, columns: Sequence[str], row: Row) -> Row:
    if "client" in columns:
        at = columns.index("client")
    elif "slot" in columns:
        at = 0
    else:
        return row
    return (*row[:at], way.numbers[row[at]], *row[at + 1 :])


async def _copy_parked(place: Place, way: _Way) -> int:
    """Receipts whose messages are not known belong to the slot that their id hashes to."""
    table = tables()[_PARKED]
    done = 0
    async with aclosing(place.rows(way.source, table)) as chunks:
        async for rows in chunks:
            found = [row[1:] for row in rows if slot_of_receipt(row[1], row[2]) in way.slots]
            if found:
                await place.put(way.target, table, table.columns[1:], found)
                done += len(found)
    return done


def slot_of_receipt(provider: str, identifier: str) -> int:
    """The slot of a receipt whose message is not known; see ``Shards.named``."""
    return slot_of(f"{provider}\0{identifier}".encode())


async def _compare(place: Place, way: _Way) -> None:
    """Prove that all of it has arrived.

    Raises:
        StoreError: naming what has not.
    """
    for table in tables().values():
        if table.name in _NOT_MOVED:
            continue
        before = await place.facts(way.source, table, slots=way.slots)
        if before != await place.facts(way.target, table, slots=way.slots):
            raise StoreError(
                f"{table.name} differs after it was copied from shard {way.source} to {way.target}"
            )
    client = tables()["client"]
    async with (
        aclosing(place.rows(way.source, client, slots=way.slots)) as some,
        aclosing(place.rows(way.target, client, slots=way.slots)) as others,
    ):
        async for rows in some:
            for one, other in zip(rows, await anext(others), strict=True):
                if one[1:] != other[1:]:
                    raise StoreError(f"client {one[0]} of shard {way.source} differs in its copy")


async def _fit_in(place: Place, way: _Way) -> None:
    """Bring what came in line with how far the target's walks over its messages have come.

    What the target has passed and the source had not gets a timer; what the source had passed and
    the target has not is walked over again, which changes nothing. Daily totals count every message
    up to a mark once: those between the two marks are counted in, or out.
    """
    theirs, ours = await place.marks(way.source), await place.marks(way.target)
    sql = place.dialect(way.target)
    calls: list[tuple[str, Row]] = []
    counted = (theirs["counted_to"], ours["counted_to"])
    if counted[0] != counted[1]:
        sign = 1 if counted[0] < counted[1] else -1
        calls.append((sql.recount(way.slots, sign), (min(counted), max(counted))))
    for mark, kind, due, condition in (
        ("expired_to", _EXPIRE, "expires_at_ms", _WAITING),
        ("receipts_to", _RECEIPT, "0", "status < 10"),
        ("texts_to", _FORGET_TEXT, "0", "text IS NOT NULL"),
        ("purged_to", _FORGET, "0", "TRUE"),
    ):
        if theirs[mark] < ours[mark]:
            reminder = sql.remind(way.slots, kind, due, condition)
            calls.append((reminder, (theirs[mark], ours[mark])))
    await place.run(way.target, calls)
    outlived = max(marks.get(mark, 0) for marks in (theirs, ours) for mark in _OUTLIVED)
    if outlived > ours["purged_to"]:
        await place.set_marks(way.target, {"outlived_to": outlived})


_OUTLIVED: Final = ("purged_to", "outlived_to")


async def tidied(holding: Holding, step: Step = lambda *_: None) -> Chart:
    """Remove from every shard what the map does not give to it, where slots have moved or would.

    Returns:
        What the catalog says.
    """
    chart = await holding.chart()
    if TIDYING not in chart.meta:
        return chart
    for shard in range(chart.shards, int(chart.meta[TIDYING])):
        await holding.drop(shard)
    owned = defaultdict(set)
    for slot, shard, _ in chart.slots:
        owned[shard].add(slot)
    for shard in range(chart.shards):
        await holding.open(shard, chart)
        await _tidy(holding.place, shard, owned[shard])
        await holding.place.set_marks(shard, chart.identity(shard))
        step(f"shard {shard} is tidied", 0, 0)
    await holding.end()
    del chart.meta[TIDYING]
    return chart


async def _tidy(place: Place, shard: int, owned: Collection[int]) -> None:
    sql = place.dialect(shard)
    present = {slot for (slot,) in await place.fetch(shard, sql.slots_used())}
    foreign = present - set(owned)
    calls: list[tuple[str, Row]] = []
    if foreign:
        # What this shard has numbered is not to be numbered again, also when it is gone.
        ((last,),) = await place.fetch(shard, sql.number_last())
        marks = await place.marks(shard)
        calls.append((sql.set_mark(), ("numbered_to", max(last, marks.get("numbered_to", 0)))))
        named = [tables()[name] for name in (*_REMOVED, *_REMOVED_LAST)]
        calls += [(sql.delete(table, foreign), ()) for table in named]
    parked = tables()[_PARKED]
    async with aclosing(place.rows(shard, parked)) as chunks:
        async for rows in chunks:
            calls += [
                (sql.remove(parked), (row[0],))
                for row in rows
                if slot_of_receipt(row[1], row[2]) not in owned
            ]
    if calls:
        await place.run(shard, calls)
        await place.settle(shard)
