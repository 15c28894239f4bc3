"""API keys as values."""

import re

import pytest

from gateway.tenants.keys import RANDOM_BYTES, digest, is_well_formed, masked, new_secret, visible_prefix

SECRET = new_secret(bytes(range(RANDOM_BYTES)))


def test_a_secret_carries_all_its_randomness_in_letters_and_digits():
    """At least 160 bits, and one double click selects it."""
    assert re.fullmatch(r"igw_[a-z2-7]{40}", SECRET)
    assert 40 * 5 >= 160
    assert is_well_formed(SECRET)


def test_too_little_randomness_is_refused():
    """A key is never weaker than the hash needs."""
    with pytest.raises(ValueError, match="random bytes"):
        new_secret(b"short")


def test_the_digest_depends_on_secret_and_pepper_and_shows_neither():
    """A stolen database alone says nothing about keys."""
    hashed = digest(SECRET, b"pepper")

    assert re.fullmatch(r"[0-9a-f]{64}", hashed)
    assert hashed == digest(SECRET, b"pepper")
    assert hashed not in (digest(SECRET, b"other"), digest(SECRET + "x", b"pepper"))


@pytest.mark.parametrize("text", ["", "igw_", "sk-proj-abc", SECRET + "x", SECRET[:-1], SECRET[:-1] + "ü", SECRET.upper()])
def test_nonsense_is_not_a_key(text):
    """What cannot be a key is not looked up."""
    assert not is_well_formed(text)


def test_messages_show_a_masked_key():
    """Enough to recognise, too little to use; short texts are hidden wholly."""
    assert masked(SECRET) == f"igw_aa***{SECRET[-4:]}"
    assert masked("short") == "***"
    assert visible_prefix(SECRET) == SECRET[:8]
