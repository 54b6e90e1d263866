"""A client by hand: PDUs out, PDUs in, no opinion of its own."""

import asyncio
import ssl
from collections import deque
from types import TracebackType
from typing import Any, Self

from tests.pdus import BIND_TRANSCEIVER, OK, RESPONSE, SUBMIT_SM, Pdu, Stream, encode, parse

LIMIT_S = 30
TO = "98912000001"
SUBMIT: dict[str, Any] = {
    "source_addr_ton": 5,
    "source_addr": "ACME",
    "dest_addr_ton": 1,
    "dest_addr_npi": 1,
    "destination_addr": TO,
    "registered_delivery": 1,
    "short_message": b"hello",
}


class Esme:
    """One connection; an asynchronous context manager.

    With ``strict`` off, an SMSC may number its requests from 0.
    """

    def __init__(
        self, port: int, tls: ssl.SSLContext | None = None, *, strict: bool = True
    ) -> None:
        self._port = port
        self._tls = tls
        self._strict = strict
        self.blocks = 0
        self._sequence = 0
        self._stream = Stream()
        self._arrived: deque[Pdu] = deque()

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._tls
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.transport.abort()

    def write(self, raw: bytes) -> None:
        """Send bytes."""
        self._writer.write(raw)

    def send(
        self, command: int, status: int = OK, tlvs: dict[int, bytes] | None = None, **fields: Any
    ) -> int:
        """Send a request; its sequence number."""
        self._sequence += 1
        self.write(encode(command, self._sequence, status, tlvs, **fields))
        return self._sequence

    def submit(self, **fields: Any) -> int:
        """Send a submit_sm; its sequence number."""
        return self.send(SUBMIT_SM, **{**SUBMIT, **fields})

    async def submitted(self, **fields: Any) -> Pdu:
        """Send a submit_sm and take what comes next."""
        self.submit(**fields)
        return await self.next()

    def reply(self, pdu: Pdu, status: int = OK) -> None:
        """Answer a request of the SMSC."""
        self.write(encode(pdu.command | RESPONSE, pdu.sequence, status))

    async def next(self) -> Pdu:
        """The next PDU that came.

        Raises:
            EOFError: the connection was closed.
        """
        async with asyncio.timeout(LIMIT_S):
            while not self._arrived:
                data = await self._reader.read(65_536)
                if not data:
                    raise EOFError
                self.blocks += 1
                for raw in self._stream.feed(data):
                    self._arrived.append(parse(raw, strict=self._strict))
        return self._arrived.popleft()

    @property
    def rest(self) -> bytes:
        """What has come of the PDU after those that are whole."""
        return self._stream.rest

    async def ask(self, command: int, **fields: Any) -> Pdu:
        """Send a request and take what comes next."""
        self.send(command, **fields)
        return await self.next()

    async def bind(
        self, command: int = BIND_TRANSCEIVER, system_id: str = "esme", password: str = "secret"
    ) -> Pdu:
        """Bind."""
        return await self.ask(
            command, system_id=system_id, password=password, interface_version=0x34
        )

    async def ended(self) -> None:
        """Return once the other side has closed, having sent nothing more."""
        async with asyncio.timeout(LIMIT_S):
            try:
                assert await self._reader.read() == b""
            except ConnectionError:
                return
