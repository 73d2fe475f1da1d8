"""Names of objects and their stored form, against known values.

Source of the values: facts/cvmfs-format.md, appendix A.
"""

from __future__ import annotations

import random
import zlib

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.objects import (
    SAMPLED_BYTES,
    Compression,
    compress,
    compress_exactly,
    decompress,
    encode,
)
from cvmfs_publish.errors import IntegrityError
from tests.support import SHARED

MiB = 1024 * 1024

EMPTY = {
    HashAlgorithm.SHA1: "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78",
    HashAlgorithm.RMD160: "fcdb20b894f31f1306d56294c049ca7293dde0fc",
    HashAlgorithm.SHAKE128: "28d94b83b7229b331fc601362b8e272e02665122",
}
STOCK = {
    b"hello world\n": "ff049c626904064d641feca0e9936e5b211807c6",
    b"hard": "2a5a72fb16907fb1099a960771aca118ab09563b",
    b"x" * 6000: "8b1b213410add134afc84f0299034f2df99c8149",
}


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_the_empty_file_has_the_known_hash(algorithm: HashAlgorithm) -> None:
    stored = compress_exactly(b"")
    assert ContentHash.of(stored, algorithm).digest.hex() == EMPTY[algorithm]


@pytest.mark.parametrize("data", STOCK)
def test_exact_compression_gives_the_hashes_of_stock_tools(data: bytes) -> None:
    assert str(ContentHash.of(compress_exactly(data), HashAlgorithm.SHA1)) == STOCK[data]


@pytest.mark.parametrize("data", [b"", b"hard", b"x" * 6000, bytes(range(256)) * 999])
def test_both_compressions_are_one_zlib_stream_that_comes_back(data: bytes) -> None:
    for stored in (compress(data), compress(memoryview(data), 6), compress_exactly(data)):
        assert zlib.decompress(stored) == data
        assert decompress(stored, len(data)) == data


@pytest.mark.parametrize(
    "stored",
    [b"", b"nonsense", compress(b"cut")[:-1], compress(b"x") + b"y", compress(b"x") * 2,
     compress(b"flip")[:-1] + b"\0", zlib.compress(b"raw", wbits=-15),
     zlib.compress(b"x", wbits=31)],
    ids=["empty", "nonsense", "cut", "tail", "two", "checksum", "raw", "gzip"],
)  # fmt: skip
def test_anything_but_one_zlib_stream_is_refused(stored: bytes) -> None:
    with pytest.raises(IntegrityError, match="zlib stream"):
        decompress(stored, 1000)


def test_an_object_may_have_exactly_the_limit() -> None:
    assert decompress(compress(bytes(1000)), 1000) == bytes(1000)
    with pytest.raises(IntegrityError, match="more than 999 bytes"):
        decompress(compress(bytes(1000)), 999)


@pytest.mark.parametrize("algorithm", HashAlgorithm)
@pytest.mark.parametrize("kind", Suffix)
def test_an_object_lies_where_its_hash_and_kind_say(algorithm: HashAlgorithm, kind: Suffix) -> None:
    content_hash = ContentHash(bytes.fromhex("ab" + "0c" * 19), algorithm)
    suffix = {"sha1": "", "rmd160": "-rmd160", "shake128": "-shake128"}[algorithm.value]
    assert content_hash.path(kind) == f"data/ab/{'0c' * 19}{suffix}{kind.value}"
    assert ContentHash.parse(str(content_hash)) == content_hash
    assert algorithm.flags == {"sha1": 0, "rmd160": 0x100, "shake128": 0x200}[algorithm.value]


@pytest.mark.parametrize("text", ["", "a" * 39, "a" * 41, "A" * 40, "a" * 40 + "-md5",
                                  "a" * 40 + "C",
                                  "a" * 40 + "\n", "g" * 40, "a" * 40 + "-sha1"])  # fmt: skip
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError, match="content hash"):
        ContentHash.parse(text)


NOISE = random.Random(3).randbytes(MiB)
SOURCE = "".join(
    f"def {n:x}_of(self, {n * 7919:x}):\n    return {n}\n" for n in range(20_000)
).encode()
CONTENTS = {
    "empty": b"",
    "one byte": b"x",
    "below a sample": SOURCE[: SAMPLED_BYTES - 1],
    "just a sample": SOURCE[:SAMPLED_BYTES],
    "source": SOURCE,
    "noise": NOISE,
    "hardly": bytes(byte & 0x1F for byte in NOISE),
    "zeros": bytes(4 * MiB),
    "binary": b"".join(n.to_bytes(8, "little") for n in range(100_000)),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("compression", Compression)
def test_every_encoding_is_read_back_and_depends_on_the_content_alone(
    compression: Compression, content: str
) -> None:
    data = CONTENTS[content]
    stored = encode(data, compression)
    inside = memoryview(b"before" + data + b"after")[6 : 6 + len(data)]
    assert stored == encode(inside, compression) == encode(memoryview(bytearray(data)), compression)
    if compression.compresses:
        assert decompress(stored, len(data)) == data
    else:
        assert stored == data


@pytest.mark.parametrize("content", CONTENTS)
def test_adaptive_stays_within_its_promise(content: str) -> None:
    data = CONTENTS[content]
    limit = 1.08 * len(zlib.compress(data, 6)) + 16  # 16: of a few bytes nothing can be saved
    if content == "zeros":
        limit *= 2  # 4 KB of 4 MB
    assert len(encode(data, Compression.ADAPTIVE)) <= limit


def test_what_cannot_be_compressed_grows_by_next_to_nothing() -> None:
    for compression in (Compression.ADAPTIVE, Compression.FAST):
        assert len(encode(NOISE, compression)) <= len(NOISE) * 1.001


@pytest.mark.parametrize("repository", ["vectors.example.org", "vectors-shake.example.org"])
def test_zlib_gives_the_objects_of_the_stock_server(repository: str) -> None:
    data = SHARED / "vectors" / repository / "repo" / "data"
    algorithm = (
        HashAlgorithm.SHA1 if repository == "vectors.example.org" else HashAlgorithm.SHAKE128
    )
    same = 0
    for path in data.glob("??/*"):
        if path.name[-1] in "CHXM":
            continue
        stored = path.read_bytes()
        try:
            content = zlib.decompress(stored)
        except zlib.error:
            continue  # stored as it is
        assert encode(content, Compression.ZLIB) == stored
        name = ContentHash.of(encode(content, Compression.ZLIB), algorithm)
        assert f"{path.parent.name}{path.name}".startswith(str(name))
        same += 1
    assert same >= 10
