"""Stops that change long after they were read: by the round of recent ones, each night, each month."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from ocpp_billing.charging.models import ChargingSession, Source
from ocpp_billing.simulators.server import Fault
from ocpp_billing.steve.discovery import (
    COMPLETE_EVERY,
    NIGHTLY_REACH,
    STOPS_CHANGE_FOR,
    night_is_due,
    night_of,
)

up_to_3_11 = pytest.mark.parametrize(
    "release", [pytest.param("3.7.1", marks=pytest.mark.long), "3.9.0", "3.11"]
)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def stop_known(steve_id):
    return ChargingSession.objects.get(steve_id=steve_id).stop_wh


def at_noon(world, days):
    """So many days later, at noon; the night before was read."""
    for ahead in (days * DAY - HOUR, HOUR):
        world.clock.advance(ahead)
        world.sync()


@pytest.fixture
def read(world):
    """A session that was read when it stopped; the last few, read in every cycle, are others."""
    world.read = world.session("TAG-ALICE", "CP-1", start_wh=1_000, stop_wh=5_000)
    for _ in range(6):
        world.session("TAG-BOB", "CP-2")
    world.sync()
    return world


def change(world, steve_id, stop_wh):
    """Up to 3.11 a charge point may say another stop at any time, and StEvE shows that."""
    row = ChargingSession.objects.get(steve_id=steve_id)
    world.stop(steve_id, row.charge_box_id, at=row.stopped_at, meter_wh=stop_wh)


@up_to_3_11
def test_a_stop_of_the_last_72_hours_that_changes_is_read_within_a_few_cycles(read):
    at_noon(read, 2)
    assert read.clock.now() < ChargingSession.objects.get(steve_id=read.read).stop_seen_at + STOPS_CHANGE_FOR
    change(read, read.read, 9_000)
    for _ in range(4):
        read.clock.advance(minutes=15)
        read.sync()
    assert stop_known(read.read) == 9_000


@pytest.mark.parametrize("release", ["3.7.1"])
def test_a_long_history_that_was_there_before_does_not_hold_up_what_may_still_change(world):
    for _ in range(12):
        world.session("TAG-BOB", start=10 * DAY, stop=9 * DAY)
    # Out of reach of windows, which compare the start.
    recent = world.session("TAG-ALICE", "CP-2", start=5 * DAY, stop=HOUR, stop_wh=5_000)
    world.session("TAG-BOB", "CP-3")
    world.sync()
    change(world, recent, 9_000)
    for _ in range(2):  # one round
        world.sync()
    assert stop_known(recent) == 9_000


@up_to_3_11
def test_an_older_one_is_read_in_the_night_and_one_beyond_that_in_the_month(read):
    at_noon(read, 20)
    change(read, read.read, 9_000)
    read.clock.advance(HOUR)
    read.sync()
    assert stop_known(read.read) == 5_000
    at_noon(read, 1)
    assert stop_known(read.read) == 9_000
    at_noon(read, NIGHTLY_REACH.days - 5)
    change(read, read.read, 9_500)
    at_noon(read, 1)
    assert stop_known(read.read) == 9_000
    complete_at = Source.objects.get().progress["complete_at"]
    at_noon(read, COMPLETE_EVERY.days)
    assert Source.objects.get().progress["complete_at"] > complete_at
    assert stop_known(read.read) == 9_500


@pytest.mark.parametrize("release", ["3.9.0"])
@pytest.mark.parametrize("time", ["00:30", "01:59", "02:00", "23:59"])
def test_a_schedule_of_one_run_a_day_reads_again_every_day_whenever_that_run_is(read, time):
    at = read.clock.now().replace(hour=int(time[:2]), minute=int(time[3:]))
    for days in (1, 2, 20):
        read.clock.set(at + days * DAY)
        read.sync()
    for days, stop_wh in ((21, 9_000), (22, 9_500)):
        change(read, read.read, stop_wh)
        read.clock.set(at + days * DAY)
        read.sync()
        assert stop_known(read.read) == stop_wh


def test_a_night_is_due_once_also_where_the_clock_is_put_back_or_was_wrong(world):
    zone = ZoneInfo("Europe/Berlin")
    night = {"night": night_of(datetime(2026, 10, 25, 2, 30, tzinfo=zone), zone)}
    for hours, due in ((0, False), (1, False), (2, False), (23, False), (24, False), (25, True), (-2, True)):
        world.clock.set(datetime(2026, 10, 25, 0, 30, tzinfo=UTC) + hours * HOUR)
        assert night_is_due(night, zone) is due, hours


@pytest.mark.parametrize("release", ["3.14.1"])
def test_the_stations_own_stop_a_hundred_days_after_an_operators_is_read_the_same_day(world):
    session = world.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    began_at = world.clock.now() - 3 * HOUR
    world.sync()
    world.steve.manual_stop(session)
    world.sync()
    assert stop_known(session) == 1_000
    at_noon(world, 100)
    world.stop(session, at=began_at + HOUR, meter_wh=8_000)
    for _ in range(3):
        world.clock.advance(minutes=15)
        world.sync()
    assert stop_known(session) == 8_000


@pytest.mark.parametrize("release", ["3.14.1"])
def test_the_reading_of_the_month_goes_on_where_it_broke_off(read):
    numbers = [
        read.session("TAG-ALICE", start=days * DAY, stop=days * DAY - HOUR) for days in (800, 400, 200, 60)
    ]
    read.steve.skip_ids(20_000)  # so many that they do not fit into one answer
    numbers.append(read.session("TAG-ALICE"))
    read.sync()
    read.clock.advance(COMPLETE_EVERY)
    read.steve.requests.clear()
    read.steve.add_fault(Fault("status", path="to=", skip=4, times=1))
    assert read.sync().status != "completed"
    stands_at = Source.objects.get().progress["complete"]["before"]
    read.steve.requests.clear()
    assert read.sync().status == "completed"
    assert "complete" not in Source.objects.get().progress
    assert read.steve_calls("from=")
    assert not [path for path in read.steve_calls("from=") if "to=2038" in path], stands_at
    assert ChargingSession.objects.filter(steve_id__in=numbers, vanished_at=None).count() == len(numbers)
