"""What a model of the bundled backend is: a name, declared inputs, and one function that turns them into a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeAlias

Value: TypeAlias = "bool | int | float | str | Path | None"
"""A checked input; a picture is the path of a file that holds it."""

Checkpoint: TypeAlias = Callable[[float], None]
"""Called between pieces of work with the part that is done, 0..1. Raises `Cancelled` once the work is no longer wanted."""


class Cancelled(Exception):
    """The work was stopped because it was asked to stop."""


class InputRefused(Exception):
    """The model cannot work on this input. The message is for the caller."""


class InputType(StrEnum):
    """What an input holds."""

    FILE = "file"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class InputField:
    """One input of a model, as its schema declares it."""

    name: str
    type: InputType
    description: str
    required: bool = False
    default: Value = None
    """What an input that is not given becomes."""
    min: float | None = None
    max: float | None = None
    """Bounds, themselves allowed."""
    choices: tuple[str | int, ...] = ()


class BackendModel(Protocol):
    """A model. It lives in a worker process: one instance per process, one run at a time."""

    @property
    def name(self) -> str:
        """The name under which the backend serves it."""
        ...

    @property
    def description(self) -> str:
        """What it does, for people."""
        ...

    @property
    def inputs(self) -> tuple[InputField, ...]:
        """Everything it takes; anything else is refused."""
        ...

    def setup(self) -> None:
        """Load what is needed before the first run. Called once, in the worker process."""
        ...

    def run(self, inputs: Mapping[str, Value], output: Path, checkpoint: Checkpoint) -> None:
        """Make one PNG file at `output`.

        Args:
            inputs: A value for every declared input, within its bounds.
            output: Where to write; it does not exist yet, and whoever asked removes it, also after a failure.
            checkpoint: To be called at least a few times a second while working.

        Raises:
            InputRefused: If the input cannot be worked on.
            Cancelled: If `checkpoint` says so.
        """
        ...
