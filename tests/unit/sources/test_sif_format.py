"""The header and the table of a SIF file: whatever they say, only what is possible is believed."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.repository.sif import make_frame
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.sif_format import (
    ARCHITECTURES,
    DATA_SIGNATURE,
    DESCRIPTOR,
    HEADER,
    JSON_OBJECT,
    PRIMARY_SYSTEM,
    SQUASHFS,
    Sif,
    parse_sif,
)
from tests.sifs import DATA, DEFFILE, SIGNATURE, TABLE, Object, make_sif, system


def parse(data: bytes) -> Sif:
    file = io.BytesIO(data)

    def read(offset: int, size: int) -> bytes:
        file.seek(offset)
        return file.read(size)

    return parse_sif(read, len(data), "image.sif")


SYSTEM = system(b"hsqs" + bytes(5000))


def test_everything_that_a_file_says_is_read() -> None:
    fingerprint = bytes(range(20))
    found = parse(
        make_sif(
            [
                Object(DEFFILE, b"bootstrap: docker"),
                Object(JSON_OBJECT, b"{}", "oci-config.json"),
                SYSTEM,
                Object(SIGNATURE, b"signed", "part-signature", (1).to_bytes(4, "little")
                       + fingerprint, {"link": 0xF0000001, "group": 0xF0000000}),
            ]
        )
    )  # fmt: skip
    assert found.id == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (found.architecture, found.created) == ("amd64", 1_700_000_000)
    definition, metadata, partition, signature = found.objects
    assert (definition.kind, definition.size, definition.group) == (DEFFILE, 17, 1)
    assert (metadata.name, metadata.link) == ("oci-config.json", 0)
    assert partition.partition == (SQUASHFS, PRIMARY_SYSTEM, "amd64")
    assert partition.offset % 4096 == 0
    assert signature.signature == (1, fingerprint)
    assert (signature.link, signature.group) == (0xF0000001, 0)
    assert found.of_kind(DATA_SIGNATURE) == [signature]
    assert len(signature.raw) == DESCRIPTOR.size
    assert len(found.header) == HEADER.size


def test_what_is_written_here_is_read_here() -> None:
    for architecture in ARCHITECTURES:
        frame = make_frame(100, Platform("linux", architecture), "an image", 5)
        found = parse(frame + bytes(100))
        assert found.architecture == architecture
        assert [each.size for each in found.objects] == [100]


HEADERS: dict[str, dict[str, Any]] = {
    "magic": {"magic": b"SIF_MAGIX"},
    "version": {"version": b"02"},
    "no places": {"total": 0, "free": 0, "table_size": 0},
    "negative places": {"total": -1, "free": -2},
    "very many places": {"total": 1 << 40, "table_size": (1 << 40) * 585},
    "more free than there are": {"free": 49},
    "other count of objects": {"free": 40},
    "negative free": {"free": -1},
    "table outside": {"table": 1 << 40},
    "table at a negative offset": {"table": -4096},
    "table over the header": {"table": 64},
    "table of another size": {"table_size": 585},
    "huge offsets": {"table": (1 << 63) - 1},
}


@pytest.mark.parametrize("lie", sorted(HEADERS))
def test_a_header_that_lies_is_refused(lie: str) -> None:
    with pytest.raises(IntegrityError, match=r"image\.sif"):
        parse(make_sif([SYSTEM], **HEADERS[lie]))


OBJECTS: dict[str, dict[str, Any]] = {
    "behind the end": {"offset": 1 << 40},
    "reaching over the end": {"size": 1 << 40},
    "negative offset": {"offset": -1},
    "negative size": {"size": -1},
    "both huge": {"offset": (1 << 63) - 1, "size": (1 << 63) - 1},
    "over the header": {"offset": 0, "size": 4},
    "over the table": {"offset": TABLE, "size": 4},
    "over another": {"offset": DATA, "size": 10},
    "same number": {"id": 1},
    "number zero": {"id": 0},
}


@pytest.mark.parametrize("lie", sorted(OBJECTS))
def test_an_object_that_lies_is_refused(lie: str) -> None:
    other = Object(DEFFILE, b"bootstrap: docker")
    liar = Object(JSON_OBJECT, b"{}", "liar", b"", OBJECTS[lie])
    with pytest.raises(IntegrityError, match=r"image\.sif"):
        parse(make_sif([other, liar, SYSTEM]))


def test_empty_objects_share_nothing() -> None:
    found = parse(make_sif([Object(DEFFILE, b""), Object(JSON_OBJECT, b""), SYSTEM]))
    assert [each.size for each in found.objects] == [0, 0, 5004]


WHOLE = make_sif([Object(DEFFILE, b"x"), SYSTEM])


@given(st.integers(0, len(WHOLE)))
def test_a_file_that_is_cut_short_is_refused(length: int) -> None:
    if length < len(WHOLE):
        with pytest.raises(IntegrityError):
            parse(WHOLE[:length])


@given(
    st.lists(
        st.tuples(st.integers(0, 127) | st.integers(TABLE, TABLE + 1300), st.integers(0, 255)),
        min_size=1,
        max_size=8,
    )
)
def test_any_bytes_in_header_and_table_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    try:
        found = parse(bytes(data))
    except IntegrityError:
        return
    for each in found.objects:
        assert 0 <= each.offset <= each.offset + each.size <= len(data)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_sif(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse(data)
