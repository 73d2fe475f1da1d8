"""Publish the benchmark image from a loopback registry, next to the programs people use today.

    python benchmarks/publish.py [--repeat 3] [--json FILE] [--scale 0.01] [--only cvmfs umoci]

Every repetition starts from nothing: a new repository, a new destination.  All data is in the page
cache before the first step, earlier writes are flushed before each, and the order of the programs
rotates, so that none of them always follows the same other one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.coldstart import Access, Want, measure_splitting
from benchmarks.make_image import DEFAULT_DIRECTORY, TAGS, Image, format_image, make_image
from benchmarks.measure import CommandError, Cost, run_measured
from benchmarks.reference import read_stored_bytes
from benchmarks.registry import Registry, RegistryError, run_registry
from benchmarks.report import (
    APPTAINER,
    COLD,
    DIRECTORY,
    DIRECTORY_UPDATE,
    DUCC,
    DUCC_UPDATE,
    SERVER,
    SERVER_UPDATE,
    SKOPEO,
    STAND_IN,
    STAND_IN_UPDATE,
    UMOCI,
    UNCHANGED,
    UPDATE,
    Report,
    Run,
    Splitting,
    compare,
    format_report,
)
from cvmfs_publish.layers.tree import Directory, Tree
from tests.stock_host import StockHost, configure, find_real, real_host

CHECKOUT = Path(__file__).resolve().parent.parent
NAME = "bench.example.org"
_COMMAND = Path(sys.executable).with_name("cvmfs-publish")
OUR_PROGRAM = [str(_COMMAND)] if _COMMAND.exists() else [sys.executable, "-m", "cvmfs_publish"]
TEST_USER = "cvmfstest"  # runs what refuses to run as root
SECONDS_AGO = 60  # that a new repository was made
READ_BYTES = 4 * 1024 * 1024
# What a job reads in the made image, which has no program that could be traced: as many libraries
# and modules as `python3 -c 'import numpy'` in a Debian image (benchmarks/README.md).
JOB_LISTS = ("etc", "usr/lib/x86_64-linux-gnu", "opt/conda/lib/python3.11/site-packages")
JOB_LIBRARIES = {"usr/lib/x86_64-linux-gnu": 12, "opt/conda/lib": 10, "usr/bin": 1, "etc": 3}
JOB_PACKAGES = "opt/conda/lib/python3.11/site-packages"
JOB_MODULES = 150
JOB_FILE_BYTES = 8_000_000  # larger ones are for other jobs, but for the one below
JOB_LARGE = "/opt/conda/lib/libopenblasp-r0.3.27.so"
# A data or chunk object; catalogs, history, certificates and the like end in another letter.
_CONTENT_OBJECT = re.compile(r"[0-9a-f]{38}(-[a-z0-9]+)?P?")


@dataclass(frozen=True)
class Measured:
    """What a command cost, asked the registry for, and wrote."""

    cost: Cost
    requests: dict[str, int]
    output: bytes


@dataclass(frozen=True)
class Bench:
    """What all steps need."""

    image: Image
    registry: Registry
    work: Path  # emptied between steps

    @property
    def layers(self) -> frozenset[str]:
        """Digests of all layers."""
        return frozenset(blob.digest for blob in self.image.blobs)

    def reference(self, tag: str) -> str:
        """Return the name of a tag in the registry."""
        return f"{self.registry.host}/bench:{tag}"

    def measure(self, argv: Sequence[str], user: tuple[int, int] | None = None) -> Measured:
        """Run a command in the working folder on a calm disk; count the requests it makes."""
        mark = self.registry.mark()
        os.sync()
        environment = _environment(self.work)
        cost, output = run_measured(argv, cwd=self.work, env=environment, user=user)
        return Measured(cost, dict(self.registry.requests(mark, self.layers)), output)


def _environment(home: Path) -> dict[str, str]:
    """No proxy, login or setting of whoever runs this takes part."""
    own = find_program("apptainer")
    path = os.environ.get("PATH", os.defpath)
    return {
        "PATH": f"{Path(own).parent}:{path}" if own else path,
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "APPTAINER_CACHEDIR": str(home / "cache"),
        "APPTAINER_TMPDIR": str(home),
    }


def find_program(name: str) -> str | None:
    """Return where a program is: what this checkout installed, then the search path."""
    for own in sorted((CHECKOUT / ".parts").glob(f"*/bin/{name}")):
        return str(own)
    return shutil.which(name)


def run_cvmfs_publish(bench: Bench) -> Iterator[Run]:
    """Publish into a new repository, publish one more layer, publish that again."""
    program = OUR_PROGRAM
    repository = bench.work / "repository"
    bench.measure([*program, "init", NAME, "--storage", str(repository), "--keys", "keys"])
    before = (0, 0)
    for step, tag in ((COLD, "base"), (UPDATE, "update"), (UNCHANGED, "update")):
        done = bench.measure([*program, "publish", bench.reference(tag), "--json"])
        _check_status(done.output, "unchanged" if step == UNCHANGED else "published")
        total, contents = measure_objects(repository / "data")
        yield Run(step, done.cost, done.requests, total - before[0], contents - before[1])
        before = (total, contents)


def run_directory(bench: Bench) -> Iterator[Run]:
    """Publish into a new plain tree, then publish one more layer."""
    tree = bench.work / "tree"
    bench.measure([*OUR_PROGRAM, "init", NAME, "--backend", "directory", "--storage", str(tree)])
    yield from _run_backend(bench, DIRECTORY, DIRECTORY_UPDATE, tree)


def run_cvmfs_server(bench: Bench) -> Iterator[Run]:
    """Publish into a new repository of `cvmfs_server`, then publish one more layer.

    Where the real program cannot be used its stand-in takes its place, and its name.
    """
    program = find_real()
    if program is None:
        host = StockHost(bench.work / "host", int(time.time()) - SECONDS_AGO)
        (host.base / "clock").unlink()
        configure(bench.work, host)
        yield from _run_backend(bench, STAND_IN, STAND_IN_UPDATE, host.base / "srv")
        return
    try:
        with real_host(program) as real:
            bench.measure([*OUR_PROGRAM, "init", real.name, "--backend", "cvmfs_server"])
            yield from _run_backend(bench, SERVER, SERVER_UPDATE, Path("/srv/cvmfs") / real.name)
    except pytest.fail.Exception as error:
        raise CommandError(str(error)) from error


def run_ducc(bench: Bench) -> Iterator[Run]:
    """Let DUCC do the same with `cvmfs_server`, podman's store left out: image, one more layer."""
    program, ducc = find_real(), shutil.which("cvmfs_ducc")
    if program is None or ducc is None:
        raise FileNotFoundError("cvmfs_ducc and a cvmfs_server that can be used are not both here")
    try:
        with real_host(program) as real:
            before = 0
            for step, tag in ((DUCC, "base"), (DUCC_UPDATE, "update")):
                wish = f"http://{bench.reference(tag)}"
                done = bench.measure(
                    [ducc, "convert-single-image", "-p", "-t", str(bench.work), wish, real.name]
                )
                if not any(real.mount.glob(f"*:*/**/bench:{tag}/etc")):
                    raise CommandError(
                        f"cvmfs_ducc ended with 0, but {bench.reference(tag)} is not there"
                    )
                total = measure_tree(Path("/srv/cvmfs") / real.name)
                yield Run(step, done.cost, done.requests, total - before)
                before = total
    except pytest.fail.Exception as error:
        raise CommandError(str(error)) from error


def _run_backend(bench: Bench, cold: str, update: str, storage: Path) -> Iterator[Run]:
    before = 0
    for step, tag in ((cold, "base"), (update, "update")):
        done = bench.measure([*OUR_PROGRAM, "publish", bench.reference(tag), "--json"])
        _check_status(done.output, "published")
        total = measure_tree(storage)
        yield Run(step, done.cost, done.requests, total - before)
        before = total


def _check_status(output: bytes, expected: str) -> None:
    """Raise `CommandError` unless the command did what its time is shown for."""
    found = [image["status"] for image in json.loads(output)["images"]]
    if found != [expected]:
        raise CommandError(f"cvmfs-publish publish: status {found}, expected [{expected!r}]")


def run_umoci(bench: Bench) -> Iterator[Run]:
    """Unpack from the local layout, not even from the registry."""
    rootless = ["--rootless"] if os.geteuid() else []
    image = f"{bench.image.directory.resolve()}:base"
    done = bench.measure(
        ["umoci", "unpack", *rootless, "--image", image, str(bench.work / "bundle")]
    )
    yield Run(UMOCI, done.cost, done.requests, measure_tree(bench.work / "bundle/rootfs"))


def run_skopeo(bench: Bench) -> Iterator[Run]:
    """Copy out of the registry; nothing is unpacked: a lower bound for the download."""
    source = f"docker://{bench.reference('base')}"
    done = bench.measure(
        ["skopeo", "copy", "-q", "--src-tls-verify=false", source, f"oci:{bench.work}/copy:base"]
    )
    yield Run(SKOPEO, done.cost, done.requests, measure_tree(bench.work / "copy"))


def run_apptainer(bench: Bench) -> Iterator[Run]:
    """Build a sandbox from the registry, as root or, if it refuses, as the test user."""
    program = find_program("apptainer") or "apptainer"
    source = f"docker://{bench.reference('base')}"
    target = bench.work / "sandbox"
    argv = [program, "-q", "build", "--no-https", "--disable-cache", "--sandbox", str(target)]
    try:
        done = bench.measure([*argv, source])
    except CommandError:
        if os.geteuid():
            raise
        entry = pwd.getpwnam(TEST_USER)
        _empty(bench.work)
        os.chown(bench.work, entry.pw_uid, entry.pw_gid)
        try:
            done = bench.measure([*argv, source], (entry.pw_uid, entry.pw_gid))
        finally:
            os.chown(bench.work, 0, 0)
    yield Run(APPTAINER, done.cost, done.requests, measure_tree(target))


PROGRAMS: dict[str, Callable[[Bench], Iterator[Run]]] = {
    "cvmfs": run_cvmfs_publish,
    "directory": run_directory,
    "cvmfs_server": run_cvmfs_server,
    "ducc": run_ducc,
    "umoci": run_umoci,
    "skopeo": run_skopeo,
    "apptainer": run_apptainer,
}


def measure_objects(data: Path) -> tuple[int, int]:
    """Return the bytes of all objects below `data`, and of those that hold file contents."""
    total = contents = 0
    for path in data.glob("??/*"):
        size = path.stat().st_size
        total += size
        contents += size if _CONTENT_OBJECT.fullmatch(path.name) else 0
    return total, contents


def measure_tree(root: Path) -> int:
    """Return the bytes of the regular files below `root`, hard links counted once."""
    sizes: dict[int, int] = {}
    for directory, _, names in os.walk(root):
        for name in names:
            facts = os.lstat(os.path.join(directory, name))
            if stat.S_ISREG(facts.st_mode):
                sizes[facts.st_ino] = facts.st_size
    return sum(sizes.values())


def plan_job(tree: Tree) -> list[Access]:
    """Return what a job does in the made image: the same for equal images."""
    job = [Access(Want.LIST, f"/{path}") for path in JOB_LISTS]
    job.append(Access(Want.READ, JOB_LARGE))
    for path, count in JOB_LIBRARIES.items():
        job += [Access(Want.READ, file) for file in _small_files(tree, path)[:count]]
    packages = tree.find(JOB_PACKAGES)
    modules: list[str] = []
    if isinstance(packages, Directory):
        for name in sorted(packages.children):
            if len(modules) < JOB_MODULES:
                below = [path for path, entry in tree.walk() if isinstance(entry, Directory)
                         and f"{path}/".startswith(f"{JOB_PACKAGES}/{name}/")]  # fmt: skip
                modules += [file for path in below for file in _small_files(tree, path)]
    return job + [Access(Want.READ, file) for file in modules[:JOB_MODULES]]


def _small_files(tree: Tree, directory: str) -> list[str]:
    """Return the files directly in a directory that a job might read, in the order of names."""
    found = tree.find(directory)
    if not isinstance(found, Directory):
        return []
    return [
        f"/{directory}/{name}"
        for name, child in sorted(found.children.items())
        if not isinstance(child, Directory) and child.is_file and child.size < JOB_FILE_BYTES
    ]


def _empty(directory: Path) -> None:
    """Remove a folder with whatever permissions an image left in it, and make it anew."""
    if directory.exists():
        subprocess.run(["chmod", "-R", "u+rwX", str(directory)], check=False, capture_output=True)
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def _push(image: Image, registry: Registry) -> None:
    for tag in TAGS:
        subprocess.run(
            ["skopeo", "copy", "-q", "--dest-tls-verify=false",
             f"oci:{image.directory.resolve()}:{tag}", f"docker://{registry.host}/bench:{tag}"],
            check=True,
        )  # fmt: skip


def _warm(*directories: Path) -> None:
    """Read every file once, so that all steps find the page cache alike."""
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    while file.read(READ_BYTES):
                        pass


def run_benchmark(image: Image, work: Path, repeat: int, programs: Sequence[str]) -> Report:
    """Run everything `repeat` times and return what was measured.

    A program that is missing or fails is left out from then on, with a note; ours must work.
    Raises `CommandError` and `RegistryError`.
    """
    runs: list[Run] = []
    notes: list[str] = []
    splitting: Splitting | None = None
    wanted = list(programs)
    zlib6 = read_stored_bytes(
        image.directory, [blob.digest for blob in image.blobs[: TAGS["base"]]]
    )
    _empty(work)
    with run_registry(work / "registry") as registry:
        _push(image, registry)
        _warm(image.directory, registry.root)
        bench = Bench(image, registry, work / "step")
        for repetition in range(repeat):
            start = repetition % len(programs)
            for name in (*programs[start:], *programs[:start]):
                if name not in wanted:
                    continue
                _empty(bench.work)
                try:
                    for run in PROGRAMS[name](bench):
                        runs.append(run)
                        _say(f"{repetition + 1}/{repeat} {run.step}: {run.cost.seconds:.2f} s")
                    if name == "cvmfs" and splitting is None:
                        public = bench.reference("base")
                        splitting = measure_splitting(bench.work / "repository", public, plan_job)
                except (CommandError, FileNotFoundError, KeyError) as error:
                    if name == "cvmfs":
                        raise
                    wanted.remove(name)
                    notes.append(f"{name} left out: {error}")
                    _say(notes[-1])
    _empty(work)
    work.rmdir()
    return Report(runs, zlib6, notes, splitting)


def describe_machine() -> dict[str, object]:
    """Return what the numbers depend on besides the programs' own speed."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = {}
    for name, option in (
        ("umoci", "--version"), ("skopeo", "--version"), ("apptainer", "--version")
    ):  # fmt: skip
        program = find_program(name)
        if program:
            told = subprocess.run([program, option], capture_output=True, text=True, check=False)
            versions[name] = told.stdout.strip()
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "versions": versions,
    }


def write_json(path: Path, image: Image, report: Report) -> None:
    """Write everything measured, for other programs to read."""
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "image": {
            "scale": image.scale,
            "gzip_bytes": image.gzip_bytes,
            **dataclasses.asdict(image.shape),
        },
        "zlib6_bytes": report.zlib6,
        "runs": [dataclasses.asdict(run) for run in report.runs],
        "splitting": dataclasses.asdict(report.splitting) if report.splitting else None,
        "targets": [dataclasses.asdict(target) for target in compare(report)],
        "notes": list(report.notes),
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description="Publish the benchmark image; compare and time.")
    parser.add_argument("--image", type=Path, help="OCI layout made by make_image.py")
    parser.add_argument("--scale", type=float, default=1.0, help="of the image, if it is made")
    parser.add_argument("--work", type=Path, default=Path(".benchmarks/work"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    directory = options.image or (
        DEFAULT_DIRECTORY
        if options.scale == 1
        else DEFAULT_DIRECTORY.with_name(f"image-{options.scale:g}")
    )
    try:
        _say(f"making {directory} unless it is there")
        image = make_image(directory, options.scale)
        _say(format_image(image))
        report = run_benchmark(image, options.work.resolve(), options.repeat, options.only)
    except (CommandError, RegistryError, OSError, subprocess.CalledProcessError) as error:
        _say(str(error))
        return 2
    print(format_report(report))
    if options.json:
        write_json(options.json, image, report)
    missed = [target for target in compare(report) if not target.kept]
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
