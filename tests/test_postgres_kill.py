"""Gateways are killed, and connections cut, under load: nothing is lost, nothing counts twice."""

import asyncio
import contextlib
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smsgw.admission import key_use
from smsgw.errors import StorageUnavailable
from smsgw.models import Status
from tests import postgres
from tests.conftest import OpenGateway
from tests.support import Served, account_of, add_client, assert_clean, flushed, send
from tests.test_kill import FINAL, Load, Request

BACKENDS = ("postgres",)
CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as found:
        yield found


def environment(url: str, journal: Path) -> dict[str, str]:
    return {
        "SMSGW_STORE__SHARD_URLS": url,
        "SMSGW_STORE__SHARDS": "2",
        "SMSGW_POSTGRES__LEASE_S": "1",
        "SMSGW_DELIVERY__UNCERTAIN_S": "1",
        "SMSGW_DELIVERY__RECEIPT_TIMEOUT_S": "3",
        "SMSGW_PROVIDERS__MOCK__LATENCY_MS": "30",
        "SMSGW_PROVIDERS__MOCK__JOURNAL": str(journal),
    }


def left(*journals: Path) -> Counter[tuple[str, int]]:
    """How often each part of each message left."""
    found: Counter[tuple[str, int]] = Counter()
    for journal in journals:
        for line in journal.read_text().splitlines():
            row = json.loads(line)
            found[row["message_id"], row["part"]] += 1
    return found


def check(served: Served, requests: list[Request], *journals: Path) -> int:
    """Everything that was accepted has ended, once, and every cent is where it belongs."""
    accepted = {identifier for request in requests for identifier in request.ids()}
    for identifier in accepted:
        message = served.message(identifier, wait_s=20)
        assert message["status"] in FINAL, message
    assert max(left(*journals).values()) == 1, "nothing left twice"
    audit = served.cli("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    return len(accepted)


def repeated(served: Served, requests: list[Request]) -> int:
    """What was answered under a key is answered alike by a gateway that never saw it."""
    count = 0
    for request in requests:
        if request.key is None or request.status != 202:
            continue
        headers = {"Idempotency-Key": request.key}
        again = served.request("POST", request.path, request.body, headers)
        assert again == (request.status, request.answer)
        count += 1
    return count


def test_a_gateway_that_is_killed_leaves_its_work_to_the_other(
    served: Callable[..., Served], url: str, tmp_path: Path
) -> None:
    journals = [tmp_path / f"{n}.jsonl" for n in range(2)]
    first = served(environment(url, journals[0]), tmp_path / "a")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "otp.key", tmp_path / "b" / "otp.key")
    second = served(environment(url, journals[1]), tmp_path / "b")
    loads = [Load(first.port, 1, 3), Load(second.port, 2, 3)]
    with loads[1].running():
        with loads[0].running():
            loads[0].answered(60)
            first.process.send_signal(signal.SIGKILL)
        loads[1].answered(150)
    requests = [request for load in loads for request in load.requests]
    assert check(second, requests, *journals) > 100
    assert repeated(second, loads[0].requests) > 10
    assert second.stop() == 0


def test_a_gateway_that_is_killed_goes_on_at_once_when_it_starts_again(
    served: Callable[..., Served], url: str, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    environ = {**environment(url, journal), "SMSGW_POSTGRES__LEASE_S": "600"}
    requests: list[Request] = []
    for seed in range(2):
        gateway = served(environ, tmp_path / "a")
        load = Load(gateway.port, seed, 3)
        with load.running():
            load.answered(50)
            gateway.process.send_signal(signal.SIGKILL)
        requests += load.requests
    gateway = served(environ, tmp_path / "a")
    check(gateway, requests, journal)
    assert gateway.stop() == 0


async def test_connections_that_break_at_any_moment_lose_nothing_and_double_nothing(
    gateway_of: OpenGateway, store_settings: dict[str, Any]
) -> None:
    gateway = await gateway_of(manual=False)
    client = await add_client(gateway, 10_000)
    unknown = 0
    one_at_a_time = asyncio.Lock()

    async def insist(number: int) -> None:
        """Send a message under a key until it is accepted."""
        nonlocal unknown
        key = key_use(str(number), "messages")
        while True:
            try:
                await send(gateway, client, key=key)
            except StorageUnavailable as refused:
                unknown += refused.members["outcome"] == "unknown"
                async with one_at_a_time:
                    await asyncio.to_thread(cutter.execute, "SELECT 1")
            else:
                return

    with contextlib.closing(postgres.Sql(store_settings["shard_urls"][0])) as cutter:
        for round_ in range(8):
            sending = asyncio.gather(*(insist(round_ * 20 + n) for n in range(20)))
            for _ in range(3):
                async with one_at_a_time:
                    await asyncio.to_thread(cutter.execute, CUT)
            await sending
    while gateway.trouble():
        await asyncio.wait_for(gateway.shards.catalog.routes([]), 10)
    await flushed(gateway)
    account = await account_of(gateway, client)
    while account.held_cents:
        account = await account_of(gateway, client)
    assert (account.credits_cents, account.charged_cents) == (10_000 - 160 * 5, 160 * 5)
    for shard in gateway.shards:
        for (status,) in await shard.store.read("uncertain_list", 10):
            assert status == Status.DELIVERED
    await assert_clean(gateway)
