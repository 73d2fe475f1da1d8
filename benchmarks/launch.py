"""What `cvmfs-run` costs over the bare runtime: one start, many at a time, and its forks.

    python -m benchmarks.launch [--runs 100] [--starts 500] [--image DIR] [--runtime NAME]

The bare runtime gets exactly the command line that the launcher makes (`--dry-run` tells it), on
the same sandbox, as the same unprivileged user.  Single starts are interleaved; of many starts, 4
at a time, the two kinds take turns in blocks.  Forks are counted by strace until the runtime is
executed.  Without `--image` it is a static busybox, found by its name.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cvmfs_publish.sites.dry_run import runtime_command
from tests import parts
from tests.worker_node import IMAGE, WorkerNode, worker_node

AT_A_TIME = 4
BLOCKS = 5  # of many starts; each kind takes its turn in each
MAX_EXTRA_MS = 5.0
MAX_FORKS = 4
MAX_RATIO = 1.10
HEADER = "{:12} {:>8} {:>9} {:>7} {:>6} {:>8} {:>9} {:>6}"
FORMAT = "{:12} {:8.1f} {:9.1f} {:7.1f} {:6} {:8.1f} {:9.1f} {:6.3f}"
COLUMNS = ("runtime", "alone", "cvmfs-run", "more", "forks", "alone", "cvmfs-run", "ratio")
FORKS = re.compile(r"\b(?:clone3?|v?fork)\(.*= [0-9]+$", re.MULTILINE)


@dataclass(frozen=True)
class Start:
    """A way to start `true` in the image."""

    name: str
    argv: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


def run(start: Start, before: Sequence[str] = (), stdin: bytes = b"") -> float:
    """Run to the end as the unprivileged user; return seconds.  Ends the program if it fails."""
    user = parts.test_user()
    identity = {"user": user.uid, "group": user.gid, "extra_groups": []} if not os.geteuid() else {}
    began = time.perf_counter()
    done = subprocess.run(
        [*before, *start.argv],
        cwd="/",
        env={**parts.user_environment(user), **start.variables},
        input=stdin,
        capture_output=True,
        check=False,
        **identity,  # type: ignore[call-overload]  # three optional arguments of Popen
    )
    took = time.perf_counter() - began
    if done.returncode or done.stderr:
        sys.exit(f"{start.name}: ended with {done.returncode}: {done.stderr.decode()}")
    return took


def starts(node: WorkerNode, image: str, runtime: str, shell: Sequence[str]) -> tuple[Start, Start]:
    """Return the bare runtime and the launcher, doing the same."""
    words = [*shell, str(node.site / "bin" / "cvmfs-run"), "--runtime", runtime]
    user = parts.test_user()
    done = parts.run_as_test_user(
        [*words, "--dry-run", image, "--", "true"], cwd="/", env={"HOME": str(user.home)}
    )
    if done.returncode:
        sys.exit(done.stderr.decode())
    found = runtime_command(done.stdout.decode())
    if found is None:
        sys.exit(f"no command in {done.stdout.decode()!r}")
    bare = Start(f"{runtime} alone", found.argv, found.variables)
    return bare, Start("cvmfs-run", (*words, image, "--", "true"))


def count_forks(start: Start, runtime: str) -> int:
    """Return how often the launcher forks before it becomes the runtime."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        user = parts.test_user()
        os.chown(folder, user.uid, user.gid)
        trace = Path(folder, "trace")
        calls = "trace=clone,clone3,fork,vfork,execve"
        run(start, ["strace", "-f", "-qq", "-o", str(trace), "-e", calls])
        text = trace.read_text()
    launcher, _, _ = re.split(rf'(execve\("[^"]*/{runtime}")', text, maxsplit=1)
    return len(FORKS.findall(launcher))


def interleaved(both: tuple[Start, Start], runs: int) -> tuple[list[float], list[float]]:
    taken: tuple[list[float], list[float]] = [], []
    for number in range(runs):
        for which in (0, 1) if number % 2 else (1, 0):
            taken[which].append(run(both[which]) * 1000)
    return taken


def crowded(both: tuple[Start, Start], number: int) -> tuple[float, float]:
    """Return the seconds that `number` starts of each kind take, 4 at a time."""
    taken = [0.0, 0.0]
    numbers = "\n".join(map(str, range(number // BLOCKS))).encode()
    for block in range(BLOCKS):
        for which in (0, 1) if block % 2 else (1, 0):
            taken[which] += run(both[which], ["xargs", "-P", str(AT_A_TIME), "-n", "1"], numbers)
    return taken[0], taken[1]


def measure(node: WorkerNode, image: str, runtime: str, runs: int, many: int) -> bool:
    both = starts(node, image, runtime, ["dash"])
    for start in both:
        run(start)  # caches are warm from here on
    bare, launched = interleaved(both, runs)
    extra = statistics.median(launched) - statistics.median(bare)
    forks = count_forks(both[1], runtime)
    few, more = crowded(both, many)
    row = [statistics.median(bare), statistics.median(launched), extra, forks]
    row += [few / many * 1000, more / many * 1000, more / few]
    print(FORMAT.format(runtime, *row))
    # A runtime that starts in less time than the launcher needs cannot have the ratio.
    ratio_held = runtime != "apptainer" or more / few <= MAX_RATIO
    return extra <= MAX_EXTRA_MS and forks <= MAX_FORKS and ratio_held


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100, help="single starts of each kind")
    parser.add_argument("--starts", type=int, default=500, help="starts of each kind, 4 at a time")
    parser.add_argument("--image", help="folder of an image")
    parser.add_argument("--runtime", action="append", choices=["apptainer", "ch-run"])
    options = parser.parse_args()
    print("one start, ms; then starts 4 at a time, ms for each")
    print(HEADER.format(*COLUMNS))
    held = True
    for runtime in options.runtime or ["apptainer", "ch-run"]:
        with worker_node("", runtime) as node:
            image = options.image or IMAGE
            held &= measure(node, image, runtime, options.runs, options.starts)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
