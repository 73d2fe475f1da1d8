"""SIF files that real Apptainer built and signed, and what somebody may have done to them since."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.held import LocalFiles
from cvmfs_publish.sources.openpgp import KeyRing, parse_key_ring
from cvmfs_publish.sources.sif import FileSource
from cvmfs_publish.sources.sif_format import DESCRIPTOR, HEADER, Sif, SifObject, parse_sif
from cvmfs_publish.sources.sif_signature import SifKeys, UnsignedSifError, find_signers
from cvmfs_publish.sources.squashfs import SquashfsTool
from tests import parts
from tests.signing import PrivateKey, pem, public
from tests.unit.cli.support import Shell, repository

pytestmark = pytest.mark.parts

PEM_KEYS: dict[str, Callable[[], PrivateKey]] = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@dataclass(frozen=True)
class Signer:
    """Apptainer with a key ring of its own."""

    home: Path

    def run(self, *arguments: str | Path, answer: bytes = b"") -> str:
        program = parts.require("apptainer")
        environment = {**parts.MACHINE_ENVIRONMENT, "HOME": str(self.home)}
        words = [program, *arguments]
        options: dict[str, Any] = {"stdin": None, "input": answer} if answer else {}
        return parts.run(words, env=environment, cwd=self.home, **options).stdout.decode()

    def new_key(self, name: str) -> None:
        self.run(
            *("key", "newpair", "--name", name, "--email", f"{name}@example.org"),
            *("--comment", "test", "--password", "", "--push=false", "--bit-length", "2048"),
        )

    def ring(self, number: int) -> KeyRing:
        path = self.home / f"{number}.asc"
        self.run("key", "export", "--armor", path, answer=b"%d\n" % number)
        return parse_key_ring(path.read_bytes(), path)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    signer = Signer(tmp_path_factory.mktemp("signer"))
    signer.new_key("first")
    signer.new_key("second")
    root = signer.home / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "sh").write_bytes(b"#!/bin/false\n")
    (root / "file").write_bytes(b"content\n" * 1000)
    signer.run("build", "plain.sif", root)
    shutil.copy(signer.home / "plain.sif", signer.home / "signed.sif")
    signer.run("sign", "--keyidx", "0", "signed.sif")
    return signer


@pytest.fixture(scope="module")
def keys(signer: Signer) -> SifKeys:
    return SifKeys(signer.ring(0))


def read(path: Path) -> tuple[Sif, bytes]:
    data = path.read_bytes()
    return parse_sif(lambda offset, size: data[offset : offset + size], len(data), "test"), data


def signers(data: bytes, keys: SifKeys) -> tuple[str, ...]:
    def read_at(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    return find_signers(parse_sif(read_at, len(data), "test"), read_at, keys)


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def signed_copy(signer: Signer, name: str, *options: str | Path) -> bytes:
    path = signer.home / name
    shutil.copy(signer.home / "plain.sif", path)
    signer.run("sign", *options, path)
    return path.read_bytes()


def test_what_apptainer_signed_is_signed(signer: Signer, keys: SifKeys) -> None:
    data = (signer.home / "signed.sif").read_bytes()
    (fingerprint,) = signers(data, keys)
    assert len(fingerprint) == 40
    assert fingerprint in signer.run("key", "list")
    both = SifKeys(signer.ring(1).merged(keys.ring))
    assert signers(data, both) == (fingerprint,)


def test_an_unsigned_file_is_not(signer: Signer, keys: SifKeys) -> None:
    with pytest.raises(UnsignedSifError, match="it has no signature"):
        signers((signer.home / "plain.sif").read_bytes(), keys)


def test_what_another_key_signed_is_not(signer: Signer) -> None:
    data = (signer.home / "signed.sif").read_bytes()
    with pytest.raises(UnsignedSifError, match="none of the OpenPGP keys"):
        signers(data, SifKeys(signer.ring(1)))
    with pytest.raises(UnsignedSifError, match="none of the OpenPGP keys"):
        signers(data, SifKeys())


def test_one_of_two_signatures_is_enough(signer: Signer, keys: SifKeys) -> None:
    data = signed_copy(signer, "two.sif", "--keyidx", "1")
    with pytest.raises(UnsignedSifError):
        signers(data, keys)
    signer.run("sign", "--keyidx", "0", "two.sif")
    data = (signer.home / "two.sif").read_bytes()
    assert signers(data, keys) == keys.fingerprints
    assert signers(data, SifKeys(signer.ring(1))) == signer.ring(1).fingerprints


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_changed_byte_of_any_object_is_noticed(
    signer: Signer, keys: SifKeys, number: int
) -> None:
    sif, data = read(signer.home / "signed.sif")
    (found,) = [each for each in sif.objects if each.id == number]
    for at in (found.offset, found.offset + found.size // 2, found.offset + found.size - 1):
        with pytest.raises(UnsignedSifError, match=f"object {number} is not what was signed"):
            signers(changed(data, at), keys)


FIELDS = {"kind": 0, "name": DESCRIPTOR.size - 384 - 128, "extra": DESCRIPTOR.size - 384}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_changed_description_of_any_object_is_noticed(
    signer: Signer, keys: SifKeys, number: int, field: str
) -> None:
    sif, data = read(signer.home / "signed.sif")
    (found,) = [each for each in sif.objects if each.id == number]
    at = data.index(found.raw) + FIELDS[field]
    # what says that it is a signature itself is missed among the objects
    what = f"the description of object {number} is not|there are "
    with pytest.raises(UnsignedSifError, match=what):
        signers(changed(data, at), keys)


@pytest.mark.parametrize("at", [5, HEADER.size - 8 * 8 - 1])
def test_a_changed_header_is_noticed(signer: Signer, keys: SifKeys, at: int) -> None:
    """The launch script and the id of the file; the rest says only where things are."""
    data = (signer.home / "signed.sif").read_bytes()
    with pytest.raises(UnsignedSifError, match="the header is not the one that was signed"):
        signers(changed(data, at), keys)


def test_a_changed_signature_is_noticed(signer: Signer, keys: SifKeys) -> None:
    sif, data = read(signer.home / "signed.sif")
    signature = sif.objects[-1]
    text = data[signature.offset : signature.offset + signature.size]
    for words in (b'"relativeId":0', b"\n-----BEGIN PGP SIGNATURE"):
        at = signature.offset + text.index(words)
        with pytest.raises(UnsignedSifError, match="signature 4: "):
            signers(changed(data, at), keys)


def test_a_signature_of_some_objects_is_none(signer: Signer, keys: SifKeys) -> None:
    data = signed_copy(signer, "partly.sif", "--keyidx", "0", "--sif-id", "3")
    with pytest.raises(UnsignedSifError, match=r"signed are the objects \[3\], there are \[1, 2"):
        signers(data, keys)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--groupid", "1"], r"signed are the objects \[1, 2, 3\], there are \[1, 2, 3, 5\]"),
        ([], "object 5 is in no group"),
        (["--groupid", "2"], "no signature is for the group of the objects 5"),
    ],
)
def test_what_was_added_after_signing_is_noticed(
    signer: Signer, keys: SifKeys, options: list[str], what: str
) -> None:
    path = signer.home / "added.sif"
    shutil.copy(signer.home / "signed.sif", path)
    (signer.home / "more.json").write_text("{}")
    signer.run("sif", "add", "--datatype", "6", *options, path, "more.json")
    with pytest.raises(UnsignedSifError, match=what):
        signers(path.read_bytes(), keys)


def test_every_group_needs_a_signature(signer: Signer, keys: SifKeys) -> None:
    path = signer.home / "groups.sif"
    shutil.copy(signer.home / "signed.sif", path)
    (signer.home / "more.json").write_text("{}")
    signer.run("sif", "add", "--datatype", "6", "--groupid", "2", path, "more.json")
    signer.run("sign", "--keyidx", "1", "--group-id", "2", path)
    with pytest.raises(UnsignedSifError):
        signers(path.read_bytes(), keys)
    both = SifKeys(keys.ring.merged(signer.ring(1)))
    assert signers(path.read_bytes(), both) == both.fingerprints


def test_a_deleted_object_is_missed(signer: Signer, keys: SifKeys) -> None:
    path = signer.home / "deleted.sif"
    shutil.copy(signer.home / "signed.sif", path)
    signer.run("sif", "del", "2", path)
    with pytest.raises(UnsignedSifError, match=r"there are \[1, 3\]"):
        signers(path.read_bytes(), keys)


@pytest.mark.parametrize("kind", sorted(PEM_KEYS))
def test_keys_in_pem_are_good_as_well(signer: Signer, keys: SifKeys, kind: str) -> None:
    key = PEM_KEYS[kind]()
    path = signer.home / f"{kind}.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    data = signed_copy(signer, f"{kind}.sif", "--key", path)
    assert signers(data, SifKeys(keys.ring, public(key))) == (public(key)[0].fingerprint,)
    with pytest.raises(UnsignedSifError, match="none of the PEM keys"):
        signers(data, SifKeys(keys.ring, public(PEM_KEYS[kind]())))
    sif, _ = read(signer.home / f"{kind}.sif")
    partition: SifObject = sif.objects[2]
    with pytest.raises(UnsignedSifError, match="object 3 is not what was signed"):
        signers(changed(data, partition.offset + 100), SifKeys(pem=public(key)))


def test_a_ring_is_read_armoured_or_not(signer: Signer, keys: SifKeys) -> None:
    path = signer.home / ".apptainer" / "keys" / "pgp-public"
    both = parse_key_ring(path.read_bytes(), path)
    assert keys.ring.fingerprints[0] in both.fingerprints
    assert len(both.fingerprints) == 2


def test_a_ring_that_cannot_be_used_is_a_mistake_of_the_configuration(signer: Signer) -> None:
    path = signer.home / "secret.asc"
    signer.run("key", "export", "--armor", "--secret", path, answer=b"0\n")
    for data, what in [
        (path.read_bytes(), "holds a secret key"),
        (b"", "holds neither"),
        (b"nonsense", "cannot be understood"),
        (pem(PEM_KEYS["p256"]()), "cannot be understood"),
    ]:
        with pytest.raises(InputError, match=what) as caught:
            parse_key_ring(data, path)
        assert str(path) in str(caught.value)
        assert "backtrace" not in str(caught.value)


# ------------------------------------------------------------------ through `publish`


@pytest.fixture
def home(tmp_path: Path, signer: Signer) -> Shell:
    """A repository that takes SIF files only if the first key has signed them."""
    shell = repository(Shell(tmp_path, {"PATH": os.environ["PATH"]}))
    signer.ring(0)
    shutil.copy(signer.home / "0.asc", tmp_path / "team.asc")
    config = tmp_path / "cvmfs-publish.yaml"
    rule = '{match: "sif:*", policy: sif-pgp, keys: [team.asc]}'
    config.write_text(config.read_text().replace("#trust: []", f"trust: [{rule}]"))
    return shell


def test_a_signed_sif_is_published_and_its_record_names_the_key(
    home: Shell, signer: Signer, keys: SifKeys
) -> None:
    place, name = f"sif:{signer.home}/signed.sif", "library.example.org/a/b:1"
    parts.require("sqfs2tar")
    assert home.run("publish", place, "--as", name).code == 0
    shown = home.json("show", name)
    assert (shown["signature"], shown["signed_by"]) == ("sif-pgp", list(keys.ring.fingerprints))
    assert home.run("publish", place, "--as", name).out.startswith("unchanged")
    assert home.run("verify", name).code == 0


def test_a_sif_that_is_not_signed_as_it_is_leaves_nothing_behind(
    home: Shell, signer: Signer
) -> None:
    sif, data = read(signer.home / "signed.sif")
    tampered = home.cwd / "tampered.sif"
    tampered.write_bytes(changed(data, sif.objects[2].offset + 200))
    for place in (tampered, signer.home / "plain.sif"):
        (result,) = home.json("publish", f"sif:{place}", "--as", "a.example.org/b:1", code=4)[
            "images"
        ]
        assert result["error"]["kind"] == "unsigned"
    assert home.json("info")["revision"] == 1
    assert home.json("list")["images"] == []


def test_a_signed_sif_in_a_registry_is_published_and_another_is_not(
    home: Shell, signer: Signer, keys: SifKeys, registry: parts.RegistryServer
) -> None:
    parts.require("sqfs2tar")
    config = home.cwd / "cvmfs-publish.yaml"
    config.write_text(config.read_text().replace('"sif:*"', f"oras://{registry.host}/signed/*"))
    for kind in ("signed", "plain"):
        place = f"oras://{registry.host}/signed/{kind}:1"
        signer.run("push", "--allow-unsigned", "--no-https", f"{kind}.sif", place)
    assert home.run("publish", f"oras://{registry.host}/signed/signed:1").code == 0
    (record,) = home.json("list")["images"]
    assert (record["signature"], record["signed_by"]) == ("sif-pgp", list(keys.ring.fingerprints))
    assert home.run("publish", f"oras://{registry.host}/signed/plain:1").code == 4
    assert len(home.json("list")["images"]) == 1


def test_a_file_that_is_exchanged_while_it_is_looked_at_proves_nothing(
    tmp_path: Path, signer: Signer, keys: SifKeys
) -> None:
    path = tmp_path / "image.sif"
    shutil.copy(signer.home / "plain.sif", path)
    source = FileSource(LocalFiles(1 << 30), SquashfsTool(None, tmp_path, 200), {"sif"})
    origin = Origin.parse(f"sif:{path}")
    reference = replace(Reference.parse("example.org/a/b:1"), origin=origin)
    image = source.resolve(reference, Platform.default())
    shutil.copy(signer.home / "signed.sif", path)
    with pytest.raises(IntegrityError, match="and is now sha256:"):
        source.find_signers(image, keys)
