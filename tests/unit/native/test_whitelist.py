from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.repository.native.signing import SignatureError, join_signed, split_signed
from cvmfs_publish.repository.native.whitelist import (
    ExpiredError,
    Whitelist,
    format_fingerprint,
    format_whitelist,
    make_whitelist,
    parse_whitelist,
    sign_whitelist,
    verify_whitelist,
)
from tests.unit.native.vectors import NAMES, NOW, vector, vector_keys

FINGERPRINT = ContentHash.parse("9632c526" + "0" * 24 + "0000abc6")
WHITELIST = Whitelist(
    "a.example.org",
    datetime(2026, 11, 20, 10, 21, 38, tzinfo=UTC),
    datetime(2026, 12, 20, 10, 21, 38, tzinfo=UTC),
    (FINGERPRINT,),
)
TEXT = b"""\
20261120102138
E20261220102138
Na.example.org
96:32:C5:26:00:00:00:00:00:00:00:00:00:00:00:00:00:00:AB:C6
"""
BLOCK = b"--\n" + b"0" * 40 + b"\nsignature"


@pytest.mark.parametrize("name", NAMES)
def test_stock_whitelists_are_reproduced_to_the_last_bit(name: str) -> None:
    data = (vector(name) / "repo/.cvmfswhitelist").read_bytes()
    keys = vector_keys(name)
    assert keys.master_key is not None
    whitelist = verify_whitelist(data, [keys.public_key], name=name, now=NOW)
    algorithm = whitelist.fingerprints[0].algorithm
    assert sign_whitelist(whitelist, keys.master_key, algorithm) == data


def test_text_and_value_belong_together() -> None:
    assert format_whitelist(WHITELIST) == TEXT
    assert parse_whitelist(TEXT + BLOCK) == (WHITELIST, b"0" * 40, b"signature")
    shake = ContentHash(FINGERPRINT.digest, HashAlgorithm.SHAKE128)
    assert format_fingerprint(shake).endswith(":C6-SHAKE128")


def test_comments_options_and_malformed_lines() -> None:
    more = b"Wcachain\n" + TEXT.splitlines()[3].lower() + b" # old one\nAB:CD\n\n"
    whitelist = parse_whitelist(TEXT + more + BLOCK)[0]
    assert whitelist == replace(
        WHITELIST,
        fingerprints=(FINGERPRINT, FINGERPRINT),
        options=("Wcachain",),
        malformed=("AB:CD", ""),
    )


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b"20261120102138", b"2026112010213", "creation time"),
        (b"20261120102138", b"20261320102138", "creation time"),
        (b"E2026", b"2026", "does not start with"),
        (b"E20261220102138", b"E20261220102138 ", "expiry"),
        (b"Na.", b"a.", "does not start with"),
        (TEXT, b"20261120102138\nE20261220102138\n", "does not start with"),
    ],
)
def test_malformed_whitelists_are_refused(old: bytes, new: bytes, text: str) -> None:
    with pytest.raises(IntegrityError, match=text):
        parse_whitelist(TEXT.replace(old, new, 1) + BLOCK)


def test_it_is_valid_while_the_hour_is_before_the_expiry_hour() -> None:
    last = datetime(2026, 12, 20, 9, 59, 59, tzinfo=UTC)
    assert not WHITELIST.is_expired(last)
    assert WHITELIST.is_expired(last + timedelta(seconds=1))
    assert not WHITELIST.is_expired(last.astimezone(timezone(timedelta(hours=9))))


def test_an_accepted_whitelist_is_for_this_name_time_and_key() -> None:
    keys, other = vector_keys(NAMES[0]), vector_keys(NAMES[1])
    assert keys.master_key is not None
    now = WHITELIST.created_at
    data = make_whitelist(
        "a.example.org", [FINGERPRINT], now + timedelta(days=30), keys.master_key, now
    )
    trusted = [other.public_key, keys.public_key]
    assert verify_whitelist(data, trusted, name="a.example.org", now=now) == WHITELIST
    with pytest.raises(IntegrityError, match=r"not for 'b\.example\.org'"):
        verify_whitelist(data, trusted, name="b.example.org", now=now)
    with pytest.raises(ExpiredError, match="2026-12-20 10:21 UTC"):
        verify_whitelist(data, trusted, name="a.example.org", now=now + timedelta(days=30))
    with pytest.raises(SignatureError):
        verify_whitelist(data, [other.public_key], name="a.example.org", now=now)
    signed = split_signed(data, "whitelist")
    longer = signed.payload.replace(b"E2026", b"E2036")
    with pytest.raises(SignatureError, match="hash line says"):
        verify_whitelist(
            join_signed(longer, signed.hash_text, signed.signature),
            trusted,
            name="a.example.org",
            now=now,
        )


@pytest.mark.parametrize("minutes", [-60, 0, 20])
def test_a_whitelist_that_is_expired_from_the_start_is_not_made(minutes: int) -> None:
    now = datetime(2026, 11, 20, 10, 30, tzinfo=UTC)
    master = vector_keys().master_key
    assert master is not None
    with pytest.raises(InputError, match="expired from the start"):
        make_whitelist("a", [FINGERPRINT], now + timedelta(minutes=minutes), master, now)
    make_whitelist("a", [FINGERPRINT], now + timedelta(minutes=30), master, now)
    with pytest.raises(InputError, match="no certificate"):
        make_whitelist("a", [], now + timedelta(days=1), master, now)
