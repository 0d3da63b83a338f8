"""The process is killed just before or just after everything it does: nothing is lost, nothing doubled."""

from __future__ import annotations

import pytest

from tests.crash.enumeration import enumerated
from tests.crash.stories import STORIES

STORES = ("postgres", "postgres-1.32", "postgres-1.30", "clickhouse")
# Plays of each story on each store in the normal suite; thousands of each with --long.
SAMPLE = 8
AT_LEAST = 500

each_story = pytest.mark.parametrize("story", STORIES, ids=str)
each_store = pytest.mark.parametrize("store", STORES)


def test_the_sample_is_large_enough():
    assert len(STORIES) * len(STORES) * SAMPLE >= AT_LEAST


@each_store
@each_story
def test_a_crash_anywhere_loses_nothing_and_doubles_nothing(world, story, store, record_property):
    with enumerated(world, story) as plays:
        assert plays.observe() == [], "written outside of an effect"
        chosen = plays.sample(SAMPLE, STORES.index(store))
        twice = sum(
            len([process for process in plays.crash(deaths) if process.is_dead]) > 1 for deaths in chosen
        )
        record_property("crash_plays", len(chosen))
        record_property("crash_plays_twice", twice)
        record_property("crash_boundaries", len(plays.undisturbed))


@pytest.mark.long
@pytest.mark.timeout(24 * 3600)
@each_store
@each_story
def test_a_crash_everywhere_and_everywhere_in_its_recovery(world, story, record_property):
    with enumerated(world, story) as plays:
        plays.observe()
        record_property("crash_plays", plays.crash_everywhere())
