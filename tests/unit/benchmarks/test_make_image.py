from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from pathlib import Path

import pytest

from benchmarks.make_image import Image, make_image, read_image
from benchmarks.material import KINDS, MATERIALS, SMALL_FILE, Content, Material
from benchmarks.reference import compute_stored_bytes, read_stored_bytes
from benchmarks.shape import OPAQUE, WHITEOUT, Kind, Member, describe, flatten, plan_image

TINY = 0.002  # about 200 entries, 6 MB


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return make_image(tmp_path_factory.mktemp("image") / "first", TINY, processes=1)


@pytest.fixture(scope="module")
def material() -> Material:
    return Material.make(seed=1, scale=TINY)


def test_the_same_arguments_give_the_same_bytes(image: Image, tmp_path: Path) -> None:
    again = make_image(tmp_path / "again", TINY, processes=2)
    assert again.blobs == image.blobs
    for name in ("index.json", "oci-layout", "image.json"):
        assert (again.directory / name).read_bytes() == (image.directory / name).read_bytes()


def test_another_seed_gives_other_layers(image: Image, tmp_path: Path) -> None:
    other = make_image(tmp_path / "other", TINY, seed=2, processes=1)
    assert not {blob.diff_id for blob in other.blobs} & {blob.diff_id for blob in image.blobs}


def test_a_finished_image_is_reused(image: Image) -> None:
    index = image.directory / "index.json"
    before = index.stat().st_mtime_ns
    assert make_image(image.directory, TINY, processes=1) == image
    assert index.stat().st_mtime_ns == before


def test_an_unfinished_image_is_made_anew(tmp_path: Path) -> None:
    made = make_image(tmp_path / "image", TINY, processes=1)
    (made.directory / "image.json").unlink()
    assert read_image(made.directory) is None
    assert make_image(made.directory, TINY, processes=1) == made


def test_a_damaged_image_is_not_taken_for_finished(tmp_path: Path) -> None:
    made = make_image(tmp_path / "image", TINY, processes=1)
    blob = made.directory / "blobs" / made.blobs[0].digest.replace(":", "/")
    blob.write_bytes(blob.read_bytes()[:-1])
    assert read_image(made.directory) is None


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not remove")
    with pytest.raises(FileExistsError, match="not empty"):
        make_image(tmp_path, TINY, processes=1)
    assert (tmp_path / "thesis.tex").exists()


def test_digests_and_sizes_are_those_of_the_files(image: Image) -> None:
    blobs = image.directory / "blobs/sha256"
    for path in blobs.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    for blob in image.blobs:
        packed = (blobs / blob.digest.removeprefix("sha256:")).read_bytes()
        tar = zlib.decompress(packed, 31)
        assert f"sha256:{hashlib.sha256(tar).hexdigest()}" == blob.diff_id
        assert (len(packed), len(tar)) == (blob.size, blob.tar_size)


def test_the_update_is_the_base_and_one_layer_more(image: Image) -> None:
    blobs = image.directory / "blobs"
    index = json.loads((image.directory / "index.json").read_text())
    layers = {}
    for entry in index["manifests"]:
        manifest = json.loads((blobs / entry["digest"].replace(":", "/")).read_bytes())
        name = entry["annotations"]["org.opencontainers.image.ref.name"]
        layers[name] = [layer["digest"] for layer in manifest["layers"]]
        config = json.loads((blobs / manifest["config"]["digest"].replace(":", "/")).read_bytes())
        diff_ids = [blob.diff_id for blob in image.blobs[: len(layers[name])]]
        assert config["rootfs"]["diff_ids"] == diff_ids
    assert layers["base"] == [blob.digest for blob in image.blobs[:4]]
    assert layers["update"] == [blob.digest for blob in image.blobs]


def test_every_member_of_the_plan_is_in_its_layer(image: Image) -> None:
    for blob, members in zip(image.blobs, plan_image(TINY), strict=True):
        with tarfile.open(image.directory / "blobs" / blob.digest.replace(":", "/")) as archive:
            found = {member.name: member for member in archive}
        assert list(found) == [member.path for member in members]
        for member in members:
            if member.kind is Kind.FILE:
                assert found[member.path].size == member.size
            if member.kind in (Kind.SYMLINK, Kind.HARD_LINK):
                assert found[member.path].linkname == member.link


@pytest.mark.slow
def test_the_shape_is_that_of_the_real_image() -> None:
    layers = plan_image()
    shape = describe(flatten(layers[:4]))
    assert shape.entries == pytest.approx(72_308, rel=0.005)
    assert shape.files == pytest.approx(64_584, rel=0.005)
    assert shape.total_bytes == pytest.approx(2_315_886_350, rel=0.01)
    assert shape.median == pytest.approx(2_300, rel=0.05)
    assert shape.percentile_90 == pytest.approx(29_000, rel=0.05)
    assert shape.largest == pytest.approx(434e6, rel=0.01)
    assert 3 <= shape.above_100_mb <= 6
    assert shape.symlinks == pytest.approx(2_000, rel=0.05)
    assert shape.hard_links >= 300


def test_a_small_image_has_the_same_percentiles() -> None:
    shape = describe(flatten(plan_image(0.1)[:4]))
    assert shape.files == pytest.approx(6_458, rel=0.02)
    assert shape.median == pytest.approx(2_300, rel=0.1)
    assert shape.percentile_90 == pytest.approx(29_000, rel=0.15)
    assert shape.total_bytes == pytest.approx(231_588_635, rel=0.1)


def test_the_update_layer_has_200_small_files() -> None:
    files = [member for member in plan_image(0.05)[4] if member.kind is Kind.FILE]
    assert len(files) == 200
    assert max(file.size for file in files) < 64 * 1024


def test_hard_links_lead_to_files_that_are_there_when_they_are_read() -> None:
    layers = plan_image(0.1)
    across = 0
    for number, members in enumerate(layers):
        below = flatten(layers[:number])
        hidden = set(below) - set(flatten([*layers[:number], members]))
        own = {member.path for member in members if member.kind is Kind.FILE}
        for member in members:
            if member.kind is Kind.HARD_LINK:
                assert member.link in own or (member.link in below and member.link not in hidden)
                across += member.link not in own
    assert across >= 4


def test_whiteouts_remove_something_of_a_lower_layer() -> None:
    layers = plan_image(0.05)
    opaque = directories = files = 0
    for number, members in enumerate(layers):
        below = flatten(layers[:number])
        for member in members:
            if member.kind is not Kind.WHITEOUT:
                continue
            directory, _, name = member.path.rpartition("/")
            gone = directory if name == OPAQUE else f"{directory}/{name.removeprefix(WHITEOUT)}"
            assert gone in below
            opaque += name == OPAQUE
            directories += name != OPAQUE and below[gone].kind is Kind.DIRECTORY
            files += below[gone].kind is Kind.FILE
    assert (opaque, directories) == (1, 1)
    assert files >= 4


def test_flattening_hides_what_lower_layers_had_and_keeps_what_the_same_layer_adds() -> None:
    def directory(path: str) -> Member:
        return Member(path, Kind.DIRECTORY)

    def whiteout(path: str) -> Member:
        return Member(path, Kind.WHITEOUT)

    lower = [directory("a"), Member("a/x", Kind.FILE), directory("a.b"), directory("c")]
    lower += [Member("c/y", Kind.FILE), Member("d", Kind.FILE)]
    upper = [directory("a"), whiteout(f"a/{OPAQUE}"), Member("a/z", Kind.FILE)]
    upper += [whiteout(f"{WHITEOUT}c"), whiteout(f"{WHITEOUT}d"), Member("d", Kind.SYMLINK)]
    tree = flatten([lower, upper])
    assert {path: member.kind for path, member in tree.items()} == {
        "a": Kind.DIRECTORY,
        "a.b": Kind.DIRECTORY,
        "a/z": Kind.FILE,
        "d": Kind.SYMLINK,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 2_300, SMALL_FILE, SMALL_FILE + 1, 700_001])
def test_a_content_has_its_size_and_is_repeatable(material: Material, kind: str, size: int) -> None:
    content = Content(kind, size, seed=7)
    data = b"".join(material.iter_bytes(content))
    assert len(data) == size
    assert data == b"".join(material.iter_bytes(content))


@pytest.mark.parametrize(
    ("kind", "least", "most"),  # compressed by zlib level 6; ranges of what real files do
    [
        ("python", 0.20, 0.30),
        ("header", 0.18, 0.28),
        ("prose", 0.25, 0.38),
        ("table", 0.20, 0.32),
        ("bytecode", 0.36, 0.48),
        ("elf", 0.27, 0.40),
        ("numbers", 0.20, 0.40),
        ("packed", 0.99, 1.01),
    ],
)
def test_contents_compress_like_real_files(
    material: Material, kind: str, least: float, most: float
) -> None:
    data = b"".join(material.iter_bytes(Content(kind, 1_500_000, seed=3)))
    assert least < len(zlib.compress(data, 6)) / len(data) < most


def test_every_kind_is_made_of_materials_there_are() -> None:
    known = {*MATERIALS, "noise"}
    for shares in KINDS.values():
        assert set(shares) <= known
        assert sum(shares.values()) == pytest.approx(1)


def test_the_reference_counts_every_content_once_and_cuts_large_ones(tmp_path: Path) -> None:
    large = b"".join(number.to_bytes(4, "little") for number in range(1_200_000))
    contents = {"large": large, "small": b"1" * 100, "again": b"1" * 100, "empty": b""}
    path = tmp_path / "layer"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in contents.items():
            source = tmp_path / name
            source.write_bytes(data)
            archive.add(source, name)
    cut = 4 * 1024 * 1024
    expected = [large[:cut], large[cut:], b"1" * 100]
    total = sum(len(zlib.compress(piece, 6)) for piece in expected)
    assert compute_stored_bytes([path, path]) == total


def test_the_reference_is_computed_once(image: Image) -> None:
    digests = [blob.digest for blob in image.blobs[:4]]
    first = read_stored_bytes(image.directory, digests)
    cache = image.directory / "zlib6.json"
    cache.write_text(json.dumps({" ".join(digests): first + 1}))
    assert read_stored_bytes(image.directory, digests) == first + 1
    cache.unlink()
