"""Who pays for a session, by the mapping valid at its start.

The oracle draws every tag's mapping and parent minute by minute, and then only looks things up.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpp_billing.mappings.resolve import (
    Inactive,
    Mapped,
    MappingInterval,
    ParentSighting,
    Unmapped,
    parent_at,
    resolve_mapping,
)

MIDNIGHT = datetime(2026, 11, 1, tzinfo=UTC)
TAG, PARENT, GRANDPARENT = 1, 2, 3


def minute(number: int) -> datetime:
    return MIDNIGHT + timedelta(minutes=number)


def interval(begin: int, end: int | None, *, mapping_id: int = 100, active: bool = True) -> MappingInterval:
    valid_to = None if end is None else minute(end)
    return MappingInterval(mapping_id, f"customer-{mapping_id}", None, minute(begin), valid_to, active)


def sighting(parent: int | None, seen: int) -> ParentSighting:
    return ParentSighting(parent, minute(seen))


class TestOwnMapping:
    def test_it_pays(self):
        own = interval(0, None)
        assert resolve_mapping(TAG, minute(5), {TAG: [own]}, {}) == Mapped(own, (TAG,))

    def test_it_is_valid_from_its_first_instant(self):
        own = interval(5, 9)
        assert resolve_mapping(TAG, minute(5), {TAG: [own]}, {}) == Mapped(own, (TAG,))

    def test_it_is_not_valid_just_before(self):
        just_before = minute(5) - timedelta(microseconds=1)
        assert resolve_mapping(TAG, just_before, {TAG: [interval(5, 9)]}, {}) == Unmapped()

    def test_it_is_no_longer_valid_at_its_end(self):
        assert resolve_mapping(TAG, minute(9), {TAG: [interval(5, 9)]}, {}) == Unmapped()

    def test_it_is_valid_until_just_before_its_end(self):
        own = interval(5, 9)
        just_before = minute(9) - timedelta(microseconds=1)
        assert resolve_mapping(TAG, just_before, {TAG: [own]}, {}) == Mapped(own, (TAG,))

    def test_where_one_ends_and_the_next_begins_the_next_pays(self):
        first, second = interval(0, 5, mapping_id=100), interval(5, None, mapping_id=200)
        assert resolve_mapping(TAG, minute(5), {TAG: [first, second]}, {}) == Mapped(second, (TAG,))

    def test_it_goes_before_the_parents(self):
        own, above = interval(0, None, mapping_id=100), interval(0, None, mapping_id=200)
        parents = {TAG: [sighting(PARENT, 0)]}
        assert resolve_mapping(TAG, minute(5), {TAG: [own], PARENT: [above]}, parents) == Mapped(own, (TAG,))


class TestInactiveMapping:
    def test_it_holds_and_is_named(self):
        off = interval(0, None, active=False)
        assert resolve_mapping(TAG, minute(5), {TAG: [off]}, {}) == Inactive(off)

    def test_it_does_not_fall_back_to_the_parents(self):
        off, above = interval(0, None, active=False), interval(0, None, mapping_id=200)
        parents = {TAG: [sighting(PARENT, 0)]}
        assert resolve_mapping(TAG, minute(5), {TAG: [off], PARENT: [above]}, parents) == Inactive(off)

    def test_a_gap_of_two_days_holds_only_what_started_in_it(self):
        switched = [interval(0, 10), interval(10, 20, active=False), interval(20, None)]
        outcomes = [type(resolve_mapping(TAG, minute(at), {TAG: switched}, {})) for at in (9, 10, 19, 20)]
        assert outcomes == [Mapped, Inactive, Inactive, Mapped]

    def test_of_the_closest_ancestor_it_does_not_fall_back_further_up(self):
        off, above = interval(0, None, active=False), interval(0, None, mapping_id=200)
        parents = {TAG: [sighting(PARENT, 0)], PARENT: [sighting(GRANDPARENT, 0)]}
        found = resolve_mapping(TAG, minute(5), {PARENT: [off], GRANDPARENT: [above]}, parents)
        assert found == Inactive(off)


class TestAncestors:
    def test_the_closest_mapped_one_pays_and_the_way_there_is_told(self):
        above, far = interval(0, None, mapping_id=200), interval(0, None, mapping_id=300)
        parents = {TAG: [sighting(PARENT, 0)], PARENT: [sighting(GRANDPARENT, 0)]}
        mappings = {PARENT: [above], GRANDPARENT: [far]}
        assert resolve_mapping(TAG, minute(5), mappings, parents) == Mapped(above, (TAG, PARENT))
        del mappings[PARENT]
        assert resolve_mapping(TAG, minute(5), mappings, parents) == Mapped(far, (TAG, PARENT, GRANDPARENT))

    def test_one_pays_where_the_tags_own_mapping_has_ended(self):
        own, above = interval(0, 5), interval(0, None, mapping_id=200)
        mappings, parents = {TAG: [own], PARENT: [above]}, {TAG: [sighting(PARENT, 0)]}
        assert resolve_mapping(TAG, minute(5), mappings, parents) == Mapped(above, (TAG, PARENT))

    def test_none_of_them_mapped_is_unmapped(self):
        assert resolve_mapping(TAG, minute(5), {}, {TAG: [sighting(PARENT, 0)]}) == Unmapped()

    @pytest.mark.parametrize("ring", [[TAG], [TAG, PARENT], [TAG, PARENT, GRANDPARENT]])
    def test_a_ring_of_unmapped_parents_ends_the_search(self, ring):
        parents = {tag: [sighting(above, 0)] for tag, above in zip(ring, ring[1:] + ring[:1], strict=True)}
        assert resolve_mapping(TAG, minute(5), {}, parents) == Unmapped()

    def test_a_mapped_tag_in_a_ring_pays(self):
        above = interval(0, None)
        parents = {TAG: [sighting(PARENT, 0)], PARENT: [sighting(TAG, 0)]}
        assert resolve_mapping(TAG, minute(5), {PARENT: [above]}, parents) == Mapped(above, (TAG, PARENT))


class TestParentAt:
    HISTORY = (sighting(PARENT, 5), sighting(None, 10), sighting(GRANDPARENT, 15))

    def test_a_tag_that_was_never_listed_has_none(self):
        assert parent_at([], minute(5)) is None

    def test_it_is_the_one_last_read_before_the_start(self):
        assert parent_at(self.HISTORY, minute(7)) == PARENT

    def test_it_counts_from_the_instant_at_which_it_was_read(self):
        assert parent_at(self.HISTORY, minute(15)) == GRANDPARENT

    def test_it_is_the_first_seen_after_a_start_before_all_readings(self):
        assert parent_at(self.HISTORY, minute(0)) == PARENT

    def test_a_parent_that_was_taken_away_is_none(self):
        assert parent_at(self.HISTORY, minute(12)) is None


# -- the oracle ------------------------------------------------------------------------------------

TAGS = range(1, 6)
MINUTES = range(12)
FOR_EVER = 99

Piece = tuple[int, int | None, bool]


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """Intervals of one tag that do not overlap, in any order, the last perhaps without an end."""
    cuts = sorted(draw(st.sets(st.integers(0, 12), max_size=6)))
    found: list[Piece] = [
        (begin, end, draw(st.booleans()))
        for begin, end in itertools.pairwise(cuts)
        if draw(st.sampled_from([True, True, False]))
    ]
    if cuts and draw(st.booleans()):
        found.append((cuts[-1], None, draw(st.booleans())))
    return draw(st.permutations(found))


@st.composite
def readings(draw: st.DrawFn) -> list[tuple[int | None, int]]:
    """Parents of one tag in the order in which they were seen."""
    seen = sorted(draw(st.sets(st.sampled_from(MINUTES), max_size=4)))
    return [(draw(st.one_of(st.none(), st.sampled_from(TAGS))), at) for at in seen]


def by_timelines(
    tag: int, at: int, mapped: dict[int, list[Piece]], seen: dict[int, list[tuple[int | None, int]]]
) -> tuple[str, int | None, tuple[int, ...]]:
    """(outcome, number of the mapping, way to it)."""
    payer = {
        (owner, when): (owner * 10 + number, active)
        for owner, owned in mapped.items()
        for number, (begin, end, active) in enumerate(owned)
        for when in range(begin, FOR_EVER if end is None else end)
    }
    above: dict[int, int | None] = {}
    for owner, history in seen.items():
        earlier = [parent for parent, when in history if when <= at]
        above[owner] = earlier[-1] if earlier else next((parent for parent, _ in history), None)

    def climb(current: int | None, way: tuple[int, ...]) -> tuple[str, int | None, tuple[int, ...]]:
        if current is None or current in way:
            return "unmapped", None, ()
        way += (current,)
        if (current, at) not in payer:
            return climb(above.get(current), way)
        mapping_id, active = payer[current, at]
        return ("mapped", mapping_id, way) if active else ("inactive", mapping_id, ())

    return climb(tag, ())


@settings(max_examples=300)
@given(
    st.sampled_from(TAGS),
    st.sampled_from(MINUTES),
    st.dictionaries(st.sampled_from(TAGS), pieces(), max_size=4),
    st.dictionaries(st.sampled_from(TAGS), readings(), max_size=5),
)
def test_resolution_agrees_with_the_timelines(tag, at, mapped, seen):
    found = resolve_mapping(
        tag,
        minute(at),
        {
            owner: [
                interval(b, e, mapping_id=owner * 10 + n, active=on) for n, (b, e, on) in enumerate(owned)
            ]
            for owner, owned in mapped.items()
        },
        {owner: [sighting(parent, when) for parent, when in history] for owner, history in seen.items()},
    )
    match found:
        case Mapped(mapping=mapping, via_tag_ids=way):
            told = ("mapped", mapping.mapping_id, way)
        case Inactive(mapping=mapping):
            told = ("inactive", mapping.mapping_id, ())
        case Unmapped():
            told = ("unmapped", None, ())
    assert told == by_timelines(tag, at, mapped, seen)
