"""`list`, `show`, `export`: images in the repository."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.fallback import artefact_document
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.options import FromOption, ImageArgument, KeyOption, PlatformOption
from cvmfs_publish.cli.output import (
    format_bytes,
    format_fields,
    format_minute,
    format_table,
    plural,
)
from cvmfs_publish.cli.reading import open_published, open_reading
from cvmfs_publish.cli.several import in_each
from cvmfs_publish.cli.waiting import staged_document, staged_line
from cvmfs_publish.digest import Digest
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import View
from cvmfs_publish.repository.export import export_tree
from cvmfs_publish.repository.fallback import names_of, read_lines
from cvmfs_publish.repository.foreign import ForeignName, find_foreign
from cvmfs_publish.repository.layouts import immutable_name_of
from cvmfs_publish.repository.names import get_publication
from cvmfs_publish.repository.native.repository import SnapshotView
from cvmfs_publish.repository.records import (
    Artefact,
    Publication,
    iter_publications,
    iter_staged,
    read_staged,
)
from cvmfs_publish.repository.staging import placement_of
from cvmfs_publish.sources.base import Platform

SHOWN_DIGITS = 12  # of a digest in a table, as Docker shows them
SHOWN_FINDINGS = 20  # lines of `show`; --json has them all

_FIELDS = tuple(field.name for field in fields(Publication))

app = command_app()


@app.command("list")
def list_images(context: typer.Context, location: FromOption = None, keys: KeyOption = None) -> int:
    """List the published images.

    Of the configured repository or, with --from, of any other, such as a Stratum 1.  Names
    that other programs have published there are listed after ours.

    Example: cvmfs-publish list --json
    """
    return in_each(
        session_of(context),
        lambda one: _list(one, location, keys),
        is_elsewhere=bool(location or keys),
    )


def _list(session: Session, location: str | None, keys: list[Path] | None) -> None:
    with open_published(session, location, keys) as published:
        records = list(iter_publications(published.view))
        staged = list(iter_staged(published.view))
        known = {name for record in records for name in _names(record)}
        foreign = list(find_foreign(published.view, known))
    name = published.name
    session.out.result(
        {
            "repository": name,
            "revision": published.revision,
            "images": [record_document(record) for record in records],
            "staged": [staged_document(each) for each in staged],
            "foreign": [each.to_document() for each in foreign],
        }
        if session.out.as_json
        else {},
        "" if session.out.as_json else _list_text(records, foreign),
    )
    for each in staged:
        session.out.note(staged_line(each))
    if not records and not staged:
        session.out.note(f"{name} has no images yet{' of ours' if foreign else ''}")


def _names(record: Publication) -> Iterator[RepoPath]:
    """Yield the names that lead to an image."""
    yield record.path.lstrip("/")
    reference, manifest = Reference.parse(record.reference), Digest.parse(record.manifest_digest)
    yield immutable_name_of(reference, manifest)
    if record.short_name:
        yield record.short_name.lstrip("/")


def _list_text(records: list[Publication], foreign: list[ForeignName]) -> str:
    parts = [_list_ours(records)] if records else []
    if foreign:
        rows = [
            (
                f"/{each.path}",
                each.program,
                f"/{each.target}",
                "" if each.is_there else "gone",
            )
            for each in foreign
        ]
        parts.append(format_table(("OF OTHERS", "MADE BY", "LEADS TO", ""), rows))
    return "\n\n".join(parts)


def _list_ours(records: list[Publication]) -> str:
    header: tuple[str, ...] = ("IMAGE", "PLATFORM", "DIGEST", "PUBLISHED", "ENTRIES", "SIZE")
    rows: list[tuple[str, ...]] = [
        (
            record.reference,
            record.platform,
            record.digest.partition(":")[2][:SHOWN_DIGITS],
            minute(record.published_at),
            f"{record.entries:>9,}",
            f"{format_bytes(record.content_bytes):>8}",
        )
        for record in records
    ]
    if any(record.pinned_at for record in records):
        header = (*header, "PINNED")
        pins = (("pinned" if record.pinned_at else "",) for record in records)
        rows = [(*row, *pin) for row, pin in zip(rows, pins, strict=True)]
    return format_table(header, rows)


@app.command()
def show(
    context: typer.Context,
    image: ImageArgument,
    platform: PlatformOption = None,
    location: FromOption = None,
    keys: KeyOption = None,
) -> None:
    """Show one published image in full.

    Example: cvmfs-publish show ghcr.io/a/b:1
    """
    session = session_of(context)
    with open_published(session, location, keys) as published:
        view = published.view
        record = find_publication(view, image, platform)
        line = read_lines(view).get(names_of(record)[0])
        staged = read_staged(view, placement_of(record).staged)
    artefact = line.artefact if line is not None else None
    document = {
        **record_document(record),
        "fallback": artefact_document(artefact),
        "staged": staged_document(staged),
    }
    session.out.result(document, _show_text(record, artefact))
    if staged is not None:
        session.out.note(staged_line(staged))


@app.command()
def export(
    context: typer.Context,
    image: ImageArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to make; it may exist if it is empty.")
    ],
    platform: PlatformOption = None,
    location: FromOption = None,
    keys: KeyOption = None,
) -> None:
    """Write a published image as an ordinary folder.

    For a node without CernVM-FS, or a laptop: the folder is what jobs see below /cvmfs, and
    appears complete or not at all.

    Example: cvmfs-publish export ghcr.io/a/b:1 ./sandbox
    """
    session = session_of(context)
    target = session.cwd / folder
    with open_reading(session, location, keys, "export is") as snapshot:
        record = find_publication(SnapshotView(snapshot), image, platform)
        exported = export_tree(snapshot, record.sandbox.lstrip("/"), target)
    session.out.result(
        {
            "reference": record.reference,
            "platform": record.platform,
            "digest": record.digest,
            "out": str(target),
            "entries": exported.entries,
            "bytes": exported.bytes,
            "skipped_xattrs": exported.skipped_xattrs,
        },
        f"{target}: {record.reference}, {plural(exported.entries, 'entry', 'entries')}, "
        f"{format_bytes(exported.bytes)}",
    )
    if exported.skipped_xattrs:
        skipped = plural(exported.skipped_xattrs, "extended attribute")
        session.out.note(f"{skipped} could not be set on this file system")


def find_publication(view: View, image: str, platform: str | None) -> Publication:
    """Return the record of a published image; `InputError` names what else is published."""
    wanted = Platform.parse(platform) if platform else Platform.default()
    return get_publication(view, Reference.parse(image), wanted)


def record_document(record: Publication) -> dict[str, object]:
    """Return what JSON results say about a published image: the record as it is stored."""
    document = {name: getattr(record, name) for name in _FIELDS}
    document["findings"] = [finding._asdict() for finding in record.findings]
    document["history"] = [event._asdict() for event in record.history]
    return document


def _show_text(record: Publication, artefact: Artefact | None) -> str:
    layers = record.layers
    text = format_fields(
        [
            ("image", record.reference),
            ("platform", record.platform),
            *([("source", record.source)] if record.source else []),
            ("digest", record.digest),
            ("manifest", record.manifest_digest),
            ("image id", record.image_id),
            ("path", record.path),
            ("sandbox", record.sandbox),
            (record.what, f"{minute(record.published_at)} in revision {record.revision}"),
            ("before", _past(record)),
            ("pinned", _pin(record)),
            ("content", f"{plural(record.entries, 'entry', 'entries')}, {_sizes(record)}"),
            ("fallback", _artefact(artefact)),
            *(("layer" if number == 0 else "", layer) for number, layer in enumerate(layers)),
            ("roots added", " ".join(record.roots_added) or "none"),
            ("signature", _signature(record)),
            *(("" if number else "signed by", key) for number, key in enumerate(record.signed_by)),
            ("published by", record.publisher),
        ]
    )
    findings = [f"  /{path}: {what}" for path, what in record.findings[:SHOWN_FINDINGS]]
    hidden = len(record.findings) - len(findings)
    if hidden:
        findings.append(f"  … and {hidden:,} more; --json lists them")
    return "\n".join([text, plural(len(record.findings), "finding"), *findings])


def _signature(record: Publication) -> str:
    if record.signature == "digest":
        return "none asked for, named by digest"
    return f"{record.signature}, found good" if record.signature else "not checked"


def _sizes(record: Publication) -> str:
    return f"{format_bytes(record.content_bytes)}, {format_bytes(record.stored_bytes)} stored"


def _artefact(artefact: Artefact | None) -> str:
    return f"{artefact.file}, {format_bytes(artefact.size)}" if artefact is not None else "none"


def _past(record: Publication) -> str:
    events = plural(len(record.history), "event")
    return f"{events}, which `history` tells" if record.history else "nothing"


def _pin(record: Publication) -> str:
    if not record.pinned_at:
        return "no"
    return f"since {minute(record.pinned_at)}, keeps {' '.join(record.pinned)}"


def minute(text: str) -> str:
    """A record's time for people; as it stands if another program wrote something else."""
    try:
        return format_minute(datetime.fromisoformat(text))
    except ValueError:
        return text
