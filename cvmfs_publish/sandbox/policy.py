"""Decide what of an image's entries may be published: permissions, special files, attributes.

Nothing here touches a disk: the tree is changed in memory and every change is a finding.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.tree import Directory, Node, RepoPath, Tree, encode_name
from cvmfs_publish.sandbox.roots import STANDARD_ROOTS

SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
MAX_XATTR_BYTES = 255  # of a name or a value, and attributes of an entry (format section 3.8)
# Names that steer CernVM-FS itself (format section 9.1): an image must not.
RESERVED_NAMES = frozenset((".cvmfscatalog", ".cvmfsautocatalog"))
# Variant symbolic links of CernVM-FS; there is no way to write these characters for themselves.
_VARIABLE = re.compile(r"\$\([^)]*\)")
FINDINGS_OF_A_KIND = 100  # kept one by one; the rest is counted


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """How images are prepared; a change makes every image due for publishing again."""

    # readable: everybody may read everything and enter every directory, because grid jobs run as
    # any user; strict: exactly the bits of the image
    permissions: Literal["readable", "strict"] = "readable"
    # strip: image authors are trusted for nothing, and a mount may honour the bits
    setuid: Literal["strip", "keep"] = "strip"
    roots: tuple[str, ...] = STANDARD_ROOTS  # absolute paths
    keep_dirlinks: bool = False


def apply_policy(tree: Tree, policy: SandboxPolicy) -> list[Finding]:
    """Change the tree to what may be published; return what was changed."""
    findings: list[Finding] = []
    tree.root.node = _allowed(tree.root.node, "", policy, findings)
    stack: list[tuple[str, Directory]] = [("", tree.root)]
    while stack:
        prefix, directory = stack.pop()
        dropped: list[str] = []
        for name, child in directory.children.items():
            path = prefix + name
            if (reason := _refusal(name, child)) is not None:
                findings.append(Finding(path, reason))
                dropped.append(name)
            elif isinstance(child, Directory):
                child.node = _allowed(child.node, path, policy, findings)
                stack.append((path + "/", child))
            else:
                node = _allowed(child, path, policy, findings)
                if node is not child:
                    directory.children[name] = node
        for name in dropped:
            del directory.children[name]
    return findings


def _refusal(name: str, entry: Directory | Node) -> str | None:
    if name in RESERVED_NAMES:
        return "dropped: the name is reserved by CernVM-FS"
    if isinstance(entry, Directory):
        return None
    kind = stat.S_IFMT(entry.mode)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        what = "character" if kind == stat.S_IFCHR else "block"
        return f"{what} device {os.major(entry.device)}:{os.minor(entry.device)} dropped"
    return None


def _allowed(node: Node, path: RepoPath, policy: SandboxPolicy, findings: list[Finding]) -> Node:
    mode = node.mode
    if stat.S_ISLNK(mode):
        wanted = mode
        if _VARIABLE.search(node.target):
            findings.append(Finding(path, "clients replace $(…) in its target by their variables"))
    else:
        wanted = mode
        if mode & SETUID_SETGID and policy.setuid == "strip":
            wanted &= ~SETUID_SETGID
            bits = " and ".join(
                word
                for bit, word in ((stat.S_ISUID, "setuid"), (stat.S_ISGID, "setgid"))
                if mode & bit
            )
            findings.append(Finding(path, f"{bits} dropped (was {stat.S_IMODE(mode):04o})"))
        if policy.permissions == "readable":
            readable = _readable(wanted)
            if readable != wanted:
                findings.append(
                    Finding(path, f"made readable for everybody (was {stat.S_IMODE(mode):04o})")
                )
                wanted = readable
    if wanted != mode:
        node = node._replace(mode=wanted)
    if node.xattrs:
        kept = tuple(pair for pair in node.xattrs if _is_allowed_xattr(*pair))[:MAX_XATTR_BYTES]
        for name in sorted({name for name, _ in node.xattrs} - {name for name, _ in kept}):
            findings.append(Finding(path, f"extended attribute {name} dropped"))
        node = node._replace(xattrs=kept)
    return node


def _readable(mode: int) -> int:
    """Return the mode with u+rwX and a+rX, as chmod understands it."""
    if stat.S_ISDIR(mode):
        return mode | 0o755
    return mode | (0o755 if mode & 0o111 else 0o644)


def _is_allowed_xattr(name: str, value: bytes) -> bool:
    """Only `user.*`: the others grant rights or fit one host only (E-23)."""
    return (
        name.startswith("user.")
        and len(encode_name(name)) <= MAX_XATTR_BYTES
        and len(value) <= MAX_XATTR_BYTES
    )


def summarise(findings: Iterable[Finding]) -> list[Finding]:
    """Keep the first findings of every kind and count the rest, so that a record stays readable."""
    counts: Counter[str] = Counter()
    kept: list[Finding] = []
    for finding in findings:
        kind = finding.what.split(" (was", 1)[0].split(":", 1)[0]
        counts[kind] += 1
        if counts[kind] <= FINDINGS_OF_A_KIND:
            kept.append(finding)
    kept += [
        Finding("", f"{count - FINDINGS_OF_A_KIND} more: {kind}")
        for kind, count in counts.items()
        if count > FINDINGS_OF_A_KIND
    ]
    return kept
