"""`make demo` goes the whole way, and what it brings along for bare machines works."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest

from tests import images, parts
from tools import registry as own

pytestmark = pytest.mark.parts


@pytest.fixture
def own_registry(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A layout served by the demo's own registry, and the reference of its image."""
    layout = images.multi_platform_image(tmp_path / "layout", tag="1")
    with own.serve(layout, "demo/small") as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield layout, f"127.0.0.1:{server.server_address[1]}/demo/small"
        server.shutdown()
        thread.join()


def _pull(reference: str, dest: Path) -> None:
    parts.run(
        [parts.require("skopeo"), "--insecure-policy", "copy", "--all", "--preserve-digests",
         "--src-tls-verify=false", f"docker://{reference}", f"oci:{dest}:1"]
    )  # fmt: skip


def test_skopeo_pulls_from_the_registry_of_the_demo(
    own_registry: tuple[Path, str], tmp_path: Path
) -> None:
    layout, name = own_registry
    _pull(f"{name}:1", tmp_path / "back")
    assert images.manifest_digest(tmp_path / "back", "1") == images.manifest_digest(layout, "1")


def test_the_registry_of_the_demo_knows_only_its_own_images(
    own_registry: tuple[Path, str],
) -> None:
    host = own_registry[1].partition("/")[0]
    for path in (
        "demo/small/manifests/2",
        "demo/other/manifests/1",
        "demo/small/blobs/../../index.json",
        "demo/small/blobs/sha256:" + "0" * 64,
        "demo/small/tags/list",
    ):
        with closing(http.client.HTTPConnection(host, timeout=5)) as client:
            client.request("GET", f"/v2/{path}")
            answer = client.getresponse()
            assert (path, answer.status) == (path, 404)
            assert b"_UNKNOWN" in answer.read()


def test_programs_copied_with_their_libraries_run_in_a_container(
    shared_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "debian_mirror", lambda: None)
    monkeypatch.setattr(images, "find_static_shell", lambda: None)
    assert "this machine" in images.small_debian_image(shared_tmp / "layout")
    root = images.umoci_unpack(shared_tmp / "layout", bundle=shared_tmp / "bundle")
    done = parts.run_as_test_user(
        [parts.require("apptainer"), "exec", root, "/bin/sh", "-c", "echo $(uname)"], check=True
    )
    assert done.stdout == b"Linux\n"


def test_the_demo_ends_with_the_output_of_a_job(
    registry: parts.RegistryServer, shared_tmp: Path
) -> None:
    parts.require("apptainer")
    layout = images.tiny_image(shared_tmp / "layout")
    reference = f"{registry.host}/test-demo/tiny:1"
    images.push(layout, reference)
    done = parts.run(
        [sys.executable, "-m", "tools.demo", "--work", shared_tmp / "demo", reference],
        cwd=parts.CHECKOUT,
    )
    lines = done.stdout.decode().splitlines()
    for command in ("init", "publish", "check", "site render", "export"):
        assert any(line.startswith(f"$ cvmfs-publish {command} ") for line in lines)
    assert any(line.startswith("$ site/bin/cvmfs-run ") for line in lines)
    assert lines[-2].startswith("Hello from a job in a tiny test image, on ")
    uid = parts.test_user().uid if os.geteuid() == 0 else os.geteuid()
    assert lines[-2].endswith(f"as user {uid}.")
    assert lines[-1].startswith("Its file system: ")
    assert {"/bin", "/cvmfs", "/gpfs"} <= set(lines[-1].split())
