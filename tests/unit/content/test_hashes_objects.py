"""Names of objects and their stored form, against known values.

Source of the values: facts/cvmfs-format.md, appendix A.
"""

from __future__ import annotations

import zlib

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.objects import compress, compress_exactly, decompress
from cvmfs_publish.errors import IntegrityError

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
