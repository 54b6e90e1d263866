"""The command line, with and without a running server, on real files."""

import asyncio
import csv
import io
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer.main

from smsgw import __version__
from smsgw.api import server as server_module
from smsgw.api.demo import create_demo_clients
from smsgw.api.sockets import ADMIN_SOCKET, listen_unix
from smsgw.cli import call as call_module
from smsgw.cli import output
from smsgw.cli.call import Door, Failed, open_door
from smsgw.cli.main import app, main
from smsgw.fields import MASK
from smsgw.settings import Settings, load, masked
from smsgw.store.directory import DataDirectory, LockHeld
from tests.conftest import OpenGateway
from tests.support import DELIVERED, DEMO, Served, account_of

NOBODY = "550e8400-e29b-41d4-a716-446655449999"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs commands in this process, on one data directory."""

    def __init__(self, capsys: pytest.CaptureFixture[str], data: Path) -> None:
        self._capsys = capsys
        self.data = data

    def run(self, *arguments: str) -> Ended:
        """Run a command line as it stands."""
        self._capsys.readouterr()
        code = main(arguments)
        captured = self._capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    def __call__(self, *arguments: object) -> Ended:
        """Run a command on our data directory."""
        return self.run("--data", str(self.data), *map(str, arguments))

    def json(self, *arguments: object) -> Any:
        """The document that a command prints; it must succeed."""
        ended = self(*arguments, "--json")
        assert ended.code == 0, ended.err
        return ended.document

    def client(self, credit_cents: int = 0) -> str:
        """A new client's id."""
        ended = self("client", "create", "Acme", "--credit", credit_cents)
        assert ended.code == 0, ended.err
        return ended.out.strip()

    def money(self, client: str) -> tuple[int, int, int]:
        """What a client has, what is held and what was charged."""
        account = self.json("credit", "show", client)
        return account["credits"], account["held"], account["charged"]


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run in an empty folder without our variables, and put back what commands set for good."""
    for name in os.environ:
        if name.startswith("SMSGW_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in (None, "smsgw")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    umask = os.umask(0o022)
    yield
    os.umask(umask)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    """A shell without a running server."""
    return Shell(capsys, tmp_path / "data")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose data directory has a longer path than a socket's address may have."""
    folder = tmp_path_factory.mktemp("served") / ("f" * 100) / ("g" * 100)
    folder.mkdir(parents=True)
    server = Served(folder / "data", {})
    yield server
    server.kill()


@pytest.fixture
def remote(capsys: pytest.CaptureFixture[str], running: Served) -> Shell:
    """A shell beside a running server."""
    return Shell(capsys, running.data)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = DataDirectory.open
    monkeypatch.setattr(DataDirectory, "open", lambda path, purpose: patient(path, purpose, 0.0))


def commands_of(command: Any, path: str = "smsgw") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands_of(below, f"{path} {name}")


# Calling


def test_the_commands_are_those_we_promise() -> None:
    leaves = {
        path.removeprefix("smsgw ")
        for path, command in commands_of(typer.main.get_command(app))
        if not getattr(command, "commands", {})
    }
    assert leaves == {
        "serve",
        *(f"client {name}" for name in ("create", "list", "show")),
        *(f"credit {name}" for name in ("add", "deduct", "show", "history")),
        *(f"message {name}" for name in ("send", "show", "list", "cancel", "uncertain")),
        *(f"provider {verb}" for verb in ("list", "show", "enable", "disable", "test")),
        *(f"{verb} {name}" for verb in ("pause", "resume") for name in ("client", "provider")),
        "receipts parked",
        "report",
        "audit",
        "status",
        *(
            f"bench {name}"
            for name in ("line", "smpp", "otp", "fair", "steady", "history", "memory", "all")
        ),
        *(f"shards {name}" for name in ("list", "move", "resize", "take-over")),
        "migrate",
        "config show",
        "config check",
        "backup",
        "restore",
        "version",
    }


def test_every_command_and_every_parameter_has_help_and_takes_the_common_options() -> None:
    for path, command in commands_of(typer.main.get_command(app)):
        assert command.help, path
        for parameter in command.params:
            assert parameter.help, f"{path} {parameter.name}"
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--config", "--data", "--json"} <= options, path


@pytest.mark.parametrize(
    "path", ["", "client", "credit", "message", "receipts", "provider", "config"]
)
def test_a_command_without_its_command_shows_help_and_is_a_usage_error(
    shell: Shell, path: str
) -> None:
    ended = shell.run(*path.split())
    assert ended.code == 2
    assert ended.out == ""
    assert f"Usage: {' '.join(['smsgw', *path.split()])}" in ended.err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("nonsense", "nonsense"),
        ("client create", "NAME"),
        ("client list --nonsense", "--nonsense"),
        ("serve --port 65536", "--port"),
        ("client show 12", "CLIENT"),
        (f"credit add {DEMO} 0", "CENTS"),
        (f"credit add {DEMO} 1000000000000001", "CENTS"),
        (f"credit add {DEMO} 1.5", "CENTS"),
        (f"credit deduct {DEMO} 0", "CENTS"),
        ("client create Acme --credit -1", "--credit"),
        (f"message send {DEMO} {DELIVERED} hello", "--from"),
        (f"message send {DEMO} {DELIVERED} hello --from A --idempotency-key é", "visible ASCII"),
        (f"report {DEMO} --csv --json", "--csv"),
    ],
)
def test_a_wrong_call_is_told_in_one_line_with_exit_code_2(
    shell: Shell, arguments: str, names: str
) -> None:
    ended = shell(*arguments.split())
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("smsgw: ")
    assert re.search(r"[^.]\. Try 'smsgw .*--help'\.\n$", ended.err)
    assert ended.err.count("\n") == 1
    assert names in ended.err
    assert not shell.data.exists()


def test_the_version_is_shown(shell: Shell) -> None:
    assert shell.run("--version") == Ended(0, f"smsgw {__version__}\n", "")
    assert shell.run("version") == Ended(0, f"smsgw {__version__}\n", "")
    assert shell.run("version", "--json").document == {"version": __version__}


def test_help_needs_neither_the_server_nor_the_store() -> None:
    heavy = {"uvicorn", "starlette", "sqlite3", "rich.table", "smsgw.gateway", "smsgw.settings"}
    program = f"import smsgw.cli.main, sys; print({heavy!r} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "set()"


# The common options


@pytest.mark.parametrize(
    "line",
    [
        "--data DIR --json client list",
        "client --data DIR --json list",
        "client list --json --data DIR",
    ],
)
def test_the_common_options_stand_before_or_after_the_command(shell: Shell, line: str) -> None:
    client = shell.client()
    ended = shell.run(*line.replace("DIR", str(shell.data)).split())
    assert ended.code == 0
    assert [row["id"] for row in ended.document["data"]] == [client]


def test_what_stands_after_the_command_wins(shell: Shell, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    assert shell("client", "create", "Acme", "--data", other).code == 0
    assert not shell.data.exists()
    assert (tmp_path / "other" / "catalog.db").exists()


def test_the_data_directory_comes_from_its_variable_or_lies_here(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell.run("client", "create", "Acme").code == 0
    assert (tmp_path / "smsgw-data" / "catalog.db").exists()
    monkeypatch.setenv("SMSGW_DATA", str(tmp_path / "elsewhere"))
    assert shell.run("client", "create", "Acme").code == 0
    assert (tmp_path / "elsewhere" / "catalog.db").exists()


def test_the_settings_come_from_an_option_or_a_variable_or_lie_here(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def port(*arguments: str) -> int:
        document = shell.run("config", "show", "--json", *arguments).document
        return int(document["server"]["port"])

    assert port() == 8080
    for number, name in enumerate(("smsgw.toml", "variable.toml", "option.toml"), start=1):
        (tmp_path / name).write_text(f"[server]\nport = {number}\n")
    assert port() == 1
    monkeypatch.setenv("SMSGW_CONFIG", "variable.toml")
    assert port() == 2
    assert port("--config", "option.toml") == 3
    assert shell.run("--config", "option.toml", "config", "show").out.count("port = 3\n") == 1
    monkeypatch.setenv("SMSGW_SERVER__PORT", "4")
    assert port("--config", "option.toml") == 4


def test_settings_that_were_asked_for_must_exist(shell: Shell) -> None:
    ended = shell("client", "create", "Acme", "--config", "missing.toml")
    assert ended == Ended(1, "", "smsgw: missing.toml: No such file or directory\n")


# Clients and credit


def test_creating_a_client_prints_its_id(shell: Shell) -> None:
    ended = shell("client", "create", "Acme", "--id", DEMO, "--credit", 70, "--weight", 3)
    assert ended == Ended(0, f"{DEMO}\n", "")
    account = shell.json("client", "show", DEMO)
    assert account["name"] == "Acme"
    assert (account["credits"], account["weight"], account["paused"]) == (70, 3, False)
    again = shell("client", "create", "Other", "--id", DEMO)
    assert again.code == 1
    assert DEMO in again.err
    created = shell.json("client", "create", "Third")
    assert uuid.UUID(created["id"])
    assert created["credits"] == 0
    assert shell.json("credit", "history", created["id"])["data"] == []


def test_clients_are_listed_for_people_and_for_programs(shell: Shell) -> None:
    client = shell.client(70)
    lines = shell("client", "list").out.splitlines()
    assert lines[0].split()[:3] == ["id", "name", "credits"]
    assert lines[1].split()[:3] == [client, "Acme", "70"]
    listed = shell.json("client", "list")
    assert listed["next_cursor"] is None
    assert [row["id"] for row in listed["data"]] == [client]


def test_credit_is_added_deducted_shown_and_told(shell: Shell) -> None:
    client = shell.client(100)
    assert shell("credit", "add", client, 50, "--note", "مبلغ").code == 0
    assert shell.json("credit", "deduct", client, 30)["credits"] == 120
    assert shell.money(client) == (120, 0, 0)
    assert re.search(r"^credits +120$", shell("credit", "show", client).out, re.MULTILINE)
    entries = shell.json("credit", "history", client)["data"]
    assert [(entry["kind"], entry["amount"]) for entry in entries] == [
        ("deduct", -30),
        ("topup", 50),
        ("topup", 100),
    ]
    assert entries[1]["note"] == "مبلغ"
    assert "مبلغ" in shell("credit", "history", client).out


def test_the_largest_amount_is_taken(shell: Shell) -> None:
    assert shell.money(shell.client(10**15)) == (10**15, 0, 0)


def test_a_history_goes_on_where_a_page_ended(shell: Shell) -> None:
    client = shell.client(1)
    shell("credit", "add", client, 2)
    first = shell("credit", "history", client, "--limit", 1)
    cursor = first.err.removeprefix("smsgw: there is more: --cursor ").strip()
    second = shell.json("credit", "history", client, "--limit", 1, "--cursor", cursor)
    assert [entry["amount"] for entry in second["data"]] == [1]


def test_a_key_makes_a_repeat_harmless(shell: Shell) -> None:
    client = shell.client()
    for _ in range(2):
        assert shell("credit", "add", client, 50, "--key", "june").code == 0
    assert shell.money(client) == (50, 0, 0)
    assert shell("credit", "add", client, 60, "--key", "june").code == 1
    assert shell("credit", "deduct", client, 50, "--key", "june").code == 1
    assert shell.money(client) == (50, 0, 0)


def test_a_deduct_below_zero_is_refused(shell: Shell) -> None:
    client = shell.client(10)
    ended = shell("credit", "deduct", client, 11)
    assert (ended.code, ended.out) == (1, "")
    assert "11" in ended.err
    assert shell.money(client) == (10, 0, 0)


@pytest.mark.parametrize(
    "line",
    [
        f"client show {NOBODY}",
        f"credit add {NOBODY} 5",
        f"credit history {NOBODY}",
        f"message list {NOBODY}",
        f"message send {NOBODY} {DELIVERED} hello --from ACME",
        f"pause client {NOBODY}",
        f"report {NOBODY}",
    ],
)
def test_an_unknown_client_is_an_error_in_one_line(shell: Shell, line: str) -> None:
    shell.client()
    for more in ((), ("--json",)):
        assert shell(*line.split(), *more) == Ended(1, "", "smsgw: There is no such client.\n")


def test_a_report_comes_as_table_json_and_csv(shell: Shell) -> None:
    client = shell.client(100)
    shell("message", "send", client, DELIVERED, "hello", "--from", "ACME")
    document = shell.json("report", client, "--group-by", "status")
    assert document["data"][0]["key"] == "QUEUED"
    assert document["totals"]["held"] == 5
    lines = shell("report", client, "--group-by", "status").out.splitlines()
    assert [line.split()[:5] for line in lines[1:]] == [
        ["QUEUED", "1", "1", "5", "0"],
        ["total", "1", "1", "5", "0"],
    ]
    page = shell("report", client, "--csv").out
    assert len(page.splitlines()) == 3
    rows = list(csv.DictReader(io.StringIO(page)))
    assert [row["held"] for row in rows] == ["5", "5"]
    assert shell("report", client, "--since", "2026-02-02", "--until", "2026-02-01").code == 1


# Messages


def test_without_a_server_a_message_waits_and_the_command_says_so(shell: Shell) -> None:
    client = shell.client(100)
    ended = shell("message", "send", client, DELIVERED, "hello", "--from", "ACME", "--json")
    assert ended.code == 0
    assert "queued until serve runs" in ended.err
    assert ended.document["status"] == "QUEUED"
    shown = shell.json("message", "show", ended.document["message_id"])
    assert (shown["status"], shown["to"], shown["text"]) == ("QUEUED", DELIVERED, "hello")
    assert shell.money(client) == (95, 5, 0)


def test_all_options_of_a_message_arrive(shell: Shell) -> None:
    client = shell.client(100)
    options = ("--reference", "r 1", "--send-at", "2026-12-01T00:00:00Z", "--validity-s", 90)
    sent = shell.json("message", "send", client, DELIVERED, "سلام", "--from", "ACME", *options)
    assert sent["status"] == "SCHEDULED"
    shown = shell.json("message", "show", sent["message_id"])
    assert (shown["reference"], shown["send_at"]) == ("r 1", "2026-12-01T00:00:00.000Z")
    assert shown["text"] == "سلام"
    assert "سلام" in shell("message", "show", sent["message_id"]).out
    wrong = shell("message", "send", client, DELIVERED, "a", "--from", "A", "--validity-s", 59)
    assert wrong.code == 1
    assert "validity_s" in wrong.err


def test_a_message_under_the_same_key_is_sent_once(shell: Shell) -> None:
    client = shell.client(100)
    line = ("message", "send", client, DELIVERED, "hello", "--from", "ACME")
    first, second = (shell.json(*line, "--idempotency-key", "k") for _ in range(2))
    assert first == second
    assert shell.money(client) == (95, 5, 0)


def test_a_code_needs_the_running_server(shell: Shell) -> None:
    client = shell.client(100)
    ended = shell("message", "send", client, DELIVERED, "--otp", "--from", "ACME")
    assert (ended.code, ended.out) == (1, "")
    assert "one-time codes need the running server" in ended.err
    assert shell.money(client) == (100, 0, 0)
    assert shell.json("message", "list", client)["data"] == []


def test_without_a_server_no_express_guarantee_is_given(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMSGW_PROVIDERS__MOCK__WINDOW", "500")
    client = shell.client(100)
    ended = shell("message", "send", client, DELIVERED, "hello", "--express", "--from", "ACME")
    assert (ended.code, ended.out) == (1, "")
    assert "guarantee" in ended.err
    assert shell.money(client) == (100, 0, 0)


def test_messages_are_listed_filtered_and_paged(shell: Shell) -> None:
    client = shell.client(100)
    for number in range(3):
        to = f"+1500555100{number}"
        shell("message", "send", client, to, "hi", "--from", "ACME", "--reference", f"r{number}")

    def listed(*options: object) -> list[str]:
        rows = shell.json("message", "list", client, *options)["data"]
        return [row["reference"] for row in rows]

    assert listed() == ["r2", "r1", "r0"]
    assert listed("--to", "+15005551001") == ["r1"]
    assert listed("--reference", "r0", "--status", "QUEUED") == ["r0"]
    assert listed("--until", "2026-01-01T00:00:00Z") == []
    page = shell.json("message", "list", client, "--limit", 2)
    assert listed("--limit", 2, "--cursor", page["next_cursor"]) == ["r0"]
    assert "there is more: --cursor" in shell("message", "list", client, "--limit", 2).err
    wrong = shell("message", "list", client, "--status", "LOST")
    assert wrong.code == 1
    assert "QUEUED" in wrong.err


def test_a_waiting_message_is_cancelled_and_its_money_comes_back(shell: Shell) -> None:
    client = shell.client(100)
    sent = shell.json("message", "send", client, DELIVERED, "hello", "--from", "ACME")
    identifier = sent["message_id"]
    assert shell("message", "cancel", shell.client(), identifier).code == 1
    assert shell.json("message", "cancel", client, identifier)["status"] == "CANCELLED"
    assert shell.money(client) == (100, 0, 0)
    again = shell("message", "cancel", client, identifier)
    assert again.code == 1
    assert "CANCELLED" in again.err


def test_a_text_does_nothing_to_the_terminal_and_looks_like_no_markup(shell: Shell) -> None:
    client = shell.client(100)
    text = "[bold]a\r\nb\x9b31m c"
    sent = shell.json("message", "send", client, DELIVERED, text, "--from", "ACME")
    for line in (("message", "show", sent["message_id"]), ("message", "list", client)):
        out = shell(*line).out
        assert r"[bold]a\r\nb\x9b31m c" in out
        assert "\x9b" not in out
    assert shell.json("message", "show", sent["message_id"])["text"] == text


def test_json_is_whole_also_where_the_output_is_no_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    output.json_document({"text": "سلام"})
    sys.stdout.flush()
    assert json.loads(written.getvalue()) == {"text": "سلام"}


def test_arguments_that_are_no_text_are_refused(shell: Shell) -> None:
    client = shell.client(100)
    broken = b"\xff".decode("utf-8", "surrogateescape")
    for line in (
        ("message", "send", client, DELIVERED, broken, "--from", "ACME"),
        ("message", "list", client, "--reference", broken),
        ("client", "create", broken),
    ):
        ended = shell(*line)
        assert ended.code == 1, line
        assert ended.err.startswith("smsgw: "), line


# Pausing, status, audit


def test_pausing_is_remembered_and_undone(shell: Shell) -> None:
    assert shell("pause").code == 0
    client = shell.client()
    assert shell("pause", "client", client).out == f"paused  everything, client {client}\n"
    paused = shell.json("status")["paused"]
    assert paused == {"all": True, "providers": [], "clients": [client]}
    assert shell("resume").out == f"paused  client {client}\n"
    assert shell("resume", "client", client).out == "paused  nothing\n"


def test_a_provider_is_paused_by_its_name(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMSGW_PROVIDERS__MOCK__WINDOW", "5")
    shell.client()
    assert shell("pause", "provider", "mock").out == "paused  provider mock\n"
    wrong = shell("pause", "provider", "other")
    assert wrong.code == 1
    assert "mock" in wrong.err
    assert "paused  provider mock" not in shell("resume", "provider", "mock").out


def test_status_says_that_no_server_runs(shell: Shell) -> None:
    client = shell.client(100)
    shell("message", "send", client, DELIVERED, "hello", "--from", "ACME")
    out = shell("status").out
    assert re.search("^server +not running$", out, re.MULTILINE)
    assert re.search("^queued +1 regular, 0 express$", out, re.MULTILINE)
    document = shell.json("status")
    assert document["serving"] is False
    assert sum(shard["held"] for shard in document["shards"]) == 5


def test_an_audit_shows_the_sums_of_every_shard(shell: Shell) -> None:
    client = shell.client(100)
    shell("message", "send", client, DELIVERED, "hello", "--from", "ACME")
    ended = shell("audit")
    assert ended.code == 0
    lines = [line.split() for line in ended.out.splitlines()]
    assert [line[0] for line in lines if line] == ["shard", "0", "1", "2", "3", "all", "clean"]
    assert lines[5] == ["all", "1", "1", "2", "95", "5", "0"]
    assert shell.json("audit")["clean"] is True


def test_an_audit_names_the_client_of_a_cent_that_drifted(shell: Shell) -> None:
    client = shell.client(100)
    for file in (shell.data / "shards").glob("*.db"):
        shard = sqlite3.connect(file)
        shard.execute("UPDATE client SET credits_cents = credits_cents + 1")
        shard.commit()
        shard.close()
    ended = shell("audit")
    assert ended.code == 1
    assert client in ended.out
    assert ended.err.startswith("smsgw: the audit found ")
    as_json = shell("audit", "--json")
    assert as_json.code == 1
    assert as_json.document["findings"][0]["client_id"] == client


def test_long_work_shows_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with output.working("proving"):
            pass
        assert ("proving" in stream.getvalue()) is shown


# Settings


def test_good_settings_are_ok(shell: Shell) -> None:
    assert shell("config", "check") == Ended(0, "ok\n", "")


def test_every_mistake_in_the_settings_is_named_with_its_key(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smsgw.toml").write_text("[server]\nport = 'x'\n[otp]\ndigist = 6\n")
    monkeypatch.setenv("SMSGW_SERVER__PROT", "1")
    ended = shell("config", "check")
    assert (ended.code, ended.out) == (1, "")
    lines = ended.err.splitlines()
    assert len(lines) == 3
    for key in ("server.port", "otp.digist", "server.prot"):
        assert any(line.startswith(f"smsgw: {key}: ") for line in lines), key


@pytest.mark.parametrize("line", ["serve", "client create Acme", "config show"])
def test_a_variable_that_is_no_setting_is_refused_in_one_line(
    shell: Shell, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMSGW_SERVER__PROT", "1")
    ended = shell(*line.split())
    assert ended.code == 1
    assert "SMSGW_SERVER__PROT" in ended.err
    assert ended.err.count("\n") == 1
    assert not shell.data.exists()


def test_the_settings_are_shown_as_toml_that_says_the_same_and_hides_secrets(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "smsgw.toml").write_text(
        '[server]\nallowed_hosts = ["é"]\n[providers.mock]\nreceipt_token = "s3cret"\n'
    )
    ended = shell("config", "show")
    assert ended.code == 0
    assert "s3cret" not in ended.out
    shown = tomllib.loads(ended.out)
    expected = masked(load(tmp_path / "smsgw.toml", {}))
    assert shown == expected == shell.json("config", "show")
    assert shown["providers"]["mock"]["receipt_token"] == MASK


# The data directory


@pytest.mark.parametrize(
    "line", ["client list", "audit", "status", f"credit add {DEMO} 5", f"pause client {DEMO}"]
)
def test_a_wrong_data_directory_is_not_filled(shell: Shell, line: str) -> None:
    ended = shell(*line.split())
    assert (ended.code, ended.out) == (1, "")
    assert str(shell.data) in ended.err
    assert not shell.data.exists()


def test_what_a_command_writes_is_readable_by_its_owner_only(shell: Shell) -> None:
    shell.client()
    for path in (shell.data, *shell.data.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    before = os.umask(0o022)
    assert before == 0o022


def test_a_socket_that_a_dead_server_left_behind_does_not_matter(shell: Shell) -> None:
    client = shell.client(10)
    listen_unix(shell.data / ADMIN_SOCKET).close()
    assert shell.money(client) == (10, 0, 0)


@pytest.mark.usefixtures("_impatient")
def test_a_directory_in_use_names_its_holder(shell: Shell) -> None:
    client = shell.client()
    holder = DataDirectory.open(shell.data, "audit")
    ended = shell("credit", "add", client, 5)
    holder.close()
    assert (ended.code, ended.out) == (1, "")
    assert f"in use by smsgw audit, process {os.getpid()}" in ended.err


@pytest.mark.usefixtures("_impatient")
def test_a_command_holds_the_directory_under_its_own_name(shell: Shell) -> None:
    shell.client()
    door = open_door(shell.data, Settings, "credit add")
    try:
        with pytest.raises(LockHeld, match="in use by smsgw credit add, process"):
            DataDirectory.open(shell.data, "test")
    finally:
        door.close()


@pytest.mark.usefixtures("_impatient")
def test_a_server_that_was_just_starting_is_found(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found(Door):
        serving = True

        def _exchange(self, *request: object) -> tuple[int, bytes]:
            return 200, b"{}"

        def close(self) -> None:
            pass

    shell.client()
    answers = iter([None, Found()])
    monkeypatch.setattr(call_module, "_connect", lambda data: next(answers))
    holder = DataDirectory.open(shell.data, "serve")
    door = open_door(shell.data, Settings, "status")
    holder.close()
    assert isinstance(door, Found)


def test_a_server_that_goes_away_before_it_answers_is_an_error(shell: Shell) -> None:
    client = shell.client()
    listener = listen_unix(shell.data / ADMIN_SOCKET)
    hanging_up = Thread(target=lambda: listener.accept()[0].close())
    hanging_up.start()
    ended = shell("credit", "add", client, 5)
    hanging_up.join()
    listener.close()
    assert (ended.code, ended.out) == (1, "")
    assert "gone before it answered" in ended.err


def test_a_shard_that_fails_ends_the_command_instead_of_keeping_it_waiting(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.client()

    async def never(*request: object) -> tuple[int, bytes]:
        return await asyncio.Event().wait(), b""

    async def fails(gateway: object) -> None:
        raise Failed("the disk is gone")

    monkeypatch.setattr(call_module, "call", never)
    monkeypatch.setattr("smsgw.gateway.Gateway.watch", fails)
    assert shell("client", "list") == Ended(1, "", "smsgw: the disk is gone\n")


# Beside a running server


def test_the_demo_clients_are_there(remote: Shell) -> None:
    credits_of = {row["id"]: row["credits"] for row in remote.json("client", "list")["data"]}
    tens = [f"550e8400-e29b-41d4-a716-44665544{number:04d}" for number in range(1, 11)]
    assert all(credits_of[identifier] == 50_000 for identifier in tens)
    assert tens[-1].endswith("440010")
    assert credits_of[DEMO] == 500_000


async def test_demo_clients_are_created_once(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of()
    for _ in range(2):
        await create_demo_clients(gateway)
    account = await account_of(gateway, uuid.UUID(DEMO).bytes)
    assert (account.credits_cents, account.name) == (500_000, "demo")


def test_with_a_server_a_message_is_sent_and_paid(remote: Shell, running: Served) -> None:
    assert len(os.fsencode(running.data)) > 108
    client = remote.client(100)
    ended = remote("message", "send", client, DELIVERED, "hello", "--from", "ACME", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert running.message(ended.document["message_id"], 10)["status"] == "DELIVERED"
    assert remote.money(client) == (95, 0, 5)
    assert remote("audit").code == 0


def test_with_a_server_a_code_is_sent_at_once(remote: Shell) -> None:
    client = remote.client(100)
    code = remote.json("message", "send", client, DELIVERED, "--otp", "--from", "ACME")
    assert code["status"] == "SENT"
    assert len(code["otp_code"]) == 6
    refused = remote("message", "send", client, "+15005550001", "--otp", "--from", "ACME")
    assert refused.code == 1
    assert re.search("OTP delivery failed.*rejected_by_operator", refused.err)
    assert remote.money(client)[1] == 0


def test_with_a_server_errors_look_the_same(remote: Shell) -> None:
    ended = remote("credit", "add", NOBODY, 5)
    assert ended == Ended(1, "", "smsgw: There is no such client.\n")


def test_with_a_server_pausing_shows_in_ready(remote: Shell, running: Served) -> None:
    remote("pause", "provider", "mock")
    assert "paused: provider mock" in running.request("GET", "/ready")[1]["degraded"]
    assert "provider mock" in remote("status").out
    remote("resume", "provider", "mock")
    assert running.request("GET", "/ready")[1]["degraded"] == []
    assert re.search("^server +running$", remote("status").out, re.MULTILINE)


def test_receipts_and_messages_that_wait_are_listed(remote: Shell, running: Served) -> None:
    receipt = {"provider_message_id": "unheard-of", "status": "DELIVRD"}
    assert running.request("POST", "/v1/providers/mock/dlr", receipt)[0] == 204
    assert [row["provider_message_id"] for row in remote.json("receipts", "parked")["data"]] == [
        "unheard-of"
    ]
    assert "unheard-of" in remote("receipts", "parked").out
    assert remote.json("message", "uncertain") == {"data": [], "next_cursor": None}
    assert remote("message", "uncertain").out.split()[:2] == ["id", "client_id"]


def test_the_socket_needs_no_settings(remote: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMSGW_SERVER__PROT", "1")
    assert remote("pause").code == 0
    assert remote("resume").code == 0


@pytest.mark.usefixtures("_impatient")
def test_a_second_server_names_the_first(remote: Shell, running: Served) -> None:
    ended = remote("serve", "--dev", "--port", 0)
    assert (ended.code, ended.out) == (1, "")
    assert f"in use by smsgw serve, process {running.process.pid}" in ended.err
    assert ended.err.count("\n") == 1
    assert remote("status").code == 0


def test_what_waited_is_sent_once_a_server_runs(
    shell: Shell, served: Callable[..., Served]
) -> None:
    client = shell.client(100)
    sent = shell.json("message", "send", client, DELIVERED, "hello", "--from", "ACME")
    server = served()
    assert server.message(sent["message_id"], 10)["status"] == "DELIVERED"
    assert server.cli("client", "show", DEMO).returncode == 0
    assert shell("credit", "add", DEMO, 7).code == 0
    assert server.stop(signal.SIGINT) == 0
    assert not (shell.data / ADMIN_SOCKET).exists()
    assert shell.money(client) == (95, 0, 5)
    assert shell.money(DEMO) == (500_007, 0, 0)


# How commands end


def test_a_port_in_use_is_told_in_one_line(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = shell("serve", "--port", port)
    assert (ended.code, ended.out) == (1, "")
    assert f"port {port}" in ended.err
    assert ended.err.count("\n") == 1


def test_options_of_serve_win_over_settings(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Settings, Path, bool]] = []

    async def look(
        settings: Settings, data: Path, *, dev: bool, load: Callable[[], Settings]
    ) -> None:
        seen.append((settings, data, dev))
        # What is read again while it runs is read in the same way.
        assert load() == settings

    monkeypatch.setattr(server_module, "serve", look)
    monkeypatch.setenv("SMSGW_SERVER__PORT", "7")
    assert shell("serve", "--host", "::1").code == 0
    assert shell("serve", "--port", 9, "--dev").code == 0
    (plain, data, no_dev), (with_dev, _, dev) = seen
    assert (plain.server.host, plain.server.port, plain.providers) == ("::1", 7, {})
    assert (with_dev.server.port, list(with_dev.providers)) == (9, ["mock"])
    assert (data, no_dev, dev) == (shell.data, False, True)


def test_a_server_that_breaks_exits_with_1(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaks(*_: object, **__: object) -> None:
        raise ExceptionGroup("loops", [RuntimeError("a defect")])

    monkeypatch.setattr(server_module, "serve", breaks)
    ended = shell("serve")
    assert ended.code == 1
    logged, told = ended.err.splitlines()
    assert json.loads(logged)["action"] == "serve.failed"
    assert told.startswith("smsgw: ")


def test_an_interrupt_is_quiet(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smsgw.settings.load", interrupted)
    assert shell("config", "check") == Ended(130, "", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error_worth_telling(unbuffered: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "smsgw", "version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait(30) == 1
