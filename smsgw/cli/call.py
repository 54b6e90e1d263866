"""The one way to the API: through the socket of a running server, or in this process without one.

Both ways end in the same application, so a command means the same whether or not a server runs.
"""

import asyncio
import http.client
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlencode

from smsgw.errors import SmsgwError

# The gateway takes half a second to load, and with a running server nobody here needs it.
if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

    from smsgw.settings import Settings

CONNECT_S: Final = 5.0
ANSWER_S: Final = 3600.0
"""How long an answer may take; the audit of a large store takes minutes."""

_Headers = Mapping[str, str]


class Failed(SmsgwError):
    """The command failed."""


class Door(ABC):
    """A way to the API."""

    serving: bool
    """Whether what is accepted is also sent."""

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object | None] | None = None,
        body: Mapping[str, object | None] | None = None,
        headers: _Headers | None = None,
    ) -> Any:
        """Make a request and return the document that answers it.

        Args:
            method: of the request.
            path: of the route.
            query: parameters; those that are None are left out.
            body: fields; those that are None are left out.
            headers: further ones.

        Raises:
            Failed: with what the API says.
        """
        return json.loads(self.read(method, path, query=query, body=body, headers=headers))

    def read(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object | None] | None = None,
        body: Mapping[str, object | None] | None = None,
        headers: _Headers | None = None,
    ) -> str:
        """Make a request and return the answer as it is."""
        target = quote(path)
        if given := _given(query or {}):
            # Arguments that are no UTF-8 arrive as they were typed, to be refused by name.
            target += "?" + urlencode(given, errors="surrogateescape")
        content, sent = b"", dict(headers or {})
        if body is not None:
            content = json.dumps(_given(body)).encode()
            sent["content-type"] = "application/json"
        status, answer = self._exchange(method, target, sent, content)
        if status >= http.HTTPStatus.BAD_REQUEST:
            raise Failed(_complaint(json.loads(answer)))
        return answer.decode()

    @abstractmethod
    def _exchange(
        self, method: str, target: str, headers: _Headers, content: bytes
    ) -> tuple[int, bytes]:
        """Make one request: status and body."""

    @abstractmethod
    def close(self) -> None:
        """Leave."""

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_door(
    data: Path, load: Callable[[], "Settings"], purpose: str, *, creates: bool = False
) -> Door:
    """Find the running server of a data directory, or else take the directory ourselves.

    Args:
        data: the data directory, as an absolute path.
        load: reads the settings; they are wanted only where no server runs.
        purpose: what we hold the directory for, for other processes to read.
        creates: whether to make a store where there is none.

    Raises:
        CannotStart: nobody listens, and the directory cannot be opened.
        Failed: there is no store.
    """
    from smsgw.store.directory import LockHeld, is_store

    door = _connect(data)
    if door is not None:
        return door
    if not creates and not is_store(data) and not load().store.shard_urls:
        raise Failed(f"there is no store in {data}; serve and client create make one")
    try:
        return _OwnDoor(load(), data, purpose)
    except LockHeld:
        # Perhaps a server took the lock before it had a socket, and has one by now.
        if (door := _connect(data)) is None:
            raise
        return door


def _connect(data: Path) -> "Door | None":
    from smsgw.api.sockets import ADMIN_SOCKET

    connection = _UnixConnection(data / ADMIN_SOCKET)
    try:
        connection.connect()
    except OSError:
        # No socket, or one that a killed server left behind: the lock will tell.
        return None
    return _SocketDoor(connection)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        from smsgw.api.sockets import connect_unix

        self.sock = connect_unix(self._path, CONNECT_S)
        self.sock.settimeout(ANSWER_S)


class _SocketDoor(Door):
    """To a server that runs."""

    serving = True

    def __init__(self, connection: _UnixConnection) -> None:
        self._connection = connection

    def _exchange(
        self, method: str, target: str, headers: _Headers, content: bytes
    ) -> tuple[int, bytes]:
        try:
            self._connection.request(method, target, content or None, dict(headers))
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Failed(
                "the server has gone before it answered; what was asked for may be done"
            ) from error

    def close(self) -> None:
        self._connection.close()


class _OwnDoor(Door):
    """To a gateway in this process, that accepts but does not send."""

    serving = False

    def __init__(self, settings: "Settings", data: Path, purpose: str) -> None:
        from smsgw import logs
        from smsgw.api.app import admin_app
        from smsgw.gateway import Gateway

        logs.setup("error")
        self._umask = os.umask(0o077)
        self._runner = asyncio.Runner()
        try:
            self._gateway = self._runner.run(Gateway.open(settings, data, purpose=purpose))
        except BaseException:
            self._leave()
            raise
        self._app = admin_app(self._gateway)

    def _exchange(
        self, method: str, target: str, headers: _Headers, content: bytes
    ) -> tuple[int, bytes]:
        return self._runner.run(self._answered(method, target, headers, content))

    async def _answered(
        self, method: str, target: str, headers: _Headers, content: bytes
    ) -> tuple[int, bytes]:
        """Wait for the answer, but not for one that cannot come any more."""
        answer = asyncio.create_task(call(self._app, method, target, headers, content))
        watching = asyncio.create_task(self._gateway.watch())
        try:
            await asyncio.wait({answer, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and not answer.done():
                watching.result()
            return await answer
        finally:
            for task in (answer, watching):
                task.cancel()
            await asyncio.gather(answer, watching, return_exceptions=True)

    def close(self) -> None:
        try:
            self._runner.run(self._gateway.close())
        finally:
            self._leave()

    def _leave(self) -> None:
        self._runner.close()
        os.umask(self._umask)


async def call(
    app: "ASGIApp", method: str, target: str, headers: _Headers, content: bytes
) -> tuple[int, bytes]:
    """Call an ASGI application: status and body of its answer."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
    }
    status = 0
    blocks: list[bytes] = []

    async def receive() -> "Message":
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: "Message") -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            blocks.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(blocks)


def _given(fields: Mapping[str, object | None]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _complaint(problem: Mapping[str, Any]) -> str:
    detail = str(problem["detail"])
    if "message_id" in problem:
        detail += f" (message {problem['message_id']}: {problem.get('reason')})"
    return detail
