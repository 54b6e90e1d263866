"""An operator for benchmarks: a fast SMPP 3.4 SMSC in a process of its own.

It reads and writes the few PDUs it needs by hand and shares no code with the client, so that both
cannot be wrong in the same way unseen. It accepts every bind and every submit_sm, and reports each
as delivered where a receipt is asked for.
"""

import asyncio
import os
import resource
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Final

import uvloop

_RESPONSE: Final = 0x80000000
_BIND_RECEIVER: Final = 0x01
_BIND_TRANSMITTER: Final = 0x02
_SUBMIT_SM: Final = 0x04
_DELIVER_SM: Final = 0x05
_UNBIND: Final = 0x06
_BIND_TRANSCEIVER: Final = 0x09
_ENQUIRE_LINK: Final = 0x15
_GENERIC_NACK: Final = 0x80000000
_BINDS: Final = (_BIND_RECEIVER, _BIND_TRANSMITTER, _BIND_TRANSCEIVER)

_INVALID_COMMAND: Final = 0x03
_HEAD: Final = struct.Struct(">IIII")
_HEAD_BYTES: Final = _HEAD.size
_PDU_BYTES_MAX: Final = 70_000
_SEQUENCE_MAX: Final = 0x7FFFFFFF
_BIND_BODY: Final = b"smsc\0" + struct.pack(">HHB", 0x0210, 1, 0x34)
_RECEIPTED_MESSAGE_ID: Final = 0x001E
_DELIVERED: Final = struct.pack(">HHB", 0x0427, 1, 2)
_SPAWN: Final = get_context("spawn")


@dataclass(slots=True, frozen=True)
class Behaviour:
    """How long after a submit_sm it is answered, and after the answer reported; None is never."""

    answer_after_s: float = 0.0
    receipt_after_s: float | None = 0.0


@dataclass(slots=True)
class Report:
    """What an SMSC has seen so far, and the CPU it used for it."""

    binds: int = 0
    bound: int = 0
    submits: int = 0
    receipts: int = 0
    confirmed: int = 0
    outstanding_max: int = 0
    cpu_s: float = 0.0


class Later:
    """Does something to things a fixed time after they came, in their order, many at a time."""

    def __init__(self, after_s: float, do: Callable[[Any], None]) -> None:
        self._after_s = after_s
        self._do = do
        self._waiting: deque[tuple[float, Any]] = deque()

    def put(self, thing: Any) -> None:
        """Take a thing, whose time begins now."""
        if not self._after_s:
            self._do(thing)
            return
        if not self._waiting:
            asyncio.get_running_loop().call_later(self._after_s, self._due)
        self._waiting.append((time.monotonic() + self._after_s, thing))

    def _due(self) -> None:
        now_s = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now_s:
            self._do(self._waiting.popleft()[1])
        if self._waiting:
            wait_s = max(0.0, self._waiting[0][0] - now_s)
            asyncio.get_running_loop().call_later(wait_s, self._due)


@dataclass(slots=True, frozen=True)
class _Submit:
    session: "_Session"
    sequence: int
    sender: bytes
    recipient: bytes
    reported: bool


class _Session(asyncio.Protocol):
    """One connection; what it writes within a round of the loop goes out in one piece."""

    def __init__(self, smsc: "Smsc") -> None:
        self.receives = False
        self.outstanding = 0
        self._smsc = smsc
        self._rest = b""
        self._out: list[bytes] = []
        self._sequence = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, _: Exception | None) -> None:
        """End; receipts of what was submitted here go to another session."""
        self._transport = None
        self._smsc.left(self)

    def data_received(self, data: bytes) -> None:
        """Take all whole PDUs that are there."""
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while end - at >= _HEAD_BYTES:
            length, command, _, sequence = _HEAD.unpack_from(data, at)
            if not _HEAD_BYTES <= length <= _PDU_BYTES_MAX:
                self._end()
                return
            if end - at < length:
                break
            if command == _SUBMIT_SM:
                self._submit(data, at, sequence)
            elif command == _DELIVER_SM | _RESPONSE:
                self._smsc.report.confirmed += 1
            else:
                self._other(command, sequence)
            at += length
        self._rest = data[at:]

    def _submit(self, data: bytes, at: int, sequence: int) -> None:
        # service_type, then address (type, plan, digits) twice, three octets, two times.
        source = data.index(0, at + _HEAD_BYTES) + 1
        target = data.index(0, source + 2) + 1
        rest = data.index(0, target + 2) + 1
        asked = data.index(0, data.index(0, rest + 3) + 1) + 1
        self.outstanding += 1
        self._smsc.take(
            _Submit(self, sequence, data[source:target], data[target:rest], data[asked] & 0x03 == 1)
        )

    def _other(self, command: int, sequence: int) -> None:
        if command in _BINDS:
            self.write(command | _RESPONSE, sequence, _BIND_BODY)
            self.receives = command != _BIND_TRANSMITTER
            self._smsc.bound(self)
        elif command in (_ENQUIRE_LINK, _UNBIND):
            self.write(command | _RESPONSE, sequence)
            if command == _UNBIND:
                self._end()
        elif not command & _RESPONSE:
            self.write(_GENERIC_NACK, sequence, status=_INVALID_COMMAND)

    def write(self, command: int, sequence: int, body: bytes = b"", status: int = 0) -> None:
        """Send a PDU with whatever else this round sends."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(_HEAD.pack(_HEAD_BYTES + len(body), command, status, sequence) + body)

    def deliver(self, body: bytes) -> None:
        """Send a deliver_sm."""
        self._sequence = self._sequence % _SEQUENCE_MAX + 1
        self.write(_DELIVER_SM, self._sequence, body)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None:
            self._transport.write(b"".join(out))

    def _end(self) -> None:
        self._flush()
        if self._transport is not None:
            self._transport.close()


class Smsc:
    """What all connections share."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.report = Report()
        # Another SMSC after this one gives other ids.
        self._number = time.time_ns() // 1000
        self._receivers: list[_Session] = []
        self._sessions: set[_Session] = set()
        self._parked: list[bytes] = []
        self._reports = behaviour.receipt_after_s is not None
        self._answers = Later(behaviour.answer_after_s, self._answer)
        self._receipts = Later(behaviour.receipt_after_s or 0.0, self._deliver)
        self._date = ""
        self._date_until_s = 0.0

    def session(self) -> asyncio.Protocol:
        """A protocol for a new connection."""
        return _Session(self)

    def bound(self, session: _Session) -> None:
        """Count a bind; send it what waited for a session that receives."""
        self.report.binds += 1
        self._sessions.add(session)
        self.report.bound = len(self._sessions)
        if session.receives:
            self._receivers.append(session)
            parked, self._parked = self._parked, []
            for body in parked:
                self._send(session, body)

    def left(self, session: _Session) -> None:
        """Forget a session."""
        self._sessions.discard(session)
        self.report.bound = len(self._sessions)
        if session in self._receivers:
            self._receivers.remove(session)

    def take(self, submit: _Submit) -> None:
        """Count a submit_sm and answer it, now or later."""
        report = self.report
        report.submits += 1
        report.outstanding_max = max(report.outstanding_max, submit.session.outstanding)
        self._answers.put(submit)

    def _answer(self, submit: _Submit) -> None:
        self._number += 1
        message_id = b"%d" % self._number
        submit.session.outstanding -= 1
        submit.session.write(_SUBMIT_SM | _RESPONSE, submit.sequence, message_id + b"\0")
        if self._reports and submit.reported:
            self._receipts.put((submit, message_id))

    def _deliver(self, due: tuple[_Submit, bytes]) -> None:
        submit, message_id = due
        date = self._minute()
        text = b"id:%b sub:001 dlvrd:001 submit date:%b done date:%b stat:DELIVRD err:000 text:" % (
            message_id,
            date,
            date,
        )
        body = b"".join(
            (
                b"\0",
                submit.recipient,
                submit.sender,
                b"\4\0\0\0\0\0\0\0\0",
                bytes((len(text),)),
                text,
                struct.pack(">HH", _RECEIPTED_MESSAGE_ID, len(message_id) + 1),
                message_id,
                b"\0",
                _DELIVERED,
            )
        )
        session = submit.session
        if session in self._sessions and session.receives:
            self._send(session, body)
        elif self._receivers:
            self._receivers.append(self._receivers.pop(0))
            self._send(self._receivers[-1], body)
        else:
            self._parked.append(body)

    def _send(self, session: _Session, body: bytes) -> None:
        self.report.receipts += 1
        session.deliver(body)

    def _minute(self) -> bytes:
        now_s = time.time()
        if now_s >= self._date_until_s:
            self._date = time.strftime("%y%m%d%H%M", time.gmtime(now_s))
            self._date_until_s = now_s // 60 * 60 + 60
        return self._date.encode()


class Running:
    """An SMSC in a process of its own."""

    def __init__(self, port: int, ask: Connection) -> None:
        self.port = port
        self._ask = ask

    def report(self) -> Report:
        """What it has seen so far."""
        self._ask.send(None)
        return Report(**self._ask.recv())


@contextmanager
def running(behaviour: Behaviour | None = None, port: int = 0) -> Iterator[Running]:
    """An SMSC in a process of its own, on 127.0.0.1; killed at the end, so ask for reports before.

    Args:
        behaviour: how fast it answers; at once, with receipts, unless given.
        port: 0 for any that is free.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_run, args=(listener, behaviour or Behaviour(), there))
    process.start()
    there.close()
    try:
        yield Running(listener.getsockname()[1], here)
    finally:
        listener.close()
        process.kill()
        process.join()
        here.close()


def _run(listener: socket.socket, behaviour: Behaviour, asked: Connection) -> None:
    uvloop.run(_serve(listener, behaviour, asked))


async def _serve(listener: socket.socket, behaviour: Behaviour, asked: Connection) -> None:
    smsc = Smsc(behaviour)
    loop = asyncio.get_running_loop()

    def tell() -> None:
        try:
            asked.recv()
        except EOFError:
            # Whoever started it is gone.
            os._exit(1)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        smsc.report.cpu_s = usage.ru_utime + usage.ru_stime
        asked.send(asdict(smsc.report))

    loop.add_reader(asked.fileno(), tell)
    server = await loop.create_server(smsc.session, sock=listener)
    await server.serve_forever()
