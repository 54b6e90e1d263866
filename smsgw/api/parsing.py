"""From bytes to requests: whatever comes in, out comes a model or a refusal that names the field.

Refusals never repeat a value: it may be a text or a code, and answers end up in logs.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from smsgw.api.schemas import (
    NO_CONTROLS_PATTERN,
    NO_NUL_PATTERN,
    TIME_ERROR,
    UUID_PATTERN,
    VISIBLE_ASCII_PATTERN,
    BatchItem,
    BatchRequest,
    rfc3339,
)
from smsgw.clock import day_of
from smsgw.errors import InvalidId, InvalidRequest, MalformedRequest
from smsgw.models import Status

FIELDS_MAX: Final = 20
"""How many wrong fields a refusal names; a body can hold thousands."""
FIELD_CHARACTERS_MAX: Final = 64
ERRORS_MAX: Final = 100
"""How many wrong fields are looked at: telling about one takes longer than finding it."""
QUERY_TEXT_CHARACTERS_MAX: Final = 255
PAGE_ROWS_MAX: Final = 500
WAIT_S_MAX: Final = 60.0
GROUPS: Final = ("day", "status", "sender")

Model = TypeVar("Model", bound=BaseModel)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

_find_surrogate = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}").search
_replace_surrogates = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}").sub
_is_uuid = re.compile(UUID_PATTERN[1:-1]).fullmatch
_is_integer = re.compile(r"[0-9]{1,18}").fullmatch
_is_date = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch
_is_decimal = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?").fullmatch

_TOO_MANY_ERROR: Final = "too_many_errors"
_OUR_ERRORS: Final = frozenset({TIME_ERROR, _TOO_MANY_ERROR})
_SAYS: Final = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this request",
    "string_type": "must be a string",
    "string_unicode": "must not contain lone surrogates (U+D800 to U+DFFF)",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} items",
    "model_type": "must be a JSON object",
}
_PATTERN_SAYS: Final = {
    UUID_PATTERN: "must be a UUID",
    NO_NUL_PATTERN: "must not contain NUL (U+0000)",
    NO_CONTROLS_PATTERN: "must not contain control characters",
    VISIBLE_ASCII_PATTERN: "must be visible ASCII characters",
}


def parse(model: type[Model], body: bytes) -> Model:
    """Read a body as a request.

    Raises:
        MalformedRequest: it is not JSON in UTF-8, or nested too deeply.
        InvalidRequest: it is, but not such a request; names the fields.
    """
    try:
        # What model_validate_json calls, without the quarter of the time that goes around it.
        request: Model = model.__pydantic_validator__.validate_json(body)
    except ValidationError as failure:
        errors = _errors(failure)
    else:
        return request
    # Out here, so that the failure, which holds the body, does not travel with the refusal.
    if errors[0]["type"] != "json_invalid":
        raise _refusal(errors)
    if _find_surrogate(body):
        return _validated(model, _with_surrogates(body))
    if not body.strip():
        raise MalformedRequest("The body is empty; it must be a JSON object.")
    raise MalformedRequest(f"The body is not valid JSON: {errors[0]['ctx']['error']}.")


def _with_surrogates(body: bytes) -> object:
    r"""What a body says that may hold lone surrogates, such as ``"\ud83d"``.

    They are JSON, so the field or the item of a batch that holds one is to be named; but pydantic's
    parser takes them for broken JSON.

    Raises:
        MalformedRequest: it is broken in another way.
    """
    try:
        # Settles all else: json never meets nesting or digits without end.
        from_json(_replace_surrogates(rb"\\u003f", body))
        return json.loads(body)
    except ValueError:
        raise MalformedRequest("The body is not valid JSON.") from None


def _validated(model: type[Model], content: object) -> Model:
    try:
        request: Model = model.__pydantic_validator__.validate_python(content)
    except ValidationError as failure:
        errors = _errors(failure)
    else:
        return request
    raise _refusal(errors)


def batch_items(batch: BatchRequest, items_max: int) -> list[BatchItem | InvalidRequest]:
    """Judge each item of a batch by itself, filling in what was said for all of them.

    Args:
        batch: the envelope.
        items_max: how many items are allowed.

    Raises:
        InvalidRequest: it has both ``messages`` and ``to``, or neither, or too many items.
    """
    if batch.messages is not None and batch.to is not None:
        raise wrong_field("to", "must not be given together with messages")
    if batch.messages is not None:
        name, raw_items = "messages", batch.messages
    elif batch.to is not None:
        name, raw_items = "to", [{"to": recipient} for recipient in batch.to]
    else:
        raise wrong_field("messages", "is required, or to")
    if len(raw_items) > items_max:
        raise wrong_field(name, f"must have at most {items_max} items")
    defaults = {
        "from": batch.sender,
        "text": batch.text,
        "express": batch.express or None,
        "validity_s": batch.validity_s,
        "send_at": batch.send_at,
    }
    defaults = {field: value for field, value in defaults.items() if value is not None}
    return [_batch_item(raw, defaults) for raw in raw_items]


def _batch_item(raw: Any, defaults: Mapping[str, Any]) -> BatchItem | InvalidRequest:
    if defaults and isinstance(raw, dict):
        given = raw
        if None in raw.values():
            given = {
                field: value
                for field, value in raw.items()
                if value is not None or field not in defaults
            }
        raw = {**defaults, **given}
    try:
        return _validated(BatchItem, raw)
    except InvalidRequest as refusal:
        return refusal


def wrong_field(field: str, says: str) -> InvalidRequest:
    """The refusal of a request for one field; ``says`` follows its name in a sentence."""
    return InvalidRequest(f"{field} {says}.", fields=[{"field": field, "message": says}])


def _errors(failure: ValidationError) -> Sequence[ErrorDetails]:
    if failure.error_count() > ERRORS_MAX:
        says = f"has more than {ERRORS_MAX} wrong fields"
        return [ErrorDetails(type=_TOO_MANY_ERROR, loc=(), msg=says, input=None)]
    return failure.errors(include_url=False, include_input=False)


def _refusal(errors: Sequence[ErrorDetails]) -> InvalidRequest:
    fields = [{"field": _field_of(error), "message": _says(error)} for error in errors[:FIELDS_MAX]]
    return InvalidRequest("{field} {message}.".format_map(fields[0]), fields=fields)


def _field_of(error: ErrorDetails) -> str:
    return ".".join(str(step) for step in error["loc"])[:FIELD_CHARACTERS_MAX] or "body"


def _says(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _OUR_ERRORS:
        return error["msg"]
    if kind == "string_pattern_mismatch":
        says: str = _PATTERN_SAYS[context["pattern"]]
        return says
    return _SAYS.get(kind, "is not valid").format_map(context)


def uuid_in_path(text: str) -> bytes:
    """The 16 bytes of an id in a path.

    Raises:
        InvalidId: it is not a UUID.
    """
    if not _is_uuid(text):
        raise InvalidId
    return UUID(text).bytes


def unix_ms(moment: datetime) -> int:
    """The Unix millisecond that a moment lies in, exactly, which a float would not be."""
    return (moment - _EPOCH) // _MILLISECOND


def query(query_string: bytes, allowed: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Read a query string; parameters that were not given are not in the result.

    Args:
        query_string: as it was sent.
        allowed: for each parameter a function, one of ``reads``, that reads its value.

    Raises:
        InvalidRequest: a parameter is unknown, repeated, or not what it must be.
    """
    given: dict[str, Any] = {}
    if not query_string:
        return given
    for pair in query_string.split(b"&"):
        if not pair:
            continue
        raw_name, _, raw_value = pair.partition(b"=")
        name = _unquoted(raw_name) or ""
        if name not in allowed:
            shown = name[:FIELD_CHARACTERS_MAX]
            raise wrong_field(shown, "is not a parameter of this request")
        if name in given:
            raise wrong_field(name, "must be given only once")
        value = _unquoted(raw_value)
        if value is None:
            raise wrong_field(name, "must be UTF-8")
        try:
            given[name] = allowed[name](value)
        except ValueError as refusal:
            raise wrong_field(name, str(refusal)) from None
    return given


def _unquoted(raw: bytes) -> str | None:
    try:
        return unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        return None


class Reads:
    """How values in a query string are read; each raises a ValueError that begins with "must"."""

    @staticmethod
    def uuid(text: str) -> bytes:
        """The 16 bytes of a UUID."""
        if not _is_uuid(text):
            raise ValueError(_PATTERN_SAYS[UUID_PATTERN])
        return UUID(text).bytes

    @staticmethod
    def text(text: str) -> str:
        """Any text without NUL, at most 255 characters long."""
        if "\x00" in text:
            raise ValueError(_PATTERN_SAYS[NO_NUL_PATTERN])
        if len(text) > QUERY_TEXT_CHARACTERS_MAX:
            raise ValueError(f"must have at most {QUERY_TEXT_CHARACTERS_MAX} characters")
        return text

    @staticmethod
    def number(text: str) -> str:
        """A phone number, not judged; a plus that was not encoded has come as a space."""
        return Reads.text(f"+{text[1:]}" if text.startswith(" ") else text)

    @staticmethod
    def time_ms(text: str) -> int:
        """The Unix millisecond of an RFC 3339 time."""
        # The plus of a zone, too, comes as a space where it was not encoded.
        return unix_ms(rfc3339(text.replace(" ", "+")))

    @staticmethod
    def day(text: str) -> int:
        """The day, counted from 1970-01-01, of a date or of an RFC 3339 time, in UTC."""
        return day_of(Reads.time_ms(f"{text}T00:00:00Z" if _is_date(text) else text))

    @staticmethod
    def wait_s(text: str) -> float:
        """Seconds to wait, 0 to 60."""
        seconds = float(text) if _is_decimal(text) else -1.0
        if not 0 <= seconds <= WAIT_S_MAX:
            raise ValueError(f"must be a number from 0 to {WAIT_S_MAX:g}")
        return seconds

    @staticmethod
    def limit(text: str) -> int:
        """How many rows a page has, 1 to 500."""
        rows = int(text) if _is_integer(text) else 0
        if not 1 <= rows <= PAGE_ROWS_MAX:
            raise ValueError(f"must be an integer from 1 to {PAGE_ROWS_MAX}")
        return rows

    @staticmethod
    def status(text: str) -> str:
        """The name of a message's status."""
        return _one_of(text, Status.__members__)

    @staticmethod
    def group_by(text: str) -> str:
        """What a report has a line for."""
        return _one_of(text, GROUPS)


def _one_of(text: str, words: Collection[str]) -> str:
    if text not in words:
        raise ValueError(f"must be one of {', '.join(words)}")
    return text


reads: Final = Reads()
