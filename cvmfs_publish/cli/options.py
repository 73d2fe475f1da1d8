"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

ImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="As it was published, such as ghcr.io/a/b:1.")
]
PlatformOption = Annotated[
    str | None,
    typer.Option(metavar="OS/ARCH[/VARIANT]", help="Platform of the image, else linux/amd64."),
]
