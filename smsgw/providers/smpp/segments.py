"""From a message of ours to what stands in a submit_sm: parts, addresses and times.

There are always as many parts as ``smsgw.text`` counted and the client pays for: a way of sending
that would need more is not used.
"""

from functools import lru_cache
from typing import Final, Literal, NamedTuple

from smsgw.numbers import kind_of
from smsgw.providers.smpp.bodies import ESM_UDHI, Address, Tag, Tlvs
from smsgw.providers.smpp.pdu import PduError
from smsgw.providers.smpp.status import CommandStatus
from smsgw.text import encode_gsm7, encode_ucs2, measure, split

Method = Literal["udh", "udh16", "sar", "payload"]
Charset = Literal["gsm", "latin1"]

DEFAULT_ALPHABET: Final = 0x00
UCS2: Final = 0x08
VALIDITY_MAX_S: Final = 30 * 86_400

_UCS2_UNITS: Final = 70
# Room for the longer of the two headers.
_UCS2_PART_UNITS: Final = 66
_REFERENCE_BITS: Final = 16


class Segment(NamedTuple):
    """What one submit_sm carries."""

    short_message: bytes
    esm_class: int
    data_coding: int
    tlvs: Tlvs


def segments(
    text: str, reference: int, method: Method = "udh", charset: Charset = "gsm"
) -> list[Segment]:
    """Cut a text into what the submit_sm of each part carries.

    Args:
        text: one that ``refuse_text`` lets pass, of up to 255 parts.
        reference: tells a handset which parts belong together, see ``reference_of``.
        method: where reference, total and number of a part stand: in a header before its text
            (``udh``), in one with 16 instead of 8 bits of reference where that needs no more parts
            (``udh16``), or in TLVs (``sar``). With ``payload`` there is one segment whatever the
            number of parts, and the operator cuts.
        charset: the operator's default alphabet: unpacked GSM 03.38, or Latin-1. Where Latin-1
            lacks a character, the text goes out in UCS-2.

    Raises:
        PduError: Latin-1 lacks a character, and UCS-2 would need more parts.
    """
    size = measure(text)
    texts, wide = [text], False
    if method != "payload" and size.parts > 1:
        texts, wide = _cut(text, method == "udh16")
    coding, parts = _coded(text, texts, size.encoding == "UCS-2", charset, size.parts)
    if size.parts == 1:
        return [Segment(parts[0], 0, coding, {})]
    if method == "payload":
        return [Segment(b"", 0, coding, {Tag.MESSAGE_PAYLOAD: b"".join(parts)})]
    total = bytes((len(parts),))
    if method == "sar":
        series: Tlvs = {
            Tag.SAR_MSG_REF_NUM: reference.to_bytes(2, "big"),
            Tag.SAR_TOTAL_SEGMENTS: total,
        }
        return [
            Segment(part, 0, coding, {**series, Tag.SAR_SEGMENT_SEQNUM: bytes((number,))})
            for number, part in enumerate(parts, 1)
        ]
    header = b"\x06\x08\x04" + reference.to_bytes(2, "big")
    if not wide:
        header = b"\x05\x00\x03" + bytes((reference & 0xFF,))
    return [
        Segment(header + total + bytes((number,)) + part, ESM_UDHI, coding, {})
        for number, part in enumerate(parts, 1)
    ]


def reference_of(number: int) -> int:
    """The 16-bit reference of a message: the same at every attempt, and of neighbours unlike."""
    # Fibonacci hashing: the high bits of the product depend on all bits of the number.
    return (number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> (64 - _REFERENCE_BITS)


def source(sender: str, short_code_ton: int = 3, short_code_npi: int = 0) -> Address:
    """The address of a sender that ``smsgw.numbers.sender`` lets pass."""
    kind = kind_of(sender)
    if kind == "e164":
        return Address(1, 1, sender[1:])
    if kind == "short_code":
        return Address(short_code_ton, short_code_npi, sender)
    return Address(5, 0, sender)


def destination(recipient: str) -> Address:
    """The address of a recipient in E.164, with its plus."""
    assert recipient[:1] == "+"
    return Address(1, 1, recipient[1:])


def validity_period(valid_s: float) -> str:
    """The time an operator may keep trying, relative, so that no clock matters.

    Fractions of a second are dropped; it is at least 1 second and at most 30 days, because in the
    standard's calendar a longer one has months, and those have no length.
    """
    return _relative(int(min(max(valid_s, 1), VALIDITY_MAX_S)))


@lru_cache(maxsize=1024)
def _relative(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"0000{days:02}{hours:02}{minutes:02}{seconds:02}000R"


def _cut(text: str, wide: bool) -> tuple[list[str], bool]:
    """The parts of a text, and whether there is room for a wide reference."""
    parts = split(text)
    if wide:
        shorter = split(text, wide_reference=True)
        if len(shorter) == len(parts):
            return shorter, True
    return parts, False


def _coded(
    text: str, texts: list[str], ucs2: bool, charset: Charset, parts: int
) -> tuple[int, list[bytes]]:
    if ucs2:
        return UCS2, [encode_ucs2(part) for part in texts]
    if charset == "gsm":
        return DEFAULT_ALPHABET, [encode_gsm7(part) for part in texts]
    try:
        return DEFAULT_ALPHABET, [part.encode("latin-1") for part in texts]
    except UnicodeEncodeError:
        pass
    # No character of GSM 03.38 takes two UTF-16 units: the text can be cut anywhere.
    units = _UCS2_UNITS if len(text) <= _UCS2_UNITS else _UCS2_PART_UNITS
    cut = [text[start : start + units] for start in range(0, len(text), units)]
    if len(cut) != parts:
        raise PduError(
            f"the operator's Latin-1 lacks a character of the text, which in UCS-2 has {len(cut)} "
            f"parts and not {parts}",
            CommandStatus.ESME_RINVDCS,
        )
    return UCS2, [encode_ucs2(part) for part in cut]
