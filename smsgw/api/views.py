"""What the gateway's nouns look like on the wire."""

from typing import Any, Final

from smsgw.admission import Accepted
from smsgw.api.wire import to_text
from smsgw.archive import ReportRow
from smsgw.clock import rfc3339
from smsgw.ids import uuid_text
from smsgw.lifecycle import status_name
from smsgw.models import Account, EntryKind, Lane, Message
from smsgw.providers.mock import Handset

_ENTRY_NAMES: Final = {int(kind): kind.name.lower() for kind in EntryKind}


def encoding(message: Message) -> str:
    """The alphabet a message is sent in."""
    return "UCS-2" if message.ucs2 else "GSM-7"


def time_or_none(ms: int | None) -> str | None:
    """A time on the wire, where there is one."""
    return None if ms is None else rfc3339(ms)


def accepted(answer: Accepted) -> dict[str, Any]:
    """The 202 of a message."""
    message = answer.message
    view: dict[str, Any] = {
        "message_id": uuid_text(message.id),
        "status": "SCHEDULED" if answer.scheduled else "QUEUED",
        "parts": message.parts,
        "encoding": "UCS-2" if message.ucs2 else "GSM-7",
        "cost": message.cost_cents,
        "credits": answer.credits_cents,
    }
    if message.reference is not None:
        view["reference"] = message.reference
    if message.submit_by_ms is not None:
        view["submit_by"] = rfc3339(message.submit_by_ms)
    return view


def accepted_json(answer: Accepted) -> bytes:
    """The same as JSON, put together by hand: it is the answer that every message gets."""
    message = answer.message
    status = "SCHEDULED" if answer.scheduled else "QUEUED"
    more = ""
    if message.reference is not None:
        more = f',"reference":{to_text(message.reference)}'
    if message.submit_by_ms is not None:
        more += f',"submit_by":"{rfc3339(message.submit_by_ms)}"'
    return (
        f'{{"message_id":"{uuid_text(message.id)}","status":"{status}","parts":{message.parts}'
        f',"encoding":"{encoding(message)}","cost":{message.cost_cents},"credits":{answer.credits_cents}'
        f"{more}}}"
    ).encode("utf-8", "backslashreplace")


def batch_item(message: Message, *, scheduled: bool) -> dict[str, Any]:
    """An accepted item of a batch."""
    view: dict[str, Any] = {
        "message_id": uuid_text(message.id),
        "status": "SCHEDULED" if scheduled else "QUEUED",
        "parts": message.parts,
        "encoding": encoding(message),
        "cost": message.cost_cents,
    }
    if message.reference is not None:
        view["reference"] = message.reference
    if message.submit_by_ms is not None:
        view["submit_by"] = rfc3339(message.submit_by_ms)
    return view


def message(row: Message, client_id: bytes, batch_id: bytes | None) -> dict[str, Any]:
    """A message without its events."""
    return {
        "id": uuid_text(row.id),
        "client_id": uuid_text(client_id),
        "to": f"+{row.recipient}",
        "from": row.sender,
        "text": row.text,
        "encoding": encoding(row),
        "parts": row.parts,
        "status": status_name(row.status),
        "reason": row.reason,
        "cost": row.cost_cents,
        "charged": row.charged_cents,
        "otp": row.lane == Lane.OTP,
        "express": row.lane == Lane.EXPRESS,
        "reference": row.reference,
        "batch_id": None if batch_id is None else uuid_text(batch_id),
        "provider": row.provider,
        "provider_message_id": row.provider_message_id,
        "attempts": row.attempts,
        "last_error": row.last_error,
        "created_at": rfc3339(row.created_at_ms),
        "updated_at": rfc3339(row.updated_at_ms),
        "send_at": time_or_none(row.due_at_ms) if row.status == 0 else None,
        "submitted_at": time_or_none(row.submitted_at_ms),
        "final_at": time_or_none(row.final_at_ms),
        "submit_by": time_or_none(row.submit_by_ms),
        "express_missed": bool(row.express_missed),
    }


def events(rows: list[tuple[int, str, str | None]]) -> list[dict[str, Any]]:
    """A message's events."""
    return [{"at": rfc3339(at_ms), "kind": kind, "detail": detail} for at_ms, kind, detail in rows]


def account(row: Account) -> dict[str, Any]:
    """A client, as it sees itself."""
    return {
        "id": uuid_text(row.id),
        "name": row.name,
        "credits": row.credits_cents,
        "held": row.held_cents,
        "charged": row.charged_cents,
        "created_at": rfc3339(row.created_at_ms),
    }


def client(row: Account) -> dict[str, Any]:
    """A client, as the gateway's operator sees it."""
    return {
        **account(row),
        "weight": row.weight,
        "paused": bool(row.paused),
        "waiting": row.waiting,
    }


def entry(row: tuple[Any, ...], identifier: str) -> dict[str, Any]:
    """A ledger entry."""
    _, kind, at_ms, amount, held, balance, message_id, note = row
    view = {
        "id": identifier,
        "at": rfc3339(at_ms),
        "kind": _ENTRY_NAMES[kind],
        "amount": amount,
        "held": held,
        "balance_after": balance,
    }
    if message_id is not None:
        view["message_id"] = uuid_text(message_id)
    if note is not None:
        view["note"] = note
    return view


def report_row(row: ReportRow) -> dict[str, Any]:
    """A line of a report."""
    share = row.delivered / row.messages if row.messages else 0.0
    return {
        "key": row.key,
        "messages": row.messages,
        "parts": row.parts,
        "held": row.held,
        "charged": row.charged,
        "released": row.released,
        "delivered_share": round(share, 4),
    }


def handset(row: Handset) -> dict[str, Any]:
    """What a handset received."""
    return {
        "message_id": row.message_id,
        "to": row.to,
        "from": row.sender,
        "text": row.text,
        "parts": row.parts,
        "received_at": rfc3339(row.received_at_ms),
    }
