"""Builds, opens and closes everything, in an order one can read.

``Gateway.open`` gives the store and the entrance: enough for the command line to work on a data
directory that no server owns. ``serve`` adds what sends, expires and recovers; ``close`` ends it
all, in the reverse order.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from smsgw import memory
from smsgw.allotter import Allotter
from smsgw.clock import JUMP_MS, Clock, SystemClock
from smsgw.entrance import Entrance
from smsgw.errors import InvalidRequest, StorageUnavailable
from smsgw.fairness import Unshelve
from smsgw.fleet import Fleet, doubts
from smsgw.logs import get
from smsgw.metrics import Metrics
from smsgw.models import Message, Rules
from smsgw.otp import OtpDesk
from smsgw.providers.base import Provider
from smsgw.providers.mock import Sandbox
from smsgw.receipts import Receipts
from smsgw.recovery import recover_flights
from smsgw.routing import Routing
from smsgw.settings import Settings, differences
from smsgw.store.backup import ON_SERVER, Backups, Source
from smsgw.store.base import SharedStore
from smsgw.store.directory import DataDirectory, is_volatile
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards
from smsgw.store.sqlite_thread import VERSION_WAL_FIX
from smsgw.sweeper import Sweeper
from smsgw.worker import Worker

log = get(__name__)

LOOK_S: Final = 0.1
LOOK_CLOSER_S: Final = 1.0
_LOOKS: Final = round(LOOK_CLOSER_S / LOOK_S)
_DAY_S: Final = 86_400


def rules_from(settings: Settings) -> Rules:
    """The settings that decisions depend on, in the units decisions use."""
    delivery, limits, otp = settings.delivery, settings.limits, settings.otp
    return Rules(
        attempts_max=delivery.attempts_max,
        express_attempts_max=delivery.express_attempts_max,
        retry_base_ms=round(delivery.retry_base_s * 1000),
        retry_max_ms=round(delivery.retry_max_s * 1000),
        on_uncertain=delivery.on_uncertain,
        uncertain_ms=round(delivery.uncertain_s * 1000),
        receipt_timeout_ms=round(delivery.receipt_timeout_s * 1000),
        validity_ms=round(limits.validity_s * 1000),
        capture_on_sent=settings.billing.capture_on == "sent",
        backlog_max=limits.backlog_max,
        backlog_client_max=limits.backlog_client_max,
        guarantee_ms=round(settings.express.guarantee_s * 1000),
        otp_tries_max=otp.tries_max,
        otp_valid_ms=round(otp.valid_s * 1000),
        otp_digits=otp.digits,
        idempotency_ms=round(limits.idempotency_s * 1000),
    )


class Gateway:
    """One gateway: everything in a process that is about messages and money."""

    def __init__(
        self,
        settings: Settings,
        directory: DataDirectory,
        shards: Shards,
        clock: Clock,
        *,
        dev: bool,
    ) -> None:
        self.settings = settings
        self.reporting = dict(settings.providers)
        """Whose receipts are taken: also of those that a reload has removed."""
        self.directory = directory
        self.shards = shards
        self.clock = clock
        self.dev = dev
        self.serving = False
        self._closed = False
        self.clients_paused = 0
        self.metrics = Metrics()
        self.rules = rules_from(settings)
        self.sandbox = Sandbox() if dev else None
        self.allotter = Allotter(settings.delivery.regular_share)
        self.routing = Routing([])
        self.receipts = Receipts(clock, shards, self.rules, self.metrics)
        self.worker = Worker(
            clock,
            self.allotter,
            shards,
            self.receipts,
            self.routing,
            self.metrics,
            self.rules,
        )
        self.fleet = Fleet(
            settings.providers,
            settings.otp.window_share,
            clock,
            shards,
            self.allotter,
            self.routing,
            self.worker,
            self.metrics,
            self.sandbox,
        )
        self.entrance = Entrance(
            settings, self.rules, clock, self.routing, self.allotter, shards, self.metrics
        )
        self.otp = OtpDesk(
            settings.otp,
            self.rules,
            directory.key(),
            clock,
            self.entrance,
            self.allotter,
            self.worker,
            shards,
            self.metrics,
            self.receipts.watchers,
        )
        self.backups = Backups(clock)
        self._sweepers: list[Sweeper] = []
        self._loops: asyncio.Task[None] | None = None
        self._beside: list[asyncio.Task[None]] = []

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The operators that are connected, or about to be."""
        return self.fleet.providers

    @classmethod
    async def open(
        cls,
        settings: Settings,
        path: Path,
        *,
        purpose: str,
        dev: bool = False,
        clock: Clock | None = None,
    ) -> "Gateway":
        """Lock and open a data directory, and start the shards' loops; nothing is sent yet.

        Args:
            settings: the effective settings.
            path: the data directory.
            purpose: what holds the lock, for other processes to read.
            dev: whether the sandbox is there.
            clock: a test's clock.

        Raises:
            CannotStart: saying what is wrong and where.
        """
        clock = clock or SystemClock()
        memory.use_one_arena()
        directory = DataDirectory.open(path, purpose)
        try:
            shards = await Shards.open(directory, settings.store, clock.now_ms(), settings.postgres)
        except BaseException:
            directory.close()
            raise
        try:
            self = cls(settings, directory, shards, clock, dev=dev)
            await self._start()
        except BaseException:
            await shards.close()
            directory.close()
            raise
        return self

    async def _start(self) -> None:
        """Give numbers to routes, start every shard's loop, and set V to where it was."""
        self.allotter.stopped = True
        await self.fleet.open()
        self.shards.start(
            self.clock,
            self.allotter,
            self.metrics,
            self.settings.store.waiting_items_max,
            self._hand_over,
        )
        for number, store in self.shards.stores.items():
            self.allotter.start(number, dict(await store.lowest_ranks()))
        self._loops = asyncio.create_task(self.shards.run(), name="shards")
        await self.receipts.parked.open()
        await self.count_paused()

    def _hand_over(
        self,
        shard: Shard,
        messages: Sequence[Message],
        accepted_parts: Mapping[int, frozenset[int]],
    ) -> None:
        self.worker.hand_over(shard, messages, accepted_parts)

    async def serve(self) -> None:
        """Recover, connect to the operators, and begin to claim, send and sweep."""
        self._warn()
        await self._look_at_disk()
        await self.fleet.reroute()
        for shard in self.shards:
            await recover_flights(shard, self.rules)
            self.metrics.wal_bytes(shard.number, shard.store.wal_bytes())
        await self.otp.open()
        await self.fleet.start()
        for shard in self.shards:
            self._sweepers.append(self._sweeper(shard))
        self._beside = [
            asyncio.create_task(sweeper.run(), name="sweeper") for sweeper in self._sweepers
        ]
        self._beside.append(asyncio.create_task(self._look_after(), name="look after"))
        self._beside.append(asyncio.create_task(self._match_receipts(), name="match receipts"))
        self._beside += [
            asyncio.create_task(self._recover(shard, shard.store), name="recover")
            for shard in self.shards
            if isinstance(shard.store, SharedStore)
        ]
        memory.settle()
        await self.shards.serve(self.allotter)
        self.allotter.stopped = False
        self.serving = True
        self.worker.wake_soon()

    def _warn(self) -> None:
        """Say what an operator of the gateway should know."""
        if sqlite3.sqlite_version_info < VERSION_WAL_FIX:
            log.info(
                "sqlite.version",
                "this SQLite needs one writer per file, and that is what it gets",
                version=sqlite3.sqlite_version,
            )
        if self.shards.server is None and is_volatile(self.directory.path):
            log.warning("store.volatile", "the data directory is in memory: nothing is durable")
        if not self.providers:
            log.warning("providers.none", "there is no operator: messages are taken and wait")
        for doubt in doubts(self.settings.providers, self.settings.limits.unrouted):
            log.warning("providers.doubt", doubt)

    def _sweeper(self, shard: Shard) -> Sweeper:
        settings = self.settings
        return Sweeper(
            shard,
            self.clock,
            self.rules,
            self.metrics,
            idempotency_ms=round(settings.limits.idempotency_s * 1000),
            parked_ms=round(settings.delivery.receipt_parked_s * 1000),
            texts_ms=round(settings.retention.texts_days * _DAY_S * 1000),
            # A replay tells of a message: so it is kept for as long as its key at least.
            messages_ms=round(
                1000 * max(settings.retention.messages_days * _DAY_S, settings.limits.idempotency_s)
            ),
            route=self.routing.again,
            dropped=self.receipts.parked.dropped,
            resolve=self.receipts.resolve_due,
        )

    async def _look_after(self) -> None:
        """What is looked at all the time: lost answers, disk room, the clock, the loop's lag.

        Nothing here waits for a shard: its server may be away for long, and the others go on.
        """
        loop = asyncio.get_running_loop()
        count = 0
        while True:
            before_s = loop.time()
            await asyncio.sleep(LOOK_S)
            self.metrics.loop_lag(max(0.0, loop.time() - before_s - LOOK_S))
            self.worker.time_out()
            self.worker.wake_soon()
            count += 1
            if count % _LOOKS == 0:
                await self._look_closer()

    async def _look_closer(self) -> None:
        if isinstance(self.clock, SystemClock) and abs(ahead_ms := self.clock.slew()) > JUMP_MS:
            self.metrics.clock_jumped()
            log.warning("clock.jumped", "the wall clock is elsewhere", ahead_ms=ahead_ms)
        await self._look_at_disk()
        for lane, name in enumerate(("regular", "express")):
            self.metrics.queue_waiting(name, self.allotter.waiting(lane))
        self.fleet.look()
        for shard in self.shards:
            self.metrics.wal_bytes(shard.number, shard.store.wal_bytes())

    async def _recover(self, shard: Shard, store: SharedStore) -> None:
        """Decide about what gateways that are no more were sending, whenever there is any."""
        while True:
            await asyncio.sleep(LOOK_CLOSER_S)
            if store.orphans:
                with contextlib.suppress(StorageUnavailable):
                    await recover_flights(shard, self.rules)

    async def _match_receipts(self) -> None:
        """Look again and again for the messages of receipts that are parked."""
        while True:
            await asyncio.sleep(LOOK_CLOSER_S)
            await self._match_receipts_now()

    async def _match_receipts_now(self) -> None:
        if self.shards.server is not None:
            # What is parked where nothing can be read now is looked at later.
            with contextlib.suppress(StorageUnavailable):
                await self.receipts.parked.look_again()
        await self.receipts.match_again(100)

    async def _look_at_disk(self) -> None:
        if self.shards.server is not None:
            # The room that counts is the server's, and it says itself when there is none.
            return
        free_bytes = await asyncio.to_thread(self.directory.free_bytes)
        self.entrance.disk_full = free_bytes < self.settings.store.free_bytes_min

    async def pause(self, subject: str, *, paused: bool) -> None:
        """Stop, or resume, claiming for everything (``PAUSE_ALL``) or for one provider."""
        await self.shards.catalog.set_paused(subject, paused=paused)
        self.fleet.read_pauses()
        self.worker.wake_soon()

    def back_up(self, target: Path) -> None:
        """Begin a backup.

        Raises:
            InvalidRequest: the store is not in files.
            AlreadyExists: another one is being made.
            ShuttingDown: the gateway stops.
        """
        catalog = self.shards.catalog
        if self.shards.server is not None:
            raise InvalidRequest(ON_SERVER)
        source = Source(
            self.directory.path,
            catalog.store_id,
            catalog.epoch,
            catalog.shards,
            self.directory.key(),
            self.settings.store.free_bytes_min,
        )
        self.backups.start(source, target)

    async def reload(self, settings: Settings) -> None:
        """Take over what may change while the gateway runs: the operators.

        Raises:
            SettingsError: one of them cannot be used; nothing has changed.
            StorageUnavailable: their routes cannot be noted; nothing has changed.
        """
        new = await self.fleet.prepare(settings.providers)
        waits = [
            key
            for key in differences(self.settings, settings)
            if not key.startswith(("providers.", "log."))
        ]
        # Before the new ones are connected: whoever can send is known, and its receipts are taken.
        self.settings = self.settings.model_copy(
            update={"providers": settings.providers, "log": settings.log}
        )
        self.reporting |= settings.providers
        await self.fleet.reload(settings.providers, new)
        log.info("settings.reloaded", "the settings were read again")
        for key in waits:
            log.warning("settings.waits", "this change needs a restart", key=key)

    async def count_paused(self) -> None:
        """Know how many clients are paused."""
        counts = [await shard.store.read("clients_paused") for shard in self.shards]
        self.clients_paused = sum(rows[0][0] for rows in counts)

    async def unshelve(self, client_id: bytes, number: int) -> None:
        """Bring a resumed client's messages back into their queues."""
        shard = self.shards.of_client(client_id)
        while await shard.ask(Unshelve(client_id, number)):
            self.worker.wake_soon()

    async def watch(self) -> None:
        """Return or raise when a loop that must run for ever has ended.

        Raises:
            ExceptionGroup: why a shard's loop ended.
        """
        assert self._loops is not None
        done, _ = await asyncio.wait(
            {self._loops, *self._beside}, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()

    def trouble(self) -> dict[str, str]:
        """What does not work now, by name: shards, providers."""
        found = {f"shard {shard.number}": shard.trouble for shard in self.shards if shard.trouble}
        for name, provider in self.providers.items():
            if (why := provider.trouble) is not None:
                found[f"provider {name}"] = why
            elif self.allotter.links[name].probes():
                found[f"provider {name}"] = "it does not answer as it should; its breaker is open"
            elif self.fleet.changing(name):
                found[f"provider {name}"] = "its connections are being exchanged or closed"
            elif (why := provider.warning) is not None:
                found[f"provider {name}"] = why
        return found | {f"provider {name}": why for name, why in self.fleet.failed.items()}

    async def drain(self) -> None:
        """Take nothing new, and wait for what is in flight."""
        self.entrance.closed = True
        await self.backups.close()
        if self.serving:
            self.serving = False
            await self.worker.drain(self.settings.server.shutdown_s)
            await self.otp.drain()
            await self.entrance.drain()
            for sweeper in self._sweepers:
                sweeper.stop()
            await self.fleet.stop()
            await self.receipts.drain()

    async def close(self) -> None:
        """Drain, commit every outcome, close the files; a second time, do nothing."""
        if self._closed:
            return
        self._closed = True
        await self.drain()
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        for shard in self.shards:
            shard.stop()
        if self._loops is not None:
            with contextlib.suppress(BaseException):
                await self._loops
        await self.shards.close()
        self.directory.close()
