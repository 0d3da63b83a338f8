"""What an idle cycle and a watch tick ask of a StEvE with a long history.

A simulator that charges for history like the real one (ACTIVE 1 s, tags 2.7 s, by id 0.07 to 0.2 s at
300,000 transactions). Aims: at most 4 calls per idle cycle, and at most 5 % of StEvE's time, with cycles
every 15 minutes and watch ticks every 15 seconds.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

from tests.bench.systems import in_own_process, systems

SESSIONS = 300_000
CYCLE_EVERY = timedelta(minutes=15)
TICK_EVERY = timedelta(seconds=15)
MOST_CALLS = 4
MOST_SHARE = 0.05
RELEASES = ("3.9.0", "3.14.1")


def measure(release: str) -> int:
    with systems(release, SESSIONS, cost=1.0, days=900, open_count=200, tag_count=1000, customers=False):
        from ocpp_billing import clock
        from ocpp_billing.config import load_config
        from ocpp_billing.sync.clients import open_clients
        from ocpp_billing.sync.foreground import synchronize_once

        began = datetime.now(UTC)
        run = synchronize_once(load_config(), by="bench", on_progress=lambda _text: None)
        took_s = (datetime.now(UTC) - began).total_seconds()
        print(f"{release}: first read of {run.counts['discovered']:,} sessions in {took_s:.0f} s")
        # From here on time passes between the cycles without our waiting for it.
        now = datetime.now(UTC)
        clock.install_clock(lambda: now)
        missed = 0
        with open_clients(load_config()) as (steve, _lago):
            for number in range(1, 4):
                now += CYCLE_EVERY
                calls, busy_s = _cycle(steve)
                share = busy_s / CYCLE_EVERY.total_seconds()
                missed += calls > MOST_CALLS or share > MOST_SHARE
                print(
                    f"{release}: idle cycle {number}: {calls} calls (aim {MOST_CALLS}), {busy_s:.2f} s of StEvE's "
                    f"time, {share:.2%} (aim {MOST_SHARE:.0%})"
                )
            calls = busy_s = 0.0
            ticks = 40
            for _ in range(ticks):
                now += TICK_EVERY
                more_calls, more_s = _tick(steve)
                calls, busy_s = calls + more_calls, busy_s + more_s
            share = busy_s / (ticks * TICK_EVERY.total_seconds())
            missed += share > MOST_SHARE
            print(
                f"{release}: watch tick: {calls / ticks:.1f} calls, {busy_s / ticks:.2f} s, "
                f"{share:.2%} of StEvE's time (aim {MOST_SHARE:.0%})"
            )
        return 1 if missed else 0


def _discovery(steve, record_into):
    """A discovery on the bench's ledger, recording like a run does."""
    from ocpp_billing.charging.known import KnownSessions
    from ocpp_billing.charging.models import Source
    from ocpp_billing.steve.capabilities import Capabilities
    from ocpp_billing.steve.discovery import Discovery

    source = Source.objects.get(name="main")
    return Discovery(
        client=steve,
        capabilities=Capabilities.from_dict(source.capabilities),
        known=KnownSessions("main"),
        record=record_into,
        progress=source.progress,
        say=lambda _text: None,
    )


def _measured(steve, act: str) -> tuple[int, float]:
    from ocpp_billing import clock
    from ocpp_billing.charging.ingest import ingest_transactions
    from ocpp_billing.charging.models import Source
    from ocpp_billing.sync.database import fenced_transaction

    def record(answer, *, gone, progress, rewind_to=None):
        with fenced_transaction("record", None) as cursor:
            ingest_transactions(cursor, "main", answer.rows, answer.malformed, clock.now())
        return []

    steve.locate()
    discovery = _discovery(steve, record)
    before = steve.calls, steve.busy_s
    # Re-reading stops that may still change has a budget of calls of its own, beside the idle cycle's.
    with patch.object(type(discovery), "_recheck_stops", lambda _discovery: None):
        getattr(discovery, act)()
    Source.objects.filter(name="main").update(progress=discovery.progress)
    return steve.calls - before[0], steve.busy_s - before[1]


def _cycle(steve) -> tuple[int, float]:
    return _measured(steve, "cycle")


def _tick(steve) -> tuple[int, float]:
    return _measured(steve, "watch")


def main() -> int:
    return max(in_own_process(__name__, release) for release in RELEASES)


if __name__ == "__main__":
    sys.exit(measure(sys.argv[1]))
