"""The files around the server: its socket folder, its log, and the list of who may connect."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ocpp_billing.embedded.errors import DataFolderError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.embedded.place import Place
    from ocpp_billing.embedded.process import Child, ServerUser

PORT = 5432  # only part of the socket's name
SOCKET = f".s.PGSQL.{PORT}"
SOCKET_PATH_LIMIT_BYTES = 107  # sockaddr_un.sun_path without its final zero, unix(7)
LOG_FILE_LIMIT_MB = 10
NEEDED_MB = 40  # PostgreSQL writes its log of changes in files of 16 MB, and the next one ahead of time
_LOG_FILES_KEPT = 7
_PRUNE_EVERY_S = 60.0
_SHORT_BASE_BYTES = 60


def cannot_write(home: Path, error: OSError) -> DataFolderError:
    """The one error for whatever cannot be written at the place of the database."""
    return DataFolderError(
        f"The database in {home} cannot be written ({error.strerror}: {error.filename}). Make it writable "
        "or make room on that disk, or choose another folder with OCPP_BILLING_DATA_DIR."
    )


def room_mb(folder: Path) -> int | None:
    """How much can still be written to the disk of a folder, in MB; None when that cannot be found out."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize // 1_000_000


def say_no_room(folder: Path) -> str:
    """A sentence to add when the disk of the database is too full for PostgreSQL, else ""."""
    room = room_mb(folder)
    if room is None or room >= NEEDED_MB:
        return ""
    return f" That disk is full: {room} MB are left. Make room on it, outside of PostgreSQL's own folder."


def make_private_folder(folder: Path, user: ServerUser) -> None:
    """Make a folder of mode 0700 that belongs to the server's user.

    Raises:
        OSError: also when it exists.
    """
    folder.mkdir(mode=0o700)
    _give(folder, user)


def make_socket_folder(place: Place) -> Path:
    """Make a folder for the socket: in the home, or in a short place when its path will not do.

    It will not when it is too long, or has a comma: to libpq a comma separates hosts.

    Raises:
        DataFolderError: when neither works.
    """
    folder = place.home / "postgres-run"
    try:
        if len(os.fsencode(folder / SOCKET)) <= SOCKET_PATH_LIMIT_BYTES and "," not in str(folder):
            clear_socket_folder(folder, place.user)
            make_private_folder(folder, place.user)
            return folder
        own = [] if place.user.drop else [tempfile.gettempdir()]
        for base in (*own, "/run", "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp makes a private one there
            if len(os.fsencode(base)) <= _SHORT_BASE_BYTES and os.access(base, os.W_OK | os.X_OK):
                folder = Path(tempfile.mkdtemp(prefix="ocpp-billing-", dir=base))
                _give(folder, place.user)
                return folder
    except OSError as error:
        raise cannot_write(place.home, error) from error
    raise DataFolderError(
        f"The path {place.home} is too long for a socket, and no short folder can be written. Choose a "
        "shorter one with OCPP_BILLING_DATA_DIR."
    )


def clear_socket_folder(folder: Path, user: ServerUser) -> None:
    """Remove a socket folder of ours with what a killed server left in it; never anything else."""
    with contextlib.suppress(OSError):
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid in {user.uid, os.geteuid()}:
            for name in (SOCKET, f"{SOCKET}.lock"):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def clear_unfinished(place: Place) -> None:
    """Remove what an interrupted initdb left. The data folder's lock is held, so nobody is at it."""
    for folder in place.home.glob(f"{place.cluster.name}.new-*"):
        shutil.rmtree(folder, ignore_errors=True)


def write_access_files(place: Place) -> tuple[Path, Path]:
    """Write who may connect: over the socket, the server's own user and root, on the kernel's word.

    Returns:
        The files for ``hba_file`` and ``ident_file``.

    Raises:
        OSError: when they cannot be written.
    """
    names = {place.user.name}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(0).pw_name)
    hba = place.home / "postgres-hba.conf"
    ident = place.home / "postgres-ident.conf"
    _write_for_server(hba, ["local all ocpp_billing,postgres peer map=owner"], place.user)
    lines = [f'owner "{name}" {role}' for name in sorted(names) for role in ("ocpp_billing", "postgres")]
    _write_for_server(ident, lines, place.user)
    return hba, ident


def make_log_folder(place: Place) -> Path:
    """The folder of the server's log, made when it is missing.

    Raises:
        OSError: when it cannot be made.
    """
    folder = place.home / "postgres-log"
    if not folder.exists():
        make_private_folder(folder, place.user)
    prune_log(folder)
    return folder


def keep_log_small(child: Child, folder: Path) -> None:
    """Prune the log as long as the server runs."""
    while child.wait(_PRUNE_EVERY_S) is None:
        prune_log(folder)


def prune_log(folder: Path) -> None:
    """Keep the newest files; PostgreSQL begins a new one each day, and when one is full."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("postgres-*.log"))[:-_LOG_FILES_KEPT]:
            path.unlink(missing_ok=True)


def log_tail(folder: Path, *, since: float) -> str:
    """The last few kilobytes of the newest log file, if it was written after ``since`` (Unix time)."""
    with contextlib.suppress(OSError):
        newest = max(folder.glob("postgres-*.log"), default=None)
        if newest is not None and newest.stat().st_mtime >= since:
            return newest.read_bytes()[-8192:].decode(errors="replace")
    return ""


def sync_folder(folder: Path) -> None:
    """Write a folder's entries out to the disk.

    Raises:
        OSError: when that fails.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _give(folder: Path, user: ServerUser) -> None:
    """Hand a folder that we have just made to the server's user."""
    if user.drop:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(fd, user.uid, user.gid)
        finally:
            os.close(fd)


def _write_for_server(path: Path, lines: Sequence[str], user: ServerUser) -> None:
    """Write a file that the server's user may read, and not write when that is not ourselves."""
    descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(["# Written anew at every start.", *lines, ""]))
            if user.drop:
                os.fchown(file.fileno(), 0, user.gid)
                os.fchmod(file.fileno(), 0o640)
        Path(new).replace(path)
    except OSError:
        Path(new).unlink(missing_ok=True)
        raise
