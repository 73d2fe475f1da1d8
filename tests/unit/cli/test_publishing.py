"""`publish`, `list`, `show`: images from a registry to the repository, from the command line."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cvmfs_publish.cli.publishing import publish_settings
from cvmfs_publish.config import load_config
from cvmfs_publish.sandbox.roots import STANDARD_ROOTS
from tests.fakes.registry import FakeRegistry, Reply, with_header, wrong_bytes
from tests.images import Tar
from tests.unit.cli.support import Shell
from tests.unit.cli.test_repository import NAME, checker

pytestmark = pytest.mark.slow

# interface.md, "publish --json"
DOCUMENT_KEYS = {"repository", "revision", "root_hash", "images", "registries"}
IMAGE_KEYS = {
    *("source", "signature", "signed_by", "staged"),
    *("reference", "status", "digest", "image_id", "platform", "path", "sandbox", "entries"),
    *("bytes", "stored_bytes", "layers", "roots_added", "findings", "fallback", "seconds", "error"),
}


def layer(name: str, data: bytes = b"content") -> bytes:
    tar = Tar()
    tar.directory("etc")
    tar.file(f"etc/{name}", data)
    return tar.done()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.add_image("a/one", [layer("base"), layer("one")], tag="1")
        registry.add_image("a/two", [layer("base"), layer("two")], tag="1")
        yield registry


def test_an_image_is_published_and_then_unchanged(home: Shell, registry: FakeRegistry) -> None:
    image = registry.name("a/one", "1")
    ran = home.run("publish", image)
    assert ran.code == 0, ran
    assert ran.out.startswith(f"published  {image}  /{image}  ")
    assert "2 layers, 0 known" in ran.out
    assert ran.err == f"{NAME} is at revision 2\n"
    asked = len(registry.requests)
    ran = home.run("publish", image)
    assert (ran.code, ran.out) == (0, f"unchanged  {image}  /{image}\n")
    assert [r.method for r in registry.requests[asked:]] == ["HEAD"]
    assert home.json("info")["revision"] == 2
    assert home.run("check", "--scrub").code == 0
    checker(str(home.cwd / "repository"), home.cwd / f"keys/{NAME}.pub")


def test_the_document_of_publish_is_as_promised(home: Shell, registry: FakeRegistry) -> None:
    one, two = registry.name("a/one", "1"), registry.name("a/two", "1")
    home.json("publish", one)
    document = home.json("publish", two, one)
    assert document.keys() >= DOCUMENT_KEYS
    assert (document["repository"], document["revision"]) == (NAME, 3)
    assert document["root_hash"] == home.json("info")["root_hash"]
    new, old = document["images"]
    assert new.keys() == old.keys() == IMAGE_KEYS
    assert (new["reference"], new["status"]) == (two, "published")
    assert (old["reference"], old["status"]) == (one, "unchanged")
    assert new["layers"].keys() == {"total", "reused", "fetched_bytes"}
    assert (new["layers"]["total"], new["layers"]["reused"]) == (2, 1)
    assert new["layers"]["fetched_bytes"] > 0
    assert new["digest"].startswith("sha256:")
    assert new["path"] == f"/{two}"
    assert new["sandbox"] == f"/.flat/{new['image_id'][7:9]}/{new['image_id'][7:]}"
    assert "/nfs" in new["roots_added"]
    assert new["error"] is None


def test_some_failures_of_several_are_exit_code_6(home: Shell, registry: FakeRegistry) -> None:
    good, bad = registry.name("a/one", "1"), registry.name("a/none", "1")
    ran = home.run("publish", bad, good, "not a reference")
    assert ran.code == 6
    assert ran.out.startswith(f"published  {good}")
    errors = [line for line in ran.err.splitlines() if line.startswith("cvmfs-publish: error: ")]
    assert len(errors) == 2
    assert bad in errors[0]
    assert "not a reference" in errors[1]
    assert home.json("list")["images"][0]["reference"] == good
    document = home.json("publish", bad, good, code=6)
    failed, unchanged = document["images"]
    assert (failed["status"], unchanged["status"]) == ("failed", "unchanged")
    assert failed.keys() == IMAGE_KEYS
    assert failed["error"].keys() == {"kind", "message", "hint"}
    assert failed["error"]["kind"] == "not-found"
    assert failed["path"] is None


def test_failures_alone_have_the_code_of_the_first(home: Shell, registry: FakeRegistry) -> None:
    missing = registry.name("a/none", "1")
    assert home.run("publish", missing).code == 3
    assert home.run("publish", missing, "Not/Valid").code == 3
    assert home.run("publish", "Not/Valid", missing).code == 2

    def corrupt(reply: Reply) -> Reply:
        return replace(reply, body=b"x" * len(reply.body))

    registry.fault("GET", "/blobs/", corrupt, times=None)
    ran = home.run("publish", registry.name("a/one", "1"))
    assert ran.code == 4
    assert home.json("info")["revision"] == 1


def test_a_dry_run_says_what_would_happen(home: Shell, registry: FakeRegistry) -> None:
    image = registry.name("a/one", "1")
    ran = home.run("publish", "--dry-run", image)
    assert ran.code == 0
    assert ran.out.startswith(f"would publish  {image}  2 layers, 0 known, ")
    document = home.json("publish", "--dry-run", image)
    assert (document["dry_run"], document["revision"]) == (True, 1)
    assert home.json("list")["images"] == []
    assert registry.count("GET", "/blobs/") <= 2  # the configuration, not the layers


def test_force_publishes_again_without_fetching_again(home: Shell, registry: FakeRegistry) -> None:
    image = registry.name("a/one", "1")
    home.json("publish", image)
    fetched = registry.count("GET", "/blobs/")
    (again,) = home.json("publish", "--force", image)["images"]
    assert again["status"] == "published"
    assert again["layers"]["reused"] == 2
    assert registry.count("GET", "/blobs/") - fetched <= 1  # the configuration


def test_a_platform_is_published_beside_the_default(home: Shell, registry: FakeRegistry) -> None:
    images = {
        platform: registry.add_image("a/m", [layer(platform[6:])], tag="", platform=platform)
        for platform in ("linux/amd64", "linux/arm64")
    }
    registry.add_index("a/m", images, tag="1")
    image = registry.name("a/m", "1")
    home.json("publish", image, "--platform", "linux/arm64")
    assert home.run("show", image).code == 2
    assert "hint: add --platform linux/arm64" in home.run("show", image).err
    assert home.json("show", image, "--platform", "linux/arm64")["platform"] == "linux/arm64"
    home.json("publish", image)
    assert home.json("show", image)["platform"] == "linux/amd64"
    assert len(home.json("list")["images"]) == 2
    ran = home.run("publish", image, "--platform", "arm64")
    assert ran.code == 2
    assert "'arm64' is not a platform" in ran.err


def test_list_and_show_tell_what_is_published(home: Shell, registry: FakeRegistry) -> None:
    one, two = registry.name("a/one", "1"), registry.name("a/two", "1")
    home.json("publish", one, two)
    lines = home.run("list").out.splitlines()
    assert lines[0].split() == ["IMAGE", "PLATFORM", "DIGEST", "PUBLISHED", "ENTRIES", "SIZE"]
    assert [line.split()[0] for line in lines[1:]] == [one, two]
    shown = home.json("show", one)
    assert shown.pop("fallback") is None
    assert shown.pop("staged") is None
    assert shown in home.json("list")["images"]
    assert (shown["reference"], shown["revision"]) == (one, 2)
    text = home.run("show", one).out
    assert f"image         {one}\n" in text
    assert shown["image_id"] in text
    assert all(layer in text for layer in shown["layers"])
    ran = home.run("show", registry.name("a/oen", "1"))
    assert ran.code == 2
    assert "is not published\nhint: did you mean" in ran.err


def test_export_writes_a_folder_once(home: Shell, registry: FakeRegistry) -> None:
    image = registry.name("a/one", "1")
    (published,) = home.json("publish", image)["images"]
    document = home.json("export", image, "out/sandbox")
    folder = home.cwd / "out/sandbox"
    assert document["out"] == str(folder)
    assert (document["digest"], document["entries"]) == (published["digest"], published["entries"])
    assert (folder / "etc/one").read_text() == (folder / "etc/base").read_text() == "content"
    assert (folder / "nfs").is_dir()
    ran = home.run("export", image, "out/sandbox")
    assert (ran.code, ran.out) == (2, "")
    assert f"{folder} is not empty" in ran.err
    ran = home.run("export", image, "again")
    assert ran.out.startswith(f"{home.cwd / 'again'}: {image}, {published['entries']} entries, ")
    assert home.run("export", registry.name("a/two", "1"), "two").code == 2
    assert not (home.cwd / "two").exists()


def configure(home: Shell, text: str) -> Path:
    path = home.cwd / "cvmfs-publish.yaml"
    path.write_text(f"repository: {{name: {NAME}}}\n{text}\n")
    return path


def test_the_configuration_decides_how_images_are_prepared(
    home: Shell, registry: FakeRegistry
) -> None:
    configure(home, "sandbox: {roots: [/mine/own], standard_roots: false, sites: [./site.yaml]}")
    (home.cwd / "site.yaml").write_text("name: site\nroots: [/fs/site]\n")
    (image,) = home.json("publish", registry.name("a/one", "1"))["images"]
    assert {"/mine/own", "/fs/site"} <= set(image["roots_added"])
    assert "/gpfs" not in image["roots_added"]
    configure(home, "limits: {entries: 2}")
    (image,) = home.json("publish", registry.name("a/two", "1"), code=4)["images"]
    assert "limit" in image["error"]["message"]


def test_every_setting_reaches_the_publisher(home: Shell) -> None:
    path = configure(
        home,
        "sandbox: {permissions: strict, setuid: keep, keep_dirlinks: true, roots: [/a, /nfs]}\n"
        "limits: {image_bytes: 1, layer_bytes: 2, entries: 3, path_bytes: 4, compression_ratio: 5}",
    )
    chosen = publish_settings(load_config(path))
    assert chosen.image_bytes == 1
    assert (chosen.limits.layer_bytes, chosen.limits.entries) == (2, 3)
    assert (chosen.limits.path_bytes, chosen.limits.ratio) == (4, 5)
    assert (chosen.policy.permissions, chosen.policy.setuid) == ("strict", "keep")
    assert chosen.policy.keep_dirlinks is True
    assert chosen.policy.roots == (*STANDARD_ROOTS, "/a")


def test_a_hash_that_is_not_the_repositorys_is_refused(home: Shell, registry: FakeRegistry) -> None:
    path = home.cwd / "cvmfs-publish.yaml"
    path.write_text(f"repository: {{name: {NAME}, hash: shake128}}\n")
    ran = home.run("publish", registry.name("a/one", "1"))
    assert ran.code == 2
    assert f"repository.hash is shake128, but {NAME} was created with sha1" in ran.err


def test_a_login_comes_from_the_configuration_or_from_docker(
    home: Shell, registry: FakeRegistry
) -> None:
    registry.require_bearer("bot", "s3cret")
    image = registry.name("a/one", "1")
    assert home.run("publish", image).code == 3
    (home.cwd / "token").write_text("s3cret\n")
    login = f"registries: {{'{registry.host}': {{username: bot, password_file: token}}}}"
    configure(home, login)
    assert home.run("publish", image).code == 0
    configure(home, "registries: {ghcr.io: {username: bot, password_file: absent}}")
    assert home.run("publish", "--force", image).code == 3
    auth = base64.b64encode(b"bot:s3cret").decode()
    folder = home.cwd / ".docker"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    assert home.run("publish", "--force", image).code == 0
    home.environ["DOCKER_CONFIG"] = str(home.cwd)
    assert home.run("publish", "--force", image).code == 3


def test_a_password_comes_from_the_variable_that_is_named(
    home: Shell, registry: FakeRegistry
) -> None:
    registry.require_basic("bot", "s3cret")
    image = registry.name("a/one", "1")
    configure(home, f"registries: {{'{registry.host}': {{username: bot, password_env: MY_TOKEN}}}}")
    ran = home.run("publish", image)
    assert (ran.code, "password_env MY_TOKEN: the variable is not set" in ran.err) == (2, True)
    home.environ["MY_TOKEN"] = "s3cret"
    assert home.run("publish", image).code == 0


def test_a_budget_holds_across_runs_and_is_shown(home: Shell, registry: FakeRegistry) -> None:
    one, two = registry.name("a/one", "1"), registry.name("a/two", "1")
    configure(home, f"registries: {{'{registry.host}': {{pulls_per_hour: 1}}}}")
    registry.fault("HEAD", "", with_header("RateLimit-Remaining", "76;w=21600"), times=None)
    ran = home.run("publish", "-v", one)
    assert ran.code == 0
    assert f"{registry.host}: 1 of 1 pulls, 5 requests in an hour, the registry says 76" in ran.err
    document = home.json("publish", one, two, code=6)
    assert [image["status"] for image in document["images"]] == ["unchanged", "failed"]
    error = document["images"][1]["error"]
    assert error["kind"] == "rate-limited"
    assert "1 of 1 pulls" in error["message"]
    assert "pulls_per_hour" in error["hint"]
    assert registry.count("GET", "/v2/a/two/") == 0
    used = document["registries"][registry.host]
    assert (used["pulls"], used["pulls_per_hour"], used["requests"]) == (1, 1, 7)
    assert 0 < used["next_pull_seconds"] <= 3660
    assert used["stated"]["remaining"] == 76


def test_an_image_comes_from_a_mirror_and_what_is_damaged_there_from_the_registry(
    home: Shell, registry: FakeRegistry
) -> None:
    image = registry.name("a/one", "1")
    with FakeRegistry() as mirror:
        mirror.add_image("proxy/a/one", [layer("base"), layer("one")], tag="1")
        mirror.fault("GET", "/blobs/", wrong_bytes(), times=None)
        mirror.require_basic("mirror", "s3cret")
        configure(
            home,
            f"""registries:
  '{registry.host}': {{mirrors: ['{mirror.host}/proxy']}}
  '{mirror.host}': {{username: mirror, password: s3cret}}""",
        )
        ran = home.run("publish", image)
        assert (ran.code, ran.out.startswith(f"published  {image}  /{image}  ")) == (0, True), ran
        assert mirror.count("GET", "/blobs/") == 3  # each of them once
    assert registry.count("HEAD") == registry.count("GET", "/manifests/") == 0
    assert registry.count("GET", "/blobs/") == 3
    assert home.run("check", "--scrub").code == 0


def test_several_platforms_are_published_side_by_side_and_each_has_its_own_past(
    home: Shell, registry: FakeRegistry
) -> None:
    platforms = {
        name: registry.add_image("a/both", [layer(name[-5:])], tag="", platform=name)
        for name in ("linux/amd64", "linux/arm64")
    }
    registry.add_index("a/both", platforms, tag="1")
    image = registry.name("a/both", "1")
    ran = home.run("publish", image, "--platform", "linux/amd64", "--platform", "linux/arm64/v8")
    assert ran.code == 0, ran
    assert f"published  {image}  /{image}  " in ran.out
    assert f"published  {image} (linux/arm64)  /{image}  " in ran.out
    assert registry.count("HEAD") == 1
    listed = home.json("list")["images"]
    assert sorted(entry["platform"] for entry in listed) == ["linux/amd64", "linux/arm64"]
    arm = ("--platform", "linux/arm64")
    ids = {home.json("show", image, *more)["image_id"] for more in ((), arm)}
    assert len(ids) == 2
    assert home.run("verify", image, *arm).code == 0
    assert home.run("unpublish", image, *arm).code == 0
    assert [entry["platform"] for entry in home.json("list")["images"]] == ["linux/amd64"]
    assert home.run("rollback", image, *arm).code == 0
    assert len(home.json("history", image, *arm)["events"]) == 3
    assert len(home.json("history", image)["events"]) == 1
    assert home.run("check").code == 0


@pytest.mark.slow
def test_an_unreachable_registry_is_exit_code_3(home: Shell) -> None:
    ran = home.run("publish", "127.0.0.1:1/a/b:1")
    assert ran.code == 3
    assert "127.0.0.1:1/a/b:1" in ran.err


def test_phases_are_logged_on_demand(home: Shell, registry: FakeRegistry) -> None:
    image = registry.name("a/one", "1")
    err = home.run("publish", "-v", image).err
    assert f"{image}: fetching\n" in err
    assert f"{image}: fetched sha256:" in err
    assert "repository: catalogs\n" in err


def test_an_interrupted_publish_leaves_the_repository_as_it_was(
    home: Shell, registry: FakeRegistry
) -> None:
    registry.fault("GET", "/blobs/", lambda reply: replace(reply, cut_at=9, stall=20), times=None)
    with home.spawn("publish", registry.name("a/one", "1")) as process:
        while registry.count("GET", "/blobs/") == 0:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "cvmfs-publish: error: interrupted"
    assert home.json("check", "--scrub")["revision"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}])
def test_progress_is_drawn_at_a_terminal(
    home: Shell, registry: FakeRegistry, environ: dict[str, str]
) -> None:
    registry.add_image("a/big", [layer("big", os.urandom(5_000_000))], tag="1")
    # long enough for several redraws
    registry.fault("GET", "/blobs/", lambda reply: replace(reply, delay=0.5), times=None)
    home.environ.update({"TERM": "xterm-256color", "COLUMNS": "100", **environ})
    control, terminal = pty.openpty()
    image = registry.name("a/big", "1")
    with home.spawn("publish", image, stderr=terminal) as process:
        os.close(terminal)
        drawn = b""
        while True:
            try:
                piece = os.read(control, 65536)
            except OSError:  # the terminal of a process that ended
                break
            drawn += piece
        out, _ = process.communicate()
    os.close(control)
    assert (process.returncode, out[:9]) == (0, "published")
    text = drawn.decode()
    assert f"{image}: " in text
    assert "\x1b[2K" in text  # a line is erased to be drawn again
    colours = re.findall(r"\x1b\[[0-9;]*m", text)
    coloured = any(re.search(r"[\[;](3[0-8]|9[0-7])[;m]", colour) for colour in colours)
    assert coloured is ("NO_COLOR" not in environ), set(colours)
