"""Plan the layers of the benchmark image: names, kinds, sizes, links, whiteouts.  Pure.

The numbers are those of a real analysis image (Debian, a Python stack, a physics framework, an
experiment's own software): 72,308 entries, 64,584 files, 2,315,886,350 bytes, median file 2.3 KB,
90th percentile 29 KB, largest file 434 MB, 756 MB as four gzip layers.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from benchmarks.material import Content, make_words

# Sizes of all but the largest files follow a log-normal law.  With the share of empty files below
# these two give the median of 2.3 KB and the 90th percentile of 29 KB.
BODY_MEDIAN = 2536
BODY_SIGMA = 1.947
EMPTY_SHARE = 0.03  # __init__.py, py.typed, lock files
COPY_SHARE = 0.08  # licences, vendored packages: same bytes under another name
BIG_FILE = 256 * 1024  # from here on files are libraries, data and archives, hardly ever source
BIG_FILE_WEIGHTS = {"python": 0.02, "header": 0.02, "prose": 0.02, "packed": 0.4}

TIME_BASE = 1_700_000_000  # seconds since 1970; files are up to a year older
YEAR = 365 * 24 * 3600
WHITEOUT = ".wh."  # image-spec layer.md, "Whiteouts"
OPAQUE = ".wh..wh..opq"  # image-spec layer.md, "Opaque Whiteout"


class Kind(Enum):
    """What a member of a layer is."""

    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"
    WHITEOUT = "whiteout"  # whole name in `path`, `.wh.` included


@dataclass(frozen=True)
class Member:
    """One member of a layer; `link` is a symlink's text or a hard link's path in the image."""

    path: str
    kind: Kind
    mode: int = 0o644
    owner: int = 0
    mtime: int = TIME_BASE
    content: Content | None = None
    link: str = ""

    @property
    def size(self) -> int:
        """Content bytes that the member carries in its layer."""
        return self.content.size if self.content else 0


@dataclass(frozen=True)
class Area:
    """A part of a layer that one installer wrote."""

    root: str
    files: int
    directories: int
    symlinks: int
    kinds: Mapping[str, float]  # of material.KINDS, relative frequency
    packages: bool = False  # half of the directories are __pycache__
    links_named: str = "{}.so.{}"
    owner: int = 0


LIBRARIES = {"elf": 0.75, "numbers": 0.03, "packed": 0.01, "table": 0.06, "prose": 0.15}
DOCUMENTS = {"prose": 0.62, "table": 0.2, "packed": 0.08, "header": 0.1}
PACKAGES = {
    "python": 0.49,
    "bytecode": 0.38,
    "elf": 0.03,
    "table": 0.04,
    "prose": 0.03,
    "header": 0.02,
    "packed": 0.01,
}
HEADERS = {"header": 0.95, "prose": 0.05}
DATA = {"table": 0.6, "numbers": 0.25, "packed": 0.03, "prose": 0.12}

# Files and directories at scale 1; removed files (DOOMED_*) come on top.
LAYERS: Sequence[Sequence[Area]] = (
    (
        Area("usr/lib/x86_64-linux-gnu", 2_200, 190, 760, LIBRARIES),
        Area("usr/bin", 900, 1, 190, {"elf": 0.6, "python": 0.4}, links_named="{}-{}"),
        Area("usr/share/doc", 3_300, 1_400, 60, DOCUMENTS, links_named="{}.{}.gz"),
        Area("usr/share", 4_400, 420, 160, DOCUMENTS, links_named="{}{}"),
        Area("usr/include", 1_700, 110, 5, HEADERS, links_named="{}{}.h"),
        Area("var/lib/dpkg/info", 1_300, 1, 0, {"prose": 1.0}),
        Area("etc", 500, 90, 170, DATA, links_named="{}{}.conf"),
    ),
    (
        Area("opt/conda/lib/python3.11/site-packages", 24_850, 2_000, 40, PACKAGES, packages=True),
        Area("opt/conda/lib", 700, 40, 230, LIBRARIES),
        Area("opt/conda/include", 3_900, 210, 10, HEADERS, links_named="{}{}.h"),
        Area("opt/conda/share", 2_500, 260, 40, DOCUMENTS, links_named="{}{}"),
        Area("opt/conda/conda-meta", 420, 1, 0, {"table": 1.0}),
    ),
    (
        Area("opt/root/include", 4_200, 180, 15, HEADERS, links_named="{}{}.h"),
        Area("opt/root/lib", 480, 12, 150, LIBRARIES),
        Area("opt/root/tutorials", 1_900, 120, 10, {"header": 0.8, "python": 0.2}),
        Area("opt/geant4/include", 3_100, 60, 10, HEADERS, links_named="{}{}.hh"),
        Area("opt/geant4/share/data", 3_500, 150, 30, DATA, links_named="{}{}"),
        Area("opt/geant4/lib", 120, 4, 90, LIBRARIES),
    ),
    (
        Area("opt/analysis", 3_200, 300, 30, PACKAGES, packages=True, owner=1000),
        Area("opt/analysis/data", 700, 40, 10, DATA, links_named="{}{}", owner=1000),
        Area("home/analysis", 390, 60, 5, DATA, links_named="{}{}", owner=1000),
    ),
)
LARGE_FILES: Sequence[tuple[int, str, str, int]] = (  # layer, path, content kind, bytes
    (2, "opt/root/lib/libCling.so.6.30", "elf", 434_109_000),
    (1, "opt/conda/lib/python3.11/site-packages/torch/lib/libtorch_cpu.so", "elf", 236_400_128),
    (2, "opt/geant4/share/data/G4EMLOW8.5/cross_sections.dat", "numbers", 151_207_424),
    (0, "usr/lib/x86_64-linux-gnu/libLLVM-15.so.1", "elf", 117_803_536),
    (3, "opt/analysis/data/calibration.root", "numbers", 104_222_720),
    (1, "opt/conda/lib/libmkl_core.so.2", "elf", 44_100_288),
    (1, "opt/conda/pkgs/wheels/xgboost-2.1.0-py3-none-manylinux_x86_64.whl", "packed", 18_303_112),
    (0, "usr/lib/locale/locale-archive", "table", 31_008_768),
    (2, "opt/geant4/lib/libG4processes.a", "elf", 38_455_296),
    (0, "usr/share/icu/icudt72l.dat", "numbers", 27_020_288),
    (1, "opt/conda/lib/libopenblasp-r0.3.27.so", "elf", 22_031_360),
    (3, "opt/analysis/data/events.json", "table", 14_500_011),
    (2, "opt/root/lib/libCore.so.6.30", "elf", 19_013_120),
    (0, "usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", "elf", 16_300_992),
)
LEADING_SYMLINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}
EMPTY_DIRECTORIES = ("dev", "proc", "sys", "run", "mnt", "srv", "usr/lib64", "usr/sbin", "var/tmp")

OPAQUE_DIRECTORY = "opt/conda/pkgs/cache"  # filled in the second layer, replaced in the fourth
DOOMED_OPAQUE = 700  # files that the opaque directory hides
DOOMED_DIRECTORY = "var/lib/apt/lists"  # filled in the first layer, removed in the third
DOOMED_IN_DIRECTORY = 300
DOOMED_FILES = 200  # whiteouts of single files
UPGRADED_FILES = 250  # the third layer replaces files of the first two
CHMODED_FILES = 900  # the fourth layer repeats files of the second with another mode (chmod -R)
HARD_LINKS = (130, 130, 30, 30)  # per layer; those of the third and fourth point into lower layers
CHMODED_LIBRARY = "opt/conda/lib/libmkl_core.so.2"  # and one large file with them
UPDATE_FILES = 200

_EXTENSIONS = {
    "python": ".py",
    "bytecode": ".cpython-311.pyc",
    "header": ".h",
    "prose": ".txt",
    "table": ".xml",
    "elf": ".so",
    "numbers": ".dat",
    "packed": ".png",
}


class _Planner:
    """Accumulates the members of the layers.  Not thread-safe; used once."""

    def __init__(self, scale: float, seed: int) -> None:
        self.scale = scale
        self.rng = random.Random(f"shape:{seed}")
        self.words = make_words(self.rng, 5000)
        self.layers: list[dict[str, Member]] = [{} for _ in range(5)]
        total = sum(self.count(area.files) for layer in LAYERS for area in layer)
        self.sizes = _body_sizes(total, self.rng)
        self.contents: list[Content] = []

    def count(self, at_scale_one: int) -> int:
        return max(1, round(at_scale_one * self.scale)) if at_scale_one else 0

    def add(self, layer: int, member: Member) -> None:
        self.layers[layer][member.path] = member

    def mtime(self) -> int:
        return TIME_BASE - self.rng.randrange(YEAR)

    def new_content(self, kinds: Mapping[str, float], size: int) -> Content:
        rng = self.rng
        if self.contents and rng.random() < COPY_SHARE:
            return rng.choice(self.contents)
        weights = [
            weight * (BIG_FILE_WEIGHTS.get(kind, 1.0) if size > BIG_FILE else 1.0)
            for kind, weight in kinds.items()
        ]
        kind = rng.choices(list(kinds), weights)[0]
        self.contents.append(Content(kind, size, rng.getrandbits(60)))
        return self.contents[-1]

    def plan_area(self, layer: int, area: Area) -> None:
        rng = self.rng
        directories = self._plan_directories(layer, area)
        weights = [rng.paretovariate(1.1) for _ in directories]
        for directory in rng.choices(directories, weights, k=self.count(area.files)):
            content = self.new_content(area.kinds, self.sizes.pop())
            if content.kind == "bytecode" and area.packages and "__pycache__" not in directory:
                directory += "/__pycache__"  # planned with its parent
            path = self.free_path(layer, directory, "{}" + _EXTENSIONS[content.kind])
            mode = 0o755 if content.kind == "elf" else 0o644
            if rng.random() < 0.003:
                mode = rng.choice((0o600, 0o640, 0o4755, 0o444))
            self.add(
                layer, Member(path, Kind.FILE, mode, area.owner, self.mtime(), content=content)
            )
        files = [path for path in self.layers[layer] if path.startswith(area.root + "/")]
        for _ in range(self.count(area.symlinks)):
            directory = rng.choice(directories)
            path = self.free_path(layer, directory, area.links_named)
            link = self._link_text(directory, rng.choice(files))
            self.add(layer, Member(path, Kind.SYMLINK, 0o777, area.owner, self.mtime(), link=link))

    def _plan_directories(self, layer: int, area: Area) -> list[str]:
        """Grow a tree below the area's root; half of its directories hang on a recent one."""
        rng = self.rng
        directories = [area.root]
        wanted = self.count(area.directories)
        while len(directories) * (2 if area.packages else 1) < wanted:
            parent = rng.choice(directories[-8:] if rng.random() < 0.5 else directories)
            if parent.count("/") - area.root.count("/") < 6:
                directories.append(self.free_path(layer, parent, "{}"))
                self.add(layer, self.directory(directories[-1], area.owner))
        if area.packages:
            for directory in directories:
                self.add(layer, self.directory(f"{directory}/__pycache__", area.owner))
        return directories

    def directory(self, path: str, owner: int = 0, mode: int = 0o755) -> Member:
        return Member(path, Kind.DIRECTORY, mode, owner, self.mtime())

    def free_path(self, layer: int, directory: str, pattern: str) -> str:
        """Return a name that no layer has yet; `pattern` has one or two places for words."""
        while True:
            words = [self.rng.choice(self.words) for _ in range(2)]
            if self.rng.random() < 0.5:
                words[0] += f"_{self.rng.choice(self.words)}"
            path = f"{directory}/{pattern.format(*words)}"
            if not any(path in known for known in self.layers[: layer + 1]):
                return path

    def _link_text(self, directory: str, target: str) -> str:
        """A third of real symlinks are absolute, a few lead nowhere, the rest are relative."""
        draw = self.rng.random()
        if draw < 0.3:
            return f"/{target}"
        if draw < 0.33:
            return f"../{self.rng.choice(self.words)}"
        return "../" * (directory.count("/") + 1) + target

    def plan_hard_links(self, layer: int, count: int) -> None:
        """Link files of this layer; from the third layer on, files of the layer two below."""
        lower = layer if layer < 2 else layer - 2
        hidden = self._touched_above(lower)
        files = [
            member
            for member in self.layers[lower].values()
            if member.kind is Kind.FILE
            and member.size < BIG_FILE
            and member.path not in hidden
            and not member.path.startswith((OPAQUE_DIRECTORY, DOOMED_DIRECTORY))
        ]
        for target in self.rng.sample(files, min(count, len(files))):
            path = self.free_path(layer, target.path.rpartition("/")[0], "{}.{}")
            self.add(layer, replace(target, path=path, kind=Kind.HARD_LINK, link=target.path))

    def _touched_above(self, layer: int) -> set[str]:
        touched: set[str] = set()
        for above in self.layers[layer + 1 :]:
            for path in above:
                directory, _, name = path.rpartition("/")
                touched.add(f"{directory}/{name.removeprefix(WHITEOUT)}")
        return touched

    def plan_removed(self) -> None:
        """Files that later layers remove, on top of those that stay."""
        for layer, directory, count in (
            (1, OPAQUE_DIRECTORY, DOOMED_OPAQUE),
            (0, DOOMED_DIRECTORY, DOOMED_IN_DIRECTORY),
        ):
            self._plan_small_files(layer, directory, self.count(count))
        self.add(3, self.directory(OPAQUE_DIRECTORY))
        self.add(3, Member(f"{OPAQUE_DIRECTORY}/{OPAQUE}", Kind.WHITEOUT, 0))
        self._plan_small_files(3, OPAQUE_DIRECTORY, self.count(20))
        parent, _, name = DOOMED_DIRECTORY.rpartition("/")
        self.add(2, Member(f"{parent}/{WHITEOUT}{name}", Kind.WHITEOUT, 0))
        for number in range(self.count(DOOMED_FILES)):
            layer = number % 2
            directory = self.rng.choice(("usr/share/doc", "etc", "usr/bin"))
            path = self.free_path(layer, directory, "{}.{}")
            self._add_small_file(layer, path)
            directory, _, name = path.rpartition("/")
            self.add(2 + layer, Member(f"{directory}/{WHITEOUT}{name}", Kind.WHITEOUT, 0))

    def _plan_small_files(self, layer: int, directory: str, count: int, owner: int = 0) -> None:
        self.add(layer, self.directory(directory, owner))
        for _ in range(count):
            self._add_small_file(layer, self.free_path(layer, directory, "{}.{}"), owner)

    def _add_small_file(self, layer: int, path: str, owner: int = 0) -> None:
        size = int(self.rng.lognormvariate(7.2, 1.0))
        content = Content(self.rng.choice(("prose", "table")), size, self.rng.getrandbits(60))
        self.add(layer, Member(path, Kind.FILE, 0o644, owner, self.mtime(), content=content))

    def plan_rewritten(self) -> None:
        """An upgrade replaces files of lower layers; a `chmod -R` repeats them byte for byte."""
        rng = self.rng
        for layer, sources, count, changed in (
            (2, (0, 1), UPGRADED_FILES, True),
            (3, (1,), CHMODED_FILES, False),
        ):
            touched = self._touched_above(0)
            files = [
                member
                for source in sources
                for member in self.layers[source].values()
                if member.kind is Kind.FILE
                and member.size < BIG_FILE
                and member.path not in touched
                and not member.path.startswith((OPAQUE_DIRECTORY, DOOMED_DIRECTORY))
            ]
            if not changed:
                library = self.layers[1][CHMODED_LIBRARY]
                self.add(layer, replace(library, mode=0o775, mtime=self.mtime()))
            for member in rng.sample(files, min(self.count(count), len(files))):
                mtime = self.mtime()
                if changed and member.content:
                    content = replace(member.content, seed=rng.getrandbits(60))
                    self.add(layer, replace(member, content=content, mtime=mtime))
                else:
                    self.add(layer, replace(member, mode=member.mode | 0o022, mtime=mtime))

    def plan_update(self) -> None:
        """The small layer on top: new scripts, and new versions of some old ones."""
        old = [
            member
            for member in self.layers[3].values()
            if member.kind is Kind.FILE
            and member.path.startswith("opt/analysis/")
            and member.size < 16 * 1024
        ]
        chosen = self.rng.sample(old, min(UPDATE_FILES // 5, len(old) // 2))
        for member in chosen:
            size = int(self.rng.lognormvariate(6.5, 0.8))
            content = Content("python", size, self.rng.getrandbits(60))
            self.add(4, replace(member, content=content, mtime=TIME_BASE + 1))
        directory = "opt/analysis/release-2"
        self._plan_small_files(4, directory, UPDATE_FILES - len(chosen), 1000)

    def with_parents(self, layer: int) -> list[Member]:
        """Return a layer as Docker writes one: parents named first, hard links last."""
        members = self.layers[layer]
        owners = {path: member for known in self.layers for path, member in known.items()}
        for path in list(members):
            while "/" in path:
                path = path.rpartition("/")[0]
                if path not in members:
                    members[path] = owners.get(path) or self.directory(path)
                    owners[path] = members[path]
        return sorted(
            members.values(), key=lambda member: (member.kind is Kind.HARD_LINK, member.path)
        )


def _body_sizes(count: int, rng: random.Random) -> list[int]:
    """Return `count` sizes in random order; their quantiles are exactly those of the law."""
    empty = round(count * EMPTY_SHARE)
    law = statistics.NormalDist(math.log(BODY_MEDIAN), BODY_SIGMA)
    body = count - empty
    sizes = [round(math.exp(law.inv_cdf((rank + 0.5) / body))) for rank in range(body)]
    sizes += [0] * empty
    rng.shuffle(sizes)
    return sizes


def plan_image(scale: float = 1.0, seed: int = 1) -> list[list[Member]]:
    """Return the members of the four layers and of the update layer, in tar order.

    `scale` multiplies the number of files and the sizes of the large ones; other sizes and their
    percentiles stay.  Equal arguments give equal plans.
    """
    planner = _Planner(scale, seed)
    for layer, areas in enumerate(LAYERS):
        for area in areas:
            planner.plan_area(layer, area)
    for number, (layer, path, kind, size) in enumerate(LARGE_FILES):
        content = Content(kind, max(1, round(size * scale)), seed * 1000 + number)
        mode = 0o755 if kind == "elf" else 0o644
        planner.add(layer, Member(path, Kind.FILE, mode, 0, planner.mtime(), content=content))
    for path, link in LEADING_SYMLINKS.items():
        planner.add(0, Member(path, Kind.SYMLINK, 0o777, link=link))
    for path in EMPTY_DIRECTORIES:
        planner.add(0, planner.directory(path))
    planner.add(0, planner.directory("tmp", mode=0o1777))
    planner.add(0, planner.directory("root", mode=0o700))
    planner.plan_removed()
    planner.plan_rewritten()
    for layer, count in enumerate(HARD_LINKS):
        planner.plan_hard_links(layer, planner.count(count))
    planner.plan_update()
    return [planner.with_parents(layer) for layer in range(5)]


def flatten(layers: Iterable[Sequence[Member]]) -> dict[str, Member]:
    """Return what stacking the layers leaves, by path; whiteouts act on lower layers only."""
    tree: dict[str, Member] = {}
    for layer in layers:
        gone: list[str] = []
        emptied: list[str] = []
        for member in layer:
            if member.kind is Kind.WHITEOUT:
                directory, _, name = member.path.rpartition("/")
                if name == OPAQUE:
                    emptied.append(f"{directory}/")
                else:
                    gone.append(f"{directory}/{name.removeprefix(WHITEOUT)}".lstrip("/"))
        below = (*(f"{path}/" for path in gone), *emptied)
        tree = {
            path: member
            for path, member in tree.items()
            if path not in gone and not path.startswith(below)
        }
        tree.update((member.path, member) for member in layer if member.kind is not Kind.WHITEOUT)
    return tree


@dataclass(frozen=True)
class Shape:
    """What a file tree looks like; sizes in bytes.  Hard links count as files."""

    entries: int
    files: int
    directories: int
    symlinks: int
    hard_links: int
    total_bytes: int
    median: int
    percentile_90: int
    largest: int
    above_100_mb: int


def describe(tree: Mapping[str, Member]) -> Shape:
    """Count and measure a flattened tree."""
    kinds = [member.kind for member in tree.values()]
    sizes = sorted(
        member.size for member in tree.values() if member.kind in (Kind.FILE, Kind.HARD_LINK)
    )
    return Shape(
        entries=len(tree),
        files=len(sizes),
        directories=kinds.count(Kind.DIRECTORY),
        symlinks=kinds.count(Kind.SYMLINK),
        hard_links=kinds.count(Kind.HARD_LINK),
        total_bytes=sum(sizes),
        median=sizes[len(sizes) // 2],
        percentile_90=sizes[len(sizes) * 9 // 10],
        largest=sizes[-1],
        above_100_mb=sum(size >= 100_000_000 for size in sizes),
    )
