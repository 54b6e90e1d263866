import asyncio
import gc
import io
import json
import logging
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uvicorn
from pydantic import BaseModel, SecretStr

from smsgw import logs
from smsgw.errors import InsufficientCredits, StoreError

NUMBER = "+15005550006"
CANARY = "canary-text"
CODE = "482913"
ROUTED = ("", "smsgw", "uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access")

log = logs.get("smsgw.somewhere")


class Written(io.StringIO):
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def line(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line


@pytest.fixture
def loggers_put_back() -> Iterator[None]:
    before = [
        (logger, logger.handlers[:], logger.level, logger.propagate)
        for logger in map(logging.getLogger, ROUTED)
    ]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture
def written(loggers_put_back: None) -> Written:
    stream = Written()
    logs.setup("debug", stream)
    return stream


def raised(work: Callable[[], object]) -> BaseException:
    try:
        work()
    except BaseException as error:
        return error
    raise AssertionError


# The line


def test_a_line_is_json_with_a_time_a_word_a_sentence_and_fields(written: Written) -> None:
    log.info("shard.opened", "A shard is open.", shard=3, seconds=0.25, path=None)
    line = written.line()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("at"))
    assert line == {
        "level": "info",
        "logger": "smsgw.somewhere",
        "action": "shard.opened",
        "message": "A shard is open.",
        "shard": 3,
        "seconds": 0.25,
        "path": None,
    }


def test_the_time_of_a_line_is_that_of_its_record() -> None:
    record = logging.makeLogRecord({"created": 1_780_000_000.1239, "levelname": "INFO"})
    line = json.loads(logs.JsonFormatter().format(record))
    assert line["at"] == "2026-05-28T20:26:40.123Z"


def test_each_level_has_its_word(written: Written) -> None:
    for write in (log.debug, log.info, log.warning, log.error):
        write("a.b", "A sentence.")
    assert [line["level"] for line in written.lines()] == ["debug", "info", "warning", "error"]


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("error", 1)])
def test_lines_below_the_level_are_not_written(
    loggers_put_back: None, level: str, count: int
) -> None:
    stream = Written()
    logs.setup(level, stream)
    for write in (log.debug, log.info, log.warning, log.error):
        write("a.b", "A sentence.")
    assert len(stream.lines()) == count


def test_setting_up_again_replaces_the_stream(written: Written) -> None:
    again = Written()
    logs.setup("info", again)
    log.info("a.b", "A sentence.")
    assert not written.lines()
    assert len(again.lines()) == 1


def test_standard_error_is_the_default(
    loggers_put_back: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.setup("info")
    log.info("a.b", "A sentence.")
    out, err = capsys.readouterr()
    assert not out
    assert json.loads(err)["action"] == "a.b"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028", "\x85", "\x00", "\ud800", "\x1b[2J"])
def test_nothing_can_begin_a_line_of_its_own(
    written: Written, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    ours = [h for h in root.handlers if getattr(h, "stream", None) is written]
    # What pytest keeps of it could not be passed on to another process.
    with monkeypatch.context() as only:
        only.setattr(root, "handlers", ours)
        log.info("a.b", f"One{end}two %s {{}}", field=f"{end}{{", **{f"name{end}": 1})
    text = written.getvalue()
    assert text.count("\n") == 1
    assert text.isascii()
    line = written.line()
    assert line["message"] == f"One{end}two %s {{}}"
    assert line["field"] == f"{end}{{"


def test_the_request_and_the_message_are_named_when_known(written: Written) -> None:
    request = logs.request_id.set("r-1")
    message = logs.message_id.set("m-1")
    log.info("a.b", "Both.")
    log.info("a.b", "One named here.", message_id="m-2")
    logs.request_id.reset(request)
    logs.message_id.reset(message)
    log.info("a.b", "None.")
    both, here, none = written.lines()
    assert (both["request_id"], both["message_id"]) == ("r-1", "m-1")
    assert (here["request_id"], here["message_id"]) == ("r-1", "m-2")
    assert not {"request_id", "message_id"} & set(none)


def test_a_field_cannot_take_the_place_of_the_line_s_own(written: Written) -> None:
    log.info("a.b", "A sentence.", level="x", action="y", message="z")
    line = written.line()
    assert (line["level"], line["action"], line["message"]) == ("info", "a.b", "A sentence.")
    assert (line["level_"], line["action_"], line["message_"]) == ("x", "y", "z")


def test_an_error_that_is_no_exception_is_a_field(written: Written) -> None:
    log.warning("a.b", "A sentence.", error="timeout")
    assert written.line()["error"] == "timeout"
    assert "exception" not in written.line()


class Colour(IntEnum):
    RED = 1


class Form(BaseModel):
    text: str


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, True),
        (2**70, 2**70),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Colour.RED, "RED"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("/a/b"), "/a/b"),
        ({"b": (1, {2})}, {"b": [1, [2]]}),
        (b"bytes", "<bytes>"),
        (SecretStr(CANARY), "<SecretStr>"),
        (Form(text=CANARY), "<Form>"),
        (StoreError("In use."), "StoreError: In use."),
        (ValueError(CANARY), "ValueError"),
    ],
)
def test_a_field_shows_plain_values_and_of_others_only_their_kind(
    written: Written, value: object, shown: object
) -> None:
    log.info("a.b", "A sentence.", field=value)
    assert written.line()["field"] == shown


def test_a_stream_that_breaks_breaks_nothing_else(
    loggers_put_back: None, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = Written()
    logs.setup("info", stream)
    stream.close()
    log.info("a.b", "A sentence.", number=NUMBER)
    assert capsys.readouterr() == ("", "")


# What is never in a line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"to {NUMBER}.", "to ********0006."),
        ("+1234567", "****4567"),
        ("+123456", "+123456"),
        ("+1234567890123456789", "****************6789"),
        ("/x?to=%2B15005550006&a=1", "/x?to=**********0006&a=1"),
        ("+989121234567,+15005550006", "*********4567,********0006"),
        ("+۹۸۹۱۲۱۲۳۴۵۶۷", "*********۴۵۶۷"),
        ("2026-11-23T12:00:00+00:00", "2026-11-23T12:00:00+00:00"),
        ("01934567-1234-7890-8123-123456789012", "01934567-1234-7890-8123-123456789012"),
    ],
)
def test_numbers_keep_their_last_four_digits_everywhere(
    written: Written, text: str, shown: str
) -> None:
    log.info("a.b", text, field=text, deep=[{"x": {text}}], **{text: 1})
    logging.getLogger("library").warning("It said %s", text)
    ours, theirs = written.lines()
    assert ours["message"] == ours["field"] == ours["deep"][0]["x"][0] == shown
    assert ours[shown] == 1
    assert theirs["message"] == f"It said {shown}"


def test_fields_of_numbers_are_masked_without_a_plus_too(written: Written) -> None:
    fields = {"to": ["00989121234567", 989121234567, "Shop"], "from": "30001234", "number": 12}
    log.info("a.b", "A sentence.", **fields)
    line = written.line()
    assert line["to"] == ["**********4567", "********4567", "Shop"]
    assert line["from"] == "****1234"
    assert line["number"] == "12"


@pytest.mark.parametrize("name", [*sorted(logs.FIELDS_LEFT_OUT), "Text", "CODE"])
def test_texts_codes_and_secrets_are_left_out_at_any_depth(written: Written, name: str) -> None:
    log.info("a.b", "A sentence.", item={"deep": [{name: CANARY, "parts": 1}]}, **{name: CANARY})
    line = written.line()
    assert line["item"] == {"deep": [{"parts": 1}]}
    assert name not in line
    assert CANARY not in written.getvalue()


def fail_deep() -> None:
    try:
        raise ValueError(f"bad text: {CANARY} {CODE}")
    except ValueError as error:
        raise ExceptionGroup(CANARY, [KeyError(CANARY), StoreError("In use.")]) from error


def test_an_error_is_told_with_its_causes_and_where_but_not_with_what_was_sent(
    written: Written,
) -> None:
    log.error("task.died", "A task died.", error=raised(fail_deep), n=1)
    line = written.line()
    assert line["n"] == 1
    frames = re.findall(r'File "[^"]+test_logs\.py", line \d+, in (\w+)', line["exception"])
    assert frames == ["fail_deep", "raised", "fail_deep"]
    told = [part for part in line["exception"].splitlines() if not part.startswith(" ")]
    assert told == ["ValueError", "ExceptionGroup", "KeyError", "StoreError: In use."]
    assert CANARY not in written.getvalue()
    assert CODE not in written.getvalue()


def fail_while_failing() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError:
        raise InsufficientCredits from None


def test_a_context_that_was_set_aside_is_not_told(written: Written) -> None:
    log.warning("a.b", "A sentence.", error=raised(fail_while_failing))
    assert "KeyError" not in written.line()["exception"]
    sentence = "InsufficientCredits: The client's available credit does not cover this."
    assert written.line()["exception"].endswith(f"{sentence}\n")


def insert_twice() -> None:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE TABLE message (text TEXT UNIQUE)")
        connection.execute("INSERT INTO message VALUES (?), (?)", (CANARY, CANARY))
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (insert_twice, "IntegrityError: UNIQUE constraint failed: message.text"),
        (lambda: Path("/none").read_text(), "FileNotFoundError: [Errno 2] No such file"),
        (lambda: Form.model_validate({"text": [CANARY]}), "ValidationError\n"),
        (lambda: json.loads(CANARY), "JSONDecodeError\n"),
        (lambda: int(CODE + CANARY), "ValueError\n"),
        (lambda: dict[str, str]()[CANARY], "KeyError\n"),
        (lambda: CANARY.encode("utf-16").decode("ascii"), "UnicodeDecodeError\n"),
        (lambda: len(5), "TypeError: object of type 'int' has no len()"),  # type: ignore[arg-type]
    ],
)
def test_only_errors_that_repeat_no_input_are_told_with_their_message(
    written: Written, work: Callable[[], object], sentence: str
) -> None:
    log.error("a.b", "A sentence.", error=raised(work))
    (told,) = [
        line
        for line in written.line()["exception"].splitlines(keepends=True)
        if not line.startswith(" ")
    ]
    assert told.startswith(sentence)


def fall(depth: int) -> None:
    if depth == 0:
        raise StoreError(NUMBER)
    fall_on(depth)


def fall_on(depth: int) -> None:
    fall(depth - 1)


def chained(length: int) -> BaseException:
    error: BaseException = StoreError("first")
    for number in range(length):
        later = StoreError(str(number))
        later.__cause__ = error
        error = later
    return error


def test_the_story_of_an_error_has_an_end(written: Written) -> None:
    log.error("a.b", "Deep.", error=raised(lambda: fall(200)))
    log.error("a.b", "Long.", error=chained(200))
    first, second = StoreError("1"), StoreError("2")
    first.__context__, second.__context__ = second, first
    log.error("a.b", "Round.", error=first)
    deep, long, ring = (line["exception"] for line in written.lines())
    assert deep.count("File ") == logs.FRAMES_MAX
    assert deep.endswith("StoreError: ********0006\n")
    assert long.splitlines() == [f"StoreError: {number}" for number in range(190, 200)]
    assert ring == "StoreError: 2\nStoreError: 1\n"


# Other people's lines


async def fail_unseen() -> None:
    raise ValueError(CANARY)


async def test_a_task_that_failed_unseen_does_not_tell_what_was_sent(written: Written) -> None:
    task = asyncio.create_task(fail_unseen())
    await asyncio.wait([task])
    del task
    gc.collect()
    line = written.line()
    assert line["logger"] == "asyncio"
    assert line["message"].startswith("Task exception was never retrieved")
    assert line["message"].endswith("exception=ValueError")
    assert line["exception"].endswith("ValueError\n")
    assert CANARY not in written.getvalue()


def test_libraries_do_not_write_at_debug_as_they_repeat_parameters(written: Written) -> None:
    logging.getLogger("aiosqlite").debug("executing %s", CANARY)
    logging.getLogger("aiosqlite").info("opened")
    assert [line["message"] for line in written.lines()] == ["opened"]


def test_uvicorn_writes_the_same_lines_and_no_access_log(loggers_put_back: None) -> None:
    uvicorn.Config(app="none:app")
    assert logging.getLogger("uvicorn").handlers, "uvicorn puts up handlers of its own"
    stream = Written()
    logs.setup("info", stream)
    uvicorn.Config(app="none:app", log_config=None)
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    logging.getLogger("uvicorn.access").info("GET /v1/messages?to=%s", NUMBER)
    line = stream.line()
    assert (line["logger"], line["message"]) == ("uvicorn.error", "Started server process [7]")
    assert not logging.getLogger("uvicorn.access").hasHandlers()


def test_errors_in_the_standard_way_are_told_alike(written: Written) -> None:
    try:
        int(CANARY)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    logging.getLogger("library").error("No error at all", exc_info=True)
    with_error, without = written.lines()
    assert with_error["exception"].endswith("ValueError\n")
    assert CANARY not in with_error["exception"]
    assert "exception" not in without


def test_standard_error_is_looked_up_when_it_is_needed(
    loggers_put_back: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Written()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.setup("info")
    log.info("a.b", "A sentence.")
    assert stream.line()["action"] == "a.b"
