"""Compress, hash and store the pieces of file content that a publisher hands over; a process.

The publisher starts `python -m cvmfs_publish.content.worker MEMORY_FD SLAB_SIZE` once per core.
Content arrives in shared memory, cut into slabs; requests come on standard input, after one line
of JSON that says how to store it; replies leave on standard output:

    request  = slab number (u32), count (u32), then per piece: offset (u32), size (u32), chunk? (u8)
    reply    = errno (u32), then if 0 per piece: digest (20 bytes), stored size (u64), new? (u8),
               else: length (u32), JSON: message and hint, or the name of a file

The process ends when its input does, so it never outlives a publisher that was killed by more than
the slab it is working on.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import struct
import sys
from typing import BinaryIO

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.objects import Compression, encode
from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.content.stores import open_store
from cvmfs_publish.errors import PublishError

REQUEST = struct.Struct("<II")
PIECE = struct.Struct("<IIB")
STATUS = struct.Struct("<I")
RESULT = struct.Struct("<20sQB")


def serve(
    requests: BinaryIO,
    replies: BinaryIO,
    memory: memoryview,
    slab_size: int,
    store: ContentStore,
    algorithm: HashAlgorithm,
    compression: Compression,
) -> None:
    """Answer requests until there are no more."""
    while len(header := requests.read(REQUEST.size)) == REQUEST.size:
        slab, count = REQUEST.unpack(header)
        request = requests.read(PIECE.size * count)
        if len(request) != PIECE.size * count:
            return  # the publisher was killed
        pieces = list(PIECE.iter_unpack(request))
        base = slab * slab_size
        answer = bytearray(STATUS.pack(0))
        try:
            objects = []
            for offset, size, is_chunk in pieces:
                stored = encode(memory[base + offset : base + offset + size], compression)
                content_hash = ContentHash(algorithm.digest(stored), algorithm)
                kind = Suffix.CHUNK if is_chunk else Suffix.DATA
                objects.append((stored, content_hash, kind))
            for (stored, content_hash, _), new in zip(
                objects, store.put_many(objects), strict=True
            ):
                answer += RESULT.pack(content_hash.digest, len(stored), new)
        except OSError as error:
            answer = _failure(error.errno or errno.EIO, {"file": os.fsdecode(error.filename or "")})
        except PublishError as error:
            answer = _failure(errno.EIO, {"message": str(error), "hint": error.hint})
        try:
            replies.write(answer)
            replies.flush()
        except BrokenPipeError:
            return  # the publisher was stopped


def _failure(code: int, document: dict[str, str]) -> bytearray:
    text = json.dumps(document).encode()
    return bytearray(STATUS.pack(code) + STATUS.pack(len(text)) + text)


def main(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the publisher decides what an interrupt means
    descriptor, slab_size = map(int, arguments)
    settings = json.loads(sys.stdin.buffer.readline())
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as memory, memoryview(memory) as view:
        serve(
            sys.stdin.buffer,
            sys.stdout.buffer,
            view,
            slab_size,
            open_store(settings["store"]),
            HashAlgorithm(settings["hash"]),
            Compression(settings["compression"]),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
