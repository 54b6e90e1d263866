"""An SMSC that does what a test tells it to, however wrong that is.

    async with Smsc(system_id="esme", password="secret") as smsc:
        smsc.first(SUBMIT_SM, refused(THROTTLED), in_turn(reported(), accepted()))
        smsc.to["98912000001"] = silent
        ...
        submits = await smsc.saw(SUBMIT_SM, 3)

What it does with a PDU is an ``Action``: first those queued by ``first``, each once; then that of
the recipient (``to``); then that of the command (``on``); else what the standard says. Nothing
here waits for a time: what shall happen later is ``held`` at a gate until ``release``.

It also watches the client: whatever the standard forbids becomes a complaint, and complaints fail
the test at the end of the block. ``python -m tests.smsc`` runs one in a process of its own.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import socket
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tests.pdus import (
    ALREADY_BOUND,
    BIND_KINDS,
    BIND_TRANSCEIVER,
    CANCEL_FAILED,
    CANCEL_SM,
    DATA_SM,
    DELIVER_SM,
    ENQUIRE_LINK,
    GENERIC_NACK,
    INVALID_BIND_STATUS,
    INVALID_COMMAND,
    INVALID_MESSAGE_ID,
    INVALID_PASSWORD,
    INVALID_RECIPIENT,
    INVALID_SYSTEM_ID,
    OK,
    QUERY_SM,
    QUEUE_FULL,
    RESPONSE,
    STATES,
    SUBMIT_SM,
    THROTTLED,
    UNBIND,
    decimal_ids,
    head,
)
from tests.smsc_session import Arrived, Request, Session

BIND: Final = BIND_TRANSCEIVER
"""Stands for all three binds wherever a command is named to an ``Smsc``."""
LIMIT_S: Final = 30
"""How long a wait goes on before it fails with what was seen instead."""

Found = TypeVar("Found")


Action = Callable[[Arrived], None]


def silent(_: Arrived) -> None:
    """Never answer."""


def accepted(message_id: str | None = None, **fields: Any) -> Action:
    """Answer that all is well; the id is the next of ``ids`` unless given."""

    def act(pdu: Arrived) -> None:
        if message_id is not None:
            pdu.message_id = message_id
        pdu.answer(OK, **fields)

    return act


def refused(status: int, **fields: Any) -> Action:
    """Answer with a status; without fields the answer has no body."""
    return lambda pdu: pdu.answer(status, **fields)


def nacked(status: int = INVALID_COMMAND) -> Action:
    """Answer with a generic_nack."""

    def act(pdu: Arrived) -> None:
        pdu.settle(status)
        pdu.session.write(head(GENERIC_NACK, pdu.sequence, status))

    return act


def misnumbered(by: int = 1000) -> Action:
    """Answer another sequence number than the one that asked."""
    return lambda pdu: pdu.answer(OK, sequence=pdu.sequence + by)


def reported(word: str = "DELIVRD", **options: Any) -> Action:
    """Send a receipt; the options are those of ``Arrived.report``."""

    def act(pdu: Arrived) -> None:
        pdu.report(word, **options)

    return act


def in_turn(*actions: Action) -> Action:
    """Do one after the other."""

    def act(pdu: Arrived) -> None:
        for action in actions:
            action(pdu)

    return act


def held(gate: str, action: Action | None = None) -> Action:
    """Do it when the gate is released; without an action, what the standard says."""
    return lambda pdu: pdu.session.smsc.hold(
        gate, lambda: (action or pdu.session.smsc.standard)(pdu)
    )


def halved(gate: str | None = None, sent: int = 10) -> Action:
    """Send the first bytes of an answer; the rest when the gate is released, or never."""

    def act(pdu: Arrived) -> None:
        raw = pdu.response()
        pdu.settle()
        pdu.session.stall(raw, sent)
        if gate is not None:
            pdu.session.smsc.hold(gate, pdu.session.flow)

    return act


def dripped(pdu: Arrived) -> None:
    """Answer byte by byte."""
    raw = pdu.response()
    pdu.settle()
    pdu.session.drip(raw)


def garbled(raw: bytes = b"HTTP/1.1 400 Bad Request\r\n\r\n") -> Action:
    """Send bytes that are no answer."""
    return lambda pdu: pdu.session.write(raw)


def oversized(pdu: Arrived) -> None:
    """Send the head of an answer that claims to be 256 MB long."""
    pdu.session.write(head(pdu.command | RESPONSE, pdu.sequence, length=0x10000000))


def dropped(*, reset: bool = False) -> Action:
    """Close the connection, with all that was written sent, or with a TCP reset."""
    return lambda pdu: pdu.session.drop(reset=reset)


def unbinding(pdu: Arrived) -> None:
    """Ask the client to end the session."""
    pdu.session.request(UNBIND)


def throttled_above(rate_per_s: float, burst: int, now_s: Callable[[], float]) -> Action:
    """Accept and report at most so many a second of the given clock; throttle the rest."""
    tokens, at_s = float(burst), now_s()

    def act(pdu: Arrived) -> None:
        nonlocal tokens, at_s
        tokens, at_s = min(burst, tokens + (now_s() - at_s) * rate_per_s), now_s()
        if tokens < 1:
            pdu.answer(THROTTLED)
            return
        tokens -= 1
        pdu.session.smsc.standard(pdu)

    return act


def later(delay_s: float, action: Action) -> Action:
    """Do it after a time; for an SMSC in a process of its own, as tests wait for no time."""

    def act(pdu: Arrived) -> None:
        asyncio.get_running_loop().call_later(delay_s, action, pdu)

    return act


def hostile(chance: random.Random, late_s: float) -> Action:
    """Do to each submit, by lot, what it should and what it should not, within ``late_s``."""
    good = in_turn(accepted(), reported())
    lies = (
        in_turn(accepted(), reported("UNDELIV")),
        in_turn(reported(), accepted()),
        in_turn(reported("UNDELIV"), accepted()),
        in_turn(accepted(), reported("UNDELIV"), reported()),
        in_turn(misnumbered(), reported()),
        dripped,
    )
    failures = (
        refused(INVALID_RECIPIENT),
        refused(QUEUE_FULL),
        nacked(),
        silent,
        dropped(reset=True),
    )

    def act(pdu: Arrived) -> None:
        match chance.randrange(10):
            case 0 | 1:
                good(pdu)
            case 2 | 3 | 4:
                later(chance.uniform(0, late_s), good)(pdu)
            case 5 | 6 | 7 | 8:
                chance.choice(lies)(pdu)
            case _:
                chance.choice(failures)(pdu)

    return act


def flapping(every: int, action: Action) -> Action:
    """Reset the connection at every so manieth submit, which is reported all the same."""
    counter = itertools.count(1)

    def act(pdu: Arrived) -> None:
        if next(counter) % every:
            action(pdu)
        else:
            in_turn(dropped(reset=True), reported())(pdu)

    return act


class Smsc:
    """The SMSC; an asynchronous context manager that listens while it is entered."""

    def __init__(
        self,
        *,
        system_id: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.system_id = system_id
        self.password = password
        self.host = "127.0.0.1"
        self.port = port
        self.welcoming = True
        self.on: dict[int, Action] = {}
        self.to: dict[str, Action] = {}
        self.ids: Iterator[str] = decimal_ids()
        self.received: list[Arrived] = []
        self.sessions: list[Session] = []
        self.messages: dict[str, Arrived] = {}
        self.states: dict[str, int] = {}
        self.parked: list[Request] = []
        self.complaints: list[str] = []
        self._tls = tls
        self._firsts: defaultdict[int, deque[Action]] = defaultdict(deque)
        self._gates: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)
        self._taken: defaultdict[int, int] = defaultdict(int)
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None

    async def __aenter__(self) -> Self:
        # Bound without listening: the port stays ours while nobody listens on it.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind((self.host, self.port))
        self.port = self._reserved.getsockname()[1]
        await self.listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_listening()
        self.drop_all(reset=True)
        await self.until(lambda: not any(session.alive for session in self.sessions))
        assert self._reserved is not None
        self._reserved.close()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Fail if the client did what the standard forbids; the end of the block does it, too."""
        assert not self.complaints, self.complaints

    async def listen(self) -> None:
        """Take connections."""
        assert self._server is None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Session(self), self.host, self.port, reuse_port=True, ssl=self._tls
        )

    def stop_listening(self) -> None:
        """Refuse connections from now on; those there are stay. ``listen`` ends it."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def drop_all(self, *, reset: bool = False) -> None:
        """Close every connection."""
        for session in self.sessions:
            if session.alive:
                session.drop(reset=reset)

    # What it saw.

    @property
    def submits(self) -> list[Arrived]:
        """Every submit_sm and data_sm, as they came."""
        return [pdu for pdu in self.received if pdu.command in (SUBMIT_SM, DATA_SM)]

    @property
    def bound(self) -> list[Session]:
        """The sessions that are bound now."""
        return [session for session in self.sessions if session.alive and session.bind]

    @property
    def outstanding_max(self) -> int:
        """The most submits that were unanswered at a time on one connection."""
        return max((session.outstanding_max for session in self.sessions), default=0)

    def of(self, command: int) -> list[Arrived]:
        """Every PDU of a command, as they came."""
        return [pdu for pdu in self.received if _kind(pdu.command) == _kind(command)]

    def complain(self, sentence: str) -> None:
        """Note what the client did wrong."""
        self.complaints.append(sentence)
        self.changed()

    def changed(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], Found], limit_s: float = LIMIT_S) -> Found:
        """What a condition gives as soon as it is true; looked at after everything that happens.

        Raises:
            AssertionError: it was not true in time.
        """
        try:
            async with asyncio.timeout(limit_s):
                while not (found := condition()):
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"only saw {self.received}, {self.complaints}") from None
        return found

    async def saw(
        self, command: int, count: int = 1, where: Callable[[Arrived], bool] = lambda _: True
    ) -> list[Arrived]:
        """All PDUs of a command, once there are so many."""

        def found() -> list[Arrived]:
            return [pdu for pdu in self.of(command) if where(pdu)]

        await self.until(lambda: len(found()) >= count)
        return found()

    async def next(self, command: int) -> Arrived:
        """The oldest PDU of a command that ``next`` has not given yet."""
        self._taken[_kind(command)] += 1
        count = self._taken[_kind(command)]
        return (await self.saw(command, count))[count - 1]

    async def binds(self, count: int = 1) -> list[Session]:
        """The bound sessions, once there are so many."""
        await self.until(lambda: len(self.bound) >= count)
        return self.bound

    async def lost(self, session: Session) -> None:
        """Return once a connection is closed."""
        await self.until(lambda: not session.alive)

    # What it does.

    def first(self, command: int, *actions: Action) -> None:
        """Do these to the next PDUs of a command, one each, before anything else applies."""
        self._firsts[_kind(command)].extend(actions)

    def hold(self, gate: str, action: Callable[[], None]) -> None:
        """Keep an action until the gate is released."""
        self._gates[gate].append(action)
        self.changed()

    def waiting(self, gate: str) -> int:
        """How many actions wait at a gate."""
        return len(self._gates[gate])

    def release(self, gate: str, count: int | None = None, *, reverse: bool = False) -> None:
        """Do the oldest so many actions that wait at a gate, or all; in reverse order if asked."""
        waiting = self._gates[gate]
        assert len(waiting) >= (count or 1), f"{len(waiting)} wait at {gate!r}"
        chosen = waiting[:count]
        del waiting[:count]
        for action in reversed(chosen) if reverse else chosen:
            action()
        self.changed()

    def act(self, pdu: Arrived) -> None:
        """Do what the script says about a request."""
        kind = _kind(pdu.command)
        if pdu.command in (SUBMIT_SM, DATA_SM, QUERY_SM, CANCEL_SM) and (
            pdu.session.kind not in ("TX", "TRX")
        ):
            self.complain(f"not bound for it: {pdu}")
            pdu.answer(INVALID_BIND_STATUS)
        elif self._firsts[kind]:
            self._firsts[kind].popleft()(pdu)
        elif pdu.command in (SUBMIT_SM, DATA_SM) and pdu.recipient.lstrip("+") in self.to:
            self.to[pdu.recipient.lstrip("+")](pdu)
        else:
            self.on.get(kind, self.standard)(pdu)

    def standard(self, pdu: Arrived) -> None:
        """What an SMSC does that wants no trouble; a submit is accepted and reported delivered."""
        match pdu.command:
            case command if command in BIND_KINDS:
                self._bind(pdu)
            case command if command in (SUBMIT_SM, DATA_SM):
                pdu.answer()
                pdu.report()
            case command if command == QUERY_SM:
                state = self.states.get(pdu["message_id"])
                if state is None:
                    pdu.answer(INVALID_MESSAGE_ID)
                else:
                    pdu.answer(OK, message_id=pdu["message_id"], message_state=state)
            case command if command == CANCEL_SM:
                known = self.states.get(pdu["message_id"]) == STATES["ENROUTE"]
                if known:
                    self.states[pdu["message_id"]] = STATES["DELETED"]
                pdu.answer(OK if known else CANCEL_FAILED)
            case command if command == ENQUIRE_LINK:
                pdu.answer()
            case command if command == UNBIND:
                pdu.answer()
                pdu.session.drop()
            case _:
                self.complain(f"a command that no client sends: {pdu}")
                nacked()(pdu)

    def _bind(self, pdu: Arrived) -> None:
        if pdu.session.bind:
            self.complain(f"bound already: {pdu}")
            pdu.answer(ALREADY_BOUND)
        elif self.system_id not in (None, pdu["system_id"]):
            pdu.answer(INVALID_SYSTEM_ID)
        elif self.password not in (None, pdu["password"]):
            pdu.answer(INVALID_PASSWORD)
        else:
            pdu.answer()
            if pdu.session.receives:
                parked, self.parked = self.parked, []
                for request in parked:
                    pdu.session.send(request)

    def deliver(
        self, request: Request, near: Session | None = None, *, elsewhere: bool = False
    ) -> None:
        """Send a request on that session, or on the latest that receives, or once one does."""
        receivers = [session for session in self.bound if session.receives]
        if near in receivers and not elsewhere:
            receivers.append(near)
        elif elsewhere:
            receivers = [session for session in receivers if session is not near]
        if receivers:
            receivers[-1].send(request)
        else:
            self.parked.append(request)

    def unanswered(self) -> list[Request]:
        """Receipts and messages to the client that it never answered, on any session."""
        return [
            request
            for session in self.sessions
            for request in session.requests.values()
            if request.answer is None
            and request.session is session
            and request.command in (DELIVER_SM, DATA_SM)
        ]

    def redeliver(self) -> list[Request]:
        """Send again what was unanswered when its connection was lost."""
        again = [one for one in self.unanswered() if one.session and not one.session.alive]
        for request in again:
            self.deliver(request)
        return again


def _kind(command: int) -> int:
    return BIND if command in BIND_KINDS else command


def journaled(path: Path, action: Action) -> Action:
    """Write down a submit, to survive this process, before anything else is done with it."""
    journal = path.open("a", buffering=1)

    def act(pdu: Arrived) -> None:
        line = {"at_s": time.time(), "to": pdu.recipient, "from": pdu.sender}
        line |= {"data": pdu.user_data.hex(), "message_id": pdu.message_id}
        journal.write(json.dumps(line) + "\n")
        action(pdu)

    return act


async def _serve(arguments: argparse.Namespace) -> None:
    async with Smsc(
        system_id=arguments.system_id, password=arguments.password, port=arguments.port
    ) as smsc:
        answer = later(arguments.answer_after_s, accepted())
        receipt = later(arguments.receipt_after_s, reported(arguments.word))
        smsc.on[SUBMIT_SM] = in_turn(answer, receipt)
        if arguments.hostile_s:
            smsc.on[SUBMIT_SM] = hostile(random.Random(arguments.port), arguments.hostile_s)
        if arguments.reset_every:
            smsc.on[SUBMIT_SM] = flapping(arguments.reset_every, smsc.on[SUBMIT_SM])
        smsc.on[BIND] = in_turn(smsc.standard, lambda _: smsc.redeliver())
        if arguments.journal:
            smsc.on[SUBMIT_SM] = journaled(arguments.journal, smsc.on[SUBMIT_SM])
        print(f"listens on {smsc.host}:{smsc.port}", flush=True)
        await asyncio.Event().wait()


def main(given: Iterable[str] | None = None) -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.smsc", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--system-id")
    parser.add_argument("--password")
    parser.add_argument("--answer-after-s", type=float, default=0)
    parser.add_argument("--receipt-after-s", type=float, default=0)
    parser.add_argument("--word", default="DELIVRD", choices=STATES)
    parser.add_argument("--reset-every", type=int)
    parser.add_argument("--hostile-s", type=float)
    parser.add_argument("--journal", type=Path)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args(None if given is None else list(given))))


if __name__ == "__main__":
    main()
