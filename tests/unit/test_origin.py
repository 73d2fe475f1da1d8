"""What people type for images that are in no registry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError
from cvmfs_publish.origin import FILES, TRANSPORTS, Origin

HEX = "0123456789abcdef" * 4
PIN = Digest("sha256", HEX)


def parse(text: str) -> Origin:
    origin = Origin.parse(text)
    assert origin is not None, text
    return origin


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("oci:dir", Origin("oci", "dir")),
        ("oci:/a b/dir:1.0", Origin("oci", "/a b/dir", "1.0")),
        ("oci-archive:a.tar:ghcr.io/a/b:1", Origin("oci-archive", "a.tar", "ghcr.io/a/b:1")),
        ("docker-archive:a.tar:@3", Origin("docker-archive", "a.tar", "@3")),
        (f"docker-archive:a.tar@sha256:{HEX}", Origin("docker-archive", "a.tar", "", PIN)),
        ("sif:odd:name.sif", Origin("sif", "odd:name.sif")),
        (f"sif:a.sif@sha256:{HEX}", Origin("sif", "a.sif", "", PIN)),
        ("tar:./rootfs.tar.xz", Origin("tar", "./rootfs.tar.xz")),
        ("https://e.org/a.sif", Origin("https", "e.org/a.sif")),
        (f"https://e.org/a.sif#sha256={HEX}", Origin("https", "e.org/a.sif", "", PIN)),
        (f"https://e.org/a.sif?x=1@sha256:{HEX}", Origin("https", "e.org/a.sif", "", PIN)),
        ("HTTPS://e.org:8443/a", Origin("https", "e.org:8443/a")),
        ("s3://bucket/a/b c.sif", Origin("s3", "bucket/a/b c.sif")),
        ("swift://images/a.sif", Origin("swift", "images/a.sif")),
        ("oras://ghcr.io/a/b:1", Origin("oras", "ghcr.io/a/b:1")),
        ("library://a/b/c:1", Origin("library", "a/b/c:1")),
        ("shub://a/b", Origin("shub", "a/b")),
    ],
)
def test_a_text_says_where_an_image_is(text: str, origin: Origin) -> None:
    assert parse(text) == origin


@pytest.mark.parametrize(
    "text",
    ["debian:12", "ghcr.io/a/b:1", "docker://a/b", "docker-daemon:a", "ftp://a/b", "dir:a", "sif",
     "sif://a", "oras:a/b", "", "s3:bucket/key"],
)  # fmt: skip
def test_everything_else_is_for_a_registry_to_judge(text: str) -> None:
    assert Origin.parse(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sif:", "names no image"),
        ("https://", "names no image"),
        ("https:///a", "is not a URL"),
        ("https://e.org:99999/a", "is not a URL"),
        ("https://[::1/a", "is not a URL"),
        ("https://user:pass@e.org/a", "holds a login"),
        ("https://e.org/a b", "is not a URL"),
        ("https://e.org/a#part", "is followed by #part"),
        (f"https://e.org/a#sha256={HEX[1:]}", "is followed by #sha256"),
        ("s3://bucket", "is not s3://BUCKET/KEY"),
        ("s3://bucket/", "is not s3://BUCKET/KEY"),
        ("swift:///object", "is not swift://"),
        ("https://e.org/a/../b.sif", "has `.` or `..` in its path"),
        ("https://e.org/a/%2e%2E/b.sif", "has `.` or `..` in its path"),
        ("https://e.org/./b.sif", "has `.` or `..` in its path"),
        ("s3://bucket/a/../../other/b.sif", "has `.` or `..` in its path"),
        ("https://\uff45.org/a", "other letters than ASCII"),
        ("sif:a\nb", "cannot be shown"),
        ("tar:\x1b[2J", "cannot be shown"),
        ("sif:" + "x" * 9000, "too long"),
    ],
)
def test_what_is_malformed_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Origin.parse(text)
    assert "pass" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_what_may_be_secret_is_in_no_text_of_it() -> None:
    origin = parse("https://e.org/a.sif?temp_url_sig=secret&temp_url_expires=1")
    assert origin.url == "https://e.org/a.sif?temp_url_sig=secret&temp_url_expires=1"
    assert "secret" not in str(origin) + repr(origin)
    assert parse(str(origin)) == origin  # a signed URL of tomorrow is the same place


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("https://E.ORG/A.sif", "https://e.org/A.sif"),
        ("https://e.org.:443/a", "https://e.org/a"),
        ("http://e.org:80/a", "http://e.org/a"),
        ("http://e.org:443/a", "http://e.org:443/a"),
        ("https://[2001:DB8::1]:443/a", "https://[2001:db8::1]/a"),
        ("https://e.org/%74eam/a%2fb%20c", "https://e.org/team/a%2Fb%20c"),
        ("oras://GHCR.io/a/b:V1", "oras://ghcr.io/a/b:V1"),
        ("library://Library.E.org/A/B/C:V", "library://library.e.org/A/B/C:V"),
        ("library://Entity/B/C:V", "library://Entity/B/C:V"),
        ("shub://E.org/A/B", "shub://e.org/A/B"),
        ("shub://A/B", "shub://A/B"),
    ],
)
def test_a_place_has_one_spelling_so_that_no_rule_is_got_round(text: str, usual: str) -> None:
    assert str(parse(text)) == usual
    assert parse(usual) == parse(text)


def test_only_paths_of_files_are_relative_to_a_folder() -> None:
    assert str(parse("oci:a/../b:1").below("/work")) == "oci:/work/b:1"
    assert str(parse("sif:a//b.sif").below("//")) == "sif:/a/b.sif"
    assert str(parse("sif:/a/b.sif").below("/work")) == "sif:/a/b.sif"
    assert parse("library://a/b/c").below("/work") == parse("library://a/b/c")


WORDS = st.from_regex(r"/?[aB0._ ü-][aB0._/ ü-]{0,20}", fullmatch=True)


@given(st.sampled_from(sorted(FILES)), WORDS, st.booleans())
def test_the_text_of_an_origin_parses_to_itself(transport: str, path: str, pinned: bool) -> None:
    origin = Origin(transport, path, "", PIN if pinned else None)
    assert Origin.parse(str(origin)) == origin


@given(
    st.sampled_from(sorted(TRANSPORTS)).flatmap(
        lambda name: st.text(max_size=30).map(lambda rest: name + rest)
    )
    | st.text(max_size=40)
)
def test_any_text_is_an_origin_or_none_or_refused(text: str) -> None:
    try:
        origin = Origin.parse(text)
    except InputError:
        return
    assert origin is None or (origin.transport in TRANSPORTS and origin.place)
