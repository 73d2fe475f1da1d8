"""Run one target for a time: `python -m tests.fuzz TARGET --seconds 600`."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 4096  # bytes of one input
KEPT = 2048  # bytes of one input that is added to the corpus


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", help="what to fuzz; see --list")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--keep", type=int, default=0, help="add up to so many inputs to the corpus"
    )
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # of the process that fuzzes
    given = parser.parse_args()
    if given.work is not None:
        fuzz(given.target, given.work, given.seconds)
    names = sorted(path.name for path in CORPUS.iterdir())
    if given.list or given.target not in names:
        sys.stdout.write("\n".join(names) + "\n")
        return 0 if given.list else 2
    with tempfile.TemporaryDirectory() as name:
        return run(given.target, Path(name), given.seconds, given.keep)


def run(target: str, work: Path, seconds: int, keep: int) -> int:
    """Fuzz in a process of its own, since libFuzzer ends the one it runs in."""
    (work / "new").mkdir()
    words = [sys.executable, "-m", "tests.fuzz", target, "--work", str(work)]
    # with it, each error of Sequoia costs a second of looking up names of functions
    environment = {**os.environ, "RUST_BACKTRACE": "0"}
    status = subprocess.run(
        [*words, "--seconds", str(seconds)], env=environment, check=False
    ).returncode
    for found in sorted(work.glob("crash-*")) + sorted(work.glob("timeout-*")):
        target_file = Path(tempfile.gettempdir()) / f"{target}-{found.name}"
        shutil.copy(found, target_file)
        sys.stdout.write(f"{target_file}: {found.read_bytes()[:200]!r}\n")
        status = status or 1
    new = sorted((work / "new").iterdir(), key=lambda path: path.stat().st_size)
    small = [path for path in new if path.stat().st_size <= KEPT]
    for path in small[:: max(1, len(small) // max(1, keep))][:keep]:  # of every size
        shutil.copy(path, CORPUS / target / path.name)
    return status


def fuzz(target: str, work: Path, seconds: int) -> None:
    """Let Atheris call the target until the time is over; does not return."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["cvmfs_publish"]):
        targets = importlib.import_module("tests.fuzz.targets")
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={work}/",
        "-timeout=20",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup(
        [sys.argv[0], *options, str(work / "new"), str(CORPUS / target)], targets.TARGETS[target]
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
