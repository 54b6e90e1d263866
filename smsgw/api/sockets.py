"""Listening and connecting: TCP, and a Unix socket whose path may be longer than an address."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from smsgw.errors import CannotStart

ADMIN_SOCKET: Final = "admin.sock"
# sockaddr_un holds 108 bytes on Linux and 104 on macOS, a final NUL included.
_ADDRESS_BYTES_MAX: Final = 100
_BACKLOG: Final = 2048


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A spelling of the path that fits into an address; long ones are taken from their folder."""
    if len(os.fsencode(path)) <= _ADDRESS_BYTES_MAX:
        yield str(path)
        return
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        yield path.name
    finally:
        os.chdir(before)


def listen_unix(path: Path) -> socket.socket:
    """Listen on a Unix socket that only its owner may use; the caller owns the folder.

    Args:
        path: where, as an absolute path; what a dead process left there is removed.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with _reachable(path) as address:
            listener.bind(address)
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener


def connect_unix(path: Path, timeout_s: float | None = None) -> socket.socket:
    """Connect to a Unix socket.

    Args:
        path: where.
        timeout_s: how long any call on it may take.

    Raises:
        OSError: nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        with _reachable(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def listen_tcp(host: str, port: int) -> socket.socket:
    """Listen on a TCP port; 0 takes a free one.

    Raises:
        CannotStart: naming the address and why.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise CannotStart(
            f"cannot listen on {host} port {port} (server.host, server.port): "
            f"{error.strerror or error}"
        ) from error
    return listener
