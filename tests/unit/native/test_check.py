from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import InputError, RepositoryError
from cvmfs_publish.repository.native import check_objects
from cvmfs_publish.repository.native.check import Advance, Report, Severity, check_repository
from cvmfs_publish.repository.native.check_catalog import Claim, examine_catalog
from cvmfs_publish.repository.native.check_databases import examine_history, examine_reflog
from cvmfs_publish.repository.native.check_objects import (
    check_content,
    check_presence,
)
from cvmfs_publish.repository.native.check_process import CheckProcess
from cvmfs_publish.repository.native.http_origin import open_origin
from cvmfs_publish.repository.native.manifest import format_manifest, parse_manifest
from cvmfs_publish.repository.native.problems import MAX_PROBLEMS
from cvmfs_publish.repository.native.signing import (
    fingerprint,
    join_signed,
    self_signed_certificate,
)
from cvmfs_publish.repository.native.whitelist import make_whitelist
from tests.unit.native.test_reader import served
from tests.unit.native.vectors import (
    FOLDER,
    NAMES,
    NOW,
    SHA1,
    SHAKE,
    Damaged,
    at,
    key,
    public_key,
    vector,
)

pytestmark = pytest.mark.slow

JUDGE = FOLDER.parent / "tools" / "cvmfs_check.py"


@pytest.mark.parametrize("scrub", [False, True])
@pytest.mark.parametrize("over_http", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_repositories_of_the_real_programs_are_without_any_problem(
    name: str, over_http: bool, scrub: bool
) -> None:
    directory = vector(name) / "repo"
    with served(directory) as url:
        report = check_repository(
            url if over_http else directory, [public_key(name)], now=NOW, name=name, scrub=scrub
        )
    assert report.problems == []
    assert (report.name, report.revision) == (name, 3)
    counts = report.counts
    assert counts["contents read"] == counts["objects"]
    if scrub:
        objects = sum(path.is_file() for path in (directory / "data").rglob("*"))
        assert counts["catalogs"] == 5  # those of tagged revisions, too
        expected = objects - counts["objects"] - counts["catalogs"]
        assert counts["objects hashed"] == (0 if over_http else expected)
    else:
        assert (counts["catalogs"], counts["entries"], counts["objects"]) == (3, 40, 15)


@pytest.mark.slow
def test_the_independent_judge_agrees_about_a_repository_signed_again(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    repository.edit_catalog("/nested/inner", "UPDATE properties SET value = 5 WHERE key = 'TTL'")
    assert repository.check(scrub=True).problems == []
    arguments = ["--public-key", str(repository.public_key), "--name", SHA1, "--scrub", "--json"]
    result = subprocess.run(
        [sys.executable, JUDGE, repository.root, *arguments, "--now", str(int(NOW.timestamp()))],
        capture_output=True,
        check=False,
    )
    assert json.loads(result.stdout)["errors"] == 0, result.stdout


def test_reversed_and_unknown_manifest_fields_are_accepted(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    repository.rewrite_manifest(
        lambda text: b"".join([b"Zx\n", *reversed(text.splitlines(keepends=True)), b"Ky\n"])
    )
    assert repository.check().problems == []


def test_no_reflog_at_all_is_only_worth_a_warning(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    repository.reflog_file.unlink()
    repository.sign(reflog=None)
    report = repository.check()
    assert [(p.place, p.severity) for p in report.problems] == [(".cvmfsreflog", Severity.WARNING)]


def test_a_replica_has_a_reflog_of_its_own(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    before = repository.manifest().reflog
    repository.edit_reflog("UPDATE refs SET timestamp = timestamp + 1")
    repository.sign(reflog=before)
    (repository.root / ".cvmfs_last_snapshot").write_text("Fri Nov 20 10:30:00 UTC 2026\n")
    assert repository.check().problems == []


def test_a_sha1_whitelist_is_accepted_in_a_shake128_repository(tmp_path: Path) -> None:
    repository = Damaged(tmp_path, SHAKE)
    master = repository.keys.master_key
    assert master is not None
    trusted = [fingerprint(repository.keys.certificate, HashAlgorithm.SHA1)]
    data = make_whitelist(SHAKE, trusted, NOW + timedelta(days=30), master, NOW)
    repository.whitelist_file.write_bytes(data)
    assert repository.check().problems == []


@pytest.mark.parametrize("kind", ["rsa-4096", "curve", "expired"])
def test_unusual_certificates_that_clients_accept(tmp_path: Path, kind: str) -> None:
    repository = Damaged(tmp_path)
    master = repository.keys.master_key
    assert master is not None
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    if kind == "curve":
        private = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(private.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW + timedelta(days=1))
            .sign(private, hashes.SHA256())
        )
    else:
        private = rsa.generate_private_key(65537, 4096 if kind == "rsa-4096" else 2048)
        made = NOW - timedelta(days=800) if kind == "expired" else NOW
        certificate = self_signed_certificate(private, SHA1, made)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    repository.sign(certificate=repository.put(zlib.compress(pem), Suffix.CERTIFICATE))
    repository.list_current()
    payload = format_manifest(repository.manifest())
    text = str(ContentHash.of(payload, HashAlgorithm.SHA1)).encode()
    if isinstance(private, ec.EllipticCurvePrivateKey):
        signature = private.sign(text, ec.ECDSA(hashes.SHA1()))
    else:
        repository.keys = replace(repository.keys, private_key=private)
        repository.sign()
        signature = repository.manifest_file.read_bytes().partition(b"--\n" + text + b"\n")[2]
    repository.manifest_file.write_bytes(join_signed(payload, text, signature))
    data = make_whitelist(SHA1, [fingerprint(certificate)], NOW + timedelta(days=9), master, NOW)
    repository.whitelist_file.write_bytes(data)
    report = repository.check()
    assert report.errors == []
    dates = ["certificate"] if kind == "expired" else []  # told, but no client looks at them
    assert [problem.place for problem in report.problems] == dates


def test_without_public_key_the_whitelist_is_not_called_verified() -> None:
    report = check_repository(vector() / "repo", [], now=NOW)
    assert [(p.place, p.severity) for p in report.problems] == [
        (".cvmfswhitelist", Severity.WARNING)
    ]
    assert "not verified" in report.problems[0].text


def test_only_the_right_public_key_will_do() -> None:
    report = check_repository(vector() / "repo", [public_key(SHAKE)], now=NOW)
    assert [p.place for p in report.errors] == [".cvmfswhitelist"]


def test_another_name_is_an_error() -> None:
    report = check_repository(vector() / "repo", [public_key()], now=NOW, name="other.example.org")
    assert [p.place for p in report.errors] == [".cvmfspublished"]


def test_expiry_is_announced_a_week_before() -> None:
    # the whitelist expires when the hour of 2046-11-15 10:29:58 begins
    texts = {}
    for days in (7, 8):
        now = datetime(2046, 11, 15, 10, 0, tzinfo=UTC) - timedelta(days=days)
        report = check_repository(vector() / "repo", [public_key()], now=now)
        texts[days] = [p.text for p in report.problems if p.place == ".cvmfswhitelist"]
    assert texts[8] == []
    assert texts[7] == ["expires at 2046-11-15 10:29 UTC: resign it"]


def test_contents_beyond_the_budget_are_only_looked_for(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    path = repository.object_file(repository.row_hash("/plain/hello.txt"), Suffix.DATA)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    report = repository.check(budget=0)
    assert report.problems == []
    assert report.counts["contents read"] == 0
    assert [p.place for p in repository.check().errors] == ["/plain/hello.txt"]
    path.unlink()
    assert [p.place for p in repository.check(budget=0).errors] == ["/plain/hello.txt"]
    with served(repository.root) as url:
        report = check_repository(url, [repository.public_key], now=NOW, budget=0)
    assert [p.place for p in report.errors] == ["/plain/hello.txt"]


@pytest.mark.parametrize(
    ("size", "compressed", "text"),
    [
        (12, True, ""),
        (13, True, "has 12 bytes, the entry says 13"),
        (11, True, "has 12 bytes, the entry says 11"),
        (0, True, "longer than the 0"),
        (10**8, True, "has 12 bytes, the entry says 100000000"),
        (12, False, "has 20 bytes, the entry says 12"),
        (20, False, ""),
    ],
)
def test_content_is_compared_with_the_size_of_the_entry(
    tmp_path: Path, size: int, compressed: bool, text: str
) -> None:
    stored = zlib.compress(b"hello world\n")
    assert len(stored) == 20
    value = ContentHash.of(stored, HashAlgorithm.SHA1)
    path = tmp_path / value.path(Suffix.DATA)
    path.parent.mkdir(parents=True)
    path.write_bytes(stored)
    claim = Claim(value, Suffix.DATA, size, compressed)
    found = check_content(open_origin(tmp_path), claim)
    assert text in found.text
    assert bool(text) == bool(found.text)
    assert found.stored == len(stored)
    only_looked = check_presence(open_origin(tmp_path), claim)
    assert bool(only_looked.text) == (size == 10**8 or (not compressed and size != 20))
    assert only_looked.stored == 0


def test_scrub_checks_the_trees_of_tags(tmp_path: Path) -> None:
    """Stock check looks at the published revision only."""
    repository = Damaged(tmp_path)
    first = ContentHash.parse("2fe1626016b1822c4b8d16bd57caae5f821302be")
    current = _hashes(repository, repository.manifest().root_hash)
    gone = min(_hashes(repository, first) - current)
    (repository.root / ContentHash(gone).path(Suffix.DATA)).unlink()
    assert repository.check().problems == []
    report = repository.check(scrub=True)
    assert [p.text for p in report.errors] == [
        f"object {ContentHash(gone).path(Suffix.DATA)} is missing"
    ]


def _hashes(repository: Damaged, root: ContentHash) -> set[bytes]:
    report = Report()
    examined = examine_catalog(repository.get(root, Suffix.CATALOG), "", report)
    assert examined is not None
    assert report.problems == []
    return {claim.hash.digest for claim in examined.claims}


def test_a_hard_link_group_is_accepted(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    repository.edit_catalog(
        "",
        f"UPDATE catalog SET hardlinks = 4294967298 WHERE {at('/plain/hard1')} "
        f"OR {at('/plain/hard2')}",
    )
    assert repository.check().problems == []


def test_a_catalog_of_an_older_server_is_accepted(tmp_path: Path) -> None:
    """Schema revision 6, as 2.11 writes it, and the upgrade of such a catalog to revision 7."""
    repository = Damaged(tmp_path)
    old = "ALTER TABLE catalog DROP COLUMN mtimens; UPDATE properties SET value = {} WHERE key = "
    old += "'schema_revision'"
    for prefix in ("", "/nested"):
        repository.edit_catalog(prefix, old.format(6))
    assert repository.check().problems == []
    repository.edit_catalog(
        "",
        "ALTER TABLE catalog ADD mtimens INTEGER;"
        "UPDATE properties SET value = 7 WHERE key = 'schema_revision'",
    )
    assert repository.check().problems == []


def test_external_files_are_counted_and_not_looked_for(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    repository.edit_catalog(
        "",
        f"UPDATE catalog SET flags = 132, hash = x'{'77' * 20}' WHERE {at('/plain/hello.txt')};"
        "UPDATE statistics SET value = 1 WHERE counter = 'self_external';"
        "UPDATE statistics SET value = 12 WHERE counter = 'self_external_file_size';",
    )
    assert repository.check().problems == []


def test_names_that_are_not_utf8_are_fine(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    from_name, to_name = b"/plain/hello.txt", b"/plain/\xff\n'"
    first, second = key(to_name)
    repository.edit_catalog(
        "",
        f"UPDATE catalog SET name = CAST(x'{to_name[7:].hex()}' AS TEXT), md5path_1 = {first}, "
        f"md5path_2 = {second} WHERE {at(from_name.decode())}",
    )
    assert repository.check().problems == []
    path = repository.object_file(repository.row_hash(os.fsdecode(to_name)), Suffix.DATA)
    path.unlink()
    assert [p.place for p in repository.check().errors] == [os.fsdecode(to_name)]


@pytest.mark.parametrize("seed", range(150))
def test_garbage_never_crashes_the_check(seed: int) -> None:
    """Flip, cut and shuffle bytes of each kind of database; whatever is said, it is a report."""
    chance = random.Random(seed)
    repository = vector() / "repo"
    manifest = parse_manifest((repository / ".cvmfspublished").read_bytes())[0]
    assert manifest.history is not None
    sources = [
        zlib.decompress((repository / manifest.root_hash.path(Suffix.CATALOG)).read_bytes()),
        zlib.decompress((repository / manifest.history.path(Suffix.HISTORY)).read_bytes()),
        (repository / ".cvmfsreflog").read_bytes(),
    ]
    for number, source in enumerate(sources):
        data = bytearray(source)
        for _ in range(chance.choice([1, 5, 50, 500])):
            data[chance.randrange(20, len(data))] = chance.randrange(256)
        if chance.random() < 0.1:
            del data[chance.randrange(len(data)) :]
        report = Report()
        if number == 0:
            examine_catalog(bytes(data), "", report)
        elif number == 1:
            examine_history(bytes(data), manifest, lambda value, kind: bool(value), report)
        else:
            examine_reflog(
                bytes(data), manifest, lambda value, kind: bool(value), report, now=1795170600
            )
        assert isinstance(report.ok, bool)


@pytest.mark.parametrize("name", [".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog"])
def test_garbage_in_the_root_directory_is_a_problem_of_that_file(tmp_path: Path, name: str) -> None:
    repository = Damaged(tmp_path)
    for data in (b"", b"\n", b"--\n", b"\n--\n\n", os.urandom(3000), b"C\n--\n\n\0", bytes(100)):
        (repository.root / name).unlink()
        (repository.root / name).write_bytes(data)
        assert name in {p.place for p in repository.check().errors}
    (repository.root / name).unlink()
    (repository.root / name).mkdir()
    assert name in {p.place for p in repository.check().errors}


@pytest.mark.parametrize("name", ["data", "data/2f"])
def test_what_cannot_be_listed_is_a_problem_of_it(tmp_path: Path, name: str) -> None:
    repository = Damaged(tmp_path)
    shutil.rmtree(repository.root / name)
    (repository.root / name).symlink_to(name.rpartition("/")[2])  # leads to itself
    told: list[Advance] = []
    problems = {p.place: p.text for p in repository.check(scrub=True, progress=told.append).errors}
    assert problems[name] in (
        "cannot be listed: Too many levels of symbolic links",
        "does not belong below data",
    )


def test_an_empty_directory_and_an_absent_server_are_reported(tmp_path: Path) -> None:
    report = check_repository(tmp_path, [], now=NOW)
    assert [p.place for p in report.errors] == [".cvmfspublished"]
    with served(tmp_path) as url:
        pass
    report = check_repository(url, [], now=NOW)
    assert [p.place for p in report.errors] == [".cvmfspublished"]


def test_an_unusable_location_or_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        check_repository("s3://bucket/prefix", [], now=NOW)
    with pytest.raises(RepositoryError):
        check_repository(tmp_path, [tmp_path / "none.pub"], now=NOW)


def test_progress_is_told_with_a_total_that_is_reached() -> None:
    told: list[Advance] = []
    directory = vector() / "repo"
    check_repository(directory, [public_key()], now=NOW, scrub=True, progress=told.append)
    assert {advance.what for advance in told} == {"entries", "objects"}
    objects = [advance for advance in told if advance.what == "objects"]
    assert [advance.done for advance in objects] == sorted({advance.done for advance in objects})
    files = [path for path in (directory / "data").rglob("*") if path.is_file()]
    last = objects[-1]
    assert (last.done, last.total) == (len(files), len(files))
    size = sum(path.stat().st_size for path in files)
    assert (last.done_bytes, last.total_bytes) == (size, size)


def test_progress_over_http_has_no_total() -> None:
    told: list[Advance] = []
    with served(vector() / "repo") as url:
        check_repository(url, [public_key()], now=NOW, scrub=True, progress=told.append)
    assert {advance.total for advance in told} == {0}
    assert max(advance.done for advance in told if advance.what == "objects") > 15


# processes


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use processes from the first object on."""
    monkeypatch.setattr(check_objects, "COST_OF_PROCESSES", 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("eager")
def test_processes_find_what_threads_find(tmp_path: Path, name: str) -> None:
    repository = Damaged(tmp_path, name)
    sound = repository.check(scrub=True, threads=2)
    assert sound.problems == []
    objects = sorted(
        path
        for path in (repository.root / "data").rglob("*")
        if path.is_file() and path.stat().st_size < 100_000
    )
    for path in objects:
        if not path.name.endswith(("C", "H", "X", "M")):
            path.write_bytes(path.read_bytes() + b"x")
    (repository.root / "data" / "ab").mkdir(exist_ok=True)
    (repository.root / "data" / "ab" / ("0" * 38)).write_bytes(b"x")
    with_processes = repository.check(scrub=True, threads=2)
    with_one_thread = repository.check(scrub=True, threads=1)
    assert len(with_processes.errors) > 10
    assert set(with_processes.problems) == set(with_one_thread.problems)
    assert with_processes.counts == with_one_thread.counts
    only_looked_for = repository.check(budget=0, threads=2)
    assert only_looked_for.problems == []


def test_a_process_that_is_killed_is_an_error_and_not_a_sound_repository(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    process = CheckProcess(store.description())
    name = "data/ab/" + "0" * 38
    assert process.ask("hash", [(name,)])[0].text.endswith("is missing")
    process._process.kill()
    with pytest.raises(RepositoryError, match="was killed by signal 9"):
        process.ask("hash", [(name,)])
    process.close()


@pytest.mark.usefixtures("eager")
def test_an_interrupted_check_leaves_no_process_behind() -> None:
    before = _children()
    during: set[str] = set()

    def interrupt(advance: Advance) -> None:
        during.update(_children() - before)
        if during:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_repository(
            vector() / "repo", [public_key()], now=NOW, scrub=True, threads=2, progress=interrupt
        )
    assert during
    assert not _children() & during


def _children() -> set[str]:
    """The processes this one has started, whichever of its threads did."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {number for path in tasks for number in path.read_text().split()}


def test_scrub_of_an_open_store_lists_and_hashes_and_leaves_it_open(tmp_path: Path) -> None:
    """What is no directory is listed shard by shard."""
    repository = Damaged(tmp_path)

    class Remote(LocalStore):
        closed = False

        def close(self) -> None:
            self.closed = True

    class Other:
        """The store without being one of a directory."""

        def __init__(self, store: LocalStore) -> None:
            self.size, self.pieces, self.close = store.size, store.pieces, store.close
            self.read_many, self.objects = store.read_many, store.objects

    store = Remote(repository.root)
    keys = [repository.public_key]
    options = {"now": NOW, "scrub": True}
    told: list[Advance] = []
    for subject in (store, Other(store)):
        report = check_repository(subject, keys, progress=told.append, **options)  # type: ignore[arg-type]
        assert report.problems == []
        assert report.counts["objects hashed"] > 5
        assert told[-1].done == told[-1].total > 20
    (repository.root / "data" / "de" / "notes.txt").write_bytes(b"")
    flipped = next((repository.root / "data" / "de").glob("*C"))
    flipped.write_bytes(flipped.read_bytes()[:-1])
    for subject in (store, Other(store)):
        report = check_repository(subject, keys, **options)  # type: ignore[arg-type]
        texts = {p.place: p.text for p in report.errors}
        assert texts["data/de/notes.txt"] == "is not the name of an object"
        assert "damaged" in texts[f"data/de/{flipped.name}"]
    assert not store.closed


def test_a_report_stays_bounded_and_keeps_an_error() -> None:
    report = Report()
    for number in range(MAX_PROBLEMS + 5):
        report.warning(f"/{number}", "x")
    assert report.ok
    report.error("/bad", "y")
    assert len(report.problems) == MAX_PROBLEMS
    assert report.dropped == 6
    assert [p.place for p in report.errors] == ["/bad"]
