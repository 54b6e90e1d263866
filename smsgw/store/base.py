"""What a shard's storage must be able to do; the turn is its one way to write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from smsgw.errors import SmsgwError
from smsgw.models import Flow, Message
from smsgw.turn import Item, QueueKey


class CommitUnknownError(Exception):
    """A commit failed in a way that may or may not have reached the disk: the process must end."""


class ShardUnavailableError(Exception):
    """Nothing of a turn was written: the disk is full, locked, read-only or failing."""


@dataclass(slots=True)
class TurnResult:
    """What a committed turn came to.

    ``errors`` has one place per item: None where it is on disk, else why it alone is not.
    ``waiting`` is how many messages are queued now; ``queued`` the lowest rank that was put into
    each queue. ``ended`` are the watched messages that are final now; ``finals`` counts all that
    became so, by status. ``due_ms`` is when the first of the new timers is due.
    """

    errors: Sequence[SmsgwError | None]
    claims: Sequence[Message] = ()
    waiting: Mapping[QueueKey, int] = field(default_factory=dict)
    queued: Mapping[QueueKey, int] = field(default_factory=dict)
    ended: Sequence[int] = ()
    finals: Mapping[int, int] = field(default_factory=dict)
    due_ms: int | None = None
    work_s: float = 0.0
    commit_s: float = 0.0


class ShardStore(Protocol):
    """One shard: a file, or later a schema in a server."""

    number: int
    flows: dict[tuple[int, int, int], Flow]
    waiting: dict[QueueKey, int]

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

    async def close(self) -> None:
        """Checkpoint and close."""
        ...
