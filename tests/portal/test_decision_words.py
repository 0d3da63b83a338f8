"""Decisions are stored in watt-hours and UTC; people read kWh and their own time."""

from datetime import timedelta
from datetime import timezone as fixed

import pytest
from django.utils import timezone

from ocpp_billing.portal.decision_words import in_peoples_units


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("612000 Wh is more than 500 kWh", "612.000 kWh is more than 500 kWh"),
        (
            "-1500 Wh differ from what was sent to Lago",
            "\N{MINUS SIGN}1.500 kWh differ from what was sent to Lago",
        ),
        (
            "stop register 900 Wh below start register 1200 Wh",
            "Stop register 0.900 kWh below start register 1.200 kWh",
        ),
        (
            "no mapping of the tag was valid at 2026-11-26 14:47:04 UTC",
            "No mapping of the tag was valid at 26 Nov 2026, 16:47:04",
        ),
        (
            "stopped 2026-11-26 23:30:00 before it started 2026-11-26 23:30:01",
            "Stopped 27 Nov 2026, 01:30:00 before it started 27 Nov 2026, 01:30:01",
        ),
        ("lasted 3 days, 0:00:01, more than 72 hours", "Lasted 3 days, 0:00:01, more than 72 hours"),
        ("the tag CARD-7 Wh 2026-99-99 00:00:00", "The tag CARD-7 Wh 2026-99-99 00:00:00"),
        ("", ""),
    ],
)
def test_energies_and_instants_are_written_as_on_every_page(stored, read):
    with timezone.override(fixed(timedelta(hours=2))):
        assert in_peoples_units(stored) == read
