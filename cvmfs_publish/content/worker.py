"""Compress, hash and store the pieces of file content that a publisher hands over; a process.

The publisher starts `python -m cvmfs_publish.content.worker ROOT ALGORITHM MEMORY_FD SLAB_SIZE`
once per core.  Content arrives in shared memory, cut into slabs; requests come on standard input,
replies leave on standard output:

    request  = slab number (u32), count (u32), then per piece: offset (u32), size (u32), chunk? (u8)
    reply    = errno (u32), then if 0 per piece: digest (20 bytes), stored size (u64), new? (u8),
               else: length (u32), file name

The process ends when its input does, so it never outlives a publisher that was killed by more than
the slab it is working on.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
from pathlib import Path
from typing import BinaryIO

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import compress

REQUEST = struct.Struct("<II")
PIECE = struct.Struct("<IIB")
STATUS = struct.Struct("<I")
RESULT = struct.Struct("<20sQB")


def serve(
    requests: BinaryIO,
    replies: BinaryIO,
    memory: memoryview,
    slab_size: int,
    store: LocalStore,
    algorithm: HashAlgorithm,
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
        stored_here: list[tuple[ContentHash, Suffix]] = []
        try:
            for offset, size, is_chunk in pieces:
                stored = compress(memory[base + offset : base + offset + size])
                content_hash = ContentHash(algorithm.digest(stored), algorithm)
                kind = Suffix.CHUNK if is_chunk else Suffix.DATA
                new = store.put(stored, content_hash, kind)
                if new:
                    stored_here.append((content_hash, kind))
                answer += RESULT.pack(content_hash.digest, len(stored), new)
        except OSError as error:
            for content_hash, kind in stored_here:  # the publisher will not hear of these
                store.remove(content_hash, kind)
            name = os.fsencode(error.filename or "")
            answer = bytearray(STATUS.pack(error.errno or 5) + STATUS.pack(len(name)) + name)
        try:
            replies.write(answer)
            replies.flush()
        except BrokenPipeError:
            return  # the publisher was stopped


def main(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the publisher decides what an interrupt means
    root, algorithm, descriptor, slab_size = arguments
    with mmap.mmap(int(descriptor), 0, prot=mmap.PROT_READ) as memory, memoryview(memory) as view:
        serve(
            sys.stdin.buffer,
            sys.stdout.buffer,
            view,
            int(slab_size),
            LocalStore(Path(root)),
            HashAlgorithm(algorithm),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
