from __future__ import annotations

from dataclasses import replace

import pytest

from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.repository.native.manifest import (
    Manifest,
    format_manifest,
    parse_manifest,
    sign_manifest,
    split_fields,
    verify_manifest,
)
from cvmfs_publish.repository.native.signing import SignatureError, join_signed, split_signed
from tests.unit.native.vectors import NAMES, SHA1, vector, vector_keys

MANIFEST = Manifest(
    name="a.example.org",
    root_hash=ContentHash.parse("0" * 39 + "1"),
    root_size=16384,
    revision=7,
    timestamp=1795170600,
    certificate=ContentHash.parse("0" * 39 + "2"),
    history=ContentHash.parse("0" * 39 + "3"),
    metainfo=ContentHash.parse("0" * 39 + "4"),
    reflog=ContentHash.parse("0" * 39 + "5"),
    garbage_collectable=True,
)
TEXT = b"""\
C0000000000000000000000000000000000000001
B16384
Rd41d8cd98f00b204e9800998ecf8427e
D240
S7
Gyes
Ano
Na.example.org
X0000000000000000000000000000000000000002
H0000000000000000000000000000000000000003
T1795170600
M0000000000000000000000000000000000000004
Y0000000000000000000000000000000000000005
"""
BLOCK = b"--\n" + b"0" * 40 + b"\nsignature"


@pytest.mark.parametrize("name", NAMES)
def test_stock_manifests_are_reproduced_to_the_last_bit(name: str) -> None:
    data = (vector(name) / "repo/.cvmfspublished").read_bytes()
    keys = vector_keys(name)
    manifest = verify_manifest(data, keys.certificate)
    assert manifest.name == name
    assert manifest.revision == 3
    assert sign_manifest(manifest, keys.private_key) == data


def test_the_text_is_in_the_order_stock_writes() -> None:
    assert format_manifest(MANIFEST) == TEXT
    assert parse_manifest(TEXT + BLOCK) == (MANIFEST, b"0" * 40, b"signature")


def test_optional_fields_may_be_absent() -> None:
    text = b"C%b\nR%b\nD1\nS2\n" % (b"1" * 40, b"d41d8cd98f00b204e9800998ecf8427e")
    manifest = parse_manifest(text + BLOCK)[0]
    assert manifest == Manifest("", ContentHash.parse("1" * 40), 2, 0, None, ttl=1)


def test_unknown_fields_survive_and_order_does_not_matter() -> None:
    lines = TEXT.splitlines(keepends=True)
    text = b"".join([b"Zlast\n", *reversed(lines), b"Ksomething else\n"])
    manifest = parse_manifest(text + BLOCK)[0]
    assert manifest == replace(MANIFEST, unknown=(("Z", "last"), ("K", "something else")))
    assert format_manifest(manifest) == TEXT + b"Zlast\nKsomething else\n"


def test_the_last_of_repeated_fields_wins() -> None:
    assert parse_manifest(TEXT + b"S9\n" + BLOCK)[0].revision == 9
    assert split_fields(b"S7\nS9\n") == [("S", "7"), ("S", "9")]


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b"S7", b"", "no field S"),
        (b"D240", b"", "no field D"),
        (b"C0000000000000000000000000000000000000001", b"", "no field C"),
        (b"Rd41d8cd98f00b204e9800998ecf8427e", b"", "no field R"),
        (b"S7", b"S-7", "field S is '-7'"),
        (b"S7", b"S", "field S is ''"),
        (b"S7", b"S7 ", "field S is '7 '"),
        (b"S7", b"S\xd9\xa7", "field S"),
        (b"S7", b"S" + b"9" * 19, "field S"),
        (b"S7", b"S" + b"9" * 3000, "field S"),
        (b"0001\n", b"000g\n", "field C"),
        (b"0002\n", b"02\n", "field X"),
    ],
)
def test_malformed_fields_are_named(old: bytes, new: bytes, text: str) -> None:
    with pytest.raises(IntegrityError, match=text):
        parse_manifest(TEXT.replace(old, new, 1) + BLOCK)


def test_a_manifest_of_more_than_4095_bytes_is_refused() -> None:
    room = 4095 - len(TEXT) - len(BLOCK) - 2
    parse_manifest(TEXT + b"K" + b"x" * room + b"\n" + BLOCK)
    with pytest.raises(IntegrityError, match="4096 bytes, more than 4095"):
        parse_manifest(TEXT + b"K" + b"x" * (room + 1) + b"\n" + BLOCK)
    with pytest.raises(IntegrityError, match="more than 4095"):
        sign_manifest(replace(MANIFEST, unknown=(("K", "x" * 4000),)), vector_keys().private_key)


@pytest.mark.parametrize(
    "field", [("K", "two\nlines"), ("-", "-"), ("S", "5"), ("K", "x"), ("", "")]
)
def test_what_would_not_be_read_back_is_not_signed(field: tuple[str, str]) -> None:
    manifest = replace(MANIFEST, unknown=(field,))
    if field == ("K", "x"):
        sign_manifest(manifest, vector_keys().private_key)
        return
    with pytest.raises(IntegrityError):
        sign_manifest(manifest, vector_keys().private_key)


def test_a_signature_over_another_text_is_refused() -> None:
    keys = vector_keys()
    signed = split_signed(sign_manifest(MANIFEST, keys.private_key), "manifest")
    changed = signed.payload.replace(b"S7", b"S8")
    with pytest.raises(SignatureError, match="hash line says"):
        verify_manifest(join_signed(changed, signed.hash_text, signed.signature), keys.certificate)
    hash_text = str(ContentHash.of(changed, MANIFEST.root_hash.algorithm)).encode()
    with pytest.raises(SignatureError, match="not made with the key"):
        verify_manifest(join_signed(changed, hash_text, signed.signature), keys.certificate)
    other = vector_keys(NAMES[1])
    with pytest.raises(SignatureError, match="not made with the key"):
        verify_manifest(sign_manifest(MANIFEST, other.private_key), keys.certificate)


def test_the_hash_line_follows_the_algorithm_of_the_root_catalog() -> None:
    root = ContentHash.parse("1" * 40 + "-shake128")
    data = sign_manifest(replace(MANIFEST, root_hash=root), vector_keys(SHA1).private_key)
    assert split_signed(data, "manifest").hash_text.endswith(b"-shake128")
