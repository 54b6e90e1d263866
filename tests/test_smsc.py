"""The SMSC that other tests stand on, seen by a client by hand."""

import asyncio
import json
import subprocess
import sys
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import new_certificates
from tests.pdus import (
    BIND_FAILED,
    BIND_RECEIVER,
    BIND_TRANSCEIVER,
    BIND_TRANSMITTER,
    CANCEL_FAILED,
    CANCEL_SM,
    DATA_SM,
    DELIVER_SM,
    ENQUIRE_LINK,
    FORMS,
    GENERIC_NACK,
    INVALID_BIND_STATUS,
    INVALID_COMMAND,
    INVALID_LENGTH,
    INVALID_MESSAGE_ID,
    INVALID_PASSWORD,
    INVALID_RECIPIENT,
    INVALID_SYSTEM_ID,
    MESSAGE_PAYLOAD,
    MESSAGE_STATE,
    OK,
    QUERY_SM,
    RECEIPTED_MESSAGE_ID,
    RESPONSE,
    SAR_NUMBER,
    SAR_REFERENCE,
    SAR_TOTAL,
    STATES,
    SUBMIT_SM,
    THROTTLED,
    UNBIND,
    Malformed,
    Pdu,
    encode,
    head,
    hex_ids,
    joined,
    parse,
)
from tests.raw_esme import SUBMIT, TO, Esme
from tests.smsc import (
    BIND,
    Smsc,
    accepted,
    dripped,
    dropped,
    garbled,
    halved,
    held,
    in_turn,
    misnumbered,
    nacked,
    oversized,
    refused,
    reported,
    silent,
    throttled_above,
    unbinding,
)
from tests.smsc_session import Arrived

ACCEPT_ONLY = accepted()


async def commands(esme: Esme, count: int) -> list[tuple[int, int]]:
    found = [await esme.next() for _ in range(count)]
    return [(pdu.command, pdu.sequence) for pdu in found]


async def test_a_message_is_accepted_and_reported_delivered() -> None:
    async with Smsc(system_id="esme", password="secret") as smsc, Esme(smsc.port) as esme:
        bound = await esme.bind()
        assert (bound.status, bound["system_id"]) == (OK, "smsc")
        answer = await esme.submitted()
        assert answer.command == SUBMIT_SM | RESPONSE
        receipt = await esme.next()
        assert (receipt.command, receipt["esm_class"]) == (DELIVER_SM, 0x04)
        assert (receipt.sender, receipt.recipient) == (TO, "ACME")
        assert receipt.text.startswith(f"id:{answer['message_id']} sub:001 dlvrd:001 submit date:")
        assert " stat:DELIVRD err:000 " in receipt.text
        assert receipt.tlvs == {
            RECEIPTED_MESSAGE_ID: answer["message_id"].encode() + b"\0",
            MESSAGE_STATE: b"\2",
        }
        esme.reply(receipt)
        (seen,) = await smsc.saw(SUBMIT_SM)
        assert (seen.recipient, seen.text, seen.order) == (TO, "hello", 2)
        assert seen.raw == encode(SUBMIT_SM, 2, **SUBMIT)
        (confirmed,) = await smsc.saw(DELIVER_SM | RESPONSE)
        assert confirmed.status == OK
        assert smsc.unanswered() == []
        assert (await esme.ask(UNBIND)).command == UNBIND | RESPONSE
        await esme.ended()
        assert [pdu.command for pdu in smsc.received] == [
            BIND_TRANSCEIVER,
            SUBMIT_SM,
            DELIVER_SM | RESPONSE,
            UNBIND,
        ]


@pytest.mark.parametrize("command", [BIND_RECEIVER, BIND_TRANSMITTER, BIND_TRANSCEIVER])
async def test_a_bind_is_accepted_refused_and_counted_in_every_kind(command: int) -> None:
    async with Smsc(system_id="esme", password="secret") as smsc, Esme(smsc.port) as esme:
        smsc.first(BIND, refused(BIND_FAILED))
        refusal = await esme.bind(command)
        assert (refusal.command, refusal.status) == (command | RESPONSE, BIND_FAILED)
        assert (await esme.bind(command, system_id="other")).status == INVALID_SYSTEM_ID
        assert (await esme.bind(command, password="other")).status == INVALID_PASSWORD
        assert smsc.bound == []
        assert (await esme.bind(command)).status == OK
        (session,) = await smsc.binds()
        assert session.kind == {1: "RX", 2: "TX", 9: "TRX"}[command]
        assert len(await smsc.saw(BIND, 4)) == 4


async def test_actions_apply_in_order_first_then_recipient_then_command() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = ACCEPT_ONLY
        smsc.to[TO] = refused(INVALID_RECIPIENT)
        smsc.first(SUBMIT_SM, *[refused(THROTTLED)] * 2)
        statuses = [(await esme.submitted()).status for _ in range(3)]
        assert statuses == [THROTTLED, THROTTLED, INVALID_RECIPIENT]
        assert (await esme.submitted(destination_addr="98912000002")).status == OK


async def test_an_answer_waits_until_it_is_released_in_any_order() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = held("answers", ACCEPT_ONLY)
        numbers = [esme.submit() for _ in range(4)]
        await smsc.until(lambda: smsc.waiting("answers") == 4)
        assert smsc.outstanding_max == 4
        assert (await esme.ask(ENQUIRE_LINK)).command == ENQUIRE_LINK | RESPONSE
        smsc.release("answers", 1)
        smsc.release("answers", reverse=True)
        assert [number for _, number in await commands(esme, 4)] == [
            numbers[0],
            *reversed(numbers[1:]),
        ]
        assert not smsc.sessions[0].outstanding


async def test_some_answers_never_come_and_others_do_not_fit() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = ACCEPT_ONLY
        smsc.on[ENQUIRE_LINK] = silent
        smsc.first(SUBMIT_SM, silent, misnumbered(), in_turn(ACCEPT_ONLY, ACCEPT_ONLY), nacked())
        esme.send(ENQUIRE_LINK)
        _, wrong, twice, bad, fine = [esme.submit() for _ in range(5)]
        assert await commands(esme, 5) == [
            (SUBMIT_SM | RESPONSE, wrong + 1000),
            (SUBMIT_SM | RESPONSE, twice),
            (SUBMIT_SM | RESPONSE, twice),
            (GENERIC_NACK, bad),
            (SUBMIT_SM | RESPONSE, fine),
        ]
        assert len(smsc.sessions[0].outstanding) == 3


async def test_ids_are_what_the_test_wants() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = ACCEPT_ONLY
        smsc.ids = hex_ids()
        found = [(await esme.submitted())["message_id"] for _ in range(2)]
        assert found == ["0A1B2C3D", "0A1B2C3E"]
        smsc.ids = repeat("7")
        assert [(await esme.submitted())["message_id"] for _ in range(2)] == ["7", "7"]
        smsc.first(SUBMIT_SM, accepted(""))
        assert (await esme.submitted()).raw[16:] == b"\0"
        smsc.first(
            SUBMIT_SM, in_turn(accepted("0A"), reported(written=lambda it: str(int(it, 16))))
        )
        assert (await esme.submitted())["message_id"] == "0A"
        assert (await esme.next()).text.startswith("id:10 ")


async def test_the_connection_is_dropped_after_so_many_submits() -> None:
    async with Smsc() as smsc:
        smsc.on[SUBMIT_SM] = ACCEPT_ONLY
        smsc.first(SUBMIT_SM, *[ACCEPT_ONLY] * 2, in_turn(ACCEPT_ONLY, dropped()), dropped())
        async with Esme(smsc.port) as esme:
            await esme.bind()
            for _ in range(9):
                esme.submit()
            assert len(await commands(esme, 3)) == 3
            await esme.ended()
            await smsc.lost(smsc.sessions[0])
            assert len(smsc.submits) == 3
        async with Esme(smsc.port) as esme:
            await esme.bind()
            esme.submit()
            await esme.ended()
            assert len(smsc.submits) == 4


async def test_a_connection_can_be_reset() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.first(SUBMIT_SM, dropped(reset=True))
        esme.submit()
        with pytest.raises(ConnectionResetError):
            await esme.next()


async def test_half_an_answer_comes_and_the_rest_later_before_anything_else() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = ACCEPT_ONLY
        smsc.first(SUBMIT_SM, halved("rest"), dripped)
        numbers = [esme.submit(), esme.submit(), esme.submit()]
        await smsc.saw(SUBMIT_SM, 3)
        answers = asyncio.create_task(commands(esme, 3))
        async with Esme(smsc.port) as other:
            await other.bind()
        assert not answers.done()
        assert len(esme.rest) == 10
        smsc.release("rest")
        assert [number for _, number in await answers] == numbers
        smsc.first(SUBMIT_SM, dripped)
        numbers = [esme.submit(), esme.submit()]
        assert [number for _, number in await commands(esme, 2)] == numbers
        assert esme.blocks > 16


async def test_garbage_and_oversize_go_out_as_they_are() -> None:
    async with Smsc() as smsc:
        for action in (garbled(), oversized):
            async with Esme(smsc.port) as esme:
                await esme.bind()
                smsc.first(SUBMIT_SM, action)
                esme.submit()
                with pytest.raises(Malformed, match="command_length"):
                    await esme.next()


async def test_a_receipt_comes_before_the_answer_or_late_or_twice_or_in_another_order() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        late = held("late", in_turn(reported(), reported("UNDELIV", error="042")))
        smsc.first(SUBMIT_SM, in_turn(reported(), ACCEPT_ONLY), in_turn(ACCEPT_ONLY, late))
        smsc.first(SUBMIT_SM, in_turn(ACCEPT_ONLY, held("late", reported("EXPIRED"))))
        early, answer = await esme.submitted(), await esme.next()
        assert early.command == DELIVER_SM
        assert early.tlvs[RECEIPTED_MESSAGE_ID][:-1].decode() == answer["message_id"]
        await esme.submitted()
        await esme.submitted()
        smsc.release("late", reverse=True)
        words = [(await esme.next()).tlvs[MESSAGE_STATE][0] for _ in range(3)]
        assert words == [STATES["EXPIRED"], STATES["DELIVRD"], STATES["UNDELIV"]]


async def test_a_receipt_is_data_sm_or_without_text_or_without_parameters() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = in_turn(
            reported(data_sm=True),
            reported(text=False),
            reported(tlvs=False, text=b"anything"),
            reported("ENROUTE", esm_class=0x20, unasked=True),
        )
        esme.submit()
        data, bare, plain, note = [await esme.next() for _ in range(4)]
        assert data.command == DATA_SM
        assert data.tlvs[MESSAGE_PAYLOAD].startswith(b"id:1000000001 ")
        assert (bare["short_message"], len(bare.tlvs)) == (b"", 2)
        assert (plain["short_message"], plain.tlvs) == (b"anything", {})
        assert (note["esm_class"], note.tlvs[MESSAGE_STATE]) == (0x20, b"\1")


async def test_a_receipt_is_sent_only_where_it_is_asked_for() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        words = ("ENROUTE", "DELIVRD", "UNDELIV")
        smsc.on[SUBMIT_SM] = in_turn(*map(reported, words), ACCEPT_ONLY)
        for asked, states in ((0, []), (1, [2, 5]), (2, [5]), (0x11, [1, 2, 5])):
            esme.submit(registered_delivery=asked)
            found = []
            while (pdu := await esme.next()).command == DELIVER_SM:
                found.append(pdu.tlvs[MESSAGE_STATE][0])
            assert found == states


@pytest.mark.parametrize("form", FORMS)
async def test_a_receipt_is_written_in_every_form(form: str) -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = reported(form=form, tlvs=False)
        receipt = await esme.submitted()
        assert "1000000001" in receipt.user_data.decode()
        assert "deliv" in receipt.user_data.decode().lower().replace("delivrd", "deliv")


async def test_a_transmitter_s_receipts_go_to_a_receiver_once_there_is_one() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as sender:
        await sender.bind(BIND_TRANSMITTER)
        answer = await sender.submitted()
        async with Esme(smsc.port) as receiver:
            assert (await receiver.bind(BIND_RECEIVER)).status == OK
            for _ in range(2):
                receipt = await receiver.next()
                assert receipt.text.startswith(f"id:{answer['message_id']} ")
                receiver.reply(receipt)
                answer = await sender.submitted()


async def test_a_receipt_takes_another_session_than_the_one_that_submitted() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as one, Esme(smsc.port) as other:
        await one.bind()
        await other.bind()
        smsc.on[SUBMIT_SM] = in_turn(ACCEPT_ONLY, reported(elsewhere=True))
        answer = await one.submitted()
        assert (await other.next()).text.startswith(f"id:{answer['message_id']} ")


async def test_what_was_not_confirmed_is_delivered_again_after_the_next_bind() -> None:
    async with Smsc() as smsc:
        async with Esme(smsc.port) as esme:
            await esme.bind()
            await esme.submitted()
            await esme.next()
        await smsc.lost(smsc.sessions[0])
        async with Esme(smsc.port) as esme:
            await esme.bind()
            (again,) = smsc.redeliver()
            receipt = await esme.next()
            assert receipt.command == DELIVER_SM
            esme.reply(receipt)
            assert (await again.answered()).sequence == receipt.sequence
            assert smsc.unanswered() == []


async def test_the_smsc_asks_too() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        (session,) = await smsc.binds()
        message = session.message("98912000009", "ACME", b"STOP")
        arrived = await esme.next()
        assert (arrived.text, arrived["esm_class"]) == ("STOP", 0)
        esme.reply(arrived, status=THROTTLED)
        assert (await message.answered()).status == THROTTLED
        asked = session.request(ENQUIRE_LINK)
        esme.reply(await esme.next())
        assert (await asked.answered()).command == ENQUIRE_LINK | RESPONSE
        smsc.first(SUBMIT_SM, unbinding)
        assert (await esme.submitted()).command == UNBIND


async def test_an_answer_that_never_comes_is_an_error() -> None:
    async with Smsc() as smsc:
        async with Esme(smsc.port) as esme:
            await esme.bind()
            request = smsc.sessions[0].request(ENQUIRE_LINK)
        with pytest.raises(ConnectionError):
            await request.answered()


async def test_the_link_flaps() -> None:
    async with Smsc() as smsc:
        smsc.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            async with Esme(smsc.port):
                pass
        await smsc.listen()
        smsc.welcoming = False
        async with Esme(smsc.port) as esme:
            await esme.ended()
        smsc.welcoming = True
        async with Esme(smsc.port) as esme:
            assert (await esme.bind()).status == OK
            smsc.drop_all()
            await esme.ended()


async def test_a_message_is_asked_about_and_cancelled() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = in_turn(ACCEPT_ONLY, held("receipt", reported()))
        known = (await esme.submitted())["message_id"]
        assert (await esme.ask(QUERY_SM, message_id=known))["message_state"] == STATES["ENROUTE"]
        assert (await esme.ask(QUERY_SM, message_id="0")).status == INVALID_MESSAGE_ID
        assert (await esme.ask(CANCEL_SM, message_id=known)).status == OK
        assert (await esme.ask(CANCEL_SM, message_id=known)).status == CANCEL_FAILED
        assert [pdu["message_id"] for pdu in await smsc.saw(CANCEL_SM, 2)] == [known, known]
        assert (await esme.ask(QUERY_SM, message_id=known))["message_state"] == STATES["DELETED"]


async def test_a_rate_is_held_by_the_clock_of_the_test() -> None:
    now_s = 0.0
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = throttled_above(10, 2, lambda: now_s)
        quiet = {"registered_delivery": 0}
        statuses = [(await esme.submitted(**quiet)).status for _ in range(3)]
        assert statuses == [OK, OK, THROTTLED]
        now_s = 0.1
        assert [(await esme.submitted(**quiet)).status for _ in range(2)] == [OK, THROTTLED]


async def test_next_gives_each_pdu_once_to_be_answered_by_hand() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = silent
        esme.submit(short_message=b"one")
        esme.submit(short_message=b"two")
        one, two = await smsc.next(SUBMIT_SM), await smsc.next(SUBMIT_SM)
        assert (one.text, two.text) == ("one", "two")
        two.answer()
        one.answer(THROTTLED)
        assert await commands(esme, 2) == [
            (SUBMIT_SM | RESPONSE, two.sequence),
            (SUBMIT_SM | RESPONSE, one.sequence),
        ]


async def test_tls_asks_for_a_certificate_and_shows_one(tmp_path: Path) -> None:
    certificates = new_certificates(tmp_path)
    async with Smsc(tls=certificates.for_server(ask_client=True)) as smsc:
        async with Esme(smsc.port, certificates.for_client(show=True)) as esme:
            assert (await esme.bind()).status == OK
        async with Esme(smsc.port, certificates.for_client()) as esme:
            with pytest.raises((OSError, EOFError)):
                await esme.bind()


COMPLAINTS: dict[str, tuple[bytes, str]] = {
    "a submit before a bind": (encode(SUBMIT_SM, 1, **SUBMIT), "not bound"),
    "sequence_number 0": (encode(ENQUIRE_LINK, 0), "sequence_number 0"),
    "a length under 16": (head(ENQUIRE_LINK, 1, length=15), "command_length 15"),
    "an HTTP request": (b"GET / HTTP/1.1\r\n\r\n", "command_length"),
    "an unknown command": (head(0x7777, 1), "no client sends"),
    "an answer to nothing": (encode(DELIVER_SM | RESPONSE, 1), "answer to nothing"),
    "octets too many": (
        head(ENQUIRE_LINK, 1, length=18) + b"ab",
        "octets too many",
    ),
    "a password too long": (
        encode(BIND_TRANSCEIVER, 1, password="x" * 17),
        "password does not end",
    ),
    "a validity period of 15": (
        encode(SUBMIT_SM, 1, validity_period="00000700000000R"),
        "validity_period",
    ),
    "two texts": (
        encode(SUBMIT_SM, 1, tlvs={MESSAGE_PAYLOAD: b"x"}, short_message=b"x"),
        "both short_message and message_payload",
    ),
    "an optional parameter cut off": (
        head(BIND_TRANSCEIVER | RESPONSE, 1, length=22) + b"\0\2\x10\0\2\x34",
        "cut off",
    ),
    "a message_id for a handset": (
        encode(CANCEL_SM, 1, message_id="x" * 65),
        "message_id does not end",
    ),
}


@pytest.mark.parametrize("wrong", COMPLAINTS)
async def test_what_the_standard_forbids_fails_the_test(wrong: str) -> None:
    raw, sentence = COMPLAINTS[wrong]
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        esme.write(raw)
        await smsc.until(lambda: smsc.complaints)
        with pytest.raises(AssertionError, match=sentence):
            smsc.check()
        smsc.complaints.clear()


async def test_a_complaint_fails_the_test_at_the_end_of_the_block() -> None:
    with pytest.raises(AssertionError, match="not bound for it"):
        await complained_about()


async def complained_about() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.submitted()


async def test_what_is_malformed_is_nacked() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        esme.write(head(ENQUIRE_LINK, 7, length=18) + b"ab")
        nack = await esme.next()
        assert (nack.command, nack.sequence, nack.status) == (GENERIC_NACK, 7, INVALID_LENGTH)
        esme.write(head(0x7777, 8))
        assert (await esme.next()).status == INVALID_COMMAND
        esme.submit()
        assert (await esme.next()).status == INVALID_BIND_STATUS
        assert len(smsc.complaints) == 3
        smsc.complaints.clear()


async def test_a_failure_of_a_script_fails_the_test() -> None:
    def broken(pdu: Arrived) -> None:
        raise ZeroDivisionError

    # asyncio reports it, too.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        smsc.on[SUBMIT_SM] = broken
        esme.submit()
        await smsc.until(lambda: smsc.complaints)
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            smsc.check()
        smsc.complaints.clear()


async def test_a_wait_in_vain_says_what_was_seen_instead() -> None:
    async with Smsc() as smsc, Esme(smsc.port) as esme:
        await esme.bind()
        with pytest.raises(AssertionError, match="system_id"):
            await smsc.until(lambda: smsc.submits, limit_s=0.01)


def test_parts_are_joined_by_header_or_by_parameters() -> None:
    def part(number: int, **more: Any) -> Pdu:
        text = f"part {number} ".encode()
        if more:
            header = more["header"] + bytes([2, number])
            raw = encode(SUBMIT_SM, 1, esm_class=0x40, short_message=header + text)
        else:
            tlvs = {SAR_REFERENCE: b"\1\2", SAR_TOTAL: b"\2", SAR_NUMBER: bytes([number])}
            raw = encode(SUBMIT_SM, 1, tlvs=tlvs, short_message=text)
        return parse(raw)

    assert joined([part(2), part(1)]) == "part 1 part 2 "
    for header in (b"\5\0\3\x63", b"\6\x08\4\1\2"):
        assert joined([part(2, header=header), part(1, header=header)]) == "part 1 part 2 "
    with pytest.raises(AssertionError):
        joined([part(1), part(1)])
    euro = parse(encode(SUBMIT_SM, 1, short_message=b"5\x1b\x65"))
    assert euro.text == "5€"
    persian = parse(encode(SUBMIT_SM, 1, data_coding=8, short_message="سلام".encode("utf-16-be")))
    assert persian.text == "سلام"


async def test_it_serves_in_a_process_of_its_own_and_writes_a_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.smsc", "--journal", str(journal)),
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listens on 127.0.0.1:")
        async with Esme(int(line.rsplit(":", 1)[1])) as esme:
            await esme.bind()
            found = {(await esme.submitted()).command, (await esme.next()).command}
            assert found == {SUBMIT_SM | RESPONSE, DELIVER_SM}
    finally:
        process.kill()
        await process.communicate()
    line = json.loads(journal.read_text())
    assert line.pop("at_s") > 0
    assert line == {
        "to": TO,
        "from": "ACME",
        "data": b"hello".hex(),
        "message_id": "1000000001",
    }
