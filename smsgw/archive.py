"""What is read of the past: messages, lists, statements, reports. Nothing here writes."""

import asyncio
import base64
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from smsgw.clock import rfc3339
from smsgw.errors import InvalidRequest, UnknownClient, UnknownMessage
from smsgw.ids import NUMBER_MAX, created_at_ms, number_at, number_of
from smsgw.lifecycle import status_name
from smsgw.models import Account, Batch, Message, Status
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards

SCAN_MAX: Final = 5_000
SCANS_MAX: Final = 8
_FRESH_MARGIN_MS: Final = 60_000
_DAY_MS: Final = 86_400_000


@dataclass(slots=True, frozen=True)
class Filters:
    """Which of a client's messages to list; ``since_ms`` is inclusive, ``until_ms`` is not."""

    status: Status | None = None
    recipient: int | None = None
    reference: str | None = None
    batch: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None


@dataclass(slots=True)
class ReportRow:
    """One line of a report, in cents."""

    key: str
    messages: int = 0
    parts: int = 0
    held: int = 0
    charged: int = 0
    released: int = 0
    delivered: int = 0

    def add(self, row: tuple[int, ...], *, delivered: bool) -> None:
        """Add (messages, parts, cost, held, charged)."""
        messages, parts, cost, held, charged = row
        self.messages += messages
        self.parts += parts
        self.held += held
        self.charged += charged
        self.released += cost - held - charged
        self.delivered += messages if delivered else 0


class Archive:
    """Reads from every shard."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def account(self, client_id: bytes) -> Account:
        """A client.

        Raises:
            UnknownClient: there is none.
        """
        rows = await self._shards.of_client(client_id).store.read("client_by_id", client_id)
        if not rows:
            raise UnknownClient
        return Account(*rows[0])

    async def clients(self) -> list[Account]:
        """All clients, oldest first."""
        found: list[Account] = []
        for shard in self._shards:
            found += [Account(*row) for row in await shard.store.read("clients_list")]
        return sorted(found, key=lambda account: (account.created_at_ms, account.id))

    async def message(self, identifier: bytes, client_id: bytes | None = None) -> Message:
        """A message; of that client, where one is given.

        Raises:
            UnknownMessage: there is none.
        """
        shard = self._shards.of_message(identifier)
        message = await self.find(shard, number_of(identifier))
        if message is None or message.id != identifier:
            raise UnknownMessage
        if client_id is not None and (await self.owner(message)).id != client_id:
            raise UnknownMessage
        return message

    async def find(self, shard: Shard, number: int | None) -> Message | None:
        """A message by its number."""
        if number is None:
            return None
        rows = await shard.store.read("get_message", number)
        return Message(*rows[0]) if rows else None

    async def owner(self, message: Message) -> Account:
        """Whose message it is."""
        shard = self._shards.of_message(message.id)
        rows = await shard.store.read("client_by_number", message.client)
        return Account(*rows[0])

    async def events(self, message: Message) -> list[tuple[int, str, str | None]]:
        """What happened to a message, oldest first: (when, kind, detail)."""
        shard = self._shards.of_message(message.id)
        found = [(message.created_at_ms, "accepted", None), *_milestones(message)]
        found += await shard.store.read("get_events", message.number)
        return sorted(found, key=lambda event: event[0])

    async def wait_final(self, identifier: bytes, wait_s: float) -> None:
        """Return once a message is final, or the time is over."""
        shard = self._shards.of_message(identifier)
        number = number_of(identifier)
        if number is None:
            return
        watch = shard.watch(number)
        try:
            async with asyncio.timeout(wait_s):
                message = await self.find(shard, number)
                if message is not None and not message.is_final:
                    await watch
        except TimeoutError:
            pass
        finally:
            shard.unwatch(number, watch)

    async def batch(self, client_id: bytes, number: int) -> Batch:
        """A client's batch.

        Raises:
            UnknownMessage: there is none.
        """
        account = await self.account(client_id)
        rows = await self._shards.of_client(client_id).store.read("get_batch", number)
        if not rows or rows[0][2] != account.number:
            raise UnknownMessage("There is no such batch.")
        return Batch(*rows[0])

    async def batch_messages(self, client_id: bytes, number: int) -> list[Message]:
        """The messages of a batch, in its order."""
        shard = self._shards.of_client(client_id)
        return [Message(*row) for row in await shard.store.read("get_batch_messages", number)]

    async def messages(
        self, client_id: bytes, filters: Filters, limit: int, cursor: str | None
    ) -> tuple[list[Message], str | None]:
        """A page of a client's messages, newest first, and where the next one begins.

        Raises:
            UnknownClient: there is no such client.
            InvalidRequest: the cursor is not one of ours.
        """
        account = await self.account(client_id)
        store = self._shards.of_client(client_id).store
        statement, given = _indexed(filters)
        before = _read_cursor(cursor, statement)
        since = number_at(filters.since_ms) if filters.since_ms is not None else 0
        until = number_at(filters.until_ms) if filters.until_ms is not None else NUMBER_MAX
        status = None if filters.status is None else int(filters.status)
        if statement == "list_messages":
            return await self._by_scan(account, before, limit, (status, since, until))
        key, *others = given
        rows = await store.read(
            statement, account.number, key, min(before, until), since, status, *others, limit + 1
        )
        return _page(rows, limit, statement)

    async def _by_scan(
        self, account: Account, before: int, limit: int, filters: tuple[int | None, int, int]
    ) -> tuple[list[Message], str | None]:
        """Go down the client's holds, a bounded stretch at a time."""
        store = self._shards.of_client(account.id).store
        _, since, _ = filters
        rows: list[tuple[Any, ...]] = []
        for _ in range(SCANS_MAX):
            scan = await store.read("list_scan", account.number, before, SCAN_MAX)
            lowest, count, oldest_ms = scan[0]
            if not count:
                return _page(rows, limit, "list_messages")
            rows += await store.read(
                "list_messages", account.number, before, lowest, *filters, limit + 1 - len(rows)
            )
            if len(rows) > limit or oldest_ms < created_at_ms(since) - _FRESH_MARGIN_MS:
                return _page(rows, limit, "list_messages")
            before = lowest
        messages, _ = _page(rows, limit, "list_messages")
        return messages, _write_cursor(before, "list_messages")

    async def statement(
        self, client_id: bytes, limit: int, cursor: str | None
    ) -> tuple[list[tuple[Any, ...]], str | None]:
        """A page of a client's ledger entries, newest first.

        Returns:
            Rows of (sequence, kind, when, amount, held, balance after, message id, note), and
            where the next page begins.

        Raises:
            UnknownClient: there is no such client.
            InvalidRequest: the cursor is not one of ours.
        """
        account = await self.account(client_id)
        before = _read_cursor(cursor, "statement_page")
        store = self._shards.of_client(client_id).store
        rows = await store.read("statement_page", account.number, before, limit + 1)
        following = (
            _write_cursor(rows[limit - 1][0], "statement_page") if len(rows) > limit else None
        )
        return rows[:limit], following

    async def report(
        self, client_id: bytes, first_day: int, last_day: int, group_by: str
    ) -> tuple[list[ReportRow], ReportRow]:
        """A client's messages by day, status or sender, and the totals.

        Args:
            client_id: whose.
            first_day: days since 1970-01-01, inclusive.
            last_day: likewise.
            group_by: ``day``, ``status`` or ``sender``.

        Raises:
            UnknownClient: there is no such client.
        """
        account = await self.account(client_id)
        store = self._shards.of_client(client_id).store
        rows = await store.report(account.number, first_day, last_day)
        groups: defaultdict[Any, ReportRow] = defaultdict(lambda: ReportRow(""))
        totals = ReportRow("total")
        for day, source, status, *amounts in rows:
            key = {"day": day, "status": status, "sender": source}[group_by]
            for row in (groups[key], totals):
                row.add(tuple(amounts), delivered=status == Status.DELIVERED)
        found = []
        for key in sorted(groups):
            groups[key].key = _key_text(key, group_by)
            if groups[key].messages:
                found.append(groups[key])
        return found, totals


def _key_text(key: Any, group_by: str) -> str:
    if group_by == "day":
        return day_text(key)
    return status_name(key) if group_by == "status" else str(key)


def day_text(day: int) -> str:
    """A day, counted from 1970-01-01, as RFC 3339 writes it."""
    return rfc3339(day * _DAY_MS)[:10]


def _milestones(message: Message) -> Iterable[tuple[int, str, str | None]]:
    if message.submitted_at_ms is not None:
        yield (message.submitted_at_ms, "submitted", message.provider)
    if message.final_at_ms is not None:
        yield (message.final_at_ms, status_name(message.status).lower(), message.reason)


def _indexed(filters: Filters) -> tuple[str, tuple[Any, ...]]:
    """The statement whose index fits the filters best, with what it needs of them."""
    if filters.recipient is not None:
        return "list_by_recipient", (filters.recipient, filters.reference, filters.batch)
    if filters.reference is not None:
        return "list_by_reference", (filters.reference, filters.batch)
    if filters.batch is not None:
        return "list_by_batch", (filters.batch,)
    return "list_messages", ()


def _page(
    rows: list[tuple[Any, ...]], limit: int, statement: str
) -> tuple[list[Message], str | None]:
    following = _write_cursor(rows[limit - 1][0], statement) if len(rows) > limit else None
    return [Message(*row[1:]) for row in rows[:limit]], following


def _write_cursor(before: int, statement: str) -> str:
    text = f"{_CURSOR_KINDS.index(statement)}.{before}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None, statement: str) -> int:
    if cursor is None:
        return NUMBER_MAX
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        before = text.partition(".")[2]
        number = int(before[:20]) if before.isascii() and before.isdigit() else -1
        # Written again it must be the same: so there is one spelling of each, and of this list.
        if 0 <= number <= NUMBER_MAX and _write_cursor(number, statement) == cursor:
            return number
    except ValueError:
        pass
    message = "is not a cursor of this list"
    raise InvalidRequest(f"cursor {message}.", fields=[{"field": "cursor", "message": message}])


_CURSOR_KINDS: Final = (
    "list_messages",
    "list_by_recipient",
    "list_by_reference",
    "list_by_batch",
    "statement_page",
)
