"""Between rows and a turn: what is loaded for it, what is written of it, what is kept after it."""

import sqlite3
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from smsgw.models import Account, Batch, KeyRecord, Message, OtpCode, Part, Status
from smsgw.store.keys import KeyShelf
from smsgw.store.statements import execute_rows
from smsgw.turn import Turn, Wants

_ACCOUNTS_MAX: Final = 50_000
_MESSAGES_MAX: Final = 10_000
_UNDER_WAY: Final = frozenset({Status.SENDING, Status.SENT})


class RowCache:
    """Rows as they are on disk: accounts, and messages under way. Bounded, oldest out first."""

    def __init__(self) -> None:
        self.account_of: dict[bytes, Account] = {}
        self.accounts: OrderedDict[int, Account] = OrderedDict()
        self.messages: OrderedDict[int, Message] = OrderedDict()
        self.keys = KeyShelf()

    def keep(self, turn: Turn) -> None:
        """Remember what a committed turn left."""
        self.keys.kept()
        for account in turn.new_accounts.values():
            self.add_account(account)
        messages = self.messages
        for changes in (turn.new_messages, turn.changed_messages):
            for number, message in changes.items():
                if message.status in _UNDER_WAY:
                    messages[number] = message
                else:
                    messages.pop(number, None)
        while len(messages) > _MESSAGES_MAX:
            messages.popitem(last=False)

    def add_account(self, account: Account) -> None:
        """Remember an account."""
        if len(self.accounts) >= _ACCOUNTS_MAX:
            _, oldest = self.accounts.popitem(last=False)
            del self.account_of[oldest.id]
        self.accounts[account.number] = account
        self.account_of[account.id] = account

    def forget(self, turn: Turn) -> None:
        """Drop what a failed turn may have changed in memory."""
        for number, account in turn.accounts.items():
            self.accounts.pop(number, None)
            self.account_of.pop(account.id, None)
        for number in turn.messages:
            self.messages.pop(number, None)


def load(
    connection: sqlite3.Connection,
    sql: Mapping[str, str],
    cache: RowCache,
    turn: Turn,
    wants: Wants,
) -> None:
    """Bring into the turn what its items need, in a few set-based reads."""
    for statement, parameters in wants.asks:
        if (statement, parameters) not in turn.asked:
            rows = connection.execute(sql[statement], parameters).fetchall()
            turn.asked[statement, parameters] = rows
            if statement.startswith("message_"):
                wants.messages.update(row[0] for row in rows)
    for (route, lane), limit in wants.heads.items():
        places = connection.execute(sql["turn_heads"], (route, lane, limit)).fetchall()
        turn.heads[route, lane] = places
        wants.messages.update(place[1] for place in places)
        # A long message may have been accepted in part by an earlier attempt.
        wants.parts.update(place[1] for place in places if place[3] > 1)
    if wants.clients:
        _load_clients(connection, sql, cache, turn, wants)
    if wants.messages:
        _load_messages(connection, sql, cache, turn, wants)
    for number in wants.parts:
        turn.parts[number] = {}
    if wants.parts:
        for row in execute_rows(connection, sql["turn_parts"], [(n,) for n in wants.parts]):
            turn.parts[row[0]][row[1]] = Part(*row)
    if wants.numbers:
        _load_accounts(connection, sql, cache, turn, wants)
    if wants.keys:
        places = [
            (generation, turn.account_of[client].number, digest)
            for client, digest in wants.keys
            if client in turn.account_of
            for generation in cache.keys.places(digest)
        ]
        for row in execute_rows(connection, sql["turn_keys"], places) if places else ():
            turn.keys[row[0], row[1]] = KeyRecord(*row)
    if wants.batches:
        numbers = [(number,) for number in wants.batches]
        for row in execute_rows(connection, sql["turn_batches"], numbers):
            turn.batches[row[0]] = Batch(*row)
    for client, recipient in wants.codes:
        account = turn.account_of.get(client)
        if account is not None:
            for row in connection.execute(sql["turn_code"], (account.number, recipient)):
                turn.codes[account.number, recipient] = OtpCode(*row)


def _load_clients(
    connection: sqlite3.Connection,
    sql: Mapping[str, str],
    cache: RowCache,
    turn: Turn,
    wants: Wants,
) -> None:
    missing = []
    for identifier in wants.clients:
        account = cache.account_of.get(identifier)
        if account is None:
            missing.append((identifier,))
        else:
            turn.account_of[identifier] = turn.accounts[account.number] = account
    if missing:
        for row in execute_rows(connection, sql["turn_clients_by_id"], missing):
            account = Account(*row)
            cache.add_account(account)
            turn.account_of[account.id] = turn.accounts[account.number] = account


def _load_messages(
    connection: sqlite3.Connection,
    sql: Mapping[str, str],
    cache: RowCache,
    turn: Turn,
    wants: Wants,
) -> None:
    missing = []
    for number in wants.messages:
        message = cache.messages.get(number)
        if message is None:
            missing.append((number,))
        else:
            turn.messages[number] = message
            wants.numbers.add(message.client)
    if missing:
        for row in execute_rows(connection, sql["turn_messages"], missing):
            turn.messages[row[0]] = Message(*row)
            wants.numbers.add(row[2])


def _load_accounts(
    connection: sqlite3.Connection,
    sql: Mapping[str, str],
    cache: RowCache,
    turn: Turn,
    wants: Wants,
) -> None:
    missing = []
    for number in wants.numbers:
        if number not in turn.accounts:
            account = cache.accounts.get(number)
            if account is None:
                missing.append((number,))
            else:
                turn.accounts[number] = turn.account_of[account.id] = account
    if missing:
        for row in execute_rows(connection, sql["turn_clients_by_number"], missing):
            account = Account(*row)
            cache.add_account(account)
            turn.accounts[account.number] = turn.account_of[account.id] = account


def write(
    connection: sqlite3.Connection, sql: Mapping[str, str], cache: RowCache, turn: Turn
) -> None:
    """Write what a turn changed, one wide statement per kind of change."""

    def rows(statement: str, values: list[tuple[Any, ...]]) -> None:
        if values:
            execute_rows(connection, sql[statement], values)

    rows("turn_add_clients", [_account_row(a) for a in turn.new_accounts.values()])
    if turn.changed_accounts:
        changes = [_account_changes(a) for a in turn.changed_accounts.values()]
        connection.executemany(sql["turn_change_clients"], changes)
    rows("turn_add_messages", [_message_row(m) for m in turn.new_messages.values()])
    rows("turn_change_messages", [_message_changes(m) for m in turn.changed_messages.values()])
    rows("turn_add_entries", turn.entries)
    rows(
        "turn_set_parts",
        [
            (p.message, p.part, p.provider, p.status, p.provider_message_id)
            for p in turn.changed_parts.values()
        ],
    )
    if turn.key_generations:
        cache.keys.add(connection, turn.key_generations)
    rows(
        "turn_set_keys",
        [
            (k.generation, k.client, k.digest, k.fingerprint, k.subject, k.answer, k.credits_cents,
             k.created_at_ms)
            for k in turn.new_keys.values()
        ],
    )  # fmt: skip
    rows(
        "turn_set_batches",
        [
            (b.number, b.id, b.client, b.size, b.done, b.accepted, b.rejections, b.credits_cents)
            for b in turn.new_batches.values()
        ],
    )
    rows(
        "turn_set_codes",
        [
            (c.message, c.client, c.recipient, c.id, c.expires_at_ms, c.tries, c.used_at_ms, c.live)
            for c in turn.new_codes.values()
        ],
    )
    if turn.unqueued:
        connection.executemany(sql["turn_dequeue"], turn.unqueued.values())
    for (route, lane), places in turn.queued.items():
        rows("turn_enqueue", [(route, lane, rank, m, c, p) for rank, m, c, p in places.values()])
    rows("turn_add_timers", turn.timers)
    rows("turn_add_totals", list(turn.total_changes()))
    for statement, parameters in turn.writes:
        connection.execute(sql[statement], parameters)


def _account_row(account: Account) -> tuple[Any, ...]:
    return (
        account.number,
        account.id,
        account.slot,
        account.name,
        account.weight,
        account.created_at_ms,
        account.credits_cents,
        account.held_cents,
        account.charged_cents,
        account.sequence,
        account.waiting,
        account.paused,
    )


def _account_changes(account: Account) -> tuple[Any, ...]:
    return (
        account.number,
        account.name,
        account.weight,
        account.credits_cents,
        account.held_cents,
        account.charged_cents,
        account.sequence,
        account.waiting,
        account.paused,
    )


def _message_row(m: Message) -> tuple[Any, ...]:
    return (
        m.number, m.id, m.client, m.lane, m.status, m.reason, m.recipient, m.sender, m.text,
        m.ucs2, m.parts, m.cost_cents, m.held_cents, m.charged_cents, m.surcharge_cents,
        m.reference, m.batch, m.route, m.rank, m.attempts, m.provider, m.provider_message_id,
        m.last_error, m.due_at_ms, m.expires_at_ms, m.submit_by_ms, m.submitted_at_ms,
        m.final_at_ms, m.updated_at_ms, m.express_missed,
    )  # fmt: skip


def _message_changes(m: Message) -> tuple[Any, ...]:
    return (
        m.number, m.status, m.reason, m.held_cents, m.charged_cents, m.route, m.rank, m.attempts,
        m.provider, m.provider_message_id, m.last_error, m.due_at_ms, m.submitted_at_ms,
        m.final_at_ms, m.updated_at_ms, m.express_missed,
    )  # fmt: skip
