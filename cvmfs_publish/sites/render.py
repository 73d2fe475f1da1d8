"""Turn a site configuration into the files its worker nodes get.

`render_site` is pure: the same site and templates give the same bytes.  `write_site` puts the
files on disk so that nobody ever finds half of them.  Templates place values; what is placed is
decided here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from cvmfs_publish.errors import InputError
from cvmfs_publish.sites.binds import plan_binds, plan_roots
from cvmfs_publish.sites.model import Bind, Client, ConfigMount, Domain, Site

MANIFEST = "MANIFEST.json"
PROGRAM = 0o755
TEXT = 0o644
CONF_FORMAT = 1  # of site.conf; `cr_format` in the launcher

# Programs are the same for all sites: copied, never rendered.
PROGRAMS = {
    "bin/cvmfs-run": "launcher/cvmfs-run",
    "bin/node-check": "launcher/node-check",
}


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """One file for worker nodes."""

    content: bytes
    mode: int = TEXT


def render_site(site: Site, templates: Path) -> dict[str, RenderedFile]:
    """Return the files of `site` by path, `MANIFEST.json` with their digests included.

    Raises `InputError` when `templates` is not a folder of our templates.
    """
    pages = _Pages(templates)
    files = {path: RenderedFile(pages.read(name), PROGRAM) for path, name in PROGRAMS.items()}
    files["etc/site.conf"] = pages.render("launcher/site.conf", values=conf_values(site))
    files |= _render_runtime_conf(site, pages)
    if site.client is not None:
        files |= _render_client(site, site.client, pages)
    files[MANIFEST] = RenderedFile(_manifest(site, files))
    return dict(sorted(files.items()))


def write_site(files: Mapping[str, RenderedFile], out: Path) -> None:
    """Write `files` as the folder `out`, replacing an earlier rendering whole.

    Everything is written beside `out` and renamed into place.  Raises `InputError` when `out` is a
    folder that holds something else than an earlier rendering, which is never deleted.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100  # resolve() would follow a link at `out`
    _check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{out.name}.new.", dir=out.parent))
    except OSError as exc:
        raise InputError(f"{out.parent}: {exc.strerror or exc}") from exc
    try:
        _fill(new, files)
        _swap(new, out)
    except OSError as exc:
        raise InputError(f"{out}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(new, ignore_errors=True)


def conf_values(site: Site) -> dict[str, str]:
    """Return the assignments of site.conf; lists have one entry per line."""
    repositories = [line for entry in site.repositories for line in (entry.layout, entry.name)]
    return {
        "format": str(CONF_FORMAT),
        "name": site.name,
        "base": site.cvmfs,
        "repositories": "\n".join(repositories),
        "default_registry": site.default_registry,
        "image_cpu": site.images.cpu or "",
        "image_gpu": site.images.gpu or "",
        "allowed_images": "\n".join(site.images.allowed),
        "runtimes": "\n".join(site.runtimes),
        "roots": "\n".join(plan_roots(site)),
        "binds": "\n".join(line for bind in plan_binds(site) for line in _bind_lines(bind)),
        "home": site.home,
        "scratch": "\n".join(site.scratch),
        "gpu": site.gpu,
        "env_drop": "\n".join(site.environment.drop),
        "env_set": "\n".join(f"{name}={text}" for name, text in site.environment.set.items()),
        "probe_timeout": str(int(site.probe_timeout.total_seconds())),
        "nested": site.nested,
        "mode": site.mode,
        "fallback": "\n".join(site.fallback),
        "fail_delay": str(int(site.fail_delay.total_seconds())),
        "metrics_dir": site.metrics_dir or "",
    }


def quote_sh(value: object) -> str:
    """Quote a value for a POSIX shell; the filter `sh` of templates."""
    return shlex.quote(str(value))


def _bind_lines(bind: Bind) -> Iterator[str]:
    yield f"bind {'r' if bind.read_only else 'w'}{'R' if bind.required else 'O'}"
    yield f"from {bind.source}"
    yield f"to {bind.destination}"
    if isinstance(bind, ConfigMount):
        for name, text in bind.environment.items():
            yield f"env {name}={text}"


def _render_runtime_conf(site: Site, pages: _Pages) -> dict[str, RenderedFile]:
    conf = site.runtime_conf
    # Asserted although they are defaults: published images are directories on autofs mounts.
    scalars = {
        "mount slave": "yes",
        "enable overlay": "yes",
        "enable underlay": "yes",
        "allow container dir": "yes",
    }
    if conf.session_dir_mib is not None:
        scalars["sessiondir max size"] = str(conf.session_dir_mib)
    if conf.always_use_nv:
        scalars["always use nv"] = "yes"
    lists = {
        "bind path": conf.bind_paths,
        "limit container paths": conf.limit_container_paths,
    }
    entries = [(key, path) for key, paths in lists.items() for path in paths]
    complete = {"sessiondir max size": "64", "always use nv": "no"} | scalars  # their defaults
    whole: dict[str, object] = {"site": site.name, "scalars": complete, "conf": conf}
    return {
        "conf/apptainer-config.sh": pages.render(
            "conf/apptainer-config.sh", PROGRAM, site=site.name, scalars=scalars, entries=entries
        ),
        "conf/apptainer.conf": pages.render("conf/apptainer.conf", TEXT, **whole),
        "conf/singularity.conf": pages.render("conf/singularity.conf", TEXT, **whole),
    }


def _render_client(site: Site, client: Client, pages: _Pages) -> dict[str, RenderedFile]:
    values: dict[str, str] = {}
    if site.repositories:
        values["CVMFS_REPOSITORIES"] = ",".join(entry.name for entry in site.repositories)
    if client.http_proxy is not None:
        values["CVMFS_HTTP_PROXY"] = client.http_proxy
    if client.quota_mb is not None:
        values["CVMFS_QUOTA_LIMIT"] = str(client.quota_mb)
    if client.cache_base is not None:
        values["CVMFS_CACHE_BASE"] = client.cache_base
    values |= {str(name): str(text) for name, text in client.parameters.items()}
    files = {
        "client/default.local": pages.render("client/default.local", site=site.name, values=values)
    }
    for name, domain in client.domains.items():
        files |= _render_domain(site, name, domain, pages)
    return files


def _render_domain(site: Site, name: str, domain: Domain, pages: _Pages) -> dict[str, RenderedFile]:
    values = {
        "CVMFS_SERVER_URL": ";".join(domain.servers),
        "CVMFS_KEYS_DIR": f"/etc/cvmfs/keys/{name}",
    }
    files = {
        f"client/domain.d/{name}.conf": pages.render(
            "client/domain.conf", site=site.name, domain=name, values=values
        )
    }
    for file_name, key in domain.public_keys.items():
        files[f"client/keys/{name}/{file_name}"] = RenderedFile(f"{key.strip()}\n".encode("ascii"))
    return files


def _manifest(site: Site, files: Mapping[str, RenderedFile]) -> bytes:
    document = {
        "site": site.name,
        "format": CONF_FORMAT,
        "files": {
            path: {
                "sha256": hashlib.sha256(file.content).hexdigest(),
                "size": len(file.content),
                "mode": f"{file.mode:04o}",
            }
            for path, file in sorted(files.items())
        },
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii")


class _Pages:
    """The templates of one folder; the one door to Jinja."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder),
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # noqa: S701  # shell and configuration text, not HTML
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters["sh"] = quote_sh

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as exc:
            raise InputError(f"{self.folder / name}: {exc.strerror or exc}") from exc

    def render(self, name: str, mode: int = TEXT, **values: object) -> RenderedFile:
        try:
            text = self.environment.get_template(name).render(values)
        except jinja2.TemplateError as exc:
            raise InputError(
                f"{self.folder / name}: {type(exc).__name__}: {exc}",
                hint="a template uses a value that is not given to it, or is not there",
            ) from exc
        return RenderedFile(text.encode("utf-8"), mode)


def _check_replaceable(out: Path) -> None:
    """An earlier rendering is replaced, an empty folder filled; nothing else is touched."""
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise InputError(f"{out}: exists and is not a folder", hint="choose another --out")
    if any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise InputError(
            f"{out}: is not empty and no earlier rendering: it has no {MANIFEST}",
            hint="choose a folder of its own, as --out ./site",
        )
    known = _manifest_paths(out / MANIFEST) | {MANIFEST}
    for path in out.rglob("*"):
        if not path.is_dir() and path.relative_to(out).as_posix() not in known:
            raise InputError(
                f"{path}: was not rendered; replacing {out} would delete it",
                hint="move it elsewhere, or choose another --out",
            )


def _manifest_paths(manifest: Path) -> set[str]:
    if not manifest.exists():
        return set()
    try:
        document = json.loads(manifest.read_bytes())
        return set(document["files"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(f"{manifest}: cannot be understood", hint="remove the folder") from exc


def _fill(folder: Path, files: Mapping[str, RenderedFile]) -> None:
    folder.chmod(0o755)
    for name, file in files.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(0o755)  # whatever the umask: nodes read them as users
        path.write_bytes(file.content)
        path.chmod(file.mode)


def _swap(new: Path, out: Path) -> None:
    """Put `new` in the place of `out`; between two renames there may be no folder, never a mix."""
    if not out.exists():
        new.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old)  # onto an empty folder: allowed by rename(2)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
