"""The Idempotency-Key: the same request again is the same answer again, and nothing else."""

import asyncio
import json
import signal
import uuid
from typing import Any

import pytest

from smsgw.admission import BatchProgress, Replay, key_use
from smsgw.entrance import Wish
from smsgw.errors import IdempotencyInProgress
from tests.conftest import OpenGateway, SiteOf
from tests.outside import DELIVERED, REFUSED, Answer, Site, ahead, new_number
from tests.support import account_of, add_client, assert_clean


@pytest.fixture(scope="module")
def paused(site_of: SiteOf) -> Site:
    """A gateway that takes messages and hands none over."""
    site = site_of(log__level="warning")
    site.pause()
    return site


def with_key(site: Site, client: str, raw_key: str | bytes, **more: Any) -> Answer:
    """Send a message with the header exactly as given."""
    key = raw_key.encode() if isinstance(raw_key, str) else raw_key
    body = json.dumps(site.message(client, **more)).encode()
    head = (
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nIdempotency-Key:"
        + key
        + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    [answer] = site.raw(head + body)
    return answer


def test_the_same_request_is_the_same_answer_and_one_message(site: Site) -> None:
    client = site.client(1000)
    more = {"reference": "r", "express": True, "validity_s": 60}
    first = site.send(client, key="k", **more)
    assert first.status == 202
    site.final(first.body["message_id"])
    site.sent(client)
    again = site.send(client, key="k", **more)
    assert (again.status, again.body) == (202, first.body)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert len(site.get(f"/v1/messages?client_id={client}")["data"]) == 2


def test_a_replay_needs_no_credit_any_more(paused: Site) -> None:
    client = paused.client(5)
    first = paused.send(client, key="k")
    assert first.body["credits"] == 0
    assert paused.send(client, key="other").status == 402
    assert paused.send(client, key="k").body == first.body


def test_a_replay_of_a_schedule_says_scheduled_also_when_it_has_passed(site: Site) -> None:
    client, send_at = site.client(), ahead(0.2)
    first = site.send(client, key="k", send_at=send_at)
    site.final(first.body["message_id"])
    again = site.send(client, key="k", send_at=send_at)
    assert (again.status, again.body) == (202, first.body)
    assert again.body["status"] == "SCHEDULED"


def test_what_is_left_out_and_what_is_said_by_default_are_the_same_body(paused: Site) -> None:
    client = paused.client()
    first = paused.send(client, key="k")
    body = {**paused.message(client), "otp": False, "express": False, "reference": None}
    raw = json.dumps(dict(reversed(body.items())), indent=3).encode()
    again = paused.ask("POST", "/v1/messages", raw, {"Idempotency-Key": "k"})
    assert (again.status, again.body) == (202, first.body)


@pytest.mark.parametrize(
    "more",
    [{"text": "other"}, {"to": "+15005550007"}, {"sender": "OTHER"}, {"reference": "r"},
     {"validity_s": 60}, {"express": True}, {"send_at": "2026-12-24T00:00:00Z"}, {"otp": True}],
)  # fmt: skip
def test_another_body_with_the_key_is_a_mismatch(site: Site, more: dict[str, Any]) -> None:
    client = site.client(1000)
    first = site.send(client, key="k")
    more = {**more, "send_at": ahead(600)} if "send_at" in more else more
    answer = site.send(client, key="k", **more)
    assert (answer.status, answer.code) == (422, "idempotency_mismatch")
    assert site.send(client, key="k").body == first.body
    assert len(site.get(f"/v1/messages?client_id={client}")["data"]) == 1


def test_the_key_on_the_other_route_is_a_mismatch(paused: Site) -> None:
    client = paused.client()
    item = {"to": DELIVERED, "from": "ACME", "text": "hello"}
    body = {"client_id": client, "messages": [item]}
    assert paused.send(client, key="one").status == 202
    answer = paused.post("/v1/messages/batch", body, "one")
    assert (answer.status, answer.code) == (422, "idempotency_mismatch")
    assert paused.post("/v1/messages/batch", body, "many").status == 202
    answer = paused.send(client, key="many")
    assert (answer.status, answer.code) == (422, "idempotency_mismatch")


def test_a_key_is_one_clients_own(paused: Site) -> None:
    one, other = paused.client(), paused.client()
    first, second = paused.send(one, key="k"), paused.send(other, key="k")
    assert (first.status, second.status) == (202, 202)
    assert first.body["message_id"] != second.body["message_id"]


def test_no_key_is_no_promise(paused: Site) -> None:
    client = paused.client()
    assert paused.sent(client) != paused.sent(client)


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "A" * 255,
        "!~#$%&'()*+,-./:;<=>?@[]^_`{|}",
        "2dba851b-eb0b-4fbe-bf0d-58f07f3fff8e",
        "a,b",
        "\\",
        "'k'",
        '"',
        'a"b',
    ],
)
def test_visible_ascii_is_a_key(paused: Site, key: str) -> None:
    client = paused.client()
    first = with_key(paused, client, f" {key}")
    assert first.status == 202
    assert with_key(paused, client, key).body == first.body


def test_surrounding_quotes_and_spaces_are_no_part_of_a_key(paused: Site) -> None:
    client = paused.client()
    first = with_key(paused, client, "k-1")
    for spelling in ('"k-1"', ' "k-1" ', "  k-1  ", "\tk-1"):
        assert with_key(paused, client, spelling).body == first.body
    assert with_key(paused, client, '""k-1""').body != first.body
    assert with_key(paused, client, "K-1").body != first.body
    longest = with_key(paused, client, '"' + "x" * 255 + '"')
    assert longest.status == 202
    assert with_key(paused, client, "x" * 255).body == longest.body


@pytest.mark.parametrize(
    "key",
    ["", " ", '""', "x" * 256, '"' + "x" * 256 + '"', "a b", "a\tb", "é", "ключ",
     "a\r\nIdempotency-Key: b"],
)  # fmt: skip
def test_anything_else_is_no_key(paused: Site, key: str) -> None:
    client = paused.client()
    answer = with_key(paused, client, key)
    assert (answer.status, answer.fields) == (400, ["Idempotency-Key"])
    assert paused.money(client) == (10_000, 0, 0)


@pytest.mark.parametrize(
    ("more", "status"),
    [({"to": "x"}, 400), ({"text": "x" * 1531}, 400), ({"x": 1}, 400), ({"text": "x" * 161}, 402)],
)
def test_refusals_are_not_remembered(paused: Site, more: dict[str, Any], status: int) -> None:
    client = paused.client(5)
    assert paused.send(client, key="k", **more).status == status
    answer = paused.send(client, key="k")
    assert (answer.status, answer.body["credits"]) == (202, 0)


def test_an_unknown_clients_key_is_free_once_it_is_known(paused: Site) -> None:
    client = str(uuid.uuid4())
    assert paused.send(client, key="k").code == "unknown_client"
    paused.admin("POST", "clients", {"name": "late", "id": client, "credit_cents": 5})
    assert paused.send(client, key="k").status == 202


def test_a_key_outlives_the_end_of_its_message(paused: Site) -> None:
    client = paused.client()
    first = paused.send(client, key="k")
    identifier = first.body["message_id"]
    paused.post(f"/v1/messages/{identifier}/cancel", {"client_id": client})
    again = paused.send(client, key="k")
    assert (again.status, again.body) == (202, first.body)
    assert paused.look(identifier)["status"] == "CANCELLED"


@pytest.mark.parametrize("more", [{}, {"express": True}, {"reference": "r"}])
def test_one_key_at_once_is_one_message(site: Site, more: dict[str, Any]) -> None:
    client = site.client(1000)
    body = site.message(client, **more)
    answers = site.at_once(
        lambda _: site.alone("POST", "/v1/messages", body, {"Idempotency-Key": "k"}), range(40)
    )
    accepted = [answer.body for answer in answers if answer.status == 202]
    assert accepted
    assert all(body == accepted[0] for body in accepted)
    rest = {answer.code for answer in answers if answer.status != 202}
    assert rest <= {"idempotency_in_progress"}
    assert len(site.get(f"/v1/messages?client_id={client}")["data"]) == 1


def test_one_key_at_once_is_one_otp(site: Site) -> None:
    client, number = site.client(1000), new_number()
    body = site.message(client, otp=True, text=None, to=number)
    answers = site.at_once(
        lambda _: site.alone("POST", "/v1/messages", body, {"Idempotency-Key": "k"}), range(30)
    )
    confirmed = [answer.body for answer in answers if answer.status == 200]
    assert confirmed
    assert all(body == confirmed[0] for body in confirmed)
    rest = {answer.code for answer in answers if answer.status != 200}
    assert rest <= {"idempotency_in_progress"}
    assert len(site.handsets(number)) == 1


def test_many_keys_at_once_with_repeats_are_as_many_messages(paused: Site) -> None:
    client = paused.client(5 * 50)
    body = paused.message(client)

    def post(number: int) -> tuple[int, str]:
        key = {"Idempotency-Key": f"k{number % 50}"}
        answer = paused.alone("POST", "/v1/messages", body, key)
        assert answer.status == 202
        return number % 50, answer.body["message_id"]

    assert len(set(paused.at_once(post, range(150)))) == 50
    assert paused.money(client) == (0, 250, 0)


def test_keys_survive_a_crash(served: Any, tmp_path: Any) -> None:
    site = Site(served(), tmp_path / "none")
    client = site.client(1000)
    item = {"to": DELIVERED, "from": "ACME", "text": "hello"}
    many = {"client_id": client, "messages": [item, {**item, "to": "x"}, item]}

    def all_of_them() -> list[tuple[int, Any]]:
        answers = [
            site.send(client, key="one", reference="r"),
            site.post("/v1/messages/batch", many, "many"),
            site.otp(client, key="otp"),
            site.otp(client, key="refused", to=REFUSED),
        ]
        return [(answer.status, answer.body) for answer in answers]

    first = all_of_them()
    assert [status for status, _ in first] == [202, 202, 200, 503]
    site.served.stop(signal.SIGKILL)
    site.served = served()
    assert all_of_them() == first
    assert len(site.get(f"/v1/messages?client_id={client}")["data"]) == 5
    site.audit()


def test_keys_are_forgotten_after_a_time(site_of: SiteOf) -> None:
    site = site_of(limits__idempotency_s=1)
    client, number = site.client(), new_number()
    item = {"to": DELIVERED, "from": "ACME", "text": "hello"}

    def all_of_them(text: str) -> list[tuple[int, Any]]:
        many = {"client_id": client, "messages": [item], "text": text}
        answers = [
            site.send(client, key="one", text=text),
            site.post("/v1/messages/batch", many, "many"),
            site.otp(client, key="otp", to=number, text=text),
        ]
        return [(answer.status, answer.body) for answer in answers]

    first = all_of_them("first")
    assert [status for status, _ in first] == [202, 202, 200]
    site.wait(1.1)
    # Whatever they stood for, they are free for something else now.
    second = all_of_them("second")
    assert [status for status, _ in second] == [202, 202, 200]
    assert all_of_them("second") == second
    assert len(site.get(f"/v1/messages?client_id={client}")["data"]) == 6


async def test_one_key_in_one_turn_is_one_batch(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of(serve=False)
    client = await add_client(gateway, 5000)
    entrance, key = gateway.entrance, key_use("k", "batch", "the same")
    items = [entrance.draft(Wish(DELIVERED, "ACME", str(index))) for index in range(350)]
    for shard in gateway.shards:
        # Turns are long enough to hold the first step of several batches.
        shard._unit_s = 1e-6

    async def send() -> BatchProgress | Replay:
        answer = await entrance.submit_batch(client, items, key)
        if isinstance(answer, Replay):
            await entrance.resume_batch(client, items, key, answer)
        return answer

    first, *others = await asyncio.gather(*(send() for _ in range(3)), return_exceptions=True)
    assert isinstance(first, BatchProgress)
    assert first.batch.accepted == 350
    assert all(isinstance(other, IdempotencyInProgress) for other in others)
    assert (await account_of(gateway, client)).waiting == 350
    await assert_clean(gateway)
