"""What a name says about the layers below (E-10, E-12)."""

from __future__ import annotations

import pytest

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.whiteouts import Change, parse_whiteout

MEANT = {
    "a": None,
    "": None,
    "a/wh.b": None,
    "a/.wh": None,
    "a/x.wh.b": None,
    ".wh.a": (Change.WHITEOUT, "a"),
    "d/.wh.a": (Change.WHITEOUT, "d/a"),
    "d/.wh..a": (Change.WHITEOUT, "d/.a"),
    "d/.wh.a b\n": (Change.WHITEOUT, "d/a b\n"),
    ".wh..wh..opq": (Change.OPAQUE, ""),
    "d/e/.wh..wh..opq": (Change.OPAQUE, "d/e"),
    ".wh..wh.plnk": (Change.IGNORE, ".wh..wh.plnk"),
    "d/.wh..wh.aufs": (Change.IGNORE, "d/.wh..wh.aufs"),
}


@pytest.mark.parametrize("path", MEANT)
def test_a_name_means(path: str) -> None:
    assert parse_whiteout(path, "test") == MEANT[path]


@pytest.mark.parametrize("path", [".wh.", "a/.wh.", ".wh..", "a/.wh...", ".wh.a/b", "a/.wh.b/c/d",
                                  ".wh..wh..opq/x", ".wh.a/.wh.b"])  # fmt: skip
def test_a_name_that_means_nothing_is_refused(path: str) -> None:
    with pytest.raises(IntegrityError, match="layer test"):
        parse_whiteout(path, "test")
