"""Images that are one file: SIF, squashfs or the tar of a root file system, wherever the file is.

What such a file does not have, a configuration and a manifest, is made of what it says of itself;
equal files give equal ones.  The digest of the layer, and the one DiffID of the configuration, are
the digest of the file.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, BinaryIO

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import (
    BlobStream,
    ImageNotFoundError,
    LayerDescriptor,
    Platform,
    ResolvedImage,
    origin_of,
)
from cvmfs_publish.sources.files import CheckedStream, translated
from cvmfs_publish.sources.held import FileHolder, HeldFile
from cvmfs_publish.sources.registry.manifest import OCI_MANIFEST, NotAnImageError
from cvmfs_publish.sources.registry.platform import check_platform
from cvmfs_publish.sources.sif_format import (
    DATA_PARTITION,
    DEFFILE,
    ENCRYPTED_SQUASHFS,
    JSON_OBJECT,
    LABELS,
    LAUNCH,
    MAGIC,
    MAGIC_OFFSET,
    OCI_ROOT_INDEX,
    OVERLAY,
    PRIMARY_SYSTEM,
    SQUASHFS,
    Sif,
    SifObject,
    parse_sif,
    platform_of,
)
from cvmfs_publish.sources.sif_signature import SifKeys, UnsignedSifError, find_signers
from cvmfs_publish.sources.squashfs import MAGIC as SQUASHFS_MAGIC
from cvmfs_publish.sources.squashfs import SquashfsTool

SIF, TAR = "sif", "tar"  # what a file may be
METADATA_LIMIT = (
    4 << 20
)  # bytes of a definition file or of one JSON object; real ones have kilobytes
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPES = {
    SIF: "application/vnd.sylabs.sif.layer.v1.sif",
    TAR: "application/vnd.oci.image.layer.v1.tar",
}
# of an ext2, ext3 or ext4 file system, at this offset: images of Singularity before 2.4
_EXT_MAGIC, _EXT_OFFSET = b"\x53\xef", 1080
_HEAD = 2048  # bytes that tell what a file is
_CONFIG_KEYS = ("Env", "Entrypoint", "Cmd", "Labels", "WorkingDir", "User")


@dataclass(frozen=True, slots=True)
class _Content:
    """What is in a file: where its file system is, and what is known of the image."""

    kind: str
    offset: int  # of the file system, in bytes
    size: int
    platform: Platform | None  # None: the file does not say
    created: int = 0  # Unix seconds; 0: the file does not say
    config: tuple[tuple[str, Any], ...] = ()  # parts of an OCI image's `config`
    annotations: tuple[tuple[str, str], ...] = ()


class FileSource:
    """A `PlacedSource` of images that are one file each."""

    def __init__(
        self, holder: FileHolder, tool: SquashfsTool, kinds: Collection[str] = (SIF, TAR)
    ) -> None:
        """`kinds`: what the files may be."""
        self._holder = holder
        self._tool = tool
        self._kinds = kinds
        # what was resolved, by origin and layer; single dict operations, atomic under the lock
        self._found: dict[tuple[Origin, Digest], tuple[HeldFile, _Content]] = {}

    def name(self, origin: Origin) -> str:
        """As promised by `PlacedSource.name`."""
        return self._holder.name(origin)

    def state(self, origin: Origin, platform: Platform) -> str:
        """As promised by `PlacedSource.state`."""
        return self._holder.state(origin, platform)

    def head(self, reference: Reference) -> Digest:
        """As promised by `ImageSource.head`."""
        return reference.digest or self._holder.head(origin_of(reference))

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        """As promised by `ImageSource.resolve`."""
        origin = origin_of(reference)
        subject = str(origin)
        wanted = digest or reference.digest
        held = self._holder.hold(origin, platform, wanted)
        with held.reader() as file, translated(subject):
            content = self._inspect(file, held, subject)
        check_platform(content.platform, platform, subject)
        media_type = _LAYER_TYPES[content.kind]
        layer = LayerDescriptor(held.digest, held.size, media_type, None)
        self._found[origin, held.digest] = held, content
        config = make_config(content, held.digest, platform)
        manifest = held.manifest or make_manifest(config, layer, content)
        own = Digest.of(manifest)
        # Where a file differs by platform, `head` told of the default one
        if wanted not in {None, own, held.top} and wanted != self._holder.head(origin):
            raise ImageNotFoundError(
                f"{subject} is {held.top}, not {wanted} any more", hint="it was replaced since"
            )
        return ResolvedImage(
            reference=reference,
            digest=held.top,
            manifest_digest=own,
            manifest=manifest,
            config_digest=Digest.of(config),
            config=config,
            layers=(layer,),
            platform=platform,
            has_runtime_files=content.kind == SIF,
        )

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> BlobStream:
        """As promised by `ImageSource.open_layer`."""
        origin = origin_of(reference)
        subject = str(origin)
        found = self._found.get((origin, layer.digest))
        if found is None:
            raise ImageNotFoundError(f"{subject}: no {layer.digest} was found there")
        held, content = found
        if content.kind == TAR:
            return CheckedStream(held.reader, layer.digest, layer.size, subject)
        return self._tool.open(held, content.offset, content.size, subject)

    def find_signers(self, image: ResolvedImage, keys: SifKeys) -> tuple[str, ...]:
        """Return who signed a SIF file that was resolved; raise `UnsignedSifError` if nobody did.

        What is verified is a private copy that has the digest of the layer, so that nobody can
        exchange the file between this and its unpacking, which proves the same digest.
        """
        subject = str(origin_of(image.reference))
        held, content = self._found[origin_of(image.reference), image.layers[0].digest]
        if content.platform is None:
            raise UnsignedSifError("it is no SIF file")
        with self._tool.copy(held, subject) as file, translated(subject):
            read = partial(_read_at, file)
            sif = parse_sif(read, held.size, subject)
            # Configuration and offsets came from a look at the file itself
            if _describe(sif, file, subject) != content:
                raise IntegrityError(
                    f"{subject}: the file was changed while it was read", hint="publish again"
                )
            return find_signers(sif, read, keys)

    def _inspect(self, file: BinaryIO, held: HeldFile, subject: str) -> _Content:
        """Return what is in a file; raise `NotAnImageError` unless it can be read and is wanted."""
        head = file.read(_HEAD)
        kind = TAR
        if head[MAGIC_OFFSET:].startswith(MAGIC) or SQUASHFS_MAGIC in _starts(head):
            kind = SIF
        elif head[_EXT_OFFSET:].startswith(_EXT_MAGIC):
            raise NotAnImageError(
                f"{subject} is an ext3 image of an old Singularity, which cannot be read here",
                hint="`apptainer build NEW.sif OLD.img` makes a SIF file of it",
            )
        if kind not in self._kinds:
            known = {SIF: "a SIF file, nor a squashfs", TAR: "a tar"}
            raise NotAnImageError(
                f"{subject} is not {' or '.join(known[each] for each in self._kinds)}",
                hint=f"it seems to be {kind}:FILE" if kind == SIF else "is it a tar:FILE?",
            )
        if kind == TAR:
            return _Content(TAR, 0, held.size, None)
        if not head[MAGIC_OFFSET:].startswith(MAGIC):
            offset = 0 if head.startswith(SQUASHFS_MAGIC) else len(LAUNCH)
            return _Content(SIF, offset, held.size - offset, None)
        read = partial(_read_at, file)
        return _describe(parse_sif(read, held.size, subject), file, subject)


def _starts(head: bytes) -> tuple[bytes, bytes]:
    """Where a squashfs may begin: at once, or behind the launch line of Singularity 2.4 to 2.6."""
    behind = head[len(LAUNCH) :] if head.startswith(LAUNCH) else b""
    return head[: len(SQUASHFS_MAGIC)], behind[: len(SQUASHFS_MAGIC)]


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _describe(sif: Sif, file: BinaryIO, subject: str) -> _Content:
    system = _system_partition(sif, subject)
    _, _, architecture = system.partition
    if architecture != sif.architecture:
        raise IntegrityError(
            f"{subject} is for {sif.architecture or 'an unknown architecture'} by its header, its "
            f"system for {architecture or 'an unknown one'}"
        )
    platform = platform_of(architecture)
    if platform is None:
        raise NotAnImageError(f"{subject} is for an architecture that nobody knows")
    documents = {each.name: _json_object(file, each) for each in sif.of_kind(JSON_OBJECT)}
    config = {
        key: value
        for key, value in documents.get("oci-config.json", {}).items()
        if key in _CONFIG_KEYS
    }
    labels = _labels(sif, documents, file)
    if labels:
        config["Labels"] = labels
    return _Content(
        SIF,
        system.offset,
        system.size,
        platform,
        sif.created,
        tuple(config.items()),
        tuple(_annotations(sif, documents, file).items()),
    )


def _system_partition(sif: Sif, subject: str) -> SifObject:
    if sif.of_kind(OCI_ROOT_INDEX):
        raise NotAnImageError(
            f"{subject} is an OCI-SIF, which holds an OCI image in place of a file system",
            hint="publish the image it was made of",
        )
    partitions = sif.of_kind(DATA_PARTITION)
    systems = [each for each in partitions if each.partition[1] == PRIMARY_SYSTEM]
    if len(systems) != 1:
        raise NotAnImageError(f"{subject} has {len(systems)} primary system partitions, not one")
    if any(each.partition[1] == OVERLAY for each in partitions):
        raise NotAnImageError(
            f"{subject} has an overlay of changes inside, which would be lost",
            hint="`apptainer build --sandbox` applies it; publish a SIF built from that",
        )
    (system,) = systems
    file_system = system.partition[0]
    if file_system == ENCRYPTED_SQUASHFS:
        raise NotAnImageError(
            f"{subject} is encrypted; in a repository everybody could read it",
            hint="if it may be public, build it without --encrypt",
        )
    if file_system != SQUASHFS:
        raise NotAnImageError(f"{subject} has a file system of type {file_system}, no squashfs")
    return system


def _labels(sif: Sif, documents: dict[str, dict[str, Any]], file: BinaryIO) -> dict[str, str]:
    found: Any = _attributes(documents).get("labels")
    if not isinstance(found, dict):
        objects = sif.of_kind(LABELS)
        found = _json_object(file, objects[0]) if objects else {}
    return {str(key): str(value) for key, value in found.items()}


def _annotations(sif: Sif, documents: dict[str, dict[str, Any]], file: BinaryIO) -> dict[str, str]:
    """Return what the record keeps of the file: who it is, and how it was built and starts."""
    found = {"sif.id": sif.id}
    definitions = sif.of_kind(DEFFILE)
    if definitions and definitions[0].size <= METADATA_LIMIT:
        text = _read_at(file, definitions[0].offset, definitions[0].size)
        found["sif.deffile"] = text.rstrip(b"\0").decode("utf-8", "replace")
    attributes = _attributes(documents)
    for key in ("runscript", "startscript", "test"):
        if isinstance(attributes.get(key), str):
            found[f"sif.{key}"] = attributes[key]
    environment = attributes.get("environment")
    if isinstance(environment, dict):
        found["sif.environment"] = json.dumps(environment, sort_keys=True)
    return found


def _attributes(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    data = documents.get("inspect-metadata.json", {}).get("data")
    attributes = data.get("attributes") if isinstance(data, dict) else None
    return attributes if isinstance(attributes, dict) else {}


def _json_object(file: BinaryIO, each: SifObject) -> dict[str, Any]:
    """Return an object's JSON; {} if it is none: it describes the image, which works without."""
    if each.size > METADATA_LIMIT:
        return {}
    try:
        document = json.loads(_read_at(file, each.offset, each.size).rstrip(b"\0"))
    # RecursionError: a megabyte of "[" exhausts the parser's stack
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def make_config(content: _Content, digest: Digest, platform: Platform) -> bytes:
    """Return an image configuration for a file that has none."""
    document: dict[str, Any] = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": dict(content.config),
        "rootfs": {"type": "layers", "diff_ids": [str(digest)]},
    }
    if platform.variant:
        document["variant"] = platform.variant
    if content.created:
        # beyond the year 9999 there is no such text
        moment = datetime.fromtimestamp(min(content.created, 253402300799), UTC)
        document["created"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps(document, sort_keys=True).encode("ascii")


def make_manifest(config: bytes, layer: LayerDescriptor, content: _Content) -> bytes:
    """Return a manifest for a file that has none, with what the record keeps of it."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": _CONFIG_TYPE,
            "size": len(config),
            "digest": str(Digest.of(config)),
        },
        "layers": [
            {"mediaType": layer.media_type, "size": layer.size, "digest": str(layer.digest)}
        ],
    }
    if content.annotations:
        document["annotations"] = dict(content.annotations)
    return json.dumps(document, indent=2, sort_keys=True).encode("ascii")
