"""Find templates and site configurations: in a checkout, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

from cvmfs_publish.errors import InputError, PublishError
from cvmfs_publish.settings import load, nearest
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
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return load(Site, Path(name_or_path))
    folder = find_data("site-configs") if folder is None else folder
    path = folder / f"{name_or_path}.yaml"
    known = list_sites(folder)
    if not path.is_file():
        meant = nearest(name_or_path, known)
        guess = f"; did you mean {meant!r}?" if meant else ""
        raise InputError(
            f"no site {name_or_path!r}{guess}",
            hint=f"known: {', '.join(known)}; a file is given by its path, as ./my-site.yaml",
        )
    site = load(Site, path)
    if site.name != path.stem and path.stem != EXAMPLE:
        raise InputError(f"{path}: name is {site.name!r}, the file's is {path.stem!r}")
    return site
