"""The watch over answers of strangers: what is sent in earnest passes unchanged, what only costs time does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.framing import AbsurdAnswer, FramingWatch

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

WHOLE = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\ncontent-length: 5\r\n\r\n12\r\n3",
    "no body": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "bare newlines": b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx",
    "chunks": CHUNKED + b"5\r\n12\r\n3\r\nA;ext=1\r\n0123456789\r\n0\r\n\r\n",
    "trailer": CHUNKED + b"1\r\nx\r\n0\r\nDigest: x\r\nOther: y\r\n\r\n",
    "hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx",
}


@given(st.sampled_from(sorted(WHOLE)), st.lists(st.integers(1, 40), max_size=30))
def test_an_answer_passes_wherever_it_is_cut_and_nothing_behind_it(kind: str, cuts: list[int]) -> None:
    """Byte for byte; a second answer that nobody asked for does not reach the parser."""
    watch, passed, rest = FramingWatch(), b"", WHOLE[kind] + b"HTTP/1.1 200 OK\r\n\r\n"
    for cut in cuts:
        passed += watch.take(rest[:cut])
        rest = rest[cut:]
    assert passed + watch.take(rest) == WHOLE[kind]


def test_a_body_without_a_length_goes_on_until_the_connection_ends() -> None:
    """As HTTP/1.0 servers send it."""
    watch = FramingWatch()
    assert watch.take(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 10**6).endswith(b"x" * 10**6)
    assert watch.take(b"y" * 10**6) == b"y" * 10**6


def test_chunks_of_a_usual_size_may_be_many() -> None:
    """A file of any size, in pieces of a hundred bytes."""
    body = CHUNKED + b"64\r\n" + b"x" * 100 + (b"\r\n64\r\n" + b"x" * 100) * 20_000
    assert FramingWatch().take(body) == body


@pytest.mark.parametrize(
    "absurd",
    [
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
        b"\r\n" * 100_000,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        CHUNKED + b"1\r\nx\r\n" * 1001,
        CHUNKED + b"1;" + b"x" * 300,
        CHUNKED + b"\r\n\r\n",
        CHUNKED + b"-1\r\nx",
        CHUNKED + b"1\r\nxx\r\n",
        CHUNKED + b"0\r\n" + b"X: y\r\n" * 5000,
    ],
)
@pytest.mark.parametrize("cut", [1, 100, 2**18])
def test_what_only_costs_time_is_given_up(absurd: bytes, cut: int) -> None:
    """Heads, hints, tiny chunks, their extensions and trailers without end."""
    with pytest.raises(AbsurdAnswer):
        _take(absurd, cut)


def _take(whole: bytes, cut: int) -> None:
    watch = FramingWatch()
    for at in range(0, len(whole), cut):
        watch.take(whole[at : at + cut])
