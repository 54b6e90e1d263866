"""SMSCs and clients that others wrote, each in a process of its own.

Every peer prints one JSON object a line, and an SMSC begins with ``{"event": "listening"}``. What
is not on this machine skips the test and says what is missing.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import clean_environment

HERE: Final = Path(__file__).parent
NODE_MODULES: Final = Path(__file__).parents[2] / ".ci" / "node" / "node_modules"
DRIVE_SMPP: Final = Path("/usr/lib/kannel/test/drive_smpp")
LIMIT_S: Final = 30


class Peer:
    """Another's SMSC, or its client, that runs."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.events: list[dict[str, Any]] = []
        self.ended = False
        self._changed = asyncio.Event()

    def of(self, event: str) -> list[dict[str, Any]]:
        """What it told under that name, oldest first."""
        return [told for told in self.events if told["event"] == event]

    async def saw(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """The same, once there are so many.

        Raises:
            AssertionError: it ended before, or took too long.
        """
        try:
            async with asyncio.timeout(LIMIT_S):
                while len(self.of(event)) < count and not self.ended:
                    await self._changed.wait()
        except TimeoutError:
            pass
        assert len(self.of(event)) >= count, self.events
        return self.of(event)

    async def follow(self, lines: asyncio.StreamReader, told: Callable[[str], Any]) -> None:
        """Read what it prints until it ends."""
        async for line in lines:
            event = told(line.decode(errors="replace"))
            if event is not None:
                self.events.append(event)
                self._tell()
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@contextlib.asynccontextmanager
async def _started(
    *command: str | Path,
    port: int = 0,
    environ: dict[str, str] | None = None,
    told: Callable[[str], Any] = json.loads,
) -> AsyncIterator[Peer]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if told is json.loads else subprocess.STDOUT,
        env={**clean_environment(), **(environ or {})},
    )
    assert process.stdout is not None
    peer = Peer(port)
    follower = asyncio.create_task(peer.follow(process.stdout, told))
    try:
        yield peer
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await follower


@contextlib.asynccontextmanager
async def _smsc(*command: str | Path, environ: dict[str, str] | None = None) -> AsyncIterator[Peer]:
    async with _started(*command, environ=environ) as peer:
        peer.port = (await peer.saw("listening"))[0]["port"]
        yield peer


def needs_smpp34() -> None:
    """Skip where the package smpp34 is not installed."""
    if importlib.util.find_spec("smpp34") is None:
        pytest.skip("smpp34 has no wheel for this platform: its SMSC and client did not run")


def needs_node() -> Path:
    """Skip where node or node-smpp is not there; where its modules are."""
    modules = Path(os.environ.get("SMSGW_TEST_NODE_MODULES") or NODE_MODULES)
    if shutil.which("node") is None:
        pytest.skip("there is no node: node-smpp did not run")
    if not (modules / "smpp").is_dir():
        pytest.skip(f"no node-smpp in {modules} (npm install --prefix {modules.parent} smpp)")
    return modules


def needs_kannel() -> Path:
    """Skip where Kannel's SMSC is not there; where it is."""
    program = Path(os.environ.get("SMSGW_TEST_DRIVE_SMPP") or DRIVE_SMPP)
    if not program.is_file():
        pytest.skip(f"no {program} (apt install kannel-extras): Kannel's SMSC did not run")
    return program


def smpp34_smsc(**options: Any) -> contextlib.AbstractAsyncContextManager[Peer]:
    """The SMSC of smpp34 (Rust).

    It tells of ``bound`` (system_id, receives), ``submit`` (the fields; short_message in hex, tlvs
    as [tag, hex], its message_id), ``receipt`` (message_id, command_status) and ``unbound``.

    Args:
        **options: ``throttle`` so many submits first; ``receipts`` False for none.
    """
    needs_smpp34()
    return _smsc(sys.executable, HERE / "rust.py", "smsc", json.dumps(options))


def node_smsc(**options: Any) -> contextlib.AbstractAsyncContextManager[Peer]:
    """The SMSC of node-smpp, which tells the same as that of smpp34, and of ``enquire_link``.

    Args:
        **options: ``throttle`` and ``receipts`` as there; ``password`` to ask for;
            ``close_after`` so many submits the connection is gone before the answer;
            ``key`` and ``cert``, paths of PEM files, for TLS.
    """
    environ = {"NODE_PATH": str(needs_node())}
    return _smsc("node", HERE / "node.js", "smsc", json.dumps(options), environ=environ)


def smpp34_client(port: int, **options: Any) -> contextlib.AbstractAsyncContextManager[Peer]:
    """The client of smpp34, which binds as a transceiver, submits, and waits for receipts.

    It tells of ``bound``, ``submit`` (message_id, command_status), ``delivered`` (esm_class,
    short_message in hex, tlvs) and ``unbound``, after which it ends.

    Args:
        port: of the SMSC.
        **options: ``count`` of messages, and of receipts to wait for before it unbinds.
    """
    needs_smpp34()
    return _started(
        sys.executable, HERE / "rust.py", "client", json.dumps({**options, "port": port}), port=port
    )


def node_client(port: int, **options: Any) -> contextlib.AbstractAsyncContextManager[Peer]:
    """The client of node-smpp, which does the same.

    Args:
        port: of the SMSC.
        **options: as for smpp34; ``ca``, the path of a PEM file, for TLS.
    """
    environ = {"NODE_PATH": str(needs_node())}
    command = ("node", HERE / "node.js", "client", json.dumps({**options, "port": port}))
    return _started(*command, port=port, environ=environ)


@contextlib.asynccontextmanager
async def kannel_smsc(messages: int = 2) -> AsyncIterator[Peer]:
    """Kannel's drive_smpp: one transmitter, then one receiver; it dies of a transceiver.

    It answers with an empty message_id, sends no receipts, and sends its own messages as soon as
    the receiver is bound: their sequence_number is 0 the first time, and they carry a
    receipted_message_id though they are none. It tells of ``pdu`` (name) and ``submit``
    (short_message).

    Args:
        messages: how many of its own it sends.
    """
    program = needs_kannel()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = (program, "-v", "0", "-p", str(port), "-m", str(messages))
    async with _started(*command, port=port, told=_kannel_event) as peer:
        # A connection to try it with would be taken for the transmitter.
        while not _listens(port) and not peer.ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield peer


def _kannel_event(line: str) -> dict[str, Any] | None:
    if found := re.search(r"Handling SMPP PDU of type (\w+)", line):
        return {"event": "pdu", "name": found[1]}
    if found := re.search(r"submit_sm: short_message = <(.*)>", line):
        return {"event": "submit", "short_message": found[1]}
    return None


def _listens(port: int) -> bool:
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)


def tshark(pdus: bytes) -> str:
    """What Wireshark reads in PDUs, with user data headers and texts; skips where it is not there.

    Args:
        pdus: whole PDUs, one after the other, as a client sends them.
    """
    for program in ("text2pcap", "tshark"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} (apt install tshark): nothing else decoded these PDUs")
    rows = (pdus[at : at + 16] for at in range(0, len(pdus), 16))
    dump = "".join(f"{number * 16:06x} {row.hex(' ')}\n" for number, row in enumerate(rows))
    packets = _run("text2pcap", "-q", "-T", "40000,2775", "-", "-", given=dump.encode())
    return _run("tshark", "-r", "-", "-O", "smpp,gsm_sms_ud", given=packets).decode()


def _run(*command: str, given: bytes) -> bytes:
    return subprocess.run(command, input=given, capture_output=True, check=True, timeout=60).stdout
