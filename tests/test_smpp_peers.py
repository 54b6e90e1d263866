"""Our client under SMSCs that others wrote; and Wireshark reads what we write."""

from pathlib import Path
from typing import Any

import pytest

from smsgw.models import Verdict
from tests import peers
from tests.certificates import new_certificates
from tests.smpp_operator import LONG, TO, Operator, operator

PARTS = 3


@pytest.mark.parametrize(
    ("smsc", "bind"),
    [
        # It takes no deliver_sm_resp on a receiver: these get a generic_nack from it.
        (peers.smpp34_smsc, "transceiver"),
        (peers.node_smsc, "transceiver"),
        (peers.node_smsc, "transmitter+receiver"),
    ],
)
async def test_messages_go_through_smscs_of_others(smsc: Any, bind: str) -> None:
    async with smsc(throttle=1) as peer:
        async with operator(peer.port, bind=bind, window=5) as op:
            await go_through(peer, op, 1 if bind == "transceiver" else 2)
        await peer.saw("unbound")


async def go_through(peer: peers.Peer, op: Operator, binds: int) -> None:
    await peer.saw("bound", binds)
    assert await op.verdict() == (Verdict.THROTTLED, "ESME_RTHROTTLED (0x58)")
    outcomes = await op.settle(*(f"number {number}" for number in range(20)), LONG, "سلام")
    assert {outcome.verdict for outcome in outcomes} == {Verdict.ACCEPTED}
    count = 21 + PARTS
    await op.until(lambda: len(op.receipts) == count)
    told = await peer.saw("receipt", count)
    assert {one["command_status"] for one in told} == {0}
    ids = {outcome.provider_message_id for outcome in outcomes}
    ids |= {
        part.provider_message_id for outcome in outcomes for part in (outcome.parts or {}).values()
    }
    assert {receipt.identifier for receipt in op.receipts} == ids
    assert {receipt.about for receipt in op.receipts} == {(int(TO[1:]), "ACME")}
    submits = peer.of("submit")
    assert {one["destination_addr"] for one in submits} == {TO[1:]}
    written = {one.get("text") or one["short_message"] for one in submits}
    assert {"سلام", "سلام".encode("utf-16-be").hex()} & written


async def test_a_connection_that_node_smpp_closes_is_made_again() -> None:
    async with peers.node_smsc(close_after=1) as peer, operator(peer.port) as op:
        assert await op.verdict() == (
            Verdict.UNKNOWN,
            "the connection was lost before the answer",
        )
        await op.up()
        assert len(await peer.saw("bound", 2)) == 2


async def test_node_smpp_over_tls_asks_for_a_password(tmp_path: Path) -> None:
    made = new_certificates(tmp_path)
    options = {"key": str(made.server_key), "cert": str(made.server), "password": "secret"}
    tls = {"tls": True, "tls_ca_file": str(made.authority)}
    async with peers.node_smsc(**options) as peer:
        async with operator(peer.port, up=False, password="other", **tls) as op:
            await op.until(lambda: str(op.provider.trouble).endswith("; look at password"))
        async with operator(peer.port, **tls) as op:
            assert (await op.settle())[0].verdict is Verdict.ACCEPTED
            await op.until(lambda: op.receipts)


async def test_kannel_gives_no_ids_and_its_own_messages_are_no_receipts() -> None:
    async with (
        peers.kannel_smsc(2) as peer,
        operator(peer.port, bind="transmitter+receiver") as op,
    ):
        (outcome,) = await op.settle()
        assert (outcome.verdict, outcome.provider_message_id) == (Verdict.ACCEPTED, None)
        assert (await peer.saw("submit"))[0]["short_message"] == "hello"
        await peer.saw("pdu", 5)
        assert op.receipts == []
