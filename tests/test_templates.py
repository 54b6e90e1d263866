"""Texts with places: read once, and what is filled in is never read again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgw import templates

VALUES = {"to": "+1", "parts": 2, "none": ""}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("", ""),
        ("{to}", "+1"),
        ("a{to}b{parts}c", "a+1b2c"),
        ("{{to}} {to} }}{{", "{to} +1 }{"),
        ("{{{to}}}", "{+1}"),
    ],
)
def test_a_text_is_filled_where_it_has_places(text: str, filled: str) -> None:
    assert templates.read(text).fill(VALUES) == filled


@pytest.mark.parametrize("text", ["{", "}", "{to", "to}", "{To}", "{to }", "{}", "{{to}", "{a.b}"])
def test_a_brace_that_stands_alone_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be written twice"):
        templates.read(text)


@given(st.text())
def test_what_is_filled_in_stays_as_it_is(value: str) -> None:
    assert templates.read("a{to}{to}").fill({"to": value}) == f"a{value}{value}"


@given(st.text())
def test_any_text_can_be_written_so_that_it_stays_as_it_is(text: str) -> None:
    written = text.replace("{", "{{").replace("}", "}}")
    assert templates.read(written).fill({}) == text


def test_a_place_alone_keeps_its_number_and_beside_a_text_it_is_text() -> None:
    assert templates.read("{parts}").value(VALUES) == 2
    assert templates.read("{parts} ").value(VALUES) == "2 "


def test_a_table_is_filled_in_depth_and_what_comes_to_nothing_is_left_out() -> None:
    table = {"a": ["{to}", {"b": "{none}", "c": 1.5}], "d": "{none}", "e": False, "f": ""}
    assert templates.fill_tree(templates.read_tree(table), VALUES) == {
        "a": ["+1", {"c": 1.5}],
        "e": False,
    }


@pytest.mark.parametrize(
    ("node", "mistakes"),
    [
        ("{to}", []),
        ("{from}{text}", ["unknown placeholder {from}", "unknown placeholder {text}"]),
        ({"a": [{"b": "{x}"}]}, ["a.0.b: unknown placeholder {x}"]),
        ({"a": "{"}, ["a: a { or } that is no placeholder must be written twice"]),
        ({"a": None}, ["a: should be a text, a number, true or false"]),
    ],
)
def test_mistakes_are_told_with_their_path(node: Any, mistakes: list[str]) -> None:
    assert list(templates.mistakes_in(node, frozenset({"to"}))) == mistakes


def test_all_names_in_a_table_are_found() -> None:
    assert templates.names_in({"a": ["{to}", "{{x}}"], "b": "{text}{to}", "c": 1}) == {"to", "text"}
