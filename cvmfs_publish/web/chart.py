"""Draw sizes by directory as rectangles: where the bytes of an image are, seen at a glance.

Squarified treemaps (Bruls, Huizing, van Wijk 2000): rows of rectangles as square as can be.  Pure;
the result is numbers and short texts, placed by a template.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cvmfs_publish.repository.native.listing import DirectorySize
from cvmfs_publish.words import format_bytes

COLOURS = 8  # classes of the style sheet; directories beyond share the last one
LEAST_SHARE = 0.002  # of an area: smaller rectangles would be a pixel
_CHARACTER = 8.0  # units: width of one at the size of labels, generously
_LINE = 17.0  # units: height of a line of a label
_GAP = 1.5  # units between rectangles


@dataclass(frozen=True, slots=True)
class Box:
    """One rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: int
    path: str  # of the directory
    size: int  # bytes
    label: str  # as much of the path as fits; "" if nothing does
    note: str  # its size, if there is room for that too


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture; coordinates in its own units."""

    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class _Area:
    x: float
    y: float
    width: float
    height: float


def draw_sizes(sizes: Sequence[DirectorySize], width: int, height: int) -> Chart:
    """Return the picture of directories of two levels; "" stands for files directly in the root."""
    groups: defaultdict[str, list[DirectorySize]] = defaultdict(list)
    for directory in sizes:
        if directory.bytes > 0:
            groups[directory.path.split("/")[0]].append(directory)
    total = sum(directory.bytes for group in groups.values() for directory in group)
    tops = sorted(groups, key=lambda top: (-_sum(groups[top]), top))
    tops = [top for top in tops if _sum(groups[top]) >= LEAST_SHARE * total]
    whole = _Area(0, 0, width, height)
    boxes: list[Box] = []
    for number, (top, area) in enumerate(
        zip(tops, _squarify([_sum(groups[top]) for top in tops], whole), strict=True)
    ):
        inner = [each for each in groups[top] if each.bytes >= LEAST_SHARE * total]
        inner = sorted(inner, key=lambda each: -each.bytes) or groups[top][:1]
        areas = _squarify([each.bytes for each in inner], area)
        boxes += [
            _box(each, place, min(number, COLOURS - 1))
            for each, place in zip(inner, areas, strict=True)
        ]
    return Chart(width, height, tuple(boxes))


def _sum(group: Sequence[DirectorySize]) -> int:
    return sum(directory.bytes for directory in group)


def _box(directory: DirectorySize, area: _Area, colour: int) -> Box:
    width, height = max(area.width - _GAP, 0.5), max(area.height - _GAP, 0.5)
    path = directory.path or "(top)"
    letters = int((width - 10) / _CHARACTER)
    label, note = "", ""
    if letters >= 3 and height >= _LINE + 4:
        label = path if len(path) <= letters else "…" + path[-(letters - 1) :]
        size = format_bytes(directory.bytes)
        if len(size) <= letters and height >= 2 * _LINE + 4:
            note = size
    return Box(
        round(area.x, 1),
        round(area.y, 1),
        round(width, 1),
        round(height, 1),
        colour,
        path,
        directory.bytes,
        label,
        note,
    )


def _squarify(values: Sequence[int], area: _Area) -> list[_Area]:
    """Return one rectangle for each value, which are positive and descend; together the area."""
    placed: list[_Area] = []
    rest, left = area, float(sum(values))
    row: list[int] = []
    for value in values:
        if row and _worst([*row, value], rest, left) > _worst(row, rest, left):
            done, rest = _lay(row, rest, left)
            placed += done
            left -= sum(row)
            row = []
        row.append(value)
    return placed + (_lay(row, rest, left)[0] if row else [])


def _worst(row: Sequence[int], area: _Area, total: float) -> float:
    """Return the largest ratio of sides, if the row is laid along the shorter side."""
    side = min(area.width, area.height)
    if side <= 0 or total <= 0:
        return 1.0
    share = sum(row) / total * area.width * area.height
    depth = share / side
    lengths = [value / sum(row) * side for value in row]
    return max(max(depth / length, length / depth) for length in lengths)


def _lay(row: Sequence[int], area: _Area, total: float) -> tuple[list[_Area], _Area]:
    """Lay a row along the shorter side; return its rectangles and what is left."""
    share = sum(row) / total
    placed, offset = [], 0.0
    if area.width >= area.height:
        depth = area.width * share
        for value in row:
            length = area.height * value / sum(row)
            placed.append(_Area(area.x, area.y + offset, depth, length))
            offset += length
        return placed, _Area(area.x + depth, area.y, area.width - depth, area.height)
    depth = area.height * share
    for value in row:
        length = area.width * value / sum(row)
        placed.append(_Area(area.x + offset, area.y, length, depth))
        offset += length
    return placed, _Area(area.x, area.y + depth, area.width, area.height - depth)
