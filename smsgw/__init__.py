"""smsgw: an SMS gateway in one process, where a message and its money move together."""

__version__ = "0.1.0"
