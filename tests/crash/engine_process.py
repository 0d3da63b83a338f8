"""Processes of the engine that are there to be killed, each a fork of one that holds nothing yet.

Loading Python and Django takes longer than a synchronization. So ``python -m tests.crash.engine_process``
loads everything once, opens no connection, and forks for every instant that it reads, which is the time in
the child. The child does what ``ocpp-billing sync`` does; its process id is the answer, and nobody else gets
that id before the next line is read: that one asks how it ended, as ``os.waitstatus_to_exitcode`` says it.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta


def main() -> None:
    """Fork for every instant until there are no more."""
    import django

    django.setup()
    from ocpp_billing.sync.foreground import synchronize_once  # noqa: F401 - loaded here, for every child

    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            _be_the_engine(datetime.fromisoformat(line.strip()))
        say(pid)
        sys.stdin.readline()
        _, status = os.waitpid(pid, 0)
        say(os.waitstatus_to_exitcode(status))


def say(number: int) -> None:
    """Answer with a line."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _be_the_engine(now: datetime) -> None:
    """One synchronization; ends the process. Waiting moves the clock, and nobody really waits."""
    from ocpp_billing import clock
    from ocpp_billing.config import load_config
    from ocpp_billing.sync.foreground import synchronize_once

    os.dup2(2, 1)  # what the engine logs is no answer
    waited = [timedelta()]

    def wait(seconds: float) -> None:
        waited[0] += timedelta(seconds=max(seconds, 0))

    clock.install_clock(lambda: now + waited[0], wait)
    code = 70
    try:
        run = synchronize_once(load_config(dict(os.environ)), by="test", on_progress=str)
        code = {"completed": 0, "partial": 3}.get(run.status, 1)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
