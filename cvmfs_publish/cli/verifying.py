"""`verify`: is what is published what the registry has?"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cvmfs_publish.cli.assembly import open_tree
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.images import find_publication
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.options import FromOption, ImageArgument, KeyOption, PlatformOption
from cvmfs_publish.cli.output import format_bytes, plural
from cvmfs_publish.cli.publishing import (
    open_reporter,
    open_source,
    publish_settings,
)
from cvmfs_publish.cli.reading import open_reading
from cvmfs_publish.config import Config, find_config
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.origin import Origin
from cvmfs_publish.publish import PublishSettings
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.compare import Difference
from cvmfs_publish.repository.layouts import NamePlacement, place_name
from cvmfs_publish.repository.native.reader import Snapshot
from cvmfs_publish.repository.native.repository import SnapshotView
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.trust import Trust, load_rules
from cvmfs_publish.verify import Verification, check_identity, find_in_mount, verify_image

SHOWN = 50  # differences in text; --json has them all

app = command_app()


@app.command()
def verify(
    context: typer.Context,
    image: ImageArgument,
    name: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="NAME", help="The name under which IMAGE, a file or URL, is published."
        ),
    ] = None,
    mount: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Compare what is mounted here, /cvmfs/NAME, or an exported image.",
        ),
    ] = None,
    platform: PlatformOption = None,
    location: FromOption = None,
    keys: KeyOption = None,
) -> int:
    """Compare a published image with where it came from.

    Fetches all layers again, prepares the image anew and compares it entry by entry with what is
    published: types, modes, owners, times, links, attributes and every byte of every file.  The
    manifest is asked for by its digest, so it does not matter where the tag is now.  Exit code 4
    says that there are differences.  With a file or URL in place of the name (sif:FILE --as NAME)
    it is compared with that, wherever it came from.

    Example: cvmfs-publish verify ghcr.io/a/b:1
    """
    session = session_of(context)
    reference = _locate(session, image, name)
    wanted = Platform.parse(platform) if platform else Platform.default()
    mount = mount or _own_tree(session, location)
    found = _record_in_mount(session, mount, place_name(reference, wanted))
    needs_config = location is None and found is None
    config = _find_config(session, needs_config)
    settings = publish_settings(config) if config is not None else PublishSettings()
    folder: Path | None = None
    with ExitStack() as stack:
        reporter = stack.enter_context(open_reporter(session.out))
        snapshot: Snapshot | None = None
        record = found
        if record is None or mount is None:
            snapshot = stack.enter_context(open_reading(session, location, keys))
            record = find_publication(SnapshotView(snapshot), str(reference), platform)
        check_identity(record, reference, wanted)
        if mount is not None:
            folder = find_in_mount(session.cwd / mount, record)
        places = [image, record.source] if record.source else [image]
        source = stack.enter_context(open_source(config, session.environ, places, session.cwd))
        result = verify_image(
            record,
            source,
            settings,
            snapshot=snapshot,
            folder=folder,
            reporter=reporter,
            reference=reference if reference.origin is not None else None,
            trust=Trust(load_rules(config.trust) if config is not None else (), source),
        )
    _tell(session, result, folder)
    return IntegrityError.exit_code if result.differences else 0


def _locate(session: Session, image: str, name: str | None) -> Reference:
    """Return the image that is meant; an archive may have to be asked what it is called."""
    if Origin.parse(image) is None and name is None:
        return Reference.parse(image)
    config = _find_config(session, needed=False)
    with open_source(config, session.environ, [image], session.cwd) as source:
        return source.locate(image, name or "")


def _own_tree(session: Session, location: str | None) -> Path | None:
    """Return where the configured repository is seen as files; None if it is native."""
    config = _find_config(session, needed=False) if location is None else None
    if config is None or config.repository.backend == "native":
        return None
    return Path(open_tree(config).location)


def _record_in_mount(
    session: Session, mount: Path | None, names: NamePlacement
) -> Publication | None:
    """Return the record as it is seen in a mounted repository: a worker has nothing else."""
    if mount is None:
        return None
    path = session.cwd / mount / names.publication
    try:
        return Publication.from_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _find_config(session: Session, needed: bool) -> Config | None:
    """Return the configuration; None if there is none and none is needed."""
    try:
        find_config(session.config_path, session.environ, session.cwd)
    except InputError:
        if needed:
            raise
        return None
    return session.config


def _tell(session: Session, result: Verification, folder: Path | None) -> None:
    record = result.publication
    session.out.result(
        {
            "reference": record.reference,
            "platform": record.platform,
            "digest": record.digest,
            "manifest_digest": record.manifest_digest,
            "sandbox": record.sandbox,
            "mount": str(folder) if folder is not None else None,
            "ok": not result.differences,
            "entries": result.entries,
            "bytes": result.bytes,
            "recipe": {
                "published": record.recipe,
                "present": result.present_recipe,
                "same": result.is_same_recipe,
            },
            "differences": [difference._asdict() for difference in result.differences],
            "not_compared": [each._asdict() for each in result.uncompared],
        },
        "\n".join(_lines(result)),
    )
    if not result.is_same_recipe:
        session.out.note(
            "the image was prepared with other settings, or by another version, than this one has; "
            "differences may come of that: `publish --force` prepares it as it would be now"
        )


def _lines(result: Verification) -> list[str]:
    record, found = result.publication, result.differences
    lines = [_line(difference) for difference in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"… and {plural(len(found) - SHOWN, 'more difference')}; --json lists them")
    skipped = result.uncompared
    lines += [f"not compared: {each.path or 'all'}: {each.reason}" for each in skipped[:SHOWN]]
    if len(skipped) > SHOWN:
        lines.append(f"… and {len(skipped) - SHOWN:,} more not compared; --json lists them")
    count = plural(len(found), "difference") if found else "no difference"
    compared = f"{plural(result.entries, 'entry', 'entries')}, {format_bytes(result.bytes)}"
    lines.append(f"{record.reference} ({record.platform}): {count} in {compared}")
    return lines


def _line(difference: Difference) -> str:
    path, what, expected, found = difference
    path = path if path.startswith("/") else f"/{path}"
    if not expected or not found:
        return f"{path}: {what}: {expected or found}"
    return f"{path}: {what} is {found}, expected {expected}"
