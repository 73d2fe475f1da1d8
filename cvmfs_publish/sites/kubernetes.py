"""Files for Kubernetes: jobs, the volume of the CVMFS CSI driver, and a script that brings both in.

Source: the documentation of cvmfs-csi, and the API of Kubernetes (batch/v1, storage.k8s.io/v1).
"""

from __future__ import annotations

from cvmfs_publish.sites.hosts import example_image, launcher_path
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import PROGRAM, TEXT, Files, Pages, RenderedFile

_GPU = "nvidia.com/gpu"
_RESOURCES = {"cpu": "1", "memory": "2Gi", "ephemeral-storage": "10Gi"}
# usage, noimage, bind, noperm, config: docs/launcher.md says whether to try elsewhere.
_NO_RETRY = (64, 66, 72, 77, 78)


def render_kubernetes(site: Site, pages: Pages) -> Files:
    """Return the files below kubernetes/."""
    settings = site.batch.kubernetes
    options = [line.partition("=") for line in site.batch.options.get("kubernetes", ())]
    resources = _RESOURCES | {name: quantity for name, _, quantity in options}
    plain = {name: amount for name, amount in resources.items() if name != _GPU}
    shared: dict[str, object] = {"site": site.name, "pod_namespace": settings.namespace}
    return {
        "kubernetes/volume.yaml": pages.render(
            "kubernetes/volume.yaml", TEXT, storage_class=settings.storage_class, **shared
        ),
        "kubernetes/job.yaml": _render_job(site, plain, pages, gpu=False),
        "kubernetes/job-gpu.yaml": _render_job(site, {_GPU: "1"} | resources, pages, gpu=True),
        "kubernetes/apply.sh": pages.render("kubernetes/apply.sh", PROGRAM, **shared),
    }


def _render_job(site: Site, resources: dict[str, str], pages: Pages, *, gpu: bool) -> RenderedFile:
    return pages.render(
        "kubernetes/job.yaml",
        TEXT,
        site=site.name,
        pod_namespace=site.batch.kubernetes.namespace,
        pod_image=site.batch.kubernetes.image,
        install_dir=site.install_dir,
        program=launcher_path(site),
        cvmfs=site.cvmfs,
        image=(site.images.gpu if gpu else None) or example_image(site),
        resources=resources,
        gpu=gpu,
        command=("nvidia-smi",) if gpu else ("cat", "/etc/os-release"),
        no_retry=_NO_RETRY,
    )
