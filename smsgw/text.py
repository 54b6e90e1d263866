"""Texts as operators count them: GSM 03.38 (3GPP TS 23.038) or UCS-2, cut into parts.

A text that is all GSM-7 costs one septet a character and two for the ten of the extension table;
any other text costs one UTF-16 unit a character and two outside the basic plane. One part holds
160 septets or 70 units. Several hold 153 or 67 each, the rest being the header with an 8-bit
reference, and the two halves of a character always stay in one part.
"""

import codecs
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

# In the order of their codes, 0x00 to 0x7F; ESC, at 0x1B, opens the pairs and is no character.
ALPHABET = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ"
    " !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§"
    "¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
EXTENSION = {
    "\f": b"\x1b\x0a",
    "^": b"\x1b\x14",
    "{": b"\x1b\x28",
    "}": b"\x1b\x29",
    "\\": b"\x1b\x2f",
    "[": b"\x1b\x3c",
    "~": b"\x1b\x3d",
    "]": b"\x1b\x3e",
    "|": b"\x1b\x40",
    "€": b"\x1b\x65",
}

_ESCAPE = "\x1b"
_CHARACTERS = ALPHABET.replace(_ESCAPE, "")
_CODES: dict[int, int | bytes] = {
    ord(character): code for code, character in enumerate(ALPHABET) if character != _ESCAPE
} | {ord(character): pair for character, pair in EXTENSION.items()}
# What a pair looks like once its two septets are read as characters of the basic alphabet.
_PAIRS = {_ESCAPE + ALPHABET[pair[1]]: character for character, pair in EXTENSION.items()}

_is_gsm7 = re.compile(f"[{re.escape(_CHARACTERS + ''.join(EXTENSION))}]*").fullmatch
_lone_surrogate = re.compile("[\ud800-\udfff]").search
# Digits of every script: codes in Persian texts are mostly written in Persian digits.
_code = re.compile(r"(?<!\d)\d{4,10}(?!\d)")


class TextSize(NamedTuple):
    """What a text costs: ``characters`` are those a reader counts (code points), not units."""

    encoding: Literal["GSM-7", "UCS-2"]
    parts: int
    characters: int


@lru_cache(maxsize=128)
def measure(text: str) -> TextSize:
    """Count the parts of a text that ``refuse_text`` lets pass; of a campaign's text once."""
    coding = _GSM7 if _is_gsm7(text) else _UCS2
    characters = len(text)
    if coding.find_pair(text):
        parts = len(_cut(text, coding))
    elif characters <= coding.single_units:
        parts = 1
    else:
        parts = -(-characters // coding.part_units)
    return TextSize(coding.name, parts, characters)


def split(text: str, *, wide_reference: bool = False) -> list[str]:
    """Cut a text that ``refuse_text`` lets pass into its parts, each as full as can be.

    A wide reference, of 16 bits, leaves room for one septet or UTF-16 unit less in each part, so
    that there may be more parts than ``measure`` counts.
    """
    coding = _GSM7 if _is_gsm7(text) else _UCS2
    if wide_reference:
        coding = coding._replace(part_units=coding.part_units - 1)
    return [coding.decode(part) for part in _cut(text, coding)]


def encode_gsm7(text: str) -> bytes:
    """Encode to unpacked septets, one a byte, extension characters as pairs with ESC.

    Raises:
        UnicodeEncodeError: a character is not in the alphabet.
    """
    return codecs.charmap_encode(text, "strict", _CODES)[0]


def encode_ucs2(text: str) -> bytes:
    """Encode to UTF-16, big-endian, without a byte order mark.

    Raises:
        UnicodeEncodeError: the text holds a lone surrogate.
    """
    return text.encode("utf-16-be")


def refuse_text(text: str) -> str | None:
    """Say in a sentence why this text cannot be sent, or None."""
    if not text:
        return "text must not be empty"
    if "\x00" in text:
        return "text must not contain NUL (U+0000)"
    if _ESCAPE in text:
        return "text must not contain ESC (U+001B)"
    if not text.isascii() and _lone_surrogate(text):
        return "text must not contain lone surrogates (U+D800 to U+DFFF)"
    return None


def mask_digits(text: str) -> str:
    """Replace every run of exactly 4 to 10 digits, of any script, by as many ``*``."""
    return _code.sub(lambda run: "*" * len(run[0]), text)


def _decode_gsm7(octets: bytes) -> str:
    """The inverse of ``encode_gsm7``, for what it made."""
    text = codecs.charmap_decode(octets, "strict", ALPHABET)[0]
    if _ESCAPE in text:
        for pair, character in _PAIRS.items():
            text = text.replace(pair, character)
    return text


class _Coding(NamedTuple):
    """How an encoding fills parts; a pair is a character of two units, which stay together."""

    name: Literal["GSM-7", "UCS-2"]
    single_units: int
    part_units: int
    unit_octets: int
    find_pair: Callable[[str], re.Match[str] | None]
    pair_heads: bytes
    encode: Callable[[str], bytes]
    decode: Callable[[bytes], str]


_GSM7 = _Coding(
    name="GSM-7",
    single_units=160,
    part_units=153,
    unit_octets=1,
    find_pair=re.compile(f"[{re.escape(''.join(EXTENSION))}]").search,
    pair_heads=b"\x1b",
    encode=encode_gsm7,
    decode=_decode_gsm7,
)
_UCS2 = _Coding(
    name="UCS-2",
    single_units=70,
    part_units=67,
    unit_octets=2,
    find_pair=re.compile("[\U00010000-\U0010ffff]").search,
    pair_heads=b"\xd8\xd9\xda\xdb",
    # Lone surrogates pass here, so that counting never fails: refusing them is for refuse_text.
    encode=lambda text: text.encode("utf-16-be", "surrogatepass"),
    decode=lambda octets: octets.decode("utf-16-be", "surrogatepass"),
)


def _cut(text: str, coding: _Coding) -> list[bytes]:
    """Encode a text and cut it into its parts."""
    octets = coding.encode(text)
    if len(octets) <= coding.single_units * coding.unit_octets:
        return [octets]
    parts = []
    start = 0
    while start < len(octets):
        end = start + coding.part_units * coding.unit_octets
        if end < len(octets) and octets[end - coding.unit_octets] in coding.pair_heads:
            end -= coding.unit_octets
        parts.append(octets[start:end])
        start = end
    return parts
