"""The README and the guides are true: their commands run as pasted, their lists are complete."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from smsgw.api.openapi import document
from smsgw.api.operations import operations
from smsgw.api.problems import PROBLEMS
from smsgw.cli.main import app
from smsgw.metrics import Metrics
from smsgw.providers import mock
from smsgw.settings import Settings, load

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "smsgw" / "docs").glob("*.md"))
PORT = 8080

# What these do takes minutes and the network: .ci/run runs them, word by word.
RUN_BY_CI = ("pip install ", "pytest", "python -m smsgw.cli.binary ")

name_of: dict[str, Any] = {"ids": lambda path: path.name}


def commands_of(page: Path) -> list[str]:
    """Everything in blocks of shell commands, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [command for line in lines for command in line.split(" && ")]


def is_run_by_ci(command: str) -> bool:
    return command.startswith(RUN_BY_CI)


class Shell:
    """A new user's shell, in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: list[subprocess.Popen[str]] = []
        self.port = _port()
        programs = folder / "bin"
        programs.mkdir()
        program = programs / "smsgw"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m smsgw "$@"\n')
        program.chmod(0o755)
        # A refusal is a failure here, without changing what the README says.
        (folder / ".curlrc").write_text("fail-with-body\n")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SMSGW_")},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CURL_HOME": str(folder),
        }
        if self.port != PORT:
            self._environment["SMSGW_SERVER__PORT"] = str(self.port)

    def run(self, command: str) -> str:
        """Run a command to its end, or a server to its start; returns what it printed."""
        pasted = command.replace(f"localhost:{PORT}", f"localhost:{self.port}")
        if command.startswith("smsgw serve"):
            return self._serve(pasted)
        ended = subprocess.run(
            ["bash", "-c", pasted],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, f"{pasted}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def _serve(self, command: str) -> str:
        with (self._folder / "serve.log").open("w") as log:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._servers.append(server)
        assert server.stdout is not None
        line = server.stdout.readline()
        assert f":{self.port}" in line, (self._folder / "serve.log").read_text()
        return line

    def leave(self) -> None:
        """Stop the servers as a user does; they end well."""
        for server in self._servers:
            server.send_signal(signal.SIGINT)
            assert server.stdout is not None
            server.stdout.close()
            assert server.wait(30) == 0


def _port() -> int:
    """The port of the README, if nobody has it; else one that nobody has."""
    # Of tests that run at the same time, one may have it.
    first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    for port in (PORT, 0) if first else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise AssertionError("no port is free")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    if shutil.which("curl") is None:
        pytest.skip("THE README IS NOT TESTED: there is no curl on this machine")
    shell = Shell(tmp_path)
    yield shell
    shell.leave()


def test_the_commands_of_the_readme_work_as_pasted(shell: Shell) -> None:
    answers: list[Any] = []
    for command in commands_of(README):
        if is_run_by_ci(command):
            continue
        printed = shell.run(command)
        if command.startswith("curl "):
            answers.append(json.loads(printed))
    regular, express, code, batch, handsets = answers
    assert regular["status"] == "QUEUED"
    assert "submit_by" in express
    assert code["confirmed_by"] == "operator"
    assert (batch["accepted"], batch["rejected"]) == (2, 0)
    texts = {handset["text"] for handset in handsets["data"]}
    assert f"Your verification code is {code['otp_code']}" in texts
    assert {"Your parcel is on its way", "The alarm in hall 3 went off"} <= texts


@pytest.mark.parametrize("guide", [page for page in GUIDES if commands_of(page)], **name_of)
def test_the_commands_of_the_guides_work_as_pasted(guide: Path, shell: Shell) -> None:
    for command in commands_of(guide):
        shell.run(command)


def test_what_is_not_run_here_is_run_before_the_tests_word_by_word() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    elsewhere = [command for command in commands_of(README) if is_run_by_ci(command)]
    assert {command.split()[0] for command in elsewhere} == {"pip", "pytest", "python"}
    assert set(elsewhere) <= set(lines)


def test_only_known_programs_are_in_the_readme() -> None:
    programs = {command.split()[0] for command in commands_of(README) if not is_run_by_ci(command)}
    assert programs == {"curl", "smsgw"}


@pytest.mark.parametrize("page", [README, *GUIDES], **name_of)
def test_the_settings_in_a_page_are_right(page: Path, tmp_path: Path) -> None:
    for block in re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        path = tmp_path / "smsgw.toml"
        path.write_text(block)
        assert load(path, {}).model_fields_set


@pytest.mark.parametrize("page", [README, *GUIDES], **name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^):]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_readme_names_every_error_code() -> None:
    text = README.read_text()
    assert not [code for code in PROBLEMS if f"`{code}`" not in text]


def test_the_readme_names_every_route_and_no_other() -> None:
    paths = document(operations(dev=True), "0")["paths"]
    there = {f"{method.upper()} {path}" for path, item in paths.items() for method in item}
    named = set(re.findall(r"`((?:GET|POST|DELETE) /[^`?]+)`", README.read_text()))
    assert named == there


def commands_of_the_program() -> set[str]:
    def walk(command: Any, words: tuple[str, ...]) -> Iterator[str]:
        below = getattr(command, "commands", {})
        if command.callback and words and (not below or words[-1] in ("pause", "resume")):
            yield " ".join(words)
        for name, one in below.items():
            yield from walk(one, (*words, name))

    return set(walk(typer.main.get_command(app), ()))


def test_the_readme_names_every_command_and_no_other() -> None:
    table = re.findall(r"`smsgw ([a-z]+(?:[ -][a-z]+)*)(?= [A-Z-]|`)", README.read_text())
    there = commands_of_the_program()
    assert "pause client" in there
    assert set(table) - {"serve --dev"} == there


def test_the_readme_names_every_section_of_the_settings() -> None:
    text = README.read_text()
    sections = {name for name in Settings.model_fields if name != "providers"}
    assert not [name for name in sections if f"`[{name}]`" not in text]
    assert "`[providers.NAME]`" in text


def test_the_readme_names_every_number_of_the_mock_operator() -> None:
    numbers = {value for value in vars(mock).values() if str(value).startswith("+1500555000")}
    rows = set(re.findall(r"^\| `(\+\d+)` \|", README.read_text(), re.MULTILINE))
    assert len(numbers) == 9
    assert rows == numbers


def test_the_readme_shows_the_modules_that_there_are() -> None:
    (tree,) = re.findall(r"^```text\nsmsgw/\n(.*?)^```$", README.read_text(), re.MULTILINE | re.S)
    package = ROOT / "smsgw"
    there = {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    there |= {f"{path.name}/" for path in package.iterdir() if any(path.glob("*.[pm][yd]"))}
    assert {line.split()[0] for line in tree.splitlines()} == there


def test_the_guide_names_every_metric() -> None:
    page = Metrics().render().decode()
    names = set(re.findall(r"^# TYPE (\w+)", page, re.MULTILINE))
    named = set(re.findall(r"`(smsgw_\w+)`", (ROOT / "smsgw/docs/operations.md").read_text()))
    assert named == names
