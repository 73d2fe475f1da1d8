"""`cvmfs-publish.yaml`: what it may say, what it may not yet say, and where it is found."""

from __future__ import annotations

import re
import textwrap
from datetime import timedelta
from pathlib import Path

import pytest

from cvmfs_publish import config, settings
from cvmfs_publish.config import (
    ByteSize,
    Config,
    HookConfig,
    ListUrl,
    MirrorPlace,
    NotifyConfig,
    RegistryConfig,
    ReplicaConfig,
    RootPath,
    VariableName,
    WebUrl,
    WishlistConfig,
)
from cvmfs_publish.errors import InputError

MINIMAL = "repository: {name: containers.example.org}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / config.FILE_NAME
    path.write_text(text)
    return path


def load(folder: Path, text: str) -> Config:
    return config.load_config(write(folder, text))


def refusal(folder: Path, text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load(folder, text)
    return caught.value


def test_a_name_is_enough_and_paths_are_beside_the_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, MINIMAL)
    assert loaded.repository.name == "containers.example.org"
    assert loaded.repository.storage == tmp_path / "repository"
    assert loaded.repository.keys == tmp_path / "keys"
    assert loaded.state == tmp_path / "state"
    assert loaded.repository.hash == "sha1"
    assert loaded.repository.compression == "adaptive"
    assert loaded.nesting.max_entries == 10_000
    assert loaded.sandbox.standard_roots is True
    assert loaded.limits.entries == 500_000


def test_what_interface_shows_and_works_is_read(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """\
repository:
  name: containers.example.org
  backend: native                 # native | cvmfs_server | directory
  storage: ./repository           # directory, or s3://bucket/prefix
  keys: /etc/keys
  layout: unpacked                # unpacked | osg
state: ./state                    # SQLite, spool, locks
sandbox:
  roots: [/nfs, /gpfs, /afs]      # added to the built-in list
  sites: [slac, in2p3, ./own.yaml]
  permissions: readable           # readable | strict
registries:
  ghcr.io: {username: bot, password_file: token}
  Index.Docker.io:
    mirrors: [mirror.example.org, Harbor.example.org:8443/hub/x]
    pulls_per_hour: 60
  quay.io: {username: bot, password_env: QUAY_TOKEN, ca_file: ca.pem, mirror_tags: false}
limits: {image_bytes: 20GiB, layer_bytes: 500 MB}
""",
    )
    assert loaded.repository.storage == tmp_path / "repository"
    assert loaded.repository.keys == Path("/etc/keys")
    assert loaded.sandbox.roots == ("/nfs", "/gpfs", "/afs")
    assert loaded.sandbox.sites == ("slac", "in2p3", tmp_path / "own.yaml")
    assert loaded.registries == {
        "ghcr.io": RegistryConfig(username="bot", password_file=tmp_path / "token"),
        "docker.io": RegistryConfig(
            mirrors=(
                MirrorPlace("mirror.example.org"),
                MirrorPlace("harbor.example.org:8443/hub/x"),
            ),
            pulls_per_hour=60,
        ),
        "quay.io": RegistryConfig(
            username="bot",
            password_env=VariableName("QUAY_TOKEN"),
            ca_file=tmp_path / "ca.pem",
            mirror_tags=False,
        ),
    }
    assert loaded.limits.image_bytes == 20 * 1024**3
    assert loaded.limits.layer_bytes == 500 * 1000**2


def test_replicas_are_urls_or_say_more_about_each(tmp_path: Path) -> None:
    text = (
        "replicas:\n"
        "  - http://s1.example.org/cvmfs/containers.example.org\n"
        "  - url: https://s1.example.net/cvmfs/containers.example.org\n"
        "    proxy: http://squid.example.net:3128\n"
        "    compare: true\n"
    )
    first, second = load(tmp_path, f"{MINIMAL}{text}").known_replicas
    assert first == ReplicaConfig(WebUrl("http://s1.example.org/cvmfs/containers.example.org"))
    assert (second.proxy, second.compare) == ("http://squid.example.net:3128", True)


def test_a_replica_named_twice_is_refused_where_it_stands(tmp_path: Path) -> None:
    url = "http://s1.example.org/cvmfs/a.example.org"
    error = str(refusal(tmp_path, f"{MINIMAL}replicas:\n  - {url}\n  - url: {url}\n"))
    assert error.startswith(f"{tmp_path / config.FILE_NAME}:4: ")
    assert error.endswith(f"{url} is named twice")


@pytest.mark.parametrize("key", ["storage: swift://x/prefix"])
def test_values_that_do_not_work_yet_are_refused(tmp_path: Path, key: str) -> None:
    error = str(refusal(tmp_path, f"repository:\n  name: a.example.org\n  {key}\n"))
    name, value = key.split(": ")
    assert f":3: repository.{name}: {value!r} is not available in this version" in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("repository: {name: a b}", "repository.name: 'a b' is not a repository name"),
        ("repository: {name: .hidden}", "repository.name: '.hidden' is not a repository name"),
        ("repository: {name: a/b}", "is not a repository name"),
        (f"repository: {{name: {'a' * 61}}}", "61 characters, 60 are possible"),
        ("repository: {}", "repository: required key 'name' missing"),
        ("repository: {nmae: x}", "unknown key 'nmae' in repository; did you mean 'name'?"),
        ("repository: {name: x, backend: nativ}", "did you mean 'native'?"),
        ("repository: {name: x, directory: {share: false}}", "is for `backend: directory`"),
        ("repository: {name: x, backend: directory, hash: rmd160}", "is for `backend: native`"),
        ("repository: {name: x, backend: directory, spool: /s}", "spool: is for `backend: native`"),
        ("repository: {name: x, backend: directory, storage: s3://abc/d}", "tree is a folder"),
        (
            "repository: {name: x, backend: directory, directory: {lease: 2s}}",
            "lease: wants 30s to 1h, found 2s",
        ),
        ("repository: {name: x, cvmfs_server: {method: ingest}}", "is for `backend: cvmfs_server`"),
        (
            "repository: {name: x, backend: cvmfs_server, storage: s3://abc/d}",
            "where the repository is, its server.conf says",
        ),
        (
            "repository: {name: x, backend: cvmfs_server, cvmfs_server: {timeout: 0s}}",
            "timeout: wants 1s or more",
        ),
        (
            "repository: {name: x, backend: directory}\nhistory: {automatic_tags: 30d}",
            "history.automatic_tags: is for `backend: native`",
        ),
        (
            "repository: {name: x, backend: directory}\nfallback: {store: f}",
            "fallback: is for `backend: native`",
        ),
        ("repository: {name: x, storage: http://x/y}", "wants s3://BUCKET/PREFIX (plain names;"),
        ("repository: {name: x, storage: s3://ab/y}", "three characters and more"),
        ("repository: {name: x, hash: md5}", "wants one of sha1, shake128, rmd160, found 'md5'"),
        (MINIMAL + "sandbox: {roots: [nfs]}", "sandbox.roots[0]: 'nfs' cannot be a root"),
        (MINIMAL + "sandbox: {roots: [/nfs/]}", "'/nfs/' cannot be a root"),
        (MINIMAL + "sandbox: {roots: [/]}", "'/' cannot be a root"),
        (MINIMAL + "sandbox: {roots: [/a/../b]}", "'/a/../b' cannot be a root"),
        (MINIMAL + 'sandbox: {roots: ["/a\\nb"]}', "cannot be a root"),
        (MINIMAL + "sandbox: {setuid: maybe}", "wants one of strip, keep"),
        (MINIMAL + "registries: {https://ghcr.io: {}}", "is not a registry host"),
        (MINIMAL + "registries: {ghcr.io/org: {}}", "is not a registry host"),
        (MINIMAL + "registries: {docker.io: {}, index.docker.io: {}}", "is given twice"),
        (MINIMAL + "registries: {a: {username: b}}", "password_file is missing"),
        (MINIMAL + "registries: {a: {password: b}}", "username is missing"),
        (
            MINIMAL + "registries: {a: {username: a, password: b, password_file: c}}",
            "registries.a: password and password_file are both given",
        ),
        (
            MINIMAL + "registries: {a: {username: a, password_env: B, password_file: c}}",
            "password_file and password_env are both given",
        ),
        (MINIMAL + "registries: {a: {username: a, password_env: s3cret-t0ken}}", "'s3c'… is not"),
        (MINIMAL + "registries: {a: {pulls_per_hour: 0}}", "pulls_per_hour: wants a number above"),
        (MINIMAL + "registries: {a: {requests_per_hour: -1}}", "requests_per_hour: wants a number"),
        (MINIMAL + "registries: {a: {mirrors: [https://b]}}", "is not a place of a mirror"),
        (MINIMAL + "registries: {a: {mirrors: [b/c/]}}", "'b/c/' is not a place of a mirror"),
        (MINIMAL + "registries: {a: {mirrors: [b/../c]}}", "is not a place of a mirror"),
        (MINIMAL + "registries: {a: {mirrors: [b c]}}", "is not a registry host"),
        (MINIMAL + "limits: {entries: 0}", "entries: wants a number above zero, found 0"),
        (MINIMAL + "limits: {image_bytes: 0}", "'0' is not a possible size"),
        (MINIMAL + "limits: {image_bytes: 1PB}", "'1PB' is not a size"),
        (MINIMAL + "limits: {image_bytes: 99999999TiB}", "is not a possible size"),
        (MINIMAL + "watch: {interval: 0s}", "interval: wants 1s or more, found 0s"),
        (MINIMAL + "watch: {batch: 0}", "batch: wants a number from 1 to 10000, found 0"),
        (MINIMAL + "watch: {weights: {me: -1}}", "weights.me: wants a number from 1 to 10000"),
        (MINIMAL + "retention: {max_share: 0}", "max_share: wants a number up to 100, found 0"),
        (MINIMAL + "retention: {keep_revisions: -1}", "keep_revisions: wants 0 or more, found -1"),
        (MINIMAL + "nesting: {max_entries: 5}", "max_entries: 5 would make thousands of catalogs"),
        (MINIMAL + "nesting: {max_entries: 200001}", "max_entries: 200001 is more than the 200000"),
        (
            "repository: {name: a.b, compression: lzma}",
            "wants one of adaptive, zlib, fast, none, found 'lzma'",
        ),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, line: str, message: str) -> None:
    error = str(refusal(tmp_path, line))
    assert message in error
    assert error.startswith(f"{tmp_path / config.FILE_NAME}:")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1_000", 1000), ("3B", 3), ("2kB", 2000), ("2KiB", 2048), ("1 TiB", 1024**4)],
)
def test_sizes_are_decimal_or_binary_as_their_unit_says(text: str, size: int) -> None:
    assert ByteSize.parse(text) == size


def test_roots_may_be_deep() -> None:
    assert RootPath.parse("/fs/ddn/sdf") == "/fs/ddn/sdf"


def test_a_password_comes_from_the_file_or_the_key(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("  s3cret\n")
    assert RegistryConfig("bot", password_file=token).read_password({}) == "s3cret"
    assert RegistryConfig("bot", password="here").read_password({}) == "here"
    assert RegistryConfig().read_password({}) is None


def test_a_password_comes_from_the_variable_that_is_named() -> None:
    login = RegistryConfig("bot", password_env=VariableName("TOKEN"))
    assert login.read_password({"TOKEN": "s3cret", "OTHER": "x"}) == "s3cret"
    for environ, what in (({}, "is not set"), ({"TOKEN": "a\nb"}, "does not hold one line")):
        with pytest.raises(InputError, match=f"password_env TOKEN: the variable {what}") as caught:
            login.read_password(environ)
        assert "a\nb" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"x" * 70_000])
def test_a_password_file_holds_one_line(tmp_path: Path, content: bytes) -> None:
    token = tmp_path / "token"
    token.write_bytes(content)
    with pytest.raises(InputError, match="does not hold one line with a password"):
        RegistryConfig("bot", password_file=token).read_password({})


def test_a_missing_password_file_is_named(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with pytest.raises(InputError, match=re.escape(f"{token}: cannot be read: No such file")):
        RegistryConfig("bot", password_file=token).read_password({})


def test_the_file_named_wins_then_the_variable_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {config.CONFIG_VARIABLE: "/from/variable.yaml"}
    here = write(tmp_path, MINIMAL)
    system = tmp_path / "system.yaml"
    system.write_text(MINIMAL)
    monkeypatch.setattr(config, "SYSTEM_FILE", system)
    explicit = Path("/explicit.yaml")
    assert config.find_config(explicit, environ, tmp_path) == explicit
    assert config.find_config(None, environ, tmp_path) == Path("/from/variable.yaml")
    assert config.find_config(None, {config.CONFIG_VARIABLE: ""}, tmp_path) == here
    here.unlink()
    assert config.find_config(None, {}, tmp_path) == system
    system.unlink()
    with pytest.raises(InputError, match="no configuration: neither") as caught:
        config.find_config(None, {}, tmp_path)
    assert "cvmfs-publish init NAME" in caught.value.hint


def test_the_file_that_init_writes_is_read_back(tmp_path: Path) -> None:
    text = config.render_default_config(
        "a.example.org", storage="/srv/a b: c", keys="no", hash_algorithm="shake128"
    )
    loaded = load(tmp_path, text)
    assert loaded.repository.name == "a.example.org"
    assert loaded.repository.storage == Path("/srv/a b: c")
    assert loaded.repository.keys == tmp_path / "no"
    assert loaded.repository.hash == "shake128"
    assert loaded == load(
        tmp_path,
        "repository: {name: a.example.org, storage: '/srv/a b: c', keys: no, hash: shake128}",
    )


def test_what_init_takes_over_is_read_back(tmp_path: Path) -> None:
    s3 = config.S3Config(
        endpoint=config.Endpoint.parse("http://localhost:9000"),
        region="somewhere",
        virtual_host=True,
        access_key="who",
        secret_key="'s: #\"",
    )
    text = config.render_default_config(
        "a.example.org",
        storage="s3://bucket/prefix",
        s3=s3,
        compression="zlib",
        spool="/var/spool/cvmfs/a b",
        automatic_tags="28d",
    )
    loaded = load(tmp_path, text)
    assert loaded.repository.s3 == s3
    assert loaded.repository.compression == "zlib"
    assert loaded.repository.spool == Path("/var/spool/cvmfs/a b")
    assert loaded.history.automatic_tags == timedelta(days=28)


@pytest.mark.parametrize("text", ["localhost:9000", "ftp://x", "http://a:b@x", "http://x:65536"])
def test_an_object_store_has_the_url_of_a_server(text: str) -> None:
    assert config.Endpoint.parse("http://x:65535/") == "http://x:65535"
    with pytest.raises(InputError, match="is no URL"):
        config.Endpoint.parse(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"region": "a\nb"},
        {"access_key": "a\tb", "secret_key": "c"},
        {"access_key": "a", "secret_key": "secret\n"},
        {"session_token": "secret\0"},
    ],
)
def test_keys_with_line_breaks_are_refused_without_showing_them(changes: dict[str, str]) -> None:
    with pytest.raises(InputError, match="such as a line break") as caught:
        config.S3Config(**changes)  # type: ignore[arg-type]  # texts, all of these
    (name,) = (name for name, value in changes.items() if not value.isprintable())
    assert str(caught.value).startswith(f"{name}: ")
    assert "secret\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["null", "no", "1.5", "0x1f", "1_0", "Null", "a-b_c.d"])
def test_any_repository_name_survives_the_file(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, config.render_default_config(name)).repository.name == name


def uncommented(text: str) -> str:
    """Take away the `#` before keys, which unlike remarks have no blank after it."""
    return re.sub(r"(?m)^( *)#(?=\S)", r"\1", text)


def test_a_key_behind_a_hash_in_that_file_shows_its_default(tmp_path: Path) -> None:
    text = config.render_default_config("a.example.org")
    shown = load(tmp_path, uncommented(text))
    assert [type(each) for each in shown.wishlists] == [type(tmp_path), WishlistConfig]
    assert shown.webhooks is not None
    assert shown.webhooks.sources["gitlab"].hosts == {"registry:5000": "registry.example.org"}
    assert len(shown.notify) == 4
    assert [type(each) for each in shown.replicas] == [WebUrl, ReplicaConfig]
    text = re.sub(r"(?sm)^#(wishlists|webhooks|notify|replicas):.*?^$", "", text + "\n")
    login = RegistryConfig(
        username="bot", password_file=tmp_path / "token", ca_file=tmp_path / "ca.pem"
    )
    hub = RegistryConfig(pulls_per_hour=60, requests_per_hour=1000)
    assert shown.registries == {"ghcr.io": login, "docker.io": hub}
    examples = (
        "ghcr|username|password_file|plain_http|endpoint|region|access_key|secret_key_file|spool|"
        "store|format|max_bytes|auth_url|user|key_file|project|user_domain|project_domain|"
        "storage_url|ca_file|foreign_layers|docker|mirrors|mirror_tags|"
        "pulls_per_hour|requests_per_hour|listen|drop|weights|token_file|url"
    )
    without = re.sub(rf"(?m)^ +#({examples}).*\n", "", text)
    assert load(tmp_path, uncommented(without)) == load(tmp_path, text)


def test_every_key_is_explained_in_that_file() -> None:
    text = uncommented(config.render_default_config("a.example.org"))
    for doc in settings.iter_keys(config.ConfigFile):
        name = doc.path.rsplit(".", 1)[-1]
        assert re.search(rf"\b{name}:", text), doc.path
        assert doc.doc, f"{doc.path} is not documented"


# ---------------------------------------------------------------- wishlists, webhooks, notify


def test_wishlists_are_paths_and_urls_with_or_without_more(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        f"""{MINIMAL}wishlists:
  - images.yaml
  - https://example.org/docker_images.txt
  - git+https://example.org/lists.git//a@main
  - {{from: lists, format: osg, owner: me, keep_replaced: 2d, priority: -3}}
""",
    )
    assert loaded.wishlists == (
        tmp_path / "images.yaml",
        ListUrl("https://example.org/docker_images.txt"),
        ListUrl("git+https://example.org/lists.git//a@main"),
        WishlistConfig(tmp_path / "lists", "osg", config.Owner("me"), timedelta(days=2), -3),
    )


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("ftp://example.org/x", "wants a URL such as"),
        ("https://user:secret@example.org/x", "wants a URL such as"),
        ("git+ssh://example.org/x", "wants a URL such as"),
        ("git+https://u:secret@example.org/x", "wants a URL such as"),
        ("{owner: me}", "required key 'from' missing"),
        ("{from: x, format: oci}", "wants one of own, ducc, osg"),
        ("{from: x, priority: 10}", "wants a number from -9 to 9"),
        ("{from: x, owner: a@}", "is not an address of e-mail"),
    ],
)
def test_a_wishlist_that_cannot_be_one_is_refused(tmp_path: Path, item: str, message: str) -> None:
    assert message in str(refusal(tmp_path, f"{MINIMAL}wishlists: ['x', {item}]\n"))


@pytest.mark.parametrize(
    "text",
    [
        "wishlists: ['https://user:s3cret@example.org/x']",
        "replicas: ['http://user:s3cret@example.org/x']",
        "notify: [{webhook: 'ftp://user:s3cret@example.org/x'}]",
    ],
)
def test_a_password_in_an_address_is_not_repeated(tmp_path: Path, text: str) -> None:
    told = refusal(tmp_path, f"{MINIMAL}{text}\n")
    assert "s3cret" not in f"{told}{told.hint}"
    assert "example.org/x" in str(told)


def test_webhooks_have_a_secret_and_sources(tmp_path: Path) -> None:
    secret = tmp_path / "hook"
    secret.write_text("a secret of many letters\n")
    secret.chmod(0o400)
    gitlab = "{registry: R.example.org, hosts: {Reg:5000: R.example.org}}"
    text = f"{{secret_file: hook, sources: {{harbor: {{}}, gitlab: {gitlab}}}}}"
    loaded = load(tmp_path, f"{MINIMAL}webhooks: {text}\n")
    assert loaded.webhooks is not None
    assert loaded.webhooks.read_secret() == "a secret of many letters"
    assert loaded.webhooks.sources == {
        "harbor": HookConfig(),
        "gitlab": HookConfig(
            config.RegistryHost("r.example.org"),
            {config.RegistryHost("reg:5000"): config.RegistryHost("r.example.org")},
        ),
    }
    secret.chmod(0o444)
    with pytest.raises(InputError, match="is open to others"):
        loaded.webhooks.read_secret()


@pytest.mark.parametrize("text", ["{}", "{secret_file: x, sources: {quay: {}}}"])
def test_webhooks_that_cannot_be_proven_are_refused(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, f"{MINIMAL}webhooks: {text}\n")


@pytest.mark.parametrize(
    "item",
    [
        "{file: events.jsonl}",
        "{webhook: 'https://example.org/hook?x=1', secret_file: s, kinds: [a, 'b-*'], timeout: 5s}",
        "{email: [owner, a@example.org], from: b@example.org, server: 'mail.example.org:587',"
        " starttls: true, username: u, password_file: p, owners: [me]}",
        "{program: [/bin/true, -x]}",
    ],
)
def test_who_is_notified_is_read(tmp_path: Path, item: str) -> None:
    (notify,) = load(tmp_path, f"{MINIMAL}notify: [{item}]\n").notify
    assert notify != NotifyConfig(file=tmp_path)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("{}", "wants one of file, webhook, email, program, found none"),
        ("{file: a, program: [/b]}", "found file and program"),
        ("{file: a, secret_file: s}", "secret_file belongs to webhook and means nothing to file"),
        ("{webhook: 'http://x', starttls: true}", "starttls belongs to email"),
        ("{webhook: 'https://u:p@x'}", "is no URL"),
        ("{email: [], from: a@b}", "at least one address"),
        ("{email: [a@b]}", "from is missing"),
        ("{email: [me], from: a@b}", "email"),
        ("{email: [a@b], from: a@b, server: 'a b'}", "is not HOST or HOST:PORT"),
        ("{email: [a@b], from: a@b, username: u}", "belong together"),
        ("{email: [a@b], from: a@b, username: u, password_file: p}", "without starttls"),
        ('{email: [a@b], from: "a@b\\nBcc: c@d"}', "is not an address"),
        ("{program: []}", "absolute path"),
        ("{program: [tell]}", "absolute path"),
        ("{file: a, timeout: 0s}", "wants 1s to 10m"),
    ],
)
def test_a_notification_that_cannot_work_is_refused(
    tmp_path: Path, item: str, message: str
) -> None:
    assert message in str(refusal(tmp_path, f"{MINIMAL}notify: [{item}]\n"))


def test_the_rules_of_trust_in_the_documentation_are_understood(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "trust.md").read_text("utf-8")
    example = re.search(r"^    trust:\n(?:      .*\n)+", page, re.MULTILINE)
    assert example is not None
    rules = load(tmp_path, MINIMAL + textwrap.dedent(example[0])).trust
    assert [(rule.match.text, rule.policy) for rule in rules] == [
        ("ghcr.io/team/*", "cosign"),
        ("docker.io/library/*", "accept"),
        ("*", "reject"),
    ]
    assert rules[0].keys == (tmp_path / "keys/team.pub", tmp_path / "keys/release.pub")


# ---------------------------------------------------------------- several repositories

TWO = """\
state: ./memory
watch: {listen: 127.0.0.1:8080}
sandbox: {roots: [/nfs], sites: [slac]}
wishlists: [all.yaml]
retention: {keep_replaced: 9d}
repositories:
  eu.example.org:
    storage: eu
    sites: [in2p3, slac]
    listen: 127.0.0.1:8081
    web: {url: https://eu.example.org}
    replicas: [http://s1.example.org/cvmfs/eu.example.org]
  us.example.org:
    backend: directory
    storage: us
    wishlists: []
    retention: {gc: off}
"""


def test_several_repositories_share_what_is_said_once(tmp_path: Path) -> None:
    eu, us = config.load_configs(write(tmp_path, TWO))
    assert (eu.repository.name, us.repository.name) == ("eu.example.org", "us.example.org")
    assert (eu.repository.backend, us.repository.backend) == ("native", "directory")
    assert (eu.repository.storage, us.repository.storage) == (tmp_path / "eu", tmp_path / "us")
    assert eu.repository.keys == us.repository.keys == tmp_path / "keys"
    assert (eu.state, us.state) == tuple(
        tmp_path / "memory" / each.repository.name for each in (eu, us)
    )
    assert eu.shared_state == us.shared_state == tmp_path / "memory"
    assert (eu.sandbox.sites, us.sandbox.sites) == (("slac", "in2p3"), ("slac",))
    assert eu.sandbox.roots == us.sandbox.roots == ("/nfs",)
    assert (eu.wishlists, us.wishlists) == ((tmp_path / "all.yaml",), ())
    assert eu.retention.keep_replaced == timedelta(days=9)
    assert (us.retention.keep_replaced, us.retention.gc) == (timedelta(days=30), "off")
    assert (len(eu.replicas), len(us.replicas)) == (1, 0)
    assert (eu.web.url, us.web.url) == ("https://eu.example.org", None)
    assert (eu.watch.listen, us.watch.listen) == ("127.0.0.1:8081", None)
    assert eu.common_listen == us.common_listen == "127.0.0.1:8080"


def test_one_of_several_is_found_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    assert config.load_config(path, "us.example.org").repository.name == "us.example.org"
    with pytest.raises(config.ChoiceError, match=r"names 2 repositories.*eu\.example\.org, us"):
        config.load_config(path)
    with pytest.raises(InputError, match=r"no repository 'uk\.example\.org'; did you mean"):
        config.load_config(path, "uk.example.org")


def test_a_single_repository_is_what_it_was(tmp_path: Path) -> None:
    (only,) = config.load_configs(write(tmp_path, MINIMAL))
    assert not only.is_one_of_several
    assert only.state == only.shared_state == tmp_path / "state"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("state: x\n", "required key 'repository' missing"),
        (MINIMAL + "repositories: {a.b: {}}", ":2: repositories: and `repository` are both given"),
        ("repositories: {}", "repositories: names no repository"),
        ("repositories:\n", "required key 'repository' missing"),
        ("repositories: [a]", "repositories: wants a section"),
        ("repositories: {a b: {}}", "'a b' is not a repository name"),
        ("repositories: {a.b: {name: a.b}}", "unknown key 'name' in repositories.a.b"),
        ("repositories: {a.b: {stora: x}}", "did you mean 'storage'?"),
        (
            "repositories:\n  a.b: {}\n  a.c: {}",
            ":3: repositories.a.c.storage: {}/repository is in the way of {}/repository, which"
            " belongs to a.b",
        ),
        ("repositories:\n  a.b: {storage: x}\n  a.c: {storage: x/y}", "a.c.storage: {}/x/y is in"),
        ("repositories: {a.b: {}, a.c: {storage: y, fallback: {store: y/z}}}", None),
        (
            "repositories: {a.b: {storage: x}, a.c: {storage: y, fallback: {store: x/z}}}",
            "repositories.a.c.fallback.store: {}/x/z is in the way of {}/x",
        ),
        (
            "repositories: {a.b: {storage: s3://buck/et}, a.c: {storage: s3://buck/et/y}}",
            "a.c.storage: s3://buck/et/y is in the way of s3://buck/et",
        ),
        ("replicas: [http://s1.b/x]\nrepositories: {a.b: {}}", ":1: replicas: belongs to one"),
        ("repositories: {a.b: {}}\nfallback: {store: f}", ":2: fallback: belongs to one"),
        ("repositories: {a.b: {}}\nweb: {url: 'http://x'}", ":2: web.url: belongs to one"),
        (
            "repositories:\n  a.b:\n    backend: directory\n    history: {automatic_tags: 3d}",
            ":4: repositories.a.b.history.automatic_tags: is for `backend: native`",
        ),
        (
            "history: {automatic_tags: 3d}\nrepositories: {a.b: {backend: directory}}",
            "history.automatic_tags: is for `backend: native`, but the backend is directory"
            " (repository a.b)",
        ),
        (
            "repositories: {a.b: {replicas: [http://s1.b/x, http://s1.b/x]}}",
            "repositories.a.b.replicas[1]: http://s1.b/x is named twice",
        ),
        ("repositories: {a.b: {accept: [debian]}}", "'debian' is not a pattern of images"),
        (
            "repositories: {a.b: {refuse: [{labels: {x: []}}]}}",
            "repositories.a.b.refuse[0].labels.x: names no text",
        ),
        (MINIMAL + "common_state: x", "unknown key 'common_state'"),
    ],
)
def test_what_cannot_be_of_several_repositories(
    tmp_path: Path, text: str, message: str | None
) -> None:
    path = write(tmp_path, text)
    if message is None:
        config.load_configs(path)
        return
    with pytest.raises(InputError) as caught:
        config.load_configs(path)
    assert message.replace("{}", str(tmp_path)) in str(caught.value)
    assert str(caught.value).startswith(str(path))
