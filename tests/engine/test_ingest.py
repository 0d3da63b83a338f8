"""What a session is recorded with, however its neighbours came in; and at what cost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ocpp_billing.charging.clocks import CLOCK_TOLERANCE
from ocpp_billing.charging.ingest import ingest_transactions
from ocpp_billing.charging.known import KnownSessions
from ocpp_billing.charging.models import ChargingSession, Source
from ocpp_billing.steve.wire import Transaction

NOON = datetime(2026, 3, 17, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def shown(steve_id, days, stop_wh=None):
    """A transaction that began so many days ago."""
    started_at = NOON - days * DAY
    stopped_at = None if stop_wh is None else started_at + timedelta(hours=1)
    return Transaction(
        steve_id=steve_id,
        charge_box_id="CP-1",
        connector_id=1,
        id_tag="TAG-1",
        id_tag_pk=1,
        started_at=started_at,
        start_timestamp=started_at.isoformat(),
        start_wh=0,
        start_value="0",
        stopped_at=stopped_at,
        stop_timestamp=None if stopped_at is None else stopped_at.isoformat(),
        stop_wh=stop_wh,
        stop_value=None if stop_wh is None else str(stop_wh),
        stop_reason=None,
        stop_actor=None if stop_wh is None else "station",
    )


def ingest(*rows, now=NOON):
    with transaction.atomic(), connection.cursor() as cursor:
        counts = ingest_transactions(cursor, "main", rows, [], now)
        # The transaction of the test goes on: the table that a commit empties does not end by itself.
        cursor.execute("DROP TABLE IF EXISTS incoming")
        return counts


@pytest.mark.django_db
@hypothesis_settings(max_examples=40, deadline=None)
@given(
    starts=st.dictionaries(st.integers(1, 30), st.sampled_from([-3, 0, 1, 2, 40, 90, 20_000]), min_size=1),
    answers=st.lists(st.sets(st.integers(1, 30), min_size=1), min_size=1, max_size=6),
)
def test_each_new_session_knows_the_latest_credible_start_among_lower_ids(starts, answers):
    """Newest first, one by one, with holes that are filled later: by whatever it was read with."""
    with transaction.atomic():
        seen, right = {}, {}
        for answer in answers:
            rows = [shown(number, starts[number]) for number in sorted(answer & starts.keys())]
            seen |= {row.steve_id: row.started_at for row in rows}
            ingest(*rows)
            for row in rows:
                credible = [
                    at
                    for number, at in seen.items()
                    if number < row.steve_id and at <= NOON + CLOCK_TOLERANCE
                ]
                right.setdefault(row.steve_id, max(credible, default=None))
        known = dict(ChargingSession.objects.values_list("steve_id", "latest_lower_start_at"))
        assert known == right
        transaction.set_rollback(True)


@pytest.mark.django_db
def test_a_stop_of_a_session_that_a_reset_clock_began_learns_what_came_before_it():
    """It was read before those with lower ids were; then it stops."""
    ingest(shown(5, 20_000))
    ingest(*(shown(number, 1) for number in range(1, 5)))
    assert ChargingSession.objects.get(steve_id=5).latest_lower_start_at is None
    ingest(shown(5, 20_000, stop_wh=7))
    assert ChargingSession.objects.get(steve_id=5).latest_lower_start_at == NOON - DAY


@pytest.mark.django_db
def test_what_says_nothing_new_and_what_stops_are_recorded_without_reading_the_history():
    """The active list has the oldest stuck session and the newest one: all ids are between them."""
    ingest(*(shown(number, 30 - number) for number in range(1, 31)))
    for rows, is_written in (
        ([shown(1, 29), shown(30, 0)], False),
        ([shown(1, 29, stop_wh=5), shown(30, 0, stop_wh=9)], True),
        ([shown(30, 0, stop_wh=9), shown(31, 0)], True),
    ):
        with CaptureQueriesContext(
            connection,
        ) as asked:
            ingest(*rows)
        asked_sql = [each["sql"] for each in asked.captured_queries]
        assert any("INSERT INTO charging_session" in each for each in asked_sql) is is_written
        assert any("COPY" in each for each in asked_sql) is is_written
        assert not any("width_bucket" in each for each in asked_sql)
    assert ChargingSession.objects.get(steve_id=31).latest_lower_start_at == NOON


@pytest.mark.django_db
def test_those_that_are_gone_at_the_end_are_the_lowest_with_none_above_them():
    ingest(*(shown(number, 1) for number in range(1, 10)))
    known = KnownSessions("main")
    assert known.vanished_at_the_end(5) == []
    ChargingSession.objects.filter(steve_id__in=[3, 7, 8, 9]).update(vanished_at=NOON)
    assert (known.vanished_at_the_end(5), known.vanished_at_the_end(2)) == ([7, 8, 9], [7, 8])
    ChargingSession.objects.update(vanished_at=NOON)
    assert known.vanished_at_the_end(2) == [1, 2]


@pytest.mark.django_db
def test_what_is_known_still_moves_how_far_the_ledger_knows_a_steve():
    """After a rewind, and once a start is credible that lay too far ahead when it was first seen."""
    soon = NOON + 10 * timedelta(minutes=1)
    ahead = shown(2, -10 / 1440)
    ingest(shown(1, 1), ahead)
    assert Source.objects.get().latest_start_at == NOON - DAY
    ingest(ahead, now=soon)
    assert Source.objects.get().latest_start_at == ahead.started_at
    Source.objects.update(highest_id=1)
    ingest(ahead, now=soon)
    assert Source.objects.get().highest_id == 2
    assert ChargingSession.objects.filter(revision=1).count() == 2
