"""The SMSC of the benchmarks, seen by a client by hand."""

import pytest

from smsgw.bench.smsc import Behaviour, running
from tests.pdus import (
    BIND_RECEIVER,
    BIND_TRANSMITTER,
    ENQUIRE_LINK,
    GENERIC_NACK,
    MESSAGE_STATE,
    OK,
    QUERY_SM,
    RECEIPTED_MESSAGE_ID,
    RESPONSE,
    SUBMIT_SM,
    UNBIND,
)
from tests.raw_esme import TO, Esme


@pytest.mark.parametrize(
    "behaviour", [Behaviour(), Behaviour(answer_after_s=0.001, receipt_after_s=0.001)]
)
async def test_it_answers_and_reports(behaviour: Behaviour) -> None:
    with running(behaviour) as smsc:
        async with Esme(smsc.port) as sender, Esme(smsc.port) as receiver:
            assert (await sender.bind(BIND_TRANSMITTER)).status == OK
            assert (await receiver.bind(BIND_RECEIVER)).status == OK
            await _exchange(sender, receiver)
            await _exchange(sender, receiver)
            assert (await sender.ask(ENQUIRE_LINK)).command == ENQUIRE_LINK | RESPONSE
            assert (await sender.ask(QUERY_SM)).command == GENERIC_NACK
        async with Esme(smsc.port) as both:
            await both.bind()
            await _exchange(both, both)
            assert (await both.ask(UNBIND)).command == UNBIND | RESPONSE
            await both.ended()
        report = smsc.report()
    assert (report.binds, report.submits, report.receipts, report.confirmed) == (3, 150, 147, 147)
    assert (report.bound, 1 <= report.outstanding_max <= 50) == (0, True)
    assert report.cpu_s > 0


async def _exchange(sender: Esme, receiver: Esme) -> None:
    numbers = [sender.submit(short_message=b"x" * 140) for _ in range(49)]
    numbers.append(sender.submit(registered_delivery=0))
    ids: list[str] = []
    reported_ids: list[str] = []
    answered: list[int] = []
    while len(answered) < 50 or len(reported_ids) < 49:
        pdu = await (sender if len(answered) < 50 else receiver).next()
        if pdu.command == SUBMIT_SM | RESPONSE:
            answered.append(pdu.sequence)
            ids.append(pdu["message_id"])
            continue
        assert (pdu.sender, pdu.recipient, pdu["esm_class"]) == (TO, "ACME", 0x04)
        assert (pdu["source_addr_ton"], pdu["dest_addr_ton"]) == (1, 5)
        assert pdu.tlvs[MESSAGE_STATE] == b"\2"
        reported_ids.append(pdu.tlvs[RECEIPTED_MESSAGE_ID][:-1].decode())
        assert pdu.text.startswith(f"id:{reported_ids[-1]} sub:001 dlvrd:001 submit date:")
        assert " stat:DELIVRD err:000 " in pdu.text
        receiver.reply(pdu)
    assert answered == numbers
    assert len(set(ids)) == 50
    assert reported_ids == ids[:-1]
    # It has read all the answers by the time it answers this.
    assert (await receiver.ask(ENQUIRE_LINK)).command == ENQUIRE_LINK | RESPONSE


async def test_a_receipt_waits_for_a_receiver() -> None:
    with running() as smsc:
        async with Esme(smsc.port) as sender:
            await sender.bind(BIND_TRANSMITTER)
            message_id = (await sender.submitted())["message_id"]
            async with Esme(smsc.port) as receiver:
                assert (await receiver.bind(BIND_RECEIVER)).status == OK
                assert (await receiver.next()).text.startswith(f"id:{message_id} ")


async def test_it_reports_nothing_if_told_so_and_ends_with_its_block() -> None:
    with running(Behaviour(receipt_after_s=None)) as smsc:
        async with Esme(smsc.port) as esme:
            await esme.bind()
            await esme.submitted()
            assert (await esme.ask(ENQUIRE_LINK)).command == ENQUIRE_LINK | RESPONSE
        assert smsc.report().receipts == 0
    with pytest.raises(OSError, match="closed"):
        smsc.report()
