"""References: what users type, what lists contain, and what must be refused with a hint."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference, parse_registry

HEX = "0123456789abcdef" * 4
WISHLISTS = Path(__file__).parents[3] / "shared/data/wishlists"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("atlas/athena:24.0", "docker.io/atlas/athena:24.0"),
        ("docker://debian:12", "docker.io/library/debian:12"),
        ("DOCKER://debian:12", "docker.io/library/debian:12"),
        ("docker:20.10", "docker.io/library/docker:20.10"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("registry.hub.docker.com/a/b:1", "docker.io/a/b:1"),
        ("registry.hub.docker.com/library/debian:1", "docker.io/library/debian:1"),
        ("index.docker.io/a/b:1", "docker.io/a/b:1"),
        ("registry-1.docker.io/a/b:1", "docker.io/a/b:1"),
        ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
        ("GHCR.IO/a/b", "ghcr.io/a/b:latest"),
        ("ghcr.io/tool:1", "ghcr.io/tool:1"),
        ("localhost/a:1", "localhost/a:1"),
        ("localhost:5000/a:1", "localhost:5000/a:1"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("gitlab-p4n.aip.de:5005/a/b/c/d:1", "gitlab-p4n.aip.de:5005/a/b/c/d:1"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("quay.io/a/b--dev:main", "quay.io/a/b--dev:main"),
        ("a/b__c.d-e:X_1.2-3", "docker.io/a/b__c.d-e:X_1.2-3"),
        (f"a/b:1@sha256:{HEX}", "docker.io/a/b:1"),
        (f"a/b@sha256:{HEX}", f"docker.io/a/b@sha256:{HEX}"),
        (f"ghcr.io/a/b:{'t' * 128}", f"ghcr.io/a/b:{'t' * 128}"),
        ("debian:12/x", "debian:12/x:latest"),  # a host and a port, to Docker as well
        ("oci", "docker.io/library/oci:latest"),
    ],
)
def test_a_reference_is_published_under_its_full_name(text: str, name: str) -> None:
    assert Reference.parse(text).name == name


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "name an image"),
        (" debian", "blanks"),
        ("debian ", "blanks"),
        ("debian\n", "blanks"),
        ("amnh/docker pull amnh/osgimages:1", "blanks"),
        ("deb\x00ian", ""),
        ("deb\x1b[31mian", ""),
        ("débian", ""),
        ("JeffersonLab/clas12", "jeffersonlab/clas12"),
        ("ghcr.io/A/b", "lower case"),
        ("poldracklab/fmriprep/", "slash"),
        ("/debian", "slash"),
        ("a//b", "slash"),
        ("../etc/passwd", "not a registry|file path|for example"),
        ("a/../b", "file path"),
        ("./image", ""),
        ("ghcr.io/../b", "file path"),
        ("ghcr.io/..", "file path"),
        ("a/.b", "separated"),
        ("a/b.", "separated"),
        ("a/b___c", "separated"),
        ("a/b:", "128 letters"),
        ("a/b:.1", "128 letters"),
        ("a/b:-1", "128 letters"),
        (f"a/b:{'t' * 129}", "128 letters"),
        ("a/b:1:2", "128 letters"),
        ("a/b:24.2.*", "wishlists"),
        ("a/b@sha256:1234", "64 hexadecimal"),
        ("a/b@", "64 hexadecimal"),
        (f"a/b@sha256:{HEX.upper()}", "64 hexadecimal"),
        (f"a/b@sha256:{HEX}@sha256:{HEX}", "64 hexadecimal"),
        (f"@sha256:{HEX}", ""),
        (":12", ""),
        ("https://ghcr.io/a/b:1", "'ghcr.io/a/b:1'"),
        ("http://example.org/image.sif", "without http://"),
        ("oras://ghcr.io/a/b:1", "registry"),
        ("library://a/b/c:1", "registry"),
        ("shub://a/b", "registry"),
        ("s3://bucket/key", "registry"),
        ("sif:image.sif", "registry"),
        ("oci:./dir:tag", "registry"),
        ("oci:latest", "docker.io/library/oci:latest"),
        ("oci-archive:a.tar", "registry"),
        ("docker-archive:a.tar", "registry"),
        ("ghcr.io:0/a", "host:port|for example"),
        ("ghcr.io:65536/a", "for example"),
        ("ghcr.io:/a", "for example"),
        ("ghcr..io/a", "for example"),
        ("-ghcr.io/a", "for example"),
        ("user@ghcr.io/a", ""),
        ("user:pass@ghcr.io/a", ""),
        ("[::1/a", ""),
        ("[::zz]:1/a", ""),
        ("x" * 5000, ""),
    ],
)
def test_what_is_no_reference_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        Reference.parse(text)
    assert re.search(hint, caught.value.hint)
    assert "\x1b" not in str(caught.value)
    assert "\x00" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oras://x/y", "says where an image comes from"),
        ("sif:a.sif", "says where an image comes from"),
        ("s3://b/k", "says where an image comes from"),
        ("nonsense://x", "there is no transport nonsense://"),
        ("docker-daemon:x", "there is no transport docker-daemon:"),
    ],
)
def test_where_an_image_comes_from_is_not_its_name(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Reference.parse(text)
    assert "docker://" in caught.value.hint


def test_a_digest_decides_what_is_fetched_and_the_tag_names_it() -> None:
    reference = Reference.parse(f"a/b:1@sha256:{HEX}")
    assert reference.digest == Digest("sha256", HEX)
    assert reference.tag == "1"
    assert str(reference) == f"docker.io/a/b:1@sha256:{HEX}"


def test_only_the_api_of_docker_hub_is_at_another_host() -> None:
    assert Reference.parse("debian").api_host == "registry-1.docker.io"
    assert Reference.parse("ghcr.io/a/b").api_host == "ghcr.io"


def test_the_last_part_of_a_published_name_fits_into_a_file_name() -> None:
    with pytest.raises(InputError, match="longer than 255"):
        Reference.parse(f"a/{'b' * 200}:{'t' * 100}")


def test_a_repository_is_as_long_as_registries_allow() -> None:
    path = "/".join(["b" * 15] * 16)
    assert Reference.parse(f"ghcr.io/{path}").repository == path
    with pytest.raises(InputError, match="longer than 255"):
        Reference.parse(f"ghcr.io/{path}/b")


@pytest.mark.parametrize("text", ["", "a b", "ghcr.io/a", "https://ghcr.io", "a@b", "x:99999"])
def test_a_registry_is_a_host_and_perhaps_a_port(text: str) -> None:
    with pytest.raises(InputError):
        parse_registry(text)


COMPONENTS = st.from_regex(r"[a-z0-9]{1,4}((\.|__?|-+)[a-z0-9]{1,4}){0,2}", fullmatch=True)
REGISTRIES = st.sampled_from(["docker.io", "ghcr.io", "localhost", "localhost:1", "[::1]:2", "a.b"])
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(REGISTRIES, st.lists(COMPONENTS, min_size=1, max_size=4), TAGS, st.booleans())
def test_the_text_of_a_reference_parses_to_itself(
    registry: str, components: list[str], tag: str, pinned: bool
) -> None:
    digest = f"@sha256:{HEX}" if pinned else ""
    reference = Reference.parse(f"{registry}/{'/'.join(components)}:{tag}{digest}")
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.name).name == reference.name


@given(st.text(alphabet="aA0./:@-_*[] \n\\\x00é", max_size=30) | st.text(max_size=30))
def test_any_text_is_a_safe_reference_or_an_input_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InputError:
        return
    assert not {"", ".", ".."} & set(reference.name.split("/"))
    assert re.fullmatch(r"[A-Za-z0-9._:@/\[\]-]+", reference.name)


def lines_of(name: str) -> list[str]:
    path = WISHLISTS / name
    if not path.exists():
        pytest.skip("the list is not beside this checkout")
    return [line.strip() for line in path.read_text("utf-8").splitlines()]


def as_osg_reads_it(line: str) -> tuple[str, str, str]:
    """Return registry, repository and tag as `parse_image` of cvmfs-singularity-sync does.

    Its grammar in prose: facts/publishers.md, section (f), "OSG docker_images.txt".
    """
    parts = line.split("/")
    if len(parts) < 3:
        parts = ["docker.io", *(["library"] if len(parts) == 1 else []), *parts]
    name, _, tag = "/".join(parts[1:]).partition(":")
    return parts[0], name, tag or "latest"


def as_ducc_reads_it(line: str) -> tuple[str, str, str]:
    """Return registry, repository and tag as `ParseImage` of DUCC does, Docker Hub's name aside."""
    url = urlsplit(line)
    path, _, tag = url.path.strip("/").partition(":")
    registry = "docker.io" if url.netloc == "registry.hub.docker.com" else url.netloc
    return registry, path, tag


def fields(text: str) -> tuple[str, str, str]:
    reference = Reference.parse(text)
    return reference.registry, reference.repository, reference.tag


def test_every_entry_of_the_osg_list_means_what_its_own_tool_makes_of_it() -> None:
    lines = lines_of("osg-docker_images.txt")
    entries = [line for line in lines if line and not line.startswith("#")]
    assert len(entries) == 562
    for entry in entries:
        # what a pattern of tags stands for is one tag; the name before it is what counts here
        plain = entry.partition(":")[0] if "*" in entry else entry
        assert fields(plain) == as_osg_reads_it(plain), entry


def test_every_entry_of_the_unpacked_list_means_what_its_own_tool_makes_of_it() -> None:
    lines = lines_of("unpacked-recipe.yaml")
    entries = [line.strip("- '") for line in lines if line.startswith("- ")]
    assert len(entries) == 47
    for entry in entries:
        plain = entry.removesuffix(":*") + (":1" if entry.endswith(":*") else "")
        assert fields(plain.removeprefix("https://")) == as_ducc_reads_it(plain), entry


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # facts/publishers.md, section (f): what stands, or once stood, in the two lists
        ("centos", ("docker.io", "library/centos", "latest")),
        ("opensciencegrid/osgvo-el7", ("docker.io", "opensciencegrid/osgvo-el7", "latest")),
        ("docker.io/x/y", ("docker.io", "x/y", "latest")),
        ("hub.opensciencegrid.org/a/b/c/d:1", ("hub.opensciencegrid.org", "a/b/c/d", "1")),
        ("ghcr.io/tool", ("ghcr.io", "tool", "latest")),  # impossible in OSG's grammar
        ("a/b/c:1", ("docker.io", "a/b/c", "1")),  # a registry "a" in OSG's grammar
        (f"a/b:{'0123456789abcdef' * 2}01234567", ("docker.io", "a/b", f"{HEX[:32]}01234567")),
        ("a/b:V1_RC-2", ("docker.io", "a/b", "V1_RC-2")),
        ("quay.io/biocontainers/x--dev:main", ("quay.io", "biocontainers/x--dev", "main")),
        ("gitlab-p4n.aip.de:5005/p4n/x/y:latest", ("gitlab-p4n.aip.de:5005", "p4n/x/y", "latest")),
        ("127.0.0.1:5000/a/b:1", ("127.0.0.1:5000", "a/b", "1")),  # DUCC cannot read it
        (f"ghcr.io/a/b:1@sha256:{HEX}", ("ghcr.io", "a/b", "1")),
        (f"ghcr.io/a/b@sha256:{HEX}", ("ghcr.io", "a/b", "")),  # OSG mis-reads it
        ("registry.hub.docker.com/library/ubuntu:22.04", ("docker.io", "library/ubuntu", "22.04")),
    ],
)
def test_an_odd_entry_of_a_list_has_one_meaning(text: str, expected: tuple[str, str, str]) -> None:
    assert fields(text) == expected
