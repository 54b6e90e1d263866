"""The operators: which there are, which are connected, and how that changes while messages travel.

What is to be follows from the settings and from what was disabled by hand. A change of either ends
in ``_follow``, which brings links and routes in line with it at once, and connections as soon as
what is in flight on the old ones has its answers.
"""

import asyncio
import uuid
from collections.abc import Collection, Coroutine, Iterable, Mapping
from typing import Any, Final

from smsgw.admission import Draft
from smsgw.allotter import Allotter
from smsgw.clock import Clock
from smsgw.errors import (
    InvalidRequest,
    NotReady,
    SettingsError,
    SmsgwError,
    StorageUnavailable,
)
from smsgw.ids import NUMBER_MAX
from smsgw.links import Bucket, Link
from smsgw.logs import get
from smsgw.metrics import Metrics
from smsgw.models import Outcome
from smsgw.operators import (
    HttpProviderSettings,
    MockProviderSettings,
    ProviderSettings,
    SmppProviderSettings,
)
from smsgw.providers import http
from smsgw.providers.base import NO_SHARD, Accepted, Provider, Submission
from smsgw.providers.mock import MockProvider, Sandbox
from smsgw.providers.smpp.provider import SmppProvider
from smsgw.recovery import reroute
from smsgw.routing import Operator, Routing, operators_of
from smsgw.store.catalog import DISABLED, PAUSE_ALL
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards
from smsgw.worker import Worker

log = get(__name__)

RESTORED_STEP: Final = 10_000
RECEIPT_TIMEOUT_S: Final = 259_200.0
TEST_VALID_S: Final = 300.0
_ROUTING: Final = "routing"

Operators = Mapping[str, ProviderSettings]


def build(
    operators: Operators,
    sandbox: Sandbox | None = None,
    receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
) -> dict[str, Provider]:
    """Operators as they are set, not connected yet.

    Args:
        operators: their settings.
        sandbox: where the mock's messages are shown, if anywhere.
        receipt_timeout_s: how long messages wait for a receipt.

    Raises:
        SettingsError: with every reason why one of them cannot be used.
    """
    built: dict[str, Provider] = {}
    mistakes: list[str] = []
    for name, settings in operators.items():
        try:
            built[name] = _build(name, settings, sandbox, receipt_timeout_s)
        except SettingsError as error:
            mistakes += error.members.get("mistakes", [error.detail])
    if mistakes:
        raise SettingsError("; ".join(mistakes), mistakes=mistakes)
    return built


def _build(
    name: str, settings: ProviderSettings, sandbox: Sandbox | None, receipt_timeout_s: float
) -> Provider:
    if isinstance(settings, MockProviderSettings):
        return MockProvider(name, settings, sandbox)
    if isinstance(settings, HttpProviderSettings):
        return http.open_provider(name, settings, receipt_timeout_s)
    assert isinstance(settings, SmppProviderSettings)
    return SmppProvider(name, settings)


def enabled(operators: Operators, disabled: Collection[str] = ()) -> dict[str, ProviderSettings]:
    """Those that are to be used."""
    return {
        name: settings
        for name, settings in operators.items()
        if settings.enabled and f"{DISABLED}{name}" not in disabled
    }


def doubts(operators: Operators, unrouted: str) -> list[str]:
    """What is no mistake in the settings of operators, but may not be meant.

    Args:
        operators: all in the settings.
        unrouted: what happens to messages that no operator serves.
    """
    used = enabled(operators)
    found = [f"providers.{name} is not enabled" for name in operators if name not in used]
    if not used:
        return found
    served = {prefix for settings in used.values() for prefix in settings.prefixes or ("",)}
    if "" not in served:
        fate = "are refused" if unrouted == "refuse" else "wait"
        known = ", ".join(sorted(served))
        found.append(f"nobody serves numbers that begin with none of {known}: messages {fate}")
    for name, settings in operators.items():
        if name not in used:
            found += [
                f"providers.{name}.prefixes: nobody else serves {prefix}"
                for prefix in settings.prefixes
                if not prefix.startswith(tuple(served))
            ]
    return found


def _routing_of(operators: Operators, used: Collection[str]) -> Routing:
    return Routing(
        [
            Operator(name, tuple(one.prefixes), one.splits, name in used, one.reports_parts)
            for name, one in operators.items()
        ]
    )


def _why_not_started(error: BaseException) -> str:
    """What to say of a start that failed; not in words that may repeat a secret."""
    why = "the log says why"
    if isinstance(error, SmsgwError):
        why = error.detail
    elif isinstance(error, OSError) and error.strerror:
        why = ": ".join(str(each) for each in (error.strerror, error.filename) if each)
    return f"it could not be started: {why}"


class Fleet:
    """All operators of a gateway.

    ``settings`` is what is set of each, ``providers`` those that are connected or about to be.
    """

    def __init__(
        self,
        settings: Operators,
        otp_share: float,
        clock: Clock,
        shards: Shards,
        allotter: Allotter,
        routing: Routing,
        worker: Worker,
        metrics: Metrics,
        sandbox: Sandbox | None,
    ) -> None:
        """Build the operators that are enabled.

        Raises:
            SettingsError: one of them cannot be used.
        """
        self.settings = settings
        self._otp_share = otp_share
        self._clock = clock
        self._shards = shards
        self._allotter = allotter
        self._routing = routing
        self._worker = worker
        self._metrics = metrics
        self._sandbox = sandbox
        self._receipt_timeout_s = worker.rules.receipt_timeout_ms / 1000
        self._serving = False
        self._gateways = 1
        self._adjust()
        self._made = self._wanted()
        """With which settings the connections that there are, or will be, were made."""
        self.providers: dict[str, Provider] = build(self._made, sandbox, self._receipt_timeout_s)
        for name, link in allotter.links.items():
            link.off = name not in self._made
        routing.follow(_routing_of(settings, self._made))
        self._coming: dict[str, Provider | None] = {}
        """What is to take an operator's place; None where nothing is."""
        self.failed: dict[str, str] = {}
        """Why operators that are wanted could not be started."""
        self._exchanges: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unrestored: dict[int, set[str]] = {}
        """By the number of a shard, the operators that were not told what it knows of them."""
        self._restoring = asyncio.Lock()
        self._changing = asyncio.Lock()
        self._tidying = asyncio.Lock()
        self._tests = 0

    def _wanted(self) -> dict[str, ProviderSettings]:
        return enabled(self.settings, self._shards.catalog.paused)

    def is_disabled(self, name: str) -> bool:
        """Whether an operator was disabled by hand."""
        return f"{DISABLED}{name}" in self._shards.catalog.paused

    def usable(self) -> list[str]:
        """The operators that messages can leave through, as far as their connections go."""
        links = self._allotter.links
        return [
            name
            for name, provider in self.providers.items()
            if provider.trouble is None and not links[name].off
        ]

    def changing(self, name: str) -> bool:
        """Whether an operator's connections are being closed, or exchanged for others."""
        return name in self._exchanges

    # At the start and at the end.

    async def open(self) -> None:
        """Give numbers to routes, and do as the catalog says about what is paused."""
        await self._number(self._routing)
        self.read_pauses()
        if self._shards.server is not None:
            self._shards.server.on_pauses = self.take_pauses
            self._shards.server.on_gateways = self.divide

    async def start(self) -> None:
        """Begin to connect, and tell operators in this process what they had accepted."""
        for name, provider in self.providers.items():
            self._worker.providers[name] = provider
            await provider.start(self._worker)
        await self._restore(self.providers, self._shards)
        self._serving = True

    async def stop(self) -> None:
        """Close every connection; by then, nothing is in flight."""
        self._serving = False
        for task in self._tasks - set(self._exchanges.values()):
            task.cancel()
        # Those that are being exchanged are stopped by that.
        exchanged = set(self._exchanges)
        await self._stop(self.providers.keys() - exchanged)
        # Unless it had just put another in the place.
        await self._stop(self.providers.keys() & exchanged)

    async def _stop(self, names: Collection[str]) -> None:
        """Close the connections of these, all together, and end what is under way."""
        for name in names:
            self._keep(self.providers[name].stop(), f"stop of {name}")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What somebody wants to be otherwise.

    def take_pauses(self) -> None:
        """Do as the catalog says about what is paused, and what is disabled."""
        self.read_pauses()
        if self._serving:
            self._keep(self._follow(), "operators")

    def divide(self, gateways: int) -> None:
        """Share what operators allow with so many gateways, this one included."""
        self._gateways = gateways
        self._adjust()
        self._worker.wake_soon()

    async def switch(self, name: str, *, on: bool) -> None:
        """Enable or disable an operator, until the opposite is asked for.

        Raises:
            InvalidRequest: it is not enabled in the settings, or cannot be used.
            StorageUnavailable: that could not be noted.
        """
        settings = self.settings[name]
        if on and not settings.enabled:
            raise InvalidRequest(f"providers.{name}.enabled is false in the settings.")
        if on:
            try:
                build({name: settings}, self._sandbox)
            except SettingsError as error:
                raise InvalidRequest(error.detail) from error
        await self._shards.catalog.set_paused(f"{DISABLED}{name}", paused=not on)
        log.info("provider.switched", "enabled" if on else "disabled", provider=name)
        if self._serving:
            await self._follow()

    async def prepare(self, settings: Operators) -> dict[str, Provider]:
        """Do all of a change of the settings that can fail, and that changes nothing yet.

        Returns:
            The operators that are to be connected, for ``reload``.

        Raises:
            SettingsError: one of the operators cannot be used.
            StorageUnavailable: their routes cannot be noted.
        """
        wanted = enabled(settings, self._shards.catalog.paused)
        new = build(
            {name: one for name, one in wanted.items() if not self._is_made(name, one)},
            self._sandbox,
            self._receipt_timeout_s,
        )
        plan, catalog = _routing_of(settings, wanted), self._shards.catalog
        # A number under which nothing waits is no change.
        await catalog.routes(sorted(plan.sets()))
        if plan.text() != self._routing.text():
            # Should the change be interrupted, the next start looks through every queue.
            await catalog.changes(_ROUTING, "")
        return new

    async def reload(self, settings: Operators, new: Mapping[str, Provider]) -> None:
        """Work with other settings from now on.

        Args:
            settings: of all operators.
            new: what was prepared for them.
        """
        self.settings = settings
        await self._follow(new)

    async def try_out(self, name: str, draft: Draft) -> Outcome:
        """Send one SMS that is nobody's, past the queue and the ledger.

        Raises:
            NotReady: no message can go that way now.
        """
        link = self._allotter.links[name]
        if not self._serving or self._allotter.stopped or link.off:
            raise NotReady(f"Nothing can be sent through {name} now.")
        self._tests += 1
        submission = Submission(
            shard=NO_SHARD,
            number=0,
            reference=str(uuid.uuid4()),
            attempt=self._tests,
            recipient=f"+{draft.recipient}",
            sender=draft.sender,
            text=draft.text,
            ucs2=draft.ucs2,
            parts=draft.parts,
            valid_s=TEST_VALID_S,
        )
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def take(outcome: Outcome) -> None:
            if not answered.done():
                answered.set_result(outcome)

        link.take(draft.parts)
        self._worker.submit_now(name, submission, take)
        return await answered

    # How it comes to be.

    async def _follow(self, new: Mapping[str, Provider] | None = None) -> None:
        """Bring links, connections and routes in line with what is wanted.

        Args:
            new: operators that were built already.
        """
        wanted = self._wanted()
        self._adjust()
        for name in {*wanted, *self._made, *self.failed}:
            if name not in wanted:
                self._made.pop(name, None)
                self._exchange(name, None)
            elif not self._is_made(name, wanted[name]):
                self._make(name, wanted[name], (new or {}).get(name))
            else:
                self._made[name] = wanted[name]
                provider = self._coming.get(name) or self.providers.get(name)
                if provider is not None:
                    provider.follow(wanted[name])
        try:
            await self._route()
        except StorageUnavailable as error:
            # What has changed so far holds, and the next look tries again.
            log.warning("operators.unrouted", "routes cannot be noted now", why=error.detail)
        self._worker.wake_soon()

    def _make(self, name: str, settings: ProviderSettings, new: Provider | None) -> None:
        """Have an operator connected; one that cannot be built keeps no other from being used."""
        try:
            provider = new or _build(name, settings, self._sandbox, self._receipt_timeout_s)
        except SettingsError as error:
            self._made.pop(name, None)
            self._exchange(name, None)
            self.failed[name] = _why_not_started(error)
            log.error(  # noqa: TRY400
                "provider.failed", "it could not be started", provider=name, why=error.detail
            )
        else:
            self._exchange(name, provider)
            self._made[name] = settings

    def _is_made(self, name: str, settings: ProviderSettings) -> bool:
        """Whether the connections are those that these settings want."""
        made = self._made.get(name)
        return made is not None and made.connection() == settings.connection()

    def _adjust(self) -> None:
        """Give every link the numbers that are set for it."""
        links = self._allotter.links
        for name, settings in self.settings.items():
            if name not in links:
                bucket = Bucket(0.0, at_s=self._clock.monotonic_s())
                links[name] = Link(name, settings.window, bucket, off=True)
            link = links[name]
            link.share(settings.window, settings.rate_parts_per_s, self._gateways)
            link.weight, link.priority = settings.weight, settings.priority
            link.otp_share = self._otp_share
            # The mock's numbers that never answer are not the mock's trouble.
            link.failures_max = 0 if settings.kind == "mock" else settings.breaker_failures
            link.open_s = settings.breaker_open_s
            self._worker.response_timeout_s[name] = settings.response_timeout_s
        self.read_pauses()

    def read_pauses(self) -> None:
        """Do as the catalog says about what is paused."""
        paused = self._shards.catalog.paused
        self._allotter.paused = PAUSE_ALL in paused
        for name, link in self._allotter.links.items():
            link.paused = name in paused

    def _exchange(self, name: str, provider: Provider | None) -> None:
        """Have an operator's place taken once what is in flight there has its answers."""
        self._allotter.links[name].off = True
        self.failed.pop(name, None)
        self._coming[name] = provider
        self._metrics.provider_up(name, up=False)
        if name not in self._exchanges:
            self._exchanges[name] = self._keep(self._exchange_all(name), f"exchange {name}")

    async def _exchange_all(self, name: str) -> None:
        """Exchange an operator until nothing more is to come."""
        try:
            while name in self._coming:
                old = self.providers.get(name)
                if old is not None:
                    await self._worker.landed(name)
                    await old.stop()
                    del self.providers[name]
                provider = self._coming.pop(name)
                if provider is not None and self._serving:
                    await self._launch(name, provider)
                else:
                    log.info("provider.closed", "its connections are closed", provider=name)
        except BaseException as error:
            # So that it is made again as soon as somebody asks for it.
            if self._made.pop(name, None) is not None:
                self.failed[name] = _why_not_started(error)
            raise
        finally:
            del self._exchanges[name]
        if name not in self.settings:
            self._metrics.provider_gone(name)

    async def _launch(self, name: str, provider: Provider) -> None:
        self.providers[name] = self._worker.providers[name] = provider
        await provider.start(self._worker)
        for shard in self._shards:
            await self._restore_or_later(shard, {name})
        link = self._allotter.links[name]
        # Whatever the old connections had come to, these are others.
        link.worked()
        link.resume_at_s = 0.0
        link.off = name in self._coming
        self._worker.changed(name)

    async def _restore_or_later(self, shard: Shard, names: set[str]) -> None:
        """Restore from one shard; where it cannot be read, again at the next look."""
        async with self._restoring:
            known = self._unrestored.pop(shard.number, set())
            try:
                await self._restore(names, [shard])
                left = known - names
            except StorageUnavailable:
                # Messages can leave without that, and their receipts come in.
                left = known | names
                if left != known:
                    log.warning(
                        "operators.unrestored",
                        "what was accepted cannot be read now",
                        shard=shard.number,
                        providers=", ".join(sorted(names)),
                    )
            if left:
                self._unrestored[shard.number] = left

    async def _restore(self, names: Collection[str], shards: Iterable[Shard]) -> None:
        """Tell operators what they had accepted and have not reported on."""
        for shard in shards:
            before = NUMBER_MAX
            while unreported := await shard.store.accepted_open(before, RESTORED_STEP):
                before = unreported[-1].message
                accepted: dict[str, list[Accepted]] = {}
                for one in unreported:
                    name = one.provider or ""
                    if name in names and one.provider_message_id:
                        known = accepted.setdefault(name, [])
                        known.append(Accepted(one.provider_message_id, f"+{one.recipient}"))
                for name, of_one in accepted.items():
                    if name in self.providers:
                        self.providers[name].restore(of_one)

    # Routes, and what waits on them.

    async def _route(self) -> None:
        """Route by the operators of today, and bring what waits in line with that."""
        async with self._changing:
            plan = _routing_of(self.settings, self._wanted())
            if plan.text() == self._routing.text():
                return
            await self._number(plan)
            self._routing.follow(plan)
        self._keep(self.reroute(), "reroute")

    async def _number(self, plan: Routing) -> None:
        numbers = await self._shards.catalog.routes(sorted(plan.sets()))
        plan.number(numbers)
        self._allotter.routes = {
            number: operators_of(names) for number, names in numbers.items() if names
        }

    async def reroute(self) -> None:
        """Bring every queue in line with the operators of today."""
        async with self._tidying:
            text = self._routing.text()
            moved = await self._shards.catalog.changes(_ROUTING, text)
            if moved:
                # Should we be interrupted, the next start looks through every queue again.
                await self._shards.catalog.changes(_ROUTING, "")
            kept = set() if moved else set(self._allotter.routes)
            for shard in self._shards:
                await reroute(shard, self._routing, kept)
            if moved:
                await self._shards.catalog.changes(_ROUTING, text)

    def look(self) -> None:
        """Look whether operators can be used, and whether something waits where it cannot leave."""
        for name in list(self.providers):
            self._worker.changed(name)
        if not self._restoring.locked():
            again = {name for name, provider in self.providers.items() if provider.asks_again()}
            for shard in self._shards:
                if names := again | self._unrestored.get(shard.number, set()):
                    self._keep(self._restore_or_later(shard, names), "restore")
        if not self._tidying.locked():
            self._keep(self._tidy(), "tidy")

    async def _tidy(self) -> None:
        await self._route()
        gone = self._rests_gone()
        async with self._tidying:
            for shard in self._shards:
                routes = {route for route, _ in shard.store.waiting}
                # What was on its way when routes changed has come to where nobody looks; and what
                # one operator has failed to take shall not wait for another that is gone, too.
                if gone & routes or any(self._routing.is_stale(route) for route in routes):
                    await reroute(shard, self._routing, set(self._allotter.routes) - gone)

    def _rests_gone(self) -> set[int]:
        links, routes = self._allotter.links, self._allotter.routes
        return {
            route
            for route in self._routing.rests()
            if not any(links[name].counts for name in routes[route])
        }

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Have something done in the background, and hold on to it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._kept)
        return task

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, StorageUnavailable):
            log.error("operators.failed", f"{task.get_name()} has failed", error=error)
