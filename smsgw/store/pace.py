"""When a shard's next turn begins: how closely turns follow each other."""

from dataclasses import dataclass, field
from typing import Final

LATELY_S: Final = 0.05


@dataclass(slots=True)
class Room:
    """What all shards of the process share.

    ``items_max`` requests may wait in all inboxes, ``count`` do; ``busy`` shards are in a turn, and
    ``urgent`` one-time codes wait for one. Until ``urgent_until_s`` more codes are expected.
    ``turns`` is when each shard began its last turn.
    """

    items_max: int
    count: int = 0
    busy: int = 0
    urgent: int = 0
    urgent_until_s: float = 0.0
    turns: dict[int, float] = field(default_factory=dict)

    def at_work(self, shard: int, now_s: float) -> int:
        """Note a turn of a shard; says how many shards had one lately."""
        self.turns[shard] = now_s
        return sum(at_s > now_s - LATELY_S for at_s in self.turns.values())


@dataclass(slots=True, frozen=True)
class Pace:
    """How closely turns follow each other.

    A turn costs much that does not depend on how much is in it. So the turns of all shards begin
    ``turns_apart_s`` apart at the average, one-time codes excepted, and find more to do; and where
    fewer than ``items_many`` things are there to do, ``small_turns_apart_s``. A request that comes
    alone finds its shard idle, and waits for nothing. And since nobody waits for most outcomes,
    fewer than ``outcomes_many`` of them wait ``outcomes_wait_s`` at most for a turn to ride along
    with. A turn takes no more than what costs the event loop about ``turn_s``, since nothing else
    goes on meanwhile; turns beside one-time codes are smaller still.
    """

    turns_apart_s: float = 0.0025
    small_turns_apart_s: float = 0.004
    items_many: int = 24
    outcomes_wait_s: float = 0.01
    outcomes_many: int = 32
    turn_s: float = 0.008


AT_ONCE: Final = Pace(0.0, 0.0, 1, 0.0, 1)
PACE = Pace()
SERVER_PACE: Final = Pace(
    turns_apart_s=0.004, small_turns_apart_s=0.012, items_many=48, turn_s=0.02
)
"""A turn on a server costs two trips and far more of its work, which gateways share."""


class Rhythm:
    """When one shard may begin its next turn, by the loop's time in seconds."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._turn_at_s = 0.0
        self._small_turn_at_s = 0.0

    def begins(self, at_work: int, now_s: float) -> None:
        """Note that a turn begins, while so many shards are at work.

        The next small turns of all shards are due at the same moments: the process is woken once
        for all of them, which at a moderate load saves a tenth of its work.
        """
        self._turn_at_s = now_s + self.pace.turns_apart_s * at_work
        apart_s = self.pace.small_turns_apart_s * at_work
        together_s = (now_s // apart_s + 1) * apart_s if apart_s else now_s
        self._small_turn_at_s = max(self._turn_at_s, together_s)

    def is_many(self, items: int) -> bool:
        """Whether so many items are worth a turn of their own."""
        return items >= self.pace.items_many

    def early_s(self, now_s: float, *, many: bool) -> float:
        """How long the next turn waits; not positive where it does not."""
        return (self._turn_at_s if many else self._small_turn_at_s) - now_s
