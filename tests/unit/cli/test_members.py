"""A repository is added to a configuration, and nothing else in the file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmfs_publish.cli.members import add_member, check_new, is_of_several
from cvmfs_publish.config import RepositoryName, S3Config, load_configs, render_default_config
from cvmfs_publish.errors import InputError

NEW = RepositoryName("new.example.org")
RENDERED = render_default_config(NEW, storage="repositories/new")
TEXT = """\
# ours
repositories: # several
    # the first
    a.example.org:
        storage: a   # here
    "b.example.org": {storage: b}
wishlists: [x.yaml]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "cvmfs-publish.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_it_stands_first_in_the_indentation_of_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT)
    assert is_of_several(path)
    add_member(path, NEW, RENDERED)
    assert path.read_text() == TEXT.replace(
        "# several\n",
        "# several\n    new.example.org:\n      storage: repositories/new\n      keys: keys\n"
        "      hash: sha1\n",
    )
    assert [each.repository.name for each in load_configs(path)] == [
        *("new.example.org", "a.example.org", "b.example.org")
    ]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_sections_with_something_in_them_come_along(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT)
    s3 = S3Config(region="eu-one")
    add_member(path, NEW, render_default_config(NEW, storage="s3://buck/et", s3=s3))
    assert load_configs(path)[0].repository.s3.region == "eu-one"
    path = write(tmp_path, TEXT)
    server = render_default_config(NEW, backend="cvmfs_server", storage=None, server_conf="/x.conf")
    add_member(path, NEW, server)
    assert load_configs(path)[0].repository.cvmfs_server.server_conf == Path("/x.conf")


def test_a_place_that_belongs_to_another_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT)
    with pytest.raises(InputError, match="is in the way of"):
        add_member(path, NEW, render_default_config(NEW, storage="b/new"))
    assert path.read_text() == TEXT
    with pytest.raises(InputError, match=r"has the repository a\.example\.org already"):
        check_new(path, RepositoryName("a.example.org"))


@pytest.mark.parametrize(
    "text", ["repositories: {a.example.org: {}}\n", "repository: {name: a.example.org}\n"]
)
def test_a_file_without_lines_for_each_is_for_an_editor(tmp_path: Path, text: str) -> None:
    assert not is_of_several(write(tmp_path, text))


def test_a_section_that_only_looks_like_one_is_not_changed(tmp_path: Path) -> None:
    text = "repository: {name: a.example.org}\nstate: |\n repositories:\nrepositories:\n"
    path = write(tmp_path, text)
    with pytest.raises(InputError):
        add_member(path, NEW, RENDERED)
    assert path.read_text() == text
