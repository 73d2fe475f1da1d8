"""Start the real programs the tests run against, as an unprivileged user where that matters.

`tools/install-parts` (part of `make test`) installs them.  In CI (the environment variable `CI`) a
missing part fails the test that asks for it; elsewhere it skips, with the remedy.
"""

from __future__ import annotations

import getpass
import http.client
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PARTS = CHECKOUT / ".parts"
TEST_USER = "cvmfstest"
# what the machine's own package tools may need: fixtures hide proxies and more from the tests
MACHINE_ENVIRONMENT = dict(os.environ)

START_SECONDS = 30.0  # the registry answers within 0.2 s; a loaded machine gets time

# the one account of a registry started with `htpasswd=True`: characters that hurry past quoting
REGISTRY_USER = "robot"
REGISTRY_PASSWORD = 'p@ss: "w$rd\\%'
_BCRYPT = "$2y$05$V0UH2sTuzZF4sOdH0gEmO.IzwqpHSkmqzug3xH9.kXEhYh4.ofWki"


def missing(what: str, remedy: str = "`make test` (tools/install-parts) installs it") -> NoReturn:
    """End the test because the machine lacks `what`: fail in CI, else skip with the remedy."""
    message = f"{what} is missing; {remedy}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def find(program: str) -> Path | None:
    """Return where `program` is installed; what `tools/install-parts` brought comes first."""
    for own in PARTS.glob(f"*/bin/{program}"):
        return own.resolve()
    found = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    return Path(found) if found else None


def require(program: str) -> Path:
    """Return the path of `program`, or end the test as `missing` does."""
    found = find(program)
    return found if found is not None else missing(program)


# ---------------------------------------------------------------- the unprivileged user


@dataclass(frozen=True)
class User:
    """Who `run_as_test_user` runs as: the test user under root, else whoever runs the tests."""

    name: str
    uid: int
    gid: int
    home: Path


def test_user() -> User:
    """Return the unprivileged user of the tests, or end the test as `missing` does."""
    if os.geteuid() != 0:
        name, home = getpass.getuser(), Path.home()
        return User(name, os.geteuid(), os.getegid(), home)
    try:
        entry = pwd.getpwnam(TEST_USER)
    except KeyError:
        missing(f"the user {TEST_USER}")
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


test_user.__test__ = False  # type: ignore[attr-defined]  # a helper, although it is named test_…


def user_environment(user: User) -> dict[str, str]:
    """Return the environment of a fresh login, with the installed Apptainer in the path."""
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    apptainer = find("apptainer")
    if apptainer is not None:
        path = f"{apptainer.parent}:{path}"
    return {
        "PATH": path,
        "HOME": str(user.home),
        "USER": user.name,
        "LOGNAME": user.name,
        "LANG": "C.UTF-8",
    }


def popen_as_test_user(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    **options: Any,  # noqa: ANN401  # whatever Popen takes
) -> subprocess.Popen[bytes]:
    """Start `argv` as the test user.  `env` adds to a fresh login's environment."""
    user = test_user()
    if os.geteuid() == 0:
        options.update(user=user.uid, group=user.gid, extra_groups=[])
    return subprocess.Popen(
        [os.fspath(word) for word in argv],
        cwd=cwd if cwd is not None else user.home,
        env={**user_environment(user), **(env or {})},
        **options,
    )


def run_as_test_user(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    input: bytes | None = None,  # noqa: A002  # as subprocess.run names it
    timeout: float = 120,
    **options: Any,  # noqa: ANN401  # whatever Popen takes
) -> subprocess.CompletedProcess[bytes]:
    """Run `argv` to its end as the test user and return what it wrote.

    `check` fails the test, showing both outputs, unless the exit status is 0.  Without `input`,
    stdin is empty.  `timeout`: seconds until the process is killed and the test fails.
    """
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
    with popen_as_test_user(argv, cwd=cwd, env=env, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    result = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check and result.returncode:
        pytest.fail(describe(result))
    return result


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float = 300,
    **options: Any,  # noqa: ANN401  # whatever Popen takes
) -> subprocess.CompletedProcess[bytes]:
    """Run a part as whoever runs the tests; unless it ends 0, fail and show what it wrote."""
    words = [os.fspath(word) for word in argv]
    options.setdefault("stdin", subprocess.DEVNULL)
    result = subprocess.run(words, capture_output=True, timeout=timeout, check=False, **options)
    if result.returncode:
        pytest.fail(describe(result))
    return result


def describe(result: subprocess.CompletedProcess[bytes]) -> str:
    """Say what a process was, how it ended and what it wrote last."""
    outputs = b"\n".join(filter(None, (result.stdout, result.stderr)))[-4000:]
    return f"{result.args} ended {result.returncode}:\n{os.fsdecode(outputs)}"


# ---------------------------------------------------------------- the registry


@dataclass(frozen=True)
class RegistryServer:
    """A running docker-registry on loopback."""

    port: int
    root: Path  # where it keeps its files: docker/registry/v2/…
    log: Path  # its log, access log included
    username: str = ""  # empty: no authentication
    password: str = ""

    @property
    def host(self) -> str:
        """How image references name it: `127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def requests(self) -> list[str]:
        """Return what was asked so far, in order: `HEAD /v2/a/manifests/latest 200`.

        The registry logs a request when it has answered it, which a client may see first; a test
        that counts asks after its client is done and compares with `requests()` before.
        """
        asked = []
        for line in self.log.read_text("utf-8", "replace").splitlines():
            pieces = line.split('"')
            if len(pieces) > 2 and pieces[1].endswith(("HTTP/1.0", "HTTP/1.1", "HTTP/2.0")):
                asked.append(f"{pieces[1].rsplit(' ', 1)[0]} {pieces[2].split()[0]}")
        return asked


@contextmanager
def docker_registry(
    tmp_path: Path,
    *,
    htpasswd: bool = False,
    hook: str = "",
    authorization: str = "",
    tls: tuple[Path, Path] | None = None,
    more: str = "",
) -> Iterator[RegistryServer]:
    """Run Debian's registry on a free loopback port, its files below `tmp_path`.

    `htpasswd`: it asks for the user name and password of the yielded `RegistryServer`.
    `hook`: the URL to which it posts what was pushed, with that `Authorization`.
    `tls`: files of a certificate and its key.  `more`: further sections of its configuration.
    """
    program = require("docker-registry")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = tmp_path / f"registry-{port}"
    account = (REGISTRY_USER, REGISTRY_PASSWORD) if htpasswd else ("", "")
    server = RegistryServer(port, base / "files", base / "log", *account)
    server.root.mkdir(parents=True)
    configuration = base / "config.yml"
    text = _registry_configuration(server, base, tls) + more
    if hook:
        text += _notifications(hook, authorization)
    configuration.write_text(text, "utf-8")
    with (
        server.log.open("wb") as log,
        _stopped_at_the_end([str(program), "serve", str(configuration)], log) as process,
    ):
        _wait_until_it_answers(server, process)
        yield server


def _registry_configuration(
    server: RegistryServer, base: Path, tls: tuple[Path, Path] | None
) -> str:
    text = f"""version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: '{server.root}'}}
  delete: {{enabled: true}}
http:
  addr: {server.host}
  secret: tests
"""
    if tls is not None:
        text += f"  tls: {{certificate: '{tls[0]}', key: '{tls[1]}'}}\n"
    if server.username:
        (base / "htpasswd").write_text(f"{server.username}:{_BCRYPT}\n", "utf-8")
        text += f"auth: {{htpasswd: {{realm: tests, path: '{base / 'htpasswd'}'}}}}\n"
    return text


def _notifications(hook: str, authorization: str) -> str:
    return f"""notifications:
  endpoints:
    - name: tests
      url: {hook}
      headers: {{Authorization: ['{authorization}']}}
      timeout: 2s
      threshold: 3
      backoff: 1s
"""


@contextmanager
def _stopped_at_the_end(argv: list[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_it_answers(server: RegistryServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as client:
            try:
                client.request("GET", "/v2/")
                answer = client.getresponse()
                answer.read()
            except OSError:
                time.sleep(0.02)
                continue
            # 400: it wants TLS
            if answer.status in (200, 400, 401):
                return
        time.sleep(0.02)
    pytest.fail(f"docker-registry does not answer:\n{server.log.read_text('utf-8')[-4000:]}")
