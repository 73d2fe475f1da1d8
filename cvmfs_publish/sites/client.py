"""Files for the CernVM-FS client of worker nodes and for the servers it talks to."""

from __future__ import annotations

from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import Files, Pages, RenderedFile
from cvmfs_publish.sites.services import Client, Domain


def render_client(site: Site, pages: Pages) -> Files:
    """Return the files below client/, proxy/ and mirror/, for what the site describes."""
    return {} if site.client is None else _render_client(site, site.client, pages)


def _render_client(site: Site, client: Client, pages: Pages) -> dict[str, RenderedFile]:
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


def _render_domain(site: Site, name: str, domain: Domain, pages: Pages) -> dict[str, RenderedFile]:
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
