"""One bind: a connection to an SMSC from its first byte to its last.

A ``Link`` has a window of submits without an answer, by their sequence numbers, and writes what
comes up in a round of the event loop in one piece. It ends by itself when the SMSC is silent, talks
nonsense or says goodbye, and tells its owner what became of each submit: answered, *unsent* (no
byte of it was given to the connection), or neither.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol, cast

from smsgw.logs import get
from smsgw.operators import SmppProviderSettings
from smsgw.providers.smpp.bodies import RESPONSE, Bind, Body, Command, MessageId, Pdu
from smsgw.providers.smpp.flights import Part
from smsgw.providers.smpp.pdu import (
    PduError,
    answer,
    decode,
    encode,
    frames,
    nack,
    next_sequence,
)
from smsgw.providers.smpp.status import CommandStatus, StatusClass, classify, name

log = get(__name__)

LATE_MAX: Final = 1_000
"""Submits whose answer nobody waits for any more, but would still be welcome; two windows at least,
since an operator that stalls does so on a window at a time."""
OUT_MAX: Final = 10_000
"""PDUs for an SMSC that does not read; one more, and the connection is given up."""
_DELIVERIES: Final = frozenset({Command.DELIVER_SM, Command.DATA_SM})
_LOOK_AT: Final[Mapping[int, str]] = {
    CommandStatus.ESME_RINVPASWD: "; look at password",
    CommandStatus.ESME_RINVSYSID: "; look at system_id",
    CommandStatus.ESME_RINVSYSTYP: "; look at system_type",
}

# Whose answers hold more than the status.
_TELLING: Final = (CommandStatus.ESME_ROK, CommandStatus.ESME_RDELIVERYFAILURE)


class State(Enum):
    """How far a link is: it can only go on to a later one."""

    CONNECTING = auto()
    BINDING = auto()
    BOUND = auto()
    ENDING = auto()
    UNBINDING = auto()
    CLOSED = auto()


@dataclass(slots=True, frozen=True)
class Ending:
    """Why a link ended; ``hopeless`` where the next one will end like it until somebody acts."""

    why: str
    hopeless: bool = False


class Owner(Protocol):
    """Whom a link tells."""

    def bound(self, link: "Link") -> None:
        """It can be used."""
        ...

    def ending(self, link: "Link", ending: Ending) -> None:
        """It takes no more submits; answers may still come."""
        ...

    def lost(
        self, link: "Link", ending: Ending, unsent: list[Part], unanswered: list[Part]
    ) -> None:
        """It is gone, and with it what it had not sent, and the answers to the rest."""
        ...

    def answered(self, link: "Link", part: Part, status: int, body: MessageId) -> None:
        """The answer to a submit; also to one that was given up."""
        ...

    def delivered(self, link: "Link", request: Pdu) -> None:
        """A deliver_sm or data_sm, which is owed one ``reply``."""
        ...

    def has_room(self) -> None:
        """It takes submits again."""
        ...


class Link(asyncio.Protocol):
    """One bind; made for one connection, and not used again."""

    def __init__(
        self, settings: SmppProviderSettings, bind: Command, window: int, owner: Owner
    ) -> None:
        """Prepare it.

        Args:
            settings: the operator's.
            bind: which of the three kinds.
            window: submits without an answer.
            owner: whom to tell.
        """
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[bool] = loop.create_future()
        self.closed: asyncio.Future[Ending] = loop.create_future()
        self.sends = bind is not Command.BIND_RECEIVER
        self.held = 0
        self._loop = loop
        self._settings = settings
        self._bind = bind
        self._window = window
        self._late_max = max(LATE_MAX, 2 * window)
        self._owner = owner
        self._state = State.CONNECTING
        self._ending: Ending | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        # What is to be written, with the submit that it is, if it is one.
        self._out: list[tuple[bytes, Part | None]] = []
        self._unwritten: set[int] = set()
        self._flushing = False
        self._paused = False
        self._sequence = 0
        self._outstanding: dict[int, Part] = {}
        self._late: OrderedDict[int, Part] = OrderedDict()
        self._heard_s = loop.time()
        self._enquired = False
        self._timer: asyncio.TimerHandle | None = None
        self._farewell: Pdu | None = None

    @property
    def outstanding(self) -> int:
        """How many submits have no answer yet."""
        return len(self._outstanding)

    @property
    def free(self) -> int:
        """How many submits it takes now."""
        if self._state is not State.BOUND or self._paused:
            return 0
        return self._window - len(self._outstanding)

    # What it is told to do.

    def follow(self, settings: SmppProviderSettings) -> None:
        """Go by other times from the next one on."""
        self._settings = settings

    def send(self, part: Part) -> None:
        """Send a submit; only where there is room.

        Raises:
            PduError: it cannot be written, and nothing was.
        """
        assert self.free > 0
        sequence = self._next()
        raw = encode(Command.SUBMIT_SM, sequence, part.message)
        part.carrier, part.sequence = self, sequence
        self._outstanding[sequence] = part
        self._unwritten.add(sequence)
        self._write(raw, part)

    def give_up(self, part: Part) -> bool:
        """Wait no longer for an answer; whether it may have left.

        If not, it never will. If so, an answer is still told.
        """
        if self._outstanding.pop(part.sequence, None) is None:
            return True
        kept = [one for one in self._out if one[1] is not part]
        if len(kept) < len(self._out):
            self._out = kept
            self._unwritten.discard(part.sequence)
            return False
        self._late[part.sequence] = part
        if len(self._late) > self._late_max:
            self._late.popitem(last=False)
        self._look_whether_done()
        return True

    def holds(self, part: Part) -> bool:
        """Whether it has not left yet, since the SMSC reads too slowly."""
        return part.sequence in self._unwritten

    def reply(self, request: Pdu, status: int) -> None:
        """Answer a deliver_sm or data_sm, if the connection is still there."""
        self.held -= 1
        self._write(answer(request, status))
        self._look_whether_done()

    def request(self, command: Command, body: Body = None) -> None:
        """Ask for something whose answer nobody waits for.

        Raises:
            PduError: it cannot be written.
        """
        self._write(encode(command, self._next(), body))

    def end(self, why: str, *, hopeless: bool = False, request: Pdu | None = None) -> None:
        """Take no more submits, give answers a little time, unbind and close.

        Args:
            why: told to whoever asks.
            hopeless: whether binding again at once would be in vain.
            request: the SMSC's unbind, if it asked for it.
        """
        if self._state is not State.BOUND:
            return
        self._state = State.ENDING
        self._ending = Ending(why, hopeless)
        self._farewell = request
        self._again_after(self._settings.unbind_timeout_s, self._unbind)
        self._owner.ending(self, self._ending)
        self._look_whether_done()

    def abort(self, why: str) -> None:
        """Close at once."""
        if self._transport is not None and self._state is not State.CLOSED:
            self._ending = self._ending or Ending(why)
            self._transport.abort()

    # What the connection tells it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bind."""
        settings = self._settings
        # That of uvloop does not say so.
        self._transport = cast(asyncio.Transport, transport)
        self._state = State.BINDING
        self.request(
            self._bind,
            Bind(settings.system_id, settings.password.get_secret_value(), settings.system_type),
        )

    def connection_lost(self, _: Exception | None) -> None:
        """Tell what became of everything."""
        why = "the connection was lost"
        if self._state is State.BINDING:
            why += " before the bind was answered"
            if self._settings.tls:
                why += "; the operator may want to see another certificate of ours"
        ending = self._ending = self._ending or Ending(why)
        self._state = State.CLOSED
        if self._timer is not None:
            self._timer.cancel()
        unsent = [part for _, part in self._out if part is not None]
        for part in unsent:
            self._outstanding.pop(part.sequence, None)
        unanswered = list(self._outstanding.values())
        self._out, self._outstanding, self._late = [], {}, OrderedDict()
        self._owner.lost(self, ending, unsent, unanswered)
        if not self.opened.done():
            self.opened.set_result(False)
        if not self.closed.done():
            self.closed.set_result(ending)

    def pause_writing(self) -> None:
        """The SMSC reads too slowly."""
        self._paused = True

    def resume_writing(self) -> None:
        """The SMSC has caught up."""
        self._paused = False
        self._flush()
        if self._state is State.BOUND:
            self._owner.has_room()

    def data_received(self, data: bytes) -> None:
        """Take all whole PDUs that are there."""
        self._buffer += data
        try:
            for pdu in frames(self._buffer):
                self._take(pdu)
        except PduError as error:
            self._write(nack(error.sequence, error.command_status))
            self._close(f"the operator does not speak SMPP: {error}")

    # What PDUs do.

    def _take(self, pdu: Pdu) -> None:
        self._heard_s = self._loop.time()
        self._enquired = False
        command = pdu.command
        if command == Command.SUBMIT_SM_RESP:
            self._take_answer(pdu, pdu.status)
        elif command in _DELIVERIES:
            self.held += 1
            self._owner.delivered(self, pdu)
        elif command < RESPONSE:
            self._take_request(pdu)
        elif self._state is State.BINDING:
            # A generic_nack is an answer to the bind, too, and never a good one.
            self._take_bind_response(pdu)
        elif command == Command.GENERIC_NACK:
            self._take_answer(pdu, pdu.status or CommandStatus.ESME_RUNKNOWNERR)
        elif command == Command.UNBIND_RESP:
            self._close("the operator has ended the bind")
        elif command != Command.ENQUIRE_LINK_RESP:
            log.info("smpp.answer", "an answer came", pdu=pdu.name, command_status=name(pdu.status))

    def _take_answer(self, pdu: Pdu, status: int) -> None:
        part = None
        if pdu.sequence not in self._unwritten:
            part = self._outstanding.pop(pdu.sequence, None) or self._late.pop(pdu.sequence, None)
        if part is None:
            log.warning(
                "smpp.answer",
                "an answer to nothing that was asked",
                pdu=pdu.name,
                command_status=name(status),
            )
            return
        body = MessageId()
        if status in _TELLING and pdu.command != Command.GENERIC_NACK:
            found = decode(pdu)
            assert isinstance(found, MessageId)
            body = found
        self._owner.answered(self, part, status, body)
        self._look_whether_done()

    def _take_bind_response(self, pdu: Pdu) -> None:
        status = pdu.status
        if status != CommandStatus.ESME_ROK:
            hopeless = classify(status) is StatusClass.LINK_CONFIG
            why = f"the operator refuses to bind: {name(status)}{_LOOK_AT.get(status, '')}"
            self._ending = Ending(why, hopeless)
            self._close(why)
        elif pdu.command == self._bind | RESPONSE:
            self._state = State.BOUND
            self._again_after(self._settings.enquire_link_s, self._look_whether_alive)
            self._owner.bound(self)
            if not self.opened.done():
                self.opened.set_result(True)

    def _take_request(self, pdu: Pdu) -> None:
        if pdu.command != Command.UNBIND:
            self._write(answer(pdu))
        elif self._state is State.BOUND:
            self.end("the operator has ended the bind", request=pdu)
        elif self._state is State.ENDING:
            self._farewell = pdu
        else:
            self._write(answer(pdu))
            self._close("the operator has ended the bind")

    # What time does.

    def _again_after(self, delay_s: float, do: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, do)

    def _look_whether_alive(self) -> None:
        quiet_s = self._loop.time() - self._heard_s
        left_s = self._settings.enquire_link_s - quiet_s
        if self._enquired:
            self.abort("the operator has not answered an enquire_link")
        elif left_s > 0:
            self._again_after(left_s, self._look_whether_alive)
        else:
            self._enquired = True
            self.request(Command.ENQUIRE_LINK)
            self._again_after(self._settings.link_timeout_s, self._look_whether_alive)

    def _look_whether_done(self) -> None:
        if self._state is State.ENDING and not self._outstanding and not self.held:
            self._unbind()

    def _unbind(self) -> None:
        assert self._ending is not None
        if self._farewell is not None:
            self._write(answer(self._farewell))
            self._close(self._ending.why)
            return
        self._state = State.UNBINDING
        self.request(Command.UNBIND)
        self._again_after(self._settings.unbind_timeout_s, self._give_in)

    def _close(self, why: str) -> None:
        """Close once all is written."""
        assert self._transport is not None
        self._ending = self._ending or Ending(why)
        if self._state is State.BOUND:
            self._state = State.ENDING
            self._owner.ending(self, self._ending)
        self._flush()
        self._transport.close()
        self._again_after(self._settings.unbind_timeout_s, self._give_in)

    def _give_in(self) -> None:
        assert self._ending is not None
        self.abort(self._ending.why)

    # What is written.

    def _next(self) -> int:
        self._sequence = next_sequence(self._sequence)
        return self._sequence

    def _write(self, raw: bytes, part: Part | None = None) -> None:
        if not raw or self._state is State.CLOSED:
            return
        self._out.append((raw, part))
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        if self._paused and len(self._out) > OUT_MAX:
            self.abort("the operator does not read what it is sent")

    def _flush(self) -> None:
        self._flushing = False
        transport = self._transport
        if transport is None or self._paused or not self._out or transport.is_closing():
            return
        out, self._out = self._out, []
        self._unwritten.clear()
        transport.write(b"".join([raw for raw, _ in out]))
