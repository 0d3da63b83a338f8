"""Numbers and times, as people read them."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.portal import format as written

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ENERGIES = st.integers(min_value=-(10**15), max_value=10**15)


@given(ENERGIES)
def test_kwh_loses_no_watt_hour(energy_wh):
    text = written.kwh(energy_wh)
    assert int(text.replace("\N{MINUS SIGN}", "-").replace(",", "").replace(".", "")) == energy_wh


@given(ENERGIES)
def test_kwh_has_three_decimals_and_groups_of_three(energy_wh):
    whole, _, decimals = written.kwh(energy_wh).lstrip("\N{MINUS SIGN}").partition(".")
    first, *others = whole.split(",")
    assert len(decimals) == 3
    assert 1 <= len(first) <= 3
    assert all(len(group) == 3 for group in others)


@pytest.mark.parametrize(
    ("energy_wh", "text"),
    [
        (0, "0.000"),
        (1, "0.001"),
        (999, "0.999"),
        (118_945, "118.945"),
        (12_345_678, "12,345.678"),
        (-1, "\N{MINUS SIGN}0.001"),
        (-1_204_500, "\N{MINUS SIGN}1,204.500"),
    ],
)
def test_kwh(energy_wh, text):
    assert written.kwh(energy_wh) == text


@given(st.integers())
def test_count_loses_nothing(number):
    assert int(written.count(number).replace(",", "").replace("\N{MINUS SIGN}", "-")) == number


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.94, "59 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (259_200, "3 days"),
    ],
)
def test_duration(seconds, text):
    assert written.duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (timedelta(seconds=12), "12 s ago"),
        (timedelta(seconds=119), "1 min ago"),
        (timedelta(hours=3, minutes=59), "3 h ago"),
        (timedelta(hours=24), "22 Nov, 12:00"),
        (timedelta(days=400), "19 Oct 2025, 12:00"),
        (timedelta(minutes=-5), "in 5 min"),
    ],
)
def test_instant_is_relative_within_a_day(ago, text):
    assert written.instant(NOW - ago, NOW) == text


def test_stamp_is_in_the_organisations_zone():
    with timezone.override("Europe/Berlin"):
        assert written.stamp(NOW, NOW) == "13:00"
        assert written.stamp(datetime(2026, 11, 22, 23, 30, tzinfo=UTC), NOW) == "00:30"


def test_the_hover_text_is_utc():
    with timezone.override("Europe/Berlin"):
        assert written.utc(timezone.localtime(NOW)) == "2026-11-23 12:00:00 UTC"


@given(st.integers(min_value=0, max_value=10**8))
def test_age_never_says_more_than_has_passed(seconds):
    number, unit = written.age(NOW - timedelta(seconds=seconds), NOW).split()
    size = {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]
    assert int(number) * size <= seconds < (int(number) + 1) * size
