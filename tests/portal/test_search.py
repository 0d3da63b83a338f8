"""Search: from whatever people have in hand to the session or its list."""

import re
from datetime import timedelta

import pytest

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.models import LagoSubscription, UsageEvent
from ocpp_billing.mappings.models import LagoCustomer
from tests.portal import ledger

pytestmark = pytest.mark.django_db


@pytest.fixture
def found(signed_in, now):
    """Where a search leads: the address it goes straight to, else the page's text."""
    for tag in ("TAG-4711", "TAG-4712", "1"):
        ledger.add_session(now, tag=tag, state="confirmed")
    UsageEvent.objects.filter(session__steve_id=2).update(
        lago_event_id="8b0c-lago", external_customer_id="old-customer"
    )
    LagoCustomer.objects.create(external_id="c-9", name="Stadtwerke Nord", read_at=now)
    for days, lago_id in ((9, "row-1"), (1, "row-2")):
        LagoSubscription.objects.create(
            lago_id=lago_id, external_id="sub-9", external_customer_id="c-9", plan_code="p", status="active",
            started_at=now - timedelta(days=days), read_at=now,
        )  # fmt: skip

    def search(asked, role=Role.OPERATOR):
        answer = signed_in(role).get("/search", {"q": asked})
        if answer.status_code == 302:
            return answer.headers["Location"]
        assert answer.status_code == 200
        return " ".join(re.sub(r"<[^>]+>", " ", answer.content.decode().partition("<main")[2]).split())

    return search


@pytest.mark.parametrize(
    ("asked", "leads_to"),
    [
        ("2", r"/sessions/\d+"),
        ("#3", r"/sessions/\d+"),
        ("steve:main:2-00000000:1", r"/sessions/\d+"),
        ("8b0c-lago", r"/sessions/\d+"),
        ("tag-4711", r"/billing-events\?tag=TAG-4711"),
        ("c-9", r"/billing-events\?customer=c-9"),
        ("old-customer", r"/billing-events\?customer=old-customer"),
        ("sub-9", r"/billing-events\?subscription=sub-9"),
        ("row-2", r"/billing-events\?subscription=sub-9"),
        ("CP-3", r"/billing-events\?charge_box=CP-3"),
    ],
)
def test_one_exact_hit_goes_straight_there(found, asked, leads_to):
    assert re.fullmatch(leads_to, found(asked))


def test_an_event_that_was_given_up_still_leads_to_its_session(found, now):
    UsageEvent.objects.filter(session__steve_id=2).update(state="void", attempts=1, given_up_at=now)
    assert re.fullmatch(r"/sessions/\d+", found("8b0c-lago"))


def test_two_things_of_one_name_are_both_shown(found):
    text = found("1")
    assert "Sessions Session 1" in text
    assert "Tags 1" in text


def test_parts_are_grouped_by_kind(found):
    text = found("tag-47")
    assert "TAG-4711" in text
    assert "TAG-4712" in text
    assert "Customers Stadtwerke Nord c-9" in found("nord")
    assert "Charge boxes CP-1" in found("cp-")


def test_viewers_find_tags_by_exactly_their_last_four(found):
    assert "…4711" in found("4711", Role.VIEWER)
    # Of the last, four characters fold into five: they would find out the one before the last four.
    for probe in (
        "TAG-4711",
        "tag-47",
        "711",
        "G-4711",
        "47\N{CIRCLED NUMBER ELEVEN}",
        "-47\N{CIRCLED NUMBER ELEVEN}",
    ):
        text = found(probe, Role.VIEWER)
        assert "TAG-" not in text.partition("</h1>")[0].replace(probe, "")
        assert "…4711" not in text


def test_nothing_found_says_what_can_be(found):
    assert "Nothing is called so." in found("%")
    assert "Nothing is called so." in found("_")
    assert "What can be found" in found("")
    assert "Nothing is called so." in found("9" * 300)
