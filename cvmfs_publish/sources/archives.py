"""Images in local archives: OCI layouts, as directory or tar, and what `docker save` writes.

Sources: OCI image-spec `image-layout.md` and `annotations.md`; Docker's image specification v1.2,
"Combined Image JSON + Filesystem Changeset Format", and what skopeo, podman, buildah, containerd,
crane and Docker of before 1.10 make of it.
"""

from __future__ import annotations

import json
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import (
    ImageNotFoundError,
    LayerDescriptor,
    Platform,
    ResolvedImage,
    SourceLimits,
    origin_of,
)
from cvmfs_publish.sources.files import (
    PIECE,
    CheckedStream,
    digest_of,
    open_file,
    state_of,
    translated,
)
from cvmfs_publish.sources.members import (
    COMPRESSED,
    FolderMembers,
    Members,
    MissingMemberError,
    TarMembers,
    opened,
    read_member,
)
from cvmfs_publish.sources.registry.manifest import (
    CONFIG_HINT,
    DOCKER_MANIFEST,
    MANIFEST_HINT,
    OCI_INDEX,
    Descriptor,
    Index,
    Manifest,
    NotAnImageError,
    describe_layers,
    parse_config,
    parse_manifest,
)
from cvmfs_publish.sources.registry.platform import check_platform, choose_manifest

REF_NAME = "org.opencontainers.image.ref.name"  # annotations.md: a tag, or with skopeo a whole name
CONTAINERD_NAME = "io.containerd.image.name"  # a whole name
MAX_PARENTS = 127  # layers of an image, as Docker limits them
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_HEX = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")
_BLOB = re.compile(r"blobs/(sha256)/([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that was looked through, and the state it was in then."""

    members: Members
    state: str


class ArchiveSource(ABC):
    """What the sources of archives share: each file is looked through once while it stays as it is.

    An `ImageSource`; also a `PlacedSource`.
    """

    def __init__(self, limits: SourceLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._known: dict[str, Archive] = {}

    def state(self, origin: Origin, platform: Platform) -> str:
        """As promised by `PlacedSource.state`."""
        with open_file(self._file(origin), str(origin)) as file:
            return state_of(file)

    def archive(self, origin: Origin) -> Archive:
        """Return the archive as it is now."""
        with self._lock:  # two threads would look through it twice
            with open_file(self._file(origin), str(origin)) as file:
                state = state_of(file)
            known = self._known.get(origin.place)
            if known is None or known.state != state:
                if origin.digest is not None:
                    with open_file(self._file(origin), str(origin)) as file:
                        digest_of(file, str(origin), origin.digest)
                known = Archive(self._members(origin), state)
                self._known[origin.place] = known
            return known

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> CheckedStream:
        """As promised by `ImageSource.open_layer`."""
        origin = origin_of(reference)
        members = self.archive(origin).members
        name = self._layer_name(origin, members, layer)
        return CheckedStream(lambda: members.open(name), layer.digest, layer.size, str(origin))

    def _file(self, origin: Origin) -> Path:
        """The file whose state says whether the image changed."""
        return Path(origin.place)

    def _members(self, origin: Origin) -> Members:
        return TarMembers(Path(origin.place), self._limits, str(origin))

    @abstractmethod
    def _layer_name(self, origin: Origin, members: Members, layer: LayerDescriptor) -> str:
        """Return the member that holds a layer."""


# OCI layouts


class OciArchiveSource(ArchiveSource):
    """Images in a tar of an OCI layout."""

    def name(self, origin: Origin) -> str:
        """As promised by `PlacedSource.name`."""
        entries = _named(self._index(self.archive(origin).members, origin), origin)
        names = {name for entry in entries for name in _names(entry) if _is_whole(name)}
        return names.pop() if len(names) == 1 else ""

    def head(self, reference: Reference) -> Digest:
        """As promised by `ImageSource.head`; reads the index alone."""
        if reference.digest is not None:
            return reference.digest
        origin = origin_of(reference)
        return self._top(self.archive(origin).members, origin)[1]

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        """As promised by `ImageSource.resolve`."""
        origin = origin_of(reference)
        subject = str(origin)
        members = self.archive(origin).members
        chosen: Platform | None = None
        manifest: Manifest | Index
        manifest, top = self._top(members, origin)
        for wanted in (digest, reference.digest):
            if wanted is not None and wanted != top:  # another one than the tag names now
                manifest, top = self._manifest(members, wanted, subject), wanted
                break
        own = top
        for _ in range(3):  # index.json, the index of one name, and no deeper
            if isinstance(manifest, Manifest):
                break
            entry = choose_manifest(manifest, platform, subject)
            chosen = entry.platform or chosen
            own = entry.digest
            manifest = self._manifest(members, own, subject, entry)
        if not isinstance(manifest, Manifest):
            raise NotAnImageError(f"{subject} is an index inside an index")
        body = self._blob(members, own, self._limits.manifest_bytes, subject, MANIFEST_HINT)
        data = self._blob(
            members, manifest.config.digest, self._limits.config_bytes, subject, CONFIG_HINT
        )
        if len(data) != manifest.config.size:
            raise IntegrityError(
                f"{subject}: the config has {len(data)} bytes, promised {manifest.config.size}"
            )
        config = parse_config(data, subject)
        if chosen is None:
            check_platform(config.platform, platform, subject)
        return ResolvedImage(
            reference=reference,
            digest=top,
            manifest_digest=own,
            manifest=body,
            config_digest=manifest.config.digest,
            config=data,
            layers=describe_layers(manifest, config, subject),
            platform=platform,
        )

    def _top(self, members: Members, origin: Origin) -> tuple[Manifest | Index, Digest]:
        """Return what the tag names: a manifest or an index, and its digest."""
        entries = _named(self._index(members, origin), origin)
        if len(entries) == 1:
            (entry,) = entries
            return self._manifest(members, entry.digest, str(origin), entry), entry.digest
        # One name, an entry for each platform: the layout's index serves as the image's
        digests = "\n".join(str(entry.digest) for entry in entries)
        return Index(tuple(entries)), Digest.of(digests.encode())

    def _index(self, members: Members, origin: Origin) -> Index:
        subject = str(origin)
        try:
            body = read_member(
                members, "index.json", self._limits.manifest_bytes, subject, MANIFEST_HINT
            )
        except MissingMemberError as error:
            raise NotAnImageError(
                f"{subject} holds no index.json: it is no OCI layout",
                hint="what `docker save` writes is docker-archive:FILE, a file system tar:FILE",
            ) from error
        index = parse_manifest(body, OCI_INDEX, f"{subject}: index.json")
        if not isinstance(index, Index):
            raise IntegrityError(f"{subject}: index.json is a manifest")
        return index

    def _manifest(
        self, members: Members, digest: Digest, subject: str, entry: Descriptor | None = None
    ) -> Manifest | Index:
        try:
            body = self._blob(members, digest, self._limits.manifest_bytes, subject, MANIFEST_HINT)
        except MissingMemberError as error:
            if entry is not None:
                raise
            raise ImageNotFoundError(
                f"{subject} does not hold {digest} any more", hint="it was written anew since"
            ) from error
        if entry is not None and len(body) != entry.size:
            raise IntegrityError(
                f"{subject}: the manifest {digest} has {len(body)} bytes, promised {entry.size}"
            )
        return parse_manifest(
            body,
            "",
            subject,
            entry.media_type if entry is not None else "",
            config_limit=self._limits.config_bytes,
        )

    def _blob(self, members: Members, digest: Digest, limit: int, subject: str, hint: str) -> bytes:
        body = read_member(members, _blob_name(digest), limit, subject, hint)
        hasher = digest.hasher()
        hasher.update(body)
        if hasher.hexdigest() != digest.hex:
            raise IntegrityError(
                f"{subject}: {digest} is promised, its {len(body)} bytes are "
                f"{digest.algorithm}:{hasher.hexdigest()}",
                hint="the archive is damaged; write it again",
            )
        return body

    def _layer_name(self, origin: Origin, members: Members, layer: LayerDescriptor) -> str:
        name = _blob_name(layer.digest)
        size = members.size(name)
        if size != layer.size:
            raise IntegrityError(
                f"{origin}: layer {layer.digest} has {size} bytes, promised {layer.size}"
            )
        return name


class OciSource(OciArchiveSource):
    """Images in the directory of an OCI layout."""

    def _file(self, origin: Origin) -> Path:
        return Path(origin.place) / "index.json"

    def _members(self, origin: Origin) -> Members:
        return FolderMembers(Path(origin.place), str(origin))

    def archive(self, origin: Origin) -> Archive:
        """Nothing is remembered of a directory: its index is read at once."""
        path = Path(origin.place)
        if _is_file(path):
            raise InputError(f"{origin}: {path} is a file", hint="a tar is oci-archive:FILE[:TAG]")
        if origin.digest is not None:
            raise InputError(
                f"{origin}: a directory has no digest", hint="name the manifest: --as NAME@sha256:…"
            )
        return Archive(self._members(origin), "")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # what is in the way is told by whoever opens what is below
        return False


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _names(entry: Descriptor) -> list[str]:
    values = (entry.annotations.get(key) for key in (CONTAINERD_NAME, REF_NAME))
    return [value for value in values if isinstance(value, str) and value]


def _is_whole(name: str) -> bool:
    """Whether a name says its registry; a mere tag, or a path, would be taken for Docker Hub's."""
    first, slash, _ = name.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def _named(index: Index, origin: Origin) -> list[Descriptor]:
    """Return the entries that the origin's tag means: several only if they are for platforms."""
    entries = list(index.entries)
    if origin.tag:
        entries = [entry for entry in entries if origin.tag in _names(entry)]
        if not entries:
            raise _unknown_tag(origin, (name for entry in index.entries for name in _names(entry)))
    if not entries:
        raise NotAnImageError(f"{origin} holds no image")
    if len(entries) > 1:
        names = {name for entry in entries for name in _names(entry)}
        platforms = {entry.platform for entry in entries}
        if None in platforms or len(platforms) < len(entries) or (not origin.tag and names):
            raise _ambiguous(origin, names)
    return entries


def _unknown_tag(origin: Origin, names: Iterable[str]) -> ImageNotFoundError:
    known = ", ".join(sorted(set(names))[:20])
    return ImageNotFoundError(
        f"{origin}: no image in it is called {origin.tag!r}; it has {known or 'none with a name'}"
    )


def _ambiguous(origin: Origin, names: set[str]) -> InputError:
    known = ", ".join(sorted(names)[:20])
    return InputError(
        f"{origin} holds several images: {known or 'without names'}",
        hint=f"say which: {origin.transport}:FILE:TAG",
    )


# what `docker save` writes


@dataclass(frozen=True, slots=True)
class _Saved:
    """One image of a `docker save`: its configuration and the members of its layers."""

    config: bytes
    layers: tuple[str, ...]  # lowest first


class DockerArchiveSource(ArchiveSource):
    """Images in what `docker save` and its relatives write.

    There is no manifest in it, so one is made that says what a registry's would.  The digest that
    tells whether the image changed is that of its configuration, which names every layer.
    """

    LEGACY: ClassVar[str] = "repositories"  # before Docker 1.10 there was no manifest.json

    def __init__(self, limits: SourceLimits) -> None:
        super().__init__(limits)
        # Every layer of an old archive is hashed to know the image; single operations, atomic
        self._old: WeakKeyDictionary[Members, dict[str, _Saved]] = WeakKeyDictionary()

    def name(self, origin: Origin) -> str:
        """As promised by `PlacedSource.name`."""
        members = self.archive(origin).members
        names = _repo_tags(_chosen(self._images(members, origin), origin))
        return names[0] if len(names) == 1 else ""

    def head(self, reference: Reference) -> Digest:
        """As promised by `ImageSource.head`; reads the configuration alone."""
        origin = origin_of(reference)
        if reference.digest is not None:
            return reference.digest
        return Digest.of(self._saved(self.archive(origin).members, origin).config)

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        """As promised by `ImageSource.resolve`; layers of unknown digest are read once."""
        origin = origin_of(reference)
        subject = str(origin)
        members = self.archive(origin).members
        saved = self._saved(members, origin)
        config = parse_config(saved.config, subject)
        if len(config.diff_ids) != len(saved.layers):
            raise IntegrityError(
                f"{subject}: the archive has {len(saved.layers)} layers, "
                f"the config {len(config.diff_ids)} diff ids"
            )
        check_platform(config.platform, platform, subject)
        layers = tuple(
            _describe(members, name, diff_id, subject)
            for name, diff_id in zip(saved.layers, config.diff_ids, strict=True)
        )
        manifest = make_manifest(saved.config, layers)
        own, image_id = Digest.of(manifest), Digest.of(saved.config)
        for wanted in (digest, reference.digest):
            if wanted not in {None, own, image_id}:
                raise ImageNotFoundError(
                    f"{subject} holds {image_id}, not {wanted} any more",
                    hint="the archive was written anew since",
                )
        return ResolvedImage(
            reference=reference,
            digest=image_id,
            manifest_digest=own,
            manifest=manifest,
            config_digest=image_id,
            config=saved.config,
            layers=layers,
            platform=platform,
        )

    def _layer_name(self, origin: Origin, members: Members, layer: LayerDescriptor) -> str:
        saved = self._saved(members, origin)
        diff_ids = parse_config(saved.config, str(origin)).diff_ids
        for name, diff_id in zip(saved.layers, diff_ids, strict=False):
            if layer.diff_id == diff_id:
                return name
        raise ImageNotFoundError(
            f"{origin} does not hold {layer.digest} any more", hint="it was written anew since"
        )

    def _images(self, members: Members, origin: Origin) -> list[dict[str, Any]]:
        """Return the entries of manifest.json, or their like for an older archive."""
        subject = str(origin)
        try:
            body = read_member(
                members, "manifest.json", self._limits.manifest_bytes, subject, MANIFEST_HINT
            )
        except MissingMemberError:
            return self._legacy_images(members, origin)
        images = _json(body, f"{subject}: manifest.json")
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise IntegrityError(f"{subject}: manifest.json is not a list of images")
        return images

    def _saved(self, members: Members, origin: Origin) -> _Saved:
        subject = str(origin)
        image = _chosen(self._images(members, origin), origin)
        if self.LEGACY in image:
            top = str(image[self.LEGACY])
            known = self._old.setdefault(members, {})
            if top not in known:
                known[top] = self._legacy(members, top, subject)
            return known[top]
        name, layers = image.get("Config"), image.get("Layers")
        layers = [] if layers is None else layers  # Go writes an empty list as null
        is_list = isinstance(layers, list) and all(isinstance(layer, str) for layer in layers)
        if not isinstance(name, str) or not is_list:
            raise IntegrityError(f"{subject}: manifest.json names no config and layers")
        config = read_member(members, name, self._limits.config_bytes, subject, CONFIG_HINT)
        promised = _HEX.fullmatch(name)
        if promised is not None and Digest.of(config).hex != promised[1]:
            raise IntegrityError(
                f"{subject}: the config {name} is {Digest.of(config)}",
                hint="the archive is damaged; write it again",
            )
        return _Saved(config, tuple(layers))

    # before Docker 1.10: `repositories` names the top layer, each layer its parent

    def _legacy_images(self, members: Members, origin: Origin) -> list[dict[str, Any]]:
        subject = str(origin)
        try:
            body = read_member(
                members, self.LEGACY, self._limits.manifest_bytes, subject, MANIFEST_HINT
            )
        except MissingMemberError as error:
            raise NotAnImageError(
                f"{subject} holds neither manifest.json nor `repositories`: `docker save` wrote "
                "something else",
                hint="an OCI layout is oci-archive:FILE, a root file system tar:FILE",
            ) from error
        tops: dict[str, list[str]] = {}
        document = _json(body, f"{subject}: {self.LEGACY}")
        if not isinstance(document, dict):
            raise IntegrityError(f"{subject}: `{self.LEGACY}` is not an object")
        for repository, tags in document.items():
            if not isinstance(tags, dict):
                raise IntegrityError(f"{subject}: `{self.LEGACY}` has no tags of {repository!a}")
            for tag, top in tags.items():
                tops.setdefault(str(top), []).append(f"{repository}:{tag}")
        return [{self.LEGACY: top, "RepoTags": names} for top, names in tops.items()]

    def _legacy(self, members: Members, top: str, subject: str) -> _Saved:
        documents: list[dict[str, Any]] = []
        layers: list[str] = []
        layer: object = top
        while layer or not layers:
            if not isinstance(layer, str) or not _HEX.fullmatch(layer) or "/" in layer:
                raise IntegrityError(f"{subject}: {str(layer)[:100]!a} is not the id of a layer")
            if len(layers) > MAX_PARENTS:
                raise IntegrityError(f"{subject}: a layer has more than {MAX_PARENTS} parents")
            body = read_member(
                members, f"{layer}/json", self._limits.config_bytes, subject, CONFIG_HINT
            )
            document = _json(body, f"{subject}: {layer}/json")
            if not isinstance(document, dict):
                raise IntegrityError(f"{subject}: {layer}/json is not an object")
            documents.append(document)
            layers.append(f"{layer}/layer.tar")
            layer = document.get("parent")
        layers.reverse()
        config = {
            "architecture": documents[0].get("architecture", "amd64"),
            "os": documents[0].get("os", "linux"),
            "created": documents[0].get("created"),
            "config": documents[0].get("config"),
            "rootfs": {
                "type": "layers",
                "diff_ids": [str(_hash(members, name, subject)) for name in layers],
            },
        }
        return _Saved(json.dumps(config, sort_keys=True).encode("ascii"), tuple(layers))


def make_manifest(config: bytes, layers: Iterable[LayerDescriptor]) -> bytes:
    """Return a manifest that says of an image what a registry's would; equal for equal images."""
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {
            "mediaType": _DOCKER_CONFIG,
            "size": len(config),
            "digest": str(Digest.of(config)),
        },
        "layers": [
            {"mediaType": layer.media_type, "size": layer.size, "digest": str(layer.digest)}
            for layer in layers
        ],
    }
    return json.dumps(document, indent=2).encode("ascii")


def _describe(members: Members, name: str, diff_id: Digest, subject: str) -> LayerDescriptor:
    """Return what a registry would say of a layer; one that is compressed is hashed for it."""
    size = members.size(name)
    with opened(members, name) as file, translated(subject):
        head = file.read(8)
    is_plain = not head.startswith(COMPRESSED)
    promised = _BLOB.fullmatch(name)
    if promised is not None:
        digest = Digest(promised[1], promised[2])
    else:
        digest = diff_id if is_plain else _hash(members, name, subject)
    return LayerDescriptor(digest, size, _DOCKER_LAYER, diff_id)


def _hash(members: Members, name: str, subject: str) -> Digest:
    hasher = Digest.of(b"").hasher()
    with opened(members, name) as file, translated(subject):
        while piece := file.read(PIECE):
            hasher.update(piece)
    return Digest("sha256", hasher.hexdigest())


def _repo_tags(image: dict[str, Any]) -> list[str]:
    names = image.get("RepoTags")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _chosen(images: list[dict[str, Any]], origin: Origin) -> dict[str, Any]:
    """Return the image that the origin's tag means: a name, or @NUMBER as skopeo counts."""
    names = [name for image in images for name in _repo_tags(image)]
    if not images:
        raise NotAnImageError(f"{origin} holds no image")
    if not origin.tag:
        if len(images) > 1:
            raise _ambiguous(origin, {*names, *(f"@{n}" for n in range(len(images)))})
        return images[0]
    number = re.fullmatch(r"@([0-9]{1,4})", origin.tag)
    if number is not None and int(number[1]) < len(images):
        return images[int(number[1])]
    for image in images:
        if any(_same_name(name, origin.tag) for name in _repo_tags(image)):
            return image
    raise _unknown_tag(origin, names)


def _same_name(name: str, wanted: str) -> bool:
    """Whether two texts name one image, or one is the tag of the other."""
    if wanted in (name, name.rpartition(":")[2]):
        return True
    try:
        return Reference.parse(name).name == Reference.parse(wanted).name
    except InputError:
        return False


def _json(body: bytes, subject: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(body.decode())
    # RecursionError: a megabyte of "[" is valid UTF-8 and exhausts the parser's stack
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{subject}: not valid JSON ({type(error).__name__})") from error
