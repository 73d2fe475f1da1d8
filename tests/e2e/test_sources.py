"""The same image from everywhere, through the tools that people use, and what runs of it then."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from cvmfs_publish.layers.fetch import fetch_layers
from cvmfs_publish.layers.read import LayerLimits
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.publish import ImageResult, Publisher, PublishSettings
from cvmfs_publish.repository.export import export_tree
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.sandbox.runtime_files import BASE, LINKS
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.objectstore import S3Access, SwiftAccess
from cvmfs_publish.sources.transports import Sources
from cvmfs_publish.verify import Hashing
from tests import images, parts
from tests.archives import oci_archive
from tests.e2e.test_compare_umoci import ADDED
from tests.fakes.registry import TYPES, FakeRegistry, pack
from tests.layouts import manifest_digest, read_blob
from tests.s3 import S3Bucket, S3Server
from tests.s3_swift import swift_server
from tests.sources import open_sources
from tests.support import Site, assert_sound, site

pytestmark = pytest.mark.parts

Tree = dict[bytes, dict[str, Any]]
SKOPEO = ["skopeo", "--insecure-policy", "copy", "--quiet"]
DEFINITION = """Bootstrap: oci
From: {layout}

%environment
    export OWN='it is $HOME'

%runscript
    echo "the runscript: $OWN"

%labels
    maker somebody
"""


@dataclass
class Stand:
    """A repository and everything that images come from."""

    folder: Path
    target: Site
    sources: Sources

    def publish(self, *texts: str, name: str = "", **options: Any) -> list[ImageResult]:  # noqa: ANN401
        publisher = Publisher(
            self.target.repository,
            self.sources,
            RecordStore(self.target.state / "layers", self.target.algorithm),
            PublishSettings(),
        )
        names = dict.fromkeys(texts, name) if name else {}
        result = publisher.publish(texts, names=names, now=datetime.now(UTC), **options)
        return list(result.images)

    def published(self, text: str, name: str = "") -> Publication:
        """Publish an image; return its record."""
        (result,) = self.publish(text, name=name)
        assert result.error is None, (result.error, result.error.hint)
        assert result.publication is not None
        return result.publication

    def tree(self, text: str, name: str = "") -> Tree:
        """Publish an image; return what the judge reads of it."""
        return self.target.published_tree(self.published(text, name).sandbox, self.folder)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with site(tmp_path) as target, open_sources(scratch) as sources:
        yield Stand(tmp_path, target, sources)


def make_sif(folder: Path, source: str) -> Path:
    """Let Apptainer build a SIF of a source, or by a definition file."""
    sif = folder / "image.sif"
    scratch = folder / "apptainer"
    scratch.mkdir()
    environ = {**os.environ, "HOME": str(scratch), "APPTAINER_TMPDIR": str(scratch)}
    parts.run([parts.require("apptainer"), "build", "--disable-cache", sif, source], env=environ)
    shutil.rmtree(scratch)
    return sif


# ---------------------------------------------------------------- one image through everything

# What the publisher adds to a sandbox has the time that the image's configuration gives
OURS = {path.encode() for path in (*ADDED, *LINKS, BASE, ".cvmfscatalog")}
# Directories that no layer of the image describes: whoever unpacks makes them, at that moment
IMPLIED = {b"abs", b"implied", b"implied/by", b"implied/by/a"}
FIELDS = ("type", "mode", "uid", "gid", "size", "mtime", "mtimens", "target", "sha256", "xattrs")


def is_ours(path: bytes) -> bool:
    return path in OURS or path.startswith(BASE.encode() + b"/")


def is_odd_time(path: bytes) -> bool:
    return path.startswith(b"kinds/mtime ") or path == b"lower/gone"


# The only differences there may be: through what, where, in which fields, and why.
ALLOWED: list[tuple[set[str], Callable[[bytes], bool], set[str], str]] = [
    ({"tar", "sif"}, is_ours, {"mtime"}, "no configuration of the image says when it was made"),
    ({"tar"}, lambda path: path in IMPLIED, {"mtime", "mtimens"}, "umoci unpacked it just now"),
    ({"tar"}, lambda path: path == b"ch/environment", {"size", "sha256"}, "a tar has no variables"),
    ({"tar"}, lambda path: path.startswith(BASE.encode() + b"/"), {"size", "sha256"},
     "a tar has no configuration: no variables, no command, no labels"),
    ({"sif"}, lambda path: path.startswith(BASE.encode() + b"/"),
     {"type", "mode", "size", "sha256", "target"}, "Apptainer wrote its own"),
    ({"sif"}, lambda path: path in IMPLIED, {"mtime", "mode"}, "Apptainer unpacked it just now"),
    ({"sif"}, lambda path: path == b"", {"mtime"}, "Apptainer wrote into the root"),
    ({"sif"}, lambda path: path in {b"tmp", b"var/tmp"}, {"mode"}, "Apptainer makes them 0755"),
    ({"sif"}, is_odd_time, {"mtime", "mtimens"}, "squashfs has 32 bits of seconds, no fractions"),
]  # fmt: skip


def uncovered(kind: str, base: Tree, found: Tree, used: set[int]) -> dict[bytes, object]:
    """Return every difference that `ALLOWED` does not cover; note the rows that were needed."""
    left: dict[bytes, object] = {}
    for path in base.keys() | found.keys():
        here, there = base.get(path), found.get(path)
        if here is None or there is None:
            differing = {"type"}
        else:
            differing = {name for name in FIELDS if here.get(name) != there.get(name)}
        for number, (kinds, matches, fields, _) in enumerate(ALLOWED):
            if kind in kinds and matches(path) and differing & fields:
                differing -= fields
                used.add(number)
        if differing:
            left[path] = (here, there)
    return left


def push(registry: FakeRegistry, compress: str, config: bytes, layers: Sequence[bytes]) -> None:
    """Put an image there whose configuration is the same to the byte."""
    types = TYPES["oci"]
    document = {
        "schemaVersion": 2,
        "mediaType": types["manifest"],
        "config": registry.add_blob(config, types["config"]),
        "layers": [registry.add_blob(pack(layer, compress), types[compress]) for layer in layers],
    }
    registry.add_manifest("a/b", document, types["manifest"], tag=compress)


def test_one_root_file_system_is_published_the_same_from_everywhere(stand: Stand) -> None:
    """Through registry (gzip, zstd), both archives, a SIF file and a flat tar."""
    if os.geteuid() != 0:
        parts.missing("root, without which nobody can unpack owners,")
    folder = stand.folder
    layout = images.hostile_but_legal_image(folder / "layout")
    manifest = json.loads(read_blob(layout, manifest_digest(layout)))
    config = read_blob(layout, manifest["config"]["digest"])
    layers = [gzip.decompress(read_blob(layout, each["digest"])) for each in manifest["layers"]]
    for transport in ("oci-archive", "docker-archive"):
        target = f"{transport}:{folder}/{transport}.tar:example.org/a/{transport}:1"
        parts.run([*SKOPEO, f"oci:{layout}:latest", target])
    root = images.umoci_unpack(layout)
    parts.run(
        ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=pax",
         "-C", root, "-cf", folder / "flat.tar", "."]
    )  # fmt: skip
    sif = make_sif(folder, f"oci-archive:{folder}/oci-archive.tar")
    made: dict[str, Publication] = {}
    with FakeRegistry() as registry:
        for compress in ("gzip", "zstd"):
            push(registry, compress, config, layers)
            made[compress] = stand.published(registry.name("a/b", compress))
    for transport in ("oci-archive", "docker-archive"):
        made[transport] = stand.published(f"{transport}:{folder}/{transport}.tar")
    # Read anew each time, as other layers; the tree is compared with what is there before a name
    # leads to it
    assert len({each.layers for each in made.values()}) >= 3
    assert len({(each.image_id, each.tree_digest) for each in made.values()}) == 1
    made["tar"] = stand.published(f"tar:{folder}/flat.tar", name="example.org/a/tar:1")
    made["sif"] = stand.published(f"sif:{sif}", name="example.org/a/sif:1")
    trees = {
        kind: stand.target.published_tree(made[kind].sandbox, folder)
        for kind in ("gzip", "tar", "sif")
    }
    base, used = trees.pop("gzip"), set[int]()
    assert len(base) > 200
    found = {kind: uncovered(kind, base, tree, used) for kind, tree in trees.items()}
    assert found == {kind: {} for kind in trees}
    unneeded = [why for number, (_, _, _, why) in enumerate(ALLOWED) if number not in used]
    assert unneeded == []
    assert_sound(stand.target)


# ---------------------------------------------------------------- archives of real tools


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    return images.tiny_image(folder / "layout", config={"Env": ["A=it's"], "Cmd": ["/bin/id"]})


def with_skopeo(layout: Path, folder: Path) -> Mapping[str, str]:
    made = {}
    for transport in ("oci", "oci-archive", "docker-archive"):
        place = f"{transport}:{folder}/skopeo-{transport}:example.org/a/b:1"
        if transport == "oci":
            place = f"{transport}:{folder}/skopeo-{transport}:1"
        parts.run([*SKOPEO, f"oci:{layout}:latest", place])
        made[f"skopeo {transport}"] = place.removesuffix(":example.org/a/b:1")
    return made


def with_podman(layout: Path, folder: Path) -> Mapping[str, str]:
    """podman, and with it buildah's library, loads an archive and saves it in its own ways."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # podman takes at most 50 characters
        return save_with_podman(layout, folder, short)


def save_with_podman(layout: Path, folder: Path, short: str) -> Mapping[str, str]:
    program = parts.require("podman")
    places = ["--root", f"{short}/root", "--runroot", f"{short}/run", "--storage-driver", "vfs"]
    podman: list[str | Path] = [program, *places]
    archive = oci_archive(folder / "loaded.tar", layout)
    answer = parts.run([*podman, "load", "--quiet", "--input", archive])
    loaded = answer.stdout.decode().split()[-1]
    parts.run([*podman, "tag", loaded, "example.org/a/b:1"])
    made = {}
    for form in ("oci-archive", "docker-archive", "oci-dir"):
        place = folder / f"podman-{form}"
        parts.run([*podman, "save", "--quiet", "--format", form, "-o", place, "example.org/a/b:1"])
        transport = "oci" if form == "oci-dir" else form
        made[f"podman {form}"] = f"{transport}:{place}"
    parts.run([*podman, "rmi", "--all", "--force"])
    return made


def with_umoci(layout: Path, folder: Path) -> Mapping[str, str]:
    """umoci writes layouts; their tars are oci-archives, packed in every way."""
    again = folder / "umoci"
    shutil.copytree(layout, again)
    parts.run(["umoci", "config", "--image", f"{again}:latest", "--config.label", "made=again"])
    made = {"umoci": f"oci:{again}:latest"}
    for option, suffix in {"-cf": "tar", "-czf": "tgz", "-cJf": "txz", "--zstd -cf": "zst"}.items():
        archive = folder / f"umoci.{suffix}"
        parts.run(["tar", "-C", again, *option.split(), archive, "."])
        made[f"umoci {suffix}"] = f"oci-archive:{archive}"
    return made


@pytest.mark.parametrize("tool", [with_skopeo, with_podman, with_umoci])
def test_archives_of_real_tools_are_what_they_were_made_of(
    stand: Stand, layout: Path, tool: Callable[[Path, Path], Mapping[str, str]]
) -> None:
    folder = stand.folder / "archives"
    folder.mkdir()
    base = stand.tree(f"oci:{layout}", name="example.org/base:1")
    for what, text in tool(layout, folder).items():
        tree = stand.tree(text, name="example.org/other:1")
        left = {
            path: (base.get(path), tree.get(path))
            for path in base.keys() | tree.keys()
            # labels, and where the configuration is kept byte for byte
            if not path.endswith((b"labels.json", b"oci-config.json"))
            and any(base[path].get(name) != tree[path].get(name) for name in FIELDS)
        }
        assert left == {}, what


# ---------------------------------------------------------------- SIF files of Apptainer


def test_what_the_author_of_a_sif_wrote_survives_and_runs(
    stand: Stand, layout: Path, shared_tmp: Path
) -> None:
    definition = DEFINITION.format(layout=layout)
    (stand.folder / "definition").write_text(definition)
    sif = make_sif(stand.folder, str(stand.folder / "definition"))
    name = "example.org/a/sif:1"
    (result,) = stand.publish(f"sif:{sif}", name=name)
    assert result.error is None
    assert result.publication is not None
    with stand.target.repository.open() as view:
        manifest = json.loads(view.read_file(f".metadata/{name}/manifest.json") or b"")
        base = f"{result.publication.sandbox.strip('/')}/.singularity.d"
        runscript = view.read_file(f"{base}/runscript") or b""
        labels = json.loads(view.read_file(f"{base}/labels.json") or b"")
        environment = view.read_file(f"{base}/env/90-environment.sh") or b""
        kept = view.read_file(f"{base}/Singularity") or b""
    assert b'echo "the runscript: $OWN"' in runscript
    assert labels["maker"] == "somebody"
    assert b"OWN='it is $HOME'" in environment
    assert kept == definition.encode()
    annotations = manifest["annotations"]
    assert annotations["sif.deffile"] == definition
    assert "the runscript" in annotations["sif.runscript"]
    sandbox = shared_tmp / "exported"
    with stand.target.repository.snapshot() as snapshot:
        export_tree(snapshot, result.publication.sandbox.strip("/"), sandbox)
    ran = parts.run_as_test_user([parts.require("apptainer"), "run", sandbox], check=True, cwd="/")
    assert ran.stdout == b"the runscript: it is $HOME\n"


def test_every_compression_of_squashfs_is_read(stand: Stand, layout: Path) -> None:
    root = images.umoci_unpack(layout, bundle=stand.folder / "bundle")
    found = []
    for compression in ("gzip", "xz", "zstd", "lz4", "lzo"):
        squashfs = stand.folder / f"image.{compression}"
        parts.run(["mksquashfs", root, squashfs, "-comp", compression, "-quiet", "-no-progress"])
        reference = stand.sources.locate(f"sif:{squashfs}", "example.org/squashfs:1")
        image = stand.sources.resolve(reference, Platform.default())
        records = fetch_layers(
            stand.sources, image, image.layers, Hashing(), LayerLimits(), report=lambda *_: None
        )
        found.append(records[image.layers[0].digest].entries)
    busybox = hashlib.sha256((root / "bin/busybox").read_bytes()).digest()
    hashes = {
        entry.path: entry.node.content.hash.digest
        for entry in found[0]
        if entry.node is not None and entry.node.content is not None and entry.node.content.hash
    }
    assert hashes["bin/busybox"] == busybox
    assert found == found[:1] * 5


def test_an_encrypted_sif_is_refused(stand: Stand, layout: Path) -> None:
    """Without the programs to encrypt one here, a file that says so is as good."""
    sif = make_sif(stand.folder, f"oci:{layout}")
    data = bytearray(sif.read_bytes())
    at = data.index(b"\x01\x00\x00\x00\x02\x00\x00\x0002\x00")  # squashfs, primary system, amd64
    data[at] = 5
    sif.write_bytes(data)
    (result,) = stand.publish(f"sif:{sif}", name="example.org/a/b:1")
    assert result.error is not None
    assert result.error.exit_code == 2
    assert "is encrypted" in str(result.error)


# ---------------------------------------------------------------- from servers


def test_a_sif_that_apptainer_pushed_is_published(stand: Stand, layout: Path) -> None:
    sif = make_sif(stand.folder, f"oci:{layout}")
    with parts.docker_registry(stand.folder) as server:
        home = stand.folder / "home"
        home.mkdir()
        there = f"oras://{server.host}/group/image:1"
        parts.run(
            [parts.require("apptainer"), "push", "--no-https", "--allow-unsigned", sif, there],
            env={**os.environ, "HOME": str(home)},
        )
        pushed = stand.tree(there)
        (again,) = stand.publish(there)
        assert again.status == "unchanged"
        assert again.reference == f"{server.host}/group/image:1"
    local = stand.tree(f"sif:{sif}", name="example.org/a/sif:1")
    assert {path: entry["sha256"] for path, entry in pushed.items()} == {
        path: entry["sha256"] for path, entry in local.items()
    }


def test_objects_are_fetched_from_s3_and_from_swift(
    stand: Stand, layout: Path, bucket: S3Bucket, s3_server: S3Server
) -> None:
    data = make_sif(stand.folder, f"oci:{layout}").read_bytes()
    bucket.put("image.sif", data)
    keys = {"access_key": s3_server.access_key, "secret_key": s3_server.secret_key}
    s3 = S3Access(s3_server.url, **keys)  # type: ignore[arg-type]  # texts
    folder = stand.folder / "swift"
    with swift_server(folder) as server:
        swift = SwiftAccess(f"{server.url}/auth/v1.0", server.access_key, server.secret_key)
        url = put_into_swift(swift, "images/a b/image.sif", data, stand.folder)
        with open_sources(stand.folder / "scratch", s3=s3, swift=swift) as sources:
            other = Stand(stand.folder, stand.target, sources)
            for text in (
                f"s3://{bucket.name}/{bucket.prefix}/image.sif",
                "swift://images/a b/image.sif",
                temporary(url),
            ):
                name = f"example.org/{text.partition(':')[0]}/image:1"
                record = other.published(text, name)
                assert "temp_url" not in record.source
                assert record.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
                (again,) = other.publish(text, name=name)
                assert again.status == "unchanged"
    assert_sound(stand.target)


TEMPORARY_KEY = "key of temporary URLs"


def put_into_swift(swift: SwiftAccess, place: str, data: bytes, folder: Path) -> str:
    """Log in and write an object with curl, as the manual of Swift says; return its URL."""
    curl = ["curl", "-sS", "-f"]
    names = ["-H", f"X-Auth-User: {swift.user}", "-H", f"X-Auth-Key: {swift.key}"]
    lines = parts.run([*curl, "-i", *names, swift.auth_url]).stdout.decode().splitlines()
    answer = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    curl += ["-H", f"X-Auth-Token: {answer['x-auth-token']}"]
    storage, (container, _, name) = answer["x-storage-url"], place.partition("/")
    url = f"{storage}/{container}/{name.replace(' ', '%20')}"
    (folder / "object").write_bytes(data)
    key = f"X-Account-Meta-Temp-URL-Key: {TEMPORARY_KEY}"
    parts.run([*curl, "-X", "POST", "-H", key, storage])
    parts.run([*curl, "-X", "PUT", f"{storage}/{container}"])
    parts.run([*curl, "-T", folder / "object", url])
    return url


def temporary(url: str) -> str:
    """Sign a URL as Swift's manual says, "Temporary URL middleware"."""
    expires = int(time.time()) + 600
    path = unquote(urlsplit(url).path)
    text = f"GET\n{expires}\n{path}"
    signature = hmac.new(TEMPORARY_KEY.encode(), text.encode(), "sha256").hexdigest()
    return f"{url}?temp_url_sig={signature}&temp_url_expires={expires}"


def test_what_bootstraps_a_debian_is_published_as_it_is(stand: Stand) -> None:
    """The first layer of the tests' Debian is the tar that mmdebstrap wrote."""
    layout = images.debian_image(stand.folder / "debian")
    manifest = json.loads(read_blob(layout, manifest_digest(layout)))
    rootfs = stand.folder / "rootfs.tar.gz"
    rootfs.write_bytes(read_blob(layout, manifest["layers"][0]["digest"]))
    published = stand.published(f"tar:{rootfs}", name="example.org/debian:12")
    assert published.entries > 1000
    with stand.target.repository.open() as view:
        assert view.read_file(f"{published.sandbox.strip('/')}/etc/debian_version")
    (again,) = stand.publish(f"tar:{rootfs}", name="example.org/debian:12")
    assert again.status == "unchanged"
