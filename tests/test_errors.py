"""The drawn tree is the tree."""

import re

import pytest

from smsgw import errors
from smsgw.errors import (
    Broken,
    CannotStart,
    InsufficientCredits,
    Refused,
    SmsgwError,
    TooManyRequests,
)


def classes() -> list[type[SmsgwError]]:
    return [
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, SmsgwError)
    ]


def drawn() -> dict[str, tuple[str | None, str]]:
    """Name → (parent, what is written beside it), read from the module's docstring."""
    found: dict[str, tuple[str | None, str]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"( *)[*+-] (\w+)(?: +(\S.*))?", line)
        if match:
            depth = len(match[1]) // 2
            del above[depth:]
            found[match[2]] = (above[-1] if above else None, match[3] or "")
            above.append(match[2])
    return found


def test_the_drawn_tree_equals_the_classes() -> None:
    real = {
        found.__name__: None if found is SmsgwError else found.__bases__[0].__name__
        for found in classes()
    }
    assert {name: parent for name, (parent, _) in drawn().items()} == real


def test_the_code_beside_a_drawn_error_is_its_code() -> None:
    tree = drawn()
    wired = [found for found in classes() if found.__bases__[0] in (Refused, Broken)]
    assert {found.__name__: tree[found.__name__][1] for found in wired} == {
        found.__name__: found.code for found in wired
    }


def test_no_two_errors_share_a_code() -> None:
    codes = [found.code for found in classes() if found.__bases__[0] in (Refused, Broken)]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", classes(), ids=lambda error: error.__name__)
def test_an_error_says_the_first_line_of_its_docstring(error: type[SmsgwError]) -> None:
    first = (error.__doc__ or "").splitlines()[0]
    assert first
    assert error().detail == str(error()) == first


def test_an_error_keeps_its_own_sentence_and_its_members() -> None:
    error = InsufficientCredits("This needs 5 cents.", required=5, credits=3)
    assert error.detail == str(error) == "This needs 5 cents."
    assert error.members == {"required": 5, "credits": 3}
    assert error.retry_after_s is None
    assert TooManyRequests(retry_after_s=2).retry_after_s == 2


def test_what_refuses_to_start_is_no_answer_to_a_request() -> None:
    for error in classes():
        if issubclass(error, CannotStart):
            assert not issubclass(error, Refused | Broken)
            assert error.code == SmsgwError.code
