"""The whole trip of a message, for each of the mock operator's numbers and each way of billing."""

import itertools
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SiteOf
from tests.outside import (
    ANSWER_LOST,
    CHATTY,
    DELIVERED,
    FAILS_ALWAYS,
    FAILS_ONCE,
    NO_RECEIPT,
    REFUSED,
    SLOW,
    UNDELIVERED,
    Site,
    columns,
    is_time,
    moment,
    new_number,
)
from tests.support import Served

OTHER = "+989121234567"
# Of each number: final status, reason, share that is charged, attempts, whether a handset gets it.
TABLE: dict[str, tuple[str, str | None, bool, int, bool]] = {
    REFUSED: ("FAILED_PERM", "rejected_by_operator", False, 1, False),
    FAILS_ONCE: ("DELIVERED", None, True, 2, True),
    UNDELIVERED: ("FAILED_PERM", "undelivered", False, 1, False),
    NO_RECEIPT: ("UNKNOWN", "receipt_timeout", False, 1, True),
    DELIVERED: ("DELIVERED", None, True, 1, True),
    CHATTY: ("DELIVERED", None, True, 1, True),
    FAILS_ALWAYS: ("FAILED_PERM", "retries_exhausted", False, 3, False),
    OTHER: ("DELIVERED", None, True, 1, True),
    SLOW: ("DELIVERED", None, True, 1, True),
}
LANES = {"regular": 5, "express": 7}
Sent = dict[tuple[str, str], tuple[str, str]]


@pytest.fixture(scope="module")
def quick(site_of: SiteOf) -> Site:
    """A gateway that tries again soon and gives up on receipts before long."""
    return site_of(delivery__retry_base_s=0.05, delivery__receipt_timeout_s=1)


@pytest.fixture(scope="module")
def uncertain(site_of: SiteOf) -> tuple[Site, str, str]:
    """A message that was not answered in time, but will be: its gateway, client and id."""
    site = site_of(providers__mock__response_timeout_s=0.2)
    client = site.client(100)
    identifier = site.sent(client, to=SLOW)
    site.until(identifier, "UNCERTAIN")
    assert site.money(client) == (95, 5, 0)
    assert [row["id"] for row in site.admin("GET", "messages/uncertain")["data"]] == [identifier]
    return site, client, identifier


@pytest.fixture(scope="module")
def sent(quick: Site, uncertain: object) -> Sent:
    """One message of two parts to each number in each lane: its client and its id.

    What takes ten seconds is sent first of all, and looked at last.
    """
    found: Sent = {}
    for lane, number in itertools.product(LANES, TABLE):
        client = quick.client(100)
        identifier = quick.sent(
            client, to=number, text="x" * 161, express=lane == "express", reference=lane
        )
        found[lane, number] = (client, identifier)
    return found


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("number", TABLE)
def test_a_number_does_what_it_is_there_for(
    quick: Site, sent: Sent, lane: str, number: str
) -> None:
    client, identifier = sent[lane, number]
    status, reason, charged, attempts, received = TABLE[number]
    attempts = 5 if (lane, number) == ("express", FAILS_ALWAYS) else attempts
    cost = 2 * LANES[lane]
    message = quick.final(identifier)
    assert columns([message], "status", "reason", "attempts", "cost", "charged", "parts") == [
        (status, reason, attempts, cost, cost if charged else 0, 2)
    ]
    assert message["provider"] == "mock"
    assert (message["provider_message_id"] is None) == (number in (REFUSED, FAILS_ALWAYS))
    assert (message["submitted_at"] is None) == (number in (REFUSED, FAILS_ALWAYS))
    assert (message["last_error"] is None) == (status == "DELIVERED" or number == NO_RECEIPT)
    assert message["express_missed"] is False
    assert quick.money(client) == ((100 - cost, 0, cost) if charged else (100, 0, 0))
    entries = columns(quick.statement(client), "kind", "amount", "held")
    ending = ("capture", 0, -cost) if charged else ("release", cost, -cost)
    assert entries == [ending, ("hold", -cost, cost), ("topup", 100, 0)]
    lines = quick.journal_of(identifier)
    assert columns(lines, "message_id", "to", "attempt", "part") == [
        (identifier, number, attempt, part)
        for attempt, part in itertools.product(range(1, attempts + 1), (1, 2))
    ]
    for line in lines:
        assert line.keys() == {"at", "message_id", "attempt", "part", "to"}
        assert is_time(line["at"])
    on_handset = [row["message_id"] for row in quick.handsets(number)]
    assert on_handset.count(identifier) == received


@pytest.mark.parametrize("number", [SLOW, DELIVERED, CHATTY, REFUSED])
def test_what_is_final_never_changes(quick: Site, sent: Sent, number: str) -> None:
    _, identifier = sent["regular", number]
    before = quick.final(identifier)
    for word in ("UNDELIV", "DELIVRD", "EXPIRED"):
        if before["provider_message_id"]:
            body = {"provider_message_id": before["provider_message_id"], "status": word}
            assert quick.post("/v1/providers/mock/dlr", body).status == 204
    after = quick.look(identifier)
    for changing in ("events", "updated_at"):
        del before[changing], after[changing]
    assert after == before


def test_the_slow_operator_took_ten_seconds(quick: Site, sent: Sent) -> None:
    message = quick.final(sent["regular", SLOW][1])
    took = moment(message["submitted_at"]) - moment(message["created_at"])
    assert timedelta(seconds=9.9) < took


def test_retries_tell_what_went_wrong(quick: Site, sent: Sent) -> None:
    message = quick.final(sent["regular", FAILS_ALWAYS][1])
    failed = [event for event in message["events"] if event["kind"] == "failed_temporarily"]
    assert len(failed) == 2
    assert message["last_error"]


def test_no_number_closes_the_operator_to_others(quick: Site) -> None:
    client = quick.client()
    for number in (REFUSED, FAILS_ALWAYS, UNDELIVERED):
        for _ in range(12):
            quick.sent(client, to=number)
    assert quick.final(quick.sent(client))["status"] == "DELIVERED"
    assert quick.get("/ready") == {"status": "ready", "degraded": []}


def test_every_cent_is_where_it_belongs(quick: Site, sent: Sent) -> None:
    for _, identifier in sent.values():
        quick.final(identifier)
    quick.audit()


def test_a_message_waits_between_its_tries(site_of: SiteOf) -> None:
    site = site_of(delivery__retry_base_s=3600)
    client = site.client(100)
    identifier = site.sent(client, to=FAILS_ONCE)
    message = site.until(identifier, "FAILED_TEMP")
    assert columns([message], "attempts", "reason", "charged") == [(1, None, 0)]
    assert message["last_error"]
    assert site.money(client) == (95, 5, 0)


# An answer that is lost


@pytest.mark.parametrize(
    ("policy", "number", "expected"),
    [
        ("wait", ANSWER_LOST, ("UNKNOWN", "uncertain", 1)),
        ("wait", SLOW, ("UNKNOWN", "uncertain", 1)),
        ("fail", ANSWER_LOST, ("UNKNOWN", "uncertain", 1)),
        ("resend", ANSWER_LOST, ("FAILED_PERM", "retries_exhausted", 3)),
    ],
)
def test_what_the_operator_does_not_answer_is_decided_by_policy(
    site_of: SiteOf, policy: str, number: str, expected: tuple[str, str, int]
) -> None:
    site = site_of(
        delivery__on_uncertain=policy,
        delivery__uncertain_s=0.5,
        delivery__retry_base_s=0.05,
        providers__mock__response_timeout_s=0.2,
    )
    client = site.client(100)
    identifier = site.sent(client, to=number)
    if policy == "wait":
        site.until(identifier, "UNCERTAIN")
    message = site.final(identifier)
    assert columns([message], "status", "reason", "attempts") == [expected]
    uncertain = [event for event in message["events"] if event["kind"] == "uncertain"]
    assert len(uncertain) == (policy == "wait")
    assert site.money(client) == (100, 0, 0)
    assert len(site.journal_of(identifier)) == expected[2]
    site.audit()


def test_a_late_answer_settles_what_was_uncertain(uncertain: tuple[Site, str, str]) -> None:
    site, client, identifier = uncertain
    message = site.final(identifier)
    assert (message["status"], message["attempts"], message["charged"]) == ("DELIVERED", 1, 5)
    assert site.money(client) == (95, 0, 5)


# Billing


@pytest.mark.parametrize(
    ("number", "status", "charged"),
    [(DELIVERED, "DELIVERED", 5), (UNDELIVERED, "FAILED_PERM", 5), (NO_RECEIPT, "UNKNOWN", 5),
     (REFUSED, "FAILED_PERM", 0)],
)  # fmt: skip
def test_money_can_be_captured_once_the_operator_has_it(
    site_of: SiteOf, number: str, status: str, charged: int
) -> None:
    site = site_of(billing__capture_on="sent", delivery__receipt_timeout_s=0.3)
    client = site.client(100)
    message = site.final(site.sent(client, to=number))
    assert (message["status"], message["charged"]) == (status, charged)
    assert site.money(client) == (100 - charged, 0, charged)
    site.audit()


def test_money_is_captured_before_any_receipt_where_sent_is_enough(site_of: SiteOf) -> None:
    site = site_of(billing__capture_on="sent", providers__mock__receipt_delay_ms=600)
    client = site.client(100)
    identifier = site.sent(client, to=UNDELIVERED)
    message = site.until(identifier, "SENT")
    assert message["charged"] == 5
    assert site.money(client) == (95, 0, 5)
    message = site.final(identifier)
    assert (message["status"], message["reason"], message["charged"]) == (
        "FAILED_PERM", "undelivered", 5,
    )  # fmt: skip
    assert site.money(client) == (95, 0, 5)


def test_without_receipts_sent_is_the_end(site_of: SiteOf) -> None:
    site = site_of(providers__mock__receipts="false")
    client = site.client(100)
    message = site.final(site.sent(client))
    assert columns([message], "status", "reason", "charged", "attempts") == [
        ("UNKNOWN", "no_receipts", 5, 1)
    ]
    answer = site.otp(client)
    assert (answer.status, answer.body["status"], answer.body["confirmed_by"]) == (
        200, "SENT", "operator",
    )  # fmt: skip
    message = site.final(answer.body["message_id"])
    assert (message["status"], message["reason"]) == ("UNKNOWN", "no_receipts")
    assert site.money(client) == (90, 0, 10)
    site.audit()


def test_an_express_promise_that_is_missed_is_paid_back(site_of: SiteOf) -> None:
    site = site_of(express__guarantee_s=0.2, providers__mock__latency_ms=400)
    client = site.client(100)
    message = site.final(site.sent(client, express=True, text="x" * 161))
    assert columns([message], "status", "express_missed", "cost", "charged") == [
        ("DELIVERED", True, 14, 10)
    ]
    assert moment(message["submitted_at"]) > moment(message["submit_by"])
    assert site.money(client) == (90, 0, 10)
    capture, release = sorted(site.statement(client)[:2], key=lambda entry: entry["kind"])
    assert columns([capture, release], "kind", "amount", "held") == [
        ("capture", 0, -10),
        ("release", 4, -4),
    ]
    assert "smsgw_express_missed_total 1.0" in site.ask("GET", "/metrics").body
    site.audit()


# Restarts


def test_the_same_number_does_the_same_after_a_restart_and_nothing_is_stranded(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    environ = {
        "SMSGW_PROVIDERS__MOCK__JOURNAL": str(journal),
        "SMSGW_PROVIDERS__MOCK__RECEIPT_DELAY_MS": "60000",
    }
    site = Site(served(environ), journal)
    client = site.client(100)
    identifiers = [site.sent(client, to=number) for number in (DELIVERED, UNDELIVERED, CHATTY)]
    for identifier in identifiers:
        site.until(identifier, "SENT")
    site.served.stop(signal.SIGKILL)
    del environ["SMSGW_PROVIDERS__MOCK__RECEIPT_DELAY_MS"]
    site.served = served(environ)
    found: list[dict[str, Any]] = [site.final(identifier) for identifier in identifiers]
    assert columns(found, "status", "attempts") == [
        ("DELIVERED", 1),
        ("FAILED_PERM", 1),
        ("DELIVERED", 1),
    ]
    assert site.money(client) == (90, 0, 10)
    assert all(len(site.journal_of(identifier)) == 1 for identifier in identifiers)
    assert site.final(site.sent(client, to=REFUSED))["reason"] == "rejected_by_operator"
    site.audit()


# Pausing


def test_a_paused_client_waits_while_others_go_on(site_of: SiteOf) -> None:
    site = site_of(log__level="warning")
    client, other, number = site.client(), site.client(), new_number()
    site.pause(client_id=client)
    waiting = [site.sent(client, to=number) for _ in range(3)]
    assert site.final(site.sent(other))["status"] == "DELIVERED"
    assert site.look(waiting[0])["status"] == "QUEUED"
    cancelled = site.post(f"/v1/messages/{waiting[1]}/cancel", {"client_id": client})
    assert cancelled.status == 200
    site.resume(client_id=client)
    assert site.final(waiting[0])["status"] == site.final(waiting[2])["status"] == "DELIVERED"
    received = [row["message_id"] for row in site.handsets(number)]
    assert received == [waiting[2], waiting[0]]
    site.audit()
