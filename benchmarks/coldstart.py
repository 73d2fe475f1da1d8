"""Tell what a worker with an empty cache fetches before a job in a published image has started.

    python -m benchmarks.coldstart ROOT [--work DIRECTORY] [-- COMMAND ARGUMENT ...]

ROOT is a file system of a container image (what mmdebstrap unpacks, a sandbox).  COMMAND, by
default `python3 -c 'import numpy'`, runs in it under strace; ROOT is published; and the system
calls are replayed against the repository as a client would serve them.  Every path component is
looked up, symbolic links lead on inside the image, and

- a lookup, found or not, and a listing need the catalog of the longest mountpoint above the name
  (the name itself included), and all catalogs on the way to it;
- a file that is opened needs its object, or all of its chunks.

The same is told of the image in one catalog, as it would be if it were not divided.
Source: facts/cvmfs-format.md section 3.9, "Client resolution".
"""

from __future__ import annotations

import argparse
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from benchmarks.make_image import Blob, write_index
from benchmarks.registry import RegistryError, run_registry
from benchmarks.report import Splitting, format_splitting
from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import CATALOG_LEVEL, compress
from cvmfs_publish.layers.tree import (
    MAX_LINKS,
    Content,
    Directory,
    Node,
    RepoPath,
    Tree,
    decode_name,
    node_of,
)
from cvmfs_publish.repository.native.build import TreeBuilder
from cvmfs_publish.repository.native.catalog import MARKER, join_path, split_path
from cvmfs_publish.repository.native.reader import Snapshot, browse_snapshot

# What strace is told: `-y` writes the path behind every descriptor.
STRACE = ("strace", "-f", "-y", "-e", "trace=%file,getdents64")
_CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)")
_LISTING = re.compile(r"\d+<(/[^>]*)>")
# Directory descriptor, if the call has one, and the path; both as the kernel sees them.
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)")
_NEW_ROOT = frozenset({"chroot", "pivot_root"})
_OPENING = frozenset({"open", "openat", "openat2", "execve", "execveat"})
_LOOKING = frozenset(
    {"access", "faccessat", "faccessat2", "stat", "lstat", "newfstatat", "statx", "statfs"}
    | {"readlink", "readlinkat", "chdir", "getxattr", "lgetxattr", "inotify_add_watch"}
)


class Want(Enum):
    """What a system call wants to know of a path."""

    LOOKUP = "lookup"  # whether it is there, its metadata
    READ = "read"  # its content
    LIST = "list"  # the names in it


class Access(NamedTuple):
    """One thing a job did; `path` is absolute inside the image."""

    want: Want
    path: str


def parse_strace(lines: Iterable[str], root: str) -> list[Access]:
    """Return what a program that runs in the directory `root` did, in order, without repetitions.

    What comes before the first `chroot` is not the program's doing.
    """
    done: dict[Access, None] = {}
    started = False
    for line in lines:
        match = _CALL.match(line)
        if match is None:
            continue
        call, rest = match[1], match[2]
        if call in _NEW_ROOT:
            started, done = True, {}
        elif started and (access := _parse_call(call, rest, root)) is not None:
            done[access] = None
    return list(done)


def _parse_call(call: str, rest: str, root: str) -> Access | None:
    if call == "getdents64":
        listing = _LISTING.match(rest)
        return Access(Want.LIST, _inside(listing[1], root)) if listing else None
    if call not in _OPENING and call not in _LOOKING:
        return None
    match = _PATH.match(rest)
    if match is None or not match[2]:
        return None
    path = decode_name(_ESCAPE.sub(_unescape, match[2]).encode("latin-1"))
    if not path.startswith("/"):
        path = f"{_inside(match[1] or '', root)}/{path}"
    # Opened to be listed, or to be followed from: not to be read.
    reads = call in _OPENING and "O_DIRECTORY" not in rest and "O_PATH" not in rest
    return Access(Want.READ if reads else Want.LOOKUP, path)


def _inside(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/")) or "/"


def _unescape(match: re.Match[str]) -> str:
    """Return the character whose number is that of the byte."""
    text = match[1]
    return chr(int(text, 8)) if text[0] in "01234567" else {"n": "\n", "t": "\t"}.get(text, text)


@dataclass(slots=True)
class Touched:
    """What of an image a job needs; paths relative to the image."""

    names: set[RepoPath] = field(default_factory=lambda: {""})  # looked up or listed
    files: dict[RepoPath, Node] = field(default_factory=dict)  # read


def replay(accesses: Iterable[Access], lookup: Callable[[RepoPath], Node | None]) -> Touched:
    """Return what the accesses touch in the image whose entries `lookup` returns."""
    touched = Touched()
    for want, path in accesses:
        found = _walk(path, lookup, touched.names)
        if found is not None and want is Want.READ and stat.S_ISREG(found[1].mode):
            touched.files[found[0]] = found[1]
    return touched


def _walk(
    path: str, lookup: Callable[[RepoPath], Node | None], names: set[RepoPath]
) -> tuple[RepoPath, Node] | None:
    """Follow a path as the kernel does; add every name that is looked up."""
    todo = [name for name in reversed(path.split("/")) if name not in ("", ".")]
    here, node, links = "", lookup(""), 0
    while todo:
        name = todo.pop()
        if name == "..":
            here = here.rpartition("/")[0]
            node = lookup(here)
            continue
        place = join_path(here, name)
        names.add(place)
        node = lookup(place)
        if node is None:
            return None
        if node.is_symlink:
            links += 1
            if links > MAX_LINKS:
                return None
            here = "" if node.target.startswith("/") else here
            todo += [part for part in reversed(node.target.split("/")) if part not in ("", ".")]
            node = lookup(here)
            continue
        here = place
    return (here, node) if node is not None else None


def needed_roots(names: Iterable[RepoPath], nested: Iterable[RepoPath]) -> set[RepoPath]:
    """Return those of the catalog roots `nested` that a client loads to look all `names` up."""
    roots = set(nested)
    needed = set()
    for name in names:
        while name and name not in needed:
            if name in roots:
                needed.add(name)
            name = name.rpartition("/")[0]
    return needed


def objects_of(nodes: Iterable[Node]) -> Iterator[tuple[ContentHash, Suffix]]:
    """Yield the objects of files that are read, each as often as it is named."""
    for node in nodes:
        content = node.content
        if content is None:
            continue
        if content.chunks:
            yield from ((chunk.hash, Suffix.CHUNK) for chunk in content.chunks)
        elif content.hash is not None:
            yield content.hash, Suffix.DATA


def read_image(snapshot: Snapshot, sandbox: RepoPath) -> Tree:
    """Return the tree of a published image, without the markers of its catalogs."""
    top = snapshot.lookup(sandbox)
    if top is None:
        raise ValueError(f"/{sandbox} is not in the repository")
    root = Directory(top.node)
    known = {sandbox: root}
    for row in snapshot.walk(sandbox):
        parent, name = split_path(row.path)
        if name == MARKER:
            continue
        if row.node.is_dir:
            known[row.path] = Directory(row.node)
        known[parent].children[name] = known.get(row.path, row.node)
    return Tree(root)


def measure_splitting(
    repository: Path, name: RepoPath, trace: Callable[[Tree], Iterable[Access]]
) -> Splitting:
    """Return what dividing the image that the public name leads to costs and saves.

    `trace` tells what a job does in the image.
    """
    with browse_snapshot(repository) as snapshot:
        sandbox = snapshot.resolve(name)
        if sandbox is None:
            raise ValueError(f"/{name} leads nowhere")
        tree = read_image(snapshot, sandbox)

        def lookup(path: RepoPath) -> Node | None:
            entry = tree.find(path)
            return node_of(entry) if entry is not None else None

        touched = replay(trace(tree), lookup)
        refs = dict(snapshot.catalogs())
        names = {name, sandbox, *(join_path(sandbox, each) for each in touched.names if each)}
        needed = needed_roots(names, refs) | {""}
        below = {path for path in refs if path == sandbox or path.startswith(f"{sandbox}/")}
        sizes = {
            path: snapshot.origin.size(ref.hash.path(Suffix.CATALOG)) or 0
            for path, ref in refs.items()
        }
        algorithm = snapshot.manifest.root_hash.algorithm
        seconds, _ = _build(tree, sandbox, below - {sandbox}, algorithm)
        seconds_whole, size_whole = _build(tree, sandbox, set(), algorithm)
        objects = {
            content_hash.path(kind) for content_hash, kind in objects_of(touched.files.values())
        }
        above = sum(sizes[path] for path in needed - below)
        return Splitting(
            catalogs=len(below),
            stored=sum(sizes[path] for path in below),
            stored_whole=size_whole,
            seconds=seconds,
            seconds_whole=seconds_whole,
            loaded=len(needed),
            loaded_whole=len(needed - below) + 1,
            loaded_bytes=sum(sizes[path] for path in needed),
            loaded_bytes_whole=above + size_whole,
            object_bytes=sum(snapshot.origin.size(path) or 0 for path in objects),
        )


def _build(
    tree: Tree, sandbox: RepoPath, nested: set[RepoPath], algorithm: HashAlgorithm
) -> tuple[float, int]:
    """Build the catalogs of an image anew; return processor seconds and stored bytes."""
    with tempfile.TemporaryDirectory() as directory:
        store = LocalStore(Path(directory))
        store.create()
        empty = Content(ContentHash.of(b"", algorithm))
        builder = TreeBuilder(store, algorithm, empty, timestamp=1, new=[])
        started = time.process_time()
        built = builder.build(sandbox, tree.root, nested)
        seconds = time.process_time() - started
        # Catalogs of a size that no image has by default are compressed less: compare like alike.
        data = zlib.decompress(store.read(built.ref.hash, Suffix.CATALOG))
        return seconds, len(compress(data, CATALOG_LEVEL))


# the command line

NAME = "coldstart.example.org"
COMMAND = ("python3", "-c", "import numpy")
_PATH_INSIDE = "/opt/conda/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin"


def record_trace(root: Path, command: Sequence[str], scratch: Path) -> list[Access]:
    """Run a command in `root`, which needs the right to change roots; return what it did."""
    log = scratch / "trace"
    environment = ["env", "-i", f"PATH={_PATH_INSIDE}", "LANG=C.UTF-8", "HOME=/"]
    subprocess.run(
        [*STRACE, "-o", str(log), "chroot", str(root), *environment, *command],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    with log.open(encoding="ascii") as lines:  # strace escapes everything else
        return parse_strace(lines, str(root))


def publish_root(root: Path, work: Path) -> tuple[Path, RepoPath]:
    """Publish a file system as an image of one layer; return the repository and the name."""
    layout = work / "image"
    (layout / "blobs/sha256").mkdir(parents=True)
    unnamed = layout / "layer"
    subprocess.run(
        ["tar", "--one-file-system", "--numeric-owner", "-I", "gzip -1", "-C", str(root), "-cf",
         str(unnamed), "."],
        check=True,
    )  # fmt: skip
    digests = [
        subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout[:64]
        for command in (f"sha256sum <{unnamed}", f"gzip -dc <{unnamed} | sha256sum")
    ]
    size = unnamed.stat().st_size
    unnamed.rename(layout / "blobs/sha256" / digests[0])
    write_index(layout, [Blob(f"sha256:{digests[0]}", size, f"sha256:{digests[1]}", 0)])
    repository = work / "repository"
    program = [sys.executable, "-m", "cvmfs_publish"]
    places = ["--storage", str(repository), "--keys", str(work / "keys")]
    with run_registry(work / "registry") as registry:
        image = f"{registry.host}/cold:base"
        for command in (
            ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:base",
             f"docker://{image}"],
            [*program, "init", NAME, *places],
            [*program, "publish", "-q", image],
        ):  # fmt: skip
            subprocess.run(command, cwd=work, check=True)
    return repository, image


def main() -> int:
    """Publish the file system the command line names, and tell what a job in it fetches."""
    parser = argparse.ArgumentParser(description="What a job fetches with an empty cache.")
    parser.add_argument("root", type=Path, help="the file system of an image")
    parser.add_argument("--work", type=Path, default=Path(".benchmarks/coldstart"))
    parser.add_argument("command", nargs="*", default=list(COMMAND))
    options = parser.parse_args()
    root, work = options.root.resolve(), options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        accesses = record_trace(root, options.command, work)
        repository, name = publish_root(root, work)
    except (RegistryError, OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 2
    splitting = measure_splitting(repository, name, lambda _: accesses)
    shutil.rmtree(work)
    print(f"{options.root}: {' '.join(options.command)}: {len(accesses)} accesses\n")
    print(format_splitting(splitting))
    return 0 if splitting.is_worth_it else 1


if __name__ == "__main__":
    sys.exit(main())
