"""SMPP 3.4 on the wire: octets to PDUs and back.

``frames`` cuts PDUs off a stream, ``decode`` reads the body of one, ``encode`` writes one, and
``answer`` writes the answer that a request is owed. What we write obeys the standard or raises.
What we read only has to make sense, because operators take liberties:

* A response may lack its body or the end of it, and its last string may lack its NUL: it always
  decodes, since an accepted message must not be lost over a badly written acceptance.
* Strings may be longer than the standard says (up to 255 octets) and hold any octet but NUL; they
  are read as Latin-1, in which every octet is a character.
* ``short_message`` may have 255 octets. A TLV that claims more octets than there are ends the
  list, and those before it count. TLVs that we do not know are kept. Of a tag that comes twice,
  the last one counts.

A request that ends before its last mandatory field is not read.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final

from smsgw.providers.smpp.bodies import (
    RESPONSE,
    Address,
    Alert,
    Bind,
    BindResponse,
    Body,
    Cancel,
    Command,
    MessageId,
    Outbind,
    Pdu,
    Query,
    QueryResponse,
    ShortMessage,
    Tag,
    Tlvs,
)
from smsgw.providers.smpp.status import CommandStatus

PDU_BYTES_MAX: Final = 70_000
SEQUENCE_MAX: Final = 0x7FFFFFFF

_HEADER: Final = struct.Struct(">IIII")
_HEADER_OCTETS: Final = 16
_LENGTH: Final = struct.Struct(">I")
_TLV: Final = struct.Struct(">HH")
_READ_OCTETS_MAX: Final = 255
_SHORT_MESSAGE_OCTETS_MAX: Final = 254
_TIME_CHARACTERS: Final = 16


class PduError(Exception):
    """A PDU that cannot be read, or must not be written.

    ``command_status`` is what to answer, ``sequence`` whom; where ``lost`` is true, nobody knows
    where the next PDU begins, so that the link has to be closed after the answer.
    """

    def __init__(
        self,
        sentence: str,
        command_status: CommandStatus = CommandStatus.ESME_RINVCMDLEN,
        *,
        sequence: int = 0,
        lost: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.command_status = command_status
        self.sequence = sequence
        self.lost = lost


def frames(buffer: bytearray, pdu_bytes_max: int = PDU_BYTES_MAX) -> Iterator[Pdu]:
    """Cut whole PDUs off the front of a buffer, which keeps the rest.

    Each is gone from the buffer before it is given, so that whoever stops early can go on later.

    Args:
        buffer: what has been received; append to it and call again.
        pdu_bytes_max: longer PDUs are not waited for.

    Raises:
        PduError: the next length is impossible; the stream is lost, and the buffer left alone.
    """
    while len(buffer) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer)
        if not _HEADER_OCTETS <= length <= pdu_bytes_max:
            raise PduError(f"a PDU cannot have {length} octets", lost=True)
        if len(buffer) < length:
            return
        _, command, status, sequence = _HEADER.unpack_from(buffer)
        pdu = Pdu(command, status, sequence, bytes(buffer[_HEADER_OCTETS:length]))
        del buffer[:length]
        yield pdu


def decode(pdu: Pdu) -> Body:
    """Read the body of a PDU; None for those that have none.

    Raises:
        PduError: the command is unknown, or is a request that ends too early; the next PDU can be
            read nevertheless.
    """
    read = _READ.get(pdu.command)
    if read is None:
        raise PduError(
            f"{pdu.name} is not understood",
            CommandStatus.ESME_RINVCMDID,
            sequence=pdu.sequence,
        )
    try:
        return read(_Reader(pdu.body, pdu.command >= RESPONSE))
    except (IndexError, ValueError) as error:
        raise PduError(f"{pdu.name} ends too early", sequence=pdu.sequence) from error


def encode(command: int, sequence: int, body: Body = None, status: int = 0) -> bytes:
    """Write a PDU, with the body that belongs to its command.

    Responses that report an error, and commands that have no body, need none.

    Raises:
        PduError: the standard does not allow this; ``command_status`` says which field it is.
    """
    try:
        octets = b"" if body is None else _WRITE[command](body)
        return _HEADER.pack(_HEADER_OCTETS + len(octets), command, status, sequence) + octets
    except (ValueError, OverflowError, struct.error) as error:
        raise PduError(f"a number is out of range: {error}", sequence=sequence) from error


def answer(request: Pdu, status: int = CommandStatus.ESME_ROK) -> bytes:
    """Write what a PDU from an SMSC is owed: its response, a generic_nack, or nothing at all."""
    if request.command >= RESPONSE or request.command in _UNANSWERED:
        return b""
    body = _ANSWERS.get(request.command)
    if body is None:
        return nack(request.sequence, status or CommandStatus.ESME_RINVCMDID)
    return (
        _HEADER.pack(
            _HEADER_OCTETS + len(body), request.command | RESPONSE, status, request.sequence
        )
        + body
    )


def nack(sequence: int, status: int) -> bytes:
    """Write a generic_nack."""
    return _HEADER.pack(_HEADER_OCTETS, Command.GENERIC_NACK, status, sequence)


def next_sequence(sequence: int) -> int:
    """The sequence number after this one: 1 to 0x7FFFFFFF, then 1 again."""
    return sequence % SEQUENCE_MAX + 1


class _Reader:
    """Reads a body from front to end; a lenient one finds nothing where there is nothing."""

    __slots__ = ("_lenient", "_octets", "_offset")

    def __init__(self, octets: bytes, lenient: bool) -> None:
        self._octets = octets
        self._offset = 0
        self._lenient = lenient

    def octet(self) -> int:
        """One octet."""
        offset = self._offset
        if self._lenient and offset >= len(self._octets):
            return 0
        self._offset = offset + 1
        return self._octets[offset]

    def octets(self, count: int) -> bytes:
        """As many octets."""
        end = self._offset + count
        if end > len(self._octets):
            raise ValueError("not so many octets")
        octets = self._octets[self._offset : end]
        self._offset = end
        return octets

    def text(self) -> str:
        """A string up to its NUL."""
        end = self._octets.find(0, self._offset)
        if end < 0:
            if not self._lenient:
                raise ValueError("no NUL")
            end = len(self._octets)
        text = self._octets[self._offset : end].decode("latin-1")
        self._offset = end + 1
        if len(text) > _READ_OCTETS_MAX:
            if not self._lenient:
                raise ValueError("too long a string")
            text = text[:_READ_OCTETS_MAX]
        return text

    def address(self) -> Address:
        """Two octets and a string."""
        return Address(self.octet(), self.octet(), self.text())

    def tlvs(self) -> Tlvs:
        """All that is left."""
        octets = self._octets
        offset = self._offset
        left = len(octets) - offset
        tlvs: Tlvs = {}
        while left >= _TLV.size:
            tag, length = _TLV.unpack_from(octets, offset)
            offset += _TLV.size
            left -= _TLV.size + length
            if left < 0:
                break
            tlvs[tag] = octets[offset : offset + length]
            offset += length
        return tlvs


def _read_nothing(_: _Reader) -> None:
    return None


def _read_bind(reader: _Reader) -> Bind:
    return Bind(
        system_id=reader.text(),
        password=reader.text(),
        system_type=reader.text(),
        interface_version=reader.octet(),
        addresses=reader.address(),
    )


def _read_bind_response(reader: _Reader) -> BindResponse:
    return BindResponse(reader.text(), reader.tlvs())


def _read_outbind(reader: _Reader) -> Outbind:
    return Outbind(reader.text(), reader.text())


def _read_short_message(reader: _Reader) -> ShortMessage:
    octet = reader.octet
    # In the order of the octets on the wire, which Python keeps.
    return ShortMessage(
        service_type=reader.text(),
        source=reader.address(),
        destination=reader.address(),
        esm_class=octet(),
        protocol_id=octet(),
        priority_flag=octet(),
        schedule_delivery_time=reader.text(),
        validity_period=reader.text(),
        registered_delivery=octet(),
        replace_if_present=octet(),
        data_coding=octet(),
        default_message_id=octet(),
        short_message=reader.octets(octet()),
        tlvs=reader.tlvs(),
    )


def _read_data(reader: _Reader) -> ShortMessage:
    return ShortMessage(
        service_type=reader.text(),
        source=reader.address(),
        destination=reader.address(),
        esm_class=reader.octet(),
        registered_delivery=reader.octet(),
        data_coding=reader.octet(),
        tlvs=reader.tlvs(),
    )


def _read_message_id(reader: _Reader) -> MessageId:
    return MessageId(reader.text(), reader.tlvs())


def _read_query(reader: _Reader) -> Query:
    return Query(reader.text(), reader.address())


def _read_query_response(reader: _Reader) -> QueryResponse:
    return QueryResponse(reader.text(), reader.text(), reader.octet(), reader.octet())


def _read_cancel(reader: _Reader) -> Cancel:
    return Cancel(reader.text(), reader.text(), reader.address(), reader.address())


def _read_alert(reader: _Reader) -> Alert:
    return Alert(reader.address(), reader.address(), reader.tlvs())


def _text(text: str, octets_max: int, fault: CommandStatus) -> bytes:
    """A string and its NUL, which ``octets_max`` counts: printable and of Latin-1."""
    if not text:
        return b"\0"
    if len(text) < octets_max and text.isprintable():
        try:
            return text.encode("latin-1") + b"\0"
        except UnicodeEncodeError:
            pass
    # The text is not repeated: it may be a password, or somebody's number.
    raise PduError(f"not up to {octets_max - 1} printable characters of Latin-1", fault)


def _address(address: Address, fault: CommandStatus, octets_max: int = 21) -> bytes:
    return bytes((address.ton, address.npi)) + _text(address.value, octets_max, fault)


def _time(time: str, fault: CommandStatus) -> bytes:
    if not time:
        return b"\0"
    if len(time) != _TIME_CHARACTERS:
        raise PduError(f"a time has {_TIME_CHARACTERS} characters", fault)
    return _text(time, _TIME_CHARACTERS + 1, fault)


def _tlvs(tlvs: Tlvs) -> bytes:
    return b"".join([_TLV.pack(tag, len(value)) + value for tag, value in tlvs.items()])


def _message_id(message_id: str) -> bytes:
    return _text(message_id, 65, CommandStatus.ESME_RINVMSGID)


def _write_bind(bind: Bind) -> bytes:
    return b"".join(
        (
            _text(bind.system_id, 16, CommandStatus.ESME_RINVSYSID),
            _text(bind.password, 17, CommandStatus.ESME_RINVPASWD),
            _text(bind.system_type, 13, CommandStatus.ESME_RINVSYSTYP),
            bytes((bind.interface_version,)),
            _address(bind.addresses, CommandStatus.ESME_RBINDFAIL, 41),
        )
    )


def _write_bind_response(response: BindResponse) -> bytes:
    return _text(response.system_id, 16, CommandStatus.ESME_RINVSYSID) + _tlvs(response.tlvs)


def _write_outbind(outbind: Outbind) -> bytes:
    return _text(outbind.system_id, 16, CommandStatus.ESME_RINVSYSID) + _text(
        outbind.password, 17, CommandStatus.ESME_RINVPASWD
    )


def _write_short_message(message: ShortMessage) -> bytes:
    octets = message.short_message
    if octets and Tag.MESSAGE_PAYLOAD in message.tlvs:
        raise PduError("a message stands in one place only", CommandStatus.ESME_RINVMSGLEN)
    if len(octets) > _SHORT_MESSAGE_OCTETS_MAX:
        raise PduError(
            f"a short message has up to {_SHORT_MESSAGE_OCTETS_MAX} octets",
            CommandStatus.ESME_RINVMSGLEN,
        )
    return b"".join(
        (
            _text(message.service_type, 6, CommandStatus.ESME_RINVSERTYP),
            _address(message.source, CommandStatus.ESME_RINVSRCADR),
            _address(message.destination, CommandStatus.ESME_RINVDSTADR),
            bytes((message.esm_class, message.protocol_id, message.priority_flag)),
            _time(message.schedule_delivery_time, CommandStatus.ESME_RINVSCHED),
            _time(message.validity_period, CommandStatus.ESME_RINVEXPIRY),
            bytes(
                (
                    message.registered_delivery,
                    message.replace_if_present,
                    message.data_coding,
                    message.default_message_id,
                    len(octets),
                )
            ),
            octets,
            _tlvs(message.tlvs),
        )
    )


def _write_data(message: ShortMessage) -> bytes:
    if message.short_message:
        raise PduError("data_sm has a payload only", CommandStatus.ESME_RINVMSGLEN)
    return b"".join(
        (
            _text(message.service_type, 6, CommandStatus.ESME_RINVSERTYP),
            _address(message.source, CommandStatus.ESME_RINVSRCADR, 65),
            _address(message.destination, CommandStatus.ESME_RINVDSTADR, 65),
            bytes((message.esm_class, message.registered_delivery, message.data_coding)),
            _tlvs(message.tlvs),
        )
    )


def _write_message_id(response: MessageId) -> bytes:
    return _message_id(response.message_id) + _tlvs(response.tlvs)


def _write_query(query: Query) -> bytes:
    return _message_id(query.message_id) + _address(query.source, CommandStatus.ESME_RINVSRCADR)


def _write_query_response(response: QueryResponse) -> bytes:
    return (
        _message_id(response.message_id)
        + _time(response.final_date, CommandStatus.ESME_RQUERYFAIL)
        + bytes((response.message_state, response.error_code))
    )


def _write_cancel(cancel: Cancel) -> bytes:
    return (
        _text(cancel.service_type, 6, CommandStatus.ESME_RINVSERTYP)
        + _message_id(cancel.message_id)
        + _address(cancel.source, CommandStatus.ESME_RINVSRCADR)
        + _address(cancel.destination, CommandStatus.ESME_RINVDSTADR)
    )


def _write_alert(alert: Alert) -> bytes:
    return (
        _address(alert.source, CommandStatus.ESME_RINVSRCADR, 65)
        + _address(alert.esme, CommandStatus.ESME_RINVDSTADR, 65)
        + _tlvs(alert.tlvs)
    )


_BINDS: Final = (Command.BIND_RECEIVER, Command.BIND_TRANSMITTER, Command.BIND_TRANSCEIVER)
_READ: Final[dict[int, Callable[[_Reader], Body]]] = {
    **dict.fromkeys(_BINDS, _read_bind),
    **{bind | RESPONSE: _read_bind_response for bind in _BINDS},
    Command.OUTBIND: _read_outbind,
    Command.SUBMIT_SM: _read_short_message,
    Command.DELIVER_SM: _read_short_message,
    Command.DATA_SM: _read_data,
    Command.SUBMIT_SM_RESP: _read_message_id,
    Command.DELIVER_SM_RESP: _read_message_id,
    Command.DATA_SM_RESP: _read_message_id,
    Command.QUERY_SM: _read_query,
    Command.QUERY_SM_RESP: _read_query_response,
    Command.CANCEL_SM: _read_cancel,
    Command.ALERT_NOTIFICATION: _read_alert,
    Command.CANCEL_SM_RESP: _read_nothing,
    Command.REPLACE_SM_RESP: _read_nothing,
    Command.SUBMIT_MULTI_RESP: _read_nothing,
    Command.UNBIND: _read_nothing,
    Command.UNBIND_RESP: _read_nothing,
    Command.ENQUIRE_LINK: _read_nothing,
    Command.ENQUIRE_LINK_RESP: _read_nothing,
    Command.GENERIC_NACK: _read_nothing,
}
_WRITE: Final[dict[int, Callable[..., bytes]]] = {
    **dict.fromkeys(_BINDS, _write_bind),
    **{bind | RESPONSE: _write_bind_response for bind in _BINDS},
    Command.OUTBIND: _write_outbind,
    Command.SUBMIT_SM: _write_short_message,
    Command.DELIVER_SM: _write_short_message,
    Command.DATA_SM: _write_data,
    Command.SUBMIT_SM_RESP: _write_message_id,
    Command.DELIVER_SM_RESP: _write_message_id,
    Command.DATA_SM_RESP: _write_message_id,
    Command.QUERY_SM: _write_query,
    Command.QUERY_SM_RESP: _write_query_response,
    Command.CANCEL_SM: _write_cancel,
    Command.ALERT_NOTIFICATION: _write_alert,
}
_ANSWERS: Final[dict[int, bytes]] = {
    # The message_id, which has no meaning here, is there but empty.
    Command.DELIVER_SM: b"\0",
    Command.DATA_SM: b"\0",
    Command.ENQUIRE_LINK: b"",
    Command.UNBIND: b"",
}
_UNANSWERED: Final = frozenset({Command.OUTBIND, Command.ALERT_NOTIFICATION})
