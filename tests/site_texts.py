"""Site configurations for tests: the names of those that come along, and one with everything."""

from __future__ import annotations

from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import list_sites
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.schedulers import SCHEDULERS

SITES = (*list_sites(), "example")

PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEArKNw/Oew8zrn5XOlZCYG
dSkn7bKRMM9d5tziwdGMGfUOl0WviiCgmGlRgB2gJIaoe6arzdOF/IUjtMsmO9W9
7sHVx5lseUn2oiodE7Mz1faMTicsPsqHX/6xeAhht0BoV3gkkDZGLPZHqcJiYS/T
-----END PUBLIC KEY-----
"""

# Every section that renders a file of its own, with lists of several entries.
FULL = """
name: full
description: everything at once
repositories: [{name: images.example.org, min_revision: 3}, {name: more.example.org, layout: osg}]
required_repositories: [software.example.org]
images: {cpu: "ghcr.io/example/base:1", gpu: "ghcr.io/example/gpu:1"}
binds: [{source: /usr/share, target: /data, required: true}]
scratch: [$SLURM_TMPDIR, /scratch]
environment: {set: {XRD_REQUESTTIMEOUT: "60"}}
fallback: {chain: [cache, mirror], mirrors: ["http://mirror.example.org/images"]}
runtime_conf:
  bind_paths: [/usr/share, /usr/lib]
  session_dir_mib: 256
  always_use_nv: true
  limit_container_paths: [/usr]
client:
  http_proxy: http://squid1.example.org:3128|http://squid2.example.org:3128;DIRECT
  quota_mb: 25000
  cache_base: /var/lib/cvmfs
  partition_mb: 40000
  parameters: {CVMFS_STRICT_MOUNT: "yes"}
  repositories: {images.example.org: {CVMFS_KCACHE_TIMEOUT: "3600"}}
  domains:
    example.org:
      servers:
        - http://stratum1.example.org/cvmfs/@fqrn@
        - https://stratum1b.example.org:8443/cvmfs/@fqrn@
      public_keys:
        example.org.pub: |
KEY
squid: {clients: [10.20.0.0/16, "fd00::/8"], servers: [other.example.net]}
mirror: {server_name: mirror.example.org, root: /srv/images, clients: [10.20.0.0/16]}
batch: {systems: [SYSTEMS]}
software:
  - name: samtools
    version: "1.20"
    image: quay.io/biocontainers/samtools:1.20
    commands: [samtools, wgsim]
    description: reads and writes alignments
    url: https://example.org/samtools
    environment: {SAMTOOLS_HOME: /usr/local}
"""
FULL = FULL.replace("SYSTEMS", ", ".join(SCHEDULERS))
FULL = FULL.replace("KEY\n", "".join(f"          {line}\n" for line in PUBLIC_KEY.splitlines()))


def parse_site(text: str) -> Site:
    return parse(Site, text if text.lstrip().startswith("name:") else f"name: test\n{text}", "test")
