"""What an idle cycle asks: never more than it may, and nothing is ever crowded out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.steve.idle import REST_FACTOR, Wish, is_made_up_for, plan_calls, portion

NOW = datetime(2026, 3, 17, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)

wishes = st.lists(
    st.builds(
        Wish,
        st.text(min_size=1, max_size=3),
        st.none() | st.integers(0, 10_000).map(lambda minutes: NOW - minutes * MINUTE),
        st.sampled_from([timedelta(), HOUR]),
    ),
    max_size=8,
    unique_by=lambda wish: wish.name,
)


@given(wishes=wishes, calls=st.integers(-2, 10))
def test_as_many_are_granted_as_there_are_calls_and_no_deadline_waits_behind_a_later_one(wishes, calls):
    granted = plan_calls(wishes, calls)
    assert len(granted) == min(max(calls, 0), len(wishes))
    assert granted == [wish.name for wish in wishes if wish.name in granted]
    left = [wish.deadline for wish in wishes if wish.name not in granted]
    if granted and left:
        assert max(wish.deadline for wish in wishes if wish.name in granted) <= min(left)


@given(
    every=st.lists(st.sampled_from([timedelta(), HOUR / 2, HOUR]), min_size=1, max_size=7),
    calls=st.integers(1, 4),
    between=st.integers(1, 120).map(lambda minutes: minutes * MINUTE),
)
def test_however_few_the_calls_each_wish_has_its_turn_in_time(every, calls, between):
    last: dict[str, datetime] = {str(place): NOW for place in range(len(every))}
    for cycle in range(1, 60):
        now = NOW + cycle * between
        asked = [Wish(name, last[name], every[int(name)]) for name in last]
        asked = [wish for wish in asked if now >= wish.deadline]
        for name in plan_calls(asked, calls):
            last[name] = now
        for name, at in last.items():
            # Due at its time; then at most every other one comes before it, in each round of turns.
            rounds = -(-len(every) // calls)
            assert now - at <= every[int(name)] + (rounds + 2) * between + HOUR


def test_among_equals_the_more_important_one_comes_first():
    assert plan_calls([Wish("active", NOW), Wish("window", NOW), Wish("next", NOW)], 2) == [
        "active",
        "window",
    ]
    assert plan_calls([Wish("active", NOW), Wish("tags", None, HOUR)], 1) == ["tags"]


@given(ids=st.lists(st.integers(1, 50), unique=True, max_size=30).map(sorted), size=st.integers(1, 9))
def test_portions_go_round_and_leave_nobody_out(ids, size):
    seen: list[int] = []
    after = 0
    for _ in range(-(-len(ids) // size)):
        chosen = portion(ids, after, size)
        assert len(chosen) == len(set(chosen)) == min(size, len(ids))
        seen += chosen
        after = chosen[-1]
    assert set(seen) == set(ids)


@pytest.mark.parametrize(("after", "expected"), [(0, [1, 2]), (2, [5, 9]), (5, [9, 1]), (9, [1, 2])])
def test_a_round_begins_anew_after_its_last_one(after, expected):
    assert portion([1, 2, 5, 9], after, 2) == expected


@pytest.mark.parametrize(
    ("passed", "made_up_for"),
    [
        (timedelta(), False),
        (REST_FACTOR * timedelta(seconds=3) - timedelta(milliseconds=1), False),
        (REST_FACTOR * timedelta(seconds=3), True),
        (-timedelta(milliseconds=1), True),  # noted by a clock that was wrong
        (-365 * 24 * HOUR, True),
    ],
)
def test_what_took_long_rests_twenty_times_as_long_by_a_clock_that_is_right(passed, made_up_for):
    assert is_made_up_for({"at": (NOW - passed).isoformat(), "took_s": 3.0}, NOW) is made_up_for
    assert is_made_up_for(None, NOW)
