from __future__ import annotations

import zlib
from datetime import timedelta

import pytest

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.repository.native.history import History, Tag, is_tag_name
from cvmfs_publish.repository.native.manifest import parse_manifest
from tests.unit.native.vectors import NAMES, edit_database, vector

ONE, TWO, THREE = (ContentHash.parse(digit * 40) for digit in "123")


def stock_history(name: str) -> bytes:
    repository = vector(name) / "repo"
    value = parse_manifest((repository / ".cvmfspublished").read_bytes())[0].history
    assert value is not None
    return zlib.decompress((repository / value.path(Suffix.HISTORY)).read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_the_tags_of_a_stock_history_are_those_its_own_tool_lists(name: str) -> None:
    expected = set()
    for line in (vector(name) / "tags.txt").read_text().splitlines():
        tag, value, size, revision, timestamp, _, *words = line.split(" ")
        number, time = int(revision), int(timestamp)
        parsed = ContentHash.parse(value)
        expected.add(Tag(tag, parsed, number, time, int(size), " ".join(words).strip()))
    with History.open(stock_history(name)) as history:
        assert set(history.tags()) == expected
        assert history.name == name
        assert history.previous_revision is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_are_those_of_stock(name: str) -> None:
    sql = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    with History.open(stock_history(name)) as stock, History.create("x") as ours:
        for history in (stock, ours):
            assert history.get_property("schema") == "1.0"
            assert history.get_property("schema_revision") == "3"
        columns = [
            [
                (table, history.database.execute(f"PRAGMA table_info({table})").fetchall())
                for table, _ in history.database.execute(sql)
            ]
            for history in (stock, ours)
        ]
        assert columns[0] == columns[1]


def test_trunk_moves_and_the_one_before_is_remembered() -> None:
    with History.create("a.example.org") as history:
        history.advance(ONE, 1, 100, 16384)
        assert history.tags() == [Tag("trunk", ONE, 1, 100, 16384, "current HEAD")]
        history.advance(TWO, 2, 200, 16385)
        history.add_tag("release/1.0:a-b_c", TWO, 2, 200, 16385, "ünï")
        history.advance(THREE, 3, 300, 16386)
        data = history.serialize()
    assert data[16:20] == b"\x04\x00\x01\x01"  # pages of 1024 bytes, no write-ahead log
    with History.open(data) as again:
        assert again.tags() == [
            Tag("release/1.0:a-b_c", TWO, 2, 200, 16385, "ünï"),
            Tag("trunk-previous", TWO, 2, 200, 16385, "default undo target"),
            Tag("trunk", THREE, 3, 300, 16386, "current HEAD"),
        ]
        again.remove_tag("release/1.0:a-b_c")
        assert again.tag("release/1.0:a-b_c") is None
        assert again.tag("trunk") == Tag("trunk", THREE, 3, 300, 16386, "current HEAD")


def test_the_first_history_has_zeros_for_a_predecessor() -> None:
    with History.create("a.example.org") as history:
        assert history.previous_revision is None
        assert history.get_property("previous_revision") == "0" * 40
        history.previous_revision = ONE
        assert history.previous_revision == ONE


@pytest.mark.parametrize("name", ["", "a b", "ä", "a\n", "a@b", "a" * 256, "trunk"])
def test_bad_tag_names_are_refused(name: str) -> None:
    assert name == "trunk" or not is_tag_name(name)
    with History.create("x") as history, pytest.raises(InputError):
        history.add_tag(name, ONE, 1, 1, 1)


def test_tags_are_neither_replaced_nor_removed_by_mistake() -> None:
    with History.create("x") as history:
        history.advance(ONE, 1, 1, 1)
        history.add_tag("a", ONE, 1, 1, 1)
        with pytest.raises(InputError, match="exists already"):
            history.add_tag("a", TWO, 1, 1, 1)
        with pytest.raises(InputError, match="no tag 'b'"):
            history.remove_tag("b")
        with pytest.raises(InputError, match="cannot be removed"):
            history.remove_tag("trunk")
        for text in ("\0", "\udc80"):
            with pytest.raises(InputError, match="not text"):
                history.add_tag("c", ONE, 1, 1, 1, text)


def test_automatic_tags_are_named_as_stock_names_them_and_live_for_their_span() -> None:
    with History.create("x") as history:
        history.advance(ONE, 1, 1000, 1)
        history.add_automatic_tag(started=990)
        history.add_automatic_tag(started=990)
        history.add_tag("generic-1970-01-01", ONE, 1, 1000, 1)
        history.add_tag("my-generic-1970-01-01T00:16:30Z", ONE, 1, 1000, 1)
        history.add_tag("generic-1970-01-01T00:16:30Z-mine", ONE, 1, 1000, 1)
        history.advance(TWO, 2, 2000, 2)
        history.add_automatic_tag(started=1990)
        assert history.tag("generic-1970-01-01T00:33:10Z") == Tag(
            "generic-1970-01-01T00:33:10Z", TWO, 2, 2000, 2
        )
        every = {tag.name for tag in history.tags()}
        for span in (timedelta(seconds=1000), timedelta(days=1), timedelta.max):
            history.remove_automatic_tags(2000, span)
            assert {tag.name for tag in history.tags()} == every
        history.remove_automatic_tags(2000, timedelta(seconds=999))
        assert every - {tag.name for tag in history.tags()} == {
            "generic-1970-01-01T00:16:30Z",
            "generic_1-1970-01-01T00:16:30Z",
        }


def test_the_last_tag_of_a_branch_stays() -> None:
    with History.create("x") as history:
        history.add_tag("a", ONE, 1, 1, 1)
        with pytest.raises(InputError, match="last one of its branch"):
            history.remove_tag("a")


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE tags SET description = NULL",
        "UPDATE tags SET hash = 'x'",
        "UPDATE tags SET revision = 'x'",
        "DROP TABLE tags",
        "DROP TABLE branches; DROP TABLE properties",
    ],
)
def test_malformed_histories_are_refused(sql: str) -> None:
    data = edit_database(stock_history(NAMES[0]), sql)
    with pytest.raises(IntegrityError), History.open(data) as history:
        history.tags()


@pytest.mark.parametrize("data", [b"", b"SQLite format 3\0", b"x" * 5000])
def test_what_is_no_database_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a SQLite database"):
        History.open(data)
    with pytest.raises(IntegrityError, match="history cannot be read"):
        History.open(b"SQLite format 3\0\x04\x00\x01\x01" + bytes(5000))


@pytest.mark.parametrize("number", ["", "_1"])
def test_nobody_names_a_revision_what_is_removed_by_itself(number: str) -> None:
    with History.create("x") as history, pytest.raises(InputError, match="automatic"):
        history.add_tag(f"generic{number}-2026-11-20T10:29:57Z", ONE, 1, 1, 1)
