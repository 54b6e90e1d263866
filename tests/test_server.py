"""A process from its start to its end, also when the start does not go well."""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsgw.api.server import _reload, serve
from smsgw.errors import StorageUnavailable
from smsgw.gateway import Gateway
from smsgw.settings import Settings, load, with_dev
from smsgw.store.sqlite import SqliteShard
from tests.conftest import OpenGateway

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


@pytest.mark.parametrize(
    "error", [StorageUnavailable("The catalog is not available now."), RuntimeError("a defect")]
)
async def test_a_signal_to_read_the_settings_again_is_heard_also_after_one_that_failed(
    settings: Settings,
    gateway_of: OpenGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    gateway = await gateway_of()
    # Another test may have set up the log of the whole process.
    monkeypatch.setattr(logging.getLogger("smsgw"), "propagate", True)
    hangup, reloaded = asyncio.Event(), asyncio.Event()
    errors = [error]

    async def reload(_: Settings) -> None:
        if errors:
            # The next signal comes while this one is not over.
            hangup.set()
            raise errors.pop()
        reloaded.set()

    monkeypatch.setattr(gateway, "reload", reload)
    reloading = asyncio.create_task(_reload(gateway, hangup, lambda: settings))
    waiting = asyncio.create_task(reloaded.wait())
    hangup.set()
    await asyncio.wait({reloading, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert reloaded.is_set()
    assert not reloading.done()
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    reloading.cancel()
    await asyncio.gather(reloading, waiting, return_exceptions=True)
