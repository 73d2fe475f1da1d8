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
from typing import Protocol

from cvmfs_publish.config import TrustRule
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.patterns import ImageName, ImagePattern, choose
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.cosign import (
    Candidate,
    ClaimError,
    check_claim,
    find_signer,
    read_claim,
)
from cvmfs_publish.sources.public_keys import PublicKey, parse_public_keys, read_key_file

ACCEPT, DIGEST, COSIGN, SIF_PGP, REJECT = "accept", "digest", "cosign", "sif-pgp", "reject"
SHOWN = 5  # reasons in a message; more are not read by anybody


class UntrustedError(IntegrityError):
    """The rule of `trust` for this image does not hold: no signature, a bad one, no digest."""

    kind = "untrusted"


class SignatureStore(Protocol):
    """Where signatures of images are kept."""

    def iter_candidates(
        self, reference: Reference, digest: Digest, skip: Callable[[str], None]
    ) -> Iterator[Candidate]:
        """Yield what may be a signature of `digest`, asking for one after the other.

        `skip` is told of what cannot be one, and why.  Raises `RemoteError` if the store does not
        answer, `IntegrityError` if what it sends is not what it promised.
        """


@dataclass(frozen=True, slots=True)
class Approval:
    """Why an image may be published, for its record."""

    policy: str = ""  # "": nothing was asked
    rule: str = ""  # digest of the rule that held; another one asks anew
    signed_by: tuple[str, ...] = ()  # fingerprints of the keys


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule with its keys read."""

    match: ImagePattern
    policy: str
    keys: tuple[PublicKey, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    same_name: bool = False

    @property
    def identity(self) -> str:
        """A digest of everything that is asked; "" if nothing is.

        Neither pattern nor file names are in it: a rule that asks the same is the same.
        """
        if self.policy == ACCEPT:
            return ""
        keys = sorted(key.fingerprint for key in self.keys)
        asked = [self.policy, keys, sorted(self.annotations.items()), self.same_name]
        return f"sha256:{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}"


def load_rules(rules: Sequence[TrustRule]) -> tuple[Rule, ...]:
    """Read the keys of all rules; raise `InputError` if any of them cannot be used."""
    return tuple(
        Rule(
            rule.match,
            rule.policy,
            tuple(
                key for path in rule.keys for key in parse_public_keys(read_key_file(path), path)
            ),
            rule.annotations,
            rule.signed_name == "same",
        )
        for rule in rules
    )


class Trust:
    """The rules, and where signatures are.  Any number of threads may ask."""

    def __init__(
        self, rules: Sequence[Rule] = (), signatures: SignatureStore | None = None
    ) -> None:
        self._rules = tuple(rules)
        self._signatures = signatures

    def rule_for(self, reference: Reference) -> Rule | None:
        """Return the rule for an image; None if none fits it: it is accepted then."""
        return choose(self._rules, ImageName.of(reference))

    def identity(self, reference: Reference) -> str:
        """Return a digest of what is asked of an image, "" for nothing."""
        rule = self.rule_for(reference)
        return rule.identity if rule is not None else ""

    def admit(self, reference: Reference) -> None:
        """Raise `UntrustedError` for what no answer of a registry could make acceptable."""
        rule = self.rule_for(reference)
        if rule is not None and rule.policy == REJECT:
            raise UntrustedError(
                f"{reference} is refused: `trust` rejects {rule.match}",
                hint="if it is wanted, write a rule with a narrower pattern for it",
            )
        if rule is not None and rule.policy == DIGEST and reference.digest is None:
            raise UntrustedError(
                f"{reference} names no digest, and `trust` wants one for {rule.match}",
                hint=f"write {reference}@sha256:… with the digest that was reviewed",
            )

    def check(self, reference: Reference, digest: Digest) -> Approval:
        """Return why `digest`, which `reference` names, may be published.

        Raises:
            UntrustedError: it may not.
            RemoteError: the registry could not be asked for signatures.
        """
        self.admit(reference)
        rule = self.rule_for(reference)
        if rule is None or rule.policy == ACCEPT:
            return Approval()
        if rule.policy == COSIGN:
            signer = self._find_signer(rule, reference, digest)
            return Approval(COSIGN, rule.identity, (signer.fingerprint,))
        if rule.policy == SIF_PGP:
            raise UntrustedError(
                f"{reference} is no SIF file, and `trust` wants a signed one for {rule.match}",
                hint="signatures of images in registries are those of cosign: `policy: cosign`",
            )
        return Approval(rule.policy, rule.identity)

    def _find_signer(self, rule: Rule, reference: Reference, digest: Digest) -> PublicKey:
        if self._signatures is None:
            raise UntrustedError(f"{reference}: there is nowhere to look for cosign signatures")
        reasons: list[str] = []
        for candidate in self._signatures.iter_candidates(reference, digest, reasons.append):
            signer = find_signer(candidate, rule.keys)
            if signer is None:
                reasons.append(f"{candidate.where}: signed by none of the keys")
                continue
            try:
                check_claim(
                    read_claim(candidate),
                    digest,
                    reference,
                    rule.annotations,
                    same_name=rule.same_name,
                )
            except ClaimError as error:
                reasons.append(f"{candidate.where}: {error}")
                continue
            return signer
        raise _refusal(rule, reference, digest, list(dict.fromkeys(reasons)))


def _refusal(
    rule: Rule, reference: Reference, digest: Digest, reasons: Sequence[str]
) -> UntrustedError:
    keys = ", ".join(key.fingerprint for key in rule.keys)
    told = "; ".join(reasons[:SHOWN])
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    what = f"no good signature: {told}{more}" if reasons else "no signature"
    return UntrustedError(
        f"{reference} ({digest}) has {what}; `trust` wants one by {keys}",
        hint=f"cosign sign --key KEY {reference.registry}/{reference.repository}@{digest}",
    )
