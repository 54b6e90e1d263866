"""The presets against servers that speak as those operators do by their public documents."""

import asyncio
from typing import Any

import pytest
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client

from smsgw.models import Outcome, Verdict
from smsgw.operators import HttpProviderSettings
from smsgw.presets import PRESETS
from smsgw.providers.http.reading import Receipts, Report
from tests.http_operators import (
    Kavenegar,
    Twilio,
    Vonage,
    connected,
    outcome_of,
    serving,
)

TWILIO = {"preset": "twilio", "account": Twilio.account, "secret": Twilio.secret}
VONAGE = {"preset": "vonage", "key": Vonage.key, "secret": Vonage.secret}
KAVENEGAR = {"preset": "kavenegar", "key": Kavenegar.key}
PUBLIC = {"public_url": "https://sms.example.com", "receipt_token": "t0ken"}


async def outcome_at(server: Any, settings: dict[str, Any], **message: Any) -> Outcome:
    async with (
        serving(server) as operator,
        connected(base_url=operator.base_url, **settings) as (provider, desk),
    ):
        return await outcome_of(provider, desk, **message)


def receipts(settings: dict[str, Any]) -> Receipts:
    return Receipts(HttpProviderSettings(kind="http", **settings))


def test_the_addresses_are_those_of_the_operators() -> None:
    assert {name: preset["base_url"] for name, preset in PRESETS.items()} == {
        "twilio": "https://api.twilio.com",
        "vonage": "https://rest.nexmo.com",
        "kavenegar": "https://api.kavenegar.com",
    }


# Twilio


async def test_twilio_takes_a_message() -> None:
    async with (
        serving(Twilio()) as operator,
        connected(base_url=operator.base_url, **TWILIO, **PUBLIC) as (provider, desk),
    ):
        outcome = await outcome_of(provider, desk, text="سلام", valid_s=259_200.0)
        assert outcome == Outcome(Verdict.ACCEPTED, f"SM{1:032x}")
        assert operator.asked[0].form == {
            "To": "+989121234567",
            "From": "ACME",
            "Body": "سلام",
            "StatusCallback": "https://sms.example.com/v1/providers/op/dlr/t0ken",
            "ValidityPeriod": "36000",
        }


async def test_what_we_send_to_twilio_is_what_its_own_library_sends() -> None:
    async with serving(Twilio()) as operator:
        client = Client(Twilio.account, Twilio.secret)
        client.api.base_url = operator.base_url
        message = await asyncio.to_thread(
            client.messages.create,
            to="+989121234567",
            from_="ACME",
            body="hello",
            status_callback="https://sms.example.com/v1/providers/op/dlr/t0ken",
            validity_period=3600,
        )
        assert message.sid == f"SM{1:032x}"
        async with connected(base_url=operator.base_url, **TWILIO, **PUBLIC) as (provider, desk):
            await outcome_of(provider, desk)
        theirs, ours = operator.asked
        assert (theirs.method, theirs.path, theirs.form) == (ours.method, ours.path, ours.form)
        for header in ("authorization", "content-type"):
            assert theirs.headers[header] == ours.headers[header]


async def test_an_error_of_twilio_is_read_as_its_own_library_reads_it() -> None:
    async with serving(Twilio()) as operator:
        client = Client(Twilio.account, Twilio.secret)
        client.api.base_url = operator.base_url
        to = Twilio.numbers_refused[0]
        with pytest.raises(TwilioRestException) as caught:
            await asyncio.to_thread(client.messages.create, to=to, from_="ACME", body="hello")
        async with connected(base_url=operator.base_url, **TWILIO) as (provider, desk):
            outcome = await outcome_of(provider, desk, recipient=to)
        assert outcome.verdict is Verdict.REFUSED
        assert caught.value.code == 21211
        said = f"The 'To' number {to} is not a valid phone number."
        assert outcome.detail == f"HTTP 400, code 21211: {said}"


async def test_wrong_credentials_at_twilio_are_no_fault_of_the_message() -> None:
    outcome = await outcome_at(Twilio(), {**TWILIO, "secret": "wrong-token"})
    assert outcome.verdict is Verdict.NOT_SENT
    assert outcome.detail == "HTTP 401, code 20003: Authenticate"


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("delivered", "delivered"),
        ("undelivered", "undelivered"),
        ("failed", "failed"),
        ("sent", "sent"),
        ("canceled", "FAILED"),
    ],
)
def test_a_callback_of_twilio_is_read(said: str, word: str) -> None:
    form = {"MessageSid": "SM1", "MessageStatus": said, "AccountSid": "AC1", "ErrorCode": "30003"}
    (report,), _ = receipts(TWILIO).read(form)
    reason = "30003" if said == word else f"{said} 30003"
    assert report == Report("SM1", word, reason)


# Vonage


async def test_vonage_takes_a_message() -> None:
    async with (
        serving(Vonage()) as operator,
        connected(base_url=operator.base_url, **VONAGE, **PUBLIC) as (provider, desk),
    ):
        outcome = await outcome_of(provider, desk, text="سلام", ucs2=True, sender="+44770")
        assert outcome == Outcome(Verdict.ACCEPTED, "0A0000000123ABCD1")
        assert operator.asked[0].form == {
            "api_key": Vonage.key,
            "api_secret": Vonage.secret,
            "from": "44770",
            "to": "989121234567",
            "text": "سلام",
            "type": "unicode",
            "client-ref": "0198c5b2-0000-7000-8000-000000000001",
            "callback": "https://sms.example.com/v1/providers/op/dlr/t0ken",
            "ttl": "3600000",
        }


async def test_vonage_gives_every_part_an_id() -> None:
    outcome = await outcome_at(Vonage("0", "0"), VONAGE, parts=2, text="x" * 161)
    assert outcome.parts == {
        1: Outcome(Verdict.ACCEPTED, "0A0000000123ABCD1"),
        2: Outcome(Verdict.ACCEPTED, "0A0000000123ABCD2"),
    }


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("1", Verdict.THROTTLED),
        ("2", Verdict.REFUSED),
        ("5", Verdict.FAILED),
        ("6", Verdict.REFUSED),
        ("9", Verdict.NOT_SENT),
        ("29", Verdict.REFUSED),
        ("99", Verdict.REFUSED),
    ],
)
async def test_a_status_of_vonage_is_what_counts(status: str, verdict: Verdict) -> None:
    outcome = await outcome_at(Vonage(status), VONAGE)
    assert (outcome.verdict, outcome.detail) == (
        verdict,
        f"HTTP 200, code {status}: error {status}",
    )


async def test_wrong_credentials_at_vonage_are_no_fault_of_the_message() -> None:
    outcome = await outcome_at(Vonage(), {**VONAGE, "secret": "wrong-secret"})
    assert outcome.verdict is Verdict.NOT_SENT


@pytest.mark.parametrize("said", ["delivered", "expired", "failed", "rejected", "buffered"])
def test_a_receipt_of_vonage_is_read(said: str) -> None:
    fields = {"msisdn": "989121234567", "messageId": "0A", "status": said, "err-code": "1"}
    assert receipts(VONAGE).read(fields) == ([Report("0A", said, "1")], [])


# Kavenegar


async def test_kavenegar_takes_a_message() -> None:
    async with (
        serving(Kavenegar()) as operator,
        connected(base_url=operator.base_url, **KAVENEGAR) as (provider, desk),
    ):
        outcome = await outcome_of(provider, desk, sender="10004346", text="سلام", ucs2=True)
        assert outcome == Outcome(Verdict.ACCEPTED, "8792343")
        assert operator.asked[0].form == {
            "receptor": "+989121234567",
            "sender": "10004346",
            "message": "سلام",
            "localid": "4242",
        }


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (402, Verdict.FAILED),
        (403, Verdict.NOT_SENT),
        (409, Verdict.THROTTLED),
        (411, Verdict.REFUSED),
        (412, Verdict.REFUSED),
        (418, Verdict.NOT_SENT),
        (451, Verdict.THROTTLED),
        (499, Verdict.REFUSED),
    ],
)
async def test_a_status_of_kavenegar_is_what_counts(status: int, verdict: Verdict) -> None:
    outcome = await outcome_at(Kavenegar(status), KAVENEGAR)
    assert (outcome.verdict, outcome.detail) == (verdict, f"HTTP {status}, code {status}: خطا")


async def test_a_wrong_key_at_kavenegar_is_no_fault_of_the_message() -> None:
    outcome = await outcome_at(Kavenegar(), {"preset": "kavenegar", "key": "wrong-key"})
    assert outcome.verdict is Verdict.NOT_SENT


@pytest.mark.parametrize(
    ("said", "word"),
    [("10", "DELIVERED"), ("11", "UNDELIVERED"), ("13", "FAILED"), ("14", "REJECTED")],
)
def test_a_receipt_of_kavenegar_is_read(said: str, word: str) -> None:
    for status in (said, int(said)):
        fields = {"messageid": 8_792_343, "status": status}
        assert receipts(KAVENEGAR).read(fields) == ([Report("8792343", word, said)], [])
    news = {"messageid": "1", "status": "5"}
    assert receipts(KAVENEGAR).read(news) == ([Report("1", "5", None)], [])


# Asking


@pytest.mark.parametrize(
    ("server", "settings", "report"),
    [
        (Twilio(), TWILIO, (f"SM{1:032x}", "delivered", None)),
        (Kavenegar(), KAVENEGAR, ("8792343", "DELIVERED", "10")),
    ],
    ids=["twilio", "kavenegar"],
)
async def test_they_can_be_asked_what_became_of_a_message(
    server: Any, settings: dict[str, Any], report: tuple[str, str, str | None]
) -> None:
    async with (
        serving(server) as operator,
        connected(base_url=operator.base_url, receipt_poll_s=0.01, **settings) as (provider, desk),
    ):
        await outcome_of(provider, desk)
        await desk.until(lambda: bool(desk.reports))
        assert desk.reports == [report]
