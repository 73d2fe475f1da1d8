"""What a site permits but hardly means: each remark has a key, a reason and a remedy."""

from __future__ import annotations

import pytest

from cvmfs_publish.settings import parse
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.remarks import Remark, check_site

# Without remarks; every case below changes what matters to it.
BASE = "name: test\nrepositories: [{name: a.org}]\n"
SQUID = "squid: {clients: [10.0.0.0/8], servers: [s1.a.org]"
CLIENT = "client: {http_proxy: DIRECT, "


def remarks(text: str) -> list[Remark]:
    base = "name: test\n" if "repositories:" in text.split("client:")[0] else BASE
    return check_site(parse(Site, base + text, "test.yaml"))


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("repositories: []", "repositories", "only name images by absolute path"),
        ("repositories: []\nimages: {cpu: a/b:1}", "images.cpu", "is found nowhere"),
        ("images: {gpu: a/b:1}", "images.gpu", "no default image"),
        ("images: {allowed: [/cvmfs/b.org]}", "repositories[0].name", "forbids every image"),
        ("images: {cpu: /data/image}", "images.cpu", "in none of the repositories"),
        ("images: {cpu: /x, allowed: [/cvmfs/a.org]}", "images.cpu", "forbids /x"),
        (
            "software: [{name: x, version: '1', image: /opt/x, commands: [x]}]",
            "software[0].image",
            "in none of the repositories",
        ),
        ("runtimes: [ch-run]\ngpu: nv", "gpu", "no runtime of the site brings the libraries"),
        ("runtimes: [ch-run]\nprocesses: own", "processes", "no runtime of the site can"),
        (
            "gpu: none\nruntime_conf: {always_use_nv: true}",
            "runtime_conf.always_use_nv",
            "though gpu is none",
        ),
        ("runtime_conf: {bind_paths: [/nfs]}", "runtime_conf.bind_paths", "no container starts"),
        ("runtimes: [podman, podman]", "runtimes[1]", "named before"),
        ("binds: [{source: /a, read_only: true}]", "binds[0].read_only", "and leaves it out"),
        (
            "mpi: {binds: [{source: /a, read_only: true, required: true}]}",
            "mpi.binds[0].read_only",
            "and ends the job with 72",
        ),
        ("binds: [{source: /a, target: '/b:c'}]", "binds[0]", "ch-run cannot mount"),
        (
            "repositories: [{name: a.org, min_revision: 7}]",
            "repositories[0].min_revision",
            "at once",
        ),
        (
            "binds: [{source: /sdf/x, required: true}]",
            "binds[0].required",
            "the root /sdf it lies in is not",
        ),
        (
            "binds: [{source: /x, target: /nfs/y, required: true}]",
            "binds[0]",
            "lies in /nfs, which roots mounts: a node without a folder /nfs/y ends the job with 72",
        ),
        (
            "binds: [{source: /x, target: /b/c}, {source: /a, target: /b}]",
            "binds[0]",
            "lies in /b, which binds[1] mounts: a node without a folder /a/c leaves it out",
        ),
        (
            "binds: [{source: /a}]\nmpi: {binds: [{source: /x, target: /a/b}]}",
            "mpi.binds[0]",
            "lies in /a, which binds[0] mounts",
        ),
        ("environment: {keep: [A]}", "environment.keep", "has no effect"),
        ("environment: {set: {PATH: /bin}}", "environment.set.PATH", "may be lost"),
        ("mpi: {environment: {PATH: /bin}}", "mpi.environment.PATH", "may be lost"),
        (
            "environment: {set: {PYTHONPATH: /x}}",
            "environment.set.PYTHONPATH",
            "is dropped and set",
        ),
        ("hooks: {after: /x}", "hooks.after", "though mode is exec"),
        ("metrics_dir: /nfs/metrics", "metrics_dir", "on a shared file system"),
        ("home: none", "home", "no scratch but /tmp"),
        ("fallback: {chain: [host]}", "fallback.chain", "outside the image"),
        ("fallback: {mirrors: ['http://m.org']}", "fallback.mirrors", "are not used"),
        ("fallback: {chain: [cache]}", "fallback.chain", "nothing fills the cache"),
        ("fallback: {chain: [registry, cache]}", "fallback.chain", "cache is not first"),
        ("fallback: {chain: [registry]}", "fallback.chain", "are not looked for"),
        (
            "runtimes: [ch-run]\nfallback: {chain: [cache, registry]}",
            "fallback.chain",
            "needs Apptainer",
        ),
        (CLIENT + "quota_mb: 25000, partition_mb: 30000}", "client.quota_mb", "of 32250 MB"),
        (CLIENT + "partition_mb: 30000}", "client.partition_mb", "which is not set"),
        ("client: {quota_mb: 25000}", "client.http_proxy", "mounts nothing"),
        (
            CLIENT + "parameters: {CVMFS_ALIEN_CACHE: /x}}",
            "client.parameters.CVMFS_ALIEN_CACHE",
            "cannot be shared",
        ),
        (
            CLIENT + "repositories: {b.org: {CVMFS_X: y}}}",
            "client.repositories.b.org",
            "is among neither",
        ),
        (SQUID + ", cache_mb: 9000}", "squid.cache_mb", "a few images"),
        (SQUID + ", memory_mb: 200000}", "squid.memory_mb", "more memory"),
        ("squid: {clients: [10.0.0.0/8]}", "squid.servers", "may fetch from nobody"),
        ("batch: {kubernetes: {namespace: x}}", "batch.kubernetes", "has no effect"),
    ],
)
def test_what_is_probably_not_meant_gets_a_remark(text: str, key: str, what: str) -> None:
    found = remarks(text)
    assert [remark for remark in found if remark.key == key and what in remark.what], found
    assert all(remark.remedy for remark in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "images: {cpu: /cvmfs/a.org/x, allowed: [/cvmfs]}",
        "runtimes: [apptainer]\nbinds: [{source: '/a,b', read_only: true}]",
        "binds: [{source: /b}, {source: /b/c}, {source: /bc}]",
        "hooks: {before: /x}\nmode: supervise",
        "metrics_dir: /var/log/cvmfs-run",
        "fallback: {chain: [cache, mirror, host], mirrors: ['http://m.org']}\nfail_delay: 60s",
        CLIENT + "quota_mb: 25000, partition_mb: 32250}",
        "client: {parameters: {CVMFS_CLIENT_PROFILE: single}}",
        "client: {http_proxy: 'auto;DIRECT', quota_mb: -1, parameters:"
        " {CVMFS_ALIEN_CACHE: /x, CVMFS_SHARED_CACHE: 'no'}}",
        SQUID + "}",
    ],
)
def test_what_is_usual_gets_none(text: str) -> None:
    assert remarks(text) == []


def test_a_domain_of_ones_own_must_serve_what_the_stock_client_does_not() -> None:
    key = "-----BEGIN PUBLIC KEY-----\\nAA==\\n-----END PUBLIC KEY-----"
    domain = f'{{servers: ["http://s/cvmfs/@fqrn@"], public_keys: {{b.pub: "{key}"}}}}'
    client = f"client: {{http_proxy: DIRECT, domains: {{b.org: {domain}}}}}"
    names = "repositories: [{name: x.b.org}, {name: unpacked.cern.ch}, {name: x.c.org}]\n"
    (remark,) = remarks(names + client)
    assert remark.key == "repositories[2].name"
