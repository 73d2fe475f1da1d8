"""Measure on this node how long a job takes to start, for every way an image can be had.

The rows are those of the question every site asks: a bare process, the runtime on a local sandbox,
`cvmfs-run` on the same, CernVM-FS warm, CernVM-FS cold, and the fallback.  Runs of all cases are
interleaved, so that what disturbs the node disturbs them alike.
"""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.repository.fallback import LIST_PATH
from cvmfs_publish.sites.dry_run import runtime_command
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.values import HostPath, ScratchPlace
from cvmfs_publish.sites.writing import write_site

JOB = "true"  # looked up in the image: a start, and nothing else
START_SECONDS = 3600  # a start that takes longer is given up; a download may take most of it
_TERMINAL = re.compile(r"\x1b\[[0-9;]*m")  # colours of messages


@dataclass(frozen=True, slots=True)
class Case:
    """One way to start a job: the command that is timed, and what comes before the clock runs."""

    name: str
    argv: tuple[str, ...] = ()
    runs: int = 0
    before: Callable[[], None] | None = None
    note: str = ""  # why it is not measured, or what was special
    variables: Mapping[str, str] = field(default_factory=dict)  # added to the environment


@dataclass(frozen=True, slots=True)
class Row:
    """What the runs of one case took, seconds; without runs `note` says why."""

    name: str
    seconds: tuple[float, ...]
    note: str

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The quartiles: half of the starts took between these."""
        if not self.seconds:
            return None
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.  `local`: a copy of the image on a local disk; without one it is made."""

    image: str
    local: Path | None
    runs: int
    cold_runs: int


class Bench:
    """The measurement of one image at one site; `work` is an empty folder on a local disk.

    `environ`: that of the caller, PATH included.  Raises `InputError` when the image or a runtime
    is not there, and `RemoteError` when the node cannot reach it now.
    """

    def __init__(self, site: Site, templates: Path, work: Path, environ: Mapping[str, str]) -> None:
        self.site = site
        self.templates = templates
        self.work = work
        self.environ = dict(environ)
        self.launcher = self._render(site, work / "site") / "bin" / "cvmfs-run"

    def measure(self, plan: Plan, told: Callable[[str], None]) -> list[Row]:
        """Return one row for every case; `told` hears what is begun.

        A case that fails has a row that says why, whatever it measured before.
        """
        path, why = self._find_or_why(plan)
        cases = [
            Case("bare process", (self._which(JOB),), plan.runs),
            *self._local_cases(path, plan, told),
            *self._cvmfs_cases(path, plan, why),
            *self._fallback_cases(path, plan),
        ]
        seconds: dict[str, list[float]] = {case.name: [] for case in cases}
        failed: dict[str, str] = {}
        for number in range(max(case.runs for case in cases)):
            for case in cases:
                if number >= case.runs or case.name in failed:
                    continue
                if number == 0:
                    told(f"{case.name}: {case.runs} runs")
                try:
                    seconds[case.name].append(self._time(case))
                except RemoteError as exc:
                    failed[case.name] = str(exc)
                    seconds[case.name] = []
        return [
            Row(case.name, tuple(seconds[case.name]), failed.get(case.name, case.note))
            for case in cases
        ]

    def _find_or_why(self, plan: Plan) -> tuple[str, str]:
        """Return the image's folder, or "" and why there is none where a local copy will do."""
        try:
            return self.find(plan.image), ""
        except RemoteError as exc:
            if plan.local is None:
                raise
            return "", str(exc)

    def find(self, image: str) -> str:
        """Return the folder of an image, as a job finds it; the first start is made here."""
        script = 'printf %s "$CVMFS_RUN_IMAGE_PATH"'
        argv = [str(self.launcher), "--no-fallback", image, "--", "sh", "-c", script]
        done = self._run(argv)
        if done.returncode:
            kind = RemoteError if done.returncode in (69, 71, 75) else InputError
            raise kind(
                f"{image}: no job can be started in it: {_last_words(done)}",
                hint="`bin/node-check IMAGE` of the rendered site says what this node lacks",
            )
        return done.stdout

    def _local_cases(self, path: str, plan: Plan, told: Callable[[str], None]) -> list[Case]:
        local = plan.local
        if local is None:
            local = self.work / "local"
            told(f"copying {path} to {local}")
            try:
                shutil.copytree(path, local, symlinks=True, ignore=_special_files)
            except OSError as exc:
                why = exc.strerror or str(exc)[:300]  # every file of a tree, without an end
                raise InputError(
                    f"{path}: cannot be copied to {local}: {why}",
                    hint="name another disk with --work, or a copy from `export` with --local",
                ) from exc
        return [
            self._runtime_case(str(local), plan.runs),
            Case("cvmfs-run, local sandbox", self._launch(str(local)), plan.runs),
        ]

    def _cvmfs_cases(self, path: str, plan: Plan, why: str) -> list[Case]:
        warm, cold = "cvmfs-run, CVMFS warm", "cvmfs-run, CVMFS cold"
        repository = self._repository_of(path)
        if not repository:
            note = why or f"{path} is not below {self.site.cvmfs}/"
            return [Case(warm, note=note), Case(cold, note=note)]
        emptied = self._run(["cvmfs_talk", "-i", repository, "cleanup", "0"])
        if emptied.returncode:
            last = Case(cold, note=f"the client's cache cannot be emptied: {_last_words(emptied)}")
        else:
            self._run(self._launch(plan.image))  # the first run of the warm case is warm
            last = Case(
                cold,
                self._launch(plan.image),
                plan.cold_runs,
                before=lambda: self._empty(repository),
                note="the client's cache was emptied before each run, no other one",
            )
        return [Case(warm, self._launch(plan.image), plan.runs), last]

    def _empty(self, repository: str) -> None:
        self._run(["cvmfs_talk", "-i", repository, "cleanup", "0"])
        self._run(["cvmfs_talk", "-i", repository, "drop", "metadata", "caches"])

    def _fallback_cases(self, path: str, plan: Plan) -> list[Case]:
        """The image through the site's fallback, into a cache of our own that is empty at first."""
        cold, warm = "fallback, download and run", "fallback, downloaded before"
        ways = tuple(way for way in self.site.fallback.chain if way in ("mirror", "registry"))
        if not ways:
            note = "the site has no fallback that downloads"
            return [Case(cold, note=note), Case(warm, note=note)]
        if plan.image.startswith("/"):
            note = "only an image with a name has a fallback"
            return [Case(cold, note=note), Case(warm, note=note)]
        cache = self.work / "cache"
        fallback = replace(
            self.site.fallback,
            chain=("cache", *ways),
            cache_dir=ScratchPlace(str(cache)),
            shared=False,
            jitter=timedelta(0),
        )
        nowhere = HostPath(str(self.work / "no-cvmfs"))
        listed = self._fallback_list(path)
        folder = self._render(
            replace(self.site, fallback=fallback, cvmfs=nowhere, required_repositories=()),
            self.work / "fallback",
            listed,
        )
        argv = (str(folder / "bin" / "cvmfs-run"), plan.image, "--", JOB)

        def forget() -> None:
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()

        def keep() -> None:
            if not cache.exists() or not any(cache.iterdir()):
                self._run(argv)

        return [
            Case(cold, argv, plan.cold_runs, before=forget, note="into an empty cache"),
            Case(warm, argv, plan.runs, before=keep),
        ]

    def _fallback_list(self, path: str) -> bytes | None:
        repository = self._repository_of(path)
        if not repository:
            return None
        try:
            return Path(self.site.cvmfs, repository, LIST_PATH).read_bytes()
        except OSError:
            return None

    def _repository_of(self, path: str) -> str:
        """Return the repository an image's folder lies in; "" if in none."""
        base = f"{self.site.cvmfs}/"
        return path.removeprefix(base).partition("/")[0] if path.startswith(base) else ""

    def _render(self, site: Site, out: Path, listed: bytes | None = None) -> Path:
        write_site(render_site(site, self.templates, listed), out)
        return out

    def _launch(self, image: str) -> tuple[str, ...]:
        return (str(self.launcher), "--no-fallback", image, "--", JOB)

    def _runtime_case(self, image: str, runs: int) -> Case:
        """The runtime's own command line and variables, as the launcher makes them."""
        argv = [str(self.launcher), "--no-fallback", "--dry-run", image, "--", JOB]
        done = self._run(argv)
        if done.returncode:
            raise InputError(f"{image}: no job can be started in it: {_last_words(done)}")
        found = runtime_command(done.stdout)
        if found is None:
            raise InputError(f"cvmfs-run --dry-run printed no command: {done.stdout!r}")
        return Case("runtime, local sandbox", found.argv, runs, variables=found.variables)

    def _which(self, program: str) -> str:
        found = shutil.which(program, path=self.environ.get("PATH"))
        if found is None:
            raise InputError(f"{program} is not in PATH: {self.environ.get('PATH')}")
        return found

    def _time(self, case: Case) -> float:
        if case.before is not None:
            case.before()
        began = time.perf_counter()
        done = self._run(case.argv, case.variables)
        took = time.perf_counter() - began
        if done.returncode:
            raise RemoteError(f"ended with {done.returncode}: {_last_words(done)}")
        return took

    def _run(
        self, argv: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 - the launcher, the runtime, cvmfs_talk
                list(argv),
                cwd="/",  # every image has it
                env={**self.environ, **(variables or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=START_SECONDS,
                check=False,
            )
        except FileNotFoundError as exc:
            return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {exc.strerror}")
        except subprocess.TimeoutExpired as exc:
            raise RemoteError(
                f"{shlex.join(argv)}: did not end within {exc.timeout:.0f} s"
            ) from exc


def _special_files(folder: str, names: Sequence[str]) -> list[str]:
    """Return the pipes and sockets among the files of a folder: there is nothing to copy."""
    modes = ((name, Path(folder, name).lstat().st_mode) for name in names)
    return [name for name, mode in modes if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)]


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a program said, without colours."""
    said = _TERMINAL.sub("", done.stderr or done.stdout).split("\n")
    return next((line.strip() for line in reversed(said) if line.strip()), "no message")
