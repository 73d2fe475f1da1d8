"""However contents are stored, both judges accept it, and what comes out is what went in."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.objects import Compression
from cvmfs_publish.repository.export import export_tree
from cvmfs_publish.repository.native.repository import NativeOptions
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.support import Site, assert_sound, site

MiB = 1024 * 1024
NOISE = random.Random(7).randbytes(3 * MiB)
TEXT = "".join(f"{number:x} lines of prose\n" for number in range(150_000)).encode()
FILES = {
    "empty": b"",
    "small": b"a little text\n",
    "text": TEXT[: 200 * 1024],
    "binary": bytes(range(256)) * 400,
    "noise": NOISE[: 64 * 1024],
    "large": NOISE + TEXT,  # two chunks, of which one cannot be compressed
}


def archive(files: dict[str, bytes]) -> bytes:
    tar = Tar()
    for name, data in files.items():
        tar.file(name, data)
    return tar.done()


def assert_exported(target: Site, sandbox: str, folder: Path, files: dict[str, bytes]) -> None:
    """A job would read these bytes."""
    with target.repository.snapshot() as snapshot:
        for name, data in files.items():
            assert b"".join(snapshot.iter_file(f"{sandbox.strip('/')}/{name}")) == data
        export_tree(snapshot, sandbox.strip("/"), folder)
    assert {name: (folder / name).read_bytes() for name in files} == files


@pytest.mark.parametrize("algorithm", HashAlgorithm)
@pytest.mark.parametrize("compression", Compression)
def test_every_way_of_storing_is_sound_and_is_read_back(
    tmp_path: Path, compression: Compression, algorithm: HashAlgorithm
) -> None:
    with FakeRegistry() as registry, site(tmp_path, algorithm) as target:
        target.reopen(NativeOptions(compression=compression))
        registry.add_image("a/one", layers=[archive(FILES)], tag="1")
        publication = target.publish(f"{registry.host}/a/one:1").images[0].publication
        assert publication is not None
        assert_sound(target)
        assert_exported(target, publication.sandbox, tmp_path / "out", FILES)
        with target.repository.snapshot() as snapshot:
            for name, data in FILES.items():
                row = snapshot.lookup(f"{publication.sandbox.strip('/')}/{name}")
                assert row is not None
                content = row.node.content
                assert content is not None
                assert content.compressed == (compression is not Compression.NONE)
                stored = {Compression.NONE: data, Compression.ZLIB: zlib.compress(data, 6)}
                if compression in stored and name != "large":
                    expected = ContentHash.of(stored[compression], algorithm)
                    assert content.hash == expected
                    path = target.storage / expected.path(Suffix.DATA)
                    assert path.read_bytes() == stored[compression]


def test_what_is_stored_stays_as_it_is_when_the_setting_changes(tmp_path: Path) -> None:
    common, contents = archive(FILES), dict(FILES)
    with FakeRegistry() as registry, site(tmp_path) as target:
        folders = {}
        for number, compression in enumerate((Compression.NONE, *Compression, Compression.NONE)):
            target.reopen(NativeOptions(compression=compression))
            own = {f"own{number}": f"of image {number}\n".encode() * 9}
            registry.add_image(f"a/{number}", layers=[common, archive(own)], tag="1")
            image = target.publish(f"{registry.host}/a/{number}:1").images[0]
            assert image.publication is not None
            assert image.layers_reused == (number > 0)
            assert_sound(target)
            folders[number] = (image.publication.sandbox, contents | own)
        for number, (sandbox, files) in folders.items():
            assert_exported(target, sandbox, tmp_path / f"out{number}", files)
        with target.repository.snapshot() as snapshot:
            content = []
            for number, (sandbox, _) in folders.items():
                row = snapshot.lookup(f"{sandbox.strip('/')}/own{number}")
                assert row is not None
                assert row.node.content is not None
                content.append(row.node.content.compressed)
            assert content == [False, True, True, True, False, False]


@pytest.mark.parametrize("compression", Compression)
def test_certificate_and_metainfo_are_always_exactly_zlib(
    tmp_path: Path, compression: Compression
) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        target.reopen(NativeOptions(compression=compression))
        registry.add_image("a/one", layers=[archive(FILES)], tag="1")
        target.publish(f"{registry.host}/a/one:1")
        for kind in (Suffix.CERTIFICATE, Suffix.METAINFO):
            found = list(target.storage.glob(f"data/??/*{kind.value}"))
            assert found
            for path in found:
                stored = path.read_bytes()
                assert zlib.compress(zlib.decompress(stored), 6) == stored
