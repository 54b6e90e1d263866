"""What waits for a shard's next turn."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice, zip_longest
from typing import Final

from smsgw.errors import TooManyRequests
from smsgw.store.pace import Room
from smsgw.turn import OUTCOME, URGENT, Item, Request

_CLIENT_SHARE: Final = 0.5
_SHARE_WITH_SOMETHING_WAITING: Final = 0.95


class Inbox:
    """What waits for a turn; bounded per client and, over all shards, in all."""

    def __init__(self, room: Room, outcomes_many: int) -> None:
        self._room = room
        self._outcomes_many = outcomes_many
        self._urgent: deque[Item] = deque()
        self._outcomes: deque[Item] = deque()
        self._again: deque[Item] = deque()
        self._impatient = False
        self._requests: OrderedDict[bytes, deque[Request]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        again = sum(item.priority == OUTCOME for item in self._again)
        return len(self._urgent) + len(self._outcomes) + again + self._count

    def fresh(self, units_max: int) -> int:
        """How many messages the next turn brings at most, if it claims: those of clients."""
        again = sum(item.units for item in self._again if item.priority != OUTCOME)
        share = _share_of_requests(units_max)
        of_clients = (queue for client, queue in self._requests.items() if client)
        brought = 0
        # In turn by client, as they are taken.
        for requests in zip_longest(*islice(of_clients, share)):
            for request in requests:
                if request is not None:
                    brought += request.units
                    if brought >= share:
                        return again + brought
        return again + brought

    @property
    def urgent(self) -> int:
        """How many one-time codes there are."""
        return len(self._urgent)

    @property
    def outcomes(self) -> int:
        """How many outcomes there are."""
        return len(self._outcomes)

    @property
    def presses(self) -> bool:
        """Whether somebody waits for a turn, or much has come together for one."""
        return bool(
            self._count
            or self._urgent
            or self._again
            or self._impatient
            or len(self._outcomes) >= self._outcomes_many
        )

    def add(self, item: Item) -> None:
        """Take an item.

        Raises:
            TooManyRequests: for a request, when too many wait already.
        """
        if item.priority == URGENT:
            self._urgent.append(item)
            self._room.urgent += 1
        elif item.priority == OUTCOME:
            self._outcomes.append(item)
            self._impatient = self._impatient or not item.patient
        else:
            assert isinstance(item, Request)
            self._add_request(item)

    def _add_request(self, item: Request) -> None:
        queue = self._requests.get(item.client_id)
        if queue is None:
            if self._room.count >= self._room.items_max:
                raise TooManyRequests("Too many requests are waiting.", retry_after_s=1)
            self._requests[item.client_id] = deque((item,))
        else:
            share = _CLIENT_SHARE * self._room.items_max
            total = _SHARE_WITH_SOMETHING_WAITING * self._room.items_max
            if len(queue) >= share or self._room.count >= total:
                raise TooManyRequests("Too many requests are waiting.", retry_after_s=1)
            queue.append(item)
        self._count += 1
        self._room.count += 1

    def give_back(self, items: Sequence[Item]) -> None:
        """Put outcomes that could not be stored back where they were."""
        self._outcomes.extendleft(reversed(items))

    def put_back(self, items: Sequence[Item]) -> None:
        """Let items that a turn has postponed be the first of the next."""
        self._again.extendleft(reversed(items))
        requests = sum(item.priority != OUTCOME for item in items)
        self._count += requests
        self._room.count += requests

    def clear(self) -> list[Item]:
        """Take out and return everything but outcomes."""
        items: list[Item] = list(self._urgent)
        self.give_back([item for item in self._again if item.priority == OUTCOME])
        items += [item for item in self._again if item.priority != OUTCOME]
        self._again.clear()
        for queue in self._requests.values():
            items += queue
        self._room.urgent -= len(self._urgent)
        self._room.count -= self._count
        self._urgent.clear()
        self._requests.clear()
        self._count = 0
        return items

    def take(self, units_max: int, *, claims: bool = False) -> list[Item]:
        """The next turn's items: at least one, if there is one, and about ``units_max`` units.

        A message is admitted once, claimed once, answered and reported on: where the turn also
        claims, a quarter of it is for requests, so that no more comes in than goes out.
        """
        items: list[Item] = list(self._urgent)
        self._urgent.clear()
        units = 0
        while self._again and units < units_max:
            item = self._again.popleft()
            units += item.units
            items.append(item)
            if item.priority != OUTCOME:
                self._count -= 1
                self._room.count -= 1
        self._impatient = self._impatient and len(self._outcomes) > units_max
        # Outcomes never take all of a turn, so that they cannot keep requests out.
        limit = units_max if not self._requests else max(1, units_max * 3 // 4)
        while self._outcomes and units < limit:
            item = self._outcomes.popleft()
            units += item.units
            items.append(item)
        requests = self._requests
        if claims:
            units_max = min(units_max, units + _share_of_requests(units_max))
        while requests and units < units_max:
            client, queue = requests.popitem(last=False)
            request = queue.popleft()
            self._count -= 1
            self._room.count -= 1
            # Ours, which come one at a time, take nothing of what is there for clients.
            units += request.units if client else 0
            items.append(request)
            if queue:
                requests[client] = queue
        return items


def _share_of_requests(units_max: int) -> int:
    """How much of a turn that claims is for requests."""
    return max(1, units_max // 4)
