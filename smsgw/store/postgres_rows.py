"""Between a turn and what it exchanges with PostgreSQL.

A document is loaded; a document and rows of numbers are written.
"""

import json
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from smsgw.models import Account, Batch, Flow, KeyRecord, Message, OtpCode, Part, Status
from smsgw.store.postgres_statements import WRITTEN_TOGETHER
from smsgw.turn import Item, QueueKey, Turn, Wants

_FLYING: Final = frozenset({Status.SENDING, Status.UNCERTAIN})
_UNDER_WAY: Final = frozenset({Status.SENDING, Status.SENT})
_KEPT_MAX: Final = 10_000
FlowKey = tuple[int, int, int]
"""(client number, route, lane)"""
KeptMessages = Mapping[int, tuple[int, Message]]
"""By number: the id of the transaction that has left it so, and the message."""


class Loaded:
    """What came with a turn's rows: what is true of the whole shard."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.rows = document
        self.flows: dict[FlowKey, Flow] = {
            (client, route, lane): Flow(*ranks)
            for client, route, lane, *ranks in document["flows"] or ()
        }
        self.waiting: dict[QueueKey, int] = {}
        self.lane_parts: dict[QueueKey, int] = {}
        for route, lane, messages, parts in document["backlog"] or ():
            self.waiting[route, lane] = messages
            self.lane_parts[route, lane] = parts
        self.waits: int = document["waits"] or 0
        self.next_client: int = document["next_client"]
        self.counted_to: int = document["counted_to"]
        self.floor: int = document["floor"]
        self.xid: int = document["xid"]
        self.unsafe: list[str] = document["unsafe"] or []


class Kept:
    """Messages under way as a turn of this gateway has left them. Bounded, oldest out first.

    Each is remembered with the id of its transaction: as long as the row says the same (its xmin),
    nobody has changed it, and it need not be read again. What a turn takes out, it puts back when
    it is committed.
    """

    def __init__(self) -> None:
        self._messages: OrderedDict[int, tuple[int, Message]] = OrderedDict()

    def take(self, numbers: Iterable[int]) -> dict[int, tuple[int, Message]]:
        """Take out those of these messages that are here."""
        messages = self._messages
        return {number: messages.pop(number) for number in numbers if number in messages}

    def keep(self, turn: Turn, xid: int) -> None:
        """Remember what a transaction has left."""
        for messages in (turn.new_messages, turn.changed_messages):
            for number, message in messages.items():
                if message.status in _UNDER_WAY:
                    self._messages[number] = (xid, message)
        while len(self._messages) > _KEPT_MAX:
            self._messages.popitem(last=False)

    def give_back(self, kept: KeptMessages) -> None:
        """Put back what was taken out and is as it was."""
        self._messages.update(kept)

    def clear(self) -> None:
        """Forget everything."""
        self._messages.clear()


class Busy:
    """The clients that other gateways are at work for, as a turn that passes them over learns."""

    def __init__(self, loaded: Loaded, kept: KeptMessages) -> None:
        clients = loaded.rows["busy"] or ()
        self._numbers = {number for number, _ in clients}
        self._ids = {bytes.fromhex(identifier) for _, identifier in clients}
        self._messages = set(loaded.rows["busy_messages"] or ())
        self.kept = {n: known for n, known in kept.items() if known[1].client in self._numbers}
        """What a turn has taken out and does not touch, then."""
        self._messages.update(self.kept)

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def concerns(self, item: Item) -> bool:
        """Whether an item cannot be decided without one of them."""
        wants = Wants()
        item.needs(wants)
        return not (
            wants.clients.isdisjoint(self._ids)
            and wants.numbers.isdisjoint(self._numbers)
            and wants.messages.isdisjoint(self._messages)
        )


def wanted(wants: Wants, kept: KeptMessages, awaited: Wants) -> Sequence[Sequence[Any]]:
    """The parameters of ``turn_load`` behind the first two, but the last, in its order."""
    keys, codes = list(wants.keys), list(wants.codes)
    heads = list(wants.heads.items())
    return (
        list(wants.clients),
        [*wants.numbers, *{message.client for _, message in kept.values()} - wants.numbers],
        [number for number in wants.messages if number not in kept],
        [client for client, _ in keys],
        [digest for _, digest in keys],
        list(wants.batches),
        [client for client, _ in codes],
        [recipient for _, recipient in codes],
        list(wants.parts),
        [route for (route, _), _ in heads],
        [lane for (_, lane), _ in heads],
        [count for _, count in heads],
        list(kept),
        [xid for xid, _ in kept.values()],
        list(awaited.clients),
        list(awaited.numbers),
        list(awaited.messages),
    )


def parse(document: bytes) -> Loaded:
    """What ``turn_load`` has answered."""
    return Loaded(json.loads(document))


def fill(turn: Turn, wants: Wants, loaded: Loaded, kept: KeptMessages) -> None:
    """Bring what was loaded, and what was kept and is still true, into the turn."""
    rows = loaded.rows
    stale = frozenset(rows["stale"] or ())
    for number, (_, message) in kept.items():
        if number not in stale:
            turn.messages[number] = message
    for number, identifier, *rest in rows["accounts"] or ():
        account = Account(number, bytes.fromhex(identifier), *rest)
        turn.accounts[number] = turn.account_of[account.id] = account
    for number, identifier, *rest in rows["messages"] or ():
        turn.messages[number] = Message(number, bytes.fromhex(identifier), *rest)
    for client, digest, fingerprint, *rest in rows["keys"] or ():
        record = KeyRecord(client, bytes.fromhex(digest), bytes.fromhex(fingerprint), *rest)
        turn.keys[client, record.digest] = record
    for number, identifier, *rest in rows["batches"] or ():
        turn.batches[number] = Batch(number, bytes.fromhex(identifier), *rest)
    for message, client, recipient, identifier, *rest in rows["codes"] or ():
        code = OtpCode(message, client, recipient, bytes.fromhex(identifier), *rest)
        turn.codes[client, recipient] = code
    for key in wants.heads:
        turn.heads[key] = []
    for route, lane, *place in rows["heads"] or ():
        turn.heads[route, lane].append(tuple(place))
    for places in turn.heads.values():
        places.sort()
        # A long message may have been accepted in part by an earlier attempt.
        wants.parts.update(number for _, number, _, parts in places if parts > 1)
    for number in wants.parts:
        turn.parts[number] = {}
    for number, part, *rest in rows["parts"] or ():
        turn.parts[number][part] = Part(number, part, *rest)
    turn.next_client = loaded.next_client


def changes(turn: Turn) -> dict[str, Any]:
    """The document for ``turn_write``; nothing of what did not change."""
    queued = turn.queued.items()
    found: dict[str, Iterable[Any]] = {
        "add_clients": map(_row, turn.new_accounts.values()),
        "add_messages": map(_row, turn.new_messages.values()),
        "change_messages": map(_message_changes, turn.changed_messages.values()),
        "add_entries": (entry for entry in turn.entries if not _is_numbers(entry)),
        "set_keys": ((*_row(key), key.generation) for key in turn.new_keys.values()),
        "set_batches": map(_row, turn.new_batches.values()),
        "set_codes": map(_row, turn.new_codes.values()),
        "set_parts": map(_row, turn.changed_parts.values()),
        "dequeue": turn.unqueued.values(),
        "enqueue": ((*key, *place) for key, places in queued for place in places.values()),
        "add_backlog": ((*key, *counts) for key, counts in backlog_changes(turn).items()),
        "add_timers": turn.timers,
        "add_totals": turn.total_changes(),
        **{
            name: [parameters for statement, parameters in turn.writes if statement == name]
            for name in WRITTEN_TOGETHER
        },
    }
    return {name: rows for name, values in found.items() if (rows := list(values))}


def numbers(turn: Turn) -> list[list[tuple[int, ...]]]:
    """The rows of numbers for ``turn_write``, in the order of its parameters.

    Raises:
        ValueError: something belongs to a client whose account does not change.
    """
    accounts = turn.changed_accounts
    owners = {message.client for message in turn.new_messages.values()}
    owners.update(entry[0] for entry in turn.entries)
    if strangers := owners - accounts.keys() - turn.new_accounts.keys():
        raise ValueError(f"no foreign key: the account of client {min(strangers)} does not change")
    changed = turn.changed_messages.values()
    moved = [*turn.new_messages.values(), *changed]
    return [
        list(map(_account_changes, accounts.values())),
        [entry[:8] for entry in turn.entries if _is_numbers(entry)],
        [(message.number,) for message in changed if message.status not in _FLYING],
        [(m.number, m.status, m.attempts) for m in moved if m.status in _FLYING],
        [(*key, *_flow_changes(flow)) for key, flow in turn.flows.items()],
    ]


def _is_numbers(entry: Sequence[Any]) -> bool:
    """Whether an entry in the ledger is about a message, and has no note."""
    return entry[7] is not None and entry[8] is None


def backlog_changes(turn: Turn) -> dict[QueueKey, tuple[int, int]]:
    """How many messages and parts a turn has put into each queue, less what it took out."""
    counts: defaultdict[QueueKey, list[int]] = defaultdict(lambda: [0, 0])
    for key, places in turn.queued.items():
        counts[key][0] += len(places)
        counts[key][1] += sum(place[3] for place in places.values())
    for number, (route, lane, _, _) in turn.unqueued.items():
        counts[route, lane][0] -= 1
        counts[route, lane][1] -= turn.messages[number].parts
    return {
        key: (messages, parts) for key, (messages, parts) in counts.items() if messages or parts
    }


def _row(record: Any) -> list[Any]:
    """A record's fields in the order of its columns; bytes as hexadecimal digits."""
    return [
        value.hex() if isinstance(value, bytes) else value
        for value in [getattr(record, name) for name in record.__slots__]
    ]


def _account_changes(account: Account) -> tuple[int, ...]:
    """What is written of an account that changes: all but its name, which never does."""
    return (
        account.number,
        account.weight,
        account.credits_cents,
        account.held_cents,
        account.charged_cents,
        account.sequence,
        account.waiting,
        account.paused,
    )


def _flow_changes(flow: Flow) -> tuple[int, ...]:
    return (flow.next_rank, flow.waiting, flow.parts, flow.again_rank, flow.served_rank)


def _message_changes(m: Message) -> tuple[Any, ...]:
    return (
        m.number, m.status, m.reason, m.held_cents, m.charged_cents, m.route, m.rank, m.attempts,
        m.provider, m.provider_message_id, m.last_error, m.due_at_ms, m.submitted_at_ms,
        m.final_at_ms, m.updated_at_ms, m.express_missed,
    )  # fmt: skip
