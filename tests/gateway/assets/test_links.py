"""Signed links: what they are worth, to whom and how long."""

from urllib.parse import parse_qsl, urlsplit

import pytest

from gateway.assets.links import LinkState, check_link, sign_link

SECRET = b"secret"


def parts(link: str) -> tuple[str, str, str]:
    split = urlsplit(link)
    query = dict(parse_qsl(split.query))
    return split.path.rpartition("/")[2], query["expires"], query["signature"]


def test_a_link_is_good_until_it_ends() -> None:
    """A link is good up to, and not at, the second in which it ends."""
    name, expires, signature = parts(sign_link("asset_1", "png", 1000, SECRET))

    assert (name, expires) == ("asset_1.png", "1000")
    assert check_link(name, expires, signature, SECRET, 999.9) is LinkState.GOOD
    assert check_link(name, expires, signature, SECRET, 1000) is LinkState.EXPIRED


def test_a_link_is_a_path_that_needs_no_quoting() -> None:
    """The link begins at the root and has no character that an address may not have."""
    link = sign_link("asset_1", "png", 1000, SECRET)

    assert link.startswith("/assets/asset_1.png?expires=1000&signature=")
    assert all(character.isalnum() or character in "/._-?=&" for character in link)


@pytest.mark.parametrize(
    ("name", "expires", "secret"),
    [
        ("asset_2.png", "1000", SECRET),
        ("asset_1.jpg", "1000", SECRET),
        ("asset_1.png", "1001", SECRET),
        ("asset_1.png", "1000", b"x"),
    ],
)
def test_a_signature_is_for_one_name_one_time_and_one_secret(name: str, expires: str, secret: bytes) -> None:
    """A change to anything that is signed makes the link forged, not expired."""
    _, _, signature = parts(sign_link("asset_1", "png", 1000, SECRET))

    assert check_link(name, expires, signature, secret, 5000) is LinkState.FORGED


@pytest.mark.parametrize("expires", ["", "x", "-1", "1.5", "٣", "1" * 13, "1000\n"])
def test_an_expiry_that_is_no_number_is_forged(expires: str) -> None:
    """Nothing that a caller can write there is an error."""
    assert check_link("asset_1.png", expires, "ünicode", SECRET, 0) is LinkState.FORGED
