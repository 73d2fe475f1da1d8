"""Files count when they are complete, and what is no image is left alone."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.state.model import ImageKey, Wish
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.files import SCAN_EVERY, DropFolder, FileEvents, is_candidate, name_below

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
GOOD = b"an image"
PLATFORM = "linux/amd64"


class Opener:
    """An image is what says so; one that is called something says that, too."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def locate(self, text: str, name: str = "") -> Reference:
        path = Path(text.partition(":")[2])
        self.opened.append(text)
        if not name and b"called " not in path.read_bytes():
            raise InputError(f"{text} does not say what it is called")
        return Reference.parse(name or path.read_bytes().partition(b"called ")[2].decode())

    def head(self, reference: Reference) -> Digest:
        path = Path(self.opened[-1].partition(":")[2])
        if not path.read_bytes().startswith(GOOD):
            raise InputError(f"{path} is no archive")
        return Digest.of(str(reference).encode())


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def drop(tmp_path: Path, memory: State) -> DropFolder:
    folder = tmp_path / "drop"
    folder.mkdir()
    return DropFolder(folder, memory, Opener())


def put(drop: DropFolder, name: str, data: bytes = GOOD) -> Path:
    path = drop.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(memory: State) -> list[str]:
    return [job.key.name for job in memory.due_jobs(NOW + timedelta(days=1))]


def test_a_file_is_taken_when_it_has_not_changed_for_a_second(
    drop: DropFolder, memory: State
) -> None:
    path = put(drop, "ghcr.io/a/b/1.tar")
    assert drop.step(NOW)
    path.write_bytes(GOOD + b" that grows")
    assert drop.step(NOW + SECOND)
    assert drop.step(NOW + 1.5 * SECOND)
    assert names(memory) == []
    assert not drop.step(NOW + 2 * SECOND)
    assert names(memory) == ["ghcr.io/a/b:1"]
    (job,) = memory.due_jobs(NOW + timedelta(days=1))
    assert (job.reference, job.reason) == (f"oci-archive:{path}", "file")
    image = memory.image(job.key)
    assert image is not None
    assert image.next_poll_at is None  # no registry is asked about it


def test_it_is_taken_once_and_again_when_it_is_another(drop: DropFolder, memory: State) -> None:
    path = put(drop, "ghcr.io/a/b/1.tar")
    for second in range(0, 200, 10):
        drop.step(NOW + second * SECOND)
    run = memory.begin_run(memory.due_jobs(NOW + timedelta(days=1)), {}, NOW)
    memory.finish_run(run, [], NOW)
    assert len(memory.dropped()) == 1
    before = memory.dropped()[str(path)].found_at
    path.write_bytes(GOOD + b" anew")
    for second in range(200, 300, 10):
        drop.step(NOW + second * SECOND)
    assert memory.dropped()[str(path)].found_at > before


@pytest.mark.parametrize(
    ("name", "data", "published"),
    [
        ("image.tar", GOOD + b" called quay.io/x/y:2", "quay.io/x/y:2"),
        ("image.tar.gz", GOOD, ""),  # nothing says what it is called
        ("ghcr.io/a/b/1.tar.zst", b"nonsense", ""),
        ("ghcr.io/a/b/1.sif", GOOD, "ghcr.io/a/b:1"),
        ("UPPER/Case/1.tar", GOOD, ""),
        ("../ghcr.io/a/b/1.tar", GOOD, ""),
        (".ghcr.io/a/b/1.tar", GOOD, ""),
        ("ghcr.io/a/b/.1.tar", GOOD, ""),
        ("ghcr.io/a/b:1.tar", GOOD, ""),
        ("ghcr.io/a/b/1.txt", GOOD, ""),
        ("ghcr.io/a/b/1.tar", b"", ""),
    ],
)
def test_names_are_those_of_the_place_or_those_inside(
    drop: DropFolder, memory: State, name: str, data: bytes, published: str
) -> None:
    put(drop, name, data)
    drop.step(NOW)
    drop.step(NOW + SECOND)
    assert names(memory) == ([published] if published else [])


def test_what_is_no_image_is_told_once(drop: DropFolder, memory: State) -> None:
    put(drop, "ghcr.io/a/b/1.tar", b"nonsense")
    for second in range(0, 200, 10):
        drop.step(NOW + second * SECOND)
    (event,) = memory.latest_events()
    assert event.kind == "drop-ignored"
    assert "is no archive" in event.message


def test_links_and_what_cannot_be_read_are_left_alone(
    drop: DropFolder, memory: State, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(GOOD)
    (drop.folder / "quay.io" / "x").mkdir(parents=True)
    (drop.folder / "quay.io" / "x" / "1.tar").symlink_to(secret)
    os.mkfifo(drop.folder / "quay.io" / "x" / "2.tar")
    drop.step(NOW)
    assert not drop.step(NOW + SECOND)
    assert names(memory) == []


def test_a_name_that_a_list_wishes_is_not_taken_from_a_file(
    drop: DropFolder, memory: State
) -> None:
    key = ImageKey("ghcr.io/a/b:1", PLATFORM)
    memory.replace_wishes([Wish(key, key.name, "images.yaml")], NOW)
    put(drop, "ghcr.io/a/b/1.tar")
    drop.step(NOW)
    drop.step(NOW + SECOND)
    image = memory.image(key)
    assert image is not None
    assert (image.list, image.reference) == ("images.yaml", key.name)
    assert "comes from its registry" in memory.latest_events()[0].message


def test_files_that_are_taken_away_are_forgotten_and_their_images_stay(
    drop: DropFolder, memory: State
) -> None:
    path = put(drop, "ghcr.io/a/b/1.tar")
    drop.step(NOW)
    drop.step(NOW + SECOND)
    path.unlink()
    drop.step(NOW + SCAN_EVERY)
    assert memory.dropped() == {}
    memory.replace_wishes([], NOW, {"drop"})
    image = memory.image(ImageKey("ghcr.io/a/b:1", PLATFORM))
    assert image is not None
    assert image.is_wished


def test_names_below_the_folder() -> None:
    folder = Path("/drop")
    assert name_below(folder, folder / "a.tar") == ""
    assert name_below(folder, folder / "ghcr.io/a/b/1.2.tar.gz") == "ghcr.io/a/b:1.2"
    assert not is_candidate(folder / "a" / "new\nline.tar")


class Seen:
    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.event = threading.Event()

    def __call__(self, path: Path) -> None:
        self.paths.append(path)
        self.event.set()


def test_the_kernel_tells_of_lists_that_change_and_files_that_are_dropped(
    drop: DropFolder, tmp_path: Path
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    wishlist = lists / "images.yaml"
    wishlist.write_text("old")
    seen, woken = Seen(), threading.Event()
    with FileEvents([wishlist], seen, drop, woken.set):
        (lists / "other").write_text("of no interest")
        temporary = lists / ".images.yaml.new"
        temporary.write_text("new")
        temporary.rename(wishlist)  # as editors do it
        assert seen.event.wait(30)
        assert set(seen.paths) == {wishlist}
        put(drop, "ghcr.io/a/b/1.tar")
        assert woken.wait(30)


def test_directories_that_are_found_twice_do_not_end_the_thread_that_reads(
    drop: DropFolder,
) -> None:
    with FileEvents([], Seen(), drop, lambda: None):
        warnings.warn("Callback with id '1' already exists for watch 5", RuntimeWarning)  # noqa: B028
        with pytest.raises(RuntimeWarning, match="of another kind"):
            warnings.warn("of another kind", RuntimeWarning)  # noqa: B028


def test_a_folder_that_is_not_there_is_looked_at_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FileEvents([tmp_path / "nothing" / "images.yaml"], Seen(), None, lambda: None):
        pass
    assert "the kernel tells of no changes" in caplog.text
