"""What every sink of notifications promises, and what each does on its own."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cvmfs_publish.config import MailAddress, NotifyConfig, WebUrl
from cvmfs_publish.errors import PublishError
from cvmfs_publish.watch.events import Event
from cvmfs_publish.watch.notify import Sink
from cvmfs_publish.watch.sinks import SINKS
from tests.fakes.mail_server import MailServer, mail_server
from tests.fakes.web_server import WebServer, web_server

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
SECRET = "a secret of many letters"
HOSTILE = "x\r\nBcc: evil@example.org\r\n\r\n.\r\n$(id)\x00\udcff'\"`;|ü"


def event(number: int, **changes: Any) -> Event:  # noqa: ANN401
    made = Event(
        at=NOW,
        kind="image-failed",
        subject="ghcr.io/a/b:1",
        message=f"message {number}",
        details={"hint": "try again"},
        owner="owner@example.org",
        number=number,
    )
    return replace(made, **changes)


@dataclass
class Receiver:
    """A sink, and the other side of it."""

    sink: Sink
    told: Callable[[], list[int]]  # numbers of the events that arrived, in order
    break_it: Callable[[], None]
    mend_it: Callable[[], None]


def file_receiver(tmp_path: Path, _: WebServer, __: MailServer) -> Receiver:
    folder = tmp_path / "log"
    folder.mkdir()
    path = folder / "events.jsonl"

    def told() -> list[int]:
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["number"] for line in lines]

    away = tmp_path / "away"

    def break_it() -> None:
        folder.rename(away)

    def mend_it() -> None:
        away.rename(folder)

    sink = SINKS["file"](NotifyConfig(file=path), "r.example.org")
    return Receiver(sink, told, break_it, mend_it)


def webhook_receiver(tmp_path: Path, web: WebServer, _: MailServer) -> Receiver:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o400)
    config = NotifyConfig(webhook=WebUrl(f"{web.url}/hook?x=1"), secret_file=secret)

    def told() -> list[int]:
        bodies = [json.loads(asked.body) for asked in web.asked]
        return [each["number"] for body in bodies for each in body["events"]]

    def break_it() -> None:
        web.status = 500

    def mend_it() -> None:
        web.status = 204
        web.asked.clear()

    return Receiver(SINKS["webhook"](config, "r.example.org"), told, break_it, mend_it)


def mail_config(mail: MailServer, **changes: Any) -> NotifyConfig:  # noqa: ANN401
    config = NotifyConfig(
        email=("owner", MailAddress("admin@example.org")),
        sender=MailAddress("publisher@example.org"),
        server=f"127.0.0.1:{mail.port}",
        timeout=timedelta(seconds=5),
    )
    return replace(config, **changes)


def mail_receiver(_: Path, __: WebServer, mail: MailServer) -> Receiver:
    def told() -> list[int]:
        letters = [each for each in mail.letters if each.recipients == ["admin@example.org"]]
        texts = [str(letter.message.get_payload()) for letter in letters]
        words = " ".join(texts).split()
        return [int(words[at + 1]) for at, word in enumerate(words) if word == "message"]

    def break_it() -> None:
        mail.greeting = "421 later"

    def mend_it() -> None:
        mail.greeting = "220 test"

    return Receiver(SINKS["email"](mail_config(mail), "r.example.org"), told, break_it, mend_it)


def program_receiver(tmp_path: Path, _: WebServer, __: MailServer) -> Receiver:
    program, out, broken = tmp_path / "tell", tmp_path / "out", tmp_path / "broken"
    fails = f"[ ! -e {broken} ] || {{ echo oops >&2; exit 3; }}"
    program.write_text(f'#!/bin/sh\n{fails}\ncat >> "$1"\n')
    program.chmod(0o755)

    def told() -> list[int]:
        text = out.read_text() if out.exists() else ""
        decoder, at, numbers = json.JSONDecoder(), 0, []
        while at < len(text):
            body, at = decoder.raw_decode(text, at)
            numbers += [each["number"] for each in body["events"]]
        return numbers

    config = NotifyConfig(program=(str(program), str(out)), timeout=timedelta(seconds=5))
    return Receiver(
        SINKS["program"](config, "r.example.org"), told, broken.touch, lambda: broken.unlink()
    )


RECEIVERS = {
    "file": file_receiver,
    "webhook": webhook_receiver,
    "email": mail_receiver,
    "program": program_receiver,
}


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as running:
        running.status = 204
        yield running


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with mail_server() as running:
        yield running


@pytest.fixture(params=sorted(SINKS))
def receiver(
    request: pytest.FixtureRequest, tmp_path: Path, web: WebServer, mail: MailServer
) -> Receiver:
    return RECEIVERS[request.param](tmp_path, web, mail)


# ---------------------------------------------------------------- the contract


def test_every_sink_has_a_receiver() -> None:
    assert RECEIVERS.keys() == SINKS.keys()


def test_events_arrive_in_order(receiver: Receiver) -> None:
    receiver.sink.send([event(1), event(2)], NOW)
    receiver.sink.send([event(3)], NOW)
    assert receiver.told() == [1, 2, 3]


def test_a_sink_that_fails_says_so_and_works_again_later(receiver: Receiver) -> None:
    receiver.break_it()
    with pytest.raises(PublishError) as caught:
        receiver.sink.send([event(1)], NOW)
    assert caught.value.exit_code == 3
    receiver.mend_it()
    receiver.sink.send([event(1), event(2)], NOW)
    assert receiver.told() == [1, 2]


def test_nothing_in_an_event_is_obeyed(receiver: Receiver, mail: MailServer) -> None:
    nasty = event(1, kind=HOSTILE, subject=HOSTILE, details={HOSTILE: HOSTILE, "hint": HOSTILE})
    receiver.sink.send([replace(nasty, message=f"message 1 {HOSTILE}")], NOW)
    assert receiver.told() == [1]
    assert "evil@example.org" not in mail.recipients()


def test_a_name_is_the_same_after_a_restart(receiver: Receiver) -> None:
    assert receiver.sink.name
    assert SECRET not in receiver.sink.name
    assert SECRET not in repr(receiver.sink)


# ---------------------------------------------------------------- each its own


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    sink = SINKS["file"](NotifyConfig(file=path), "r")
    sink.send([event(1)], NOW)
    write, calls = os.write, iter([3])

    def write_a_little(descriptor: int, data: bytes) -> int:
        for size in calls:
            return write(descriptor, data[:size])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_a_little)
        with pytest.raises(PublishError, match="No space left"):
            sink.send([event(2)], NOW)
    sink.send([event(2)], NOW)
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_log_that_is_renamed_away_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = SINKS["file"](NotifyConfig(file=path), "r")
    sink.send([event(1)], NOW)
    path.rename(tmp_path / "events.jsonl.1")
    sink.send([event(2)], NOW)
    assert json.loads(path.read_text()) == {
        "number": 2,
        "at": "2026-11-29T12:00:00+00:00",
        "kind": "image-failed",
        "subject": "ghcr.io/a/b:1",
        "message": "message 2",
        "owner": "owner@example.org",
        "details": {"hint": "try again"},
    }


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PublishError):
        SINKS["file"](NotifyConfig(file=tmp_path / "pipe"), "r").send([event(1)], NOW)


def test_what_is_posted_is_signed_with_its_time(tmp_path: Path, web: WebServer) -> None:
    receiver = webhook_receiver(tmp_path, web, MailServer())
    receiver.sink.send([event(1)], NOW)
    receiver.sink.send([event(1)], NOW + timedelta(minutes=1))
    first, second = web.asked
    signed = b"%d." % NOW.timestamp() + first.body
    wanted = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert first.headers["x-signature-256"] == f"sha256={wanted}"
    assert first.headers["x-delivery"] == second.headers["x-delivery"]
    assert first.headers["x-signature-256"] != second.headers["x-signature-256"]
    assert first.path == "/hook?x=1"


def test_a_url_that_hangs_or_redirects_is_a_failure(web: WebServer) -> None:
    quick = NotifyConfig(webhook=WebUrl(web.url), timeout=timedelta(seconds=1))
    sink = SINKS["webhook"](replace(quick), "r")
    web.status, web.headers = 302, {"Location": "http://127.0.0.1:1/"}
    with pytest.raises(PublishError, match="answered 302"):
        sink.send([event(1)], NOW)
    web.status, web.body, web.pause = 200, b"x", 3.0
    with pytest.raises(PublishError, match="timed out"):
        sink.send([event(1)], NOW)


def parsed(mail: MailServer) -> Sequence[Any]:
    return [message_from_bytes(letter.data, policy=default) for letter in mail.letters]


def test_everybody_gets_one_message_with_what_concerns_them(mail: MailServer) -> None:
    events = [event(1), event(2, owner="other@example.org"), event(3), event(4, owner="a group")]
    SINKS["email"](mail_config(mail), "r.example.org").send(events, NOW)
    subjects = {letter["To"]: letter["Subject"] for letter in parsed(mail)}
    assert subjects == {
        "admin@example.org": "r.example.org: message 1 (and 3 more)",
        "owner@example.org": "r.example.org: message 1 (and 1 more)",
        "other@example.org": "r.example.org: message 2",
    }
    letter = parsed(mail)[0]
    assert letter["From"] == "publisher@example.org"
    assert letter["Date"].datetime == NOW
    assert letter["Auto-Submitted"] == "auto-generated"
    assert "hint: try again" in letter.get_content()


def test_an_address_that_does_not_exist_stops_no_other(mail: MailServer) -> None:
    mail.refused["owner@example.org"] = 550
    SINKS["email"](mail_config(mail), "r").send([event(1)], NOW)
    assert mail.recipients() == ["admin@example.org"]


def test_who_has_got_a_message_does_not_get_it_again(mail: MailServer) -> None:
    mail.refused["owner@example.org"] = 450  # later
    sink = SINKS["email"](mail_config(mail), "r")
    for _ in range(2):
        with pytest.raises(PublishError, match="450"):
            sink.send([event(1)], NOW)
    mail.refused.clear()
    sink.send([event(1), event(2)], NOW)
    told = [(letter["To"], letter["Subject"]) for letter in parsed(mail)]
    assert sorted(told) == [
        ("admin@example.org", "r: message 1"),
        ("admin@example.org", "r: message 2"),
        ("owner@example.org", "r: message 1 (and 1 more)"),
    ]


def test_many_events_are_one_message_of_bounded_length(mail: MailServer) -> None:
    events = [event(number, message="m" * 10_000) for number in range(1, 300)]
    SINKS["email"](mail_config(mail, email=("owner",)), "r").send(events, NOW)
    (letter,) = mail.letters
    assert len(letter.data) < 200_000
    assert b"and 199 more" in letter.data


def test_events_of_nobody_cost_no_connection(mail: MailServer) -> None:
    mail.greeting = "421 nobody may come"
    SINKS["email"](mail_config(mail, email=("owner",)), "r").send([event(1, owner="")], NOW)


def test_a_mail_server_that_says_nothing_is_a_failure(mail: MailServer) -> None:
    mail.silent = True
    config = mail_config(mail, timeout=timedelta(seconds=1))
    with pytest.raises(PublishError, match="timed out"):
        SINKS["email"](config, "r").send([event(1)], NOW)


def test_no_mail_goes_out_unencrypted_where_that_is_asked_for(mail: MailServer) -> None:
    with pytest.raises(PublishError, match="STARTTLS"):
        SINKS["email"](mail_config(mail, starttls=True), "r").send([event(1)], NOW)
    assert mail.letters == []


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return path, context


def test_a_login_is_sent_encrypted_to_a_server_that_proves_its_name(
    tmp_path: Path, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, mail.tls = certificate(tmp_path)
    password = tmp_path / "password"
    password.write_text("secret")
    password.chmod(0o400)
    config = mail_config(
        mail,
        server=f"localhost:{mail.port}",
        starttls=True,
        username="me",
        password_file=password,
    )
    with pytest.raises(PublishError, match="certificate"):
        SINKS["email"](config, "r").send([event(1)], NOW)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    SINKS["email"](config, "r").send([event(1)], NOW)
    assert {(letter.is_encrypted, letter.login) for letter in mail.letters} == {(True, "me secret")}


def test_a_program_gets_no_shell_and_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    program, out = tmp_path / "tell", tmp_path / "out"
    program.write_text(f'#!/bin/sh\ncat > /dev/null\n{{ env; echo "$@"; }} > {out}\n')
    program.chmod(0o755)
    config = NotifyConfig(program=(str(program), "a b", "$(id)", ";"))
    SINKS["program"](config, "r").send([event(1)], NOW)
    text = out.read_text()
    assert "secret" not in text
    assert text.endswith("a b $(id) ;\n")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\nexec sleep 100\n", "took longer than 1s"),
        ("#!/bin/sh\nprintf 'no\\033[2J way' >&2; exit 7\n", "ended with 7: no?[2J way"),
        ("#!/no/such/interpreter\n", "cannot be started"),
        ("#!/bin/sh\nexit 0\n", ""),  # that it reads nothing is its own matter
    ],
)
def test_a_program_that_fails_is_told_and_ended(tmp_path: Path, script: str, message: str) -> None:
    program = tmp_path / "tell"
    program.write_text(script)
    program.chmod(0o755)
    sink = SINKS["program"](
        NotifyConfig(program=(str(program),), timeout=timedelta(seconds=1)), "r"
    )
    events = [event(1, message="x" * 1_000_000)]
    if not message:
        sink.send(events, NOW)
        return
    with pytest.raises(PublishError) as caught:
        sink.send(events, NOW)
    assert message in str(caught.value)
