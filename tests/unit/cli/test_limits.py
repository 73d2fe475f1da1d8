"""`limits`: an image at a limit is published, one above is refused by the name of the limit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cvmfs_publish.streams import compression
from tests.fakes.registry import FakeRegistry
from tests.images import Tar, sparse_layer
from tests.layouts import write_oci_layout
from tests.unit.cli.support import Shell
from tests.unit.cli.test_repository import NAME

pytestmark = pytest.mark.slow


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


def one_file(name: str, size: int) -> bytes:
    tar = Tar()
    tar.file(name, b"x" * size)
    return tar.done()


def add(registry: FakeRegistry, *layers: bytes, **options: Any) -> str:  # noqa: ANN401
    registry.add_image("a/b", layers, tag="1", **options)
    return registry.name("a/b", "1")


def configure(home: Shell, limits: dict[str, int]) -> None:
    settings = {
        "repository": {"name": NAME},
        "sandbox": {"standard_roots": False},
        "limits": limits,
    }
    (home.cwd / "cvmfs-publish.yaml").write_text(json.dumps(settings))


def assert_edge(home: Shell, image: str, key: str, edge: int, *options: str) -> None:
    """At `edge` the image is published, with one less it is refused, wherever it was before."""
    configure(home, {key: edge - 1})
    refused = home.json("publish", image, *options, code=4)["images"][0]
    assert refused["error"]["kind"] == "integrity"
    assert f"`limits.{key}`" in refused["error"]["hint"]
    assert str(edge - 1) in refused["error"]["message"]
    assert home.json("list")["images"] == []
    assert home.json("info")["revision"] == 1
    configure(home, {key: edge})
    assert home.json("publish", image, *options)["images"][0]["status"] == "published"


def stated(home: Shell, image: str, key: str, limit: int) -> int:
    """Return how much the image has by the error that refuses it: more than its layers say."""
    configure(home, {key: limit})
    message = home.json("publish", image, code=4)["images"][0]["error"]["message"]
    return int(message.partition(" has ")[2].partition(" ")[0])


def test_the_bytes_of_an_image(home: Shell, registry: FakeRegistry) -> None:
    image = add(registry, one_file("a", 5000), one_file("b", 5000))
    edge = stated(home, image, "image_bytes", 1)
    assert edge >= 10_000
    assert_edge(home, image, "image_bytes", edge)


def test_the_bytes_of_a_layer(home: Shell, registry: FakeRegistry) -> None:
    layer = one_file("a", 50_000)
    assert_edge(home, add(registry, layer), "layer_bytes", len(layer))


def test_the_bytes_of_a_layer_of_holes(home: Shell, registry: FakeRegistry) -> None:
    """What is sparse in the archive is not so for those who read it."""
    assert_edge(home, add(registry, sparse_layer("pax")), "layer_bytes", 11 * 1024 * 1024 + 3)


def test_the_entries_of_a_layer(home: Shell, registry: FakeRegistry) -> None:
    """Also of what a later layer removes: it has to be read first."""
    many, white = Tar(), Tar()
    many.directory("d")
    for number in range(200):
        many.file(f"d/{number}", b"")
    white.file(".wh.d", b"")
    assert_edge(home, add(registry, many.done(), white.done()), "entries", 201)


def test_the_entries_of_an_image(home: Shell, registry: FakeRegistry) -> None:
    layers = []
    for half in ("a", "b"):
        tar = Tar()
        for number in range(100):
            tar.file(f"{half}{number}", b"")
        layers.append(tar.done())
    image = add(registry, *layers)
    edge = stated(home, image, "entries", 150)
    assert edge >= 200
    assert_edge(home, image, "entries", edge)


def test_the_entries_of_all_layers(home: Shell, registry: FakeRegistry) -> None:
    """One layer many times: reading it is work once, stacking it each time."""
    tar = Tar()
    for number in range(70):
        tar.file(str(number), b"")
    image = add(registry, *[tar.done()] * 31)
    configure(home, {"entries": 216})
    error = home.json("publish", image, code=4)["images"][0]["error"]
    assert (
        "2170 entries in all of its layers; at most 10 times the limit of 216" in (error["message"])
    )
    assert "`limits.entries`" in error["hint"]
    configure(home, {"entries": 217})
    assert home.json("publish", image)["images"][0]["status"] == "published"


def test_all_layers_are_weighed_before_the_last_is_read(
    home: Shell, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand layers, each within the limits, would fill the memory before they are stacked."""
    monkeypatch.setattr("cvmfs_publish.layers.fetch.READERS", 1)
    layers = []
    for number in range(30):
        tar = Tar()
        for each in range(10):
            tar.file(f"{number}-{each}", b"", xattrs={"user.x": b"x" * 1000})
        layers.append(tar.done())
    image = add(registry, *layers)
    configure(home, {"entries": 10})
    error = home.json("publish", image, code=4)["images"][0]["error"]
    assert "110 entries in all of its layers" in error["message"]
    blobs = registry.count("GET", "/blobs/")
    assert blobs < 20
    configure(home, {"entries": 400})
    with monkeypatch.context() as patch:
        patch.setattr("cvmfs_publish.publish.METADATA", 200_000)
        error = home.json("publish", image, code=4)["images"][0]["error"]
        assert (
            "bytes of names, link targets and attributes in all of its layers" in error["message"]
        )
    assert registry.count("GET", "/blobs/") < blobs + 20
    assert home.json("info")["revision"] == 1
    assert home.json("publish", image)["images"][0]["status"] == "published"


@pytest.mark.parametrize("letter", ["x", "ä"])
def test_the_length_of_a_path(home: Shell, registry: FakeRegistry, letter: str) -> None:
    path = "/".join([letter * 100] * 5)
    assert_edge(home, add(registry, one_file(path, 1)), "path_bytes", len(path.encode()))


def test_the_length_of_a_path_that_two_layers_make(home: Shell, registry: FakeRegistry) -> None:
    """The second layer's own paths are short; a link of the first leads them far down."""
    far = "/".join(["y" * 100] * 4)
    first = Tar()
    first.directory(far)
    first.symlink("s", far)
    path = f"{far}/{'z' * 50}"
    image = add(registry, first.done(), one_file(f"s/{'z' * 50}", 1))
    assert_edge(home, image, "path_bytes", len(path))


def test_the_depth_of_a_path(home: Shell, registry: FakeRegistry) -> None:
    assert_edge(home, add(registry, one_file("/".join("abcdefghijklmnop"), 1)), "path_depth", 16)


def test_the_depth_of_a_path_that_two_layers_make(home: Shell, registry: FakeRegistry) -> None:
    far = "/".join("abcdefghijklmno")
    first = Tar()
    first.directory(far)
    first.symlink("s", far)
    assert_edge(home, add(registry, first.done(), one_file("s/z", 1)), "path_depth", 16)


def test_the_compression_ratio(
    home: Shell, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "RATIO_FREE", 0)  # below, a real layer is not looked at
    layer = one_file("a", 1_000_000)
    image = add(registry, layer)
    packed = len(next(data for data in registry.blobs.values() if data[:2] == b"\x1f\x8b"))
    assert_edge(home, image, "compression_ratio", -(-len(layer) // packed))


def test_the_size_of_a_manifest(home: Shell, registry: FakeRegistry) -> None:
    image = add(registry, one_file("a", 1))
    (body,) = [body for _, body in registry.manifests.values()]
    assert_edge(home, image, "manifest_bytes", len(body))


def test_the_size_of_an_index(home: Shell, registry: FakeRegistry) -> None:
    digest = registry.add_image("a/b", [one_file("a", 1)], tag="")
    extra = [{**registry.describe("a/b", digest), "annotations": {"x": "y" * 2000}}]
    index = registry.add_index("a/b", {"linux/amd64": digest}, tag="1", extra=extra)
    _, body = registry.manifests["a/b", str(index)]
    assert_edge(home, registry.name("a/b", "1"), "manifest_bytes", len(body))


def test_the_size_of_a_configuration(home: Shell, registry: FakeRegistry) -> None:
    labels = {"config": {"Labels": {"x": "y" * 3000}}}
    image = add(registry, one_file("a", 1), config=labels)
    (edge,) = [len(data) for data in registry.blobs.values() if b"rootfs" in data]
    assert_edge(home, image, "config_bytes", edge)


@pytest.mark.parametrize(
    ("key", "kind"), [("manifest_bytes", "layers"), ("config_bytes", "rootfs")]
)
def test_the_documents_of_an_archive(home: Shell, key: str, kind: str) -> None:
    layout = home.cwd / "layout"
    labels = {"Labels": {"x": "y" * 5000}} if key == "config_bytes" else {}
    layers = [one_file(f"file-{number}", 1) for number in range(9)]
    write_oci_layout(layout, layers, labels, tag="1", compression="none")
    found = [path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()]
    (edge,) = [len(data) for data in found if data[:1] == b"{" and f'"{kind}":'.encode() in data]
    assert_edge(home, "oci:layout:1", key, edge, "--as", "example.org/a/b:1")
