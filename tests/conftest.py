"""Fixtures for every test: Hypothesis profiles, a gateway in this process, a served one."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from smsgw.clock import ManualClock
from smsgw.gateway import Gateway
from tests.support import Served, open_gateway

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

OpenGateway = Callable[..., Awaitable[Gateway]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def gateway_of(tmp_path: Path, clock: ManualClock) -> AsyncIterator[OpenGateway]:
    """Opens gateways on ``tmp_path / "data"`` with given settings; closes what is left open."""
    opened: list[Gateway] = []

    async def open_one(
        overrides: dict[str, dict[str, Any]] | None = None,
        *,
        serve: bool = True,
        manual: bool = True,
        data: Path | None = None,
    ) -> Gateway:
        gateway = await open_gateway(
            data or tmp_path / "data", overrides, clock if manual else None, serve=serve
        )
        opened.append(gateway)
        return gateway

    yield open_one
    for gateway in opened:
        await gateway.close()


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
