"""A process that owns a server, for tests that kill it or that need another user.

``owner.py DATA_DIR UID SETTINGS`` (UID ``-``: stay who we are; SETTINGS as JSON). Prints one JSON line: what was started, or the
error; then waits for the end of its input and stops the server.
"""

import json
import os
import pwd
import sys
from pathlib import Path

from ocpp_billing.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError


def become(uid: int) -> None:
    """Become that user; everything is imported, in case that user cannot read our Python."""
    entry = pwd.getpwuid(uid)
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(uid, uid, uid)


def say(**answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(data_dir: str, uid: str, settings: str) -> None:
    notices: list[str] = []
    if uid != "-":
        become(int(uid))
        sys.executable = "/usr/bin/python3" if not os.access(sys.executable, os.X_OK) else sys.executable
    postgres = EmbeddedPostgres(Path(data_dir), settings=json.loads(settings), notice=notices.append)
    try:
        url = postgres.start()
    except EmbeddedPostgresError as error:
        say(error=type(error).__name__, message=str(error))
        raise SystemExit(1) from None
    say(url=url, pid=postgres.pid, notices=notices)
    sys.stdin.read()
    postgres.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
