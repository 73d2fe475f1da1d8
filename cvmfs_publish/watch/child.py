"""Carry out orders in child processes.

The order goes to the child's standard input as one line of JSON; what happens comes back on its
standard output, a line of JSON each:

    {"phase": [name, phase]}                  the image of that name enters a phase
    {"layer": [name, digest, done, total]}    bytes of a layer
    {"end": {...}}                            `RunEnd`, the last line

The input stays open: a child whose input ends has lost its watcher, and ends itself.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any, cast

from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.state.model import Facts, Failure, Progress
from cvmfs_publish.watch.runs import (
    Collect,
    Item,
    ItemEnd,
    Order,
    Publish,
    RunEnd,
    Switch,
    Tracker,
    Unpublish,
)

_KINDS: Mapping[str, type[Order]] = {
    "publish": Publish,
    "unpublish": Unpublish,
    "switch": Switch,
    "collect": Collect,
}

log = logging.getLogger(__name__)


def format_order(order: Order) -> str:
    kind = next(name for name, cls in _KINDS.items() if isinstance(order, cls))
    return json.dumps({"kind": kind, **asdict(order)})


def parse_order(text: str) -> Order:
    """Return an order as `format_order` wrote it."""
    fields = json.loads(text)
    kind = fields.pop("kind")
    if kind == "publish":
        fields["items"] = tuple(Item(**item) for item in fields["items"])
    if kind == "unpublish":
        fields["names"] = tuple(fields["names"])
    if kind == "switch":
        fields["names"] = tuple(map(tuple, fields["names"]))
    return _KINDS[kind](**fields)


def format_end(end: RunEnd) -> str:
    return json.dumps({"end": asdict(end)})


def parse_end(fields: dict[str, Any]) -> RunEnd:
    """Return an end as `format_end` wrote it."""
    items = [
        ItemEnd(
            item["name"],
            item["status"],
            Facts(**item["facts"]) if item["facts"] else None,
            Failure(**item["failure"]) if item["failure"] else None,
            item["exit_code"],
        )
        for item in fields.pop("items")
    ]
    failure = fields.pop("failure")
    return RunEnd(tuple(items), Failure(**failure) if failure else None, **fields)


class ChildRunner:
    """A `Runner` that starts a program for each order."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)

    def start(
        self, order: Order, report: Callable[[str, Progress], None], wake: Callable[[], None]
    ) -> ChildRun:
        """As promised by `Runner.start`."""
        try:
            process = subprocess.Popen(  # noqa: S603 - our own program
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the watcher, which ends its child in order
            )
        except OSError as error:
            raise RepositoryError(
                f"no process can be started: {error.strerror}",
                hint="look at memory and the number of processes",
            ) from error
        return ChildRun(process, order, report, wake)


class ChildRun:
    """A `Run` in a process."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        order: Order,
        report: Callable[[str, Progress], None],
        wake: Callable[[], None],
    ) -> None:
        self._process = process
        self._report = report
        self._wake = wake
        self._end: RunEnd | None = None
        self._ended = threading.Event()
        requests = cast(IO[bytes], process.stdin)
        with suppress(BrokenPipeError):  # it has died already; its end says so
            requests.write(format_order(order).encode() + b"\n")
            requests.flush()
        self._thread = threading.Thread(target=self._listen, name="run")
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> RunEnd | None:
        """As promised by `Run.end`."""
        if not self._ended.is_set():
            return None
        self._thread.join()
        return self._end

    def stop(self) -> None:
        """As promised by `Run.stop`."""
        self._process.terminate()

    def kill(self) -> None:
        """As promised by `Run.kill`."""
        self._process.kill()

    def _listen(self) -> None:
        """Read what the child says until it ends; a thread."""
        tracker = Tracker()
        found: RunEnd | None = None
        with self._process:
            for line in cast(IO[bytes], self._process.stdout):
                try:
                    message = json.loads(line)
                    if "phase" in message:
                        name, phase = message["phase"]
                        self._report(name, tracker.phase(name, phase))
                    elif "layer" in message:
                        name = message["layer"][0]
                        self._report(name, tracker.layer(*message["layer"]))
                    else:
                        found = parse_end(message["end"])
                except (ValueError, LookupError, TypeError, AttributeError):
                    log.warning("the publishing process said %r", line[:200])
            with suppress(OSError):
                cast(IO[bytes], self._process.stdin).close()
            code = self._process.wait()
        self._end = found or RunEnd(crash=_died(code))
        self._ended.set()
        self._wake()


def _died(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
