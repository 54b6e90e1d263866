"""Log lines: one JSON object a line, that tell what was done and never what was written.

Use ``log = logs.get(__name__)`` and ``log.info("shard.opened", "A shard is open.", shard=3)``: a
word for programs, a sentence for people, and fields. A line never holds a text, a code or a whole
number: fields with such names are left out, numbers keep their last four digits, and of an error
only those messages are kept that are known to repeat no input. So never put a text into a sentence,
and call the code of an error ``error_code``.
"""

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from enum import Enum
from pathlib import PurePath
from typing import Final, TextIO
from uuid import UUID

from smsgw.clock import rfc3339
from smsgw.errors import SmsgwError

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
message_id: Final[ContextVar[str]] = ContextVar("message_id", default="")

FIELDS_LEFT_OUT: Final = frozenset(
    {"authorization", "body", "code", "otp_code", "password", "receipt_token", "text", "token"}
)
FIELDS_OF_NUMBERS: Final = frozenset({"from", "number", "recipient", "sender", "to"})

FRAMES_MAX: Final = 30
ERRORS_MAX: Final = 10

# A plus, also as it looks in a URL, and digits of any script.
_E164: Final = re.compile(r"(?:\+|%2[Bb])\d{7,}")
_DIGITS: Final = re.compile(r"\+?\d{7,}")
# asyncio writes the whole error into its sentence about a task that nobody awaited.
_ERROR_IN_A_TASK: Final = re.compile(r"(exception=\w+)\(.*", re.DOTALL)

# Their messages name types, files, tables and our own sentences, not what somebody sent.
_ERRORS_WITHOUT_INPUT: Final = (
    SmsgwError,
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    OSError,
    TypeError,
)
_MODULES_WITHOUT_INPUT: Final = frozenset({"sqlite3", "pysqlite3"})


class Log:
    """A named logger whose lines have an action, a sentence and fields.

    An exception given as the field ``error`` is told with its traceback.
    """

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, action: str, sentence: str, /, **fields: object) -> None:
        """Say what only a developer wants to know."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._write(logging.DEBUG, action, sentence, fields)

    def info(self, action: str, sentence: str, /, **fields: object) -> None:
        """Say what happened in the ordinary run of things."""
        if self._logger.isEnabledFor(logging.INFO):
            self._write(logging.INFO, action, sentence, fields)

    def warning(self, action: str, sentence: str, /, **fields: object) -> None:
        """Say what somebody should look at when there is time."""
        if self._logger.isEnabledFor(logging.WARNING):
            self._write(logging.WARNING, action, sentence, fields)

    def error(self, action: str, sentence: str, /, **fields: object) -> None:
        """Say what somebody must look at now."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._write(logging.ERROR, action, sentence, fields)

    def _write(self, level: int, action: str, sentence: str, fields: dict[str, object]) -> None:
        error = fields.get("error")
        if isinstance(error, BaseException):
            del fields["error"]
        else:
            error = None
        extra = {"action": action, "fields": fields}
        self._logger.log(level, sentence, exc_info=error, extra=extra)


def get(name: str) -> Log:
    """Return the log of a module; call it with ``__name__``."""
    return Log(logging.getLogger(name))


def setup(level: str, stream: TextIO | None = None) -> None:
    """Send every line of the process, uvicorn's included, to one stream as JSON.

    Start uvicorn with ``log_config=None``, or it puts its own handlers back.

    Args:
        level: debug, info, warning or error.
        stream: standard error by default.
    """
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for other in root.handlers[:]:
        root.removeHandler(other)
    root.addHandler(handler)
    own_level = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("smsgw").setLevel(own_level)
    # Libraries tell too much at DEBUG: aiosqlite repeats the parameters of every statement.
    root.setLevel(max(own_level, logging.INFO))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        # Without any handler uvicorn does not even build its access lines, which hold numbers.
        logger.propagate = name != "uvicorn.access"


class JsonFormatter(logging.Formatter):
    """Makes one line of JSON from a record, without what does not belong in a log."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, in ASCII and without its newline."""
        line: dict[str, object] = {
            "at": rfc3339(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if action := getattr(record, "action", None):
            line["action"] = action
        line["message"] = _masked(_ERROR_IN_A_TASK.sub(r"\1", record.getMessage()))
        for name, value in _kept(getattr(record, "fields", {})).items():
            line[f"{name}_" if name in line else name] = value
        for variable in (request_id, message_id):
            if identity := variable.get():
                line.setdefault(variable.name, _masked(identity))
        if record.exc_info and record.exc_info[1]:
            line["exception"] = _masked("".join(_story_of(record.exc_info[1], set())))
        return json.dumps(line)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Lose a line that cannot be written: the usual report of that would print it unmasked."""


def _masked(text: str, numbers: re.Pattern[str] = _E164) -> str:
    return numbers.sub(lambda number: "*" * (len(number[0]) - 4) + number[0][-4:], text)


def _kept(fields: Mapping[object, object]) -> dict[str, object]:
    return {
        _masked(name): _safe(name, value)
        for name, value in ((str(key), value) for key, value in fields.items())
        if name.lower() not in FIELDS_LEFT_OUT
    }


def _safe(name: str, value: object) -> object:
    """Return what a field may show; of an object of unknown kind that is its kind only."""
    if isinstance(value, Mapping):
        return _kept(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(name, item) for item in value]
    if name.lower() in FIELDS_OF_NUMBERS and isinstance(value, str | int):
        return _masked(str(value), _DIGITS)
    if isinstance(value, str | UUID | PurePath):
        return _masked(str(value))
    if isinstance(value, BaseException):
        return _masked(_last_line_of(value))
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, int | float) else f"<{type(value).__name__}>"


def _story_of(error: BaseException, told: set[int]) -> list[str]:
    """Tell an error and what led to it, oldest first, as Python does but without its notes."""
    if id(error) in told or len(told) == ERRORS_MAX:
        return []
    told.add(id(error))
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    story = _story_of(earlier, told) if earlier else []
    story += traceback.format_tb(error.__traceback__, limit=-FRAMES_MAX)
    story.append(f"{_last_line_of(error)}\n")
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            story += _story_of(inner, told)
    return story


def _last_line_of(error: BaseException) -> str:
    """Return an error's kind, and its message if that kind is known to repeat no input."""
    kind = type(error)
    known = isinstance(error, _ERRORS_WITHOUT_INPUT)
    if known or kind.__module__.partition(".")[0] in _MODULES_WITHOUT_INPUT:
        return f"{kind.__qualname__}: {error}"
    return kind.__qualname__
