"""Three repositories of one configuration: two of CernVM-FS with other hashes, one plain tree."""

from __future__ import annotations

from pathlib import Path

from tests.unit.cli.support import Shell

EUROPE, AMERICA, LAB = "eu.example.org", "us.example.org", "lab.example.org"

CONFIG = f"""\
repositories:
  # what comes first is published first
  {EUROPE}:
    sites: [europe.yaml]
    refuse:
      - match: "*/*cuda*"
        reason: "the licence covers America only"
  {AMERICA}:
    storage: repositories/{AMERICA}
    hash: shake128
    sites: [america.yaml]
    refuse:
      - labels: {{org.opencontainers.image.licenses: ["*nonfree*"]}}
        reason: "no export"
  {LAB}:
    backend: directory
    storage: repositories/{LAB}
    accept: ["*/a/*"]
"""


def make_regions(cwd: Path) -> Shell:
    """Make all three in a folder, and write their configuration."""
    shell = Shell(cwd)
    for name, options in (
        (EUROPE, ()),
        (AMERICA, ("--storage", f"repositories/{AMERICA}", "--hash", "shake128")),
        (LAB, ("--storage", f"repositories/{LAB}", "--backend", "directory")),
    ):
        path = str(cwd / f"{name}.yaml")
        ran = shell.run("--config", path, "--quiet", "init", name, *options)
        assert ran.code == 0, ran
    (cwd / "cvmfs-publish.yaml").write_text(CONFIG)
    (cwd / "europe.yaml").write_text("name: europe\nroots: [/fs/europe]\n")
    (cwd / "america.yaml").write_text("name: america\nroots: [/fs/america]\n")
    return shell
