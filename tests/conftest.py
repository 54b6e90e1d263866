"""Fixtures for every test: Hypothesis profiles, a gateway in this process, a served one."""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import smsgw
from smsgw.clock import ManualClock
from smsgw.gateway import Gateway
from smsgw.store import pace, shard, shards
from tests import postgres
from tests.outside import Site
from tests.support import Served, open_gateway

# Programs that tests start find the same copy of the package as the tests themselves.
os.environ["PYTHONPATH"] = str(Path(smsgw.__file__).parents[1])

# In one process with its gateway, a test need not wait for turns to keep apart.
shard.PACE = pace.AT_ONCE
shards.SERVER_PACE = pace.AT_ONCE

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

OpenGateway = Callable[..., Awaitable[Gateway]]
SiteOf = Callable[..., Site]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def pytest_sessionfinish() -> None:
    postgres.stop_server()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of a module that names its ``BACKENDS`` run on each of them."""
    if "backend" in metafunc.fixturenames:
        backends = getattr(metafunc.module, "BACKENDS", ("sqlite",))
        if marker := metafunc.definition.get_closest_marker("backends"):
            backends = marker.args
        metafunc.parametrize("backend", backends, indirect=True, ids=lambda name: name)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Where the store of this test is: in files (``sqlite``), or in ``postgres``."""
    return str(request.param)


@pytest.fixture
def store_settings(backend: str) -> Iterator[dict[str, Any]]:
    """What the settings say of a store that is there for one test."""
    if backend == "sqlite":
        yield {}
    else:
        with postgres.database() as url:
            yield {"shard_urls": [url], "shards": 2}


@pytest.fixture
async def gateway_of(
    tmp_path: Path, clock: ManualClock, store_settings: dict[str, Any]
) -> AsyncIterator[OpenGateway]:
    """Opens gateways on ``tmp_path / "data"`` with given settings; closes what is left open."""
    # A connection that stays open would keep the tests from ending: one failure stops no other.
    opened = contextlib.AsyncExitStack()

    async def open_one(
        overrides: dict[str, dict[str, Any]] | None = None,
        *,
        serve: bool = True,
        manual: bool = True,
        data: Path | None = None,
    ) -> Gateway:
        asked = overrides or {}
        settings = {**asked, "store": {**store_settings, **asked.get("store", {})}}
        gateway = await open_gateway(
            data or tmp_path / "data", settings, clock if manual else None, serve=serve
        )
        opened.push_async_callback(gateway.close)
        return gateway

    async with opened:
        yield open_one


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts ``smsgw serve --dev`` in a process of its own; ends what is left running."""
    running: list[Served] = []

    def start(environ: dict[str, str] | None = None, data: Path | None = None) -> Served:
        process = Served(data or tmp_path / "data", environ or {})
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()


@pytest.fixture(scope="module")
def site_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteOf]:
    """A served gateway for each set of settings, kept for all tests of a module.

    Settings are written as ``otp__digits=4``; one that many tests use is better not stopped.
    """
    sites: dict[tuple[tuple[str, str], ...], Site] = {}

    def start(**settings: object) -> Site:
        names = tuple(sorted((f"SMSGW_{key.upper()}", str(settings[key])) for key in settings))
        if names not in sites:
            folder = tmp_path_factory.mktemp("site")
            journal = folder / "journal.jsonl"
            environ = {"SMSGW_PROVIDERS__MOCK__JOURNAL": str(journal), **dict(names)}
            sites[names] = Site(Served(folder / "data", environ), journal)
        return sites[names]

    yield start
    for site in sites.values():
        site.served.kill()


@pytest.fixture(scope="module")
def site(site_of: SiteOf) -> Site:
    """A served gateway with the settings of ``serve --dev``."""
    return site_of()
