"""A client's own money: what it has, every entry that made it so, and totals that agree."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import SiteOf
from tests.outside import (
    NO_RECEIPT,
    REFUSED,
    UNDELIVERED,
    Site,
    ahead,
    columns,
    is_time,
    is_uuid,
)

NOBODY = "00000000-0000-4000-8000-000000000000"
AMOUNTS = ("messages", "parts", "held", "charged", "released")


@pytest.fixture(scope="module")
def busy(site: Site) -> str:
    """A client with messages of every end, and one that is still under way."""
    client = site.client(1000)
    site.sent(client, sender="ACME", reference="r")
    site.sent(client, sender="12345", text="x" * 161)
    site.sent(client, sender="12345", to=REFUSED)
    site.sent(client, to=UNDELIVERED)
    site.sent(client, express=True)
    site.otp(client)
    scheduled = site.sent(client, send_at=ahead(600), sender="=A1+1")
    site.post(f"/v1/messages/{scheduled}/cancel", {"client_id": client})
    site.otp(client, to=REFUSED)
    for row in site.get(f"/v1/messages?client_id={client}")["data"]:
        site.final(row["id"])
    open_one = site.sent(client, to=NO_RECEIPT)
    site.until(open_one, "SENT")
    site.admin("POST", f"clients/{client}/add", {"amount_cents": 500, "note": "thanks"})
    site.admin("POST", f"clients/{client}/deduct", {"amount_cents": 100})
    return client


def test_a_client_sees_itself_and_its_money(site: Site) -> None:
    client = site.client(1000)
    me = site.get(f"/v1/me?client_id={client}")
    assert me.keys() == {"id", "name", "credits", "held", "charged", "created_at"}
    assert columns([me], "id", "name", "credits", "held", "charged") == [
        (client, "Test", 1000, 0, 0)
    ]
    assert is_time(me["created_at"])


def test_the_demo_clients_are_there(site_of: SiteOf) -> None:
    fresh = site_of(log__level="warning")
    for number in range(11):
        me = fresh.get(f"/v1/me?client_id=550e8400-e29b-41d4-a716-4466554400{number:02d}")
        assert me["credits"] == (50_000 if number else 500_000)


@pytest.mark.parametrize("path", ["/v1/me", "/v1/me/statement", "/v1/reports"])
def test_every_account_route_is_of_one_known_client(site: Site, path: str) -> None:
    assert site.ask("GET", path).fields == ["client_id"]
    for wrong in ("x", "", NOBODY[:-1], NOBODY.replace("-", "")):
        answer = site.ask("GET", f"{path}?client_id={wrong}")
        assert (answer.status, answer.fields) == (400, ["client_id"])
    answer = site.ask("GET", f"{path}?client_id={NOBODY}")
    assert (answer.status, answer.code) == (404, "unknown_client")
    assert site.ask("GET", f"{path}?client_id={NOBODY}&x=1").fields == ["x"]
    assert site.ask("GET", f"{path}?client_id={NOBODY}&client_id={NOBODY}").status == 400


# The statement


def test_a_new_client_without_credit_has_no_entry(site: Site) -> None:
    client = site.client(0)
    assert site.get(f"/v1/me/statement?client_id={client}") == {"data": [], "next_cursor": None}


def test_each_movement_is_an_entry(site: Site) -> None:
    client = site.client(1000)
    delivered, failed = site.sent(client), site.sent(client, to=REFUSED)
    for identifier in (delivered, failed):
        site.final(identifier)
    site.admin("POST", f"clients/{client}/add", {"amount_cents": 50, "note": "thanks"})
    site.admin("POST", f"clients/{client}/deduct", {"amount_cents": 20, "note": "sorry"})
    entries = site.statement(client)
    for entry in entries:
        required = {"id", "at", "kind", "amount", "held", "balance_after"}
        assert required <= entry.keys() <= required | {"message_id", "note"}
        assert is_uuid(entry["id"])
        assert is_time(entry["at"])
    assert len({entry["id"] for entry in entries}) == len(entries)
    of_message = {
        identifier: columns(
            [entry for entry in entries if entry.get("message_id") == identifier],
            "kind", "amount", "held",
        )
        for identifier in (delivered, failed)
    }  # fmt: skip
    assert of_message == {
        delivered: [("capture", 0, -5), ("hold", -5, 5)],
        failed: [("release", 5, -5), ("hold", -5, 5)],
    }
    deduct, topup = entries[:2]
    assert columns([deduct, topup], "kind", "amount", "held", "note") == [
        ("deduct", -20, 0, "sorry"),
        ("topup", 50, 0, "thanks"),
    ]
    assert columns(entries[-1:], "kind", "amount", "balance_after") == [("topup", 1000, 1000)]
    assert all("message_id" not in entry for entry in (deduct, topup, entries[-1]))


def test_each_column_adds_up(site: Site, busy: str) -> None:
    entries = site.statement(busy)
    available, held, charged = site.money(busy)
    assert sum(entry["amount"] for entry in entries) == available
    assert sum(entry["held"] for entry in entries) == held == 5
    captured = [entry["held"] for entry in entries if entry["kind"] == "capture"]
    assert -sum(captured) == charged
    balance = 0
    for entry in reversed(entries):
        balance += entry["amount"]
        assert entry["balance_after"] == balance
    assert [entry["at"] for entry in entries] == sorted(
        (entry["at"] for entry in entries), reverse=True
    )
    assert {entry["kind"] for entry in entries} == {
        "topup", "deduct", "hold", "capture", "release",
    }  # fmt: skip


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_statement_pages_are_stable_while_entries_arrive(site: Site, busy: str, limit: int) -> None:
    before = site.statement(busy)

    def add() -> None:
        site.admin("POST", f"clients/{busy}/add", {"amount_cents": 1})

    path = f"/v1/me/statement?client_id={busy}"
    assert site.pages(path, limit, add) == before


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=501", "limit"), ("cursor=x", "cursor"), ("cursor=", "cursor"),
     ("since=2020-01-01T00:00:00Z", "since")],
)  # fmt: skip
def test_a_wrong_statement_parameter_is_named(site: Site, query: str, field: str) -> None:
    answer = site.ask("GET", f"/v1/me/statement?client_id={site.client()}&{query}")
    assert (answer.status, answer.fields) == (400, [field])


def test_a_cursor_of_messages_is_none_of_the_statement(site: Site, busy: str) -> None:
    page = site.get(f"/v1/messages?client_id={busy}&limit=1")
    answer = site.ask("GET", f"/v1/me/statement?client_id={busy}&cursor={page['next_cursor']}")
    assert answer.fields == ["cursor"]


# Reports


def report(site: Site, client: str, more: str = "") -> Any:
    found = site.get(f"/v1/reports?client_id={client}{more}")
    assert found.keys() == {"data", "totals"}
    return found


def test_a_report_of_nothing_is_empty(site: Site) -> None:
    assert report(site, site.client()) == {
        "data": [],
        "totals": {
            "messages": 0, "parts": 0, "held": 0, "charged": 0, "released": 0, "delivered_share": 0,
        },
    }  # fmt: skip


@pytest.mark.parametrize("group_by", ["day", "status", "sender"])
def test_totals_equal_the_list(site: Site, busy: str, group_by: str) -> None:
    messages = site.pages(f"/v1/messages?client_id={busy}", 500)
    key_of = {
        "day": lambda row: row["created_at"][:10],
        "status": lambda row: row["status"],
        "sender": lambda row: row["from"],
    }[group_by]
    found = report(site, busy, f"&group_by={group_by}")
    keys = [row["key"] for row in found["data"]]
    assert len(keys) == len(set(keys))
    assert set(keys) == {key_of(row) for row in messages}
    for row in [*found["data"], {"key": None, **found["totals"]}]:
        assert row.keys() == {"key", *AMOUNTS, "delivered_share"}
        mine = [message for message in messages if row["key"] in (None, key_of(message))]
        delivered = [message for message in mine if message["status"] == "DELIVERED"]
        under_way = [message for message in mine if message["status"] == "SENT"]
        assert row["messages"] == len(mine)
        assert row["parts"] == sum(message["parts"] for message in mine)
        assert row["charged"] == sum(message["charged"] for message in mine)
        assert row["held"] == sum(message["cost"] for message in under_way)
        assert row["released"] == sum(
            message["cost"] - message["charged"] for message in mine if message["final_at"]
        )
        assert row["delivered_share"] == pytest.approx(len(delivered) / len(mine), abs=1e-4)
    assert "key" not in found["totals"]
    _, held, charged = site.money(busy)
    assert (found["totals"]["held"], found["totals"]["charged"]) == (held, charged)


def test_a_report_is_by_day_unless_told(site: Site, busy: str) -> None:
    assert report(site, busy) == report(site, busy, "&group_by=day")


def test_a_report_stays_true_while_its_messages_are_counted(site: Site) -> None:
    client = site.client(1000)
    identifiers = [site.sent(client, to=NO_RECEIPT) for _ in range(3)]
    provider_ids = [
        site.until(identifier, "SENT")["provider_message_id"] for identifier in identifiers
    ]
    expected = {
        "messages": 3, "parts": 3, "held": 15, "charged": 0, "released": 0, "delivered_share": 0,
    }  # fmt: skip
    for _ in range(12):
        assert report(site, client)["totals"] == expected
        site.wait(0.5)
    receipt = {"provider_message_id": provider_ids[0], "status": "DELIVRD"}
    assert site.post("/v1/providers/mock/dlr", receipt).status == 204
    assert report(site, client)["totals"] == {
        "messages": 3, "parts": 3, "held": 10, "charged": 5, "released": 0,
        "delivered_share": pytest.approx(1 / 3, abs=1e-4),
    }  # fmt: skip


def test_since_and_until_are_days_or_times(site: Site, busy: str) -> None:
    whole = report(site, busy)
    today = datetime.now(UTC).date()
    tomorrow, yesterday = today + timedelta(days=1), today - timedelta(days=1)
    for more in (
        f"&since={yesterday}",
        f"&until={tomorrow}",
        f"&since={yesterday}&until={tomorrow}",
        f"&since={yesterday}T00:00:00Z&until={tomorrow}T23:59:59.999Z",
        "&since=0001-01-01&until=9999-12-31",
        "&since=1970-01-01",
    ):
        assert report(site, busy, more) == whole, more
    for more in ("&since=2020-01-01&until=2020-12-31", "&since=2090-01-01&until=2200-01-01"):
        assert report(site, busy, more)["totals"]["messages"] == 0


@pytest.mark.parametrize(
    ("query", "field"),
    [("group_by=month", "group_by"), ("group_by=", "group_by"), ("since=x", "since"),
     ("until=2020-13-01", "until"), ("since=2020-01-02&until=2020-01-01", "since"),
     ("since=20200101", "since"), ("until=", "until"), ("from=2020-01-01", "from"),
     ("since=2020-02-30", "since"), ("since=10000-01-01", "since")],
)  # fmt: skip
def test_a_wrong_report_parameter_is_named(site: Site, query: str, field: str) -> None:
    answer = site.ask("GET", f"/v1/reports?client_id={site.client()}&{query}")
    assert (answer.status, answer.fields) == (400, [field])


@pytest.mark.parametrize("accept", ["text/csv", "text/csv; charset=utf-8", "text/csv, */*;q=0.1"])
def test_csv_says_the_same(site: Site, busy: str, accept: str) -> None:
    path = f"/v1/reports?client_id={busy}&group_by=sender"
    answer = site.ask("GET", path, headers={"Accept": accept})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.body)))
    found = report(site, busy, "&group_by=sender")
    expected = [*found["data"], {"key": "total", **found["totals"]}]
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row["key"].removeprefix("'") == wanted["key"]
        # What a spreadsheet would take for a formula is quoted.
        assert row["key"][0] not in "=+-@"
        assert [int(row[name]) for name in AMOUNTS] == [wanted[name] for name in AMOUNTS]
        assert float(row["delivered_share"]) == wanted["delivered_share"]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/*", "text/html", ""])
def test_json_is_what_everybody_else_gets(site: Site, busy: str, accept: str) -> None:
    path = f"/v1/reports?client_id={busy}"
    answer = site.ask("GET", path, headers={"Accept": accept})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


def test_errors_are_json_also_where_csv_is_wanted(site: Site) -> None:
    answer = site.ask("GET", "/v1/reports?client_id=x", headers={"Accept": "text/csv"})
    assert (answer.status, answer.fields) == (400, ["client_id"])


# Nothing about money over TCP


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_nothing_that_makes_clients_or_money_is_on_tcp(site: Site, method: str) -> None:
    client = site.client(100)
    body = {"name": "x", "amount_cents": 5} if method in ("POST", "PUT") else None
    for path in (
        "/admin",
        "/admin/clients",
        f"/admin/clients/{client}/add",
        "/admin/pause",
        "/admin/audit",
        "/v1/clients",
        "/v1/credit",
        f"/v1/clients/{client}/credit",
    ):
        answer = site.ask(method, path, body)
        assert (answer.status, answer.code) == (404, "unknown_route")
    assert site.money(client) == (100, 0, 0)
