"""Which ids in gaps are asked for again, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing.steve.unseen import SETTLES_AFTER, after_answer, first_ids, with_noticed

NOW = datetime(2026, 3, 17, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def queue(*ids, since=NOW):
    return with_noticed([], ids, since, most=100)


def test_what_was_just_noticed_is_asked_first_and_what_was_asked_goes_to_the_back():
    waiting = with_noticed(queue(3, 4), [8, 9], NOW + MINUTE, most=100)
    assert first_ids(waiting, 3) == [8, 9, 3]
    assert first_ids(waiting, -1) == []
    after = after_answer(waiting, {8, 9}, set(), NOW + MINUTE)
    assert first_ids(after, 10) == [3, 4, 8, 9]


def test_what_is_shown_is_not_asked_for_again():
    assert first_ids(after_answer(queue(3, 4, 5), {3, 4}, {4}, NOW), 10) == [5, 3]


@pytest.mark.parametrize(
    ("later", "left"),
    [
        (timedelta(), [4, 3]),
        (SETTLES_AFTER - timedelta(seconds=1), [4, 3]),
        (SETTLES_AFTER, [4]),
        (timedelta(days=3), [4]),
        (-MINUTE, [4]),
    ],
    ids=["at once", "just before", "at the end", "days later", "noticed by a clock that was ahead"],
)
def test_an_answer_settles_an_id_when_it_comes_long_enough_after_the_gap_was_noticed(later, left):
    assert first_ids(after_answer(queue(3, 4), {3}, set(), NOW + later), 10) == left


def test_an_id_that_nobody_asked_for_waits_however_long_that_takes():
    assert first_ids(after_answer(queue(3), {7}, set(), NOW + timedelta(days=9)), 10) == [3]


def test_of_too_many_those_are_kept_that_were_noticed_last():
    waiting = after_answer(queue(1, 2, 3), {1}, set(), NOW)
    waiting = with_noticed(waiting, [8, 9], NOW + MINUTE, most=4)
    assert first_ids(waiting, 10) == [8, 9, 2, 3]


def test_an_id_that_is_noticed_once_more_is_asked_for_from_the_beginning():
    waiting = with_noticed(queue(3, 4), [4], NOW + 10 * MINUTE, most=100)
    assert first_ids(waiting, 10) == [4, 3]
    assert first_ids(after_answer(waiting, {3, 4}, set(), NOW + 20 * MINUTE), 10) == [4]
