"""What SMPP 3.4 speaks of: commands, TLVs, and the bodies of the PDUs that we know."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

INTERFACE_VERSION: Final = 0x34
RESPONSE: Final = 0x80000000

ESM_FORWARD: Final = 0x02
ESM_RECEIPT: Final = 0x04
ESM_INTERMEDIATE: Final = 0x20
ESM_TYPE_BITS: Final = 0x3C
ESM_UDHI: Final = 0x40


class Command(IntEnum):
    """What a PDU is."""

    BIND_RECEIVER = 0x01
    BIND_TRANSMITTER = 0x02
    QUERY_SM = 0x03
    SUBMIT_SM = 0x04
    DELIVER_SM = 0x05
    UNBIND = 0x06
    REPLACE_SM = 0x07
    CANCEL_SM = 0x08
    BIND_TRANSCEIVER = 0x09
    OUTBIND = 0x0B
    ENQUIRE_LINK = 0x15
    SUBMIT_MULTI = 0x21
    ALERT_NOTIFICATION = 0x102
    DATA_SM = 0x103
    GENERIC_NACK = 0x80000000
    BIND_RECEIVER_RESP = 0x80000001
    BIND_TRANSMITTER_RESP = 0x80000002
    QUERY_SM_RESP = 0x80000003
    SUBMIT_SM_RESP = 0x80000004
    DELIVER_SM_RESP = 0x80000005
    UNBIND_RESP = 0x80000006
    REPLACE_SM_RESP = 0x80000007
    CANCEL_SM_RESP = 0x80000008
    BIND_TRANSCEIVER_RESP = 0x80000009
    ENQUIRE_LINK_RESP = 0x80000015
    SUBMIT_MULTI_RESP = 0x80000021
    DATA_SM_RESP = 0x80000103


class Tag(IntEnum):
    """The TLVs that mean something to us."""

    RECEIPTED_MESSAGE_ID = 0x001E
    USER_MESSAGE_REFERENCE = 0x0204
    SAR_MSG_REF_NUM = 0x020C
    SAR_TOTAL_SEGMENTS = 0x020E
    SAR_SEGMENT_SEQNUM = 0x020F
    SC_INTERFACE_VERSION = 0x0210
    NETWORK_ERROR_CODE = 0x0423
    MESSAGE_PAYLOAD = 0x0424
    DELIVERY_FAILURE_REASON = 0x0425
    MESSAGE_STATE = 0x0427


@dataclass(slots=True)
class Pdu:
    """A PDU whose body has not been read."""

    command: int
    status: int
    sequence: int
    body: bytes = field(default=b"", repr=False)

    @property
    def name(self) -> str:
        """The name of its command, for example ``submit_sm_resp``."""
        try:
            return Command(self.command).name.lower()
        except ValueError:
            return f"0x{self.command:08X}"


class Address(NamedTuple):
    """A sender or recipient: type of number, numbering plan, and digits or name."""

    ton: int = 0
    npi: int = 0
    value: str = ""


NOBODY: Final = Address()

Tlvs = dict[int, bytes]


@dataclass(slots=True)
class Bind:
    """bind_receiver, bind_transmitter and bind_transceiver."""

    system_id: str = ""
    password: str = field(default="", repr=False)
    system_type: str = ""
    interface_version: int = INTERFACE_VERSION
    # Here the value is a range of addresses, as a regular expression.
    addresses: Address = NOBODY


@dataclass(slots=True)
class BindResponse:
    """The answer to any of the three binds."""

    system_id: str = ""
    tlvs: Tlvs = field(default_factory=dict)


@dataclass(slots=True)
class Outbind:
    """An SMSC asks us to bind."""

    system_id: str = ""
    password: str = field(default="", repr=False)


@dataclass(slots=True)
class ShortMessage:
    """submit_sm, deliver_sm and data_sm; the last has no more than the first six and the TLVs."""

    source: Address = field(default=NOBODY, repr=False)
    destination: Address = field(default=NOBODY, repr=False)
    esm_class: int = 0
    data_coding: int = 0
    registered_delivery: int = 0
    service_type: str = ""
    short_message: bytes = field(default=b"", repr=False)
    validity_period: str = ""
    schedule_delivery_time: str = ""
    protocol_id: int = 0
    priority_flag: int = 0
    replace_if_present: int = 0
    default_message_id: int = 0
    tlvs: Tlvs = field(default_factory=dict, repr=False)

    @property
    def octets(self) -> bytes:
        """The message, wherever it stands."""
        return self.short_message or self.tlvs.get(Tag.MESSAGE_PAYLOAD, b"")


@dataclass(slots=True)
class MessageId:
    """submit_sm_resp, deliver_sm_resp and data_sm_resp."""

    message_id: str = ""
    tlvs: Tlvs = field(default_factory=dict)


@dataclass(slots=True)
class Query:
    """query_sm: what became of a message?"""

    message_id: str = ""
    source: Address = NOBODY


@dataclass(slots=True)
class QueryResponse:
    """query_sm_resp."""

    message_id: str = ""
    final_date: str = ""
    message_state: int = 0
    error_code: int = 0


@dataclass(slots=True)
class Cancel:
    """cancel_sm."""

    service_type: str = ""
    message_id: str = ""
    source: Address = NOBODY
    destination: Address = field(default=NOBODY, repr=False)


@dataclass(slots=True)
class Alert:
    """alert_notification: a handset can be reached again."""

    source: Address = field(default=NOBODY, repr=False)
    esme: Address = NOBODY
    tlvs: Tlvs = field(default_factory=dict)


Body = (
    Bind
    | BindResponse
    | Outbind
    | ShortMessage
    | MessageId
    | Query
    | QueryResponse
    | Cancel
    | Alert
    | None
)
