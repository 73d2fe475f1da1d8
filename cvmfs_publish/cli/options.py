"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cvmfs_publish.errors import InputError

ImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="As it was published, such as ghcr.io/a/b:1.")
]
PlatformOption = Annotated[
    str | None,
    typer.Option(metavar="OS/ARCH[/VARIANT]", help="Platform of the image, else linux/amd64."),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="LOCATION",
        help="Folder or http(s) URL of any repository, instead of the configured one; needs --key.",
    ),
]
KeyOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="With --from: a public master key, NAME.pub, that is trusted; may be repeated.",
    ),
]


class Elsewhere(NamedTuple):
    """A repository that `--from` and `--key` name, whatever the configuration says."""

    location: str | Path  # an http(s) URL, or a folder
    keys: list[Path]  # public master keys


def elsewhere(location: str | None, keys: list[Path] | None, cwd: Path) -> Elsewhere | None:
    """Return what `--from` and `--key` ask for; None if they were not given.

    Raises:
        InputError: one without the other, or a URL that is not http(s).
    """
    if location is None:
        if keys:
            raise InputError(
                "--key without --from: the configured repository has its keys in `repository.keys`",
                hint="add --from LOCATION, or leave --key out",
            )
        return None
    if not keys:
        raise InputError(
            f"--from {location} needs --key FILE: without a public master key nothing that is "
            "read could be trusted",
            hint="ask the repository's owner for NAME.pub; clients have it below /etc/cvmfs/keys",
        )
    scheme, separator, _ = location.partition("://")
    if separator and scheme not in ("http", "https"):
        raise InputError(
            f"--from {location}: repositories are read from folders and http(s) URLs",
            hint="name a folder, or the URL of a Stratum 0 or Stratum 1",
        )
    paths = [cwd / key for key in keys]
    return Elsewhere(location if separator else cwd / location, paths)
