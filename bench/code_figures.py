"""Figures of the source, to be looked at and not enforced: how long functions and files are, and how much is explained.

    python bench/code_figures.py [PACKAGE ...]

A function's length is its lines without its docstring and without functions inside it; a comment counts wherever `#` begins one.
"""

import ast
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TypeAlias

FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

ROOT = Path(__file__).parents[1]
LONG_FILE_LINES = 300
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Function:
    """One function and how long it is."""

    name: str
    where: str
    lines: int


@dataclass(frozen=True, slots=True)
class File:
    """One source file, measured."""

    path: str
    lines: int
    code_lines: int
    """Lines with code, neither blank nor only a comment nor in a docstring."""
    comments: int
    functions: tuple[Function, ...]


def main(packages: list[str]) -> None:
    """Print a row for each package, then the longest functions and files of all."""
    print(f"{'package':<15}{'files':>7}{'code':>8}{'functions':>11}{'median':>8}{'p90':>6}{'max':>6}{'comments/100':>14}")
    files: list[File] = []
    for package in packages:
        measured = [measure(path) for path in sorted((ROOT / package).rglob("*.py"))]
        print(row(package, measured))
        files += measured
    functions = sorted((function for file in files for function in file.functions), key=lambda found: -found.lines)
    print("longest functions: " + ", ".join(f"{found.name} {found.lines} ({found.where})" for found in functions[:SHOWN]))
    longest = sorted(files, key=lambda file: -file.lines)
    print("longest files:     " + ", ".join(f"{file.path} {file.lines}" for file in longest[:SHOWN]))
    print(f"files over {LONG_FILE_LINES} lines: {sum(file.lines > LONG_FILE_LINES for file in files)} of {len(files)}")


def row(package: str, files: list[File]) -> str:
    """One package's line of the table."""
    code = sum(file.code_lines for file in files)
    lengths = [function.lines for file in files for function in file.functions] or [0]
    ninth = quantiles(lengths, n=10, method="inclusive")[-1] if len(lengths) > 1 else lengths[0]
    density = 100 * sum(file.comments for file in files) / max(code, 1)
    counts = f"{package:<15}{len(files):>7}{code:>8}{len(lengths):>11}"
    return f"{counts}{median(lengths):>8.0f}{ninth:>6.0f}{max(lengths):>6}{density:>14.1f}"


def measure(path: Path) -> File:
    """Measure one file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    with tokenize.open(path) as source:
        tokens = list(tokenize.generate_tokens(source.readline))
    layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}
    code = {line for token in tokens if token.type not in layout for line in range(token.start[0], token.end[0] + 1)}
    where = str(path.relative_to(ROOT))
    functions = [node for node in ast.walk(tree) if isinstance(node, FunctionNode)]
    return File(
        path=where,
        lines=text.count("\n"),
        code_lines=len(code - set(docstring_lines(tree))),
        comments=sum(token.type == tokenize.COMMENT for token in tokens),
        functions=tuple(Function(node.name, f"{where}:{node.lineno}", length(node)) for node in functions),
    )


def length(function: FunctionNode) -> int:
    """Lines of a function's own: signature and body."""
    inner = [node for node in ast.walk(function) if isinstance(node, FunctionNode) and node is not function]
    lines = set(range(function.lineno, (function.end_lineno or function.lineno) + 1)) - set(docstring_lines(function))
    for node in inner:
        lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def docstring_lines(tree: ast.AST) -> Iterator[int]:
    """The lines of every string that stands alone: docstrings, and the notes under fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


if __name__ == "__main__":
    main(sys.argv[1:] or ["gateway", "providers", "normalization", "migrations"])
