"""How long it takes until an operator is tried again; what it is tried with is in other tests."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from smsgw.operators import SmppProviderSettings
from smsgw.providers.smpp.bodies import Command
from smsgw.providers.smpp.keeper import STEADY_S, Keeper, _why_not
from smsgw.providers.smpp.link import Ending

GONE = Ending("gone")
WRONG = Ending("wrong password", hopeless=True)


async def pauses(
    monkeypatch: pytest.MonkeyPatch, held: list[tuple[float, Ending]], jitter: float = 1.0
) -> list[float]:
    """How long a keeper waits after each of these."""
    found: list[float] = []
    told: list[Ending] = []
    script: Iterator[tuple[float, Ending]] = iter(held)

    class Owner:
        def failed(self, ending: Ending) -> None:
            told.append(ending)

    async def hold() -> tuple[float, Ending]:
        one = next(script, None)
        if one is None:
            raise asyncio.CancelledError
        return one

    async def sleep(delay_s: float) -> None:
        found.append(delay_s)

    settings = SmppProviderSettings(
        kind="smpp", host="h", system_id="a", reconnect_min_s=1.0, reconnect_max_s=60.0
    )
    owner = cast(Any, Owner())
    keeper = Keeper("op", settings, Command.BIND_TRANSCEIVER, 1, None, owner, jitter=lambda: jitter)
    monkeypatch.setattr(keeper, "_hold", hold)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await keeper._run()
    assert told == [ending for _, ending in held]
    return found


async def test_waits_grow_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pauses(monkeypatch, [(0.0, GONE)] * 8) == [1, 2, 4, 8, 16, 32, 60, 60]
    assert (await pauses(monkeypatch, [(0.0, GONE)] * 2000))[-1] == 60


async def test_waits_are_not_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pauses(monkeypatch, [(0.0, GONE)] * 3, jitter=0.0) == [0.5, 1, 2]


async def test_a_bind_that_held_is_soon_made_again_and_one_that_did_not_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = [(0.0, GONE)] * 3 + [(STEADY_S, GONE)] + [(STEADY_S - 1, GONE)] * 2
    assert await pauses(monkeypatch, held) == [1, 2, 4, 1, 2, 4]


async def test_what_is_hopeless_is_not_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pauses(monkeypatch, [(0.0, WRONG), (0.0, WRONG), (0.0, GONE)]) == [60, 60, 4]


@pytest.mark.parametrize("host", ["a..b", ".x", "x" * 64])
async def test_a_name_that_cannot_be_one_does_not_end_the_attempts(host: str) -> None:
    # No settings say so; what was not foreseen there shall not be the end of a bind.
    settings = SmppProviderSettings.model_construct(host=host, port=9, link_timeout_s=30.0)
    keeper = Keeper("op", settings, Command.BIND_TRANSCEIVER, 1, None, cast(Any, None))
    lasted_s, ending = await keeper._hold()
    why = "the operator's name cannot be one; look at host and tls_server_name"
    assert (lasted_s, ending) == (0.0, Ending(why, hopeless=True))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (socket.gaierror(-2, "Name or service not known"), "the operator's name has no address"),
        (OSError(113, "No route to host"), "no connection to the operator"),
    ],
)
def test_a_connection_that_cannot_be_made_is_told_in_words(error: OSError, why: str) -> None:
    assert _why_not(error) == why
