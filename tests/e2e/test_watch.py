"""New images appear by themselves: pushed to a registry, found by looking, put into a folder."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.state.model import Image, ImageKey
from cvmfs_publish.state.reading import Reader
from tests import images, parts
from tests.support import NAME, keys_of_this_run

pytestmark = pytest.mark.parts
SECRET = "a-secret-of-the-tests-long-enough"
AT_ONCE = 5.0  # seconds from the push until its publish begins, and from its end until it is seen
PLATFORM = "linux/amd64"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Home:
    """A folder in which a release manager works."""

    folder: Path

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cvmfs_publish", *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(mode)

    @contextmanager
    def watching(self, *words: str) -> Iterator[str]:
        """Run the service; yield what it says first."""
        command = [sys.executable, "-m", "cvmfs_publish", "watch", *words]
        with (
            (self.folder / "log").open("ab") as log,
            subprocess.Popen(
                command, cwd=self.folder, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            assert process.stdout is not None
            try:
                yield process.stdout.readline()
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0, (self.folder / "log").read_text()

    def wait(self, name: str, done: Callable[[Image], bool], seconds: float = 60) -> Image:
        deadline = time.monotonic() + seconds
        image: Image | None = None
        while time.monotonic() < deadline:
            with Reader.open(self.folder / "state") as state:
                image = state.image(ImageKey(name, PLATFORM))
            if image is not None and done(image):
                return image
            time.sleep(0.1)
        pytest.fail(f"{name}: {image}\n{(self.folder / 'log').read_text()}")

    def runs_a_job(self, name: str) -> None:
        """Start a job from what is published, as an unprivileged user does."""
        shutil.rmtree(self.folder / "sandbox", ignore_errors=True)
        self.run("export", name, "sandbox")
        self.run("site", "render", "generic", "--out", "site")
        runtime = parts.require("apptainer")
        launcher = self.folder / "site" / "bin" / "cvmfs-run"
        words = [str(launcher), "--runtime", str(runtime), str(self.folder / "sandbox"), "--"]
        done = parts.run_as_test_user([*words, "/bin/sh", "-c", "echo it runs"], cwd=Path("/tmp"))
        assert (done.returncode, done.stdout) == (0, b"it runs\n"), done.stderr


@pytest.fixture
def home() -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="cvmfs-publish-watch-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copytree(keys_of_this_run(), folder / "keys")
    found = Home(folder)
    found.run("init", NAME)
    yield found
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch") / "layout"
    images.debian_image(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.tiny_image(tmp_path_factory.mktemp("watch") / "tiny")


def configure(home: Home, text: str) -> None:
    with (home.folder / "cvmfs-publish.yaml").open("a") as file:
        file.write(text)


def is_there(image: Image) -> bool:
    return image.status == "published"


def test_what_is_pushed_to_a_registry_is_there_at_once_and_a_job_runs_from_it(
    home: Home, layout: Path, tmp_path: Path
) -> None:
    port = free_port()
    hook = f"http://127.0.0.1:{port}/hooks/distribution"
    token = f"Bearer {SECRET}"
    with parts.docker_registry(tmp_path, hook=hook, authorization=token) as registry:
        home.write("hook", f"{SECRET}\n", 0o400)
        repository = f"{registry.host}/some/image"
        rule = f"{{name: {repository}, tags: {{match: 'v*'}}}}"
        home.write("images.yaml", f"version: 1\nimages:\n  - {rule}\n")
        configure(home, "\nwishlists: [images.yaml]\nwebhooks: {secret_file: hook}\n")
        # nothing is looked at within the hour: it is the webhook that tells
        text = (home.folder / "cvmfs-publish.yaml").read_text()
        home.write("cvmfs-publish.yaml", text.replace("#interval: 15m", "interval: 1h"))
        with home.watching("--listen", f"127.0.0.1:{port}") as said:
            assert said.endswith(f"status at http://127.0.0.1:{port}\n")
            name = f"{repository}:v1"
            images.push(layout, name)
            pushed = datetime.now(UTC)
            image = home.wait(name, is_there)
            assert image.fetching_at is not None
            assert image.published_at is not None
            assert image.facts is not None
            assert (image.fetching_at - pushed).total_seconds() < AT_ONCE
            took = (image.published_at - pushed).total_seconds()
            assert took < AT_ONCE + image.facts.seconds
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
                assert json.load(answer)["ok"]
    assert name in home.run("list")
    home.runs_a_job(name)


def test_what_is_pushed_is_found_by_looking_alone(
    home: Home, tiny: Path, registry: parts.RegistryServer
) -> None:
    name = f"{registry.host}/looked/at"
    home.write(
        "images.yaml",
        f"version: 1\nimages:\n  - {name}:1\n  - {{name: {name}, tags: {{match: 'v*'}}}}\n",
    )
    configure(home, "\nwishlists: [images.yaml]\n")
    text = (home.folder / "cvmfs-publish.yaml").read_text()
    text = text.replace("#interval: 15m", "interval: 2s").replace("#tags: 1h", "tags: 2s")
    home.write("cvmfs-publish.yaml", text)
    with home.watching() as said:
        assert said == f"watching for {NAME}\n"
        home.wait(f"{name}:1", lambda image: image.status == "gone")
        images.push(tiny, f"{name}:1")
        home.wait(f"{name}:1", is_there)
        images.push(tiny, f"{name}:v7")
        home.wait(f"{name}:v7", is_there)
    home.runs_a_job(f"{name}:1")


def test_an_archive_that_is_put_into_the_folder_is_published(home: Home, tiny: Path) -> None:
    text = (home.folder / "cvmfs-publish.yaml").read_text()
    home.write("cvmfs-publish.yaml", text.replace("#drop: drop", "drop: drop"))
    name = "registry.example.org/group/dropped:1"
    with home.watching():
        place = home.folder / "drop" / "registry.example.org" / "group" / "dropped" / "1.tar"
        place.parent.mkdir(parents=True)
        (home.folder / "drop" / "nonsense.tar").write_bytes(b"no archive")
        skopeo = parts.require("skopeo")
        # as slowly as networks do it: the file is there before it is complete
        archive = home.folder / "archive.tar"
        parts.run(
            [skopeo, "--insecure-policy", "copy", "--quiet", f"oci:{tiny}:latest",
             f"oci-archive:{archive}"]
        )  # fmt: skip
        data = archive.read_bytes()
        with place.open("wb") as file:
            for start in range(0, len(data), len(data) // 4):
                file.write(data[start : start + len(data) // 4])
                file.flush()
                time.sleep(0.3)
        home.wait(name, is_there)
    assert name in home.run("list")
    home.runs_a_job(name)
