"""Find templates and site configurations: in a checkout, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

from cvmfs_publish.errors import InputError, PublishError
from cvmfs_publish.settings import Reading, nearest, read_node, read_text
from cvmfs_publish.sites.inherit import SiteFile, compose_site
from cvmfs_publish.sites.model import Site

_PACKAGE = Path(__file__).resolve().parent.parent
EXAMPLE = "example"  # explains every key; not a site


def find_data(name: str) -> Path:
    """Return the folder `templates` or `site-configs`.

    The wheel carries both below `_data`; a checkout has them at its top, beside the package.
    """
    for folder in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise PublishError(
        f"the folder {name!r} is missing from this installation ({_PACKAGE})",
        hint="install cvmfs-publish again",
    )


def templates_dir() -> Path:
    """Return the folder of templates that came with the package."""
    return find_data("templates")


def list_sites(folder: Path | None = None) -> list[str]:
    """Return the names of the site configurations in `folder`, or of those that came along."""
    folder = find_data("site-configs") if folder is None else folder
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != EXAMPLE)


def load_site(name_or_path: str, folder: Path | None = None) -> Site:
    """Return a site by name, or from a file: with a slash or ending in .yaml or .yml.

    Raises `InputError` for an unknown name, or naming file, line and key for what is in the file.
    """
    return read_site(name_or_path, folder).get()


def read_site(name_or_path: str, folder: Path | None = None) -> Reading[Site]:
    """Return a site with the file and line of each of its values, or all that is wrong with it.

    A site is named as for `load_site`; sites that came along are looked for in `folder`, if given.
    """
    shelf = _Shelf(find_data("site-configs") if folder is None else folder)
    try:
        file = shelf.open(name_or_path, Path())
        node = compose_site(file, lambda name, heir: shelf.open(name, heir.path.parent), Site)
    except InputError as exc:
        return Reading(None, (exc,), {})
    reading = read_node(Site, node, file.shown)
    site = reading.value
    if site is not None and not _is_path(name_or_path) and name_or_path not in (site.name, EXAMPLE):
        error = InputError(
            f"{file.shown}: name is {site.name!r}, the file's is {name_or_path!r}",
            hint="a site that came along is named like its file",
        )
        return Reading(None, (error,), reading.origins)
    return reading


class _Shelf:
    """The folder of the sites that came along, and how files are called in messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, name_or_path: str, base: Path) -> SiteFile:
        """Return a site file by name, or by its path relative to `base`; else `InputError`."""
        if _is_path(name_or_path):
            path = base / name_or_path
            return SiteFile(path, self.shown(path), read_text(path))
        known = list_sites(self.folder)
        if name_or_path not in (*known, EXAMPLE):
            meant = nearest(name_or_path, known)
            guess = f"; did you mean {meant!r}?" if meant else ""
            raise InputError(
                f"no site {name_or_path[:100]!r}{guess}",
                hint=f"known: {', '.join(known)}; a file is given by its path, as ./my-site.yaml",
            )
        path = self.folder / f"{name_or_path}.yaml"
        return SiteFile(path, path.name, read_text(path))

    def shown(self, path: Path) -> str:
        """What came along is shown by its name alone, which no other file is."""
        if path.parent.resolve() == self.folder.resolve():
            return path.name
        is_ambiguous = str(path) in {each.name for each in self.folder.glob("*.yaml")}
        return f"./{path}" if is_ambiguous else str(path)


def _is_path(name_or_path: str) -> bool:
    return "/" in name_or_path or name_or_path.endswith((".yaml", ".yml"))
