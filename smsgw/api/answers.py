"""What answers say: one typed dictionary a body.

Routes build answers by hand, because that is fast; mypy, the API pages and the tests hold them to
these types. A member that is not required is left out where there is nothing to say.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, NotRequired

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, StringConstraints, with_config
from pydantic.config import JsonDict
from pydantic_core import CoreSchema
from pydantic_core import core_schema as core
from typing_extensions import TypedDict

from smsgw.api.problems import PROBLEMS, TYPE_PREFIX
from smsgw.api.schemas import E164_PATTERN, EXAMPLE_CLIENT, UUID_PATTERN
from smsgw.models import EntryKind, Reason, Status

_MESSAGE: Final = "019ac0f2-6e80-7d3a-8000-5a1be0f4c27d"
_BATCH: Final = "019ac0f2-6e80-7d3a-8000-5b77d13a9e02"
_NOW: Final = "2026-11-23T12:00:00.000Z"


class _OneOf:
    """A text that is one of a few words; a plain text for mypy, since words come from rows."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = list(words)

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core.literal_schema(self._words)


StatusName = Annotated[str, _OneOf(Status.__members__)]
ReasonWord = Annotated[str, _OneOf(Reason)]
EntryWord = Annotated[str, _OneOf(name.lower() for name in EntryKind.__members__)]
Waiting = Annotated[str, _OneOf(("QUEUED", "SCHEDULED"))]
Encoding = Annotated[str, _OneOf(("GSM-7", "UCS-2"))]
Id = Annotated[
    str, StringConstraints(pattern=UUID_PATTERN), Field(json_schema_extra={"format": "uuid"})
]
Time = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z$"),
    Field(json_schema_extra={"format": "date-time"}),
]
Number = Annotated[str, StringConstraints(pattern=E164_PATTERN)]
Cents = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Parts = Annotated[int, Field(ge=1)]
Available = Annotated[int, Field(ge=0, description="Available credit in cents, after this.")]
SubmitBy = Annotated[
    Time, Field(description="Express: by then, guaranteed, the message is with an operator.")
]


def _closed(*examples: dict[str, Any]) -> ConfigDict:
    """The configuration of an answer that has no members but its own."""
    extra: JsonDict = {"examples": list(examples)} if examples else {}
    return ConfigDict(extra="forbid", strict=True, json_schema_extra=extra)


_ACCEPTED: Final = {
    "message_id": _MESSAGE,
    "status": "QUEUED",
    "parts": 1,
    "encoding": "GSM-7",
    "cost": 5,
}


@with_config(_closed(_ACCEPTED | {"credits": 499_995, "reference": "order-17"}))
class Accepted(TypedDict):
    """The message is on disk, and its cost is held."""

    message_id: Id
    status: Waiting
    parts: Parts
    encoding: Encoding
    cost: Cents
    credits: Available
    reference: NotRequired[str]
    submit_by: NotRequired[SubmitBy]


@with_config(
    _closed(
        _ACCEPTED
        | {
            "status": "SENT",
            "credits": 499_990,
            "confirmed_by": "operator",
            "otp_code": "493817",
            "expires_at": "2026-11-23T12:05:00.000Z",
        }
    )
)
class OtpDelivered(TypedDict):
    """An OTP that the operator, or the handset, has confirmed."""

    message_id: Id
    status: Annotated[str, _OneOf(("SENT", "DELIVERED"))]
    confirmed_by: Annotated[str, _OneOf(("operator", "handset"))]
    otp_code: NotRequired[
        Annotated[
            str | None,
            Field(description="The code, if we made it; null once it was used or has expired."),
        ]
    ]
    expires_at: NotRequired[Time]
    parts: Parts
    encoding: Encoding
    cost: Cents
    credits: Available
    reference: NotRequired[str]


@with_config(_closed(_ACCEPTED))
class BatchAccepted(TypedDict):
    """An item of a batch that was accepted."""

    message_id: Id
    status: Waiting
    parts: Parts
    encoding: Encoding
    cost: Cents
    reference: NotRequired[str]
    submit_by: NotRequired[SubmitBy]


_REJECTED: Final = {"error": "to is required.", "code": "invalid_request"}


@with_config(_closed(_REJECTED))
class BatchRejected(TypedDict):
    """An item of a batch that was not accepted."""

    error: str
    code: str


@with_config(
    _closed(
        {
            "batch_id": _BATCH,
            "accepted": 1,
            "rejected": 1,
            "credits": 499_995,
            "results": [_ACCEPTED, _REJECTED],
        }
    )
)
class BatchAnswer(TypedDict):
    """What became of a batch of which at least one item was accepted."""

    batch_id: Id
    accepted: Annotated[int, Field(ge=1)]
    rejected: Count
    credits: Available
    results: Annotated[
        list[BatchAccepted | BatchRejected], Field(description="One for each item, in order.")
    ]


@with_config(_closed({"at": _NOW, "kind": "accepted", "detail": None}))
class Event(TypedDict):
    """Something that happened to a message."""

    at: Time
    kind: str
    detail: str | None


# "from" is no name in Python, hence this spelling.
_Message = TypedDict(
    "_Message",
    {
        "id": Id,
        "client_id": Id,
        "to": Number,
        "from": str,
        "text": Annotated[
            str | None,
            Field(description="Codes in an OTP are masked; null once it was purged by age."),
        ],
        "encoding": Encoding,
        "parts": Parts,
        "status": StatusName,
        "reason": Annotated[ReasonWord | None, Field(description="Why it ended so.")],
        "cost": Annotated[int, Field(ge=0, description="Cents, fixed and held at acceptance.")],
        "charged": Annotated[int, Field(ge=0, description="Cents that were captured.")],
        "otp": bool,
        "express": bool,
        "reference": str | None,
        "batch_id": Id | None,
        "provider": str | None,
        "provider_message_id": str | None,
        "attempts": Annotated[int, Field(ge=0, description="Submits to an operator.")],
        "last_error": str | None,
        "created_at": Time,
        "updated_at": Time,
        "send_at": Annotated[
            Time | None, Field(description="While it is `SCHEDULED`: until when.")
        ],
        "submitted_at": Time | None,
        "final_at": Time | None,
        "submit_by": SubmitBy | None,
        "express_missed": Annotated[
            bool, Field(description="Handed over after `submit_by`; the surcharge was paid back.")
        ],
    },
)
_ROW: Final = {
    "id": _MESSAGE,
    "client_id": EXAMPLE_CLIENT,
    "to": "+15005550006",
    "from": "ACME",
    "text": "Your parcel is on its way.",
    "encoding": "GSM-7",
    "parts": 1,
    "status": "DELIVERED",
    "reason": None,
    "cost": 5,
    "charged": 5,
    "otp": False,
    "express": False,
    "reference": "order-17",
    "batch_id": None,
    "provider": "mock",
    "provider_message_id": "4f1c09d2",
    "attempts": 1,
    "last_error": None,
    "created_at": _NOW,
    "updated_at": "2026-11-23T12:00:00.120Z",
    "send_at": None,
    "submitted_at": "2026-11-23T12:00:00.015Z",
    "final_at": "2026-11-23T12:00:00.120Z",
    "submit_by": None,
    "express_missed": False,
}


@with_config(_closed(_ROW))
class MessageRow(_Message):
    """A message, without its events."""


@with_config(
    _closed(_ROW | {"events": [{"at": _NOW, "kind": "accepted", "detail": None}]}),
)
class Message(_Message):
    """A message."""

    events: Annotated[list[Event], Field(description="What happened, oldest first.")]


NextCursor = Annotated[
    str | None,
    StringConstraints(pattern="^[A-Za-z0-9_-]+$"),
    Field(description="Give it as `cursor` to go on; null at the end."),
]


@with_config(_closed())
class MessageList(TypedDict):
    """Messages, newest first."""

    data: list[MessageRow]
    next_cursor: NextCursor


@with_config(_closed({"cancelled": 40, "left": 2}))
class BatchCancelled(TypedDict):
    """How many messages of a batch were cancelled, and how many no longer could be."""

    cancelled: Count
    left: Count


@with_config(
    _closed({"encoding": "GSM-7", "parts": 1, "characters": 26, "cost": 5, "to": "+15005550006"})
)
class Preview(TypedDict):
    """What a message would be."""

    encoding: Encoding
    parts: Parts
    characters: Annotated[int, Field(ge=0, description="As a reader counts them.")]
    cost: Cents
    to: Number


@with_config(_closed({"verified": True, "message_id": _MESSAGE, "attempts_left": 4}))
class Verified(TypedDict):
    """Whether it was the code."""

    verified: bool
    message_id: NotRequired[Id]
    attempts_left: Count


@with_config(
    _closed(
        {
            "id": EXAMPLE_CLIENT,
            "name": "Demo",
            "credits": 499_995,
            "held": 5,
            "charged": 0,
            "created_at": _NOW,
        }
    )
)
class Me(TypedDict):
    """A client and its money, in cents."""

    id: Id
    name: str
    credits: Annotated[int, Field(ge=0, description="Available.")]
    held: Annotated[int, Field(ge=0, description="On hold for messages under way.")]
    charged: Annotated[int, Field(ge=0, description="Captured in all.")]
    created_at: Time


@with_config(
    _closed(
        {
            "id": _BATCH,
            "at": _NOW,
            "kind": "hold",
            "amount": -5,
            "held": 5,
            "balance_after": 499_995,
            "message_id": _MESSAGE,
        }
    )
)
class StatementEntry(TypedDict):
    """One entry of the ledger, in cents."""

    id: Id
    at: Time
    kind: EntryWord
    amount: Annotated[int, Field(description="The signed effect on `credits`.")]
    held: Annotated[int, Field(description="The signed effect on `held`.")]
    balance_after: Cents
    message_id: NotRequired[Id]
    note: NotRequired[str]


@with_config(_closed())
class Statement(TypedDict):
    """Ledger entries, newest first."""

    data: list[StatementEntry]
    next_cursor: NextCursor


class _Sums(TypedDict):
    messages: Count
    parts: Count
    held: Cents
    charged: Cents
    released: Cents
    delivered_share: Annotated[float, Field(ge=0, le=1, description="Of the messages.")]


_SUMS: Final = {
    "messages": 2,
    "parts": 3,
    "held": 0,
    "charged": 10,
    "released": 5,
    "delivered_share": 0.5,
}


@with_config(_closed({"key": "2026-11-23"} | _SUMS))
class ReportRow(_Sums):
    """The totals of one day, status or sender."""

    key: str


@with_config(_closed(_SUMS))
class ReportTotals(_Sums):
    """The totals of all rows."""


@with_config(_closed())
class Report(TypedDict):
    """Totals by day, status or sender."""

    data: list[ReportRow]
    totals: ReportTotals


@with_config(_closed({"status": "ok"}))
class Health(TypedDict):
    """The process answers."""

    status: Annotated[str, _OneOf(("ok",))]


@with_config(_closed({"status": "ready", "degraded": []}))
class Ready(TypedDict):
    """Messages are taken and sent."""

    status: Annotated[str, _OneOf(("ready",))]
    degraded: Annotated[list[str], Field(description="What does not work, or is paused.")]


_SandboxMessage = TypedDict(
    "_SandboxMessage",
    {
        "message_id": Id,
        "to": Number,
        "from": str,
        "text": str,
        "parts": Parts,
        "received_at": Time,
    },
)


@with_config(_closed())
class SandboxMessage(_SandboxMessage):
    """A message that a handset of the mock operator has received."""


@with_config(_closed())
class SandboxList(TypedDict):
    """What the handsets of the mock operator have received, newest first."""

    data: list[SandboxMessage]
    next_cursor: NextCursor


@with_config(_closed())
class Client(Me):
    """A client as those see it who run the gateway."""

    weight: Annotated[int, Field(ge=1, description="Its share of the operators.")]
    paused: bool
    waiting: Annotated[int, Field(ge=0, description="Messages that wait to be sent.")]


@with_config(_closed())
class ClientList(TypedDict):
    """Clients."""

    data: list[Client]
    next_cursor: NextCursor


@with_config(_closed({"field": "to", "message": "is required"}))
class WrongField(TypedDict):
    """A field of the request and what is wrong with it."""

    field: str
    message: str


PUBLIC_CODES: Final = tuple(code for code in PROBLEMS if code != "already_exists")


@with_config(
    ConfigDict(
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "type": TYPE_PREFIX + "insufficient_credits",
                    "title": PROBLEMS["insufficient_credits"][1],
                    "status": 402,
                    "detail": "The client's available credit does not cover this.",
                    "code": "insufficient_credits",
                    "error": "The client's available credit does not cover this.",
                    "required": 5,
                    "credits": 0,
                }
            ]
        },
    )
)
class Problem(TypedDict):
    """An error (RFC 9457). Programs go by ``code``; further members may be added."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: Annotated[str, Field(description="A sentence for people.")]
    code: Annotated[str, _OneOf(PUBLIC_CODES)]
    error: Annotated[str, Field(description="The same sentence.")]
    fields: NotRequired[Annotated[list[WrongField], Field(description="`invalid_request`")]]
    required: NotRequired[Annotated[int, Field(description="`insufficient_credits`: cents")]]
    credits: NotRequired[Annotated[int, Field(description="`insufficient_credits`: cents")]]
    message_id: NotRequired[Annotated[Id, Field(description="`otp_undeliverable`")]]
    submitted: NotRequired[
        Annotated[
            bool, Field(description="`otp_undeliverable`: whether bytes left for an operator")
        ]
    ]
    reason: NotRequired[Annotated[str, Field(description="`otp_undeliverable`: why")]]
    outcome: NotRequired[
        Annotated[str, _OneOf(("none", "unknown")), Field(description="Whether anything happened.")]
    ]
    index: NotRequired[
        Annotated[int, Field(ge=0, description="Of the item that refused the whole batch.")]
    ]
    accepted: NotRequired[Annotated[int, Field(description="Of a batch: 0")]]
    rejected: NotRequired[Annotated[int, Field(description="Of a batch: all")]]
    results: NotRequired[
        Annotated[list[BatchRejected], Field(description="Of a batch with nothing accepted.")]
    ]
