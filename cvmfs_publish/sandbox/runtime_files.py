"""Write what Apptainer and Singularity want to find in a sandbox: `/.singularity.d` and its links.

Without `env/99-base.sh` Apptainer loses variables given by the caller and `--nv` has no effect
(facts/launchers.md X9).  The names are those Apptainer 1.4 uses; the shell files beside this module
are the same for every image, the others follow from the image's OCI configuration.  Every value of
an image author passes through `quote`, so none is ever evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.tree import RepoPath

BASE = ".singularity.d"
SHIPPED = "singularity.d"  # beside this module
DIRECTORIES = (BASE, f"{BASE}/actions", f"{BASE}/env", f"{BASE}/libs")
ACTIONS = ("exec", "run", "shell", "start", "test")
# Those after the first line may hold what an image built for Singularity needs: kept if there.
ENVIRONMENT = ("01-base.sh", "95-apps.sh", "99-base.sh", "99-runtimevars.sh")
ENVIRONMENT_IF_ABSENT = ("90-environment.sh", "94-appsbase.sh")
LINKS = {
    ".exec": f"{BASE}/actions/exec",
    ".run": f"{BASE}/actions/run",
    ".shell": f"{BASE}/actions/shell",
    ".test": f"{BASE}/actions/test",
    "environment": f"{BASE}/env/90-environment.sh",
    "singularity": f"{BASE}/runscript",
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ImageConfig:
    """The parts of an OCI image configuration that concern running the image.

    Source: image-spec `config.md`, object `config`.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        """Take a parsed configuration; raise `IntegrityError` where a field has a wrong type."""
        config = document.get("config") or {}
        if not isinstance(config, Mapping):
            raise IntegrityError("image configuration: `config` is not an object")
        self.architecture = str(document.get("architecture") or "")
        self.created = str(document.get("created") or "")
        self.environment = _texts(config, "Env")
        self.entrypoint = _texts(config, "Entrypoint")
        self.command = _texts(config, "Cmd")
        if any("\0" in word for word in (*self.entrypoint, *self.command)):
            raise IntegrityError("image configuration: a word of the command holds a zero byte")
        labels = config.get("Labels") or {}
        if not isinstance(labels, Mapping):
            raise IntegrityError("image configuration: `Labels` is not an object")
        self.labels = {str(key): str(value) for key, value in labels.items()}


def _texts(config: Mapping[str, Any], key: str) -> list[str]:
    values = config.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise IntegrityError(f"image configuration: `{key}` is not a list of texts")
    try:
        "".join(values).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise IntegrityError(f"image configuration: `{key}` is not Unicode: {error}") from error
    return values


def quote(text: str) -> str:
    """Return `text` as one word of a POSIX shell, whatever it holds.

    Not with a backslash outside of quotes: the shell built into Apptainer 1.4 keeps it.
    """
    return "'" + text.replace("'", "'\"'\"'") + "'"


def split_environment(lines: Iterable[str]) -> tuple[dict[str, str], list[Finding]]:
    """Parse `NAME=value`; the last of a name wins; what no shell can set is a finding (E-57)."""
    values: dict[str, str] = {}
    findings = []
    for line in lines:
        name, _, value = line.partition("=")
        if _NAME.fullmatch(name) and "\0" not in value:
            values.pop(name, None)
            values[name] = value
        else:
            findings.append(Finding("", f"environment variable {name[:80]!r} dropped: not a name"))
    return values, findings


def environment_script(values: Mapping[str, str]) -> str:
    """Return `env/10-docker2singularity.sh`: the image's defaults, which the caller may override.

    PATH is always the image's: the host's would not fit.
    """
    lines = ["#!/bin/sh", "# Variables of the image's OCI configuration."]
    for name, value in values.items():
        if name != "PATH":
            lines.append(f'[ -n "${{{name}-}}" ] || {name}={quote(value)}')
        else:
            lines.append(f"PATH={quote(value)}")
        lines.append(f"export {name}")
    return "\n".join(lines) + "\n"


def runscript(entrypoint: list[str], command: list[str]) -> str:
    """Return `runscript`: ENTRYPOINT with the caller's arguments or CMD, as OCI runtimes start it.

    Unlike Apptainer's own, nothing is evaluated by a shell a second time.
    """
    lines = ["#!/bin/sh", "# ENTRYPOINT and CMD of the image's OCI configuration."]
    default = " ".join(map(quote, command)) if command else ("" if entrypoint else "/bin/sh")
    if default:
        lines += ["if [ $# -eq 0 ]; then", f"    set -- {default}", "fi"]
    words = "".join(quote(word) + " " for word in entrypoint)
    lines.append(f'exec {words}"$@"')
    return "\n".join(lines) + "\n"


def labels_document(config: ImageConfig) -> str:
    """Return `labels.json`.  Without dates or names: equal images give equal sandboxes."""
    labels = {
        "org.label-schema.schema-version": "1.0",
        "org.label-schema.build-arch": config.architecture,
        "org.label-schema.usage.singularity.deffile.bootstrap": "docker",
        **config.labels,
    }
    return json.dumps(labels, indent=2, sort_keys=True) + "\n"


def charliecloud_environment(values: Mapping[str, str]) -> str:
    """Return `/ch/environment`, which `ch-run --set-env` reads: one `NAME=value` a line.

    ch-run takes one pair of single quotes off a value; a value with a newline cannot be expressed
    and is left out.
    """
    lines = []
    for name, value in values.items():
        if "\n" not in value:
            quoted = len(value) > 1 and value[0] == value[-1] == "'"
            lines.append(f"{name}='{value}'\n" if quoted else f"{name}={value}\n")
    return "".join(lines)


def runtime_files(
    config: ImageConfig, oci_config: bytes
) -> tuple[dict[RepoPath, tuple[bytes, int]], dict[RepoPath, bytes], list[Finding]]:
    """Return the files to write: always (with mode), only if absent (mode 0755), and findings."""
    shipped = files("cvmfs_publish.sandbox") / SHIPPED
    values, findings = split_environment(config.environment)
    always: dict[RepoPath, tuple[bytes, int]] = {
        f"{BASE}/actions/{name}": ((shipped / "actions" / name).read_bytes(), 0o755)
        for name in ACTIONS
    }
    for name in ENVIRONMENT:
        always[f"{BASE}/env/{name}"] = ((shipped / "env" / name).read_bytes(), 0o755)
    generated = {
        f"{BASE}/env/10-docker2singularity.sh": environment_script(values),
        f"{BASE}/runscript": runscript(config.entrypoint, config.command),
        f"{BASE}/startscript": "#!/bin/sh\n",
    }
    for path, text in generated.items():
        always[path] = (text.encode("utf-8", "surrogateescape"), 0o755)
    always[f"{BASE}/labels.json"] = (labels_document(config).encode(), 0o644)
    always[f"{BASE}/oci-config.json"] = (oci_config, 0o644)
    if_absent = {
        f"{BASE}/env/{name}": (shipped / "env" / name).read_bytes()
        for name in ENVIRONMENT_IF_ABSENT
    }
    return always, if_absent, findings
