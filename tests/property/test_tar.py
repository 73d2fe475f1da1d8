"""The tar reader against Python's `tarfile`, against GNU tar's sparse files, and against noise."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.streams import tar as tars
from cvmfs_publish.streams.compression import DecompressionLimits, LayerStream
from cvmfs_publish.streams.tar import Member, TarReader

FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
KINDS = [
    tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE,
    tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
]  # fmt: skip
READ = 4 * 1024 * 1024  # bytes of content; noise may claim more


def read(data: bytes) -> list[tuple[Member, bytes]]:
    # Compressed, because an archive whose first name begins like a gzip file is taken for one.
    packed = io.BytesIO(gzip.compress(data, 1))
    reader = TarReader(LayerStream(packed, DecompressionLimits(), "test"), "archive test")
    found = []
    for member in reader:
        content = bytearray(min(member.size, READ) if member.kind == tars.FILE else 0)
        reader.readinto(memoryview(content))
        found.append((member, bytes(content)))
    return found


# names: bytes that are not UTF-8, control characters, long ones
PART = st.one_of(
    st.sampled_from([b"a", b".wh.a", b"\xff\xfe", b"new\nline", b" ", b"\xc3\xa4", b"n" * 99,
                     b"n" * 100, b"n" * 156, b"n" * 255, b"-", b"=", b"\x7f", b"~"]),
    st.binary(min_size=1, max_size=9).map(lambda b: b.replace(b"/", b"_").replace(b"\0", b"_")),
)  # fmt: skip
NAME = st.lists(PART, min_size=1, max_size=5).map(b"/".join).map(os.fsdecode)


@st.composite
def members(draw: st.DrawFn, form: str) -> tuple[tarfile.TarInfo, bytes]:
    name = draw(NAME)
    kind = draw(st.sampled_from(KINDS))
    if kind == tarfile.AREGTYPE and len(os.fsencode(name)) >= 100:
        kind = tarfile.REGTYPE  # Python looks for the slash of a directory in the name cut short
    info = tarfile.TarInfo(name)
    info.type = kind
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = draw(NAME)
    info.mode = draw(st.integers(0, 0o7777))
    top = 0o7777777 if form == "ustar" else (1 << 32) - 1
    info.uid, info.gid = draw(st.integers(0, top)), draw(st.integers(0, top))
    if form == "pax":
        info.mtime = draw(
            st.one_of(
                st.integers(-(1 << 40), 1 << 40),
                st.integers(-(10**12), 4 * 10**12).map(lambda t: t / 1024),
            )
        )
    else:
        info.mtime = draw(st.integers(0 if form == "ustar" else -(1 << 40), 0o77777777777))
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 0o777777))
    data = b""
    if kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        data = draw(st.one_of(st.binary(max_size=40), st.sampled_from([512, 513, 1024]).map(bytes)))
        info.size = len(data)
        if form == "pax" and draw(st.booleans()):
            value = os.fsdecode(draw(st.binary(max_size=20)))
            info.pax_headers = {"SCHILY.xattr.user.k": value, "SCHILY.xattr.user.a b": "x"}
    return info, data


def pack(infos: list[tuple[tarfile.TarInfo, bytes]], form: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=FORMATS[form], encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for info, data in infos:
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:  # ustar cannot say it
                continue
    return buffer.getvalue()


def seen(data: bytes) -> list[dict[str, object]]:
    """What Python's reader finds."""
    entries = []
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            is_file = info.isreg()
            opened = tar.extractfile(info) if is_file else None
            device = os.makedev(info.devmajor, info.devminor) if info.isdev() else 0
            entries.append(
                {
                    "name": info.name.rstrip("/"),
                    "type": tarfile.REGTYPE if is_file else info.type,
                    "mode": info.mode & 0o7777,
                    "owner": (info.uid, info.gid),
                    "target": info.linkname if info.issym() or info.islnk() else "",
                    "device": device if info.type in (b"3", b"4") else 0,
                    "data": opened.read() if opened else b"",
                    "xattrs": {
                        k.removeprefix("SCHILY.xattr."): os.fsencode(v)
                        for k, v in info.pax_headers.items()
                        if k.startswith("SCHILY.xattr.")
                    },
                }
            )
    return entries


def ours(data: bytes) -> list[dict[str, object]]:
    return [
        {
            "name": m.name.rstrip("/"),
            "type": bytes((m.kind,)),
            "mode": m.mode,
            "owner": (m.uid, m.gid),
            "target": m.target if m.kind in (tars.LINK, tars.SYMLINK) else "",
            "device": m.device,
            "data": content,
            "xattrs": dict(m.xattrs),
        }
        for m, content in read(data)
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_every_archive_of_tarfile_reads_the_same(form: str) -> None:
    @settings(max_examples=120, deadline=None)
    @given(st.lists(members(form), max_size=4))
    def compare(infos: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        data = pack(infos, form)
        assert ours(data) == seen(data)
        times = [info.mtime for info, _ in infos]
        if form != "ustar":
            for (member, _), time in zip(read(data), times, strict=True):
                assert 0 <= member.mtime_ns < 1_000_000_000
                assert member.mtime + member.mtime_ns / 1e9 == pytest.approx(time, abs=1e-6)

    compare()


# noise


BASE = pack(
    [
        (tarfile.TarInfo("dir/" + "n" * 150), b""),
        (tarfile.TarInfo("plain"), b""),
        (tarfile.TarInfo("x" * 300), b""),
    ],
    "pax",
) + pack([(tarfile.TarInfo("y" * 300), b"")], "gnu")


def resum(block: bytes) -> bytes:
    """A header block with its checksum put right, so that damage reaches the fields."""
    bare = block[:148] + b" " * 8 + block[156:]
    return bare[:148] + b"%06o\0 " % sum(bare) + bare[156:]


def survive(data: bytes) -> None:
    try:
        for member, _ in read(data):
            assert 0 <= member.mode <= 0o7777
            assert member.size >= 0
            assert 0 <= member.uid < 1 << 32
            assert -(1 << 63) <= member.mtime < 1 << 63
            assert "\0" not in member.name + member.target
    except IntegrityError as error:
        assert "test" in str(error)  # noqa: PT017


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(BASE) - 1), st.binary(min_size=1, max_size=12), st.booleans())
def test_damage_gives_an_integrity_error_or_an_archive(
    position: int, patch: bytes, repair: bool
) -> None:
    data = bytearray(BASE)
    data[position : position + len(patch)] = patch
    if repair:
        start = position // 512 * 512
        data[start : start + 512] = resum(bytes(data[start : start + 512]))
    survive(bytes(data))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 511), st.binary(min_size=1, max_size=12)), max_size=6),
    st.sampled_from(b"01234567SxgLK\0"),
    st.binary(max_size=1200),
)
def test_a_header_of_noise_gives_an_integrity_error_or_an_archive(
    patches: list[tuple[int, bytes]], kind: int, rest: bytes
) -> None:
    block = bytearray(512)
    for position, patch in patches:
        block[position : position + len(patch)] = patch
    block[156] = kind
    survive(resum(bytes(block[:512])) + rest)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.major",
                 "GNU.sparse.offset", "GNU.sparse.numbytes", "GNU.sparse.name", "size", "mtime",
                 "uid", "path", "linkpath", "SCHILY.xattr.", "hdrcharset"]
            ),
            st.sampled_from(
                [b"1", b"0", b"", b"1,2", b"1,2,3", b"-1", b"1.5", b"99999999999999999999", b"1,",
                 b"a", b"\xff", b"-.5", b"-0.5", b"1\0", b"600", b"0,5,5,5"]
            ),
        ),
        max_size=5,
    ),
    st.binary(max_size=1100),
)  # fmt: skip
def test_extended_records_of_noise_give_an_integrity_error_or_an_archive(
    records: list[tuple[str, bytes]], rest: bytes
) -> None:
    survive(extended(records) + header(size=600) + rest)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=3000))
def test_random_bytes_give_an_integrity_error_or_an_archive(data: bytes) -> None:
    survive(data)


def header(kind: bytes = b"0", size: int | bytes = 0, **fields: bytes) -> bytes:
    """A ustar header; `fields`: name, mtime, device_major, sparse, uid, magic."""
    block = bytearray(512)
    name = fields.get("name", b"f")
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:116] = fields.get("uid", b"0000000\0")
    block[116:124] = b"0000000\0"
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[136:148] = fields.get("mtime", b"00000000000\0")
    block[156:157] = kind
    block[257:265] = fields.get("magic", b"ustar\x0000")
    block[329:337] = fields.get("device_major", bytes(8))
    block[345:345] = b""
    sparse = fields.get("sparse", b"")
    block[386 : 386 + len(sparse)] = sparse
    return resum(bytes(block[:512]))


def extended(records: list[tuple[str, bytes]], kind: bytes = b"x") -> bytes:
    data = b"".join(pax_record(key.encode(), value) for key, value in records)
    return header(kind, len(data)) + data + bytes(-len(data) % 512)


def pax_record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def base256(value: int, size: int) -> bytes:
    return (value & ((1 << 8 * size) - 1) | 1 << 8 * size - 1).to_bytes(size, "big")


# what other writers do

BAD_SIZES = [text.ljust(12, b"\0") for text in (b"0x1", b"1_0", b"000000008", b"+1", b"1 1")]


def test_no_end_one_block_and_many_are_all_an_end() -> None:
    file = header(size=3) + b"abc".ljust(512, b"\0")
    for end in (
        b"",
        bytes(512),
        bytes(1024),
        bytes(10240),
        bytes(1024) + b"garbage" * 99,
        bytes(7),
    ):
        assert [content for _, content in read(file + end)] == [b"abc"]


def test_a_header_after_a_single_block_of_zeros_is_refused() -> None:
    with pytest.raises(IntegrityError, match="single zero block"):
        read(header() + bytes(512) + header())


def test_a_file_without_its_padding_is_cut_short() -> None:
    with pytest.raises(IntegrityError, match="in the middle"):
        read(header(size=513) + bytes(600))


def test_a_v7_header_is_understood() -> None:
    """Before POSIX: no magic, no type, a directory is a name with a slash at its end."""
    old = {"kind": b"\0", "magic": bytes(8)}
    (directory, _), (file, content) = read(
        header(name=b"d/", **old) + header(name=b"d/f", size=2, **old) + b"hi".ljust(512, b"\0")
    )
    assert (directory.kind, directory.name) == (tars.DIRECTORY, "d/")
    assert (file.kind, content) == (tars.FILE, b"hi")


def test_the_slash_of_an_old_directory_is_looked_for_in_its_whole_name() -> None:
    for name, kind in ((b"n" * 99 + b"/a", tars.FILE), (b"n" * 99 + b"/a/", tars.DIRECTORY)):
        data = extended([("path", name)]) + header(b"\0", name=name[:100])
        assert [member.kind for member, _ in read(data)] == [kind]


def test_numbers_too_large_for_octal_digits_are_read() -> None:
    ((member, _),) = read(header(uid=base256(4_000_000_000, 8), mtime=base256(-5, 12)))
    assert (member.uid, member.mtime) == (4_000_000_000, -5)
    ((member, _),) = read(header(mtime=base256(1 << 40, 12)))
    assert member.mtime == 1 << 40


@pytest.mark.parametrize("mtime", [1 << 70, -(1 << 70)])
def test_a_time_no_file_system_keeps_is_refused(mtime: int) -> None:
    with pytest.raises(IntegrityError, match="mtime"):
        read(header(mtime=base256(mtime, 12)))


def test_a_device_number_no_system_has_is_refused() -> None:
    with pytest.raises(IntegrityError, match="device number"):
        read(header(b"3", device_major=base256(1 << 31, 8)))


@pytest.mark.parametrize("size", [base256(-1, 12), b"-0000000001\0", *BAD_SIZES], ids=repr)
def test_a_size_that_is_no_number_is_refused(size: bytes) -> None:
    with pytest.raises(IntegrityError, match="size"):
        read(header(size=size))


def test_an_empty_record_takes_back_a_global_one() -> None:
    data = extended([("path", b"global"), ("SCHILY.xattr.user.e", b"")], b"g") + header()
    data += extended([("path", b"")]) + header(name=b"own")
    assert [member.name for member, _ in read(data)] == ["global", "own"]
    assert [member.xattrs for member, _ in read(data)] == [(("user.e", b""),)] * 2


def test_times_before_the_epoch_keep_their_fraction() -> None:
    times = [(b"-1.25", (-2, 750_000_000)), (b"-0.5", (-1, 500_000_000)), (b"-3", (-3, 0)),
             (b"1.0000000019", (1, 1)), (b"0.1", (0, 100_000_000))]  # fmt: skip
    for text, wanted in times:
        ((member, _),) = read(extended([("mtime", text)]) + header())
        assert (member.mtime, member.mtime_ns) == wanted


def test_an_extended_header_of_megabytes_is_refused() -> None:
    with pytest.raises(IntegrityError, match="limit"):
        read(header(b"x", tars.HEADER_LIMIT + 1))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_many_extended_headers_before_one_member_do_not_fill_memory(kind: bytes) -> None:
    one = extended([("comment", b"x" * 500_000)], kind)
    assert len(read(one * 8 + header())) == 1
    with pytest.raises(IntegrityError, match="before one member; the limit is 4194304"):
        read(one * 9 + header())


def test_what_global_headers_say_about_every_member_is_little() -> None:
    """git writes a comment, which is passed over; every member would be compared with the rest."""
    note = extended([("comment", b"x" * 500_000)], b"g")
    attribute = extended([("SCHILY.xattr.user.a", b"x" * 40_000)], b"g")
    assert len(read((note + header()) * 20)) == 20
    assert len(read((attribute + header()) * 20)) == 20  # the same again and again
    other = extended([("SCHILY.xattr.user.b", b"x" * 40_000)], b"g")
    with pytest.raises(IntegrityError, match="about every member; the limit is 65536"):
        read(attribute + header() + other + header())


@pytest.mark.parametrize(
    "records",
    [[("GNU.sparse.map", b"1"), ("GNU.sparse.size", b"1")],
     [("GNU.sparse.map", b"5,5,0,1"), ("GNU.sparse.size", b"10")],
     [("GNU.sparse.map", b"0,99"), ("GNU.sparse.size", b"10")],
     [("GNU.sparse.map", b"0,1")],
     [("GNU.sparse.offset", b"0"), ("GNU.sparse.size", b"10")],
     [("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"10"), ("size", b"9" * 18)]],
    ids=["odd", "order", "beyond", "no size", "no length", "no end"],
)  # fmt: skip
def test_an_impossible_sparse_map_is_refused(records: list[tuple[str, bytes]]) -> None:
    with pytest.raises(IntegrityError, match="sparse"):
        read(extended(records) + header(size=0))


def test_negative_numbers_in_an_old_sparse_map_are_refused() -> None:
    for numbers in [(0, -5, -5), (-5, 5, 0), (0, 5, -1)]:
        offset, length, size = numbers
        sparse = base256(offset, 12) + base256(length, 12) + bytes(73) + base256(size, 12)
        with pytest.raises(IntegrityError, match="sparse map"):
            read(header(b"S", 512, sparse=sparse) + bytes(512))


@pytest.mark.parts
@pytest.mark.parametrize(
    "options",
    [
        ("gnu",),
        ("oldgnu",),
        ("pax", "--sparse-version=0.0"),
        ("pax", "--sparse-version=0.1"),
        ("pax", "--sparse-version=1.0"),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("holes", ["many", "end", "start", "all", "none"])
def test_sparse_files_of_gnu_tar_are_whole_again(
    tmp_path: Path, options: tuple[str, ...], holes: str
) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar program")
    block = 4096
    data = random.Random(holes).randbytes(block)
    layout = {
        "many": [(number * 64 * 1024, data) for number in range(60)],
        "end": [(0, data)],
        "start": [(1 << 20, data)],
        "all": [],
        "none": [(0, data * 3)],
    }[holes]
    name = "n" * 120
    with (tmp_path / name).open("wb") as file:
        for offset, piece in layout:
            file.seek(offset)
            file.write(piece)
        file.truncate(max(60 * 64 * 1024, file.tell()) if holes != "none" else 3 * block)
    (tmp_path / "z").write_bytes(b"after")
    form, *more = options
    command = ["tar", "--sparse", "--hole-detection=raw", f"--format={form}", *more, "-cf", "-"]
    packed = subprocess.run([*command, name, "z"], cwd=tmp_path, check=True, capture_output=True)
    (sparse, content), (after, tail) = read(packed.stdout)
    assert (sparse.name, after.name, tail) == (name, "z", b"after")
    assert content == (tmp_path / name).read_bytes()
    assert sparse.size == (tmp_path / name).stat().st_size
    if holes in ("many", "start"):
        assert sparse.segments is not None


@pytest.mark.parts
@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "oldgnu", "pax"])
def test_archives_of_gnu_tar_read_as_what_was_packed(tmp_path: Path, form: str) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar program")
    (tmp_path / "d").mkdir(mode=0o1777)
    (tmp_path / "d" / "f").write_bytes(b"content")
    os.utime(tmp_path / "d" / "f", ns=(0, 1_234_567_890_123_456_789))
    os.link(tmp_path / "d" / "f", tmp_path / "d" / "hard")
    (tmp_path / "d" / "soft").symlink_to("f")
    command = ["tar", f"--format={form}", "--sort=name", "-cf", "-", "d"]
    packed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
    found = {member.name: (member, content) for member, content in read(packed)}
    assert list(found) == ["d/", "d/f", "d/hard", "d/soft"]
    assert found["d/"][0].kind == tars.DIRECTORY
    assert found["d/"][0].mode == stat.S_IMODE((tmp_path / "d").stat().st_mode)
    assert found["d/f"][1] == b"content"
    assert (found["d/hard"][0].kind, found["d/hard"][0].target) == (tars.LINK, "d/f")
    assert (found["d/soft"][0].kind, found["d/soft"][0].target) == (tars.SYMLINK, "f")
    member = found["d/f"][0]
    fraction = 123_456_789 if form == "pax" else 0
    assert (member.mtime, member.mtime_ns) == (1_234_567_890, fraction)


def test_reading_a_sparse_file_in_pieces_gives_the_same(tmp_path: Path) -> None:
    segments = [(3, 4), (10, 1), (20, 5)]
    text = ",".join(f"{offset},{size}" for offset, size in segments)
    data = b"ABCDEFGHIJ"
    whole = bytearray(30)
    stored = io.BytesIO(data)
    for offset, size in segments:
        whole[offset : offset + size] = stored.read(size)
    records = [("GNU.sparse.map", text.encode()), ("GNU.sparse.size", b"30")]
    archive = extended(records) + header(size=len(data)) + data.ljust(512, b"\0")
    for step in range(1, 31):
        source = LayerStream(io.BytesIO(archive), DecompressionLimits(), "test")
        reader = TarReader(source, "test")
        for member in reader:
            result = bytearray(b"\xff" * member.size)
            for start in range(0, member.size, step):
                reader.readinto(memoryview(result)[start : start + step])
            assert result == whole


def test_the_struct_of_a_header_here_is_that_of_tarfile() -> None:
    """Guards the hand-made headers of this file."""
    parsed = tarfile.TarInfo.frombuf(header(size=5, name=b"abc"), "utf-8", "strict")
    assert (parsed.name, parsed.size, parsed.mode) == ("abc", 5, 0o644)
    assert struct.calcsize("512s") == tars.BLOCK
