"""HTTP to the outside. The only module that knows which client library is used: httpx's API over a transport of our own.

The transport is aiohttp's connection machinery, an eighth of the cost per request of httpx's own, with three promises:
what may have reached the server never looks like a failed connection, nothing is sent twice by itself, and no cookie is kept.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, cast

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from httpx import (
    URL,
    AsyncBaseTransport,
    AsyncByteStream,
    AsyncClient,
    ConnectError,
    ConnectTimeout,
    HTTPError,
    InvalidURL,
    MockTransport,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    Request,
    Response,
    Timeout,
    TimeoutException,
    UnsupportedProtocol,
    WriteError,
    WriteTimeout,
)
from yarl import URL as EncodedURL  # noqa: N811 - both libraries name their address type URL

from providers.framing import AbsurdAnswer, FramingWatch

__all__ = [
    "URL",
    "AddressGuard",
    "AddressRefused",
    "AsyncClient",
    "ConnectError",
    "ConnectTimeout",
    "HTTPError",
    "InvalidURL",
    "MockTransport",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "Request",
    "Response",
    "Timeout",
    "TimeoutException",
    "UnsupportedProtocol",
    "WriteError",
    "WriteTimeout",
    "create_client",
]

_KEEPALIVE_S = 4.0
"""Under the 5 s after which uvicorn and Node close an idle connection, so that no request is written into a closing one."""

_DEFAULT_TIMEOUT = Timeout(60.0, connect=10.0, pool=30.0)

_PACKED = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd"})

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        # `is_global` of some Python releases says true for these, so they are named.
        # Source: https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry
        "0.0.0.0/8",
        "100.64.0.0/10",  # behind a carrier's translation
        "168.63.129.16/32",  # Azure's host: https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarks
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",
        "2001::/23",  # Teredo among others
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",
    )
)

_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
"""All that is assigned as global unicast. NAT64, IPv4-mapped, link-local, site-local and unique-local addresses lie outside."""


class AddressRefused(ConnectError):
    """The address is in a private network, where the gateway does not fetch on anybody's word. Nothing was sent."""


class AddressGuard:
    """Says which addresses may be connected to: public ones, and those of the hosts that the operator named."""

    def __init__(self, allow_hosts: Collection[str] = ()) -> None:
        """Take the exempt hosts, each `host` (any port) or `host:port`; an IPv6 address stands in brackets."""
        self._allowed = frozenset(_host_and_port(entry) for entry in allow_hosts)

    def exempts(self, url: URL) -> bool:
        """Whether the operator named this host: then its address is not judged."""
        host = _host(url)
        return (host, None) in self._allowed or (host, _port(url)) in self._allowed

    @staticmethod
    def is_public(address: str) -> bool:
        """Whether a numeric IP address is one that everybody on the internet would reach."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip not in _PUBLIC_V6:
            return False
        return ip.is_global and not any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)

    def open_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Make the socket for one entry of `getaddrinfo`, or refuse it. Sees redirects, IP literals and every retry alike."""
        family, kind, protocol, _, where = address
        if not self.is_public(str(where[0])):
            raise _Refused
        return socket.socket(family, kind, protocol)


def create_client(
    *,
    guard: AddressGuard | None,
    max_connections: int = 256,
    timeout: Timeout = _DEFAULT_TIMEOUT,
    user_agent: str = "image-gateway",
) -> AsyncClient:
    """Make a client: no cookies, no compression, no redirects unless asked for, TLS trusting `SSL_CERT_FILE`.

    Args:
        guard: Judges every address connected to; None for addresses that the operator configured.
        max_connections: At most so many at once; more wait for `timeout.pool` seconds.
        timeout: The default for requests that do not bring their own, seconds.
        user_agent: What servers are told.
    """
    return AsyncClient(
        transport=_AiohttpTransport(guard, max_connections, httpx.create_ssl_context()),
        headers={"Accept-Encoding": "identity", "User-Agent": user_agent},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        timeout=timeout,
        trust_env=False,
        max_redirects=3,
    )


class _Refused(OSError):
    """Raised where aiohttp makes a socket; has to be an OSError to be treated as an address that did not work."""


class _AiohttpTransport(AsyncBaseTransport):
    """Carries httpx's requests over aiohttp's connections."""

    def __init__(self, guard: AddressGuard | None, max_connections: int, tls: ssl.SSLContext) -> None:
        self._guard = guard
        self._max_connections = max_connections
        self._tls = tls
        self._sessions: dict[AddressGuard | None, aiohttp.ClientSession] = {}

    async def handle_async_request(self, request: Request) -> Response:
        if request.url.scheme not in {"http", "https"} or not request.url.host:
            raise UnsupportedProtocol("only http and https addresses can be asked")
        limits = cast("dict[str, float | None]", request.extensions.get("timeout", {}))
        sending = _Sending(request, limits.get("write"))
        with _translated(sending):
            async with sending.watched():
                answer = await self._session(request.url).request(
                    request.method,
                    EncodedURL(str(request.url), encoded=True),
                    headers=_headers(request),
                    data=sending.body(),
                    allow_redirects=False,
                    timeout=_timeout(limits),
                    middlewares=(sending.once,),
                )
        packing = answer.headers.get("content-encoding", "").strip().lower()
        if packing in _PACKED:
            answer.close()
            raise RemoteProtocolError(f"the server packed its answer ({packing}) though asked not to")
        return Response(answer.status, headers=answer.raw_headers, stream=_Received(answer, sending), request=request)

    async def aclose(self) -> None:
        for session in self._sessions.values():
            await session.close()

    def _session(self, url: URL) -> aiohttp.ClientSession:
        """The connections for this host: judged ones, or free ones where it is exempt. Redirects come through here too."""
        guard = None if self._guard is None or self._guard.exempts(url) else self._guard
        session = self._sessions.get(guard)
        if session is None:
            session = self._sessions[guard] = self._connect(guard)
        return session

    def _connect(self, guard: AddressGuard | None) -> aiohttp.ClientSession:
        strangers = self._guard is not None
        connector = aiohttp.TCPConnector(
            limit=self._max_connections,
            ssl=self._tls,
            force_close=strangers,
            keepalive_timeout=None if strangers else _KEEPALIVE_S,
            socket_factory=guard.open_socket if guard else None,
        )
        if strangers:
            _watch_answers(connector)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )


def _watch_answers(connector: aiohttp.TCPConnector) -> None:
    """Have each connection, which is for one answer, watch how that is framed."""
    # aiohttp has no public place for this; a test notices if it stops being the place.
    make: partial[ResponseHandler] = partial(_WatchedAnswer, loop=asyncio.get_running_loop())
    connector._factory = make  # pyright: ignore[reportPrivateUsage] - as said


class _WatchedAnswer(ResponseHandler):
    """Hangs up on an answer that would keep the parser, and with it the event loop, busy without end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._watch = FramingWatch()

    def data_received(self, data: bytes) -> None:
        if self._parser is None:  # it answers before it was asked
            self._hang_up()
            return
        try:
            own = self._watch.take(data)
        except AbsurdAnswer:
            self._hang_up()
            return
        if own or not data:  # with nothing, aiohttp itself goes on with what it has
            super().data_received(own)

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Sending:
    """A request on its way out: how far its body is, and httpx's write timeout, which aiohttp lacks."""

    def __init__(self, request: Request, timeout_s: float | None) -> None:
        headers = request.headers
        self.complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self._stream = cast("AsyncByteStream", request.stream)
        self._timeout_s = timeout_s
        self._watch: asyncio.Timeout | None = None

    async def once(self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        """Translate failures before aiohttp sees them: left to itself it repeats a PUT whose connection broke."""
        with _translated(self):
            return await send(request)

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Until the answer begins, end the wait if the server stops taking the body."""
        try:
            async with asyncio.timeout(None) as self._watch:
                yield
        except TimeoutError as exc:
            raise WriteTimeout("the server stopped reading the request") from exc
        finally:
            self._watch = None

    def body(self) -> AsyncIterator[bytes] | None:
        return None if self.complete else self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self._expect_progress(self._timeout_s)
            yield piece
            self._expect_progress(None)
        self.complete = True

    def _expect_progress(self, within_s: float | None) -> None:
        if self._watch is not None:
            self._watch.reschedule(None if within_s is None else asyncio.get_running_loop().time() + within_s)


class _Received(AsyncByteStream):
    """The body of an answer as it arrives, never unpacked."""

    def __init__(self, answer: aiohttp.ClientResponse, sending: _Sending) -> None:
        self._answer = answer
        self._sending = sending

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated(self._sending):
            async for piece in self._answer.content.iter_any():
                yield piece

    async def aclose(self) -> None:
        self._answer.close()  # a connection whose answer was read to the end is back in the pool by now


@contextmanager
def _translated(sending: _Sending) -> Generator[None]:
    """Turn aiohttp's errors into httpx's: a connect error only if no connection was made, so that a repeat is safe.

    Messages are ours: aiohttp's quote the address, which may be signed.
    """
    try:
        yield
    except aiohttp.ClientConnectorError as exc:
        if isinstance(exc.os_error, _Refused):
            raise AddressRefused("the address is in a private network") from exc
        raise ConnectError(f"no connection: {exc.os_error.strerror or type(exc.os_error).__name__}") from exc
    except aiohttp.ConnectionTimeoutError as exc:
        raise ConnectTimeout("no connection in time") from exc
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as exc:
        raise UnsupportedProtocol("the address is not valid") from exc
    except aiohttp.ServerTimeoutError as exc:
        raise ReadTimeout("the server did not answer in time") from exc
    except aiohttp.ServerDisconnectedError as exc:
        raise RemoteProtocolError("the server closed the connection without an answer") from exc
    except aiohttp.ClientPayloadError as exc:
        raise RemoteProtocolError("the server closed the connection before the answer was complete") from exc
    except aiohttp.ClientResponseError as exc:
        raise RemoteProtocolError("the server's answer is not HTTP") from exc
    except (aiohttp.ClientError, OSError) as exc:
        broken = ReadError if sending.complete else WriteError
        raise broken(f"the connection broke: {type(exc).__name__}") from exc


def _headers(request: Request) -> list[tuple[str, str]]:
    """All but the transfer encoding, which aiohttp sets itself for a body without a length."""
    every = ((name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers.raw)
    return [(name, value) for name, value in every if name.lower() != "transfer-encoding"]


def _timeout(limits: dict[str, float | None]) -> aiohttp.ClientTimeout:
    connect_s, pool_s = limits.get("connect"), limits.get("pool")
    in_all_s = None if connect_s is None or pool_s is None else connect_s + pool_s
    return aiohttp.ClientTimeout(total=None, connect=in_all_s, sock_connect=connect_s, sock_read=limits.get("read"))


def _host_and_port(entry: str) -> tuple[str, int | None]:
    """Read `host`, `host:port`, `[v6]` or `[v6]:port`. Raises `ValueError`."""
    try:
        url = URL(f"any://{entry.strip()}")
    except InvalidURL as exc:
        raise ValueError(f"{entry!r} is neither host nor host:port") from exc
    if not url.host or any(mark in entry for mark in "/@?#"):
        raise ValueError(f"{entry!r} is neither host nor host:port")
    return _host(url), url.port


def _host(url: URL) -> str:
    return url.raw_host.decode("ascii").lower().rstrip(".")


def _port(url: URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)
