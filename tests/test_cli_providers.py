"""``smsgw provider``: operators from a shell, with and without a running server."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smsgw.fields import MASK
from tests.support import DELIVERED, DEMO, Served
from tests.test_cli import Ended, Shell, _leave_no_trace, shell  # noqa: F401

SETTINGS = """
[providers.mock]
window = 20
prefixes = ["+1500"]
receipt_token = "not-to-be-seen"

[providers.spare]
kind = "mock"
priority = 1

[providers.off]
kind = "mock"
enabled = false
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with three operators; its settings are in a file beside its data."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "smsgw.toml").write_text(SETTINGS)
    server = Served(folder / "data", {"SMSGW_CONFIG": str(folder / "smsgw.toml")})
    yield server
    server.kill()


@pytest.fixture
def remote(capsys: pytest.CaptureFixture[str], running: Served) -> Shell:
    """A shell beside the running server."""
    return Shell(capsys, running.data)


@pytest.fixture
def local(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:  # noqa: F811
    """A shell on a store of its own, with the same settings and no server."""
    path = shell.data.parent / "operators.toml"
    path.write_text(SETTINGS)
    monkeypatch.setenv("SMSGW_CONFIG", str(path))
    shell.client()
    return shell


def states_of(shell: Shell) -> dict[str, str]:  # noqa: F811
    return {row["name"]: row["state"] for row in shell.json("provider", "list")["data"]}


def logged(server: Served) -> str:
    return (server.data.parent / "serve.log").read_text()


def test_the_list_has_a_line_for_each_operator(remote: Shell) -> None:
    document = remote.json("provider", "list")
    assert document["next_cursor"] is None
    mock, off, spare = document["data"]
    assert (mock["name"], mock["kind"], mock["state"], mock["why"]) == ("mock", "mock", "up", None)
    assert (mock["prefixes"], mock["window"]) == (["+1500"], 20)
    assert mock["resting_until"] is None
    # A turn that is under way holds some of its places for what it may claim.
    assert 0 <= mock["in_flight"] <= 20
    assert (off["state"], off["why"]) == ("disabled", "enabled = false in the settings")
    assert (spare["prefixes"], spare["priority"]) == ([], 1)
    lines = remote("provider", "list").out.splitlines()
    assert lines[0].split()[:5] == ["name", "kind", "state", "why", "resting_until"]
    assert [line.split()[0] for line in lines[1:]] == ["mock", "off", "spare"]
    assert " all " in lines[3]


def test_everything_about_one_is_shown_and_no_secret(remote: Shell) -> None:
    document = remote.json("provider", "show", "mock")
    assert document["settings"]["receipt_token"] == MASK
    assert document["settings"]["window"] == 20
    assert (document["waiting"], document["paused"]) == (0, False)
    out = remote("provider", "show", "mock").out
    assert re.search(r"^state +up$", out, re.MULTILINE)
    assert re.search(r"^  receipt_token +\*{8}$", out, re.MULTILINE)
    assert "not-to-be-seen" not in out


@pytest.mark.parametrize("verb", ["show", "enable", "disable", "test"])
def test_an_unknown_operator_is_told_with_those_there_are(remote: Shell, verb: str) -> None:
    ended = remote("provider", verb, "nobody")
    assert ended.code == 1
    assert ended.err == ("smsgw: There is no provider of that name; there is: mock, off, spare.\n")


def test_what_is_disabled_is_seen_everywhere_and_sends_nothing(
    remote: Shell, running: Served
) -> None:
    assert re.search(r"^state +disabled$", remote("provider", "disable", "mock").out, re.M)
    assert "disabled: provider mock" in running.request("GET", "/ready")[1]["degraded"]
    assert 'smsgw_provider_up{provider="mock"} 0.0' in running.request("GET", "/metrics")[1]
    identifier = remote.json("message", "send", DEMO, DELIVERED, "Hello", "--from", "ACME")[
        "message_id"
    ]
    assert running.message(identifier, wait_s=10)["provider"] == "spare"
    failed = remote("provider", "test", "mock")
    assert (failed.code, failed.err.split(":")[1]) == (1, " the test of mock has failed")
    assert remote("provider", "test", "mock", "--to", DELIVERED).code == 1
    assert remote("provider", "enable", "mock").code == 0
    # The old connections may need a moment to close.
    identifier = remote.json("message", "send", DEMO, DELIVERED, "Hello", "--from", "ACME")[
        "message_id"
    ]
    assert running.message(identifier, wait_s=10)["provider"] == "mock"
    assert states_of(remote)["mock"] == "up"
    assert running.request("GET", "/ready")[1]["degraded"] == []


def test_a_paused_one_is_shown_as_paused(remote: Shell) -> None:
    remote("pause", "provider", "spare")
    assert states_of(remote)["spare"] == "paused"
    remote("resume", "provider", "spare")
    assert states_of(remote)["spare"] == "up"


def test_what_the_settings_disable_cannot_be_enabled_by_hand(remote: Shell) -> None:
    ended = remote("provider", "enable", "off")
    assert ended == Ended(1, "", "smsgw: providers.off.enabled is false in the settings.\n")


def test_without_a_number_only_the_connections_are_tested(remote: Shell) -> None:
    assert remote("provider", "test", "mock") == Ended(0, "ok\n", "")
    assert remote.json("provider", "test", "mock") == {
        "provider": "mock",
        "ok": True,
        "detail": "up",
    }


def test_with_a_number_one_sms_leaves_that_nobody_pays_for(remote: Shell, running: Served) -> None:
    before = remote.money(DEMO)
    ended = remote(
        "provider", "test", "mock", "--to", DELIVERED, "--text", "A test", "--from", "ME"
    )
    assert ended.code == 0, ended.err
    assert re.search(r"^verdict +accepted$", ended.out, re.MULTILINE)
    assert re.search(r"^provider message id +0-\d+$", ended.out, re.MULTILINE)
    found = running.request("GET", "/v1/sandbox/messages?wait_s=5")[1]["data"]
    assert ("A test", "ME") in {(one["text"], one["from"]) for one in found}
    assert remote.money(DEMO) == before
    assert remote.json("receipts", "parked")["data"] == []
    assert remote("audit").code == 0


def test_a_test_that_fails_has_exit_code_1(remote: Shell) -> None:
    ended = remote("provider", "test", "mock", "--to", "+15005550001")
    assert ended.code == 1
    assert ended.err == (
        "smsgw: the test of mock has failed: refused: the mock operator refuses this number\n"
    )
    assert remote("provider", "test", "mock", "--to", "12").code == 1
    assert remote("provider", "test", "mock", "--text", "no number").code == 2


def test_without_a_server_only_the_switch_works_and_it_lasts(local: Shell) -> None:
    assert states_of(local) == {"mock": "not running", "off": "disabled", "spare": "not running"}
    assert local("provider", "disable", "mock").code == 0
    assert states_of(local)["mock"] == "disabled"
    assert local("status").out.count("nothing") == 1
    ended = local("provider", "test", "spare")
    assert ended.code == 1
    assert "needs a running server" in ended.err
    assert local("provider", "enable", "mock").code == 0
    assert states_of(local)["mock"] == "not running"


def doubts_of(shell: Shell, path: Path, text: str) -> Any:  # noqa: F811
    path.write_text(text)
    return shell.json("--config", path, "config", "check")["doubts"]


def test_the_check_names_what_may_not_be_meant(shell: Shell, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "some.toml"
    assert doubts_of(shell, path, "") == []
    assert doubts_of(shell, path, "[providers.mock]") == []
    narrow = '[providers.a]\nkind = "mock"\nprefixes = ["+98", "+971"]\n'
    assert doubts_of(shell, path, narrow) == [
        "nobody serves numbers that begin with none of +971, +98: messages wait"
    ]
    gone = '[providers.b]\nkind = "mock"\nenabled = false\nprefixes = ["+989", "+44"]\n'
    assert doubts_of(shell, path, f'{narrow}{gone}[limits]\nunrouted = "refuse"') == [
        "providers.b is not enabled",
        "nobody serves numbers that begin with none of +971, +98: messages are refused",
        "providers.b.prefixes: nobody else serves +44",
    ]
    ended = shell("--config", path, "config", "check")
    assert (ended.code, ended.out) == (0, "ok\n")
    assert ended.err.count("worth a look") == 3


def test_the_check_names_operators_that_cannot_be_built(shell: Shell, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "some.toml"
    one = 'kind = "http"\nurl = "https://a.example/"\ntls_ca_file = "/nowhere.pem"\n'
    path.write_text(f"[providers.a]\n{one}[providers.b]\n{one}")
    ended = shell("--config", path, "config", "check")
    assert ended.code == 1
    assert [line.split(":")[1].strip() for line in ended.err.splitlines()] == [
        "providers.a.tls_ca_file",
        "providers.b.tls_ca_file",
    ]


def reloaded(server: Served, word: str) -> None:
    """Send SIGHUP and wait until the log says so."""
    before = logged(server).count(word)
    server.process.send_signal(signal.SIGHUP)
    while logged(server).count(word) == before:
        server.request("GET", "/health")


def test_sighup_reads_the_settings_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "smsgw.toml"
    path.write_text(SETTINGS)
    server = Served(tmp_path / "data", {"SMSGW_CONFIG": str(path)})
    try:
        remote = Shell(capsys, server.data)
        path.write_text(SETTINGS.replace("window = 20", "window = 33").replace("spare", "extra"))
        reloaded(server, "settings.reloaded")
        rows = {row["name"]: row for row in remote.json("provider", "list")["data"]}
        assert set(rows) == {"mock", "off", "extra"}
        assert rows["mock"]["window"] == 33

        path.write_text("[providers.mock]\nwindow = 0\nnonsense = 1\n")
        reloaded(server, "settings.refused")
        assert "providers.mock.window" in logged(server)
        assert "providers.mock.nonsense" in logged(server)
        assert set(states_of(remote)) == {"mock", "off", "extra"}

        path.write_text(SETTINGS + "[billing]\npart_cents = 6\n[log]\nlevel = 'warning'\n")
        reloaded(server, "billing.part_cents")
        assert "this change needs a restart" in logged(server)
        assert server.stop() == 0
    finally:
        server.kill()
