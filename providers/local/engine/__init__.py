"""The models that the bundled backend serves, and the worker processes that run them. Imported by the backend's server only."""
