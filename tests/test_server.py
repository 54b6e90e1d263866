"""A process from its start to its end, also when the start does not go well."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsgw.api.server import serve
from smsgw.gateway import Gateway
from smsgw.settings import Settings, load, with_dev
from smsgw.store.sqlite import SqliteShard

LONG_S = 30


@pytest.fixture
def settings() -> Iterator[Settings]:
    before = os.umask(0o077)
    yield with_dev(load(None, {}, {"server": {"port": 0}}))
    os.umask(before)


async def test_a_loop_that_fails_during_the_start_ends_the_process(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: SqliteShard) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(SqliteShard, "tidy", fail)
    with pytest.raises(ExceptionGroup) as failed:
        await asyncio.wait_for(serve(settings, tmp_path / "data", dev=True), LONG_S)
    assert failed.group_contains(RuntimeError, match="a defect")


async def test_a_signal_during_the_start_stops_it_cleanly(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def recover_for_ever(_: Gateway) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(Gateway, "serve", recover_for_ever)
    await asyncio.wait_for(serve(settings, tmp_path / "data", dev=True), LONG_S)
    assert not (tmp_path / "data" / "admin.sock").exists()
    assert (tmp_path / "data" / "lock").read_text() == ""
