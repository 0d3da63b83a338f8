"""One tag, however it is spelled: as StEvE's database (MySQL, utf8_unicode_ci) compares id tags."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.charging.fold import fold_id_tag

# What StEvE lets people enter as an id tag.
steve_tags = st.text(string.ascii_letters + string.digits + ".:_#-", min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tag-alice", "TAG-ALICE"),
        ("TAG-ALICE  ", "TAG-ALICE"),
        ("Zoë", "ZOE"),
        ("zoe\u0308", "Zo\u00eb"),
        ("JOSÉ ", "jose"),
        ("ÅNGSTRÖM", "angstrom"),
        ("straße", "STRASSE"),
        ("ΑΒΓ", "αβγ"),
        ("ΟΔΟΣ", "οδος"),
        ("\uff34\uff21\uff27", "tag"),
        ("МАША", "маша"),
    ],
)
def test_these_are_one_tag(one, other):
    assert fold_id_tag(one) == fold_id_tag(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("TAG-ALICE", "TAG-ALICE2"),
        (" TAG-ALICE", "TAG-ALICE"),
        ("TAG ALICE", "TAGALICE"),
        ("TAG-1", "TAG_1"),
        ("04A1", "4A1"),
        ("O", "0"),
        ("маша", "mawa"),
    ],
)
def test_these_are_two_tags(one, other):
    assert fold_id_tag(one) != fold_id_tag(other)


def test_nothing_is_left_of_blanks():
    assert fold_id_tag("   ") == fold_id_tag("") == ""


@given(st.text())
def test_a_folded_tag_is_not_folded_any_further(text):
    assert fold_id_tag(fold_id_tag(text)) == fold_id_tag(text)


@given(st.text(), st.integers(0, 5))
def test_trailing_blanks_do_not_count(text, blanks):
    assert fold_id_tag(text + " " * blanks) == fold_id_tag(text)


@given(st.text(), st.text())
def test_leading_and_inner_blanks_count(before, after):
    assert fold_id_tag(f"{before} x{after}") != fold_id_tag(f"{before}x{after}")


@given(steve_tags)
def test_case_does_not_count_and_nothing_else_does(tag):
    assert fold_id_tag(tag) == fold_id_tag(tag.upper()) == fold_id_tag(tag.swapcase()) == tag.lower()


# Without the iota subscript, which is a letter below another, and the joiner, which is nothing.
accents = st.characters(min_codepoint=0x300, max_codepoint=0x36F, exclude_characters="\u0345\u034f")


@given(st.text(string.ascii_letters, min_size=1), accents)
def test_accents_do_not_count(letters, accent):
    assert fold_id_tag(accent.join(letters) + accent) == fold_id_tag(letters)


@given(steve_tags)
def test_the_short_way_of_plain_tags_gives_the_same_as_the_long_one(tag):
    assert fold_id_tag(f"é{tag}") == f"e{fold_id_tag(tag)}"
