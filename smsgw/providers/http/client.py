"""The one door to the network: a request goes out at most once, and what comes back is bounded."""

import asyncio
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Final

import aiohttp
from yarl import URL

from smsgw import __version__
from smsgw.operators import HttpProviderSettings
from smsgw.providers.http.judge import Answer
from smsgw.providers.http.requests import Request
from smsgw.providers.tls import client_context

DNS_S: Final = 30
_HEADERS: Final = {
    "User-Agent": f"smsgw/{__version__}",
    "Accept": "application/json",
    # What is small when compressed can be anything when it is not.
    "Accept-Encoding": "identity",
}


class _FailedError(Exception):
    """What happened; ``late`` where nothing did, until its time was over."""

    def __init__(self, why: str, *, late: bool = False) -> None:
        super().__init__(why)
        self.late = late


class NotSentError(_FailedError):
    """No byte of the request has left."""


class AnswerLostError(_FailedError):
    """The request may have arrived, and no answer came back."""


class _LostError(aiohttp.ClientError):
    """What ``aiohttp`` would take for a reason to send the same request again."""


@dataclass(slots=True)
class _Progress:
    connected: bool = False


class Client:
    """Connections to one operator."""

    def __init__(self, name: str, settings: HttpProviderSettings) -> None:
        self._settings = settings
        self._tls = client_context(
            name, settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file
        )
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make ready; connections are made when there is something to send."""
        settings = self._settings
        keep_alive_s = settings.keep_alive_s
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(_connected)
        tracing.on_connection_reuseconn.append(_connected)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self._tls,
                # The window is the limit, and it may change while connections stay.
                limit=0,
                ttl_dns_cache=DNS_S,
                # With no time at all, every request gets a connection of its own.
                **({"keepalive_timeout": keep_alive_s} if keep_alive_s else {"force_close": True}),
            ),
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[tracing],
            middlewares=(_once,),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(
        self, request: Request, timeout_s: float, connect_s: float | None = None
    ) -> Answer:
        """Send a request and return the answer.

        Args:
            request: what to send.
            timeout_s: how long it may take in all.
            connect_s: how long the connection may take; None for what the settings say. Neither
                is 0, which is no limit for ``aiohttp``.

        Raises:
            NotSentError: it has not left.
            AnswerLostError: it may have.
        """
        assert self._session is not None
        if connect_s is None:
            connect_s = self._settings.connect_timeout_s
        progress = _Progress()
        answer: Answer | None = None
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(
                    request.method,
                    URL(request.url, encoded=True),
                    data=request.body,
                    headers=request.headers,
                    allow_redirects=False,
                    trace_request_ctx=progress,
                    timeout=aiohttp.ClientTimeout(total=None, connect=connect_s),
                ) as response,
            ):
                answer = Answer(response.status, None, response.headers.get("Retry-After"))
                answer = replace(answer, body=await self._body_of(response))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # An address that cannot be one is a ValueError.
            # None of their own words: they may tell an address with a key in it.
            late = isinstance(error, TimeoutError)
            if answer is None and progress.connected:
                raise AnswerLostError(_why_lost(error), late=late) from None
            if answer is None:
                raise NotSentError(_why_not_sent(error), late=late) from None
        return answer

    async def _body_of(self, response: aiohttp.ClientResponse) -> bytes | None:
        """The body; None where it is too long."""
        body = bytearray()
        async for block in response.content.iter_any():
            body += block
            if len(body) > self._settings.response_bytes_max:
                response.close()
                return None
        return bytes(body)


async def _connected(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: object
) -> None:
    context.trace_request_ctx.connected = True


async def _once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Ask once: a lost answer to a GET is no reason for a second message."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _LostError from error


def _why_lost(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the answer is not HTTP"
    return "the connection was lost before the answer"


def _why_not_sent(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the operator's name has no address"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the operator's certificate is not trusted"
    if isinstance(error, aiohttp.ClientSSLError):
        return "no TLS with the operator"
    if isinstance(error, TimeoutError):
        return "no connection to the operator in time"
    if isinstance(error, ValueError):
        return "the operator's address cannot be one"
    return "no connection to the operator"
