"""What an operator that speaks SMPP is sent, and what becomes of its answers."""

import asyncio
import re
from typing import Any

import pytest

from smsgw.errors import SettingsError
from smsgw.models import Verdict
from smsgw.operators import SmppProviderSettings, StatusClasses
from smsgw.providers.smpp import provider
from smsgw.providers.smpp.provider import NO_RECEIVER
from smsgw.providers.smpp.receipt import NOTATIONS
from smsgw.providers.smpp.segments import reference_of
from smsgw.providers.smpp.status import StatusClass
from smsgw.settings import load
from tests.pdus import (
    BIND_RECEIVER,
    BIND_TRANSCEIVER,
    BIND_TRANSMITTER,
    CANCEL_SM,
    DELIVER_SM,
    DELIVERY_FAILURE,
    DELIVERY_FAILURE_REASON,
    OK,
    QUEUE_FULL,
    RESPONSE,
    SUBMIT_SM,
    SYSTEM_ERROR,
    THROTTLED,
    UNBIND,
    hex_ids,
)
from tests.smpp_operator import LONG, TO, bound, operator
from tests.smsc import BIND, Smsc, accepted, held, in_turn, refused, reported, silent


async def test_a_message_is_accepted_reported_and_acknowledged() -> None:
    async with Smsc(system_id="esme", password="secret") as smsc, operator(smsc.port) as op:
        assert op.troubles[-2:] == ["not connected yet", None]
        (outcome,) = await op.settle()
        assert (outcome.verdict, outcome.parts) == (Verdict.ACCEPTED, None)
        receipt = (await op.until(lambda: op.receipts))[0]
        assert (receipt.identifier, receipt.word) == (outcome.provider_message_id, "DELIVRD")
        assert (receipt.reason, receipt.others) == (None, ())
        assert receipt.about == (989121234567, "ACME")
        assert (await smsc.saw(DELIVER_SM | RESPONSE))[0].status == OK
        (submit,) = smsc.submits
        assert (submit.recipient, submit.sender, submit.text) == (TO[1:], "ACME", "hello")
        assert submit["registered_delivery"] == 1
        assert submit["validity_period"] in ("000000010000000R", "000000005959000R")
        assert op.provider.state()["binds"] == "1 of 1 bound"
    assert [pdu.command for pdu in smsc.received] == [
        BIND_TRANSCEIVER,
        SUBMIT_SM,
        DELIVER_SM | RESPONSE,
        UNBIND,
    ]
    assert op.provider.trouble == "the gateway stops"


async def test_settings_are_on_the_wire() -> None:
    async with (
        Smsc(system_id="esme", password="secret") as smsc,
        operator(
            smsc.port,
            system_type="VMA",
            receipts=False,
            service_type="CMT",
            short_code_ton=6,
            short_code_npi=1,
            destination_ton=2,
            destination_npi=8,
            charset="latin1",
            transaction_mode=True,
        ) as op,
    ):
        await op.settle("déjà vu", sender="12345")
        (outcome,) = await op.settle("code", otp=True)
        assert outcome.handset
        bind, plain, code = smsc.received[:3]
        assert bind["system_type"] == "VMA"
        assert (plain["source_addr_ton"], plain["source_addr_npi"]) == (6, 1)
        assert (plain["dest_addr_ton"], plain["dest_addr_npi"]) == (2, 8)
        assert (plain["service_type"], plain["registered_delivery"]) == ("CMT", 0)
        assert (plain["short_message"], plain["data_coding"]) == ("déjà vu".encode("latin-1"), 0)
        assert (plain["esm_class"], code["esm_class"]) == (0, 0x02)


def test_the_words_of_settings_are_those_of_the_client() -> None:
    fields = SmppProviderSettings.model_fields
    assert {*StatusClasses.__args__, "accepted"} == set(StatusClass)  # type: ignore[attr-defined]
    assert set(fields["receipt_id"].annotation.__args__) == set(NOTATIONS)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["udh", "udh16", "sar"])
async def test_a_long_message_goes_out_part_by_part_and_is_told_of_once(method: str) -> None:
    async with Smsc() as smsc, operator(smsc.port, long_messages=method) as op:
        (outcome,) = await op.settle(LONG)
        assert outcome.verdict is Verdict.ACCEPTED
        parts = outcome.parts
        assert parts is not None
        assert {number: part.verdict for number, part in parts.items()} == dict.fromkeys(
            (1, 2, 3), Verdict.ACCEPTED
        )
        assert outcome.provider_message_id == parts[1].provider_message_id
        await smsc.saw(SUBMIT_SM, 3)
        assert [submit.part[1:] for submit in smsc.submits] == [(1, 3), (2, 3), (3, 3)]
        assert "".join(submit.text for submit in smsc.submits) == LONG
        assert {submit["registered_delivery"] for submit in smsc.submits} == {1}
        await op.until(lambda: len(op.receipts) == 3)
        named = {receipt.identifier for receipt in op.receipts}
        assert named == {part.provider_message_id for part in parts.values()}


async def test_a_payload_is_one_submit_without_parts() -> None:
    async with Smsc() as smsc, operator(smsc.port, long_messages="payload") as op:
        (outcome,) = await op.settle(LONG)
        assert (outcome.verdict, outcome.parts) == (Verdict.ACCEPTED, None)
        (submit,) = smsc.submits
        assert (submit.text, submit["short_message"]) == (LONG, b"")
        assert await op.verdict(text=LONG, accepted_parts=frozenset({1})) == (
            Verdict.FAILED,
            "this operator takes whole messages only",
        )
        assert len(smsc.submits) == 1


@pytest.mark.parametrize(
    ("fields", "verdict", "detail"),
    [
        ({}, Verdict.FAILED, ""),
        ({"message_id": ""}, Verdict.FAILED, ""),
        ({"message_id": "", "tlvs": {}}, Verdict.FAILED, ""),
        ({"message_id": "", "tlvs": b""}, Verdict.FAILED, ""),
        ({"message_id": "", "tlvs": b"\0"}, Verdict.FAILED, ": destination unavailable"),
        ({"message_id": "", "tlvs": b"\1"}, Verdict.REFUSED, ": destination address invalid"),
        ({"message_id": "17", "tlvs": b"\2"}, Verdict.REFUSED, ": permanent network error"),
        ({"message_id": "", "tlvs": b"\3"}, Verdict.FAILED, ": temporary network error"),
        ({"message_id": "", "tlvs": b"\4"}, Verdict.FAILED, ": failure 4"),
    ],
    ids=str,
)
async def test_a_delivery_failure_says_whether_to_try_again(
    fields: dict[str, Any], verdict: Verdict, detail: str
) -> None:
    reason = fields.get("tlvs")
    if isinstance(reason, bytes):
        fields = {**fields, "tlvs": {DELIVERY_FAILURE_REASON: reason}}
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.first(SUBMIT_SM, refused(DELIVERY_FAILURE, **fields))
        assert await op.verdict() == (verdict, f"ESME_RDELIVERYFAILURE (0xFE){detail}")
        assert await op.verdict() == (Verdict.ACCEPTED, None)


async def test_what_the_operator_says_of_its_delivery_failures_counts() -> None:
    settings = {"status_classes": {"0xFE": "temporary"}}
    reason = {DELIVERY_FAILURE_REASON: b"\2"}
    async with Smsc() as smsc, operator(smsc.port, **settings) as op:
        smsc.first(SUBMIT_SM, refused(DELIVERY_FAILURE, message_id="", tlvs=reason))
        verdict, _ = await op.verdict()
        assert verdict is Verdict.FAILED


async def test_a_retry_sends_the_parts_that_were_not_accepted_and_they_fit_the_others() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.first(SUBMIT_SM, accepted(), refused(QUEUE_FULL), refused(THROTTLED))
        (first,) = await op.settle(LONG, number=7)
        assert (first.verdict, first.provider_message_id) == (Verdict.FAILED, None)
        assert (first.detail, first.retry_after_s) == ("ESME_RMSGQFUL (0x14)", 1.0)
        assert first.parts is not None
        assert [first.parts[number].verdict for number in (1, 2, 3)] == [
            Verdict.ACCEPTED,
            Verdict.FAILED,
            Verdict.THROTTLED,
        ]
        (second,) = await op.settle(LONG, number=7, attempt=2, accepted_parts=frozenset({1}))
        assert second.verdict is Verdict.ACCEPTED
        assert second.parts is not None
        assert set(second.parts) == {2, 3}
        assert [pdu.part for pdu in smsc.submits] == [
            (reference_of(7) & 0xFF, number, 3) for number in (1, 2, 3, 2, 3)
        ]
        (nothing,) = await op.settle(LONG, accepted_parts=frozenset({1, 2, 3}))
        assert (nothing.verdict, nothing.parts) == (Verdict.ACCEPTED, {})


@pytest.mark.parametrize(
    ("status", "verdict", "detail"),
    [
        (THROTTLED, Verdict.THROTTLED, "ESME_RTHROTTLED (0x58)"),
        (SYSTEM_ERROR, Verdict.FAILED, "ESME_RSYSERR (0x08)"),
        (0x45, Verdict.FAILED, "ESME_RSUBMITFAIL (0x45)"),
        (0x0B, Verdict.REFUSED, "ESME_RINVDSTADR (0x0B)"),
        (0xC4, Verdict.REFUSED, "ESME_RINVOPTPARAMVAL (0xC4)"),
        (0x400, Verdict.FAILED, "0x00000400"),
        (0x401, Verdict.REFUSED, "0x00000401"),
        (0x12345678, Verdict.FAILED, "0x12345678"),
        (0x04, Verdict.NOT_SENT, "ESME_RINVBNDSTS (0x04)"),
        (0x0E, Verdict.NOT_SENT, "ESME_RINVPASWD (0x0E)"),
        (0x03, Verdict.FAILED, "ESME_RINVCMDID (0x03)"),
    ],
)
async def test_a_status_is_a_verdict(status: int, verdict: Verdict, detail: str) -> None:
    settings: dict[str, Any] = {"status_classes": {"0x400": "temporary"}, "throttle_pause_s": 2.5}
    async with Smsc() as smsc, operator(smsc.port, **settings) as op:
        smsc.first(SUBMIT_SM, refused(status))
        (outcome,) = await op.settle()
        assert (outcome.verdict, outcome.detail) == (verdict, detail)
        assert outcome.retry_after_s == (2.5 if verdict is Verdict.THROTTLED else None)
        assert outcome.has_left
        ends = status in (0x03, 0x04, 0x0E)
        if ends:
            await op.until(lambda: f"the operator answers a submit with {detail}" in op.troubles)
            await smsc.saw(UNBIND)
            await op.up()
        (again,) = await op.settle()
        assert again.verdict is Verdict.ACCEPTED
        assert len(smsc.sessions) == (2 if ends else 1)


async def test_what_cannot_be_said_to_an_operator_is_not_refused_by_it() -> None:
    async with Smsc() as smsc, operator(smsc.port, charset="latin1") as op:
        for unfit, why in (
            ({"text": "Ω" * 75}, "ESME_RINVDCS (0x104): the operator's Latin-1 lacks a character"),
            (
                {"sender": "Ω"},
                "ESME_RINVSRCADR (0x0A): not up to 20 printable characters of Latin-1",
            ),
        ):
            verdict, detail = await op.verdict(**unfit)
            assert verdict is Verdict.FAILED
            assert detail is not None
            assert detail.startswith(f"cannot be said to this operator: {why}")
        assert smsc.submits == []


@pytest.mark.parametrize(
    ("notation", "written"),
    [
        ("same", str),
        ("same", str.upper),
        ("hex", lambda identifier: identifier.lstrip("0")),
        ("hex_to_decimal", lambda identifier: str(int(identifier, 16))),
    ],
)
async def test_a_receipt_names_the_id_of_the_answer_however_it_is_written(
    notation: str, written: Any
) -> None:
    async with Smsc() as smsc, operator(smsc.port, receipt_id=notation) as op:
        smsc.ids = hex_ids()
        smsc.on[SUBMIT_SM] = in_turn(accepted(), reported(written=written, tlvs=False))
        outcomes = await op.settle(*(["hello"] * 20))
        await op.until(lambda: len(op.receipts) == 20)
        assert [one.provider_message_id for one in outcomes] == [
            receipt.identifier for receipt in op.receipts
        ]


async def test_intermediate_news_and_inbound_messages_are_no_outcomes() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.on[SUBMIT_SM] = reported("ENROUTE", esm_class=0x20, unasked=True)
        op.submit()
        receipt = (await op.until(lambda: op.receipts))[0]
        assert receipt.word == "ENROUTE"
        inbound = smsc.sessions[0].message("989120000000", "12345", b"id:1 stat:DELIVRD text:hi")
        assert (await inbound.answered()).status == OK
        assert len(op.receipts) == 1


async def test_a_receipt_is_acknowledged_once_it_is_stored_and_sent_again_if_it_is_not() -> None:
    async with Smsc() as smsc, operator(smsc.port, receipts_max=2) as op:
        op.stores = False
        await op.settle("one", "two", "three")
        # The third is too many.
        (refusal,) = await smsc.saw(DELIVER_SM | RESPONSE)
        assert refusal.status == 0x64
        assert len(op.receipts) == 2
        assert op.provider.state()["receipts_held"] == 2
        op.receipts[1].stored(True)
        op.receipts[0].stored(False)
        answers = await smsc.saw(DELIVER_SM | RESPONSE, 3)
        requests = smsc.sessions[0].requests
        assert [(pdu.sequence, pdu.status) for pdu in answers[1:]] == [(2, OK), (1, 0x64)]
        assert set(requests) == {1, 2, 3}
        assert op.provider.state()["receipts_held"] == 0


async def test_a_receipt_that_is_stored_after_the_connection_is_acknowledged_on_the_next() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        op.stores = False
        await op.settle()
        late = (await op.until(lambda: op.receipts))[0]
        smsc.drop_all()
        await op.until(lambda: len(op.troubles) > 2)
        await op.up()
        late.stored(True)
        op.stores = True
        (again,) = smsc.redeliver()
        assert (await again.answered()).status == OK
        assert [receipt.identifier for receipt in op.receipts] == [late.identifier] * 2
        assert len(smsc.of(DELIVER_SM | RESPONSE)) == 1


@pytest.mark.parametrize("bind", ["transceiver", "transmitter+receiver"])
async def test_several_binds_share_the_work_and_the_window(bind: str) -> None:
    async with Smsc() as smsc, operator(smsc.port, binds=2, window=6, bind=bind) as op:
        count = 2 if bind == "transceiver" else 4
        sessions = await smsc.binds(count)
        kinds = {session.bind.command for session in sessions if session.bind}
        assert kinds == (
            {BIND_TRANSCEIVER} if bind == "transceiver" else {BIND_TRANSMITTER, BIND_RECEIVER}
        )
        smsc.on[SUBMIT_SM] = held("answers")
        sent = [op.submit() for _ in range(8)]
        await smsc.saw(SUBMIT_SM, 6)
        assert (op.provider.state()["outstanding"], op.provider.state()["waiting"]) == (6, 2)
        assert sorted(session.outstanding_max for session in sessions)[-2:] == [3, 3]
        smsc.on.clear()
        smsc.release("answers")
        for one in sent:
            assert (await op.outcome_of(one)).verdict is Verdict.ACCEPTED
        await op.until(lambda: len(op.receipts) == 8)
        assert smsc.outstanding_max == 3
        assert op.provider.state()["binds"] == f"{count} of {count} bound"


def without_receivers(smsc: Smsc) -> None:
    """Have it refuse every bind that receives."""
    smsc.on[BIND] = lambda pdu: (
        refused(0x0D)(pdu) if pdu.command == BIND_RECEIVER else smsc.standard(pdu)
    )


async def test_an_operator_that_cannot_report_says_so_and_goes_on() -> None:
    async with Smsc() as smsc, operator(smsc.port, bind="transmitter+receiver") as op:
        (receiver,) = [
            one for one in smsc.sessions if one.bind and one.bind.command == BIND_RECEIVER
        ]
        without_receivers(smsc)
        receiver.request(UNBIND)
        await smsc.saw(BIND_RECEIVER, 3)
        assert op.provider.warning == NO_RECEIVER
        assert op.provider.trouble is None, "what it sends is only reported later"
        assert op.provider.state()["binds"] == "1 of 2 bound"
        smsc.on.clear()
        await op.until(lambda: op.provider.warning is None)
        assert op.provider.state()["binds"] == "2 of 2 bound"


async def test_without_receipts_no_bind_that_receives_is_needed() -> None:
    async with Smsc() as smsc:
        without_receivers(smsc)
        async with operator(smsc.port, bind="transmitter+receiver", receipts=False) as op:
            await smsc.saw(BIND_RECEIVER, 2)
            await op.up()
            assert op.provider.warning is None


async def test_the_bind_with_the_least_to_do_is_next() -> None:
    async with Smsc() as smsc, operator(smsc.port, binds=3, window=30) as op:
        await bound(smsc, op, 3)
        smsc.on[SUBMIT_SM] = silent
        for _ in range(9):
            op.submit()
        await smsc.saw(SUBMIT_SM, 9)
        assert [session.outstanding_max for session in smsc.sessions] == [3, 3, 3]


async def test_a_submit_that_an_operator_cannot_read_is_an_alarm_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.on[SUBMIT_SM] = refused(0xC4)
        await op.settle("one", "two")
    alarms = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in alarms] == ["an operator cannot read a submit_sm"]


async def test_a_code_goes_before_what_waits_and_never_out_when_its_time_is_over() -> None:
    async with Smsc() as smsc, operator(smsc.port, window=1) as op:
        smsc.first(SUBMIT_SM, held("first"))
        sent = [op.submit("first"), op.submit("second"), op.submit("dead", valid_s=0.0, otp=True)]
        sent.append(op.submit(LONG, valid_s=9.7, otp=True))
        await smsc.saw(SUBMIT_SM)
        smsc.release("first")
        outcomes = [await op.outcome_of(one) for one in sent]
        texts = [pdu.text for pdu in smsc.submits]
        assert (texts[0], "".join(texts[1:4]), texts[4]) == ("first", LONG, "second")
        assert (outcomes[2].verdict, outcomes[2].detail) == (
            Verdict.NOT_SENT,
            "its time was over",
        )
        for pdu in smsc.submits[1:4]:
            assert re.fullmatch("00000000000[0-9]000R", pdu["validity_period"])
        assert smsc.outstanding_max == 1


async def test_a_code_is_cancelled_by_the_id_as_the_operator_wrote_it() -> None:
    async with Smsc() as smsc, operator(smsc.port, cancel=True, window=1) as op:
        smsc.on[SUBMIT_SM] = accepted("00AB12CD34EF")
        sent = op.submit("code", otp=True)
        outcome = await op.outcome_of(sent)
        assert outcome.provider_message_id == "ab12cd34ef"
        op.provider.cancel(sent, outcome.provider_message_id)
        (cancel,) = await smsc.saw(CANCEL_SM)
        assert (cancel["message_id"], cancel.recipient) == ("00AB12CD34EF", TO[1:])
        op.provider.cancel(sent, "Ω")
        op.provider.cancel(sent, "plain")
        assert (await smsc.saw(CANCEL_SM, 2))[1]["message_id"] == "plain"


async def test_a_code_that_dies_without_a_bind_is_cancelled_on_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(provider, "CANCELS_MAX", 4)
    async with Smsc() as smsc, operator(smsc.port, cancel=True) as op:
        smsc.on[SUBMIT_SM] = accepted("00AB12CD34EF")
        sent = op.submit("code", otp=True)
        identifier = (await op.outcome_of(sent)).provider_message_id
        assert identifier is not None
        smsc.stop_listening()
        smsc.drop_all()
        await op.down()
        for number in ("one too many", "over", identifier, "Ω", "last"):
            with monkeypatch.context() as patched:
                patched.setattr(provider, "CANCEL_KEPT_S", 0.0 if number == "over" else 300.0)
                assert op.provider.cancel(sent, number)
        await smsc.listen()
        first, second = await smsc.saw(CANCEL_SM, 2)
        assert (first["message_id"], first.recipient) == ("00AB12CD34EF", TO[1:])
        assert second["message_id"] == "last"
        # It is not asked again.
        await op.up()
        told = len(op.troubles)
        smsc.drop_all()
        await op.until(lambda: len(op.troubles) == told + 2)
        await op.settle()
        assert len(smsc.of(CANCEL_SM)) == 2
    assert not op.provider.cancel(sent, "1"), "there is no next bind"


async def test_nothing_is_cancelled_where_that_is_not_set() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        sent = op.submit("code", otp=True)
        await op.outcome_of(sent)
        op.provider.cancel(sent, "1")
        await op.settle()
        assert smsc.of(CANCEL_SM) == []


async def test_stopping_waits_for_answers_and_acknowledges_what_is_stored_meanwhile() -> None:
    async with Smsc() as smsc:
        async with operator(smsc.port, unbind_timeout_s=30.0) as op:
            op.stores = False
            answered = op.submit()
            await op.until(lambda: op.receipts)
            smsc.on[SUBMIT_SM] = held("answer", accepted())
            last = op.submit("last")
            await smsc.saw(SUBMIT_SM, 2)
            stopping = asyncio.create_task(op.provider.stop())
            await op.down()
            assert await op.verdict(text="too late") == (Verdict.NOT_SENT, "the gateway stops")
            smsc.release("answer")
            op.receipts[0].stored(True)
            await stopping
        assert (await op.outcome_of(answered)).verdict is Verdict.ACCEPTED
        assert (await op.outcome_of(last)).verdict is Verdict.ACCEPTED
        assert [pdu.command for pdu in smsc.received][-2:] == [DELIVER_SM | RESPONSE, UNBIND]
        assert len(smsc.submits) == 2


async def test_stopping_reports_what_has_no_answer_once() -> None:
    async with Smsc() as smsc:
        async with operator(smsc.port, window=2) as op:
            smsc.on[SUBMIT_SM] = silent
            sent = [op.submit() for _ in range(3)]
            await smsc.saw(SUBMIT_SM, 2)
        verdicts = [(await op.outcome_of(one)).verdict for one in sent]
        assert verdicts == [Verdict.UNKNOWN, Verdict.UNKNOWN, Verdict.NOT_SENT]
        assert len(op.outcomes) == 3


async def test_stopping_in_the_round_of_the_bind_tells_of_everything() -> None:
    async with Smsc() as smsc:
        smsc.on[SUBMIT_SM] = silent
        async with operator(smsc.port, up=False) as op:
            at_once = op.changed

            def submit_and_stop(provider: str) -> None:
                at_once(provider)
                if op.provider.trouble is None:
                    op.submit()
                    stopped.append(asyncio.create_task(op.provider.stop()))

            stopped: list[asyncio.Task[None]] = []
            op.changed = submit_and_stop  # type: ignore[method-assign]
            await smsc.binds()
            await op.until(lambda: stopped)
            await stopped[0]
            assert len(op.outcomes) == 1


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"host": ""}, "host: String should match pattern"),
        ({"host": "a b"}, "host: String should match pattern"),
        ({"host": "a..b"}, "host: Should be the name of a host, or its address"),
        ({"host": "x" * 64}, "host: Should be the name of a host, or its address"),
        ({"host": "::z"}, "host: Should be the name of a host, or its address"),
        ({"tls": True, "tls_server_name": ".x"}, "tls_server_name: Should be the name of a host"),
        ({"tls": True, "tls_server_name": "a\0b"}, "tls_server_name: Should be the name of a"),
        ({"system_id": "sixteen_of_these"}, "system_id: String should match pattern"),
        ({"password": "seventeen_of_them"}, "password: Should be up to 16 visible ASCII"),
        ({"password": "a b"}, "password: Should be up to 16 visible ASCII characters"),
        ({"tls_ca_file": "a.pem"}, "tls_ca_file: has no meaning without tls = true"),
        ({"tls_server_name": "a"}, "tls_server_name: has no meaning without tls = true"),
        ({"tls": True, "tls_key_file": "a"}, "tls_key_file: has no meaning without tls_cert_file"),
        ({"reconnect_max_s": 0.1}, "reconnect_max_s: should be at least reconnect_min_s"),
        ({"bind": "receiver"}, "bind: Input should be 'transceiver' or "),
        ({"long_messages": "8bit"}, "long_messages: Input should be 'udh', "),
        ({"status_classes": {"400": "temporary"}}, "status_classes.400: String should match"),
        ({"status_classes": {"0x0": "refused"}}, "status_classes.0x0: String should match"),
        ({"status_classes": {"0x400": "accepted"}}, "status_classes.0x400: Input should be"),
    ],
)
def test_a_mistake_is_named_with_its_key(settings: dict[str, Any], mistake: str) -> None:
    whole = {"kind": "smpp", "host": "smsc.example.com", "system_id": "esme", **settings}
    with pytest.raises(SettingsError) as caught:
        load(None, {}, {"providers": {"op": whole}})
    (found,) = caught.value.members["mistakes"]
    assert found.startswith(f"providers.op.{mistake}")


def test_a_setting_that_is_missing_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {}, {"providers": {"op": {"kind": "smpp"}}})
    assert caught.value.members["mistakes"] == [
        "providers.op.host: Field required (from option)",
        "providers.op.system_id: Field required (from option)",
    ]


# What is withdrawn.


async def test_of_what_is_withdrawn_only_what_has_left_is_waited_for() -> None:
    async with Smsc() as smsc, operator(smsc.port, window=1) as op:
        smsc.on[SUBMIT_SM] = held("first")
        sent = op.submit(LONG, otp=True)
        await smsc.saw(SUBMIT_SM)
        op.provider.withdraw(sent)
        assert not op.outcomes
        smsc.release("first")
        outcome = await op.outcome_of(sent)
        assert (outcome.verdict, outcome.has_left) == (Verdict.NOT_SENT, True)
        assert outcome.parts is not None
        verdicts = [outcome.parts[number].verdict for number in (1, 2, 3)]
        assert verdicts == [Verdict.ACCEPTED, Verdict.NOT_SENT, Verdict.NOT_SENT]
        # What was told has nothing left to be withdrawn.
        op.provider.withdraw(sent)
        assert (len(smsc.submits), len(op.outcomes)) == (1, 1)


async def test_what_the_smsc_was_too_slow_to_read_is_withdrawn_without_a_trace() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        (link,) = op.provider._senders
        link.pause_writing()
        sent = op.submit("withdrawn", otp=True)
        op.provider.withdraw(sent)
        outcome = await op.outcome_of(sent)
        assert (outcome.verdict, outcome.has_left) == (Verdict.NOT_SENT, False)
        link.resume_writing()
        assert (await op.settle("after it"))[0].verdict is Verdict.ACCEPTED
        assert [pdu.text for pdu in smsc.submits] == ["after it"]
