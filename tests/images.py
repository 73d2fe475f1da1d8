"""Make real images: a Debian, a tiny one, and one full of everything a layer may legally contain.

Sources: OCI image-spec `layer.md`, `config.md` and `image-layout.md`; POSIX.1-2017 `pax`.
`tools/demo.py` uses some of the builders as well.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from tests import parts

EPOCH = 1_700_000_000  # the mtime of what has no reason for another
CACHE = parts.PARTS / "images"
MiB = 1024 * 1024

_OCI = "application/vnd.oci.image"
INDEX_TYPE = f"{_OCI}.index.v1+json"
MANIFEST_TYPE = f"{_OCI}.manifest.v1+json"
CONFIG_TYPE = f"{_OCI}.config.v1+json"
_COMPRESSIONS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "none": (f"{_OCI}.layer.v1.tar", bytes),
    "gzip": (f"{_OCI}.layer.v1.tar+gzip", lambda data: gzip.compress(data, 6, mtime=0)),
    "zstd": (f"{_OCI}.layer.v1.tar+zstd", zstandard.compress),
}

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


# ---------------------------------------------------------------- layers


class Tar:
    """A layer put together member by member, in exactly the order of the calls."""

    def __init__(self, *, pax: bool = True) -> None:
        """`pax`: names and numbers that do not fit go to PAX records, else to GNU extensions."""
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(
            fileobj=self._buffer,
            mode="w",
            format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        )

    def add(
        self,
        name: str | bytes,
        kind: bytes,
        mode: int,
        *,
        data: bytes = b"",
        target: str | bytes = "",
        mtime: float = EPOCH,
        owner: tuple[int, int] = (0, 0),
        device: tuple[int, int] = (0, 0),
        xattrs: Mapping[str, bytes] | None = None,
    ) -> None:
        """Append one member; `kind` is one of `tarfile`'s type flags."""
        info = tarfile.TarInfo(os.fsdecode(name))
        info.type, info.mode, info.size = kind, mode, len(data)
        info.linkname, info.mtime = os.fsdecode(target), mtime
        info.uid, info.gid = owner
        info.devmajor, info.devminor = device
        info.pax_headers = {
            f"SCHILY.xattr.{key}": os.fsdecode(value) for key, value in (xattrs or {}).items()
        }
        self._tar.addfile(info, io.BytesIO(data) if data else None)

    def directory(self, name: str | bytes, mode: int = 0o755, **more: Any) -> None:  # noqa: ANN401
        self.add(name, tarfile.DIRTYPE, mode, **more)

    def file(
        self,
        name: str | bytes,
        data: bytes = b"",
        mode: int = 0o644,
        **more: Any,  # noqa: ANN401
    ) -> None:
        self.add(name, tarfile.REGTYPE, mode, data=data, **more)

    def symlink(self, name: str | bytes, target: str | bytes, **more: Any) -> None:  # noqa: ANN401
        self.add(name, tarfile.SYMTYPE, 0o777, target=target, **more)

    def link(self, name: str | bytes, target: str | bytes, mode: int = 0o644, **more: Any) -> None:  # noqa: ANN401
        self.add(name, tarfile.LNKTYPE, mode, target=target, **more)

    def whiteout(self, path: str) -> None:
        """Remove `path` of the layers below."""
        parent, _, name = path.rpartition("/")
        self.file(f"{parent}/.wh.{name}" if parent else f".wh.{name}")

    def opaque(self, path: str) -> None:
        """Hide everything the layers below have in the directory `path`; "" is the root."""
        self.file(f"{path}/.wh..wh..opq" if path else ".wh..wh..opq")

    def done(self) -> bytes:
        """Return the archive."""
        self._tar.close()
        return self._buffer.getvalue()


# ---------------------------------------------------------------- layouts


def write_oci_layout(
    dest: Path,
    layers: Sequence[bytes],
    config: Mapping[str, Any] | None = None,
    *,
    tag: str = "latest",
    compression: str = "gzip",
    platform: str = "linux/amd64",
) -> Path:
    """Write, or add to, the OCI layout `dest` an image of uncompressed tar `layers`.

    `config` is the image configuration's `config` object; `compression`: none, gzip or zstd.
    """
    manifest = _add_image(dest, layers, config or {}, compression, platform)
    return _add_to_index(dest, manifest, tag)


def multi_platform_image(
    dest: Path, *, tag: str = "latest", platforms: Sequence[str] = ("linux/amd64", "linux/arm64/v8")
) -> Path:
    """Write an index of one image per platform; /platform of each says which it is."""
    manifests = []
    for platform in platforms:
        layer = Tar()
        layer.file("platform", f"{platform}\n".encode())
        manifest = _add_image(dest, [layer.done()], {}, "gzip", platform)
        manifests.append({**manifest, "platform": _platform(platform)})
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
    return _add_to_index(dest, _add_blob(dest, json.dumps(index).encode(), INDEX_TYPE), tag)


def reconfigure(layout: Path, config: Mapping[str, Any], *, tag: str = "latest") -> None:
    """Give the image `tag` another `config` object (umoci drops empty words of a command)."""
    manifest = json.loads(read_blob(layout, manifest_digest(layout, tag)))
    document = json.loads(read_blob(layout, manifest["config"]["digest"]))
    document["config"] = config
    manifest["config"] = _add_blob(layout, json.dumps(document).encode(), CONFIG_TYPE)
    _add_to_index(layout, _add_blob(layout, json.dumps(manifest).encode(), MANIFEST_TYPE), tag)


def manifest_digest(layout: Path, tag: str = "latest") -> str:
    """Return the digest of what `tag` names, `sha256:…`."""
    index = json.loads((layout / "index.json").read_bytes())
    for manifest in index["manifests"]:
        if manifest.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag:
            return str(manifest["digest"])
    raise KeyError(f"{layout} has no tag {tag}")


def read_blob(layout: Path, digest: str) -> bytes:
    """Return the bytes of one blob."""
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def _platform(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def _add_image(
    dest: Path,
    layers: Sequence[bytes],
    config: Mapping[str, Any],
    compression: str,
    platform: str,
) -> dict[str, Any]:
    media_type, compress = _COMPRESSIONS[compression]
    document = {
        "created": "2023-11-14T22:13:20Z",
        **_platform(platform),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _add_blob(dest, json.dumps(document).encode(), CONFIG_TYPE),
        "layers": [_add_blob(dest, compress(layer), media_type) for layer in layers],
    }
    return _add_blob(dest, json.dumps(manifest).encode(), MANIFEST_TYPE)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _add_blob(dest: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = _digest(data)
    path = dest / "blobs" / digest.replace(":", "/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _add_to_index(dest: Path, descriptor: Mapping[str, Any], tag: str) -> Path:
    path = dest / "index.json"
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": []}
    if path.exists():
        index = json.loads(path.read_bytes())
    name = {"org.opencontainers.image.ref.name": tag}
    others = [entry for entry in index["manifests"] if entry.get("annotations") != name]
    index["manifests"] = [*others, {**descriptor, "annotations": name}]
    path.write_text(json.dumps(index), "utf-8")
    (dest / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', "utf-8")
    return dest


# ---------------------------------------------------------------- a tiny image

_APPLETS = [
    "[", "arch", "awk", "base64", "basename", "cat", "chmod", "cp", "cut", "date", "dd", "df",
    "dirname", "du", "echo", "env", "expr", "false", "find", "grep", "head", "hostname", "id",
    "kill", "ln", "ls", "mkdir", "mount", "mv", "nproc", "od", "printenv", "printf", "ps", "pwd",
    "readlink", "rm", "rmdir", "sed", "seq", "sha256sum", "sleep", "sort", "stat", "tail", "tar",
    "tee", "test", "touch", "tr", "true", "uname", "uniq", "wc", "which", "whoami", "xargs",
]  # fmt: skip


def tiny_image(
    dest: Path,
    *,
    tag: str = "latest",
    config: Mapping[str, Any] | None = None,
    compression: str = "gzip",
    extra: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a one-layer image that runs anywhere: a static shell with the usual small programs.

    `extra` adds files.  Where the machine has no static busybox, /bin/sh is text: the image can be
    published but not run; tests that run it ask for `parts.require("busybox")`.
    """
    shell = find_static_shell()
    layer = small_root(shell.read_bytes() if shell else b"#!/no static shell here\n")
    for name, data in (extra or {}).items():
        layer.file(name, data, 0o755 if data.startswith(b"#!") else 0o644)
    default = {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]}
    return write_oci_layout(
        dest,
        [layer.done()],
        default if config is None else config,
        tag=tag,
        compression=compression,
    )


def small_root(busybox: bytes) -> Tar:
    """Return a layer with `busybox` under all its names and the few files every system has."""
    layer = Tar()
    for name in ("bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var"):
        layer.directory(name, 0o700 if name == "root" else 0o755)
    for name in ("tmp", "var/tmp"):
        layer.directory(name, 0o1777)
    layer.file("bin/busybox", busybox, 0o755)
    for name in ("sh", *_APPLETS):
        layer.symlink(f"bin/{name}", "busybox")
    layer.symlink("usr/bin/env", "../../bin/busybox")
    layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    layer.file("etc/group", b"root:x:0:\n")
    layer.file("etc/os-release", b'ID=tiny\nPRETTY_NAME="a tiny test image"\n')
    return layer


def find_static_shell() -> Path | None:
    """Return a busybox of this machine that needs no libraries, or None."""
    for directory in ("/bin", "/usr/bin", "/usr/local/bin", "/usr/lib/busybox"):
        for name in ("busybox", "busybox-static"):
            path = Path(directory, name)
            if path.is_file() and not is_dynamic(path.read_bytes()):
                return path.resolve()
    return None


def is_dynamic(program: bytes) -> bool:
    """Say whether a 64-bit ELF `program` asks for a dynamic linker (a PT_INTERP header)."""
    if program[:5] != b"\x7fELF\x02":
        return True
    start = int.from_bytes(program[32:40], "little")
    size = int.from_bytes(program[54:56], "little")
    count = int.from_bytes(program[56:58], "little")
    headers = (start + number * size for number in range(count))
    return any(int.from_bytes(program[at : at + 4], "little") == 3 for at in headers)


# ---------------------------------------------------------------- Debian


def debian_mirror() -> tuple[str, str] | None:
    """Return mirror and release this machine takes Debian from, as apt understands its sources."""
    release = _os_release().get("VERSION_CODENAME", "")
    if not release or shutil.which("apt-get") is None:
        return None
    fields = "$(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT)"
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in listing.stdout.splitlines():
        uri, *names = line.split(" ")
        if names[-1] == "main" and release in names[:2]:
            return uri, release
    return None


def _os_release() -> dict[str, str]:
    try:
        lines = Path("/etc/os-release").read_text("utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines)
    return {name: value.strip('"') for name, _, value in pairs}


# as Debian's own slim images: what no job reads
_SLIM = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")
_SECOND_LAYER = ("hello", "less")
_RECIPE = "2"  # change it when `_build_debian` changes


def debian_image(dest: Path, *, tag: str = "latest") -> Path:
    """Write a Debian of two layers: a minimal system, then `apt-get install` of two packages.

    The second layer also deletes files of the first.  The configuration is `nasty_config()`.  Made
    once and kept in .parts/images; a copy costs next to nothing.  Needs root: files have owners.
    """
    if os.geteuid() != 0:
        parts.missing("root, which making a Debian image takes,")
    for program in ("mmdebstrap", "umoci"):
        parts.require(program)
    mirror = debian_mirror()
    if mirror is None:
        parts.missing("a Debian mirror in the sources of apt")
    key = hashlib.sha256(repr((_RECIPE, mirror, _SLIM, _SECOND_LAYER, nasty_config())).encode())
    cached = CACHE / f"debian-{key.hexdigest()[:16]}"
    with _locked(CACHE / "lock"):
        if not cached.is_dir():
            with tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
                built = _build_debian(Path(directory), *mirror)
                unfinished = Path(tempfile.mkdtemp(dir=CACHE))
                shutil.copytree(built, unfinished / "layout").rename(cached)
                unfinished.rmdir()
    shutil.copytree(cached, dest, dirs_exist_ok=True)
    if tag != "latest":
        index = (dest / "index.json").read_text("utf-8")
        (dest / "index.json").write_text(index.replace('"latest"', json.dumps(tag)), "utf-8")
    return dest


def fast_directory() -> Path:
    """Return where to unpack a small system: in memory if that can hold one and run its programs.

    dpkg flushes every file to disk, which takes half of the time.
    """
    memory = Path("/dev/shm")
    try:
        about = os.statvfs(memory)
    except OSError:
        return Path(tempfile.gettempdir())
    room = about.f_bavail * about.f_frsize
    fit = room > 1024 * MiB and not about.f_flag & (os.ST_NOEXEC | os.ST_NODEV | os.ST_NOSUID)
    return memory if fit and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_debian(work: Path, mirror: str, release: str) -> Path:
    layout, bundle, debs = work / "layout", work / "bundle", work / "debs"
    image = f"{layout}:latest"
    debs.mkdir()
    fetch = f"cd '{debs}' && apt-get -q -o APT::Sandbox::User= download {' '.join(_SECOND_LAYER)}"
    run_mmdebstrap(
        work / "base.tar",
        mirror,
        release,
        "--variant=apt",
        f'--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; export APT_CONFIG; {fetch}',
    )
    parts.run(["umoci", "init", "--layout", layout])
    parts.run(["umoci", "new", "--image", image])
    parts.run(["umoci", "raw", "add-layer", "--image", image, work / "base.tar"])
    parts.run(["umoci", "unpack", "--image", image, bundle])
    root = bundle / "rootfs"
    shutil.copytree(debs, root / "debs")
    environment = {"PATH": NASTY_ENV["PATH"], "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    names = [f"/debs/{path.name}" for path in sorted(debs.iterdir())]
    parts.run(["chroot", root, "apt-get", "-y", "install", *names], env=environment)
    for path in (root / "debs", root / "usr/share/doc/apt", root / "usr/share/bash-completion"):
        shutil.rmtree(path, ignore_errors=True)
    (root / "etc/motd").unlink(missing_ok=True)
    parts.run(["umoci", "repack", "--image", image, bundle])
    reconfigure(layout, nasty_config())
    parts.run(["umoci", "gc", "--layout", layout])
    return layout


def run_mmdebstrap(archive: Path, mirror: str, release: str, *options: str) -> None:
    """Make a minimal Debian as the tar file `archive`; raise `CalledProcessError` if that fails."""
    slim = [f"--dpkgopt=path-exclude={pattern}" for pattern in _SLIM]
    subprocess.run(
        ["mmdebstrap", "--quiet", *slim, *options, release, str(archive), mirror],
        env={
            **parts.MACHINE_ENVIRONMENT,
            "SOURCE_DATE_EPOCH": str(EPOCH),
            "LC_ALL": "C.UTF-8",
            "TMPDIR": str(fast_directory()),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=300,
    )


def small_debian_image(dest: Path, *, tag: str = "latest") -> str:
    """Write a small image that runs on this machine, root or not; return in words what it is.

    The best that works: a minimal Debian; the machine's static busybox; its shell with libraries.
    """
    mirror = debian_mirror()
    config = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"], "Cmd": ["/bin/sh"]}
    if mirror is not None and shutil.which("mmdebstrap"):
        archive = dest.parent / f"{dest.name}.tar"
        try:
            run_mmdebstrap(archive, *mirror, "--variant=essential")
        except (OSError, subprocess.SubprocessError):
            archive.unlink(missing_ok=True)
        else:
            write_oci_layout(
                dest, [archive.read_bytes()], config, tag=tag, platform=this_platform()
            )
            archive.unlink()
            return f"Debian {mirror[1]}, the essential packages, by mmdebstrap"
    shell = find_static_shell()
    if shell is not None:
        layer, what = small_root(shell.read_bytes()), f"the static {shell} of this machine"
    else:
        layer, what = _copied_programs(), "the shell and a few programs of this machine"
    write_oci_layout(dest, [layer.done()], config, tag=tag, platform=this_platform())
    return what


def this_platform() -> str:
    """Return the platform of this machine as images name it."""
    machine = os.uname().machine
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _copied_programs() -> Tar:
    """Return a layer with programs of this machine and the libraries they ask for."""
    layer = Tar()
    files: dict[str, Path] = {}
    for name in ("sh", "cat", "echo", "id", "ls", "uname", "env", "head", "sleep"):
        program = shutil.which(name)
        if program is None:
            continue
        files[f"bin/{name}"] = Path(program)
        listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        for word in listing.stdout.split():
            if word.startswith("/"):
                files[word.lstrip("/")] = Path(word)
    for name in ("/etc/os-release", "/etc/debian_version"):
        if Path(name).is_file():
            files[name.lstrip("/")] = Path(name)
    layer.directory("tmp", 0o1777)
    for inside, path in sorted(files.items()):
        layer.file(inside, path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)
    return layer


# ---------------------------------------------------------------- everything a layer may contain

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


# ---------------------------------------------------------------- compare and carry


class Entry(NamedTuple):
    """What `lstat` and the content say about one path."""

    type: str  # file, directory, symlink, fifo, character, block, socket
    mode: int  # permission bits, 07777
    size: int  # bytes of a file; 0 for everything else
    sha256: str  # of a file's content; empty for everything else
    target: bytes  # of a symbolic link; empty for everything else
    mtime: int  # Unix seconds, rounded down
    uid: int
    gid: int
    device: int  # of a device node
    xattrs: tuple[tuple[str, bytes], ...]  # sorted by name; what labels the host adds is left out


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFSOCK: "socket",
}


def tree_of(path: Path) -> dict[bytes, Entry]:
    """Return every entry below `path` by its relative path; the root itself is `b""`."""
    root = os.fsencode(path)
    tree = {b"": _entry(root)}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            full = os.path.join(directory, name)
            tree[os.path.relpath(full, root)] = _entry(full)
    return tree


def _entry(path: bytes) -> Entry:
    about = os.lstat(path)
    is_file = stat.S_ISREG(about.st_mode)
    sha256 = ""
    if is_file:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    is_device = stat.S_ISCHR(about.st_mode) or stat.S_ISBLK(about.st_mode)
    return Entry(
        _TYPES[stat.S_IFMT(about.st_mode)],
        stat.S_IMODE(about.st_mode),
        about.st_size if is_file else 0,
        sha256,
        os.readlink(path) if stat.S_ISLNK(about.st_mode) else b"",
        about.st_mtime_ns // 10**9,
        about.st_uid,
        about.st_gid,
        about.st_rdev if is_device else 0,
        _xattrs(path),
    )


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = [
        name for name in os.listxattr(path, follow_symlinks=False) if name != "security.selinux"
    ]
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))


def umoci_unpack(layout: Path, tag: str = "latest", *, bundle: Path | None = None) -> Path:
    """Unpack with the reference implementation and return the root file system.

    `bundle`: a new directory for it; by default beside the layout.
    """
    bundle = bundle or layout.with_name(f"{layout.name}-{tag}-unpacked")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    umoci = parts.require("umoci")
    parts.run([umoci, "unpack", *rootless, "--image", f"{layout}:{tag}", bundle], umask=0o022)
    bundle.chmod(0o755)  # umoci lets nobody else in
    return bundle / "rootfs"


def push(
    layout: Path,
    destination: str,
    *,
    tag: str = "latest",
    username: str = "",
    password: str = "",
) -> str:
    """Copy `tag`, for all its platforms, to the registry reference `127.0.0.1:PORT/name:tag`.

    Nothing is converted on the way: return the manifest's digest, the same at both ends.
    """
    skopeo = parts.require("skopeo")
    login = [f"--dest-creds={username}:{password}"] if username else ["--dest-no-creds"]
    parts.run(
        [skopeo, "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests",
         "--dest-tls-verify=false", *login, f"oci:{layout}:{tag}", f"docker://{destination}"]
    )  # fmt: skip
    return manifest_digest(layout, tag)


def main(words: Sequence[str]) -> None:
    """Write `small_debian_image` for `make demo`: `python -m tests.images LAYOUT TAG`."""
    layout, tag = words
    what = small_debian_image(Path(layout), tag=tag)
    size = sum(path.stat().st_size for path in Path(layout, "blobs/sha256").iterdir())
    sys.stdout.write(f"{what}: {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
