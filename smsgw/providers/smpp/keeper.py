"""Keeps one bind up: connects, binds, and begins again whenever that has ended."""

import asyncio
import random
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from smsgw.logs import get
from smsgw.operators import SmppProviderSettings
from smsgw.providers.smpp.bodies import Command
from smsgw.providers.smpp.link import Ending, Link, Owner

log = get(__name__)

STEADY_S: Final = 10.0
"""A bind that has held for so long was a good one: the next attempt comes soon."""


class KeeperOwner(Owner, Protocol):
    """Whom a keeper and its links tell."""

    def failed(self, ending: Ending) -> None:
        """There is no bind, or no longer."""
        ...


class Keeper:
    """One bind to an operator, made again and again."""

    def __init__(
        self,
        name: str,
        settings: SmppProviderSettings,
        bind: Command,
        window: int,
        tls: ssl.SSLContext | None,
        owner: KeeperOwner,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Prepare it.

        Args:
            name: the operator's.
            settings: its settings.
            bind: which of the three kinds.
            window: submits without an answer.
            tls: the rules for TLS; None for a bare connection.
            owner: whom to tell.
            jitter: a number from 0 to 1, another one each time.
        """
        self._name = name
        self._settings = settings
        self._bind = bind
        self._window = window
        self._tls = tls
        self._owner = owner
        self._jitter = jitter
        self._link: Link | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="smpp bind")
        self._task.add_done_callback(self._finished)

    def follow(self, settings: SmppProviderSettings) -> None:
        """Go by other times from the next one on."""
        self._settings = settings
        if self._link is not None:
            self._link.follow(settings)

    async def stop(self) -> None:
        """Unbind and close; bounded by ``unbind_timeout_s``, twice."""
        self._stopping = True
        if self._task is None:
            return
        if self._link is not None:
            self._link.end("the gateway stops")
        else:
            self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        failures = 0
        told = ""
        while True:
            lasted_s, ending = await self._hold()
            if self._stopping:
                return
            if lasted_s >= STEADY_S:
                failures = 0
            if ending.why != told or lasted_s:
                told = ending.why
                self._tell("there is no bind with an operator", why=told)
            self._owner.failed(ending)
            await asyncio.sleep(self._pause_s(failures, ending))
            failures += 1

    def _pause_s(self, failures: int, ending: Ending) -> float:
        most_s = self._settings.reconnect_max_s
        if not ending.hopeless:
            most_s = min(most_s, self._settings.reconnect_min_s * 2.0 ** min(failures, 32))
        return most_s * (1 + self._jitter()) / 2

    async def _hold(self) -> tuple[float, Ending]:
        """Connect and bind, and stay bound as long as that lasts: for how long, and why not on."""
        settings, loop = self._settings, asyncio.get_running_loop()
        link = Link(settings, self._bind, self._window, self._owner)
        try:
            async with asyncio.timeout(settings.link_timeout_s):
                await loop.create_connection(
                    lambda: link,
                    settings.host,
                    settings.port,
                    ssl=self._tls,
                    server_hostname=(settings.tls_server_name or settings.host)
                    if self._tls is not None
                    else None,
                )
                bound = await link.opened
        except (OSError, ValueError) as error:
            # TimeoutError is one of the first; of the second is a name that cannot be one.
            link.abort("the bind was not answered in time")
            return 0.0, Ending(_why_not(error), hopeless=not isinstance(error, OSError))
        except BaseException:
            link.abort("the gateway stops")
            raise
        if not bound:
            return 0.0, await link.closed
        since_s = loop.time()
        self._link = link
        link.follow(self._settings)
        log.info("smpp.bound", "bound to an operator", provider=self._name, bind=self._kind)
        ending = await link.closed
        self._link = None
        return loop.time() - since_s, ending

    @property
    def _kind(self) -> str:
        return self._bind.name.lower().removeprefix("bind_")

    def _tell(self, sentence: str, **fields: object) -> None:
        log.warning("smpp.unbound", sentence, provider=self._name, bind=self._kind, **fields)

    def _finished(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("smpp.failed", "a bind is lost by a defect of ours", error=error)


def _why_not(error: OSError | ValueError) -> str:
    if isinstance(error, TimeoutError):
        return "no connection and bind in time"
    if isinstance(error, socket.gaierror):
        return "the operator's name has no address"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the operator's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with the operator: {error.reason}"
    if isinstance(error, ConnectionRefusedError):
        return "the operator refuses connections"
    if not isinstance(error, OSError):
        return "the operator's name cannot be one; look at host and tls_server_name"
    return "no connection to the operator"
