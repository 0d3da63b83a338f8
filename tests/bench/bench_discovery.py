"""What whole idle cycles and watch ticks cost, StEvE and us, with 300,000 old sessions and 1,000 tags.

A day of cycles as the worker runs them (:func:`ocpp_billing.sync.reading.discover_and_record`: the list of
tags, evidence of stuck sessions and stops that are read again included), 15 minutes apart, in which nothing
happens, then an hour of watch ticks; with 5 and with 300 sessions open. StEvE takes as long as the real one
with such a history, by a clock of its own (:class:`tests.slow_steve.SlowSteve`): nobody waits, so that the
CPU that is printed is ours. Aims: at most 4 calls in every idle cycle (stops that are read again and the
reading of the night have budgets of their own), and at most 5 % of StEvE's time for all of it.

``--sessions N`` takes another history.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ocpp_billing.simulators.steve_release import Release
from tests.bench.cost import Cost, Meter, peak_rss_mb
from tests.bench.systems import in_own_process, systems

if TYPE_CHECKING:
    from collections import Counter

    from tests.slow_steve import Days

SESSIONS, TAGS, STUCK = 300_000, 1_000, 20
A_DAY = 1_000  # sessions
OPEN = (5, 300)
CYCLE_EVERY = timedelta(minutes=15)
CYCLES = 96
TICK_EVERY = timedelta(seconds=15)
TICKS = 240
MOST_CALLS, MOST_SHARE = 4, 0.05
RELEASES = ("3.9.0", "3.14.1")


def measure(release: str, open_count: int, sessions: int) -> int:
    """One release with so many open sessions; how many aims were missed."""
    given = {
        "days": sessions / A_DAY,
        "tag_count": TAGS,
        "open_count": open_count,
        "only_open": open_count,
        "stuck_count": STUCK,
        "customers": False,
    }
    with systems(release, sessions, **given) as at:
        print(f"\n{release}, {sessions:,} sessions of {TAGS:,} tags, {open_count} open, {STUCK} stuck")
        from ocpp_billing import clock
        from ocpp_billing.config import load_config
        from ocpp_billing.sync import clients
        from tests.slow_steve import Days, SlowSteve
        from tests.world import WorldClock

        config, meter, world_clock = (
            load_config(),
            Meter(at.database_pid, at.pid),
            WorldClock(datetime.now(UTC)),
        )
        clock.install_clock(world_clock.now, world_clock.sleep)
        with clients.steve_client(config) as usual:
            settings = usual.settings
        slow = SlowSteve(settings, Release.parse(release), world_clock, history=sessions)
        with slow, Days(config, world_clock, slow, CYCLE_EVERY) as days:
            missed = _first_read(days, meter, sessions)
            for _ in range(2 + STUCK // 10):  # evidence of what has just turned out to be stuck
                days.cycle()
            return missed + _a_day(days, meter) + _an_hour_of_ticks(days, meter, config.steve_source)


def _first_read(days: Days, meter: Meter, sessions: int) -> int:
    from ocpp_billing.charging.models import ChargingSession

    before = meter.read()
    days.cycle()
    cost = meter.read() - before
    read = ChargingSession.objects.count()
    _settle()
    told = f"{days.steve.calls} calls, {days.steve.spent_s:.0f} s of StEvE's time; CPU {_cpu(cost)}"
    print(f"  first read: {read:,} sessions, {told}; {peak_rss_mb():.0f} MB at most")
    return int(read != sessions)


def _settle() -> None:
    """The old sessions were decided long ago."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE charging_session SET state = 'excluded', reason = 'before_go_live', rest_state = 'excluded',"
            " rest_reason = 'before_go_live', needs_decision = false WHERE state = 'held'"
        )
        cursor.execute("VACUUM ANALYZE charging_session")


def _a_day(days: Days, meter: Meter) -> int:
    steve = days.steve
    kinds, seconds, before = steve.kinds.copy(), dict(steve.seconds), meter.read()
    idle: list[tuple[int, float]] = []
    rechecks, nights = 0, []
    for _ in range(CYCLES):
        nightly, calls = days.is_nightly(), steve.calls
        days.cycle()
        rechecks += days.rechecks
        if nightly:
            nights.append((steve.calls - calls, days.share * CYCLE_EVERY.total_seconds()))
        else:
            idle.append((days.calls, days.share))
    cost = meter.read() - before
    most_calls, most_share = max(calls for calls, _ in idle), max(share for _, share in idle)
    spent_s = sum(steve.seconds.values()) - sum(seconds.values())
    share = spent_s / (CYCLES * CYCLE_EVERY).total_seconds()
    mean = sum(calls for calls, _ in idle) / len(idle)
    print(
        f"  idle cycle: {mean:.1f} calls, {most_calls} at most (aim {MOST_CALLS}), and {rechecks / CYCLES:.1f} that "
        f"read stops again; {most_share:.1%} of StEvE's time at most (aim {MOST_SHARE:.0%})"
    )
    for calls, took_s in nights:
        print(f"  the night: {calls} calls, {took_s:.1f} s of StEvE's time")
    print(
        f"  the day: {spent_s:.0f} s of StEvE's time, {share:.1%} (aim {MOST_SHARE:.0%}): {_by_kind(days, kinds, seconds)}"
    )
    print(f"  ours, each cycle: CPU {_cpu(cost, CYCLES)}; {peak_rss_mb():.0f} MB at most")
    return sum((most_calls > MOST_CALLS, most_share > MOST_SHARE, share > MOST_SHARE))


def _an_hour_of_ticks(days: Days, meter: Meter, source: str) -> int:
    from ocpp_billing.sync.models import WorkerHeartbeat

    WorkerHeartbeat.objects.create(worker="test", source_id=source, leader=True)
    steve = days.steve
    calls, spent_s, kinds, seconds = steve.calls, steve.spent_s, steve.kinds.copy(), dict(steve.seconds)
    began, before = days.clock.now(), meter.read()
    for _ in range(TICKS):
        days.tick(TICK_EVERY)
    cost = meter.read() - before
    share = (steve.spent_s - spent_s) / (days.clock.now() - began).total_seconds()
    print(
        f"  watch tick: {(steve.calls - calls) / TICKS:.1f} calls, {(steve.spent_s - spent_s) / TICKS:.2f} s, {share:.1%} "
        f"of StEvE's time (aim {MOST_SHARE:.0%}): {_by_kind(days, kinds, seconds)}; ours: CPU {_cpu(cost, TICKS)}"
    )
    return int(share > MOST_SHARE)


def _by_kind(days: Days, kinds: Counter[str], seconds: dict[str, float]) -> str:
    asked = days.steve.kinds - kinds
    return ", ".join(
        f"{number} {kind.replace('_', ' ')} ({days.steve.seconds[kind] - seconds.get(kind, 0.0):.0f} s)"
        for kind, number in asked.most_common()
    )


def _cpu(cost: Cost, number: int = 1) -> str:
    return f"{cost.engine_s / number:.3f} s of the engine, {cost.database_s / number:.3f} s of PostgreSQL"


def main(sessions: int = SESSIONS) -> int:
    """Each release with few and with many open sessions, each in a process of its own."""
    return max(
        in_own_process(
            "tests.bench.bench_discovery",
            *("--sessions", str(sessions), "--release", release, "--open", str(number)),
        )
        for release in RELEASES
        for number in OPEN
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What idle cycles and watch ticks cost.")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="old sessions (%(default)s)")
    parser.add_argument("--release", choices=RELEASES, help="only this one; together with --open")
    parser.add_argument("--open", type=int, choices=OPEN, help="so many open sessions")
    chosen = parser.parse_args()
    if chosen.release and chosen.open:
        sys.exit(min(1, measure(chosen.release, chosen.open, chosen.sessions)))
    sys.exit(main(chosen.sessions))
