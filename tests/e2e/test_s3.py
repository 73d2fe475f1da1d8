"""Every command on a repository in an object store, as an operator types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_publish.content.hashes import HashAlgorithm
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.s3 import ACCESS_KEY, SECRET_KEY, S3Bucket
from tests.s3_site import S3Site
from tests.support import NAME, Site, judged, keys_of_this_run
from tests.unit.cli.support import Shell


@dataclass
class Operator:
    """A person in a folder with a shell."""

    folder: Path
    bucket: S3Bucket

    def start(
        self, *words: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "cvmfs_publish", *words],
            cwd=self.folder,
            env={**os.environ, **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *words: str, code: int = 0, environ: Mapping[str, str] | None = None) -> str:
        """Return what a command says on standard output, or, should it fail, on the other."""
        ran = Shell(self.folder, environ).run(*words)
        assert ran.code == code, ran.out + ran.err
        assert SECRET_KEY not in ran.out + ran.err
        assert "Traceback" not in ran.err
        return ran.err if code else ran.out

    def document(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*words, "--json"))
        return found

    def judge(self, place: str | Path) -> str:
        """Return the last line that the independent checker says."""
        options = ["--scrub"] if isinstance(place, Path) else []
        text = judged(place, self.folder / "keys" / f"{NAME}.pub", *options)
        return text.rpartition("\n")[2]


@pytest.fixture
def operator(tmp_path: Path, bucket: S3Bucket) -> Operator:
    """The repository is made with keys from the environment; later they are in a file."""
    operator = Operator(tmp_path, bucket)
    operator.run(
        "init",
        NAME,
        "--storage",
        bucket.settings.location,
        environ={
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": bucket.server.url,
        },
    )
    config = tmp_path / "cvmfs-publish.yaml"
    text = config.read_text("utf-8")
    assert SECRET_KEY not in text
    assert f"storage: {bucket.settings.location}" in text.replace('"', "")
    text = text.replace("    #access_key: KEY\n", f"    access_key: {ACCESS_KEY}\n", 1)
    text = text.replace("    #secret_key_file: s3.key\n", "    secret_key_file: s3.key\n")
    config.write_text(text, "utf-8")
    (tmp_path / "s3.key").write_text(SECRET_KEY + "\n")
    (tmp_path / "s3.key").chmod(0o400)
    return operator


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        for name in ("one", "two", "three"):
            layer = Tar()
            layer.file("usr/bin/tool", name.encode() * 100)
            running.add_image(f"a/{name}", [layer.done()], tag="1")
        yield running


def plain_http(operator: Operator, registry: FakeRegistry) -> None:
    config = operator.folder / "cvmfs-publish.yaml"
    text = config.read_text("utf-8")
    logins = f"registries:\n  '{registry.host}': {{plain_http: true}}\n"
    config.write_text(text.replace("registries:\n", logins, 1), "utf-8")


def test_every_command_works_on_an_object_store(
    operator: Operator, registry: FakeRegistry, bucket: S3Bucket
) -> None:
    plain_http(operator, registry)
    image = registry.name("a/one", "1")
    published = operator.document("publish", image)
    assert published["images"][0]["status"] == "published"
    assert operator.document("publish", image)["images"][0]["status"] == "unchanged"
    assert operator.document("info")["storage"] == bucket.settings.location
    assert image in operator.run("list")
    assert image in operator.run("show", image)
    assert operator.document("check", "--scrub")["errors"] == 0
    operator.run("export", image, "exported")
    assert (operator.folder / "exported/usr/bin/tool").read_bytes() == b"one" * 100
    assert operator.document("verify", image)
    operator.run("tag", "good")
    assert "good" in operator.run("tag")
    operator.run("unpublish", image)
    assert image not in operator.run("list")
    operator.run("rollback", image)
    operator.run("pin", image)
    assert "rolled back" in operator.run("history", image)
    operator.run("unpin", image)
    before = bucket.get(".cvmfswhitelist")
    operator.run("resign", "--days", "20")
    assert bucket.get(".cvmfswhitelist") != before
    assert "0 errors" in operator.judge(bucket.mirror(operator.folder / "m"))
    names = {name for name in bucket.names() if not name.startswith("data/")}
    assert names == {".cvmfspublished", ".cvmfsreflog", ".cvmfswhitelist", ".cvmfs_master_replica"}
    assert "docs/publishing.md" in operator.run("serve", code=2)


def test_what_nothing_names_is_collected(
    operator: Operator, registry: FakeRegistry, bucket: S3Bucket
) -> None:
    plain_http(operator, registry)
    kept, removed = registry.name("a/one", "1"), registry.name("a/two", "1")
    operator.run("publish", kept)
    bucket.put("data/00/" + "1" * 38, b"of a publish that was killed")
    operator.run("publish", removed)
    operator.run("unpublish", removed)
    before = bucket.names()
    operator.run("gc", "--grace", "0", "--keep-revisions", "0", "--dry-run")
    assert bucket.names() == before
    operator.run("gc", "--grace", "0", "--keep-revisions", "0")
    assert before - bucket.names() >= {"data/00/" + "1" * 38}
    assert operator.document("check", "--scrub")["errors"] == 0
    assert operator.document("verify", kept)
    assert "0 errors" in operator.judge(bucket.mirror(operator.folder / "m"))


def test_clients_read_the_bucket_itself(
    operator: Operator, registry: FakeRegistry, bucket: S3Bucket
) -> None:
    plain_http(operator, registry)
    operator.run("publish", registry.name("a/one", "1"))
    bucket.publish_to_everybody()
    assert "0 errors" in operator.judge(bucket.url)


def test_a_repository_that_exists_is_adopted(operator: Operator, bucket: S3Bucket) -> None:
    (operator.folder / "cvmfs-publish.yaml").unlink()
    keys = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL_S3": bucket.server.url,
    }
    before = bucket.get(".cvmfspublished")
    storage = bucket.settings.location
    assert "adopted" in operator.run("init", NAME, "--storage", storage, environ=keys)
    assert bucket.get(".cvmfspublished") == before


def test_an_object_store_holds_the_same_bytes_as_a_folder(
    tmp_path: Path, registry: FakeRegistry, bucket: S3Bucket
) -> None:
    """With the same keys and the same clock: whatever is golden for one is for the other."""
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    local = Site(tmp_path / "local")
    remote = S3Site(tmp_path / "remote", bucket, bucket.settings)
    for target in (local, remote):
        shutil.copytree(keys_of_this_run(), target.keys)
        with target.client:
            target.repository.create(HashAlgorithm.SHA1, now - timedelta(hours=1))
            for name in ("one", "two"):
                target.publish(registry.name(f"a/{name}", "1"), now=now)
    remote.repository.store.close()
    found = {
        path.relative_to(local.storage).as_posix(): path.read_bytes()
        for path in local.storage.rglob("*")
        if path.is_file()
    }
    assert {name: bucket.get(name) for name in bucket.names()} == found


def test_publishers_at_the_same_time(
    operator: Operator, registry: FakeRegistry, bucket: S3Bucket
) -> None:
    """Who comes while another writes is told so, with exit code 5, and nothing is lost."""
    plain_http(operator, registry)
    images = [registry.name(f"a/{name}", "1") for name in ("one", "two", "three")]
    running = [operator.start("publish", image) for image in images]
    codes = []
    for process in running:
        with process:
            _, err = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert process.returncode == 0 or "locked by" in err.decode(), err
        assert b"Traceback" not in err
    assert set(codes) <= {0, 5}
    assert 0 in codes
    listed = operator.run("list")
    for image, code in zip(images, codes, strict=True):
        assert (image in listed) == (code == 0)
    assert "0 errors" in operator.judge(bucket.mirror(operator.folder / "m"))


@pytest.mark.parametrize(
    ("storage", "environ", "code", "reason"),
    [
        ("s3://bucket-x/a", {}, 2, "no keys for the object store"),
        ("s3://bucket-x/../a", {}, 2, "is no place in an object store"),
        ("swift://bucket-x/a", {}, 2, "is no place in an object store"),
        (
            "s3://no-such-bucket/a",
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
            5,
            "NoSuchBucket",
        ),
    ],
)
def test_init_says_what_is_wrong_and_makes_nothing(
    tmp_path: Path,
    bucket: S3Bucket,
    storage: str,
    environ: dict[str, str],
    code: int,
    reason: str,
) -> None:
    operator = Operator(tmp_path, bucket)
    environ = environ | {"AWS_ENDPOINT_URL": bucket.server.url}
    assert reason in operator.run("init", NAME, "--storage", storage, code=code, environ=environ)
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_others_may_read_is_refused(operator: Operator) -> None:
    (operator.folder / "s3.key").chmod(0o644)
    text = operator.run("info", code=2)
    assert "is open to others (mode 0644)" in text
    assert "chmod 400" in text
