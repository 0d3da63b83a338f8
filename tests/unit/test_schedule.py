"""The schedule never adapts: quiet or busy, every time comes once (row 16)."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ocpp_billing import clock
from ocpp_billing.config import load_config
from ocpp_billing.sync.schedule import Schedule, next_scheduled

MONDAY = datetime(2026, 3, 23, 0, 0, 30, tzinfo=UTC)


def config(cron, zone="UTC"):
    return load_config({"OCPP_BILLING_ENV_FILE": "", "SYNC_CRON_SCHEDULE": cron, "SYNC_TIMEZONE": zone})


@pytest.fixture
def at():
    """Set the time."""
    moment = {"now": MONDAY}
    clock.install_clock(lambda: moment["now"])
    yield lambda now: moment.__setitem__("now", now)
    clock.install_clock(None)


def runs(schedule, at, until, step=timedelta(seconds=20)):
    """When a worker that looks every few seconds begins runs."""
    begun = []
    now = clock.now()
    while now < until:
        now += step
        at(now)
        if now >= schedule.look(now):
            begun.append(now)
            schedule.begun(now)
    return begun


def test_a_week_has_as_many_runs_as_it_has_quarters(at):
    begun = runs(Schedule(config("*/15 * * * *")), at, MONDAY + timedelta(days=7))
    assert len(begun) == 7 * 24 * 4
    assert max(late(run) for run in begun) < timedelta(seconds=20)


def late(run):
    return timedelta(minutes=run.minute % 15, seconds=run.second)


@pytest.mark.parametrize(("night", "quarters"), [("2026-03-29", 92), ("2026-10-25", 100)])
def test_a_day_of_changing_clocks_has_those_it_has(at, night, quarters):
    begin = datetime.fromisoformat(f"{night}T00:00:10").astimezone(UTC)
    offset = timedelta(hours=1) if night.startswith("2026-03") else timedelta(hours=2)
    at(begin - offset)
    begun = runs(
        Schedule(config("*/15 * * * *", "Europe/Berlin")),
        at,
        clock.now() + timedelta(minutes=15 * quarters),
    )
    assert len(begun) == quarters


@pytest.mark.parametrize("night", ["2026-03-28", "2026-10-24"], ids=["summer", "winter"])
@pytest.mark.parametrize("cron", ["30 2 * * *", "0 2 * * *", "59 2 * * *"])
def test_a_nightly_run_comes_once_where_its_hour_is_left_out_or_repeated(at, night, cron):
    at(datetime.fromisoformat(f"{night}T20:00:10+00:00"))
    begun = runs(Schedule(config(cron, "Europe/Berlin")), at, clock.now() + timedelta(hours=12))
    assert len(begun) == 1


@given(
    cron=st.sampled_from(
        ["*/15 * * * *", "30 2 * * *", "15,45 1-3 * * *", "0 * * * *", "0 3 25 10 *", "5 0-23/2 * * 0"]
    ),
    night=st.sampled_from(["2026-03-28", "2026-10-24", "2026-04-04", "2026-10-03"]),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]),
    minutes=st.integers(0, 36 * 60),
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_what_comes_next_is_never_over_already(cron, night, zone, minutes):
    after = datetime.fromisoformat(f"{night}T06:00:00+00:00") + timedelta(minutes=minutes)
    assert next_scheduled(config(cron, zone), after) > after


def test_another_schedule_counts_from_the_next_start_on(at):
    runs(Schedule(config("0 3 * * *")), at, MONDAY + timedelta(hours=1))
    schedule = Schedule(config("*/5 * * * *"))  # changed, and the worker restarted
    assert schedule.due_at == datetime(2026, 3, 23, 1, 5, tzinfo=UTC)


def test_what_was_missed_is_made_good_by_one_run(at):
    schedule = Schedule(config("*/15 * * * *"))
    at(MONDAY + timedelta(days=3, minutes=7))  # the machine slept
    assert clock.now() >= schedule.look(clock.now())
    schedule.begun(clock.now())
    assert schedule.due_at == datetime(2026, 3, 26, 0, 15, tzinfo=UTC)


def test_a_clock_that_is_put_back_does_not_stop_it(at):
    at(MONDAY + timedelta(days=30))
    schedule = Schedule(config("*/15 * * * *"))
    at(MONDAY)
    assert schedule.look(MONDAY) == datetime(2026, 3, 23, 0, 15, tzinfo=UTC)
