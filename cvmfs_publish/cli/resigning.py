"""`resign`: the whitelist, the master key that signs it, and the key it trusts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import format_fields, format_minute, format_time
from cvmfs_publish.cli.several import in_each
from cvmfs_publish.errors import InputError
from cvmfs_publish.repository.native import request as requests
from cvmfs_publish.repository.native import resigning
from cvmfs_publish.repository.native import whitelist as whitelists
from cvmfs_publish.repository.native.resigning import Resigned
from cvmfs_publish.repository.native.whitelist import (
    DEFAULT_DAYS,
    Whitelist,
    format_fingerprint,
    parse_whitelist,
)

app = command_app()


@app.command()
def resign(
    context: typer.Context,
    days: Annotated[
        int, typer.Option(min=1, max=365, help="Days until clients stop trusting it.")
    ] = DEFAULT_DAYS,
    only: Annotated[
        bool,
        typer.Option("--only", help="Trust this publisher's certificate and no other."),
    ] = False,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Exchange the key that signs revisions for a new one.")
    ] = False,
    key_bits: Annotated[
        int | None,
        typer.Option(
            metavar="BITS", help="With --rotate: length of the new key, else that of the old."
        ),
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what has to be signed where the master key is."),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Sign such a request; needs --master-key and --out, nothing else."
        ),
    ] = None,
    master_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --sign: the master key.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --sign: the whitelist to write.")
    ] = None,
    install: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put a whitelist in place that was signed elsewhere."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --install: also one older than the present one.")
    ] = False,
) -> int:
    """Renew the whitelist before it expires.

    It says whose signatures clients accept; once it has expired they refuse new revisions.  Needs
    the master key: here, or elsewhere by --request here, --sign there and --install here.
    Certificates of other release managers stay trusted, unless --only.

    Example: cvmfs-publish resign --days 30
    """
    session = session_of(context)
    _check_together(
        {"--request": request, "--sign": sign, "--install": install},
        {
            "--master-key": (master_key, sign, "--sign"),
            "--out": (out, sign, "--sign"),
            "--force": (force, install, "--install"),
            "--key-bits": (key_bits, rotate, "--rotate"),
        },
    )
    if sign is not None:
        if rotate or only:
            raise InputError("--sign signs what the request says: leave --rotate and --only out")
        if master_key is None or out is None:
            raise InputError("--sign needs --master-key and --out")
        cwd = session.cwd
        _sign(session, cwd / sign, cwd / master_key, cwd / out, days)
        return 0
    if request is None and install is None:
        return in_each(
            session,
            lambda one: _renew(one, days, only=only, rotate=rotate, key_bits=key_bits),
            concerns=lambda config: config.repository.backend == "native",
        )
    repository = open_native(session.config, "a whitelist is")
    now = datetime.now(UTC)
    if request is not None:
        made = resigning.make_request(repository, now, only=only, new_key=rotate, bits=key_bits)
        _request(session, made, session.cwd / request)
    elif install is not None:
        if rotate or only:
            raise InputError(
                "--install takes the whitelist as it is: leave --rotate and --only out"
            )
        data = _read(session.cwd / install, "whitelist")
        _tell(session, resigning.install(repository, data, now, allow_older=force))
    return 0


def _renew(session: Session, days: int, *, only: bool, rotate: bool, key_bits: int | None) -> None:
    """Renew the whitelist, or exchange the key, with the master key that is here."""
    repository = open_native(session.config, "a whitelist is")
    now = datetime.now(UTC)
    if rotate:
        if only:
            raise InputError(
                "--rotate and --only exclude each other: until the new key has signed, both "
                "certificates must be trusted",
                hint="first `resign --rotate`, then `resign --only`",
            )
        _tell(session, resigning.rotate(repository, now, days, bits=key_bits))
    else:
        _tell(session, resigning.resign(repository, now, days, only=only))


def _check_together(
    modes: dict[str, Path | None], needs: dict[str, tuple[object, object, str]]
) -> None:
    given = [name for name, value in modes.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other")
    for name, (value, needed, needed_name) in needs.items():
        if value not in (None, False) and needed in (None, False):
            raise InputError(f"{name} without {needed_name} has no meaning")


def _request(session: Session, made: requests.Request, path: Path) -> None:
    _write(path, requests.format_request(made).encode())
    session.out.result(
        {
            "repository": made.name,
            "request": str(path),
            "certificates": [format_fingerprint(value) for value, _ in made.certificates],
        },
        str(path),
    )
    session.out.note(
        f"next, where the master key is: cvmfs-publish resign --sign {path.name} "
        f"--master-key {made.name}.masterkey --out {made.name}.whitelist"
    )


def _sign(session: Session, source: Path, master_key: Path, out: Path, days: int) -> None:
    try:
        text = _read(source, "request").decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not text, so no request") from error
    request = requests.parse_request(text, str(source))
    now = datetime.now(UTC)
    data = requests.sign_request(request, master_key, now, days)
    _write(out, data)
    signed = parse_whitelist(data)[0]
    session.out.result(
        {**_document(signed), "whitelist": str(out)},
        "signed\n"
        + format_fields(
            [
                ("repository", signed.name),
                ("valid from", format_minute(signed.created_at)),
                ("until", format_minute(signed.ends_at)),
                *(
                    ("trusts", f"{format_fingerprint(value)}  {remark}")
                    for value, remark in request.certificates
                ),
                ("whitelist", str(out)),
            ]
        ),
    )
    session.out.note(f"next, on the publisher: cvmfs-publish resign --install {out.name}")


def _document(found: Whitelist) -> dict[str, object]:
    return {
        "repository": found.name,
        "whitelist_expires_at": format_time(found.expires_at),
        "trusted_certificates": [format_fingerprint(value) for value in found.fingerprints],
    }


def _tell(session: Session, done: Resigned) -> None:
    found, plan = done.whitelist, done.plan
    dropped = [format_fingerprint(value) for value in plan.dropped] if plan is not None else []
    lines = [f"whitelist of {found.name} expires {format_minute(found.ends_at)}"]
    lines += [f"trusts         {format_fingerprint(value)}" for value in found.fingerprints]
    lines += [f"trusts no more {value}" for value in dropped]
    if done.exchanged:
        lines.append("the key is exchanged; the published revision is signed with the new one")
    session.out.result(
        {**_document(found), "dropped_certificates": dropped, "key_exchanged": done.exchanged},
        "\n".join(lines),
    )
    if plan is not None and plan.unread:
        session.out.warn(
            f"certificates of others could not be taken over from the whitelist before: "
            f"{plan.unread}"
        )
    session.expiry_told = True  # just now


def _read(path: Path, what: str) -> bytes:
    limit = whitelists.MAX_BYTES
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise InputError(f"{path} has more than {limit} bytes, so it is no {what}")
    return data


def _write(path: Path, data: bytes) -> None:
    """Never over another file: a slip of the hand must not cost a key."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise InputError(f"{path} already exists", hint="remove it, or name another file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
