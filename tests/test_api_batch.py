"""Many messages in one request: each judged by itself, or all together, and told again."""

from typing import Any

import pytest

from smsgw.admission import BatchProgress
from smsgw.entrance import BATCH_STEP, Wish
from smsgw.errors import SmsgwError, StorageUnavailable, TooManyRequests
from smsgw.store.shard import Shard
from smsgw.turn import Item
from tests.conftest import OpenGateway, SiteOf
from tests.outside import DELIVERED, Answer, Site, ahead, columns, is_uuid, moment
from tests.support import account_of, add_client, assert_clean

NOBODY = "00000000-0000-4000-8000-000000000000"
GOOD = {"to": DELIVERED, "from": "ACME", "text": "hello"}
LONG = "x" * 1531


@pytest.fixture(scope="module")
def paused(site_of: SiteOf) -> Site:
    """A gateway that takes messages and hands none over."""
    site = site_of(log__level="warning")
    site.pause()
    return site


def batch(
    site: Site, client: str, items: list[Any] | None = None, key: str | None = None, **more: Any
) -> Answer:
    """Send a batch."""
    messages = {} if items is None else {"messages": items}
    return site.post("/v1/messages/batch", {"client_id": client, **messages, **more}, key)


def codes(answer: Answer) -> list[str | None]:
    """For each item its error code, or None where it was accepted."""
    return [result.get("code") for result in answer.body["results"]]


# What is accepted


def test_every_item_is_answered_in_order(site: Site) -> None:
    client = site.client(1000)
    items: list[Any] = [
        GOOD,
        {**GOOD, "text": "س" * 71, "reference": "two"},
        {**GOOD, "express": True},
        {**GOOD, "send_at": ahead(600)},
        {**GOOD, "to": "x"},
    ]
    answer = batch(site, client, items)
    assert answer.status == 202
    assert answer.body.keys() == {"batch_id", "accepted", "rejected", "credits", "results"}
    assert is_uuid(answer.body["batch_id"])
    assert (answer.body["accepted"], answer.body["rejected"]) == (4, 1)
    assert answer.body["credits"] == 1000 - 5 - 10 - 7 - 5
    *accepted, rejected = answer.body["results"]
    for result in accepted:
        assert is_uuid(result["message_id"])
        assert result.keys() >= {"message_id", "status", "parts", "encoding", "cost"}
        assert "error" not in result
        assert "code" not in result
    assert columns(accepted, "status", "parts", "encoding", "cost") == [
        ("QUEUED", 1, "GSM-7", 5),
        ("QUEUED", 2, "UCS-2", 10),
        ("QUEUED", 1, "GSM-7", 7),
        ("SCHEDULED", 1, "GSM-7", 5),
    ]
    assert rejected.keys() == {"error", "code"}
    assert rejected["code"] == "invalid_recipient"
    assert rejected["error"]


def test_messages_know_their_batch_and_can_be_listed_by_it(site: Site) -> None:
    client = site.client(1000)
    answer = batch(site, client, [{**GOOD, "text": str(index)} for index in range(3)])
    site.sent(client)
    identifier = answer.body["batch_id"]
    rows = site.get(f"/v1/messages?client_id={client}&batch_id={identifier}")["data"]
    assert columns(rows, "id", "batch_id", "text") == [
        (result["message_id"], identifier, text)
        for result, text in zip(answer.body["results"][::-1], "210", strict=True)
    ]
    message = site.final(answer.body["results"][0]["message_id"])
    assert (message["batch_id"], message["status"]) == (identifier, "DELIVERED")
    path = (
        f"/v1/messages?client_id={client}&batch_id={identifier}&to=%2B15005550006&status=DELIVERED"
    )
    for result in answer.body["results"]:
        site.final(result["message_id"])
    assert len(site.pages(path, 1)) == 3
    other = site.get(f"/v1/messages?client_id={site.client()}&batch_id={identifier}")
    assert other["data"] == []


def test_what_stands_above_is_the_default_of_each_item(paused: Site) -> None:
    client = paused.client(1000)
    send_at = ahead(600)
    answer = batch(
        paused,
        client,
        [
            {"to": "+15005550007"},
            {"to": DELIVERED, "from": "Other", "text": "else", "reference": "r"},
            {"to": DELIVERED, "from": None, "text": None, "send_at": ahead(1200)},
        ],
        **{"from": "ACME", "text": "all", "send_at": send_at, "validity_s": 60},
    )
    assert answer.body["accepted"] == 3
    rows = [paused.look(result["message_id"]) for result in answer.body["results"]]
    assert columns(rows, "to", "from", "text", "reference", "status") == [
        ("+15005550007", "ACME", "all", None, "SCHEDULED"),
        (DELIVERED, "Other", "else", "r", "SCHEDULED"),
        (DELIVERED, "ACME", "all", None, "SCHEDULED"),
    ]


def test_express_above_is_the_default_and_an_item_can_do_without(site: Site) -> None:
    client = site.client(1000)
    items: list[Any] = [GOOD, {**GOOD, "express": False}, {**GOOD, "express": True}]
    answer = batch(site, client, items, express=True)
    assert [result["cost"] for result in answer.body["results"]] == [7, 5, 7]
    message = site.final(answer.body["results"][0]["message_id"])
    assert message["express"] is True
    assert (moment(message["submit_by"]) - moment(message["created_at"])).total_seconds() == 60


def test_one_text_goes_to_many(site: Site) -> None:
    client = site.client(1000)
    numbers = ["+15005550006", "bad", "+15005550007", "+15005550006"]
    answer = batch(site, client, to=numbers, text="all", **{"from": "ACME"})
    assert answer.status == 202
    assert codes(answer) == [None, "invalid_recipient", None, None]
    assert answer.body["credits"] == 985
    assert batch(site, client, to=["+15005550006"], **{"from": "ACME"}).status == 400


def test_a_thousand_fit_and_a_larger_body_than_usual(paused: Site) -> None:
    client = paused.client(5 * 1000)
    items = [{**GOOD, "reference": str(index), "text": "y" * 100} for index in range(1000)]
    answer = batch(paused, client, items)
    assert answer.status == 202
    assert (answer.body["accepted"], answer.body["rejected"], answer.body["credits"]) == (
        1000,
        0,
        0,
    )
    path = f"/v1/messages?client_id={client}&batch_id={answer.body['batch_id']}"
    rows = paused.pages(path, 300)
    assert [row["reference"] for row in rows] == [str(index) for index in range(999, -1, -1)]
    assert [row["id"] for row in rows[::-1]] == [r["message_id"] for r in answer.body["results"]]
    assert paused.money(client) == (0, 5000, 0)


# What is rejected


BAD: list[tuple[Any, str]] = [
    ({**GOOD, "to": "x"}, "invalid_recipient"),
    ({**GOOD, "from": "!"}, "invalid_sender"),
    ({**GOOD, "text": LONG}, "text_too_long"),
    ({**GOOD, "text": ""}, "invalid_request"),
    ({**GOOD, "text": "\x00"}, "invalid_request"),
    ({**GOOD, "text": "\ud800"}, "invalid_request"),
    ({**GOOD, "otp": True}, "invalid_request"),
    ({**GOOD, "otp": False}, "invalid_request"),
    ({**GOOD, "x": 1}, "invalid_request"),
    ({**GOOD, "client_id": NOBODY}, "invalid_request"),
    ({**GOOD, "express": "true"}, "invalid_request"),
    ({**GOOD, "validity_s": 59}, "invalid_request"),
    ({**GOOD, "validity_s": True}, "invalid_request"),
    ({**GOOD, "reference": "x" * 65}, "invalid_request"),
    ({**GOOD, "send_at": "tomorrow"}, "invalid_request"),
    ({**GOOD, "send_at": "2020-01-01T00:00:00Z"}, "invalid_request"),
    ({**GOOD, "send_at": "2126-01-01T00:00:00Z"}, "invalid_request"),
    ({"from": "ACME", "text": "hello"}, "invalid_request"),
    ({"to": DELIVERED, "text": "hello"}, "invalid_request"),
    ({"to": DELIVERED, "from": "ACME"}, "invalid_request"),
    ({}, "invalid_request"),
    (None, "invalid_request"),
    (1, "invalid_request"),
    ("+15005550006", "invalid_request"),
    ([], "invalid_request"),
    ([GOOD], "invalid_request"),
]


@pytest.mark.parametrize(("item", "code"), BAD)
def test_a_bad_item_is_a_rejected_item(paused: Site, item: Any, code: str) -> None:
    client = paused.client(1000)
    answer = batch(paused, client, [GOOD, item, GOOD])
    assert (answer.status, codes(answer)) == (202, [None, code, None])
    assert (answer.body["accepted"], answer.body["rejected"], answer.body["credits"]) == (2, 1, 990)
    alone = batch(paused, client, [item])
    assert (alone.status, codes(alone)) == (400, [code])
    assert paused.money(client) == (990, 10, 0)


@pytest.mark.parametrize(("item", "code"), BAD)
def test_all_or_nothing_refuses_all_and_names_the_item(paused: Site, item: Any, code: str) -> None:
    client = paused.client(1000)
    answer = batch(paused, client, [GOOD, GOOD, item], all_or_nothing=True)
    assert (answer.status, answer.code, answer.body["index"]) == (400, code, 2)
    assert paused.money(client) == (1000, 0, 0)
    assert paused.get(f"/v1/messages?client_id={client}")["data"] == []


def test_each_item_is_judged_by_what_is_left_at_its_turn(paused: Site) -> None:
    client = paused.client(21)
    texts = ["x" * 306, "x" * 307, "x" * 161, "x", "x" * 161, "x"]
    answer = batch(paused, client, [{**GOOD, "text": text} for text in texts])
    short = "insufficient_credits"
    assert codes(answer) == [None, short, None, short, short, short]
    assert (answer.status, answer.body["credits"]) == (202, 1)
    answer = batch(paused, paused.client(7), [{**GOOD, "text": "x" * 161}, GOOD])
    assert codes(answer) == [short, None]
    assert paused.money(client) == (1, 20, 0)


def test_nothing_accepted_for_credit_is_402(paused: Site) -> None:
    client = paused.client(4)
    answer = batch(paused, client, [{**GOOD, "text": "x" * 161}, GOOD])
    assert (answer.status, answer.code) == (402, "insufficient_credits")
    assert codes(answer) == ["insufficient_credits"] * 2
    assert answer.body["credits"] == 4
    assert isinstance(answer.body["required"], int)
    assert answer.body["required"] > 4
    assert paused.money(client) == (4, 0, 0)


def test_nothing_accepted_for_other_reasons_too_is_400(paused: Site) -> None:
    client = paused.client(4)
    answer = batch(paused, client, [GOOD, {**GOOD, "to": "x"}])
    assert answer.status == 400
    assert codes(answer) == ["insufficient_credits", "invalid_recipient"]


def test_all_or_nothing_needs_credit_for_all(paused: Site) -> None:
    client = paused.client(14)
    answer = batch(paused, client, [GOOD] * 3, all_or_nothing=True)
    assert (answer.status, answer.code, answer.body["index"]) == (402, "insufficient_credits", 2)
    assert (answer.body["required"], answer.body["credits"]) == (5, 4) or answer.body[
        "required"
    ] == 15
    assert paused.money(client) == (14, 0, 0)
    answer = batch(paused, client, [GOOD] * 2, all_or_nothing=True)
    assert (answer.status, answer.body["accepted"], answer.body["credits"]) == (202, 2, 4)
    whole = paused.client(5000)
    answer = batch(paused, whole, [GOOD] * 1000, all_or_nothing=True)
    assert (answer.status, answer.body["accepted"], answer.body["credits"]) == (202, 1000, 0)


@pytest.mark.parametrize(
    ("envelope", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [GOOD], "to": ["+15005550006"]}, "to"),
        ({"to": []}, "to"),
        ({"to": "+15005550006"}, "to"),
        ({"messages": [GOOD], "otp": True}, "otp"),
        ({"messages": [GOOD], "reference": "r"}, "reference"),
        ({"messages": [GOOD], "x": 1}, "x"),
        ({"messages": [GOOD], "from": 1}, "from"),
        ({"messages": [GOOD], "text": 1}, "text"),
        ({"messages": [GOOD], "express": "true"}, "express"),
        ({"messages": [GOOD], "all_or_nothing": 1}, "all_or_nothing"),
        ({"messages": [GOOD], "validity_s": 59}, "validity_s"),
        ({"messages": [GOOD], "send_at": "x"}, "send_at"),
        ({"messages": [GOOD], "client_id": "x"}, "client_id"),
        ({"messages": [GOOD], "client_id": None}, "client_id"),
        ({"messages": [GOOD] * 1001}, "messages"),
        ({"to": ["+15005550006"] * 1001}, "to"),
    ],
)
def test_an_envelope_that_is_wrong_is_refused(paused: Site, envelope: Any, field: str) -> None:
    client = paused.client(100_000)
    answer = paused.post("/v1/messages/batch", {"client_id": client, **envelope})
    assert (answer.status, answer.fields) == (400, [field])
    assert paused.money(client) == (100_000, 0, 0)


def test_an_envelope_must_be_an_object_of_a_known_client(paused: Site) -> None:
    for body in ([], [GOOD], "x", 1, None):
        answer = paused.ask("POST", "/v1/messages/batch", b"null" if body is None else body)
        assert (answer.status, answer.code) == (400, "invalid_request")
    answer = batch(paused, NOBODY, [GOOD])
    assert (answer.status, answer.code) == (404, "unknown_client")


def test_the_number_of_items_is_a_setting(site_of: SiteOf) -> None:
    site = site_of(limits__batch_messages_max=2)
    client = site.client()
    assert batch(site, client, [GOOD] * 2).status == 202
    assert batch(site, client, [GOOD] * 3).fields == ["messages"]


def test_express_items_are_refused_where_the_time_could_not_be_kept(paused: Site) -> None:
    client = paused.client(1000)
    answer = batch(paused, client, [GOOD, {**GOOD, "express": True}])
    assert codes(answer) == [None, "express_guarantee_unavailable"]
    assert paused.money(client) == (995, 5, 0)


# Cancelling


def test_cancelling_a_batch_cancels_what_still_can_be(paused: Site) -> None:
    client = paused.client(1000)
    answer = batch(
        paused, client, [GOOD, {**GOOD, "send_at": ahead(600)}, {**GOOD, "to": "x"}, GOOD]
    )
    first = answer.body["results"][0]["message_id"]
    paused.post(f"/v1/messages/{first}/cancel", {"client_id": client})
    path = f"/v1/batches/{answer.body['batch_id']}/cancel"
    cancelled = paused.post(path, {"client_id": client})
    assert (cancelled.status, cancelled.body) == (200, {"cancelled": 2, "left": 1})
    assert paused.money(client) == (1000, 0, 0)
    assert paused.post(path, {"client_id": client}).body == {"cancelled": 0, "left": 3}
    rows = paused.get(f"/v1/messages?client_id={client}&status=CANCELLED")["data"]
    assert len(rows) == 3


def test_a_large_batch_is_cancelled_whole(paused: Site) -> None:
    client = paused.client(5000)
    answer = batch(paused, client, [GOOD] * 450)
    path = f"/v1/batches/{answer.body['batch_id']}/cancel"
    assert paused.post(path, {"client_id": client}).body == {"cancelled": 450, "left": 0}
    assert paused.money(client) == (5000, 0, 0)
    paused.audit()


def test_only_the_owner_cancels_a_batch(paused: Site) -> None:
    client, other = paused.client(), paused.client()
    identifier = batch(paused, client, [GOOD]).body["batch_id"]
    message = paused.sent(client)
    for target, owner, status, code in (
        (identifier, other, 404, "unknown_message"),
        (identifier, NOBODY, 404, "unknown_client"),
        (NOBODY, client, 404, "unknown_message"),
        (message, client, 404, "unknown_message"),
        ("x", client, 400, "invalid_id"),
        (identifier, "x", 400, "invalid_request"),
    ):
        answer = paused.post(f"/v1/batches/{target}/cancel", {"client_id": owner})
        assert (answer.status, answer.code) == (status, code)
    assert paused.money(client) == (9990, 10, 0)


# Telling again


def test_a_replay_repeats_a_partial_answer_and_sends_nothing(paused: Site) -> None:
    client = paused.client(12)
    items = [GOOD, {**GOOD, "to": "x"}, GOOD, GOOD, {**GOOD, "send_at": ahead(600)}]
    first = batch(paused, client, items, key="k")
    assert first.status == 202
    assert [code is None for code in codes(first)] == [True, False, True, False, False]
    paused.admin("POST", f"clients/{client}/add", {"amount_cents": 100})
    again = batch(paused, client, items, key="k")
    assert (again.status, again.body) == (first.status, first.body)
    assert paused.money(client) == (102, 10, 0)
    path = f"/v1/batches/{first.body['batch_id']}/cancel"
    paused.post(path, {"client_id": client})
    again = batch(paused, client, items, key="k")
    assert (again.status, again.body) == (first.status, first.body)
    rest = batch(paused, client, items, key="k2")
    assert rest.body["accepted"] == 4


def test_a_replay_tells_what_was_scheduled_and_express(site: Site) -> None:
    client = site.client()
    items = [{**GOOD, "express": True, "reference": "a"}, {**GOOD, "send_at": ahead(0.2)}]
    first = batch(site, client, items, key="k")
    assert [result["status"] for result in first.body["results"]] == ["QUEUED", "SCHEDULED"]
    for result in first.body["results"]:
        site.final(result["message_id"])
    again = batch(site, client, items, key="k")
    assert (again.status, again.body) == (first.status, first.body)


def test_a_refused_batch_leaves_its_key_free(paused: Site) -> None:
    client = paused.client(4)
    for key, more in (("one", {}), ("two", {"all_or_nothing": True})):
        assert batch(paused, client, [GOOD], key=key, **more).status == 402
        paused.admin("POST", f"clients/{client}/add", {"amount_cents": 5})
        assert batch(paused, client, [GOOD], key=key, **more).status == 202
    assert paused.money(client) == (4, 10, 0)


def test_a_key_with_another_batch_is_a_mismatch(paused: Site) -> None:
    client = paused.client()
    assert batch(paused, client, [GOOD], key="k").status == 202
    for other in (
        batch(paused, client, [GOOD, GOOD], key="k"),
        batch(paused, client, [{**GOOD, "text": "other"}], key="k"),
        batch(paused, client, [GOOD], key="k", all_or_nothing=True),
        batch(paused, client, [GOOD], key="k", express=True),
        paused.send(client, key="k"),
    ):
        assert (other.status, other.code) == (422, "idempotency_mismatch")
    assert paused.money(client) == (9995, 5, 0)


@pytest.mark.parametrize("more", [{}, {"all_or_nothing": True}])
def test_one_key_at_once_is_one_batch(paused: Site, more: dict[str, Any]) -> None:
    client = paused.client(5 * 700)
    items = [{**GOOD, "reference": str(index)} for index in range(700)]
    body = {"client_id": client, "messages": items, **more}

    def post(_: int) -> Answer:
        return paused.alone("POST", "/v1/messages/batch", body, {"Idempotency-Key": "k"})

    answers = paused.at_once(post, range(6))
    accepted = [answer.body for answer in answers if answer.status == 202]
    assert accepted
    assert all(body == accepted[0] for body in accepted)
    assert accepted[0]["accepted"] == 700
    assert {answer.code for answer in answers if answer.status != 202} <= {
        "idempotency_in_progress"
    }
    assert paused.money(client) == (0, 3500, 0)
    again = batch(paused, client, items, key="k", **more)
    assert (again.status, again.body) == (202, accepted[0])
    paused.audit()


def test_batches_at_once_use_all_credit_and_not_one_cent_more(paused: Site) -> None:
    client = paused.client(5 * 250 + 3)

    def post(_: int) -> int:
        body = {"client_id": client, "messages": [GOOD] * 40}
        answer = paused.alone("POST", "/v1/messages/batch", body)
        assert answer.status in (202, 402), answer
        return int(answer.body["accepted"])

    assert sum(paused.at_once(post, range(16))) == 250
    assert paused.money(client) == (3, 1250, 0)


@pytest.mark.parametrize("refusal", [TooManyRequests, StorageUnavailable])
async def test_a_batch_that_has_begun_is_not_refused_as_if_it_had_not(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch, refusal: type[SmsgwError]
) -> None:
    gateway = await gateway_of(serve=False)
    client = await add_client(gateway, 5000)
    items = [gateway.entrance.draft(Wish(DELIVERED, "ACME", str(index))) for index in range(250)]
    refusals = [None, refusal(outcome="none")]
    put = Shard.put

    def refuse_the_second(shard: Shard, item: Item) -> None:
        error = refusals.pop(0) if refusals else None
        if error is not None:
            raise error
        put(shard, item)

    monkeypatch.setattr(Shard, "put", refuse_the_second)
    if refusal is TooManyRequests:
        answer = await gateway.entrance.submit_batch(client, items, None)
        assert isinstance(answer, BatchProgress)
        assert (answer.batch.accepted, len(answer.results)) == (250, 250)
    else:
        with pytest.raises(StorageUnavailable) as raised:
            await gateway.entrance.submit_batch(client, items, None)
        assert raised.value.members["outcome"] == "unknown"
        assert (await account_of(gateway, client)).waiting == BATCH_STEP
    await assert_clean(gateway)
