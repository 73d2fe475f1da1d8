from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import CommandError, find_tree, run_measured
from benchmarks.publish import measure_objects, measure_tree

MiB = 1024 * 1024
ENVIRONMENT = {"PATH": os.defpath}

# Takes 64 MiB, then forks children that share it and take 32 MiB each of their own.
FAMILY = """
import os, sys, time
shared = bytearray(os.urandom(1)) * (64 * 1024 * 1024)
for _ in range(2):
    if os.fork() == 0:
        own = bytearray(b"x") * (32 * 1024 * 1024)
        time.sleep(0.8)
        os._exit(0)
for _ in range(2):
    os.wait()
print("done")
"""


def test_memory_of_all_processes_is_counted_and_shared_pages_once(tmp_path: Path) -> None:
    cost, output = run_measured([sys.executable, "-c", FAMILY], cwd=tmp_path, env=ENVIRONMENT)
    assert output == b"done\n"
    assert 128 * MiB <= cost.peak_memory < 190 * MiB
    assert cost.peak_resident >= (3 * 64 + 2 * 32) * MiB


def test_time_is_that_of_the_command(tmp_path: Path) -> None:
    cost, _ = run_measured(["sleep", "0.3"], cwd=tmp_path, env=ENVIRONMENT)
    assert 0.3 <= cost.seconds < 3
    assert cost.cpu_seconds < 0.25


def test_processor_time_of_children_is_counted(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.4: pass"
    script = '"$0" -c "$1" & "$0" -c "$1" & wait'
    cost, _ = run_measured(
        ["sh", "-c", script, sys.executable, busy], cwd=tmp_path, env=ENVIRONMENT
    )
    assert cost.cpu_seconds >= 0.8


def test_processor_time_of_others_is_told_apart(tmp_path: Path) -> None:
    busy = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as other:
        try:
            cost, _ = run_measured(["sleep", "1.5"], cwd=tmp_path, env=ENVIRONMENT)
        finally:
            other.kill()
    assert cost.other_cpu_seconds > 0.3
    assert cost.cpu_seconds < 0.25


def test_a_failed_command_tells_its_status_and_last_words(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"exit status 3: no space") as caught:
        run_measured(["sh", "-c", "echo no space >&2; exit 3"], cwd=tmp_path, env=ENVIRONMENT)
    assert "echo no space" in str(caught.value)


def test_only_the_given_environment_is_passed(tmp_path: Path) -> None:
    _, output = run_measured(["sh", "-c", "echo $A$HOME"], cwd=tmp_path, env={"A": "b"})
    assert output == b"b\n"


def test_descendants_are_found() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert find_tree(process.pid) == [process.pid, child]
        os.kill(child, 15)
    assert find_tree(process.pid) == [process.pid]  # gone, but no error


def test_objects_are_told_from_catalogs(tmp_path: Path) -> None:
    name = "0" * 38
    for size, path in enumerate(
        [name, f"{name}P", f"{name}-shake128", f"{name}-shake128P", f"{name}C", f"{name}-rmd160X"],
        start=1,
    ):
        (tmp_path / "ab").mkdir(exist_ok=True)
        (tmp_path / "ab" / path).write_bytes(b"x" * size)
    assert measure_objects(tmp_path) == (21, 10)


def test_a_tree_counts_hard_links_once_and_follows_no_links(tmp_path: Path) -> None:
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"x" * 1000)
    file = tmp_path / "tree/below/file"
    file.write_bytes(b"x" * 10)
    (tmp_path / "tree/link").hardlink_to(file)
    (tmp_path / "tree/out").symlink_to("../outside")
    assert measure_tree(tmp_path / "tree") == 10
