"""Which event Lago cannot digest, and when it is Lago that is ill."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.billing.failures import COUNTED_EVERY, TRIES_ALONE, Failures

NOW = datetime(2026, 3, 17, 12, tzinfo=UTC)
# One attempt: minutes since the one before, whether Lago took another event meanwhile, by itself, the status.
ATTEMPTS = st.lists(
    st.tuples(
        st.integers(0, 60), st.booleans(), st.booleans(), st.sampled_from([None, 408, 500, 501, 502, 503])
    ),
    max_size=12,
)


def after(attempts):
    """What an event has met, written down and read again after each attempt."""
    found, now, taken_at = Failures(), NOW, None
    for minutes, others, is_alone, status in attempts:
        now += timedelta(minutes=minutes)
        if others:
            taken_at = now - timedelta(seconds=1)
        found = Failures.of(found.as_answer()).once_more(
            status=status, is_alone=is_alone, now=now, taken_at=taken_at
        )
    return found


@given(ATTEMPTS)
def test_where_lago_takes_nothing_no_event_is_to_blame(attempts):
    assert not after([(minutes, False, alone, status) for minutes, _, alone, status in attempts]).is_to_blame


@given(ATTEMPTS)
def test_what_was_never_by_itself_or_met_no_error_of_the_server_is_not_to_blame(attempts):
    assert not after(
        [(minutes, others, False, status) for minutes, others, _, status in attempts]
    ).is_to_blame
    away = [(minutes, others, alone, 503) for minutes, others, alone, _ in attempts]
    assert not after(away).is_to_blame


@given(ATTEMPTS)
def test_every_attempt_is_counted(attempts):
    assert after(attempts).failures == len(attempts)


def test_one_that_fails_while_others_get_through_is_to_blame_in_the_end():
    attempts = [(15, True, True, 500)] * TRIES_ALONE
    assert after(attempts).is_to_blame
    assert not after(attempts[:-1]).is_to_blame


@pytest.mark.parametrize("minutes", [0, COUNTED_EVERY.total_seconds() // 60 - 1])
def test_many_tries_in_a_short_time_count_once(minutes):
    assert after([(minutes, True, True, 500)] * 2).alone == 1


def test_that_others_got_through_only_before_begins_anew():
    assert after([(15, True, True, 500)] * 4 + [(15, False, True, 500)]).alone == 1
