"""Plain trees on a real XFS: files of equal content share its blocks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import parts
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.support import NAME
from tests.unit.cli.support import Shell

pytestmark = pytest.mark.parts

SIZE = 8 * 1024**2  # bytes of the file that is shared
DISK = 320 * 1024**2  # bytes; mkfs.xfs makes none below 300 MB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An XFS in a file, mounted.

    Whether a kernel has XFS and loop devices is no matter of installing anything: where it has
    not, as in many containers, the faked system call in tests/unit/test_directory.py has to do.
    """
    if os.geteuid() != 0:
        parts.missing("root, to mount a file system")
    program = parts.require("mkfs.xfs")
    image, place = tmp_path / "disk", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(DISK)
    subprocess.run([program, "-q", "-m", "reflink=1", image], check=True)
    place.mkdir()
    done = subprocess.run(
        ["mount", "-o", "loop", image, place], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"this kernel mounts no XFS here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def used(disk: Path) -> int:
    """Return the bytes that are taken on a disk, once all is written."""
    os.sync()
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@pytest.mark.parametrize(
    ("share", "is_shared"), [("auto", True), ("reflink", True), ("hardlink", False)]
)
def test_an_image_with_the_same_content_takes_no_space_again(
    tmp_path: Path, disk: Path, share: str, is_shared: bool
) -> None:
    shell = Shell(tmp_path / "home")
    shell.cwd.mkdir()
    assert shell.run("init", NAME, "--backend", "directory", "--storage", str(disk / "t")).code == 0
    config = shell.cwd / "cvmfs-publish.yaml"
    config.write_text(config.read_text().replace("#share: auto", f"share: {share}"))
    data = os.urandom(SIZE)
    with FakeRegistry() as registry:
        for number, mode in ((1, 0o644), (2, 0o755)):
            tar = Tar()
            tar.file("large", data, mode=mode)
            registry.add_image(f"a/x{number}", [tar.done()], tag="1")
        first, second = (registry.name(f"a/x{number}", "1") for number in (1, 2))
        shell.json("publish", first)
        before = used(disk)
        shell.json("publish", second)
    grown = used(disk) - before
    assert grown < SIZE // 4 if is_shared else grown > SIZE // 2
    files = [disk / "t" / name / "large" for name in (first, second)]
    assert [path.read_bytes() == data for path in files] == [True, True]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o644, 0o755]
    assert shell.json("check")["ok"] is True
    if share == "auto":
        (found,) = [each for each in shell.json("doctor", "--offline")["checks"]
                    if each["check"] == "sharing"]  # fmt: skip
        assert found["message"].startswith("by reflinks")
