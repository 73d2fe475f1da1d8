"""What `cvmfs_server` wrote down is understood as a shell would, without one."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.errors import InputError
from cvmfs_publish.repository.native.server_conf import (
    LocalUpstream,
    S3Upstream,
    parse_assignments,
    read_server_conf,
)

# As `cvmfs_server mkfs` of 2.12 writes it.
REAL = """\
# Created by cvmfs_server.
CVMFS_CREATOR_VERSION=143
CVMFS_REPOSITORY_NAME=unpacked.example.org
CVMFS_REPOSITORY_TYPE=stratum0
CVMFS_USER=cvmfs
CVMFS_UNION_DIR=/cvmfs/unpacked.example.org
CVMFS_SPOOL_DIR=/var/spool/cvmfs/unpacked.example.org
CVMFS_STRATUM0=http://localhost/cvmfs/unpacked.example.org
CVMFS_UPSTREAM_STORAGE=local,/srv/cvmfs/unpacked.example.org/data/txn,/srv/cvmfs/unpacked.example.org
CVMFS_USE_FILE_CHUNKING=true
CVMFS_MIN_CHUNK_SIZE=4194304
CVMFS_AVG_CHUNK_SIZE=8388608
CVMFS_MAX_CHUNK_SIZE=16777216
CVMFS_UNION_FS_TYPE=overlayfs
CVMFS_HASH_ALGORITHM=shake128
CVMFS_COMPRESSION_ALGORITHM=default
CVMFS_EXTERNAL_DATA=false
CVMFS_AUTO_TAG=true
CVMFS_AUTO_TAG_TIMESPAN="4 weeks ago"   # a comment
CVMFS_GARBAGE_COLLECTION=true
CVMFS_AUTO_REPAIR_MOUNTPOINT=true
CVMFS_REPOSITORY_TTL=61
export CVMFS_INCLUDE_XATTRS='true'
CVMFS_AUTOCATALOGS=false
CVMFS_IGNORE_XDIR_HARDLINKS=true
"""
S3 = """\
CVMFS_S3_HOST=s3.example.org
CVMFS_S3_PORT=9000
CVMFS_S3_ACCESS_KEY=who
CVMFS_S3_SECRET_KEY="se\\"cret$(never)"
CVMFS_S3_BUCKET=images
CVMFS_S3_DNS_BUCKETS=false
CVMFS_S3_REGION=us-east-1
CVMFS_S3_X_AMZ_ACL=
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_real_file_is_understood(tmp_path: Path) -> None:
    conf = read_server_conf(write(tmp_path / "server.conf", REAL))
    assert conf.name == "unpacked.example.org"
    assert conf.upstream == LocalUpstream(Path("/srv/cvmfs/unpacked.example.org"))
    assert conf.spool == Path("/var/spool/cvmfs/unpacked.example.org")
    assert conf.keys == Path("/etc/cvmfs/keys")
    assert conf.user == "cvmfs"
    assert conf.hash is HashAlgorithm.SHAKE128
    assert conf.compression == "zlib"
    assert conf.garbage_collection
    assert conf.auto_tag
    assert conf.auto_tag_timespan == timedelta(weeks=4)
    assert conf.ttl == 61
    assert conf.include_xattrs
    assert conf.chunk_sizes == (4194304, 8388608, 16777216)
    assert not conf.volatile
    assert conf.remarks == ()


def test_what_is_not_said_has_the_value_stock_tools_give_it(tmp_path: Path) -> None:
    text = "CVMFS_REPOSITORY_NAME=a.b\nCVMFS_UPSTREAM_STORAGE=local,/t,/s\n"
    conf = read_server_conf(write(tmp_path / "server.conf", text))
    assert conf.spool == Path("/var/spool/cvmfs/a.b")
    assert conf.hash is HashAlgorithm.SHA1
    assert (conf.auto_tag, conf.auto_tag_timespan, conf.garbage_collection) == (True, None, False)
    assert (conf.ttl, conf.nested_kcatalog_limit) == (None, None)


def test_the_s3_configuration_is_read_too(tmp_path: Path) -> None:
    config = write(tmp_path / "s3.conf", S3.replace("$(never)", "\\$(never)"))
    upstream = f"S3,/var/spool/cvmfs/x/tmp,cvmfs/unpacked.example.org@{config}"
    text = REAL.replace(
        "local,/srv/cvmfs/unpacked.example.org/data/txn,/srv/cvmfs/unpacked.example.org", upstream
    )
    conf = read_server_conf(write(tmp_path / "server.conf", text))
    assert conf.upstream == S3Upstream(
        endpoint="http://s3.example.org:9000",
        bucket="images",
        prefix="cvmfs/unpacked.example.org",
        access_key="who",
        secret_key='se"cret$(never)',
        region="us-east-1",
        dns_buckets=False,
        peek=True,
        config_file=config,
    )
    assert 'se"cret' not in repr(conf.upstream)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("CVMFS_USER=$(whoami)", "CVMFS_USER needs a shell"),
        ("CVMFS_USER=`whoami`", "CVMFS_USER needs a shell"),
        ('CVMFS_USER="a$HOME"', "CVMFS_USER needs a shell"),
        ("CVMFS_USER=a$HOME", "CVMFS_USER needs a shell"),
        ("CVMFS_USER=~/a", "CVMFS_USER needs a shell"),
        ("CVMFS_USER=a:~/a", "CVMFS_USER needs a shell"),
        ("CVMFS_USER=a;reboot", "CVMFS_USER needs a shell"),
        ("CVMFS_USER=a reboot", "which a shell would run"),
        ("CVMFS_USER='a", "not closed"),
        ('CVMFS_USER="a', "not closed"),
        ("CVMFS_USER=a\\", "next line"),
        (". /etc/other.conf", "not KEY=value"),
        ("if true; then", "not KEY=value"),
        ("A+=b", "not KEY=value"),
        ("CVMFS_AUTO_TAG=perhaps", "neither true nor false"),
        ("CVMFS_REPOSITORY_TTL=four", "not a number"),
        ("CVMFS_HASH_ALGORITHM=md5", "none of sha1"),
        ("CVMFS_COMPRESSION_ALGORITHM=xz", "none of default"),
        ("CVMFS_AUTO_TAG_TIMESPAN=yesterday", "not understood"),
        ("CVMFS_REPOSITORY_TYPE=stratum1", "Stratum 0"),
        ("CVMFS_UPSTREAM_STORAGE=gw,/tmp,http://gw:4929/api/v1", "behind the gateway"),
        ("CVMFS_UPSTREAM_STORAGE=local,/tmp", "KIND"),
        ("CVMFS_UPSTREAM_STORAGE=local,/tmp,relative", "no absolute path"),
        ("CVMFS_UPSTREAM_STORAGE=riak,/tmp,/x", "not known"),
        ("CVMFS_UPSTREAM_STORAGE=S3,/tmp,alias", "ALIAS@"),
        ("CVMFS_VOMS_AUTHZ=cms", "access control"),
        ("CVMFS_EXTERNAL_DATA=true", "outside of the repository"),
        ("CVMFS_REPOSITORY_NAME=", "CVMFS_REPOSITORY_NAME is missing"),
    ],
)
def test_what_is_not_possible_is_refused_with_file_and_line(
    tmp_path: Path, line: str, wanted: str
) -> None:
    path = write(tmp_path / "server.conf", REAL + line + "\n")
    with pytest.raises(InputError) as caught:
        read_server_conf(path)
    assert wanted in str(caught.value)
    assert str(path) in str(caught.value)
    if "missing" not in wanted:
        assert f":{REAL.count(chr(10)) + 1}:" in str(caught.value)


def test_what_is_done_otherwise_is_told(tmp_path: Path) -> None:
    switches = {
        "CVMFS_ENFORCE_LIMITS": "true",
        "CVMFS_USE_FILE_CHUNKING": "false",
        "CVMFS_AUTO_GC": "true",
        "CVMFS_VIRTUAL_DIR": "true",
        "CVMFS_INCLUDE_XATTRS": "false",
    }
    text = REAL + "".join(f"{key}={value}\n" for key, value in switches.items())
    conf = read_server_conf(write(tmp_path / "server.conf", text))
    assert [remark.partition(":")[0].partition(" ")[0] for remark in conf.remarks] == [
        "CVMFS_USE_FILE_CHUNKING",
        "CVMFS_ENFORCE_LIMITS",
        "CVMFS_VIRTUAL_DIR",
        "CVMFS_AUTO_GC",
        "CVMFS_INCLUDE_XATTRS",
    ]


def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.conf cannot be read") as caught:
        read_server_conf(tmp_path / "none.conf")
    assert "--server-conf" in caught.value.hint
    for data in (b"\xff", b"A=\0", b"A=" + bytes(2 * 1024 * 1024)):
        (tmp_path / "odd.conf").write_bytes(data)
        with pytest.raises(InputError, match=r"odd\.conf"):
            read_server_conf(tmp_path / "odd.conf")


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ("CVMFS_S3_FLAVOR=azure", "Azure"),
        ("CVMFS_S3_X_AMZ_ACL=public-read", "without an ACL"),
        ("CVMFS_S3_FLAVOR=awsv9", "awsv4"),
        ("CVMFS_S3_PROXY=http://p", "proxy"),
        ("CVMFS_S3_HOST=a/b", "no host"),
        ("CVMFS_S3_BUCKET=", "CVMFS_S3_BUCKET is missing"),
    ],
)
def test_an_impossible_s3_configuration_is_refused(tmp_path: Path, lines: str, wanted: str) -> None:
    config = write(tmp_path / "s3.conf", S3.replace("$(never)", "") + lines + "\n")
    text = f"CVMFS_REPOSITORY_NAME=a.b\nCVMFS_UPSTREAM_STORAGE=S3,/t,a.b@{config}\n"
    with pytest.raises(InputError, match=wanted):
        read_server_conf(write(tmp_path / "server.conf", text))


WORDS = st.lists(
    st.sampled_from(["a", " ", "'", '"', "\\", "$", "#", "`", ";", "~", ":", "=", "/", "\t", "é"]),
    max_size=7,
).map("".join)


@given(WORDS)
def test_whatever_is_accepted_is_what_a_shell_makes_of_it(value: str) -> None:
    line = f"A={value}"
    try:
        found = parse_assignments(line, "file")["A"].value
    except InputError:
        return
    script = line + '\nprintf %s "$A"'
    shell = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True)
    assert found.encode() == shell.stdout
