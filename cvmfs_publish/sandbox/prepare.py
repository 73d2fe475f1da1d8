"""Turn the merged tree of an image into the sandbox that is published.

Order matters: first what the image brought is judged, then our own directories and files are added,
which therefore need no judging.  No disk is touched; contents of new files go through `store`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.tree import Content, Directory, Tree
from cvmfs_publish.sandbox.policy import SandboxPolicy, apply_policy
from cvmfs_publish.sandbox.roots import (
    RUNTIME_DIRECTORIES,
    RUNTIME_FILES,
    RootAdder,
    clear_directory,
)
from cvmfs_publish.sandbox.runtime_files import (
    DIRECTORIES,
    LINKS,
    ImageConfig,
    charliecloud_environment,
    runtime_files,
    split_environment,
)

RECIPE = 1  # raise when the same image would be prepared differently: published ones become due
CH_ENVIRONMENT = "ch/environment"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was done to a tree; the tree itself is changed in place."""

    findings: tuple[Finding, ...]
    roots_added: tuple[str, ...]  # absolute paths of directories the image did not have


def prepare(
    tree: Tree,
    oci_config: bytes,
    policy: SandboxPolicy,
    store: Callable[[bytes], Content],
    *,
    keep_runtime_files: bool = False,
) -> Prepared:
    """Apply the policy, add bind roots and runtime files.

    Args:
        tree: changed in place.
        oci_config: the image's configuration.
        policy: what is allowed.
        store: takes the contents of files that are added.
        keep_runtime_files: the image was made by Apptainer or Singularity: its own stay.

    Raises:
        IntegrityError: the configuration is not what image-spec says.
    """
    config = parse_config(oci_config)
    findings: list[Finding] = []
    clear_directory(tree, "dev", findings)
    findings += apply_policy(tree, policy)
    adder = RootAdder(tree, _seconds(config.created))
    empty = store(b"")
    for path, mode in RUNTIME_DIRECTORIES.items():
        adder.directory(path, mode)
    for root in policy.roots:
        adder.directory(root.strip("/"))
    for path in RUNTIME_FILES:
        adder.file(path, empty, 0)
    findings += _add_runtime_files(tree, adder, config, oci_config, store, keep=keep_runtime_files)
    return Prepared(tuple(findings + adder.findings), tuple(adder.added))


def parse_config(oci_config: bytes) -> ImageConfig:
    """Raise `IntegrityError` unless the bytes are an OCI image configuration."""
    try:
        document = json.loads(oci_config)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"image configuration is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise IntegrityError("image configuration is not a JSON object")
    return ImageConfig(document)


def _add_runtime_files(
    tree: Tree,
    adder: RootAdder,
    config: ImageConfig,
    oci_config: bytes,
    store: Callable[[bytes], Content],
    *,
    keep: bool,
) -> list[Finding]:
    always, if_absent, findings = runtime_files(config, oci_config)
    added = len(adder.added)
    for path in DIRECTORIES:
        # An image's link must not lead our files elsewhere (E-22).
        if not isinstance(tree.find(path), Directory) and _remove(tree, path):
            findings.append(Finding(path, "replaced by a directory of the publisher's own"))
        adder.directory(path)
    del adder.added[added:]  # these are no bind roots
    for path, (data, mode) in always.items():
        adder.file(path, store(data), len(data), mode, replace_=not keep)
    for path, data in if_absent.items():
        adder.file(path, store(data), len(data), 0o755)
    for path, target in LINKS.items():
        adder.symlink(path, target)
    values, _ = split_environment(config.environment)
    data = charliecloud_environment(values).encode("utf-8", "surrogateescape")
    adder.file(CH_ENVIRONMENT, store(data), len(data))
    return findings


def _remove(tree: Tree, path: str) -> bool:
    """Remove what is at `path`; whether there was something."""
    parent_path, _, name = path.rpartition("/")
    parent = tree.find(parent_path)
    return isinstance(parent, Directory) and parent.children.pop(name, None) is not None


def _seconds(created: str) -> int:
    """Return an RFC 3339 time as Unix seconds; 0 if there is none, so that nothing varies."""
    # Fractions have up to nine digits; Python takes six.
    text = re.sub(r"(\.\d{6})\d+", r"\1", created.strip())
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    return max(0, int(moment.timestamp())) if moment.tzinfo else 0
