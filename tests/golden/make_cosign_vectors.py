"""Have real `cosign` sign a small image in every form with every kind of key; print what it wrote.

    python -m tests.golden.make_cosign_vectors > tests/golden/cosign/vectors.json

Needs cosign 3 (`go install github.com/sigstore/cosign/v3/cmd/cosign@latest`, five minutes on two
cores), Debian's registry and skopeo.  The tests need none of them: they read what was printed once.
The keys are made here and thrown away.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from tests import parts
from tests.layouts import EPOCH, Tar, write_oci_layout

KEYS: Mapping[str, Callable[[], PrivateKeyTypes]] = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}
_CLASSIC = ["--new-bundle-format=false"]
FORMS = {
    "tag": _CLASSIC,
    "referrer": [*_CLASSIC, "--registry-referrers-mode=oci-1-1"],
    "bundle": [],
}
ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with parts.docker_registry(work) as registry:
            text = json.dumps(make(work, registry.host), indent=1, sort_keys=True)
    sys.stdout.write(f"{text}\n")


def make(work: Path, host: str) -> dict[str, Any]:
    tar = Tar()
    tar.file("hello", b"signed\n", mtime=EPOCH)
    write_oci_layout(work / "layout", [tar.done()], {}, tag="1")
    found: dict[str, Any] = {"keys": {}, "repositories": {}}
    for key, generate in KEYS.items():
        found["keys"][key] = _make_key(work, key, generate())
        for form, options in FORMS.items():
            repository = f"{key}/{form}"
            source, target = f"oci:{work / 'layout'}:1", f"docker://{host}/{repository}:1"
            parts.run(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, target])
            digest = f"sha256:{_digest(host, repository)}"
            _cosign(
                work,
                *("sign", "--key", f"{key}.key", "--tlog-upload=false", "--yes"),
                *("--use-signing-config=false", "--allow-http-registry", "-a", "stage=production"),
                *options,
                f"{host}/{repository}@{digest}",
            )
            found["repositories"][repository] = _dump(host, repository)
    return found


def _make_key(work: Path, name: str, key: PrivateKeyTypes) -> str:
    """Let cosign import a key; return the public one as cosign writes it."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (work / f"{name}.pem").write_bytes(pem)
    _cosign(work, "import-key-pair", "--yes", "--key", f"{name}.pem", "-o", name)
    return (work / f"{name}.pub").read_text("ascii")


def _cosign(work: Path, *arguments: str) -> None:
    environment = {"COSIGN_PASSWORD": "", "COSIGN_EXPERIMENTAL": "1", "HOME": str(work)}
    subprocess.run(
        ["cosign", *arguments],
        cwd=work,
        env={**os.environ, **environment},
        check=True,
        stdout=sys.stderr,
    )


def _digest(host: str, repository: str) -> str:
    _, header, _ = _get(f"http://{host}/v2/{repository}/manifests/1")
    return header.partition(":")[2]


def _dump(host: str, repository: str) -> dict[str, Any]:
    """Return everything in a repository: tags, manifests by digest, blobs in base64."""
    base = f"http://{host}/v2/{repository}"
    tags = json.loads(_get(f"{base}/tags/list")[2])["tags"]
    found: dict[str, Any] = {"tags": {}, "manifests": {}, "blobs": {}}
    todo = list(tags)
    while todo:
        name = todo.pop()
        kind, digest, body = _get(f"{base}/manifests/{name}")
        if name in tags:
            found["tags"][name] = digest
        found["manifests"][digest] = [kind, body.decode()]
        document = json.loads(body)
        todo += [each["digest"] for each in document.get("manifests", [])]
        for blob in [document.get("config"), *document.get("layers", [])]:
            if blob is not None:
                data = _get(f"{base}/blobs/{blob['digest']}")[2]
                found["blobs"][blob["digest"]] = base64.b64encode(data).decode()
    return found


def _get(url: str) -> tuple[str, str, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": ACCEPT})) as reply:
        headers = reply.headers
        return headers["Content-Type"], headers.get("Docker-Content-Digest", ""), reply.read()


if __name__ == "__main__":
    main()
