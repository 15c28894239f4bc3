"""The clock."""

from datetime import UTC, datetime


def now() -> datetime:
    """The present time: aware, in UTC."""
    return datetime.now(UTC)
