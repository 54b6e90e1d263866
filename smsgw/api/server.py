"""One process from its start to its end: open, recover, listen, serve, drain, close."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import uvicorn
from starlette.types import ASGIApp

from smsgw import __version__
from smsgw.api.app import admin_app, public_app, short_way
from smsgw.api.demo import create_demo_clients
from smsgw.api.protocol import edge_protocol
from smsgw.api.sockets import ADMIN_SOCKET, listen_tcp, listen_unix
from smsgw.errors import SmsgwError
from smsgw.gateway import Gateway
from smsgw.logs import get, setup
from smsgw.settings import Settings

log = get(__name__)

ANSWERS_S: Final = 3
"""How long answers may take to leave once everything is drained."""


class _Server(uvicorn.Server):
    """A server that leaves signals to us: a clean stop exits with 0, and drains first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _server(app: ASGIApp, gateway: Gateway, *, check_host: bool) -> _Server:
    server = gateway.settings.server
    protocol = edge_protocol(
        server, check_host=check_host, observe=gateway.metrics.http, handle=short_way(gateway)
    )
    return _Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=True,
            timeout_keep_alive=max(1, int(server.idle_timeout_s)),
            timeout_graceful_shutdown=ANSWERS_S,
        )
    )


async def serve(
    settings: Settings,
    data: Path,
    *,
    dev: bool,
    quiet: bool = False,
    load: Callable[[], Settings] | None = None,
) -> None:
    """Run a gateway until SIGTERM or SIGINT, or until something that must run has failed.

    Args:
        settings: the effective settings.
        data: the data directory, as an absolute path.
        dev: whether to offer the sandbox.
        quiet: whether to print nothing when it serves.
        load: reads the settings again, at SIGHUP.

    Raises:
        CannotStart: saying what is in the way; nothing was changed.
        ExceptionGroup: a loop that must run has failed; the next start recovers.
    """
    os.umask(0o077)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hangup = asyncio.Event()
    if load is not None:
        loop.add_signal_handler(signal.SIGHUP, hangup.set)
    gateway = await Gateway.open(settings, data, purpose="serve", dev=dev)
    listener = admin = None
    try:
        listener = listen_tcp(settings.server.host, settings.server.port)
        admin = listen_unix(data / ADMIN_SOCKET)
        if await _started(gateway, stop, dev=dev):
            reloading = asyncio.create_task(_reload(gateway, hangup, load or (lambda: settings)))
            try:
                await _serve(gateway, listener, admin, stop, quiet=quiet)
            finally:
                reloading.cancel()
                await asyncio.gather(reloading, return_exceptions=True)
    finally:
        await gateway.close()
        if admin is not None:
            (data / ADMIN_SOCKET).unlink(missing_ok=True)
            admin.close()
        if listener is not None:
            listener.close()
    log.info("serve.stopped", "everything is on disk; good bye")


async def _reload(
    gateway: Gateway, hangup: asyncio.Event, load: Callable[[], Settings]
) -> NoReturn:
    """Read the settings again at each SIGHUP; wrong ones change nothing."""
    while True:
        await hangup.wait()
        hangup.clear()
        mistakes: list[str] = []
        try:
            settings = load()
            await gateway.reload(settings)
            setup(settings.log.level)
        except SmsgwError as error:
            mistakes = error.members.get("mistakes", [error.detail])
        except Exception as error:  # noqa: BLE001
            # The next signal is to be heard, whatever became of this one.
            log.error(  # noqa: TRY400
                "settings.failed", "the settings could not be read again", error=error
            )
        for mistake in mistakes:
            log.error("settings.refused", "the settings stay as they were", mistake=mistake)


async def _started(gateway: Gateway, stop: asyncio.Event, *, dev: bool) -> bool:
    """Recover and begin to work; False when told to stop before that was done.

    Raises:
        ExceptionGroup: a loop that must run has failed.
    """

    async def start() -> None:
        await gateway.serve()
        if dev:
            await create_demo_clients(gateway)

    starting = asyncio.create_task(start(), name="start")
    watching = asyncio.create_task(gateway.watch(), name="watch")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    tasks = (starting, watching, stopping)
    try:
        # What starting waits for may never come once a loop has ended.
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for must_not_fail in (watching, starting):
            if must_not_fail.done():
                must_not_fail.result()
        return starting.done()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _serve(
    gateway: Gateway,
    listener: socket.socket,
    admin: socket.socket,
    stop: asyncio.Event,
    *,
    quiet: bool,
) -> None:
    servers = [
        (_server(public_app(gateway), gateway, check_host=True), listener),
        (_server(admin_app(gateway), gateway, check_host=False), admin),
    ]
    tasks = [
        asyncio.create_task(server.serve(sockets=[where]), name="http") for server, where in servers
    ]
    _announce(gateway, listener, quiet=quiet)
    watching = asyncio.create_task(gateway.watch(), name="watch")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({watching, stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        # Still answering, with 503, while what is in flight comes home.
        await gateway.drain()
    finally:
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in (watching, stopping):
            task.cancel()
        await asyncio.gather(watching, stopping, return_exceptions=True)


def _announce(gateway: Gateway, listener: socket.socket, *, quiet: bool) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info(
        "serve.started",
        "the gateway serves",
        version=__version__,
        url=f"http://{shown}:{port}",
        data=str(gateway.directory.path),
        dev=gateway.dev,
    )
    if quiet:
        return
    with contextlib.suppress(OSError):
        print(f"smsgw {__version__} serves on http://{shown}:{port}", flush=True)  # noqa: T201
