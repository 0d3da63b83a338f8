"""How fast new sessions become accepted events, and how much memory that takes.

100,000 sessions (or the number given) are discovered, decided, accepted and marked in one run, pace 0,
the simulators pinned to one core, engine and PostgreSQL to the other. The floor, in the same run: the same
GETs, decoding, COPY into a bare table and POSTs, with no ledger. Aims: 5,000 sessions per second; memory
flat (300 MB at a million).
"""

from __future__ import annotations

import os
import resource
import sys
import time
from datetime import UTC, datetime, timedelta

from tests.bench.systems import in_own_process, map_all, systems

SESSIONS = 100_000
AIM_PER_S = 5_000
AIM_MB = 300


def measure(count: int) -> int:
    os.sched_setaffinity(0, {1})  # PostgreSQL, started from here, stays there, too
    with systems("3.14.1", count, core=0, days=25) as simulated:
        from ocpp_billing.config import load_config
        from ocpp_billing.sync.foreground import synchronize_once
        from ocpp_billing.sync.models import SyncStep

        floor_s = _floor(count)
        map_all(simulated)
        began = time.perf_counter()
        run = synchronize_once(load_config(), by="bench", on_progress=lambda _text: None)
        took_s = time.perf_counter() - began
        for step in SyncStep.objects.filter(run=run):
            print(f"  {step.name}: {(step.ended_at - step.started_at).total_seconds():.1f} s {step.counts}")
        assert run.status == "completed", run.errors
        assert run.counts["accepted"] + run.counts["held"] + run.counts["excluded"] <= count
        per_s = count / took_s
        rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{count:,} sessions: {per_s:,.0f} per second (aim {AIM_PER_S:,}), {took_s / floor_s:.1f} times the "
            f"floor of {count / floor_s:,.0f} per second; {rss_mb:.0f} MB resident at most (aim {AIM_MB})"
        )
        return 0 if per_s >= AIM_PER_S and rss_mb <= AIM_MB else 1


def _floor(count: int) -> float:
    """Seconds for the same reading, decoding, copying and posting with nothing remembered."""
    from django.db import connection, transaction

    from ocpp_billing.config import load_config
    from ocpp_billing.lago.wire import UsageEvent, timestamp_text
    from ocpp_billing.sync.clients import open_clients

    posted = 0
    began = time.perf_counter()
    with open_clients(load_config()) as (steve, lago):
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE floor (steve_id bigint, charge_box_id text, id_tag text, wh bigint)")
        end, width = datetime.now(UTC) + timedelta(days=1), timedelta(days=2)
        while end > datetime.now(UTC) - timedelta(days=28):
            rows = steve.transactions(type="STOPPED", from_=end - width, to=end).rows
            end -= width
            with (
                transaction.atomic(),
                connection.cursor() as cursor,
                cursor.copy("COPY floor FROM STDIN") as copy,
            ):
                for row in rows:
                    copy.write_row((row.steve_id, row.charge_box_id, row.id_tag, row.stop_wh - row.start_wh))
            for start in range(0, len(rows), 100):
                lago.post_batch(
                    [
                        UsageEvent(
                            transaction_id=f"floor:{row.steve_id}",
                            code="floor",
                            external_subscription_id=row.id_tag,
                            timestamp=timestamp_text(row.stopped_at),
                            properties={"kwh": "1.000", "charge_box_id": row.charge_box_id},
                            value_field="kwh",
                        )
                        for row in rows[start : start + 100]
                    ]
                )
                posted += 1
    assert posted >= count // 100
    return time.perf_counter() - began


def main() -> int:
    return in_own_process(__name__)


if __name__ == "__main__":
    sys.exit(measure(int(sys.argv[1]) if len(sys.argv) > 1 else SESSIONS))
