"""Files of one piece of work in the spool, removed together when it is over."""

from pathlib import Path
from types import TracebackType

from providers.spool import Spool


class Scratch:
    """A context in which spool files live; on leaving it all of them go, whatever happened."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._paths: list[Path] = []

    def path(self, suffix: str = "") -> Path:
        """A new name; the file at it is removed with the rest."""
        path = self._spool.path(suffix)
        self._paths.append(path)
        return path

    def adopt(self, path: Path) -> Path:
        """Take over a file that somebody else made."""
        self._paths.append(path)
        return path

    def __enter__(self) -> "Scratch":
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Remove what is there."""
        for path in self._paths:
            path.unlink(missing_ok=True)
