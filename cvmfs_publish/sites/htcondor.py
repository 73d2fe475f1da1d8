"""Files for HTCondor: submit template, configuration, job wrapper, prepare-job hook.

Source: the HTCondor manual ("Configuration Macros", "Singularity Support", "Job Hooks"), and what
HTCondor 23 does with them (`tests/e2e/test_htcondor.py`).
"""

from __future__ import annotations

import re

from cvmfs_publish.reference import Reference
from cvmfs_publish.sites.binds import plan_binds, plan_roots
from cvmfs_publish.sites.hosts import example_image, has_default_image, launcher_path
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import PROGRAM, TEXT, Files, Pages
from cvmfs_publish.sites.values import ImageName

_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._+@/-]*")  # needs no quoting in files of HTCondor
_SHORT_NAME = re.compile(r"(?![^/]*[.:][^/]*/)(?!localhost/).*")  # says no registry


def render_htcondor(site: Site, pages: Pages) -> Files:
    """Return the files below htcondor/."""
    here = f"{site.install_dir}/htcondor"
    program = launcher_path(site)
    job, image = _native_job(site)
    default_image = has_default_image(site)
    name = site.name
    return {
        "htcondor/submit.sub": pages.render(
            "htcondor/submit.sub",
            TEXT,
            site=name,
            program=program,
            arguments=_arguments(example_image(site), "--", "cat", "/etc/os-release"),
            options=site.batch.options.get("htcondor", ()),
        ),
        "htcondor/job-wrapper": pages.render(
            "htcondor/job-wrapper",
            PROGRAM,
            site=name,
            program=program,
            default_image=default_image,
        ),
        "htcondor/prepare-hook": pages.render(
            "htcondor/prepare-hook",
            PROGRAM,
            site=name,
            program=program,
            default_image=default_image,
            probe_timeout=_patience(site),
            fallback=bool(site.fallback.chain),
            fail_delay=int(site.fail_delay.total_seconds()),
        ),
        "htcondor/50-cvmfs-publish.conf": pages.render(
            "htcondor/50-cvmfs-publish.conf",
            TEXT,
            site=name,
            wrapper=f"{here}/job-wrapper",
            hook=f"{here}/prepare-hook",
            check=f"{site.install_dir}/bin/node-check",
            runtime=next((entry for entry in site.runtimes if _PLAIN_PATH.fullmatch(entry)), ""),
            job=job,
            image=image,
            binds=_native_binds(site),
        ),
    }


def _patience(site: Site) -> int:
    """Seconds for all repositories to answer, one after the other, and for the rest."""
    count = len(site.repositories) + len(site.required_repositories)
    return int(site.probe_timeout.total_seconds() + 2) * max(count, 1) + 10


def _arguments(*words: str) -> str:
    """Quote words for `arguments` of a submit file, without the outer quotes."""
    return " ".join(map(_argument, words))


def _argument(word: str) -> str:
    text = word.replace("$", "$(DOLLAR)").replace('"', '""')
    return text if not set(word) & set(" '") else "'" + text.replace("'", "''") + "'"


def _native_job(site: Site) -> tuple[str, str]:
    """Return which jobs HTCondor starts in an image by itself, and in which, as expressions."""
    wanted = "TARGET.SingularityImage"
    cpu = _image_path(site, site.images.cpu)
    gpu = _image_path(site, site.images.gpu) or cpu
    if not cpu:
        return f"{wanted} isnt undefined", wanted
    default = _string(cpu)
    if gpu != cpu:
        default = f"ifThenElse((TARGET.RequestGPUs ?: 0) > 0, {_string(gpu)}, {default})"
    return "true", f"{wanted} ?: {default}"


def _image_path(site: Site, image: ImageName | None) -> str:
    """Return where a default image lies, in the first repository; empty if nobody can say."""
    if image is None or image.startswith("/"):
        return image or ""
    if not site.repositories:
        return ""
    text = f"{site.default_registry}/{image}" if _SHORT_NAME.fullmatch(image) else image
    name = str(Reference.parse(text))
    first = site.repositories[0]
    below = name if first.layout == "unpacked" else name.partition("/")[2]
    return f"{site.cvmfs}/{first.name}/{below}"


def _native_binds(site: Site) -> list[str]:
    """Return the mounts HTCondor can write: without blanks, commas and colons in paths."""
    mounts: list[tuple[str, str, str]] = [
        (bind.source, bind.destination, ":ro" if bind.read_only else "")
        for bind in plan_binds(site)
    ]
    mounts += [(root, root, "") for root in plan_roots(site)]
    return [
        source if (source, mode) == (target, "") else f"{source}:{target}{mode}"
        for source, target, mode in mounts
        if _PLAIN_PATH.fullmatch(source) and _PLAIN_PATH.fullmatch(target)
    ]


def _string(text: str) -> str:
    """Quote a string of a ClassAd in a configuration file."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$(DOLLAR)")
    return f'"{escaped}"'
