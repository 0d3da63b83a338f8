"""The process is killed just before or just after everything it does: nothing is lost, nothing doubled."""

from __future__ import annotations

import pytest

from tests.crash.enumeration import enumerated
from tests.crash.stories import STORIES

# In the normal suite each story is played so often on two of the stores, which take turns; with --long
# thousands of times on each of the four.
SAMPLE = 16
AT_LEAST = 500
CHOSEN = [
    (story, store)
    for n, story in enumerate(STORIES)
    for store in (story.stores[n % 4], story.stores[(n + n // 4 % 3 + 1) % 4])
]


def test_the_sample_is_large_enough():
    assert len(CHOSEN) * SAMPLE >= AT_LEAST
    assert {store for _, store in CHOSEN} == set(STORIES[0].stores)


@pytest.mark.parametrize(("story", "store"), CHOSEN, ids=str)
def test_a_crash_anywhere_loses_nothing_and_doubles_nothing(world, story, store, record_property):
    with enumerated(world, story) as plays:
        assert plays.observe() == [], "written outside of an effect"
        chosen = plays.sample(SAMPLE, story.stores.index(store))
        twice = sum(
            len([process for process in plays.crash(deaths) if process.is_dead]) > 1 for deaths in chosen
        )
        record_property("crash_plays", len(chosen))
        record_property("crash_plays_twice", twice)
        record_property("crash_boundaries", len(plays.undisturbed))


@pytest.mark.long
@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize(
    ("story", "store"), [(story, store) for story in STORIES for store in story.stores], ids=str
)
def test_a_crash_everywhere_and_everywhere_in_its_recovery(world, story, record_property):
    with enumerated(world, story) as plays:
        plays.observe()
        record_property("crash_plays", plays.crash_everywhere())
