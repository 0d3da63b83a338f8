"""What can go wrong with the embedded PostgreSQL; each message says what the operator can do."""

from __future__ import annotations


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL cannot be used. ``str()`` is one or a few sentences for the operator."""


class UnsupportedError(EmbeddedPostgresError):
    """This machine has no PostgreSQL binaries of ours, or cannot run them: set ``DATABASE_URL``."""


class AlreadyRunningError(EmbeddedPostgresError):
    """The data folder is in use.

    Attributes:
        pid: the process that holds it: another of ours, or a ``postgres`` somebody started by hand.
    """

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class WrongMajorVersionError(EmbeddedPostgresError):
    """The data folder was made by another major version of PostgreSQL; nothing was changed."""


class DataFolderError(EmbeddedPostgresError):
    """The data folder cannot be made, written or reached, or is not ours to use."""


class StartFailedError(EmbeddedPostgresError):
    """``initdb`` or ``postgres`` gave up; the message quotes its words."""
