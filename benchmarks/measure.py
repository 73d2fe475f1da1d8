"""Run a command and learn what it cost: time, processor time, memory of all its processes.

Memory is sampled, since no counter of the kernel covers a tree of processes without the page
cache.  Every `INTERVAL` the resident pages of the command and its descendants are added up.  That
sum counts a page once per process that shares it (forked workers share most of theirs), so where
it exceeds the peak known so far the proportional set size, which does not, is read as well.

Source: proc(5) on `statm`, `smaps_rollup`, `children` and `/proc/stat`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.02  # seconds; a sample takes about 0.3 ms
PAGE = os.sysconf("SC_PAGE_SIZE")
PROC = Path("/proc")


@dataclass(frozen=True)
class Cost:
    """What one run of a command took; bytes and seconds."""

    seconds: float
    cpu_seconds: float  # user and system, waited-for descendants included
    peak_memory: int  # largest sum of proportional set sizes over all processes
    peak_resident: int  # largest sum of resident set sizes: an upper bound of the former
    other_cpu_seconds: float  # of the whole machine meanwhile, less `cpu_seconds`: disturbance


class CommandError(Exception):
    """A command ended with an exit status other than 0; says which, how, and its last words."""


def run_measured(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    user: tuple[int, int] | None = None,
) -> tuple[Cost, bytes]:
    """Run `argv` to its end and return its cost and what it wrote to stdout.

    `user`: uid and gid to run as, for root only.  Raises `CommandError`.
    """
    identity = {"user": user[0], "group": user[1], "extra_groups": []} if user else {}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy = read_busy_seconds()
        started = time.perf_counter()
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            **identity,  # type: ignore[call-overload]  # three optional arguments of Popen
        )
        with _Sampler(process.pid) as sampler:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
        busy = read_busy_seconds() - busy
        process.returncode = os.waitstatus_to_exitcode(status)  # we waited, not Popen
        out.seek(0)
        written = out.read()
        if process.returncode:
            err.seek(0)
            last = (err.read()[-2000:] or written[-2000:]).decode("utf-8", "replace").strip()
            raise CommandError(f"{' '.join(argv)}: exit status {process.returncode}: {last}")
    cost = Cost(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_memory=sampler.peak_memory or usage.ru_maxrss * 1024,
        peak_resident=sampler.peak_resident or usage.ru_maxrss * 1024,
        other_cpu_seconds=max(0.0, busy - usage.ru_utime - usage.ru_stime),
    )
    return cost, written


class _Sampler:
    """Watches a process tree from a thread of its own, from `with` to its end."""

    def __init__(self, pid: int) -> None:
        self.peak_memory = 0
        self.peak_resident = 0
        self._root = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        rest = 0  # reading proportional sizes walks page tables: not at every sample
        while not self._done.wait(INTERVAL):
            pids = find_tree(self._root)
            resident = sum(map(read_resident, pids))
            self.peak_resident = max(self.peak_resident, resident)
            rest -= 1
            if resident > self.peak_memory and rest < 0:
                self.peak_memory = max(self.peak_memory, sum(map(read_proportional, pids)))
                rest = 2


def read_busy_seconds() -> float:
    """Return the processor time that all processors together spent on anything since boot.

    Includes what the hypervisor took away (`steal`).  Source: proc(5), `/proc/stat`.
    """
    cpu = (PROC / "stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, cpu[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def find_tree(root: int) -> list[int]:
    """Return a process and its living descendants; those it abandoned are missed."""
    found = [root]
    for pid in found:  # grows while it is walked
        try:
            for thread in os.scandir(PROC / str(pid) / "task"):
                found.extend(map(int, (Path(thread) / "children").read_text().split()))
        except OSError:  # ended meanwhile
            continue
    return found


def read_resident(pid: int) -> int:
    """Return the resident bytes of a process, 0 if it is gone."""
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def read_proportional(pid: int) -> int:
    """Return the bytes of a process, shared pages divided by how many share them.

    Another user's process does not tell; its resident bytes stand in.
    """
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return read_resident(pid)
    return 0
