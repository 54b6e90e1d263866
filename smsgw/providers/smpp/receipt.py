"""What an SMSC reports about a message, in any of the ways that are in use, and about which one.

A deliver_sm or data_sm is a receipt only where its esm_class says so; what a handset's owner wrote
never is. Receipts come as TLVs, as text, or as both::

    id:0A1B2C3D sub:001 dlvrd:001 submit date:2601311200 done date:2601311201 stat:DELIVRD err:000
    text:…

The text is "vendor specific": fields are missing, in another order, in other words, in capitals or
in UTF-16. So each field is looked for by its name, and the first one of a name counts. What stands
behind ``text:`` is the beginning of the message itself and is never looked at, else its author
could write a receipt.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from smsgw.providers.smpp.bodies import (
    ESM_INTERMEDIATE,
    ESM_RECEIPT,
    ESM_TYPE_BITS,
    ESM_UDHI,
    ShortMessage,
    Tag,
)
from smsgw.providers.smpp.status import failure_name

Base = Literal["text", "hex", "decimal"]

INTERMEDIATE: Final = "INTERMEDIATE"
UNKNOWN: Final = "UNKNOWN"
FINAL_WORDS: Final = frozenset({"DELIVRD", "EXPIRED", "DELETED", "UNDELIV", "REJECTD", "FAILED"})

_STATES: Final = {
    0: "SCHEDULED",
    1: "ENROUTE",
    2: "DELIVRD",
    3: "EXPIRED",
    4: "DELETED",
    5: "UNDELIV",
    6: "ACCEPTD",
    7: UNKNOWN,
    8: "REJECTD",
    9: "SKIPPED",
}
_SPELLINGS: Final = {
    "DELIVERED": "DELIVRD",
    "DELIVERD": "DELIVRD",
    "DELIVRED": "DELIVRD",
    "UNDELIVERED": "UNDELIV",
    "UNDELIVERABLE": "UNDELIV",
    "UNDELIVERD": "UNDELIV",
    "UNDELIVRD": "UNDELIV",
    "REJECTED": "REJECTD",
    "ACCEPTED": "ACCEPTD",
    "BUFFRED": "BUFFERED",
}
# A field ends where the next one begins, so that an empty one does not swallow its neighbour.
_find_fields = re.compile(
    r"(?<![a-z0-9])(?:"
    r"(?P<id>(?:message[ _-]?|msg[ _-]?)?id)"
    r"|(?P<stat>stat(?:us|e)?)"
    r"|(?P<err>err(?:or)?(?:[ _-]?code)?)"
    r"|(?P<text>text)"
    r"|(?P<other>sub|dlvrd|(?:submit|done)[ _-]?date)"
    r")\s*[:=]",
    re.IGNORECASE,
).finditer
# What nearly all of them look like: the same fields, found at once.
_standard = re.compile(
    r"id:(?P<id>[^\s,;&\"']+) sub:[0-9]+ dlvrd:[0-9]+ submit date:[0-9]+ done date:[0-9]+"
    r" stat:(?P<stat>[^\s,;&\"']+) err:(?P<err>[^\s,;&\"']+) [Tt]ext:"
).match
_find_value = re.compile(r"[^\s,;&\"']+").search
_RECEIPTS: Final = frozenset({ESM_RECEIPT, ESM_INTERMEDIATE, ESM_RECEIPT | ESM_INTERMEDIATE})
_HEX_CHARACTERS_MIN: Final = 8
_is_decimal = re.compile("[0-9]+").fullmatch
_is_hex = re.compile("[0-9a-fA-F]+").fullmatch
# Leading zeros get lost before the dashes do.
_is_uuid = re.compile(
    "[0-9a-fA-F]{1,8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
).fullmatch
_NO_ERROR: Final = frozenset({"", "nul", "null", "none", "nil", "-"})
_TEXT_OCTETS_MAX: Final = 1_024
_WORD_CHARACTERS_MAX: Final = 32
_ID_CHARACTERS_MAX: Final = 255


@dataclass(slots=True, frozen=True)
class Receipt:
    """What an operator reports about a message.

    ``word`` is final if it is one of ``FINAL_WORDS``; all others are news on the way. ``reason``
    says more, such as ``err 042``. The ids are as written, ``""`` where there is none: that of the
    text, and that of the TLV, which by the standard repeats the submit_sm_resp.
    """

    word: str
    reason: str | None
    text_id: str
    tlv_id: str


class Notation(NamedTuple):
    """In which base an operator writes its ids: in a submit_sm_resp, and in a receipt's text."""

    response: Base
    receipt: Base


NOTATIONS: Final = MappingProxyType(
    {
        "same": Notation("text", "text"),
        "hex": Notation("hex", "hex"),
        "hex_to_decimal": Notation("hex", "decimal"),
        "decimal_to_hex": Notation("decimal", "hex"),
    }
)
"""By the name of the setting: Kannel's msg-id-type is -1, 3, 1 and 2."""


def parse(message: ShortMessage) -> Receipt | None:
    """Read a receipt, however bad; None for what is no receipt."""
    kind = message.esm_class & ESM_TYPE_BITS
    if kind not in _RECEIPTS:
        return None
    fields = _fields(_text_of(message))
    tlvs = message.tlvs
    word, aside = _word(tlvs.get(Tag.MESSAGE_STATE, b""), fields.get("stat", ""))
    if kind & ESM_INTERMEDIATE and (word in FINAL_WORDS or word == UNKNOWN):
        aside = None if word == UNKNOWN else f"stat {word}"
        word = INTERMEDIATE
    failure = b"" if word == "DELIVRD" else tlvs.get(Tag.DELIVERY_FAILURE_REASON, b"")
    return Receipt(
        word,
        _reason(aside, fields.get("err", ""), failure, tlvs.get(Tag.NETWORK_ERROR_CODE, b"")),
        _bare(fields.get("id", "")),
        _bare(tlvs.get(Tag.RECEIPTED_MESSAGE_ID, b"").partition(b"\0")[0].decode("latin-1")),
    )


def keys(receipt: Receipt, notation: Notation = NOTATIONS["same"]) -> tuple[str, ...]:
    """The canonical ids of the message that a receipt may mean, the likeliest first.

    A TLV that is written like the text's id is read like it; one that is not repeats the
    submit_sm_resp.
    """
    text_key = canonical(receipt.text_id, notation.receipt)
    if receipt.tlv_id == receipt.text_id:
        return (text_key,) if text_key else ()
    tlv_base = notation.response
    if text_key and canonical(receipt.tlv_id, notation.receipt) == text_key:
        tlv_base = notation.receipt
    tlv_key = canonical(receipt.tlv_id, tlv_base)
    return tuple(dict.fromkeys(key for key in (tlv_key, text_key) if key))


def canonical(identifier: str, base: Base = "text") -> str:
    """Spell an id in the one way by which a submit_sm_resp and its receipts are matched.

    A number becomes its decimal digits. With base ``decimal``, what has the letters A to F among
    its digits can only be hexadecimal. Anything that is no number is a text, and of a text only
    what operators vary is levelled: white space around it, leading zeros of digits, and leading
    zeros, capitals and dashes of UUIDs and of hexadecimal strings from 8 characters on.

    The risk: ``007`` and ``7``, or ``abcdef12`` and ``ABCDEF12``, become one id. Shorter strings
    keep their capitals, because operators that count in base 62 do issue both ``1a`` and ``1A``.
    """
    bare = _bare(identifier)
    digits = _without_prefix(bare)
    if base != "text" and _is_hex(digits):
        if base == "decimal" and digits == bare and _is_decimal(digits):
            return digits.lstrip("0") or "0"
        return str(int(digits, 16))
    if _is_uuid(bare):
        digits = bare.replace("-", "")
    if _is_decimal(digits) or (len(digits) >= _HEX_CHARACTERS_MIN and _is_hex(digits)):
        return digits.lower().lstrip("0") or "0"
    return bare


def forms(identifier: str) -> tuple[str, ...]:
    """The spellings under which an id may be known, as given first: for people who search."""
    bare = _bare(identifier)
    return tuple(dict.fromkeys(form for form in _forms(bare) if form))


def _forms(bare: str) -> Iterator[str]:
    yield bare
    yield canonical(bare)
    yield canonical(bare, "hex")
    yield canonical(bare, "decimal")
    yield bare.lower()
    yield bare.upper()
    digits = _without_prefix(bare.replace("-", "") if _is_uuid(bare) else bare)
    if _is_hex(digits):
        yield digits.lower()
        yield digits.upper()
    if _is_decimal(digits):
        yield f"{int(digits):x}"
        yield f"{int(digits):X}"
    if _is_uuid(bare) or (len(digits) == 32 and _is_hex(digits)):
        whole = digits.lower().rjust(32, "0")
        yield whole
        dashed = f"{whole[:8]}-{whole[8:12]}-{whole[12:16]}-{whole[16:20]}-{whole[20:]}"
        yield dashed
        yield dashed.upper()


def _bare(identifier: str) -> str:
    return identifier[:_ID_CHARACTERS_MAX].strip(" \t\r\n\0")


def _without_prefix(bare: str) -> str:
    return bare[2:] if bare[:2] in ("0x", "0X") else bare


def _text_of(message: ShortMessage) -> str:
    octets = message.octets
    if message.esm_class & ESM_UDHI and octets:
        octets = octets[octets[0] + 1 :]
    # All that is looked for is ASCII: without its NULs, UTF-16 of either order is just that.
    return octets[:_TEXT_OCTETS_MAX].replace(b"\0", b"").decode("latin-1")


def _fields(text: str) -> dict[str, str]:
    if (standard := _standard(text)) is not None:
        return standard.groupdict()
    fields: dict[str, str] = {}
    name = None
    start = 0
    for match in _find_fields(text):
        if name is not None:
            _take(fields, name, text, start, match.start())
        name = match.lastgroup
        if name == "text":
            return fields
        start = match.end()
    if name is not None:
        _take(fields, name, text, start, len(text))
    return fields


def _take(fields: dict[str, str], name: str, text: str, start: int, end: int) -> None:
    if name != "other" and name not in fields and (value := _find_value(text, start, end)):
        fields[name] = value[0]


def _word(state: bytes, stat: str) -> tuple[str, str | None]:
    """The word of a receipt, and what else deserves to be mentioned.

    Of a TLV and a text that both say something, the final one counts; of two final ones, the TLV.
    """
    by_tlv = _STATES.get(state[0], f"STATE_{state[0]}") if state else ""
    by_text = stat[:_WORD_CHARACTERS_MAX].strip(".").upper()
    by_text = _SPELLINGS.get(by_text, by_text)
    if by_tlv in FINAL_WORDS or by_text not in FINAL_WORDS:
        word, other = by_tlv or by_text or UNKNOWN, by_text
    else:
        word, other = by_text, ""
    return word, f"stat {other}" if other and other != word else None


def _reason(aside: str | None, err: str, failure: bytes, network_error: bytes) -> str | None:
    parts = [aside] if aside else []
    if err.strip("0").lower() not in _NO_ERROR:
        parts.append(f"err {err[:_WORD_CHARACTERS_MAX]}")
    elif failure:
        parts.append(failure_name(failure))
    if len(network_error) >= 3 and (code := int.from_bytes(network_error[1:3], "big")):
        parts.append(f"network error {code} (type {network_error[0]})")
    return ", ".join(parts) or None
