"""Decide whether an image may be published: the rules of `trust`, applied.

    accept    nothing is asked
    digest    the reference names a digest, so that nobody else chooses what is meant
    cosign    `cosign sign --key` by one of the rule's keys, for the digest that the reference names
    sif-pgp   a SIF file that one of the rule's keys signed as a whole
    reject    never

Everything that is not a good answer refuses the image: no signature, a bad one, a registry that
cannot be asked.  Nothing of an image is fetched, and nothing written, before its rule holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cvmfs_publish.config import TrustRule
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.patterns import ImageName, ImagePattern, choose
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import ResolvedImage
from cvmfs_publish.sources.cosign import (
    Candidate,
    ClaimError,
    check_claim,
    find_signer,
    read_claim,
)
from cvmfs_publish.sources.openpgp import KeyRing, parse_key_ring
from cvmfs_publish.sources.public_keys import (
    PEM_START,
    PublicKey,
    parse_public_keys,
    read_key_file,
)
from cvmfs_publish.sources.sif_signature import SifKeys, UnsignedSifError

DOCKER, ORAS = "docker", "oras"  # transports to registries
ACCEPT, DIGEST, COSIGN, SIF_PGP, REJECT = "accept", "digest", "cosign", "sif-pgp", "reject"
SHOWN = 5  # reasons in a message; more are not read by anybody


class UntrustedError(IntegrityError):
    """The rule of `trust` for this image does not hold, whatever anybody may answer."""

    kind = "untrusted"


class UnsignedError(UntrustedError):
    """There is no good signature.  One may follow: images are pushed first and signed then."""

    kind = "unsigned"


class SignatureStore(Protocol):
    """Where signatures of images in registries are kept."""

    def iter_candidates(
        self, reference: Reference, digest: Digest, skip: Callable[[str], None]
    ) -> Iterator[Candidate]:
        """Yield what may be a signature of `digest`, asking for one after the other.

        `skip` is told of what cannot be one, and why.  Raises `RemoteError` if the store does not
        answer, `IntegrityError` if what it sends is not what it promised.
        """


class Evidence(SignatureStore, Protocol):
    """All that may prove an image."""

    def find_sif_signers(self, image: ResolvedImage, keys: SifKeys) -> tuple[str, ...]:
        """Return the fingerprints of those who signed all of the SIF file that an image is.

        The bytes that were looked at have the digest of the image's layer.  Raises
        `UnsignedSifError`, also for what is no SIF file; `IntegrityError` for a damaged one.
        """


class NoEvidence:
    """Proves nothing."""

    def iter_candidates(
        self, reference: Reference, digest: Digest, skip: Callable[[str], None]
    ) -> Iterator[Candidate]:
        """As promised by `SignatureStore.iter_candidates`."""
        return iter(())

    def find_sif_signers(self, image: ResolvedImage, keys: SifKeys) -> tuple[str, ...]:
        """As promised by `Evidence.find_sif_signers`."""
        raise UnsignedSifError("there is nowhere to look for one")


@dataclass(frozen=True, slots=True)
class Approval:
    """Why an image may be published, for its record."""

    policy: str = ""  # "": nothing was asked
    rule: str = ""  # digest of all that was asked; another one asks anew
    signed_by: tuple[str, ...] = ()  # fingerprints of the keys


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule with its keys read."""

    match: ImagePattern
    policy: str
    keys: SifKeys = field(default_factory=SifKeys)
    annotations: Mapping[str, str] = field(default_factory=dict)
    same_name: bool = False

    @property
    def identity(self) -> str:
        """A digest of everything that is asked; "" if nothing is.

        Neither pattern nor file names are in it: a rule that asks the same is the same.
        """
        if self.policy == ACCEPT:
            return ""
        keys = sorted(self.keys.fingerprints)
        asked = [self.policy, keys, sorted(self.annotations.items()), self.same_name]
        return _digest(json.dumps(asked))


def load_rules(rules: Sequence[TrustRule]) -> tuple[Rule, ...]:
    """Read the keys of all rules; raise `InputError` if any of them cannot be used."""
    return tuple(
        Rule(
            rule.match,
            rule.policy,
            _read_keys(rule.keys, rule.policy),
            rule.annotations,
            rule.signed_name == "same",
        )
        for rule in rules
    )


def _read_keys(paths: Sequence[Path], policy: str) -> SifKeys:
    ring, pem = KeyRing(), list[PublicKey]()
    for path in paths:
        data = read_key_file(path)
        if policy == SIF_PGP and PEM_START not in data:
            ring = ring.merged(parse_key_ring(data, path))
        else:
            pem += parse_public_keys(data, path)
    return SifKeys(ring, tuple(pem))


class Trust:
    """The rules, and where proofs are.  Any number of threads may ask.

    An image that is not in the registry of its name has two names: where it comes from, and what
    it is published as.  The rule for the former holds.  The rule for the latter holds as well,
    unless that is the rule for everything: whoever runs `ghcr.io/team/tool` relies on that name.
    """

    def __init__(self, rules: Sequence[Rule] = (), evidence: Evidence | None = None) -> None:
        self._rules = tuple(rules)
        self._evidence = evidence or NoEvidence()

    def rules_for(self, reference: Reference) -> tuple[Rule, ...]:
        """Return the rules for an image; none if it is accepted as it comes."""
        named = choose(self._rules, ImageName.of(reference))
        if reference.origin is None:
            return (named,) if named is not None else ()
        there = registry_reference(reference)
        place = ImageName.of(there) if there and reference.origin.transport == DOCKER else None
        origin = choose(self._rules, place or ImageName.of_origin(reference.origin))
        if named is not None and (named is origin or named.match.is_everything):
            named = None
        return tuple(rule for rule in (origin, named) if rule is not None)

    def identity(self, reference: Reference) -> str:
        """Return a digest of what is asked of an image, "" for nothing."""
        asked = sorted({rule.identity for rule in self.rules_for(reference)} - {""})
        return asked[0] if len(asked) == 1 else _digest(" ".join(asked)) if asked else ""

    def admit(self, reference: Reference) -> None:
        """Raise `UntrustedError` for what no answer of anybody could make acceptable."""
        for rule in self.rules_for(reference):
            if rule.policy == REJECT:
                raise UntrustedError(
                    f"{_subject(reference)} is refused: `trust` rejects {rule.match}",
                    hint="if it is wanted, write a rule with a narrower pattern for it",
                )
            if rule.policy == DIGEST and not _is_pinned(reference):
                what = reference.origin or reference
                raise UntrustedError(
                    f"{_subject(reference)} names no digest, and `trust` wants one for"
                    f" {rule.match}",
                    hint=f"write {what}@sha256:… with the digest that was reviewed",
                )

    def check(self, image: ResolvedImage, digest: Digest | None = None) -> Approval:
        """Return why an image may be published.

        Args:
            image: as it was resolved.
            digest: of what its name stood for, if that is not what `image` says.

        Raises:
            UntrustedError: it may not.
            RemoteError: the registry could not be asked for signatures.
        """
        reference = image.reference
        self.admit(reference)
        policies: list[str] = []
        signers: list[str] = []
        for rule in self.rules_for(reference):
            if rule.policy == COSIGN:
                signers.append(self._cosigner(rule, reference, digest or image.digest))
            elif rule.policy == SIF_PGP:
                signers += self._sif_signers(rule, image)
            if rule.identity:
                policies.append(rule.policy)
        named = tuple(dict.fromkeys(signers))
        return Approval("+".join(dict.fromkeys(policies)), self.identity(reference), named)

    def _sif_signers(self, rule: Rule, image: ResolvedImage) -> tuple[str, ...]:
        try:
            return self._evidence.find_sif_signers(image, rule.keys)
        except UnsignedSifError as error:
            wanted = ", ".join(rule.keys.fingerprints)
            raise UnsignedError(
                f"{_subject(image.reference)} has no good signature: {error}; `trust` wants one of"
                f" the whole file by {wanted}",
                hint="apptainer sign FILE; signatures of images in registries are those of cosign",
            ) from error

    def _cosigner(self, rule: Rule, reference: Reference, digest: Digest) -> str:
        there = registry_reference(reference)
        if there is None:
            raise UntrustedError(
                f"{_subject(reference)} is in no registry, where `trust` wants a signature of"
                f" cosign for {rule.match}",
                hint="push it to a registry and sign it there, or write a rule for it",
            )
        reasons: list[str] = []
        for candidate in self._evidence.iter_candidates(there, digest, reasons.append):
            signer = find_signer(candidate, rule.keys.pem)
            if signer is None:
                reasons.append(f"{candidate.where}: signed by none of the keys")
                continue
            try:
                check_claim(
                    read_claim(candidate),
                    digest,
                    there,
                    rule.annotations,
                    same_name=rule.same_name,
                )
            except ClaimError as error:
                reasons.append(f"{candidate.where}: {error}")
                continue
            return signer.fingerprint
        raise _refusal(rule, there, digest, list(dict.fromkeys(reasons)))


def registry_reference(reference: Reference) -> Reference | None:
    """Return what an image is called in the registry it is in; None if it is in none."""
    if reference.origin is None:
        return reference
    if reference.origin.transport not in (DOCKER, ORAS):
        return None
    return Reference.parse(reference.origin.place)


def _is_pinned(reference: Reference) -> bool:
    """Whether what a person typed names a digest."""
    if reference.origin is None:
        return reference.digest is not None
    there = registry_reference(reference)
    return reference.origin.digest is not None or (there is not None and there.digest is not None)


def _subject(reference: Reference) -> str:
    return f"{reference} from {reference.origin}" if reference.origin else str(reference)


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _refusal(
    rule: Rule, reference: Reference, digest: Digest, reasons: Sequence[str]
) -> UnsignedError:
    keys = ", ".join(rule.keys.fingerprints)
    told = "; ".join(reasons[:SHOWN])
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    what = f"no good signature: {told}{more}" if reasons else "no signature"
    return UnsignedError(
        f"{reference} ({digest}) has {what}; `trust` wants one by {keys}",
        hint=f"cosign sign --key KEY {reference.registry}/{reference.repository}@{digest}",
    )
