"""The list of fallback images that a rendered site ships as etc/fallback.txt.

A copy of what `publish --fallback` wrote into the repository, for nodes that cannot read that: it
says which file stands for which image, and what its digest must be.
"""

from __future__ import annotations

import re

from cvmfs_publish.errors import InputError

FALLBACK_LIST = "etc/fallback.txt"
FIELDS = (
    "name",
    "image id",
    "manifest digest",
    "format",
    "SHA-256",
    "size",
    "unpacked size",
    "file",
)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_FORMS = (  # of the fields, in their order; the file name is compared with what it must be
    re.compile(r"(\.multiarch/[a-z0-9][a-z0-9_.:-]*/)?[\[A-Za-z0-9][\[\]A-Za-z0-9._:@/+-]*"),
    _DIGEST,
    _DIGEST,
    re.compile(r"sif|tar\.gz"),
    re.compile(r"[0-9a-f]{64}"),
    _NUMBER,
    _NUMBER,
)


def check_fallback_list(data: bytes, source: str) -> None:
    """Raise `InputError` with the line for what a node would not understand, or misread.

    `source` is what messages call the file.
    """
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError as exc:
        number = data[: exc.start].count(b"\n") + 1
        raise InputError(f"{source}:{number}: not ASCII text", hint=_HINT) from exc
    if lines[-1]:
        raise InputError(f"{source}:{len(lines)}: the last line is cut short", hint=_HINT)
    previous = ""
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            name = _check_line(line, f"{source}:{number}")
            if name <= previous:
                raise InputError(f"{source}:{number}: {name} after {previous}", hint=_SORTED)
            previous = name


_HINT = "it is share/cvmfs-publish/fallback.txt of the repository; copy it again"
_SORTED = "lines are sorted by name, and each name is there once"


def _check_line(line: str, where: str) -> str:
    fields = line.split()
    if len(fields) != len(FIELDS):
        raise InputError(f"{where}: {len(fields)} fields, not {len(FIELDS)}", hint=_HINT)
    for text, form, what in zip(fields, _FORMS, FIELDS, strict=False):
        if not form.fullmatch(text):
            raise InputError(f"{where}: {text[:100]!r} is no {what}", hint=_HINT)
    name, _, _, extension, sha256, _, _, file = fields
    if file != f"{sha256}.{extension}":
        raise InputError(f"{where}: {file[:100]!r}, not {sha256}.{extension}", hint=_HINT)
    return name
