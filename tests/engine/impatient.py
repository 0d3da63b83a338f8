"""``ocpp-billing`` in a hurry: a standby takes a leader for frozen after two seconds instead of thirty,
and alerts are looked for at once after every run.

A module of the tests' own, run as a process (``python -m tests.engine.impatient worker``), so that the
product needs no setting for it.
"""

import sys
from datetime import timedelta

from ocpp_billing.cli import main


def hurry() -> None:
    from ocpp_billing.alerts import watchman
    from ocpp_billing.sync import heartbeat, leadership

    watchman.LOOKS_SOONEST_S = watchman.SENDS_EVERY_S = 0.3

    heartbeat.HEARTBEAT_EVERY = timedelta(seconds=0.5)
    leadership.FROZEN_AFTER_S = 2.0
    leadership.STANDBY_LOOKS_EVERY_S = 0.3


if __name__ == "__main__":
    import os

    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ocpp_billing.settings")
    django.setup()
    hurry()
    sys.exit(main())
