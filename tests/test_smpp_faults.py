"""Whatever an SMSC does wrong: each submit is told of once, and the bind comes back."""

from pathlib import Path
from typing import Any

import pytest

from smsgw.errors import SettingsError
from smsgw.models import Verdict
from smsgw.operators import SmppProviderSettings
from smsgw.providers.smpp.provider import SmppProvider
from tests.certificates import Certificates, new_certificates
from tests.pdus import (
    BIND_FAILED,
    DATA_SM,
    DELIVER_SM,
    ENQUIRE_LINK,
    GENERIC_NACK,
    INVALID_COMMAND,
    INVALID_LENGTH,
    OK,
    QUERY_SM,
    RESPONSE,
    SUBMIT_SM,
    SYSTEM_ERROR,
    THROTTLED,
    UNBIND,
    encode,
    head,
)
from tests.smpp_operator import LONG, bound, operator
from tests.smsc import (
    BIND,
    Action,
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

LOST = (Verdict.UNKNOWN, "the connection was lost before the answer")
LATE = (Verdict.UNKNOWN, "no answer in time")


def forgive_nacks(smsc: Smsc) -> None:
    """Answers to bytes that had no sequence number: theirs is 0, and they say what was wrong."""
    nacks = smsc.of(GENERIC_NACK)
    assert {(pdu.sequence, pdu.status) for pdu in nacks} <= {(0, INVALID_LENGTH)}
    assert len(smsc.complaints) == len(nacks)
    smsc.complaints.clear()


# Answers that do not come, or are none.


async def test_a_late_answer_is_told_after_the_silence() -> None:
    async with Smsc() as smsc, operator(smsc.port, response_timeout_s=0.05, window=2) as op:
        smsc.first(SUBMIT_SM, *[held("late", accepted(str(number))) for number in (1, 2, 3)])
        sent = [op.submit(), op.submit(), op.submit()]
        first = [await op.outcome_of(one) for one in sent[:2]]
        assert [(one.verdict, one.detail, one.timed_out) for one in first] == [(*LATE, True)] * 2
        # The third had to wait too long for a place, and never left.
        third = await op.outcome_of(sent[2])
        assert (third.verdict, third.detail) == (Verdict.NOT_SENT, "no room in time")
        # Places are free again, and none of the three takes one.
        assert (await op.settle())[0].verdict is Verdict.UNKNOWN
        smsc.release("late", 2, reverse=True)
        late = [await op.outcome_of(one, 2) for one in sent[:2]]
        assert [(one.verdict, one.provider_message_id) for one in late] == [
            (Verdict.ACCEPTED, "1"),
            (Verdict.ACCEPTED, "2"),
        ]
        assert op.provider.trouble is None


async def test_late_answers_to_parts_tell_all_that_is_known() -> None:
    async with Smsc() as smsc, operator(smsc.port, response_timeout_s=0.05, window=2) as op:
        smsc.first(SUBMIT_SM, accepted("1"), held("second", accepted("2")), silent)
        sent = op.submit(LONG)
        first = await op.outcome_of(sent)
        assert (first.verdict, first.detail, first.provider_message_id) == (*LATE, None)
        assert first.parts is not None
        assert [first.parts[number].verdict for number in (1, 2, 3)] == [
            Verdict.ACCEPTED,
            Verdict.UNKNOWN,
            Verdict.UNKNOWN,
        ]
        smsc.release("second")
        second = await op.outcome_of(sent, 2)
        assert second.parts is not None
        assert [second.parts[number].provider_message_id for number in (1, 2, 3)] == [
            "1",
            "2",
            None,
        ]
        assert second.verdict is Verdict.UNKNOWN
        assert first.parts[2].verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("action", [misnumbered(), garbled(b""), in_turn(silent, silent)])
async def test_an_answer_to_another_question_is_none(action: Action) -> None:
    async with Smsc() as smsc, operator(smsc.port, response_timeout_s=0.05) as op:
        smsc.first(SUBMIT_SM, action)
        assert await op.verdict() == LATE
        smsc.on[SUBMIT_SM] = accepted("2")
        sent = op.submit()
        assert (await op.outcome_of(sent)).provider_message_id == "2"


@pytest.mark.parametrize("action", [garbled(), oversized, halved(), dropped(), dropped(reset=True)])
async def test_nonsense_or_a_lost_connection_leaves_open_what_happened(action: Action) -> None:
    async with (
        Smsc() as smsc,
        operator(smsc.port, window=2, enquire_link_s=0.05, link_timeout_s=0.05) as op,
    ):
        # enquire_link is silent while an answer is half: what follows would be a part of it.
        smsc.first(SUBMIT_SM, held("first", action), held("second", silent))
        sent = [op.submit() for _ in range(3)]
        await smsc.saw(SUBMIT_SM, 2)
        smsc.release("first")
        for one in sent[:2]:
            outcome = await op.outcome_of(one)
            assert (outcome.verdict, outcome.detail) == LOST
        # It had not left: either the connection took it with it or the next one has sent it.
        third = await op.outcome_of(sent[2])
        assert third.verdict in (Verdict.NOT_SENT, Verdict.ACCEPTED)
        await op.up()
        assert (await op.settle())[0].verdict is Verdict.ACCEPTED
        forgive_nacks(smsc)


async def test_a_lost_connection_is_one_sign_of_an_operators_health() -> None:
    async with Smsc() as smsc, operator(smsc.port, window=6) as op:
        smsc.on[SUBMIT_SM] = silent
        sent = [op.submit(LONG), op.submit("second"), op.submit("third")]
        await smsc.saw(SUBMIT_SM, 5)
        smsc.drop_all()
        outcomes = [await op.outcome_of(one) for one in sent]
        assert [(one.verdict, one.timed_out) for one in outcomes] == [
            (Verdict.UNKNOWN, True),
            (Verdict.UNKNOWN, False),
            (Verdict.UNKNOWN, False),
        ]
        await op.up()
        last = op.submit("last")
        await smsc.saw(SUBMIT_SM, 6)
    # That we have gone is no sign of anything.
    assert not (await op.outcome_of(last)).timed_out


async def test_an_answer_in_pieces_is_one() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.first(SUBMIT_SM, dripped, halved("rest"))
        assert (await op.settle())[0].verdict is Verdict.ACCEPTED
        sent = op.submit()
        await smsc.saw(SUBMIT_SM, 2)
        smsc.release("rest")
        assert (await op.outcome_of(sent)).verdict is Verdict.ACCEPTED


async def test_answers_in_another_order_find_their_questions() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.on[SUBMIT_SM] = held("all", lambda pdu: accepted(f"id {pdu.text}")(pdu))
        sent = [op.submit(f"number {number}") for number in range(10)]
        await smsc.saw(SUBMIT_SM, 10)
        smsc.release("all", reverse=True)
        for number, one in enumerate(sent):
            assert (await op.outcome_of(one)).provider_message_id == f"id number {number}"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (THROTTLED, (Verdict.THROTTLED, "ESME_RTHROTTLED (0x58)")),
        (INVALID_COMMAND, (Verdict.FAILED, "ESME_RINVCMDID (0x03)")),
        (OK, (Verdict.FAILED, "ESME_RUNKNOWNERR (0xFF)")),
    ],
)
async def test_a_generic_nack_is_an_answer_and_never_a_good_one(
    status: int, expected: tuple[Verdict, str]
) -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.first(SUBMIT_SM, nacked(status))
        assert await op.verdict() == expected
        await op.up()
        assert (await op.settle())[0].verdict is Verdict.ACCEPTED


async def test_a_message_of_which_one_part_is_lost_or_refused_tells_of_each() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.first(SUBMIT_SM, accepted("1"), refused(0x0B), accepted("3"))
        (refusal,) = await op.settle(LONG)
        assert (refusal.verdict, refusal.detail) == (Verdict.REFUSED, "ESME_RINVDSTADR (0x0B)")
        smsc.first(SUBMIT_SM, accepted("1"), silent, dropped())
        (lost,) = await op.settle(LONG)
        assert (lost.verdict, lost.detail) == LOST
        assert lost.parts is not None
        assert [lost.parts[number].provider_message_id for number in (1, 2, 3)] == ["1", None, None]


async def test_too_fast_is_told_and_goes_on_later() -> None:
    now_s = 0.0
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.on[SUBMIT_SM] = throttled_above(10, 5, lambda: now_s)
        verdicts = [one.verdict for one in await op.settle(*["hello"] * 8)]
        assert verdicts == [Verdict.ACCEPTED] * 5 + [Verdict.THROTTLED] * 3
        now_s = 1.0
        assert (await op.settle())[0].verdict is Verdict.ACCEPTED


async def test_the_window_is_never_exceeded() -> None:
    async with Smsc() as smsc, operator(smsc.port, window=5) as op:
        smsc.on[SUBMIT_SM] = held("answers")
        sent = [op.submit(LONG) for _ in range(40)]
        for _ in range(120):
            await smsc.until(lambda: smsc.waiting("answers"))
            smsc.release("answers", 1)
        for one in sent:
            assert (await op.outcome_of(one)).verdict is Verdict.ACCEPTED
        assert smsc.outstanding_max == 5


# Receipts.


async def test_receipts_come_early_twice_in_any_order_and_as_data_sm() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.on[SUBMIT_SM] = in_turn(
            reported("ENROUTE", unasked=True), accepted(), reported(data_sm=True), reported()
        )
        (outcome,) = await op.settle()
        await op.until(lambda: len(op.receipts) == 3)
        assert [receipt.word for receipt in op.receipts] == ["ENROUTE", "DELIVRD", "DELIVRD"]
        assert {receipt.identifier for receipt in op.receipts} == {outcome.provider_message_id}
        await smsc.saw(DATA_SM | RESPONSE)
        assert await smsc.until(lambda: not smsc.unanswered())


async def test_a_receipt_comes_on_another_bind() -> None:
    async with Smsc() as smsc, operator(smsc.port, binds=2) as op:
        await smsc.binds(2)
        smsc.on[SUBMIT_SM] = in_turn(reported(elsewhere=True), accepted())
        (outcome,) = await op.settle()
        await op.until(lambda: op.receipts)
        assert op.receipts[0].identifier == outcome.provider_message_id
        answered = (await smsc.saw(DELIVER_SM | RESPONSE))[0]
        assert answered.session is not smsc.submits[0].session


async def test_a_receipt_without_an_id_is_kept_and_one_that_ends_too_early_is_told() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        smsc.on[SUBMIT_SM] = in_turn(accepted(""), reported(text=b"stat:DELIVRD", tlvs=False))
        (outcome,) = await op.settle()
        assert (outcome.verdict, outcome.provider_message_id) == (Verdict.ACCEPTED, None)
        await op.until(lambda: op.receipts)
        assert (op.receipts[0].identifier, op.receipts[0].word) == ("", "DELIVRD")
        assert op.receipts[0].about == (989121234567, "ACME")
        await smsc.saw(DELIVER_SM | RESPONSE)
        session = smsc.sessions[0]
        request = session.request(DELIVER_SM)
        session.write(encode(DELIVER_SM, request.sequence + 1, source_addr="1")[:20])
        assert (await request.answered()).status == OK


# The link.


async def test_a_silent_smsc_is_left_and_what_it_has_is_unknown() -> None:
    async with (
        Smsc() as smsc,
        operator(smsc.port, enquire_link_s=0.01, link_timeout_s=0.05) as op,
    ):
        # As long as it answers, it may be as slow as it likes.
        await smsc.saw(ENQUIRE_LINK, 3)
        assert len(smsc.sessions) == 1
        smsc.first(SUBMIT_SM, silent)
        smsc.first(ENQUIRE_LINK, silent)
        assert await op.verdict() == LOST
        await op.until(lambda: "the operator has not answered an enquire_link" in op.troubles)
        await op.up()
        assert len(smsc.sessions) == 2


async def test_questions_of_the_smsc_are_answered() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        session = smsc.sessions[0]
        assert (await session.request(ENQUIRE_LINK).answered()).status == OK
        nack = await session.request(QUERY_SM).answered()
        assert (nack.command, nack.status) == (GENERIC_NACK, INVALID_COMMAND)
        # An outbind and an alert_notification ask for nothing.
        session.write(head(0x0B, 90) + head(0x102, 91))
        session.write(head(UNBIND | RESPONSE, 92)[:16])
        await smsc.lost(session)
        await op.up()


async def test_an_smsc_that_unbinds_gets_its_answers_through_first() -> None:
    async with Smsc() as smsc, operator(smsc.port, unbind_timeout_s=30.0) as op:
        smsc.first(SUBMIT_SM, in_turn(held("first"), unbinding), held("second"))
        sent = [op.submit(), op.submit()]
        await smsc.saw(SUBMIT_SM, 2)
        assert await op.down() == "the operator has ended the bind"
        # Nothing goes out here any more.
        smsc.release("first")
        smsc.release("second")
        for one in sent:
            assert (await op.outcome_of(one)).verdict is Verdict.ACCEPTED
        (goodbye,) = await smsc.saw(UNBIND | RESPONSE)
        assert goodbye.status == OK
        await op.up()
        assert (await op.settle())[0].verdict is Verdict.ACCEPTED
        assert smsc.submits[-1].session is not smsc.submits[0].session


async def test_an_smsc_that_unbinds_and_does_not_answer_is_not_waited_for_long() -> None:
    async with Smsc() as smsc, operator(smsc.port, unbind_timeout_s=0.01) as op:
        smsc.first(SUBMIT_SM, unbinding)
        assert await op.verdict() == LOST
        await op.up()


async def test_an_smsc_that_does_not_answer_an_unbind_is_left() -> None:
    async with Smsc() as smsc:
        smsc.on[UNBIND] = silent
        async with operator(smsc.port, unbind_timeout_s=0.01):
            pass
        assert len(smsc.of(UNBIND)) == 1


async def test_nobody_there_at_first_is_no_end() -> None:
    async with Smsc() as smsc:
        smsc.stop_listening()
        async with operator(smsc.port, up=False) as op:
            await op.until(lambda: op.provider.trouble == "the operator refuses connections")
            assert await op.verdict() == (Verdict.NOT_SENT, "the operator refuses connections")
            await smsc.listen()
            await op.up()
            assert (await op.settle())[0].verdict is Verdict.ACCEPTED


async def test_an_smsc_that_comes_and_goes_loses_and_doubles_nothing() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        told = 0
        for number in range(30):
            sent = op.submit(f"number {number}")
            if number % 3 == 0:
                smsc.drop_all(reset=bool(number % 2))
            outcome = await op.outcome_of(sent)
            assert outcome.verdict in (Verdict.ACCEPTED, Verdict.UNKNOWN, Verdict.NOT_SENT)
            arrived = [pdu for pdu in smsc.submits if pdu.text == f"number {number}"]
            assert len(arrived) <= (outcome.verdict is not Verdict.NOT_SENT)
            told += outcome.verdict is Verdict.ACCEPTED
            await op.up()
        assert told >= 20


@pytest.mark.parametrize(
    ("action", "why"),
    [
        (refused(BIND_FAILED), "the operator refuses to bind: ESME_RBINDFAIL (0x0D)"),
        (nacked(SYSTEM_ERROR), "the operator refuses to bind: ESME_RSYSERR (0x08)"),
        (silent, "no connection and bind in time"),
        (dropped(), "the connection was lost before the bind was answered"),
        (garbled(), "the operator does not speak SMPP: a PDU cannot have 1213486160 octets"),
    ],
)
async def test_a_bind_that_fails_is_told_and_tried_again(action: Action, why: str) -> None:
    async with Smsc() as smsc:
        smsc.first(BIND, action, action)
        async with operator(smsc.port, up=False, link_timeout_s=0.1) as op:
            await op.until(lambda: op.provider.trouble == why)
            await op.up()
            assert len(smsc.of(BIND)) == 3
        forgive_nacks(smsc)


@pytest.mark.parametrize("wrong", ["system_id", "password"])
async def test_wrong_credentials_are_named_and_not_tried_again_soon(wrong: str) -> None:
    async with Smsc(system_id="esme", password="secret") as smsc:
        settings: dict[str, Any] = {wrong: "wr0ng", "reconnect_max_s": 3600.0}
        async with operator(smsc.port, up=False, **settings) as op:
            why = await op.until(
                lambda: (
                    (op.provider.trouble or "").startswith("the operator refuses")
                    and op.provider.trouble
                )
            )
            assert str(why).endswith(f"; look at {wrong}")
            assert "wr0ng" not in str(why)
            assert await op.verdict() == (Verdict.NOT_SENT, why)
        assert len(smsc.of(BIND)) == 1


async def test_one_of_two_binds_is_enough() -> None:
    async with Smsc() as smsc:
        smsc.first(BIND, accepted(), refused(BIND_FAILED))
        async with operator(smsc.port, binds=2, reconnect_min_s=60.0, reconnect_max_s=60.0) as op:
            await smsc.saw(BIND, 2)
            assert (await op.settle())[0].verdict is Verdict.ACCEPTED
            assert op.provider.trouble is None
            assert op.provider.state()["binds"] == "1 of 2 bound"
            smsc.first(SUBMIT_SM, dropped())
            assert await op.verdict() == LOST
            assert await op.down() == "the connection was lost"


async def test_what_was_waiting_for_a_lost_bind_goes_out_on_the_other() -> None:
    async with Smsc() as smsc, operator(smsc.port, binds=2, window=2) as op:
        await bound(smsc, op, 2)
        smsc.on[SUBMIT_SM] = held("answers")
        sent = [op.submit(f"number {number}") for number in range(4)]
        await smsc.saw(SUBMIT_SM, 2)
        smsc.on.clear()
        smsc.submits[0].session.drop()
        assert (await op.outcome_of(sent[0])).verdict is Verdict.UNKNOWN
        smsc.release("answers")
        for one in sent[1:]:
            assert (await op.outcome_of(one)).verdict is Verdict.ACCEPTED


async def test_what_had_not_left_with_a_lost_bind_goes_out_on_the_other() -> None:
    async with Smsc() as smsc, operator(smsc.port, binds=2, window=2) as op:
        await bound(smsc, op, 2)
        (first,) = op.provider._bound[:1]
        sent = op.submit()
        assert first.outstanding == 1
        first.abort("the test says so")
        assert (await op.outcome_of(sent)).verdict is Verdict.ACCEPTED
        assert len(smsc.submits) == 1
        assert op.provider.trouble is None


async def test_what_had_not_left_with_the_only_bind_was_not_sent() -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        sent = op.submit()
        op.provider._bound[0].abort("the test says so")
        outcome = await op.outcome_of(sent)
        assert (outcome.verdict, outcome.detail) == (Verdict.NOT_SENT, "the test says so")
        assert smsc.submits == []


async def test_what_had_not_left_and_finds_no_room_in_time_was_not_sent() -> None:
    async with (
        Smsc() as smsc,
        operator(smsc.port, binds=2, window=2, response_timeout_s=0.05) as op,
    ):
        await bound(smsc, op, 2)
        smsc.on[SUBMIT_SM] = silent
        smsc.on[BIND] = silent
        op.submit()
        await smsc.saw(SUBMIT_SM)
        second = op.submit()
        (idle,) = [link for link in op.provider._bound if link._out]
        idle.abort("the test says so")
        outcome = await op.outcome_of(second)
        assert (outcome.verdict, outcome.detail) == (Verdict.NOT_SENT, "no room in time")


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return new_certificates(tmp_path_factory.mktemp("tls"), "smsc.example.com")


def trusting(made: Certificates, **more: Any) -> dict[str, Any]:
    return {
        "tls": True,
        "tls_ca_file": str(made.authority),
        "tls_server_name": "smsc.example.com",
        **more,
    }


async def test_tls_with_a_certificate_of_ours(certificates: Certificates) -> None:
    async with Smsc(tls=certificates.for_server(ask_client=True)) as smsc:
        shown = {
            "tls_cert_file": str(certificates.client),
            "tls_key_file": str(certificates.client_key),
        }
        async with operator(smsc.port, **trusting(certificates, **shown)) as op:
            assert (await op.settle())[0].verdict is Verdict.ACCEPTED
            await op.until(lambda: op.receipts)
        async with operator(smsc.port, up=False, **trusting(certificates)) as op:
            await op.until(lambda: "another certificate of ours" in (op.provider.trouble or ""))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tls_server_name": ""}, "the operator's certificate is not trusted: IP address mismatch"),
        ({"tls_server_name": "example.com"}, "the operator's certificate is not trusted: Hostname"),
        ({"tls_ca_file": ""}, "the operator's certificate is not trusted: "),
    ],
)
async def test_a_certificate_is_checked(
    certificates: Certificates, settings: dict[str, str], why: str
) -> None:
    async with Smsc(tls=certificates.for_server()) as smsc:
        async with operator(smsc.port, up=False, **trusting(certificates, **settings)) as op:
            await op.until(lambda: (op.provider.trouble or "").startswith(why))
        assert smsc.received == []


async def test_tls_with_who_does_not_speak_it(certificates: Certificates) -> None:
    async with Smsc() as smsc:
        smsc.complain = lambda sentence: None  # type: ignore[method-assign]
        async with operator(smsc.port, up=False, **trusting(certificates)) as op:
            await op.until(lambda: (op.provider.trouble or "").startswith("no TLS with"))
        assert smsc.of(BIND) == []


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"tls_ca_file": "none.pem"}, "tls_ca_file: No such file or directory"),
        ({"tls_ca_file": "junk.pem"}, "tls_ca_file: cannot be used"),
        ({"tls_cert_file": "junk.pem"}, "tls_cert_file: cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, settings: dict[str, str], mistake: str
) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    paths = {key: str(tmp_path / name) for key, name in settings.items()}
    with pytest.raises(SettingsError) as caught:
        SmppProvider(
            "op",
            SmppProviderSettings(
                kind="smpp",
                host="127.0.0.1",
                system_id="a",
                tls=True,
                **paths,  # type: ignore[arg-type]
            ),
        )
    assert caught.value.members["mistakes"] == [f"providers.op.{mistake}"]
