"""What is found of libraries, the clock, folders and programs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.doctor import host
from cvmfs_publish.doctor.host import (
    check_below,
    check_clock,
    check_folder,
    check_libraries,
    check_program,
    check_published,
    check_software,
    check_state,
    file_system_of,
    is_synchronised,
)
from cvmfs_publish.doctor.model import Finding, Outcome, examine, good
from cvmfs_publish.errors import InputError, LockedError, RemoteError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def outcomes(found: Iterable[Finding]) -> list[str]:
    return [each.outcome.value for each in found]


def test_this_program_has_the_libraries_it_needs() -> None:
    assert set(outcomes(check_software())) <= {"ok", "not applicable"}


def test_libraries_that_are_absent_or_too_old_are_missing_with_the_command_that_helps() -> None:
    found = list(check_libraries(["nothing-of-that-name>=3", "requests>=999", "typer>=0.1"]))
    assert outcomes(found) == ["missing", "missing", "ok"]
    assert found[0].remedy == "pip install 'nothing-of-that-name>=3'"
    assert "999 or newer is needed" in found[1].message
    assert found[2].message.startswith("1 library ")


def test_libraries_of_extras_are_not_asked_for() -> None:
    found = list(check_libraries(['nothing-of-that-name>=3; extra == "test"']))
    assert outcomes(found) == ["ok"]


@pytest.mark.parametrize(
    ("synchronised", "outcome"), [(True, "ok"), (False, "warning"), (None, "not applicable")]
)
def test_a_clock_that_nobody_keeps_right_is_a_warning(
    synchronised: bool | None, outcome: str
) -> None:
    (found,) = check_clock(NOW, synchronised)
    assert found.outcome == outcome
    assert "2026-01-01 00:00:00 UTC" in found.message


def test_the_kernel_is_asked_whether_the_clock_is_synchronised() -> None:
    assert is_synchronised() in (True, False, None)


def test_a_revision_from_the_future_is_missing_the_right_time() -> None:
    assert outcomes(check_published(int(NOW.timestamp()) + 30, NOW)) == []
    (found,) = check_published(int((NOW + timedelta(hours=1)).timestamp()), NOW)
    assert found.outcome is Outcome.MISSING
    assert "3600 seconds" in found.message


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above_it(tmp_path: Path) -> None:
    wanted = tmp_path / "a/b"
    found = [each for each in check_state(wanted) if each.outcome is Outcome.OK]
    assert str(wanted) in found[-1].message
    assert "made when it is needed" in found[-1].message
    assert not (tmp_path / "a").exists()


def test_a_folder_that_takes_no_files_is_missing() -> None:
    (found,) = check_folder("state", Path("/proc/self"))
    assert (found.outcome, bool(found.remedy)) == (Outcome.MISSING, True)


@pytest.mark.parametrize("closed", ["a", "a/b", "a/b/c", "x.sqlite"])
def test_what_another_account_made_in_a_folder_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "x.sqlite").touch()
    (tmp_path / "link").symlink_to("/")

    def may(path: Path, mode: int) -> bool:
        return Path(path) != tmp_path / closed

    monkeypatch.setattr(os, "access", may)
    found = list(check_below("state", tmp_path, depth=2, files="*.sqlite"))
    if closed == "a/b/c":  # that deep nobody looks
        assert found == []
    else:
        (one,) = found
        assert one.outcome is Outcome.MISSING
        assert one.message.startswith(f"{tmp_path / closed} cannot be written")


def test_a_folder_without_room_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "LEAST_BYTES", 1 << 62)
    monkeypatch.setattr(host, "LEAST_INODES", 1 << 62)
    found = list(check_folder("state", tmp_path))
    assert outcomes(found) == ["warning"] * (1 + bool(os.statvfs(tmp_path).f_files)) + ["ok"]


def test_a_state_on_a_network_file_system_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
    monkeypatch.setattr(host, "file_system_of", lambda _: "nfs4")
    assert Outcome.WARNING in {each.outcome for each in check_state(tmp_path)}


def test_programs_are_looked_for_in_path_alone(tmp_path: Path) -> None:
    def look(*, needed: bool) -> Finding:
        (found,) = check_program("tool", "work", str(tmp_path), needed=needed, package="tools")
        return found

    assert look(needed=False).outcome is Outcome.UNUSED
    assert look(needed=True).outcome is Outcome.MISSING
    assert look(needed=True).remedy == "install tools"
    (tmp_path / "tool").touch(0o755)
    assert look(needed=True).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InputError("no", hint="do this"), "missing"),
        (RemoteError("no"), "missing"),
        (LockedError("no", hint="wait"), "warning"),
        (FileNotFoundError(2, "No such file or directory", "/a/file"), "missing"),
    ],
)
def test_what_ends_a_check_is_a_finding_with_a_remedy(error: Exception, outcome: str) -> None:
    def check() -> Iterable[Finding]:
        yield good("it", "first")
        raise error

    first, second = examine("it", check)
    assert first.outcome is Outcome.OK
    assert second.outcome == outcome
    assert second.remedy
