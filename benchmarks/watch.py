"""Look at 10,000 tags: what does a cycle of the watcher cost, and what does it ask of registries?

    python -m benchmarks.watch [--tags 10000] [--list FILE]… [--json]

A simulator on loopback answers for every registry that the lists name, each at an address of its
own, as registries do: HEAD of a manifest with its digest, tags in pages, keep-alive.  Names are
those of the lists given, and made up ones until there are enough.  Everything else is real: lists
are read, tags listed and selected, images asked about and the answers written down, in a process of
its own, whose time and memory are told.

Three cycles are run: the first, in which everything is new; a steady one, in which every image is
published and nothing has changed; and one in a storm, in which registries answer "too many
requests" and break connections, on a clock that is moved to whatever is due next.

Each registry has a `requests_per_hour`, as much as looking takes.  One that is asked more often in
any 60 minutes of the simulated clock fails the benchmark.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cvmfs_publish.sources.registry.budget import Allowance, Budgets
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from cvmfs_publish.state.model import Budget, Facts, Result
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.lists import Place, WishlistLoader
from cvmfs_publish.watch.outbound import Outbound
from cvmfs_publish.watch.poller import Poller
from cvmfs_publish.watch.wanted import Wanted
from cvmfs_publish.watch.wishlist import decode, parse_wishlist

INTERVAL = timedelta(minutes=15)
TAGS = 10_000
TAGS_OF_A_RULE = 20  # which a repository has of which a list wishes a pattern
LARGEST_REPOSITORY = 50  # tags of a made-up one
STORM_SHARE = 0.2  # of requests that are refused or broken in the storm
STORM_SECONDS = 1800  # of the simulated clock
RETRY_AFTER = 60  # seconds, of a refusal
STEP = timedelta(seconds=5)  # by which the simulated clock moves at least
LOOK_EVERY = timedelta(minutes=5)  # whether everything has been answered
DEADLINE = timedelta(hours=4)  # of the simulated clock, for everything to be asked again
_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/?]+)")
_TAGS = re.compile(r"/v2/(.+)/tags/list(?:\?.*)?")


@dataclass(frozen=True)
class Cycle:
    """What one cycle took."""

    name: str
    tags: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    simulated_seconds: float
    requests: dict[str, int]  # by method and answer
    most_in_a_second: int  # requests to one registry, of the simulated clock in the storm
    budget_used: float  # of what a registry is allowed in an hour, the most in any 60 minutes


class Simulator:
    """Registries on loopback.  Use with `with`."""

    def __init__(self, repositories: dict[str, dict[str, list[str]]]) -> None:
        """`repositories`: tags by repository by registry."""
        self.requests: Counter[str] = Counter()
        self.by_time: Counter[tuple[str, int]] = Counter()
        self.by_minute: dict[str, Counter[int]] = defaultdict(Counter)
        self.is_stormy = False
        self.now = 0  # seconds of the simulated clock
        self._chance = random.Random(20_261_129)
        self._lock = threading.Lock()
        self._servers: list[ThreadingHTTPServer] = []
        self.hosts: dict[str, str] = {}
        for number, (registry, tags) in enumerate(sorted(repositories.items())):
            server = _Server((f"127.0.{number // 250}.{number % 250 + 1}", 0), self, tags)
            self._servers.append(server)
            host, port = server.server_address[:2]
            self.hosts[registry] = f"{host!s}:{port}"

    def __enter__(self) -> Simulator:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def judge(self, host: str) -> str:
        """Return what becomes of a request: `ok`, `busy` or `reset`."""
        with self._lock:
            self.by_time[host, self.now] += 1
            self.by_minute[host][self.now // 60] += 1
            if not self.is_stormy or self._chance.random() >= STORM_SHARE:
                return "ok"
            return self._chance.choice(["busy", "reset"])

    def most_in_an_hour(self, host: str) -> int:
        """Return how many requests came to a registry in any 60 minutes so far."""
        minutes = self.by_minute[host]
        return max(
            (sum(minutes[other] for other in minutes if begin <= other < begin + 60))
            for begin in minutes
        )

    def note(self, what: str) -> None:
        with self._lock:
            self.requests[what] += 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], simulator: Simulator, tags: dict[str, list[str]]
    ) -> None:
        self.simulator = simulator
        self.tags = tags
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        pass  # connections that were reset on purpose


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        simulator = self.server.simulator
        verdict = simulator.judge("{}:{}".format(*self.server.server_address[:2]))
        simulator.note(f"{self.command} {verdict}")
        if verdict == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return
        if verdict == "busy":
            self._send(429, b"{}", {"Retry-After": str(RETRY_AFTER)})
            return
        manifest, tags = _MANIFEST.fullmatch(self.path), _TAGS.fullmatch(self.path)
        if manifest is not None and manifest[2] in self.server.tags.get(manifest[1], ()):
            digest = digest_of(manifest[1], manifest[2])
            headers = {"Docker-Content-Digest": digest, "Content-Type": "application/json"}
            self._send(200, b"x" * 1000, headers)
        elif tags is not None and tags[1] in self.server.tags:
            body = json.dumps({"name": tags[1], "tags": self.server.tags[tags[1]]}).encode()
            self._send(200, body, {"Content-Type": "application/json"})
        else:
            self._send(404, b"{}", {})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name
        pass


def digest_of(repository: str, tag: str) -> str:
    return f"sha256:{hashlib.sha256(f'{repository}:{tag}'.encode()).hexdigest()}"


class _Registries:
    """What asks the simulator (`Registries` and `Taggers`)."""

    def __init__(self, now: datetime, allowed: Mapping[str, int]) -> None:
        self.now = now  # of the simulated clock, by which clients wait
        self._budgets = Budgets(
            {host: Allowance(requests_per_hour=count) for host, count in allowed.items()}
        )
        self._sources: dict[str, RegistrySource] = {}
        self._lock = threading.Lock()

    def source(self, registry: str) -> RegistrySource:
        with self._lock:
            if registry not in self._sources:
                client = RegistryClient(
                    attempts=2,
                    sleep=self.sleep,
                    clock=lambda: self.now,
                    budgets=self._budgets,
                )
                self._sources[registry] = RegistrySource(client)
            return self._sources[registry]

    tagger = source

    def sleep(self, seconds: float) -> None:
        """Let the simulated time pass, and no other."""
        self.now += timedelta(seconds=seconds)

    def forget(self, registry: str) -> None:
        pass

    def budget(self, registry: str, now: datetime) -> Budget:
        known = self._budgets.of(registry).snapshot(now)
        limit = known.allowance.requests_per_hour
        if limit is None:
            raise KeyError(registry)
        return Budget(registry, limit, max(0, limit - known.requests))

    def close(self) -> None:
        for source in self._sources.values():
            source.client.close()


# what is wished, and what registries have


def plan_world(lists: Sequence[Path], tags: int) -> tuple[dict[str, dict[str, list[str]]], str]:
    """Return what registries have for some lists, and a list of made-up names up to `tags`."""
    world: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in lists:
        for wish in parse_wishlist(decode(path.read_bytes()), str(path)).wishes:
            found = world[wish.registry][wish.repository]
            if wish.rule is not None:
                found += [f"1.{n}" for n in range(TAGS_OF_A_RULE)]
            elif wish.tag:
                found.append(wish.tag)
    count = sum(len(set(t)) for found in world.values() for t in found.values())
    lines = []
    hosts = sorted(world) or ["docker.io"]
    for number in range(max(0, tags - count)):
        team, tag = divmod(number, LARGEST_REPOSITORY)
        host = hosts[team % len(hosts)]
        repository, name = f"made-up/image{team}", f"v{tag}"
        world[host][repository].append(name)
        lines.append(f"  - {host}/{repository}:{name}")
    listed = {
        host: {repository: sorted(set(names)) for repository, names in found.items()}
        for host, found in world.items()
    }
    return listed, "version: 1\nimages:\n" + "\n".join(lines or ["  []"]) + "\n"


def rewrite(lists: Sequence[Path], made_up: str, hosts: dict[str, str], folder: Path) -> list[Path]:
    """Write the lists with the simulator's addresses in place of the registries'."""
    folder.mkdir()
    texts = [decode(path.read_bytes()) for path in lists] + [made_up]
    found = []
    for number, text in enumerate(texts):
        lines = ["version: 1", "images:"]
        for wish in parse_wishlist(text, "list").wishes:
            name = f"{hosts[wish.registry]}/{wish.repository}"
            if wish.rule is not None:
                lines.append(f"  - {{name: '{name}', tags: {{match: '*'}}}}")
            elif wish.digest is None:
                lines.append(f"  - {name}:{wish.tag}")
        path = folder / f"list{number}.yaml"
        path.write_text("\n".join(lines) + "\n")
        found.append(path)
    return found


# the process that is measured


def look(folder: Path) -> None:
    """Run the cycles; each is told on standard output, and begun by a line of standard input."""
    now = datetime.now(UTC)
    allowed = json.loads((folder / "allowed.json").read_text())
    registries, outbound = _Registries(now, allowed), Outbound()
    with State.open(folder / "state") as state, outbound:
        places = [Place(path) for path in sorted((folder / "lists").iterdir())]
        loader = WishlistLoader(places, folder / "state/lists", outbound)
        wanted = Wanted(state, loader, registries, INTERVAL * 8)
        chance = random.Random(1)
        with Poller(state, registries, INTERVAL, chance.random) as poller:
            for line in sys.stdin:
                name = line.strip()
                now += INTERVAL
                started, cpu = time.monotonic(), time.process_time()
                begun = now
                if name == "first":
                    wanted.load(now)
                else:
                    state.poll_all(now)
                registries.now = now
                now = _poll_until_done(state, poller, registries, now, is_moved=name == "storm")
                tags = len(state.outlines())
                if name == "first":
                    _pretend_published(state, now)
                found = {
                    "tags": tags,
                    "seconds": time.monotonic() - started,
                    "cpu_seconds": time.process_time() - cpu,
                    "peak_bytes": _peak_bytes(),
                    "simulated_seconds": (now - begun).total_seconds(),
                    "unanswered": _unanswered(state, begun),
                }
                print(json.dumps({"done": found}), flush=True)
    registries.close()


def _poll_until_done(
    state: State, poller: Poller, registries: _Registries, now: datetime, *, is_moved: bool
) -> datetime:
    """Ask until every image has its answer; `is_moved`: the clock goes to what is due next."""
    begun = looked = now
    while now - begun < DEADLINE:
        print(json.dumps({"now": int(now.timestamp())}), flush=True)
        sys.stdin.readline()
        registries.now = now
        if poller.step(now):
            continue
        if not is_moved:
            break
        if now - looked >= LOOK_EVERY:
            looked = now
            if not _unanswered(state, begun):
                break
        following = state.next_poll_at()
        if following is None:
            break
        now = max(now + STEP, following)
    return now


def _peak_bytes() -> int:
    """Return the most memory this program had; `getrusage` counts what started it as well."""
    found = re.search(r"^VmHWM:\s+([0-9]+) kB$", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise RuntimeError("the kernel does not say how much memory was used")
    return int(found[1]) * 1024


def _unanswered(state: State, since: datetime) -> int:
    return sum(
        1
        for image in state.due_polls(datetime.max.replace(tzinfo=UTC), -1)
        if image.polled_at is None or image.polled_at < since or image.failure is not None
    )


def _pretend_published(state: State, now: datetime) -> None:
    """Everything that was seen is published, without doing it."""
    jobs = state.due_jobs(now, 10**9)
    run = state.begin_run(jobs, {}, now)
    state.finish_run(run, [Result(job.key, "published", Facts(job.digest)) for job in jobs], now)


# the process that measures


@contextmanager
def looking(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.watch", "--look", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def measure(lists: Sequence[Path], tags: int) -> list[Cycle]:
    """Run the three cycles."""
    world, made_up = plan_world(lists, tags)
    with (
        tempfile.TemporaryDirectory(prefix="cvmfs-publish-watch-") as place,
        Simulator(world) as simulator,
    ):
        folder = Path(place)
        rewrite(lists, made_up, simulator.hosts, folder / "lists")
        allowed = allow(world, simulator.hosts)
        (folder / "allowed.json").write_text(json.dumps(allowed))
        with looking(folder) as process:
            return [
                _cycle(name, simulator, process, allowed) for name in ("first", "steady", "storm")
            ]


def allow(
    world: Mapping[str, Mapping[str, Sequence[str]]], hosts: Mapping[str, str]
) -> dict[str, int]:
    """Return how many requests in an hour each simulated registry has for us.

    What an hour of looking takes, a tenth for publishing, and the lists of tags: what is spent on
    a storm is missing afterwards.
    """
    cycles = timedelta(hours=1) // INTERVAL
    return {
        hosts[registry]: 10 + len(found) * 2 + cycles * sum(map(len, found.values())) * 10 // 9
        for registry, found in world.items()
    }


def _cycle(
    name: str, simulator: Simulator, process: subprocess.Popen[str], allowed: Mapping[str, int]
) -> Cycle:
    assert process.stdin is not None
    assert process.stdout is not None
    simulator.requests.clear()
    simulator.by_time.clear()
    print(name, file=process.stdin, flush=True)
    begun: int | None = None
    while True:
        message = json.loads(process.stdout.readline())
        if "done" in message:
            break
        simulator.now = message["now"]
        begun = begun or simulator.now
        simulator.is_stormy = name == "storm" and simulator.now - begun < STORM_SECONDS
        print("go", file=process.stdin, flush=True)
    found = message["done"]
    if found.pop("unanswered"):
        raise RuntimeError(f"{name}: some tags were never answered for")
    most = max(simulator.by_time.values(), default=0)
    used = {host: simulator.most_in_an_hour(host) / allowed[host] for host in simulator.by_minute}
    for host, share in used.items():
        if share > 1:
            raise RuntimeError(f"{name}: {host} was asked {share:.2f} times what it allows")
    return Cycle(
        name,
        requests=dict(simulator.requests),
        most_in_a_second=most,
        budget_used=max(used.values()),
        **found,
    )


def format_table(cycles: Sequence[Cycle]) -> str:
    lines = [
        "| cycle | tags | seconds | CPU s | peak memory | most of a budget | requests |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for cycle in cycles:
        requests = ", ".join(f"{count:,} {what}" for what, count in sorted(cycle.requests.items()))
        clock = f", {cycle.simulated_seconds / 60:.0f} min of the clock" * (cycle.name == "storm")
        lines.append(
            f"| {cycle.name} | {cycle.tags:,} | {cycle.seconds:.1f} | {cycle.cpu_seconds:.1f} |"
            f" {cycle.peak_bytes / 1e6:.0f} MB | {cycle.budget_used:.0%} | {requests}{clock} |"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure cycles of the watcher.")
    parser.add_argument("--tags", type=int, default=TAGS)
    parser.add_argument("--list", type=Path, action="append", default=[])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.look is not None:
        look(options.look)
        return 0
    cycles = measure(options.list, options.tags)
    print(
        json.dumps([asdict(c) for c in cycles], indent=2) if options.json else format_table(cycles)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
