"""`cvmfs-run` on nodes that are sick, under batch systems, with hooks: what the site decides."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.test_launcher import SHELLS, Node, failure, generic_node
from tests.parts import popen_as_test_user, require, run_as_test_user
from tests.worker_node import fuse_mount, let_hang

pytestmark = pytest.mark.parts

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


@pytest.fixture(scope="module")
def bare() -> Iterator[Node]:
    with generic_node() as node:
        yield node


@pytest.fixture(scope="module")
def node(bare: Node) -> Node:
    """A node with the runtime that starts in milliseconds; these tests are about the launcher."""
    return Node(bare.root, str(require("ch-run")))


@pytest.fixture(scope="module")
def archive(bare: Node) -> Path:
    """A squashfs file: a repository with one name, and any other directory that can hang."""
    for program in ("mksquashfs", "squashfuse", "umount"):
        require(program)
    tree = bare.folder("tree")
    (tree / "ghcr.io" / "a" / "b:1").mkdir(parents=True)
    made = bare.root / "tree.sqfs"
    words = ["mksquashfs", str(tree), str(made), "-quiet", "-no-progress"]
    subprocess.run(words, check=True, capture_output=True)
    return made


@contextmanager
def hung(archive: Path, mount_point: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Mount `archive`, and stop the daemon that serves it."""
    if os.geteuid() != 0:
        pytest.skip("mounts a FUSE file system for all users")
    with fuse_mount(archive, mount_point) as daemon:
        let_hang(daemon)
        yield daemon


def repository(node: Node, name: str) -> tuple[Path, str]:
    """Make a repository that publishes the image as debian:12; return its base and settings."""
    base = node.folder(name)
    link = base / "c.example.org" / "docker.io" / "library" / "debian:12"
    link.parent.mkdir(parents=True)
    link.symlink_to(node.image)
    return base, f"cvmfs: {base}\nrepositories: [{{name: c.example.org}}]\n"


def record(base: Path, name: str, revision: int, digest: str = OTHER) -> None:
    """Write what the publisher writes about a name, its past included."""
    folder = base / "c.example.org" / ".metadata" / name
    folder.mkdir(parents=True)
    (folder / "publication.json").write_text(
        f'{{\n  "reference": "x",\n  "digest": "{digest}",\n  "manifest_digest": "{digest}",\n'
        f'  "revision": {revision},\n'
        '  "history": [\n    {\n      "revision": 99999\n    }\n  ]\n}\n'
    )


# ---------------------------------------------------------------- sick nodes (g.7-5, g.7-7)


def test_a_hung_root_is_left_out_and_a_hung_required_mount_is_75(
    node: Node, archive: Path
) -> None:  # g.7-7
    root = node.folder("hungroot")
    (node.image / str(root)[1:]).mkdir(parents=True)
    optional = node.configure(f"roots: [{root}]\nprobe_timeout: 1s")
    required = node.configure(f"binds: [{{source: {root}, required: true}}]\nprobe_timeout: 1s")
    required_repository = node.configure(
        f"cvmfs: {node.root}\nrequired_repositories: [hung.example.org]\nprobe_timeout: 1s"
    )
    link = node.root / "hung.example.org"
    link.symlink_to(root)
    with hung(archive, root):
        began = time.monotonic()
        result = node.run(node.image, "cat", "/marker", env=optional, cwd=Path("/"))
        assert (result.returncode, result.stdout) == (0, b"inside\n"), result
        assert result.stderr.count(b"class=warning code=0 step=bind cause=hung") == 1
        assert failure(node.run(node.image, "true", env=required, cwd=Path("/"))) == (
            75, "tempfail", "bind", "hung",
        )  # fmt: skip
        assert failure(node.run(node.image, "true", env=required_repository, cwd=Path("/"))) == (
            75, "tempfail", "probe", "hung",
        )  # fmt: skip
        assert failure(
            node.run("--bind", f"{root}:/nfs", node.image, "true", env=optional, cwd=Path("/"))
        )[0::3] == (75, "hung")
        assert time.monotonic() - began < 4 * (1 + 2)
    link.unlink()
    shutil.rmtree(node.image / "var" / "tmp")
    (node.image / "var" / "tmp").mkdir()
    root.rmdir()


def test_required_repositories_must_be_there_whatever_the_image(node: Node) -> None:
    base, text = repository(node, "required")
    env = node.configure(text + "required_repositories: [c.example.org, s.example.org]")
    for name in ("debian:12", str(node.image)):
        assert failure(node.run(name, "true", env=env)) == (69, "noservice", "probe", "not-mounted")
    (base / "s.example.org").mkdir()  # a mount point without its mount
    assert node.run("debian:12", "true", env=env).returncode == 69
    (base / "s.example.org" / "file").touch()
    assert node.output("debian:12", "cat", "/marker", env=env) == "inside\n"
    shutil.rmtree(base)


def test_a_dangling_or_unreadable_mount_is_told_apart(node: Node) -> None:  # g.7-5
    folder = node.folder("odd sources")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "locked").mkdir(mode=0o700)
    (folder / "locked" / "inside").mkdir()
    for source in ("dangling", "locked/inside"):
        result = node.run("--bind", f"{folder}/{source}:/nfs", node.image, "true")
        assert failure(result) == (72, "bind", "bind", "missing-source")
    env = node.configure(f"roots: ['{folder}/dangling', '{folder}/locked']")
    assert node.output(node.image, "cat", "/marker", env=env) == "inside\n"
    shutil.rmtree(folder)


# ---------------------------------------------------------------- names (g.7-6)


def test_a_job_stays_in_its_image_while_the_tag_moves(node: Node) -> None:  # g.7-6
    base, text = repository(node, "moving")
    env = node.configure(text)
    link = base / "c.example.org" / "docker.io" / "library" / "debian:12"
    assert node.output("debian:12", "sh", "-c", "echo $CVMFS_RUN_IMAGE_PATH", env=env) == (
        f"{node.image}\n"
    )
    printed = node.run("--dry-run", "debian:12", "cat", "/marker", env=env).stdout
    link.unlink()
    link.symlink_to("/nowhere")
    assert run_as_test_user(["sh"], input=printed).stdout == b"inside\n"
    shutil.rmtree(base)


def test_a_digest_finds_exactly_that_image(node: Node) -> None:
    base, text = repository(node, "digests")
    env = node.configure(text)
    names = base / "c.example.org" / "docker.io" / "library"
    for name in (f"debian@{DIGEST}", f"debian:12@{DIGEST}"):
        assert failure(node.run(name, "true", env=env))[0] == 66
    record(base, "docker.io/library/debian:12", 7, DIGEST)  # of an index: the tag's record has it
    assert failure(node.run(f"debian@{DIGEST}", "true", env=env))[0] == 66
    assert node.output(f"debian:12@{DIGEST}", "cat", "/marker", env=env) == "inside\n"
    assert failure(node.run(f"debian:12@{OTHER}", "true", env=env))[0] == 66
    (names / f"debian@{OTHER}").symlink_to(node.image)
    (names / "debian:12").unlink()
    (names / "debian:12").symlink_to("/nowhere")  # the tag leads elsewhere: the digest decides
    for name in (f"debian@{OTHER}", f"debian:12@{OTHER}"):
        assert node.output(name, "cat", "/marker", env=env) == "inside\n"
    shutil.rmtree(base)


def test_an_older_revision_than_required_is_75(node: Node) -> None:
    base, text = repository(node, "revisions")
    text = text.replace("c.example.org}", "c.example.org, min_revision: 5}")
    env = node.configure(text)
    stale = (75, "tempfail", "probe", "stale-revision")
    assert failure(node.run("debian:12", "true", env=env)) == stale
    record(base, "docker.io/library/debian:12", 6)
    assert node.output("debian:12", "cat", "/marker", env=env) == "inside\n"
    assert node.output("--min-revision", "6", "debian:12", "cat", "/marker", env=env)
    assert failure(node.run("--min-revision", "7", "debian:12", "true", env=env)) == stale
    assert failure(node.run("--min-revision", "7", node.image, "true", env=env))[0] == 64
    shutil.rmtree(base)


def test_a_name_that_an_older_revision_has_not_got_yet_is_75_not_66(node: Node) -> None:
    base, text = repository(node, "late")
    env = node.configure(text)
    mount = base / "c.example.org"
    stale = (75, "tempfail", "probe", "stale-revision")
    missing = (66, "noimage", "resolve", "no-such-image")
    os.setxattr(mount, "user.revision", b"6")
    for name in ("debian:13", f"debian@{DIGEST}", f"{mount}/docker.io/library/debian:13"):
        assert failure(node.run(name, "true", env=env)) == missing
        assert failure(node.run("--min-revision", "6", name, "true", env=env)) == missing
        assert failure(node.run("--min-revision", "7", name, "true", env=env)) == stale
    result = node.run("--min-revision", "7", "debian:13", "true", env=env)
    assert b"shows revision 6 on this node; the job needs 7" in result.stderr
    required = node.configure(text.replace("c.example.org}", "c.example.org, min_revision: 7}"))
    assert failure(node.run("debian:13", "true", env=required)) == stale
    os.removexattr(mount, "user.revision")
    result = node.run("--min-revision", "6", "debian:13", "true", env=env)
    assert failure(result) == stale
    assert b"debian:13 is not there, and getfattr cannot tell" in result.stderr
    shutil.rmtree(base)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_environment_can_ask_for_a_revision(node: Node, shell: str) -> None:
    base, text = repository(node, f"asked-{shell}")
    env = node.configure(text)
    os.setxattr(base / "c.example.org", "user.revision", b"6")

    def run(wanted: str, *words: str) -> tuple[object, ...] | bytes:
        asked = {**env, "CVMFS_RUN_MIN_REVISION": wanted}
        result = node.run(*words, "debian:12", "cat", "/marker", env=asked, shell=SHELLS[shell])
        return failure(result) if result.returncode else result.stdout

    assert run("6") == run("") == b"inside\n"
    assert run("7") == (75, "tempfail", "probe", "stale-revision")
    assert run("7", "--min-revision", "5") == b"inside\n"  # the option counts
    assert run("7", "--min-revision", "0") == b"inside\n"
    assert run("six") == (64, "usage", "options", "bad-value")
    shutil.rmtree(base)


# ---------------------------------------------------------------- batch systems


def test_wrap_runs_jobs_without_an_image_on_the_host(node: Node) -> None:
    script = ["--", "sh", "-c", "test ! -e /marker; exit 5"]
    assert node.run("--wrap", *script).returncode == 5
    assert node.run(*script[:1], "true").returncode == 64
    env = node.configure(f"images: {{cpu: {node.image}}}")
    assert node.output("--wrap", "--", "cat", "/marker", env=env) == "inside\n"
    for more in ({"CVMFS_RUN_IMAGE": "none"}, {"APPTAINER_CONTAINER": "/x"}):
        result = node.run("--wrap", *script, env={**env, **more})
        assert (result.returncode, result.stderr) == (5, b"")


def test_wrap_shows_the_script_in_the_spool(bare: Node) -> None:
    node = Node(bare.root, str(require("apptainer")))
    spool = node.folder("spool")
    (spool / "script").write_text("cat /marker\n")
    env = {"CVMFS_RUN_IMAGE": str(node.image)}
    words = ["--wrap", "--contain", "--", "/bin/sh", str(spool / "script")]
    assert node.output(*words, env=env, cwd=Path("/")) == "inside\n"
    shutil.rmtree(spool)


def test_statuses_of_jobs_that_do_not_start_are_mapped(node: Node) -> None:
    folder = node.folder("condor")
    env = {"_CONDOR_WRAPPER_ERROR_FILE": str(folder / "error")}
    result = node.run("--exit-map", "69=99,66=100", "/does/not/exist", "true", env=env)
    assert result.returncode == 100
    assert b"class=noimage code=66" in result.stderr
    assert (folder / "error").read_bytes() == result.stderr
    words: list[str | Path] = ["--exit-map", "66=100", node.image, "sh", "-c", "exit 66"]
    assert node.run(*words).returncode == 66  # the job's own
    assert node.run("--exit-map=64=0", "a b", "true").returncode == 0
    shutil.rmtree(folder)


def test_descriptors_of_the_caller_and_of_pmi_reach_the_job(node: Node) -> None:
    folder = node.folder("descriptors")
    script = 'exec 9>"$1/nine" 7>"$1/seven"; shift; exec "$@"'
    words = node.words("--mode", "supervise", node.image, "sh", "-c", "echo x >&9; echo y >&7")
    env = {"PMI_FD": "8", "PMI_RANK": "0"}
    run_as_test_user(["sh", "-c", script, "sh", folder, *words], cwd=node.root, env=env, check=True)
    assert [(folder / name).read_text() for name in ("nine", "seven")] == ["x\n", "y\n"]
    shutil.rmtree(folder)


def test_ranks_get_what_the_site_gives_ranks_and_no_namespaces_of_their_own(bare: Node) -> None:
    env = bare.configure(
        "mpi: {binds: [{source: /usr/share, target: /nfs}], environment: {M: x y}}"
    )
    words: list[str | Path] = ["--runtime=apptainer", "--contain", "--dry-run", bare.image, "true"]
    own = bare.configure("processes: own")
    words.remove("--contain")
    assert b"--ipc --pid" in bare.run(*words, env=own).stdout
    assert b"--pid" not in bare.run(*words, env={**own, "PMI_RANK": "0"}).stdout
    words.insert(1, "--contain")
    alone = bare.run(*words, env=env).stdout
    rank = bare.run(*words, env={**env, "PMIX_RANK": "3"}).stdout
    assert (b"--pid" in alone, b"/usr/share:/nfs" in alone) == (True, False)
    assert (b"--pid" in rank, b"--ipc" in rank) == (False, False)
    assert b"/usr/share:/nfs" in rank
    assert b"M='x y'" in rank


# ---------------------------------------------------------------- hooks


def hook(node: Node, name: str, text: str) -> Path:
    program = node.root / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def test_hooks_run_on_the_host_around_the_job(node: Node) -> None:
    folder = node.folder("hooks")
    before = hook(
        node, "before", f'echo "before $CVMFS_RUN_STARTED" >>{folder}/log; echo noise; cat'
    )
    after = hook(
        node,
        "after",
        f'echo "after $CVMFS_RUN_STATUS $CVMFS_RUN_STARTED $CVMFS_RUN_IMAGE_NAME" >>{folder}/log',
    )
    env = node.configure(f"hooks: {{before: {before}, after: {after}}}")
    words: list[str | Path] = ["--after", "/bin/false", node.image, "sh", "-c", "cat; exit 3"]
    result = node.run(*words, env=env, input=b"in")
    assert (result.returncode, result.stdout) == (3, b"in")  # stdin is the job's
    assert b"noise" in result.stderr
    assert b"cause=after-failed" in result.stderr
    assert (folder / "log").read_text() == f"before no\nafter 3 yes {node.image}\n"
    (folder / "log").unlink()
    result = node.run("--before", "/bin/false", node.image, "true", env=env)
    assert failure(Node(node.root).run("--before", "/bin/false", node.image, "true")) == (
        71, "oserr", "hook", "before-failed",
    )  # fmt: skip
    assert result.returncode == 71
    shutil.rmtree(folder)


# ---------------------------------------------------------------- environment, GPU, files


def test_a_clean_environment_keeps_what_the_site_names(node: Node) -> None:
    env = node.configure("environment: {mode: clean, keep: [HOME, USER, SLURM_*], set: {S: s}}")
    dirty = {"SLURM_X": "a b\nexport HOME=/evil'", "OTHER": "$(id)", "PYTHONX": "1", "cr_x": "1"}
    printed = node.output(node.image, "env", env={**env, **dirty})
    assert "SLURM_X=a b\nexport HOME=/evil'\n" in printed
    names = {line.split("=")[0] for line in printed.splitlines()}
    assert {"HOME", "USER", "SLURM_X", "S"} <= names
    assert not {"OTHER", "PYTHONX", "LOGNAME", "LANG"} & names


@pytest.mark.parametrize("shell", SHELLS)
def test_a_clean_environment_of_a_thousand_variables_in_every_shell(
    node: Node, shell: str
) -> None:  # g.7-10, g.7-12
    env = {**node.configure("environment: {mode: clean, keep: [HOME, KEPT_*]}"), "USER": "u"}
    many = {f"DROPPED_{n}": "x" for n in range(500)} | {f"KEPT_{n}": f"$({n})" for n in range(500)}
    result = node.run(node.image, "env", env={**env, **many}, shell=SHELLS[shell])
    lines = result.stdout.decode().splitlines()
    assert {f"KEPT_{n}=$({n})" for n in range(500)} <= set(lines)
    assert not [line for line in lines if line.startswith("DROPPED")]


def test_credentials_outside_of_every_mount_are_shown(bare: Node) -> None:
    folder = bare.folder("credentials")
    for name in ("proxy", "token", "krb5"):
        (folder / name).write_text(f"{name}\n")
    env = {
        "X509_USER_PROXY": f"{folder}/proxy",
        "BEARER_TOKEN_FILE": f"{folder}/token",
        "KRB5CCNAME": f"FILE:{folder}/krb5",
        "TMPDIR": "/var/tmp",
    }
    script = 'cat "$X509_USER_PROXY" "$BEARER_TOKEN_FILE" "${KRB5CCNAME#FILE:}"'
    node = Node(bare.root, str(require("apptainer")))
    for words in (["--contain"], ["--mode=supervise", "--contain"]):
        given = node.output(*words, node.image, "sh", "-c", script, env=env, cwd=Path("/"))
        assert given == "proxy\ntoken\nkrb5\n"
    env = {"KRB5CCNAME": "KEYRING:persistent:1"}
    assert node.output(node.image, "sh", "-c", 'echo "${KRB5CCNAME-none}"', env=env) == "none\n"
    shutil.rmtree(folder)


def test_what_an_image_of_others_lacks_is_made_up_for_or_told(bare: Node) -> None:
    image = bare.root / "sparse"
    shutil.copytree(bare.image, image, symlinks=True)
    for name in ("dev", "tmp", "var/tmp", ".singularity.d"):
        shutil.rmtree(image / name)
    apptainer = Node(bare.root, str(require("apptainer")))
    missing = (72, "bind", "bind", "missing-mount-point")
    with tempfile.NamedTemporaryFile(dir="/tmp", suffix=".x") as outside:
        apptainer.output(image, "test", "-e", outside.name, cwd=Path("/"))
    assert failure(apptainer.run("--contain", image, "true", cwd=Path("/"))) == missing
    charliecloud = Node(bare.root, str(require("ch-run")))
    assert failure(charliecloud.run(image, "true", cwd=Path("/"))) == missing
    (image / "dev").mkdir()
    (image / "tmp").symlink_to("/var/tmp")  # of this node, as ch-run sees it
    assert failure(charliecloud.run(image, "true", cwd=Path("/"))) == missing
    (image / "tmp").unlink()
    (image / "tmp").symlink_to("nfs")
    assert charliecloud.output(image, "cat", "/marker", cwd=Path("/")) == "inside\n"
    shutil.rmtree(image)


def test_a_working_directory_that_may_not_be_entered_by_name_is_72(node: Node) -> None:  # g.7-9
    folder = node.folder("locked/inside")
    (node.root / "locked").chmod(0o755)
    script = 'cd "$1" && shift && echo there && read -r word && exec "$@"'
    words = ["sh", "-c", script, "sh", str(folder), *node.words(node.image, "true")]
    with popen_as_test_user(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"there\n"
        (node.root / "locked").chmod(0o700)
        _, said = job.communicate(b"go\n", timeout=30)
    assert failure(subprocess.CompletedProcess([], job.returncode, b"", said)) == (
        72, "bind", "cwd", "unreachable",
    )  # fmt: skip
    shutil.rmtree(node.root / "locked")


def test_a_home_and_a_tmpdir_with_line_breaks_are_replaced(node: Node) -> None:
    folder = node.folder("line\nbreak")
    env = node.configure("binds: [{source: /usr, target: /software, required: true}]")
    env = {**env, "HOME": str(folder), "TMPDIR": str(folder)}
    script = 'test -w "$HOME" && test -w "$TMPDIR" && test -d /software/share && echo "$HOME"'
    for runtime in ("ch-run", "apptainer"):
        started = Node(node.root, str(require(runtime)))
        for words in ([], ["--contain", "--mode=supervise"]):
            home = started.output(*words, node.image, "sh", "-c", script, env=env, cwd=Path("/"))
            assert "break" not in home or "--contain" in words
    shutil.rmtree(folder)


def test_an_environment_without_path_is_no_obstacle(node: Node) -> None:
    words = ["env", "-i", f"HOME={node.root}", *node.words(node.image, "cat", "/marker")]
    result = run_as_test_user(words, cwd=node.root)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"inside\n", b""), result


@pytest.mark.parametrize("value", ["", "NoDevFiles", "-1"])
def test_a_job_that_was_given_no_gpu_has_none(bare: Node, value: str) -> None:  # g.7-11
    env = {"CUDA_VISIBLE_DEVICES": value}
    assert failure(bare.run("--gpu", bare.image, "true", env=env)) == (
        76, "gpu", "gpu", "not-allocated",
    )  # fmt: skip


def test_an_image_may_be_a_file(bare: Node) -> None:
    for program in ("apptainer", "mksquashfs"):
        require(program)
    made = bare.root / "image file.sqfs"
    words = ["mksquashfs", str(bare.image), str(made), "-quiet", "-no-progress"]
    subprocess.run(words, check=True, capture_output=True)
    named = "./image file.sqfs"
    apptainer = Node(bare.root, str(require("apptainer")))
    result = apptainer.run("--dry-run", named, "cat", "/marker")
    assert str(made).encode() in result.stdout
    result = apptainer.run(named, "cat", "/marker")
    if b"fuse" not in result.stderr:  # it needs a usable /dev/fuse, or a setuid installation
        assert (result.returncode, result.stdout) == (0, b"inside\n"), result
    alone = bare.configure("runtimes: [ch-run]")
    assert failure(bare.run(named, "true", env=alone)) == (
        69, "noservice", "runtime", "file-unsupported",
    )  # fmt: skip
    made.unlink()


def test_the_usual_way_forks_at_most_four_times(bare: Node) -> None:  # g.7-14
    require("strace")
    base, text = repository(bare, "forks")
    metrics = bare.folder("fork metrics")
    env = bare.configure(text + f"metrics_dir: '{metrics}'")
    runtime = bare.folder("bin") / "apptainer"
    shutil.copy(require("true"), runtime)
    trace = bare.folder("trace")
    words: list[str] = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "signal=none",
        "-e",
        "trace=clone,clone3,fork,vfork",
        "-o",
        str(trace / "out"),
    ]
    words += ["sh", str(bare.launcher), "--runtime", str(runtime), "debian:12", "true"]
    result = run_as_test_user(words, env=env, cwd=bare.root)
    assert result.returncode == 0, result
    calls = re.findall(r"\b(?:clone3?|v?fork)\(", (trace / "out").read_text())
    assert 1 <= len(calls) <= 4
    (log,) = metrics.iterdir()
    assert "probe_ms=" in log.read_text()
    for folder in (base, metrics, runtime.parent, trace):
        shutil.rmtree(folder)
