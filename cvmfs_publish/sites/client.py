"""Files for the CernVM-FS client of worker nodes and for the servers it talks to."""

from __future__ import annotations

from urllib.parse import urlsplit

from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import Files, Pages, RenderedFile
from cvmfs_publish.sites.services import Client, Domain, Mirror, Squid

# Where Stratum 1 servers listen; used for those that are given without an address.
STRATUM1_PORTS = (80, 8000)


def render_client(site: Site, pages: Pages) -> Files:
    """Return the files below client/, proxy/ and mirror/, for what the site describes."""
    files: dict[str, RenderedFile] = {}
    if site.client is not None:
        files |= _render_client(site, site.client, pages)
    if site.squid is not None:
        files["proxy/squid.conf"] = _render_squid(site, site.squid, pages)
    if site.mirror is not None:
        files["mirror/nginx.conf"] = _render_mirror(site, site.mirror, pages)
    return files


def _render_client(site: Site, client: Client, pages: Pages) -> dict[str, RenderedFile]:
    files = {
        "client/default.local": pages.render(
            "client/default.local", site=site.name, values=_client_values(site, client)
        )
    }
    for name, domain in client.domains.items():
        files |= _render_domain(site, name, domain, pages)
    for repository, parameters in client.repositories.items():
        files[f"client/config.d/{repository}.local"] = pages.render(
            "client/repository.local", site=site.name, repository=repository, values=parameters
        )
    return files


def _client_values(site: Site, client: Client) -> dict[str, str]:
    values: dict[str, str] = {}
    names = (
        *(entry.name for entry in site.repositories),
        *site.required_repositories,
        *client.repositories,
    )
    if names:
        values["CVMFS_REPOSITORIES"] = ",".join(dict.fromkeys(names))
    if client.http_proxy is not None:
        values["CVMFS_HTTP_PROXY"] = client.http_proxy
    if client.quota_mb is not None:
        values["CVMFS_QUOTA_LIMIT"] = str(client.quota_mb)
    if client.cache_base is not None:
        values["CVMFS_CACHE_BASE"] = client.cache_base
    return values | {str(name): str(text) for name, text in client.parameters.items()}


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


def _render_squid(site: Site, squid: Squid, pages: Pages) -> RenderedFile:
    addresses = [
        urlsplit(server)
        for domain in (site.client.domains.values() if site.client else ())
        for server in domain.servers
    ]
    hosts = {address.hostname for address in addresses if address.hostname} | {*squid.servers}
    ports = {address.port or (443 if address.scheme == "https" else 80) for address in addresses}
    if squid.servers or not ports:
        ports |= {*STRATUM1_PORTS}
    # CONNECT is how a proxy passes on https, which it cannot cache.
    secure = any(address.scheme == "https" for address in addresses)
    return pages.render(
        "proxy/squid.conf",
        site=site.name,
        port=squid.port,
        clients=squid.clients,
        servers=sorted(hosts),
        ports=sorted(ports),
        methods=("GET", "HEAD", *(("CONNECT",) if secure else ())),
        cache_dir=squid.cache_dir,
        cache_mb=squid.cache_mb,
        memory_mb=squid.memory_mb,
    )


def _render_mirror(site: Site, mirror: Mirror, pages: Pages) -> RenderedFile:
    return pages.render(
        "mirror/nginx.conf",
        site=site.name,
        server_name=mirror.server_name,
        port=mirror.port,
        root=mirror.root,
        clients=mirror.clients,
        connections=mirror.connections,
    )
