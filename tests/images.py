"""Make real images, compare what they unpack to, and carry them into registries.

`tools/demo.py` uses some of this as well.  Tests find all helpers for images under this one name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests import parts
from tests.layouts import (
    EPOCH,
    Tar,
    manifest_digest,
    multi_platform_image,
    read_blob,
    reconfigure,
    write_oci_layout,
)
from tests.legal import (
    IMPLIED_DIRECTORIES,
    NASTY_COMMAND,
    NASTY_ENTRYPOINT,
    NASTY_ENV,
    NASTY_LABELS,
    NASTY_OUTPUT,
    NASTY_WORKDIR,
    hostile_but_legal_image,
    nasty_config,
    sparse_layer,
)

__all__ = [
    "EPOCH",
    "IMPLIED_DIRECTORIES",
    "NASTY_COMMAND",
    "NASTY_ENTRYPOINT",
    "NASTY_ENV",
    "NASTY_LABELS",
    "NASTY_OUTPUT",
    "NASTY_WORKDIR",
    "Entry",
    "Tar",
    "debian_image",
    "debian_mirror",
    "find_static_shell",
    "hostile_but_legal_image",
    "manifest_digest",
    "multi_platform_image",
    "nasty_config",
    "push",
    "read_blob",
    "reconfigure",
    "run_mmdebstrap",
    "small_debian_image",
    "sparse_layer",
    "tiny_image",
    "tree_of",
    "umoci_unpack",
    "write_oci_layout",
]

CACHE = parts.PARTS / "images"
GiB = 1024 * 1024 * 1024

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
    fit = room > GiB and not about.f_flag & (os.ST_NOEXEC | os.ST_NODEV | os.ST_NOSUID)
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
