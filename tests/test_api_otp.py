"""One-time codes: confirmed while the caller waits, or refused; verified at most once."""

import re
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import SiteOf
from tests.outside import (
    ANSWER_LOST,
    CHATTY,
    DELIVERED,
    FAILS_ALWAYS,
    FAILS_ONCE,
    LOOKS_MAX,
    NO_RECEIPT,
    REFUSED,
    SLOW,
    UNDELIVERED,
    Answer,
    Site,
    columns,
    is_uuid,
    moment,
    new_number,
)

NOBODY = "00000000-0000-4000-8000-000000000000"
is_code = re.compile("[0-9]{6}").fullmatch


@pytest.fixture(scope="module")
def hasty(site_of: SiteOf) -> Site:
    """A gateway that waits for an operator for a fifth of a second."""
    return site_of(otp__deadline_ms=200)


def verify(site: Site, client: str, to: str, code: str) -> Answer:
    return site.post("/v1/otp/verify", {"client_id": client, "to": to, "code": code})


def wrong(code: str) -> str:
    """A code of the same length that is another."""
    return f"{(int(code) + 1) % 10 ** len(code):0{len(code)}d}"


# Confirmed


def test_an_otp_is_answered_once_the_operator_has_it(site: Site) -> None:
    client, number = site.client(1000), new_number()
    answer = site.otp(client, to=number)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.body.keys() == {
        "message_id", "status", "confirmed_by", "otp_code", "expires_at", "parts", "encoding",
        "cost", "credits",
    }  # fmt: skip
    assert is_uuid(answer.body["message_id"])
    assert is_code(answer.body["otp_code"])
    expected = ("SENT", "operator", 1, "GSM-7", 5, 995)
    members = ("status", "confirmed_by", "parts", "encoding", "cost", "credits")
    assert columns([answer.body], *members) == [expected]
    message = site.look(answer.body["message_id"])
    valid = moment(answer.body["expires_at"]) - moment(message["created_at"])
    assert valid == timedelta(seconds=300)
    [received] = site.handsets(number)
    assert received["text"] == f"Your verification code is {answer.body['otp_code']}"


def test_an_otp_becomes_delivered_and_is_charged_like_any_message(site: Site) -> None:
    client = site.client(1000)
    answer = site.otp(client)
    message = site.final(answer.body["message_id"])
    assert columns([message], "status", "charged", "otp", "express", "attempts", "reason") == [
        ("DELIVERED", 5, True, False, 1, None)
    ]
    assert site.money(client) == (995, 0, 5)


def test_the_code_is_masked_wherever_a_message_is_read(site: Site) -> None:
    client = site.client()
    answer = site.otp(client)
    identifier = answer.body["message_id"]
    found = [site.look(identifier), site.final(identifier)]
    found += site.get(f"/v1/messages?client_id={client}")["data"]
    for message in found:
        assert message["text"] == "Your verification code is ******"
        assert answer.body["otp_code"] not in str(message)
    assert answer.body["otp_code"] not in str(site.get(f"/v1/me/statement?client_id={client}"))


def test_the_text_may_say_where_the_code_stands(site: Site) -> None:
    client, number = site.client(), new_number()
    answer = site.otp(client, to=number, text="{code} ist Ihr Code: {code} [a{x}]", reference="r")
    code = answer.body["otp_code"]
    assert is_code(code)
    assert site.handsets(number)[0]["text"] == f"{code} ist Ihr Code: {code} [a{{x}}]"
    message = site.look(answer.body["message_id"])
    assert message["text"] == "****** ist Ihr Code: ****** [a{x}]"
    assert message["reference"] == "r"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Your code is 1234", "Your code is ****"),
        ("12-34-567", "12-34-567"),
        ("123 1234567890 12345678901 4567", "123 ********** 12345678901 ****"),
        ("کد شما ۱۲۳۴۵۶ است", "کد شما ****** است"),
        ("no digits {Code} {code", "no digits {Code} {code"),
    ],
)
def test_a_text_of_the_clients_own_is_sent_as_it_is_and_masked(
    site: Site, text: str, masked: str
) -> None:
    client, number = site.client(), new_number()
    answer = site.otp(client, to=number, text=text)
    assert answer.status == 200
    assert "otp_code" not in answer.body
    assert "expires_at" not in answer.body
    assert site.handsets(number)[0]["text"] == text
    assert site.look(answer.body["message_id"])["text"] == masked
    assert verify(site, client, number, "1234").code == "no_live_code"


def test_a_long_otp_text_has_parts_and_a_too_long_one_is_refused(site: Site) -> None:
    client = site.client(1000)
    answer = site.otp(client, text="{code}" + "x" * 160)
    assert (answer.body["parts"], answer.body["cost"]) == (2, 10)
    assert site.otp(client, text="x" * 1531).code == "text_too_long"
    assert site.otp(client, text="").code == "invalid_request"


def test_codes_are_made_anew_and_have_as_many_digits_as_set(site: Site, site_of: SiteOf) -> None:
    client = site.client()
    assert len({site.otp(client).body["otp_code"] for _ in range(12)}) > 8
    other = site_of(otp__digits=10, otp__valid_s=0.3)
    answer = other.otp(other.client())
    assert re.fullmatch("[0-9]{10}", answer.body["otp_code"])
    assert other.look(answer.body["message_id"])["text"] == "Your verification code is **********"


@pytest.mark.parametrize(
    ("to", "final", "charged"),
    [(UNDELIVERED, ("FAILED_PERM", "undelivered"), 0), (CHATTY, ("DELIVERED", None), 5)],
)
def test_what_is_reported_after_the_answer_decides_about_the_money(
    site: Site, to: str, final: tuple[str, str | None], charged: int
) -> None:
    client = site.client(1000)
    answer = site.otp(client, to=to)
    assert (answer.status, answer.body["status"]) == (200, "SENT")
    message = site.final(answer.body["message_id"])
    assert (message["status"], message["reason"]) == final
    assert site.money(client) == (1000 - charged, 0, charged)


# Refused


def refused(site: Site, client: str, to: str, **more: Any) -> tuple[Answer, dict[str, Any]]:
    """An OTP that is not confirmed, and its message."""
    before = site.money(client)
    answer = site.otp(client, to=to, **more)
    assert (answer.status, answer.code) == (503, "otp_undeliverable")
    assert answer.body.keys() >= {"message_id", "submitted", "reason"}
    assert not {"otp_code", "expires_at"} & answer.body.keys()
    message = site.look(answer.body["message_id"])
    assert message["charged"] == 0
    assert message["reason"] == answer.body["reason"]
    assert message["otp"] is True
    assert "*" * 6 in message["text"]
    assert site.money(client) == before
    assert site.look(answer.body["message_id"])["status"] in ("FAILED_PERM", "UNKNOWN")
    assert verify(site, client, to, "123456").code == "no_live_code"
    return answer, message


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        (REFUSED, "rejected_by_operator"),
        (FAILS_ONCE, "retries_exhausted"),
        (FAILS_ALWAYS, "retries_exhausted"),
    ],
)
def test_what_the_operator_refuses_was_submitted_and_is_never_tried_again(
    site: Site, to: str, reason: str
) -> None:
    answer, message = refused(site, site.client(1000), to)
    assert (answer.body["submitted"], answer.body["reason"]) == (True, reason)
    assert (message["status"], message["attempts"]) == ("FAILED_PERM", 1)
    site.wait(0.05)
    assert len(site.journal_of(message["id"])) == 1
    assert site.look(message["id"]) == message


@pytest.mark.parametrize("to", [SLOW, ANSWER_LOST])
def test_what_nobody_answers_in_time_is_unknown(hasty: Site, to: str) -> None:
    answer, message = refused(hasty, hasty.client(1000), to)
    assert (answer.body["submitted"], answer.body["reason"]) == (True, "uncertain")
    assert (message["status"], message["attempts"]) == ("UNKNOWN", 1)
    waited = moment(message["final_at"]) - moment(message["created_at"])
    assert waited > timedelta(seconds=0.15)
    assert len(hasty.journal_of(message["id"])) == 1


def test_what_no_operator_can_take_was_not_submitted(site_of: SiteOf) -> None:
    site = site_of(otp__deadline_ms=4000)
    site.pause()
    client = site.client(1000)
    answer, message = refused(site, client, DELIVERED)
    assert (answer.body["submitted"], message["status"], message["attempts"]) == (
        False, "FAILED_PERM", 0,
    )  # fmt: skip
    site.resume()
    site.pause(provider="mock")
    refused(site, client, DELIVERED)
    site.resume(provider="mock")
    assert site.otp(client).status == 200
    assert not site.journal_of(message["id"])


def test_no_credit_and_no_client_are_told_apart_from_no_operator(site: Site) -> None:
    answer = site.otp(site.client(4))
    assert (answer.status, answer.code) == (402, "insufficient_credits")
    assert (answer.body["required"], answer.body["credits"]) == (5, 4)
    answer = site.otp(NOBODY)
    assert (answer.status, answer.code) == (404, "unknown_client")


def test_many_otps_at_once_use_all_credit_and_not_one_cent_more(site: Site) -> None:
    client = site.client(5 * 40 + 2)
    body = site.message(client, text=None, otp=True)
    answers = site.at_once(lambda _: site.alone("POST", "/v1/messages", body), range(60))
    assert sorted(answer.status for answer in answers) == [200] * 40 + [402] * 20
    for answer in answers:
        if answer.status == 200:
            site.final(answer.body["message_id"])
    assert site.money(client) == (2, 0, 200)


# The handset


def test_the_handset_can_be_what_confirms(site_of: SiteOf) -> None:
    site = site_of(otp__confirm="handset", otp__deadline_ms=300)
    client = site.client(1000)
    answer = site.otp(client)
    assert answer.status == 200
    assert (answer.body["status"], answer.body["confirmed_by"]) == ("DELIVERED", "handset")
    message = site.look(answer.body["message_id"])
    assert (message["status"], message["charged"]) == ("DELIVERED", 5)
    assert verify(site, client, DELIVERED, answer.body["otp_code"]).body["verified"] is True
    assert site.otp(client, to=CHATTY).status == 200
    for to, status, reason in (
        (UNDELIVERED, "FAILED_PERM", "undelivered"),
        (NO_RECEIPT, "UNKNOWN", "uncertain"),
        (REFUSED, "FAILED_PERM", "rejected_by_operator"),
    ):
        answer, message = refused(site, client, to)
        assert answer.body["submitted"] is True
        assert (message["status"], message["reason"], message["attempts"]) == (status, reason, 1)
    site.audit()


def test_a_receipt_in_time_confirms_and_one_after_it_changes_nothing(site_of: SiteOf) -> None:
    soon = site_of(otp__confirm="handset", providers__mock__receipt_delay_ms=50)
    answer = soon.otp(soon.client())
    assert (answer.status, answer.body["confirmed_by"]) == (200, "handset")
    late = site_of(
        otp__confirm="handset", otp__deadline_ms=100, providers__mock__receipt_delay_ms=400
    )
    client = late.client(1000)
    _, message = refused(late, client, DELIVERED)
    assert message["status"] == "UNKNOWN"
    late.until(message["id"], "UNKNOWN", events=len(message["events"]) + 1)
    assert late.money(client) == (1000, 0, 0)


# Verifying


def test_a_code_is_verified_once(site: Site) -> None:
    client, number = site.client(), new_number()
    sent = site.otp(client, to=number)
    answer = verify(site, client, number, sent.body["otp_code"])
    assert answer.status == 200
    assert answer.body.keys() == {"verified", "message_id", "attempts_left"}
    assert answer.body["verified"] is True
    assert answer.body["message_id"] == sent.body["message_id"]
    again = verify(site, client, number, sent.body["otp_code"])
    assert (again.status, again.code) == (404, "no_live_code")


def test_a_wrong_code_costs_a_try_and_the_fifth_is_the_last(site: Site) -> None:
    client, number = site.client(), new_number()
    code = site.otp(client, to=number).body["otp_code"]
    tries = [verify(site, client, number, wrong(code)) for _ in range(5)]
    assert [answer.body["verified"] for answer in tries] == [False] * 5
    assert [answer.body["attempts_left"] for answer in tries] == [4, 3, 2, 1, 0]
    assert verify(site, client, number, code).code == "no_live_code"


def test_the_right_code_may_come_with_the_last_try(site: Site) -> None:
    client, number = site.client(), new_number()
    code = site.otp(client, to=number).body["otp_code"]
    assert verify(site, client, number, "").fields == ["code"]
    for attempt in (code + "0", code[:-1], "x" * 64, "۱۲۳۴۵۶"):
        assert verify(site, client, number, attempt).body["verified"] is False
    assert verify(site, client, number, code).body["verified"] is True


def test_the_newest_code_counts(site: Site) -> None:
    client, number = site.client(), new_number()
    old = site.otp(client, to=number).body
    new = site.otp(client, to=number).body
    if old["otp_code"] != new["otp_code"]:
        assert verify(site, client, number, old["otp_code"]).body["verified"] is False
    answer = verify(site, client, number, new["otp_code"])
    assert (answer.body["verified"], answer.body["message_id"]) == (True, new["message_id"])


def test_a_code_is_of_one_client_and_one_number(site: Site) -> None:
    client, other, number = site.client(), site.client(), new_number()
    code = site.otp(client, to=number).body["otp_code"]
    for whose, to in ((other, number), (client, new_number())):
        answer = verify(site, whose, to, code)
        assert (answer.status, answer.code) == (404, "no_live_code")
    assert verify(site, NOBODY, number, code).code == "unknown_client"
    assert verify(site, client, "x", code).code == "invalid_recipient"
    assert verify(site, client, number, code).body["verified"] is True


def test_one_code_at_once_is_verified_once(site: Site) -> None:
    client, number = site.client(), new_number()
    code = site.otp(client, to=number).body["otp_code"]
    body = {"client_id": client, "to": number, "code": code}
    answers = site.at_once(lambda _: site.alone("POST", "/v1/otp/verify", body), range(10))
    assert sorted(answer.status for answer in answers) == [200] + [404] * 9


def test_a_code_is_valid_for_a_time(site_of: SiteOf) -> None:
    site = site_of(otp__digits=10, otp__valid_s=0.3)
    client, number = site.client(), new_number()
    sent = site.otp(client, to=number, key="k")
    site.wait(0.35)
    answer = verify(site, client, number, sent.body["otp_code"])
    assert (answer.status, answer.code) == (404, "no_live_code")
    replay = site.otp(client, to=number, key="k")
    assert replay.body == {**sent.body, "otp_code": None}


@pytest.mark.parametrize(
    ("body", "field"),
    [({"code": None}, "code"), ({"code": 123456}, "code"), ({"code": "x" * 65}, "code"),
     ({"to": None}, "to"), ({"to": 1}, "to"), ({"client_id": "x"}, "client_id"), ({"x": 1}, "x")],
)  # fmt: skip
def test_a_wrong_verification_is_named(site: Site, body: dict[str, Any], field: str) -> None:
    good = {"client_id": site.client(), "to": DELIVERED, "code": "123456"}
    answer = site.post("/v1/otp/verify", {**good, **body})
    assert (answer.status, answer.fields) == (400, [field])


def test_the_number_of_tries_is_a_setting(site_of: SiteOf) -> None:
    site = site_of(otp__tries_max=1)
    client, number = site.client(), new_number()
    code = site.otp(client, to=number).body["otp_code"]
    answer = verify(site, client, number, wrong(code))
    assert (answer.body["verified"], answer.body["attempts_left"]) == (False, 0)
    assert verify(site, client, number, code).code == "no_live_code"


# Telling again


def test_a_replay_tells_the_code_again_and_sends_nothing(site: Site) -> None:
    client, number = site.client(1000), new_number()
    first = site.otp(client, to=number, key="k")
    site.final(first.body["message_id"])
    again = site.otp(client, to=number, key="k")
    assert (again.status, again.body) == (200, first.body)
    assert len(site.handsets(number)) == 1
    assert site.money(client) == (995, 0, 5)
    verify(site, client, number, first.body["otp_code"])
    used = site.otp(client, to=number, key="k")
    assert (used.status, used.body) == (200, {**first.body, "otp_code": None})
    assert len(site.handsets(number)) == 1


def test_a_replay_of_a_text_without_our_code_is_the_same(site: Site) -> None:
    client, number = site.client(1000), new_number()
    first = site.otp(client, to=number, text="1234", key="k")
    assert site.otp(client, to=number, text="1234", key="k").body == first.body
    assert len(site.handsets(number)) == 1


@pytest.mark.parametrize("to", [REFUSED, FAILS_ALWAYS, SLOW])
def test_a_refusal_is_remembered_and_told_again(hasty: Site, to: str) -> None:
    client = hasty.client(1000)
    first = hasty.otp(client, to=to, key="k")
    again = hasty.otp(client, to=to, key="k")
    assert (first.status, first.code) == (503, "otp_undeliverable")
    assert (again.status, again.body) == (first.status, first.body)
    assert len(hasty.journal_of(first.body["message_id"])) == 1
    assert len(hasty.get(f"/v1/messages?client_id={client}")["data"]) == 1


def test_other_refusals_leave_the_key_free(site: Site) -> None:
    client = site.client(4)
    assert site.otp(client, key="k").code == "insufficient_credits"
    site.admin("POST", f"clients/{client}/add", {"amount_cents": 1})
    assert site.otp(client, key="k").status == 200


def test_another_request_with_the_key_is_a_mismatch(site: Site) -> None:
    client = site.client()
    assert site.otp(client, key="k").status == 200
    for more in ({"text": "{code}"}, {"to": CHATTY}, {"otp": None, "text": "x"}):
        answer = site.otp(client, key="k", **more)
        assert (answer.status, answer.code) == (422, "idempotency_mismatch")


def test_while_one_is_under_way_its_key_is_taken_and_its_text_masked(site_of: SiteOf) -> None:
    site = site_of(otp__deadline_ms=1500)
    client = site.client(1000)
    body = site.message(client, text=None, otp=True, to=SLOW)

    def work(kind: str) -> Any:
        if kind == "send":
            return site.alone("POST", "/v1/messages", body, {"Idempotency-Key": "k"})
        for _ in range(LOOKS_MAX):
            rows = site.alone("GET", f"/v1/messages?client_id={client}").body["data"]
            if rows:
                break
        again = site.alone("POST", "/v1/messages", body, {"Idempotency-Key": "k"})
        return rows[0], again

    sent, (row, again) = site.at_once(work, ["send", "look"])
    assert (sent.status, sent.body["reason"]) == (503, "uncertain")
    assert (row["status"], row["text"]) == ("SENDING", "Your verification code is ******")
    assert row["id"] == sent.body["message_id"]
    assert (again.status, again.code) == (409, "idempotency_in_progress")


# Limits


def test_a_number_gets_one_code_in_a_while_whoever_sends_it(site_of: SiteOf) -> None:
    site = site_of(otp__number_interval_s=30)
    client, other, number = site.client(1000), site.client(1000), new_number()
    first = site.otp(client, to=number, key="k")
    assert first.status == 200
    for whose in (client, other):
        answer = site.otp(whose, to=number)
        assert (answer.status, answer.code) == (429, "too_many_requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert site.money(other) == (1000, 0, 0)
    assert site.otp(client, to=number, key="k").body == first.body
    assert site.otp(client, to=new_number()).status == 200
    assert site.send(client, to=number).status == 202


def test_a_number_gets_only_so_many_codes_in_a_window(site_of: SiteOf) -> None:
    site = site_of(otp__number_window_s=600, otp__number_window_max=2)
    client, number = site.client(1000), new_number()
    answers = [site.otp(client, to=number) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert 500 < int(answers[2].headers["retry-after"]) <= 600


def test_what_did_not_leave_does_not_count(site_of: SiteOf) -> None:
    site = site_of(otp__number_interval_s=30)
    number = new_number()
    site.pause()
    assert site.otp(site.client(), to=number).code == "otp_undeliverable"
    site.resume()
    assert site.otp(site.client(0), to=number).code == "insufficient_credits"
    assert site.otp(site.client(), to=number).status == 200


def test_dev_has_no_limits_unless_they_are_set(site: Site) -> None:
    client, number = site.client(), new_number()
    assert [site.otp(client, to=number).status for _ in range(8)] == [200] * 8
