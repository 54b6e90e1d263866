"""SMPP 3.4 on the wire, for tests: written from the standard, sharing no code with the client.

``parse`` is strict: what the standard does not allow raises ``Malformed``. ``encode`` writes what
it is told, so that it can be wrong on purpose.
"""

import itertools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import gsm0338

RESPONSE: Final = 0x80000000
BIND_RECEIVER: Final = 0x01
BIND_TRANSMITTER: Final = 0x02
QUERY_SM: Final = 0x03
SUBMIT_SM: Final = 0x04
DELIVER_SM: Final = 0x05
UNBIND: Final = 0x06
CANCEL_SM: Final = 0x08
BIND_TRANSCEIVER: Final = 0x09
ENQUIRE_LINK: Final = 0x15
DATA_SM: Final = 0x103
GENERIC_NACK: Final = RESPONSE

BIND_KINDS: Final = {BIND_RECEIVER: "RX", BIND_TRANSMITTER: "TX", BIND_TRANSCEIVER: "TRX"}

OK: Final = 0x00
INVALID_LENGTH: Final = 0x02
INVALID_COMMAND: Final = 0x03
INVALID_BIND_STATUS: Final = 0x04
ALREADY_BOUND: Final = 0x05
SYSTEM_ERROR: Final = 0x08
INVALID_RECIPIENT: Final = 0x0B
INVALID_MESSAGE_ID: Final = 0x0C
BIND_FAILED: Final = 0x0D
INVALID_PASSWORD: Final = 0x0E
INVALID_SYSTEM_ID: Final = 0x0F
CANCEL_FAILED: Final = 0x11
QUEUE_FULL: Final = 0x14
THROTTLED: Final = 0x58
DELIVERY_FAILURE: Final = 0xFE

RECEIPTED_MESSAGE_ID: Final = 0x001E
USER_MESSAGE_REFERENCE: Final = 0x0204
SAR_REFERENCE: Final = 0x020C
SAR_TOTAL: Final = 0x020E
SAR_NUMBER: Final = 0x020F
INTERFACE_VERSION: Final = 0x0210
NETWORK_ERROR_CODE: Final = 0x0423
DELIVERY_FAILURE_REASON: Final = 0x0425
MESSAGE_PAYLOAD: Final = 0x0424
MESSAGE_STATE: Final = 0x0427

PDU_BYTES_MIN: Final = 16
PDU_BYTES_MAX: Final = 70_000
SEQUENCE_MAX: Final = 0x7FFFFFFF

# A number is the most octets of a C-octet string, its NUL included; 0 is one octet; TEXT is
# a length in one octet and so many octets.
TEXT: Final = -1
_SOURCE: Final = (("source_addr_ton", 0), ("source_addr_npi", 0), ("source_addr", 21))
_RECIPIENT: Final = (("dest_addr_ton", 0), ("dest_addr_npi", 0), ("destination_addr", 21))
_BIND: Final = (
    ("system_id", 16),
    # The standard says 9; operators hand out longer ones.
    ("password", 17),
    ("system_type", 13),
    ("interface_version", 0),
    ("addr_ton", 0),
    ("addr_npi", 0),
    ("address_range", 41),
)
_SUBMIT: Final = (
    ("service_type", 6),
    *_SOURCE,
    *_RECIPIENT,
    ("esm_class", 0),
    ("protocol_id", 0),
    ("priority_flag", 0),
    ("schedule_delivery_time", 17),
    ("validity_period", 17),
    ("registered_delivery", 0),
    ("replace_if_present_flag", 0),
    ("data_coding", 0),
    ("sm_default_msg_id", 0),
    ("short_message", TEXT),
)
_DATA: Final = (
    ("service_type", 6),
    *_SOURCE[:2],
    ("source_addr", 65),
    *_RECIPIENT[:2],
    ("destination_addr", 65),
    ("esm_class", 0),
    ("registered_delivery", 0),
    ("data_coding", 0),
)
_IDENTIFIER: Final = (("message_id", 65),)
LAYOUTS: Final[dict[int, tuple[tuple[str, int], ...]]] = {
    **dict.fromkeys(BIND_KINDS, _BIND),
    **dict.fromkeys((command | RESPONSE for command in BIND_KINDS), (("system_id", 16),)),
    SUBMIT_SM: _SUBMIT,
    DELIVER_SM: _SUBMIT,
    DATA_SM: _DATA,
    **dict.fromkeys((it | RESPONSE for it in (SUBMIT_SM, DELIVER_SM, DATA_SM)), _IDENTIFIER),
    QUERY_SM: (*_IDENTIFIER, *_SOURCE),
    QUERY_SM | RESPONSE: (
        *_IDENTIFIER,
        ("final_date", 17),
        ("message_state", 0),
        ("error_code", 0),
    ),
    CANCEL_SM: (("service_type", 6), *_IDENTIFIER, *_SOURCE, *_RECIPIENT),
    **dict.fromkeys((CANCEL_SM | RESPONSE, UNBIND, UNBIND | RESPONSE, GENERIC_NACK), ()),
    **dict.fromkeys((ENQUIRE_LINK, ENQUIRE_LINK | RESPONSE), ()),
}
_WITH_TLVS: Final = {
    *(command for command in LAYOUTS if LAYOUTS[command] in (_SUBMIT, _DATA)),
    *(command | RESPONSE for command in BIND_KINDS),
    DATA_SM | RESPONSE,
}


class Malformed(Exception):
    """Bytes that the standard does not allow."""


@dataclass(eq=False)
class Pdu:
    """One PDU, taken apart; ``pdu["esm_class"]`` is a field by its name in the standard.

    Strings are text without their NUL, ``short_message`` is bytes.
    """

    raw: bytes
    command: int
    status: int
    sequence: int
    fields: dict[str, Any] = field(default_factory=dict)
    tlvs: dict[int, bytes] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __repr__(self) -> str:
        return (
            f"<{self.command:#x} status={self.status:#x} sequence={self.sequence}"
            f" {self.fields} {self.tlvs}>"
        )

    @property
    def recipient(self) -> str:
        return str(self["destination_addr"])

    @property
    def sender(self) -> str:
        return str(self["source_addr"])

    @property
    def user_data(self) -> bytes:
        """The user data header, if there is one, and the text, as bytes."""
        return bytes(self.tlvs.get(MESSAGE_PAYLOAD, b"") or self.fields.get("short_message", b""))

    @property
    def header(self) -> bytes:
        """The user data header with its length, empty where there is none."""
        data = self.user_data
        return data[: 1 + data[0]] if self["esm_class"] & 0x40 else b""

    @property
    def content(self) -> bytes:
        """The text's bytes without header."""
        return self.user_data[len(self.header) :]

    @property
    def text(self) -> str:
        """The text; coding 0 is taken to be GSM 03.38, one octet a septet."""
        match self["data_coding"] & 0x0F:
            case 0:
                return str(gsm0338.Codec().decode(self.content)[0])
            case 8:
                return self.content.decode("utf-16-be")
            case _:
                return self.content.decode("latin-1")

    @property
    def part(self) -> tuple[int, int, int]:
        """Reference, number and total of a part; (0, 1, 1) for a whole message."""
        header, tlvs = self.header, self.tlvs
        if header[1:3] == b"\x00\x03":
            return header[3], header[5], header[4]
        if header[1:3] == b"\x08\x04":
            return int.from_bytes(header[3:5], "big"), header[6], header[5]
        if SAR_REFERENCE in tlvs:
            reference = int.from_bytes(tlvs[SAR_REFERENCE], "big")
            return reference, tlvs[SAR_NUMBER][0], tlvs[SAR_TOTAL][0]
        return 0, 1, 1


def joined(parts: Iterable[Pdu]) -> str:
    """The text of a message from all its parts, in whatever order they came."""
    ordered = sorted(parts, key=lambda pdu: pdu.part[1])
    assert [pdu.part[1] for pdu in ordered] == list(range(1, ordered[0].part[2] + 1)), ordered
    assert len({(pdu.part[0], pdu.part[2]) for pdu in ordered}) == 1, ordered
    return "".join(pdu.text for pdu in ordered)


def head(command: int, sequence: int, status: int = OK, length: int = PDU_BYTES_MIN) -> bytes:
    """A header, whatever length it claims."""
    return struct.pack(">IIII", length, command, status, sequence)


def encode(
    command: int,
    sequence: int,
    status: int = OK,
    tlvs: dict[int, bytes] | None = None,
    **fields: str | int | bytes,
) -> bytes:
    """A PDU; fields left out are empty, or 0. An error without fields has no body."""
    body = b""
    if not status & 0xFFFFFFFF or fields:
        layout = LAYOUTS.get(command, ())
        assert fields.keys() <= {name for name, _ in layout}, fields
        body = b"".join(_field(fields.get(name, ""), size) for name, size in layout)
    for tag, value in (tlvs or {}).items():
        body += struct.pack(">HH", tag, len(value)) + value
    return head(command, sequence, status, PDU_BYTES_MIN + len(body)) + body


def _field(value: str | int | bytes, size: int) -> bytes:
    content = value.encode("latin-1") if isinstance(value, str) else value
    if size == 0:
        return bytes([content if isinstance(content, int) else 0])
    assert isinstance(content, bytes)
    return bytes([len(content)]) + content if size == TEXT else content + b"\0"


def parse(raw: bytes, *, strict: bool = True) -> Pdu:
    """Take one whole PDU apart; if not strict, a sequence_number of 0 is let pass.

    Raises:
        Malformed: the standard does not allow it.
    """
    length, command, status, sequence = struct.unpack_from(">IIII", raw)
    pdu = Pdu(raw, command, status, sequence)
    if length != len(raw):
        raise Malformed(f"command_length {length}, {len(raw)} octets")
    if strict and not 1 <= sequence <= SEQUENCE_MAX and command != GENERIC_NACK:
        raise Malformed(f"sequence_number {sequence}")
    if not command & RESPONSE and status:
        raise Malformed(f"a request with command_status {status:#x}")
    if command not in LAYOUTS:
        return pdu
    if command & RESPONSE and status and length == PDU_BYTES_MIN:
        return pdu
    at = PDU_BYTES_MIN
    for name, size in LAYOUTS[command]:
        pdu.fields[name], at = _take(raw, at, name, size)
    pdu.tlvs = dict(_tlvs(raw, at))
    if pdu.tlvs and command not in _WITH_TLVS:
        raise Malformed(f"{pdu} has optional parameters")
    if MESSAGE_PAYLOAD in pdu.tlvs and pdu.fields.get("short_message"):
        raise Malformed("both short_message and message_payload")
    return pdu


def _take(raw: bytes, at: int, name: str, size: int) -> tuple[Any, int]:
    if at >= len(raw):
        raise Malformed(f"{name} is missing")
    if size == 0:
        return raw[at], at + 1
    if size == TEXT:
        end = at + 1 + raw[at]
        if raw[at] > 254 or end > len(raw):
            raise Malformed(f"sm_length {raw[at]}")
        return raw[at + 1 : end], end
    end = raw.find(b"\0", at, at + size)
    if end < 0:
        raise Malformed(f"{name} does not end within {size} octets: {raw[at : at + size]!r}")
    if not raw[at:end].isascii():
        raise Malformed(f"{name} is not ASCII: {raw[at:end]!r}")
    if "time" in name or "period" in name:
        _check_time(name, raw[at:end])
    return raw[at:end].decode("ascii"), end + 1


def _check_time(name: str, value: bytes) -> None:
    if value and not (len(value) == 16 and value[:15].isdigit() and value[15:] in b"+-R"):
        raise Malformed(f"{name} is {value!r}")


def _tlvs(raw: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at < len(raw):
        if len(raw) - at < 4:
            raise Malformed(f"{len(raw) - at} octets too many")
        tag, length = struct.unpack_from(">HH", raw, at)
        at += 4 + length
        if at > len(raw):
            raise Malformed(f"optional parameter {tag:#06x} of {length} octets is cut off")
        yield tag, raw[at - length : at]


@dataclass
class Stream:
    """Cuts what arrives on a connection into PDUs."""

    rest: bytes = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The whole PDUs there are now.

        Raises:
            Malformed: a length that no PDU has; what follows cannot be read.
        """
        self.rest += data
        while len(self.rest) >= PDU_BYTES_MIN:
            length = int.from_bytes(self.rest[:4], "big")
            if not PDU_BYTES_MIN <= length <= PDU_BYTES_MAX:
                raise Malformed(f"command_length {length}: {self.rest[:32].hex(' ')}")
            if len(self.rest) < length:
                return
            raw, self.rest = self.rest[:length], self.rest[length:]
            yield raw


FORMS: Final = {
    "plain": "id:{id} sub:001 dlvrd:001 submit date:2611231200 done date:2611231201"
    " stat:{stat} err:{error} text:hello",
    "seconds": "id:{id} sub:001 dlvrd:001 submit date:261123120000 done date:261123120102"
    " stat:{stat} err:{error} text:hello",
    "short": "id:{id} stat:{stat}",
    "no text": "id:{id} sub:001 dlvrd:001 submit date:2611231200 done date:2611231201"
    " stat:{stat} err:{error}",
    "no dates": "id:{id} sub:001 dlvrd:001 stat:{stat} err:{error} text:",
    "no numbers": "id:{id} sub: dlvrd: submit date: done date: stat:{stat} err: text:",
    "spaces": "id: {id} sub: 001 dlvrd: 001 submit date: 2611231200 done date: 2611231201"
    " stat: {stat} err: 042 text: hello",
    "no error": "id:{id} sub:1 dlvrd:1 submit date:2611231200 done date:2611231201"
    " stat:{stat} err:nul text:hello",
    "long error": "id:{id} sub:001 dlvrd:001 submit date:2611231200 done date:2611231201"
    " stat:{stat} err:0032 text:hello",
    "lower case": "id:{id} sub:001 dlvrd:001 submit date:2611231200 done date:2611231201"
    " stat:{stat_lower} err:{error} text:hello",
    "capitals": "ID:{id} SUB:001 DLVRD:001 SUBMIT DATE:2611231200 DONE DATE:2611231201"
    " STAT:{stat} ERR:{error} TEXT:hello",
    "camel case": "id:{id} sub:001 dlvrd:001 Submit_Date:2611231200 Done_Date:2611231201"
    " Stat:{stat} Err:{error} Text:hello",
    "long words": "id:{id} sub:001 dlvrd:001 submit date:2611231200 done date:2611231201"
    " stat:{stat_long} err:{error} text:hello",
    "other order": "stat:{stat} err:{error} done date:2611231201 submit date:2611231200"
    " dlvrd:001 sub:001 id:{id}",
    "a trap in the text": "id:{id} sub:001 dlvrd:001 submit date:2611231200"
    " done date:2611231201 stat:{stat} err:{error} text:id:999 stat:REJECTD",
    "line ends": "id:{id}\r\nsub:001\r\ndlvrd:001\r\nsubmit date:2611231200\r\n"
    "done date:2611231201\r\nstat:{stat}\r\nerr:{error}\r\ntext:hello\r\n",
    "a NUL at the end": "id:{id} sub:001 dlvrd:001 submit date:2611231200"
    " done date:2611231201 stat:{stat} err:{error} text:hello\0",
}
"""Texts of receipts as operators write them; "plain" is the standard's example."""

STATES: Final = {
    "ENROUTE": 1,
    "DELIVRD": 2,
    "EXPIRED": 3,
    "DELETED": 4,
    "UNDELIV": 5,
    "ACCEPTD": 6,
    "UNKNOWN": 7,
    "REJECTD": 8,
}
_LONG_WORDS: Final = {
    "DELIVRD": "DELIVERED",
    "UNDELIV": "UNDELIVERABLE",
    "ACCEPTD": "ACCEPTED",
    "REJECTD": "REJECTED",
}


def receipt_text(message_id: str, word: str = "DELIVRD", *, form: str, error: str = "000") -> bytes:
    """The text of a receipt in one of the ``FORMS``."""
    return (
        FORMS[form]
        .format(
            id=message_id,
            stat=word,
            stat_lower=word.lower(),
            stat_long=_LONG_WORDS.get(word, word),
            error=error,
        )
        .encode("latin-1")
    )


def decimal_ids(first: int = 1_000_000_001) -> Iterator[str]:
    """Ids as most operators give them."""
    return map(str, itertools.count(first))


def hex_ids(first: int = 0x0A1B2C3D) -> Iterator[str]:
    """Ids of eight hexadecimal digits, the first of which may be 0."""
    return (f"{number:08X}" for number in itertools.count(first))
