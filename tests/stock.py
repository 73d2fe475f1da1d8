"""What `cvmfs_server mkfs` leaves on a host: a repository, its keys, server.conf and the spool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.repository.native.server_conf import default_server_conf
from tests.unit.native.vectors import SHA1, Damaged, copy_keys


class Stock(Damaged):
    """A copy of a repository made by the real programs, with the files its host would have."""

    def __init__(self, directory: Path, name: str = SHA1) -> None:
        super().__init__(directory / "srv", name)
        for shard in (*(f"{number:02x}" for number in range(256)), "txn"):
            (self.root / "data" / shard).mkdir(exist_ok=True)
        self.directory = directory
        self.keys_folder = copy_keys(directory / "keys", name)
        self.spool = directory / "spool"
        self.spool.mkdir()
        self.settle()
        self.server_conf = default_server_conf(name, directory / "repositories.d")
        self.server_conf.parent.mkdir(parents=True)
        self.configure()

    def settle(self) -> None:
        """Bring the spool's notes in step with the repository, as after a publish."""
        checksum = ContentHash.of(
            self.reflog_file.read_bytes(), self.manifest().root_hash.algorithm
        )
        (self.spool / "reflog.chksum").write_text(str(checksum))
        root = self.manifest().root_hash
        (self.spool / "client.local").write_text(f"CVMFS_ROOT_HASH={root}\n")

    def configure(self, **values: str) -> None:
        """Write server.conf, with some values other than usual."""
        settings = {
            "CVMFS_CREATOR_VERSION": "143",
            "CVMFS_REPOSITORY_NAME": self.name,
            "CVMFS_REPOSITORY_TYPE": "stratum0",
            "CVMFS_USER": "root",
            "CVMFS_UNION_DIR": f"/cvmfs/{self.name}",
            "CVMFS_SPOOL_DIR": str(self.spool),
            "CVMFS_STRATUM0": f"http://localhost/cvmfs/{self.name}",
            "CVMFS_UPSTREAM_STORAGE": f"local,{self.root}/data/txn,{self.root}",
            "CVMFS_USE_FILE_CHUNKING": "true",
            "CVMFS_HASH_ALGORITHM": self.manifest().root_hash.algorithm.value,
            "CVMFS_COMPRESSION_ALGORITHM": "default",
            "CVMFS_AUTO_TAG": "true",
            "CVMFS_AUTO_TAG_TIMESPAN": '"4 weeks ago"',
            "CVMFS_GARBAGE_COLLECTION": "true",
            "CVMFS_INCLUDE_XATTRS": "true",
            "CVMFS_KEYS_DIR": str(self.keys_folder),
            **values,
        }
        self.server_conf.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))

    def everything(self) -> Mapping[str, tuple[int, int, bytes]]:
        """Mode, time and content of every file on the host."""
        found = {}
        for path in sorted(self.directory.rglob("*")):
            status = path.lstat()
            data = path.read_bytes() if path.is_file() else b""
            found[str(path)] = status.st_mode, status.st_mtime_ns, data
        return found
