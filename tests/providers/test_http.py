"""What the transport promises: the right error for each mishap, nothing sent twice, nothing kept, nothing unpacked."""

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from providers import http
from tests.providers.conftest import Serve, answer, read_request

HOSTILE = [
    "http://127.0.0.1:9/",
    "http://127.1:9/",
    "http://2130706433:9/",
    "http://0x7f000001:9/",
    "http://0177.0.0.1:9/",
    "http://localhost:9/",
    "http://0.0.0.0:9/",
    "http://10.0.0.1:9/",
    "http://172.16.0.1:9/",
    "http://192.168.0.1:9/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1:9/",
    "http://168.63.129.16:9/",
    "http://192.0.0.192:9/",
    "http://198.18.0.1:9/",
    "http://224.0.0.1:9/",
    "http://240.0.0.1:9/",
    "http://255.255.255.255:9/",
    "http://[::]:9/",
    "http://[::1]:9/",
    "http://[::ffff:127.0.0.1]:9/",
    "http://[::ffff:7f00:1]:9/",
    "http://[64:ff9b::127.0.0.1]:9/",
    "http://[64:ff9b:1::1]:9/",
    "http://[2002:7f00:1::1]:9/",
    "http://[2001:0:7f00:1::1]:9/",
    "http://[fe80::1]:9/",
    "http://[fec0::1]:9/",
    "http://[fc00::1]:9/",
    "http://[ff02::1]:9/",
    "http://[2001:db8::1]:9/",
]


@pytest.mark.parametrize("url", HOSTILE)
async def test_private_addresses_are_refused_however_they_are_written(guarded: http.AsyncClient, url: str) -> None:
    """No spelling of an address inside gets past the guard."""
    with pytest.raises((http.AddressRefused, http.UnsupportedProtocol, http.InvalidURL)):  # the others: not even an address
        await guarded.get(url)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "2001:4860:4860::8888"])
def test_public_addresses_are_allowed(address: str) -> None:
    """The guard is not in the way of the internet."""
    assert http.AddressGuard.is_public(address)


async def test_a_name_is_judged_by_the_address_it_leads_to(monkeypatch: pytest.MonkeyPatch, guarded: http.AsyncClient) -> None:
    """A name that resolves to an address inside is refused, whatever it is called."""

    def resolve(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(http.AddressRefused):
        await guarded.get("http://pictures.example.com:9/")


async def test_a_redirect_into_the_private_network_is_refused(serve: Serve) -> None:
    """The first hop was allowed by the operator; the second is judged for itself."""
    inside = await serve(_answering(answer(b"secret")))
    url = await serve(_answering(answer(b"", "302 Found", f"Location: {inside}/")))
    guard = http.AddressGuard([url.removeprefix("http://")])
    async with http.create_client(guard=guard) as client:
        with pytest.raises(http.AddressRefused):
            await client.get(url, follow_redirects=True)


@pytest.mark.parametrize("form", ["{host}", "{host}:{port}"])
async def test_the_operator_can_exempt_a_host(serve: Serve, form: str) -> None:
    """`allow_hosts` names hosts, with or without a port."""
    url = await serve(_answering(answer(b"hello")))
    host, port = url.removeprefix("http://").split(":")
    async with http.create_client(guard=http.AddressGuard([form.format(host=host, port=port)])) as client:
        assert (await client.get(url)).content == b"hello"


async def test_another_port_of_an_exempt_host_stays_closed(serve: Serve) -> None:
    """An exemption with a port is for that port alone."""
    url = await serve(_answering(answer(b"hello")))
    async with http.create_client(guard=http.AddressGuard(["127.0.0.1:9"])) as client:
        with pytest.raises(http.AddressRefused):
            await client.get(url)


@pytest.mark.parametrize("entry", ["", ":80", "http://host/", "user@host", "host:notaport", "::1"])
def test_an_exemption_that_means_nothing_is_an_error(entry: str) -> None:
    """A typing error in the settings is said at once."""
    with pytest.raises(ValueError, match="neither host nor host:port"):
        http.AddressGuard([entry])


async def test_a_refused_connection_is_a_connect_error(client: http.AsyncClient) -> None:
    """Nothing listens: certainly nothing was sent."""
    with pytest.raises(http.ConnectError):
        await client.post(f"http://127.0.0.1:{_free_port()}/", content=b"x")


async def test_an_unknown_name_is_a_connect_error(monkeypatch: pytest.MonkeyPatch, client: http.AsyncClient) -> None:
    """A name that does not resolve: certainly nothing was sent."""

    def resolve(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(http.ConnectError):
        await client.get("http://nowhere.example.com/")


async def test_a_server_that_never_accepts_is_a_connect_timeout(monkeypatch: pytest.MonkeyPatch, client: http.AsyncClient) -> None:
    """The connection was not made in time: certainly nothing was sent."""
    hold = asyncio.Event()

    async def never(*_: object) -> None:
        await hold.wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    with pytest.raises(http.ConnectTimeout):
        await client.get("http://127.0.0.1:9/", timeout=http.Timeout(5, connect=0.05))


@pytest.mark.parametrize("method", ["POST", "PUT", "GET"])
async def test_a_connection_closed_after_the_request_is_not_a_connect_error(
    client: http.AsyncClient, serve: Serve, method: str
) -> None:
    """The request arrived, so it may have been carried out: said as such, and not sent a second time."""
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await read_request(reader))[0])

    url = await serve(script)
    with pytest.raises(http.RemoteProtocolError):
        await client.request(method, url, content=b"paid work" if method != "GET" else None)
    assert len(seen) == 1


async def test_a_reset_connection_kept_from_before_is_not_tried_again(client: http.AsyncClient, serve: Serve) -> None:
    """Also on a connection that served an earlier request, a broken PUT stays broken."""
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await read_request(reader))[0])
        writer.write(answer())
        seen.append((await read_request(reader))[0])
        writer.transport.abort()

    url = await serve(script)
    await client.put(url, content=b"one")
    with pytest.raises((http.ReadError, http.RemoteProtocolError)):
        await client.put(url, content=b"two")
    assert len(seen) == 2


async def test_half_a_body_is_a_protocol_error(client: http.AsyncClient, serve: Serve) -> None:
    """An answer cut short is never taken for whole."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(b"x" * 1000)[:-500])

    with pytest.raises(http.RemoteProtocolError):
        await client.get(await serve(script))


async def test_a_silent_server_is_a_read_timeout(client: http.AsyncClient, serve: Serve) -> None:
    """No answer in time, before the head and in the middle of the body."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(b"x" * 10)[:-5])
        await reader.read()

    for script in (silent, stuck):
        with pytest.raises(http.ReadTimeout):
            await client.post(await serve(script), content=b"x", timeout=http.Timeout(5, read=0.05))


async def test_a_server_that_stops_reading_is_a_write_timeout(client: http.AsyncClient, serve: Serve) -> None:
    """A body that is not taken does not wait for ever."""
    done = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()

    url = await serve(deaf)
    with pytest.raises(http.WriteTimeout):
        await client.put(url, content=_pieces(b"x" * 2**20, 64), timeout=http.Timeout(5, write=0.05))
    done.set()


async def test_a_connection_broken_while_sending_is_a_write_error(client: http.AsyncClient, serve: Serve) -> None:
    """The server hung up on half a body."""

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    with pytest.raises((http.WriteError, http.ReadError)):
        await client.put(await serve(rude), content=_pieces(b"x" * 2**20, 32))


@pytest.mark.parametrize("line", [b"HTTP/1.1 abc\r\n\r\n", b"NONSENSE\r\n\r\n", b"\x00\x01\x02\r\n\r\n"])
async def test_what_is_not_http_is_a_protocol_error(client: http.AsyncClient, serve: Serve, line: bytes) -> None:
    """No raw error of the library below gets through."""
    with pytest.raises(http.RemoteProtocolError):
        await client.get(await serve(_answering(line)))


async def test_failing_tls_is_a_connect_error(client: http.AsyncClient, serve: Serve) -> None:
    """TLS that fails is a connection that was not made."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is not TLS")

    with pytest.raises(http.ConnectError):
        await client.get((await serve(plain)).replace("http://", "https://"))


def test_tls_trusts_the_file_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`SSL_CERT_FILE` is read when a client is made."""
    (tmp_path / "roots.pem").write_text("not a certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    with pytest.raises(ssl.SSLError):
        http.create_client(guard=None)


async def test_cookies_are_not_kept(client: http.AsyncClient, serve: Serve) -> None:
    """What one tenant's request was given is not sent with another's."""
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            heads.append((await read_request(reader))[0])
            writer.write(answer(b"", "200 OK", "Set-Cookie: who=tenant-a; Path=/"))

    url = await serve(script)
    await client.get(url)
    await client.get(url)
    assert b"cookie" not in heads[1].lower()


async def test_answers_are_asked_for_unpacked_and_packed_ones_refused(client: http.AsyncClient, serve: Serve) -> None:
    """A small packed body must not become a huge one."""
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0])
        writer.write(answer(gzip.compress(b"x" * 10_000), "200 OK", "Content-Encoding: gzip"))

    with pytest.raises(http.RemoteProtocolError, match="packed"):
        await client.get(await serve(script))
    assert b"accept-encoding: identity" in heads[0].lower()


async def test_bodies_are_streamed_with_a_length_or_in_chunks(client: http.AsyncClient, serve: Serve) -> None:
    """A given length is kept; without one the body goes in chunks."""
    seen: list[tuple[bytes, bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await read_request(reader))
            writer.write(answer())

    url = await serve(script)
    await client.put(url, content=_pieces(b"abc", 3), headers={"Content-Length": "9"})
    await client.put(url, content=_pieces(b"abc", 3))
    await client.post(url, json={"a": 1})
    await client.post(url)
    assert [body for _, body in seen] == [b"abcabcabc", b"abcabcabc", b'{"a":1}', b""]
    assert b"content-length: 9" in seen[0][0].lower()
    assert b"chunked" in seen[1][0].lower()
    assert b"application/json" in seen[2][0].lower()


async def test_addresses_reach_the_server_as_they_were_signed(client: http.AsyncClient, serve: Serve) -> None:
    """Escapes in a signed address are not written anew."""
    lines: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await read_request(reader))[0].split(b"\r\n")[0])
        writer.write(answer())

    await client.get(f"{await serve(script)}/a%2Fb/c%20d?sig=x%2By%3D&e=1")
    assert lines == [b"GET /a%2Fb/c%20d?sig=x%2By%3D&e=1 HTTP/1.1"]


async def test_an_answer_that_comes_before_the_body_is_sent_is_read(client: http.AsyncClient, serve: Serve) -> None:
    """A server that refuses early is heard."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"no", "413 Payload Too Large"))
        await reader.read()

    response = await client.put(await serve(script), content=_pieces(b"x" * 2**20, 64))
    assert (response.status_code, response.content) == (413, b"no")


async def test_only_http_is_spoken(client: http.AsyncClient) -> None:
    """Other schemes are refused before anything is opened."""
    for url in ("ftp://example.com/", "file:///etc/passwd", "http:///nowhere"):
        with pytest.raises(http.UnsupportedProtocol):
            await client.get(url)


@pytest.mark.parametrize(
    ("head", "endless"),
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"extension"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x" * 1000 + b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
    ],
    ids=["hints", "tiny chunks", "extension", "more answers"],
)
async def test_an_endless_answer_does_not_keep_others_waiting(head: bytes, endless: bytes) -> None:
    """A stranger's server that sends as fast as it can is hung up on, and the loop goes on ticking meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sending = asyncio.create_task(asyncio.to_thread(_send_without_end, server, head, endless * (2**20 // len(endless))))
        done = asyncio.Event()
        ticking = asyncio.create_task(_slowest_round(done))
        async with http.create_client(guard=http.AddressGuard(["127.0.0.1"])) as client:
            with suppress(http.HTTPError):
                await asyncio.wait_for(client.get(f"http://127.0.0.1:{port}/"), 10)
        await asyncio.wait_for(sending, 10)
        done.set()
        assert await ticking < 0.1


def _send_without_end(server: socket.socket, head: bytes, piece: bytes) -> None:
    connection, _ = server.accept()
    with connection, suppress(OSError):
        connection.settimeout(10)
        connection.recv(65536)
        connection.sendall(head)
        for _ in range(500):
            connection.sendall(piece)


async def _slowest_round(done: asyncio.Event) -> float:
    """How long the loop kept a timer of 5 ms waiting at most, seconds."""
    loop, slowest_s = asyncio.get_running_loop(), 0.0
    while not done.is_set():
        before_s = loop.time()
        await asyncio.sleep(0.005)
        slowest_s = max(slowest_s, loop.time() - before_s)
    return slowest_s


async def _pieces(piece: bytes, times: int) -> AsyncIterator[bytes]:
    for _ in range(times):
        yield piece


def _answering(whole: bytes):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(whole)

    return script


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
