"""Rows are their tables' columns in order, and words are the numbers that the schema names."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

import smsgw
from smsgw import models
from smsgw.ids import number_at
from smsgw.models import (
    FINAL_FROM,
    WAITING,
    Account,
    Batch,
    EntryKind,
    KeyRecord,
    Message,
    OtpCode,
    Status,
    Timer,
)
from smsgw.store.sqlite_thread import migrate
from smsgw.store.statements import load, migrations
from tests.records import NOW_MS, a_message

SCHEMA = (Path(smsgw.__file__).parent / "store" / "sql" / "schema.sql").read_text()


@pytest.fixture
def schema() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, migrations("schema"), 0)
        yield connection


@pytest.mark.parametrize(
    ("row", "query"),
    [
        (Account, "SELECT * FROM client"),
        (Message, "SELECT * FROM message"),
        (KeyRecord, load("turn")["turn_keys"].replace("{rows}", "(?, ?, ?)")),
        (Batch, "SELECT * FROM batch"),
        (OtpCode, load("turn")["turn_code"]),
    ],
)
def test_the_fields_of_a_row_are_the_columns_in_order(
    schema: sqlite3.Connection, row: Any, query: str
) -> None:
    parameters = [None] * query.count("?")
    columns = [column[0] for column in schema.execute(query, parameters).description]
    assert [field.name for field in fields(row)] == columns


def named_in_schema(heading: str) -> dict[str, int]:
    """``0 topup, 1 deduct`` as the schema's comments say it."""
    comment = SCHEMA[SCHEMA.index(heading) :].partition("\nCREATE")[0].replace("\n--", " ")
    return {
        name.lower(): int(number) for number, name in re.findall(r"(\d+) ([A-Za-z_]+)", comment)
    }


@pytest.mark.parametrize(
    ("words", "heading"),
    [(EntryKind, "-- kind: 0 topup"), (Status, "-- status: 0 SCHEDULED")],
)
def test_the_schema_names_the_numbers(words: type[IntEnum], heading: str) -> None:
    said = named_in_schema(heading)
    assert {word.name.lower(): int(word) for word in words}.items() <= said.items()


def test_the_schema_allows_every_number_there_is_and_no_other(schema: sqlite3.Connection) -> None:
    (sql,) = schema.execute("SELECT sql FROM sqlite_master WHERE name = 'message'").fetchone()
    (statuses,) = re.findall(r"status IN \(([^)]*)\)\)", sql)[:1]
    assert {int(number) for number in statuses.split(",")} == set(Status)
    for timer in Timer:
        schema.execute("INSERT INTO timer VALUES (0, 1, ?)", (int(timer),))


def test_a_status_is_final_or_open_and_what_waits_is_open() -> None:
    finals = {status for status in Status if status >= FINAL_FROM}
    assert {status.name for status in finals} == {
        "DELIVERED",
        "FAILED_PERM",
        "EXPIRED",
        "CANCELLED",
        "UNKNOWN",
    }
    assert WAITING.isdisjoint(finals)
    for status in Status:
        assert a_message(status=int(status)).is_final == (status in finals)


def test_a_message_knows_when_it_was_accepted() -> None:
    assert a_message(number=number_at(NOW_MS)).created_at_ms == NOW_MS


def test_answers_have_numbers_of_their_own() -> None:
    answers = [value for name, value in vars(models).items() if name.startswith("ANSWER_")]
    assert sorted(answers) == list(range(7))
