"""Make, load and use the keys of a repository.

Source: facts/cvmfs-format.md sections 2.1 to 2.3 (crypto/signature.cc).  The master key signs the
whitelist and may be kept offline; the certificate's key signs every manifest.  SHA-1 appears here
because the format fixes it: clients accept no other manifest signature.
"""

from __future__ import annotations

import functools
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import InputError, IntegrityError, RepositoryError

MIN_KEY_BITS = DEFAULT_KEY_BITS = 2048  # what mkfs makes
MAX_KEY_BITS = 4096  # a longer signature would not leave room in a manifest of 4095 bytes
CERTIFICATE_DAYS = 365  # what mkfs writes; no client looks at it (section 2.2)
MAX_COMMON_NAME = 64  # characters; X.520 ub-common-name
_PUBLIC_EXPONENT = 65537
_PRIVATE_MODE = 0o400
_PUBLIC_MODE = 0o644
NEXT = ".next"  # what the files of a key are called until it is in use
FORMER = ".former"  # what NAME.pub is called after the master key was changed

_KEYS_HINT = "`repository.keys` names the folder of the keys; restore them from where they are kept"

T = TypeVar("T")
PublicKeys = Iterable[rsa.RSAPublicKey]
Certificate = x509.Certificate


class SignatureError(IntegrityError):
    """A signature, or the hash it was made for, does not belong to the signed text."""

    kind = "signature"


class WrongKeyError(SignatureError):
    """It is signed, but by none of those who are trusted."""


class UnsignedError(IntegrityError):
    """There is no signature where one has to be."""


class ForeignError(IntegrityError):
    """It is of another repository."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one repository.  `master_key` is None where it is kept offline."""

    certificate: x509.Certificate
    private_key: rsa.RSAPrivateKey  # of the certificate: signs manifests
    public_key: rsa.RSAPublicKey  # of the master key: what clients are configured with
    master_key: rsa.RSAPrivateKey | None = None  # signs whitelists
    former_public_key: rsa.RSAPublicKey | None = None  # of the master key before this one

    @property
    def public_keys(self) -> tuple[rsa.RSAPublicKey, ...]:
        """Those a whitelist may have been signed for."""
        former = self.former_public_key
        return (self.public_key,) if former is None else (self.public_key, former)

    def certificate_pem(self) -> bytes:
        """Return the text that is stored as object X."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class SignedText:
    """The three parts of a manifest or whitelist file."""

    payload: bytes  # everything up to and including the newline before "--"
    hash_text: bytes  # the hash of `payload` as text; what is signed
    signature: bytes

    def check_hash(self, what: str) -> None:
        """Raise `SignatureError` unless `hash_text` is the hash of the payload."""
        stated = ContentHash.parse(self.hash_text.decode("ascii", "replace"))
        computed = ContentHash.of(self.payload, stated.algorithm)
        if stated != computed:
            raise SignatureError(f"{what}: hash line says {stated}, its text has {computed}")


def split_signed(data: bytes, what: str) -> SignedText:
    """Split a signed file; raise `UnsignedError` if it has no signature block."""
    end = data.find(b"\n--\n")
    payload, rest = data[: end + 1], data[end + 4 :]
    hash_text, newline, signature = rest.partition(b"\n")
    if end < 0 or not newline or not signature:
        raise UnsignedError(f"{what} has no signature block")
    return SignedText(payload, hash_text, signature)


def join_signed(payload: bytes, hash_text: bytes, signature: bytes) -> bytes:
    """Undo `split_signed`."""
    return b"%b--\n%b\n%b" % (payload, hash_text, signature)


# manifest signatures


def sign_text(text: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """Sign a manifest's hash text: PKCS#1 v1.5 with a SHA-1 DigestInfo."""
    return key.sign(text, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 - fixed by the format


def verify_text(text: bytes, signature: bytes, certificate: x509.Certificate) -> None:
    """Raise `SignatureError` unless the certificate's key made this signature of `text`."""
    try:
        key = certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, text, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, text, ec.ECDSA(hashes.SHA1()))  # noqa: S303
        else:
            raise SignatureError(f"certificate has a {type(key).__name__}, not an RSA key")
    except InvalidSignature:
        raise SignatureError("signature was not made with the key of the certificate") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"key of the certificate cannot be used: {error}") from error


# whitelist signatures


def raw_sign(text: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """Sign a whitelist's hash text: PKCS#1 type-1 padding around it, without DigestInfo."""
    numbers = key.private_numbers()
    modulus, exponent = numbers.public_numbers.n, numbers.public_numbers.e
    length = (modulus.bit_length() + 7) // 8
    block = b"\0\1" + b"\xff" * (length - 3 - len(text)) + b"\0" + text
    # The power is taken of a blinded number, so its duration tells nothing about the key.
    blind = secrets.randbelow(modulus - 2) + 2
    masked = int.from_bytes(block) * pow(blind, exponent, modulus) % modulus
    number = pow(masked, numbers.d, modulus) * pow(blind, -1, modulus) % modulus
    signature = number.to_bytes(length)
    raw_verify(text, signature, [key.public_key()])
    return signature


def raw_verify(text: bytes, signature: bytes, public_keys: PublicKeys) -> None:
    """Raise `WrongKeyError` unless one of the master keys made this signature of `text`."""
    for key in public_keys:
        try:
            recovered = key.recover_data_from_signature(signature, padding.PKCS1v15(), None)
        except (InvalidSignature, ValueError):
            continue
        if recovered == text:
            return
    raise WrongKeyError("signature was made with none of the given master keys")


# certificates


def is_trusted(certificate: x509.Certificate, fingerprints: Iterable[ContentHash]) -> bool:
    """Whether one of the fingerprints, of whatever algorithm, is the certificate's."""
    return any(fingerprint(certificate, found.algorithm) == found for found in fingerprints)


def public_fingerprint(key: rsa.RSAPublicKey) -> ContentHash:
    """Return what tells one master key from another: the hash of its public half."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return ContentHash.of(der, HashAlgorithm.SHA1)


def fingerprint(
    certificate: x509.Certificate, algorithm: HashAlgorithm = HashAlgorithm.SHA1
) -> ContentHash:
    """Return the hash of the DER form, which a whitelist lists to trust this certificate."""
    return ContentHash.of(certificate.public_bytes(serialization.Encoding.DER), algorithm)


def parse_certificate(pem: bytes, what: str = "certificate") -> x509.Certificate:
    """Raise `IntegrityError` unless `pem` is a certificate."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise IntegrityError(f"{what} is not an X.509 certificate in PEM form") from error


def parse_public_key(pem: bytes, what: str = "public key") -> rsa.RSAPublicKey:
    """Raise `IntegrityError` unless `pem` is an RSA public key."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IntegrityError(f"{what} is not a public key in PEM form") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise IntegrityError(f"{what} is not an RSA key")
    return key


def read_public_key(path: Path, *, is_own: bool = False) -> rsa.RSAPublicKey:
    """Read a master key's public half, `NAME.pub`; raise `RepositoryError` if that fails.

    `is_own`: of a repository that is written here, so that its size matters.
    """
    key = _translated(path, parse_public_key)
    if is_own:
        _check_size(key, path)
    return key


def read_certificate(path: Path) -> x509.Certificate:
    """Read the certificate of a repository that is written here; raises `RepositoryError`."""
    certificate = _translated(path, parse_certificate)
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        _check_size(key, path)
    return certificate


def _check_size(key: rsa.RSAPublicKey | rsa.RSAPrivateKey, path: Path) -> None:
    if not MIN_KEY_BITS <= key.key_size <= MAX_KEY_BITS:
        raise RepositoryError(
            f"{path} has an RSA key of {key.key_size} bits; {MIN_KEY_BITS} to {MAX_KEY_BITS} are "
            "possible",
            hint="make new keys; docs/keys.md tells how to exchange them",
        )


# key files


def create_keys(directory: Path, name: str, *, now: datetime, bits: int = DEFAULT_KEY_BITS) -> Keys:
    """Create `NAME.{masterkey,key,crt,pub}` in `directory`; no existing file is ever replaced.

    Private keys are written first and public files derived from them, so a creation that was
    killed half-way is finished by the next call.

    Raises:
        InputError: `bits` is not 2048 to 4096.
        RepositoryError: the keys exist, or a public file exists without its private key.
    """
    check_bits(bits)
    paths = {kind: directory / f"{name}.{kind}" for kind in ("masterkey", "key", "crt", "pub")}
    present = {kind for kind, path in paths.items() if path.exists()}
    if len(present) == len(paths):
        raise RepositoryError(f"{directory}: keys of {name} exist already", hint="use them")
    for public, private in (("pub", "masterkey"), ("crt", "key")):
        if public in present and private not in present:
            raise RepositoryError(
                f"{paths[public]} exists, but {paths[private].name} does not",
                hint=f"put the {private} file there, or name another directory for new keys",
            )
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if "masterkey" not in present:
            create_private_key(paths["masterkey"], bits)
        create_pair(paths["key"], paths["crt"], name, now, bits)
        if "pub" not in present:
            pem = (
                read_private_key(paths["masterkey"])
                .public_key()
                .public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            )
            _create_file(paths["pub"], pem, _PUBLIC_MODE)
    except OSError as error:
        raise RepositoryError(f"keys of {name} cannot be written: {error}") from error
    return load_keys(directory, name)


def check_bits(bits: int) -> None:
    """Raise `InputError` unless keys of this size may be made."""
    if not MIN_KEY_BITS <= bits <= MAX_KEY_BITS:
        raise InputError(
            f"RSA keys of {bits} bits: {MIN_KEY_BITS} to {MAX_KEY_BITS} are possible",
            hint=f"{MIN_KEY_BITS} is what CernVM-FS uses everywhere",
        )


def create_pair(key: Path, certificate: Path, name: str, now: datetime, bits: int) -> None:
    """Create a key and its certificate where they do not exist; raises OSError."""
    check_bits(bits)
    if not key.exists():
        create_private_key(key, bits)
    if not certificate.exists():
        made = self_signed_certificate(read_private_key(key), name, now)
        _create_file(certificate, made.public_bytes(serialization.Encoding.PEM), _PUBLIC_MODE)


def create_private_key(path: Path, bits: int) -> None:
    """Create a file with a new key; raises OSError."""
    key = rsa.generate_private_key(_PUBLIC_EXPONENT, bits)
    _create_file(path, _private_pem(key), _PRIVATE_MODE)


def self_signed_certificate(key: rsa.RSAPrivateKey, name: str, now: datetime) -> x509.Certificate:
    """Return a certificate for the repository's release manager, like the one mkfs makes."""
    # Nobody reads the subject; a long repository name is cut to what X.520 allows.
    text = f"{name} CernVM-FS Release Managers"[:MAX_COMMON_NAME]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .sign(key, hashes.SHA256())
    )


def load_keys(directory: Path, name: str, *, with_master: bool = True) -> Keys:
    """Read the keys of a repository; the master key may be absent.

    `with_master`: read it if it is there; publishing does not need it.

    Raises:
        RepositoryError: a file is missing, unreadable, no key, too short or too long, not private
            enough, or keys and public files do not belong together.
    """
    _check_folder(directory)
    private_key = read_private_key(directory / f"{name}.key")
    certificate = _read_certificate_of(private_key, directory / f"{name}.crt")
    public_key = read_public_key(directory / f"{name}.pub", is_own=True)
    former = directory / f"{name}.pub{FORMER}"
    master_path = directory / f"{name}.masterkey"
    present = with_master and master_path.exists()
    master_key = read_private_key(master_path) if present else None
    if master_key is not None and master_key.public_key() != public_key:
        raise RepositoryError(
            f"{directory}: {name}.pub is not the public half of the master key",
            hint=f"put the {name}.pub of this master key there, or the other master key",
        )
    return Keys(
        certificate,
        private_key,
        public_key,
        master_key,
        read_public_key(former, is_own=True) if former.exists() else None,
    )


def key_size(certificate: x509.Certificate) -> int:
    """Return the bits of a certificate's RSA key, 0 if it has a key of another kind."""
    key = certificate.public_key()
    return key.key_size if isinstance(key, rsa.RSAPublicKey) else 0


def public_key_files(directory: Path, name: str) -> list[Path]:
    """Return the files of the master keys a whitelist may be signed with: one, or two."""
    present = directory / f"{name}.pub"
    former = directory / f"{name}.pub{FORMER}"
    return [present, former] if former.exists() else [present]


def _check_folder(directory: Path) -> None:
    """A private file protects nothing where everybody may put another in its place."""
    try:
        mode = directory.stat().st_mode
    except OSError:
        return  # told with the name of the first file that is missing
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise RepositoryError(
            f"{directory}: everybody may exchange the keys (mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod o-w {directory}",
        )


def _read_certificate_of(key: rsa.RSAPrivateKey, path: Path) -> x509.Certificate:
    """Return the key's certificate.

    Where the exchange of both files was killed after the first, the second has not its name yet.
    """
    certificate = read_certificate(path)
    if certificate.public_key() == key.public_key():
        return certificate
    following = path.with_name(path.name + NEXT)
    if following.exists():
        certificate = read_certificate(following)
        if certificate.public_key() == key.public_key():
            return certificate
    raise RepositoryError(
        f"{path.parent}: {path.with_suffix('.key').name} is not the key of {path.name}",
        hint="put the two files there that belong together",
    )


def _private_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _create_file(path: Path, data: bytes, mode: int) -> None:
    """Create a file that is complete as soon as it has its name; fail if the name is taken."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            os.fchmod(descriptor, mode)  # whatever the umask says
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)  # unlike rename, never replaces
    finally:
        temporary.unlink()
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Return when the names in a folder survive a power failure; raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_private_key(path: Path) -> rsa.RSAPrivateKey:
    """Read a private key that nobody else can read; raise `RepositoryError` if that fails."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise RepositoryError(
                    f"{path}: private key is open to others (mode {mode:04o})",
                    hint=f"chmod 400 {path}",
                )
            key = _parse_private_key(file.read())
    except OSError as error:
        raise RepositoryError(
            f"{path} cannot be read: {error.strerror}", hint=_KEYS_HINT
        ) from error
    except TypeError:
        raise RepositoryError(
            f"{path} is protected by a passphrase",
            hint="let `openssl pkey` write it without one, to a place only you can read",
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RepositoryError(
            f"{path} is not a private key in PEM form", hint=_KEYS_HINT
        ) from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise RepositoryError(f"{path} is not an RSA key", hint="CernVM-FS repositories use RSA")
    _check_size(key, path)
    return key


@functools.lru_cache(maxsize=8)
def _parse_private_key(pem: bytes) -> PrivateKeyTypes:
    """Parse a key; that its numbers belong together is proved once, which takes 40 ms."""
    return serialization.load_pem_private_key(pem, password=None)


def _translated(path: Path, parse: Callable[[bytes, str], T]) -> T:
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise RepositoryError(
            f"{path} cannot be read: {error.strerror}", hint=_KEYS_HINT
        ) from error
    except IntegrityError as error:
        raise RepositoryError(str(error), hint=_KEYS_HINT) from error
