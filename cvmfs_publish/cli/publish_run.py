"""Carry out one order of the watcher; a process (`watch/child.py` says what goes in and out).

Started as `python -m cvmfs_publish.cli.publish_run CONFIG [REPOSITORY]`.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from cvmfs_publish.cli.app import EXIT_TERMINATED, GC_THRESHOLDS, Terminated
from cvmfs_publish.cli.assembly import open_native, open_repository, open_tree
from cvmfs_publish.cli.context import Session
from cvmfs_publish.cli.fallback import open_own_store, open_packer, refresh, tell_copy
from cvmfs_publish.cli.output import PROGRAM, Output
from cvmfs_publish.cli.publishing import open_publisher
from cvmfs_publish.errors import PublishError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.native.gc import Collector
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.compliance import Compliance
from cvmfs_publish.state.model import Failure
from cvmfs_publish.watch.child import format_end, parse_order
from cvmfs_publish.watch.runs import Collect, Order, Publish, RunEnd, Switch, Unpublish
from cvmfs_publish.watch.work import collect, collect_tree, end_of_publish, switch, unpublish

STDIN = 0
PIECE = 65536  # bytes read at a time
REPORT_SECONDS = 0.25  # between two reports of one layer


class Teller:
    """A `Reporter` that writes lines of JSON, and measures how long phases take."""

    def __init__(self, stream: TextIO, names: Mapping[str, str]) -> None:
        self._stream = stream
        self._names = names  # by what is fetched
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], float] = {}
        self._began = time.monotonic()
        self._phase = ""
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def phase(self, reference: str, phase: str) -> None:
        self.end_phase(phase if reference else "committing")
        self._tell({"phase": [self._names.get(reference, reference), phase]})

    def layer(self, reference: str, digest: str, done: int, total: int) -> None:
        now = time.monotonic()
        key = (reference, digest)
        with self._lock:
            if done < total and now - self._told.get(key, float("-inf")) < REPORT_SECONDS:
                return
            self._told[key] = now
        self._tell({"layer": [self._names.get(reference, reference), digest, done, total]})

    def end_phase(self, following: str = "") -> None:
        now = time.monotonic()
        if self._phase:
            self.seconds[self._phase] += now - self._began
        self._phase, self._began = following, now

    def _tell(self, message: dict[str, Any]) -> None:
        with self._lock:
            print(json.dumps(message), file=self._stream, flush=True)


def carry_out(session: Session, order: Order) -> RunEnd:
    """Do what is ordered; failures are part of the result."""
    try:
        if isinstance(order, Publish):
            return _publish(session, order)
        if isinstance(order, Unpublish):
            return _unpublish(session, order)
        if isinstance(order, Switch):
            return _switch(session, order)
        return _collect(session, order)
    except PublishError as error:
        return RunEnd(failure=Failure.of(error), exit_code=error.exit_code)


def _publish(session: Session, order: Publish) -> RunEnd:
    config = session.config
    if order.policy:
        config = replace(config, sandbox=replace(config.sandbox, **json.loads(order.policy)))
    placed = {
        item.reference: item.name
        for item in order.items
        if Origin.parse(item.reference) is not None
    }
    # what the publisher says of an image names it as it is written when parsed
    names = {
        str(Reference.parse(placed.get(item.reference, item.reference))): item.name
        for item in order.items
    }
    texts = [item.reference for item in order.items]
    teller = Teller(session.out.stdout, names)
    with open_packer(config, session.environ, wanted=None) as packer:
        with open_publisher(
            config, session.environ, texts, teller, packer, folder=session.cwd
        ) as publisher:
            result = publisher.publish(
                texts,
                names=placed,
                now=datetime.now(UTC),
                platform=Platform.parse(order.platform),
                after_replicas=config.naming.after_replicas,
            )
        teller.end_phase()
        if packer is not None:
            tell_copy(session, open_repository(config), packer.store)
    return end_of_publish(result, names, dict(teller.seconds))


def _unpublish(session: Session, order: Unpublish) -> RunEnd:
    repository = open_repository(session.config)
    end = unpublish(repository, order, datetime.now(UTC))
    refresh(session, repository)
    return end


def _switch(session: Session, order: Switch) -> RunEnd:
    repository = open_repository(session.config)
    end = switch(repository, order, datetime.now(UTC), compliance=Compliance.of(session.config))
    refresh(session, repository)
    return end


def _collect(session: Session, order: Collect) -> RunEnd:
    if session.config.repository.backend != "native":
        return collect_tree(open_tree(session.config), order, datetime.now(UTC))
    repository = open_native(session.config)
    with open_own_store(session.config) as artefacts:
        collector = Collector(repository, session.config.state, artefacts=artefacts)
        end = collect(collector, order, datetime.now(UTC))
        tell_copy(session, repository, artefacts)
    return end


def _read_order() -> Order:
    """Read the one line of the input; not by a buffer, which another thread will wait in."""
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(STDIN, PIECE)):
        line += piece
    return parse_order(line.decode())


def _end_with_the_watcher() -> None:
    """Wait until the input ends; then nobody wants the result.  Every moment is safe to end at."""
    while os.read(STDIN, PIECE):
        pass
    os._exit(EXIT_TERMINATED)


def _terminate(*_: object) -> None:
    raise Terminated


def main() -> None:
    """Run the program."""
    signal.signal(signal.SIGTERM, _terminate)
    gc.set_threshold(*GC_THRESHOLDS)
    order = _read_order()
    threading.Thread(target=_end_with_the_watcher, daemon=True).start()
    logging.basicConfig(stream=sys.stderr, format=f"{PROGRAM}: %(message)s")
    out = Output(sys.stdout, sys.stderr, os.environ)
    session = Session(out, os.environ, Path.cwd(), Path(sys.argv[1]), repositories=sys.argv[2:])
    try:
        end = carry_out(session, order)
    except Terminated:
        sys.exit(EXIT_TERMINATED)
    print(format_end(end), flush=True)


if __name__ == "__main__":
    main()
