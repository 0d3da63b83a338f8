"""``ocpp-billing`` in another time: its clock is ahead of the machine's by the seconds in a file.

A module of the tests' own, run as a process (``python -m tests.engine.shifted worker``).
"""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ocpp_billing import clock
from ocpp_billing.cli import main

FILE = "TEST_CLOCK_AHEAD"


def now() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=float(Path(os.environ[FILE]).read_text()))


if __name__ == "__main__":
    clock.install_clock(now)
    sys.exit(main())
