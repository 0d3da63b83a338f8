"""What a running server writes about itself: ``postmaster.pid`` in its database folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_STATUS_LINE = 7  # process id, folder, start time, port, socket folder, address, shared memory, status


def postmaster_status(cluster: Path, pid: int) -> str | None:
    """``starting``, ``ready`` or ``stopping``, as written by the server with that process id, else None."""
    lines = _pid_file(cluster)
    if len(lines) <= _STATUS_LINE or lines[0].strip() != str(pid):
        return None
    return lines[_STATUS_LINE].strip()


def postmaster_on(cluster: Path) -> int | None:
    """Process id of a server that runs on this folder, whoever started it.

    A process id alone proves nothing, it may be somebody else's by now: a server is called ``postgres``
    and has the folder as its working directory.
    """
    pid = _written_pid(cluster)
    process = Path("/proc") / str(pid)
    try:
        named_so = pid is not None and "postgres" in (process / "comm").read_text()
        return pid if named_so and (process / "cwd").samefile(cluster) else None
    except OSError:
        return None


def clear_foreign_pid_file(cluster: Path) -> None:
    """Remove a stale ``postmaster.pid`` whose process id somebody else has now.

    PostgreSQL itself ignores one whose process is gone, but refuses to start as long as its user has any
    process with that id, such as a shell after a reboot. Only for a folder on which no server runs
    (:func:`postmaster_on`). Left-over backends still keep a new server away by their shared memory.
    """
    pid = _written_pid(cluster)
    if pid is not None and (Path("/proc") / str(pid)).exists():
        with contextlib.suppress(OSError):
            (cluster / "postmaster.pid").unlink()


def _written_pid(cluster: Path) -> int | None:
    lines = _pid_file(cluster)
    try:
        return abs(int(lines[0])) or None if lines else None  # negative: a server in single-user mode
    except ValueError:
        return None


def _pid_file(cluster: Path) -> list[str]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(cluster / "postmaster.pid", flags)
    except OSError:
        return []
    try:
        return os.read(fd, 4096).decode(errors="replace").splitlines()
    except OSError:
        return []
    finally:
        os.close(fd)
