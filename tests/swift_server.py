"""Run OpenStack Swift with its s3api in one process: `python swift_server.py FOLDER PORT`.

One replica on one device, the folder, whose file system needs extended attributes.  Logins of its
own version 1, and temporary URLs; no memcached.
For the Python that `tools/install-parts` puts Swift beside; a helper of `tests.s3_swift`.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import os
import sys
from array import array

import eventlet

eventlet.monkey_patch()

from eventlet import listen, wsgi  # noqa: E402 - after the patch, as its manual says
from swift.account.server import AccountController  # noqa: E402
from swift.common import utils  # noqa: E402
from swift.common.ring import RingData  # noqa: E402
from swift.common.wsgi import loadapp  # noqa: E402
from swift.container.server import ContainerController  # noqa: E402
from swift.obj.server import ObjectController  # noqa: E402

PROXY = """
[DEFAULT]
swift_dir = {folder}
log_level = ERROR
[pipeline:main]
pipeline = catch_errors s3api tempurl tempauth proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:s3api]
use = egg:swift#s3api
check_pipeline = false
location = us-east-1
[filter:tempurl]
use = egg:swift#tempurl
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
"""


def ring(kind: str, port: int, folder: str) -> None:
    """Say where all data of one kind are: here."""
    device = {"id": 0, "region": 1, "zone": 0, "device": "sda1", "weight": 1.0}
    for role in ("", "replication_"):
        device |= {role + "ip": "127.0.0.1", role + "port": port}
    RingData([array("H", [0, 0])], [device], 31).save(f"{folder}/{kind}.ring.gz")


class Logins:
    """What stands for memcached: it remembers logins, and nothing about containers."""

    def __init__(self) -> None:
        self._found: dict[str, object] = {}

    def get(self, key: str, **_: object) -> object:
        return self._found.get(key)

    def set(self, key: str, value: object, **_: object) -> None:
        if "/token/" in key or "/user/" in key:
            self._found[key] = value

    def delete(self, key: str, **_: object) -> None:
        self._found.pop(key, None)


def main(folder: str, port: int) -> None:
    # what /etc/swift/swift.conf would say
    utils.HASH_PATH_PREFIX, utils.HASH_PATH_SUFFIX = b"", b"tests"
    utils.validate_hash_conf = lambda: None
    os.makedirs(f"{folder}/sda1")
    common = {
        "devices": folder,
        "swift_dir": folder,
        "mount_check": "false",
        "disable_fallocate": "true",
        "fallocate_reserve": "0",
        "log_level": "ERROR",
    }
    kinds = {
        "account": AccountController,
        "container": ContainerController,
        "object": ObjectController,
    }
    with open(os.devnull, "w") as nowhere:
        for kind, controller in kinds.items():
            listener = listen(("127.0.0.1", 0))
            ring(kind, listener.getsockname()[1], folder)
            eventlet.spawn(wsgi.server, listener, controller(common), nowhere)
        with open(f"{folder}/proxy.conf", "w") as file:
            file.write(PROXY.format(folder=folder))
        application, logins = loadapp(f"{folder}/proxy.conf"), Logins()

        def with_logins(environ: dict[str, object], start: object) -> object:
            environ["swift.cache"] = logins
            return application(environ, start)

        wsgi.server(listen(("127.0.0.1", port)), with_logins, nowhere)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
