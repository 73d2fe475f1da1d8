"""Make an image that uses every liberty the formats give to layers and configurations.

Sources: OCI image-spec `layer.md` and `config.md`; POSIX.1-2017 `pax`; the GNU tar manual.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.layouts import EPOCH, Tar, write_oci_layout

MiB = 1024 * 1024

# What an image may ask for, in values that hurry past careless quoting.  The entrypoint prints its
# arguments in brackets, so a test sees that nothing was lost: NASTY_OUTPUT.
NASTY_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "QUOTES": 'it\'s "quoted" \\ back',
    "DOLLAR": "$HOME ${PATH} $(id) `id`",
    "NEWLINE": "one\ntwo",
    "CONTROL": "tab\tcarriage\rreturn",
    "ESCAPES": "\\n \\t \\x41 %s %%",
    "EMPTY": "",
    "EQUALS": "a=b=c",
    "SPACES": "  two  spaces  ",
    "UNICODE": "grüß \u65e5\u672c",
    "SHELL_WORDS": "!history #comment; exit 1 & | > /tmp/x < y * ? [a] ~",
}
NASTY_ENTRYPOINT = ["/bin/sh", "-c", 'printf "[%s]" "$@"; echo', 'it\'s an "entry point"']
NASTY_COMMAND = ["two  words", "it's", "$HOME `id`", "", "-n", "line\nline"]
NASTY_OUTPUT = b"[two  words][it's][$HOME `id`][][-n][line\nline]\n"
NASTY_LABELS = {
    "org.opencontainers.image.title": 'it\'s a "title" with $(id)',
    "org.example.note": "first line\nsecond line",
    "empty": "",
}
NASTY_WORKDIR = '/work dir/it\'s "here"'


def nasty_config() -> dict[str, Any]:
    """Return the `config` object with all the nasty values."""
    return {
        "Env": [f"{name}={value}" for name, value in NASTY_ENV.items()],
        "Entrypoint": NASTY_ENTRYPOINT,
        "Cmd": NASTY_COMMAND,
        "Labels": NASTY_LABELS,
        "WorkingDir": NASTY_WORKDIR,
    }


_LONG = "n" * 200
_LONGEST = "m" * 255  # NAME_MAX
_DEEP = "/".join(["directory-with-a-rather-long-name"] * 12)  # beyond what a ustar header holds
_ODD_NAMES: tuple[bytes, ...] = (
    b"with space",
    b" leading and trailing ",
    b"-rf",
    b"--help",
    b"quote'double\"back\\slash",
    b"new\nline",
    b"tab\tbell\x07escape\x1b[31m",
    b"$HOME `id` $(id) ; & | > < * ? [a] ! # ~",
    b"latin-1 \xe9\xff",
    b"\xff\xfe",
    "composed \u00e9".encode(),
    "decomposed e\u0301".encode(),
    "wide \u65e5\u672c\u8a9e \U0001f600".encode(),
    b".wh",
    b".white",
    b"x.wh.y",
    b"...",
    b"%s%n",
    b"a:b",
    _LONG.encode(),
    _LONGEST.encode(),
)
# cap_net_raw+ep in revision 2 of the format (linux/capability.h: struct vfs_ns_cap_data)
_MAY_PING = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
# Directories no member describes: readers make them up, so their mode and mtime are not compared.
IMPLIED_DIRECTORIES = frozenset({b"implied", b"implied/by", b"implied/by/a", b"abs"})


def hostile_but_legal_image(dest: Path, *, tag: str = "latest") -> Path:
    """Write an image whose layers use every liberty the formats give, and break no rule.

    What it must unpack to is what `umoci unpack` makes of it (`umoci_unpack`, `tree_of`).
    """
    layers = (
        _doomed_layer(),
        _names_layer(pax=True),
        _names_layer(pax=False),
        _kinds_layer(),
        _lower_layer(),
        _upper_layer(),
        _links_layer(),
        _and_back_layer(),
        sparse_layer("pax"),  # umoci refuses the older form of GNU tar
        _empty_layer(),
        _root_layer(),
    )
    return write_oci_layout(dest, layers, nasty_config(), tag=tag)


def _doomed_layer() -> bytes:
    """Everything here is hidden by the opaque root of the next layer."""
    layer = Tar()
    layer.file("doomed", b"nobody sees this")
    layer.directory("doomed-directory")
    layer.file("doomed-directory/file", b"nor this")
    layer.file("pax/survivor", b"hidden as well")
    return layer.done()


def _names_layer(*, pax: bool) -> bytes:
    """Odd, long and deep names, once with PAX records and once with GNU long names."""
    top = "pax" if pax else "gnu"
    layer = Tar(pax=pax)
    if pax:
        layer.file("before-the-opaque-mark", b"same layer, so it stays")
        layer.opaque("")
    layer.directory("./", 0o755, mtime=EPOCH + 5)
    layer.directory(top, 0o755)
    for number, name in enumerate(_ODD_NAMES):
        layer.file(top.encode() + b"/" + name, b"%d\n" % number, mtime=EPOCH + number)
    layer.directory(f"{top}/{_LONG}-directory")
    layer.symlink(f"{top}/{_LONG}-directory/link", f"../{_LONG}")
    layer.symlink(f"{top}/to a long target", "/".join([_LONG] * 5))
    layer.symlink(f"{top}/odd target".encode(), b"new\nline \xff 'quote\" $(id)")
    for depth in range(1, 13):
        layer.directory(f"{top}/" + "/".join(_DEEP.split("/")[:depth]))
    layer.file(f"{top}/{_DEEP}/{_LONG}", b"deep")
    layer.link(f"{top}/hard link to the deep one", f"{top}/{_DEEP}/{_LONG}")
    layer.directory(f"{top}/dotted")
    layer.file(f"./{top}/./dotted//name", b"./ and // mean nothing")
    layer.file(f"/abs/{top}", b"a leading slash means the root of the image")
    return layer.done()


def _kinds_layer() -> bytes:
    """Every kind of entry, permission bits, times, owners and sizes."""
    layer = Tar()
    numbers = random.Random(20_000)
    layer.directory("kinds")
    for mode in (0o000, 0o111, 0o222, 0o400, 0o644, 0o755, 0o1644, 0o2755, 0o4755, 0o6711):
        layer.file(f"kinds/file-{mode:04o}", b"x", mode)
    for mode in (0o000, 0o111, 0o700, 0o750, 0o1777, 0o2775):
        layer.directory(f"kinds/directory-{mode:04o}", mode)
        layer.file(f"kinds/directory-{mode:04o}/inside", b"inside", 0o600)
    for mtime in (0, -86_400, 1, 2**31, 2**32 + 7, 5_000_000_000):
        layer.file(f"kinds/mtime {mtime}", b"", mtime=mtime)
    layer.file("kinds/mtime with a fraction", b"", mtime=EPOCH + 0.5)
    layer.directory("kinds/old directory", mtime=3)
    layer.symlink("kinds/old link", "anywhere", mtime=4)
    layer.file("kinds/owned", b"", owner=(1000, 1001))
    layer.file("kinds/owned by large numbers", b"", owner=(3_000_000, 4_000_000))
    layer.file("kinds/xattrs", b"", xattrs={"user.note": b"kept", "user.raw": b"\xff\n="})
    layer.directory("kinds/xattrs of a directory", xattrs={"user.note": b"kept as well"})
    layer.file("kinds/ping", b"x", 0o755, xattrs={"security.capability": _MAY_PING})
    layer.add("kinds/fifo", tarfile.FIFOTYPE, 0o640)
    layer.add("kinds/null", tarfile.CHRTYPE, 0o666, device=(1, 3))
    layer.add("kinds/loop", tarfile.BLKTYPE, 0o660, device=(7, 0))
    layer.add("kinds/old file", tarfile.AREGTYPE, 0o644, data=b"type flag NUL")
    for size in (0, 1, 511, 512, 513, 10_240, 4 * MiB, 4 * MiB + 1):
        layer.file(f"kinds/{size} bytes", numbers.randbytes(size))
    layer.file("kinds/large and random", numbers.randbytes(9 * MiB + 77))
    layer.file("kinds/large and empty", bytes(17 * MiB))
    layer.file("kinds/same as another", b"twins")
    layer.file("kinds/same as the other", b"twins")
    return layer.done()


def _lower_layer() -> bytes:
    """What the next layers remove, hide, replace and link to."""
    layer = Tar()
    for name in ("gone", "a", "ab", "b", "file-to-directory", "file-to-link", "file-to-fifo"):
        layer.file(f"lower/{name}", name.encode())
    layer.directory("lower")  # after its children
    for name in ("gone-directory", "hidden", "hidden-late", "merged", "directory-to-file"):
        layer.directory(f"lower/{name}", 0o755)
        layer.file(f"lower/{name}/one", b"1")
        layer.directory(f"lower/{name}/below")
        layer.file(f"lower/{name}/below/two", b"2")
    for name in ("there-and-back", "directory-to-link"):
        layer.directory(f"lower/{name}", 0o755)
        layer.file(f"lower/{name}/child", b"child")
    layer.symlink("lower/link-to-file", "a")
    layer.symlink("lower/link-to-directory", "merged")
    layer.symlink("lower/linked", "merged")
    layer.symlink("lower/absolute", "/lower/merged")
    layer.symlink("lower/chain-1", "chain-2")
    layer.symlink("lower/chain-2", "./chain-3")
    layer.symlink("lower/chain-3", "../lower/merged")
    layer.symlink("lower/dangling", "nowhere/at/all")
    layer.symlink("lower/loop", "loop")
    layer.symlink("lower/up", "../../../../../../../../lower/merged")
    layer.symlink("lower/host", "/etc/shadow")
    layer.file("lower/target", b"linked to", 0o640, owner=(5, 6), mtime=EPOCH + 60)
    layer.file("lower/twin", b"first name", 0o604)
    layer.link("lower/twin-2", "lower/twin", 0o604)
    layer.link("./lower/twin-3", "./lower/twin-2", 0o604)
    layer.file("implied/by/a/member", b"no directory members above me")
    return layer.done()


def _upper_layer() -> bytes:
    """Whiteouts before and after what they meet, replacements, and duplicate members."""
    layer = Tar()
    layer.whiteout("lower/gone")
    layer.whiteout("lower/gone-directory")
    layer.whiteout("lower/was-never-there")
    layer.whiteout("nowhere/was-never-there")
    layer.file("lower/a", b"new, and the whiteout that follows is about the lower one")
    layer.whiteout("lower/a")
    layer.whiteout("lower/b")
    layer.file("lower/b", b"new, after the whiteout")
    layer.opaque("lower/hidden")
    layer.file("lower/hidden/new", b"after the mark")
    layer.file("lower/hidden-late/new", b"before the mark")
    layer.opaque("lower/hidden-late")
    layer.directory("lower/hidden-late", 0o711, mtime=EPOCH + 9)
    layer.directory("lower/merged", 0o700, mtime=EPOCH + 10)
    layer.file("lower/merged/three", b"3")
    layer.file("lower/directory-to-file", b"the children are gone")
    layer.directory("lower/file-to-directory")
    layer.file("lower/file-to-directory/child", b"child")
    layer.symlink("lower/file-to-link", "merged")
    layer.add("lower/file-to-fifo", tarfile.FIFOTYPE, 0o600)
    layer.symlink("lower/directory-to-link", "merged")
    layer.file("lower/link-to-file", b"no longer a link, and `a` is untouched")
    layer.directory("lower/link-to-directory", 0o755)
    layer.file("lower/link-to-directory/mine", b"in the new directory, not in the old target")
    layer.file("lower/there-and-back", b"a file for one layer")
    layer.file("lower/linked/through-a-link", b"lands in merged")
    layer.file("lower/absolute/through-an-absolute-link", b"lands in merged")
    layer.file("lower/chain-1/through-a-chain", b"lands in merged")
    layer.file("lower/up/through-dots", b"stops at the root of the image, lands in merged")
    layer.file("twice", b"first", 0o600)
    layer.file("twice", b"second, which counts", 0o755)
    layer.file("twice-of-two-kinds", b"file")
    layer.directory("twice-of-two-kinds", 0o755)
    layer.file("twice-of-two-kinds/child", b"child")
    layer.symlink("twice-of-three-kinds", "elsewhere")
    layer.file("twice-of-three-kinds", b"a file in the end")
    layer.file("lower/.wh..wh.aufs", b"")  # left over by old storage drivers, means nothing
    return layer.done()


def _links_layer() -> bytes:
    """Hard links into layers below, and to things that are links themselves."""
    layer = Tar()
    layer.link("link-into-lower", "lower/target", 0o640, owner=(5, 6), mtime=EPOCH + 60)
    layer.link("link-to-the-link", "link-into-lower", 0o640, owner=(5, 6), mtime=EPOCH + 60)
    layer.link("/link-with-slash", "/lower/merged/three")
    layer.link("link-through-a-directory-link", "lower/linked/one")
    layer.link("lower/merged/link-over-a-file", "lower/merged/one")
    layer.link("lower/a", "lower/target", 0o640, owner=(5, 6), mtime=EPOCH + 60)
    layer.file("lower/twin-2", b"a file of its own again", 0o600)
    layer.whiteout("lower/twin")
    layer.whiteout("lower/chain-1")
    return layer.done()


def _and_back_layer() -> bytes:
    """A directory where the layer below put a file where the one below had a directory."""
    layer = Tar(pax=False)
    layer.directory("lower/there-and-back", 0o750)
    layer.file("lower/there-and-back/other-child", b"only me")
    layer.file("lower/gone", b"back again", mtime=-1)
    layer.whiteout("lower/linked/below")
    layer.directory("lower/merged", 0o755, mtime=EPOCH + 11)
    return layer.done()


def _empty_layer() -> bytes:
    return Tar().done()


def _root_layer() -> bytes:
    """The root itself, which readers must not take for a new and empty directory."""
    layer = Tar()
    layer.directory("./", 0o755, mtime=EPOCH + 12)
    return layer.done()


def sparse_layer(form: str) -> bytes:
    """Return a layer with a file of holes as GNU tar writes it; `form` is `gnu` or `pax`."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"sparse-{form}")
        with path.open("wb") as file:
            for offset in range(40):
                file.seek(offset * 256 * 1024 + offset)
                file.write(b"island %d" % offset)
            file.truncate(11 * MiB + 3)
        os.utime(path, (EPOCH, EPOCH))
        archive = subprocess.run(
            ["tar", "-c", "-S", f"--format={form}", "--owner=0", "--group=0", "--mode=0644",
             "-C", directory, path.name],
            capture_output=True,
            check=True,
        )  # fmt: skip
    return archive.stdout
