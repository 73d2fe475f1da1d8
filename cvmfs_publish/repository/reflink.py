"""Let a file share the blocks of another one, where the file system can: btrfs, XFS, and others.

Both are files of their own from then on: a write to one leaves the other as it is.

Source: ioctl_ficlone(2).
"""

from __future__ import annotations

import errno
import fcntl

FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# Of file systems that have none, or not between these two files.
NO_REFLINKS = (
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EXDEV,
    errno.EINVAL,
    errno.EPERM,
    errno.ETXTBSY,
)


def clone(source: int, target: int) -> bool:
    """Give the open file `target`, which is empty, the content of `source`; whether that is done.

    Raises OSError for what has nothing to do with reflinks, such as a full disk.
    """
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in NO_REFLINKS:
            return False
        raise
    return True
