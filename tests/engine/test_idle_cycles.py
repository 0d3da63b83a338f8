"""What cycles ask StEvE while nothing happens: a day of them, at a million old sessions and 1,000 tags.

A StEvE that takes as long as the real one (:mod:`ocpp_billing.simulators.steve_cost`), by a clock of its
own: nobody waits. Re-reading stops that may still change has a budget of calls of its own; its time counts.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from ocpp_billing.charging.models import IdTagParent
from ocpp_billing.steve.idle import MOST_CALLS, MOST_CALLS_AT_A_HOLE
from ocpp_billing.sync import clients
from ocpp_billing.sync.models import WorkerHeartbeat
from tests.slow_steve import Days, SlowSteve

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
FAMILIES = ("3.7", "3.9", "3.10", "3.11", "3.14")
HISTORY = 1_000_000
MOST_SHARE = 0.05
TICK = timedelta(seconds=15)


@pytest.fixture
def days(world, request):
    between = getattr(request, "param", 15 * MINUTE)
    config = world.config()
    with clients.steve_client(config) as usual:
        settings = usual.settings
    slow = SlowSteve(settings, world.steve.release, world.clock, history=HISTORY)
    with slow, Days(config, world.clock, slow, between) as days:
        yield days


def park(world, number, stuck=0):
    """So many cars charge, some of them at a connector where a newer session shows that they have left."""
    world.session("TAG-OLD", "CP-OLD")
    left = [world.start(f"TAG-{n}", f"CP-{n}", at=2 * HOUR) for n in range(stuck)]
    for n in range(number):
        world.start(f"TAG-{n}", f"CP-{n}", at=HOUR)
    return left


def parent_of(tag):
    last = IdTagParent.objects.filter(id_tag__text=tag).order_by("seen_from").last()
    return last and last.parent and last.parent.text


@pytest.mark.parametrize(
    ("number", "stuck", "days", "cycles", "release"),
    [
        pytest.param(
            *(number, stuck, between, cycles, release),
            id=f"{name}-{release}",
            marks=[] if release in always else [pytest.mark.long],
        )
        # All families with 300 open ones; with none and with 1,000 an old and a new one. The rest: --long.
        for name, number, stuck, between, cycles, always in (
            ("none-open", 0, 0, HOUR, 26, ("3.7", "3.11")),
            ("40-open", 40, 15, HOUR, 26, ()),
            ("300-open", 300, 20, 15 * MINUTE, 10, FAMILIES),
            ("1000-open-every-minute", 1_000, 20, MINUTE, 10, ("3.9", "3.14")),
            ("300-open-a-day", 300, 60, 15 * MINUTE, 98, ()),
        )
        for release in FAMILIES
    ],
    indirect=["days"],
)
def test_no_idle_cycle_of_a_day_makes_more_than_four_calls_or_takes_much_of_steves_time(
    world, days, number, stuck, cycles
):
    left = park(world, number, stuck)
    for n in range(5):
        world.steve.add_tag(f"PARENT-{n}")
    for _ in range(2 + stuck // 10):  # the history, and the evidence of what has just become stuck
        days.cycle()
    kinds, spent_s, began = days.steve.kinds.copy(), days.steve.spent_s, world.clock.now()
    nights = 0
    for count in range(cycles):
        if count % 10 == 0 and number:
            world.steve.set_parent("TAG-1", f"PARENT-{count // 10 % 5}")
        nightly = days.is_nightly()
        nights += nightly
        days.cycle()
        assert nightly or days.calls <= MOST_CALLS, (count, days.calls, days.steve.kinds - kinds)
        assert nightly or days.between == MINUTE or days.share <= MOST_SHARE, (count, days.share)
    assert nights == (cycles * days.between > 24 * HOUR)
    passed_s = (world.clock.now() - began).total_seconds()
    assert (days.steve.spent_s - spent_s) / passed_s <= MOST_SHARE
    asked = days.steve.kinds - kinds
    hours = passed_s / 3600
    for kind, per_hour in (("active", 0.8), ("window", 0.6), ("tags", 0.4)):
        assert asked[kind] >= hours * per_hour - 1, (kind, asked)
    if number and days.between == HOUR:
        assert parent_of("TAG-1") is not None
    if left:
        world.stop(left[0], "CP-0", at=timedelta(), meter_wh=9_000)
        world.clock.advance(2 * MINUTE)
        days.cycle()
        assert world._session(left[0]).get().stopped_at is not None


@pytest.mark.parametrize(
    ("release", "number"),
    [
        *((release, 300) for release in FAMILIES),
        *(
            pytest.param(release, 0, marks=[] if release in {"3.7", "3.14"} else [pytest.mark.long])
            for release in FAMILIES
        ),
    ],
)
def test_the_watch_takes_little_of_steves_time(world, days, number):
    park(world, number)
    days.cycle()
    WorkerHeartbeat.objects.create(worker="test", source_id="main", leader=True)
    began, calls, spent_s = world.clock.now(), days.steve.calls, days.steve.spent_s
    ticks = 40
    for _ in range(ticks):
        days.tick(TICK)
    passed_s = (world.clock.now() - began).total_seconds()
    assert (days.steve.calls - calls) / ticks <= 3
    assert (days.steve.spent_s - spent_s) / passed_s <= MOST_SHARE, days.steve.kinds


@pytest.mark.parametrize(
    "release",
    ["3.7", "3.14", *(pytest.param(release, marks=pytest.mark.long) for release in ("3.9", "3.10", "3.11"))],
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "running"])
def test_row_28_a_hole_beside_300_open_sessions_takes_six_calls_in_the_whole_cycle(world, days, finished):
    """Found in the next cycle, or in the one after it where more than the active list was overdue."""
    park(world, 300, 20)
    for _ in range(5):
        days.cycle()
    world.steve.skip_ids(27_678)
    if finished:
        beyond = world.session("TAG-NEW", "CP-NEW", start=20 * MINUTE, stop=3 * MINUTE)
    else:
        beyond = world.start("TAG-NEW", "CP-NEW", at=2 * MINUTE)
    for _ in range(2):
        calls = days.steve.calls
        days.cycle()
        assert days.steve.calls - calls <= MOST_CALLS_AT_A_HOLE, days.steve.kinds
    assert world._session(beyond).exists()
