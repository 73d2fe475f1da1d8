"""What a query string may say: read strictly, and described for the OpenAPI document.

One table serves both, so that what is promised is what is checked.  An unknown, repeated or
malformed parameter is refused with 422: whoever mistypes `sttaus=failed` must not be shown
everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from cvmfs_publish.settings import nearest
from cvmfs_publish.web.answers import HttpError

MAX_FIELDS = 40  # of a query or a form
# Printable text without line ends; JSON Schema and Python read this pattern alike.
TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]*$"
_WORD = "[a-z0-9][a-z0-9._-]*"
PLATFORM_PATTERN = (
    f"^{_WORD}/{_WORD}(/{_WORD})?$"  # what `Platform.parse` accepts, in small letters
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One text of a query."""

    name: str
    about: str
    pattern: str = TEXT_PATTERN
    max_length: int = 200
    choices: tuple[str, ...] = ()
    default: str = ""

    def read(self, text: str) -> str:
        if self.choices and text not in self.choices:
            raise self._wrong(text, f"one of {', '.join(filter(None, self.choices))}")
        if len(text) > self.max_length:
            raise self._wrong(text, f"at most {self.max_length} characters")
        if not re.search(self.pattern.replace("$", r"\Z"), text):
            raise self._wrong(text, f"text that matches {self.pattern}")
        return text

    def _wrong(self, text: str, wanted: str) -> HttpError:
        return unprocessable(f"{self.name} is {text[:100]!r}, wanted is {wanted}")

    def schema(self) -> dict[str, Any]:
        if self.choices:
            return {"type": "string", "enum": list(self.choices), "default": self.default}
        return {
            "type": "string",
            "maxLength": self.max_length,
            "pattern": self.pattern,
            "default": self.default,
        }


@dataclass(frozen=True, slots=True)
class NumberParameter:
    """One whole number of a query."""

    name: str
    about: str
    least: int
    most: int
    default: int

    def read(self, text: str) -> int:
        digits = text.removeprefix("-")
        if not digits.isascii() or not digits.isdecimal() or len(digits) > 18:
            raise unprocessable(f"{self.name} is {text[:100]!r}, wanted is a number")
        if not self.least <= int(text) <= self.most:
            raise unprocessable(
                f"{self.name} is {int(text)}, wanted is {self.least} to {self.most}"
            )
        return int(text)

    def schema(self) -> dict[str, Any]:
        return {
            "type": "integer",
            "minimum": self.least,
            "maximum": self.most,
            "default": self.default,
        }


AnyParameter = Parameter | NumberParameter


class Values:
    """What a query said, defaults included."""

    def __init__(self, values: Mapping[str, str | int]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        return str(self._values[name])

    def number(self, name: str) -> int:
        return int(self._values[name])


def read_query(query: str, parameters: Sequence[AnyParameter]) -> Values:
    """Return the values of a query string; raise `HttpError` (422) for anything else in it."""
    known = {parameter.name: parameter for parameter in parameters}
    values: dict[str, str | int] = {each.name: each.default for each in parameters}
    given = set[str]()
    for name, text in read_pairs(query):
        if name not in known:
            meant = nearest(name, list(known))
            hint = f"did you mean {meant}?" if meant else "known: " + (", ".join(known) or "none")
            raise unprocessable(f"unknown parameter {name[:100]!r}", hint)
        if name in given:
            raise unprocessable(f"{name} is given twice")
        given.add(name)
        values[name] = known[name].read(text)
    return Values(values)


def read_pairs(query: str) -> list[tuple[str, str]]:
    """Return the names and values of a query or a form as they come."""
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except (ValueError, UnicodeError) as exc:
        raise unprocessable("that is not a form: too many fields, or not UTF-8") from exc


def unprocessable(message: str, hint: str = "") -> HttpError:
    return HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, message, hint=hint)
