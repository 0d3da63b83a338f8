"""The time comes from one place, and tests can choose it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing import clock

NEW_YEAR = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)


@pytest.fixture(autouse=True)
def restored():
    yield
    clock.install_clock(None)


def test_the_time_is_the_machines_in_utc():
    before = time.time()
    now = clock.now()
    assert before <= now.timestamp() <= time.time()
    assert now.tzinfo is UTC


def test_a_test_can_choose_the_time():
    clock.install_clock(lambda: NEW_YEAR)
    assert clock.now() == NEW_YEAR


def test_time_can_pass_by_waiting_alone():
    waited = []
    clock.install_clock(lambda: NEW_YEAR + timedelta(seconds=sum(waited)), waited.append)
    clock.sleep(1)
    clock.sleep(0.5)
    assert waited == [1, 0.5]
    assert clock.now() == datetime(2027, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)


def test_a_chosen_time_alone_leaves_waiting_to_the_machine():
    clock.install_clock(lambda: NEW_YEAR)
    before = time.monotonic()
    clock.sleep(0.01)
    assert time.monotonic() - before >= 0.01


def test_the_machines_clock_can_be_given_back():
    waited = []
    clock.install_clock(lambda: NEW_YEAR, waited.append)
    clock.install_clock(None)
    clock.sleep(0)
    assert waited == []
    assert abs(clock.now().timestamp() - time.time()) < 60
