"""What is rendered for Slurm, run without one; `tests/e2e/test_slurm.py` has a real one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.writing import write_site
from tests.parts import require

pytestmark = pytest.mark.parts

SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "ash"]}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Sequence[str]:
    require(SHELLS[request.param][0])
    return SHELLS[request.param]


def site(text: str) -> Site:
    return parse(Site, f"name: test\nbatch: {{systems: [slurm]}}\n{text}", "test.yaml")


def written(folder: Path, text: str) -> Path:
    """Render a site below `folder`; return its folder slurm/."""
    write_site(render_site(site(text), templates_dir()), folder / "site")
    return folder / "site" / "slurm"


def run(shell: Sequence[str], *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*shell, *map(str, words)],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_batch_wrapper_reads_a_first_line_as_the_kernel_does(
    tmp_path: Path, shell: Sequence[str]
) -> None:
    batch = written(tmp_path, "") / "cvmfs-batch"  # without default image: the host
    script = tmp_path / "a b.sh"
    script.write_text('printf "[%s]" "$0" "$@"; echo "$-"; exit 5\n', "utf-8")
    for line, flag in (("/bin/sh", ""), ("/bin/sh -u", "u"), ("/bin/sh \t -uf", "u")):
        result = run(shell, batch, line, script, "c d", "", "*")
        assert result.stdout.startswith(f"[{script}][c d][][*]")
        assert ("u" in result.stdout.rpartition("]")[2]) == (flag == "u")
        assert result.returncode == 5
    assert run(shell, batch).returncode == 64


def prolog(folder: Path, text: str) -> Path:
    """Return the prolog of a site whose launcher is there."""
    path = written(folder, text) / "prolog"
    launcher = folder / "site" / "bin" / "cvmfs-run"
    path.write_text(path.read_text("utf-8").replace("/opt/cvmfs-run/bin/cvmfs-run", str(launcher)))
    return path


def test_a_prolog_refuses_jobs_where_no_repository_answers(
    tmp_path: Path, shell: Sequence[str]
) -> None:
    base = tmp_path / "cvmfs"
    text = f"cvmfs: {base}\nrepositories: [{{name: a.example.org}}, {{name: b.example.org}}]\n"
    program = prolog(tmp_path, text + "images: {cpu: 'debian:12'}\n")
    refused = run(shell, program, SLURM_JOB_ID="1", SLURM_JOB_UID="0")
    assert refused.returncode == 1
    assert f"{base}/a.example.org/. {base}/b.example.org/. does not answer" in refused.stderr
    (base / "b.example.org").mkdir(parents=True)
    accepted = run(shell, program, SLURM_JOB_ID="1", SLURM_JOB_UID="0")
    assert (accepted.returncode, accepted.stderr) == (0, "")


def test_a_site_whose_jobs_may_do_without_images_refuses_none(
    tmp_path: Path, shell: Sequence[str]
) -> None:
    text = f"cvmfs: {tmp_path}/none\nrepositories: [{{name: a.example.org}}]\n"
    result = run(shell, prolog(tmp_path, text), SLURM_JOB_ID="1", SLURM_JOB_UID="0")
    assert result.returncode == 0
    assert "does not answer" in result.stderr


def test_prologs_and_epilog_make_name_and_remove_a_folder_of_the_job(
    tmp_path: Path, shell: Sequence[str]
) -> None:
    scratch = tmp_path / "it's scratch"
    program = prolog(tmp_path, f'scratch: ["$SLURM_TMPDIR", /does/not/exist, "{scratch}"]\n')
    scratch.mkdir()
    env = {"SLURM_JOB_ID": "17", "SLURM_JOB_UID": str(os.geteuid())}
    assert run(shell, program, **env).returncode == 0
    folder = scratch / "slurm-17"
    assert folder.stat().st_mode & 0o777 == 0o700
    said = run(shell, program.with_name("task-prolog"), **env)
    assert (said.returncode, said.stdout) == (0, f"export TMPDIR={folder}\n")
    assert run(shell, program.with_name("epilog"), **env).returncode == 0
    assert list(scratch.iterdir()) == []
    assert run(shell, program.with_name("task-prolog"), **env).stdout == ""


def test_a_folder_somebody_else_has_put_there_is_not_the_jobs(
    tmp_path: Path, shell: Sequence[str]
) -> None:
    scratch = tmp_path / "scratch"
    program = prolog(tmp_path, f"scratch: [{scratch}]\n")
    (tmp_path / "elsewhere").mkdir()
    scratch.mkdir()
    (scratch / "slurm-17").symlink_to(tmp_path / "elsewhere")
    env = {"SLURM_JOB_ID": "17", "SLURM_JOB_UID": str(os.geteuid())}
    assert run(shell, program, **env).returncode == 0
    assert run(shell, program.with_name("task-prolog"), **env).stdout == ""
    assert run(shell, program.with_name("epilog"), **env).returncode == 0
    assert (tmp_path / "elsewhere").is_dir()


def test_a_folder_for_which_a_first_line_has_no_room_is_refused() -> None:
    with pytest.raises(InputError, match=r"has 61 characters; .* room for 60"):
        render_site(site(f"install_dir: /{'a' * 60}"), templates_dir())


def test_a_prolog_knows_other_ways_to_images_when_a_repository_is_sick(
    tmp_path: Path,
) -> None:
    require("dash")
    base, cache = tmp_path / "cvmfs", tmp_path / "cache"
    share = base / "a.example.org" / "share" / "cvmfs-publish"
    share.mkdir(parents=True)
    line = f"docker.io/library/debian:12 sha256:{'a' * 64} sha256:{'b' * 64} sif {'c' * 64} 5 5 "
    (share / "fallback.txt").write_text(line + f"{'c' * 64}.sif\n", "utf-8")
    program = prolog(
        tmp_path,
        f"cvmfs: {base}\nrepositories: [{{name: a.example.org}}]\nimages: {{cpu: 'debian:12'}}\n"
        f"fallback: {{chain: [cache, mirror], mirrors: ['http://127.0.0.1:9/images'], shared: true,"
        f" cache_dir: {cache}, jitter: 0s}}\n",
    )
    fetch = tmp_path / "site" / "bin" / "cvmfs-fetch"
    text = program.read_text("utf-8").replace("/opt/cvmfs-run/bin/cvmfs-fetch", str(fetch))
    program.write_text(text, "utf-8")
    healthy = run(["dash"], program, SLURM_JOB_ID="1", SLURM_JOB_UID="0")
    assert (healthy.returncode, healthy.stderr) == (0, "")
    assert [line in path.read_text("utf-8") for path in cache.rglob("*.txt")] == [True]
    (base / "a.example.org").rename(base / "away")
    sick = run(["dash"], program, SLURM_JOB_ID="1", SLURM_JOB_UID="0")
    assert sick.returncode == 0  # cvmfs-run judges
    assert "code=75 step=mirror cause=no-mirror-has-it" in sick.stderr
    assert "a.example.org/. does not answer" in sick.stderr
