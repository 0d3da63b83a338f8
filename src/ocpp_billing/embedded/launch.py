"""Become the user that PostgreSQL runs as, tie this process to its owner, then become the program.

Run by :mod:`ocpp_billing.embedded.process` as a script (``python -I -S launch.py …``), never imported by
it: it may import nothing but the standard library. A process of its own instead of ``preexec_fn``, which
may deadlock in a process that has threads.

Usage::

    launch.py exec  OWNER_PID UID GID PROGRAM [ARGUMENT…]   become the program
    launch.py reach OWNER_PID UID GID PATH…                 print the paths this user cannot reach

UID and GID are ``-`` when the user stays the same. Exit code 126 and one line on stderr when the user
cannot be changed, 127 when the program cannot be executed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def drop_privileges(uid: str, gid: str) -> None:
    """Become the user for good; no group of the old one stays."""
    if uid == "-":
        return
    try:
        os.setgroups([int(gid)])
        os.setresgid(int(gid), int(gid), int(gid))
        os.setresuid(int(uid), int(uid), int(uid))
    except OSError as error:
        sys.stderr.write(f"cannot change to the user id {uid}: {error.strerror}\n")
        raise SystemExit(126) from None


def die_with_owner(owner_pid: int) -> None:
    """Have the kernel send SIGINT (to PostgreSQL: fast shutdown) when the thread that started us ends.

    After dropping privileges, because changing the user id clears it (prctl(2)). The owner may have died
    before; then nobody would ever tell us.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) != 0:
        sys.stderr.write(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}\n")
        raise SystemExit(126)
    if os.getppid() != owner_pid:
        raise SystemExit(126)


def main(arguments: list[str]) -> None:
    """Carry out the command line described at the top."""
    mode, owner_pid, uid, gid, *rest = arguments
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o077)
    drop_privileges(uid, gid)
    die_with_owner(int(owner_pid))
    if mode == "reach":
        for path in rest:
            if not os.access(path, os.X_OK):  # to enter a folder, to execute a program
                sys.stdout.write(f"{path}\n")
        return
    try:
        os.execv(rest[0], rest)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot execute {rest[0]}: {error.strerror}\n")
        raise SystemExit(127) from None


if __name__ == "__main__":
    main(sys.argv[1:])
