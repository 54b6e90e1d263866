"""An operator that speaks SMPP 3.4."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from math import ceil
from typing import Final

from smsgw.clock import rfc3339
from smsgw.logs import get
from smsgw.models import Outcome, Verdict
from smsgw.operators import ProviderSettings, SmppProviderSettings
from smsgw.providers.base import Accepted, Sink, Submission, about
from smsgw.providers.smpp.bodies import Cancel, Command, MessageId, Pdu, ShortMessage, Tag
from smsgw.providers.smpp.flights import ANSWER_SHARE, Flight, Forms, Part
from smsgw.providers.smpp.keeper import Keeper
from smsgw.providers.smpp.link import Ending, Link
from smsgw.providers.smpp.pdu import PduError, decode
from smsgw.providers.smpp.receipt import NOTATIONS, canonical, keys, parse
from smsgw.providers.smpp.segments import validity_period
from smsgw.providers.smpp.status import (
    ALARMING,
    CommandStatus,
    StatusClass,
    classify,
    failure_name,
    name,
)
from smsgw.providers.tls import client_context

log = get(__name__)

NO_RECEIVER: Final = "no receipt can arrive: no bind that receives is up"
WRITTEN_MAX: Final = 10_000
"""Ids of one-time codes that are remembered as the operator wrote them, to cancel by."""
CANCELS_MAX: Final = 1_000
CANCEL_KEPT_S: Final = 300.0
"""How long a dead code may wait for a bind to be cancelled on; by then nobody would enter it."""
_BINDS: Final = {
    "transceiver": (Command.BIND_TRANSCEIVER,),
    "transmitter+receiver": (Command.BIND_TRANSMITTER, Command.BIND_RECEIVER),
}
_VERDICTS: Final = {
    StatusClass.THROTTLED: Verdict.THROTTLED,
    StatusClass.TEMPORARY: Verdict.FAILED,
    StatusClass.REFUSED: Verdict.REFUSED,
    StatusClass.LINK: Verdict.NOT_SENT,
    StatusClass.LINK_CONFIG: Verdict.NOT_SENT,
    # It may be this message that the two do not agree on: attempts are bounded.
    StatusClass.PROTOCOL: Verdict.FAILED,
}
_ENDS_LINK: Final = frozenset({StatusClass.LINK, StatusClass.LINK_CONFIG, StatusClass.PROTOCOL})


class SmppProvider:
    """All binds with one operator, and what is under way on them."""

    def __init__(self, name: str, settings: SmppProviderSettings) -> None:
        """Prepare it.

        Args:
            name: the operator's.
            settings: how it is reached, and what it wants.

        Raises:
            SettingsError: a file for TLS cannot be used.
        """
        self.name = name
        self._read(settings)
        tls = None
        if settings.tls:
            tls = client_context(
                name, settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file
            )
        window = ceil(settings.window / settings.binds)
        self._keepers = [
            Keeper(name, settings, bind, window, tls, self)
            for bind in _BINDS[settings.bind] * settings.binds
        ]
        self._sink: Sink | None = None
        self._bound: list[Link] = []
        self._senders: list[Link] = []
        self._receivers: list[Link] = []
        # Oldest first: all have the same time.
        self._flights: OrderedDict[Flight, None] = OrderedDict()
        self._waiting: deque[Part] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._written: OrderedDict[str, str] = OrderedDict()
        # Until when, our name for the message, and what to ask for, as long as no bind sends.
        self._cancels: deque[tuple[float, str, Cancel]] = deque(maxlen=CANCELS_MAX)
        self._alarmed: set[int] = set()
        self._trouble: str | None = "not connected yet"
        self._warning: str | None = None
        self._since_ms = int(time.time() * 1000)

    def _read(self, settings: SmppProviderSettings) -> None:
        self._settings = settings
        self._forms = Forms(settings)
        self._notation = NOTATIONS[settings.receipt_id]
        self._classes = {
            int(code, 16): StatusClass(kind) for code, kind in settings.status_classes.items()
        }
        self._wants_receivers = settings.receipts and settings.bind == "transmitter+receiver"

    # What the gateway asks for.

    async def start(self, sink: Sink) -> None:
        """Begin to connect."""
        self._sink = sink
        for keeper in self._keepers:
            keeper.start()
        sink.changed(self.name)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be sent: no bind that sends is up."""
        return self._trouble

    @property
    def warning(self) -> str | None:
        """That no receipt can arrive: they wait at the operator, which sends them later."""
        return self._warning

    def follow(self, settings: ProviderSettings) -> None:
        """See ``Provider.follow``; what is under way has as much more time as all that follows."""
        assert isinstance(settings, SmppProviderSettings)
        more_s = ANSWER_SHARE * (settings.response_timeout_s - self._settings.response_timeout_s)
        self._read(settings)
        for keeper in self._keepers:
            keeper.follow(settings)
        for flight in self._flights:
            flight.due_s += more_s
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watch()
        self._look_at_trouble("")

    def submit(self, submission: Submission) -> None:
        """Send it, part by part, on whichever bind has least to do."""
        try:
            flight = self._forms.flight(submission, asyncio.get_running_loop().time())
        except PduError as error:
            self._settled(submission, _unfit(error))
            return
        if not self._forms.accepts(submission):
            detail = "this operator takes whole messages only"
            self._settled(submission, Outcome(Verdict.FAILED, detail=detail))
        elif not flight.parts:
            receipts = self._settings.receipts
            self._settled(submission, Outcome(Verdict.ACCEPTED, receipts=receipts, parts={}))
        elif not self._senders:
            self._settled(submission, Outcome(Verdict.NOT_SENT, detail=self._trouble))
        else:
            self._flights[flight] = None
            if submission.otp:
                self._waiting.extendleft(reversed(flight.parts))
            else:
                self._waiting.extend(flight.parts)
            self._send_waiting()
            self._watch()

    def state(self) -> Mapping[str, str | int]:
        """The binds, and what waits for what."""
        return {
            "binds": f"{len(self._bound)} of {len(self._keepers)} bound",
            "outstanding": sum(link.outstanding for link in self._bound),
            "waiting": len(self._waiting),
            "receipts_held": sum(link.held for link in self._bound),
            "since": rfc3339(self._since_ms),
        }

    def cancel(self, submission: Submission, provider_message_id: str) -> bool:
        """Send a cancel_sm where the operator knows it, or keep it for the next bind."""
        if not self._settings.cancel or self._stopped:
            return False
        written = self._written.pop(provider_message_id, provider_message_id)
        cancel = self._forms.cancel(submission, written)
        if self._senders:
            return _ask_to_cancel(self._senders[0], submission.reference, cancel)
        until_s = asyncio.get_running_loop().time() + CANCEL_KEPT_S
        self._cancels.append((until_s, submission.reference, cancel))
        return True

    def withdraw(self, submission: Submission) -> None:
        """Send none of the parts that wait for room, or for the SMSC to read."""
        flights = (flight for flight in self._flights if flight.submission is submission)
        flight = next(flights, None)
        for part in flight.parts if flight is not None else ():
            if part.number in part.flight.outcomes:
                continue
            carrier = part.carrier
            if carrier is None or (carrier.holds(part) and not carrier.give_up(part)):
                self._take(part, Outcome(Verdict.NOT_SENT, detail="no room in time"))

    def restore(self, accepted: Sequence[Accepted]) -> None:
        """Nothing: an SMSC reports by itself, also after a restart."""

    def asks_again(self) -> bool:
        """It never does."""
        return False

    async def stop(self) -> None:
        """Unbind, and close; by then all that was submitted has an outcome."""
        self._stopped = True
        self._senders.clear()
        self._look_at_trouble("the gateway stops")
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers))
        while self._bound:
            # Its keeper was stopped before it knew of the bind.
            await self._bound[0].closed
        if self._timer is not None:
            self._timer.cancel()
        assert not self._flights, "every link has told what became of its submits"

    # What links tell.

    def bound(self, link: Link) -> None:
        """See ``Owner.bound``."""
        self._bound.append(link)
        if not self._stopped:
            (self._senders if link.sends else self._receivers).append(link)
            if link.sends:
                self._cancel_kept(link)
            self._look_at_trouble("")

    def ending(self, link: Link, ending: Ending) -> None:
        """See ``Owner.ending``."""
        links = self._senders if link.sends else self._receivers
        if link in links:
            links.remove(link)
            self._look_at_trouble(ending.why)

    def lost(self, link: Link, ending: Ending, unsent: list[Part], unanswered: list[Part]) -> None:
        """See ``Owner.lost``."""
        if link in self._bound:
            self._bound.remove(link)
        for part in unsent:
            part.carrier = None
        self._waiting.extendleft(reversed(unsent))
        self.ending(link, ending)
        for part in unanswered:
            detail = "the connection was lost before the answer"
            # However much was under way, it is one sign of the operator's health.
            timed_out = part.flight is unanswered[0].flight and not self._stopped
            self._take(part, Outcome(Verdict.UNKNOWN, detail=detail, timed_out=timed_out))
        self._send_waiting()

    def failed(self, ending: Ending) -> None:
        """See ``KeeperOwner.failed``."""
        self._look_at_trouble(ending.why)

    def has_room(self) -> None:
        """See ``Owner.has_room``."""
        self._send_waiting()

    def answered(self, link: Link, part: Part, status: int, body: MessageId) -> None:
        """See ``Owner.answered``."""
        submission = part.flight.submission
        if status == CommandStatus.ESME_ROK:
            identifier = canonical(body.message_id, self._notation.response)
            if submission.otp and self._settings.cancel and identifier != body.message_id:
                self._remember(identifier, body.message_id)
            self._take(part, part.flight.forms.accepted(submission, identifier))
        else:
            failure = body.tlvs.get(Tag.DELIVERY_FAILURE_REASON, b"")
            kind = classify(status, self._classes, failure)
            detail = ": ".join(filter(None, (name(status), failure_name(failure))))
            pause_s = self._settings.throttle_pause_s if kind is StatusClass.THROTTLED else None
            if status in ALARMING and status not in self._alarmed:
                self._alarmed.add(status)
                log.error("smpp.defect", "an operator cannot read a submit_sm", why=detail)
            if kind in _ENDS_LINK:
                hopeless = kind is StatusClass.LINK_CONFIG
                link.end(f"the operator answers a submit with {detail}", hopeless=hopeless)
            outcome = Outcome(_VERDICTS[kind], detail=detail, retry_after_s=pause_s, answered=True)
            self._take(part, outcome)
        if self._waiting:
            self._send_waiting()

    def delivered(self, link: Link, request: Pdu) -> None:
        """See ``Owner.delivered``."""
        assert self._sink is not None
        try:
            message = decode(request)
        except PduError as error:
            log.warning("smpp.unreadable", "a PDU cannot be read", why=_told(error))
            link.reply(request, error.command_status)
            return
        assert isinstance(message, ShortMessage)
        receipt = parse(message)
        if receipt is None:
            self._sink.wrote(self.name)
            log.info(
                "smpp.inbound",
                "a handset wrote, and nobody reads it",
                provider=self.name,
                octets=len(message.octets),
                **{"from": message.source.value, "to": message.destination.value},
            )
            link.reply(request, CommandStatus.ESME_ROK)
        elif link.held > self._settings.receipts_max:
            link.reply(request, CommandStatus.ESME_RX_T_APPN)
        else:
            identifier, *others = keys(receipt, self._notation) or ("",)
            self._sink.received(
                self.name,
                identifier,
                receipt.word,
                receipt.reason,
                others=others,
                about=about(message.source.value, message.destination.value),
                stored=partial(_acknowledge, link, request),
            )

    # What becomes of parts.

    def _send_waiting(self) -> None:
        """Send what waits, as long as there is room."""
        waiting = self._waiting
        while waiting and (link := self._roomiest()) is not None:
            part = waiting.popleft()
            if part.number not in part.flight.outcomes:
                self._send(part, link)
        if waiting and not self._senders:
            self._waiting = deque()
            for part in waiting:
                if part.number not in part.flight.outcomes:
                    self._take(part, Outcome(Verdict.NOT_SENT, detail=self._trouble))

    def _roomiest(self) -> Link | None:
        found, fewest = None, 0
        for link in self._senders:
            if link.free > 0 and (found is None or link.outstanding < fewest):
                found, fewest = link, link.outstanding
        return found

    def _send(self, part: Part, link: Link) -> None:
        left_s = part.flight.expires_at_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            self._take(part, Outcome(Verdict.NOT_SENT, detail="its time was over"))
            return
        part.message.validity_period = validity_period(left_s)
        try:
            link.send(part)
        except PduError as error:
            self._take(part, _unfit(error))

    def _take(self, part: Part, outcome: Outcome) -> None:
        """Take the outcome of a part; the last one, or a late one, is told."""
        flight = part.flight
        flight.outcomes[part.number] = outcome
        if flight.complete:
            self._flights.pop(flight, None)
            self._settled(flight.submission, flight.outcome())

    def _settled(self, submission: Submission, outcome: Outcome) -> None:
        assert self._sink is not None
        self._sink.settled(self.name, submission, outcome)

    def _watch(self) -> None:
        """Wake up when the oldest flight is due."""
        if self._timer is None and self._flights:
            due_s = next(iter(self._flights)).due_s
            self._timer = asyncio.get_running_loop().call_at(due_s, self._give_up)

    def _give_up(self) -> None:
        """Wait no longer for what is due."""
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for flight in list(takewhile(lambda flight: flight.due_s <= now_s, self._flights)):
            for part in flight.parts:
                if part.number in flight.outcomes:
                    continue
                if part.carrier is not None and part.carrier.give_up(part):
                    self._take(
                        part, Outcome(Verdict.UNKNOWN, detail="no answer in time", timed_out=True)
                    )
                else:
                    self._take(part, Outcome(Verdict.NOT_SENT, detail="no room in time"))
        self._send_waiting()
        self._watch()

    def _look_at_trouble(self, why: str) -> None:
        """Tell whether anything can be sent, and reported, if that is another now."""
        trouble = None if self._senders else why or self._trouble
        warning = NO_RECEIVER if self._wants_receivers and not self._receivers else None
        if (trouble, warning) != (self._trouble, self._warning):
            if (trouble is None) != (self._trouble is None):
                self._since_ms = int(time.time() * 1000)
            self._trouble, self._warning = trouble, warning
            if self._sink is not None:
                self._sink.changed(self.name)
        self._send_waiting()

    def _cancel_kept(self, link: Link) -> None:
        """Ask for what died while there was no bind."""
        now_s = asyncio.get_running_loop().time()
        while self._cancels:
            until_s, reference, cancel = self._cancels.popleft()
            if now_s < until_s:
                _ask_to_cancel(link, reference, cancel)

    def _remember(self, identifier: str, written: str) -> None:
        self._written[identifier] = written
        if len(self._written) > WRITTEN_MAX:
            self._written.popitem(last=False)


def _ask_to_cancel(link: Link, reference: str, cancel: Cancel) -> bool:
    """Send a cancel_sm; the log tells what the operator says. Whether it could be written."""
    try:
        link.request(Command.CANCEL_SM, cancel)
    except PduError as error:
        log.warning("smpp.cancel", "a cancel_sm cannot be written", why=_told(error))
        return False
    log.info("smpp.cancel", "asked the operator to cancel", message=reference)
    return True


def _acknowledge(link: Link, request: Pdu, stored: bool) -> None:
    link.reply(request, CommandStatus.ESME_ROK if stored else CommandStatus.ESME_RX_T_APPN)


def _unfit(error: PduError) -> Outcome:
    """That a message cannot be said in an operator's ways, which is no refusal of its own."""
    return Outcome(Verdict.FAILED, detail=f"cannot be said to this operator: {_told(error)}")


def _told(error: PduError) -> str:
    return f"{name(error.command_status)}: {error}"
