"""Every public route: what it takes, what it answers, and with which errors."""

from typing import Any, Final

from smsgw.api.answers import (
    Accepted,
    BatchAnswer,
    BatchCancelled,
    Health,
    Me,
    Message,
    MessageList,
    OtpDelivered,
    Preview,
    Ready,
    Report,
    SandboxList,
    Statement,
    Verified,
)
from smsgw.api.openapi import JSON, Answer, Operation, Parameter
from smsgw.api.parsing import GROUPS, PAGE_ROWS_MAX, QUERY_TEXT_CHARACTERS_MAX, WAIT_S_MAX
from smsgw.api.schemas import (
    NO_NUL_PATTERN,
    BatchRequest,
    CancelRequest,
    MessageRequest,
    PreviewRequest,
    ReceiptRequest,
    VerifyRequest,
)
from smsgw.models import Status

_UUID: Final = {"type": "string", "format": "uuid"}
_TIME: Final = {"type": "string", "format": "date-time"}
_DAY: Final = {"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]}
_TEXT: Final = {
    "type": "string",
    "maxLength": QUERY_TEXT_CHARACTERS_MAX,
    "pattern": NO_NUL_PATTERN,
}


def _query(
    name: str, schema: dict[str, Any], description: str, *, required: bool = False
) -> Parameter:
    return Parameter(name, "query", schema, description, required)


_OPERATOR: Final = Parameter("name", "path", {"type": "string"}, "The operator.", required=True)
_CLIENT_ID: Final = _query("client_id", _UUID, "Whose.", required=True)
_MESSAGE_ID: Final = Parameter("id", "path", _UUID, "The message's id.", required=True)
_WAIT: Final = {"type": "number", "minimum": 0, "maximum": WAIT_S_MAX}
_PAGE: Final = (
    _query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": PAGE_ROWS_MAX, "default": 50},
        "How many rows.",
    ),
    _query(
        "cursor",
        {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
        "Where to go on: the `next_cursor` of the page before.",
    ),
)
_KEY: Final = Parameter(
    "Idempotency-Key",
    "header",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "Makes a repeat harmless: with the same key and body the first answer comes again, for "
    "`limits.idempotency_s`, without a second message. Surrounding quotes are no part of it.",
)
_REQUEST_ID: Final = Parameter(
    "X-Request-ID",
    "header",
    {"type": "string"},
    "Comes back with the answer and stands in our log, if it is 1 to 128 visible ASCII characters.",
)

_STORED: Final = ("storage_unavailable",)
_WRITTEN: Final = (*_STORED, "too_many_requests")
_JUDGED: Final = (
    "invalid_recipient",
    "invalid_sender",
    "text_too_long",
    "conflicting_options",
    "unknown_client",
)
_PAID: Final = (
    *_JUDGED,
    *_WRITTEN,
    "insufficient_credits",
    "backlog_full",
    "express_guarantee_unavailable",
    "idempotency_in_progress",
    "idempotency_mismatch",
)


def operations(*, dev: bool) -> tuple[Operation, ...]:
    """All public operations.

    Args:
        dev: with those of the sandbox; and the mock operator's receipts need no token.
    """
    return (
        *_MESSAGES,
        *_OTP,
        *_ACCOUNT,
        _receipts(dev=dev),
        *(_receipts_of_token(method) for method in ("GET", "POST")),
        *_GATEWAY,
        *(_SANDBOX if dev else ()),
    )


_MESSAGES: Final = (
    Operation(
        method="POST",
        path="/v1/messages",
        name="sendMessage",
        tag="Messages",
        summary="Send a message",
        description="Regular and express messages are answered once they and the hold of their "
        "cost are on disk. An OTP (`otp`) is answered once the operator, or the handset, has "
        "confirmed it, or after `otp.deadline_ms` with `otp_undeliverable`: then it was not "
        "charged and is never sent later by us. For express, `submit_by` is the moment by which "
        "an operator has the message, guaranteed; where that cannot be kept, "
        "`express_guarantee_unavailable` says so at once.",
        request=MessageRequest,
        parameters=(_KEY, _REQUEST_ID),
        answers={
            200: Answer("An OTP was confirmed.", OtpDelivered),
            202: Answer("The message is on disk, and its cost is held.", Accepted),
        },
        problems=(*_PAID, "otp_undeliverable"),
    ),
    Operation(
        method="GET",
        path="/v1/messages",
        name="listMessages",
        tag="Messages",
        summary="List messages",
        description="Newest first, without events. Stable while messages arrive: no row comes "
        "twice, none is skipped.",
        parameters=(
            _CLIENT_ID,
            _query("status", {"type": "string", "enum": list(Status.__members__)}, "Only these."),
            _query("to", _TEXT, "Only to this recipient."),
            _query("reference", _TEXT, "Only with this reference."),
            _query("batch_id", _UUID, "Only of this batch."),
            _query("since", _TIME, "Only those accepted at this time or later."),
            _query("until", _TIME, "Only those accepted before this time."),
            *_PAGE,
        ),
        answers={200: Answer("A page of messages.", MessageList)},
        problems=(*_STORED, "invalid_recipient", "unknown_client"),
    ),
    Operation(
        method="POST",
        path="/v1/messages/batch",
        name="sendBatch",
        tag="Messages",
        summary="Send many messages",
        description="Each item is judged by itself, by the credit left at its turn; a bad item, "
        "also one with an unknown field or `otp`, is a rejected item. Where nothing is accepted "
        "the answer is 402, if every rejection is for credit, or else 400, both with `results`. "
        "With `all_or_nothing` one refusal refuses all, naming the item's `index`.",
        request=BatchRequest,
        parameters=(_KEY, _REQUEST_ID),
        answers={202: Answer("At least one item was accepted.", BatchAnswer)},
        problems=_PAID,
    ),
    Operation(
        method="POST",
        path="/v1/messages/preview",
        name="previewMessage",
        tag="Messages",
        summary="See size and price",
        description="Takes what `POST /v1/messages` takes; nothing is stored or sent.",
        request=PreviewRequest,
        answers={200: Answer("What the message would be.", Preview)},
        problems=(*_JUDGED, *_WRITTEN),
    ),
    Operation(
        method="GET",
        path="/v1/messages/{id}",
        name="getMessage",
        tag="Messages",
        summary="Look at a message",
        description="With its events. The code in an OTP is masked.",
        parameters=(
            _MESSAGE_ID,
            _query("client_id", _UUID, "If given, a message of another client is not found."),
            _query("wait_s", _WAIT, "Wait so many seconds for a final status."),
        ),
        answers={200: Answer("The message.", Message)},
        problems=(*_STORED, "invalid_id", "unknown_client", "unknown_message"),
    ),
    Operation(
        method="POST",
        path="/v1/messages/{id}/cancel",
        name="cancelMessage",
        tag="Messages",
        summary="Cancel a message",
        description="While it is `QUEUED`, `SCHEDULED` or `FAILED_TEMP`; its cost is released.",
        request=CancelRequest,
        parameters=(_MESSAGE_ID,),
        answers={200: Answer("The message, cancelled.", Message)},
        problems=(*_WRITTEN, "invalid_id", "unknown_client", "unknown_message", "not_cancellable"),
    ),
    Operation(
        method="POST",
        path="/v1/batches/{batch_id}/cancel",
        name="cancelBatch",
        tag="Messages",
        summary="Cancel a batch",
        description="All of its messages that still can be.",
        request=CancelRequest,
        parameters=(Parameter("batch_id", "path", _UUID, "The batch's id.", required=True),),
        answers={200: Answer("How many were, and how many were not.", BatchCancelled)},
        problems=(*_WRITTEN, "invalid_id", "unknown_client", "unknown_message"),
    ),
)

_OTP: Final = (
    Operation(
        method="POST",
        path="/v1/otp/verify",
        name="verifyCode",
        tag="OTP",
        summary="Check a code",
        description="Against the newest live code of this client and number; a code can be used "
        "once, and guessed at `otp.tries_max` times within `otp.valid_s`.",
        request=VerifyRequest,
        answers={200: Answer("Whether it was the code.", Verified)},
        problems=(*_WRITTEN, "invalid_recipient", "unknown_client", "no_live_code"),
    ),
)

_ACCOUNT: Final = (
    Operation(
        method="GET",
        path="/v1/me",
        name="getAccount",
        tag="Account",
        summary="Look at the credit",
        description="What is available, what is on hold, and what was captured in all.",
        parameters=(_CLIENT_ID,),
        answers={200: Answer("The client and its money.", Me)},
        problems=(*_STORED, "unknown_client"),
    ),
    Operation(
        method="GET",
        path="/v1/me/statement",
        name="getStatement",
        tag="Account",
        summary="Look at the ledger",
        description="Newest first. `amount` adds up to the credit, `held` to what is on hold.",
        parameters=(_CLIENT_ID, *_PAGE),
        answers={200: Answer("A page of entries.", Statement)},
        problems=(*_STORED, "unknown_client"),
    ),
    Operation(
        method="GET",
        path="/v1/reports",
        name="getReport",
        tag="Account",
        summary="Totals",
        description="By day, status or sender; by default of the last 30 days. With "
        "`Accept: text/csv` the same as CSV, the totals last.",
        parameters=(
            _CLIENT_ID,
            _query("since", _DAY, "The first day, in UTC."),
            _query("until", _DAY, "The last day, in UTC."),
            _query(
                "group_by",
                {"type": "string", "enum": list(GROUPS), "default": GROUPS[0]},
                "What each row stands for.",
            ),
        ),
        answers={200: Answer("The totals.", Report, other=("text/csv",))},
        problems=(*_STORED, "unknown_client"),
    ),
)


def _receipts(*, dev: bool) -> Operation:
    token: dict[str, list[str]] = {"receiptToken": []}
    return Operation(
        method="POST",
        path="/v1/providers/{name}/dlr",
        name="takeReceipt",
        tag="Operators",
        summary="Report a delivery",
        description="For operators. Also taken for an id that is not known yet: it is kept and "
        "matched later. There is no such route for an operator without a `receipt_token`.",
        request=ReceiptRequest,
        parameters=(_OPERATOR,),
        security=(token, {}) if dev else (token,),
        answers={204: Answer("The receipt is on disk.")},
        problems=(*_WRITTEN, "invalid_token", "unknown_route"),
    )


def _receipts_of_token(method: str) -> Operation:
    return Operation(
        method=method,
        path="/v1/providers/{name}/dlr/{token}",
        name="takeReceiptOfToken" if method == "POST" else "takeReceiptInQuery",
        tag="Operators",
        summary="Report a delivery, with the token in the path",
        description="For operators that set no headers. The fields stand in the query, in a form "
        "or in JSON; where the operator's settings name them (`receipt_id`, `receipt_status`, "
        "`receipt_reason`), under those names. Without any field nothing happens.",
        parameters=(
            _OPERATOR,
            Parameter("token", "path", {"type": "string"}, "Its `receipt_token`.", required=True),
            _query("provider_message_id", _TEXT, "The operator's own id of the message."),
            _query("status", {**_TEXT, "maxLength": 64}, "As in the body of the other route."),
            _query("reason", _TEXT, "Why, in the operator's words."),
        ),
        answers={
            204: Answer("The receipt is on disk."),
            200: Answer(
                "The same, for an operator that wants to read `receipt_answer`.",
                other=("text/plain",),
            ),
        },
        problems=(*_WRITTEN, "invalid_token", "unknown_route"),
    )


def _page(path: str, name: str, summary: str, media_type: str) -> Operation:
    return Operation(
        method="GET",
        path=path,
        name=name,
        tag="Gateway",
        summary=summary,
        description="",
        answers={200: Answer(summary, other=(media_type,))},
    )


_GATEWAY: Final = (
    Operation(
        method="GET",
        path="/health",
        name="getHealth",
        tag="Gateway",
        summary="Whether the process answers",
        description="",
        answers={200: Answer("It does.", Health)},
    ),
    Operation(
        method="GET",
        path="/ready",
        name="getReadiness",
        tag="Gateway",
        summary="Whether messages are taken and can be sent",
        description="Not while no shard works or no operator is usable.",
        answers={200: Answer("They are, perhaps with restrictions.", Ready)},
        problems=("not_ready",),
    ),
    _page("/metrics", "getMetrics", "Figures for Prometheus", "text/plain"),
    _page("/openapi.json", "getDescription", "This description", JSON),
    _page("/docs", "getDocs", "A page that shows this description", "text/html"),
)

_SANDBOX: Final = (
    Operation(
        method="GET",
        path="/v1/sandbox/messages",
        name="listSandbox",
        tag="Sandbox",
        summary="What the mock operator's handsets received",
        description="Newest first, at most 500.",
        parameters=(
            _query("to", _TEXT, "Only to this recipient."),
            _query("wait_s", _WAIT, "Wait so many seconds for one that matches."),
        ),
        answers={200: Answer("The messages.", SandboxList)},
    ),
    Operation(
        method="DELETE",
        path="/v1/sandbox/messages",
        name="clearSandbox",
        tag="Sandbox",
        summary="Forget what was received",
        description="",
        answers={204: Answer("Nothing is there any more.")},
    ),
)
