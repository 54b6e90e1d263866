"""What operators write, in answers and in receipts: fields by their path, and words for states."""

import re
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from pydantic_core import from_json

from smsgw.operators import HttpProviderSettings, ProviderSettings
from smsgw.providers.base import about

ID_CHARACTERS_MAX: Final = 255
WORD_CHARACTERS_MAX: Final = 64
REASON_CHARACTERS_MAX: Final = 255
REPORTS_MAX: Final = 1000
WHOLE: Final = "."
"""The path of a list that is all there is."""


def parsed(body: bytes) -> Any:
    """A body as JSON; None where it is none."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        return None


def find(node: Any, path: str) -> Any:
    """What stands at a path such as ``messages.0.id``; None where nothing does."""
    while path:
        if isinstance(node, dict) and path in node:
            # A field's own name may have dots.
            return node[path]
        step, _, path = path.partition(".")
        if isinstance(node, dict):
            node = node.get(step)
        elif isinstance(node, list) and re.fullmatch("[0-9]{1,6}", step):
            node = node[int(step)] if int(step) < len(node) else None
        else:
            return None
    return node


def text_at(node: Any, path: str, characters_max: int) -> str | None:
    """The text or integer at a path, as text; None where there is none, or it is not fit to keep.

    A text that is too long is none either: half of an id would be another id.
    """
    value = find(node, path) if path else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    # An integer may have more digits than Python likes to write.
    if isinstance(value, int) and abs(value) >= 10**characters_max:
        return None
    text = str(value)
    return text if 0 < len(text) <= characters_max and "\x00" not in text else None


def plain(text: str, characters_max: int) -> str:
    """Words of an operator on one line, without control characters, cut to a length."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line[:characters_max]


@dataclass(slots=True, frozen=True)
class Report:
    """One receipt, in our words."""

    provider_message_id: str
    word: str
    reason: str | None
    reference: str = ""
    """Our own id of the message, where the operator repeats it."""
    about: tuple[int, str] | None = None
    """Whom the message went to and from, where the operator says so."""


class Receipts:
    """How an operator's receipts are read: its own settings, or ours for other kinds."""

    def __init__(self, settings: ProviderSettings) -> None:
        described = settings if isinstance(settings, HttpProviderSettings) else _OURS
        self.answer = described.receipt_answer
        self._list_path = described.receipt_list
        self._id_path = described.receipt_id
        self._status_path = described.receipt_status
        self._reason_path = described.receipt_reason
        self._reference_path = described.receipt_reference
        self._to_path = described.receipt_to
        self._from_path = described.receipt_from
        self._words = {said.upper(): word for said, word in described.receipt_words.items()}

    def read(self, fields: Any) -> tuple[list[Report], list[str]]:
        """Every receipt in what an operator sent.

        Returns:
            Those that can be read; and for each of the others, the field that is missing or not
            fit to keep.

        Raises:
            ValueError: naming the list, where there is none.
        """
        reports, mistakes = [], []
        for entry in self._entries(fields):
            try:
                reports.append(self._read_one(entry))
            except ValueError as error:
                mistakes.append(str(error))
        return reports, mistakes

    def _entries(self, fields: Any) -> list[Any]:
        if not self._list_path:
            return [fields]
        entries = fields if self._list_path == WHOLE else find(fields, self._list_path)
        if not isinstance(entries, list) or len(entries) > REPORTS_MAX:
            raise ValueError(self._list_path)
        return entries

    def _read_one(self, entry: Any) -> Report:
        identifier = text_at(entry, self._id_path, ID_CHARACTERS_MAX)
        if identifier is None:
            raise ValueError(self._id_path)
        said = text_at(entry, self._status_path, WORD_CHARACTERS_MAX)
        if said is None:
            raise ValueError(self._status_path)
        reason = find(entry, self._reason_path) if self._reason_path else None
        known = isinstance(reason, str | int) and not isinstance(reason, bool)
        report = self.report(identifier, said, str(reason) if known else "")
        recipient = text_at(entry, self._to_path, ID_CHARACTERS_MAX) or ""
        sender = text_at(entry, self._from_path, ID_CHARACTERS_MAX) or ""
        return replace(report, reference=self._reference(entry), about=about(recipient, sender))

    def _reference(self, entry: Any) -> str:
        """Our own id of the message; empty where none is repeated."""
        try:
            return str(UUID(text_at(entry, self._reference_path, ID_CHARACTERS_MAX) or ""))
        except ValueError:
            return ""

    def report(self, identifier: str, said: str, reason: str = "") -> Report:
        """A receipt; where its word is translated, the operator's own goes into the reason."""
        word = self._words.get(said.upper())
        whole = f"{said} {reason}" if word else reason
        return Report(identifier, word or said, plain(whole, REASON_CHARACTERS_MAX) or None)


_OURS: Final = HttpProviderSettings(kind="http", url="http://localhost/")
