"""The routes about operators, and what ``/ready`` says of them, on a gateway in this process."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from smsgw import fleet
from smsgw.api.app import admin_app
from smsgw.api.status import StatusRoutes
from smsgw.clock import ManualClock, rfc3339
from smsgw.gateway import Gateway
from smsgw.models import Verdict
from tests.conftest import OpenGateway
from tests.stores import read_only
from tests.support import add_client, send
from tests.test_failover import MOCK, Operator, serve, settled


@asynccontextmanager
async def admin_of(gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    """What the command line speaks to."""
    transport = httpx2.ASGITransport(app=admin_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


async def shown(gateway: Gateway, name: str = "a") -> dict[str, Any]:
    """An operator as the list shows it, which is as it is shown alone."""
    async with admin_of(gateway) as http:
        rows = (await http.get("/admin/providers")).json()["data"]
        alone = (await http.get(f"/admin/providers/{name}")).json()
    row: dict[str, Any] = next(row for row in rows if row["name"] == name)
    assert row.items() <= alone.items()
    return row


async def test_one_that_was_told_to_slow_down_shows_until_when_it_rests(
    gateway_of: OpenGateway, clock: ManualClock
) -> None:
    gateway, (a,) = await serve(gateway_of, {"a": MOCK})
    client = await add_client(gateway)
    assert (await shown(gateway))["resting_until"] is None
    await send(gateway, client)
    a.answer(await a.next(), Verdict.THROTTLED, retry_after_s=3600.0)
    resting = await shown(gateway)
    assert resting["state"] == "up"
    assert resting["resting_until"] == rfc3339(clock.now_ms() + 3_600_000)
    clock.advance(3600)
    assert (await shown(gateway))["resting_until"] is None


async def start_badly(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Disable an operator, and enable it again with connections that cannot be opened."""
    made = Operator("a")

    async def unable(_: object) -> None:
        raise error

    await gateway.fleet.switch("a", on=False)
    await settled(gateway)
    with monkeypatch.context() as broken:
        broken.setattr(made, "start", unable)
        broken.setattr(fleet, "_build", lambda *_: made)
        await gateway.fleet.switch("a", on=True)
        await settled(gateway)


async def test_one_that_could_not_be_started_says_why_until_it_is(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = await serve(gateway_of, {"a": MOCK, "b": MOCK})
    error = OSError(errno.ENOENT, "No such file or directory", "/nowhere/journal")
    await start_badly(gateway, monkeypatch, error)
    why = "it could not be started: No such file or directory: /nowhere/journal"
    row = await shown(gateway)
    assert (row["state"], row["why"]) == ("down", why)
    ready = StatusRoutes(gateway).judge()
    assert ready == {"status": "ready", "degraded": [f"provider a: {why}"]}
    await gateway.fleet.switch("a", on=False)
    assert StatusRoutes(gateway).judge()["degraded"][-1] == "disabled: provider a"
    await settled(gateway)
    assert gateway.trouble() == {}
    await gateway.fleet.switch("a", on=True)
    await settled(gateway)
    assert (await shown(gateway))["state"] == "up"
    assert gateway.trouble() == {}


async def test_why_one_could_not_be_started_is_told_without_what_an_error_may_repeat(
    gateway_of: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = await serve(gateway_of, {"a": MOCK, "b": MOCK})
    await start_badly(gateway, monkeypatch, ValueError("https://a.example/?key=canary"))
    why = "it could not be started: the log says why"
    assert gateway.trouble() == {"provider a": why}
    assert (await shown(gateway))["why"] == why


@pytest.mark.parametrize("verb", ["disable", "enable"])
async def test_a_switch_that_cannot_be_noted_is_refused_as_a_matter_of_the_storage(
    gateway_of: OpenGateway, verb: str
) -> None:
    gateway, _ = await serve(gateway_of, {"a": MOCK})
    if verb == "enable":
        await gateway.fleet.switch("a", on=False)
    before = gateway.fleet.is_disabled("a")
    async with admin_of(gateway) as http, read_only(gateway.shards.catalog):
        answer = await http.post(f"/admin/providers/a/{verb}")
    assert answer.status_code == 503, answer.text
    assert (answer.json()["code"], answer.json()["outcome"]) == ("storage_unavailable", "none")
    assert gateway.fleet.is_disabled("a") is before
