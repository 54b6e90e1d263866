"""The audit finds every cent of drift, names whose it is, and finds nothing where nothing is."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from smsgw.accounts import AddClient, Adjust, Cancel
from smsgw.admission import Admit, Draft
from smsgw.fairness import Claim, Grant
from smsgw.ids import number_at, uuid_text
from smsgw.metrics import Metrics
from smsgw.models import Lane, Message, Outcome, Verdict
from smsgw.receive import Receive
from smsgw.store.audit import FINDINGS_MAX, audit, checks
from smsgw.store.base import ShardStore
from smsgw.sweeper import CountSpan, FoldEntries, ForgetMessages
from smsgw.worker import Settle
from tests import postgres
from tests.records import NOW_MS, RULES
from tests.stores import Place, Reader, audited, findings, open_shard, plain, rows, turn

ANNE, BERT, CLEO = (bytes([n]) * 16 for n in (1, 2, 3))
DAY_MS = 86_400_000


def admit(client: bytes, lane: Lane = Lane.REGULAR, send_at_ms: int | None = None) -> Admit:
    cost, surcharge = (7, 2) if lane is Lane.EXPRESS else (5, 0)
    draft = Draft(15005550006, "ACME", "hi", False, 1, lane, cost, surcharge, 0)
    draft.send_at_ms = send_at_ms
    return Admit(client, draft, None, RULES, 0)


async def claim(store: ShardStore, parts: int, lane: Lane = Lane.REGULAR) -> list[Message]:
    grants = [Grant(0, int(lane), "mock", parts)]
    return list((await turn(store, Claim(grants, dict(store.waiting)))).claims)


def settle(message: Message, verdict: Verdict) -> Settle:
    return Settle(message.number, message.attempts, Outcome(verdict, "id"), RULES)


def receive(message: Message, word: str) -> Receive:
    return Receive(message.number, 0, "id", word, None, RULES, Metrics())


async def live(path: Place) -> None:
    """A shard in which messages of two clients are everywhere a message can be."""
    store = await open_shard(path)
    await turn(store, AddClient(ANNE, "Anne", 1, 1000), AddClient(BERT, "Bert", 1, 500))
    await turn(store, AddClient(CLEO, "Cleo"))
    for client in (ANNE, BERT):
        await turn(store, *[admit(client) for _ in range(7)], admit(client, Lane.EXPRESS))
        found = await claim(store, 6)
        delivered, failed, sent, retried, unsure, _ = found
        await turn(
            store,
            settle(delivered, Verdict.ACCEPTED),
            receive(delivered, "DELIVRD"),
            settle(failed, Verdict.REFUSED),
            settle(sent, Verdict.ACCEPTED),
            settle(retried, Verdict.FAILED),
            settle(unsure, Verdict.UNKNOWN),
        )
        (late,) = await claim(store, 1, Lane.EXPRESS)
        await turn(store, settle(late, Verdict.ACCEPTED), now_ms=NOW_MS + 100_000)
        await turn(store, receive(late, "DELIVRD"), now_ms=NOW_MS + 100_000)
        request = admit(client)
        await turn(store, request, Adjust(client, -3, "a fee", None))
        cancelled: Message = request.answer.message
        await turn(store, Cancel(client, cancelled.number, cancelled.id))
        await turn(store, admit(client, send_at_ms=NOW_MS + 60_000))
    await turn(store, CountSpan(0, number_at(NOW_MS + DAY_MS), RULES))
    await store.close()


BACKENDS = ("sqlite", "postgres")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """A shard of each kind in which messages are everywhere, made once."""
    made: dict[str, Place] = {}
    with contextlib.ExitStack() as ends:

        def original(backend: str) -> Place:
            if backend not in made:
                path: Place = tmp_path_factory.mktemp("audit") / "00.db"
                if backend == "postgres":
                    path = postgres.Schema(ends.enter_context(postgres.database()))
                asyncio.run(live(path))
                made[backend] = path
            return made[backend]

        yield original


@pytest.fixture
def path(backend: str, originals: Callable[[str], Place], tmp_path: Place) -> Iterator[Place]:
    original = originals(backend)
    if isinstance(original, Path):
        yield Path(shutil.copy(original, tmp_path / "00.db"))
    else:
        with postgres.database(original.url) as url:
            yield postgres.Schema(url)


@pytest.fixture
def fresh(backend: str, tmp_path: Place) -> Iterator[Place]:
    """Where nothing is yet."""
    if backend == "sqlite":
        yield tmp_path / "new.db"
    else:
        with postgres.database() as url:
            yield postgres.Schema(url)


def trust(connection: Reader) -> None:
    """Have a shard take what is against its own rules."""
    if isinstance(connection, postgres.Sql):
        connection.trust()
    else:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        connection.execute("PRAGMA foreign_keys = 0")


def plant(path: Place, script: str) -> None:
    """Change a file behind everybody's back; every statement must find something to change."""
    with closing(plain(path)) as connection:
        trust(connection)
        for statement in script.split(";"):
            assert connection.execute(statement).rowcount > 0, statement


def test_a_clean_shard_has_every_status_and_no_finding(path: Place) -> None:
    statuses = {status for (status,) in rows(path, "SELECT DISTINCT status FROM message")}
    assert statuses == {0, 1, 2, 3, 4, 5, 10, 11, 13}
    assert findings(path) == []


def test_an_audit_tells_what_it_added_up(path: Place) -> None:
    with closing(plain(path)) as connection:
        proof = audited(connection, 3)
    assert (proof.shard, proof.clients, proof.messages) == (3, 3, 20)
    assert [(proof.entries,)] == rows(path, "SELECT count(*) FROM entry")
    # Each client: one of 5 delivered, one of 7 too late, so without its surcharge.
    assert proof.charged_cents == 2 * (5 + 5)
    assert proof.held_cents == 2 * 6 * 5
    assert proof.credits_cents == 1500 - 2 * 3 - proof.charged_cents - proof.held_cents


def test_an_audit_says_what_it_does(path: Place) -> None:
    seen: list[str] = []
    with closing(plain(path)) as connection:
        audited(connection, 0, seen.append)
    assert [name for name in seen if name in checks()] == checks()
    assert len(seen) > 8


DRIFT: dict[str, tuple[set[str], str]] = {
    "a cent of credit too many": (
        {"sums"},
        "UPDATE client SET credits_cents = credits_cents + 1 WHERE number = 1",
    ),
    "a cent of credit too few": (
        {"sums"},
        "UPDATE client SET credits_cents = credits_cents - 1 WHERE number = 1",
    ),
    "a cent held too many": (
        {"sums", "accounts"},
        "UPDATE client SET held_cents = held_cents + 1 WHERE number = 1",
    ),
    "credit moved to held": (
        {"sums", "accounts"},
        """
        UPDATE client SET held_cents = held_cents + 1, credits_cents = credits_cents - 1
        WHERE number = 1
        """,
    ),
    "a cent charged too many": (
        {"charges"},
        "UPDATE client SET charged_cents = charged_cents + 1 WHERE number = 1",
    ),
    "a cent charged too few": (
        {"charges"},
        "UPDATE client SET charged_cents = charged_cents - 1 WHERE number = 1",
    ),
    "a sequence that runs ahead": (
        {"sums"},
        "UPDATE client SET sequence = sequence + 1 WHERE number = 1",
    ),
    "a wrong count of what waits": (
        {"accounts"},
        "UPDATE client SET waiting = waiting + 1 WHERE number = 1",
    ),
    "the first entry deleted": (
        {"chain", "sums"},
        "DELETE FROM entry WHERE client = 1 AND sequence = 1",
    ),
    "an entry deleted in the middle": (
        {"chain", "sums", "holds"},
        "DELETE FROM entry WHERE client = 1 AND sequence = 5",
    ),
    "the last entry deleted": (
        {"sums", "holds"},
        """
        DELETE FROM entry WHERE client = 1 AND sequence = (SELECT sequence FROM client WHERE
        number = 1)
        """,
    ),
    "a release entered twice, and paid out": (
        {"holds", "accounts"},
        """
        INSERT INTO entry SELECT e.client, c.sequence + 1, 4, e.at_ms, e.amount_cents,
        e.held_cents, c.credits_cents + e.amount_cents, e.message, NULL FROM entry AS e JOIN
        client AS c ON c.number = e.client WHERE e.client = 1 AND e.kind = 4 LIMIT 1;
        UPDATE client SET sequence = sequence + 1, (credits_cents, held_cents) = (SELECT
        sum(amount_cents), sum(held_cents) FROM entry WHERE client = 1) WHERE number = 1
        """,
    ),
    "a capture entered twice": (
        {"sums", "charges", "holds"},
        """
        INSERT INTO entry SELECT e.client, c.sequence + 1, 3, e.at_ms, 0, e.held_cents,
        c.credits_cents, e.message, NULL FROM entry AS e JOIN client AS c ON c.number =
        e.client WHERE e.client = 1 AND e.kind = 3 LIMIT 1
        """,
    ),
    "an amount changed": (
        {"chain", "sums"},
        "UPDATE entry SET amount_cents = amount_cents + 1 WHERE client = 1 AND sequence = 1",
    ),
    "the held part of an entry changed": (
        {"sums", "holds"},
        "UPDATE entry SET held_cents = held_cents + 1 WHERE client = 1 AND sequence = 4",
    ),
    "a hold made larger all the way through": (
        {"holds", "accounts"},
        """
        UPDATE entry SET amount_cents = -6, held_cents = 6 WHERE client = 1 AND sequence = 2;
        UPDATE entry SET balance_cents = balance_cents - 1 WHERE client = 1 AND sequence > 1;
        UPDATE client SET credits_cents = credits_cents - 1, held_cents = held_cents + 1
        WHERE number = 1
        """,
    ),
    "a balance that does not follow": (
        {"chain"},
        "UPDATE entry SET balance_cents = balance_cents + 1 WHERE client = 1 AND sequence = 5",
    ),
    "a capture that became a release": (
        {"chain", "sums", "charges", "holds"},
        "UPDATE entry SET kind = 4, amount_cents = -held_cents WHERE client = 1 AND kind = 3",
    ),
    "a message that holds too much": (
        {"holds", "accounts"},
        "UPDATE message SET held_cents = held_cents + 1 WHERE client = 1 AND status = 1",
    ),
    "a message that holds nothing": (
        {"holds", "accounts"},
        "UPDATE message SET held_cents = 0 WHERE client = 1 AND status = 3",
    ),
    "a finished message that still holds": (
        {"holds", "accounts"},
        "UPDATE message SET held_cents = 5 WHERE client = 1 AND status = 13",
    ),
    "a message charged too much": (
        {"holds"},
        "UPDATE message SET charged_cents = charged_cents + 1 WHERE client = 1 AND status = 10",
    ),
    "a message whose cost was changed": (
        {"holds"},
        "UPDATE message SET cost_cents = cost_cents + 1 WHERE client = 1 AND status = 3",
    ),
    "a message deleted while it holds": (
        {"orphans", "accounts"},
        "DELETE FROM message WHERE client = 1 AND status = 3",
    ),
    "a hold for a message that never was": (
        {"orphans", "accounts"},
        """
        INSERT INTO entry SELECT number, sequence + 1, 2, 0, -5, 5, credits_cents - 5, 4711,
        NULL FROM client WHERE number = 1;
        UPDATE client SET sequence = sequence + 1, credits_cents = credits_cents - 5,
        held_cents = held_cents + 5 WHERE number = 1
        """,
    ),
    "a message given to another client": (
        {"accounts", "totals"},
        "UPDATE message SET client = 3 WHERE client = 1 AND status = 3",
    ),
    "a message with no place in its queue": (
        {"queued"},
        "DELETE FROM queue WHERE client = 1",
    ),
    "a place without its message": (
        {"places"},
        "INSERT INTO queue VALUES (0, 0, 5, 4711, 1, 1)",
    ),
    "a place of a message that is not queued": (
        {"places"},
        """
        INSERT INTO queue SELECT route, lane, rank, number, client, parts FROM message WHERE
        client = 1 AND status = 3
        """,
    ),
    "a place at another rank": (
        {"queued", "places"},
        "UPDATE queue SET rank = rank + 1 WHERE client = 1",
    ),
    "a place that counts other parts": (
        {"places"},
        "UPDATE queue SET parts = parts + 1 WHERE client = 1",
    ),
    "a queued message that says it is scheduled": (
        {"places", "timers"},
        "UPDATE message SET status = 0, due_at_ms = 5 WHERE client = 1 AND status = 1",
    ),
    "a schedule without its timer": (
        {"timers"},
        """
        DELETE FROM timer WHERE kind = 0 AND message IN (SELECT number FROM message WHERE
        client = 1 AND status = 0)
        """,
    ),
    "a retry without its timer": (
        {"timers"},
        """
        DELETE FROM timer WHERE kind = 0 AND message IN (SELECT number FROM message WHERE
        client = 1 AND status = 5)
        """,
    ),
    "a total that counts one too many": (
        {"totals"},
        "UPDATE total SET messages = messages + 1 WHERE client = 1 AND status = 10",
    ),
    "a total with a cent too many": (
        {"totals"},
        "UPDATE total SET charged_cents = charged_cents + 1 WHERE client = 1 AND status = 10",
    ),
    "a total deleted": (
        {"totals"},
        "DELETE FROM total WHERE client = 1 AND status = 10",
    ),
    "a total of nothing that is something": (
        {"totals"},
        "INSERT INTO total VALUES (1, 20601, 'NOBODY', 10, 0, 0, 0, 0, 5)",
    ),
}
"""What is wrong, which checks must say so, and how it came about; always of Anne."""


@pytest.mark.parametrize("name", DRIFT)
def test_drift_is_found_with_the_clients_id(path: Place, name: str) -> None:
    expected, script = DRIFT[name]
    plant(path, script)
    found = findings(path)
    assert expected <= {check for check, client in found if client == uuid_text(ANNE)}
    assert uuid_text(BERT) not in {client for _, client in found}


def test_entries_of_a_client_that_is_not_there_are_found(path: Place) -> None:
    with closing(plain(path)) as connection:
        trust(connection)
        connection.execute("INSERT INTO entry VALUES (99, 1, 0, 0, 5, 0, 5, NULL, NULL)")
    assert findings(path) == [("strangers", None)]


def test_a_client_that_was_deleted_is_missed(path: Place) -> None:
    with closing(plain(path)) as connection:
        trust(connection)
        connection.execute("DELETE FROM client WHERE number = 1")
    assert "strangers" in {check for check, _ in findings(path)}


def test_no_more_findings_of_a_kind_are_told_than_help(path: Place) -> None:
    with closing(plain(path)) as connection:
        connection.executemany(
            "INSERT INTO queue VALUES (0, 0, ?, 4711, 1, 1)", [(n,) for n in range(500)]
        )
    found = [finding for finding in findings(path) if finding[0] == "places"]
    assert found == [("places", uuid_text(ANNE))] * FINDINGS_MAX


def test_every_check_has_a_drift_that_it_finds() -> None:
    found = {check for expected, _ in DRIFT.values() for check in expected}
    assert found | {"strangers"} == set(checks())


# What is purged and folded stays proved.


def sums(path: Place) -> list[tuple[int, ...]]:
    return rows(
        path,
        "SELECT client, sum(amount_cents), sum(held_cents), max(sequence) FROM entry"
        " GROUP BY client",
    )


async def purge_and_fold(path: Place, now_ms: int) -> int:
    """What the sweeper does to what is a day old; returns how many steps it took to fold."""
    store = await open_shard(path)
    await turn(store, ForgetMessages(0, number_at(now_ms - DAY_MS), RULES), now_ms=now_ms)
    client: int | None = 0
    steps = 0
    while client is not None:
        fold = FoldEntries(client, now_ms - DAY_MS)
        await turn(store, fold, now_ms=now_ms)
        client = fold.answer
        steps += 1
    await store.close()
    return steps


@pytest.mark.parametrize("after_ms", [DAY_MS // 2, DAY_MS + 1_000, 30 * DAY_MS])
def test_purging_and_folding_keep_every_sum_and_the_audit_clean(path: Place, after_ms: int) -> None:
    before, accounts = sums(path), rows(path, "SELECT * FROM client")
    entries = len(rows(path, "SELECT 1 FROM entry"))
    asyncio.run(purge_and_fold(path, NOW_MS + after_ms))
    assert sums(path) == before
    assert rows(path, "SELECT * FROM client") == accounts
    assert findings(path) == []
    folded = rows(path, "SELECT client, held_cents FROM entry WHERE kind = 5")
    assert len(folded) == (2 if after_ms > DAY_MS else 0)
    assert (len(rows(path, "SELECT 1 FROM entry")) < entries) == bool(folded)


def test_folding_never_goes_across_an_open_hold(path: Place) -> None:
    asyncio.run(purge_and_fold(path, NOW_MS + 30 * DAY_MS))
    # What is carried forward as held has ended since, message by message.
    assert rows(
        path,
        "SELECT client, sum(held_cents) FROM entry WHERE kind = 5 OR"
        " (message IS NOT NULL AND message NOT IN (SELECT number FROM message)) GROUP BY client"
        " ORDER BY client",
    ) == [(1, 0), (2, 0)]
    for (number,) in rows(path, "SELECT number FROM message"):
        assert rows(path, "SELECT 1 FROM entry WHERE kind = 2 AND message = ?", number) == [(1,)]


@pytest.mark.parametrize(
    ("expected", "script"),
    [
        (
            {"chain", "sums"},
            "UPDATE entry SET amount_cents = amount_cents + 1 WHERE client = 1 AND kind = 5",
        ),
        (
            {"sums"},
            "UPDATE entry SET held_cents = held_cents + 1 WHERE client = 1 AND kind = 5",
        ),
        ({"charges"}, "UPDATE client SET charged_cents = charged_cents + 1 WHERE number = 1"),
        ({"charges"}, "UPDATE client SET charged_cents = charged_cents - 1 WHERE number = 1"),
        (
            {"charges"},
            "UPDATE entry SET note = 'captured 1 cents' WHERE client = 1 AND kind = 5",
        ),
        ({"chain", "sums"}, "DELETE FROM entry WHERE client = 1 AND kind = 5"),
    ],
)
def test_a_folded_ledger_is_still_proved(path: Place, expected: set[str], script: str) -> None:
    asyncio.run(purge_and_fold(path, NOW_MS + 30 * DAY_MS))
    plant(path, script)
    found = findings(path)
    assert expected <= {check for check, client in found if client == uuid_text(ANNE)}
    assert uuid_text(BERT) not in {client for _, client in found}


def test_what_is_folded_again_is_one_entry_again(path: Place) -> None:
    asyncio.run(purge_and_fold(path, NOW_MS + 30 * DAY_MS))
    once = rows(path, "SELECT * FROM entry")
    asyncio.run(purge_and_fold(path, NOW_MS + 31 * DAY_MS))
    assert rows(path, "SELECT * FROM entry") == once


async def delivered(path: Place, count: int) -> None:
    store = await open_shard(path)
    await turn(store, AddClient(ANNE, "Anne", 1, 100))
    await turn(store, *[admit(ANNE) for _ in range(count)])
    found = await claim(store, count)
    await turn(store, *[settle(message, Verdict.ACCEPTED) for message in found])
    await turn(store, *[receive(message, "DELIVRD") for message in found])
    await store.close()


def test_what_was_captured_is_carried_forward_too(tmp_path: Place) -> None:
    path = tmp_path / "00.db"
    asyncio.run(delivered(path, 3))
    asyncio.run(purge_and_fold(path, NOW_MS + 2 * DAY_MS))
    sql = "SELECT kind, amount_cents, held_cents, balance_cents, note FROM entry"
    assert rows(path, sql) == [(5, 85, 0, 85, "captured 15 cents")]
    assert findings(path) == []
    plant(path, "UPDATE entry SET note = NULL")
    assert findings(path) == [("charges", uuid_text(ANNE))]


async def many(path: Place, count: int) -> None:
    store = await open_shard(path)
    await turn(store, AddClient(ANNE, "Anne"))
    for _ in range(count // 100):
        await turn(store, *[Adjust(ANNE, 1, None, None) for _ in range(100)])
    await store.close()


def test_a_long_ledger_is_folded_in_steps(tmp_path: Place) -> None:
    path = tmp_path / "00.db"
    asyncio.run(many(path, 1000))
    steps = asyncio.run(purge_and_fold(path, NOW_MS + 2 * DAY_MS))
    assert steps > 1000 // 200
    assert rows(path, "SELECT sequence, kind, amount_cents, balance_cents FROM entry") == [
        (1000, 5, 1000, 1000)
    ]
    assert findings(path) == []


@pytest.mark.backends("sqlite")
def test_an_audit_reads_only(path: Place) -> None:
    before = path.read_bytes()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as reader:
        assert audit(reader, 0).findings == []
    assert path.read_bytes() == before
