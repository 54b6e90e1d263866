"""What requests must be: one model a body, with strict types and no unknown fields.

The models say everything that can be said about a field alone; what depends on settings, on the
clock or on another field is judged by the routes. A ``null`` is the same as leaving a field out.
Nothing runs in Python for the usual message: the whole check happens in pydantic's core.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core import core_schema as core

UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
E164_PATTERN: Final = r"^\+[1-9][0-9]{6,14}$"
NO_NUL_PATTERN: Final = r"^[^\x00]*$"
NO_CONTROLS_PATTERN: Final = r"^[^\x00-\x1f\x7f]*$"
VISIBLE_ASCII_PATTERN: Final = "^[!-~]*$"
PATH_PATTERN: Final = r"^[^\x00]+$"

BATCH_ITEMS_MAX: Final = 100_000
"""No setting allows more; it bounds the work before the setting is looked at."""
CENTS_MAX: Final = 10**15
REFERENCE_CHARACTERS_MAX: Final = 64

CLIENT: Final = "550e8400-e29b-41d4-a716-446655440000"

_is_rfc3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
).fullmatch


def rfc3339(value: object) -> datetime:
    """The time that an RFC 3339 text with a zone stands for; a time stays what it is.

    Raises:
        ValueError: it is anything else; the sentence begins with "must".
    """
    if isinstance(value, str) and _is_rfc3339(value):
        try:
            return datetime.fromisoformat(value.upper())
        except ValueError:
            pass
    elif isinstance(value, datetime) and value.tzinfo is not None:
        return value
    raise PydanticCustomError("time", "must be a time with a zone, as in 2026-11-23T12:00:00.000Z")


def _null_is_false(value: object) -> object:
    return False if value is None else value


class _HyphenatedUuid:
    """Only the usual spelling of a UUID; pydantic alone also reads braces and ``urn:uuid:``."""

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        # Lax, so that what was read by another JSON parser, as text, passes too.
        return core.chain_schema(
            [core.str_schema(pattern=UUID_PATTERN), core.uuid_schema(strict=False)]
        )

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "format": "uuid"}


class _DocumentedAs:
    """Validated as anything, documented as a model: its items are judged one by one, later."""

    def __init__(self, schema: CoreSchema) -> None:
        self._schema = schema

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(self._schema)


class Body(BaseModel):
    """What all requests share: nothing is guessed, and no value gets into an error."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


Identifier = Annotated[UUID, _HyphenatedUuid()]
Flag = Annotated[bool, BeforeValidator(_null_is_false, json_schema_input_type=bool | None)]
Moment = Annotated[
    datetime,
    PlainValidator(
        rfc3339, json_schema_input_type=Annotated[str, Field(pattern="[Zz]|[+-]..:..$")]
    ),
    Field(json_schema_extra={"format": "date-time"}),
]

ClientId = Annotated[Identifier, Field(description="The client that sends and pays.")]
Recipient = Annotated[
    str,
    Field(
        description="The recipient in E.164 form; with `numbers.default_region` set, national "
        "forms are read too.",
        json_schema_extra={"pattern": E164_PATTERN},
    ),
]
Sender = Annotated[
    str,
    Field(
        alias="from",
        description="The sender: an E.164 number, 3 to 8 digits, or 1 to 11 GSM-7 characters "
        "with a letter.",
    ),
]
Text = Annotated[
    str,
    Field(
        description="At most `limits.parts_max` parts. NUL, ESC and lone surrogates are refused; "
        "all else is text."
    ),
]
OtpText = Annotated[
    str,
    Field(
        description="Required unless `otp`: then the default is `Your verification code is "
        "NNNNNN`, `{code}` stands for the code that we make, and a text without it is sent as it "
        "is. At most `limits.parts_max` parts; NUL, ESC and lone surrogates are refused."
    ),
]
Reference = Annotated[
    str,
    StringConstraints(max_length=REFERENCE_CHARACTERS_MAX, pattern=NO_NUL_PATTERN),
    Field(description="The client's own id: echoed, can be filtered by, means nothing to us."),
]
Validity = Annotated[
    int,
    Field(
        ge=60,
        le=604_800,
        description="Seconds after acceptance, or after `send_at`, at which a message that no "
        "operator has is `EXPIRED`. Default: `limits.validity_s`.",
    ),
]
SendAt = Annotated[
    Moment,
    Field(description="When to queue it: ahead, at most 35 days. Its cost is held at once."),
]
Express = Annotated[
    Flag,
    Field(description="Priority and a time guarantee, at a surcharge. Not together with `otp`."),
]

_MESSAGE_EXAMPLE: Final = {
    "client_id": CLIENT,
    "to": "+15005550006",
    "from": "ACME",
    "text": "Your parcel is on its way.",
    "reference": "order-17",
}


class MessageRequest(Body):
    """One message."""

    model_config = ConfigDict(json_schema_extra={"examples": [_MESSAGE_EXAMPLE]})

    client_id: ClientId
    to: Recipient
    sender: Sender
    text: OtpText | None = None
    otp: Annotated[
        Flag, Field(description="The OTP lane: delivered or refused while the caller waits.")
    ] = False
    express: Express = False
    reference: Reference | None = None
    validity_s: Validity | None = None
    send_at: SendAt | None = None


class PreviewRequest(MessageRequest):
    """A message whose price and size are wanted; nothing is stored or sent."""


class BatchItem(Body):
    """One message of a batch; ``from`` and ``text`` may be given once for the whole batch."""

    model_config = ConfigDict(
        json_schema_extra={
            "required": ["to"],
            "examples": [{"to": "+15005550006", "from": "ACME", "text": "Hello", "reference": "a"}],
        }
    )

    to: Recipient
    sender: Sender
    text: Text
    express: Express = False
    reference: Reference | None = None
    validity_s: Validity | None = None
    send_at: SendAt | None = None


_RawItem = Annotated[Any, _DocumentedAs(BatchItem.__pydantic_core_schema__)]
_RawRecipient = Annotated[Any, _DocumentedAs(core.str_schema())]


class BatchRequest(Body):
    """Many messages of one client: ``messages``, or one text for all numbers in ``to``.

    Only the envelope is checked here; ``parsing.batch_items`` judges each item by itself.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "client_id": CLIENT,
                    "from": "ACME",
                    "text": "We are open again.",
                    "messages": [
                        {"to": "+15005550006"},
                        {"to": "+15005550003", "text": "Welcome back.", "reference": "vip"},
                    ],
                },
                {
                    "client_id": CLIENT,
                    "from": "ACME",
                    "text": "We are open again.",
                    "to": ["+15005550006", "+15005550003"],
                    "all_or_nothing": True,
                },
            ]
        }
    )

    client_id: ClientId
    messages: (
        Annotated[
            list[_RawItem],
            Field(
                max_length=BATCH_ITEMS_MAX,
                description="1 to `limits.batch_messages_max` (1000) messages; this or `to`.",
                json_schema_extra={"minItems": 1},
            ),
        ]
        | None
    ) = None
    to: (
        Annotated[
            list[_RawRecipient],
            Field(
                max_length=BATCH_ITEMS_MAX,
                description="1 to `limits.batch_messages_max` (1000) recipients of one text; "
                "this or `messages`.",
                json_schema_extra={"minItems": 1},
            ),
        ]
        | None
    ) = None
    sender: Sender | None = None
    text: Text | None = None
    express: Express = False
    validity_s: Validity | None = None
    send_at: SendAt | None = None
    all_or_nothing: Annotated[
        Flag, Field(description="A single refusal refuses the whole batch.")
    ] = False


class VerifyRequest(Body):
    """A code that somebody typed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"client_id": CLIENT, "to": "+15005550006", "code": "493817"}]
        }
    )

    client_id: ClientId
    to: Recipient
    code: Annotated[
        str,
        StringConstraints(min_length=1, max_length=64, pattern=NO_NUL_PATTERN),
        Field(description="The code as it was typed."),
    ]


class CancelRequest(Body):
    """Who cancels."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"client_id": CLIENT}]})

    client_id: ClientId


class ReceiptRequest(Body):
    """What an operator reports about a message it took."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"provider_message_id": "4f1c09d2", "status": "DELIVRD"}],
        }
    )

    provider_message_id: Annotated[
        str,
        StringConstraints(min_length=1, max_length=255, pattern=NO_NUL_PATTERN),
        Field(description="The operator's own id of the message."),
    ]
    status: Annotated[
        str,
        StringConstraints(min_length=1, max_length=64, pattern=NO_NUL_PATTERN),
        Field(
            description="The operator's word, in any case. DELIVERED, DELIVRD: delivered. UNDELIV, "
            "UNDELIVERED, UNDELIVERABLE, REJECTED, REJECTD, DELETED, FAILED, FAILED_PERM: "
            "`FAILED_PERM`. EXPIRED: `EXPIRED`. All else is an event."
        ),
    ]
    reason: (
        Annotated[
            str,
            StringConstraints(max_length=255, pattern=NO_NUL_PATTERN),
            Field(description="Why, in the operator's words."),
        ]
        | None
    ) = None
    timestamp: (
        Annotated[
            str,
            StringConstraints(max_length=64, pattern=NO_NUL_PATTERN),
            Field(description="When, as the operator writes it; kept, not interpreted."),
        ]
        | None
    ) = None


# What follows is asked on the admin socket only


class ClientCreate(Body):
    """A new client."""

    name: Annotated[
        str, StringConstraints(min_length=1, max_length=200, pattern=NO_CONTROLS_PATTERN)
    ]
    id: Identifier | None = None
    credit_cents: Annotated[int, Field(ge=0, le=CENTS_MAX)] = 0
    weight: Annotated[int, Field(ge=1, le=1000)] = 1


class CreditAdjust(Body):
    """A change of a client's credit; the route says in which direction."""

    amount_cents: Annotated[int, Field(ge=1, le=CENTS_MAX)]
    note: Annotated[str, StringConstraints(max_length=200, pattern=NO_CONTROLS_PATTERN)] | None = (
        None
    )
    key: (
        Annotated[
            str, StringConstraints(min_length=1, max_length=255, pattern=VISIBLE_ASCII_PATTERN)
        ]
        | None
    ) = None


class PauseRequest(Body):
    """What to pause or resume: one client, or one operator, or everything."""

    client_id: Identifier | None = None
    provider: Annotated[str, StringConstraints(min_length=1, max_length=32)] | None = None


class BackupRequest(Body):
    """Where a backup is to be written, as the server sees its file system."""

    directory: Annotated[str, StringConstraints(max_length=4096, pattern=PATH_PATTERN)]
