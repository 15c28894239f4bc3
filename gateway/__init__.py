"""The gateway: HTTP, database, jobs and money around `providers` and `normalization`."""

__version__ = "0.1.0"
