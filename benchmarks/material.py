"""Make file contents that compress like those of real images, from nothing but seeds.

Nothing is taken from the machine: every byte follows from a seed, so that two machines with the
same Python minor version measure the same image.  Megabytes of each *material* (source text,
machine code, relocation tables, detector data ...) are made once; a file is cut out of them at
places its own seed chooses.  Small files are one piece.  Large files are many pieces, and the
binary ones are also re-lettered (each piece passes through its own permutation of the 256 byte
values, which leaves a general-purpose compressor the same work but makes no two pieces equal), so
a compressor with a long memory gains nothing that it would not gain on real files.
"""

from __future__ import annotations

import array
import itertools
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

KiB = 1024
MiB = 1024 * KiB

SMALL_FILE = 192 * KiB  # up to this size a file is one piece of one material
IDENTITY = bytes(range(256))

_ONSETS: Sequence[str] = (
    *"bcdfghjklmnprstvwxz",
    "ch",
    "cl",
    "dr",
    "fl",
    "gr",
    "pl",
    "qu",
    "sh",
    "sl",
    "st",
    "tr",
)
_VOWELS: Sequence[str] = (*"aaeeiioouy", "ai", "ea", "ou", "io")
_CODAS: Sequence[str] = ("", "", "", *"nrstlmdx", "ck", "nd", "st")

# One line of a Python-like module; every `{}` becomes a name of that module.
_PYTHON_LINES = (
    "def {}(self, {}, {}=None):",
    'def {}({}, {}, *, {}="{}"):',
    "class {}({}):",
    "self.{} = {}",
    "self._{}_{} = {}.{}({})",
    "if {} is None:",
    "if not {} and {}.{} > {}:",
    "return self.{}.{}({}, {})",
    "return {}",
    "for {}, {} in {}.{}.items():",
    'raise ValueError("{} {} of {} must be {}: %r" % {})',
    "{} = {}[{}:{}]",
    "{} = np.{}({}, dtype={})",
    "# {} {} {} the {} of {} {}",
    '"""{} {} {} when {} is {}, {} {}.',
    "from {}.{} import {}",
    "import {}",
    "assert_equal({}.{}, {})",
    "",
    "",
)
_HEADER_LINES = (
    "#include <{}/{}.h>",
    "   virtual {} {}(const {}& {}) const;",
    "   inline {}* {}() {{ return f{}; }}",
    "   /// {} {} {} of the {} {}, in {}",
    "   std::vector<{}> f{}; ///< {} {}",
    "template <typename {}> class {} : public {} {{",
    "   static constexpr {} k{} = {};",
    "   {}(const {}&) = delete;",
    "// {} {} {} {} {} {} {}",
    "namespace {} {{",
    "#ifndef {}_{}",
    "}};",
    "",
)
_PROSE_LINES = (
    "{} {} {} the {} {} of {} {} and {} {} {}",
    "{} {}, {} {} in {} {} to the {} {}, {} {}.",
    "{} {} a {} {} {}. {} {} {} is {} {} by {}",
    "  * {} {} {} ({} {}); {} {}",
    "{}: {} {} {}",
    ".TP {} {} {} {}",
    "",
)
_TABLE_LINES = (
    '  <{} name="{}" id="{n}" value="{f}" {}="{}"/>',
    '    "{}": {{"{}": {n}, "{}": [{f}, {f}]}},',
    "{n},{n},{f},{f},{f},{}",
    "{n} {f} {f} {f} {n}",
    "{}\t{n}\t{f}\t{f}",
)

Generator = Callable[[random.Random, int], bytes]


def make_words(rng: random.Random, count: int) -> list[str]:
    """Return `count` different pronounceable words, short ones first as in real vocabularies."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = 1 + (len(words) > count // 20) + (rng.random() < 0.35)  # common = short
        words["".join(_syllable(rng) for _ in range(syllables))] = None
    return list(words)


def _syllable(rng: random.Random) -> str:
    return rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)


def zipf_weights(count: int, exponent: float) -> list[float]:
    """Return cumulative weights of `count` items whose frequency falls as 1 / rank ** exponent."""
    return list(itertools.accumulate((rank + 2) ** -exponent for rank in range(count)))


def _text(templates: Sequence[str], *, names: int, lines: int, fresh: float) -> Generator:
    """Make a text generator.

    A stretch of about `lines` lines draws its words from `names` names of its own (what makes
    real source compress: a module talks about few things), except a share `fresh` of them.
    """

    def generate(rng: random.Random, size: int) -> bytes:
        vocabulary = make_words(rng, 6000)
        weights = zipf_weights(len(vocabulary), 0.9)
        local_weights = zipf_weights(names, 0.8)
        template_weights = zipf_weights(len(templates), 0.5)
        slots = {line: line.count("{}") for line in templates}
        parts: list[str] = []
        done = 0
        while done < size:
            local = rng.choices(vocabulary, cum_weights=weights, k=names)
            local = [
                word if rng.random() < 0.6 else f"{word}_{rng.choice(vocabulary)}" for word in local
            ]
            order = rng.sample(templates, len(templates))  # each module has its own habits
            indent = 0
            for line in rng.choices(order, cum_weights=template_weights, k=lines):
                chosen = rng.choices(local, cum_weights=local_weights, k=slots[line])
                for place in range(len(chosen)):
                    if rng.random() < fresh:
                        chosen[place] = rng.choice(vocabulary)
                indent = 4 * rng.randrange(4) if rng.random() < 0.3 else indent
                text = line.format(
                    *chosen, n=rng.randrange(10 ** rng.randrange(1, 6)), f=f"{rng.gauss(0, 9):.5f}"
                )
                parts.append(" " * indent + text)
                done += indent + len(text) + 1
        return "\n".join(parts).encode()[:size]

    return generate


def _machine_code(rng: random.Random, size: int) -> bytes:
    """x86-64-like code: few hundred common short instructions, operands local to a function."""
    opcodes = [rng.randbytes(rng.choice((1, 2, 2, 3, 3, 4))) for _ in range(700)]
    opcode_weights = zipf_weights(len(opcodes), 1.0)
    idiom_weights = zipf_weights(55, 0.7)
    parts: list[bytes] = []
    done = 0
    position = 0
    while done < size:
        operands = [
            *(b"" for _ in range(4)),
            *(bytes((8 * rng.randrange(32),)) for _ in range(8)),  # stack and member offsets
            *(rng.randrange(4096).to_bytes(4, "little") for _ in range(3)),
        ]
        length = rng.randrange(40, 500)
        # A compiler says the same few things again and again within one function.
        idioms = [
            first + second
            for first, second in zip(
                rng.choices(opcodes, cum_weights=opcode_weights, k=55),
                rng.choices(operands, k=55),
                strict=True,
            )
        ]
        function = bytearray()
        for instruction in rng.choices(idioms, cum_weights=idiom_weights, k=length):
            function += instruction
            if rng.random() < 0.05:  # a call: distance to some other function
                target = rng.randrange(1 << 19)
                function += b"\xe8" + ((target - position) & 0xFFFFFFFF).to_bytes(4, "little")
        function += b"\xc3" + b"\xcc" * (-(len(function) + 1) % 16)
        position = (position + len(function)) % (1 << 20)
        parts.append(bytes(function))
        done += len(function)
    return b"".join(parts)[:size]


def _symbols(rng: random.Random, size: int) -> bytes:
    """A string table: mangled C++ names, runs of which share their namespaces."""
    words = [word.capitalize() for word in make_words(rng, 3000)]
    weights = zipf_weights(len(words), 0.8)
    endings = ["Ev", "EPKc", "ERKS_", "EiPd", "ENS_6vectorIdSaIdEEE", "ED2Ev", "EPvm", "Edd"]
    parts: list[str] = []
    done = 0
    while done < size:
        scope = "".join(f"{len(word)}{word}" for word in rng.choices(words, k=2))
        for word in rng.choices(words, cum_weights=weights, k=rng.randrange(4, 40)):
            name = f"_ZN{'K' if rng.random() < 0.3 else ''}{scope}{len(word)}{word}"
            parts.append(name + rng.choice(endings))
            done += len(parts[-1]) + 1
    return "\0".join(parts).encode()[:size]


def _relocations(rng: random.Random, size: int) -> bytes:
    """Tables of ascending addresses and of what stands there, eight bytes each."""
    table = array.array("Q")
    address = 0x10000
    target = 0x80000
    for _ in range(size // 24 + 1):
        address += rng.choice((8, 8, 8, 8, 8, 8, 16, 24))
        target += 16 * rng.randrange(12)
        kind = 8 if rng.random() < 0.9 else (rng.randrange(9000) << 32) | 6
        table.extend((address, kind, target))
    return _little_endian(table)[:size]


def _floats(rng: random.Random, size: int) -> bytes:
    """Detector-like measurements: float32, slowly wandering, half of them with few digits."""
    values = array.array("f")
    level = 100.0
    for run in range(size // 4 // 256 + 1):
        level += rng.gauss(0, 5)
        block = [level + rng.random() for _ in range(256)]
        values.extend([round(number * 4) / 4 for number in block] if run % 2 else block)
    return _little_endian(values)[:size]


def _counts(rng: random.Random, size: int) -> bytes:
    """Histograms: 32-bit counts, mostly small."""
    values = array.array("I")
    for _ in range(size // 4 // 512 + 1):
        scale = rng.choice((0.5, 1, 3, 10, 60))
        values.extend(int(rng.expovariate(1 / scale)) for _ in range(512))
    return _little_endian(values)[:size]


def _bytecode(rng: random.Random, size: int) -> bytes:
    """What __pycache__ holds: two-byte instructions, then the names and constants they use."""
    words = make_words(rng, 5000)
    weights = zipf_weights(len(words), 0.8)
    opcodes = [rng.randrange(160) for _ in range(60)]
    opcode_weights = zipf_weights(len(opcodes), 1.1)
    idiom_weights = zipf_weights(75, 0.9)
    parts: list[bytes] = []
    done = 0
    while done < size:
        local = rng.choices(words, cum_weights=weights, k=50)
        idioms = [
            bytes((first, int(rng.expovariate(0.3)) & 255, second, int(rng.expovariate(0.5)) & 255))
            for first, second in zip(
                rng.choices(opcodes, cum_weights=opcode_weights, k=75),
                rng.choices(opcodes, cum_weights=opcode_weights, k=75),
                strict=True,
            )
        ]
        for _ in range(12):  # the functions of one module
            count = rng.randrange(20, 120)
            code = b"".join(rng.choices(idioms, cum_weights=idiom_weights, k=count // 2))
            names = rng.choices(local, k=8)
            tail = b"".join(b"\xda" + bytes((len(name),)) + name.encode() for name in names)
            lines = bytes(rng.choice((0x80, 0x88, 0xD8, 0xF8, 0x0C)) for _ in range(count // 2))
            parts.append(b"\xe3" + bytes(16) + b"s" + code + tail + b"r" + lines)
            done += len(parts[-1])
    return b"".join(parts)[:size]


def _little_endian(values: array.array[int] | array.array[float]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


MATERIALS: Mapping[str, tuple[Generator, int]] = {  # generator, bytes at scale 1
    "python": (_text(_PYTHON_LINES, names=60, lines=250, fresh=0.08), 20 * MiB),
    "header": (_text(_HEADER_LINES, names=50, lines=150, fresh=0.10), 10 * MiB),
    "prose": (_text(_PROSE_LINES, names=400, lines=200, fresh=0.12), 8 * MiB),
    "table": (_text(_TABLE_LINES, names=12, lines=300, fresh=0.02), 10 * MiB),
    "bytecode": (_bytecode, 12 * MiB),
    "code": (_machine_code, 24 * MiB),
    "symbols": (_symbols, 8 * MiB),
    "relocations": (_relocations, 6 * MiB),
    "floats": (_floats, 12 * MiB),
    "counts": (_counts, 8 * MiB),
}
SMALLEST_POOL = 512 * KiB  # a small image still wants different files

# What a large file of each kind is made of: material and share.  `noise` is not taken from a pool.
KINDS: Mapping[str, Mapping[str, float]] = {
    "python": {"python": 1.0},
    "header": {"header": 1.0},
    "prose": {"prose": 1.0},
    "table": {"table": 1.0},
    "bytecode": {"bytecode": 1.0},
    "elf": {"code": 0.39, "relocations": 0.19, "symbols": 0.30, "counts": 0.11, "noise": 0.01},
    "numbers": {"floats": 0.2, "counts": 0.8},
    "packed": {"noise": 1.0},  # wheels, PNG, already compressed files
}
# Text stays text; re-lettering it would make it something no real file is.
RELETTERED = frozenset({"code", "relocations", "floats", "counts"})


@dataclass(frozen=True)
class Content:
    """The bytes of one file: same values, same bytes."""

    kind: str
    size: int
    seed: int


class Material:
    """The pools, and files cut out of them."""

    def __init__(self, pools: Mapping[str, bytes]) -> None:
        """`pools` holds one byte string for every name in `MATERIALS`."""
        self._pools = pools

    @classmethod
    def make(cls, seed: int, scale: float = 1.0, processes: int = 1) -> Material:
        """Make the pools; the number of processes does not change a byte."""
        jobs = [
            (name, f"{seed}:{name}", max(SMALLEST_POOL, int(size * scale)))
            for name, (_, size) in MATERIALS.items()
        ]
        if processes == 1:
            return cls(dict(map(_make_pool, jobs)))
        with ProcessPoolExecutor(processes) as executor:
            return cls(dict(executor.map(_make_pool, jobs)))

    def iter_bytes(self, content: Content) -> Iterator[bytes]:
        """Yield the bytes of `content`, in pieces of at most `SMALL_FILE` bytes."""
        rng = random.Random(content.seed)
        shares = KINDS[content.kind]
        names = list(shares)
        weights = list(shares.values())
        left = content.size
        while left > 0:
            longest = left if content.size <= SMALL_FILE else rng.randrange(16 * KiB, SMALL_FILE)
            name = rng.choices(names, weights)[0]
            piece = self._cut(name, min(left, longest), rng, relettered=content.size > SMALL_FILE)
            left -= len(piece)
            yield piece

    def _cut(self, name: str, size: int, rng: random.Random, *, relettered: bool) -> bytes:
        if name == "noise":
            return rng.randbytes(size)
        pool = self._pools[name]
        start = rng.randrange(len(pool) - size)
        if name in RELETTERED:
            piece = pool[start : start + size]
            return piece.translate(bytes(rng.sample(IDENTITY, 256))) if relettered else piece
        start = max(pool.find(b"\n", start, start + 200) + 1, start)  # text begins with a line
        return pool[start : start + size] or pool[:size]


def _make_pool(job: tuple[str, str, int]) -> tuple[str, bytes]:
    name, seed, size = job
    return name, MATERIALS[name][0](random.Random(seed), size)
