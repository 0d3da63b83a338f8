"""How fast new sessions become accepted and confirmed events, what that costs, and how much memory it takes.

100,000 sessions (or ``--sessions``) are discovered, decided, accepted and marked in one run, pace 0, the
simulators pinned to one core, engine and PostgreSQL to the other. The floor, in the same process: the same
GETs, decoding, COPY into a bare table and POSTs, with no ledger. A smaller run before it shows whether memory
grows with the sessions. Aims: 5,000 sessions per second; 300 MB at a million.

The clock says something on a quiet machine only; CPU seconds (user and system) and their ratio to the
floor's hold on a busy one, too.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from unittest.mock import patch

from tests.bench.cost import Cost, Meter, forget_peak, peak_rss_mb, statements_told
from tests.bench.systems import in_own_process, map_all, systems

if TYPE_CHECKING:
    from collections.abc import Iterator

SESSIONS, FEWER_SESSIONS = 100_000, 20_000
DAYS = 25
AIM_PER_S = 5_000
AIM_MB = 300
# Until Lago has accepted; in production confirmation comes a minute later.
TO_ACCEPTED = ("discover", "record", "decide", "deliver")


@dataclass(slots=True)
class Phases:
    """What each step of a run cost. Reading and recording alternate within one step and are told apart.

    Attributes:
        meter: reads what the processes have used.
        costs: by name of the step.
    """

    meter: Meter
    costs: dict[str, Cost] = field(default_factory=dict)
    _within: str | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Measure the steps of the run within."""
        from ocpp_billing.sync.journal import RunJournal
        from ocpp_billing.sync.reading import Recorder

        step, record = RunJournal.step, Recorder.__call__

        @contextmanager
        def measured_step(journal, name, *expected):
            with self._measured(name), step(journal, name, *expected) as counted:
                yield counted

        def measured_record(*args, **kwargs):
            before = self.meter.read()
            try:
                return record(*args, **kwargs)
            finally:
                self._add("record", self.meter.read() - before)

        with (
            patch.object(RunJournal, "step", measured_step),
            patch.object(Recorder, "__call__", measured_record),
        ):
            yield
        self.costs["discover"] -= self.costs["record"]

    @contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        """A step within another one (what delivery has decided anew) belongs to that one."""
        if self._within is not None:
            yield
            return
        self._within, before = name, self.meter.read()
        try:
            yield
        finally:
            self._within = None
            self._add(name, self.meter.read() - before)

    def _add(self, name: str, cost: Cost) -> None:
        self.costs[name] = self.costs.get(name, Cost()) + cost


def measure(count: int, *, statements: bool = False) -> int:
    if len(cores := sorted(os.sched_getaffinity(0))) < 2:
        print("this machine has one core: everything shares it, and the clock's figures say little")
    os.sched_setaffinity(0, {cores[-1]})  # PostgreSQL, started from here, stays there, too
    with systems("3.14.1", count, core=cores[0], days=DAYS) as simulated:
        from ocpp_billing.config import load_config
        from ocpp_billing.sync.foreground import synchronize_once

        meter = Meter(simulated.database_pid, simulated.pid)
        before = meter.read()
        floor_count = _floor()
        floor = meter.read() - before
        map_all(simulated)
        idle_mb = forget_peak()  # the floor holds whole days
        phases = Phases(meter)
        before = meter.read()
        with phases.watched(), statements_told(meter) if statements else nullcontext():
            run = synchronize_once(load_config(), by="bench", on_progress=lambda _text: None)
        whole = meter.read() - before
        assert run.status == "completed", run.errors
        sent = run.counts["accepted"]
        assert sent == run.counts["queued"] == run.counts["confirmed"] > 0.9 * count, run.counts
        return _told(count, sent, phases.costs, whole, (floor_count, floor), idle_mb)


def _told(
    count: int,
    sent: int,
    costs: dict[str, Cost],
    whole: Cost,
    floor: tuple[int, Cost],
    idle_mb: float,
) -> int:
    """Print what was measured; 1 when an aim was missed."""
    print(f"{count:,} sessions, {sent:,} billed; seconds per 100,000 sessions:")
    print(
        f"  {'':10} {'clock':>8} {'engine':>8} {'database':>9} {'simulators':>11}   CPU of ours to the floor's"
    )
    accepted = sum((costs[name] for name in TO_ACCEPTED), Cost())
    floor_count, floor_cost = floor
    scale = 100_000 / count
    floor_own_s = floor_cost.own_s * 100_000 / floor_count
    lines = [(name, costs[name], scale) for name in (*TO_ACCEPTED, "confirm")]
    lines += [("accepted", accepted, scale), ("whole run", whole, scale)]
    lines += [("floor", floor_cost, 100_000 / floor_count)]
    for name, cost, factor in lines:
        print(
            f"  {name:10} {cost.wall_s * factor:8.2f} {cost.engine_s * factor:8.2f}"
            f" {cost.database_s * factor:9.2f} {cost.simulators_s * factor:11.2f}"
            f" {cost.own_s * factor / floor_own_s:8.1f}"
        )
    per_s, rss_mb = count / accepted.wall_s, peak_rss_mb()
    print(
        f"{count:,} sessions: {per_s:,.0f} per second until accepted (aim {AIM_PER_S:,}), "
        f"{count / whole.wall_s:,.0f} with confirmation, {floor_count / floor_cost.wall_s:,.0f} at the floor"
    )
    print(
        f"{count:,} sessions: one core for engine and PostgreSQL allows {count / accepted.own_s:,.0f} per "
        f"second, one for the simulators {count / accepted.simulators_s:,.0f}; limited by {_limit(accepted)}"
    )
    print(
        f"{count:,} sessions: {rss_mb:.0f} MB resident at most (aim {AIM_MB}), {idle_mb:.0f} MB before the run"
    )
    # A smaller run is there for comparison: starting up weighs more in it.
    return int(count >= SESSIONS and (per_s < AIM_PER_S or rss_mb > AIM_MB))


def _limit(cost: Cost) -> str:
    """Which core was busiest, and how busy."""
    own, simulators = cost.own_s / cost.wall_s, cost.simulators_s / cost.wall_s
    if max(own, simulators) < 0.6:
        return f"waiting: for the disk, or for other processes (cores {own:.0%} and {simulators:.0%} busy)"
    if own >= simulators:
        return f"engine and PostgreSQL (their core {own:.0%} busy, the simulators' {simulators:.0%})"
    return f"the simulators (their core {simulators:.0%} busy, ours {own:.0%})"


def _floor() -> int:
    """The same reading, decoding, copying and posting with nothing remembered; how many sessions it had."""
    from django.db import connection, transaction

    from ocpp_billing.config import load_config
    from ocpp_billing.lago.wire import MAX_BATCH_EVENTS, UsageEvent, timestamp_text
    from ocpp_billing.sync.clients import open_clients

    config = load_config()
    found = 0
    with open_clients(config) as (steve, lago), ThreadPoolExecutor(config.delivery_concurrency) as pool:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE floor (steve_id bigint, charge_box_id text, id_tag text, wh bigint)")
        end, width = datetime.now(UTC) + timedelta(days=1), timedelta(days=1)
        while end > datetime.now(UTC) - timedelta(days=DAYS + 3):
            rows = steve.transactions(type="STOPPED", from_=end - width, to=end).rows
            end -= width
            found += len(rows)
            with (
                transaction.atomic(),
                connection.cursor() as cursor,
                cursor.copy("COPY floor FROM STDIN") as copy,
            ):
                for row in rows:
                    copy.write_row((row.steve_id, row.charge_box_id, row.id_tag, row.stop_wh - row.start_wh))
            batches = [
                [
                    UsageEvent(
                        transaction_id=f"floor:{row.steve_id}",
                        code="floor",
                        external_subscription_id=f"s-{row.id_tag}",
                        timestamp=timestamp_text(row.stopped_at),
                        properties={
                            "kwh": "1.000",
                            "charge_box_id": row.charge_box_id,
                            "connector_id": str(row.connector_id),
                            "started_at": row.start_timestamp,
                            "stopped_at": row.stop_timestamp,
                            "duration_s": "3600",
                            "steve_transaction_id": str(row.steve_id),
                            "id_tag_last4": row.id_tag[-4:],
                        },
                        value_field="kwh",
                    )
                    for row in rows[start : start + MAX_BATCH_EVENTS]
                ]
                for start in range(0, len(rows), MAX_BATCH_EVENTS)
            ]
            list(pool.map(lago.post_batch, batches))
    return found


def main() -> int:
    """A small run and the large one: each a process, as memory once taken is not given back."""
    return max(in_own_process(__name__, "--sessions", str(count)) for count in (FEWER_SESSIONS, SESSIONS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--statements", action="store_true", help="tell which cost the database most")
    given = parser.parse_args()
    sys.exit(measure(given.sessions, statements=given.statements))
