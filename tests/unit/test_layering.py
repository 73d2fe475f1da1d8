"""The folders read as the data flow: a stage imports only stages before it, through named doors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "cvmfs_publish"

# The flow.  A stage may import itself and what stands above it.
FLOW = (
    "errors",
    "words",
    "digest",
    "findings",
    "settings",
    "origin",
    "reference",
    "patterns",
    "config",
    "streams",
    "sources",
    "content",
    "layers",
    "sandbox",
    "repository",
    "publish",
    "verify",
    "state",
    "replicas",
    "naming",
    "sites",
    "watch",
    "web",
    "doctor",
    "cli",
    "__main__",
)

# The doors: which modules may import a library that leads outside.  A folder ends with "/".
NATIVE = "repository/native/"
HOMES: dict[str, set[str]] = {
    "cryptography": {
        NATIVE + "check.py",
        NATIVE + "manifest.py",
        NATIVE + "reader.py",
        NATIVE + "rotation.py",
        NATIVE + "signing.py",
        NATIVE + "trust.py",
        NATIVE + "whitelist.py",
        "sources/public_keys.py",
    },
    "importlib.import_module": {"cli/lazy.py", "content/stores.py"},  # what not every run needs
    "jinja2": {"sites/pages.py", "web/pages.py"},
    "nacl": {"sources/public_keys.py"},
    "obstore": {"content/s3_client.py", "sources/objectstore.py"},
    "pysequoia": {"sources/openpgp.py"},
    "requests": {
        "sources/registry/client.py",
        NATIVE + "http_origin.py",
        "watch/outbound.py",  # wishlists on web servers, notifications: no registry's protocol
    },
    "rich": {"cli/"},
    "sh": {"repository/server_program.py"},  # cvmfs_server
    "smtplib": {"watch/mail.py"},
    "sqlite3": {
        NATIVE + "catalog.py",
        NATIVE + "check_catalog.py",
        NATIVE + "check_databases.py",
        NATIVE + "check_schema.py",
        NATIVE + "database.py",
        "state/database.py",
    },
    "starlette": {"web/"},
    "subprocess": {
        "content/ingest.py",  # worker processes of our own
        NATIVE + "check_process.py",  # likewise
        "repository/squashfs.py",  # sqfstar
        "sites/bench.py",  # what a node runs
        "sources/registry/credentials.py",  # docker-credential-…
        "watch/child.py",  # a process of our own for each publish
        "watch/programs.py",  # git, hook programs
        "sources/squashfs.py",  # sqfs2tar
    },
    "typer": {"cli/"},
    "urllib3": {"sources/registry/client.py", NATIVE + "http_origin.py"},
    "uvicorn": {"web/"},
    "watchdog": {"watch/files.py"},
    "yaml": {
        "settings.py",  # read
        "sites/inherit.py",  # put together
        "cli/sites.py",  # written
        "watch/wishlist.py",  # read entry by entry, so that a wrong one stops no other
        "watch/own_format.py",
        "watch/foreign.py",
    },
}

# What only the command line may do; a program of its own is named here.
OUTSIDE = {
    "print": {"cli/"},
    "input": {"cli/"},
    "os.environ": {"cli/"},
    "os.getenv": {"cli/"},
    "os._exit": {"cli/"},
    "sys.exit": {"cli/", "__main__.py"},
    "sys.argv": {"cli/", "content/worker.py"},
    "Path.home": {"cli/"},
    "Path.cwd": {"cli/"},
    "os.getcwd": {"cli/"},
}

# Modules that may import inside a function, with the reason.  Nobody has had one so far.
HIDDEN_IMPORTS: dict[str, str] = {}


@dataclass(frozen=True)
class Import:
    """One imported module as a dotted name."""

    name: str
    line: int
    inside_function: bool


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module of the package by its path."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8"), str(path))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def imports(path: str) -> tuple[Import, ...]:
    """Return what the module imports, `import a.b` and `from a import b` alike as `a.b`."""
    return tuple(_imports(modules()[path], path, inside_function=False))


def _imports(node: ast.AST, path: str, *, inside_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, inside_function)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}:{child.lineno}: relative import"
            for alias in child.names:
                yield Import(f"{child.module}.{alias.name}", child.lineno, inside_function)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, path, inside_function=inside_function or is_function)


def stage_of(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def internal(path: str) -> Iterator[tuple[Import, str]]:
    """Yield the imports of our own modules with the path of the module each leads to."""
    for each in imports(path):
        if each.name.partition(".")[0] == "cvmfs_publish":
            parts = each.name.split(".")[1:]
            # the last part of `from module import name` may be a module or something in one
            for depth in range(len(parts), -1, -1):
                base = "/".join(parts[:depth])
                candidates = [f"{base}.py", f"{base}/__init__.py"] if base else ["__init__.py"]
                found = [name for name in candidates if name in modules()]
                if found:
                    yield each, found[0]
                    break
            else:
                pytest.fail(f"{path}:{each.line}: there is no module {each.name}")


def at_home(path: str, homes: set[str]) -> bool:
    return any(path.startswith(home) if home.endswith("/") else path == home for home in homes)


def test_every_module_belongs_to_a_stage_of_the_flow() -> None:
    strays = {stage_of(path) for path in modules() if path != "__init__.py"} - set(FLOW)
    assert not strays, f"say in FLOW where these stand: {sorted(strays)}"


def test_a_stage_imports_only_stages_before_it() -> None:
    wrong = []
    for path in modules():
        for each, target in internal(path):
            if target == "__init__.py":
                continue  # the package itself imports nothing: its version
            if FLOW.index(stage_of(target)) > FLOW.index(stage_of(path)):
                wrong.append(f"{path}:{each.line} imports the later {each.name}")
    assert not wrong, "\n".join(wrong)


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    assert list(internal("__init__.py")) == []


def test_modules_import_one_another_in_no_circle() -> None:
    graph = {path: {target for _, target in internal(path)} - {path} for path in modules()}
    while free := [path for path, targets in graph.items() if not targets]:
        graph = {path: targets - set(free) for path, targets in graph.items() if path not in free}
    assert not graph, f"in or behind a circle: { {p: sorted(t) for p, t in graph.items()} }"


def test_imports_stand_at_the_top() -> None:
    hidden = [
        f"{path}:{each.line} imports {each.name} inside a function"
        for path in modules()
        if path not in HIDDEN_IMPORTS
        for each in imports(path)
        if each.inside_function
    ]
    assert not hidden, "\n".join(hidden)


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_is_used_only_in_its_door_modules(library: str) -> None:
    homes = HOMES[library]
    wrong = [
        f"{path}:{each.line}"
        for path in modules()
        if not at_home(path, homes)
        for each in imports(path)
        if f"{each.name}.".startswith(f"{library}.")
    ]
    wrong += [
        f"{path}:{line}"
        for path in modules()
        if not at_home(path, homes)
        for name, line in uses(path)
        if name == library
    ]
    assert not wrong, f"{library} is for {sorted(homes)}, used at {wrong}"


@pytest.mark.parametrize("name", sorted(OUTSIDE))
def test_only_the_command_line_touches_the_world_of_the_caller(name: str) -> None:
    wrong = [
        f"{path}:{line}"
        for path in modules()
        if not at_home(path, OUTSIDE[name])
        for used, line in uses(path)
        if used == name
    ]
    assert not wrong, f"{name} belongs to {sorted(OUTSIDE[name])}, used at {wrong}"


def test_no_door_is_named_that_is_none() -> None:
    stale = [
        f"{home} does not use {library}"
        for library, homes in HOMES.items()
        for home in homes
        if not any(
            f"{name}.".startswith(f"{library}.")
            for path in modules()
            if at_home(path, {home})
            for name in [*(each.name for each in imports(path)), *(use for use, _ in uses(path))]
        )
    ]
    assert not stale, "\n".join(stale)


@cache
def uses(path: str) -> tuple[tuple[str, int], ...]:
    """Return the plain calls (`print`) and the attributes of plain names (`os.environ`) in use."""
    found = []
    for node in ast.walk(modules()[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.append((node.func.id, node.lineno))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.append((f"{node.value.id}.{node.attr}", node.lineno))
    return tuple(found)


def test_the_scan_sees_what_it_is_meant_to_forbid() -> None:
    code = "import os\ndef f():\n    from requests import get\n    print(os.environ)\n"
    tree = ast.parse(code)
    found = list(_imports(tree, "x.py", inside_function=False))
    assert Import("requests.get", 3, inside_function=True) in found
    assert Import("os", 1, inside_function=False) in found
