"""From real registries, as sites run them, to a published image, by the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from cvmfs_publish.errors import RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from tests import parts
from tests.authority import Authority
from tests.token_server import IDENTITY, TokenServer
from tests.unit.cli.support import Shell, repository
from tests.unit.sources.test_real_registry import write_layout

pytestmark = [pytest.mark.parts, pytest.mark.slow]
BOT = ("bot", 's3cret, with "odd" signs')


@dataclass(frozen=True)
class Place:
    """A registry that runs, and who may push to it."""

    server: parts.RegistryServer
    login: tuple[str, str] | None = None
    ca_file: Path | None = None
    tokens: TokenServer | None = None

    def push(self, layout: Path, name: str, *options: str) -> str:
        """Push by skopeo; return the whole name."""
        words = [str(parts.require("skopeo")), "copy", *options]
        if self.login is not None:
            words.append(f"--dest-creds={':'.join(self.login)}")
        if self.ca_file is None:
            words.append("--dest-tls-verify=false")
        else:
            words.append(f"--dest-cert-dir={self.ca_file.parent}")
        whole = f"{self.server.host}/{name}"
        parts.run([*words, f"oci:{layout}", f"docker://{whole}"])
        return whole


@contextmanager
def anonymous(folder: Path) -> Iterator[Place]:
    with parts.docker_registry(folder) as server:
        yield Place(server)


@contextmanager
def by_password(folder: Path) -> Iterator[Place]:
    with parts.docker_registry(folder, htpasswd=True) as server:
        yield Place(server, (server.username, server.password))


@contextmanager
def by_token(folder: Path) -> Iterator[Place]:
    with (
        TokenServer(folder, *BOT) as tokens,
        parts.docker_registry(folder, more=tokens.registry_configuration()) as server,
    ):
        yield Place(server, BOT, tokens=tokens)


@contextmanager
def by_token_with_tls(folder: Path) -> Iterator[Place]:
    trusted = folder / "trusted"
    trusted.mkdir()
    authority = Authority(trusted)
    authority.pair.key.rename(folder / "authority.key")  # skopeo would take it for a client's
    pair = authority.issue("registry")
    served = folder / "served"
    served.mkdir()
    files = tuple(path.rename(served / path.name) for path in (pair.certificate, pair.key))
    with (
        TokenServer(folder, *BOT) as tokens,
        parts.docker_registry(
            folder, tls=(files[0], files[1]), more=tokens.registry_configuration()
        ) as server,
    ):
        yield Place(server, BOT, ca_file=authority.pair.certificate, tokens=tokens)


PLACES = {
    "anonymous": anonymous,
    "password": by_password,
    "token": by_token,
    "token and TLS": by_token_with_tls,
}


def configure(home: Shell, place: Place, **changes: str) -> None:
    settings = dict(changes)
    if place.ca_file is not None:
        settings.setdefault("ca_file", str(place.ca_file))
    if place.login is not None and "username" not in settings:
        settings |= {"username": place.login[0], "password": place.login[1]}
    text = (home.cwd / "cvmfs-publish.yaml").read_text("utf-8").partition("registries:")[0]
    registries = json.dumps({place.server.host: settings})
    (home.cwd / "cvmfs-publish.yaml").write_text(f"{text}registries: {registries}\n", "utf-8")


@pytest.mark.parametrize("kind", PLACES)
def test_an_image_is_published_from_a_real_registry(tmp_path: Path, kind: str) -> None:
    home = Shell(tmp_path / "home")
    home.cwd.mkdir()
    repository(home)
    layout, folder = tmp_path / "layout", tmp_path / "registry"
    digest = write_layout(layout)
    folder.mkdir()
    with PLACES[kind](folder) as place:
        image = place.push(layout, "private/image:1")
        configure(home, place)
        document = home.json("publish", image)
        assert [each["digest"] for each in document["images"]] == [str(digest)]
        assert home.run("publish", image).out.startswith("unchanged")
        assert home.run("verify", image).code == 0
        if place.login is not None:
            configure(home, place, username="bot", password="wrong")
            ran = home.run("publish", image)
            assert (ran.code, "access denied" in ran.err, "wrong" in ran.err) == (3, True, False)
        if place.tokens is not None:
            pulls = [claims["access"] for claims in place.tokens.issued]
            assert [{"type": "repository", "name": "private/image", "actions": ["pull"]}] in pulls


def test_a_private_authority_is_trusted_for_its_registry_alone(tmp_path: Path) -> None:
    home = Shell(tmp_path / "home")
    home.cwd.mkdir()
    repository(home)
    other = tmp_path / "other"
    other.mkdir()
    stranger = Authority(other).pair.certificate
    write_layout(tmp_path / "layout")
    folder = tmp_path / "registry"
    folder.mkdir()
    with by_token_with_tls(folder) as place:
        image = place.push(tmp_path / "layout", "public/image:1")
        configure(home, place, ca_file=str(stranger))
        ran = home.run("publish", image)
        assert ran.code == 3
        assert "certificate verify failed" in ran.err
        assert "set `ca_file` under its name in `registries`" in ran.err
        configure(home, place, ca_file=str(home.cwd / "cvmfs-publish.yaml"))
        ran = home.run("publish", image)
        assert (ran.code, "holds no certificates in PEM format" in ran.err) == (2, True)
        configure(home, place, ca_file=str(home.cwd / "absent.pem"))
        ran = home.run("publish", image)
        assert (ran.code, "absent.pem: cannot be read" in ran.err) == (2, True)
        configure(home, place)
        assert home.run("publish", image).code == 0


def test_an_authority_of_another_registry_counts_for_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("registry")
    with parts.docker_registry(tmp_path, tls=(pair.certificate, pair.key)) as server:
        ca_files = {"registry.example.org": authority.pair.certificate}
        with RegistryClient(ca_files=ca_files, attempts=1) as client:
            client._is_plain = lambda _: False  # type: ignore[assignment,method-assign]
            with pytest.raises(RemoteError, match="certificate verify failed"):
                RegistrySource(client).head(Reference.parse(f"{server.host}/a/b:1"))


def test_an_expired_certificate_and_one_of_another_name_say_so(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for life, host, hint in (
        (timedelta(days=-1), "127.0.0.1", "has expired"),
        (timedelta(days=1), "127.0.0.2", "for another name"),
    ):
        pair = authority.issue("registry", life, host)
        with parts.docker_registry(tmp_path, tls=(pair.certificate, pair.key)) as server:
            reference = Reference.parse(f"{server.host}/a/b:1")
            ca_files = {server.host: authority.pair.certificate}
            with RegistryClient(ca_files=ca_files, attempts=2) as client:
                with pytest.raises(RemoteError) as caught:
                    RegistrySource(client).head(reference)
                assert hint in caught.value.hint
                assert client.requests_made["HEAD"] == 1  # trying again would not help


def test_tokens_for_everybody_for_an_identity_and_for_a_short_time(tmp_path: Path) -> None:
    digest = write_layout(tmp_path / "layout")
    with (
        TokenServer(tmp_path, *BOT, life=1) as tokens,
        parts.docker_registry(tmp_path, more=tokens.registry_configuration()) as server,
    ):
        place = Place(server, BOT)
        names = [place.push(tmp_path / "layout", f"{kind}/a:{kind}") for kind in ("public", "own")]
        everybody, mine = map(Reference.parse, names)
        with RegistryClient() as client:
            source = RegistrySource(client)
            assert source.head(everybody) == digest
            assert source.tags(server.host, "public/a") == ("public",)
            with pytest.raises(RemoteError, match="access denied"):
                source.head(mine)
        identity = {server.host: Credential(identity_token=IDENTITY)}
        with RegistryClient(credentials=identity) as client:
            source = RegistrySource(client)
            assert source.resolve(mine, Platform.default()).digest == digest
            assert source.tags(server.host, "own/a") == ("own",)


def test_a_schema_1_image_of_a_real_registry_is_read(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout")
    more = "compatibility: {schema1: {enabled: true}}\n"
    with parts.docker_registry(tmp_path, more=more) as server:
        place = Place(server)
        image = place.push(tmp_path / "layout", "old/image:1", "--format", "v2s1")
        new = place.push(tmp_path / "layout", "new/image:1")
        with RegistryClient() as client:
            source = RegistrySource(client)
            old = source.resolve(Reference.parse(image), Platform.default())
            assert json.loads(old.manifest)["schemaVersion"] == 1
            assert source.head(Reference.parse(image)) == old.digest
            same = source.resolve(Reference.parse(new), Platform.default())
            assert [layer.digest for layer in old.layers] == [each.digest for each in same.layers]
            assert [layer.size for layer in old.layers] == [each.size for each in same.layers]


@pytest.mark.parametrize(
    ("form", "magic"),
    [("gzip", b"\x1f\x8b"), ("zstd", b"(\xb5/\xfd"), ("zstd:chunked", b"(\xb5/\xfd")],
)
def test_layers_are_read_however_skopeo_packs_them(tmp_path: Path, form: str, magic: bytes) -> None:
    write_layout(tmp_path / "layout", "none")
    home = Shell(tmp_path / "home")
    home.cwd.mkdir()
    repository(home)
    # One of its own: skopeo knows which forms of a layer a registry has, and sends no other
    with parts.docker_registry(tmp_path) as server, RegistryClient() as client:
        options = (f"--dest-compress-format={form}",)
        image = Place(server).push(tmp_path / "layout", "packed/image:1", *options)
        source, reference = RegistrySource(client), Reference.parse(image)
        layer = source.resolve(reference, Platform.default()).layers[0]
        with source.open_layer(reference, layer) as stream:
            assert stream.read(4).startswith(magic)
        assert home.run("publish", image).code == 0
    assert home.run("export", image, str(tmp_path / "tree")).code == 0
    assert (tmp_path / "tree/a").read_bytes() == b"1" * 100_000
    assert (tmp_path / "tree/b").read_bytes() == b"2"
