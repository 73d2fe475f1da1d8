"""The real programs work here, and the images the tests make are what they claim to be."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from tests import images, parts

needs_parts = pytest.mark.parts
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices take root")


@pytest.fixture
def sandbox(shared_tmp: Path) -> Path:
    """A tiny system as a directory that the test user can run."""
    parts.require("busybox")
    layout = images.tiny_image(shared_tmp / "layout")
    return images.umoci_unpack(layout, bundle=shared_tmp / "bundle")


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.debian_image(tmp_path_factory.mktemp("debian") / "layout")


def test_a_missing_part_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is missing; `make test`"):
        parts.require("no-such-program")


def test_a_missing_part_skips_with_the_remedy_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="tools/install-parts"):
        parts.require("no-such-program")


def test_tests_reach_no_other_host() -> None:
    with socket.socket() as client, pytest.raises(OSError, match="tests reach no other host"):
        client.connect(("192.0.2.1", 80))
    with pytest.raises(socket.gaierror, match="tests resolve no name"):
        socket.create_connection(("registry.example.org", 443))


@needs_parts
def test_apptainer_runs_a_directory_for_an_unprivileged_user(sandbox: Path) -> None:
    done = parts.run_as_test_user(
        [parts.require("apptainer"), "exec", sandbox, "/bin/sh", "-c", "id -u; ls /"], check=True
    )
    uid, *names = done.stdout.decode().split()
    assert int(uid) == parts.test_user().uid
    assert {"bin", "proc", "usr"} <= set(names)


@needs_parts
def test_apptainer_reads_its_own_configuration_and_not_the_machines(sandbox: Path) -> None:
    apptainer = parts.require("apptainer")
    if not apptainer.is_relative_to("/opt/cvmfs-publish-parts"):
        pytest.skip("this machine has an Apptainer of its own")
    done = parts.run_as_test_user([apptainer, "buildcfg"], check=True)
    settings = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    assert (
        settings["APPTAINER_CONF_FILE"] == f"{apptainer.parent.parent}/etc/apptainer/apptainer.conf"
    )
    assert Path(settings["APPTAINER_CONF_FILE"]).is_file()


@needs_parts
def test_ch_run_runs_a_directory_for_an_unprivileged_user(sandbox: Path) -> None:
    done = parts.run_as_test_user(
        [parts.require("ch-run"), sandbox, "--", "/bin/cat", "/etc/os-release"], check=True
    )
    assert b"a tiny test image" in done.stdout


@needs_parts
def test_the_registry_stores_a_pushed_image_unchanged(
    registry: parts.RegistryServer, tmp_path: Path
) -> None:
    layout = images.multi_platform_image(tmp_path / "layout")
    digest = images.push(layout, f"{registry.host}/test-parts/multi:1")
    parts.run(
        ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests",
         "--src-tls-verify=false", f"docker://{registry.host}/test-parts/multi:1",
         f"oci:{tmp_path / 'back'}:latest"]
    )  # fmt: skip
    assert images.manifest_digest(tmp_path / "back") == digest
    index = json.loads(images.read_blob(tmp_path / "back", digest))
    assert [each["platform"]["architecture"] for each in index["manifests"]] == ["amd64", "arm64"]
    assert f"PUT /v2/test-parts/multi/manifests/{digest} 201" in registry.requests() or (
        "PUT /v2/test-parts/multi/manifests/1 201" in registry.requests()
    )


@needs_parts
def test_a_registry_with_a_password_refuses_strangers(
    registry_with_password: parts.RegistryServer, tmp_path: Path
) -> None:
    server = registry_with_password
    layout = images.tiny_image(tmp_path / "layout")
    with pytest.raises(pytest.fail.Exception, match="authentication required"):
        images.push(layout, f"{server.host}/test-parts/tiny:1")
    images.push(
        layout,
        f"{server.host}/test-parts/tiny:1",
        username=server.username,
        password=server.password,
    )


@needs_parts
@needs_root
def test_umoci_unpacks_the_image_of_everything_legal(tmp_path: Path) -> None:
    layout = images.hostile_but_legal_image(tmp_path / "layout")
    tree = images.tree_of(images.umoci_unpack(layout))

    def content(path: bytes) -> str:
        return tree[path].sha256

    names = {path.split(b"/")[0] for path in tree}
    assert b"doomed" not in names
    assert b"before-the-opaque-mark" in names
    assert {b"pax/latin-1 \xe9\xff", b"gnu/new\nline", b"pax/-rf"} <= tree.keys()
    assert tree[b"kinds/file-4755"].mode == 0o4755
    assert tree[b"kinds/null"] == tree[b"kinds/null"]._replace(
        type="character", device=os.makedev(1, 3)
    )
    assert tree[b"kinds/mtime -86400"].mtime == -86_400
    assert tree[b"kinds/mtime 5000000000"].mtime == 5_000_000_000
    assert tree[b"kinds/xattrs"].xattrs == (("user.note", b"kept"), ("user.raw", b"\xff\n="))
    assert tree[b"kinds/ping"].xattrs[0][0] == "security.capability"
    assert b"lower/hidden/one" not in tree
    assert b"lower/hidden-late/new" in tree
    assert tree[b"lower/link-to-directory"].type == "directory"
    assert b"lower/merged/through-a-chain" in tree
    assert b"lower/there-and-back/child" not in tree
    assert b"lower/there-and-back/other-child" in tree
    assert content(b"link-into-lower") == content(b"lower/target") == content(b"lower/a")
    assert not [path for path in tree if b"/.wh." in path]
    assert tree[b""].mtime == images.EPOCH + 12


@needs_parts
def test_gnu_tar_agrees_about_both_forms_of_sparse_files(tmp_path: Path) -> None:
    for form in ("gnu", "pax"):
        parts.run(
            ["tar", "-x", "-C", tmp_path, "-f", "-"], stdin=None, input=images.sparse_layer(form)
        )
    one, other = ((tmp_path / f"sparse-{form}").read_bytes() for form in ("gnu", "pax"))
    assert one == other
    assert one[256 * 1024 + 1 :].startswith(b"island 1")


@needs_parts
@needs_root
def test_the_debian_image_has_two_layers_that_add_and_remove(debian: Path) -> None:
    manifest = json.loads(images.read_blob(debian, images.manifest_digest(debian)))
    assert len(manifest["layers"]) == 2
    config = json.loads(images.read_blob(debian, manifest["config"]["digest"]))["config"]
    for key, value in images.nasty_config().items():
        assert config[key] == value


@needs_parts
@needs_root
def test_the_debian_image_runs_its_entrypoint(debian: Path, tmp_path: Path) -> None:
    root = images.umoci_unpack(debian, bundle=tmp_path / "bundle")
    words = images.NASTY_ENTRYPOINT + images.NASTY_COMMAND
    done = parts.run(["chroot", root, *words], env=images.NASTY_ENV)
    assert done.stdout == images.NASTY_OUTPUT
    assert parts.run(["chroot", root, "hello"]).stdout == b"Hello, world!\n"
    assert not (root / "etc/motd").exists()
    assert stat.S_IMODE((root / "usr/bin/su").lstat().st_mode) == 0o4755


def test_the_tiny_image_is_the_same_every_time(tmp_path: Path) -> None:
    one, other = (images.tiny_image(tmp_path / name) for name in ("one", "other"))
    assert images.manifest_digest(one) == images.manifest_digest(other)
