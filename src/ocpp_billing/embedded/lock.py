"""Who runs the server of a data folder: a lock that ends with its holder, and what the holder says.

The lock is ``flock`` on a small JSON file, held by the process that owns the server. The kernel drops
it when that process ends, however it ends; what is written in the file counts only while it is held.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import weakref
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ocpp_billing.embedded.errors import AlreadyRunningError, DataFolderError

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WAIT_S = 1.0  # a look by read_holder() holds the lock for a moment; a real holder for longer


@dataclass(frozen=True, slots=True)
class Holder:
    """What the owner of a running server writes down.

    Attributes:
        pid: the owner's process id.
        url: address of the server; None while it starts.
        socket_folder: where its socket is, to be cleared away if the owner does not get to it.
    """

    pid: int
    url: str | None = None
    socket_folder: str | None = None


class OwnerLock:
    """The lock on a data folder; held from :meth:`acquire` to :meth:`release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> Holder | None:
        """Take the lock; returns what the last holder left behind, if it ended without releasing.

        Raises:
            AlreadyRunningError: another process holds it.
            DataFolderError: the file cannot be made or written.
        """
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
            if os.geteuid() == 0:  # a start as root must not shut the folder's owner out
                owner = self._path.parent.stat()
                os.fchown(fd, owner.st_uid, owner.st_gid)
        except OSError as error:
            raise DataFolderError(
                f"The data folder {self._path.parent} cannot be written ({error.strerror}). Give this user "
                "the right to write there, or choose another folder with OCPP_BILLING_DATA_DIR."
            ) from error
        deadline = time.monotonic() + _WAIT_S
        while not _try_lock(fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                holder = _read(fd)
                os.close(fd)
                raise _already_running(self._path.parent, holder)
            time.sleep(0.02)
        self._fd = fd
        _held.add(self)
        left_behind = _read(fd)
        self.publish(Holder(os.getpid()))
        return left_behind

    def publish(self, holder: Holder) -> None:
        """Say who holds the lock and where the server is."""
        if self._fd is None:
            raise RuntimeError("the lock is not held")
        text = json.dumps(asdict(holder)).encode()
        try:
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))
        except OSError as error:
            raise DataFolderError(
                f"{self._path} cannot be written ({error.strerror}). Make room on that disk, or choose "
                "another folder with OCPP_BILLING_DATA_DIR."
            ) from error

    def release(self) -> None:
        """Let go; what was written is wiped. Does nothing when it is not held."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            self.abandon()

    def abandon(self) -> None:
        """Close our file without a word: all that a forked copy of the holder may do."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_holder(path: Path) -> Holder | None:
    """What the process says that holds the lock right now; None when nobody does (or we may not look)."""
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return None
    try:
        return None if _try_lock(fd, fcntl.LOCK_SH) else _read(fd)
    finally:
        os.close(fd)


def _already_running(folder: Path, holder: Holder | None) -> AlreadyRunningError:
    pid = None if holder is None else holder.pid
    by = f"by process {pid or '(unknown)'}"
    if holder is not None and holder.url is None:
        says = f"The database in {folder} is just being started {by}. Repeat this when it runs"
    else:
        says = f"The database in {folder} is already run {by}. Use that one, stop it first"
    return AlreadyRunningError(f"{says}, or choose another folder with OCPP_BILLING_DATA_DIR.", pid)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DataFolderError(
            f"The data folder is on a file system without locks ({error.strerror}). Choose another folder "
            "with OCPP_BILLING_DATA_DIR."
        ) from error
    return True


def _read(fd: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(fd, 65536, 0)))
    except (ValueError, TypeError):
        return None


# A forked child inherits the open file and would keep the lock when its parent has died.
_held: weakref.WeakSet[OwnerLock] = weakref.WeakSet()


def _abandon_all() -> None:
    for lock in list(_held):
        lock.abandon()


os.register_at_fork(after_in_child=_abandon_all)
