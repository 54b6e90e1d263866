"""The whole trip through an operator that speaks SMPP: from the request to the money."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx2
import pytest

from smsgw.api.app import public_app
from smsgw.bench.smsc import running
from smsgw.gateway import Gateway
from smsgw.ids import number_of, uuid_text
from smsgw.models import Message, Status
from tests.conftest import OpenGateway
from tests.pdus import (
    CANCEL_FAILED,
    CANCEL_SM,
    DELIVER_SM,
    OK,
    QUEUE_FULL,
    RESPONSE,
    SUBMIT_SM,
    THROTTLED,
    hex_ids,
)
from tests.smpp_operator import LONG
from tests.smsc import Action, Smsc, accepted, dropped, held, in_turn, refused, reported, silent
from tests.support import DEMO, Served, account_of, add_client, assert_clean, flushed

TO = "+989121234567"


class Site:
    """A gateway with one operator, as seen through its HTTP routes."""

    def __init__(self, gateway: Gateway, http: httpx2.AsyncClient, client_id: bytes) -> None:
        self.gateway = gateway
        self.http = http
        self.client_id = client_id

    async def send(self, status: int = 202, **changes: Any) -> Any:
        request = {"to": TO, "from": "ACME", "text": "hello", **changes}
        request["client_id"] = uuid_text(self.client_id)
        answer = await self.http.post("/v1/messages", json=request)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def message(self, sent: Any, **wait: Any) -> Any:
        return (await self.http.get(f"/v1/messages/{sent['message_id']}", params=wait)).json()

    async def ended(self, sent: Any) -> Any:
        """A message once it is final."""
        return await self.message(sent, wait_s=20)

    async def is_in(self, sent: Any, *statuses: str) -> Any:
        """A message once it is in one of these states."""
        while (message := await self.message(sent))["status"] not in statuses:
            await flushed(self.gateway)
        return message

    async def balance(self) -> tuple[int, int, int]:
        account = await account_of(self.gateway, self.client_id)
        return account.credits_cents, account.held_cents, account.charged_cents


@asynccontextmanager
async def site_with(
    gateway_of: OpenGateway, smsc: Smsc, more: dict[str, dict[str, Any]] | None = None, **own: Any
) -> AsyncIterator[Site]:
    """A gateway that is bound to an SMSC and has no other operator."""
    one = {
        "kind": "smpp",
        "host": smsc.host,
        "port": smsc.port,
        "system_id": "esme",
        "password": "secret",
        "reconnect_min_s": 0.001,
        "unbind_timeout_s": 0.05,
        **own,
    }
    gateway = await gateway_of(
        {
            "dev": {"allow_providers": True},
            "server": {"shutdown_s": 0.05},
            "providers": {"mock": {"enabled": False}, "op": one},
            **(more or {}),
        },
        manual=False,
    )
    await smsc.binds()
    client_id = await add_client(gateway)
    transport = httpx2.ASGITransport(app=public_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield Site(gateway, http, client_id)
    await assert_clean(gateway)
    await gateway.close()


async def test_a_message_is_sent_reported_and_paid(gateway_of: OpenGateway) -> None:
    async with (
        Smsc(system_id="esme", password="secret") as smsc,
        site_with(gateway_of, smsc) as site,
    ):
        message = await site.ended(await site.send())
        assert (message["status"], message["charged"]) == ("DELIVERED", 5)
        assert message["provider_message_id"] == smsc.submits[0].message_id
        assert await site.balance() == (995, 0, 5)
        (acknowledged,) = await smsc.saw(DELIVER_SM | RESPONSE)
        assert acknowledged.status == OK


async def test_many_messages_each_arrive_once(gateway_of: OpenGateway) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc, window=7, binds=2) as site:
        await smsc.binds(2)
        smsc.ids = hex_ids()
        sent = [await site.send(text=f"number {number}") for number in range(60)]
        for one in sent:
            assert (await site.ended(one))["status"] == "DELIVERED"
        assert {pdu.text for pdu in smsc.submits} == {f"number {n}" for n in range(60)}
        assert len(smsc.submits) == 60
        assert smsc.outstanding_max <= 4
        await smsc.saw(DELIVER_SM | RESPONSE, 60)
        assert await site.balance() == (700, 0, 300)


async def test_a_long_message_is_delivered_when_all_its_parts_are(gateway_of: OpenGateway) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        smsc.on[SUBMIT_SM] = in_turn(accepted(), held("receipts", reported()))
        sent = await site.send(text=LONG)
        await smsc.saw(SUBMIT_SM, 3)
        smsc.release("receipts", 2)
        await smsc.saw(DELIVER_SM | RESPONSE, 2)
        assert (await site.message(sent))["status"] == "SENT"
        smsc.release("receipts")
        message = await site.ended(sent)
        assert (message["status"], message["charged"]) == ("DELIVERED", 15)


@pytest.mark.parametrize("asked", [{"text": "25 €" + "x" * 100}, {"from": "ΔΩ Shop"}])
async def test_what_cannot_be_said_to_one_operator_goes_to_another_that_takes_it(
    gateway_of: OpenGateway, asked: dict[str, str]
) -> None:
    async with Smsc() as smsc:
        first = {
            "kind": "smpp",
            "host": smsc.host,
            "port": smsc.port,
            "system_id": "esme",
            "password": "secret",
            "unbind_timeout_s": 0.05,
            "charset": "latin1",
        }
        second = {"mock": {"kind": "mock", "priority": 1}, "op": first}
        async with site_with(gateway_of, smsc, {"providers": second}) as site:
            message = await site.ended(await site.send(**asked))
            assert (message["status"], message["provider"]) == ("DELIVERED", "mock")
            assert message["attempts"] == 2
            failed = [e for e in message["events"] if e["kind"] == "failed_temporarily"]
            assert failed[0]["detail"].startswith("cannot be said to this operator: ")
            assert smsc.submits == []


async def test_only_the_parts_that_are_missing_are_sent_again(gateway_of: OpenGateway) -> None:
    async with (
        Smsc() as smsc,
        site_with(gateway_of, smsc, {"delivery": {"retry_base_s": 0.001}}) as site,
    ):
        standard = in_turn(accepted(), reported())
        smsc.first(SUBMIT_SM, standard, refused(QUEUE_FULL), standard)
        message = await site.ended(await site.send(text=LONG))
        assert (message["status"], message["attempts"]) == ("DELIVERED", 2)
        assert [pdu.part[1] for pdu in smsc.submits] == [1, 2, 3, 2]


async def test_a_refusal_gives_the_money_back_and_too_fast_is_no_failure(
    gateway_of: OpenGateway,
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc, throttle_pause_s=0.01) as site:
        smsc.first(SUBMIT_SM, refused(0x0B), refused(THROTTLED))
        message = await site.ended(await site.send())
        assert (message["status"], message["last_error"]) == (
            "FAILED_PERM",
            "ESME_RINVDSTADR (0x0B)",
        )
        assert await site.balance() == (1000, 0, 0)
        message = await site.ended(await site.send())
        assert (message["status"], message["attempts"]) == ("DELIVERED", 1)


async def reload(site: Site, **settings: Any) -> None:
    """Have the operator's settings changed, as after a SIGHUP."""
    gateway = site.gateway
    providers = gateway.settings.providers
    changed = {**providers, "op": providers["op"].model_copy(update=settings)}
    await gateway.reload(gateway.settings.model_copy(update={"providers": changed}))


async def test_what_needs_no_new_bind_holds_at_once_also_with_a_silent_flight(
    gateway_of: OpenGateway,
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc, response_timeout_s=3600.0) as site:
        smsc.first(SUBMIT_SM, silent)
        unanswered = await site.send()
        await smsc.saw(SUBMIT_SM)
        await reload(site, status_classes={"0x58": "refused"}, short_code_ton=6, cancel=True)
        assert not site.gateway.trouble()
        assert (await site.send(200, otp=True, text="code {code}"))["status"] == "SENT"
        smsc.first(SUBMIT_SM, refused(THROTTLED))
        message = await site.ended(await site.send(**{"from": "12345"}))
        assert message["reason"] == "rejected_by_operator"
        assert smsc.submits[-1]["source_addr_ton"] == 6
        # Also how long an answer is waited for.
        await reload(site, response_timeout_s=0.01)
        await site.is_in(unanswered, "UNCERTAIN")
        assert len(smsc.sessions) == 1


async def test_what_needs_a_new_bind_waits_for_what_is_in_flight(gateway_of: OpenGateway) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        smsc.on[SUBMIT_SM] = held("later")
        sent = await site.send()
        await smsc.saw(SUBMIT_SM)
        await reload(site, binds=2)
        # And what can change at once, does so on the connections to come.
        await reload(site, binds=2, short_code_ton=6)
        assert "exchanged" in site.gateway.trouble()["provider op"]
        smsc.release("later")
        assert (await site.ended(sent))["status"] == "DELIVERED"
        await smsc.binds(2)
        del smsc.on[SUBMIT_SM]
        await site.ended(await site.send(**{"from": "12345"}))
        assert smsc.submits[-1]["source_addr_ton"] == 6


@pytest.mark.parametrize("before", [False, True])
async def test_what_was_sent_without_a_receipt_waits_for_none_after_a_change(
    gateway_of: OpenGateway, before: bool
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc, receipts=before) as site:
        smsc.on[SUBMIT_SM] = held("later")
        sent = await site.send()
        (submit,) = await smsc.saw(SUBMIT_SM)
        assert submit["registered_delivery"] == before
        await reload(site, receipts=not before)
        smsc.release("later")
        message = await site.ended(sent)
        fate = ("DELIVERED", None) if before else ("UNKNOWN", "no_receipts")
        assert (message["status"], message["reason"], message["charged"]) == (*fate, 5)


async def test_a_message_waits_for_a_bind_and_goes_out_once(gateway_of: OpenGateway) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        smsc.stop_listening()
        smsc.drop_all()
        provider = site.gateway.providers["op"]
        while provider.trouble is None:
            await flushed(site.gateway)
        sent = await site.send()
        await flushed(site.gateway)
        message = await site.message(sent)
        assert (message["status"], message["attempts"]) == ("QUEUED", 0)
        refused_code = await site.send(503, otp=True, text="code")
        assert refused_code["submitted"] is False
        ready = await site.http.get("/ready")
        assert ready.status_code == 503
        await smsc.listen()
        message = await site.ended(sent)
        assert (message["status"], message["attempts"]) == ("DELIVERED", 1)
        assert len(smsc.submits) == 1


async def test_a_lost_answer_is_found_again_by_its_receipt(gateway_of: OpenGateway) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        smsc.first(SUBMIT_SM, dropped())
        sent = await site.send()
        message = await site.is_in(sent, "UNCERTAIN")
        assert message["last_error"] == "the connection was lost before the answer"
        await smsc.binds()
        smsc.submits[0].report()
        message = await site.ended(sent)
        assert (message["status"], message["charged"]) == ("DELIVERED", 5)
        assert len(smsc.submits) == 1


async def test_the_lost_answer_to_a_whole_message_of_several_parts_is_found_again(
    gateway_of: OpenGateway,
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc, long_messages="payload") as site:
        smsc.first(SUBMIT_SM, dropped())
        sent = await site.send(text=LONG)
        await site.is_in(sent, "UNCERTAIN")
        await smsc.binds()
        smsc.submits[0].report()
        message = await site.ended(sent)
        assert (message["status"], message["charged"]) == ("DELIVERED", 15)
        assert len(smsc.submits) == 1


async def test_what_waits_is_not_sent_into_links_that_are_lost_again_and_again(
    gateway_of: OpenGateway,
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc, breaker_failures=2) as site:
        smsc.on[SUBMIT_SM] = dropped()
        for number in (1, 2):
            sent = await site.send(text=f"number {number}")
            await site.is_in(sent, "UNCERTAIN")
            await smsc.binds()
        assert site.gateway.allotter.links["op"].probes()
        sent = await site.send(text="number 3")
        provider = site.gateway.providers["op"]
        while provider.trouble is not None:
            await flushed(site.gateway)
        await flushed(site.gateway)
        message = await site.message(sent)
        assert (message["status"], message["attempts"]) == ("QUEUED", 0)
        assert len(smsc.submits) == 2


async def test_a_late_receipt_of_an_earlier_attempt_does_not_end_the_next(
    gateway_of: OpenGateway,
) -> None:
    more = {"delivery": {"on_uncertain": "resend", "retry_base_s": 0.001}}
    async with Smsc() as smsc, site_with(gateway_of, smsc, more, response_timeout_s=0.2) as site:
        smsc.first(SUBMIT_SM, held("late", accepted("101")), accepted("202"))
        sent = await site.send()
        await smsc.saw(SUBMIT_SM, 2)
        await site.is_in(sent, "SENT")
        smsc.release("late")
        smsc.submits[0].report("UNDELIV")
        await smsc.saw(DELIVER_SM | RESPONSE)
        await flushed(site.gateway)
        message = await site.message(sent)
        assert (message["status"], message["provider_message_id"]) == ("SENT", "202")
        smsc.submits[1].report("DELIVRD")
        message = await site.ended(sent)
        assert (message["status"], message["charged"]) == ("DELIVERED", 5)
        assert "receipt" in [event["kind"] for event in message["events"]]


async def test_receipts_of_parts_whose_answers_were_lost_are_counted_one_by_one(
    gateway_of: OpenGateway,
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        smsc.first(SUBMIT_SM, accepted(), silent, held("third", dropped()))
        sent = await site.send(text=LONG)
        await smsc.saw(SUBMIT_SM, 3)
        smsc.release("third")
        await site.is_in(sent, "UNCERTAIN")
        await smsc.binds()
        first, second, third = smsc.submits
        for number, part in enumerate([second, second, first], 1):
            part.report()
            await smsc.saw(DELIVER_SM | RESPONSE, number)
            assert (await site.message(sent))["status"] == "UNCERTAIN"
        third.report()
        message = await site.ended(sent)
        assert (message["status"], message["charged"]) == ("DELIVERED", 15)
        assert len(smsc.submits) == 3


async def test_one_part_that_does_not_arrive_is_enough_also_when_answers_were_lost(
    gateway_of: OpenGateway,
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        smsc.on[SUBMIT_SM] = silent
        sent = await site.send(text=LONG)
        await smsc.saw(SUBMIT_SM, 3)
        smsc.drop_all()
        await site.is_in(sent, "UNCERTAIN")
        await smsc.binds()
        smsc.submits[2].report("UNDELIV")
        message = await site.ended(sent)
        assert (message["status"], message["charged"]) == ("FAILED_PERM", 0)
        assert await site.balance() == (1000, 0, 0)


async def test_a_receipt_before_the_answer_is_acknowledged_and_counts(
    gateway_of: OpenGateway,
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        smsc.on[SUBMIT_SM] = in_turn(reported(), held("answer"))
        sent = await site.send()
        assert (await smsc.saw(DELIVER_SM | RESPONSE))[0].status == OK
        smsc.release("answer")
        message = await site.ended(sent)
        assert (message["status"], message["charged"]) == ("DELIVERED", 5)


async def test_a_code_is_taken_refused_or_too_late(gateway_of: OpenGateway) -> None:
    async with (
        Smsc() as smsc,
        site_with(gateway_of, smsc, {"otp": {"deadline_ms": 300}}) as site,
    ):
        sent = await site.send(200, otp=True, text="code {code}")
        assert (sent["status"], sent["confirmed_by"]) == ("SENT", "operator")
        assert smsc.submits[0].text == f"code {sent['otp_code']}"
        assert smsc.submits[0]["validity_period"] == "000000000001000R"
        smsc.first(SUBMIT_SM, refused(0x0B))
        failed = await site.send(503, otp=True, text="code {code}")
        assert failed["submitted"] is True
        smsc.first(SUBMIT_SM, held("late"))
        late = await site.send(503, otp=True, text="code {code}")
        assert late["submitted"] is True
        smsc.release("late")
        await smsc.saw(DELIVER_SM | RESPONSE, 2)
        await flushed(site.gateway)
        assert await site.balance() == (995, 0, 5)


@pytest.mark.parametrize("text", [None, "x" * 300], ids=["one part", "two parts"])
async def test_a_code_that_waited_for_room_until_its_deadline_never_leaves(
    gateway_of: OpenGateway, text: str | None
) -> None:
    soon = {"otp": {"deadline_ms": 200}}
    slow = {"binds": 2, "window": 4, "reconnect_min_s": 30.0, "reconnect_max_s": 30.0}
    async with Smsc() as smsc, site_with(gateway_of, smsc, soon, **slow) as site:
        # With a bind lost, the operator has less room than the window has places.
        _, second = await smsc.binds(2)
        second.drop()
        while "1 of 2" not in str(site.gateway.providers["op"].state()["binds"]):
            await flushed(site.gateway)
        smsc.on[SUBMIT_SM] = held("room")
        for _ in range(2):
            await site.send()
        await smsc.saw(SUBMIT_SM, 2)
        refusal = await site.send(503, otp=True, **({} if text is None else {"text": text}))
        assert refusal["submitted"] is False
        message = await site.message(refusal)
        assert (message["status"], message["attempts"]) == ("FAILED_PERM", 0)
        assert message["last_error"] == "no room in time"
        smsc.release("room")
        while site.gateway.worker.in_flight():
            await flushed(site.gateway)
        assert len(smsc.submits) == 2
        assert site.gateway.allotter.links["op"].in_flight == 0


@pytest.mark.parametrize("when", ["no handset", "late"])
@pytest.mark.parametrize("answer", [None, refused(CANCEL_FAILED), silent, dropped()])
async def test_a_code_that_was_refused_too_late_is_cancelled_whatever_comes_of_that(
    gateway_of: OpenGateway, when: str, answer: Action | None
) -> None:
    confirm = "handset" if when == "no handset" else "operator"
    more = {"otp": {"deadline_ms": 200, "confirm": confirm}}
    async with Smsc() as smsc, site_with(gateway_of, smsc, more, cancel=True) as site:
        if answer is not None:
            smsc.on[CANCEL_SM] = answer
        smsc.first(SUBMIT_SM, accepted("00AB12") if when == "no handset" else held("late"))
        failed = await site.send(503, otp=True, text="code {code}")
        before = await site.message(failed)
        if when == "late":
            assert smsc.of(CANCEL_SM) == []
            smsc.release("late")
        (cancel,) = await smsc.saw(CANCEL_SM)
        (submit,) = smsc.submits
        assert cancel["message_id"] == submit.message_id
        assert (cancel.recipient, cancel.sender) == (submit.recipient, submit.sender)
        await flushed(site.gateway)
        now = await site.message(failed)
        assert {**now, "events": []} == {**before, "events": []}
        assert (now["status"], now["reason"]) == ("UNKNOWN", "uncertain")
        assert await site.balance() == (1000, 0, 0)
        assert len(smsc.of(CANCEL_SM)) == 1


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_code_that_met_an_unbound_link_was_submitted(
    gateway_of: OpenGateway, parts: int
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        answers = [accepted(), refused(0x04)][-parts:]
        smsc.first(SUBMIT_SM, *answers)
        failed = await site.send(503, otp=True, text="code {code} " * (1 if parts == 1 else 15))
        assert (failed["submitted"], failed["reason"]) == (True, "retries_exhausted")
        assert (await site.message(failed))["attempts"] == 1
        assert await site.balance() == (1000, 0, 0)


async def test_a_code_that_dies_while_no_bind_is_up_is_cancelled_on_the_next(
    gateway_of: OpenGateway,
) -> None:
    more = {"otp": {"deadline_ms": 200, "confirm": "handset"}}
    async with Smsc() as smsc, site_with(gateway_of, smsc, more, cancel=True) as site:
        smsc.stop_listening()
        smsc.first(SUBMIT_SM, in_turn(accepted("00AB12"), dropped()))
        failed = await site.send(503, otp=True, text="code {code}")
        assert (failed["submitted"], smsc.of(CANCEL_SM)) == (True, [])
        await smsc.listen()
        (cancel,) = await smsc.saw(CANCEL_SM)
        assert cancel["message_id"] == "00AB12"


@pytest.mark.parametrize("confirm", ["operator", "handset"])
async def test_in_transaction_mode_the_answer_is_the_handsets(
    gateway_of: OpenGateway, confirm: str
) -> None:
    own = {"transaction_mode": True, "receipts": False}
    async with (
        Smsc() as smsc,
        site_with(gateway_of, smsc, {"otp": {"confirm": confirm}}, **own) as site,
    ):
        for text, esm_class in (("code {code}", 0x02), (LONG, 0x42)):
            sent = await site.send(200, otp=True, text=text)
            assert (sent["status"], sent["confirmed_by"]) == ("DELIVERED", "handset")
            assert {pdu["esm_class"] for pdu in smsc.submits} == {esm_class}
            message = await site.message(sent)
            assert (message["status"], message["reason"]) == ("DELIVERED", None)
            smsc.received.clear()
        assert await site.balance() == (980, 0, 20)
        # Other messages are not waited for.
        assert (await site.ended(await site.send()))["reason"] == "no_receipts"
        assert smsc.submits[0]["esm_class"] == 0


async def test_in_transaction_mode_a_handset_that_does_not_answer_is_a_refusal(
    gateway_of: OpenGateway,
) -> None:
    async with (
        Smsc() as smsc,
        site_with(gateway_of, smsc, {"otp": {"deadline_ms": 300}}, transaction_mode=True) as site,
    ):
        smsc.first(SUBMIT_SM, refused(0xFE), held("late"))
        failed = await site.send(503, otp=True, text="code {code}")
        assert (failed["submitted"], failed["reason"]) == (True, "retries_exhausted")
        late = await site.send(503, otp=True, text="code {code}")
        assert (late["submitted"], late["reason"]) == (True, "uncertain")
        smsc.release("late")
        await smsc.saw(DELIVER_SM | RESPONSE)
        await flushed(site.gateway)
        assert (await site.message(late))["status"] == "UNKNOWN"
        assert await site.balance() == (1000, 0, 0)


async def in_doubt(site: Site, smsc: Smsc) -> Any:
    """A message whose connection was lost before the operator took it; another is there again."""
    smsc.first(SUBMIT_SM, dropped())
    sent = await site.send(text="in doubt")
    await site.is_in(sent, "UNCERTAIN")
    await smsc.binds()
    await usable(site)
    return sent


async def usable(site: Site) -> None:
    while not site.gateway.allotter.links["op"].counts:
        await flushed(site.gateway)


async def test_a_receipt_before_its_answer_is_not_given_to_another_that_is_in_doubt(
    gateway_of: OpenGateway,
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        lost = await in_doubt(site, smsc)
        smsc.first(SUBMIT_SM, in_turn(reported(), held("answer")))
        sent = await site.send()
        await smsc.saw(DELIVER_SM | RESPONSE)
        assert (await site.message(lost))["status"] == "UNCERTAIN"
        smsc.release("answer")
        message = await site.ended(sent)
        assert (message["status"], message["charged"]) == ("DELIVERED", 5)
        message = await site.message(lost)
        assert (message["status"], message["provider_message_id"]) == ("UNCERTAIN", None)
        assert await site.balance() == (990, 5, 5)


async def test_a_receipt_before_an_answer_that_never_comes_is_paid_for(
    gateway_of: OpenGateway,
) -> None:
    async with (
        Smsc() as smsc,
        site_with(gateway_of, smsc, binds=2, response_timeout_s=1.0) as site,
    ):
        await smsc.binds(2)
        smsc.first(SUBMIT_SM, in_turn(reported(), silent))
        message = await site.ended(await site.send())
        assert (message["status"], message["charged"]) == ("DELIVERED", 5)
        while site.gateway.receipts.parked:
            await flushed(site.gateway)
        assert await site.balance() == (995, 0, 5)


async def test_a_receipt_of_a_dead_code_is_not_given_to_another_that_is_in_doubt(
    gateway_of: OpenGateway,
) -> None:
    more = {"otp": {"deadline_ms": 300}}
    async with Smsc() as smsc, site_with(gateway_of, smsc, more) as site:
        lost = await in_doubt(site, smsc)
        smsc.first(SUBMIT_SM, in_turn(held("report", reported()), silent))
        await site.send(503, otp=True, text="code {code}")
        smsc.release("report")
        await smsc.saw(DELIVER_SM | RESPONSE)
        await flushed(site.gateway)
        assert (await site.message(lost))["status"] == "UNCERTAIN"
        assert len(site.gateway.receipts.parked) == 1
        assert await site.balance() == (995, 5, 0)


@pytest.mark.parametrize("action", [silent, held("never")])
async def test_stopping_leaves_nothing_in_doubt_but_what_is(
    gateway_of: OpenGateway, action: Any
) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc, window=1) as site:
        smsc.on[SUBMIT_SM] = action
        sent = [await site.send(text=f"number {number}") for number in range(3)]
        await smsc.saw(SUBMIT_SM)
        await site.gateway.close()
        gateway = await gateway_of(serve=False)
        statuses = []
        for one in sent:
            identifier = UUID(one["message_id"]).bytes
            shard = gateway.shards.of_message(identifier)
            (row,) = await shard.store.read("get_message", number_of(identifier))
            statuses.append(Message(*row).status)
        assert sorted(statuses) == [Status.QUEUED, Status.QUEUED, Status.UNCERTAIN]
        await assert_clean(gateway)
        await gateway.close()


def test_a_served_gateway_is_bound_sends_and_says_goodbye(
    served: Callable[..., Served],
) -> None:
    with running() as smsc:
        operator = {"KIND": "smpp", "HOST": "127.0.0.1", "PORT": smsc.port, "SYSTEM_ID": "esme"}
        gateway = served(
            {
                "SMSGW_DEV__ALLOW_PROVIDERS": "true",
                "SMSGW_PROVIDERS__MOCK__ENABLED": "false",
                **{f"SMSGW_PROVIDERS__OP__{key}": str(operator[key]) for key in operator},
            }
        )
        request = {"client_id": DEMO, "to": TO, "from": "ACME", "text": LONG}
        sent = [gateway.request("POST", "/v1/messages", request)[1] for _ in range(20)]
        for one in sent:
            assert gateway.message(one["message_id"], 20)["status"] == "DELIVERED"
        assert gateway.stop() == 0
        report = smsc.report()
    assert (report.submits, report.receipts, report.confirmed, report.bound) == (60, 60, 60, 0)
