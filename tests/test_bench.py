"""Benchmarks end to end, very small: shapes, proofs and good order, never how fast anything is."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from smsgw.bench import fair, ground, load, options, suite
from smsgw.bench.kept import shard_bytes, shard_files
from smsgw.bench.load import Connection, Load, Plan
from smsgw.bench.options import Fair, History, Line, Memory, Options, Otp, Smpp, Steady
from smsgw.bench.processes import Spoiled, in_child
from smsgw.bench.results import Target, quantile, result, rows
from smsgw.bench.seed import DELIVERED, WAITING, Seeded, seed, zipf_counts
from smsgw.cli import output
from smsgw.cli.main import main
from tests.support import clean_environment

TINY = {
    "line": Line(rounds=2, seconds=0.2, clients=20, connections=8),
    "batch": Line(rounds=1, seconds=0.2, clients=20, connections=4, batch=100),
    "smpp": Smpp(rounds=1, seconds=0.3, clients=20, connections=8),
    "otp": Otp(rounds=1, seconds=0.4, clients=20, backlog=500, latency_ms=1),
    "fair": Fair(rounds=1, seconds=0.4, clients=10, backlog=800, parts_per_s=500),
    "steady": Steady(rounds=2, seconds=0.6, clients=20, connections=8, rate=100),
    "history": History(rounds=1, seconds=0.2, warm_s=0.2, clients=20, connections=8, messages=1000),
    "memory": Memory(rounds=1, seconds=0.3, clients=20, backlog=500),
}
BESIDE = {"fsync_p50_ms", "bare_per_s", "bare_load_cpu"}
OF_THE_LINE = {"finished_per_s", "accepted_per_s", "unfinished_at_end", "accept_p99_ms"}
FIGURES: dict[str, set[str]] = {
    "line": {"ratio", "gateway_cpu", "load_cpu", *OF_THE_LINE},
    "batch": {"ratio", *OF_THE_LINE},
    "smpp": {"ratio", "gateway_cpu", "load_cpu", "smsc_cpu", *OF_THE_LINE},
    "otp": {"added_p99_ms", "codes", "single_p99_ms", "batch_p99_ms", "waiting_at_end"},
    "fair": {
        *(f"{scene}_wait_p99_ms" for scene in ("whale", "alone", "equals", "small")),
        "jain",
        "whale_handed_per_s",
    },
    "steady": {"accept_p99_ms", "accept_max_ms", "handover_p99_ms", "gateway_cpu"},
    "history": {"ratio", "empty_bytes_a_message", *(f"full_{name}" for name in OF_THE_LINE)},
    "memory": {f"resident_{when}_mb" for when in ("start", "drain", "admit", "max")},
}
ONCE: dict[str, set[str]] = {
    "steady": {"spike_max_ms", "spike_at_s", "over_250_ms"},
    "smpp": {f"window_{size}_{what}" for size in (1, 10, 50) for what in ("per_s", "of_most")},
    "otp": {"seed_s", "seeded_per_s"},
    "history": {"seed_s", "seeded_per_s", "bytes_a_message"},
    "memory": {"seed_s", "seeded_per_s"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where benchmarks put their temporary directories."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """What the command line has told benchmarks that it only believes to run."""
    heard: list[Options] = []

    def measure(given: Options, step: Callable[[str], None]) -> dict[str, Any]:
        heard.append(given)
        return _found("told", given)

    monkeypatch.setattr(suite, "measure", measure)
    return heard


def _found(name: str, given: Options | None = None, **figures: float) -> dict[str, Any]:
    return result(name, given or Line(), [{"fsync_p50_ms": 0.25, **figures}])


# End to end


@pytest.mark.parametrize("name", list(TINY))
def test_a_benchmark_measures_proves_and_leaves_nothing_behind(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair, "GRACE_S", 0.1)
    steps: list[str] = []
    found = suite.measure(TINY[name], steps.append)
    assert set(found) == {
        *("bench", "options", "machine", "rounds", "median", "spread", "once", "targets", "marks")
    }
    assert len(found["rounds"]) == TINY[name].rounds
    for one in (*found["rounds"], found["median"], found["spread"]):
        assert set(one) >= BESIDE | FIGURES[name]
    assert set(found["once"]) >= ONCE.get(name, set())
    assert set(found["targets"]) <= set(found["median"])
    assert {"python", "sqlite", "smsgw", "starlette"} <= set(found["machine"])
    assert json.loads(json.dumps(found)) == found
    assert any("audit" in step for step in steps)
    assert list(folder.iterdir()) == []


def test_a_ledger_that_is_wrong_by_a_cent_spoils_a_run(folder: Path) -> None:
    with ground.ground() as place:
        ids = ground.new_ids(4)
        ground.make_store(place, ids)
        ground.prove(place, 0)
        for path in shard_files(place):
            with closing(sqlite3.connect(path)) as shard, shard:
                shard.execute("UPDATE client SET credits_cents = credits_cents + 1")
        with pytest.raises(Spoiled, match="the audit found: credits"):
            ground.prove(place, 0)
    assert list(folder.iterdir()) == []


def test_a_disk_without_enough_room_is_told_before_anything_is_done(folder: Path) -> None:
    with (
        pytest.raises(Spoiled, match=r"GB are needed in .*; TMPDIR can name"),
        ground.ground(10**18),
    ):
        pytest.fail("there is no such disk")
    assert list(folder.iterdir()) == []


# Seeding


@contextmanager
def _seeded(folder: Path) -> Iterator[tuple[Path, list[str], list[Seeded]]]:
    """A store with history and a queue: its directory, its clients, what was put there."""
    clients = ground.new_ids(5)
    ground.make_store(folder, clients)
    counts = zipf_counts(clients, 200)
    stocks = [seed(folder, counts, stock) for stock in (DELIVERED, WAITING)]
    yield folder, ground.texts(clients), stocks


@pytest.fixture(scope="module")
def seeded(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, list[str], list[Seeded]]]:
    with _seeded(tmp_path_factory.mktemp("seeded") / "data") as found:
        yield found


def _json(capsys: pytest.CaptureFixture[str], data: Path, *arguments: str) -> Any:
    capsys.readouterr()
    assert main(["--data", str(data), "--json", *arguments]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_what_was_seeded_passes_the_audit(
    seeded: tuple[Path, list[str], list[Seeded]], capsys: pytest.CaptureFixture[str]
) -> None:
    data, clients, stocks = seeded
    assert [stock.messages for stock in stocks] == [200, 200]
    proof = _json(capsys, data, "audit")
    assert proof["clean"] is True
    assert sum(shard["messages"] for shard in proof["shards"]) == 400
    assert sum(shard["clients"] for shard in proof["shards"]) == len(clients)


def test_half_of_what_was_seeded_has_a_key_and_all_of_it_is_counted(
    seeded: tuple[Path, list[str], list[Seeded]],
) -> None:
    sums = []
    for path in shard_files(seeded[0]):
        with closing(sqlite3.connect(path)) as shard:
            sums.append(
                shard.execute(
                    "SELECT (SELECT count(*) FROM idempotency), (SELECT count(*) FROM queue),"
                    " (SELECT coalesce(sum(messages), 0) FROM total),"
                    " (SELECT count(*) FROM message)"
                ).fetchone()
            )
    keys, places, counted, messages = (sum(column) for column in zip(*sums, strict=True))
    # An odd one out in each shard and kind has a key as well.
    assert 200 <= keys <= 200 + 2 * len(sums)
    assert (places, counted, messages) == (200, 400, 400)


def test_what_was_seeded_is_listed_shown_and_paid_for(
    seeded: tuple[Path, list[str], list[Seeded]], capsys: pytest.CaptureFixture[str]
) -> None:
    data, clients, _ = seeded
    counts = zipf_counts([client.encode() for client in clients], 200)
    of_first = counts[clients[0].encode()]
    listed = _json(capsys, data, "message", "list", clients[0], "--limit", "500")["data"]
    assert [one["status"] for one in listed] == ["QUEUED"] * of_first + ["DELIVERED"] * of_first
    assert len({one["id"] for one in listed}) == len(listed)
    assert sorted((one["created_at"] for one in listed), reverse=True) == [
        one["created_at"] for one in listed
    ]
    shown = _json(capsys, data, "message", "show", listed[-1]["id"])
    assert (shown["client_id"], shown["charged"]) == (clients[0], shown["cost"])
    assert shown["events"][0]["kind"] == "accepted"
    account = _json(capsys, data, "credit", "show", clients[0])
    cost = shown["cost"]
    assert account["held"] == account["charged"] == cost * of_first
    assert account["credits"] == ground.CREDIT_CENTS - 2 * cost * of_first


def test_a_seeded_message_that_waits_can_be_cancelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _seeded(tmp_path / "data") as (data, clients, _):
        before = _json(capsys, data, "credit", "show", clients[0])
        waiting = _json(capsys, data, "message", "list", clients[0], "--limit", "1")["data"][0]
        assert waiting["status"] == "QUEUED"
        cancelled = _json(capsys, data, "message", "cancel", clients[0], waiting["id"])
        assert cancelled["status"] == "CANCELLED"
        after = _json(capsys, data, "credit", "show", clients[0])
        assert after["credits"] == before["credits"] + waiting["cost"]
        assert _json(capsys, data, "audit")["clean"] is True


def test_what_zipf_deals_out_adds_up() -> None:
    counts = zipf_counts([b"a", b"b", b"c"], 100)
    assert sum(counts.values()) == 100
    assert counts[b"a"] > counts[b"b"] > counts[b"c"]


def test_seeding_tells_how_far_it_is_and_how_much_room_it_took(tmp_path: Path) -> None:
    clients = ground.new_ids(3)
    data = tmp_path / "data"
    ground.make_store(data, clients)
    before = shard_bytes(data)
    steps: list[str] = []
    found = seed(data, zipf_counts(clients, 300), DELIVERED, steps.append)
    assert steps[-1] == "300 of 300 delivered messages"
    assert found.size_bytes == shard_bytes(data) - before > 0
    assert set(found.figures) == {"seed_s", "seeded_per_s", "bytes_a_message"}


# The load


def _plan(**given: Any) -> Plan:
    clients = ground.texts(ground.new_ids(3))
    return Plan(**{"port": 0, "clients": clients, "seconds": 1.0, **given})


def _documents(plan: Plan, count: int) -> list[dict[str, Any]]:
    sent = islice(load.requests(plan), count)
    return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in sent]


def test_half_of_the_requests_have_a_key_of_their_own() -> None:
    sent = list(islice(load.requests(_plan()), 1000))
    keys = [request for request in sent if b"\r\nIdempotency-Key: " in request]
    assert 450 <= len(keys) <= 550
    names = [request.partition(b"Idempotency-Key: ")[2].partition(b"\r\n")[0] for request in keys]
    assert len(set(names)) == len(names)


def test_no_number_is_sent_two_codes_not_even_in_another_round() -> None:
    recipients = [
        document["to"]
        for number in (1, 2)
        for document in _documents(_plan(otp=True, rate_per_s=500.0, seed=number), 500)
    ]
    assert len(set(recipients)) == len(recipients) == 1000


def test_even_clients_send_in_turn_and_the_others_as_zipf_says() -> None:
    plan = _plan(even=True)
    in_turn = [document["client_id"] for document in _documents(plan, 6)]
    assert in_turn == [*plan.clients, *plan.clients]
    drawn = [document["client_id"] for document in _documents(replace(plan, even=False), 3000)]
    first, second, third = (drawn.count(client) for client in plan.clients)
    assert first > second > third > 0


def test_a_batch_goes_to_its_route_with_its_messages() -> None:
    plan = _plan(batch=100)
    request = next(iter(load.requests(plan)))
    assert request.startswith(b"POST /v1/messages/batch ")
    assert len(_documents(plan, 1)[0]["messages"]) == 100


class _Late(Connection):
    """A connection whose only answer comes once nothing more is sent."""

    def __init__(self, of: Load) -> None:
        super().__init__(of)
        self.sent: list[float] = []

    def send(self, request: bytes, due_s: float) -> None:
        self.sent.append(due_s)
        asyncio.get_running_loop().call_later(0.1, self._load.answered, self, b"202", due_s)


async def test_an_open_loop_counts_what_was_due_and_found_no_connection() -> None:
    running = Load(_plan(rate_per_s=1000.0, seconds=0.05))
    connection = _Late(running)
    running._idle.append(connection)
    outcome = await running.run()
    assert len(connection.sent) == outcome.answers == 1
    assert outcome.unsent == len(outcome.took_ms) - 1 == 49
    assert sorted(outcome.due_s) == pytest.approx([number / 1000 for number in range(50)])
    assert min(outcome.took_ms) > 0


# Results


def test_a_target_is_reached_missed_or_more_than_reached() -> None:
    at_least = Target("ratio", must=0.25, aim=0.35, at_least=True)
    at_most = Target("p99_ms", must=25, aim=10)
    assert [at_least.verdict(value) for value in (0.35, 0.3, 0.2)] == ["aim", "must", "missed"]
    assert [at_most.verdict(value) for value in (10, 25, 26)] == ["aim", "must", "missed"]


def test_a_result_has_median_spread_and_marks_of_its_rounds() -> None:
    found = result(
        "line",
        Line(),
        [
            {"ratio": 0.1, "load_cpu": 0.5},
            {"ratio": 0.3, "load_cpu": 0.95},
            {"ratio": 0.2, "load_cpu": 0.6},
        ],
        targets=[Target("ratio", must=0.25, aim=0.35, at_least=True)],
        marks=["the moon was full"],
    )
    assert found["median"] == {"ratio": 0.2, "load_cpu": 0.6}
    assert found["spread"]["ratio"] == [0.1, 0.3]
    assert found["marks"] == [
        "ratio is 0.2, it must be 0.25",
        "generator-bound: load_cpu was 0.95 in round 2",
        "the moon was full",
    ]
    first, second = rows(found)
    assert first == {
        "figure": "ratio",
        "median": "0.2",
        "spread": "0.1 to 0.3",
        "must": "0.25",
        "aim": "0.35",
        "reaches": "missed",
    }
    assert (second["must"], second["reaches"]) == ("", "")


def test_a_quantile_is_a_value_that_was_there() -> None:
    assert quantile([], 0.99) == 0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(range(100), 0.99) == 99


def test_jain_is_one_for_equals_and_an_nth_where_one_gets_all() -> None:
    assert fair.jain([5, 5, 5, 5]) == 1
    assert fair.jain([7, 0, 0, 0]) == 0.25
    assert fair.jain([0, 0]) == 0


def test_a_smaller_benchmark_keeps_what_takes_no_time() -> None:
    assert Otp().scaled(0.01) == replace(Otp(), rounds=1, seconds=1.0, clients=100, backlog=10_000)
    assert Line(batch=100).scaled(0.000001).clients == 20


# Processes


def test_a_child_that_takes_too_long_is_ended() -> None:
    with pytest.raises(Spoiled, match="sleep took longer than 0 s"):
        in_child(time.sleep, 600, limit_s=0.01)


def test_a_child_that_fails_spoils_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Spoiled, match="loads has failed: 1"):
        in_child(json.loads, "no JSON", limit_s=60)
    assert "JSONDecodeError" in capfd.readouterr().err


def test_a_run_gives_up_after_its_time_and_puts_the_signals_back() -> None:
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Spoiled, match=r"longer than 0\.001 minutes"), ground.bounded(0.06):
        signal.pause()
    assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_no_file(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = "bench line --rounds 20 --seconds 1 --clients 20 --connections 4 --json"
    with subprocess.Popen(
        [sys.executable, "-m", "smsgw", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean_environment(), "TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as process:
        deadline_s = time.monotonic() + 60
        # The gateway is up once it listens to its operator.
        while not list(tmp_path.glob("smsgw-bench-*/**/admin.sock")):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
        # As a terminal does it: everybody in the foreground gets a Ctrl-C.
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        # Returns once nobody has the other ends any more, so no child is left either.
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


# The command line


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("line", Line()),
        ("line --batch 100 --seconds 2 --clients 5", Line(batch=100, seconds=2, clients=5)),
        ("line --window 700", Line(window=700)),
        ("smpp", Smpp()),
        ("smpp --binds 3 --window 30 --answer 5", Smpp(binds=3, window=30, answer_ms=5)),
        ("otp", Otp()),
        ("otp --codes 7 --singles 8 --batches 9", Otp(
            codes_per_s=7, singles_per_s=8, batches_per_s=9
        )),
        ("otp --latency 5 --backlog 600", Otp(latency_ms=5, backlog=600)),
        ("fair", Fair()),
        ("fair --operator 50 --rate 6", Fair(parts_per_s=50, requests_per_s=6)),
        ("steady", Steady()),
        ("steady --rate 5785 --rounds 1", Steady(rate=5785, rounds=1)),
        ("history", History()),
        ("history --messages 1000 --connections 3", History(messages=1000, connections=3)),
        ("memory", Memory()),
        ("memory --backlog 600 --singles 1", Memory(backlog=600, singles_per_s=1)),
    ],
)  # fmt: skip
def test_the_command_line_tells_a_benchmark_what_it_was_told(
    command: str, expected: Options, told: list[Options], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *command.split(), "--json"]) == 0
    assert told == [expected]
    assert json.loads(capsys.readouterr().out)["median"] == {"fsync_p50_ms": 0.25}


def test_every_benchmark_has_a_command_and_its_place_among_all() -> None:
    of_options = {name for name, kind in vars(options).items() if _is_kind(kind)}
    assert {bench.name.partition(" ")[0].capitalize() for bench in suite.BENCHES} == of_options
    for bench in suite.BENCHES:
        assert type(bench.options) in suite._MEASURES


def _is_kind(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Options) and value is not Options


def test_a_table_has_the_targets_the_marks_and_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target("ratio", must=0.25, aim=0.35, at_least=True)
    found = result("line", Line(), [{"ratio": 0.2, "fsync_p50_ms": 0.1}], targets=[target])
    monkeypatch.setattr(suite, "measure", lambda *_: found)
    assert main(["bench", "line"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["figure", "median", "spread", "must", "aim", "reaches"]
    assert lines[1].split() == ["ratio", "0.2", "0.25", "0.35", "missed"]
    assert lines[-2] == "! line: ratio is 0.2, it must be 0.25"
    assert f"sqlite {sqlite3.sqlite_version}" in lines[-1]


def test_a_spoiled_run_fails_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(_options: Options, _step: Callable[[str], None]) -> dict[str, Any]:
        raise Spoiled("the audit found: a cent too many")

    monkeypatch.setattr(suite, "measure", measure)
    assert main(["bench", "line"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "smsgw: the audit found: a cent too many\n"


def test_all_of_them_go_on_when_one_is_spoiled_but_it_fails_in_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target("ratio", must=0.25, aim=0.35, at_least=True)

    def measure(given: Options, _step: Callable[[str], None]) -> dict[str, Any]:
        if isinstance(given, Fair):
            raise Spoiled("the gateway has died")
        figures = [{"ratio": 0.3, "fsync_p50_ms": 0.1, "bare_per_s": 9}]
        return result("some", given, figures, targets=[target])

    monkeypatch.setattr(suite, "measure", measure)
    assert main(["bench", "all", "--scale", "0.5"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "smsgw: fair: the gateway has died\n"
    table = captured.out.splitlines()[:-1]
    assert table[0].split() == [
        *("bench", "figure", "median", "spread", "must", "aim", "reaches", "fsync_p50_ms")
    ]
    assert [line.rsplit("ratio")[0].strip() for line in table[1:]] == [
        bench.name for bench in suite.BENCHES if bench.name != "fair"
    ]
    assert all(line.split()[-2:] == ["must", "0.1"] for line in table[1:])
    assert main(["bench", "all", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert len(document["results"]) == len(suite.BENCHES) - 1
    assert document["failures"] == [{"bench": "fair", "error": "the gateway has died"}]


@pytest.mark.parametrize(("more", "shown"), [([], True), (["--quiet"], False), (["--json"], False)])
def test_progress_is_shown_unless_nobody_wants_it(
    more: list[str], shown: bool, told: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[str] = []

    @contextmanager
    def working(at_what: str) -> Iterator[Callable[[str], None]]:
        bars.append(at_what)
        yield lambda _: None

    monkeypatch.setattr(output, "working", working)
    assert main(["bench", "line", *more]) == 0
    assert main(["bench", "all", *more]) == 0
    assert bars == ["measuring"] * 2 * shown
    assert len(told) == 1 + len(suite.BENCHES)
