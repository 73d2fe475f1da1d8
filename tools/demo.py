"""Show the whole way once: an image into a registry, published, checked, and a job run in it.

    make demo                 makes a small image of its own
    make demo IMAGE=debian:12 takes an image of any registry

Needs no root.  Everything it makes is in .demo/ of the checkout.
"""

# ruff: noqa: S603  # a demonstration runs commands; none comes from anybody but its user

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import parts

REPOSITORY = "demo.example.org"
RUNTIMES = ("apptainer", "singularity", "ch-run")
JOB = (
    ". /etc/os-release; "
    'echo "Hello from a job in $PRETTY_NAME, on $(uname -n), as user $(id -u)."; '
    'echo "Its file system:" /*'
)


@dataclass
class Demo:
    """Where the demonstration works and how its commands are run and shown."""

    work: Path
    environment: dict[str, str]
    steps: int = field(default=0)

    def step(self, title: str) -> None:
        self.steps += 1
        say(f"\n{self.steps}. {title}")

    def run(self, *words: str | Path, cwd: Path | None = None) -> None:
        """Run a command as a user would type it, in the work directory; stop if it fails."""
        started = self.show(*words)
        done = subprocess.run(words, cwd=cwd or self.work, env=self.environment, check=False)
        if done.returncode:
            sys.exit(f"\nmake demo: the last command ended with status {done.returncode}")
        took(started)

    @contextmanager
    def background(self, *words: str | Path, cwd: Path) -> Iterator[str]:
        """Run a command as long as the block runs; yield its first line of output."""
        started = self.show(*words, "&")
        with subprocess.Popen(
            words, cwd=cwd, env=self.environment, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                first = process.stdout.readline().strip()
                say(first)
                took(started)
                yield first
            finally:
                process.terminate()

    def show(self, *words: str | Path) -> float:
        """Print a command; return the time it starts."""
        say("$ " + " ".join("&" if word == "&" else shlex.quote(str(word)) for word in words))
        return time.monotonic()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def took(started: float) -> None:
    say(f"  ({time.monotonic() - started:.2f} s)")


# ---------------------------------------------------------------- who runs the job, and where


def job_user() -> pwd.struct_passwd | None:
    """Return the user a job runs as: an unprivileged one under root; None: whoever runs this."""
    if os.geteuid() != 0:
        return None
    for name in (parts.TEST_USER, "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def is_open_to_all(directory: Path) -> bool:
    """Say whether every user can go to `directory`."""
    return all(each.stat().st_mode & stat.S_IXOTH for each in (directory, *directory.parents))


def make_work_directory(work: Path) -> Path:
    """Return `work`, made and empty, or another empty directory that the job's user can reach."""
    shutil.rmtree(work, ignore_errors=True)
    if job_user() is not None and not is_open_to_all(work.parent):
        closed = work.parent
        work = Path(tempfile.mkdtemp(prefix="cvmfs-publish-demo-", dir="/var/tmp"))
        say(f"Other users cannot enter {closed}, so the demo works in {work}.")
    work.mkdir(exist_ok=True)
    work.chmod(0o755)
    return work


def environment() -> dict[str, str]:
    """Return the environment of all commands: this project's programs and the parts come first."""
    first = [str(parts.CHECKOUT / ".venv/bin")]
    first += sorted(str(path.resolve()) for path in parts.PARTS.glob("*/bin"))
    rest = os.environ.get("PATH", os.defpath)
    inherited = {name: value for name, value in os.environ.items() if "CVMFS" not in name}
    return {**inherited, "PATH": ":".join([*first, rest, "/usr/sbin", "/sbin"])}


# ---------------------------------------------------------------- steps


def provide_runtime(demo: Demo) -> str:
    """Return the name of a container runtime, set up without root if need be; "" if none is."""
    demo.step("What this machine has")
    found = next(filter(parts.find, RUNTIMES), "")
    if not found and shutil.which("apt-get"):
        say("No container runtime here; unpacking Debian's Apptainer below .parts/.")
        program = parts.CHECKOUT / "tools/install-parts"
        started = demo.show(program, "--rootless")
        subprocess.run([program, "--rootless"], stdin=subprocess.DEVNULL, check=False)
        took(started)
        demo.environment.update(environment())
        found = next(filter(parts.find, RUNTIMES), "")
    say(f"container runtime: {found or 'none'}")
    say(f"registry: {'docker-registry' if has_registry() else 'a small one of our own'}")
    return found


def has_registry() -> bool:
    return bool(parts.find("docker-registry") and parts.find("skopeo"))


@contextmanager
def image_in_registry(demo: Demo) -> Iterator[str]:
    """Make a small image, put it into a registry on loopback, and yield its reference."""
    demo.step("A small image")
    demo.run("python", "-m", "tests.images", demo.work / "image", "1", cwd=parts.CHECKOUT)
    demo.step("A registry on loopback")
    with ExitStack() as stack:
        if has_registry():
            started = demo.show("docker-registry", "serve", "config.yml", "&")
            server = stack.enter_context(parts.docker_registry(demo.work))
            took(started)
            reference = f"{server.host}/demo/small:1"
            demo.run(
                *("skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests"),
                *("--dest-tls-verify=false", "oci:image:1", f"docker://{reference}"),
            )
        else:
            serve = ("python", "-m", "tools.registry", demo.work / "image", "demo/small")
            reference = stack.enter_context(demo.background(*serve, cwd=parts.CHECKOUT)) + ":1"
        yield reference


def publish(demo: Demo, reference: str) -> None:
    """From nothing to a checked repository with the image in it."""
    demo.step("A repository: keys, whitelist, an empty signed revision")
    demo.run("cvmfs-publish", "init", REPOSITORY)
    demo.step("Publish the image")
    demo.run("cvmfs-publish", "publish", reference)
    demo.step("Publish it again: nothing changed, so nothing is written")
    demo.run("cvmfs-publish", "publish", reference)
    demo.step("Verify the whole repository, every object included")
    demo.run("cvmfs-publish", "check", "--scrub")


def render_site(demo: Demo) -> None:
    """Make what a site installs."""
    demo.step("What a site installs: the launcher and its configuration")
    demo.run("cvmfs-publish", "site", "render", "generic", "--out", "site")


def provide_tree(demo: Demo, reference: str) -> str:
    """Return the image as a job names it: below /cvmfs, or an exported directory."""
    demo.step("The image on a worker")
    mounted = Path("/cvmfs", REPOSITORY, reference)
    if mounted.is_dir():
        say(f"This machine mounts it: {mounted}")
        return str(mounted)
    say("No CernVM-FS client mounts it here (the package `cvmfs` of cernvm.cern.ch brings one),")
    say("so take it out of the repository as an ordinary directory:")
    demo.run("cvmfs-publish", "export", reference, "sandbox")
    return str(demo.work / "sandbox")


def run_job(demo: Demo, image: str, runtime: str) -> int:
    """Run the job and end with its output; return its exit status."""
    demo.step("A job in the image")
    command = ["site/bin/cvmfs-run", image, "--", "/bin/sh", "-c", JOB]
    user = job_user()
    reason = why_no_job(user, runtime)
    started = demo.show(*command)
    if reason:
        say(reason)
        return 0
    if user is not None:
        say(f"(as the user {user.pw_name}: jobs are not root)")
    done = as_user(user, command, demo)
    say(f"  ({time.monotonic() - started:.2f} s; status {done.returncode}; its output:)")
    sys.stdout.buffer.write(done.stdout)
    sys.stdout.flush()
    return done.returncode


def why_no_job(user: pwd.struct_passwd | None, runtime: str) -> str:
    """Return why no container can run on this machine, with the remedy; "" if one can."""
    if not runtime:
        return (
            "Not run: there is no container runtime.  On Debian\n"
            "`apt-get install charliecloud-runtime` brings ch-run; elsewhere install Apptainer:\n"
            "https://apptainer.org."
        )
    try:
        done = as_user(user, ["unshare", "--user", "--map-root-user", "true"], None)
    except OSError:
        return ""  # no such program: let the runtime say what it thinks
    if done.returncode:
        return (
            "Not run: this machine lets no ordinary user create user namespaces, which every\n"
            "container runtime without root needs: sysctl user.max_user_namespaces,\n"
            "kernel.unprivileged_userns_clone or, inside a container, its security profile."
        )
    return ""


def as_user(
    user: pwd.struct_passwd | None, command: Sequence[str], demo: Demo | None
) -> subprocess.CompletedProcess[bytes]:
    """Run `command` as the job's user and return what it wrote; its errors go to ours."""
    variables = dict(demo.environment if demo else os.environ)
    account: dict[str, Any] = {}
    if user is not None:
        variables.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return subprocess.run(
        command,
        cwd=demo.work if demo else "/",
        env=variables,
        stdout=subprocess.PIPE,
        stderr=None if demo else subprocess.DEVNULL,
        check=False,
        **account,
    )


def main(words: list[str]) -> int:
    """Run every step; return the job's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument(
        "image", nargs="?", help="an image of any registry; else a small one is made"
    )
    parser.add_argument("--work", type=Path, default=parts.CHECKOUT / ".demo", help="emptied first")
    asked = parser.parse_args(words)
    demo = Demo(make_work_directory(asked.work.resolve()), environment())
    say(f"Commands run in {demo.work}, with .venv/bin in PATH.")
    runtime = provide_runtime(demo)
    with ExitStack() as stack:
        reference = asked.image or stack.enter_context(image_in_registry(demo))
        publish(demo, reference)
        render_site(demo)
        image = provide_tree(demo, reference)
    return run_job(demo, image, runtime)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
