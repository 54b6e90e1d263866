"""Sending, looking, listing, cancelling and previewing messages, as the contract has them."""

import itertools
import uuid
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import SiteOf
from tests.outside import (
    DELIVERED,
    FAILS_ALWAYS,
    REFUSED,
    ROW,
    Site,
    ahead,
    columns,
    is_time,
    is_uuid,
    moment,
    new_number,
)

NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def paused(site_of: SiteOf) -> Site:
    """A gateway that takes messages and hands none over."""
    site = site_of(delivery__retry_base_s="3600")
    site.pause()
    return site


# The 202


def test_a_message_is_accepted_with_its_size_its_price_and_what_is_left(site: Site) -> None:
    client = site.client(1000)
    answer = site.send(client)
    assert answer.status == 202
    assert answer.headers["content-type"] == "application/json"
    identifier = answer.body.pop("message_id")
    assert is_uuid(identifier)
    assert answer.body == {
        "status": "QUEUED", "parts": 1, "encoding": "GSM-7", "cost": 5, "credits": 995,
    }  # fmt: skip


def test_a_reference_comes_back_with_the_answer(site: Site) -> None:
    answer = site.send(site.client(), reference="order-17")
    assert answer.body["reference"] == "order-17"
    assert "submit_by" not in answer.body


def test_express_costs_two_more_a_part_and_names_its_time(site: Site) -> None:
    client = site.client(1000)
    answer = site.send(client, express=True, text="x" * 161)
    assert (answer.status, answer.body["status"]) == (202, "QUEUED")
    assert (answer.body["parts"], answer.body["cost"], answer.body["credits"]) == (2, 14, 986)
    message = site.final(answer.body["message_id"])
    assert message["express"] is True
    assert message["submit_by"] == answer.body["submit_by"]
    guarantee = moment(answer.body["submit_by"]) - moment(message["created_at"])
    assert guarantee == timedelta(seconds=60)
    assert (message["charged"], message["express_missed"]) == (14, False)


def test_a_schedule_is_held_now_and_promised_from_its_time(site: Site) -> None:
    client = site.client(1000)
    answer = site.send(client, express=True, send_at=ahead(3600))
    assert (answer.status, answer.body["status"]) == (202, "SCHEDULED")
    assert site.money(client) == (993, 7, 0)
    message = site.look(answer.body["message_id"])
    assert message["status"] == "SCHEDULED"
    promised = moment(answer.body["submit_by"]) - moment(message["created_at"])
    assert timedelta(seconds=3655) < promised < timedelta(seconds=3661)


def test_a_scheduled_message_is_sent_when_its_time_comes(site: Site) -> None:
    client = site.client(1000)
    answer = site.send(client, send_at=ahead(0.3))
    assert answer.body["status"] == "SCHEDULED"
    message = site.final(answer.body["message_id"])
    assert message["status"] == "DELIVERED"
    assert moment(message["submitted_at"]) - moment(message["created_at"]) > timedelta(seconds=0.2)
    assert site.money(client) == (995, 0, 5)


def test_fields_that_are_null_are_the_same_as_left_out(site: Site) -> None:
    client = site.client()
    nothing = dict.fromkeys(("otp", "express", "reference", "validity_s", "send_at"))
    body = {"client_id": client, "to": DELIVERED, "from": "ACME", "text": "hello"}
    answer = site.post("/v1/messages", {**body, **nothing})
    assert (answer.status, answer.body["status"]) == (202, "QUEUED")
    assert "reference" not in answer.body


def test_a_client_id_may_be_in_capitals(site: Site) -> None:
    client = site.client()
    assert site.send(client.upper()).status == 202
    assert site.get(f"/v1/me?client_id={client.upper()}")["id"] == client


# Size and price


@pytest.mark.parametrize(
    ("text", "encoding", "parts", "characters"),
    [
        ("x", "GSM-7", 1, 1),
        ("x" * 160, "GSM-7", 1, 160),
        ("x" * 161, "GSM-7", 2, 161),
        ("x" * 306, "GSM-7", 2, 306),
        ("x" * 307, "GSM-7", 3, 307),
        ("x" * 1530, "GSM-7", 10, 1530),
        ("€" * 80, "GSM-7", 1, 80),
        ("€" * 81, "GSM-7", 2, 81),
        # A pair is never cut: the first part keeps a septet free.
        ("x" * 152 + "€" + "x" * 151, "GSM-7", 2, 304),
        ("x" * 152 + "€" + "x" * 152, "GSM-7", 3, 305),
        ("@£$¥èéùìòÇØøÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ¡¿", "GSM-7", 1, 31),
        ("a\nb\rc\fd", "GSM-7", 1, 7),
        ("a\tb", "UCS-2", 1, 3),
        ("a\x01b\x7f", "UCS-2", 1, 4),
        ("ç", "UCS-2", 1, 1),
        ("سلام", "UCS-2", 1, 4),
        ("س" * 70, "UCS-2", 1, 70),
        ("س" * 71, "UCS-2", 2, 71),
        ("س" * 134, "UCS-2", 2, 134),
        ("س" * 135, "UCS-2", 3, 135),
        ("س" * 670, "UCS-2", 10, 670),
        ("😀" * 35, "UCS-2", 1, 35),
        ("😀" * 36, "UCS-2", 2, 36),
        # 66 + 😀 does not fit into the 67 units of a part, and is not cut either.
        ("س" * 66 + "😀" + "س" * 65, "UCS-2", 2, 132),
        ("س" * 66 + "😀" + "س" * 66, "UCS-2", 3, 133),
    ],
)
def test_texts_are_counted_as_operators_do_and_priced_by_the_part(
    paused: Site, text: str, encoding: str, parts: int, characters: int
) -> None:
    client = paused.client()
    preview = paused.post("/v1/messages/preview", paused.message(client, text=text))
    assert preview.status == 200
    assert preview.body == {
        "encoding": encoding, "parts": parts, "characters": characters, "cost": 5 * parts,
        "to": DELIVERED,
    }  # fmt: skip
    answer = paused.send(client, text=text)
    assert answer.status == 202
    assert columns([answer.body], "encoding", "parts", "cost") == [(encoding, parts, 5 * parts)]
    assert paused.look(answer.body["message_id"])["text"] == text


@pytest.mark.parametrize("text", ["x" * 1531, "س" * 671, "€" * 766, "x" * 60_000])
def test_a_text_of_more_than_ten_parts_is_refused(site: Site, text: str) -> None:
    client = site.client()
    for answer in (
        site.send(client, text=text),
        site.post("/v1/messages/preview", site.message(client, text=text)),
    ):
        assert (answer.status, answer.code) == (400, "text_too_long")
    assert site.money(client) == (10_000, 0, 0)


@pytest.mark.parametrize(
    "text", ["", "a\x00b", "a\x1bb", "\x1b", "a\ud800b", "\udfff", "\udc00\ud800"]
)
def test_a_text_that_no_text_may_be_is_refused(site: Site, text: str) -> None:
    answer = site.send(site.client(), text=text)
    assert (answer.status, answer.fields) == (400, ["text"])


# What is refused


@pytest.mark.parametrize(
    "to",
    [
        "", "+", "98912", "09121234567", "0098912123456", "+0912123456", "+98912", "+123456",
        "+1234567890123456", "+1 500 555 0006", "+1-500-555-0006", "+15005550006\n",
        " +15005550006",
        "+15005550006 ", "+۱۵۰۰۵۵۵۰۰۰۶", "+1500555000٦", "++15005550006", "+15005550006x", "+१५००",
        "ACME", "+15005550006\x00", "+1500555\ud8000006",
    ],
)  # fmt: skip
def test_a_recipient_must_be_in_e164_form(site: Site, to: str) -> None:
    answer = site.send(site.client(), to=to)
    assert (answer.status, answer.code) == (400, "invalid_recipient")


@pytest.mark.parametrize("to", ["+1234567", "+123456789012345", "+999999999999999", "+1000000"])
def test_e164_has_seven_to_fifteen_digits(site: Site, to: str) -> None:
    identifier = site.sent(site.client(), to=to)
    assert site.look(identifier)["to"] == to


@pytest.mark.parametrize(
    "source",
    [
        "", "12", "1", "123456789", "+12", "+0123456789", "ACMECORPORAT", "A\n", "\nA", "A\x00",
        "---",
        "€", "ACMEç", "شرکت", "A\tB", "A\x1bB", "A\x0cB", "A\ud800", "😀a", "۱۲۳۴", "1 2 3",
    ],
)  # fmt: skip
def test_a_sender_that_is_none_of_the_three_is_refused(site: Site, source: str) -> None:
    answer = site.send(site.client(), sender=source)
    assert (answer.status, answer.code) == (400, "invalid_sender")


@pytest.mark.parametrize(
    "source",
    ["A", "ACME", "ACME Corp 1", "12345678", "123", "+1234567", "+123456789012345", "7Eleven",
     "a-b_c.d!", "Ω", "Müller&Søn", "12a", " A "],
)  # fmt: skip
def test_a_sender_is_a_number_a_short_code_or_a_name(site: Site, source: str) -> None:
    identifier = site.sent(site.client(), sender=source)
    assert site.look(identifier)["from"] == source


@pytest.mark.parametrize("field", ["client_id", "to", "from", "text"])
def test_a_field_that_is_missing_or_null_is_named(site: Site, field: str) -> None:
    body = site.message(site.client())
    answer = site.post("/v1/messages", {**body, field: None})
    assert (answer.status, answer.fields) == (400, [field])
    del body[field]
    answer = site.post("/v1/messages", body)
    assert (answer.status, answer.fields) == (400, [field])


WRONG_TYPES: list[tuple[str, list[Any]]] = [
    ("client_id", [1, True, [], {}, "", "x", "550e8400e29b41d4a716446655440000", "{}", NOBODY + "0",
                   "urn:uuid:" + NOBODY, "{" + NOBODY + "}", NOBODY + "\n", " " + NOBODY]),
    ("to", [15005550006, True, [], {}, ["+15005550006"]]),
    ("from", [12345, True, [], {}]),
    ("text", [1, True, [], {}, ["hello"]]),
    ("otp", ["true", "false", 1, 0, [], {}, "", 1.0]),
    ("express", ["true", "false", 1, 0, [], {}, "", 0.0]),
    ("reference", [1, True, [], {}, "x" * 65]),
    ("validity_s", ["60", True, False, 59, 604_801, 0, -60, 60.0, 60.5, 1e400, [], {}, 2**63, 2**64,
                    10**30]),
    ("send_at", [1, True, [], {}, "", "tomorrow", "2126-01-01", "2126-01-01T00:00:00",
                 "2126-13-01T00:00:00Z", "2126-01-01T25:00:00Z", "2126-01-01 00:00:00Z", "Z", 4e9,
                 "12:00:00Z", "2126-01-01T00:00:00Z\n"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG_TYPES for value in values]
)
def test_types_are_strict(site: Site, field: str, value: Any) -> None:
    client = site.client()
    answer = site.post("/v1/messages", {**site.message(client), field: value})
    assert (answer.status, answer.fields) == (400, [field])
    assert site.money(client) == (10_000, 0, 0)


@pytest.mark.parametrize("field", ["Text", "message", "callback", "sender", "unicode", "credits"])
def test_an_unknown_field_is_refused_and_named(site: Site, field: str) -> None:
    answer = site.post("/v1/messages", {**site.message(site.client()), field: "x"})
    assert (answer.status, answer.fields) == (400, [field])


@pytest.mark.parametrize("validity_s", [60, 604_800])
def test_validity_has_bounds_that_are_allowed(site: Site, validity_s: int) -> None:
    assert site.send(site.client(), validity_s=validity_s).status == 202


@pytest.mark.parametrize("reference", ["", "x" * 64, "ü" * 64, "a b/c?d=e&f"])
def test_a_reference_is_any_text_of_up_to_64_characters(site: Site, reference: str) -> None:
    client = site.client()
    answer = site.send(client, reference=reference)
    assert (answer.status, answer.body["reference"]) == (202, reference)
    assert site.look(answer.body["message_id"])["reference"] == reference


@pytest.mark.parametrize("seconds", [-1, -86_400, 35 * 86_400 + 60, 400 * 86_400])
def test_a_schedule_lies_in_the_next_35_days(site: Site, seconds: float) -> None:
    client = site.client()
    answer = site.send(client, send_at=ahead(seconds))
    assert (answer.status, answer.fields) == (400, ["send_at"])
    assert site.money(client) == (10_000, 0, 0)


def test_a_schedule_may_name_any_zone(site: Site) -> None:
    client = site.client()
    for send_at in (ahead(3600).replace("+00:00", "Z"), ahead(3600 + 12_600)[:-6] + "+03:30"):
        answer = site.send(client, send_at=send_at, express=True)
        assert answer.body["status"] == "SCHEDULED"
        created = moment(site.look(answer.body["message_id"])["created_at"])
        left = moment(answer.body["submit_by"]) - created
        assert timedelta(seconds=3650) < left < timedelta(seconds=3662)


def test_otp_and_express_exclude_each_other(site: Site) -> None:
    client = site.client()
    for more in ({"express": True}, {"send_at": ahead(60)}):
        answer = site.send(client, otp=True, **more)
        assert (answer.status, answer.code) == (400, "conflicting_options")
        body = site.message(client, otp=True, **more)
        assert site.post("/v1/messages/preview", body).code == "conflicting_options"
    assert site.money(client) == (10_000, 0, 0)


def test_an_unknown_client_is_told_so(site: Site) -> None:
    for more in ({}, {"otp": True}, {"express": True}, {"send_at": ahead(60)}):
        answer = site.send(NOBODY, **more)
        assert (answer.status, answer.code) == (404, "unknown_client")


def test_what_is_not_covered_is_refused_with_both_figures(paused: Site) -> None:
    client = paused.client(9)
    assert paused.send(client).body["credits"] == 4
    for more, required in (({}, 5), ({"otp": True}, 5), ({"text": "x" * 161}, 10)):
        answer = paused.send(client, **more)
        assert (answer.status, answer.code) == (402, "insufficient_credits")
        assert (answer.body["required"], answer.body["credits"]) == (required, 4)
    assert paused.money(client) == (4, 5, 0)


def test_credit_is_usable_to_exactly_zero(paused: Site) -> None:
    client = paused.client(20)
    left = [paused.send(client, text=text).body["credits"] for text in ("x", "x" * 161, "x")]
    assert left == [15, 5, 0]
    answer = paused.send(client)
    assert (answer.status, answer.body["required"], answer.body["credits"]) == (402, 5, 0)
    assert paused.money(client) == (0, 20, 0)


def test_hundreds_at_once_use_all_credit_and_not_one_cent_more(paused: Site) -> None:
    client = paused.client(5 * 100 + 4)
    body = paused.message(client)

    def three(_: int) -> list[tuple[int, int]]:
        answers = [paused.alone("POST", "/v1/messages", body) for _ in range(3)]
        return [(answer.status, answer.body["credits"]) for answer in answers]

    found = list(itertools.chain(*paused.at_once(three, range(100))))
    assert sorted(left for status, left in found if status == 202) == list(range(4, 504, 5))
    assert {(status, left) for status, left in found if status != 202} == {(402, 4)}
    assert paused.money(client) == (4, 500, 0)
    paused.audit()


# One message


def test_a_message_tells_everything_about_itself(site: Site) -> None:
    client = site.client(1000)
    identifier = site.sent(client, reference="r-1", text="Héllo", sender="12345")
    message = site.final(identifier)
    assert message.keys() >= ROW | {"events"}
    expected = {
        "id": identifier, "client_id": client, "to": DELIVERED, "from": "12345", "text": "Héllo",
        "encoding": "GSM-7", "parts": 1, "status": "DELIVERED", "reason": None, "cost": 5,
        "charged": 5, "otp": False, "express": False, "reference": "r-1", "batch_id": None,
        "provider": "mock", "attempts": 1, "last_error": None, "submit_by": None,
        "express_missed": False,
    }  # fmt: skip
    assert {name: message[name] for name in expected} == expected
    assert message["provider_message_id"]
    times = [message[name] for name in ("created_at", "submitted_at", "final_at")]
    assert all(is_time(at) for at in times)
    assert sorted(times) == times
    assert message["updated_at"] >= message["final_at"]
    for event in message["events"]:
        assert event.keys() == {"at", "kind", "detail"}
        assert is_time(event["at"])
        assert isinstance(event["kind"], str)
    assert [event["at"] for event in message["events"]] == sorted(
        event["at"] for event in message["events"]
    )
    assert site.money(client) == (995, 0, 5)


def test_a_waiting_message_is_held_and_not_yet_charged(paused: Site) -> None:
    client = paused.client(1000)
    message = paused.look(paused.sent(client))
    assert columns([message], "status", "cost", "charged", "attempts") == [("QUEUED", 5, 0, 0)]
    for name in (
        "reason",
        "provider",
        "provider_message_id",
        "submitted_at",
        "final_at",
        "last_error",
    ):
        assert message[name] is None
    assert paused.money(client) == (995, 5, 0)


def test_a_message_of_another_client_is_not_found(site: Site) -> None:
    client, other = site.client(), site.client()
    identifier = site.sent(client)
    assert site.get(f"/v1/messages/{identifier}?client_id={client}")["id"] == identifier
    for owner in (other, NOBODY):
        answer = site.ask("GET", f"/v1/messages/{identifier}?client_id={owner}")
        assert (answer.status, answer.code) == (404, "unknown_message")


def test_an_id_that_is_not_there_is_404_and_one_that_is_none_is_400(site: Site) -> None:
    identifier = site.sent(site.client())
    changed = identifier[:-1] + ("0" if identifier[-1] != "0" else "1")
    for unknown in (NOBODY, str(uuid.uuid4()), changed, "ffffffff-ffff-7fff-bfff-ffffffffffff"):
        answer = site.ask("GET", f"/v1/messages/{unknown}")
        assert (answer.status, answer.code) == (404, "unknown_message")
    for none in (
        "x",
        "1",
        identifier + "0",
        identifier.replace("-", ""),
        "%00",
        "%F0%9F%98%80",
        "a%0Ab",
    ):
        answer = site.ask("GET", f"/v1/messages/{none}")
        assert (answer.status, answer.code) == (400, "invalid_id")
    assert site.get(f"/v1/messages/{identifier.upper()}")["id"] == identifier


@pytest.mark.parametrize(
    ("query", "field"),
    [("client_id=x", "client_id"), ("client_id=", "client_id"), ("wait_s=61", "wait_s"),
     ("wait_s=-1", "wait_s"), ("wait_s=x", "wait_s"), ("wait_s=nan", "wait_s"), ("wait_s=",
     "wait_s"),
     ("wait_s=1&wait_s=2", "wait_s"), ("wait=1", "wait"), ("wait_s=inf", "wait_s"),
     ("wait_s=%D9%A1", "wait_s"), ("wait_s=1e400", "wait_s"), ("client_id=%FF", "client_id")],
)  # fmt: skip
def test_a_wrong_parameter_is_named(site: Site, query: str, field: str) -> None:
    answer = site.ask("GET", f"/v1/messages/{site.sent(site.client())}?{query}")
    assert (answer.status, answer.fields) == (400, [field])


def test_waiting_ends_with_the_time_where_nothing_becomes_final(paused: Site) -> None:
    identifier = paused.sent(paused.client())
    assert paused.get(f"/v1/messages/{identifier}?wait_s=0.05")["status"] == "QUEUED"
    assert paused.get(f"/v1/messages/{identifier}?wait_s=0")["status"] == "QUEUED"


def test_waiting_ends_as_soon_as_a_message_is_final(paused: Site) -> None:
    client = paused.client()
    identifier = paused.sent(client)

    def work(method: str) -> Any:
        if method == "GET":
            return paused.alone("GET", f"/v1/messages/{identifier}?wait_s=30").body["status"]
        return paused.alone(
            "POST", f"/v1/messages/{identifier}/cancel", {"client_id": client}
        ).status

    assert paused.at_once(work, ["GET", "POST"]) == ["CANCELLED", 200]


# Lists


def test_a_list_is_newest_first_and_without_events(paused: Site) -> None:
    client = paused.client()
    sent = [paused.sent(client) for _ in range(5)]
    page = paused.get(f"/v1/messages?client_id={client}")
    assert page.keys() == {"data", "next_cursor"}
    assert page["next_cursor"] is None
    assert [row["id"] for row in page["data"]] == sent[::-1]
    for row in page["data"]:
        assert row.keys() >= ROW
        assert "events" not in row
    message = paused.look(sent[0])
    del message["events"]
    assert page["data"][-1] == message


def test_a_client_with_nothing_has_an_empty_list(site: Site) -> None:
    client = site.client()
    assert site.get(f"/v1/messages?client_id={client}") == {"data": [], "next_cursor": None}


def test_a_page_has_fifty_rows_unless_told(paused: Site) -> None:
    client = paused.client()
    items = [{"to": DELIVERED, "from": "ACME", "text": "x"}] * 51
    body = {"client_id": client, "messages": items}
    assert paused.post("/v1/messages/batch", body).status == 202
    page = paused.get(f"/v1/messages?client_id={client}")
    assert len(page["data"]) == 50
    rest = paused.get(f"/v1/messages?client_id={client}&cursor={page['next_cursor']}")
    assert (len(rest["data"]), rest["next_cursor"]) == (1, None)
    whole = paused.get(f"/v1/messages?client_id={client}&limit=51")
    assert (len(whole["data"]), whole["next_cursor"]) == (51, None)


FILTERS = [
    "",
    "&status=QUEUED",
    "&to=%2B15005550006",
    "&reference=a%20b",
    "&since=2020-01-01T00:00:00Z",
    "&until=2100-01-01T00:00:00Z",
    "&status=QUEUED&to=%2B15005550006&reference=a%20b",
]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_are_stable_while_messages_arrive(paused: Site, filters: str, limit: int) -> None:
    client = paused.client()
    sent = [paused.sent(client, reference="a b") for _ in range(7)]
    rows = paused.pages(
        f"/v1/messages?client_id={client}{filters}",
        limit,
        lambda: paused.sent(client, reference="a b"),
    )
    assert [row["id"] for row in rows] == sent[::-1]


def test_pages_are_stable_while_messages_leave_their_status(paused: Site) -> None:
    client = paused.client()
    sent = [paused.sent(client) for _ in range(6)]

    def cancel_the_first() -> None:
        paused.post(f"/v1/messages/{sent[0]}/cancel", {"client_id": client})

    rows = paused.pages(f"/v1/messages?client_id={client}&status=QUEUED", 2, cancel_the_first)
    assert [row["id"] for row in rows] == sent[:0:-1]


def test_filters_choose_and_combine(paused: Site) -> None:
    client, number = paused.client(), new_number()
    first = paused.sent(client, reference="a")
    second = paused.sent(client, reference="a", to=number)
    third = paused.sent(client, reference="b", to=number)
    fourth = paused.sent(client, send_at=ahead(600))
    paused.post(f"/v1/messages/{third}/cancel", {"client_id": client})
    encoded = f"%2B{number[1:]}"
    for filters, expected in (
        ("status=QUEUED", [second, first]),
        ("status=CANCELLED", [third]),
        ("status=SCHEDULED", [fourth]),
        ("status=DELIVERED", []),
        (f"to={encoded}", [third, second]),
        (f"to={number}", [third, second]),
        (f"to={encoded}&status=QUEUED", [second]),
        ("reference=a", [second, first]),
        ("reference=A", []),
        ("reference=", []),
        (f"reference=a&to={encoded}", [second]),
        ("reference=b&status=QUEUED", []),
        ("to=%2B19999999999", []),
        (f"batch_id={NOBODY}", []),
    ):
        page = paused.get(f"/v1/messages?client_id={client}&{filters}")
        assert [row["id"] for row in page["data"]] == expected, filters


def test_since_is_inclusive_and_until_is_not(paused: Site) -> None:
    client = paused.client()
    old = paused.sent(client)
    paused.wait(0.02)
    new = paused.sent(client)
    at = paused.look(new)["created_at"]
    for filters, expected in (
        (f"since={at}", [new]),
        (f"until={at}", [old]),
        (f"since={at}&until={at}", []),
        (f"since={at[:-1]}%2B00:00", [new]),
        ("since=2100-01-01T00:00:00Z", []),
        ("until=2020-01-01T00:00:00Z", []),
        (f"since={at}&reference=x", []),
        (f"until={at}&to=%2B15005550006", [old]),
    ):
        page = paused.get(f"/v1/messages?client_id={client}&{filters}")
        assert [row["id"] for row in page["data"]] == expected, filters


def test_a_client_sees_its_own_messages_only(paused: Site) -> None:
    one, other = paused.client(), paused.client()
    mine = paused.sent(one, reference="same")
    paused.sent(other, reference="same")
    for filters in ("", "&reference=same", "&to=%2B15005550006", "&status=QUEUED"):
        page = paused.get(f"/v1/messages?client_id={one}{filters}")
        assert [row["id"] for row in page["data"]] == [mine]


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=501", "limit"), ("limit=-1", "limit"), ("limit=x", "limit"),
     ("limit=1.5", "limit"), ("limit=", "limit"), ("limit=99999999999999999999", "limit"),
     ("limit=%D9%A5", "limit"), ("status=queued", "status"), ("status=X", "status"),
     ("status=", "status"), ("batch_id=x", "batch_id"), ("since=yesterday", "since"),
     ("until=1", "until"), ("since=", "since"), ("cursor=x", "cursor"), ("cursor=", "cursor"),
     ("cursor=!!", "cursor"), ("cursor=MC4x=", "cursor"), ("cursor=%00", "cursor"),
     ("cursor=" + "A" * 5000, "cursor"), ("page=2", "page"), ("limit=1&limit=1", "limit"),
     ("reference=%00", "reference"), ("reference=%FF", "reference"), ("reference=%ED%A0%80",
     "reference"),
     ("client=1", "client")],
)  # fmt: skip
def test_a_wrong_filter_is_named(site: Site, query: str, field: str) -> None:
    answer = site.ask("GET", f"/v1/messages?client_id={site.client()}&{query}")
    assert (answer.status, answer.fields) == (400, [field])


def test_a_list_is_of_one_known_client(site: Site) -> None:
    assert site.ask("GET", "/v1/messages").fields == ["client_id"]
    assert site.ask("GET", "/v1/messages?client_id=x").fields == ["client_id"]
    answer = site.ask("GET", f"/v1/messages?client_id={NOBODY}")
    assert (answer.status, answer.code) == (404, "unknown_client")
    answer = site.ask("GET", f"/v1/messages?client_id={site.client()}&to=x")
    assert (answer.status, answer.code) == (400, "invalid_recipient")


def test_a_cursor_of_another_list_is_refused(paused: Site) -> None:
    client = paused.client()
    for _ in range(2):
        paused.sent(client, reference="a")
    path = f"/v1/messages?client_id={client}&limit=1"
    cursor = paused.get(f"{path}&reference=a")["next_cursor"]
    assert paused.ask("GET", f"{path}&cursor={cursor}").fields == ["cursor"]


def test_five_hundred_rows_fit_a_page(paused: Site) -> None:
    client = paused.client()
    items = [{"to": DELIVERED, "from": "ACME", "text": str(index)} for index in range(501)]
    assert paused.post("/v1/messages/batch", {"client_id": client, "messages": items}).status == 202
    page = paused.get(f"/v1/messages?client_id={client}&limit=500")
    assert [row["text"] for row in page["data"]] == [str(index) for index in range(500, 0, -1)]
    rest = paused.get(f"/v1/messages?client_id={client}&limit=500&cursor={page['next_cursor']}")
    assert [row["text"] for row in rest["data"]] == ["0"]


# Cancelling


def test_what_waits_can_be_cancelled_and_is_released(paused: Site) -> None:
    client = paused.client(1000)
    for more in ({}, {"send_at": ahead(600)}, {"validity_s": 60}):
        identifier = paused.sent(client, **more)
        assert paused.money(client) == (995, 5, 0)
        answer = paused.post(f"/v1/messages/{identifier}/cancel", {"client_id": client})
        assert answer.status == 200
        assert answer.body.keys() >= ROW | {"events"}
        assert columns([answer.body], "id", "status", "reason", "charged") == [
            (identifier, "CANCELLED", "cancelled_by_client", 0)
        ]
        assert answer.body == paused.look(identifier)
        assert paused.money(client) == (1000, 0, 0)
        again = paused.post(f"/v1/messages/{identifier}/cancel", {"client_id": client})
        assert (again.status, again.code) == (409, "not_cancellable")
    assert paused.money(client) == (1000, 0, 0)


def test_what_waits_for_its_next_try_can_be_cancelled(site_of: SiteOf) -> None:
    site = site_of(delivery__retry_base_s="3600", log__level="info")
    client = site.client(1000)
    identifier = site.sent(client, to=FAILS_ALWAYS)
    site.until(identifier, "FAILED_TEMP")
    answer = site.post(f"/v1/messages/{identifier}/cancel", {"client_id": client})
    assert (answer.status, answer.body["status"]) == (200, "CANCELLED")
    assert answer.body["attempts"] == 1
    assert site.money(client) == (1000, 0, 0)


@pytest.mark.parametrize("to", [DELIVERED, REFUSED])
def test_what_is_final_cannot_be_cancelled(site: Site, to: str) -> None:
    client = site.client()
    identifier = site.sent(client, to=to)
    before = site.final(identifier)
    answer = site.post(f"/v1/messages/{identifier}/cancel", {"client_id": client})
    assert (answer.status, answer.code) == (409, "not_cancellable")
    assert site.look(identifier) == before


def test_only_the_owner_cancels(paused: Site) -> None:
    client, other = paused.client(), paused.client()
    identifier = paused.sent(client)
    for wrong, status, code in (
        ({"client_id": other}, 404, "unknown_message"),
        ({"client_id": NOBODY}, 404, "unknown_client"),
        ({}, 400, "invalid_request"),
        ({"client_id": "x"}, 400, "invalid_request"),
        ({"client_id": client, "why": 1}, 400, "invalid_request"),
        ([], 400, "invalid_request"),
    ):
        answer = paused.post(f"/v1/messages/{identifier}/cancel", wrong)
        assert (answer.status, answer.code) == (status, code)
    answer = paused.post("/v1/messages/x/cancel", {"client_id": client})
    assert (answer.status, answer.code) == (400, "invalid_id")
    answer = paused.post(f"/v1/messages/{NOBODY}/cancel", {"client_id": client})
    assert (answer.status, answer.code) == (404, "unknown_message")
    assert paused.look(identifier)["status"] == "QUEUED"


# Preview


def test_a_preview_stores_nothing_and_asks_for_no_credit(site: Site) -> None:
    client = site.client(0)
    for more, cost in (
        ({}, 5),
        ({"express": True}, 7),
        ({"otp": True}, 5),
        ({"otp": True, "text": None}, 5),
        ({"text": "x" * 161, "express": True}, 14),
        ({"reference": "r", "validity_s": 60, "send_at": ahead(60)}, 5),
    ):
        answer = site.post("/v1/messages/preview", site.message(client, **more))
        assert (answer.status, answer.body["cost"]) == (200, cost)
    assert site.get(f"/v1/messages?client_id={client}")["data"] == []
    assert site.money(client) == (0, 0, 0)


def test_a_preview_counts_the_code_that_will_be_there(site: Site) -> None:
    client = site.client()
    preview = site.post("/v1/messages/preview", site.message(client, otp=True, text=None))
    assert preview.body["characters"] == len("Your verification code is 123456")
    preview = site.post("/v1/messages/preview", site.message(client, otp=True, text="{code}" * 2))
    assert (preview.body["characters"], preview.body["encoding"]) == (12, "GSM-7")


def test_a_preview_refuses_what_sending_would(site: Site) -> None:
    client = site.client()
    for more, code in (
        ({"to": "x"}, "invalid_recipient"),
        ({"sender": None, "from": "!"}, "invalid_sender"),
        ({"text": None}, "invalid_request"),
        ({"x": 1}, "invalid_request"),
        ({"client_id": NOBODY}, "unknown_client"),
    ):
        assert site.post("/v1/messages/preview", site.message(client, **more)).code == code


# What settings change


def test_express_is_refused_where_its_time_could_not_be_kept(site_of: SiteOf) -> None:
    site = site_of(providers__mock__rate_parts_per_s=1, express__guarantee_s=10)
    client = site.client(10_000)
    answers = [site.send(client, express=True, text="x" * 161) for _ in range(12)]
    refused = [answer for answer in answers if answer.status != 202]
    assert refused
    assert len(refused) < 12
    for answer in refused:
        assert (answer.status, answer.code) == (503, "express_guarantee_unavailable")
    accepted = 12 - len(refused)
    assert accepted * 2 <= 10
    left, held, charged = site.money(client)
    assert (left, held + charged) == (10_000 - accepted * 14, accepted * 14)
    assert site.send(client, express=True, send_at=ahead(600)).status == 202


def test_no_express_promise_is_given_while_everything_is_paused(paused: Site) -> None:
    client = paused.client()
    answer = paused.send(client, express=True)
    assert (answer.status, answer.code) == (503, "express_guarantee_unavailable")
    assert paused.money(client) == (10_000, 0, 0)


def test_what_is_not_handed_over_in_time_expires_and_is_released(site_of: SiteOf) -> None:
    site = site_of(limits__validity_s=0.2)
    site.pause()
    client = site.client(1000)
    identifier = site.sent(client)
    message = site.final(identifier)
    assert columns([message], "status", "reason", "attempts", "charged") == [
        ("EXPIRED", "validity_passed", 0, 0)
    ]
    assert site.money(client) == (1000, 0, 0)
    assert not site.journal_of(identifier)


def test_validity_counts_from_the_time_it_is_scheduled_for(site_of: SiteOf) -> None:
    site = site_of(limits__validity_s=0.2)
    site.pause()
    identifier = site.sent(site.client(), send_at=ahead(0.5))
    message = site.final(identifier)
    assert message["reason"] == "validity_passed"
    lived = moment(message["final_at"]) - moment(message["created_at"])
    assert lived > timedelta(seconds=0.6)


@pytest.mark.parametrize(
    ("to", "means"),
    [("09121234567", "+989121234567"), ("00989121234567", "+989121234567"),
     ("+989121234567", "+989121234567"), ("۰۹۱۲۱۲۳۴۵۶۷", "+989121234567"),
     ("٠٩١٢١٢٣٤٥٦٧", "+989121234567"), ("0912 123 4567", "+989121234567"),
     ("+۹۸۹۱۲۱۲۳۴۵۶۷", "+989121234567"), ("+15005550006", "+15005550006"), ("123", None), ("",
     None),
     ("x", None)],
)  # fmt: skip
def test_with_a_region_national_forms_are_read(site_of: SiteOf, to: str, means: str | None) -> None:
    site = site_of(numbers__default_region="IR")
    client = site.client()
    preview = site.post("/v1/messages/preview", site.message(client, to=to))
    answer = site.send(client, to=to)
    if means is None:
        assert answer.code == preview.code == "invalid_recipient"
        return
    assert preview.body["to"] == means
    assert site.look(answer.body["message_id"])["to"] == means
    rows = site.get(f"/v1/messages?client_id={client}&to=%2B{means[1:]}")["data"]
    assert [row["id"] for row in rows] == [answer.body["message_id"]]


def test_prices_and_parts_are_settings(site_of: SiteOf) -> None:
    site = site_of(
        billing__part_cents=3,
        billing__express_part_cents=4,
        billing__otp_part_cents=11,
        limits__parts_max=2,
    )
    client = site.client(100)
    assert site.send(client).body["cost"] == 3
    assert site.send(client, express=True, text="x" * 161).body["cost"] == 14
    assert site.otp(client).body["cost"] == 11
    assert site.send(client, text="x" * 307).code == "text_too_long"
    assert site.get(f"/v1/me?client_id={client}")["credits"] == 100 - 3 - 14 - 11
