"""Check objects for another process; see `check_process` for what is said."""

from __future__ import annotations

import json
import signal
import sys
from typing import BinaryIO

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.stores import open_store
from cvmfs_publish.repository.native.check_catalog import Claim
from cvmfs_publish.repository.native.check_objects import CHECKS, HASH, check_all, check_hash


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until there are no more."""
    store = open_store(json.loads(requests.readline()))
    try:
        for line in requests:
            what, arguments = json.loads(line)
            if what == HASH:
                results = check_all(store, check_hash, [name for (name,) in arguments])
            else:
                claims = [
                    Claim(ContentHash.parse(text), Suffix(kind), size, compressed)
                    for text, kind, size, compressed in arguments
                ]
                results = check_all(store, CHECKS[what], claims)
            replies.write(json.dumps(results).encode() + b"\n")
            replies.flush()
    except BrokenPipeError:
        pass  # whoever asked is gone
    finally:
        store.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked decides what an interrupt means
    serve(sys.stdin.buffer, sys.stdout.buffer)
