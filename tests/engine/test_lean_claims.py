"""Claiming events stays cheap: it changes nothing that an index of theirs speaks of, and finds room on the page."""

from __future__ import annotations

import re

import pytest
from django.db import connection

from ocpp_billing.billing.outbox import _CLAIM

pytestmark = pytest.mark.django_db


def test_a_claim_changes_no_indexed_column():
    sets = re.search(r"UPDATE usage_event e SET (.*?)\nWHERE", _CLAIM, re.DOTALL)
    assert sets is not None
    claimed = set(re.findall(r"(\w+) = ", sets[1]))
    assert {"lease", "attempts"} <= claimed
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'usage_event'")
        indexes = dict(cursor.fetchall())
    assert indexes
    assert [
        name
        for name, definition in indexes.items()
        if claimed & set(re.findall(r"\w+", definition.partition(" ON ")[2]))
    ] == []


def test_pages_of_events_leave_room_for_the_claimed_version():
    with connection.cursor() as cursor:
        cursor.execute("SELECT reloptions FROM pg_class WHERE oid = 'usage_event'::regclass")
        assert cursor.fetchone() == (["fillfactor=50"],)
