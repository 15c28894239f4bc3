"""The documents as the tests read them: pages, their links, their words in backticks, their fenced blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_TICKED = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str


@dataclass(frozen=True)
class Page:
    """One document."""

    path: Path

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """All but the fenced blocks."""
        return _FENCE.sub("", self.text)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The fenced blocks, in order."""
        return tuple(Block(match[1], match[2]) for match in _FENCE.finditer(self.text))

    @cached_property
    def anchors(self) -> frozenset[str]:
        """What a link's fragment can name."""
        return frozenset(
            re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in _HEADING.findall(self.prose)
        )

    def links(self) -> Iterator[str]:
        """Addresses of links and pictures."""
        yield from _LINK.findall(self.prose)

    def ticked(self) -> Iterator[str]:
        """What stands in backticks."""
        yield from _TICKED.findall(self.prose)

    def table(self, section: str, heading: str) -> list[list[str]]:
        """The cells of the first table below a heading whose head begins with `heading`."""
        found = re.search(rf"^## {re.escape(section)}$.*?^(?=\| {re.escape(heading)} \|)", self.text, re.MULTILINE | re.DOTALL)
        assert found, f"{self.name} has no table {heading} below {section}"
        rows = self.text[found.end() :].partition("\n\n")[0].splitlines()[2:]
        return [[cell.strip() for cell in row[1:-1].split("|")] for row in rows]

    def names(self, section: str, heading: str) -> set[str]:
        """Every name in backticks of a table's first column."""
        return {name for row in self.table(section, heading) for name in _TICKED.findall(row[0])}


PAGES = tuple(Page(path) for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))))


def page(name: str) -> Page:
    """The page at a path of the repository."""
    return next(each for each in PAGES if each.name == name)
