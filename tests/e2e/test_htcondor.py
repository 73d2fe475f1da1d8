"""Real jobs of a real HTCondor, started in an image by what is rendered for a site."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.condor_pool import Pool, condor_pool
from tests.worker_node import IMAGE, INSIDE, WorkerNode, worker_node

pytestmark = pytest.mark.parts

BATCH = """\
binds: [{source: ROOT/required, target: /mnt, required: true}]
batch: {systems: [htcondor], options: {htcondor: ["+Flavour = \\"short\\""]}}
"""
SHELL = "\"-c '{}'\""  # the arguments of a job
CONF = "50-cvmfs-publish.conf"


@pytest.fixture(scope="module")
def node() -> Iterator[WorkerNode]:
    with worker_node(BATCH) as node:
        (node.root / "required").mkdir()
        yield node


@pytest.fixture(scope="module")
def pool(node: WorkerNode) -> Iterator[Pool]:
    root = node.root / "pool"
    root.mkdir()
    # HTCondor would mount a job's own /var/tmp over the folder of this test.
    files = {"10-test.conf": "MOUNT_UNDER_SCRATCH =\n"}
    files[CONF] = (node.site / "htcondor" / CONF).read_text()
    with condor_pool(root, files) as pool:
        yield pool


@pytest.fixture
def native(pool: Pool) -> Iterator[None]:
    """HTCondor starts the runtime itself; each starter reads the configuration anew."""
    file = pool.root / "config.d/40-native.conf"
    file.write_text("CVMFS_PUBLISH_NATIVE = true\n")
    yield
    file.unlink()


def test_htcondor_reads_the_configuration_as_it_is_meant(pool: Pool, node: WorkerNode) -> None:
    names = ["USER_JOB_WRAPPER", "CVMFS_PUBLISH_HOOK_PREPARE_JOB", "SINGULARITY_JOB"]
    values = [pool.command("condor_config_val", name).strip() for name in names]
    here = node.site / "htcondor"
    assert values == [f"{here}/job-wrapper", f"{here}/prepare-hook", "false"]


def test_the_native_way_replaces_the_wrapper(pool: Pool, native: None, node: WorkerNode) -> None:
    assert pool.attempt("condor_config_val", "USER_JOB_WRAPPER").stdout.strip() == b""
    image = pool.command("condor_config_val", "SINGULARITY_IMAGE_EXPR").strip()
    assert image == f'TARGET.SingularityImage ?: "{node.repository}/{IMAGE}"'


PLAIN = (
    "cat /etc/os-release; pwd; echo $_CONDOR_SCRATCH_DIR; test -r $_CONDOR_JOB_AD && echo ad; "
    "echo $OMP_NUM_THREADS; echo $CUDA_VISIBLE_DEVICES; echo x >result; "
)
ENDS = {"zero": "exit 0", "seven": "exit 7", "term": "kill -TERM $$"}
SIGNAL = (
    "trap ''echo got USR1 >>rm.txt; exit 42'' USR1; cat /etc/os-release >rm.txt; "
    "while :; do sleep 0.1; done"
)


@dataclass(frozen=True)
class Jobs:
    """The numbers of jobs that have been submitted together."""

    template: int
    plain: dict[str, int]  # by the end they come to
    signal: int
    host: int
    container: int
    no_image: int


@pytest.fixture(scope="module")
def jobs(pool: Pool, node: WorkerNode) -> Jobs:
    two = pool.root / "two.sub"
    text = (node.site / "htcondor/submit.sub").read_text()
    two.write_text(text.replace("\nqueue\n", "\nqueue 2\n"))
    transfer = ["should_transfer_files = yes", "request_cpus = 3"]
    container = [
        "universe = container",
        f"container_image = {node.repository}/{IMAGE}",
        "transfer_container = false",
    ]
    none = 'environment = "CVMFS_RUN_IMAGE=none"'
    wrong = f"environment = \"A='b c' CVMFS_RUN_IMAGE={IMAGE}-no-such B=1\""
    return Jobs(
        template=pool.submit(two),
        plain={
            name: pool.job(name, SHELL.format(PLAIN + end), *transfer) for name, end in ENDS.items()
        },
        signal=pool.job("rm", SHELL.format(SIGNAL), "remove_kill_sig = SIGUSR1"),
        container=pool.job("container", SHELL.format("cat /etc/os-release; exit 9"), *container),
        host=pool.job("host", SHELL.format("test -e /etc/debian_version"), none),
        no_image=pool.job("held", SHELL.format("true"), wrong),
    )


def test_htcondor_understands_the_submit_file(pool: Pool, node: WorkerNode) -> None:
    dry = pool.command("condor_submit", "-dry-run", "-", node.site / "htcondor/submit.sub")
    assert f'Arguments="{IMAGE} -- cat /etc/os-release"' in dry
    assert 'Flavour="short"' in dry


def test_jobs_of_the_rendered_submit_file_run_from_the_tree(pool: Pool, jobs: Jobs) -> None:
    for number in range(2):
        assert pool.ended(f"{jobs.template}.{number}") == "0"
        assert pool.text(f"cvmfs-run.{jobs.template}.{number}.out") == INSIDE


def test_plain_jobs_run_in_the_image_and_their_statuses_arrive(pool: Pool, jobs: Jobs) -> None:
    ended = {name: pool.ended(f"{job}.0") for name, job in jobs.plain.items()}
    assert ended == {"zero": "0", "seven": "7", "term": "-15"}
    os_release, directory, scratch, *rest = pool.text("zero.out").splitlines()
    assert f"{os_release}\n" == INSIDE
    assert directory == scratch
    assert Path(scratch).parent == pool.root / "execute"
    assert rest == ["ad", "3", "10000"]
    assert pool.text("result") == "x\n"


def test_the_signal_of_condor_rm_reaches_the_command_in_the_image(pool: Pool, jobs: Jobs) -> None:
    pool.wait_for(lambda: pool.text("rm.txt") == INSIDE, "the start")
    pool.command("condor_rm", str(jobs.signal), user=True)
    pool.wait_for(lambda: pool.text("rm.txt") == f"{INSIDE}got USR1\n", "the signal")


def test_a_job_that_wants_no_image_runs_on_the_host(pool: Pool, jobs: Jobs) -> None:
    assert pool.ended(f"{jobs.host}.0") == "0"


def test_a_job_of_universe_container_is_left_to_htcondor(pool: Pool, jobs: Jobs) -> None:
    assert pool.ended(f"{jobs.container}.0") == "9"
    assert pool.text("container.out") == INSIDE


def test_a_job_whose_image_does_not_exist_is_held_with_the_reason(pool: Pool, jobs: Jobs) -> None:
    job = f"{jobs.no_image}.0"
    pool.wait_for(lambda: pool.attribute(job, "JobStatus") == "5", "the hold")
    assert pool.attribute(job, "HoldReasonSubCode") == "66"
    assert "class=noimage code=66" in pool.attribute(job, "HoldReason")


def test_the_state_of_the_node_is_an_attribute_of_its_slot(pool: Pool) -> None:
    def said() -> str:
        return pool.command("condor_status", "-af", "CvmfsRunStatus").split()[0]

    assert pool.wait_for(lambda: said().removeprefix("undefined"), "node-check") == "0"


def test_a_job_returns_to_the_queue_while_the_node_lacks_the_repository(
    pool: Pool, node: WorkerNode
) -> None:
    with node.without_repository():
        job = f"{pool.job('sick', SHELL.format('true'))}.0"
        pool.wait_for(lambda: "(reported status 369)" in pool.text("sick.log"), "the hook's answer")
        assert pool.attribute(job, "JobStatus") in ("1", "2")
        assert pool.attribute(job, "NumJobStarts") == "0"
    assert pool.ended(job) == "0"
    assert "class=noservice code=69" in pool.text("sick.log")


def test_a_failure_of_the_launcher_is_not_the_jobs(pool: Pool, node: WorkerNode) -> None:
    (node.root / "required").rmdir()
    job = f"{pool.job('wrapper', SHELL.format('echo job'))}.0"
    pool.wait_for(lambda: "The job wrapper failed" in pool.text("wrapper.log"), "the failure")
    (node.root / "required").mkdir()
    assert "class=bind code=72" in pool.text("wrapper.log")
    assert pool.ended(job) == "0"  # in the end: it was in the queue again
    assert pool.text("wrapper.out") == "job\n"


def test_htcondor_itself_starts_a_job_in_the_image(pool: Pool, native: None) -> None:
    job = pool.job("native", SHELL.format("cat /etc/os-release; exit 7"))
    assert pool.ended(f"{job}.0") == "7"
    assert pool.text("native.out") == INSIDE


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"], ["busybox", "ash"]])
def test_the_wrapper_and_the_hook_run_under_every_shell(
    node: WorkerNode, tmp_path: Path, shell: list[str]
) -> None:
    here = node.site / "htcondor"
    environment = {"PATH": "/usr/bin:/bin", "CVMFS_RUN_IMAGE": "none"}
    wrapped = subprocess.run(
        [*shell, here / "job-wrapper", "printf", "%s|", "a b", "$c"],
        env=environment, capture_output=True, check=True,
    )  # fmt: skip
    assert wrapped.stdout == b"a b|$c|"
    ad = f"ClusterId = 1\nEnvironment = \"A='b c' CVMFS_RUN_IMAGE={IMAGE}-no-such\"\n"
    hook = subprocess.run(
        [*shell, here / "prepare-hook"],
        env=environment, input=ad.encode(), capture_output=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    code, message = hook.stdout.decode().splitlines()
    assert (hook.returncode, code) == (1, "HookStatusCode = 66")
    assert message.startswith('HookStatusMessage = "cvmfs-run: class=noimage code=66')
    assert message.endswith('\\""')
