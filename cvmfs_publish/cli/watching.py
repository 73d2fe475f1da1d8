"""`watch`: the service that looks for new images and publishes them."""

from __future__ import annotations

import logging
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from starlette.applications import Starlette

from cvmfs_publish.cli.assembly import open_repository
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.expiry import warn_of_expiry
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import PROGRAM
from cvmfs_publish.cli.publishing import open_source, publish_settings
from cvmfs_publish.config import Config, complete, find_config, load_config
from cvmfs_publish.errors import EXIT_PARTIAL, InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.records import iter_publications
from cvmfs_publish.sites.data import find_site_file
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.transports import Sources
from cvmfs_publish.state.model import Budget, Facts, ImageKey
from cvmfs_publish.state.state import State, WatchLock
from cvmfs_publish.watch.child import ChildRunner
from cvmfs_publish.watch.daemon import Parts, SystemClock, Watcher
from cvmfs_publish.watch.files import DropFolder, FileEvents
from cvmfs_publish.watch.poller import Poller
from cvmfs_publish.watch.queue import QueueSettings
from cvmfs_publish.watch.retention import RetentionSettings
from cvmfs_publish.watch.wanted import Wanted
from cvmfs_publish.web.server import bind, create_server

app = command_app()
