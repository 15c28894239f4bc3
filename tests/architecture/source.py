"""The packages' source as syntax trees: which module imports what, and where."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("gateway", "providers", "normalization", "migrations")


@dataclass(frozen=True)
class Import:
    """One imported module, and the line that says so."""

    target: str
    line: int


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        """The file's syntax tree."""
        return ast.parse(self.path.read_text(encoding="utf-8"), filename=str(self.path))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """Everything imported, inside functions too; `from a import b` counts as `a.b`, which covers `a`."""
        return tuple(self._find_imports())

    def is_in(self, *packages: str) -> bool:
        """Whether this is one of the named modules or lies below one."""
        return any(covers(package, self.name) for package in packages)

    def at(self, line: int) -> str:
        """Where a finding is, for a person to click on."""
        return f"{self.path.relative_to(ROOT)}:{line}"

    def _find_imports(self) -> Iterator[Import]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._resolve(node)
                yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)

    def _resolve(self, node: ast.ImportFrom) -> str:
        """The absolute name of a `from` import's module."""
        if node.level == 0:
            return node.module or ""
        package = self.name.split(".") if self.path.name == "__init__.py" else self.name.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, node.module] if node.module else base)


def covers(package: str, name: str) -> bool:
    """Whether `name` is `package` or lies below it."""
    return name == package or name.startswith(f"{package}.")


def modules(*packages: str) -> list[Module]:
    """Every source file of the named packages, or of all of them."""
    found: list[Module] = []
    for package in packages or PACKAGES:
        for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found
