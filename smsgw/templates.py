"""Texts in settings with named places, such as ``{to}``: read once, filled for each message.

A template is a text, or a table or list of them. Filling never parses, so what is filled in cannot
become a place, a field or a header of its own. A brace that is meant as such is written twice.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Values = Mapping[str, str | int]
"""What is filled in, by the name of its place."""

CREDENTIALS: Final = frozenset({"account", "key", "secret"})
HARMLESS: Final = frozenset({"attempt", "number", "parts", "reference", "to", "to_digits"})
"""Those that can hold nothing but visible ASCII."""
MESSAGE: Final = HARMLESS | {
    "callback_url",
    "encoding",
    "from",
    "from_digits",
    "text",
    "validity_ms",
    "validity_s",
}

_find = re.compile(r"\{\{|\}\}|\{([a-z_]{1,20})\}|[{}]").finditer


@dataclass(slots=True, frozen=True)
class Template:
    """A text with places: (what stands before, the name of the place), and what stands at last."""

    places: tuple[tuple[str, str], ...]
    rest: str

    def fill(self, values: Values, encode: Callable[[str], str] = str) -> str:
        """The text, with each value encoded for where it stands."""
        filled = [before + encode(str(values[name])) for before, name in self.places]
        return "".join(filled) + self.rest

    def value(self, values: Values) -> str | int:
        """The same; where the text is one place and nothing else, a number stays a number."""
        if len(self.places) == 1 and not self.rest and not self.places[0][0]:
            return values[self.places[0][1]]
        return self.fill(values)


def read(text: str) -> Template:
    """Read a text.

    Raises:
        ValueError: a brace stands alone.
    """
    places: list[tuple[str, str]] = []
    before = ""
    at = 0
    for found in _find(text):
        before += text[at : found.start()]
        at = found.end()
        if name := found[1]:
            places.append((before, name))
            before = ""
        elif len(found[0]) == 2:
            before += found[0][0]
        else:
            raise ValueError("a { or } that is no placeholder must be written twice")
    return Template(tuple(places), before + text[at:])


def read_tree(node: Any) -> Any:
    """The same of a table: its texts as templates, all else as it is."""
    if isinstance(node, str):
        return read(node)
    if isinstance(node, Mapping):
        return {name: read_tree(value) for name, value in node.items()}
    if isinstance(node, list):
        return [read_tree(value) for value in node]
    return node


def fill_tree(node: Any, values: Values) -> Any:
    """A table with its values; what comes to nothing is left out."""
    if isinstance(node, Template):
        return node.value(values)
    if isinstance(node, Mapping):
        filled = {name: fill_tree(value, values) for name, value in node.items()}
        return {name: value for name, value in filled.items() if value != ""}
    if isinstance(node, list):
        return [fill_tree(value, values) for value in node]
    return node


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of a table, with the path that leads there."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, f"{path}.{index}")
    else:
        yield path, node


def mistakes_in(node: Any, known: frozenset[str]) -> Iterator[str]:
    """What is wrong with a template, each with the path that leads there."""
    for path, leaf in leaves(node):
        where = f"{path}: " if path else ""
        if isinstance(leaf, str):
            try:
                unknown = names_in(leaf) - known
            except ValueError as error:
                yield f"{where}{error}"
            else:
                yield from (f"{where}unknown placeholder {{{name}}}" for name in sorted(unknown))
        elif not isinstance(leaf, int | float):
            yield f"{where}should be a text, a number, true or false"


def names_in(node: Any) -> set[str]:
    """The names of the places in a template.

    Raises:
        ValueError: a brace stands alone.
    """
    texts = [leaf for _, leaf in leaves(node) if isinstance(leaf, str)]
    return {name for text in texts for _, name in read(text).places}
