"""How the gateway says that it works, what its pages show, its sandbox, and operators' receipts."""

import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from tests.conftest import SiteOf
from tests.outside import (
    CHATTY,
    DELIVERED,
    NO_RECEIPT,
    REFUSED,
    UNDELIVERED,
    Answer,
    Site,
    is_time,
    new_number,
)
from tests.support import DEMO, Served

ROUTES = {
    ("POST", "/v1/messages"), ("GET", "/v1/messages"), ("POST", "/v1/messages/batch"),
    ("POST", "/v1/messages/preview"), ("GET", "/v1/messages/{id}"),
    ("POST", "/v1/messages/{id}/cancel"), ("POST", "/v1/batches/{batch_id}/cancel"),
    ("POST", "/v1/otp/verify"), ("GET", "/v1/me"), ("GET", "/v1/me/statement"),
    ("GET", "/v1/reports"), ("POST", "/v1/providers/{name}/dlr"), ("GET", "/health"),
    ("GET", "/ready"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/metrics"),
    ("GET", "/v1/sandbox/messages"), ("DELETE", "/v1/sandbox/messages"),
    ("GET", "/v1/providers/{name}/dlr/{token}"), ("POST", "/v1/providers/{name}/dlr/{token}"),
}  # fmt: skip

is_sample = re.compile(r'smsgw_\w+(\{(\w+="[^"]*",?)*\})? [-+]?([0-9.e+-]+|Inf|NaN)').fullmatch


def dlr(site: Site, word: str | None, identifier: str | None, **more: Any) -> Answer:
    """Report something about an operator's id."""
    body = {"provider_message_id": identifier, "status": word, **more}
    return site.post("/v1/providers/mock/dlr", {k: v for k, v in body.items() if v is not None})


def submitted(site: Site, client: str) -> dict[str, Any]:
    """A message that the operator has, and of which it says nothing by itself."""
    return site.until(site.sent(client, to=NO_RECEIPT), "SENT")


# Health


def test_health_says_ok(site: Site) -> None:
    assert site.get("/health") == {"status": "ok"}


def test_ready_says_what_is_degraded(site_of: SiteOf) -> None:
    site = site_of(log__level="warning")
    assert site.get("/ready") == {"status": "ready", "degraded": []}
    client = site.client()
    for what in ({}, {"client_id": client}, {"provider": "mock"}):
        site.pause(**what)
        ready = site.get("/ready")
        assert ready["status"] == "ready"
        assert len(ready["degraded"]) == 1
        assert "paused" in ready["degraded"][0]
        site.resume(**what)
    assert site.get("/ready")["degraded"] == []


def test_without_an_operator_it_is_not_ready_and_messages_wait(site_of: SiteOf) -> None:
    site = site_of(providers__mock__enabled="false")
    answer = site.ask("GET", "/ready")
    assert (answer.status, answer.code) == (503, "not_ready")
    assert site.get("/health") == {"status": "ok"}
    identifier = site.sent(site.client())
    assert site.get(f"/v1/messages/{identifier}?wait_s=0.1")["status"] == "QUEUED"
    assert site.otp(site.client()).code == "otp_undeliverable"


# Without --dev


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts ``smsgw serve`` without ``--dev``."""
    running: list[Served] = []

    def start(**environ: str) -> Site:
        running.append(Served(tmp_path / "data", environ, dev=False))
        return Site(running[-1], tmp_path / "journal.jsonl")

    yield start
    for process in running:
        process.kill()


def test_without_dev_there_is_no_operator_no_sandbox_and_no_demo(
    plain: Callable[..., Site],
) -> None:
    site = plain()
    answer = site.ask("GET", "/ready")
    assert (answer.status, answer.code) == (503, "not_ready")
    assert site.send(DEMO).code == "unknown_client"
    assert site.ask("GET", "/v1/sandbox/messages").code == "unknown_route"
    assert site.ask("DELETE", "/v1/sandbox/messages").code == "unknown_route"
    assert dlr(site, "DELIVRD", "x").code == "unknown_route"
    described = site.get("/openapi.json")["paths"]
    assert "/v1/sandbox/messages" not in described
    assert "/v1/messages" in described
    client = site.client()
    assert site.look(site.sent(client))["status"] == "QUEUED"
    assert site.otp(client).body["submitted"] is False


def test_without_dev_receipts_need_a_token_and_numbers_have_limits(
    plain: Callable[..., Site],
) -> None:
    site = plain(SMSGW_PROVIDERS__MOCK__WEIGHT="2")
    assert site.get("/ready")["status"] == "ready"
    assert dlr(site, "DELIVRD", "x").code == "unknown_route"
    client = site.client()
    assert site.final(site.sent(client))["status"] == "DELIVERED"
    assert site.otp(client).status == 200
    answer = site.otp(client)
    assert (answer.status, answer.code) == (429, "too_many_requests")
    assert site.ask("GET", "/v1/sandbox/messages").code == "unknown_route"


# Pages


def test_metrics_are_prometheus_text_without_clients_or_numbers(site: Site) -> None:
    client = site.client()
    site.final(site.sent(client, to="+15005550006"))
    answer = site.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    for line in answer.body.splitlines():
        assert line.startswith("#") or is_sample(line), line
    assert re.search(r'smsgw_messages_accepted_total\{lane="regular"\} [1-9]', answer.body)
    assert re.search(r'smsgw_messages_final_total\{status="DELIVERED"\} [1-9]', answer.body)
    assert client not in answer.body
    assert "15005550006" not in answer.body


def test_metrics_count_final_states_however_they_came(site_of: SiteOf) -> None:
    site = site_of(limits__validity_s=0.2)

    def finals(status: str) -> float:
        body = site.ask("GET", "/metrics").body
        found = re.search(rf'smsgw_messages_final_total{{status="{status}"}} (\S+)', body)
        assert found
        return float(found[1])

    client = site.client()
    site.final(site.sent(client))
    site.final(site.sent(client, to=REFUSED))
    assert (finals("DELIVERED"), finals("FAILED_PERM")) == (1, 1)
    site.pause()
    expiring = site.sent(client)
    site.final(expiring)
    assert finals("EXPIRED") == 1
    cancelled = site.sent(client)
    site.post(f"/v1/messages/{cancelled}/cancel", {"client_id": client})
    assert finals("CANCELLED") == 1


def test_the_docs_need_nothing_from_elsewhere(site: Site) -> None:
    page = site.ask("GET", "/docs")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.body)
    assert parts
    for part in parts:
        assert not re.match("(https?:)?//", part), part
        if not part.startswith("data:"):
            assert site.ask("GET", f"/{part.lstrip('/')}").status == 200, part
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_openapi_is_valid_and_lists_every_route(site: Site) -> None:
    described = site.get("/openapi.json")
    assert described["openapi"].startswith("3.1.")
    validate(described)
    methods = {
        (method.upper(), path)
        for path, operations in described["paths"].items()
        for method in operations
    }
    assert methods == ROUTES


# The sandbox


def test_the_sandbox_shows_what_handsets_received_newest_first(site: Site) -> None:
    client, number = site.client(), new_number()
    texts = ["first", "second " + "x" * 160]
    identifiers = []
    for text in texts:
        identifiers.append(site.sent(client, to=number, text=text, sender="12345"))
        site.final(identifiers[-1])
    page = site.get(f"/v1/sandbox/messages?to=%2B{number[1:]}")
    assert page.keys() == {"data", "next_cursor"}
    for row in page["data"]:
        assert row.keys() == {"message_id", "to", "from", "text", "parts", "received_at"}
        assert is_time(row["received_at"])
        assert (row["to"], row["from"]) == (number, "12345")
    assert [row["message_id"] for row in page["data"]] == identifiers[::-1]
    assert [row["text"] for row in page["data"]] == texts[::-1]
    assert [row["parts"] for row in page["data"]] == [2, 1]
    assert site.get("/v1/sandbox/messages")["data"][0] == page["data"][0]
    # The plus of a number may come as it is, too.
    assert site.get(f"/v1/sandbox/messages?to={number}") == page


def test_the_sandbox_waits_for_one_that_matches(site: Site) -> None:
    client, number = site.client(), new_number()
    body = site.message(client, to=number)

    def work(method: str) -> Answer:
        if method == "GET":
            return site.alone("GET", f"/v1/sandbox/messages?to=%2B{number[1:]}&wait_s=30")
        return site.alone("POST", "/v1/messages", body)

    looked, also, sent = site.at_once(work, ["GET", "GET", "POST"])
    [row] = looked.body["data"]
    assert row["message_id"] == sent.body["message_id"]
    assert also.body == looked.body


def test_the_sandbox_keeps_five_hundred_and_can_be_emptied(site_of: SiteOf) -> None:
    site = site_of(limits__batch_messages_max=600)
    client, last = site.client(), new_number()
    items = [{"to": DELIVERED, "from": "ACME", "text": str(index)} for index in range(520)]
    assert site.post("/v1/messages/batch", {"client_id": client, "messages": items}).status == 202
    site.final(site.sent(client, to=last))
    for row in site.get(f"/v1/messages?client_id={client}&limit=500")["data"]:
        site.final(row["id"])
    rows = site.get("/v1/sandbox/messages")["data"]
    assert len(rows) == 500
    times = [row["received_at"] for row in rows]
    assert times == sorted(times, reverse=True)
    answer = site.ask("DELETE", "/v1/sandbox/messages")
    assert (answer.status, answer.body) == (204, None)
    assert site.get("/v1/sandbox/messages") == {"data": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("query", "field"), [("wait_s=61", "wait_s"), ("wait_s=x", "wait_s"), ("x=1", "x")]
)
def test_a_wrong_sandbox_parameter_is_named(site: Site, query: str, field: str) -> None:
    answer = site.ask("GET", f"/v1/sandbox/messages?{query}")
    assert (answer.status, answer.fields) == (400, [field])


def test_what_is_refused_or_undelivered_reaches_no_handset(site: Site) -> None:
    client = site.client()
    identifiers = [site.sent(client, to=to) for to in (REFUSED, UNDELIVERED)]
    for identifier in identifiers:
        site.final(identifier)
    assert site.handsets(REFUSED) == site.handsets(UNDELIVERED) == []


# Receipts


@pytest.mark.parametrize(
    ("words", "status", "reason", "charged"),
    [
        ("DELIVERED DELIVRD delivered Delivrd", "DELIVERED", None, 5),
        ("UNDELIV UNDELIVERED UNDELIVERABLE REJECTED REJECTD DELETED FAILED FAILED_PERM undeliv",
         "FAILED_PERM", "undelivered", 0),
        ("EXPIRED expired", "EXPIRED", "expired_by_operator", 0),
    ],
)  # fmt: skip
def test_final_words_end_a_message(
    site: Site, words: str, status: str, reason: str | None, charged: int
) -> None:
    client = site.client(1000)
    for count, word in enumerate(words.split(), 1):
        message = submitted(site, client)
        answer = dlr(site, word, message["provider_message_id"], reason="001", timestamp="now")
        assert (answer.status, answer.body) == (204, None)
        message = site.look(message["id"])
        assert (message["status"], message["reason"], message["charged"]) == (
            status, reason, charged,
        )  # fmt: skip
        assert site.money(client) == (1000 - charged * count, 0, charged * count)


@pytest.mark.parametrize(
    "word",
    [
        "ENROUTE",
        "ACCEPTD",
        "ACCEPTED",
        "SENT",
        "UNKNOWN",
        "FAILED_TEMP",
        "enroute",
        "BLORP",
        "🙂",
        " ",
    ],
)
def test_all_other_words_are_events(site: Site, word: str) -> None:
    client = site.client(1000)
    message = submitted(site, client)
    before = len(message["events"])
    assert dlr(site, word, message["provider_message_id"]).status == 204
    after = site.look(message["id"])
    assert (after["status"], after["charged"]) == ("SENT", 0)
    assert len(after["events"]) == before + 1
    assert site.money(client) == (995, 5, 0)
    assert dlr(site, "DELIVRD", message["provider_message_id"]).status == 204
    assert site.look(message["id"])["status"] == "DELIVERED"


def test_what_comes_after_the_end_is_an_event(site: Site) -> None:
    client = site.client(1000)
    message = submitted(site, client)
    for word in ("DELIVRD", "UNDELIV", "DELIVRD", "EXPIRED"):
        assert dlr(site, word, message["provider_message_id"]).status == 204
    after = site.look(message["id"])
    assert (after["status"], after["reason"], after["charged"]) == ("DELIVERED", None, 5)
    assert len(after["events"]) == len(message["events"]) + 4
    assert site.money(client) == (995, 0, 5)
    message = submitted(site, client)
    for word in ("UNDELIV", "DELIVRD"):
        dlr(site, word, message["provider_message_id"])
    assert site.look(message["id"])["status"] == "FAILED_PERM"
    assert site.money(client) == (995, 0, 5)


def test_receipts_at_once_capture_once(site: Site) -> None:
    client = site.client(1000)
    message = submitted(site, client)
    words = ["DELIVRD", "UNDELIV", "EXPIRED", "DELIVRD", "ENROUTE"] * 6

    def report(word: str) -> int:
        body = {"provider_message_id": message["provider_message_id"], "status": word}
        return site.alone("POST", "/v1/providers/mock/dlr", body).status

    assert set(site.at_once(report, words)) == {204}
    after = site.look(message["id"])
    charged = 5 if after["status"] == "DELIVERED" else 0
    assert after["charged"] == charged
    assert site.money(client) == (1000 - charged, 0, charged)
    site.audit()


def test_an_unknown_id_is_kept(site: Site) -> None:
    before = site.admin("GET", "receipts/parked")["data"]
    identifier = str(uuid.uuid4())
    assert dlr(site, "DELIVRD", identifier, reason="000").status == 204
    parked = site.admin("GET", "receipts/parked")["data"]
    assert len(parked) == len(before) + 1
    assert identifier in [row["provider_message_id"] for row in parked]


def test_a_receipt_that_comes_first_is_matched_later(site_of: SiteOf) -> None:
    site = site_of(providers__mock__latency_ms=300)
    client = site.client(1000)
    # The mock operator's ids are made of the message's number and attempt.
    known = submitted(site, client)
    body = site.message(client, to=NO_RECEIPT)
    identifier = site.post("/v1/messages", body).body["message_id"]
    guess = guessed(known, identifier)
    assert dlr(site, "DELIVRD", guess).status == 204
    message = site.final(identifier)
    assert (message["status"], message["provider_message_id"]) == ("DELIVERED", guess)
    assert site.money(client) == (990, 5, 5)


def guessed(known: dict[str, Any], identifier: str) -> str:
    """The operator's id of a message, which the mock makes of the time and place in its id."""
    value = uuid.UUID(identifier).int
    epoch_ms = 1_735_689_600_000
    number = ((value >> 80) - epoch_ms) << 22 | (value >> 40) & (1 << 22) - 1
    earlier = uuid.UUID(known["id"]).int
    before = ((earlier >> 80) - epoch_ms) << 22 | (earlier >> 40) & (1 << 22) - 1
    assert known["provider_message_id"] == f"{before:x}-1"
    return f"{number:x}-1"


@pytest.mark.parametrize(
    ("body", "field"),
    [({"status": "DELIVRD"}, "provider_message_id"), ({"provider_message_id": "x"}, "status"),
     ({"provider_message_id": 1, "status": "DELIVRD"}, "provider_message_id"),
     ({"provider_message_id": "", "status": "DELIVRD"}, "provider_message_id"),
     ({"provider_message_id": "x" * 256, "status": "DELIVRD"}, "provider_message_id"),
     ({"provider_message_id": "a\x00b", "status": "DELIVRD"}, "provider_message_id"),
     ({"provider_message_id": "x", "status": ""}, "status"),
     ({"provider_message_id": "x", "status": 2}, "status"),
     ({"provider_message_id": "x", "status": "a\x00"}, "status"),
     ({"provider_message_id": "x", "status": "SENT", "reason": 1}, "reason"),
     ({"provider_message_id": "x", "status": "SENT", "err": "1"}, "err")],
)  # fmt: skip
def test_a_wrong_receipt_is_named(site: Site, body: dict[str, Any], field: str) -> None:
    answer = site.post("/v1/providers/mock/dlr", body)
    assert (answer.status, answer.fields) == (400, [field])


def test_there_is_a_route_for_known_operators_only(site: Site) -> None:
    body = {"provider_message_id": "x", "status": "DELIVRD"}
    for name in ("other", "MOCK", "", "mock%00", "..", "mock/x"):
        answer = site.post(f"/v1/providers/{name}/dlr", body)
        assert (answer.status, answer.code) == (404, "unknown_route")


def test_a_token_is_needed_where_there_is_one(site_of: SiteOf) -> None:
    site = site_of(providers__mock__receipt_token="s3cret-token")
    client = site.client(1000)
    message = submitted(site, client)
    body = {"provider_message_id": message["provider_message_id"], "status": "DELIVRD"}
    for header in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer other",
        "s3cret-token",
        "Basic s3cret-token",
        "Bearer s3cret-token2",
        "Bearer S3CRET-TOKEN",
        "Bearer s3cret-toke",
        "Bearer é",
    ):
        headers = {} if header is None else {"Authorization": header}
        answer = site.ask("POST", "/v1/providers/mock/dlr", body, headers)
        assert (answer.status, answer.code) == (401, "invalid_token"), header
        # Nothing is said about a body before it is known who sent it.
        answer = site.ask("POST", "/v1/providers/mock/dlr", {"x": 1}, headers)
        assert answer.status == 401
    assert site.look(message["id"])["status"] == "SENT"
    headers = {"Authorization": "Bearer s3cret-token"}
    assert site.ask("POST", "/v1/providers/mock/dlr", body, headers).status == 204
    assert site.look(message["id"])["status"] == "DELIVERED"


def test_chatty_operators_change_nothing_after_the_end(site: Site) -> None:
    client = site.client(1000)
    identifier = site.sent(client, to=CHATTY)
    # Accepted, submitted, delivered, and three receipts too many.
    message = site.until(identifier, "DELIVERED", events=6)
    assert message["charged"] == 5
    assert site.money(client) == (995, 0, 5)
