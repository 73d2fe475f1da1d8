"""The errors this package raises, in families by whose fault it is.

    PublishError            1  a bug or an unknown failure
    ├── InputError          2  what the caller asked, or a configuration, cannot be understood
    ├── RemoteError         3  a remote refused, failed or was unreachable; worth a retry
    ├── IntegrityError      4  bytes are not what was promised; no retry
    └── RepositoryError     5  the repository is locked, damaged or unsafe to write
        └── LockedError     5  another writer holds the repository; worth a retry

Specific errors stand next to the code that raises them.  A message names the subject and, where two
things disagree, both values; `hint` says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_PARTIAL = 6  # some of several failed, the others are done


class PublishError(Exception):
    """A bug or an unknown failure."""

    exit_code = 1
    kind = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(PublishError):
    """What the caller asked, or a configuration file, cannot be understood or cannot be done."""

    exit_code = 2
    kind = "input"


class RemoteError(PublishError):
    """A registry or server refused, failed or was unreachable.  Worth retrying later."""

    exit_code = 3
    kind = "remote"


class IntegrityError(PublishError):
    """Bytes are not what a digest, size, format or signature promised.  Never retried."""

    exit_code = 4
    kind = "integrity"


class RepositoryError(PublishError):
    """The repository is locked, damaged or unsafe to write; its published revision is untouched."""

    exit_code = 5
    kind = "repository"


class LockedError(RepositoryError):
    """Another writer holds the repository; nothing was changed.  Worth retrying later."""

    kind = "locked"


def exit_code_of(errors: Sequence[PublishError], count: int) -> int:
    """Return how a call for `count` things ends: 0, 6 if some failed, else as the first failure."""
    if not errors:
        return 0
    return EXIT_PARTIAL if len(errors) < count else errors[0].exit_code
