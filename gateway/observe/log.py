"""Structured logs: events with names and bound context, as JSON lines or for a person's terminal.

Never a key, a prompt or a signed link.
"""

import logging
import sys
from typing import Any, TextIO

import msgspec
import structlog


def configure_logging(level: str, form: str | None, stream: TextIO | None = None) -> None:
    """Set up logging for this process, the libraries' own included.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `json` or `console`; None chooses `console` on a terminal.
        stream: Where to; None is standard error.
    """
    stream = stream or sys.stderr
    if stream is None:  # pythonw and the like: nobody could read it
        return
    console = form == "console" or (form is None and stream.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        renderer: list[Any] = [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    else:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    _capture_libraries(number, shared, renderer, stream)


def _capture_libraries(level: int, shared: list[Any], renderer: list[Any], stream: TextIO) -> None:
    """Send what libraries log (uvicorn, litestar, asyncio) through the same renderer."""
    handler = logging.StreamHandler(stream)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove_meta, *renderer]))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "litestar"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True


def _json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
