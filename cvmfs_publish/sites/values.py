"""The scalar values of a site configuration, each refusing what a rendered file cannot express."""

from __future__ import annotations

import ipaddress
import re

from cvmfs_publish.errors import InputError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]*")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_URL = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.:\[\]-]*(/[A-Za-z0-9._~!$&()*+,;=:@%/?-]*)?")
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
        return cls(text)


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
            raise InputError(f"{text[:100]!r} cannot be used as the name of a variable")
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
            raise InputError(f"{text[:200]!r} has a line break or another control character")
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


class Url(str):
    """An address nodes fetch from with curl or wget; it never holds a password."""

    __slots__ = ()
    WANTED = "an address such as https://mirror.example.org/images"

    @classmethod
    def parse(cls, text: str) -> Url:
        if not _URL.fullmatch(text):
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
