"""The two SMSCs of our own under clients of others, and SMSCs of others under a client by hand."""

from pathlib import Path
from typing import Any

import pytest

from smsgw.bench.smsc import running
from tests import peers
from tests.certificates import new_certificates
from tests.pdus import (
    BIND_RECEIVER,
    BIND_TRANSMITTER,
    DELIVER_SM,
    INVALID_PASSWORD,
    OK,
    RECEIPTED_MESSAGE_ID,
    RESPONSE,
    SUBMIT_SM,
    THROTTLED,
    UNBIND,
    encode,
)
from tests.raw_esme import SUBMIT, TO, Esme
from tests.smsc import Smsc


@pytest.mark.parametrize("client", [peers.smpp34_client, peers.node_client])
async def test_clients_of_others_are_served(client: Any) -> None:
    async with Smsc(system_id="esme", password="secret") as smsc:
        async with client(smsc.port, count=20) as peer:
            await peer.saw("unbound")
        assert all(one["command_status"] == OK for one in peer.of("submit"))
        ids = {one["message_id"] for one in peer.of("submit")}
        assert len(ids) == 20
        assert ids == smsc.messages.keys()
        assert {pdu.text for pdu in smsc.submits} == {f"hello {number}" for number in range(20)}
        assert len(await smsc.saw(DELIVER_SM | RESPONSE, 20)) == 20
        assert len(await smsc.saw(UNBIND)) == 1


async def test_node_smpp_is_served_over_tls(tmp_path: Path) -> None:
    certificates = new_certificates(tmp_path)
    async with (
        Smsc(tls=certificates.for_server()) as smsc,
        peers.node_client(smsc.port, ca=str(certificates.authority)) as peer,
    ):
        await peer.saw("unbound")
        assert len(smsc.submits) == 1


@pytest.mark.parametrize("client", [peers.smpp34_client, peers.node_client])
async def test_clients_of_others_are_served_by_the_fast_one(client: Any) -> None:
    with running() as smsc:
        async with client(smsc.port, count=20) as peer:
            await peer.saw("unbound")
        assert {one["command_status"] for one in peer.of("submit")} == {OK}
        assert smsc.report().confirmed == 20


@pytest.mark.parametrize("smsc", [peers.smpp34_smsc, peers.node_smsc])
async def test_smscs_of_others_serve(smsc: Any) -> None:
    async with smsc(throttle=1) as peer, Esme(peer.port) as esme:
        assert (await esme.bind()).status == OK
        assert (await esme.submitted()).status == THROTTLED
        answer = await esme.submitted()
        receipt = await esme.next()
        assert receipt.text.startswith(f"id:{answer['message_id']} ")
        esme.reply(receipt)
        (told,) = await peer.saw("receipt")
        assert told == {"event": "receipt", "message_id": answer["message_id"], "command_status": 0}
        (seen,) = await peer.saw("submit")
        assert (seen["destination_addr"], seen["source_addr_ton"]) == (TO, 5)


async def test_node_smpp_serves_over_tls_and_asks_for_a_password(tmp_path: Path) -> None:
    made = new_certificates(tmp_path)
    options = {"key": str(made.server_key), "cert": str(made.server), "password": "secret"}
    async with peers.node_smsc(**options, close_after=1) as peer:
        async with Esme(peer.port, made.for_client()) as esme:
            assert (await esme.bind(password="other")).status == INVALID_PASSWORD
        async with Esme(peer.port, made.for_client()) as esme:
            assert (await esme.bind()).status == OK
            esme.submit()
            with pytest.raises((EOFError, OSError)):
                await esme.next()
        assert len(await peer.saw("submit")) == 1


async def test_kannel_serves_with_empty_ids_and_messages_numbered_0() -> None:
    async with (
        peers.kannel_smsc(2) as peer,
        Esme(peer.port) as sender,
        Esme(peer.port, strict=False) as receiver,
    ):
        assert (await sender.bind(BIND_TRANSMITTER)).status == OK
        assert (await receiver.bind(BIND_RECEIVER)).status == OK
        assert (await sender.submitted())["message_id"] == ""
        (told,) = await peer.saw("submit")
        assert told["short_message"] == "hello"
        messages: list[tuple[int, int, str]] = []
        while len(messages) < 2:
            pdu = await receiver.next()
            if pdu.command == DELIVER_SM:
                messages.append((pdu.sequence, pdu["esm_class"], pdu.text))
                assert pdu.tlvs == {RECEIPTED_MESSAGE_ID: b"receipted_message_id\0"}
            receiver.reply(pdu)
        assert messages == [(0, 0, "1"), (2, 0, "2")]


def test_wireshark_reads_what_the_tests_write() -> None:
    text = "سلام".encode("utf-16-be")
    bind = encode(BIND_TRANSMITTER, 1, system_id="esme", password="secret", interface_version=0x34)
    part = encode(
        SUBMIT_SM,
        2,
        **{
            **SUBMIT,
            "esm_class": 0x40,
            "validity_period": "000001000000000R",
            "data_coding": 8,
            "short_message": b"\5\0\3\7\2\1" + text,
        },
    )
    found = peers.tshark(bind + part)
    for line in (
        "Command: Bind_transmitter, Seq: 1",
        "System ID: esme",
        "Version (if): 3.4",
        "Originator address: ACME",
        f"Recipient address: {TO}",
        "Data coding: UCS2",
        "Message parts: 2",
        "Message part number: 1",
        "سلام",
    ):
        assert line in found, (line, found)
    assert "Malformed" not in found
