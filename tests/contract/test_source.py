"""What every source of images promises, kept by each of them; `SOURCES` is the list.

Source: `cvmfs_publish/sources/base.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError, PublishError
from cvmfs_publish.layers.fetch import fetch_layers
from cvmfs_publish.layers.merge import merge
from cvmfs_publish.layers.read import LayerLimits
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.layers.tree import node_of
from cvmfs_publish.publish import Publisher, PublishSettings
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import ImageNotFoundError, ImageSource, Platform, ResolvedImage
from cvmfs_publish.sources.objectstore import S3Access, SwiftAccess
from cvmfs_publish.sources.transports import SOURCES, Sources
from cvmfs_publish.verify import Hashing
from tests.archives import docker_members, oci_archive, pack
from tests.fakes.places import KEY, USER, FakePlaces
from tests.images import Tar, write_oci_layout
from tests.s3 import S3Bucket, S3Server
from tests.sifs import make_sif, squashfs_of, system
from tests.sources import open_sources
from tests.support import site

AMD64, ARM64 = Platform.default(), Platform.parse("linux/arm64")
NAME = "example.org/group/image:1"
SIF_LAYER = "application/vnd.sylabs.sif.layer.v1.sif"


def root(word: str) -> bytes:
    """Return the layer of an image: what each of the places is to give."""
    tar = Tar()
    tar.directory("etc")
    tar.file("etc/word", word.encode(), 0o640, owner=(5, 6))
    tar.symlink("link", "etc/word")
    tar.link("hard", "etc/word", 0o640, owner=(5, 6))
    tar.file(b"\xff\n", b"odd")
    return tar.done()


def sif(word: str) -> bytes:
    return make_sif([system(squashfs_of(root(word)))])


@dataclass
class Place:
    """One place, and how an image gets there."""

    text: str  # as people type it
    put: Callable[[str], None]  # an image with this word in it, in place of the one before
    missing: str  # the same place, without an image
    has_platform: bool = True


def registry_place(places: FakePlaces) -> Place:
    return Place(
        places.name("a/b", "1"),
        lambda word: (places.add_image("a/b", [root(word)], tag="1"), None)[1],
        places.name("a/none", "1"),
    )


def layout_place(folder: Path) -> Place:
    return Place(
        f"oci:{folder}/layout:1",
        lambda word: (write_oci_layout(folder / "layout", [root(word)], tag="1"), None)[1],
        f"oci:{folder}/layout:2",
    )


def oci_place(folder: Path) -> Place:
    def put(word: str) -> None:
        layout = write_oci_layout(folder / f"layout-{word}", [root(word)])
        oci_archive(folder / "oci.tar", layout)

    return Place(f"oci-archive:{folder}/oci.tar", put, f"oci-archive:{folder}/none")


def docker_place(folder: Path) -> Place:
    def put(word: str) -> None:
        (folder / "docker.tar").write_bytes(pack(docker_members([root(word)])))

    none = f"docker-archive:{folder}/none"
    return Place(f"docker-archive:{folder}/docker.tar", put, none)


def file_place(folder: Path, transport: str) -> Place:
    make = sif if transport == "sif" else root
    path = folder / f"image.{transport}"
    return Place(
        f"{transport}:{path}",
        lambda word: (path.write_bytes(make(word)), None)[1],
        f"{transport}:{folder}/none",
        has_platform=transport == "sif",
    )


def web_place(places: FakePlaces) -> Place:
    return Place(
        places.url_of("image.sif"),
        lambda word: places.images.update({"image.sif": sif(word)}),
        places.url_of("none"),
    )


def s3_place(bucket: S3Bucket) -> Place:
    return Place(
        f"s3://{bucket.name}/{bucket.prefix}/images/a b.sif",
        lambda word: bucket.put("images/a b.sif", sif(word)),
        f"s3://{bucket.name}/none",
    )


def swift_place(places: FakePlaces) -> Place:
    return Place(
        "swift://images/a b/image.sif",
        lambda word: places.objects.update({"images/a b/image.sif": sif(word)}),
        "swift://images/none",
    )


def library_place(places: FakePlaces) -> Place:
    def put(word: str) -> None:
        places.images["library"] = sif(word)
        places.library["entity/collection/image:1", "amd64"] = "library"

    start = f"library://{places.host}/entity/collection"
    return Place(f"{start}/image:1", put, f"{start}/none:1")


def hub_place(places: FakePlaces) -> Place:
    def put(word: str) -> None:
        places.images["hub"] = sif(word)
        places.hub["user/image:1"] = "hub"

    return Place(f"shub://{places.host}/user/image:1", put, f"shub://{places.host}/user/none:1")


def oras_place(places: FakePlaces) -> Place:
    def put(word: str) -> None:
        layer = places.add_blob(sif(word), SIF_LAYER)
        config = places.add_blob(b"{}", "application/vnd.sylabs.sif.config.v1+json")
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}
        places.add_manifest("s/image", manifest, kind, tag="1")

    start = f"oras://{places.host}/s"
    return Place(f"{start}/image:1", put, f"{start}/none:1")


REGISTRY = "a registry"
ALL = (REGISTRY, *SOURCES)


def make_place(kind: str, folder: Path, places: FakePlaces, bucket: S3Bucket) -> Place:
    return {
        REGISTRY: lambda: registry_place(places),
        "docker": lambda: registry_place(places),
        "oci": lambda: layout_place(folder),
        "oci-archive": lambda: oci_place(folder),
        "docker-archive": lambda: docker_place(folder),
        "sif": lambda: file_place(folder, "sif"),
        "tar": lambda: file_place(folder, "tar"),
        "http": lambda: web_place(places),
        "https": lambda: web_place(places),
        "s3": lambda: s3_place(bucket),
        "swift": lambda: swift_place(places),
        "library": lambda: library_place(places),
        "shub": lambda: hub_place(places),
        "oras": lambda: oras_place(places),
    }[kind]()


@pytest.fixture
def places() -> Iterator[FakePlaces]:
    with FakePlaces() as running:
        yield running


@pytest.fixture
def sources(tmp_path: Path, places: FakePlaces, s3_server: S3Server) -> Iterator[Sources]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with open_sources(
        scratch,
        s3=S3Access(
            s3_server.url, access_key=s3_server.access_key, secret_key=s3_server.secret_key
        ),
        swift=SwiftAccess(f"{places.url}/auth/v1.0", USER, KEY),
    ) as opened:
        yield opened
    assert list(scratch.iterdir()) == []  # nothing is left of what was fetched


@pytest.fixture(params=ALL)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path, places: FakePlaces, bucket: S3Bucket) -> Place:
    made = make_place(kind, tmp_path, places, bucket)
    made.put("first")
    return made


@pytest.fixture
def reference(sources: Sources, place: Place, kind: str) -> Reference:
    return sources.locate(place.text, "" if kind == REGISTRY else NAME)


pytestmark = pytest.mark.slow


Found = dict[str, tuple[str, int, int, str]]


def words_in(source: ImageSource, image: ResolvedImage) -> Found:
    """Return what an image unpacks to: path → mode, owner, and content's digest or target."""
    records = fetch_layers(
        source, image, image.layers, Hashing(), LayerLimits(), report=lambda *_: None
    )
    tree, _ = merge([records[layer.digest] for layer in image.layers], keep_dirlinks=True)
    found: Found = {}
    for path, entry in tree.walk():
        node = node_of(entry)
        content = node.target
        if node.content is not None and node.content.hash is not None:
            content = node.content.hash.digest.hex()
        found[path] = (oct(node.mode), node.uid, node.gid, content)
    return found


def test_every_source_has_a_place_here(
    tmp_path: Path, places: FakePlaces, bucket: S3Bucket
) -> None:
    texts = [make_place(kind, tmp_path, places, bucket).text for kind in ALL]
    assert len(texts) == len(SOURCES) + 1


def test_an_image_is_what_was_put_there(sources: Sources, reference: Reference) -> None:
    image = sources.resolve(reference, AMD64, sources.head(reference))
    found = words_in(sources, image)
    word = Digest.of(b"first").hex
    assert found == {
        "etc": ("0o40755", 0, 0, ""),
        "etc/word": ("0o100640", 5, 6, word),
        "hard": ("0o100640", 5, 6, word),
        "link": ("0o120777", 0, 0, "etc/word"),
        "\udcff\n": ("0o100644", 0, 0, Digest.of(b"odd").hex),
    }


def test_everything_in_a_resolved_image_matches_the_digest_beside_it(
    sources: Sources, reference: Reference
) -> None:
    digest = sources.head(reference)
    image = sources.resolve(reference, AMD64, digest)
    assert image.reference == reference
    assert image.digest == digest
    assert Digest.of(image.manifest) == image.manifest_digest
    assert Digest.of(image.config) == image.config_digest
    assert json.loads(image.config)["architecture"] == "amd64"
    assert image.platform == AMD64
    assert sources.resolve(reference, AMD64, digest) == image
    assert sources.resolve(reference, AMD64) == image
    assert sources.head(reference) == digest


def test_an_image_is_found_again_by_the_digest_of_its_manifest(
    sources: Sources, reference: Reference
) -> None:
    image = sources.resolve(reference, AMD64)
    again = sources.resolve(reference, AMD64, image.manifest_digest)
    assert (again.manifest, again.config, again.layers) == (
        *(image.manifest, image.config),
        image.layers,
    )


def test_another_image_in_its_place_is_noticed(
    sources: Sources, reference: Reference, place: Place
) -> None:
    digest, state = sources.head(reference), sources.state(reference, AMD64)
    assert sources.state(reference, AMD64) == state
    place.put("second")
    assert not state or sources.state(reference, AMD64) != state
    assert sources.head(reference) != digest
    image = sources.resolve(reference, AMD64)
    assert words_in(sources, image)["etc/word"][-1] == Digest.of(b"second").hex


def test_an_image_that_was_replaced_is_not_taken_for_the_old_one(
    sources: Sources, reference: Reference, place: Place, kind: str
) -> None:
    digest = sources.head(reference)
    place.put("second")
    try:
        image = sources.resolve(reference, AMD64, digest)
    except (ImageNotFoundError, IntegrityError):
        return
    assert image.digest == digest
    assert words_in(sources, image)["etc/word"][-1] == Digest.of(b"first").hex


def test_what_is_not_there_is_not_found(sources: Sources, place: Place, kind: str) -> None:
    reference = sources.locate(place.missing, "" if kind == REGISTRY else NAME)
    with pytest.raises(ImageNotFoundError):
        sources.head(reference)
    with pytest.raises(ImageNotFoundError):
        sources.resolve(reference, AMD64)


def test_an_image_for_another_platform_is_refused(
    sources: Sources, reference: Reference, place: Place, kind: str
) -> None:
    if not place.has_platform:
        assert sources.resolve(reference, ARM64).platform == ARM64
        return
    expected = ImageNotFoundError if kind == "library" else InputError  # it has none of that kind
    with pytest.raises(expected):
        sources.resolve(reference, ARM64)


def test_a_digest_behind_it_pins_the_file(sources: Sources, place: Place, kind: str) -> None:
    wrong = f"{place.text}@sha256:{'0' * 64}"
    if kind == "oci":
        with pytest.raises(InputError, match="a directory has no digest"):
            sources.head(sources.locate(wrong, NAME))
        return
    reference = sources.locate(wrong, "" if kind == REGISTRY else NAME)
    expected = (IntegrityError, ImageNotFoundError)
    with pytest.raises(expected):
        sources.resolve(reference, AMD64, sources.head(reference))


def test_a_layer_may_be_left_before_its_end(sources: Sources, reference: Reference) -> None:
    image = sources.resolve(reference, AMD64)
    with sources.open_layer(reference, image.layers[0]) as stream:
        assert 0 < len(stream.read(100)) <= 100
    with sources.open_layer(reference, image.layers[0]):
        pass
    with sources.open_layer(reference, image.layers[0]) as stream:
        while stream.read(1 << 20):
            pass
        assert stream.read(1 << 20) == b""


def test_any_number_of_threads_may_ask_at_once(sources: Sources, reference: Reference) -> None:
    def ask(_: int) -> tuple[Digest, Found]:
        image = sources.resolve(reference, AMD64, sources.head(reference))
        return image.manifest_digest, words_in(sources, image)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert answers == answers[:1] * 4


def test_it_is_published_once(
    tmp_path: Path, sources: Sources, place: Place, kind: str, places: FakePlaces
) -> None:
    names = {} if kind == REGISTRY else {place.text: NAME}
    with site(tmp_path) as target:
        publisher = Publisher(
            target.repository,
            sources,
            RecordStore(target.state / "layers", target.algorithm),
            PublishSettings(),
        )
        statuses = []
        for word in ("first", "first", "second"):
            if word == "second":
                place.put(word)
            asked = len(places.requests)
            result = publisher.publish([place.text], names=names, now=datetime.now(UTC))
            error: PublishError | None = result.images[0].error
            assert error is None, error
            statuses.append(result.images[0].status)
            if len(statuses) == 2:  # unchanged: nothing but a look was needed
                assert len(places.requests) - asked <= 2
                assert all(
                    not r.path.startswith("/files/") or r.method == "HEAD"
                    for r in places.requests[asked:]
                )
        assert statuses == ["published", "unchanged", "published"]
        assert target.judge() == []
