"""What requests say: one model a body.

They are strict: nothing is guessed, and no field is unknown. The models say everything that can be
said about a field alone; what depends on settings, on the clock or on another field is judged by
the routes. A ``null`` is the same as leaving a field out. For the usual message nothing of this
runs in Python: the whole check happens in pydantic's core.
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
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core import core_schema as core

UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
E164_PATTERN: Final = r"^\+[1-9][0-9]{6,14}$"
NO_NUL_PATTERN: Final = r"^[^\x00]*$"
NO_CONTROLS_PATTERN: Final = r"^[^\x00-\x1f\x7f]*$"
VISIBLE_ASCII_PATTERN: Final = "^[!-~]*$"

BATCH_ITEMS_MAX: Final = 100_000
"""No setting allows more: it bounds the work before the setting is looked at."""
TIME_ERROR: Final = "time_with_zone"
CENTS_MAX: Final = 10**15
REFERENCE_CHARACTERS_MAX: Final = 64

EXAMPLE_CLIENT: Final = "550e8400-e29b-41d4-a716-446655440000"

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
    raise PydanticCustomError(
        TIME_ERROR, "must be a time with a zone, as in 2026-11-23T12:00:00.000Z"
    )


def _null_is(default: bool | int) -> BeforeValidator:
    """Read null as the default; it costs nothing where a field is left out."""
    return BeforeValidator(
        lambda value: default if value is None else value,
        json_schema_input_type=type(default) | None,
    )


def _without_ceiling(schema: JsonDict) -> None:
    """Leave out of the API pages what a setting narrows anyway."""
    del schema["maxItems"]


class _HyphenatedUuid:
    """Only the usual spelling of a UUID; pydantic alone also reads braces and ``urn:uuid:``."""

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        # Lax, so that what another JSON parser has read, as text, passes too.
        return core.chain_schema(
            [core.str_schema(pattern=UUID_PATTERN), core.uuid_schema(strict=False)]
        )

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "format": "uuid"}


class _DocumentedAs:
    """Validated as anything but documented as a type: each item is judged by itself, later."""

    def __init__(self, documented: type) -> None:
        self._documented = documented

    def __get_pydantic_core_schema__(
        self, _source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        self._schema = handler.generate_schema(self._documented)
        return core.any_schema()

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(self._schema)


def _example(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(examples)})


def _number_as_text(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


class Body(BaseModel):
    """What all requests share; no value gets into an error."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


Identifier = Annotated[UUID, _HyphenatedUuid()]
Flag = Annotated[bool, _null_is(False)]
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
    Field(description="An E.164 number, 3 to 8 digits, or 1 to 11 GSM-7 characters with a letter."),
]
Text = Annotated[
    str,
    Field(
        description="At most `limits.parts_max` parts. NUL, ESC and lone surrogates are refused.",
        json_schema_extra={"minLength": 1},
    ),
]
OtpText = Annotated[
    str,
    Field(
        description="At most `limits.parts_max` parts. NUL, ESC and lone surrogates are refused. "
        "Required unless `otp`: then the default is `Your verification code is NNNNNN`, `{code}` "
        "stands for the code that we make, and a text without it is sent as it is.",
        json_schema_extra={"minLength": 1},
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
    datetime,
    PlainValidator(rfc3339, json_schema_input_type=str),
    Field(
        description="When to queue it: in the future, at most 35 days ahead.",
        json_schema_extra={"format": "date-time"},
    ),
]
Express = Annotated[
    Flag,
    Field(description="Priority and a time guarantee, at a surcharge."),
]


class MessageRequest(Body):
    """One message."""

    model_config = _example(
        {
            "client_id": EXAMPLE_CLIENT,
            "to": "+15005550006",
            "from": "ACME",
            "text": "Your parcel is on its way.",
            "reference": "order-17",
        }
    )

    client_id: ClientId
    to: Recipient
    sender: Annotated[Sender, Field(alias="from")]
    text: OtpText | None = None
    otp: Annotated[
        Flag,
        Field(
            description="The OTP lane: delivered or refused while the caller waits. Not together "
            "with `express` or `send_at`."
        ),
    ] = False
    express: Express = False
    reference: Reference | None = None
    validity_s: Validity | None = None
    send_at: SendAt | None = None


class PreviewRequest(MessageRequest):
    """A message of which only size and price are wanted; nothing is stored or sent."""


class BatchItem(Body):
    """One message of a batch; what was given for the whole batch may be left out."""

    model_config = ConfigDict(
        json_schema_extra={
            "required": ["to"],
            "examples": [{"to": "+15005550006", "from": "ACME", "text": "Hello", "reference": "a"}],
        }
    )

    to: Recipient
    sender: Annotated[Sender, Field(alias="from")]
    text: Text
    express: Express = False
    reference: Reference | None = None
    validity_s: Validity | None = None
    send_at: SendAt | None = None


_Items = Field(
    min_length=1,
    max_length=BATCH_ITEMS_MAX,
    description="1 to `limits.batch_messages_max` (1000); either `messages`, or `to` for one text "
    "to many.",
    json_schema_extra=_without_ceiling,
)
_RawItems = Annotated[list[Annotated[Any, _DocumentedAs(BatchItem)]], _Items]
_RawRecipients = Annotated[list[Annotated[Any, _DocumentedAs(str)]], _Items]


class BatchRequest(Body):
    """Many messages of one client; all but ``client_id`` and the items are defaults for them."""

    # Of the items nothing is checked here: parsing.batch_items judges each by itself.

    model_config = _example(
        {
            "client_id": EXAMPLE_CLIENT,
            "from": "ACME",
            "text": "We are open again.",
            "messages": [
                {"to": "+15005550006"},
                {"to": "+15005550003", "text": "Welcome back.", "reference": "vip"},
            ],
        },
        {
            "client_id": EXAMPLE_CLIENT,
            "from": "ACME",
            "text": "We are open again.",
            "to": ["+15005550006", "+15005550003"],
            "all_or_nothing": True,
        },
    )

    client_id: ClientId
    messages: _RawItems | None = None
    to: _RawRecipients | None = None
    sender: Annotated[Sender | None, Field(alias="from")] = None
    text: Text | None = None
    express: Express = False
    validity_s: Validity | None = None
    send_at: SendAt | None = None
    all_or_nothing: Annotated[
        Flag, Field(description="A single refusal refuses the whole batch.")
    ] = False


class VerifyRequest(Body):
    """A code that somebody typed."""

    model_config = _example({"client_id": EXAMPLE_CLIENT, "to": "+15005550006", "code": "493817"})

    client_id: ClientId
    to: Recipient
    code: Annotated[
        str,
        StringConstraints(min_length=1, max_length=64, pattern=NO_NUL_PATTERN),
        Field(description="The code as it was typed."),
    ]


class CancelRequest(Body):
    """Whose message, or batch, is to be cancelled."""

    model_config = _example({"client_id": EXAMPLE_CLIENT})

    client_id: ClientId


class ReceiptRequest(Body):
    """What an operator reports about a message that it took."""

    model_config = _example({"provider_message_id": "4f1c09d2", "status": "DELIVRD"})

    provider_message_id: Annotated[
        str,
        StringConstraints(min_length=1, max_length=255, pattern=NO_NUL_PATTERN),
        Field(description="The operator's own id of the message."),
    ]
    status: Annotated[
        str,
        StringConstraints(min_length=1, max_length=64, pattern=NO_NUL_PATTERN),
        Field(
            description="In any case. Delivered: DELIVERED, DELIVRD. `FAILED_PERM`: UNDELIV, "
            "UNDELIVERED, UNDELIVERABLE, REJECTED, REJECTD, DELETED, FAILED, FAILED_PERM. "
            "`EXPIRED`: EXPIRED. All else is an event."
        ),
    ]
    reason: Annotated[
        Annotated[str, StringConstraints(max_length=255, pattern=NO_NUL_PATTERN)] | None,
        Field(description="Why, in the operator's words."),
    ] = None
    timestamp: Annotated[
        Annotated[str, StringConstraints(max_length=64, pattern=NO_NUL_PATTERN)] | None,
        BeforeValidator(_number_as_text, json_schema_input_type=str | float | None),
        Field(description="When, as the operator writes it."),
    ] = None


# Asked on the admin socket only


class ClientCreate(Body):
    """A new client."""

    name: Annotated[
        str, StringConstraints(min_length=1, max_length=200, pattern=NO_CONTROLS_PATTERN)
    ]
    id: Identifier | None = None
    credit_cents: Annotated[int, _null_is(0), Field(ge=0, le=CENTS_MAX)] = 0
    weight: Annotated[int, _null_is(1), Field(ge=1, le=1000)] = 1


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


class ProviderTest(Body):
    """What to test an operator with: one SMS, or with nothing only its connections."""

    to: Recipient | None = None
    sender: Annotated[Sender | None, Field(alias="from")] = None
    text: Text | None = None


class PauseRequest(Body):
    """What to pause or to resume: one client, one operator, or with neither everything."""

    client_id: Identifier | None = None
    provider: Annotated[str, StringConstraints(min_length=1, max_length=32)] | None = None


class BackupRequest(Body):
    """Where a backup goes."""

    directory: Annotated[
        str, StringConstraints(min_length=1, max_length=4096, pattern=NO_NUL_PATTERN)
    ]
