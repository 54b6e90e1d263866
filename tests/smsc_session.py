"""Connections of the test SMSC: what arrives on them, what it sends, byte by byte if need be."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from tests.pdus import (
    BIND_KINDS,
    DATA_SM,
    DELIVER_SM,
    GENERIC_NACK,
    INTERFACE_VERSION,
    INVALID_LENGTH,
    MESSAGE_PAYLOAD,
    MESSAGE_STATE,
    NETWORK_ERROR_CODE,
    OK,
    RECEIPTED_MESSAGE_ID,
    RESPONSE,
    SEQUENCE_MAX,
    STATES,
    SUBMIT_SM,
    Malformed,
    Pdu,
    Stream,
    encode,
    head,
    parse,
    receipt_text,
)

if TYPE_CHECKING:
    from tests.smsc import Smsc


@dataclass(eq=False, repr=False)
class Arrived(Pdu):
    """A PDU from the client: the ``order``-th that this SMSC received, from 1."""

    session: "Session" = field(kw_only=True)
    order: int = field(kw_only=True)
    _message_id: str | None = None

    @property
    def message_id(self) -> str:
        """The id that the message has or will have here; "" is one, too."""
        if self._message_id is None:
            self._message_id = next(self.session.smsc.ids)
        return self._message_id

    @message_id.setter
    def message_id(self, value: str) -> None:
        self._message_id = value

    def response(
        self,
        status: int = OK,
        *,
        sequence: int | None = None,
        tlvs: dict[int, bytes] | None = None,
        **fields: Any,
    ) -> bytes:
        """The bytes of an answer, not sent; without fields, those of the standard."""
        if status == OK and not fields:
            if self.command in BIND_KINDS:
                fields, tlvs = {"system_id": "smsc"}, {INTERFACE_VERSION: b"\x34"}
            elif self.command in (SUBMIT_SM, DATA_SM):
                fields = {"message_id": self.message_id}
        sequence = self.sequence if sequence is None else sequence
        return encode(self.command | RESPONSE, sequence, status, tlvs, **fields)

    def answer(self, status: int = OK, *, sequence: int | None = None, **fields: Any) -> None:
        """Send an answer."""
        raw = self.response(status, sequence=sequence, **fields)
        if sequence in (None, self.sequence):
            self.settle(status)
        self.session.write(raw)

    def settle(self, status: int = OK) -> None:
        """Note that it is answered, by whatever bytes."""
        session = self.session
        session.outstanding.pop(self.sequence, None)
        if status == OK and self.command in BIND_KINDS and session.bind is None:
            session.bind = self
        if status == OK and self.command in (SUBMIT_SM, DATA_SM):
            session.smsc.messages[self.message_id] = self
            session.smsc.states.setdefault(self.message_id, STATES["ENROUTE"])

    def report(
        self,
        word: str = "DELIVRD",
        *,
        form: str = "plain",
        error: str = "000",
        text: bytes | bool = True,
        tlvs: bool = True,
        data_sm: bool = False,
        esm_class: int = 0x04,
        written: Callable[[str], str] = str,
        elsewhere: bool = False,
        unasked: bool = False,
    ) -> "Request | None":
        """Send a receipt of this message, on this session if it can receive, else on another.

        Where none can, it is kept until one binds.

        Args:
            word: what became of the message.
            form: which of the ``FORMS`` its text has.
            error: the error in the text.
            text: False for none; bytes for a text of the test's own.
            tlvs: whether receipted_message_id and message_state are there.
            data_sm: as data_sm instead of deliver_sm.
            esm_class: 0x04 a receipt, 0x20 an intermediate notification.
            written: how the receipt writes the id.
            elsewhere: never on the session that submitted.
            unasked: also where registered_delivery does not ask for it.

        Returns:
            What was sent; None where none was asked for.
        """
        if not (unasked or _asks(self["registered_delivery"], word)):
            return None
        smsc = self.session.smsc
        message_id = written(self.message_id)
        smsc.states[self.message_id] = STATES[word]
        if text is True:
            text = receipt_text(message_id, word, form=form, error=error)
        more: dict[int, bytes] = {}
        if tlvs:
            more[RECEIPTED_MESSAGE_ID] = message_id.encode() + b"\0"
            more[MESSAGE_STATE] = bytes([STATES[word]])
            if int(error):
                more[NETWORK_ERROR_CODE] = struct.pack(">BH", 3, int(error))
        fields: dict[str, Any] = {
            "source_addr_ton": self["dest_addr_ton"],
            "source_addr_npi": self["dest_addr_npi"],
            "source_addr": self.recipient,
            "dest_addr_ton": self["source_addr_ton"],
            "dest_addr_npi": self["source_addr_npi"],
            "destination_addr": self.sender,
            "esm_class": esm_class,
        }
        if data_sm and text:
            more[MESSAGE_PAYLOAD] = text
        elif text:
            fields["short_message"] = text
        request = Request(DATA_SM if data_sm else DELIVER_SM, fields, more)
        smsc.deliver(request, self.session, elsewhere=elsewhere)
        return request


def _asks(registered_delivery: int, word: str) -> bool:
    if word in ("ENROUTE", "ACCEPTD"):
        return bool(registered_delivery & 0x10)
    asked = registered_delivery & 0x03
    return asked == 1 or (asked == 2 and word != "DELIVRD")


@dataclass(eq=False)
class Request:
    """A PDU from this SMSC to the client, and the answer to it once there is one."""

    command: int
    fields: dict[str, Any]
    tlvs: dict[int, bytes]
    session: "Session | None" = None
    sequence: int = 0
    answer: Arrived | None = None

    async def answered(self) -> Arrived:
        """The answer.

        Raises:
            ConnectionError: the connection was lost before.
        """
        assert self.session is not None, "not sent yet"
        await self.session.smsc.until(lambda: self.answer or not self.session.alive)  # type: ignore[union-attr]
        if self.answer is None:
            raise ConnectionError
        return self.answer


class Session(asyncio.Protocol):
    """One connection of the client."""

    def __init__(self, smsc: "Smsc") -> None:
        self.smsc = smsc
        self.bind: Arrived | None = None
        self.alive = False
        self.received: list[Arrived] = []
        self.outstanding: dict[int, Arrived] = {}
        self.outstanding_max = 0
        self.requests: dict[int, Request] = {}
        self._stream = Stream()
        self._sequence = 0
        self._stalled: list[bytes] | None = None
        self._dropped = False
        self._transport: asyncio.Transport | None = None

    @property
    def kind(self) -> str | None:
        """ "TX", "RX" or "TRX"; None while it is not bound."""
        return BIND_KINDS[self.bind.command] if self.bind else None

    @property
    def receives(self) -> bool:
        """Whether a receipt can go out here."""
        return self.alive and self.kind in ("RX", "TRX")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # That of uvloop does not say so.
        self._transport = cast(asyncio.Transport, transport)
        self.alive = True
        self.smsc.sessions.append(self)
        if not self.smsc.welcoming:
            transport.abort()
        self.smsc.changed()

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        self.outstanding.clear()
        self.smsc.changed()

    def data_received(self, data: bytes) -> None:
        try:
            for raw in self._stream.feed(data):
                # What came in the same block as the last PDU never reached this SMSC.
                if not self._dropped:
                    self._receive(raw)
        except Malformed as wrong:
            self.smsc.complain(str(wrong))
            self.write(head(GENERIC_NACK, 1, INVALID_LENGTH))
            self.drop()
        except Exception as failure:
            # asyncio would only log it, and the test would wait in vain.
            self.smsc.complain(repr(failure))
            raise

    def _receive(self, raw: bytes) -> None:
        smsc = self.smsc
        order = len(smsc.received) + 1
        try:
            pdu = Arrived(**vars(parse(raw)), session=self, order=order)
        except Malformed as wrong:
            smsc.complain(f"{wrong}: {raw.hex(' ')}")
            self.write(head(GENERIC_NACK, int.from_bytes(raw[12:16], "big"), INVALID_LENGTH))
            return
        smsc.received.append(pdu)
        self.received.append(pdu)
        if pdu.command & RESPONSE:
            self._take_answer(pdu)
        else:
            if pdu.sequence in self.outstanding:
                smsc.complain(f"sequence_number {pdu.sequence} is still outstanding")
            self.outstanding[pdu.sequence] = pdu
            submits = sum(one.command in (SUBMIT_SM, DATA_SM) for one in self.outstanding.values())
            self.outstanding_max = max(self.outstanding_max, submits)
            smsc.act(pdu)
        smsc.changed()

    def _take_answer(self, pdu: Arrived) -> None:
        request = self.requests.get(pdu.sequence)
        if request is None or (pdu.command not in (request.command | RESPONSE, GENERIC_NACK)):
            self.smsc.complain(f"an answer to nothing: {pdu}")
        elif request.answer is not None:
            self.smsc.complain(f"a second answer: {pdu}")
        else:
            request.answer = pdu

    def send(self, request: Request) -> Request:
        """Send a request that is new, or again one that another session lost."""
        self._sequence = self._sequence % SEQUENCE_MAX + 1
        request.session, request.sequence = self, self._sequence
        self.requests[self._sequence] = request
        self.write(encode(request.command, self._sequence, OK, request.tlvs, **request.fields))
        return request

    def request(self, command: int, tlvs: dict[int, bytes] | None = None, **fields: Any) -> Request:
        """Send a request of this SMSC: enquire_link, unbind, deliver_sm, anything."""
        return self.send(Request(command, fields, tlvs or {}))

    def message(self, sender: str, recipient: str, text: bytes, **fields: Any) -> Request:
        """Send a message from a handset: a deliver_sm that is no receipt."""
        addresses = {"source_addr": sender, "destination_addr": recipient}
        international = {"source_addr_ton": 1, "source_addr_npi": 1}
        fields = {**international, **addresses, "short_message": text, **fields}
        return self.request(DELIVER_SM, **fields)

    def write(self, raw: bytes) -> None:
        """Send bytes, whatever they are, after those that are stalled."""
        if self._stalled is not None:
            self._stalled.append(raw)
        elif self.alive and not self._dropped and self._transport is not None:
            self._transport.write(raw)

    def stall(self, raw: bytes, sent: int) -> None:
        """Send so many bytes of ``raw``, and nothing more until ``flow``."""
        assert self._stalled is None
        self.write(raw[:sent])
        self._stalled = [raw[sent:]]

    def flow(self) -> None:
        """Send what was stalled."""
        assert self._stalled is not None
        stalled, self._stalled = self._stalled, None
        self.write(b"".join(stalled))

    def drip(self, raw: bytes) -> None:
        """Send bytes one by one, each in a round of the event loop of its own."""
        if self._stalled is None:
            self.stall(raw, 0)
            asyncio.get_running_loop().call_soon(self._drop_of, iter(raw))
        else:
            self._stalled.append(raw)

    def _drop_of(self, octets: Iterator[int]) -> None:
        octet = next(octets, None)
        assert self._stalled is not None
        if octet is None:
            self._stalled[0] = b""
            self.flow()
        elif self.alive and self._transport is not None:
            self._transport.write(bytes([octet]))
            asyncio.get_running_loop().call_soon(self._drop_of, octets)

    def drop(self, *, reset: bool = False) -> None:
        """Close the connection after what was written, or at once with a TCP reset."""
        assert self._transport is not None
        self._dropped = True
        if not reset:
            self._transport.close()
            return
        link = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
