"""What Kubernetes gets: objects with the fields its API has, and no more rights than needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import RenderedFile
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.writing import write_site

# Fields of the API (batch/v1, v1, storage.k8s.io/v1 of Kubernetes 1.30 to 1.37) that may appear
# here; a misspelled one would be dropped by a server without a word.
SPEC_FIELDS = {"backoffLimit", "ttlSecondsAfterFinished", "podFailurePolicy", "template"}
POD_FIELDS = {
    *("restartPolicy", "automountServiceAccountToken", "securityContext", "containers", "volumes"),
}
CONTAINER_FIELDS = {
    *("name", "image", "command", "workingDir", "env", "securityContext", "resources"),
    "volumeMounts",
}


def rendered(text: str = "", options: str = "[]") -> dict[str, RenderedFile]:
    batch = f"batch: {{systems: [kubernetes], options: {{kubernetes: {options}}}}}"
    site = parse(Site, f"name: test\n{batch}\n{text}", "test.yaml")
    return render_site(site, templates_dir())


def documents(name: str, text: str = "", options: str = "[]") -> list[Any]:
    return list(yaml.safe_load_all(rendered(text, options)[f"kubernetes/{name}"].content))


@pytest.mark.parametrize("name", ["job.yaml", "job-gpu.yaml"])
def test_a_job_has_only_fields_of_the_api(name: str) -> None:
    (job,) = documents(name)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert set(job["spec"]) == SPEC_FIELDS
    pod = job["spec"]["template"]["spec"]
    assert set(pod) == POD_FIELDS
    (container,) = pod["containers"]
    assert set(container) == CONTAINER_FIELDS
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }


@pytest.mark.parametrize("name", ["job.yaml", "job-gpu.yaml"])
def test_a_job_needs_no_privilege(name: str) -> None:
    (job,) = documents(name)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostPID", "hostNetwork", "hostIPC"} & set(pod)
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]


def test_repositories_reach_the_job_while_it_runs() -> None:
    (job,) = documents("job.yaml", "cvmfs: /opt/cvmfs")
    mounts = job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    (cvmfs,) = [mount for mount in mounts if mount["name"] == "cvmfs"]
    assert (cvmfs["mountPath"], cvmfs["mountPropagation"]) == ("/opt/cvmfs", "HostToContainer")
    storage, claim = documents("volume.yaml", "cvmfs: /opt/cvmfs")
    assert storage["provisioner"] == "cvmfs.csi.cern.ch"
    assert claim["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert claim["spec"]["storageClassName"] == storage["metadata"]["name"]
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert {"claimName": claim["metadata"]["name"], "readOnly": True} in [
        volume.get("persistentVolumeClaim") for volume in volumes
    ]
    assert claim["metadata"]["namespace"] == job["metadata"]["namespace"]


def test_the_command_is_the_launcher_with_the_sites_image() -> None:
    text = "install_dir: /opt/x\nimages: {cpu: 'debian:12', gpu: /cvmfs/a.org/g}"
    (job,) = documents("job.yaml", text)
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command == ["/opt/x/bin/cvmfs-run", "debian:12", "--", "cat", "/etc/os-release"]
    (job,) = documents("job-gpu.yaml", text)
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command == ["/opt/x/bin/cvmfs-run", "--gpu", "/cvmfs/a.org/g", "--", "nvidia-smi"]


def test_options_are_quantities_of_resources_and_only_gpu_jobs_ask_for_gpus() -> None:
    options = "['cpu=2500m', 'memory=8Gi', 'nvidia.com/gpu=2']"
    (job,) = documents("job.yaml", options=options)
    wanted = {"cpu": "2500m", "memory": "8Gi", "ephemeral-storage": "10Gi"}
    resources = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources == {"requests": wanted, "limits": wanted}
    (job,) = documents("job-gpu.yaml", options=options)
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == wanted | {"nvidia.com/gpu": "2"}


@pytest.mark.parametrize("line", ["--partition=short", "cpu", "cpu=many", "cpus=4", "memory=8 GB"])
def test_an_option_that_is_no_quantity_is_refused(line: str) -> None:
    with pytest.raises(
        InputError, match=r"test\.yaml:2: batch\.options\.kubernetes.* is not the quantity"
    ):
        rendered(options=f"['{line}']")


def test_a_namespace_with_a_dot_is_refused() -> None:
    text = "name: test\nbatch: {systems: [kubernetes], kubernetes: {namespace: a.b}}"
    with pytest.raises(InputError, match="a namespace has no dots"):
        parse(Site, text, "test.yaml")


def test_a_job_whose_own_mistake_it_is_runs_once() -> None:
    (job,) = documents("job.yaml")
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [64, 66, 72, 77, 78]
    assert rule["onExitCodes"]["containerName"] == "job"
    assert rule["action"] == "FailJob"
    assert rule["onPodConditions"] == []  # the schema wants it there
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # the policy wants it


def test_the_script_brings_what_jobs_mount_into_the_cluster(tmp_path: Path) -> None:
    site = tmp_path / "a site"
    write_site(rendered(), site)
    fake = tmp_path / "kubectl"  # says what it is asked for, and reads what it is given
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"; echo; case "$*" in *=-*) cat ;; esac\n')
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run() -> str:
        argv = ["sh", str(site / "kubernetes" / "apply.sh"), "--context", "a b"]
        return subprocess.run(argv, env=env, capture_output=True, check=True).stdout.decode()

    told = run()
    applied, created, *_, volume = told.splitlines()
    assert created.startswith("create|configmap|cvmfs-run|--namespace|default|")
    (job,) = documents("job.yaml")
    volumes = job["spec"]["template"]["spec"]["volumes"]
    (sources,) = [entry["projected"]["sources"] for entry in volumes if "projected" in entry]
    items, (listed,) = (source["configMap"]["items"] for source in sources)
    files = [word for word in created.split("|") if word.startswith("--from-file=")]
    assert "|--from-literal=passwd=root:x:0:0:root:/root:/bin/sh\n" in told
    *of_files, accounts = items
    assert (accounts["key"], accounts["path"]) == ("passwd", "etc/passwd")
    for item, word in zip(of_files, files, strict=True):
        path = Path(word.removeprefix("--from-file="))
        assert path.is_file()
        assert path.name == item["key"]
        assert path.resolve().relative_to(site).as_posix() == item["path"]
    assert applied == "apply|--server-side|--filename=-|--context|a b|"
    assert volume == f"apply|--filename={site}/kubernetes/volume.yaml|--context|a b|"
    (site / listed["path"]).write_text("# a list of fallback images\n")
    *_, applied, created = run().splitlines()
    name, file = sources[1]["configMap"]["name"], f"{site}/kubernetes/../etc/{listed['key']}"
    assert created.startswith(f"create|configmap|{name}|--namespace|default|--from-file={file}|")
    assert applied == "apply|--server-side|--filename=-|--context|a b|"
    assert sources[1]["configMap"]["optional"]
