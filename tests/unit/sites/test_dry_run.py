"""What `cvmfs-run --dry-run` prints is read as a shell would."""

from __future__ import annotations

from cvmfs_publish.sites.dry_run import RuntimeCommand, runtime_command


def test_the_command_is_found_behind_variables_and_open_files() -> None:
    printed = "( export A='b c'; ) "
    assert runtime_command(printed) is None
    printed = "( export A='x y=z'\nexec 7</cvmfs/a.org\nexec run --bind '/a b' image true )\n"
    assert runtime_command(printed) == RuntimeCommand(
        ("run", "--bind", "/a b", "image", "true"), {"A": "x y=z"}
    )


def test_an_empty_answer_has_no_command() -> None:
    assert runtime_command("") is None
