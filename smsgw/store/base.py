"""What a shard's storage must be able to do; the turn is its one way to write."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from smsgw.errors import SmsgwError
from smsgw.models import Message, Unreported
from smsgw.store.audit import Proof
from smsgw.turn import Item, QueueKey


class CommitUnknownError(Exception):
    """A commit failed in a way that may or may not have reached the disk: the process must end."""


class ShardUnavailableError(Exception):
    """Nothing of a turn was written: the disk is full, locked, read-only or failing."""


@dataclass(slots=True)
class TurnResult:
    """What a committed turn came to.

    ``errors`` has one place per item: None where it is on disk, else why it alone is not.
    ``accepted_parts`` are those parts of long messages that operators have, by message.
    ``waiting`` is how many messages are queued now; ``queued`` the lowest rank that was put into
    each queue. ``ended`` are the watched messages that are final now; ``finals`` counts all that
    became so, by status. ``postponed`` items are left for the next turn, since others were at work
    for their clients. ``due_ms`` is when the first of the new timers is due. ``late``: it took so
    long that its claims may be somebody else's by now.
    """

    errors: Sequence[SmsgwError | None]
    claims: Sequence[Message] = ()
    waiting: Mapping[QueueKey, int] = field(default_factory=dict)
    queued: Mapping[QueueKey, int] = field(default_factory=dict)
    ended: Sequence[int] = ()
    postponed: Sequence[Item] = ()
    finals: Mapping[int, int] = field(default_factory=dict)
    due_ms: int | None = None
    late: bool = False
    accepted_parts: Mapping[int, frozenset[int]] = field(default_factory=dict)
    work_s: float = 0.0
    commit_s: float = 0.0


class ShardStore(Protocol):
    """One shard: a file, or a schema in a server.

    ``waiting`` and ``lane_parts`` are how many messages and parts are queued, ``waits`` is how many
    messages wait to be handed over at all; ``watched`` are messages whose end somebody waits for.
    """

    number: int
    waiting: dict[QueueKey, int]
    lane_parts: dict[QueueKey, int]
    waits: int
    watched: set[int]

    async def turn(
        self, items: Sequence[Item], now_ms: int, virtual: Mapping[QueueKey, int]
    ) -> TurnResult:
        """Load what the items need, let them decide, write the difference, commit.

        Raises:
            ShardUnavailableError: nothing was written; trying again later makes sense.
            CommitUnknownError: nobody knows; the process must end.
        """
        ...

    async def read(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a named statement, from a connection that cannot write."""
        ...

    async def lowest_ranks(self) -> list[tuple[QueueKey, int]]:
        """The lowest rank of every queue."""
        ...

    async def accepted_open(self, before: int, limit: int) -> list[Unreported]:
        """What was accepted and not reported on, of the newest messages; of each a row at least.

        Args:
            before: only messages with lower numbers.
            limit: of how many messages.
        """
        ...

    def express_share(self, client_id: bytes, route: int) -> tuple[int, int, int]:
        """What a client has waiting on the express lane of a route.

        Returns:
            Its waiting parts, its weight, and the weights of all that have some waiting, itself
            included.
        """
        ...

    async def report(self, client: int, first_day: int, last_day: int) -> list[tuple[Any, ...]]:
        """What was counted of a client and what was not yet, seen at one moment."""
        ...

    async def audit(self, step: Callable[[str], None] = ...) -> Proof:
        """Prove every sum, every hold and every chain of this shard, at one moment."""
        ...

    def wal_bytes(self) -> int:
        """How long the write-ahead log is."""
        ...

    async def tidy(self) -> None:
        """Do what is to be done between turns."""
        ...

    async def close(self) -> None:
        """Checkpoint and close."""
        ...


@runtime_checkable
class SharedStore(Protocol):
    """A shard in a server, that other gateways may share.

    A turn of it may be in doubt for a while, and is known in the end: ``on_doubt`` is called again
    and again until then; False ends the asking. ``orphans`` says that a gateway which is no more
    has left messages in flight, ``leads`` that sweeping is this gateway's.
    """

    on_doubt: Callable[[], bool]
    orphans: bool
    leads: bool


class CatalogStore(Protocol):
    """The catalog: which slot lives in which shard, and what holds for the whole store.

    ``made`` says that every shard was made: from now on a missing one is a loss.
    """

    store_id: int
    epoch: int
    made: bool
    shards: dict[int, str]
    shard_of_slot: list[int]
    moved_from: dict[int, int]
    paused: set[str]

    async def set_made(self) -> None:
        """Note that every shard was made."""
        ...

    async def set_paused(self, subject: str, *, paused: bool) -> None:
        """Pause or resume everything or a provider; survives a restart."""
        ...

    async def changes(self, key: str, value: str) -> bool:
        """Keep a value; says whether another one was kept before."""
        ...

    async def routes(self, sets: Iterable[tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
        """The numbers of these sets of providers; a new set gets the next number for ever."""
        ...

    async def close(self) -> None:
        """Close it."""
        ...
