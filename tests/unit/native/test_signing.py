from __future__ import annotations

import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cvmfs_publish.content.hashes import HashAlgorithm, Suffix
from cvmfs_publish.errors import InputError, IntegrityError, RepositoryError
from cvmfs_publish.repository.native import manifest as manifests
from cvmfs_publish.repository.native.signing import (
    Keys,
    SignatureError,
    create_keys,
    fingerprint,
    load_keys,
    parse_certificate,
    parse_public_key,
    raw_sign,
    raw_verify,
    self_signed_certificate,
    sign_text,
    split_signed,
    verify_text,
)
from tests.unit.native.vectors import NAMES, SHA1, copy_keys, vector, vector_keys

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
TEXT = b"ff049c626904064d641feca0e9936e5b211807c6"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return create_keys(tmp_path_factory.mktemp("keys"), "a.example.org", now=NOW)


def test_created_keys_are_complete_private_and_loadable(tmp_path: Path) -> None:
    created = create_keys(tmp_path / "keys", "a.example.org", now=NOW)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "keys").iterdir()}
    assert modes == {
        "a.example.org.masterkey": 0o400,
        "a.example.org.key": 0o400,
        "a.example.org.crt": 0o644,
        "a.example.org.pub": 0o644,
    }
    loaded = load_keys(tmp_path / "keys", "a.example.org")
    assert loaded.certificate == created.certificate
    subject = created.certificate.subject.rfc4514_string()
    assert subject == "CN=a.example.org CernVM-FS Release Managers"
    assert created.private_key.key_size == 2048
    assert loaded.master_key is not None
    assert loaded.master_key.public_key() == loaded.public_key


def test_existing_keys_are_never_replaced(tmp_path: Path) -> None:
    create_keys(tmp_path, "a", now=NOW)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RepositoryError, match="exist already"):
        create_keys(tmp_path, "a", now=NOW)
    (tmp_path / "a.masterkey").unlink()
    with pytest.raises(RepositoryError, match=r"a\.pub exists, but a\.masterkey does not"):
        create_keys(tmp_path, "a", now=NOW)
    before.pop(tmp_path / "a.masterkey")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kept", [["masterkey"], ["masterkey", "key"], ["masterkey", "key", "crt"]])
def test_a_killed_creation_is_finished_with_the_keys_it_had_made(
    tmp_path: Path, kept: list[str]
) -> None:
    create_keys(tmp_path, "a", now=NOW)
    for kind in {"masterkey", "key", "crt", "pub"} - set(kept):
        (tmp_path / f"a.{kind}").unlink()
    before = {kind: (tmp_path / f"a.{kind}").read_bytes() for kind in kept}
    create_keys(tmp_path, "a", now=NOW)
    assert {kind: (tmp_path / f"a.{kind}").read_bytes() for kind in kept} == before


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o420, 0o644])
@pytest.mark.parametrize("kind", ["key", "masterkey"])
def test_a_private_key_open_to_others_is_refused(tmp_path: Path, mode: int, kind: str) -> None:
    copy_keys(tmp_path)
    path = tmp_path / f"{SHA1}.{kind}"
    path.chmod(mode)
    with pytest.raises(RepositoryError, match="open to others") as caught:
        load_keys(tmp_path, SHA1)
    assert caught.value.hint == f"chmod 400 {path}"


def test_the_master_key_may_be_offline(tmp_path: Path) -> None:
    copy_keys(tmp_path)
    (tmp_path / f"{SHA1}.masterkey").unlink()
    assert load_keys(tmp_path, SHA1).master_key is None


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    copy_keys(tmp_path)
    for kind, text in (("key", "is not the key of"), ("masterkey", "is not the public half")):
        path = tmp_path / f"{SHA1}.{kind}"
        good = path.read_bytes()
        other = "key" if kind == "masterkey" else "masterkey"
        path.chmod(0o600)
        path.write_bytes((vector() / "keys" / f"{SHA1}.{other}").read_bytes())
        with pytest.raises(RepositoryError, match=text):
            load_keys(tmp_path, SHA1)
        path.write_bytes(good)


@pytest.mark.parametrize("kind", ["crt", "key", "pub", "masterkey"])
def test_a_file_that_is_no_key_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    copy_keys(tmp_path)
    path = tmp_path / f"{SHA1}.{kind}"
    path.chmod(0o600)
    path.write_bytes(b"-----BEGIN NOTHING-----\n")
    with pytest.raises(RepositoryError, match=str(path)):
        load_keys(tmp_path, SHA1)


def test_a_missing_key_is_a_repository_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="No such file"):
        load_keys(tmp_path, "a")


def test_a_key_with_a_passphrase_and_one_that_is_not_rsa_are_refused(tmp_path: Path) -> None:
    copy_keys(tmp_path)
    path = tmp_path / f"{SHA1}.key"
    path.chmod(0o600)
    curve = ec.generate_private_key(ec.SECP256R1())
    for key, encryption, text in (
        (
            vector_keys().private_key,
            serialization.BestAvailableEncryption(b"secret"),
            "passphrase",
        ),
        (curve, serialization.NoEncryption(), "not an RSA key"),
    ):
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        path.write_bytes(pem)
        with pytest.raises(RepositoryError, match=text):
            load_keys(tmp_path, SHA1)


@pytest.mark.parametrize("bits", [1024, 8192])
def test_key_sizes_out_of_range_are_refused(tmp_path: Path, bits: int) -> None:
    with pytest.raises(InputError, match=str(bits)):
        create_keys(tmp_path, "a", now=NOW, bits=bits)
    assert list(tmp_path.iterdir()) == []


def test_a_long_repository_name_still_gets_a_certificate(keys: Keys) -> None:
    certificate = self_signed_certificate(keys.private_key, "n" * 60, NOW)
    assert len(certificate.subject.rfc4514_string()) == len("CN=") + 64


def test_manifest_signatures_verify_and_others_do_not(keys: Keys) -> None:
    signature = sign_text(TEXT, keys.private_key)
    verify_text(TEXT, signature, keys.certificate)
    assert keys.master_key is not None
    wrong = [
        (TEXT[:-1] + b"7", signature),
        (TEXT, signature[:-1] + bytes([signature[-1] ^ 1])),
        (TEXT, signature[:-1]),
        (TEXT, b""),
        (TEXT, sign_text(TEXT, keys.master_key)),
        (TEXT, raw_sign(TEXT, keys.private_key)),
    ]
    for text, other in wrong:
        with pytest.raises(SignatureError):
            verify_text(text, other, keys.certificate)


def test_whitelist_signatures_verify_and_others_do_not(keys: Keys) -> None:
    master = keys.master_key
    assert master is not None
    signature = raw_sign(TEXT, master)
    raw_verify(TEXT, signature, [keys.private_key.public_key(), keys.public_key])
    # The padding stands directly around the text: no DigestInfo.
    numbers = keys.public_key.public_numbers()
    block = pow(int.from_bytes(signature), numbers.e, numbers.n).to_bytes(256)
    assert block == b"\0\1" + b"\xff" * (253 - len(TEXT)) + b"\0" + TEXT
    for text, other in [
        (TEXT[:-1], signature),
        (TEXT, signature[:-1] + bytes([signature[-1] ^ 1])),
        (TEXT, b"\0" * 256),
        (TEXT, b""),
        (TEXT, sign_text(TEXT, master)),
        (TEXT, raw_sign(TEXT, keys.private_key)),
    ]:
        with pytest.raises(SignatureError, match="none of the given"):
            raw_verify(text, other, [keys.public_key])
    with pytest.raises(SignatureError):
        raw_verify(TEXT, signature, [])


def test_rsa_4096_fits_into_a_manifest(keys: Keys) -> None:
    key = rsa.generate_private_key(65537, 4096)
    manifest = manifests.parse_manifest((vector() / "repo/.cvmfspublished").read_bytes())[0]
    data = manifests.sign_manifest(manifest, key)
    certificate = self_signed_certificate(key, SHA1, NOW)
    assert manifests.verify_manifest(data, certificate) == manifest


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_is_that_on_a_stock_whitelist(name: str) -> None:
    repository = vector(name) / "repo"
    manifest = manifests.parse_manifest((repository / ".cvmfspublished").read_bytes())[0]
    assert manifest.certificate is not None
    pem = zlib.decompress((repository / manifest.certificate.path(Suffix.CERTIFICATE)).read_bytes())
    certificate = parse_certificate(pem)
    algorithm = HashAlgorithm.SHA1 if name == SHA1 else HashAlgorithm.SHAKE128
    text = fingerprint(certificate, algorithm).digest.hex(":").upper()
    assert text.encode() in (repository / ".cvmfswhitelist").read_bytes()
    assert vector_keys(name).certificate == certificate


@pytest.mark.parametrize("data", [b"", b"C1\n", b"C1\n--\n", b"C1\n--\nabc", b"C1\n--\nabc\n"])
def test_a_file_without_signature_block_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="no signature block"):
        split_signed(data, "manifest")


def test_what_is_no_certificate_or_public_key_is_refused() -> None:
    with pytest.raises(IntegrityError, match="not an X"):
        parse_certificate(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = curve.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(IntegrityError, match="not an RSA key"):
        parse_public_key(pem)
    with pytest.raises(IntegrityError, match="not a public key"):
        parse_public_key(b"x")
