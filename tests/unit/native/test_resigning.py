"""Whitelists and keys: renewed here, renewed elsewhere, exchanged, and killed on the way."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import InputError, RepositoryError
from cvmfs_publish.repository.native.reader import open_snapshot
from cvmfs_publish.repository.native.request import (
    Request,
    format_request,
    parse_request,
    sign_request,
)
from cvmfs_publish.repository.native.resigning import (
    Resigned,
    install,
    make_request,
    resign,
    rotate,
)
from cvmfs_publish.repository.native.signing import (
    create_keys,
    fingerprint,
    load_keys,
    public_fingerprint,
)
from cvmfs_publish.repository.native.tags import list_tags, set_tag
from cvmfs_publish.repository.native.trust import TrustError
from cvmfs_publish.repository.native.whitelist import (
    Whitelist,
    format_fingerprint,
    parse_whitelist,
    sign_whitelist,
)
from tests.s3 import S3Server
from tests.s3_site import s3_site
from tests.support import NAME, Site, site

pytestmark = pytest.mark.slow

DAY = timedelta(days=1)
STRANGER = ContentHash.parse("ab" * 20)  # the fingerprint of another release manager


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as created:
        yield created


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def whitelist(target: Site) -> Whitelist:
    return parse_whitelist((target.storage / ".cvmfswhitelist").read_bytes())[0]


def certificate(target: Site) -> ContentHash:
    return fingerprint(load_keys(target.keys, NAME).certificate)


def put(target: Site, data: bytes = b"1") -> None:
    with target.repository.transaction(int(now().timestamp())) as transaction:
        transaction.put_file("f", data)


def read(target: Site, at: datetime | None = None) -> int:
    """Return the revision a client sees, that verifies everything."""
    with open_snapshot(target.storage, [target.keys / f"{NAME}.pub"], now=at or now()) as found:
        return found.manifest.revision


def add_stranger(target: Site, at: datetime | None = None) -> None:
    """Let another release manager's certificate be trusted too."""
    keys = load_keys(target.keys, NAME)
    assert keys.master_key is not None
    found = whitelist(target)
    fingerprints = (*found.fingerprints, STRANGER)
    changed = Whitelist(NAME, at or found.created_at, found.expires_at, fingerprints)
    data = sign_whitelist(changed, keys.master_key)
    (target.storage / ".cvmfswhitelist").write_bytes(data)


def take_master_key(target: Site) -> Path:
    """Bring the master key to a place of its own."""
    away = target.keys.parent / "safe"
    away.mkdir(exist_ok=True)
    return (target.keys / f"{NAME}.masterkey").rename(away / "the-key")


def files(target: Site) -> dict[str, bytes]:
    return {
        str(path.relative_to(target.storage)): path.read_bytes()
        for path in target.storage.rglob("*")
        if path.is_file()
    }


# renewing


def test_certificates_of_others_stay_on_the_whitelist_unless_only_ours_is_wanted(
    target: Site,
) -> None:
    add_stranger(target)
    done = resign(target.repository, now(), 10)
    assert whitelist(target).fingerprints == (certificate(target), STRANGER)
    assert done.plan is not None
    assert done.plan.dropped == ()
    done = resign(target.repository, now(), 10, only=True)
    assert whitelist(target).fingerprints == (certificate(target),)
    assert done.plan is not None
    assert done.plan.dropped == (STRANGER,)
    assert read(target) == 1


def test_nothing_is_taken_over_from_a_whitelist_that_the_master_key_did_not_sign(
    target: Site,
) -> None:
    add_stranger(target)
    path = target.storage / ".cvmfswhitelist"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    done = resign(target.repository, now(), 10)
    assert whitelist(target).fingerprints == (certificate(target),)
    assert done.plan is not None
    assert "none of the given master keys" in done.plan.unread
    assert read(target) == 1


@pytest.mark.parametrize("damage", [None, b"", b"nonsense"])
def test_a_whitelist_that_is_missing_or_damaged_is_made_anew(
    target: Site, damage: bytes | None
) -> None:
    path = target.storage / ".cvmfswhitelist"
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(TrustError) as caught:
        put(target)
    assert "resign" in caught.value.hint
    resign(target.repository, now(), 10)
    put(target)
    assert target.judge() == []


def test_the_former_master_key_is_trusted_until_its_public_half_is_removed(target: Site) -> None:
    """Two public keys: clients may have both, and so does the publisher."""
    add_stranger(target)
    other = target.keys.parent / "other"
    create_keys(other, NAME, now=now())
    former = target.keys / f"{NAME}.pub.former"
    (target.keys / f"{NAME}.pub").rename(former)
    for kind in ("pub", "masterkey"):
        (other / f"{NAME}.{kind}").rename(target.keys / f"{NAME}.{kind}")
    put(target)  # under the whitelist of the former
    resign(target.repository, now(), 10)
    assert STRANGER in whitelist(target).fingerprints
    former.unlink()
    put(target, b"2")
    assert read(target) == 3
    assert target.judge() == []


# elsewhere


def test_a_request_is_signed_elsewhere_and_installed(target: Site) -> None:
    add_stranger(target)
    key = take_master_key(target)
    with pytest.raises(TrustError, match="master key") as caught:
        resign(target.repository, now(), 10)
    assert "--request" in caught.value.hint
    text = format_request(make_request(target.repository, now()))
    request = parse_request(text, "request")
    assert [value for value, _ in request.certificates] == [certificate(target), STRANGER]
    assert [remark for _, remark in request.certificates] == [
        "of this publisher, in use",
        "of somebody else, on the present whitelist",
    ]
    data = sign_request(request, key, now(), 20)
    done = install(target.repository, data, now())
    assert done == Resigned(whitelist(target))
    assert whitelist(target).expires_at == whitelist(target).created_at + 20 * DAY
    install(target.repository, data, now())  # again: nothing to be afraid of
    put(target)
    assert target.judge() == []


def test_the_wrong_master_key_is_told_where_it_is_and_where_it_is_not(
    target: Site, tmp_path: Path
) -> None:
    create_keys(tmp_path / "other", NAME, now=now())
    wrong = tmp_path / "other" / f"{NAME}.masterkey"
    request = make_request(target.repository, now())
    before = files(target)
    with pytest.raises(TrustError, match="is not the master key of") as caught:
        sign_request(request, wrong, now(), 10)
    assert format_fingerprint(request.master_key) in str(caught.value)
    forged = Request(
        NAME,
        public_fingerprint(load_keys(tmp_path / "other", NAME).public_key),
        request.certificates,
    )
    with pytest.raises(TrustError, match="none of the given master keys"):
        install(target.repository, sign_request(forged, wrong, now(), 10), now())
    assert files(target) == before


def test_a_whitelist_that_clients_would_refuse_is_not_installed(target: Site) -> None:
    master = target.keys / f"{NAME}.masterkey"
    good = make_request(target.repository, now())
    before = files(target)

    def refused(request: Request, at: datetime, days: int, text: str) -> None:
        data = sign_request(request, master, at, days)
        with pytest.raises(TrustError, match=text) as caught:
            install(target.repository, data, now())
        assert caught.value.hint
        assert files(target) == before

    refused(good, now() - 60 * DAY, 30, "expired at")
    refused(good, now() - DAY, 30, "was made at .*, the published one at ")
    other = Request("other.example.org", good.master_key, good.certificates)
    refused(other, now(), 30, r"for 'other\.example\.org', not for")
    strange = Request(NAME, good.master_key, ((STRANGER, ""),))
    refused(strange, now(), 30, "does not trust the certificate in .* it lists AB:AB")
    older = sign_request(good, master, now() - DAY, 30)
    install(target.repository, older, now(), allow_older=True)
    assert whitelist(target).created_at < now() - timedelta(hours=23)


def test_a_whitelist_with_demands_we_do_not_know_is_not_installed(target: Site) -> None:
    keys = load_keys(target.keys, NAME)
    assert keys.master_key is not None
    demanding = Whitelist(NAME, now(), now() + DAY, (certificate(target),), ("Wcachain",))
    with pytest.raises(TrustError, match="Wcachain"):
        install(target.repository, sign_whitelist(demanding, keys.master_key), now())


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_a_whitelist_made_with_openssl_as_stock_tools_do_is_installed(
    target: Site, tmp_path: Path, algorithm: HashAlgorithm
) -> None:
    keys = load_keys(target.keys, NAME)
    own = format_fingerprint(fingerprint(keys.certificate, algorithm))
    created, expires = (f"{at:%Y%m%d%H%M%S}" for at in (now(), now() + 30 * DAY))
    text = f"{created}\nE{expires}\nN{NAME}\n{own}\n".encode()
    (tmp_path / "hash").write_text(str(ContentHash.of(text, algorithm)))
    command = ["openssl", "pkeyutl", "-sign", "-inkey", str(target.keys / f"{NAME}.masterkey")]
    command += ["-in", str(tmp_path / "hash"), "-out", str(tmp_path / "signature")]
    subprocess.run(command, check=True, capture_output=True)
    signature = (tmp_path / "signature").read_bytes()
    data = b"%b--\n%b\n%b" % (text, (tmp_path / "hash").read_bytes(), signature)
    install(target.repository, data, now())
    assert (target.storage / ".cvmfswhitelist").read_bytes() == data
    put(target)
    assert target.judge() == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "0 repositories"),
        ("repository a\nrepository b\nmaster-key {0}\ncertificate {0}\n", "2 repositories"),
        ("repository a\nmaster-key {0}\n", "0 certificates"),
        ("repository a/b\nmaster-key {0}\ncertificate {0}\n", "request:1: 'a/b' is not"),
        ("repository a\nmaster-key x\ncertificate {0}\n", "request:2: "),
        ("repository a\nmaster-key {0}\ncertificate 12\n", "request:3: "),
        ("sudo make me a sandwich\n", "request:1: 'sudo' is not a word"),
    ],
)
def test_what_is_no_request_is_refused_by_line(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        parse_request(text.format(format_fingerprint(STRANGER)), "request")
    assert "--request" in caught.value.hint


def test_a_request_survives_its_text() -> None:
    made = Request("a.example.org", STRANGER, ((STRANGER, "one"), (STRANGER, "")))
    assert parse_request(format_request(made), "x") == made
    assert parse_request(format_request(made).replace("\n", "\r\n"), "x") == made


# exchanging the key


def test_a_new_key_signs_and_the_old_one_is_trusted_for_another_week(target: Site) -> None:
    put(target)
    add_stranger(target)
    old = certificate(target)
    client = (target.storage / ".cvmfswhitelist").read_bytes()  # what a client may have cached
    done = rotate(target.repository, now(), 30)
    new = certificate(target)
    assert done.exchanged
    assert new != old
    assert set(whitelist(target).fingerprints) == {old, new, STRANGER}
    assert new not in parse_whitelist(client)[0].fingerprints
    assert read(target) == 2
    assert target.judge() == []
    names = {path.name for path in target.keys.iterdir()}
    kept = names - {f"{NAME}.{kind}" for kind in ("key", "crt", "pub", "masterkey")}
    assert {name.rsplit(".", 1)[0] for name in kept} == {f"{NAME}.key", f"{NAME}.crt"}
    assert {path.stat().st_mode & 0o777 for path in target.keys.glob("*.key*")} == {0o400}

    resign(target.repository, now() + 6 * DAY, 30)
    assert old in whitelist(target).fingerprints
    resign(target.repository, now() + 8 * DAY, 30)
    assert set(whitelist(target).fingerprints) == {new, STRANGER}
    put(target, b"2")
    assert read(target) == 3
    assert target.judge() == []


def test_a_stolen_key_is_not_trusted_any_longer_after_only_ours_was_wanted(target: Site) -> None:
    rotate(target.repository, now(), 30)
    resign(target.repository, now(), 30, only=True)
    assert whitelist(target).fingerprints == (certificate(target),)
    assert read(target) == 1
    assert target.judge() == []


def test_keys_may_be_exchanged_twice_in_one_second(target: Site) -> None:
    moment = now()
    certificates = [certificate(target)]
    for _ in range(2):
        rotate(target.repository, moment, 30)
        certificates.append(certificate(target))
    kept = [old.certificate for old in target.repository.trust.files.retired()]
    assert [fingerprint(found) for found in kept] == certificates[:2]
    assert len(set(certificates)) == 3
    assert target.judge() == []


def test_keys_may_become_longer(target: Site) -> None:
    rotate(target.repository, now(), 30, bits=3072)
    assert load_keys(target.keys, NAME).private_key.key_size == 3072
    with pytest.raises(InputError, match="RSA keys of 1024 bits"):
        rotate(target.repository, now(), 30, bits=1024)
    assert target.judge() == []


class Killed(BaseException):
    """What no code of ours catches."""


STEPS = (
    "new key",
    "whitelist",
    "keep old key",
    "install key",
    "install certificate",
    "certificate",
    "reflog",
    "sync",
    "prepare",
    "switch reflog",
    "switch",
    "done",
    "forget",
)


def test_these_are_all_steps_of_an_exchange(target: Site) -> None:
    seen: list[str] = []
    rotate(target.repository, now(), 30, step=seen.append)
    assert tuple(seen) == STEPS


# Whoever comes next finishes it in the same way: each of them after a half of the steps.
FOLLOWING = [("rotate", step) for step in STEPS]
FOLLOWING += [("publish", step) for step in STEPS[::2]]
FOLLOWING += [("resign", step) for step in STEPS[1::2]]


@pytest.mark.slow
@pytest.mark.parametrize(("following", "wanted"), FOLLOWING)
def test_an_exchange_killed_anywhere_is_finished_and_readers_never_notice(
    target: Site, following: str, wanted: str
) -> None:
    add_stranger(target)
    old = certificate(target)

    def step(name: str) -> None:
        assert read(target) == 1
        if name == wanted:
            raise Killed

    with pytest.raises(Killed):
        rotate(target.repository, now(), 30, step=step)
    assert read(target) == 1
    if following == "rotate":
        newer = ["ERROR .cvmfsreflog: does not match Y of the manifest"]  # of the next manifest
        assert target.judge() == (newer if wanted == "switch" else [])
    if following == "publish":
        put(target)
    if following == "resign":
        resign(target.repository, now() + DAY, 30)
        assert STRANGER in whitelist(target).fingerprints
    revision = read(target)
    done = rotate(target.repository, now(), 30, step=lambda _: assert_same(target, revision))
    assert done.exchanged
    assert certificate(target) != old
    assert fingerprint(target.repository.signer()) == certificate(target)
    assert not list(target.keys.glob("*.next"))
    assert len(list(target.keys.glob(f"{NAME}.key.*"))) == 1  # one exchange, however often tried
    put(target, b"after")
    assert read(target) == revision + 1
    assert target.judge() == []


def assert_same(target: Site, revision: int) -> None:
    assert read(target) == revision


def test_an_exchange_with_the_master_key_elsewhere(target: Site) -> None:
    key = take_master_key(target)
    old = certificate(target)
    before = files(target)
    with pytest.raises(TrustError, match="master key"):
        rotate(target.repository, now(), 30)
    assert not list(target.keys.glob("*.next"))
    request = make_request(target.repository, now(), new_key=True)
    assert [remark for _, remark in request.certificates] == [
        "of this publisher, new",
        "of this publisher, in use",
    ]
    again = make_request(target.repository, now(), new_key=True)
    assert again == request  # the new key is made once
    assert files(target) == before
    data = sign_request(request, key, now(), 30)

    def step(name: str) -> None:
        assert read(target) == 1
        if name == "install certificate":
            raise Killed

    with pytest.raises(Killed):
        install(target.repository, data, now(), step=step)
    put(target)  # with the new key, whose certificate has not its name yet
    done = install(target.repository, data, now())
    assert done.exchanged
    assert certificate(target) != old
    assert not list(target.keys.glob("*.next"))
    assert read(target) == 2
    assert target.judge() == []


def test_an_exchange_needs_no_master_key_once_both_are_trusted(target: Site) -> None:
    def step(name: str) -> None:
        if name == "keep old key":
            raise Killed

    with pytest.raises(Killed):
        rotate(target.repository, now(), 30, step=step)
    take_master_key(target)
    assert rotate(target.repository, now(), 30).exchanged
    assert target.judge() == []


def test_an_exchange_goes_on_after_the_whitelist_expired(target: Site) -> None:
    def step(name: str) -> None:
        if name == "certificate":
            raise Killed

    with pytest.raises(Killed):
        rotate(target.repository, now(), 30, step=step)
    (target.storage / ".cvmfswhitelist").unlink()  # or lost altogether
    assert rotate(target.repository, now(), 30).exchanged
    assert read(target) == 1
    assert target.judge() == []


def test_files_of_a_new_key_that_do_not_fit_are_told(target: Site) -> None:
    make_request(target.repository, now(), new_key=True)
    path = target.keys / f"{NAME}.key.next"
    path.unlink()
    path.write_bytes((target.keys / f"{NAME}.key").read_bytes())
    path.chmod(0o400)
    before = files(target)
    with pytest.raises(RepositoryError, match=r"is not the key of .*\.crt\.next") as caught:
        rotate(target.repository, now(), 30)
    assert "remove both" in caught.value.hint
    assert files(target) == before


# another release manager


def test_a_revision_of_another_release_manager_is_built_upon(target: Site) -> None:
    theirs = target.keys.parent / "theirs"
    create_keys(theirs, NAME, now=now())
    for kind in ("pub", "masterkey"):
        (theirs / f"{NAME}.{kind}").unlink()
        (theirs / f"{NAME}.{kind}").write_bytes((target.keys / f"{NAME}.{kind}").read_bytes())
        (theirs / f"{NAME}.{kind}").chmod(0o400)
    other = Site(target.keys.parent)
    other.keys = theirs
    other.reopen(target.repository._options)
    with pytest.raises(TrustError, match="does not trust the certificate") as caught:
        put(other)
    assert format_fingerprint(certificate(other)) in str(caught.value)
    assert format_fingerprint(certificate(target)) in str(caught.value)
    resign(other.repository, now(), 30)
    for count, writer in enumerate((other, target, other)):
        put(writer, str(count).encode())
        assert fingerprint(target.repository.signer()) == certificate(writer)
    assert read(target) == 4
    resign(target.repository, now(), 30, only=True)  # and no one misses the other
    assert fingerprint(target.repository.signer()) == certificate(target)
    assert read(target) == 4
    with pytest.raises(TrustError, match="does not trust"):
        put(other, b"x")
    assert target.judge() == []


# in an object store


@pytest.mark.slow
def test_all_of_it_in_an_object_store(tmp_path: Path, s3_server: S3Server) -> None:
    with s3_site(tmp_path, s3_server.new_bucket()) as target:

        def seen() -> int:
            """What a client sees, that verifies everything."""
            public = [target.keys / f"{NAME}.pub"]
            with open_snapshot(target.repository.store, public, now=now()) as found:
                return found.manifest.revision

        old = certificate(target)
        resign(target.repository, now(), 30)
        for wanted in STEPS:  # killed before each, one run after the other

            def step(name: str, wanted: str = wanted) -> None:
                assert seen() == 1
                if name == wanted:
                    raise Killed

            with suppress(Killed):
                rotate(target.repository, now(), 30, step=step)
            assert seen() == 1
            if certificate(target) != old and not list(target.keys.glob("*.next")):
                break
        assert rotate(target.repository, now(), 30).exchanged
        tag, changed = set_tag(target.repository, "release", int(now().timestamp()))
        assert (tag.revision, changed) == (1, True)
        assert [found.name for found in list_tags(target.repository)] == ["release", "trunk"]
        take_master_key(target)
        request = make_request(target.repository, now())
        data = sign_request(request, target.keys.parent / "safe" / "the-key", now(), 30)
        install(target.repository, data, now())
        put(target)
        assert seen() == 2
        assert target.judge() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_new_key_belongs_to_whose_the_old_one_was(target: Site) -> None:
    """Stock tools sign as CVMFS_USER, whoever exchanged the key."""
    os.chown(target.keys / f"{NAME}.key", 1234, 4321)
    rotate(target.repository, now(), 30)
    for kind in ("key", "crt"):
        found = (target.keys / f"{NAME}.{kind}").stat()
        assert (found.st_uid, found.st_gid) == (1234, 4321)
    assert (target.keys / f"{NAME}.key").stat().st_mode & 0o777 == 0o400


def test_a_clock_that_is_a_month_behind_does_not_end_the_whitelist(target: Site) -> None:
    before = (target.storage / ".cvmfswhitelist").read_bytes()
    with pytest.raises(TrustError, match=r"would expire at .*, before revision 1 was published"):
        resign(target.repository, now() - 31 * DAY, 30)
    assert (target.storage / ".cvmfswhitelist").read_bytes() == before
    resign(target.repository, now() - DAY, 30)
