"""What handsets send is acknowledged, counted and logged, and breaks nothing, whatever it is."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smsgw.logs import JsonFormatter
from smsgw.providers.smpp.bodies import Command, Pdu
from tests.conftest import OpenGateway
from tests.pdus import DELIVER_SM, OK, RESPONSE
from tests.smpp_operator import Operator, operator
from tests.smsc import Smsc
from tests.test_smpp_trip import site_with

HANDSET, OURS = "989121234567", "3000"
ADDRESSES = b"\0\1\1989121234567\0\1\0003000\0"
_DELIVERIES = [Command.DELIVER_SM, Command.DATA_SM]

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """The lines about handsets so far, as they stand in the log."""
    # Another test may have set up the log of the whole process.
    monkeypatch.setattr(logging.getLogger("smsgw"), "propagate", True)
    caplog.set_level(logging.INFO, logger="smsgw")

    def read() -> list[dict[str, Any]]:
        every = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
        return [line for line in every if line.get("action") == "smpp.inbound"]

    return read


async def test_a_message_of_a_handset_is_acknowledged_and_logged_without_its_text(
    lines: Lines,
) -> None:
    async with Smsc() as smsc, operator(smsc.port) as op:
        (session,) = await smsc.binds()
        answer = await session.message(HANDSET, OURS, b"STOP 1234567").answered()
        assert (answer.status, op.wrote_count, op.receipts) == (OK, 1, [])
    (line,) = lines()
    assert (line["level"], line["provider"], line["octets"]) == ("info", "op", 12)
    assert (line["from"], line["to"]) == ("********4567", "3000")
    assert "STOP" not in json.dumps(line)


async def test_each_is_counted_for_its_operator(gateway_of: OpenGateway) -> None:
    async with Smsc() as smsc, site_with(gateway_of, smsc) as site:
        (session,) = await smsc.binds()
        for text in (b"one", b"", bytes(range(140))):
            await session.message(HANDSET, OURS, text).answered()
        await site.ended(await site.send())
        assert len(await smsc.saw(DELIVER_SM | RESPONSE, 4)) == 4
        page = (await site.http.get("/metrics")).text
        assert 'smsgw_inbound_total{provider="op"} 3.0' in page


class Bind:
    """A link that keeps what is answered."""

    held = 1

    def __init__(self) -> None:
        self.answers: list[int] = []

    def reply(self, request: Pdu, status: int) -> None:
        self.answers.append(status)


def _message(esm_class: int, coding: int, octets: bytes, rest: bytes) -> bytes:
    head = bytes((esm_class, 0, 0, 0, 0, 0, 0, coding, 0, len(octets)))
    return ADDRESSES + head + octets + rest


hostile = st.one_of(
    st.binary(max_size=400),
    st.binary(max_size=300).map(lambda rest: ADDRESSES + rest),
    st.builds(
        _message,
        st.integers(0, 255),
        st.integers(0, 255),
        st.one_of(
            st.binary(max_size=254),
            st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")[:254]),
            st.sampled_from([b"id:1 stat:DELIVRD", b"\xff\xfe", b"\xd8\0", b"\x05\0\x03", b"id:"]),
        ),
        st.binary(max_size=60),
    ),
    st.binary(min_size=1, max_size=30).map(
        lambda name: b"\0\5\0" + name.replace(b"\0", b"") + b"\0\1\0003000\0" + bytes(10)
    ),
)


@given(command=st.sampled_from(_DELIVERIES), body=hostile)
@example(command=Command.DELIVER_SM, body=b"")
@example(command=Command.DELIVER_SM, body=_message(0x40, 8, b"\x05", b"\x04"))
@example(command=Command.DATA_SM, body=b"\0\0\0" + b"9" * 3000)
async def test_whatever_comes_is_answered_once_and_the_log_can_be_written(
    command: Command, body: bytes
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    ours = logging.getLogger("smsgw.providers.smpp.provider")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        op, bind = Operator(port=1), Bind()
        op.provider._sink = op
        op.provider.delivered(bind, Pdu(command, 0, 1, body))  # type: ignore[arg-type]
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)
    assert len(bind.answers) == 1
    assert len(op.receipts) + op.wrote_count <= 1
    for record in records:
        json.loads(JsonFormatter().format(record))
