"""A turn in memory: what was loaded for it, what its items decide, what is to be written.

A shard takes many items (requests, outcomes, receipts, adjustments) into one transaction. Each
item first says what it ``needs``; the store loads that; then the items ``decide`` one after the
other, each seeing what its predecessors did; then the store writes the difference and commits.
Nothing here reads a clock, a file or a socket, so a decision is the same on every database.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from smsgw.clock import day_of
from smsgw.errors import SmsgwError
from smsgw.ids import NumberSource
from smsgw.models import Account, Batch, Flow, KeyRecord, Message, OtpCode, Part, Timer

QueueKey = tuple[int, int]
"""(route, lane)"""
QueuePlace = tuple[int, int, int, int]
"""(rank, message number, client number, parts)"""
TotalKey = tuple[int, int, str, int]
"""(client number, UTC day, sender, status)"""

URGENT: Final = 0
OUTCOME: Final = 1
REQUEST: Final = 2


class Wants:
    """What a turn's items need to see."""

    __slots__ = (
        "asks",
        "batches",
        "clients",
        "codes",
        "heads",
        "keys",
        "messages",
        "numbers",
        "parts",
    )

    def __init__(self) -> None:
        self.clients: set[bytes] = set()
        self.numbers: set[int] = set()
        self.messages: set[int] = set()
        self.parts: set[int] = set()
        self.keys: set[tuple[bytes, bytes]] = set()
        self.batches: set[int] = set()
        self.codes: set[tuple[bytes, int]] = set()
        self.heads: dict[QueueKey, int] = {}
        self.asks: list[tuple[str, tuple[Any, ...]]] = []


class Turn:
    """The overlay that a turn's items work on."""

    def __init__(
        self,
        now_ms: int,
        numbers: NumberSource,
        flows: Mapping[tuple[int, int, int], Flow],
        virtual: Mapping[QueueKey, int],
        counted_to: int,
    ) -> None:
        self.now_ms = now_ms
        self.numbers = numbers
        self.virtual = virtual
        self.counted_to = counted_to
        self.counted_next = counted_to
        self.next_client = 1
        self.absorbed = False
        self.elsewhere: frozenset[int] = frozenset()
        """Messages that another gateway is sending."""
        self.waiting = 0
        self._flows_before = flows

        self.accounts: dict[int, Account] = {}
        self.account_of: dict[bytes, Account] = {}
        self.messages: dict[int, Message] = {}
        self.parts: dict[int, dict[int, Part]] = {}
        self.keys: dict[tuple[int, bytes], KeyRecord] = {}
        self.batches: dict[int, Batch] = {}
        self.codes: dict[tuple[int, int], OtpCode] = {}
        self.heads: dict[QueueKey, list[QueuePlace]] = {}
        self.asked: dict[tuple[str, tuple[Any, ...]], list[tuple[Any, ...]]] = {}

        self.new_accounts: dict[int, Account] = {}
        self.changed_accounts: dict[int, Account] = {}
        self.new_messages: dict[int, Message] = {}
        self.changed_messages: dict[int, Message] = {}
        self.changed_parts: dict[tuple[int, int], Part] = {}
        self.new_keys: dict[tuple[int, bytes], KeyRecord] = {}
        self.key_generations: set[int] = set()
        self.new_batches: dict[int, Batch] = {}
        self.new_codes: dict[tuple[int, int], OtpCode] = {}
        self.entries: list[tuple[Any, ...]] = []
        self.queued: defaultdict[QueueKey, dict[int, QueuePlace]] = defaultdict(dict)
        self.unqueued: dict[int, tuple[int, int, int, int]] = {}
        self.flows: dict[tuple[int, int, int], Flow] = {}
        self.timers: list[tuple[int, int, int]] = []
        self.writes: list[tuple[str, tuple[Any, ...]]] = []
        self.claims: list[Message] = []
        self._counted: dict[int, tuple[TotalKey, tuple[int, int, int, int]]] = {}

    def touch(self, message: Message) -> None:
        """Say that a message is about to change; call it before the change."""
        number = message.number
        if number in self.new_messages:
            return
        if number not in self.changed_messages:
            self.changed_messages[number] = message
            if number <= self.counted_to:
                self._counted[number] = (total_key(message), total_values(message))
        message.updated_at_ms = self.now_ms

    def touch_account(self, account: Account) -> None:
        """Say that an account changes."""
        if account.number not in self.new_accounts:
            self.changed_accounts[account.number] = account

    def waits(self, account: Account, by: int) -> None:
        """Count a message in, or out, that waits to be handed over."""
        account.waiting += by
        self.waiting += by
        self.touch_account(account)

    def add_message(self, message: Message) -> None:
        """Add a message that this turn accepted."""
        self.new_messages[message.number] = message
        self.messages[message.number] = message

    def add_account(self, account: Account) -> None:
        """Add a client that this turn created."""
        self.new_accounts[account.number] = account
        self.accounts[account.number] = account
        self.account_of[account.id] = account

    def add_key(self, record: KeyRecord) -> None:
        """Remember what an idempotency key did, or changed in doing."""
        before = self.keys.get((record.client, record.digest))
        if before is None or before.generation != record.generation:
            self.key_generations.add(record.generation)
            if before is not None:
                self.write("key_delete", before.generation, record.client, record.digest)
        self.new_keys[record.client, record.digest] = record
        self.keys[record.client, record.digest] = record

    def set_part(self, part: Part) -> None:
        """Remember a part of a message, or a change of it."""
        self.parts.setdefault(part.message, {})[part.part] = part
        self.changed_parts[part.message, part.part] = part

    def add_batch(self, batch: Batch) -> None:
        """Remember a batch, or how it went on."""
        self.new_batches[batch.number] = batch
        self.batches[batch.number] = batch

    def add_code(self, code: OtpCode) -> None:
        """Remember a code, or a change of it."""
        self.new_codes[code.client, code.message] = code
        newest = self.codes.get((code.client, code.recipient))
        if newest is None or newest.message <= code.message:
            self.codes[code.client, code.recipient] = code

    def flow(self, client: int, route: int, lane: int) -> Flow:
        """The client's place in a queue, to be changed freely."""
        key = (client, route, lane)
        flow = self.flows.get(key)
        if flow is None:
            before = self._flows_before.get(key)
            flow = before.copy() if before else Flow()
            self.flows[key] = flow
        return flow

    def enqueue(self, message: Message) -> None:
        """Put a message into its queue at its rank."""
        place = (message.rank, message.number, message.client, message.parts)
        if self.unqueued.get(message.number) == (*self._row(message),):
            del self.unqueued[message.number]
        else:
            self.queued[message.route, message.lane][message.number] = place
        flow = self.flow(message.client, message.route, message.lane)
        flow.waiting += 1
        flow.parts += message.parts

    def dequeue(self, message: Message) -> None:
        """Take a message out of its queue."""
        if self.queued[message.route, message.lane].pop(message.number, None) is None:
            self.unqueued[message.number] = self._row(message)
        flow = self.flow(message.client, message.route, message.lane)
        flow.waiting -= 1
        flow.parts -= message.parts
        assert flow.waiting >= 0, "a message left a queue it was not in"

    @staticmethod
    def _row(message: Message) -> tuple[int, int, int, int]:
        return (message.route, message.lane, message.rank, message.number)

    def at(self, due_at_ms: int, message: Message, timer: Timer) -> None:
        """Have the sweeper look at a message at that time."""
        self.timers.append((due_at_ms, message.number, int(timer)))

    def event(self, message: Message, kind: str, detail: str | None = None) -> None:
        """Write down what a message's columns do not tell."""
        self.write("event_add", message.number, self.now_ms, kind, detail)

    def write(self, statement: str, *parameters: Any) -> None:
        """Have a named statement run after everything else, for what happens rarely."""
        self.writes.append((statement, parameters))

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement that some item wanted."""
        return self.asked[statement, parameters]

    def total_changes(self) -> Iterable[tuple[Any, ...]]:
        """What counted messages that changed now add to the daily totals: key and differences."""
        deltas: defaultdict[TotalKey, list[int]] = defaultdict(lambda: [0] * 5)
        for number, (key, values) in self._counted.items():
            message = self.changed_messages[number]
            for sign, total, amounts in (
                (-1, key, values),
                (1, total_key(message), total_values(message)),
            ):
                row = deltas[total]
                row[0] += sign
                for index, amount in enumerate(amounts, 1):
                    row[index] += sign * amount
        return [(*key, *row) for key, row in deltas.items() if any(row)]


def total_key(message: Message) -> TotalKey:
    """Under which daily total a message counts."""
    return (message.client, day_of(message.created_at_ms), message.sender, message.status)


def total_values(message: Message) -> tuple[int, int, int, int]:
    """What a message adds to its total: parts, cost, held and charged cents."""
    return (message.parts, message.cost_cents, message.held_cents, message.charged_cents)


class Item:
    """One thing to decide in a turn.

    ``decide`` either answers, or refuses with an error, or has nothing to say; it must not change
    the turn before it is sure. The answer is given to ``done`` after the commit.
    """

    __slots__ = ("answer", "postponed", "refusal")

    priority: int = REQUEST
    """``URGENT`` items go first, then ``OUTCOME``, then ``REQUEST``."""
    units: int = 1
    """How many messages it is about, at most: a turn is bounded by them."""
    patient: bool = False
    """Whether nobody waits for it, so that it may wait a little for a turn to ride along with."""
    kept: bool = False
    """Whether, like an outcome, it stays to be stored later when the disk cannot be written."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.refusal: SmsgwError | None = None
        self.postponed = 0
        """How many turns have left it for the next."""

    def needs(self, wants: Wants) -> None:
        """Name the rows that ``decide`` looks at."""

    def decide(self, turn: Turn) -> None:
        """Work on the turn."""
        raise NotImplementedError

    def done(self) -> None:
        """Called on the event loop once the turn is on disk; ``answer`` or ``refusal`` is set."""

    def failed(self, error: SmsgwError) -> None:
        """Called instead of ``done`` when the item could not be stored."""

    def quarantine(self) -> str | None:
        """What to keep of an item that can never be stored; None where its caller is told."""
        return None


Tell = Callable[[Any, SmsgwError | None], None]
"""Called once with the answer to a request, or with what it was refused with."""


class Request(Item):
    """An item whose caller waits for its answer: for ``future``, or to be told by a call."""

    __slots__ = ("client_id", "future", "tell")

    def __init__(self, client_id: bytes = b"", tell: Tell | None = None) -> None:
        super().__init__()
        self.client_id = client_id
        self.tell = tell
        if tell is None:
            self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(self) -> None:
        """Answer the caller, unless it is gone."""
        if self.tell is not None:
            self.tell(self.answer, self.refusal)
            return
        if self.future.done():
            return
        if self.refusal is not None:
            self.future.set_exception(self.refusal)
        else:
            self.future.set_result(self.answer)

    def failed(self, error: SmsgwError) -> None:
        """Tell the caller that nothing, or nothing certain, was written."""
        if self.tell is not None:
            self.tell(None, error)
        elif not self.future.done():
            self.future.set_exception(error)


class Write(Request):
    """One or more named statements, for housekeeping."""

    __slots__ = ("statements",)

    def __init__(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        super().__init__()
        self.statements = statements

    def decide(self, turn: Turn) -> None:
        """Write them."""
        for statement, parameters in self.statements:
            turn.write(statement, *parameters)


def run_items(items: Sequence[Item], turn: Turn) -> None:
    """Let every item decide, in order; a refusal is an answer, any other error is not."""
    for item in items:
        item.answer = item.refusal = None
        try:
            item.decide(turn)
        except SmsgwError as refusal:
            item.refusal = refusal
