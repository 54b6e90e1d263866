"""One bind, on a connection that is made by hand."""

import asyncio
from typing import Any

import pytest

from smsgw.operators import SmppProviderSettings
from smsgw.providers.base import Submission
from smsgw.providers.smpp.bodies import Cancel, Command, MessageId, Pdu
from smsgw.providers.smpp.flights import Forms, Part
from smsgw.providers.smpp.link import LATE_MAX, OUT_MAX, Ending, Link
from smsgw.providers.smpp.pdu import SEQUENCE_MAX, PduError
from tests.pdus import (
    BIND_TRANSCEIVER,
    DELIVER_SM,
    ENQUIRE_LINK,
    GENERIC_NACK,
    RESPONSE,
    SUBMIT_SM,
    UNBIND,
    encode,
    head,
    parse,
)
from tests.pdus import Pdu as Seen


class Wire(asyncio.Transport):
    """What a connection was told to do, and what was written on it, one entry a write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closing = False
        self.aborted = False

    def write(self, data: Any) -> None:
        assert not self.aborted
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def is_closing(self) -> bool:
        return self.closing


class Notes:
    """Whom the link tells: what it was told, one word and more each."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def bound(self, link: Link) -> None:
        self.told.append(("bound",))

    def ending(self, link: Link, ending: Ending) -> None:
        self.told.append(("ending", ending.why, ending.hopeless))

    def lost(self, link: Link, ending: Ending, unsent: list[Part], unanswered: list[Part]) -> None:
        self.told.append(("lost", ending.why, unsent, unanswered))

    def answered(self, link: Link, part: Part, status: int, body: MessageId) -> None:
        self.told.append(("answered", part, status, body.message_id))

    def delivered(self, link: Link, request: Pdu) -> None:
        self.told.append(("delivered", request))

    def has_room(self) -> None:
        self.told.append(("has room",))


class Bench:
    """A link, its wire, and its owner."""

    def __init__(self, window: int = 10, **settings: Any) -> None:
        self.settings = SmppProviderSettings(
            **{"kind": "smpp", "host": "h", "system_id": "esme", **settings}
        )
        self.notes = Notes()
        self.link = Link(self.settings, Command.BIND_TRANSCEIVER, window, self.notes)
        self.wire = Wire()
        self.forms = Forms(self.settings)

    async def bind(self) -> None:
        self.link.connection_made(self.wire)
        assert [pdu.command for pdu in await self.written()] == [BIND_TRANSCEIVER]
        self.link.data_received(encode(BIND_TRANSCEIVER | RESPONSE, 1, system_id="smsc"))
        assert self.heard() == [("bound",)]
        assert await self.link.opened

    async def turn(self) -> None:
        """Let a round of the event loop pass."""
        turned = asyncio.get_running_loop().create_future()
        # Behind what the link has planned for the end of this round.
        asyncio.get_running_loop().call_soon(turned.set_result, None)
        await turned

    async def written(self) -> list[Seen]:
        """The PDUs written since the last time, each round in one piece."""
        await self.turn()
        writes, self.wire.writes = self.wire.writes, []
        assert len(writes) <= 1
        data, found = b"".join(writes), []
        while data:
            length = int.from_bytes(data[:4], "big")
            found.append(parse(data[:length]))
            data = data[length:]
        return found

    def heard(self) -> list[tuple[Any, ...]]:
        told, self.notes.told = self.notes.told, []
        return told

    def part(self, text: str = "hello", **more: Any) -> Part:
        fields = {"sender": "ACME", "recipient": "+989120000000", "valid_s": 60.0, **more}
        submission = Submission(0, 1, "", 1, text=text, ucs2=False, parts=1, **fields)
        return self.forms.flight(submission, 0.0).parts[0]

    def send(self, count: int = 1) -> list[Part]:
        parts = [self.part(f"number {number}") for number in range(count)]
        for part in parts:
            self.link.send(part)
        return parts

    def answer(self, part: Part, message_id: str = "7") -> None:
        self.link.data_received(encode(SUBMIT_SM | RESPONSE, part.sequence, message_id=message_id))


@pytest.fixture
async def bench() -> Bench:
    made = Bench(window=3)
    await made.bind()
    return made


async def test_what_comes_up_in_a_round_is_written_in_one_piece(bench: Bench) -> None:
    parts = bench.send(3)
    assert (bench.link.outstanding, bench.link.free) == (3, 0)
    bench.link.data_received(head(ENQUIRE_LINK, 9))
    assert bench.wire.writes == []
    written = await bench.written()
    assert [(pdu.command, pdu.sequence) for pdu in written] == [
        (SUBMIT_SM, 2),
        (SUBMIT_SM, 3),
        (SUBMIT_SM, 4),
        (ENQUIRE_LINK | RESPONSE, 9),
    ]
    bench.answer(parts[1], "b")
    bench.answer(parts[0], "a")
    assert bench.heard() == [("answered", parts[1], 0, "b"), ("answered", parts[0], 0, "a")]
    assert (bench.link.outstanding, bench.link.free) == (1, 2)
    # A second answer is none.
    bench.answer(parts[0])
    assert bench.heard() == []


async def test_what_was_written_is_unanswered_and_what_was_not_is_unsent(bench: Bench) -> None:
    first = bench.send(2)
    await bench.written()
    second = bench.send()
    bench.link.connection_lost(None)
    assert bench.heard() == [("lost", "the connection was lost", second, first)]
    assert (await bench.link.closed).why == "the connection was lost"
    assert await bench.written() == []
    assert bench.link.free == 0


async def test_a_connection_that_closes_takes_nothing_more(bench: Bench) -> None:
    parts = bench.send(2)
    bench.wire.closing = True
    assert await bench.written() == []
    bench.link.connection_lost(ConnectionResetError())
    assert bench.heard() == [("lost", "the connection was lost", parts, [])]


async def test_nothing_is_written_while_the_smsc_does_not_read(bench: Bench) -> None:
    (first,) = bench.send()
    bench.link.pause_writing()
    assert bench.link.free == 0
    assert await bench.written() == []
    bench.link.resume_writing()
    assert [pdu.sequence for pdu in await bench.written()] == [first.sequence]
    assert (bench.heard(), bench.link.free) == ([("has room",)], 2)


async def test_an_smsc_that_asks_and_never_reads_is_left(bench: Bench) -> None:
    bench.link.pause_writing()
    bench.link.data_received(head(ENQUIRE_LINK, 9) * OUT_MAX)
    assert not bench.wire.aborted
    bench.link.data_received(head(ENQUIRE_LINK, 9))
    assert bench.wire.aborted
    bench.link.connection_lost(None)
    assert bench.heard() == [("lost", "the operator does not read what it is sent", [], [])]


async def test_what_is_given_up_before_it_left_never_leaves(bench: Bench) -> None:
    (sent,) = bench.send()
    await bench.written()
    (unsent,) = bench.send()
    assert not bench.link.give_up(unsent)
    assert bench.link.give_up(sent)
    assert bench.link.outstanding == 0
    assert await bench.written() == []
    bench.heard()
    # An answer is still told, once, however late.
    bench.answer(sent)
    bench.answer(sent)
    assert bench.heard() == [("answered", sent, 0, "7")]
    assert bench.link.give_up(sent)


async def test_what_has_not_left_cannot_be_answered(bench: Bench) -> None:
    (early,) = bench.send()
    bench.answer(early, "made up")
    assert bench.heard() == []
    await bench.written()
    bench.answer(early)
    assert bench.heard() == [("answered", early, 0, "7")]
    (unsent,) = bench.send()
    bench.answer(unsent)
    bench.link.connection_lost(None)
    assert bench.heard() == [("lost", "the connection was lost", [unsent], [])]
    assert bench.link.closed.done()


async def test_late_answers_are_waited_for_with_a_limit(bench: Bench) -> None:
    parts = []
    for _ in range(LATE_MAX + 1):
        parts += bench.send()
        await bench.turn()
        bench.link.give_up(parts[-1])
    bench.answer(parts[0])
    assert bench.heard() == []
    bench.answer(parts[1])
    assert bench.heard() == [("answered", parts[1], 0, "7")]


async def test_late_answers_to_two_whole_windows_are_waited_for() -> None:
    bench = Bench(window=LATE_MAX)
    await bench.bind()
    parts = []
    for _ in range(2):
        parts += bench.send(LATE_MAX)
        await bench.turn()
        for part in parts[-LATE_MAX:]:
            bench.link.give_up(part)
    bench.answer(parts[0])
    assert bench.heard() == [("answered", parts[0], 0, "7")]


async def test_sequence_numbers_begin_again(bench: Bench) -> None:
    bench.link._sequence = SEQUENCE_MAX - 1
    bench.send(2)
    assert [pdu.sequence for pdu in await bench.written()] == [SEQUENCE_MAX, 1]


async def test_what_cannot_be_written_is_not_outstanding(bench: Bench) -> None:
    with pytest.raises(PduError):
        bench.link.send(bench.part(sender="Ω"))
    with pytest.raises(PduError):
        bench.link.request(Command.CANCEL_SM, Cancel(message_id="Ω"))
    assert bench.link.outstanding == 0
    assert await bench.written() == []


async def test_an_end_waits_for_answers_and_acknowledgements(bench: Bench) -> None:
    parts = bench.send(2)
    bench.link.data_received(encode(DELIVER_SM, 1, short_message=b""))
    ((_, request),) = bench.heard()
    bench.link.end("enough", hopeless=True)
    assert bench.heard() == [("ending", "enough", True)]
    bench.link.end("again")
    assert bench.link.free == 0
    await bench.written()
    bench.answer(parts[0])
    bench.link.reply(request, 0)
    assert [pdu.command for pdu in await bench.written()] == [DELIVER_SM | RESPONSE]
    assert bench.link.give_up(parts[1])
    assert [pdu.command for pdu in await bench.written()] == [UNBIND]
    assert not bench.wire.closing
    bench.link.data_received(head(UNBIND | RESPONSE, 4))
    assert (bench.wire.closing, bench.wire.aborted) == (True, False)
    bench.heard()
    bench.link.connection_lost(None)
    assert bench.heard() == [("lost", "enough", [], [])]
    assert await bench.link.closed == Ending("enough", hopeless=True)


async def test_an_end_waits_for_an_acknowledgement_alone(bench: Bench) -> None:
    bench.link.data_received(encode(DELIVER_SM, 1, short_message=b""))
    ((_, request),) = bench.heard()
    bench.link.end("enough")
    assert await bench.written() == []
    bench.link.reply(request, 0)
    assert [pdu.command for pdu in await bench.written()] == [DELIVER_SM | RESPONSE, UNBIND]


async def test_both_may_say_goodbye_at_the_same_time(bench: Bench) -> None:
    bench.link.end("enough")
    assert [pdu.command for pdu in await bench.written()] == [UNBIND]
    bench.link.data_received(head(UNBIND, 1))
    assert [pdu.command for pdu in await _written_at_once(bench)] == [UNBIND | RESPONSE]
    assert bench.wire.closing


async def test_an_unbind_while_answers_are_awaited_comes_after_them(bench: Bench) -> None:
    (part,) = bench.send()
    bench.link.end("enough")
    await bench.written()
    bench.link.data_received(head(UNBIND, 1))
    assert await bench.written() == []
    bench.answer(part)
    assert [pdu.command for pdu in await _written_at_once(bench)] == [UNBIND | RESPONSE]
    assert bench.wire.closing


async def _written_at_once(bench: Bench) -> list[Seen]:
    assert bench.wire.writes
    return await bench.written()


async def test_what_a_bind_is_answered_with_decides() -> None:
    for raw in (
        head(SUBMIT_SM | RESPONSE, 1),
        head(ENQUIRE_LINK | RESPONSE, 1),
        encode(0x80000002, 1, system_id="not what was asked for"),
    ):
        bench = Bench()
        bench.link.connection_made(bench.wire)
        bench.link.data_received(raw)
        assert bench.heard() == []
        assert not bench.link.opened.done()
        bench.link.data_received(head(GENERIC_NACK, 1, 3))
        assert bench.wire.closing
        bench.link.connection_lost(None)
        assert not await bench.link.opened
        why = "the operator refuses to bind: ESME_RINVCMDID (0x03)"
        assert bench.heard() == [("lost", why, [], [])]


async def test_garbage_is_told_and_the_connection_closed(bench: Bench) -> None:
    (part,) = bench.send()
    await bench.written()
    bench.link.data_received(head(SUBMIT_SM | RESPONSE, part.sequence) + b"\0\0\0\1 and so on")
    written = await _written_at_once(bench)
    assert [(pdu.command, pdu.status, pdu.sequence) for pdu in written][-1] == (GENERIC_NACK, 2, 0)
    why = "the operator does not speak SMPP: a PDU cannot have 1 octets"
    assert bench.heard() == [("answered", part, 0, ""), ("ending", why, False)]
    assert bench.wire.closing
