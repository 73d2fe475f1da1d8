"""Settings files are read strictly, and every refusal says where, what and what instead."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import ClassVar, Literal, NewType

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish import settings
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError

Seconds = NewType("Seconds", int)


class Colour(Enum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Port:
    """A scalar type of its own."""

    number: int

    @classmethod
    def parse(cls, text: str) -> Port:
        if not text.isdigit():
            raise InputError(f"{text!r} is not a port", hint="use a number such as 8080")
        return cls(int(text))


@dataclass(frozen=True)
class Range:
    low: int
    high: int = field(default=9, metadata=settings.about("the largest value"))

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise InputError(f"low {self.low} is above high {self.high}", hint="swap them")


@dataclass(frozen=True)
class Everything:
    UNAVAILABLE: ClassVar[frozenset[str]] = frozenset({"later"})

    name: str
    count: int = 0
    ratio: float = 1.0
    active: bool = False
    where: Path = Path("default")
    wait: timedelta = timedelta(0)
    mode: Literal["auto", "never"] = "auto"
    colour: Colour = Colour.RED
    names: tuple[str, ...] = ()
    numbers: list[int] = field(default_factory=list)
    pair: tuple[str, int] | None = None
    unique: frozenset[str] = frozenset()
    table: dict[str, int] = field(default_factory=dict)
    ports: Mapping[str, Port] = field(default_factory=dict)
    range: Range = field(default_factory=lambda: Range(0))
    ranges: tuple[Range, ...] = ()
    maybe: str | None = None
    either: bool | Literal["auto"] = "auto"
    size: Range | int = 0
    digest: Digest | None = None
    pause: Seconds = Seconds(1)
    dashed: str = field(default="", metadata={"key": "dashed-name"})
    backend: Literal["one"] = field(
        default="one", metadata=settings.about("which", later="two|three-.*")
    )
    password: str = field(default="", repr=False, metadata=settings.about("what"))
    computed: str = field(default="", init=False)


@dataclass(frozen=True)
class Inner:
    depth: int = 3


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=lambda: Inner(5))


def read(text: str) -> Everything:
    return settings.parse(Everything, text, "a.yaml")


def refusal(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        read(text)
    return caught.value


FULL = """\
name: x
count: 500_000
ratio: 2.5e1
active: true
where: some/where
wait: 30d
mode: never
colour: green
names: [a, b]
numbers:
  - 1
  - -2
pair: [a, 1]
unique: [b, a, b]
table: {a: 1}
ports: {web: 8080}
range: {low: 1, high: 2}
ranges: [{low: 0}]
maybe: y
either: no
size: {low: 3}
pause: 5
dashed-name: z
"""


def test_every_supported_type_is_read() -> None:
    assert read(FULL) == Everything(
        name="x",
        count=500_000,
        ratio=25.0,
        active=True,
        where=Path("some/where"),
        wait=timedelta(days=30),
        mode="never",
        colour=Colour.GREEN,
        names=("a", "b"),
        numbers=[1, -2],
        pair=("a", 1),
        unique=frozenset("ab"),
        table={"a": 1},
        ports={"web": Port(8080)},
        range=Range(1, 2),
        ranges=(Range(0, 9),),
        maybe="y",
        either=False,
        size=Range(3),
        pause=Seconds(5),
        dashed="z",
    )


def test_absent_keys_take_their_defaults() -> None:
    assert read("name: x") == Everything("x")


@pytest.mark.parametrize(
    "written",
    [
        "no",
        "on",
        "y",
        "1:30",
        "010",
        "0x1f",
        "1.10",
        "1e3",
        "2026-01-01",
        "true",
        ".inf",
        "5_0",
        "<<",
    ],
)
def test_text_is_what_is_written_and_not_what_yaml_1_1_makes_of_it(written: str) -> None:
    assert read(f"name: {written}").name == written
    assert read(f"name: a\ntable: {{{written}: 1}}").table == {written: 1}


@pytest.mark.parametrize("written", ["null", "~", "", "Null"])
def test_null_is_nothing_unless_quoted(written: str) -> None:
    assert "a.yaml:1: name: wants text, found nothing" in str(refusal(f"name: {written}"))
    assert read(f"name: x\nmaybe: {written}").maybe is None
    assert read(f"name: '{written}'").name == written


@pytest.mark.parametrize(
    ("written", "expected"),
    [("true", True), ("False", False), ("YES", True), ("no", False)],
)
def test_booleans_are_true_false_yes_and_no(written: str, expected: bool) -> None:
    assert read(f"name: x\nactive: {written}").active is expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("45s", timedelta(seconds=45)),
        ("15m", timedelta(minutes=15)),
        ("2h", timedelta(hours=2)),
        ("30d", timedelta(days=30)),
        ("4w", timedelta(weeks=4)),
    ],
)
def test_durations_carry_their_unit(written: str, expected: timedelta) -> None:
    assert read(f"name: x\nwait: {written}").wait == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("count: 010", "count: wants a whole number, found '010'"),
        ("count: 1:30", "count: wants a whole number, found '1:30'"),
        ("count: 0x10", "count: wants a whole number, found '0x10'"),
        ("count: 1.5", "count: wants a whole number, found '1.5'"),
        ("count: '5'", "count: wants a whole number, found the text '5'"),
        ("count: [5]", "count: wants a whole number, found a list"),
        ("count: " + "9" * 40, "count: wants a whole number, found '9999"),
        ("ratio: .nan", "ratio: wants a number, found '.nan'"),
        ("ratio: 1e999", "ratio: wants a number, found '1e999'"),
        ("active: on", "active: wants true or false, found 'on'"),
        ("active: 'true'", "active: wants true or false, found the text 'true'"),
        ("wait: 15", "wait: wants a duration such as 45s, 15m, 2h or 30d, found '15'"),
        ("wait: -5m", "wait: wants a duration"),
        ("wait: 999999999w", "wait: wants a duration"),
        ("where: ''", "where: wants a path, found the text ''"),
        ("where: ~/keys", "where: '~/keys': ~ is not expanded here"),
        ("where: s3://bucket", "where: wants a path, found 's3://bucket'"),
        ("backend: three-x", "backend: 'three-x' is not available in this version"),
        ("backend: threex", "backend: wants one of one, found 'threex'"),
        ("mode: atuo", "mode: wants one of auto, never, found 'atuo'; did you mean 'auto'?"),
        ("colour: greem", "colour: wants one of red, green, found 'greem'; did you mean 'green'?"),
        ("colour: blue", "colour: wants one of red, green, found 'blue'"),
        ("names: a", "names: wants a list, each item text, found 'a'"),
        ("names:", "names: wants a list, each item text, found nothing"),
        ("names: [a, [b]]", "names[1]: wants text, found a list"),
        ("numbers: [1, x]", "numbers[1]: wants a whole number, found 'x'"),
        ("pair: [a]", "pair: has 1 items, wants 2"),
        ("table: [a]", "table: wants a section of `key: value` lines, found a list"),
        ("table: {a: b}", "table.a: wants a whole number, found 'b'"),
        ("ports: {web: http}", "ports.web: 'http' is not a port"),
        ("range: 5", "range: wants a section of `key: value` lines, found '5'"),
        ("range: {low: 9, high: 1}", "range: low 9 is above high 1"),
        ("range: {}", "range: required key 'low' missing"),
        ("range: {low: 1, hihg: 2}", "unknown key 'hihg' in range; did you mean 'high'?"),
        ("ranges: [{low: 0}, {low: x}]", "ranges[1].low: wants a whole number, found 'x'"),
        ("either: perhaps", "either: wants true or false or one of auto, found 'perhaps'"),
        ("size: [1]", "found a list"),
        ("size: {low: x}", "size.low: wants a whole number, found 'x'"),
        ("digest: sha256:00", "digest: 'sha256:00' is not a sha256 or sha512 digest"),
        ("colour: !python/name:os.system red", "the tag"),
        ("maybe: !!binary aGk=", "the tag"),
        ("later: 1", "later: is not available in this version"),
        ("cuont: 1", "unknown key 'cuont'; did you mean 'count'?"),
        ("qqqqqq: 1", "unknown key 'qqqqqq'"),
        ("? [a]\n: b", "a key must be plain text"),
        ("computed: x", "unknown key 'computed'"),
        ("dashed: x", "unknown key 'dashed'; did you mean 'dashed-name'?"),
        ("<<: {count: 1}", "unknown key '<<'"),
    ],
)
def test_a_mistake_names_line_key_and_both_values(line: str, message: str) -> None:
    error = str(refusal(f"name: x\n{line}\n"))
    assert error.startswith("a.yaml:2: "), error
    assert message in error


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("count: '5'", "remove the quotes"),
        ("count: 'five'", ""),
        ("names: a", "write [a]"),
        ("names:", "write [] for an empty list"),
        ("maybe: {x: 1}", "put quotes around the value if it is meant as text"),
        ("ports: {web: http}", "use a number such as 8080"),
        ("range: {low: 9, high: 1}", "swap them"),
        ("where: ~/keys", "write the folder out"),
    ],
)
def test_the_hint_says_what_to_write_instead(line: str, hint: str) -> None:
    assert refusal(f"name: x\n{line}\n").hint == hint


def test_an_unknown_key_is_answered_with_the_known_ones() -> None:
    assert refusal("name: x\nqqqqqq: 1").hint.startswith("known: name, count, ratio, active, where")


def test_a_key_given_twice_names_both_lines() -> None:
    error = refusal("name: x\ncount: 1\ncount: 2")
    assert str(error) == "a.yaml:3: count: is given twice; the first is at line 2"
    error = refusal("name: x\ntable:\n  a: 1\n  a: 2")
    assert str(error) == "a.yaml:4: table.a: is given twice; the first is at line 3"


@pytest.mark.parametrize("text", ["", "# nothing but a remark\n", "---\n", "null", "{}"])
def test_an_empty_file_lacks_only_what_is_required(text: str) -> None:
    assert "required key 'name' missing" in str(refusal(text))

    @dataclass(frozen=True)
    class Optional:
        name: str = "default"

    assert settings.parse(Optional, text, "a.yaml") == Optional()


def test_an_empty_section_takes_its_defaults() -> None:
    assert settings.parse(Outer, "inner:\n  # depth: 4\n", "a.yaml") == Outer(Inner(3))
    assert read("name: x\ntable:\n  # a: 1\n").table == {}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("name: [", "a.yaml:1:8: not valid YAML"),
        ("name: x\n  y: z\n", "a.yaml:2:4: not valid YAML"),
        ("name: x\n\tcount: 1\n", "a.yaml:2:1: not valid YAML"),
        ("name: x\nmaybe: 'a\x07b'\n", "a.yaml:2:10: not valid YAML: the character '\\x07'"),
        ("name: x\n---\nname: y\n", "a.yaml:2:1: not valid YAML"),
        ("name: *nowhere\n", "a.yaml:1:7: not valid YAML: found undefined alias"),
        ("%YAML 3.0\n---\nname: x\n", "a.yaml:1:1: not valid YAML"),
    ],
)
def test_a_syntax_error_names_line_and_column(text: str, where: str) -> None:
    assert str(refusal(text)).startswith(where)


def test_the_top_of_a_file_must_be_keys() -> None:
    assert "a.yaml:1: wants a section of `key: value` lines, found a list" in str(refusal("- a"))


def test_deep_nesting_is_refused_before_it_exhausts_the_interpreter() -> None:
    assert "nested deeper than" in str(refusal("name: " + "[" * 100_000))
    assert "nested deeper than" in str(refusal("name: x\ntable: " + "{a: " * 10_000))


@dataclass(frozen=True)
class Nest:
    below: tuple[Nest, ...] = ()
    names: tuple[tuple[tuple[str, ...], ...], ...] = ()


def test_an_alias_that_contains_itself_ends() -> None:
    with pytest.raises(InputError, match="too many values or levels"):
        settings.parse(Nest, "below: &loop [{below: *loop}]", "a.yaml")


def test_aliases_that_multiply_end_soon() -> None:
    row = ", ".join(["x"] * 200)
    rows = ", ".join(["*row"] * 200)
    text = f"below:\n- names: [[&row [{row}]], &rows [{rows}], " + ", ".join(["*rows"] * 200) + "]"
    started = time.monotonic()
    with pytest.raises(InputError, match="too many values or levels"):
        settings.parse(Nest, text, "a.yaml")
    assert time.monotonic() - started < 10


def test_an_alias_is_the_value_it_names() -> None:
    assert read("name: &n x\nmaybe: *n").maybe == "x"


def test_a_file_is_read_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("\ufeffname: é\nwhere: keys/new\n", encoding="utf-8")
    loaded = settings.load(Everything, path)
    assert (loaded.name, loaded.where) == ("é", tmp_path / "keys/new")
    path.write_text("name: x\nwhere: /etc/keys\n")
    assert settings.load(Everything, path).where == Path("/etc/keys")
    path.write_text("name: x\n")
    assert settings.load(Everything, path).where == tmp_path / "default"


def test_a_secret_is_not_shown_by_accident() -> None:
    loaded = read("name: x\npassword: hunter2")
    assert loaded.password == "hunter2"
    assert "hunter2" not in repr(loaded)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path, what in [
        (tmp_path / "none.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ]:
        with pytest.raises(InputError, match=what) as caught:
            settings.load(Everything, path)
        assert str(caught.value).startswith(f"{path}: cannot be read")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: x\nmaybe: \xff\n")
    with pytest.raises(InputError, match=r"a\.yaml:2: byte 0xff is not UTF-8"):
        settings.load(Everything, path)
    path.write_bytes(b"#" * (settings.MAX_FILE_BYTES + 1))
    with pytest.raises(InputError, match="larger than"):
        settings.load(Everything, path)


def test_every_key_can_be_listed_for_the_manual() -> None:
    listed = {doc.path: doc for doc in settings.iter_keys(Everything)}
    assert listed["range.high"] == settings.KeyDoc(
        "range.high", "a whole number", "9", "the largest value"
    )
    assert listed["name"].default == ""
    assert listed["colour"] == settings.KeyDoc("colour", "one of red, green", "red", "")
    assert {"ranges[].low", "dashed-name", "size.low"} <= listed.keys()
    assert "computed" not in listed


@dataclass(frozen=True)
class Strict:
    """Refuses single keys."""

    limits: tuple[Range, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        for number, limit in enumerate(self.limits):
            if limit.low < 0:
                raise settings.RefusedKeyError(
                    ("limits", number, "low"), "is below 0", hint="raise"
                )
        if "x" in self.names:
            raise settings.RefusedKeyError(("names", "x"), "is not wanted")
        if self.inner.depth > 9:
            raise settings.RefusedKeyError(("inner", "depth"), "is deep")
        if not self.limits:
            raise settings.RefusedKeyError(("limits",), "is empty")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits:\n- low: 1\n- low: -1\n", "a.yaml:3: limits[1].low: is below 0"),
        ("limits: [{low: 1}]\nnames:\n  a: b\n  x: y\n", "a.yaml:4: names.x: is not wanted"),
        ("limits: [{low: 1}]\ninner:\n  depth: 10\n", "a.yaml:3: inner.depth: is deep"),
        ("\nnames: {a: b}\n", "a.yaml:2: limits: is empty"),  # where the section is
        ("", "a.yaml: limits: is empty"),
    ],
)
def test_a_section_that_refuses_a_key_names_the_line_of_it(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        settings.parse(Strict, text, "a.yaml")
    assert str(caught.value) == message


def reading(text: str) -> settings.Reading[Everything]:
    return settings.read_node(Everything, settings.compose(text, "a.yaml"), "a.yaml")


def test_all_mistakes_of_a_file_are_found_in_one_go() -> None:
    found = reading(
        "cuont: 1\ncount: x\nrange: {low: a, hihg: 1}\nnumbers: [1, a, 2, b]\n"
        "table: {a: b, c: 1}\nsize: [1]\neither: perhaps\nbackend: two\nlater: 1\n"
    )
    assert found.value is None
    assert [str(error).split(": ")[0:2] for error in found.errors] == [
        ["a.yaml:1", "unknown key 'cuont'; did you mean 'count'?"],
        ["a.yaml:2", "count"],
        ["a.yaml:3", "range.low"],
        ["a.yaml:3", "unknown key 'hihg' in range; did you mean 'high'?"],
        ["a.yaml:4", "numbers[1]"],
        ["a.yaml:4", "numbers[3]"],
        ["a.yaml:5", "table.a"],
        ["a.yaml:6", "size"],
        ["a.yaml:7", "either"],
        ["a.yaml:8", "backend"],
        ["a.yaml:9", "later"],
        ["a.yaml:1", "required key 'name' missing"],
    ]
    with pytest.raises(InputError, match="cuont"):
        found.get()


def test_a_file_full_of_mistakes_is_not_read_to_its_end() -> None:
    found = reading("name: x\nnumbers: [" + "a, " * 1000 + "]")
    assert len(found.errors) == settings.MAX_ERRORS


def test_every_key_that_is_given_has_its_line() -> None:
    found = reading("name: x\nrange:\n  low: 1\nnames: [a,\n  b]\ntable:\n  k: 1\n")
    assert found.get().range == Range(1)
    assert found.origins == {
        "name": "a.yaml:1",
        "range": "a.yaml:3",
        "range.low": "a.yaml:3",
        "names": "a.yaml:4",
        "names[0]": "a.yaml:4",
        "names[1]": "a.yaml:5",
        "table": "a.yaml:7",
        "table.k": "a.yaml:7",
    }


def test_a_schema_that_cannot_be_read_is_a_bug_of_ours() -> None:
    @dataclass(frozen=True)
    class Odd:
        name: complex = 1j

    with pytest.raises(TypeError, match="do not know how to read"):
        settings.parse(Odd, "name: 1", "a.yaml")
    with pytest.raises(TypeError, match="not a dataclass"):
        settings.parse(int, "1", "a.yaml")


@given(st.text(st.sampled_from("name:count\n -[]{}&*!|>'\"%#,?~1x\t\\\x00é<"), max_size=60))
def test_any_text_is_read_or_refused_with_an_input_error(text: str) -> None:
    with contextlib.suppress(InputError):
        read(text)


@given(st.dictionaries(st.text(max_size=8), st.integers(-(10**20), 10**20), max_size=5), st.text())
def test_what_yaml_writes_is_read_back(table: dict[str, int], name: str) -> None:
    text = yaml.safe_dump({"name": name, "table": table})
    loaded = read(text)
    assert (loaded.name, loaded.table) == (name, table)
