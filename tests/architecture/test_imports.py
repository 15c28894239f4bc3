"""The arrows and borders that import-linter cannot express: who alone may import what, and how pure is pure.

The layers themselves are contracts in `pyproject.toml`.
"""

import ast
import os
import subprocess
import sys

import pytest

from tests.architecture.source import PACKAGES, ROOT, covers, modules

PIXELS = ("normalization.pixels", "providers.local.engine")
WORKER = ("gateway.images.pixel_work", "gateway.images.pixel_worker")
"""What runs in the gateway's worker processes: it opens the files that `normalization.pixels` must not."""

FACES = ("gateway.api", "gateway.dashboard", "gateway.app", "gateway.server", "providers.local.server")
TABLES = (
    "gateway.db",
    "gateway.tenants.service",
    "gateway.images.journal",
    "gateway.assets.retention",
    "gateway.images.records",
    "gateway.jobs.service",
    "migrations",
)

ONLY_HERE = {
    "PIL": (*PIXELS, *WORKER, "providers.simulators.pictures"),
    "pillow_heif": PIXELS[:1],
    "numpy": PIXELS,
    "torch": ("providers.local.engine",),
    "diffusers": ("providers.local.engine",),
    "httpx": ("providers.http",),
    "aiohttp": ("providers.http",),
    "requests": (),
    "urllib.request": (),
    "litestar": FACES,
    "sqlalchemy": TABLES,
    "sqlite3": ("gateway.db",),
    "psycopg": ("gateway.db",),
    "alembic": ("gateway.db", "migrations"),
    "obstore": ("gateway.assets",),
    "prometheus_client": ("gateway.observe", "gateway.api.health", "gateway.app", "gateway.shell"),
    "gateway": ("gateway", "migrations"),
    "migrations": ("migrations", "gateway.db.migrate"),
    "providers.local.server": ("providers.local.server",),
    "providers.local.engine": ("providers.local.engine", "providers.local.server"),
    "providers.simulators": ("providers.simulators", "gateway.cli"),
    "tests": (),
    "bench": (),
    "deploy": (),
    "examples": (),
}
"""A library or package, and the only modules that may import it."""

SHARED_BY_PROVIDERS = {"base", "catalog", "drive", "failures", "http", "registry", "spool", "transfer"}
"""What lies in `providers/` and is not a provider."""

IMPURE = (
    "os",
    "time",
    "random",
    "secrets",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "shutil",
    "glob",
    "threading",
    "asyncio",
    "logging",
    "urllib",
)
"""Standard modules that reach the network, files, the clock, chance or the environment."""

OPENERS = {"open", "read_bytes", "read_text", "write_bytes", "write_text"}
CLOCKS = {"now", "utcnow", "today"}


@pytest.mark.parametrize("library", ONLY_HERE)
def test_only_the_named_modules_import(library: str):
    """A library with a border is imported on its own side only."""
    strangers = [
        module.at(found.line)
        for module in modules()
        if not module.is_in(*ONLY_HERE[library])
        for found in module.imports
        if covers(library, found.target)
    ]
    assert strangers == []


def test_no_provider_imports_another():
    """What one provider needs of another belongs to what they share."""
    trespasses = [
        module.at(found.line)
        for module in modules("providers")
        for found in module.imports
        if (here := provider_of(module.name)) and (there := provider_of(found.target)) and here != there
    ]
    assert trespasses == []


@pytest.mark.parametrize("forbidden", IMPURE)
def test_normalization_imports_nothing_impure(forbidden: str):
    """Values in, values out: no standard module that reaches the world."""
    assert [
        module.at(found.line) for module in modules("normalization") for found in module.imports if covers(forbidden, found.target)
    ] == []


def test_normalization_opens_no_file_and_reads_no_clock():
    """No `open()`, no `Path.read_bytes()`, no `datetime.now()`; Pillow opens streams that it is given."""
    found = [module.at(call.lineno) for module in modules("normalization") for call in ast.walk(module.tree) if reaches_out(call)]
    assert found == []


def test_injected_types_are_imported_for_real():
    """Litestar resolves annotations when it runs, so its modules have nothing under TYPE_CHECKING."""
    hidden = [
        module.at(node.lineno)
        for module in modules()
        if module.is_in(*FACES)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Name) and node.id == "TYPE_CHECKING"
    ]
    assert hidden == []


def test_importing_has_no_effects():
    """Importing every module opens no socket, writes no file, and starts no thread or process."""
    names = [module.name for module in modules() if not module.is_in("migrations") and not module.name.endswith("__main__")]
    script = f"{NO_EFFECTS}\nfor name in {names!r}: __import__(name)\nimport threading; assert threading.active_count() == 1"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


NO_EFFECTS = """
import sys

BARRED = {"socket.bind", "socket.connect", "subprocess.Popen", "os.mkdir", "os.remove", "os.fork", "os.posix_spawn"}

def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and not {*"wax+"}.isdisjoint(arguments[1])
    if event in BARRED or (writes and arguments[0] != "/dev/null"):
        raise RuntimeError(f"importing did {event} {arguments}")

sys.addaudithook(watch)
"""


def provider_of(name: str) -> str | None:
    """The provider that a module belongs to, if any."""
    parts = name.split(".")
    return parts[1] if parts[0] == "providers" and len(parts) > 1 and parts[1] not in SHARED_BY_PROVIDERS else None


def reaches_out(node: ast.AST) -> bool:
    """Whether a node is a call that opens a file or asks for the time."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id == "open"
    if not isinstance(node.func, ast.Attribute):
        return False
    of_pillow = isinstance(node.func.value, ast.Name) and node.func.value.id in {"Image", "ImageFile"}
    return node.func.attr in CLOCKS | OPENERS and not of_pillow


def test_every_package_is_looked_at():
    """The lists above see the source: each package has modules."""
    assert all(modules(package) for package in PACKAGES)
