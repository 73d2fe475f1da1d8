"""The scalar values of a site configuration, each refusing what a rendered file cannot express."""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta

from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import RefusedKeyError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]*")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._+@/-]+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_URL = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.:\[\]-]*(/[A-Za-z0-9._~!$&()*+,;=:@%/?-]*)?")
MAX_PATH = 1000  # characters; PATH_MAX is 4096 bytes with what is appended
MAX_LINE = 4000  # characters; batch systems and shells cut lines from about there on
STANDARD = "standard"  # the word in `roots` that stands for the built-in list


class HostPath(str):
    """An absolute path on worker nodes; blanks, commas, colons and quotes are possible."""

    __slots__ = ()
    WANTED = "an absolute path such as /nfs/data"

    @classmethod
    def parse(cls, text: str) -> HostPath:
        """Raise `InputError` unless the path is absolute, normalised and printable."""
        if text[:1] != "/" or not text.isprintable():
            raise InputError(f"{text[:200]!r} is not an absolute path", hint=f"write {cls.WANTED}")
        if text == "/" or {"", ".", ".."} & set(text.split("/")[1:]):
            raise InputError(
                f"{text[:200]!r} is not a normalised path",
                hint="without //, ., .. and without a slash at the end",
            )
        if len(text) > MAX_PATH:
            raise InputError(
                f"a path of {len(text)} characters; at most {MAX_PATH} are possible",
                hint="name a shorter one; a link on the nodes can lead from it",
            )
        return cls(text)


class PlainPath(HostPath):
    """A path that every configuration language can express without quotes."""

    __slots__ = ()
    WANTED = "an absolute path of letters, digits and . _ + @ -"

    @classmethod
    def parse(cls, text: str) -> PlainPath:
        path = HostPath.parse(text)
        if not _PLAIN_PATH.fullmatch(text):
            raise InputError(
                f"{text[:200]!r} has characters that cannot be written in every file it goes to",
                hint=f"write {cls.WANTED}",
            )
        return cls(path)


class RootEntry(HostPath):
    """One of `roots`: a path, or the word `standard` for the built-in list."""

    __slots__ = ()
    WANTED = "an absolute path, or the word standard"

    @classmethod
    def parse(cls, text: str) -> RootEntry:
        return cls(text if text == STANDARD else HostPath.parse(text))


class VariableName(str):
    """The name of an environment variable."""

    __slots__ = ()
    WANTED = "the name of an environment variable"

    @classmethod
    def parse(cls, text: str) -> VariableName:
        if not _VARIABLE.fullmatch(text) or text.startswith(("cr_", "cvmfs_site_")):
            raise InputError(
                f"{text[:100]!r} cannot be used as the name of a variable",
                hint="use letters, digits and _, no digit first; cr_… and cvmfs_site_… are taken",
            )
        return cls(text)


class ScratchPlace(str):
    """Where a job's private directory may be made: `/scratch`, or `$SLURM_TMPDIR`."""

    __slots__ = ()
    WANTED = "an absolute path, or $NAME for the value of an environment variable"

    @classmethod
    def parse(cls, text: str) -> ScratchPlace:
        if text.startswith("$"):
            return cls("$" + VariableName.parse(text[1:]))
        return cls(HostPath.parse(text))


class ImageName(str):
    """An image as users of the launcher name it: a published name or an absolute path."""

    __slots__ = ()
    WANTED = "an image such as ghcr.io/a/b:1, or an absolute path"

    @classmethod
    def parse(cls, text: str) -> ImageName:
        if text.startswith("/"):
            return cls(HostPath.parse(text))
        if not _IMAGE_NAME.fullmatch(text) or "//" in text or ".." in text.split("/"):
            raise InputError(f"{text[:200]!r} is not an image name", hint=f"write {cls.WANTED}")
        return cls(text)


class DomainName(str):
    """The domain of repositories, `example.org` for `containers.example.org`."""

    __slots__ = ()
    WANTED = "a domain such as example.org"

    @classmethod
    def parse(cls, text: str) -> DomainName:
        if not _DOMAIN.fullmatch(text):
            raise InputError(f"{text[:100]!r} is not a domain", hint=f"write {cls.WANTED}")
        return cls(text)


class Line(str):
    """Text without control characters: it becomes part of one line of a rendered file."""

    __slots__ = ()
    WANTED = "one line of text"

    @classmethod
    def parse(cls, text: str) -> Line:
        if not text.isprintable():
            raise InputError(
                f"{text[:200]!r} has a line break or another control character",
                hint="write it on one line of printable characters",
            )
        if len(text) > MAX_LINE:
            raise InputError(
                f"a line of {len(text)} characters; at most {MAX_LINE} are possible",
                hint="shorten it, or put it into a file on the nodes",
            )
        return cls(text)


class Word(str):
    """A name that becomes part of a file's name: a module, a version, a command."""

    __slots__ = ()
    WANTED = "a name of letters, digits and . _ + -"

    @classmethod
    def parse(cls, text: str) -> Word:
        if not _WORD.fullmatch(text) or len(text) > 100:
            raise InputError(f"{text[:100]!r} cannot be used as a file name", hint=cls.WANTED)
        return cls(text)


class HostName(str):
    """The name or IPv4 address of a host."""

    __slots__ = ()
    WANTED = "the name of a host, as proxy.example.org"

    @classmethod
    def parse(cls, text: str) -> HostName:
        if not _HOST.fullmatch(text) or ".." in text or len(text) > 253:
            raise InputError(f"{text[:100]!r} is not a host name", hint=f"write {cls.WANTED}")
        return cls(text)


class ObjectName(str):
    """The name of a Kubernetes object: small letters, digits, dots and dashes."""

    __slots__ = ()
    WANTED = "small letters, digits and dashes"

    @classmethod
    def parse(cls, text: str) -> ObjectName:
        if not _LABEL.fullmatch(text) or len(text) > 63:
            raise InputError(f"{text[:100]!r} cannot name an object", hint=f"write {cls.WANTED}")
        return cls(text)


class Url(str):
    """An address nodes fetch from with curl or wget; it never holds a password."""

    __slots__ = ()
    WANTED = "an address such as https://mirror.example.org/images"

    @classmethod
    def parse(cls, text: str) -> Url:
        if not _URL.fullmatch(text) or len(text) > MAX_LINE:
            raise InputError(f"{text[:200]!r} is not an address", hint=f"write {cls.WANTED}")
        return cls(text)


class Network(str):
    """A network of worker nodes in CIDR form, `10.20.0.0/16`."""

    __slots__ = ()
    WANTED = "a network such as 10.20.0.0/16"

    @classmethod
    def parse(cls, text: str) -> Network:
        try:
            return cls(ipaddress.ip_network(text))
        except ValueError as exc:
            raise InputError(f"{text[:100]!r} is not a network: {exc}", hint=cls.WANTED) from exc


def check_number(key: str, value: int, low: int, high: int, unit: str = "") -> None:
    """Raise `RefusedKeyError` unless the value of `key` lies between `low` and `high`."""
    if not low <= value <= high:
        raise RefusedKeyError(
            (key,),
            f"{value}{unit and ' '}{unit} is not between {low} and {high}{unit and ' '}{unit}",
            hint="write a whole number in this range",
        )


def check_duration(key: str, value: timedelta, low: int, high: int) -> None:
    """Raise `RefusedKeyError` unless the value of `key` lies between two numbers of seconds."""
    seconds = value.total_seconds()
    if not low <= seconds <= high:
        wanted = f"between {format_seconds(low)} and {format_seconds(high)}"
        what = f"{format_seconds(int(seconds))} is not {wanted}"
        raise RefusedKeyError((key,), what, hint="write a duration in this range, as 45s or 15m")


def format_seconds(seconds: int) -> str:
    """Return a duration as files write it, in the largest unit without a remainder."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
