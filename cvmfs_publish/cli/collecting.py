"""`gc`: remove what no revision that anybody may still use consists of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from cvmfs_publish.cli.assembly import open_native, open_tree
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.fallback import open_own_store, tell_copy
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import (
    format_bytes,
    format_fields,
    format_minute,
    format_time,
    plural,
)
from cvmfs_publish.cli.progress import StatusLine
from cvmfs_publish.cli.several import in_each
from cvmfs_publish.content.hashes import Suffix
from cvmfs_publish.repository.native.gc import (
    DEFAULT_GRACE,
    DEFAULT_REVISIONS,
    Collector,
    Plan,
    Retention,
    Total,
)
from cvmfs_publish.settings import parse_duration

SHOWN_STRAYS = 10  # lines; --json has more of them
_DEFAULT_GRACE = f"{DEFAULT_GRACE.days}d"
_KINDS = {
    Suffix.DATA: "files",
    Suffix.CHUNK: "chunks",
    Suffix.CATALOG: "catalogs",
    Suffix.HISTORY: "histories",
    Suffix.CERTIFICATE: "certificates",
    Suffix.METAINFO: "metainfo",
}

app = command_app()


@app.command()
def gc(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed; change nothing.")
    ] = False,
    grace: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long to keep what was replaced: 0, 45s, 15m, 2h, 30d or 4w.",
        ),
    ] = _DEFAULT_GRACE,
    keep_revisions: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Predecessors of the published revision to keep, however old."
        ),
    ] = DEFAULT_REVISIONS,
) -> int:
    """Remove what nothing names.

    First the sandboxes that no public name has led to for longer than the grace and no pin keeps;
    then the objects that no kept revision needs.  Kept are the published revision, what it replaced
    within the grace, so many predecessors, and every tag.  Objects that aborted publishes left
    behind go too.  Prints the plan that it executes; -v names every object.  If anything that is to
    be kept cannot be read, nothing is removed.

    Example: cvmfs-publish gc --dry-run --grace 30d
    """
    retention = Retention(_duration(grace), keep_revisions)
    return in_each(session_of(context), lambda one: _gc(one, retention, dry_run=dry_run))


def _gc(session: Session, retention: Retention, *, dry_run: bool) -> None:
    if session.config.repository.backend != "native":
        if retention.revisions != DEFAULT_REVISIONS:
            open_native(session.config, "--keep-revisions is")
        _collect_tree(session, retention.grace, dry_run=dry_run)
        return
    repository = open_native(session.config, "gc is")
    document: dict[str, Any] = {}
    now = int(datetime.now(UTC).timestamp())
    with StatusLine(session.out) as status:

        def planned(plan: Plan) -> None:
            """Tell the plan while its names are there, before anything is removed."""
            status.clear()
            document.update(_document(plan, retention, dry_run=dry_run))
            if session.out.as_json:
                document["objects"] = list(plan.all_names())
            else:
                session.out.result({}, _text(session, plan))

        with open_own_store(session.config) as artefacts:
            collector = Collector(
                repository,
                session.config.state,
                lambda what, count: status.show(f"{count:,} {what}"),
                artefacts,
            )
            if dry_run:
                plan = collector.plan(now, retention, planned)
            else:
                plan = collector.collect(now, retention, planned)
                tell_copy(session, repository, artefacts)
    session.out.result(document, _end(plan, dry_run=dry_run))


def _collect_tree(session: Session, grace: timedelta, *, dry_run: bool) -> None:
    """Collect where the tree is seen as files."""
    repository = open_tree(session.config)
    now = datetime.now(UTC)
    found = repository.plan(now, grace) if dry_run else repository.collect(now, grace)
    revision = repository.revision()
    sandboxes = [
        {"path": f"/{removal.path}", "why": removal.why, "since": format_time(removal.since)}
        for removal in found.removals
    ]
    lines = [
        f"sandbox  /{removal.path}  {removal.why} since {format_minute(removal.since)}"
        for removal in found.removals
    ]
    word = "would remove" if dry_run else "removed"
    lines.append(
        f"{word}  {plural(len(sandboxes), 'sandbox', 'sandboxes')}, "
        f"{plural(found.trash, 'replaced folder')}, "
        f"{plural(found.files, 'file')} no longer shared ({format_bytes(found.file_bytes)}), "
        f"{plural(found.objects, 'object')} of layers ({format_bytes(found.object_bytes)})"
    )
    session.out.result(
        {
            "repository": repository.name,
            "revision": revision.number,
            "root_hash": revision.root_hash,
            "dry_run": dry_run,
            "grace_seconds": int(grace.total_seconds()),
            "sandboxes": sandboxes,
            "replaced": found.trash,
            "files": {"count": found.files, "bytes": found.file_bytes},
            "objects": {"count": found.objects, "bytes": found.object_bytes},
        },
        "\n".join(lines),
    )


def _duration(text: str) -> timedelta:
    return timedelta() if text == "0" else parse_duration(text)


def _document(plan: Plan, retention: Retention, *, dry_run: bool) -> dict[str, Any]:
    return {
        "repository": plan.manifest.name,
        "revision": plan.manifest.revision,
        "root_hash": str(plan.manifest.root_hash),
        "dry_run": dry_run,
        "grace_seconds": int(retention.grace.total_seconds()),
        "keep_revisions": retention.revisions,
        "sandboxes": [
            {"path": f"/{removal.path}", "why": removal.why, "since": format_time(removal.since)}
            for removal in plan.removals
        ],
        "revisions_kept": [{"root_hash": str(k.root_hash), "why": k.why} for k in plan.kept],
        "revisions_dropped": [
            {
                "revision": dropped.number,
                "root_hash": str(dropped.root_hash),
                "listed_at": format_time(_at(dropped.listed)),
            }
            for dropped in plan.dropped
        ],
        "reflog_dropped": [
            {"hash": str(ref.hash), "type": ref.type.name.lower()} for ref in plan.refs
        ],
        "removed": {
            **_total(plan.total),
            "kinds": {_KINDS[kind]: _total(total) for kind, total in _sorted(plan)},
        },
        "kept": _total(plan.reachable),
        "kept_for_now": _total(plan.recent),
        "fallback_removed": [
            {"file": artefact.name, "size": artefact.size} for artefact in plan.artefacts
        ],
        "strays": plan.strays,
        "stray_count": plan.stray_count,
    }


def _total(total: Total) -> dict[str, int]:
    return {"objects": total.objects, "bytes": total.bytes}


def _sorted(plan: Plan) -> list[tuple[Suffix, Total]]:
    return [(kind, plan.objects[kind]) for kind in _KINDS if kind in plan.objects]


def _text(session: Session, plan: Plan) -> str:
    lines = [f"{plan.manifest.name} revision {plan.manifest.revision}"]
    for removal in plan.removals:
        lines.append(
            f"sandbox /{removal.path}: {removal.why}, since {format_minute(removal.since)}"
        )
    for dropped in plan.dropped:
        number = "of unknown number" if dropped.number is None else str(dropped.number)
        lines.append(
            f"revision {number}, {format_minute(_at(dropped.listed))}, {dropped.root_hash}"
        )
    for artefact in plan.artefacts:
        lines.append(f"fallback {artefact.name}, {format_bytes(artefact.size)}")
    if session.out.verbosity:
        lines += [f"object {name}" for name in plan.all_names()]
    fields = [
        ("sandboxes to remove", f"{len(plan.removals):,}"),
        (
            "revisions to forget",
            f"{len(plan.dropped):,}, {plural(len(plan.kept), 'stays', 'stay')}",
        ),
        ("reflog entries to drop", f"{len(plan.refs):,}"),
        ("objects to remove", _amount(plan.total)),
    ]
    fields += [(f"  {_KINDS[kind]}", _amount(total)) for kind, total in _sorted(plan)]
    if plan.artefacts:
        size = sum(artefact.size for artefact in plan.artefacts)
        fields.append(("fallback files", f"{len(plan.artefacts):,}, {format_bytes(size)}"))
    fields.append(("objects that stay", _amount(plan.reachable)))
    if plan.recent.objects:
        fields.append(("too young to remove", _amount(plan.recent)))
    lines.append(format_fields(fields))
    for stray in plan.strays[:SHOWN_STRAYS]:
        lines.append(f"left alone, no object: {stray}")
    if plan.stray_count > SHOWN_STRAYS:
        lines.append(f"… and {plan.stray_count - SHOWN_STRAYS:,} more that are no objects")
    return "\n".join(lines)


def _end(plan: Plan, *, dry_run: bool) -> str:
    if plan.is_empty:
        return "nothing to remove"
    what = f"{plural(plan.total.objects, 'object')}, {format_bytes(plan.total.bytes)}"
    if plan.artefacts:
        what += f", and {plural(len(plan.artefacts), 'fallback file')}"
    return f"dry run: would remove {what}" if dry_run else f"removed {what}"


def _amount(total: Total) -> str:
    return f"{total.objects:,}, {format_bytes(total.bytes)}"


def _at(timestamp: int) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)
